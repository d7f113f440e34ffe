"""Checkpoints are whole or absent, and mean the same model wherever they are read."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lact_asr.model.recognizer import FAMILIES
from lact_asr.training import checkpoint, checksums
from lact_asr.utils.errors import Damaged, DataError
from lact_asr.utils.files import read_json
from tests.lact_asr.tiny_runs import VOCABULARY, replace_file, settings, tiny
from tests.ranks import in_ranks


def write(folder: Path, name: str, model=None, **facts) -> Path:
    """A checkpoint of a tiny model."""
    model = model or tiny()
    described = checkpoint.describe(model, VOCABULARY, settings())
    files = {
        checkpoint.STATE: facts,
        "model.safetensors": model.state_dict(),
        "config.json": described,
    }
    return checkpoint.save(folder, name, files)


def test_a_checkpoint_gives_back_the_model_its_vocabulary_and_its_settings(tmp_path):
    model = tiny(seed=5).eval()
    path = write(tmp_path, "best", model, step=3)
    again, vocabulary, config = checkpoint.load_model(path, FAMILIES)
    waves, lengths = torch.randn(2, 8000), torch.tensor([8000, 5000])
    with torch.no_grad():
        expected, found = (m(waves, lengths).log_probs for m in (model, again))
    assert torch.equal(expected, found)
    assert vocabulary == VOCABULARY
    assert config["training"] == settings().model_dump(mode="json")
    assert not again.training


class Deadly:
    """Kills the process that pickles it."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
        return (int, ())


def save_and_die(folder: Path) -> None:
    """Two checkpoints, killed in the second file of the third."""
    for name in ("00000001", "00000002"):
        write(folder, name)
    files = {checkpoint.STATE: {}, "model.safetensors": tiny().state_dict(), "trainer.pt": Deadly()}
    checkpoint.save(folder, "00000003", files)


def test_a_save_that_is_killed_leaves_the_checkpoints_before_it(tmp_path):
    assert in_ranks(save_and_die, tmp_path, 1) == [-signal.SIGKILL]
    assert [each.name for each in tmp_path.glob(".new.*/*")] == ["model.safetensors", "trainer.pt"]
    assert checkpoint.latest(tmp_path) == tmp_path / "00000002"
    checkpoint.prune(tmp_path, keep=1)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["00000002", "rank0.log"]


@pytest.mark.parametrize("calls", [1, 2])
def test_a_checkpoint_stays_as_it_is_once_somebody_newer_has_the_folder(tmp_path, calls):
    """Before anything is touched, and after the new one was written, which may take minutes."""
    path = write(tmp_path, "best", step=1)
    left = iter([None] * (calls - 1))
    with pytest.raises(StopIteration):
        checkpoint.save(tmp_path, "best", {checkpoint.STATE: {"step": 2}}, lambda: next(left))
    assert checksums.facts(path) == {"step": 1}
    assert len(list(tmp_path.glob(".new.*"))) == calls - 1
    assert not list(tmp_path.glob(".old.*"))


def test_two_processes_that_write_one_checkpoint_do_not_meet_in_a_temporary_folder(tmp_path):
    in_ranks(save_and_die, tmp_path, 1)
    [left] = tmp_path.glob(".new.*")
    checkpoint.save(tmp_path, "00000003", {checkpoint.STATE: {}})
    assert left.exists() and left.name.startswith(f".new.00000003.{os.uname().nodename}.")


def test_a_replacement_cut_between_its_renames_is_finished(tmp_path):
    path = write(tmp_path, "best", step=1)
    path.rename(tmp_path / ".old.best")
    checkpoint.recover(tmp_path)
    assert checksums.facts(path) == {"step": 1}
    write(tmp_path, "best", step=2)
    assert checksums.facts(path) == {"step": 2}
    assert [each.name for each in tmp_path.iterdir()] == ["best"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for name in ("00000010", "00000009", "00000100", "best"):
        write(tmp_path, name)
    (tmp_path / "00000200").mkdir()  # copied in part: no state.json
    checkpoint.prune(tmp_path, keep=2)
    assert {each.name for each in tmp_path.iterdir()} == {"00000010", "00000100", "best"}


def test_a_checkpoint_is_found_by_itself_by_its_folder_and_by_its_step(tmp_path):
    folder = tmp_path / "checkpoints"
    old, new = write(folder, "00000001"), write(folder, "00000002")
    for place in (folder, tmp_path):
        assert checkpoint.find(place) == new
    best = write(folder, "best")
    for place in (best, folder, tmp_path):
        assert checkpoint.find(place) == best
    assert checkpoint.find(old) == old


@pytest.mark.parametrize(
    ("names", "said"),
    [((), "it is an empty folder"), (("a.wav", "b.wav"), r"it contains a\.wav, b\.wav")],
)
def test_where_no_checkpoint_is_the_error_lists_what_is_there(tmp_path, names, said):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=said):
        checkpoint.find(tmp_path)
    with pytest.raises(DataError, match="nothing of that name"):
        checkpoint.find(tmp_path / "absent")


def test_a_checkpoint_of_a_stranger_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "done"),))

    for name in ("trainer.pt", "model.safetensors"):
        torch.save(Evil(), tmp_path / name)
        with pytest.raises(Damaged, match="it cannot be read"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "done").exists()


def test_weights_that_are_cut_or_of_another_shape_or_family_are_named(tmp_path):
    path = write(tmp_path, "best")
    other = shutil.copytree(path, tmp_path / "other")
    config = read_json(path / "config.json")
    replace_file(other / "config.json", config | {"model": config["model"] | {"mlp": 96}})
    with pytest.raises(DataError, match=r"do not fit the model"):
        checkpoint.load_model(other, FAMILIES)
    replace_file(other / "config.json", config | {"family": "oracle"})
    with pytest.raises(DataError, match=r"'oracle'; known here: lact"):
        checkpoint.load_model(other, FAMILIES)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(Damaged, match=r"model\.safetensors is damaged: .* its checksum is another"):
        checkpoint.load_model(path, FAMILIES)


def test_weights_can_be_read_without_torch(tmp_path):
    model = tiny(seed=4)
    weights = load_file(write(tmp_path, "best", model) / "model.safetensors")
    state = model.state_dict()
    assert weights.keys() == state.keys()
    assert all(np.array_equal(weights[name], state[name].numpy()) for name in weights)
