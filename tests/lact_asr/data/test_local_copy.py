"""Audio on the node's own disk: copied once, whole, in its own place; no room is an error."""

import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from lact_asr.data import local_copy
from lact_asr.data.audio import read_audio
from lact_asr.data.local_copy import scratch, stage_files
from lact_asr.utils.errors import Failed
from tests.lact_asr import tiny_runs


def tones(folder, count):
    folder.mkdir()
    return tiny_runs.tones(folder, count)


def test_what_is_staged_sounds_the_same_and_lies_elsewhere(tmp_path, capsys):
    said = tones(tmp_path / "far", 5)
    moved = stage_files(said, tmp_path / "near")
    assert [replace(each, audio=said[0].audio) for each in moved] == [
        replace(each, audio=said[0].audio) for each in said
    ]
    for before, after in zip(said, moved, strict=True):
        assert after.audio.is_relative_to(tmp_path / "near")
        assert np.array_equal(read_audio(before.audio), read_audio(after.audio))
    assert not list((tmp_path / "near").rglob("*.part"))
    assert "staging to" in capsys.readouterr().out


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path):
    one, other = tones(tmp_path / "one", 1)[0], tones(tmp_path / "other", 1)[0]
    other.audio.write_bytes(one.audio.read_bytes()[::-1])
    moved = stage_files([one, other], tmp_path / "near")
    assert moved[0].audio != moved[1].audio
    assert moved[1].audio.read_bytes() == other.audio.read_bytes()


def test_what_is_there_is_not_copied_again_and_what_has_changed_is(tmp_path):
    said = tones(tmp_path / "far", 3)
    moved = stage_files(said, tmp_path / "near")
    moved[1].audio.unlink()  # the job was killed before this one
    moved[1].audio.with_name(f"{moved[1].audio.name}.part").write_bytes(b"half")
    said[2].audio.write_bytes(b"another recording")
    before = {each.id: each.audio.stat().st_ino for each in moved if each.audio.exists()}
    again = stage_files(said, tmp_path / "near")
    assert again == moved
    now = {each.id: each.audio.stat().st_ino for each in again}
    assert now[said[0].id] == before[said[0].id]
    assert again[2].audio.read_bytes() == b"another recording"
    assert again[1].audio.read_bytes() == said[1].audio.read_bytes()


def test_a_file_that_is_missing_keeps_its_place_for_training_to_name(tmp_path):
    said = tones(tmp_path / "far", 2)
    said[0].audio.unlink()
    moved = stage_files(said, tmp_path / "near")
    assert moved[0] == said[0]
    assert moved[1].audio != said[1].audio


def test_too_little_room_is_refused_before_anything_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(local_copy, "SPARE", 1 << 60)  # bytes: no disk has that
    with pytest.raises(Failed, match=r"staging needs .* kB in .* write stage: false") as failed:
        stage_files(tones(tmp_path / "far", 2), tmp_path / "near")
    assert failed.value.cause == "disk_full"
    assert not list((tmp_path / "near").rglob("*.wav"))


def test_processes_of_one_node_may_stage_at_the_same_time(tmp_path):
    said, found = tones(tmp_path / "far", 8), []
    threads = [
        threading.Thread(target=lambda: found.append(stage_files(said, tmp_path / "near")))
        for _ in range(3)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found[0] == found[1] == found[2]
    assert all(each.audio.stat().st_size for each in found[0])


def test_the_nodes_own_folder_is_slurms_else_the_systems(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    assert scratch() == tmp_path / f"staged-{os.getuid()}"
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    assert scratch().parent == tmp_path / "other"
