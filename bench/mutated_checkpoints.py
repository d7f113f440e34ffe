"""Checkpoints with one thing changed: they are read as they were written, or refused.

    python -m bench.mutated_checkpoints [--count 10000] [--seed 0]

One file of the newest of two checkpoints of a tiny model is changed: a bit, a byte, a digit, a cut,
bytes more, zeros, pieces swapped or doubled, the file gone, empty, or another checkpoint's in its
place. Then it is read as `infer` and `init_from` do, and gone on from as a run does. Anything but
the weights, the settings and the state as they were written, or one sentence, is wrong. A run goes
on with the state of the newest, or takes the one before, which nobody changed, and has put aside
what is damaged. Without checksums, as before there were any, nobody can know: such a checkpoint is
read or refused, and never ends in another error than a sentence.
"""

import itertools
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench.harness import RESULTS, argument_parser
from bench.machine import machine
from bench.train_step import SMALLEST
from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch_plan import Position
from lact_asr.model.recognizer import FAMILIES, Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint, checksums, optim
from lact_asr.training.averaging import Average
from lact_asr.training.objective import CTCObjective
from lact_asr.training.resume import State, resume, trainer_state
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import write_json

VOCABULARY, CONFIG = Vocabulary.characters(), TrainingConfig()
NEWEST, BEFORE = "00000200", "00000100"
Change = Callable[[random.Random, bytes, bytes], bytes | None]


def _flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _byte(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(1) + data[place + 1 :]


def _digit(rng: random.Random, data: bytes, other: bytes) -> bytes:
    places = [place for place, byte in enumerate(data[:20_000]) if chr(byte).isdigit()]
    place = rng.choice(places or [0])
    return data[:place] + str(rng.randrange(10)).encode() + data[place + 1 :]


def _cut(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _longer(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data + rng.randbytes(rng.randrange(1, 5000))


def _zeros(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place, size = rng.randrange(len(data)), rng.choice([1, 512, 4096])
    return data[:place] + bytes(len(data[place : place + size])) + data[place + size :]


def _swap(rng: random.Random, data: bytes, other: bytes) -> bytes:
    one, two, three = sorted(rng.randrange(len(data)) for _ in range(3))
    return data[:one] + data[two:three] + data[one:two] + data[three:]


def _twice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + data[place : place + rng.choice([1, 64, 4096])] + data[place:]


CHANGES: dict[str, Change] = {
    "bit": _flip,
    "byte": _byte,
    "digit": _digit,
    "cut": _cut,
    "longer": _longer,
    "zeros": _zeros,
    "swapped": _swap,
    "twice": _twice,
    "empty": lambda rng, data, other: b"",
    "gone": lambda rng, data, other: None,
    "of another step": lambda rng, data, other: other,
}


def objective(seed: int) -> CTCObjective:
    """A tiny model with weights by seed."""
    torch.manual_seed(seed)
    return CTCObjective(Recognizer(SMALLEST, len(VOCABULARY)))


def write(folder: Path, name: str, seed: int) -> None:
    """A checkpoint as a run leaves it, after one step of the optimizer."""
    made = objective(seed)
    optimizer = optim.build(made, CONFIG.optim)
    for parameter in made.trainable.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = State(step=int(name), best=[0.5, float(seed)], typical_loss=3.0)
    average = Average(made.model, 0.0)
    files = {
        checkpoint.WEIGHTS: made.model.state_dict(),
        "trainer.pt": trainer_state(state, made, optimizer, Position(seed), 7, average),
        checkpoint.CONFIG: checkpoint.describe(made.model, VOCABULARY, CONFIG),
        checkpoint.STATE: {"step": int(name), "epoch": seed, "loss": 3.0},
    }
    checkpoint.save(folder, name, files)


def as_a_model(path: Path) -> dict[str, Any]:
    """What `infer` and `init_from` take from a checkpoint."""
    model, vocabulary, config = checkpoint.load_model(checkpoint.find(path), FAMILIES)
    facts = checksums.facts(path)
    return {
        "weights": model.state_dict(),
        "rest": [vocabulary.to_dict(), config, facts, model.config.model_dump()],
    }


def as_a_run(path: Path) -> dict[str, Any]:
    """What a run goes on with."""
    made = objective(seed=99)
    optimizer = optim.build(made, CONFIG.optim)
    found = resume(path, made, VOCABULARY, optimizer, 7, Average(made.model, 0.0))
    moments = {
        f"{number} {name}": value
        for number, each in optimizer.state_dict()["state"].items()
        for name, value in each.items()
    }
    return {"weights": made.model.state_dict() | moments, "rest": [*found, checksums.facts(path)]}


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Bit for bit."""
    weights, others = one["weights"], other["weights"]
    return (
        repr(one["rest"]) == repr(other["rest"])
        and weights.keys() == others.keys()
        and all(torch.equal(value, others[name]) for name, value in weights.items())
    )


class Trial:
    """Two checkpoints, of which the newest is changed and mended again."""

    def __init__(self, folder: Path, sums: bool = True) -> None:
        self.folder, self.sums = folder, sums
        for seed, name in enumerate((BEFORE, NEWEST), start=1):
            write(folder, name, seed)
            if not sums:
                path = folder / name
                write_json(path / checkpoint.STATE, checksums.facts(path))
        self.files = {
            name: {file.name: file.read_bytes() for file in (folder / name).iterdir()}
            for name in (BEFORE, NEWEST)
        }
        self.model = as_a_model(folder / NEWEST)
        self.run = as_a_run(folder / NEWEST)

    def mend(self) -> None:
        """Both checkpoints as they were written."""
        shutil.rmtree(self.folder)
        for name, files in self.files.items():
            (self.folder / name).mkdir(parents=True)
            for file, data in files.items():
                (self.folder / name / file).write_bytes(data)

    def outcome(self, rng: random.Random, how: str, file: str) -> tuple[str, str]:
        """What came of a change, read as a model and as a run: right, refused, before or wrong."""
        data = CHANGES[how](rng, self.files[NEWEST][file], self.files[BEFORE][file])
        path = self.folder / NEWEST / file
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        found = self._of_model(), self._of_run()
        self.mend()
        return found

    def _of_model(self) -> str:
        try:
            found = as_a_model(self.folder / NEWEST)
        except DataError:
            return "refused"
        return "right" if not self.sums or same(found, self.model) else "wrong"

    def _of_run(self) -> str:
        try:
            path, flaws = checkpoint.newest_whole(self.folder)
            assert path is not None
            for flaw in flaws:
                checkpoint.put_damaged_aside(flaw.path.parent)
            if path.name == BEFORE:
                aside = self.folder / f"{checkpoint.DAMAGED}-{NEWEST}"
                return "before" if aside.exists() else "wrong"
            found = as_a_run(path)
        except DataError:
            return "refused"
        return "right" if not self.sums or same(found, self.run) else "wrong"


def trials(count: int, seed: int, sums: bool = True) -> Counter[str]:
    """How many changes came to what."""
    rng, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder) / "checkpoints", sums)
        every = itertools.cycle(itertools.product(CHANGES, sorted(trial.files[NEWEST])))
        for how, file in itertools.islice(every, count):
            outcomes = trial.outcome(rng, how, file)
            for reader, outcome in zip(("model", "run"), outcomes, strict=True):
                counts[f"{reader} {outcome}"] += 1
                if outcome == "wrong":
                    print(f"WRONG: {how} in {file}, read as a {reader}")
    return counts


def main() -> None:
    """Try, print the counts, write bench/results/mutated_checkpoints.json."""
    parser = argument_parser("mutated_checkpoints", __doc__, tiny="few; nothing written")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    count = 44 if given.tiny else given.count
    torch.set_num_threads(1)
    began = time.monotonic()
    found = {
        "without_checksums": dict(sorted(trials(count // 20, given.seed, sums=False).items())),
        "with_checksums": dict(sorted(trials(count, given.seed).items())),
    }
    facts = {"count": count, "seed": given.seed, "changes": list(CHANGES), **found}
    print(json.dumps(facts, indent=1))
    if not given.tiny:
        about = {"ran_on": machine(), "seconds": round(time.monotonic() - began)}
        write_json(RESULTS / "mutated_checkpoints.json", facts | about)


if __name__ == "__main__":
    main()
