"""Settings of what a recognizer writes with: its characters, and the form of texts. No torch."""

from typing import Literal

from pydantic import Field, model_validator

from lact_asr.config.base import Frozen


class TextConfig(Frozen):
    """In which form texts are learned, heard and compared; a checkpoint states it."""

    alphabet: Literal["english", "texts"] = Field(
        "english",
        description="english is A to Z, apostrophe and space, upper case, without punctuation; "
        "texts is every character of the training texts, in the form that the settings beside this "
        "one say, for any language",
    )
    case: Literal["upper", "lower", "keep"] = Field(
        "upper", description="letters as capitals (which makes SS of the German sharp s) or small"
    )
    punctuation: Literal["drop", "keep"] = Field(
        "drop", description="drop makes spaces of it, the apostrophe excepted"
    )
    spaces: Literal["keep", "drop"] = Field(
        "keep",
        description="drop is for scripts without spaces: the best model is then chosen by CER, "
        "gate with cer",
    )
    unicode: Literal["NFC", "NFKC"] = Field(
        "NFC",
        description="one form for each letter: NFC composes accents, NFKC makes ordinary letters "
        "of full-width ones and ligatures too",
    )

    @model_validator(mode="after")
    def _one_english(self) -> "TextConfig":
        form = (self.case, self.punctuation, self.spaces, self.unicode)
        if self.alphabet == "english" and form != ("upper", "drop", "keep", "NFC"):
            raise ValueError(
                "alphabet: english has a form of its own: write alphabet: texts beside case, "
                "punctuation, spaces or unicode"
            )
        return self


ENGLISH = TextConfig()
