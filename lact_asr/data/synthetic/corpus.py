"""A small spoken corpus made on the spot, to try everything on any machine at once.

Sentences come from `sentences.py`, speech from espeak-ng with several voices, speeds and pitches,
at 16 kHz in FLAC files. The folder looks like LibriSpeech, so all that follows is the same:

    synthetic-1f0c3a5b7d/{train,dev,test}/<voice>/<1|2|3>/<voice>-<1|2|3>-0000.flac

The name holds a hash of the recipe: the same recipe is the same folder with the same bytes.
"""

import hashlib
import multiprocessing
import random
import shutil
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from lact_asr.config.model import SAMPLE_RATE
from lact_asr.data.audio import resample
from lact_asr.data.synthetic.espeak import Espeak
from lact_asr.data.synthetic.sentences import VOICES, Synthetic, sentences
from lact_asr.utils.files import write_json
from lact_asr.utils.locks import exclusive_lock
from lact_asr.utils.progress import Progress

MARKER = ".complete"
_GENERATOR = 1  # raise it when the same recipe begins to sound different
_SPEED = (120, 180)  # words a minute
_PITCH = (30, 70)  # of 0 to 99
_EDGE = 0.1  # seconds of near-silence before and after the sentence
_NOISE = 1e-3  # of full scale, 60 dB below it: no recording has digital silence


def synthesize(recipe: Synthetic, root: Path) -> Path:
    """The folder under `root` with train, dev and test: made now, or found as made before."""
    folder = root / f"synthetic-{_key(recipe)}"
    root.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(root / f".{folder.name}.lock"):
        if not (folder / MARKER).exists():
            _make(recipe, folder)
    return folder


def _make(recipe: Synthetic, folder: Path) -> None:
    """Speak into a temporary folder, then rename it: `folder` is whole or absent."""
    temporary = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed job; the lock is ours
    temporary.mkdir()
    # A fresh process: espeak-ng carries state from one sentence to the next.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(_speak, recipe, temporary).result()
    write_json(temporary / MARKER, recipe.model_dump())
    temporary.rename(folder)


def _key(recipe: Synthetic) -> str:
    return hashlib.sha256(f"{_GENERATOR} {recipe.model_dump_json()}".encode()).hexdigest()[:10]


def _speak(recipe: Synthetic, folder: Path) -> None:
    """Say every sentence of the recipe and write the files."""
    espeak = Espeak()
    spoken = sentences(recipe)
    total = sum(len(texts) for texts in spoken.values())
    with Progress("speaking", total, "sentences") as progress:
        for chapter, (subset, texts) in enumerate(spoken.items(), start=1):
            draw = random.Random(f"readings {subset} {recipe.seed}")
            lines: dict[Path, list[str]] = defaultdict(list)
            for number, text in enumerate(texts):
                speaker = number % recipe.voices
                name = f"{speaker + 1}-{chapter}"
                place = folder / subset / str(speaker + 1) / str(chapter)
                place.mkdir(parents=True, exist_ok=True)
                key = f"{name}-{number:04d}"
                wave = _reading(espeak, text, VOICES[speaker], draw)
                soundfile.write(place / f"{key}.flac", wave, SAMPLE_RATE, "PCM_16")
                lines[place / f"{name}.trans.txt"].append(f"{key} {text}\n")
                progress.advance()
            for path, transcript in lines.items():
                path.write_text("".join(transcript))


def _reading(espeak: Espeak, text: str, voice: str, draw: random.Random) -> NDArray[Any]:
    """int16 [samples] at 16 kHz: the sentence with a drawn speed and pitch, in faint noise."""
    seed = draw.randrange(1, 1 << 31)
    speech = espeak.say(text.lower(), voice, draw.randint(*_SPEED), draw.randint(*_PITCH), seed)
    # float64: rounding to 16 bits then hides the last-bit differences between CPUs
    wave = np.pad(resample(speech / 32768.0, espeak.rate), round(_EDGE * SAMPLE_RATE))
    wave = wave + _NOISE * np.random.default_rng(seed).standard_normal(len(wave))
    samples: NDArray[Any] = np.round(np.clip(wave, -1.0, 1.0) * 32767).astype(np.int16)
    return samples
