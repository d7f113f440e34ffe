"""Resumption: stopped, killed or changed in between, a run goes on as if nothing had happened."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lact_asr.data.manifest import read_manifest
from lact_asr.training import checkpoint
from lact_asr.training.loss import Loss, Part
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import FitResult, fit
from lact_asr.utils.errors import DataError, Interrupted
from lact_asr.utils.files import read_json
from tests.lact_asr.tiny_runs import VOCABULARY, manifest, replace_file, run, settings, tiny, tones
from tests.ranks import in_ranks
from tests.slurm.cluster import PATIENCE


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / name
    trainer = checkpoint.load(path / "trainer.pt")
    moments = {
        f"{index} {name}": value
        for index, state in trainer["optimizer"]["state"].items()
        for name, value in state.items()
    }
    return checkpoint.load(path / "model.safetensors") | moments


def assert_same_bits(one: Path, other: Path, name: str) -> None:
    found, expected = weights(one, name), weights(other, name)
    assert found.keys() == expected.keys()
    different = [key for key in found if not torch.equal(found[key], expected[key])]
    assert not different


RESUMED = {"max_steps": 8, "accumulate": 2, "batch_seconds": 3.0}


def test_stopped_and_resumed_is_bit_for_bit_the_same_as_never_stopped(tmp_path):
    train = tones(tmp_path, 10)
    fresh = lambda seed=0: CTCObjective(tiny(seed, dropout=0.2))
    whole, recorded = run(tmp_path / "whole", train, fresh(), **RESUMED)
    half, before = run(tmp_path / "cut", train, fresh(), stop_at=5, **RESUMED)
    assert isinstance(half, Interrupted) and half.position == 5
    rest, after = run(tmp_path / "cut", train, fresh(seed=9), **RESUMED)
    assert rest.step == 8
    assert before.losses() | after.losses() == recorded.losses()
    assert min(after.losses()) == 6
    assert after.named("resumed")[0]["step"] == 5
    assert_same_bits(tmp_path / "cut", tmp_path / "whole", "00000008")
    assert (rest.wer, rest.loss) == (whole.wer, whole.loss)
    best = [read_json(tmp_path / each / "checkpoints/best/state.json") for each in ("cut", "whole")]
    assert best[0] == best[1]


def test_a_finished_run_called_again_trains_no_further(tmp_path):
    train = tones(tmp_path, 4)
    first, _ = run(tmp_path, train)
    again, recorded = run(tmp_path, train)
    assert again == first
    assert recorded.losses() == {}


def test_a_checkpoint_that_names_the_best_wer_and_loss_goes_on(tmp_path):
    train = tones(tmp_path, 4)
    run(tmp_path, train, stop_at=4)
    path = tmp_path / "checkpoints/00000004/trainer.pt"
    saved = checkpoint.load(path)
    saved["state"] |= {"best_wer": 0.0, "best_loss": 0.0}
    del saved["state"]["best"]
    replace_file(path, saved)
    _, recorded = run(tmp_path, train)
    assert [line["step"] for line in recorded.metrics if "wer" in line] == [6]
    assert read_json(tmp_path / "checkpoints/best/state.json")["step"] == 3
    after = checkpoint.load(tmp_path / "checkpoints/00000006/trainer.pt")
    assert after["state"]["best"] == [0.0, 0.0]


def wait_for(path: Path) -> None:
    """Until a checkpoint is there."""
    end = time.monotonic() + PATIENCE
    while not checkpoint.complete(path):
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)


def cut_as_one_of_four(folder: Path) -> None:
    """The same training, whole, and stopped and resumed."""
    train, short = read_manifest(folder / "tones.jsonl"), {"max_steps": 6, "batch_seconds": 3.0}
    fresh = lambda: CTCObjective(tiny(dropout=0.2))
    run(folder / "whole", train, fresh(), **short)
    run(folder / "cut", train, fresh(), stop_at=3, **short)
    run(folder / "cut", train, fresh(), **short)


def test_four_ranks_add_up_alike_in_the_first_step_of_a_process_and_in_a_later_one(tmp_path):
    """Three ranks or more: of two numbers a sum is the same in either order."""
    manifest(tmp_path)
    assert in_ranks(cut_as_one_of_four, tmp_path, 4) == [0] * 4, (
        tmp_path / "rank0.log"
    ).read_text()
    assert_same_bits(tmp_path / "cut", tmp_path / "whole", "00000006")


def killed(folder: Path) -> None:
    """Train, and be killed after step 7; the last checkpoint is that of step 6."""
    train = read_manifest(folder / "tones.jsonl")

    def report(line) -> None:
        if line["step"] == 7:
            wait_for(folder / "killed/checkpoints/00000006")
            os.kill(os.getpid(), signal.SIGKILL)

    fit(
        CTCObjective(tiny(dropout=0.2)),
        train,
        train[:2],
        VOCABULARY,
        settings(**RESUMED),
        folder / "killed",
        report=report,
        event=lambda name, **facts: None,
        should_stop=lambda: False,
    )


def test_a_killed_run_goes_on_bit_for_bit_from_its_last_checkpoint(tmp_path):
    train = manifest(tmp_path)
    assert in_ranks(killed, tmp_path, 1) == [-signal.SIGKILL]
    for folder in ("killed", "whole"):
        objective = CTCObjective(tiny(dropout=0.2))
        result, recorded = run(tmp_path / folder, train, objective, **RESUMED)
        assert isinstance(result, FitResult)
        assert min(recorded.losses()) == {"killed": 7, "whole": 1}[folder]
    assert_same_bits(tmp_path / "killed", tmp_path / "whole", "00000008")


def test_a_run_goes_on_with_another_learning_rate_and_with_other_data(tmp_path):
    train = tones(tmp_path, 6)
    run(tmp_path, train, stop_at=3)
    before = read_json(tmp_path / "checkpoints/00000003/state.json")
    _, recorded = run(tmp_path, train[1:], optim={"learning_rate": 7e-4, "decay": "constant"})
    lines = [line for line in recorded.metrics if "learning_rate" in line]
    assert lines[0]["learning_rate"] == pytest.approx(7e-4)
    assert recorded.named("resumed")[0]["epoch"] == before["epoch"] + 1
    trainer = checkpoint.load(tmp_path / "checkpoints/00000006/trainer.pt")
    assert {group["peak"] for group in trainer["optimizer"]["param_groups"]} == {7e-4}


class Pair(CTCObjective):
    """CTC, and a parameter beside the model that is trained but not part of it."""

    def __init__(self, model) -> None:
        super().__init__(model)
        self.trainable = torch.nn.ModuleDict({"student": model, "beside": torch.nn.Linear(1, 1)})

    def __call__(self, batch, progress) -> Loss:
        loss = super().__call__(batch, progress)
        penalty = self.trainable["beside"].weight.square().sum()
        return replace(loss, total=loss.total + penalty, parts={"penalty": Part(penalty.detach())})


def test_what_is_trained_beside_the_model_is_resumed_too(tmp_path):
    train = tones(tmp_path, 4)
    torch.manual_seed(0)
    objective = Pair(tiny())
    run(tmp_path, train, objective, stop_at=3)
    again = Pair(tiny(seed=1))
    run(tmp_path, train, again, max_steps=3)
    assert torch.equal(again.trainable["beside"].weight, objective.trainable["beside"].weight)
    model = checkpoint.load(tmp_path / "checkpoints/best/model.safetensors")
    assert model.keys() == objective.model.state_dict().keys()
    with pytest.raises(DataError, match="another objective"):
        run(tmp_path, train, CTCObjective(tiny()))


def test_another_optimizer_cannot_go_on_and_says_so(tmp_path):
    train = tones(tmp_path, 4)
    run(tmp_path, train, stop_at=3)
    with pytest.raises(DataError, match=r"another optimizer: write the optim\.method of the run"):
        run(tmp_path, train, optim={"method": "muon"})
