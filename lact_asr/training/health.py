"""Whether a training is well: what it measures anyway, against its own past and against ln V.

Steps and validations go into `Vitals`, a few running means that a checkpoint keeps; `of_step` and
`of_validation` say for each word of the list below that something is wrong (a `Finding`), that it
is well again (None), or nothing yet. No tensor is touched: 8 microseconds a step.

    not_finite       a step was dropped: its loss or gradient was not finite
    bad_start        a loss begins far above what a model that knows nothing pays
    loss_rising      the loss is far above where it has been
    gradient_rising  the gradient norm is far above its own past, and clipped
    oscillation      the loss swings from step to step by most of itself
    plateau          the loss has long stopped falling, at a rate that still could move it
    nothing_learned  a quarter of the steps, and equally likely symbols would cost less
    slow             steps take many times as long as they did
    drift            the dev loss rises while the training loss falls
    blank_collapse   the model hears nothing but blanks

The original notes called a first loss above 10 and a KL above 5 bad, a KL of 9 to 12 that of two
random models, and any NaN: which numbers these are depends on the vocabulary, so here they are
multiples of ln V, or of what even probabilities cost. No torch.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lact_asr.training.loss import Outcome, relative

QUICK, STEADY, LONG = 10, 50, 500  # steps that running means remember
WARM = 50  # steps before anything is compared with the past
LASTING = 20  # steps in a row: until something is said to be wrong, and to be well again
AT_ONCE = ("not_finite", "bad_start")  # which are said at the first step
START = 5  # steps that are the beginning
APART = 2.0  # times what even probabilities cost, at the beginning; random projectors: 2.7
RISE = 1.5  # times the lowest mean of the loss
LOST, WORSE = 10.0, 2.0  # times that mean, and times ln V: such a loss does not come back by itself
ABSURD = 20.0  # times ln V: untrained models pay as much, for some steps, where labels are rare
MARGIN = 0.1  # of ln V: smaller differences of the loss are none
STEEP = 5.0  # times the usual gradient norm
SWING = 0.7  # of the mean loss
STALL, STALLED = 5.0, 60.0  # times as long as usual a step, for so many seconds
FALL = 0.01  # of the loss: less is no fall
PATIENCE = 0.2  # of all steps without a fall, and never less than
FEWEST = 200  # steps
EARLY = 0.25  # of all steps: a model may have learned nothing yet
DRIFT, DRIFTS = 1.05, 3  # times the lowest dev loss, in so many validations in a row
MUTE, EMPTY = 0.99, 0.95  # of the frames are blank, of the texts are empty
SPOKE = 0.5  # of the texts are not empty: the model has begun to speak
FEW_FRAMES, MANY_FRAMES = 1.5, 10.0  # frames a label between which CTC learns easily
FEW_LABELS = 200  # heard for each symbol of the vocabulary


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training; its word is the key that it is judged under."""

    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    ids: tuple[str, ...] = ()  # utterances that have to do with it


@dataclass(frozen=True)
class Scale:
    """What numbers of a run are measured by."""

    symbols: int  # of the vocabulary, V
    total_steps: int
    clip_norm: float
    budget: str  # the setting that says how much a batch holds, and its value

    @property
    def uniform(self) -> float:
        """ln V: nats of a symbol where all are equally likely."""
        return math.log(self.symbols)

    @property
    def margin(self) -> float:
        """A difference between two losses that is worth a word."""
        return MARGIN * self.uniform


@dataclass
class Mean:
    """A running mean: of all values at first, then of the newest ones."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float, memory: int) -> None:
        """One more value."""
        self.count += 1
        self.value += (value - self.value) / min(self.count, memory)


@dataclass
class Pace:
    """How long the steps of this process take; another one may have another machine."""

    seconds: Mean = field(default_factory=Mean)
    usual: Mean = field(default_factory=Mean)
    stalled: float = 0.0  # seconds that slow steps in a row have taken

    def add(self, seconds: float) -> None:
        """One more step; the first ones are slow: memory, kernels and files are new."""
        self.seconds.add(seconds, QUICK)
        slow = self.usual.count >= WARM and seconds > STALL * self.usual.value
        self.stalled = self.stalled + seconds if slow else 0.0
        if not slow and self.seconds.count > QUICK:
            self.usual.add(seconds, LONG)


MEANS = ("loss", "level", "swing", "norm", "usual_norm", "apart")


@dataclass
class Vitals:
    """What is remembered of a run's steps and validations."""

    step: int = 0
    loss: Mean = field(default_factory=Mean)  # of the newest steps
    level: Mean = field(default_factory=Mean)  # of more of them
    swing: Mean = field(default_factory=Mean)  # distance of a loss from the mean before it
    lowest: float = math.inf  # level so far
    mark: float = math.inf  # the level to fall below
    fell: int = 0  # step at which it last did
    norm: Mean = field(default_factory=Mean)
    usual_norm: Mean = field(default_factory=Mean)
    apart: Mean = field(default_factory=Mean)  # a loss at the start, as a share of what is expected
    labels: float = 0.0  # heard so far
    peak_rate: float = 0.0
    held: dict[str, int] = field(default_factory=dict)  # steps in a row: wrong above 0, well below
    best_dev: float = math.inf  # lowest dev loss
    level_then: float = math.inf  # and the level at that time
    drifts: int = 0  # validations in a row with a higher one, and a lower level
    mute: int = 0  # validations in a row that heard nothing but blanks
    spoke: bool = False
    open: dict[str, str] = field(default_factory=dict)  # word -> what was found and is not over

    @classmethod
    def loaded(cls, saved: Mapping[str, Any]) -> "Vitals":
        """As `dataclasses.asdict` made it."""
        means = {name: Mean(**saved[name]) for name in MEANS if name in saved}
        return cls(**{**saved, **means})


def note_step(vitals: Vitals, step: int, outcome: Outcome, rate: float) -> None:
    """Take in a step."""
    vitals.step, vitals.peak_rate = step, max(vitals.peak_rate, rate)
    if not outcome.taken:
        return
    loss = outcome.parts["ctc"].value if "ctc" in outcome.parts else outcome.loss
    vitals.labels += outcome.weight
    if vitals.loss.count:
        vitals.swing.add(abs(loss - vitals.loss.value), STEADY)
    vitals.loss.add(loss, QUICK)
    vitals.level.add(loss, STEADY)
    vitals.norm.add(outcome.grad_norm, QUICK)
    usual = vitals.usual_norm
    highest = STEEP * usual.value if usual.count >= WARM else math.inf
    usual.add(min(outcome.grad_norm, highest), LONG)
    if vitals.apart.count < START:
        shares = relative(outcome.parts)
        vitals.apart.add(max(shares.get("ctc", 0.0), shares.get("kd", 0.0)), START)
    _note_level(vitals)


def _note_level(vitals: Vitals) -> None:
    if vitals.level.count < WARM:
        return
    vitals.lowest = min(vitals.lowest, vitals.level.value)
    if vitals.level.value < (1 - FALL) * vitals.mark:
        vitals.mark, vitals.fell = vitals.level.value, vitals.step


def of_step(
    vitals: Vitals, scale: Scale, outcome: Outcome, rate: float
) -> dict[str, Finding | None]:
    """What the step that was noted last brings to light."""
    news: dict[str, Finding | None] = {
        "not_finite": _not_finite(vitals, outcome),
        "bad_start": _bad_start(vitals),
    }
    if vitals.level.count >= WARM:
        news["loss_rising"] = _loss_rising(vitals, scale, rate)
        news["gradient_rising"] = _gradient_rising(vitals, scale, rate)
        news["oscillation"] = _oscillation(vitals, scale, rate)
        news["plateau"] = _plateau(vitals, scale, rate)
        news["nothing_learned"] = _nothing_learned(vitals, scale, rate)
    return {word: found for word, found in news.items() if _holds(vitals, word, bool(found))}


def is_lost(vitals: Vitals, scale: Scale) -> bool:
    """Whether the loss has risen so far that only going back helps, or was never one."""
    far = max(LOST * vitals.lowest, WORSE * scale.uniform)
    risen = vitals.held.get("loss_rising", 0) >= LASTING and vitals.loss.value > far
    absurd = min(vitals.loss.value, vitals.level.value) > ABSURD * scale.uniform
    return risen or (absurd and vitals.level.count >= 2 * WARM)


def _holds(vitals: Vitals, word: str, wrong: bool) -> bool:
    """Whether a word has been wrong, or well, for long enough to be said so."""
    run = vitals.held.get(word, 0)
    run = vitals.held[word] = max(run, 0) + 1 if wrong else min(run, 0) - 1
    return run >= (1 if word in AT_ONCE else LASTING) or run <= -LASTING


def _not_finite(vitals: Vitals, outcome: Outcome) -> Finding | None:
    if outcome.finite:
        return None
    said = f"the loss or gradient of step {vitals.step} was not finite: the step was dropped"
    return Finding(said, ids=tuple(outcome.suspects))


def _bad_start(vitals: Vitals) -> Finding | None:
    apart = vitals.apart
    if apart.count < START or apart.value <= APART or vitals.level.count > WARM:
        return None
    return Finding(
        f"the loss begins at {apart.value:.1f} times what a model pays that finds all symbols "
        "equally likely: it, or a projector, is far too sure; start it smaller, or raise "
        "distill.temperature",
        {"relative": apart.value},
    )


def _loss_rising(vitals: Vitals, scale: Scale, rate: float) -> Finding | None:
    loss, lowest = vitals.loss.value, vitals.lowest
    if loss <= RISE * lowest or loss - lowest <= scale.margin:
        return None
    said = f"the loss has risen to {loss:.3g} from {lowest:.3g}: lower the learning rate"
    numbers = {"loss": loss, "lowest": lowest, "learning_rate": rate}
    return Finding(f"{said}, now {rate:.2g}", numbers)


def _gradient_rising(vitals: Vitals, scale: Scale, rate: float) -> Finding | None:
    norm, usual = vitals.norm.value, vitals.usual_norm.value
    if norm <= max(STEEP * usual, scale.clip_norm):
        return None
    said = f"the gradient norm is {norm:.3g} where {usual:.3g} is usual: lower the learning rate"
    numbers = {"grad_norm": norm, "usual": usual, "learning_rate": rate}
    return Finding(f"{said}, now {rate:.2g}", numbers)


def _oscillation(vitals: Vitals, scale: Scale, rate: float) -> Finding | None:
    swing, level = vitals.swing.value, vitals.level.value
    if swing <= max(SWING * level, scale.margin):
        return None
    return Finding(
        f"the loss swings by {swing:.3g} from step to step around {level:.3g}: lower the learning "
        f"rate, now {rate:.2g}, or put more into a step (accumulate)",
        {"swing": swing, "loss": level, "learning_rate": rate},
    )


def _plateau(vitals: Vitals, scale: Scale, rate: float) -> Finding | None:
    level, since = vitals.level.value, vitals.step - vitals.fell
    patience = max(FEWEST, PATIENCE * scale.total_steps)
    if since <= patience or rate <= vitals.peak_rate / 2 or level <= scale.margin:
        return None
    return Finding(
        f"the loss has not fallen for {since} steps, from {vitals.mark:.3g}: change the learning "
        f"rate, now {rate:.2g}, or stop early (stopping)",
        {"loss": level, "steps": since, "learning_rate": rate},
    )


def _nothing_learned(vitals: Vitals, scale: Scale, rate: float) -> Finding | None:
    level = vitals.level.value
    if vitals.step <= max(FEWEST, EARLY * scale.total_steps) or level <= scale.uniform:
        return None
    return Finding(
        f"after {vitals.step} steps a label costs {level:.3g} nats, and {scale.uniform:.3g} where "
        f"all {scale.symbols} symbols are equally likely: do texts and audio belong together? If "
        f"so, change the learning rate, now {rate:.2g}",
        {"loss": level, "uniform": scale.uniform, "learning_rate": rate},
    )


def of_pace(pace: Pace) -> dict[str, Finding | None]:
    """Whether this process has become slow."""
    if 0 < pace.stalled < STALLED:
        return {}
    return {"slow": _slow(pace) if pace.stalled else None}


def _slow(pace: Pace) -> Finding:
    seconds, usual = pace.seconds.value, pace.usual.value
    return Finding(
        f"a step takes {seconds:.3g} s where {usual:.3g} s is usual: look at what else runs on the "
        "node, and at the disk that the audio lies on",
        {"seconds_per_step": seconds, "usual": usual},
    )


def note_validation(vitals: Vitals, loss: float, signs: Mapping[str, float], best: bool) -> None:
    """Take in a validation; `signs` are `Measure.signs`, `best` whether the model was kept."""
    level = vitals.level.value
    if loss <= vitals.best_dev:
        vitals.best_dev, vitals.level_then, vitals.drifts = loss, level, 0
    else:
        rises = loss > DRIFT * vitals.best_dev and level < vitals.level_then / DRIFT and not best
        vitals.drifts = vitals.drifts + 1 if rises else 0
    if signs:
        mute = signs["blank_share"] >= MUTE and signs["empty_share"] >= EMPTY
        vitals.mute = vitals.mute + 1 if mute else 0
        vitals.spoke |= signs["empty_share"] <= SPOKE


def of_validation(
    vitals: Vitals, scale: Scale, loss: float, signs: Mapping[str, float], ids: Iterable[str]
) -> dict[str, Finding | None]:
    """What the validation that was noted last brings to light."""
    return {
        "drift": _drift(vitals, loss),
        "blank_collapse": _blank_collapse(vitals, scale, signs, tuple(ids)),
    }


def _drift(vitals: Vitals, loss: float) -> Finding | None:
    if vitals.drifts < DRIFTS:
        return None
    return Finding(
        f"the dev loss has risen from {vitals.best_dev:.3g} to {loss:.3g} in {vitals.drifts} "
        "validations in a row while the training loss fell: more data, augmentation or dropout, or "
        "stop early (stopping)",
        {"valid_loss": loss, "lowest": vitals.best_dev, "loss": vitals.level.value},
    )


def _blank_collapse(
    vitals: Vitals, scale: Scale, signs: Mapping[str, float], ids: tuple[str, ...]
) -> Finding | None:
    """Before a model speaks for the first time it is silent for a while, and well."""
    late = vitals.mute >= 2 and vitals.step >= EARLY * scale.total_steps
    if not vitals.mute or not (late or vitals.spoke):
        return None
    return Finding(
        f"{signs['blank_share']:.0%} of the frames are blank and {signs['empty_share']:.0%} of the "
        f"texts empty; likely cause: {likely_cause(vitals, scale, signs)}",
        {**signs, "labels_per_symbol": vitals.labels / scale.symbols},
        ids,
    )


def likely_cause(vitals: Vitals, scale: Scale, signs: Mapping[str, float]) -> str:
    """Why a model hears only blanks."""
    frames, heard = signs["frames_per_label"], vitals.labels / scale.symbols
    if frames < FEW_FRAMES:
        return (
            f"{frames:.2g} frames a label leave hardly a choice: larger pieces (vocabulary: bpe) "
            "or less subsampling"
        )
    if frames > MANY_FRAMES:
        return (
            f"of {frames:.2g} frames a label all but one are blank even where all is right: "
            "smaller pieces or more subsampling"
        )
    if heard < FEW_LABELS:
        return (
            f"each of {scale.symbols} symbols was heard {heard:.0f} times so far: a smaller "
            "vocabulary or more steps"
        )
    return f"too few or too timid steps: half of {scale.budget} gives twice as many an epoch"
