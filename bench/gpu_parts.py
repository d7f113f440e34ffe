"""The parts of `bench.gpu`, each run as `python -m bench.gpu_parts NAME` in a process of its own.

What a part has measured is written to WORK/NAME.json as it goes: rows as the other benchmarks have
them, and facts. Without a GPU the sizes are the smallest: then it is the code that is tried.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import torch
import yaml

from bench import ttt_op
from bench.harness import REPOSITORY, Row, described, show
from bench.machine import bandwidth, device, machine, matmul_peak, precision
from bench.peers import PeerConfig, parameters
from bench.steps import Stepper, in_turns, noise
from bench.train_step import GOALS, NAMES, PEAK, SHAPES, SHARE, model, stepper
from lact_asr.config.model import named_size
from lact_asr.config.presets import PRESETS, merge_preset
from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.librispeech import hold_out, scan
from lact_asr.data.manifest import Utterance
from lact_asr.decoding.transcribe import transcribe
from lact_asr.model.interface import CTCModel
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import fit
from lact_asr.training.utilization import operations
from lact_asr.utils.errors import Interrupted
from lact_asr.utils.files import write_json

CLIPS = (16.0, 35.0, 120.0)  # seconds
BATCHES = (960.0, 480.0, 240.0)  # seconds of audio: the largest that all contestants have room for
RATE = 8000.0  # seconds of audio a second that `improved` should train on
WER = 0.40  # of unseen speakers after five minutes on mini_librispeech
SPEAKERS = 4  # of them
ROUNDS = 5
TRIAL, TINY_STEPS = 40, 2  # steps from which the time of a training is reckoned; of a tiny one
END = 30.0  # seconds kept for the start of the process and the end of a training
COMPILED = "ours, compiled"
# Settings of training that a step is tried with; every one is beside the first.
WAYS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Muon": {"optim": {"method": "muon"}},
    "AdamW, compiled": {"compile": True},
}


class Found:
    """What a part has measured, on disk from the first row on."""

    def __init__(self, file: Path) -> None:
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {}
        self._file = file

    def add(self, *rows: Row, **facts: Any) -> None:
        """Something more."""
        self.rows += rows
        self.facts |= facts
        written = [described(row) for row in self.rows]
        write_json(self._file, {"rows": written, "facts": self.facts})


def on_machine(found: Found, given: argparse.Namespace) -> None:
    """What it runs on, and what its arithmetic and memory reach."""
    found.add(**machine())
    found.add(matmul_flop_per_second=round(matmul_peak(128 if given.tiny else None)))
    found.add(bytes_per_second=round(bandwidth(1 << 20 if given.tiny else None)))


def compare_with_cpu(found: Found, given: argparse.Namespace) -> None:
    """What runs otherwise on a GPU, beside the same on the CPU."""
    import pytest

    report = given.work / "tests.xml"
    words = [str(REPOSITORY / "tests/gpu"), "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if given.tiny:
        words += ["-k", "teacher"]
    code = pytest.main(words)
    (suite,) = ElementTree.parse(report).getroot()
    names = ("tests", "failures", "errors", "skipped", "time")
    failures = {
        str(case.get("name")): str(each.get("message"))[:500]
        for case in suite.iter("testcase")
        for each in case
        if each.tag in ("failure", "error")
    }
    found.add(**{name: float(suite.get(name, 0)) for name in names}, failed=failures)
    if code:
        raise RuntimeError(f"{len(failures)} tests failed: {', '.join(failures)}")


def steps(found: Found, given: argparse.Namespace) -> None:
    """Training steps of our sizes beside a Conformer and a transformer of equal parameters."""
    clips = (2.0, 4.0) if given.tiny else CLIPS
    for size in ("smallest",) if given.tiny else ("improved", "base"):
        steppers = {name: stepper(name, size, noise(2.0, 4.0)) for name in NAMES}
        found.add(**{f"parameters, {size}": _counts(steppers)})
        steppers |= _compiled(found, size)
        for clip in clips:
            _compare(found, given, size, clip, steppers)
    if missing := [
        found.facts[name] for name in ("no_room", "not_compiled") if name in found.facts
    ]:
        raise RuntimeError("; ".join(missing))


def _compiled(found: Found, size: str) -> dict[str, Stepper]:
    """Ours as a GPU trains it, its blocks compiled; without it the others are measured all the
    same, and the part fails in the end.
    """
    made = stepper("ours", size, noise(2.0, 4.0), compile=True)
    began = time.monotonic()
    try:
        made()
    except Exception as error:  # whatever a compiler raises
        found.add(not_compiled=f"not compiled, {size}: {error}")
        return {}
    found.add(**{f"first compiled step, {size}, s": round(time.monotonic() - began, 1)})
    return {COMPILED: made}


def _counts(steppers: Mapping[str, Stepper]) -> dict[str, int]:
    return {name: parameters(each.objective.model) for name, each in steppers.items()}


def _compare(
    found: Found,
    given: argparse.Namespace,
    size: str,
    clip: float,
    steppers: Mapping[str, Stepper],
) -> None:
    """One length of clip, in the largest batch for which all have room."""
    for batch_seconds in (8.0,) if given.tiny else BATCHES:
        batch = noise(clip, batch_seconds)
        try:
            room = {name: _room(each, batch) for name, each in steppers.items()}
            took = in_turns(steppers, 1 if given.tiny else ROUNDS)
        except torch.OutOfMemoryError as error:
            why = f"{batch.seconds:g} s of {clip:g} s clips, {size}: {error}"
            found.add(out_of_memory=[*found.facts.get("out_of_memory", []), why])
            continue
        found.add(*_rows(size, clip, batch, steppers, took, room))
        return
    found.add(no_room=f"{clip:g} s clips, {size}")


def _room(each: Stepper, batch: Batch) -> float | None:
    """GiB that a step takes beside weights and moments; None where it cannot be known."""
    each.batch = batch
    if device().type != "cuda":
        return None
    each()
    each.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    each()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _rows(
    size: str,
    clip: float,
    batch: Batch,
    steppers: Mapping[str, Stepper],
    took: Mapping[str, list[float]],
    room: Mapping[str, float | None],
) -> list[Row]:
    """Times beside the peers' and the goals'; throughput, share of peak and memory of everyone."""
    what = f"{size}, {batch.seconds:.0f} s in clips of {clip:g} s"
    rows = []
    for name, each in steppers.items():
        needed = needs(each.objective.model, batch)
        rows += [
            Row(f"{what}: {name}, audio s/s", "1", ours=[batch.seconds / t for t in took[name]]),
            Row(
                f"{what}: {name}, share of peak", "1", ours=[needed / t / PEAK for t in took[name]]
            ),
        ]
        if (memory := room[name]) is not None:
            rows.append(Row(f"{what}: {name}, GiB of a step", "GiB", ours=[memory]))
    for name in (each for each in ("ours", COMPILED) if each in took):
        judged = size == "improved" and name == _usual(took)
        rows += _beside(f"{what}: {name}", took, name, GOALS.get(clip) if judged else None)
        if judged:
            needed = needs(steppers[name].objective.model, batch)
            rows += _judged(f"{what}: {name}", took[name], batch.seconds / RATE, needed / SHARE)
    return rows


def _usual(took: Mapping[str, list[float]]) -> str:
    """Ours as a GPU trains it, for whom the goals are."""
    return COMPILED if COMPILED in took else "ours"


def _beside(
    what: str, took: Mapping[str, list[float]], name: str, goal: float | None
) -> Iterator[Row]:
    """One of ours beside each peer; the goal is for the Conformer's time."""
    for peer in NAMES[1:]:
        row = Row(f"{what}, beside the {peer}", ours=took[name], theirs=took[peer])
        row.goal_ratio = goal if peer == "conformer" else None
        yield row


def _judged(what: str, ours: list[float], fast: float, busy: float) -> Iterator[Row]:
    """Ours beside the seconds that the two goals come to."""
    share = f"{SHARE / PEAK:.0%} of {PEAK / 1e12:g} TFLOP/s"
    for goal, seconds in {f"{RATE:g} audio s/s": fast, share: busy}.items():
        yield Row(f"{what}, beside {goal}", "s", None, 1.0, ours, [seconds])


def needs(model: CTCModel, batch: Batch) -> float:
    """Operations of a step without its padding; a peer looks at all pairs of tokens."""
    tokens = model.config.tokens(batch.wave_lengths).double()
    total = operations(model) * float(tokens.sum())
    if isinstance(model.config, PeerConfig):
        total += 12 * model.config.hidden * model.config.layers * float((tokens**2).sum())
    return total


def operator(found: Found, given: argparse.Namespace) -> None:
    """Test-time training by itself, beside its roof."""
    shape = (2, 24, 8, 8, 1) if given.tiny else (256, 375, 128, 128, ROUNDS)
    names = ("rows", "tokens", "width", "chunk", "rounds")
    asked = argparse.Namespace(**dict(zip(names, shape, strict=True)), tiny=given.tiny)
    found.add(**vars(asked))
    measured = ttt_op.Bench(asked)
    found.add(*measured.run(), roof_flop_per_second=round(min(*measured.peaks, measured.reach)))


def optimizers(found: Found, given: argparse.Namespace) -> None:
    """A step of `base` in every way of WAYS."""
    size, clip, seconds = ("smallest", 2.0, 4.0) if given.tiny else ("base", 16.0, BATCHES[0])
    batch = noise(clip, seconds)
    steppers = {
        way: Stepper(CTCObjective(model("ours", size).to(device()).train()), batch, **settings)
        for way, settings in WAYS.items()
    }
    took = in_turns(steppers, 1 if given.tiny else ROUNDS)
    first = next(iter(WAYS))
    for way, times in took.items():
        beside = [] if way == first else took[first]
        found.add(Row(f"{size}, step with {way}, beside {first}", ours=times, theirs=beside))


def decoding(found: Found, given: argparse.Namespace) -> None:
    """Files to texts, reading them included, by a model that has learned nothing."""
    size = "smallest" if given.tiny else "base"
    symbols = Vocabulary.characters()
    untrained = Recognizer(SHAPES[size], len(symbols))
    utterances = scan(given.data)[: 4 if given.tiny else 800]
    for turn in ("first", "second"):
        done = transcribe(untrained, symbols, utterances, BATCHES[0], device(), None, precision())
        what = f"{size}, {done.audio_seconds:.0f} s of audio, {turn} time"
        found.add(Row(f"realtime factor, {what}", "1", ours=[done.real_time_factor]))


def training(found: Found, given: argparse.Namespace) -> None:
    """The shipped recipe of mini_librispeech, in as many steps as the time is good for."""
    began = time.monotonic()
    left = lambda: given.seconds - END - (time.monotonic() - began)
    unseen, seen = hold_out(scan(given.data), SPEAKERS, 1)
    lines: list[dict[str, Any]] = []
    count = TINY_STEPS
    if not given.tiny:
        _train(seen, unseen[:8], TRIAL, given, "trial", lines.append, lambda: False)
        each = median(line["seconds_per_step"] for line in lines[1:] if "seconds_per_step" in line)
        count = max(TRIAL, round(0.8 * left() / each))
        found.add(seconds_per_step=each)
    found.add(steps=count, seconds_left=left())
    curve: list[dict[str, Any]] = []

    def keep(line: dict[str, Any]) -> None:
        curve.append({"at": round(time.monotonic() - began, 1), **line})
        found.add(curve=curve)

    _train(seen, unseen, count, given, "training", keep, lambda: left() < 0)
    measured = [line["wer"] for line in curve if "wer" in line]
    if not measured:
        raise RuntimeError("the time was up before the first validation")
    goal = None if given.tiny else WER
    found.add(Row("WER on unseen speakers, the best measured", "wer", goal, ours=[min(measured)]))


def shipped(tiny: bool) -> dict[str, Any]:
    """`model` and `training` of the step `train` in jobs/pipelines/mini_librispeech.yaml."""
    text = (REPOSITORY / "jobs/pipelines/mini_librispeech.yaml").read_text()
    settings = yaml.safe_load(text)["steps"]["train"]["settings"]
    assert settings["size"] == "tiny", "named in _train"
    training, model = merge_preset(settings["training"], PRESETS["modern"]), settings["model"]
    if tiny:
        model = {**model, "hidden": 32, "layers": 1, "mlp": 64}
        training["batch_seconds"] = 32.0
    return {"model": model, "training": training}


def _train(
    seen: list[Utterance],
    unseen: list[Utterance],
    count: int,
    given: argparse.Namespace,
    name: str,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
) -> None:
    """A training of so many steps; stopped early it has said so."""
    torch.manual_seed(0)
    symbols, recipe = Vocabulary.characters(), shipped(given.tiny)
    objective = CTCObjective(Recognizer(named_size("tiny", recipe["model"]), len(symbols)))
    every = {"valid_every": count // 4, "log_every": count // 20, "checkpoint_every": count}
    times = {name: max(1, each) for name, each in every.items()}
    training = {**recipe["training"], **times, "max_steps": count, "samples": 1}
    optim = {**training["optim"], "warmup_steps": max(1, count // 10)}
    config = TrainingConfig.model_validate({**training, "optim": optim})
    try:
        fit(
            objective,
            seen,
            unseen,
            symbols,
            config,
            given.work / name,
            report=lambda line: report(dict(line)),
            event=lambda name, **facts: None,
            should_stop=should_stop,
            device=device(),
        )
    except Interrupted as stopped:
        print(f"The time was up: {stopped}", flush=True)


PARTS: dict[str, Callable[[Found, argparse.Namespace], None]] = {
    "machine": on_machine,
    "tests": compare_with_cpu,
    "steps": steps,
    "operator": operator,
    "optimizers": optimizers,
    "decoding": decoding,
    "training": training,
}


def main() -> None:
    """Run a part, print its table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_parts", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    given.tiny |= device().type != "cuda"
    found = Found(given.work / f"{given.part}.json")
    try:
        PARTS[given.part](found, given)
    finally:
        if found.rows:
            show(given.part, found.rows)


if __name__ == "__main__":
    main()
