"""Does a recipe learn, what is each of its parts worth, and do live updates help?

    python -m bench.learn --data mini_librispeech/train-clean-5 --work DIR [--seed N ...]
        [--recipe NAME ...] [--arms main|losses|parts|ablation|rates] [--steps N]

Trains recipes of `bench.recipes` through `lact_asr.training.trainer.fit`, one after the other and
seed by seed, each with the order of batches of its seed: those named, or a named list of them, as
intermediate CTC and CR-CTC beside the shipped recipe (losses), what recipes for more speech have
beside the best one for five hours (parts), or AdamW and Muon at three rates. Four speakers are held
out: error rates are those of all their utterances, greedy, by the last weights. Each run has a
folder in DIR and goes on where it was stopped (interrupt it, or start it again), so that they may
also run beside each other by name.

A run that ends writes bench/results/learn/NAME-SEED.json (NAME-SEED-STEPS.json where it was made
shorter than its recipe says) with its commit, its recipe and the processor time of its training
steps, which validations are no part of. `--report` trains nothing: it compares what is there of a
list with the list's first recipe, at equal processor time, and at the end with the intervals that
come of drawing speakers; it writes learn.json and learn.svg into bench/results, of another list
than main learn_LIST.json and .svg. So does a call that names no recipe and no steps. On a GPU the
arithmetic is bf16, and the time is wall time.
"""

import argparse
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.bootstrap import difference, in_words, of_speakers, over_seeds
from bench.curves import svg
from bench.harness import RESULTS, Row, argument_parser, commit, show, write
from bench.machine import clock, device, machine, put_compilers_on_the_clock
from bench.peers import parameters
from bench.recipes import ARMS, RECIPES, Recipe
from lact_asr.data.librispeech import hold_out, scan
from lact_asr.data.manifest import Utterance
from lact_asr.text.normalize import in_normal_form
from lact_asr.training import checkpoint
from lact_asr.training.logger import TrainingLogger
from lact_asr.training.loss import Outcome
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import fit
from lact_asr.utils.errors import Interrupted
from lact_asr.utils.files import append_json, json_lines, read_json, write_atomic, write_json

SPEAKERS = 4  # held out
RUNS = RESULTS / "learn"
JUDGED = ("unmasked", "gentle", "shipped")  # recipes that have a goal
KEYS = ("loss", "valid_loss", "wer", "cer", "seconds")

Numbers = dict[int, dict[str, float]]  # step -> what was reported there
Parts = tuple[list[Utterance], list[Utterance]]  # to train on, and of speakers never heard


class Timed(CTCObjective):
    """CTC that knows how long its steps have taken: what lies between two ends of steps, but not
    what was measured meanwhile.
    """

    seconds = 0.0

    def begin(self, seconds: float) -> None:
        """The clock starts, at what earlier processes took."""
        self.seconds, self._since = seconds, clock()

    def pause(self) -> None:
        """What has passed since the last step was none of its successor's."""
        self._since = clock()

    def end_step(self, step: int, outcome: Outcome, logger: TrainingLogger) -> None:
        """One more step."""
        self.seconds += clock() - self._since
        self._since = clock()


def train(
    recipe: Recipe,
    parts: Parts,
    steps: int,
    folder: Path,
    seed: int,
    given: argparse.Namespace,
) -> None:
    """Train a recipe, or go on; Interrupted by SIGINT and SIGTERM."""
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.append(True))
    put_compilers_on_the_clock(folder / "compiled")
    vocabulary = recipe.vocabulary(in_normal_form(each.text) for each in parts[0])
    model = recipe.fresh(vocabulary, seed, given.tiny)
    objective = Timed(model, recipe.loss(), vocabulary)
    objective.begin(_spent(folder))

    def report(line: Mapping[str, Any]) -> None:
        append_json(folder / "metrics.jsonl", {**line, "seconds": objective.seconds})
        if "wer" in line:
            objective.pause()

    fit(
        objective,
        *parts,
        vocabulary,
        recipe.settings(steps, seed, given.batch_seconds),
        folder,
        report=report,
        event=lambda name, **facts: None,
        should_stop=lambda: bool(asked),
        device=device(),
    )


def _spent(folder: Path) -> float:
    """Seconds that the steps up to the newest checkpoint took."""
    newest = checkpoint.latest(folder / "checkpoints")
    if newest is None:
        return 0.0
    before = (n["seconds"] for step, n in curve(folder).items() if step <= int(newest.name))
    return max(before, default=0.0)


def curve(folder: Path) -> Numbers:
    """Everything reported, by step; after a kill some steps were reported twice, alike."""
    numbers: Numbers = {}
    for line in json_lines(folder / "metrics.jsonl"):
        numbers.setdefault(line["step"], {}).update(line)
    return dict(sorted(numbers.items()))


def result(recipe: Recipe, name: str, parts: Parts, folder: Path, seed: int) -> dict[str, Any]:
    """What a run that has ended came to."""
    seen, unseen = parts
    path = checkpoint.latest(folder / "checkpoints")
    assert path, "the run has ended"
    stored = checkpoint.read_config(path)
    vocabulary = recipe.vocabulary(in_normal_form(each.text) for each in seen)
    model = recipe.fresh(vocabulary, seed)
    checkpoint.restore(model, path / checkpoint.WEIGHTS)
    numbers = curve(folder)
    hours = lambda utterances: round(sum(each.duration for each in utterances) / 3600, 3)
    return {
        "recipe": name,
        "what": recipe.what,
        "seed": seed,
        "commit": commit(),
        "steps": max(numbers),
        "seconds": round(max(n["seconds"] for n in numbers.values()), 1),
        "ran_on": machine(),
        "parameters": parameters(model),
        "model": stored["model"],
        "training": stored["training"],
        "ctc": recipe.loss().model_dump(mode="json"),
        "symbols": len(vocabulary),
        "train": {"utterances": len(seen), "hours": hours(seen)},
        "unseen": {"utterances": len(unseen), "hours": hours(unseen)},
        "speakers": of_speakers(model, vocabulary, unseen),
        "curve": points(folder),
    }


def points(folder: Path) -> list[dict[str, float]]:
    """The curve as it is stored."""
    return [
        {"step": step, **{key: round(n[key], 4) for key in KEYS if key in n}}
        for step, n in curve(folder).items()
    ]


def at(runs: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, list[float]]:
    """CER and WER of runs of one recipe after so many seconds, by seed: on the line between the
    validations before and after. Runs that were not measured around then are passed over.
    """
    found: dict[str, list[float]] = {"cer": [], "wer": []}
    for run in runs:
        measured = [point for point in run["curve"] if "wer" in point]
        times = [point["seconds"] for point in measured]
        if times and times[0] <= seconds <= times[-1]:
            for key, values in found.items():
                values.append(float(np.interp(seconds, times, [point[key] for point in measured])))
    return found


def compared(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Error rates of each recipe beside those of the first one, after as much time as the shortest
    run of either took.

    The goal is for those that are to be better than it: a fifth fewer errors in characters.
    """
    rows = []
    first = next(iter(runs))
    for name, each in runs.items():
        seconds = min(_measured(run) for run in [*each, *runs[first]])
        found, before = at(each, seconds), at(runs[first], seconds)
        for key in found:
            what = f"{key.upper()} on unseen speakers after {seconds:.0f} s, {RECIPES[name].what}"
            goal = 0.8 if name in JUDGED and name != first and key == "cer" else None
            rows.append(
                Row(what, key, None, goal, found[key], [] if name == first else before[key])
            )
    return rows


def _measured(run: Mapping[str, Any]) -> float:
    """Seconds until the last validation of a run."""
    return max(point["seconds"] for point in run["curve"] if "wer" in point)


def differences(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """WER at the end of each recipe less that of the first, paired by speaker.

    Seeds that both have count; runs of before errors were kept by speaker are passed over.
    """
    kept = {
        name: {run["seed"]: run["speakers"] for run in each if run["speakers"]}
        for name, each in runs.items()
    }
    found = {}
    first = next(iter(kept))
    for name, theirs in kept.items():
        seeds = kept[first].keys() & theirs.keys()
        if name != first and seeds:
            before, others = (over_seeds(each, seeds) for each in (kept[first], theirs))
            found[name] = {**difference(others, before), "seeds": len(seeds)}
    return found


def stored(names: Sequence[str], folder: Path = RUNS) -> dict[str, list[dict[str, Any]]]:
    """Runs of these recipes that have ended, by recipe: the longest of each."""
    every: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for path in sorted(folder.glob("*.json")):
        run = read_json(path)
        if run["recipe"] in every:
            every[run["recipe"]].append(run)
    longest = {name: max(run["steps"] for run in each) for name, each in every.items() if each}
    return {
        name: [run for run in every[name] if run["steps"] == steps]
        for name, steps in longest.items()
    }


def conclude(arms: str) -> None:
    """Print the comparison of a list of recipes; write it and its curves into bench/results."""
    runs = stored(ARMS[arms])
    if (first := ARMS[arms][0]) not in runs:
        raise SystemExit(f"no run of {first} has ended, with which the others are compared")
    title = "learn" if arms == "main" else f"learn_{arms}"
    rows, apart = compared(runs), differences(runs)
    show("unseen speakers, at equal time", rows)
    for name, each in apart.items():
        print(f"WER of {name} less that of {first}: {in_words(each)}")
    models = {
        name: {
            "what": RECIPES[name].what,
            "seeds": [run["seed"] for run in each],
            "steps": each[0]["steps"],
            "parameters": each[0]["parameters"],
            "seconds": [run["seconds"] for run in each],
            "commits": sorted({run["commit"] for run in each}),
        }
        for name, each in runs.items()
    }
    path = write(title, rows, models=models, **{f"wer_less_that_of_{first}": apart})
    lines = {
        f"{name} {run['seed']} CER": [
            (point["seconds"] / 60, 100 * point["cer"]) for point in run["curve"] if "cer" in point
        ]
        for name, each in runs.items()
        for run in each
    }
    caption = "Character error rate on unseen speakers, %"
    recipe_of = lambda name: name.split()[0]
    drawn = svg(caption, "minutes of one core", lines, recipe_of)
    write_atomic(RESULTS / f"{title}.svg", drawn)
    print(f"written to {path} and {title}.svg beside it")


def run(name: str, seed: int, parts: Parts, given: argparse.Namespace) -> None:
    """Train a recipe to its end and write what it came to; Interrupted before that."""
    recipe = RECIPES[name]
    steps = given.steps or recipe.steps
    title = f"{name}-{seed}" + (f"-{steps}" if steps != recipe.steps else "")
    print(f"--- {title}: {recipe.what}", flush=True)
    folder = given.work / title
    folder.mkdir(parents=True, exist_ok=True)
    train(recipe, parts, steps, folder, seed, given)
    if given.tiny:
        ended = [point for point in points(folder) if "wer" in point][-1]
        print(f"{title}: CER {ended['cer']:.1%}, WER {ended['wer']:.1%}")
        return
    RUNS.mkdir(exist_ok=True)
    write_json(RUNS / f"{title}.json", result(recipe, name, parts, folder, seed))


def main() -> None:
    """Train what is asked for, and compare."""
    parser = argument_parser("learn", __doc__, tiny="a model that learns nothing; no files")
    parser.add_argument("--data", type=Path, help="a folder in LibriSpeech layout")
    parser.add_argument("--work", type=Path, help="checkpoints and metrics")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="this one; or")
    parser.add_argument("--arms", choices=ARMS, help="a list of recipes; main where none is named")
    parser.add_argument("--seed", type=int, action="append", help="of all that is drawn; default 0")
    parser.add_argument("--steps", type=int, help="instead of the recipe's: a pilot")
    parser.add_argument("--batch-seconds", type=float, help="instead of the recipe's")
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    if not given.report:
        if not (given.data and given.work):
            parser.error("a training needs --data and --work")
        unseen, seen = hold_out(scan(given.data), SPEAKERS, 1)
        try:
            for seed in given.seed or [0]:
                for name in given.recipe or ARMS[given.arms or "main"]:
                    run(name, seed, (seen, unseen), given)
        except Interrupted:
            return
    if given.report or not (given.recipe or given.steps):
        conclude(given.arms or "main")


if __name__ == "__main__":
    main()
