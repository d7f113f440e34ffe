"""Whether a recording can be learned from: read as a whole, judged beside its text.

100 hours take a minute and a half on one core. What is found is said in words, as `Finding`s; those
that are `fatal` teach a recognizer something false, the others are worth a look.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from lact_asr.data.audio import duration
from lact_asr.utils.errors import DataError

SILENT = 1e-3  # of full scale, -60 dB: no sample is louder
FULL = 0.999  # of full scale; a recording that was cut there stays there
CLIPPED = 1e-3  # share of such samples
FASTEST = 30.0  # characters a second, spaces not counted; quick English has 20
LOWEST = 16_000  # Hz, what models hear


class Finding(NamedTuple):
    """One thing that is wrong with a recording."""

    kind: str  # missing, unreadable, silent, clipped, too short, doubled, wrong rate
    said: str
    fatal: bool = True


class Heard(NamedTuple):
    """A recording that could be read."""

    seconds: float
    rate: int  # Hz
    peak: float  # loudest sample, 1 is full scale
    clipped: float  # share of samples at full scale
    fingerprint: int  # of the samples


def listen(path: Path) -> Heard | Finding:
    """What a recording holds, or why nothing can be known of it."""
    try:
        if not path.is_file():
            return Finding("missing", f"missing: no file {path}")
        duration(path)  # finds what was cut off, which decoders read over
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (DataError, soundfile.LibsndfileError, OSError) as error:
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
