"""What the training tests share: a language of tones, one tiny model, short runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import torch

from lact_asr.config.model import ModelConfig
from lact_asr.config.training import OptimConfig, TrainingConfig
from lact_asr.data.manifest import Utterance, read_manifest, write_manifest
from lact_asr.model.interface import CTCModel
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.normalize import CHARACTERS
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint, checksums
from lact_asr.training.health import Scale
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.material import Terms
from lact_asr.training.objective import CTCObjective, SpeechObjective
from lact_asr.training.speech import TERMS
from lact_asr.training.trainer import FitResult, fit
from lact_asr.training.utilization import Utilization
from lact_asr.utils.errors import Interrupted
from lact_asr.utils.files import write_json
from lact_asr.utils.locks import no_fence

T = TypeVar("T")
RATE = 16_000
VOCABULARY = Vocabulary.characters()
MODEL = ModelConfig(
    hidden=32, layers=1, attention_heads=2, lact_heads=1, mlp=64, conv_layers=2, dropout=0.0
)


def tones(folder: Path, count: int, seed: int = 0) -> list[Utterance]:
    """Utterances of 2 to 4 words in which every letter is a tone of 80 ms."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        lengths = rng.integers(2, 6, size=rng.integers(2, 5))
        text = " ".join("".join(rng.choice(list("ABCDEFG"), size=n)) for n in lengths)
        pitches = np.repeat([200 + 90 * CHARACTERS.index(letter) for letter in text], RATE // 12)
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitches) / RATE)
        wave += rng.normal(0, 0.01, len(wave))
        path = folder / f"{seed}-{number}.wav"
        soundfile.write(path, wave, RATE)
        made.append(Utterance(f"{seed}-{number}", path, len(wave) / RATE, text, "tone"))
    return made


def manifest(folder: Path) -> list[Utterance]:
    """Eight utterances and their manifest, for tests that other processes take part in."""
    write_manifest(folder / "tones.jsonl", tones(folder, 8))
    return read_manifest(folder / "tones.jsonl")


def manifests(folder: Path, train: int, dev: int) -> dict[str, Path]:
    """Manifests of so many utterances to learn from and to validate with, by setting."""
    for name, count, seed in (("train", train, 0), ("dev", dev, 1)):
        write_manifest(folder / f"{name}.jsonl", tones(folder, count, seed))
    return {name: folder / f"{name}.jsonl" for name in ("train", "dev")}


def tiny(seed: int = 0, **changes: object) -> Recognizer:
    """The one tiny model, with weights by seed."""
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(MODEL.model_dump() | changes)
    return Recognizer(config, len(VOCABULARY))


def settings(**changes: object) -> TrainingConfig:
    """Settings for runs of a few steps."""
    optim = {"learning_rate": 4e-3, "warmup_steps": 2} | dict(changes.pop("optim", {}))
    short = {"max_steps": 6, "batch_seconds": 8.0, "valid_every": 3, "checkpoint_every": 3}
    quiet = {"log_every": 1, "samples": 1, "optim": OptimConfig.model_validate(optim)}
    return TrainingConfig.model_validate(short | quiet | changes)


def quiet_logger(device: torch.device | None = None, terms: Terms = TERMS) -> TrainingLogger:
    """A logger of 50 steps that prints nothing and reports to nobody."""
    ignored = lambda *given, **facts: None
    scale = Scale(len(VOCABULARY), 50, 1.0, "8")
    use = Utilization(1.0, None, device or torch.device("cpu"))
    return TrainingLogger(ignored, ignored, scale, terms, use, loud=False)


class RecordedEvents:
    """Everything that a run says to its launcher."""

    def __init__(self) -> None:
        self.metrics: list[dict] = []
        self.events: list[tuple[str, dict]] = []

    def event(self, name: str, **facts: object) -> None:
        self.events.append((name, facts))

    def named(self, name: str) -> list[dict]:
        return [facts for each, facts in self.events if each == name]

    def losses(self) -> dict[int, float]:
        return {line["step"]: line["loss"] for line in self.metrics if "loss" in line}


def ended(work: Callable[..., T], *given: object, **named: object) -> T | Interrupted:
    """What work comes to: its result, or where it was interrupted."""
    try:
        return work(*given, **named)
    except Interrupted as saved:
        return saved


def save_untrained(folder: Path, model: CTCModel, vocabulary: Vocabulary = VOCABULARY) -> Path:
    """A checkpoint of a model that never learned."""
    contents = {
        "model.safetensors": model.state_dict(),
        "config.json": checkpoint.describe(model, vocabulary, TrainingConfig()),
        checkpoint.STATE: {"step": 1},
    }
    return checkpoint.save(folder.parent, folder.name, contents)


def replace_file(file: Path, content: object) -> None:
    """Give a checkpoint another file, as if it had been written so."""
    write_json(file, content) if file.suffix == ".json" else torch.save(content, file)
    state = file.parent / checkpoint.STATE
    write_json(state, checksums.seal(file.parent, checksums.facts(file.parent)))


def run(
    folder: Path,
    train: list[Utterance],
    objective: SpeechObjective | None = None,
    dev: list[Utterance] | None = None,
    stop_at: float = math.inf,
    recorded: RecordedEvents | None = None,
    device: torch.device | None = None,
    fence: Callable[[], None] = no_fence,
    vocabulary: Vocabulary = VOCABULARY,
    **changes: object,
) -> tuple[FitResult | Interrupted, RecordedEvents]:
    """fit with the small parts; asked to stop once `stop_at` steps are done."""
    recorded = recorded or RecordedEvents()
    asked = iter(range(1, 10_000))
    result = ended(
        fit,
        objective or CTCObjective(tiny()),
        train,
        dev or train[:2],
        vocabulary,
        settings(**changes),
        folder,
        report=lambda line: recorded.metrics.append(dict(line)),
        event=recorded.event,
        should_stop=lambda: next(asked) >= stop_at,
        fence=fence,
        device=device,
    )
    return result, recorded
