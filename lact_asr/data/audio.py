"""Audio files: samples at 16 kHz for the models, durations for the manifests. No torch here.

soundfile decodes FLAC, WAV and Ogg Opus with the libsndfile in its wheel, at 520 ten-second files
a second and core; torchaudio.load would need FFmpeg and is no faster.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from lact_asr.config.model import SAMPLE_RATE
from lact_asr.data.mp3 import LONGEST, count_seconds
from lact_asr.utils.errors import DataError

RATE = SAMPLE_RATE
SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")
_STREAMED = 0x7FFF_0000  # in the header of a WAV file, and up: nobody knew the length
_ENDLESS = 1 << 48  # samples: 200 years at 44.1 kHz
_BEFORE = 4 * LONGEST  # samples read before a part and thrown away
_TAIL = 1 << 16  # bytes: an Ogg page is at most 65,307 long


def is_recording(path: Path) -> bool:
    """Whether a file's name is one of audio; recorders write .WAV, too."""
    return path.suffix.lower() in SUFFIXES


def read_audio(
    path: Path, offset: float = 0.0, seconds: float | None = None, channel: int | None = None
) -> NDArray[Any]:
    """The recording, or what `read_samples` reads of it, as float32 [samples] in -1..1, mono, 16
    kHz; DataError names the file.
    """
    samples, rate = read_samples(path, offset, seconds, channel)
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not len(mono):
        where = f" from {offset:g} s on" if offset else ""
        raise DataError(f"the audio file {path} has no samples{where}")
    return mono if rate == SAMPLE_RATE else resample(mono, rate)


def read_samples(
    path: Path, offset: float = 0.0, seconds: float | None = None, channel: int | None = None
) -> tuple[NDArray[Any], int]:
    """Float32 [samples, channels] in -1..1, and their rate in Hz: of the whole recording, or of so
    many seconds from `offset` on (less, where it ends before); of all channels, or of one (from 0).
    DataError names the file.
    """
    try:
        with soundfile.SoundFile(path) as file:
            _require_length(path, file)
            samples, rate = _read_part(file, offset, seconds), file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise _refusal(path, error) from error
    if channel is None:
        return samples, rate
    if channel >= samples.shape[1]:
        raise DataError(f"{path}: no channel {channel} in {samples.shape[1]}: 0 is the first")
    return samples[:, channel : channel + 1], rate


def _read_part(file: soundfile.SoundFile, offset: float, seconds: float | None) -> NDArray[Any]:
    """[samples, channels] of a part. Right behind a seek libsndfile (1.2) decodes MP3 wrongly, by a
    fifth of full scale at 24 kHz, until the second frame.
    """
    start = min(round(offset * file.samplerate), file.frames)
    before = min(start, _BEFORE) if file.seekable() else start  # telephones' GSM 6.10 is not
    if start > before:
        file.seek(start - before)
    left = file.frames - start
    count = left if seconds is None else min(round(seconds * file.samplerate), left)
    samples: NDArray[Any] = file.read(before + count, dtype="float32", always_2d=True)
    return samples[before:]


def resample(samples: NDArray[Any], rate: int) -> NDArray[Any]:
    """[samples] at `rate` Hz, float32 or float64, to 16 kHz.

    The filter of torchaudio.functional.resample (a sinc of six zero crossings in a Hann window,
    rolled off at 0.99), without the 1.6 s of processor time that importing torch takes. Beside
    torchaudio 2.11 in float64 a sample is off by 8e-8 at most, where its float32 is off by 2e-6
    (44.1 kHz) and 7e-6 (22.05). A minute takes 10 ms, 23 there; at 48 kHz it takes 15, 10 there.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // common, SAMPLE_RATE // common  # 441 samples become 320
    kernel, reach = resampling_kernel(old, new)
    padded = np.pad(samples, (reach, reach + old))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1])  # [samples, taps]
    blocks = math.ceil(len(samples) / old)
    resampled = np.empty((blocks, new), samples.dtype)
    # Small products: one large one starts BLAS threads, 7 times slower on a busy machine.
    for phase, taps in enumerate(kernel.astype(samples.dtype)):
        resampled[:, phase] = windows[phase * old // new :: old][:blocks] @ taps
    return resampled.reshape(-1)[: math.ceil(len(samples) * new / old)]


@lru_cache(maxsize=8)
def resampling_kernel(old: int, new: int) -> tuple[NDArray[Any], int]:
    """[new, taps]: the weights of the samples around each new one; how many of them precede it."""
    crossings, cutoff = 6, 0.99 * min(old, new)
    reach = math.ceil(crossings * old / cutoff)
    past = (
        np.arange(new)[:, None] * old % new / new
    )  # of a sample, from the last old to the new one
    times = (np.arange(-reach, reach + 2) - past) * cutoff / old
    times = np.clip(times, -crossings, crossings)
    window = np.cos(times * np.pi / crossings / 2) ** 2
    return np.sinc(times) * window * cutoff / old, reach


def duration(path: Path) -> float:
    """Seconds of audio by the header, after a look at the end: a truncated file is a DataError.

    The header alone cannot tell: a FLAC file cut in half still claims its full length. Opening and
    seeking to the last sample costs 0.11 ms (soundfile.info alone 0.07, decoding 1.5).
    """
    try:
        with soundfile.SoundFile(path) as file:
            frames, rate = file.frames, file.samplerate
            _require_length(path, file)
            _require_all_heard(path, file)
            whole = _ends_whole(path, file.format) and _has_last_sample(file)
    except (soundfile.LibsndfileError, OSError) as error:
        raise _refusal(path, error) from error
    if not whole:
        raise DataError(f"{path}: truncated (the file ends before its audio does)")
    if not frames:
        raise DataError(f"{path}: no samples")
    return float(frames / rate)


def _require_length(path: Path, file: soundfile.SoundFile) -> None:
    """DataError for a FLAC file that was written into a pipe: libsndfile (1.2) counts 2^63 - 1."""
    if file.frames > _ENDLESS:
        raise DataError(
            f"{path}: its header does not say how long it is, as it came through a pipe: write it "
            "anew, with `flac -d` and `flac`, or sox"
        )


def _require_all_heard(path: Path, file: soundfile.SoundFile) -> None:
    """DataError for an MP3 file of which libsndfile would decode a part."""
    if file.format != "MP3":
        return
    counted, heard = count_seconds(path.read_bytes()), file.frames / file.samplerate
    if counted > 1.01 * heard + 4 * LONGEST / file.samplerate:  # padded at both ends
        raise DataError(
            f"{path}: {counted:.1f} s of MP3, of which only {heard:.1f} would be heard (a variable "
            "rate without a header, or several files put into one): write it anew as FLAC or WAV, "
            "with ffmpeg or sox"
        )


def _refusal(path: Path, error: Exception) -> DataError:
    """What to say of a file that libsndfile (1.2) refuses. What the file system has against it, it
    calls a "System error"; and it takes ._NAME for a part of NAME.
    """
    try:
        path.open("rb").close()
    except OSError as trouble:
        return DataError(f"cannot read the audio file {path}: {trouble.strerror}")
    left = path.with_name(f"._{path.name}")
    forked = f"; remove {left}, which a Mac has left there" if left.exists() else ""
    return DataError(f"{path}: truncated or not an audio file ({error}{forked})")


def _has_last_sample(file: soundfile.SoundFile) -> bool:
    """Whether what a header promises is there: reading it is an error where a FLAC file is cut, and
    gives nothing where an MP3 file is. What MP3 files promise may be a guess, to within a second.
    """
    if file.format not in ("FLAC", "MP3") or not file.frames:
        return True
    slack = file.samplerate if file.format == "MP3" else 0
    file.seek(max(0, file.frames - 1 - slack))
    return len(file.read(1)) == 1


def _ends_whole(path: Path, kind: str) -> bool:
    """Whether an Ogg file ends with its last page, a WAV file with the byte its header promises;
    `kind` is libsndfile's word for what is in the file, whatever its name says.
    """
    if kind in ("WAV", "WAVEX", "RF64"):
        return _promised(path) + 8 <= path.stat().st_size
    if kind == "OGG":
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            tail = file.read()
        page = tail[
            tail.rfind(b"OggS") :
        ]  # magic 4, version 1, flags 1 (4: last page), ..., segments at 26
        size = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 26 else -1
        return size == len(page) and bool(page[5] & 4)
    return True


def _promised(path: Path) -> int:
    """Bytes that a WAV file has behind its first eight; 0 where its header does not know: sox and
    ffmpeg write 2 GB or 4 GB there when they write into a pipe.
    """
    with path.open("rb") as file:
        head = file.read(28)
    if head.startswith(b"RF64"):  # RF64 -1 WAVE ds64 28 <bytes>: EBU Tech 3306, for over 4 GB
        return int.from_bytes(head[20:28], "little")
    promised = int.from_bytes(head[4:8], "big" if head.startswith(b"RIFX") else "little")
    return promised if promised < _STREAMED else 0
