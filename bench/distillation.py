"""Does a teacher help? One student on real speech with its teacher and without, equal steps.

    python -m bench.learn --data mini_librispeech/train-clean-5 --work W --recipe off
    python -m bench.distillation --data mini_librispeech/train-clean-5 \
        --teacher W/off-0 --work DIR [--steps N] [--arm ARM] [--seed N]

All arms have the same student, recipe and batches, three seeds each. The distilled one also learns
from what the teacher says, read from a cache (`distill.cache.format`) that is filled first. `alone`
takes as many steps; `alone_longer` as many as fit into the time that the teacher's training, the
cache and the distilled student took together: the teacher is charged. `distilled_longer` takes as
many as that beside the same teacher: where it is there anyway. The schedule of each is that of its
own number of steps. Times are those of the runs' own metrics: run the arms beside the same load.

The speakers whose error rates are shown have been heard by nobody, the teacher neither. Started
again it goes on where it was stopped. Writes bench/results/NAME.json and .svg of those that have
ended; `--report` only writes them.

What came of it stands in docs/recipes.md.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

from torch import manual_seed

from bench.bootstrap import difference, in_words, of_speakers, over_seeds
from bench.curves import svg
from bench.harness import Row, argument_parser, commit, show, write
from bench.learn import SPEAKERS, Numbers, curve
from bench.machine import device, machine, precision
from distill.cache.filling import fill, form_of, identity
from distill.cache.teacher import Cached
from distill.config.distillation import DistillConfig
from distill.models.registry import FAMILIES
from distill.objective import DistillObjective
from lact_asr.config.model import ModelConfig
from lact_asr.config.training import OptimConfig, TrainingConfig
from lact_asr.data.dataset import whole_corpus
from lact_asr.data.librispeech import hold_out, scan
from lact_asr.data.manifest import Utterance
from lact_asr.distributed.processes import World
from lact_asr.model.interface import CTCModel, count_parameters
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective, SpeechObjective
from lact_asr.training.trainer import fit
from lact_asr.training.validation import Dev, Validation, validate
from lact_asr.utils.files import append_json, read_json, write_atomic, write_json

SEEDS = (0, 1, 2)
ARMS = {
    "alone": "texts only",
    "distilled": "texts and teacher",
    "alone_longer": "texts only, in the time of teacher, cache and student",
    "distilled_longer": "texts and teacher, in as many steps as that",
}
PAIRS = (  # what is compared with what
    ("distilled", "alone"),
    ("distilled", "alone_longer"),
    ("distilled_longer", "alone_longer"),
)
STUDENT = ModelConfig(
    hidden=96, layers=3, attention_heads=4, lact_heads=2, mlp=256, conv_layers=2, dropout=0.0
)
SMALLEST = STUDENT.model_copy(update={"hidden": 32, "layers": 1, "mlp": 48})
DISTILL = DistillConfig()  # the product's defaults
Parts = tuple[list[Utterance], list[Utterance]]
Build = Callable[[Recognizer], SpeechObjective]
Curves = Mapping[tuple[str, int], Numbers]  # (arm, seed): of those that have ended


def settings(steps: int, batch_seconds: float, rate: float, seed: int) -> TrainingConfig:
    """One recipe for both arms."""
    return TrainingConfig(
        max_steps=steps,
        batch_seconds=batch_seconds,
        valid_every=max(steps // 5, 1),
        checkpoint_every=max(steps // 10, 1),
        log_every=max(steps // 50, 1),
        samples=1,
        seed=seed,
        precision=precision(),
        optim=OptimConfig(method="muon", learning_rate=rate, warmup_steps=max(steps // 10, 1)),
    )


def cached(work: Path, teacher: Path, parts: Parts) -> Build:
    """Objectives that learn from the teacher's cache, filled first; facts in teacher.json."""
    model, vocabulary, _ = checkpoint.load_model(checkpoint.find(teacher), FAMILIES)
    form = form_of(
        model, vocabulary, kept=16, temperatures=[1.0], hidden="none", precision=precision()
    )
    began = monotonic()
    fill(
        work / "cache",
        model,
        vocabulary,
        parts[0],
        form,
        speeds=[1.0],
        batch_seconds=120.0,
        world=World(),
        device=device(),
        report=lambda line: print(line, flush=True),
        should_stop=lambda: False,
    )
    if not (work / "teacher.json").exists():
        took = monotonic() - began
        _describe(work, checkpoint.find(teacher), model, vocabulary, parts[1], took)
    source = Cached(work / "cache", identity(model, vocabulary))
    return lambda student: DistillObjective(student, source, DISTILL, vocabulary=vocabulary)


def _describe(
    work: Path,
    path: Path,
    model: CTCModel,
    vocabulary: Vocabulary,
    unseen: list[Utterance],
    took: float,
) -> None:
    """What the teacher is, what it has cost and how it hears the unseen speakers: teacher.json."""
    heard = _heard(model, vocabulary, unseen)
    step = read_json(path / checkpoint.STATE)["step"]
    facts = {
        "parameters": count_parameters(model),
        "step": step,
        "training_seconds": seconds(history(path), step),
        "cache_seconds": took,
        "wer": heard.scores.wer,
        "cer": heard.scores.cer,
        "valid_loss": heard.loss,
        "cache_bytes": sum(shard.stat().st_size for shard in (work / "cache").glob("*.bin")),
    }
    write_json(work / "teacher.json", {key: round(value, 4) for key, value in facts.items()})


def _heard(model: CTCModel, vocabulary: Vocabulary, unseen: list[Utterance]) -> Validation:
    """How well a model hears the unseen speakers."""
    corpus, config = whole_corpus(unseen, vocabulary), settings(1, 120.0, 1e-3, 0)
    dev = Dev.of(corpus, config, World(), 0)
    return validate(model.to(device()), dev, vocabulary, config, World(), device())


def train(
    build: Build, shape: ModelConfig, parts: Parts, config: TrainingConfig, folder: Path
) -> None:
    """Train one student to its end, or go on."""
    vocabulary = Vocabulary.characters()
    folder.mkdir(parents=True, exist_ok=True)
    manual_seed(config.seed)
    fit(
        build(Recognizer(shape, len(vocabulary))),
        *parts,
        vocabulary,
        config,
        folder,
        report=lambda line: append_json(folder / "metrics.jsonl", line),
        event=lambda name, **facts: None,
        should_stop=lambda: False,
        device=device(),
    )


def history(path: Path) -> Numbers:
    """The metrics of the training that wrote a checkpoint: they lie in a folder above it."""
    above = [path, *path.parents[:3]]
    found = next((each for each in above if (each / "metrics.jsonl").exists()), None)
    if found is None:
        raise SystemExit(f"no metrics.jsonl above {path}: what the teacher has cost is not known")
    return curve(found)


def seconds(numbers: Numbers, last: float = math.inf) -> float:
    """What the steps up to `last` took: without validations and the writing of checkpoints."""
    took, before = 0.0, 0
    for step, line in numbers.items():
        if "seconds_per_step" in line and step <= last:
            took, before = took + (step - before) * line["seconds_per_step"], step
    return took


def longer(steps: int, teacher: Mapping[str, float], distilled: Numbers, alone: Numbers) -> int:
    """Steps of a student alone in the time of the teacher's training, its cache and its student."""
    charged = teacher["training_seconds"] + teacher["cache_seconds"] + seconds(distilled)
    return math.ceil(steps * charged / seconds(alone))


def planned(given: argparse.Namespace, arm: str, seed: int) -> int:
    """Steps of an arm; how many are longer is decided once, when the two short ones have ended."""
    if not arm.endswith("longer"):
        return given.steps
    kept = given.work / f"longer-{seed}.json"
    if not kept.exists():
        two = [curve(given.work / f"{other}-{seed}") for other in ("distilled", "alone")]
        if not all("wer" in each.get(given.steps, {}) for each in two):
            raise SystemExit(f"{arm} wants `alone` and `distilled` of seed {seed} first")
        teacher = read_json(given.work / "teacher.json")
        write_json(kept, {"steps": longer(given.steps, teacher, *two)})
    return read_json(kept)["steps"]


def errors(folder: Path, steps: int, unseen: list[Utterance]) -> dict[str, Any]:
    """What the word errors of a student's last weights consist of, and whose they are."""
    path = folder / "errors.json"
    if not path.exists():
        last = folder / "checkpoints" / f"{steps:08d}"
        model, vocabulary, _ = checkpoint.load_model(last, FAMILIES)
        scores = _heard(model, vocabulary, unseen).scores
        names = ("words", "substitutions", "deletions", "insertions")
        counts = {name: getattr(scores, name) for name in names}
        write_json(path, {**counts, "speakers": of_speakers(model, vocabulary, unseen)})
    return read_json(path)


def differences(words: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any]:
    """WER of the distilled students less that of the others, paired by speaker, over the seeds that
    both have; `words` are the errors by arm and seed.
    """
    by_arm = {
        arm: {seed: each["speakers"] for (name, seed), each in words.items() if name == arm}
        for arm in ARMS
    }
    found = {}
    for taught, alone in PAIRS:
        if seeds := by_arm[taught].keys() & by_arm[alone].keys():
            one, other = (over_seeds(by_arm[arm], seeds) for arm in (taught, alone))
            found[f"{taught} less {alone}"] = {**difference(one, other), "seeds": len(seeds)}
    return found


def averaged(curves: Curves, arm: str, key: str) -> list[tuple[float, float]]:
    """(step, mean over seeds) of an arm where all of its students have been validated."""
    group = [each for (name, _), each in curves.items() if name == arm]
    validated = [{step for step, numbers in each.items() if key in numbers} for each in group]
    steps = sorted(set.intersection(*validated)) if validated else []
    return [(step, mean(each[step][key] for each in group)) for step in steps]


def compared(curves: Curves) -> list[Row]:
    """The distilled students against the others after the last step of each, over the seeds that
    both have.
    """
    both = lambda pair: [seed for seed in SEEDS if all((arm, seed) in curves for arm in pair)]
    at_end = lambda arm, key, seeds: [
        round(each[max(each)][key], 4) for each in (curves[arm, seed] for seed in seeds)
    ]
    return [
        Row(f"{key} on unseen speakers, {taught.replace('_', ' ')} beside {ARMS[alone]}", unit=key,
            goal_ratio=1.0, ours=at_end(taught, key, seeds), theirs=at_end(alone, key, seeds))
        for taught, alone in PAIRS
        if (seeds := both((taught, alone)))
        for key in ("wer", "cer", "valid_loss")
    ]  # fmt: skip


def main() -> None:
    """Train what is asked for; the table once everything has been trained."""
    parser = argument_parser("distillation", __doc__, tiny="a student of nothing; no files")
    parser.add_argument("--data", type=Path, required=True, help="a folder in LibriSpeech layout")
    parser.add_argument("--teacher", type=Path, help="a checkpoint, or the folder that holds it")
    parser.add_argument("--work", type=Path, required=True, help="cache, checkpoints and metrics")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps")
    parser.add_argument("--batch-seconds", type=float, default=32.0, help="padded audio of a step")
    parser.add_argument("--arm", action="append", choices=ARMS, help="only this one")
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS, help="only this one")
    parser.add_argument("--name", default="distillation", help="of the results")
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    student = SMALLEST if given.tiny else STUDENT
    unseen, seen = hold_out(scan(given.data), SPEAKERS, 1)
    arms = [] if given.report else given.arm or list(ARMS)
    builds: dict[str, Build] = dict.fromkeys(ARMS, CTCObjective)
    if taught := [arm for arm in arms if arm.startswith("distilled")]:
        given.work.mkdir(parents=True, exist_ok=True)
        source = cached(given.work, given.teacher, (seen, unseen))
        builds |= dict.fromkeys(taught, source)
    for seed in given.seed or SEEDS:
        for arm in arms:
            print(f"--- {ARMS[arm]}, seed {seed}", flush=True)
            config = settings(planned(given, arm, seed), given.batch_seconds, given.rate, seed)
            train(builds[arm], student, (seen, unseen), config, given.work / f"{arm}-{seed}")
    curves = {
        (arm, seed): curve(given.work / f"{arm}-{seed}")
        for arm in ARMS
        for seed in SEEDS
        if _ended(given, arm, seed)
    }
    rows = compared(curves)
    show(f"students of {given.steps} steps and more", rows)
    if not given.tiny and rows:
        _write(given, rows, curves, (seen, unseen))


def _ended(given: argparse.Namespace, arm: str, seed: int) -> bool:
    """Whether a student has been validated at its last step."""
    if arm.endswith("longer") and not (given.work / f"longer-{seed}.json").exists():
        return False
    last = planned(given, arm, seed)
    return "wer" in curve(given.work / f"{arm}-{seed}").get(last, {})


def _write(
    given: argparse.Namespace,
    rows: list[Row],
    curves: Curves,
    parts: Parts,
) -> None:
    """The results as JSON and a picture."""
    hours = [round(sum(each.duration for each in part) / 3600, 3) for part in parts]
    students = {
        f"{arm}-{seed}": [
            {"step": step, **{key: round(value, 4) for key, value in numbers.items()
                              if key in ("loss", "kd", "ctc", "valid_loss", "wer", "cer")}}
            for step, numbers in each.items()
        ]
        for (arm, seed), each in curves.items()
    }  # fmt: skip
    words = {
        (arm, seed): errors(given.work / f"{arm}-{seed}", planned(given, arm, seed), parts[1])
        for arm, seed in curves
    }
    apart = differences(words)
    for pair, each in apart.items():
        print(f"WER, {pair}: {in_words(each)}")
    path = write(
        given.name,
        rows,
        ran_on=machine(),
        reported_at=commit(),
        hours={"heard": hours[0], "unseen": hours[1]},
        teacher=read_json(given.work / "teacher.json"),
        student={
            "parameters": count_parameters(Recognizer(STUDENT, len(Vocabulary.characters()))),
            "model": STUDENT.model_dump(mode="json"),
        },
        distill=DISTILL.model_dump(mode="json"),
        recipe=settings(given.steps, given.batch_seconds, given.rate, 0).model_dump(mode="json"),
        word_errors={f"{arm}-{seed}": each for (arm, seed), each in words.items()},
        wer_apart=apart,
        students=students,
    )
    lines = {
        f"{ARMS[arm]}, {key.upper()}": [(s, 100 * v) for s, v in averaged(curves, arm, key)]
        for key in ("wer", "cer")
        for arm in ARMS
    }
    picture = svg("Error rates on unseen speakers, %, mean of seeds", "optimizer steps", lines)
    write_atomic(path.with_suffix(".svg"), picture)
    print(f"written to {path} and {given.name}.svg beside it")


if __name__ == "__main__":
    main()
