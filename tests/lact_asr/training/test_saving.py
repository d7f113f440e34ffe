"""Checkpoints are written aside: true copies, in order, one step's at a time, and no error lost."""

import threading
import time
from typing import Any

import pytest
import torch

from lact_asr.training import checkpoint
from lact_asr.training.guard import BREAKER
from lact_asr.training.objective import CTCObjective
from lact_asr.training.saving import Saver, copied
from lact_asr.utils.errors import Failed, Interrupted
from tests.lact_asr.tiny_runs import RecordedEvents, run, tiny, tones
from tests.lact_asr.training.test_resume import assert_same_bits
from tests.lact_asr.training.test_trainer import Poisoned

PATIENCE = 120  # seconds


class Reported(RecordedEvents):
    """Says when a step was taken."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.newest, self.taken = step, 0, threading.Event()
        self.metrics = self

    def append(self, line: dict) -> None:
        self.newest = line["step"]
        if line["step"] == self.step:
            self.taken.set()


def test_training_goes_on_while_a_checkpoint_of_the_step_it_was_asked_at_is_written(tmp_path):
    train = tones(tmp_path, 6)
    changes = {"max_steps": 6, "keep_checkpoints": 9, "batch_seconds": 3.0}
    for stop_at in (3, 99):  # nothing follows while it writes
        objective = CTCObjective(tiny(dropout=0.2))
        run(tmp_path / "undisturbed", train, objective, stop_at=stop_at, **changes)
    later, waited = Reported(5), []
    fence = lambda: waited.append(later.taken.wait(PATIENCE))
    run(tmp_path / "slow", train, CTCObjective(tiny(dropout=0.2)), recorded=later, fence=fence,
        **changes)  # fmt: skip
    assert all(waited), "the checkpoint of step 3 was not being written at step 5"
    for name in ("00000003", "00000006"):
        assert_same_bits(tmp_path / "slow", tmp_path / "undisturbed", name)
    best = [tmp_path / each / "checkpoints/best" for each in ("slow", "undisturbed")]
    one, other = (checkpoint.load(path / checkpoint.WEIGHTS) for path in best)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_is_told_of_once_it_is_there_with_what_it_took(tmp_path):
    class There(RecordedEvents):
        def event(self, name: str, **facts: object) -> None:
            if name == "checkpoint":
                assert checkpoint.complete(tmp_path / f"checkpoints/{facts['step']:08d}")
            super().event(name, **facts)

    began = time.monotonic()
    _, recorded = run(tmp_path, tones(tmp_path, 4), recorded=There())
    took = time.monotonic() - began
    assert [facts["step"] for facts in recorded.named("checkpoint")] == [3, 6]
    for facts in recorded.named("checkpoint"):
        seconds = [facts[f"{what}_seconds"] for what in ("wait", "copy", "write")]
        assert min(seconds) >= 0 and sum(seconds) <= took
        assert facts["write_seconds"] > 0


def test_what_goes_wrong_aside_ends_the_run_at_the_next_step_with_the_same_error(tmp_path):
    begun, steps = threading.Event(), []

    def fence() -> None:
        begun.set()
        raise OSError(28, "No space left on device", "trainer.pt")

    class Waits(Reported):
        def append(self, line: dict) -> None:
            steps.append(line["step"])
            if line["step"] > 10:
                assert begun.wait(PATIENCE)

    with pytest.raises(OSError, match=r"No space left on device: 'trainer\.pt'"):
        run(tmp_path, tones(tmp_path, 1), recorded=Waits(0), fence=fence, max_steps=1000,
            checkpoint_every=10, valid_every=1000, batch_seconds=4.0)  # fmt: skip
    assert max(steps) < 20, "it waited for the next checkpoint to say so"


@pytest.mark.parametrize("stop_at", [4, 99])
def test_the_last_checkpoint_is_there_before_the_run_says_how_it_ended(tmp_path, stop_at):
    """A checkpoint that could not be written is no `Interrupted`, and no result."""
    at, late = min(stop_at, 6), {"checkpoint_every": 9, "valid_every": 9}

    def fence() -> None:
        if list((tmp_path / "checkpoints").glob(f".new.{at:08d}.*")):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, tones(tmp_path, 2), fence=fence, stop_at=stop_at, **late)
    slow = lambda: time.sleep(0.2)
    done, _ = run(tmp_path / "again", tones(tmp_path, 2), stop_at=stop_at, fence=slow, **late)
    assert isinstance(done, Interrupted) is (stop_at < 6)
    assert stop_at < 6 or (done.checkpoint.name == "best" and "wer" in done.best)
    assert checkpoint.complete(tmp_path / f"again/checkpoints/{at:08d}")


def test_behind_a_best_model_that_was_not_written_no_checkpoint_counts_on_it(tmp_path):
    once = iter([OSError(28, "No space left on device")])

    def fence() -> None:
        if error := next(once, None):
            raise error

    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, tones(tmp_path, 2), fence=fence)
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_half_a_checkpoint_takes_no_room_on_a_full_disk(tmp_path):
    class Unwritable:
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    files = {checkpoint.STATE: {}, "model.safetensors": tiny().state_dict(), "a.pt": Unwritable()}
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, "00000001", files)
    assert list(tmp_path.iterdir()) == []


def test_a_run_waits_for_the_checkpoint_of_an_earlier_step_before_it_copies_the_next(tmp_path):
    sixth, seen = Reported(6), []

    def fence() -> None:
        if not seen:
            assert sixth.taken.wait(PATIENCE)
            time.sleep(0.5)  # for steps that should not be taken
            seen.append(sixth.newest)

    run(tmp_path, tones(tmp_path, 2), recorded=sixth, fence=fence, max_steps=60)
    assert seen == [6]


def test_the_mean_of_the_last_checkpoints_waits_for_the_one_that_is_being_written(tmp_path, capsys):
    last, folder = Reported(9), tmp_path / "checkpoints"

    def fence() -> None:
        if (folder / "00000003").exists() and not (folder / "00000006").exists():
            assert last.taken.wait(PATIENCE)

    still = {"learning_rate": 1e-30, "weight_decay": 0.0}  # a better one is waited for anyway
    run(tmp_path, tones(tmp_path, 2), recorded=last, fence=fence, max_steps=9, valid_every=3,
        average={"last": 3}, optim=still)  # fmt: skip
    assert "The mean of the weights of 3 checkpoints" in capsys.readouterr().out


class Ending(Poisoned):
    """Says when it is called for the last time."""

    def __init__(self, model) -> None:
        super().__init__(model, at=range(3, 999))
        self.ended = threading.Event()

    def begin_step(self, batches, all_sum) -> None:
        super().begin_step(batches, all_sum)
        if self.steps == 2 + BREAKER:
            self.ended.set()


def test_an_error_aside_does_not_hide_why_the_run_ended_and_is_told(tmp_path, capsys):
    objective = Ending(tiny())

    def fence() -> None:
        if threading.current_thread() is not threading.main_thread():
            assert objective.ended.wait(PATIENCE)
            raise OSError(28, "No space left on device")

    with pytest.raises(Failed, match="steps in a row"):
        run(tmp_path, tones(tmp_path, 6), objective, fence=fence, max_steps=60, checkpoint_every=2,
            valid_every=60)  # fmt: skip
    assert "A checkpoint was not written: [Errno 28] No space left" in capsys.readouterr().out


def test_a_run_that_diverges_waits_for_the_checkpoint_that_is_being_written(tmp_path):
    objective = Ending(tiny())

    def fence() -> None:
        if threading.current_thread() is not threading.main_thread():
            assert objective.ended.wait(PATIENCE)

    with pytest.raises(Failed, match="No checkpoint is from before the weights that do this"):
        run(tmp_path, tones(tmp_path, 6), objective, fence=fence, max_steps=60, checkpoint_every=2,
            valid_every=60)  # fmt: skip


def test_checkpoints_of_a_later_step_wait_for_those_of_an_earlier_one():
    go, done = threading.Event(), []
    with Saver(print) as saver:
        saver.room(1)
        saver.put(lambda: done.append(go.wait(PATIENCE)))
        saver.room(1)
        saver.put(lambda: done.append("second"))
        later = threading.Thread(target=saver.room, args=(2,))
        later.start()
        later.join(0.2)
        assert later.is_alive() and not done
        go.set()
        later.join(PATIENCE)
        assert not later.is_alive()
        assert done == [True, "second"]


def test_a_copy_shares_no_memory_at_any_depth():
    weights = torch.ones(3)
    given: dict[str, Any] = {"a": [weights, (weights[:1], 5)], "b": {"c": weights.t()}, "d": "word"}
    copy = copied(given)
    weights.zero_()
    assert copy["a"][0].tolist() == copy["b"]["c"].tolist() == [1, 1, 1]
    assert copy["a"][1][0].tolist() == [1] and copy["a"][1][1] == 5 and copy["d"] == "word"
    given["a"].clear()
    assert len(copy["a"]) == 2
