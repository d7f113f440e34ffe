"""The recipes that `bench.learn` compares: a model of 2 M parameters on five hours of speech.

`ours`, `off` and `transformer` are the recipe that this project began with: characters, AdamW, no
convolution, nothing masked. `shipped` has what jobs/pipelines/mini_librispeech.yaml has; it takes
as many steps as cost a core what the 4,000 of `ours` do. The ablation is of `unmasked`, the best of
these on five hours, cut short: its blocks with other updates or none, and other blocks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import manual_seed

from bench.machine import precision
from bench.peers import Linear, equal
from lact_asr.config.model import ModelConfig
from lact_asr.config.presets import PRESETS
from lact_asr.config.training import CTCConfig, TrainingConfig
from lact_asr.model.interface import CTCModel
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.bpe import BPEVocabulary
from lact_asr.text.vocabulary import Vocabulary

SHAPE = {
    "hidden": 192, "layers": 4, "attention_heads": 4, "lact_heads": 2, "mlp": 512,
    "conv_layers": 2, "dropout": 0.0,
}  # fmt: skip
SMALLEST = {"hidden": 32, "layers": 3, "mlp": 64}


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how; what is not named is as in `ours`."""

    what: str
    steps: int = 4000
    family: Literal["lact", "linear", "transformer", "conformer"] = "lact"
    model: Mapping[str, Any] = field(default_factory=dict)  # of ModelConfig
    training: Mapping[str, Any] = field(default_factory=dict)  # of TrainingConfig
    optim: Mapping[str, Any] = field(default_factory=dict)  # of OptimConfig
    ctc: Mapping[str, Any] = field(default_factory=dict)  # of CTCConfig
    pieces: int = 0  # of a BPE vocabulary; 0 is characters

    def vocabulary(self, texts: Iterable[str]) -> Vocabulary:
        """The symbols it writes with."""
        return BPEVocabulary.learn(texts, self.pieces) if self.pieces else Vocabulary.characters()

    def fresh(self, vocabulary: Vocabulary, seed: int, tiny: bool = False) -> CTCModel:
        """An untrained model, whose weights depend on the seed only."""
        manual_seed(seed)
        shape = ModelConfig.model_validate({**SHAPE, **self.model, **(SMALLEST if tiny else {})})
        if self.family in ("transformer", "conformer"):
            return equal(self.family, shape, len(vocabulary))
        return (Linear if self.family == "linear" else Recognizer)(shape, len(vocabulary))

    def settings(self, steps: int, seed: int, batch_seconds: float | None = None) -> TrainingConfig:
        """Ten validations, and a cosine that ends with the steps."""
        every = {"valid_every": steps // 10, "checkpoint_every": steps // 24}
        given = {
            "max_steps": steps, "batch_seconds": 32.0, "samples": 2, "seed": seed,
            "precision": precision(), "log_every": max(steps // 120, 1),
            **{name: max(count, 1) for name, count in every.items()}, **self.training,
        }  # fmt: skip
        optim = {"learning_rate": 2e-3, "warmup_steps": max(steps // 10, 1), **self.optim}
        if batch_seconds:
            given["batch_seconds"] = batch_seconds
        return TrainingConfig.model_validate({**given, "optim": optim})

    def loss(self) -> CTCConfig:
        """What is minimized."""
        return CTCConfig.model_validate(self.ctc)


MUON = {"method": "muon"}
CONVOLUTION = {"conv_kernel": 15}
HALVED = {**CONVOLUTION, "subsampling": 8, "conv_layers": 3}
NEAR = {**CONVOLUTION, "window": 16}
SPELLED = {"intermediate": [2], "intermediate_symbols": "characters"}
MASKS = {"frequency_masks": 2, "time_masks": 25, "time_total": 0.375}  # for CR-CTC
RATES = (1e-3, 2e-3, 4e-3)


def _rated(method: str, rate: float) -> Recipe:
    optim = {"method": method, "learning_rate": rate}
    return Recipe(f"convolution, {method} at {rate:g}", 2300, model=CONVOLUTION, optim=optim)


MAIN = {
    "ours": Recipe("the first recipe, one update per utterance"),
    "off": Recipe("the first recipe without updates", model={"schedule": "off"}),
    "transformer": Recipe("the first recipe, plain transformer", family="transformer"),
    "muon": Recipe("the first recipe with Muon", optim=MUON),
    # its steps took 0.57 s of a core where those of `ours` took 0.37; its rate is the best of three
    # pilots of 200 steps (learn_pilots.json): CER 63.2 % with 2e-3, 60.2 with 4e-3, 69.8 with 8e-3
    "unmasked": Recipe(
        "Muon, convolution", steps=2300, model=CONVOLUTION, optim={**MUON, "learning_rate": 4e-3}
    ),
    "gentle": Recipe(
        "Muon, convolution, three speeds, narrow masks of bands, running mean",
        steps=2300,
        model=CONVOLUTION,
        training={
            "augment": {"speeds": [0.9, 1.0, 1.1], "frequency_masks": 2, "frequency_width": 10},
            "average": {"decay": 0.999},
        },
        optim={**MUON, "learning_rate": 4e-3},
    ),
    "shipped": Recipe(
        "Muon, convolution, dropout, and the preset's speeds, masks and running mean",
        steps=2300,
        model={**CONVOLUTION, "dropout": 0.1},
        training={name: PRESETS["modern"][name] for name in ("augment", "average")},
        optim={**MUON, "learning_rate": 4e-3, "decay_gains": False},
    ),
}
_SHIPPED = MAIN["shipped"]
_MASKED = {**_SHIPPED.training, "augment": MASKS}
LOSSES = {
    "inter": replace(_SHIPPED, what="shipped, intermediate CTC", ctc={"intermediate": [2]}),
    "masked": replace(_SHIPPED, what="shipped, masked as CR-CTC wants it", training=_MASKED),
    "cr": replace(_SHIPPED, what="shipped, CR-CTC", training=_MASKED, ctc={"consistency": 0.2}),
}
_UNMASKED = MAIN["unmasked"]
PARTS = {  # what pipelines for more speech have, one by one
    "inner": replace(_UNMASKED, what="intermediate CTC", ctc={"intermediate": [2]}),
    "dropped": replace(_UNMASKED, what="dropout", model={**CONVOLUTION, "dropout": 0.1}),
    "speeds": replace(
        _UNMASKED, what="three speeds", training={"augment": {"speeds": [0.9, 1.0, 1.1]}}
    ),
    "pieces": replace(_UNMASKED, what="200 pieces of words", pieces=200),
    **{
        f"pieces{count}": replace(_UNMASKED, what=f"{count} pieces of words", pieces=count)
        for count in (100, 400, 800, 1600)
    },
    "near": replace(_UNMASKED, what="windows of 16 tokens", model=NEAR),
    "near_off": replace(
        _UNMASKED, what="windows of 16 tokens, no update", model={**NEAR, "schedule": "off"}
    ),
    **{
        f"spelled{count}": replace(
            _UNMASKED,
            what=f"{count} pieces of words, characters at block 2, windows of 16 tokens",
            pieces=count,
            model=NEAR,
            ctc=SPELLED,
        )
        for count in (800, 1600)
    },
    # with its compilers, which take as long as 430 steps of `ours`, no longer than 4,000 of those:
    # one of its steps takes 1.04 times as long (bench/results/pace.json), 1.14 in another run
    "spelled_fast": replace(
        _UNMASKED,
        what="as spelled1600, no update, dropout, running mean; bfloat16, compiled",
        steps=3100,
        pieces=1600,
        model={**NEAR, "schedule": "off", "dropout": 0.15},
        ctc=SPELLED,
        training={"precision": "bf16", "compile": True, "average": {"decay": 0.999}},
    ),
    # steps of `halved` took 0.45 s of a core where those of `pieces` took 0.58, and 0.63 with twice
    # the speech in each: 100 s of audio a second in place of 55
    "halved": replace(
        _UNMASKED,
        what="200 pieces of words at 12.5 tokens/s",
        steps=2750,
        pieces=200,
        model=HALVED,
    ),
    "halved_wide": replace(
        _UNMASKED,
        what="200 pieces of words at 12.5 tokens/s, steps of 64 s, dropout",
        steps=1950,
        pieces=200,
        model={**HALVED, "dropout": 0.1},
        training={"batch_seconds": 64.0},
    ),
}
_SHORT = replace(
    _UNMASKED, what="one update per utterance", steps=400, training={"valid_every": 80}
)


def _other(what: str, **model: Any) -> Recipe:
    return replace(_SHORT, what=what, model={**CONVOLUTION, **model})


ABLATION = {
    "set": _SHORT,
    "chunked": _other("an update every 64 tokens", schedule="update_then_apply", chunk=64),
    "still": _other("no update", schedule="off"),
    "linear": replace(_other("learned linear attention", schedule="off"), family="linear"),
    "plain": replace(_SHORT, what="plain transformer", family="transformer"),
    # with AdamW at 2e-3 it ended hardly better: CER 69.8 % against 70.7 %, seed 0
    "conformer": replace(_SHORT, what="torchaudio's Conformer", family="conformer"),
}
GRID = {f"{each}-{rate:g}": _rated(each, rate) for each in ("adamw", "muon") for rate in RATES}
RECIPES = {**MAIN, **LOSSES, **PARTS, **ABLATION, **GRID}
ARMS = {  # lists with a name; the first of each is what the others are compared with
    "main": [*MAIN],
    "losses": ["shipped", *LOSSES],
    "parts": ["unmasked", *PARTS],
    "ablation": [*ABLATION],
    "rates": [*GRID],
}
