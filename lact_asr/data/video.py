"""Video beside the audio: ready features or frames, 25 a second, from .npy files. No torch here.

    features   [T,D]             float16 or float32, as a lip-reading or sign model wrote them
    frames     [T,3,112,112]     uint8, red, green and blue

An utterance whose manifest names no video has none. One whose file is wrong is treated as one whose
audio is: left out, named and counted, so that nothing is learned from half of what was meant.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lact_asr.utils.errors import DataError

RATE = 25  # frames a second
APART = (0.2, 0.05)  # from the audio's length: seconds, and share of it; the larger is allowed


def read_video(path: Path, shape: tuple[int, ...], seconds: float) -> NDArray[Any]:
    """[T, *shape], float32 or uint8, of an utterance of so many seconds; DataError names the file.

    `shape` is that of one frame: (D,) for features, (3, 112, 112) for pictures.
    """
    try:
        video = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read the video file {path}: {error}") from error
    wanted = ("float16", "float32") if len(shape) == 1 else ("uint8",)
    expected = f"the model wants ({', '.join(map(str, ('T', *shape)))}) of {' or '.join(wanted)}"
    if not isinstance(video, np.ndarray):  # noqa: TID251
        raise DataError(f"the video file {path} is an archive of arrays: {expected}, in a .npy")
    if video.dtype.name not in wanted or video.ndim != len(shape) + 1 or video.shape[1:] != shape:
        raise DataError(f"the video file {path} has {video.shape} of {video.dtype}: {expected}")
    shown = len(video) / RATE
    if not len(video) or abs(shown - seconds) > max(APART[0], APART[1] * seconds):
        raise DataError(
            f"the video file {path} has {len(video)} frames, {shown:.2f} s at {RATE} a second, and "
            f"its audio {seconds:.2f} s: write it at {RATE} frames a second, whole"
        )
    if not np.isfinite(video).all():
        raise DataError(f"the video file {path} has values that are NaN or infinite")
    return video if len(shape) > 1 else video.astype(np.float32)
