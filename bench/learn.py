"""Does it learn, and do live updates help? Three models, the same batches, steps and parameters.

    python -m bench.learn --data mini_librispeech/train-clean-5 --work DIR [--steps N] [NAME ...]

Trains `ours`, `ours without updates` and a plain transformer through
`lact_asr.training.trainer.fit` with one recipe, seed and order of batches; parameters agree within
2 %. Four speakers are held out: error rates are those of all their utterances, greedy, at equal
steps, and the difference at the end comes with a bootstrap interval. Each model has a folder in DIR
and goes on where it was stopped (interrupt it, or start it again), so the three may also run beside
each other by name; without names all are trained, and bench/results/learn.json and learn.svg are
written. `--report` writes them from what is there. On a GPU the arithmetic is bf16.
"""

import argparse
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import manual_seed, nn

from bench.bootstrap import difference, word_errors
from bench.curves import svg
from bench.harness import RESULTS, Row, show, write
from bench.machine import device, machine, precision
from bench.peers import equal, parameters
from lact_asr.config.model import ModelConfig
from lact_asr.config.training import OptimConfig, TrainingConfig
from lact_asr.data.librispeech import hold_out, scan
from lact_asr.data.manifest import Utterance
from lact_asr.decoding.transcribe import transcribe
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import fit
from lact_asr.utils.errors import Interrupted
from lact_asr.utils.files import append_json, json_lines, read_json, write_atomic

SPEAKERS = 4  # held out
SHAPE = {
    "hidden": 192, "layers": 4, "attention_heads": 4, "lact_heads": 2, "mlp": 512,
    "conv_layers": 2, "dropout": 0.0,
}  # fmt: skip
SMALLEST = {"hidden": 32, "layers": 1, "mlp": 64}

Numbers = dict[int, dict[str, float]]  # step -> what was reported there


def model(name: str, shape: Mapping[str, Any], vocabulary: Vocabulary) -> nn.Module:
    """A fresh contestant; its weights depend on the seed only."""
    manual_seed(0)
    ours = ModelConfig.model_validate(shape)
    if name == "transformer":
        return equal("transformer", ours, len(vocabulary))
    schedule = "set" if name == "ours" else "off"
    return Recognizer(ours.model_copy(update={"schedule": schedule}), len(vocabulary))


NAMES = {
    "ours": "ours, one update per utterance",
    "off": "ours without updates",
    "transformer": "plain transformer",
}


def settings(steps: int, batch_seconds: float) -> TrainingConfig:
    """One recipe for all."""
    optim = OptimConfig(learning_rate=2e-3, warmup_steps=max(steps // 10, 1), decay="cosine")
    return TrainingConfig(
        max_steps=steps,
        batch_seconds=batch_seconds,
        valid_every=max(steps // 10, 1),
        checkpoint_every=max(steps // 24, 1),
        log_every=max(steps // 120, 1),
        samples=2,
        precision=precision(),
        optim=optim,
    )


def train(
    name: str,
    shape: Mapping[str, Any],
    parts: tuple[list[Utterance], list[Utterance]],
    config: TrainingConfig,
    folder: Path,
) -> None:
    """Train a contestant, or go on; Interrupted by SIGINT and SIGTERM."""
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.append(True))
    vocabulary = Vocabulary.characters()
    folder.mkdir(parents=True, exist_ok=True)
    contestant = model(name, shape, vocabulary)
    write_atomic(folder / "parameters", str(parameters(contestant)))
    fit(
        CTCObjective(contestant),
        *parts,
        vocabulary,
        config,
        folder,
        report=lambda line: append_json(folder / "metrics.jsonl", line),
        event=lambda name, **facts: None,
        should_stop=lambda: bool(asked),
        device=device(),
    )


def curve(folder: Path) -> Numbers:
    """Everything reported, by step; after a kill some steps were reported twice, alike."""
    numbers: Numbers = {}
    for line in json_lines(folder / "metrics.jsonl"):
        numbers.setdefault(line["step"], {}).update(line)
    return dict(sorted(numbers.items()))


def compared(curves: Mapping[str, Numbers]) -> list[Row]:
    """Error rates of the three at the last step that all have been validated at."""
    validated = {name: {s for s, n in c.items() if "wer" in n} for name, c in curves.items()}
    common = set.intersection(*validated.values())
    if not common:
        return []
    step = max(common)
    rate: Callable[[str, str], list[float]] = lambda name, key: [round(curves[name][step][key], 4)]
    return [
        Row(f"{key.upper()} on unseen speakers, {NAMES[name]}, step {step}", unit=key, goal=goal,
            ours=rate(name, key), theirs=rate("transformer", key) if name != "transformer" else [])
        for key, goal in (("wer", 1.0), ("cer", 0.6))
        for name in NAMES
    ]  # fmt: skip


def differences(work: Path, unseen: list[Utterance]) -> dict[str, dict[str, float]]:
    """WER of ours less that of the others, by their newest checkpoints."""
    vocabulary = Vocabulary.characters()
    counts = {}
    for name in NAMES:
        contestant = model(name, SHAPE, vocabulary)
        newest = checkpoint.latest(work / name / "checkpoints")
        checkpoint.restore(contestant, newest / checkpoint.WEIGHTS)
        heard = transcribe(contestant, vocabulary, unseen, device=device()).hypotheses
        counts[name] = word_errors([each.text for each in unseen], [each.text for each in heard])
    return {
        NAMES[name]: difference(counts["ours"], counts[name]) for name in NAMES if name != "ours"
    }


def main() -> None:
    """Train what is asked for, print the table, and write the curve when all three have one."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, required=True, help="a folder in LibriSpeech layout")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and metrics")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps")
    parser.add_argument("--batch-seconds", type=float, default=32.0, help="padded audio of a step")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--tiny", action="store_true", help="a model that learns nothing; no files")
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=str(NAMES))
    given = parser.parse_args()
    shape = {**SHAPE, **(SMALLEST if given.tiny else {})}
    unseen, seen = hold_out(scan(given.data), SPEAKERS, 1)
    config = settings(given.steps, given.batch_seconds)
    for name in [] if given.report else given.names or NAMES:
        print(f"--- {NAMES[name]}", flush=True)
        try:
            train(name, shape, (seen, unseen), config, given.work / name)
        except Interrupted:
            return
    if given.names:
        return
    curves = {name: curve(given.work / name) for name in NAMES}
    rows = compared(curves)
    show(f"unseen speakers: {len(unseen)} utterances of {SPEAKERS}", rows)
    if not given.tiny:
        _write(given, rows, curves, unseen, seen)


def _write(
    given: argparse.Namespace,
    rows: list[Row],
    curves: Mapping[str, Numbers],
    unseen: list[Utterance],
    seen: list[Utterance],
) -> None:
    """bench/results/learn.json and learn.svg."""
    hours = lambda utterances: round(sum(each.duration for each in utterances) / 3600, 3)
    keys = ("loss", "valid_loss", "wer", "cer", "audio_seconds_per_second")
    models = {
        name: {
            "what": NAMES[name],
            "parameters": int((given.work / name / "parameters").read_text()),
            "steps": max(curves[name], default=0),
            "curve": [
                {"step": step, **{key: round(numbers[key], 4) for key in keys if key in numbers}}
                for step, numbers in curves[name].items()
            ],
        }
        for name in NAMES
    }
    recipe = read_json(checkpoint.find(given.work / "ours") / "config.json")["training"]
    data = {"train": {"utterances": len(seen), "hours": hours(seen)},
            "unseen": {"utterances": len(unseen), "hours": hours(unseen),
                       "speakers": sorted({each.speaker for each in unseen})}}  # fmt: skip
    apart = differences(given.work, unseen)
    for name, each in apart.items():
        most = f"{each['low']:+.1%} to {each['high']:+.1%} in 95 % of resampled sets of utterances"
        print(f"WER of ours less that of {name}: {each['difference']:+.1%}, {most}; one seed")
    path = write("learn", rows, ran_on=machine(), data=data, shape=SHAPE,
                 recipe=recipe, wer_of_ours_less=apart, models=models)  # fmt: skip
    lines = {
        f"{NAMES[name]} {key.upper()}": [
            (step, 100 * n[key]) for step, n in curves[name].items() if key in n
        ]
        for key in ("wer", "cer")
        for name in NAMES
    }
    write_atomic(
        RESULTS / "learn.svg", svg("Error rates on unseen speakers, %", "optimizer steps", lines)
    )
    print(f"written to {path} and learn.svg beside it")


if __name__ == "__main__":
    main()
