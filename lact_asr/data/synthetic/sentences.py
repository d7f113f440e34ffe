"""What a synthetic corpus says: short sentences, no two alike, from a grammar of 32 words.

    PLACE RED CHAIR SEVEN NOW BRING ...

A sentence is a number in a mixed radix, one digit per word, so sentences can be drawn without
repetition: what dev and test say is never said in training, though each of its words is.
"""

import math
import random

from pydantic import Field, model_validator

from lact_asr.config.base import Frozen

SLOTS = (
    ["PLACE", "BRING", "MOVE", "HIDE", "PAINT", "TURN"],
    ["RED", "BLUE", "GREEN", "WHITE", "BLACK", "YELLOW"],
    ["CHAIR", "TABLE", "HOUSE", "WINDOW", "GARDEN", "BOTTLE"],
    ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN"],
    ["NOW", "AGAIN", "SOON", "TODAY"],
)
VOICES = (  # espeak-ng's names, language+variant; the number of a voice is its speaker id
    "en-us",
    "en-us+f2",
    "en-us+m3",
    "en-gb-x-rp",
    "en-us+f4",
    "en-gb-scotland",
    "en-us+m7",
    "en-029",
)


class Synthetic(Frozen):
    """How much is spoken, and how varied."""

    utterances: int = Field(300, ge=10, le=100_000, description="training sentences")
    test_utterances: int = Field(
        40, ge=1, le=10_000, description="sentences in dev, and as many others in test"
    )
    words: int = Field(4, ge=1, le=12, description="words per sentence; 4 last about 1.7 s")
    voices: int = Field(4, ge=1, le=len(VOICES), description="different voices")
    seed: int = Field(0, ge=0, description="another seed, other sentences and other readings")

    @model_validator(mode="after")
    def _enough_sentences(self) -> "Synthetic":
        wanted, possible = self.utterances + 2 * self.test_utterances, capacity(self.words)
        if wanted > possible:
            raise ValueError(
                f"{wanted} different sentences are wanted, but {self.words} words make only"
                f" {possible}: write more `words` or fewer `utterances`"
            )
        return self


def capacity(words: int) -> int:
    """How many different sentences of so many words there are: 2160 of four."""
    return math.prod(len(_slot(position)) for position in range(words))


def sentences(recipe: Synthetic) -> dict[str, list[str]]:
    """The sentences of train, dev and test: all different, drawn by the recipe's seed."""
    wanted = recipe.utterances + 2 * recipe.test_utterances
    draw = random.Random(f"sentences {recipe.seed}")
    spoken = [
        _sentence(n, recipe.words) for n in draw.sample(range(capacity(recipe.words)), wanted)
    ]
    dev, test = recipe.utterances, recipe.utterances + recipe.test_utterances
    return {"train": spoken[:dev], "dev": spoken[dev:test], "test": spoken[test:]}


def _slot(position: int) -> list[str]:
    return SLOTS[position % len(SLOTS)]


def _sentence(number: int, words: int) -> str:
    spoken = []
    for position in range(words):
        number, word = divmod(number, len(_slot(position)))
        spoken.append(_slot(position)[word])
    return " ".join(spoken)
