"""The scripts in slurm_templates that call the launcher: thin, and at home in any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster import TEMPLATES

SCRIPTS = ["download_full_dataset.sh", "train_improved_full.sh", "test_inference.sh"]


def call(script: Path, *words: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """A script called in `folder`, with this Python, whatever its exit code."""
    return subprocess.run(
        [script, *words],
        cwd=folder,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "TRAINYARD_DATA": str(folder / "data"),
            "TRAINYARD_CLUSTER": "local",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_the_scripts_own_words_and_then_the_launchers(name: str, tmp_path: Path) -> None:
    done = call(TEMPLATES / name, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    own, _, launchers = done.stdout.partition("usage: launch.py ")
    assert f"\n  {name} --c" in own
    assert "#" not in own.splitlines()[0] and "set -euo" not in own
    assert "--cluster NAME" in launchers
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("download_full_dataset.sh", ["corpus"]),
        (
            "train_improved_full.sh",
            ["corpus", "overfit", "train", "evaluate_clean", "evaluate_other"],
        ),
    ],
)
def test_a_script_names_its_steps_and_passes_further_words_on(
    name: str, steps: list[str], tmp_path: Path
) -> None:
    words = ["--cluster", "local", "--set", "corpus.resources.cpus=3", "--dry-run"]
    done = call(TEMPLATES / name, *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "librispeech_improved on local: nothing is submitted"
    assert [line.split()[0] for line in lines] == steps
    assert "cpus=3" in lines[0]


def test_inference_passes_every_word_on_and_reads_paths_from_where_it_is_called(
    tmp_path: Path,
) -> None:
    words = ["--checkpoint-dir", "trained", "--test-subset", "dev-clean", "--num-samples", "-20"]
    script = TEMPLATES / "test_inference.sh"
    (tmp_path / "data" / "manifests").mkdir(parents=True)
    (tmp_path / "data" / "manifests" / "test-clean.jsonl").touch()
    done = call(script, *words, folder=tmp_path)
    assert (done.returncode, "no subset 'dev-clean'" in done.stderr) == (2, True), done.stderr
    (tmp_path / "data" / "manifests" / "dev-clean.jsonl").touch()
    done = call(script, *words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "trained does not exist\n")
    (tmp_path / "trained").mkdir()
    done = call(script, *words, folder=tmp_path)
    assert done.returncode == 2 and "num_samples" in done.stderr and "not -20" in done.stderr


def test_a_script_is_found_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "train"
    link.symlink_to(TEMPLATES / "train_improved_full.sh")
    assert call(link, "--dry-run", "--cluster", "local", folder=tmp_path).returncode == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_sbatch_has_copied_says_how_to_start_it(name: str, tmp_path: Path) -> None:
    copied = Path(shutil.copy(TEMPLATES / name, tmp_path / "slurm_script"))
    done = call(copied, folder=tmp_path)
    assert done.returncode == 2
    assert "start it with bash, not with sbatch" in done.stderr
