"""A tiny folder in LibriSpeech layout, made of noise, and the archive and facts that go with it."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from lact_asr.data.corpora import Subset

SECONDS = 0.5


def recording(path: Path, seconds: float = SECONDS, rate: int = 16_000) -> Path:
    """Noise in a new audio file; the suffix is the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * rate))
    encoding = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, noise, rate, **encoding)
    return path


def chapter(folder: Path, speaker: int, utterances: int, chapter: int = 7) -> Path:
    """One chapter of one speaker below `folder`: its .trans.txt."""
    place = folder / str(speaker) / str(chapter)
    names = [f"{speaker}-{chapter}-{number:04d}" for number in range(utterances)]
    for name in names:
        recording(place / f"{name}.flac")
    path = place / f"{speaker}-{chapter}.trans.txt"
    path.write_text("".join(f"{name} THE TEXT OF {name.replace('-', ' ')}\n" for name in names))
    return path


def subset_folder(folder: Path, speakers: int = 2, utterances: int = 3) -> Path:
    """A whole subset."""
    for speaker in range(1, speakers + 1):
        chapter(folder, speaker, utterances)
    return folder


def archive(folder: Path, name: str, extra: dict[str, bytes] | None = None) -> bytes:
    """The subset in `folder` as OpenSLR packs it; `extra` members have the names given."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, f"LibriSpeech/{name}")
        for member, content in {"LibriSpeech/LICENSE.TXT": b"CC BY 4.0", **(extra or {})}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def facts(name: str, data: bytes, utterances: int) -> Subset:
    """What corpora.py would know about this archive."""
    checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Subset(name, resource=12, checksum=checksum, size=len(data), utterances=utterances)
