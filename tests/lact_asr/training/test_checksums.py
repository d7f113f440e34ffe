"""A checkpoint that is not as it was written is refused, and a run goes on from the one before."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bench.mutated_checkpoints import CHANGES, trials
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import processes
from lact_asr.model.recognizer import FAMILIES
from lact_asr.training import checkpoint, checksums
from lact_asr.training.objective import CTCObjective
from lact_asr.training.origin import begin_from
from lact_asr.training.trainer import FitResult
from lact_asr.utils.errors import Damaged, DataError
from lact_asr.utils.files import read_json, write_json
from tests.lact_asr.tiny_runs import VOCABULARY, manifest, run, tiny, tones
from tests.lact_asr.training.test_resume import assert_same_bits, wait_for
from tests.ranks import in_ranks

LONG = {"max_steps": 9, "keep_checkpoints": 9, "batch_seconds": 3.0}


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def without_checksums(path: Path) -> None:
    """Make a checkpoint one of before there were checksums."""
    write_json(path / checkpoint.STATE, checksums.facts(path))


def test_changed_in_any_way_a_checkpoint_is_read_as_it_was_written_or_refused():
    counts = trials(count=4 * len(CHANGES) * 4, seed=1)
    assert not [what for what in counts if "wrong" in what], counts
    assert counts["model refused"] > 100 and counts["run before"] > 150
    assert counts["model right"] > 20, "a change of what it does not need"


def test_changed_without_checksums_it_is_read_or_refused_in_one_sentence():
    counts = trials(count=2 * len(CHANGES) * 4, seed=2, sums=False)
    assert counts["model refused"] > 20 and counts["model right"] > 20


@pytest.mark.parametrize("file", ["model.safetensors", "trainer.pt", "config.json", "state.json"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(tmp_path, file, capsys):
    train, fresh = tones(tmp_path, 6), lambda: CTCObjective(tiny(dropout=0.2))
    run(tmp_path / "whole", train, fresh(), **LONG)
    run(tmp_path / "cut", train, fresh(), stop_at=7, **LONG)
    folder = tmp_path / "cut/checkpoints"
    flip(folder / "00000007" / file)
    capsys.readouterr()
    done, recorded = run(tmp_path / "cut", train, fresh(), **LONG)
    assert isinstance(done, FitResult)
    [told] = recorded.named("damaged_checkpoint")
    assert told["file"] == str(folder / "00000007" / file) and told["now"] == "damaged-00000007"
    assert f"00000007/{file}: {told['reason']}; its folder is now" in capsys.readouterr().out
    assert recorded.named("resumed")[0]["checkpoint"] == "00000006"
    assert (folder / "damaged-00000007" / file).exists()
    assert_same_bits(tmp_path / "cut", tmp_path / "whole", "00000009")


def test_where_all_checkpoints_are_damaged_a_run_says_so_and_does_not_begin_anew(tmp_path):
    train = tones(tmp_path, 2)
    run(tmp_path, train, stop_at=4)
    folder = tmp_path / "checkpoints"
    flip(folder / "00000003/trainer.pt")
    (folder / "00000004/state.json").unlink()
    said = r"\(00000004/state\.json: it is missing; 00000003/trainer\.pt: it is not as it was"
    for _ in range(2):
        with pytest.raises(DataError, match=said):
            run(tmp_path, train)
    assert {"00000003", "00000004"} <= {each.name for each in folder.iterdir()}


def refused(folder: Path) -> None:
    """What each of two ranks is told where no checkpoint is whole."""
    with pytest.raises(DataError) as caught:
        run(folder, read_manifest(folder / "tones.jsonl"), batch_seconds=2.0)
    (folder / f"{processes.start().rank}.txt").write_text(str(caught.value))


def test_all_ranks_are_told_where_all_checkpoints_are_damaged(tmp_path):
    run(tmp_path, manifest(tmp_path), stop_at=2)
    flip(tmp_path / "checkpoints/00000002/trainer.pt")
    assert in_ranks(refused, tmp_path, 2) == [0, 0], (tmp_path / "rank1.log").read_text()
    said = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert len(said) == 1 and "00000002/trainer.pt: it is not as it was" in said.pop()


def test_damaged_twice_at_the_same_step_both_are_kept(tmp_path):
    (tmp_path / "00000003").mkdir()
    checkpoint.put_damaged_aside(tmp_path / "00000003")
    (tmp_path / "00000003").mkdir()
    assert checkpoint.put_damaged_aside(tmp_path / "00000003").name == "damaged-00000003.2"


def test_a_checkpoint_from_before_there_were_checksums_goes_on_unless_it_cannot_be_read(tmp_path):
    train = tones(tmp_path, 4)
    run(tmp_path / "whole", train, **LONG)
    run(tmp_path / "cut", train, stop_at=7, **LONG)
    folder = tmp_path / "cut/checkpoints"
    for path in checkpoint.by_step(folder):
        without_checksums(path)
    shutil.copytree(tmp_path / "cut", tmp_path / "torn")
    torn = tmp_path / "torn/checkpoints/00000007/trainer.pt"
    torn.write_bytes(torn.read_bytes()[:2000])
    for name, resumed in (("cut", "00000007"), ("torn", "00000006")):
        _, recorded = run(tmp_path / name, train, **LONG)
        assert recorded.named("resumed")[0]["checkpoint"] == resumed
        assert_same_bits(tmp_path / name, tmp_path / "whole", "00000009")


def test_a_vocabulary_that_is_none_is_refused_without_checksums_too(tmp_path):
    run(tmp_path, tones(tmp_path, 2), max_steps=3)
    best = tmp_path / "checkpoints/best"
    config = read_json(best / "config.json")
    config["vocabulary"]["symbols"].append("A")
    write_json(best / "config.json", config)
    without_checksums(best)
    with pytest.raises(Damaged, match="its vocabulary is none: symbols must be"):
        begin_from(best, tiny(), VOCABULARY)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "state.json"])
def test_nothing_begins_with_a_damaged_model(tmp_path, file):
    run(tmp_path, tones(tmp_path, 2), max_steps=3)
    best = tmp_path / "checkpoints/best"
    flip(best / file)
    for read in (
        lambda: checkpoint.load_model(best, FAMILIES),
        lambda: begin_from(best, tiny(), VOCABULARY),
    ):
        with pytest.raises(Damaged, match=rf"best/{file} is damaged: .*name another checkpoint"):
            read()


def test_the_mean_of_the_last_checkpoints_takes_no_damaged_one(tmp_path):
    class Harm(CTCObjective):
        def end_step(self, step, outcome, logger) -> None:
            super().end_step(step, outcome, logger)
            if step == 9:
                wait_for(tmp_path / "checkpoints/00000006")
                flip(tmp_path / "checkpoints/00000006/model.safetensors")

    with pytest.raises(Damaged, match="00000006/model"):
        run(tmp_path, tones(tmp_path, 2), Harm(tiny()), **{**LONG, "average": {"last": 3}})


def test_a_result_is_not_made_of_a_changed_state(tmp_path):
    train = tones(tmp_path, 2)
    run(tmp_path, train)
    state = tmp_path / "checkpoints/best/state.json"
    write_json(state, read_json(state) | {"loss": 0.0})
    with pytest.raises(Damaged, match=r"state\.json is damaged"):
        run(tmp_path, train)


def test_the_facts_of_a_checkpoint_are_what_was_written_whatever_they_are(tmp_path):
    facts = {"step": 3, "loss": float("inf"), "wer": 0.1, "many": [1, {"b": 2, "a": None}]}
    path = checkpoint.save(tmp_path, "00000003", {checkpoint.STATE: facts})
    assert checksums.facts(path) == facts
    stated = json.loads((path / checkpoint.STATE).read_text())
    (path / checkpoint.STATE).write_text(json.dumps(stated, sort_keys=True))
    assert checksums.facts(path) == facts, "the same in another order, without spaces"


def test_what_was_changed_on_purpose_is_taken_once_its_checksums_are_removed(tmp_path):
    run(tmp_path, tones(tmp_path, 2), max_steps=3)
    best = tmp_path / "checkpoints/best"
    weights = checkpoint.load(best / "model.safetensors")
    write_json(best / "config.json", read_json(best / "config.json") | {"note": "mine"})
    with pytest.raises(Damaged, match=r"config\.json"):
        checkpoint.load_model(best, FAMILIES)
    without_checksums(best)
    model, _, config = checkpoint.load_model(best, FAMILIES)
    assert config["note"] == "mine"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
