"""Killed again and again, also while it writes checkpoints, a run ends as if nothing had been."""

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from lact_asr.data.manifest import read_manifest
from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import FitResult
from tests.lact_asr.tiny_runs import manifest, run, tiny
from tests.lact_asr.training.test_resume import assert_same_bits
from tests.ranks import in_ranks
from tests.slurm.cluster import PATIENCE

KILLS, INSIDE = 10, 3  # at least so often in all, and so often in the midst of a write
SETTINGS = {"max_steps": 80, "checkpoint_every": 1, "valid_every": 7, "batch_seconds": 3.0}


def train(folder: Path, source: Path) -> FitResult:
    """The run, from wherever it is."""
    utterances = read_manifest(source / "tones.jsonl")
    result, _ = run(folder, utterances, CTCObjective(tiny(dropout=0.2)), samples=0, **SETTINGS)
    assert isinstance(result, FitResult)
    return result


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "what is waited for does not come"
        time.sleep(0.0002)


def begun(source: Path) -> int:
    """A process that trains, forked where torch has computed nothing yet: no thread is lost."""
    child = os.fork()
    if child:
        return child
    try:
        train(source / "killed", source)
    except BaseException:
        traceback.print_exc()
    os._exit(1)  # it should not have lived so long


def kill_again_and_again(source: Path) -> None:
    """Let the run save something new, kill it at some moment, and so on."""
    folder, rng, inside, kills = source / "killed/checkpoints", random.Random(0), 0, 0
    while kills < KILLS or inside < INSIDE:
        before = checkpoint.latest(folder)
        child = begun(source)
        under_way = lambda child=child: list(folder.glob(f".new.*.{child}"))
        wait_until(lambda before=before: checkpoint.latest(folder) != before)
        if kills % 2:
            wait_until(under_way)
        else:
            time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        kills, inside = kills + 1, inside + bool(under_way())
    (source / "counts.txt").write_text(f"{kills} {inside}")


def test_killed_ten_times_some_inside_a_checkpoint_a_run_ends_with_the_same_weights(tmp_path):
    manifest(tmp_path)
    assert in_ranks(kill_again_and_again, tmp_path, 1) == [0], (tmp_path / "rank0.log").read_text()
    kills, inside = map(int, (tmp_path / "counts.txt").read_text().split())
    assert kills >= KILLS and inside >= INSIDE
    there = checkpoint.latest(tmp_path / "killed/checkpoints")
    assert there is not None and int(there.name) < 80, "it was killed for nothing"
    found, expected = (train(tmp_path / name, tmp_path) for name in ("killed", "whole"))
    assert (found.step, found.best) == (expected.step, expected.best)
    assert_same_bits(tmp_path / "killed", tmp_path / "whole", "00000080")
    names = [
        {each.name for each in (tmp_path / n / "checkpoints").iterdir()}
        for n in ("killed", "whole")
    ]
    assert names[0] == names[1] == {"00000079", "00000080", "best"}
