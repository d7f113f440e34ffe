"""Every benchmark runs in its tiny form and prints its table; the peers are what they claim."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from bench.bootstrap import difference, word_errors
from bench.curves import svg
from bench.learn import SHAPE, compared, curve, model, settings
from bench.peers import equal, parameters
from bench.train_step import NAMES, noise, stepper
from bench.ttt_op import cases
from lact_asr.config.model import SIZES, ModelConfig
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.files import append_json
from tests.conftest import REPOSITORY
from tests.slurm.cluster import missing_programs

TINY = ModelConfig(hidden=64, layers=2, attention_heads=2, lact_heads=1, mlp=96, conv_layers=2)


def bench(name: str, *words: object) -> str:
    """What `python -m bench.NAME --tiny ...` prints."""
    result = REPOSITORY / "bench" / "results" / f"{name}.json"
    before = result.exists() and result.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--tiny", *map(str, words)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == (result.exists() and result.stat().st_mtime_ns), "a tiny form writes nothing"
    return done.stdout


def test_train_step_compares_three_models() -> None:
    said = bench("train_step")
    assert "beside the conformer" in said
    assert "beside the transformer" in said
    assert "of the matrix product's" in said


def test_ttt_op_measures_every_schedule() -> None:
    said = bench("ttt_op")
    for schedule in ("set", "update_then_apply", "apply_then_update", "five_stage"):
        assert schedule in said
    assert "GFLOP/s" in said


def test_checkpoint_stands_beside_none_and_beside_one_in_place() -> None:
    said = bench("checkpoint")
    assert "wait for a checkpoint, aside, beside in place" in said
    assert "500 steps with one aside, beside none, wall, by reckoning" in said


def test_what_is_looked_after_stands_beside_bare_steps(speech: Path) -> None:
    said = bench("overhead", "--data", speech / "train")
    assert "step with health, clock, events, beside bare" in said
    assert "all of a block, beside its data and steps" in said
    assert "the same, with a checkpoint in 500 steps, by reckoning" in said


def test_mutated_pipeline_files_are_read_or_refused() -> None:
    said = json.loads(bench("mutated_pipelines"))
    assert said["read"] + said["refused"] == said["count"] and not said["made"]


def test_mutated_checkpoints_are_read_right_or_refused() -> None:
    said = json.loads(bench("mutated_checkpoints"))
    assert not [what for what in said["with_checksums"] if "wrong" in what]


def test_data_compares_with_bare_decoding(speech: Path) -> None:
    assert "of bare decoding" in bench("data", "--data", speech / "train")


def test_start_reaches_the_first_step(speech: Path) -> None:
    assert "beyond importing torch" in bench("start", "--data", speech / "train")


@pytest.mark.skipif(bool(missing_programs()), reason="Slurm is not installed")
def test_launcher_stands_beside_raw_sbatch_and_those_that_are_installed() -> None:
    said = bench("launcher")
    chain = "chain of 2 trivial steps, end to end"
    for what in ("submit a chain of 2", "submit 3 jobs", "status of 3 queued jobs", chain):
        assert f"{what}, beside raw sbatch" in said
        assert f"{what}, beside submitit" in said


@pytest.mark.skipif(bool(missing_programs()), reason="Slurm is not installed")
def test_the_fault_matrix_tells_what_came_of_a_kill() -> None:
    said = bench("faults")
    (row,) = [line for line in said.splitlines() if line.startswith("| kill |")]
    assert "| killed | yes | succeeded | 1 |" in row and "| identical |" in row
    assert "cause named right: 1 of 1" in said


def test_learn_trains_three_models_and_goes_on_where_it_was_stopped(
    speech: Path, tmp_path: Path
) -> None:
    small = ["--data", speech / "train", "--work", tmp_path, "--steps", 2, "--batch-seconds", 8]
    said = bench("learn", *small, "ours")
    assert said.count("Validation at step 2") == 1
    said = bench("learn", *small)
    assert said.count("Validation at step 2") == 2, "`ours` had ended"
    assert "WER on unseen speakers, plain transformer, step 2" in said
    assert "CER on unseen speakers, ours without updates, step 2" in said


def test_contestants_of_learn_have_equal_parameters_and_one_recipe() -> None:
    vocabulary = Vocabulary.characters()
    counts = [parameters(model(name, SHAPE, vocabulary)) for name in ("ours", "off", "transformer")]
    assert max(counts) <= 1.02 * min(counts)
    assert 2e6 <= min(counts) <= 4e6
    assert model("off", SHAPE, vocabulary).config.schedule == "off"
    assert settings(100, 8.0) == settings(100, 8.0)


@pytest.mark.parametrize("size", ["tiny", "base", "improved", "large"])
@pytest.mark.parametrize("family", ["transformer", "conformer"])
def test_peers_have_the_parameters_of_our_sizes(size: str, family: str) -> None:
    with torch.device("meta"):
        ours = parameters(Recognizer(SIZES[size], 1024))
        peer = equal(family, SIZES[size], 1024)
    assert parameters(peer) == pytest.approx(ours, rel=0.01)


def test_padding_does_not_reach_a_valid_place_of_the_transformer() -> None:
    torch.manual_seed(0)
    peer = equal("transformer", TINY, 29).eval()
    waves = torch.randn(2, 16_000)
    with torch.no_grad():
        both = peer(waves, torch.tensor([16_000, 9_000]))
        alone = peer(waves[1:, :9_000], torch.tensor([9_000]))
    length = int(alone.lengths[0])
    assert length == peer.output_lengths(9_000) == TINY.tokens(9_000)
    torch.testing.assert_close(both.log_probs[1, :length], alone.log_probs[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_the_benchmark_moves_the_weights(name: str) -> None:
    step = stepper(name, "smallest", noise(1.0, 2.0))
    assert step() != step()


def test_operations_are_counted_as_specified() -> None:
    whole, inside, behind, orthogonal = cases(128)
    d, tokens = 128, 375
    assert whole.operations(1, tokens, d) == 18 * tokens * d**2
    assert inside.operations(1, tokens, d) == 18 * tokens * d**2
    assert behind.operations(1, tokens, d) == 6 * tokens * d**2 + 12 * 256 * d**2
    assert orthogonal.operations(2, tokens, d) == 2 * (18 * tokens * d**2 + 90 * d**3)


def test_the_comparison_is_made_at_a_step_that_all_have_reached(tmp_path: Path) -> None:
    numbers = {"ours": [(100, 0.9), (200, 0.7)], "off": [(100, 0.8)], "transformer": [(100, 0.95)]}
    for name, points in numbers.items():
        (tmp_path / name).mkdir()
        for step, wer in points:
            append_json(tmp_path / name / "metrics.jsonl", {"step": step, "wer": wer, "cer": 0.5})
        append_json(tmp_path / name / "metrics.jsonl", {"step": 300, "loss": 1.0})
    rows = compared({name: curve(tmp_path / name) for name in numbers})
    assert [row.ours for row in rows[:3]] == [[0.9], [0.8], [0.95]]
    assert all("step 100" in row.what for row in rows)


def test_a_difference_of_error_rates_comes_with_how_sure_it_is() -> None:
    said = ["ONE TWO THREE FOUR"] * 50
    good, bad = word_errors(said, said), word_errors(said, ["ONE TWO THREE", "ONE TWO FOUR"] * 25)
    assert bad.sum(0).tolist() == [50, 200]
    sure = difference(bad, good)
    assert sure == {"difference": 0.25, "low": 0.25, "high": 0.25}
    mixed = word_errors(said, ["ONE TWO THREE FOUR", "ONE"] * 25)
    unsure = difference(mixed, bad)
    assert unsure["low"] < unsure["difference"] < unsure["high"]


def test_a_curve_is_a_picture_with_every_line_named() -> None:
    drawn = svg("rates", "steps", {"a & b": [(0, 100), (10, 50)], "c": []})
    picture = ElementTree.fromstring(drawn)
    words = ["".join(each.itertext()) for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"rates", "steps", "a & b: 50.0", "c"} <= set(words)
    assert drawn == svg("rates", "steps", {"a & b": [(0, 100), (10, 50)], "c": []})


def test_the_learning_curve_is_committed() -> None:
    file = REPOSITORY / "bench" / "results" / "learn.json"
    described = json.loads(file.read_text())
    assert set(described["models"]) == {"ours", "off", "transformer"}
    counts = [each["parameters"] for each in described["models"].values()]
    assert max(counts) <= 1.02 * min(counts)
    assert (file.parent / "learn.svg").exists()
