"""How long an MP3 file is by its frames. No torch here.

libsndfile (1.2) decodes as much as the first frame says, or, where that says nothing, what so many
bytes are at its bit rate: 5.7 of 12 s of a variable rate, the first of several files put into one.

Frames of layer III as in ISO/IEC 11172-3 and 13818-3; a third kind, 8 to 12 kHz, is Fraunhofer's.
"""

from functools import lru_cache
from typing import NamedTuple

_KINDS = {3: "1", 2: "2", 0: "2.5"}  # two bits of the header: MPEG's version
_HERTZ = {
    "1": (44_100, 48_000, 32_000),
    "2": (22_050, 24_000, 16_000),
    "2.5": (11_025, 12_000, 8_000),
}
_KILOBITS = {
    1152: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    576: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # by the samples in a frame
LONGEST = 1152  # samples in a frame
_TAG = 10  # bytes before those that a tag (ID3) counts


class Frame(NamedTuple):
    """What the header of a frame says."""

    samples: int
    hertz: int
    bytes: int


def count_seconds(data: bytes) -> float:
    """Seconds in all frames that are as the first one; 0 where no frame of layer III is found."""
    place, samples, hertz = 0, 0, 0
    while 0 <= place < len(data) - 3:
        if data.startswith(b"ID3", place):
            place += _tag_size(data[place : place + _TAG])
            continue
        frame = _frame(*data[place + 1 : place + 3]) if data[place] == 0xFF else None
        if frame is None or frame.hertz != (hertz or frame.hertz):
            place = data.find(b"\xff", place + 1)
            continue
        samples, hertz, place = samples + frame.samples, frame.hertz, place + frame.bytes
    return samples / hertz if hertz else 0.0


@lru_cache(maxsize=512)
def _frame(second: int, third: int) -> Frame | None:
    """What the second and the third byte of a header say; None for what begins no frame."""
    version, rate, kilobits = _KINDS.get(second >> 3 & 3), third >> 2 & 3, third >> 4
    is_header = second >= 0xE0 and second >> 1 & 3 == 1  # of layer III
    if not (is_header and version and rate < 3 and 0 < kilobits < 15):
        return None
    samples, hertz = 1152 if version == "1" else 576, _HERTZ[version][rate]
    padding = third >> 1 & 1
    size = samples // 8 * _KILOBITS[samples][kilobits - 1] * 1000 // hertz + padding
    return Frame(samples, hertz, size)


def _tag_size(head: bytes) -> int:
    """Bytes of a tag, of its first ten: seven bits of its size in each of the last four."""
    size = 0
    for byte in head[6:]:
        size = size << 7 | byte & 0x7F
    return _TAG + size
