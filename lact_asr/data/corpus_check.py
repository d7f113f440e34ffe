"""Whether a recording can be learned from: read as a whole, judged beside its text.

100 hours take a minute and a half on one core. What is found is said in words, as `Finding`s; those
that are `fatal` teach a recognizer something false, the others are worth a look.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lact_asr.data.audio import duration, read_samples
from lact_asr.utils.errors import DataError

SILENT = 1e-3  # of full scale, -60 dB: no sample is louder
FULL = 0.999  # of full scale; a recording that was cut there stays there
CLIPPED = 1e-3  # share of such samples
FASTEST = 30.0  # characters a second, spaces not counted; quick English has 20
SLACK = 0.1  # s by which a part may end behind its recording
LOWEST = 16_000  # Hz, what models hear


class Finding(NamedTuple):
    """One thing that is wrong with a recording."""

    kind: str  # missing, unreadable, beyond the end, silent, clipped, too short, doubled, ...
    said: str
    fatal: bool = True


class Heard(NamedTuple):
    """A recording that could be read."""

    seconds: float
    rate: int  # Hz
    peak: float  # loudest sample, 1 is full scale
    clipped: float  # share of samples at full scale
    fingerprint: int  # of the samples


def listen(
    path: Path,
    offset: float | None = None,
    seconds: float | None = None,
    channel: int | None = None,
) -> Heard | Finding:
    """What a recording holds, or a part of it and one of its channels; or why nothing can be known
    of it.
    """
    try:
        if not path.is_file():
            return Finding("missing", f"missing: no file {path}")
        state = path.stat()
        whole = _duration(path, state.st_size, state.st_mtime_ns)
        end = whole if seconds is None else (offset or 0.0) + seconds
        if end > whole + SLACK or (offset or 0.0) >= whole:
            part = f"from {offset or 0:g} s on" if seconds is None else f"up to {end:g} s"
            said = f"beyond the end: {path} has {whole:.2f} s, and not the part {part}"
            return Finding("beyond the end", said)
        samples, rate = read_samples(path, offset or 0.0, seconds, channel)
    except (DataError, OSError) as error:
        return Finding("unreadable", f"unreadable: {error}")
    if not np.isfinite(samples).all():
        return Finding("unreadable", f"unreadable: {path} has samples that are NaN or infinite")
    level = np.abs(samples)
    return Heard(
        len(samples) / rate,
        rate,
        float(level.max()),
        float((level >= FULL).mean()),
        hash((rate, samples.tobytes())),
    )


@lru_cache(maxsize=1024)
def _duration(path: Path, size: int, modified: int) -> float:
    """Seconds of a file as it is, looked at once for all of its parts; it finds what was cut off,
    which decoders read over.
    """
    return duration(path)


def judge(heard: Heard, text: str) -> list[Finding]:
    """What is wrong with a recording, given what is said in it."""
    found, letters = [], len("".join(text.split()))
    if heard.peak < SILENT:
        found.append(Finding("silent", f"silent: no sample above {SILENT:g} of full scale"))
    if letters > FASTEST * heard.seconds:
        said = f"too short for its text: {letters} characters in {heard.seconds:.2f} s"
        found.append(Finding("too short", said))
    if heard.clipped > CLIPPED:
        said = f"clipped: {heard.clipped:.1%} of its samples are at full scale"
        found.append(Finding("clipped", said, fatal=False))
    if heard.rate < LOWEST:
        said = f"wrong rate: {heard.rate:,} Hz has nothing above {heard.rate // 2:,} Hz"
        found.append(Finding("wrong rate", f"{said}; models hear {LOWEST:,} Hz", fatal=False))
    return found
