"""A few sentences in three scripts, and espeak-ng to speak them."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile

from lact_asr.config.text import TextConfig
from lact_asr.data.manifest import Utterance, write_manifest
from lact_asr.data.synthetic.espeak import Espeak


class Spoken(NamedTuple):
    """A language: espeak-ng's voice, the form of texts, and some of them."""

    voice: str
    form: TextConfig
    texts: Sequence[str]


SAID = {
    "german": Spoken(
        "de",
        TextConfig(alphabet="texts", case="lower"),
        [
            "Fünf große Äpfel, bitte!",
            "Über den Fluß führt eine Brücke.",
            "Heißer Tee ist schön.",
            "Das Mädchen hört zu.",
            "Grüße aus Köln!",
            "Wir müssen früh gehen.",
        ],
    ),
    "japanese": Spoken(
        "ja",
        TextConfig(alphabet="texts", spaces="drop"),
        [
            "こんにちは、せかい。",
            "きょうは いい てんき です。",
            "ありがとう ございます。",
            "さくらが さきました。",
            "みずを ください。",
            "また あした。",
        ],
    ),
    "arabic": Spoken(
        "ar",
        TextConfig(alphabet="texts"),
        [
            "مرحبا، يا عالم",
            "كيف حالك اليوم؟",
            "شكرا جزيلا",
            "هذا كتاب جديد",
            "أين المدرسة؟",
            "الماء بارد",
        ],
    ),
}


def speak(folder: Path, language: str) -> Path:
    """A manifest of the sentences, spoken in a process of its own, as espeak-ng wants it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        utterances = pool.apply(_speak, (folder, language))
    manifest = folder / "manifests" / f"{language}.jsonl"
    write_manifest(manifest, utterances)
    return manifest


def _speak(folder: Path, language: str) -> list[Utterance]:
    espeak, made = Espeak(), []
    for number, text in enumerate(SAID[language].texts):
        samples = espeak.say(text, SAID[language].voice, 150, 50, number)
        path = folder / f"{language}-{number}.wav"
        soundfile.write(path, samples, espeak.rate)
        made.append(Utterance(path.stem, path, len(samples) / espeak.rate, text, language))
    return made
