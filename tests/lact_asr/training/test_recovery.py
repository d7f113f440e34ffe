"""After a divergence: what is left on disk can be gone on from, and other settings get a chance."""

import math
from pathlib import Path

import pytest
import torch

from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import processes
from lact_asr.training import checkpoint
from lact_asr.training.guard import BREAKER
from lact_asr.training.loss import Loss, Outcome
from lact_asr.training.objective import CTCObjective
from lact_asr.training.resume import State
from lact_asr.training.retreat import newest_sound, retreat
from lact_asr.training.trainer import FitResult
from lact_asr.utils.errors import Failed
from tests.lact_asr.tiny_runs import RecordedEvents, manifest, run, tiny, tones
from tests.lact_asr.training.test_trainer import Poisoned
from tests.ranks import in_ranks

WILD = {"learning_rate": 4e3}  # a million times the sane one: at a thousand this model still learns
LONG = {"max_steps": 60, "valid_every": 20, "checkpoint_every": 2, "keep_checkpoints": 4}


def numbered(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.by_step(folder / "checkpoints")]


def test_a_run_that_diverged_goes_on_from_before_with_a_sane_rate_and_learns(tmp_path):
    train = tones(tmp_path, 6)
    half, before = run(tmp_path, train, stop_at=10, **LONG)
    assert half.position == 10
    with pytest.raises(Failed, match=f"{BREAKER} steps in a row") as caught:
        run(tmp_path, train, optim=WILD, **LONG)  # for some steps the loss only rises
    assert str(caught.value).endswith("The next start goes on from step 10")
    done, recorded = run(tmp_path, train, **LONG)
    assert (done.step, done.steps_skipped) == (60, 0)
    assert recorded.named("resumed")[0]["step"] == 10
    assert recorded.losses()[60] < 0.8 * before.losses()[10]


RISING = {"learning_rate": 3.0, "clip_norm": 1e9}  # every number stays finite
EVER = {"max_steps": 300, "valid_every": 300, "keep_checkpoints": 1}


def test_a_loss_that_rises_and_stays_finite_ends_the_run_before_the_rise(tmp_path):
    """One checkpoint is kept, and five are made while the loss rises: the sound one is spared."""
    train, recorded = tones(tmp_path, 6), RecordedEvents()
    run(tmp_path, train, stop_at=60, checkpoint_every=60, **EVER)
    with pytest.raises(Failed, match=r"^the loss is .*goes on from step 60$") as caught:
        run(tmp_path, train, recorded=recorded, optim=RISING, checkpoint_every=4, **EVER)
    assert caught.value.cause == "diverged"
    assert numbered(tmp_path) == ["00000060"]
    assert recorded.named("finding")[-1]["word"] == "loss_rising"
    done, _ = run(tmp_path, train, **{**EVER, "max_steps": 64})
    assert done.step == 64


def test_a_loss_that_rises_from_the_start_begins_anew(tmp_path):
    with pytest.raises(Failed, match="risen from the start: all begins anew"):
        wild = {**RISING, "learning_rate": 30.0}
        run(tmp_path, tones(tmp_path, 6), optim=wild, checkpoint_every=25, **EVER)
    assert numbered(tmp_path) == []


def test_checkpoints_with_weights_that_drop_every_step_are_put_aside(tmp_path):
    train, recorded = tones(tmp_path, 6), RecordedEvents()
    broken = Poisoned(tiny(), at=range(7, 999))  # six steps are taken
    with pytest.raises(Failed, match="goes on from step 4"):
        run(tmp_path, train, broken, recorded=recorded, **LONG)
    assert numbered(tmp_path) == ["00000002", "00000004"], "others would push them out"
    assert recorded.named("put_aside") == [{"checkpoint": "00000006", "now": "diverged"}]
    aside = tmp_path / "checkpoints" / "diverged"
    assert checkpoint.find(aside) == aside  # for `diagnose`
    assert checkpoint.find(tmp_path) != aside
    kept = checkpoint.load(aside / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in broken.model.state_dict().items())


def test_a_start_that_a_newer_one_has_replaced_puts_none_of_its_checkpoints_aside(tmp_path):
    broken = Poisoned(tiny(), at=range(7, 999))

    def fence() -> None:
        if (tmp_path / "checkpoints/00000006").exists():  # the last one: the folder is another's
            raise RuntimeError("replaced")

    with pytest.raises(RuntimeError, match="replaced"):
        run(tmp_path, tones(tmp_path, 6), broken, fence=fence, **{**LONG, "valid_every": 60})
    assert numbered(tmp_path) == ["00000002", "00000004", "00000006"]


def given_up(folder: Path) -> None:
    """Two ranks, of which one has no finite loss after six steps; what each is told."""
    world = processes.start()
    broken = Poisoned(tiny(), at=range(7, 999) if world.rank else ())
    with pytest.raises(Failed) as caught:
        run(folder, read_manifest(folder / "tones.jsonl"), broken, batch_seconds=2.0, **LONG)
    (folder / f"{world.rank}.txt").write_text(str(caught.value).rpartition(". ")[2])


def test_ranks_give_up_together_and_agree_on_where_to_go_on(tmp_path):
    manifest(tmp_path)
    assert in_ranks(given_up, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    said = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert said == {"The next start goes on from step 4"}
    assert numbered(tmp_path) == ["00000002", "00000004"]


def test_of_checkpoints_in_a_rise_none_is_sound():
    losses = {500: 0.9, 1000: 0.7, 1500: 1.1, 2000: 40.0}
    assert newest_sound(losses, 2400, 0.6) == 1500
    assert newest_sound(losses, 2400, 0.5) == 1000
    assert newest_sound(losses, 1000, 0.6) == 500
    assert newest_sound({1500: 30.0, 2000: 40.0}, 2400, 0.6) is None
    assert newest_sound(losses, 2400, -3.0) == 2000  # a loss with a logarithm in it


@pytest.mark.parametrize("clip_norm", [1.0, 1e3], ids=["gradients overflow", "losses rise"])
@pytest.mark.parametrize("last", [3, 4, 5])
def test_one_bad_update_that_was_saved_at_once_is_not_gone_on_from(tmp_path, last, clip_norm):
    """The loss of step 5 is that of sound weights, the checkpoint of step 5 has the broken ones."""
    train = tones(tmp_path, 6)
    given = {**LONG, "checkpoint_every": 5, "keep_checkpoints": 2}
    sane = {"learning_rate": 1e-3, "warmup_steps": 0, "decay": "constant"}
    run(tmp_path, train, stop_at=last, **given, optim=sane)
    wild = {**sane, "learning_rate": 4e3, "clip_norm": clip_norm}
    with pytest.raises(Failed, match=f"goes on from step {last}"):
        run(tmp_path, train, **given, optim=wild)
    assert numbered(tmp_path)[-1] == f"{last:08d}"


def test_a_rise_that_ends_in_dropped_steps_is_gone_back_from_too(tmp_path):
    train = tones(tmp_path, 6)
    run(tmp_path, train, stop_at=8, **LONG)
    state = State(step=16, in_a_row=9, risen=7, lowest_loss=5.0)
    dropped = Outcome(3e3, 9.0, {}, {}, math.nan, 1.0, False, {}, math.inf, ["a"])
    aside, where = retreat(tmp_path / "checkpoints", state, dropped)
    assert where == "The next start goes on from step 4"
    assert [path.name for path in aside] == ["00000006", "00000008"]


def test_the_last_checkpoint_is_never_put_aside_and_the_failure_says_what_is_left(tmp_path):
    train = tones(tmp_path, 6)
    run(tmp_path, train, stop_at=2, **LONG)
    for _ in range(2):  # a bad GPU, twice
        with pytest.raises(Failed, match="let the step begin anew, from the best"):
            run(tmp_path, train, Poisoned(tiny(), at=range(1, 999)), **LONG)
        assert numbered(tmp_path) == ["00000002"]
    assert run(tmp_path, train, max_steps=4)[0].step == 4


def test_a_checkpoint_waits_until_a_step_is_taken_again(tmp_path):
    broken = Poisoned(tiny(), at={3, 4})
    _, recorded = run(tmp_path, tones(tmp_path, 6), broken, max_steps=9, checkpoint_every=3)
    assert [facts["step"] for facts in recorded.named("checkpoint")] == [5, 6, 9]


class Breaking(CTCObjective):
    """CTC whose model has an infinite weight after a given call, as after an overflow."""

    def __init__(self, model, at: int) -> None:
        super().__init__(model)
        self.left = at

    def __call__(self, batch, progress) -> Loss:
        loss = super().__call__(batch, progress)
        self.left -= 1
        if not self.left:
            self.model.head.bias.data[0] = math.inf
        return loss


@pytest.mark.parametrize("asked", [3, 99], ids=["asked_to_stop", "due"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, asked):
    train = tones(tmp_path, 6)
    with pytest.raises(Failed, match="after step 3 weights are not finite") as caught:
        run(tmp_path, train, Breaking(tiny(), at=3), stop_at=asked, max_steps=9, valid_every=9)
    assert caught.value.cause == "diverged"
    assert numbered(tmp_path) == []
    assert isinstance(run(tmp_path, train)[0], FitResult)


def test_dropped_steps_count_on_for_a_requeued_job_and_anew_with_other_settings(tmp_path):
    """Fifteen steps in a row were dropped when the job was requeued: ten more end it, or not."""
    train = tones(tmp_path, 6)
    for name in ("same", "other"):
        run(tmp_path / name, train, Poisoned(tiny(), at=range(3, 999)), stop_at=17, **LONG)
    with pytest.raises(Failed, match="20 steps in a row, up to step 22"):
        run(tmp_path / "same", train, Poisoned(tiny(), at=range(1, 11)), **LONG)
    sane = Poisoned(tiny(), at=range(1, 11))
    done, recorded = run(tmp_path / "other", train, sane, optim={"learning_rate": 1e-3}, **LONG)
    assert done.steps_skipped == 25
    changed = ["optim.learning_rate: 0.004 before, 0.001 now"]
    assert recorded.named("resumed")[0]["changed"] == changed


def test_steps_dropped_of_late_do_not_end_a_run_that_goes_on_with_other_settings(tmp_path):
    train, long = tones(tmp_path, 6), {"max_steps": 110, "valid_every": 110}
    for name in ("same", "other"):
        run(tmp_path / name, train, Poisoned(tiny(), at=range(2, 99, 2)), stop_at=99, **long)
    again = lambda: Poisoned(tiny(), at={2, 4})
    with pytest.raises(Failed, match="51 of 103 steps"):
        run(tmp_path / "same", train, again(), **long)
    other = {**long, "optim": {"learning_rate": 1e-3}}
    assert run(tmp_path / "other", train, again(), **other)[0].steps_skipped == 51
