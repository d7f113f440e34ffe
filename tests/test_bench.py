"""Every benchmark runs in its tiny form and prints its table; the peers are what they claim."""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F

from bench import gpu, gpu_parts, harness, learn
from bench.bootstrap import by_speaker, difference, word_errors
from bench.curves import svg
from bench.distillation import differences as students_apart
from bench.distillation import longer, seconds
from bench.learn import Timed, at, compared, curve, differences, stored
from bench.long_speech import WAYS, pieces, scale
from bench.machine import clock
from bench.peers import Linear, LinearAttention, equal, parameters
from bench.recipes import ARMS, RECIPES
from bench.steps import noise
from bench.train_step import NAMES, stepper
from bench.ttt_op import cases
from lact_asr.config.model import SIZES, ModelConfig
from lact_asr.data.manifest import Utterance
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.bpe import BPEVocabulary
from lact_asr.text.vocabulary import Vocabulary
from tests.conftest import REPOSITORY
from tests.slurm.cluster import PATIENCE, missing_programs

REPORTS = [("main", "learn"), ("ablation", "learn_ablation"), ("parts", "learn_parts")]
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
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == (result.exists() and result.stat().st_mtime_ns), "a tiny form writes nothing"
    return done.stdout


def test_a_result_names_its_commit_and_whether_more_than_results_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "REPOSITORY", tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    files = [tmp_path / name for name in ("code.py", "docs.md", "bench/results/learn.json")]
    files[2].parent.mkdir(parents=True)
    for file in files:
        file.write_text("as it was")
    assert harness.commit() == "", "no repository"
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    named = harness.commit()
    assert re.fullmatch("[0-9a-f]{12}", named)
    for file, expected in zip(files[::-1], [named, named, f"{named}, edited"], strict=True):
        file.write_text("edited")
        assert harness.commit() == expected


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


def test_the_clock_counts_programs_that_were_waited_for() -> None:
    began, busy = clock(), "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert clock() - began > 0.29


def test_steps_of_recipes_take_turns(speech: Path) -> None:
    asked = ["--recipe", "ours", "--recipe", "still"]
    said = bench("pace", "--data", speech / "train", *asked)
    assert "step of ours" in said and "step of still, beside ours" in said


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


def test_gpu_measures_everything_in_parts_with_what_each_of_them_has_found(
    speech: Path, tmp_path: Path
) -> None:
    given = ["--data", speech / "train", "--out", tmp_path / "gpu.json", "--seconds", 10 * PATIENCE]
    said = bench("gpu", *given)
    found = json.loads((tmp_path / "gpu.json").read_text())
    parts = found["parts"]
    assert list(parts) == [part.name for part in gpu.PARTS] == list(gpu_parts.PARTS)
    assert {each["state"] for each in parts.values()} == {"done"} and found["commit"]
    assert parts["machine"]["facts"]["device"] == "cpu"
    assert parts["tests"]["facts"]["failures"] == 0 < parts["tests"]["facts"]["tests"]
    told = [row["what"] for row in parts["steps"]["rows"]]
    for name in (*NAMES, gpu_parts.COMPILED):
        for figure in ("audio s/s", "share of peak"):
            assert sum(f": {name}, {figure}" in what for what in told) == 2
    assert parts["optimizers"]["rows"][1]["ratio"] and parts["decoding"]["rows"]
    assert parts["training"]["rows"][0]["ours"]["median"] >= 0.5
    assert any("wer" in line for line in parts["training"]["facts"]["curve"])
    assert "failed: none" in said


def test_a_part_that_fails_is_on_record_and_the_others_are_measured(tmp_path: Path) -> None:
    words = ["--part", "machine", "--part", "decoding", "--part", "training", "--tiny"]
    out, data = tmp_path / "gpu.json", tmp_path / "none"
    asked = [*words, "--data", str(data), "--out", str(out), "--seconds", str(10 * PATIENCE)]
    done = subprocess.run([sys.executable, "-m", "bench.gpu", *asked], cwd=REPOSITORY)
    assert done.returncode == 1
    parts = json.loads(out.read_text())["parts"]
    assert parts["machine"]["state"] == "done" and parts["machine"]["facts"]["torch"]
    for name in ("decoding", "training"):
        assert parts[name]["state"] == "failed"
        assert parts[name]["message"].endswith(f"{data}: no such folder")


def test_a_part_that_takes_too_long_is_ended_with_what_it_began() -> None:
    reading, writing = os.pipe()
    code = gpu.run(["sh", "-c", "sleep 3600 & wait"], dict(os.environ), writing, 1.0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.read() == "", "its end comes when nobody is left who could write"
    assert code is None


def test_what_needs_speech_is_left_out_without_and_nothing_is_begun_without_time(
    tmp_path: Path,
) -> None:
    given = argparse.Namespace(data=None, seconds=9.0)
    heard, late = gpu.PARTS[-1], gpu.PARTS[0]
    assert gpu.outcome(heard, 5.0, given, tmp_path, {})["state"] == "left out"
    assert gpu.outcome(late, -1.0, given, tmp_path, {})["state"] == "failed"


def test_the_goals_of_a_gpu_are_rows_of_its_steps() -> None:
    steppers = {name: stepper(name, "smallest", noise(2.0, 4.0)) for name in NAMES}
    took = {name: [seconds] for name, seconds in zip(NAMES, (0.1, 0.2, 0.4), strict=True)}
    room = dict.fromkeys(NAMES, 1.5)
    rows = gpu_parts._rows("improved", 16.0, noise(16.0, 960.0), steppers, took, room)
    by_name = {row.what.split(": ")[1]: row for row in rows}
    assert by_name["ours, beside 8000 audio s/s"].met is True
    assert by_name["ours, beside 35% of 790 TFLOP/s"].met is False
    assert by_name["ours, beside the conformer"].met is True
    assert by_name["ours, GiB of a step"].ours == [1.5]
    needed = gpu_parts.needs(steppers["ours"].objective.model, noise(16.0, 960.0))
    assert by_name["ours, share of peak"].ours == [pytest.approx(needed / 0.1 / 790e12)]
    both = {**steppers, gpu_parts.COMPILED: steppers["ours"]}, {**took, gpu_parts.COMPILED: [0.3]}
    rows = gpu_parts._rows("improved", 16.0, noise(16.0, 960.0), *both, {**room, **both[1]})
    judged = {row.what.split(": ")[1]: row.met for row in rows if row.met is not None}
    assert judged.pop("ours, compiled, beside the conformer") is False
    assert len(judged) == 2 and all(name.startswith("ours, compiled, ") for name in judged)


def test_a_training_has_as_many_steps_as_its_time_is_good_for(
    tmp_path: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, int] = {}

    def train(
        seen: list, unseen: list, count: int, given: Any, name: str, report: Any, _: Any
    ) -> None:
        asked[name] = count
        for _ in range(3):
            report({"seconds_per_step": 0.5})
        report({"wer": 0.3, "step": count})

    monkeypatch.setattr(gpu_parts, "_train", train)
    found = gpu_parts.Found(tmp_path / "found.json")
    given = argparse.Namespace(tiny=False, seconds=1030.0, data=speech / "train")
    gpu_parts.training(found, given)
    assert asked == {
        "trial": gpu_parts.TRIAL,
        "training": pytest.approx(0.8 * 1000 / 0.5, rel=0.1),
    }
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["rows"][0]["met"] is True and written["rows"][0]["goal"] == 0.4
    assert [line.get("wer") for line in written["facts"]["curve"]] == [None, None, None, 0.3]


def test_a_peer_looks_at_all_pairs_of_tokens() -> None:
    peer = stepper("transformer", "smallest", noise(2.0, 4.0)).objective.model
    short, long = (gpu_parts.needs(peer, noise(clip, 64.0)) for clip in (16.0, 64.0))
    beside = 12 * peer.config.hidden * peer.config.layers
    assert long - short == pytest.approx(beside * (1600**2 - 3 * 400**2 - 380**2), rel=0.01)


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


def test_learn_trains_recipes_and_goes_on_where_it_was_stopped(
    speech: Path, tmp_path: Path
) -> None:
    small = ["--data", speech / "train", "--work", tmp_path, "--steps", 2, "--batch-seconds", 8]
    said = bench("learn", *small, "--recipe", "ours", "--seed", 3)
    assert said.count("Validation at step 2") == 1
    said = bench("learn", *small, "--recipe", "ours", "--recipe", "transformer", "--seed", 3)
    assert said.count("Validation at step 2") == 1, "`ours` had ended"
    assert said.count("ours-3-2: CER") == said.count("transformer-3-2: CER") == 1
    said = bench("learn", *small, "--arms", "losses", "--seed", 3, "--seed", 4)
    ended = re.findall(r"^(\S+)-2: CER", said, re.M)
    losses = ("shipped", "inter", "masked", "cr")
    assert ended == [f"{name}-{seed}" for seed in (3, 4) for name in losses]


def test_the_student_alone_gets_the_time_that_teacher_cache_and_student_took(
    speech: Path, tmp_path: Path
) -> None:
    small = ["--data", speech / "train", "--steps", 2, "--batch-seconds", 8]
    bench("learn", *small, "--work", tmp_path / "learn", "--recipe", "off")
    work = ["--teacher", tmp_path / "learn" / "off-0-2", "--work", tmp_path / "work", "--seed", 0]
    said = bench("distillation", *small, *work)
    assert "wer on unseen speakers, distilled beside texts only, in the time of teacher" in said
    assert "wer on unseen speakers, distilled longer beside texts only, in the time" in said
    teacher = json.loads((tmp_path / "work" / "teacher.json").read_text())
    decided = json.loads((tmp_path / "work" / "longer-0.json").read_text())["steps"]
    two = [curve(tmp_path / "work" / f"{arm}-0") for arm in ("distilled", "alone")]
    assert decided == longer(2, teacher, *two) > 2
    for arm in ("alone_longer", "distilled_longer"):
        assert max(curve(tmp_path / "work" / f"{arm}-0")) == decided


def test_time_is_that_of_steps_and_a_teacher_is_charged_up_to_its_checkpoint() -> None:
    lines = {10: {"seconds_per_step": 0.5}, 12: {"wer": 1.0}, 30: {"seconds_per_step": 1.0}}
    assert seconds(lines) == 25.0 and seconds(lines, 20) == 5.0
    teacher = {"training_seconds": 60.0, "cache_seconds": 15.0}
    assert longer(100, teacher, lines, {50: {"seconds_per_step": 0.5}}) == 400


def test_the_ablation_of_learn_has_equal_parameters_and_differs_in_nothing_else() -> None:
    symbols = Vocabulary.characters()
    ablation = [RECIPES[name] for name in ("ours", "off", "transformer")]
    counts = [parameters(recipe.fresh(symbols, 0)) for recipe in ablation]
    assert max(counts) <= 1.02 * min(counts)
    assert 2e6 <= min(counts) <= 4e6
    still = ablation[1].fresh(symbols, 0).config
    assert isinstance(still, ModelConfig) and still.schedule == "off"
    assert len({recipe.settings(100, 0).model_dump_json() for recipe in ablation}) == 1


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained(name: str) -> None:
    recipe = RECIPES[name]
    words = [f"{chr(65 + n % 26)}{chr(65 + n // 26)} SOME WORDS {n % 7 * 'AB'}" for n in range(600)]
    symbols = recipe.vocabulary(words) if not recipe.pieces else BPEVocabulary.learn(words, 60)
    model = recipe.fresh(symbols, 0, tiny=True)
    assert recipe.settings(100, 5).seed == 5
    if recipe.ctc:
        recipe.loss().check(recipe.fresh(symbols, 0).config.blocks)
    assert model.output_lengths(16_000) in (13, 25)


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


def test_linear_attention_is_the_sum_over_all_valid_tokens() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(TINY.model_copy(update={"schedule": "off", "lact_heads": 2})).double()
    x, (q, k, v) = torch.randn(2, 5, 64).double(), torch.randn(3, 4, 5, 32).double()
    lengths = torch.tensor([5, 3])

    def phi(rows: torch.Tensor, head: int) -> torch.Tensor:
        return F.silu(rows @ layer.w0[head].T) * (rows @ layer.w2[head].T)

    with torch.no_grad():
        found, state = layer._read(x, q, k, v, lengths, None)
        rates = F.softplus(layer.lr_proj(x) + math.log(math.expm1(0.01)))
        for row, place in itertools.product(range(4), range(5)):
            whose, head = divmod(row, 2)
            heard = layer.w1[head] @ phi(q[row, place], head)
            for t in range(int(lengths[whose])):
                alike = phi(k[row, t], head) @ phi(q[row, place], head)
                heard = heard + rates[whose, t, head] * alike * v[row, t]
            torch.testing.assert_close(found[row, place], heard, atol=1e-12, rtol=1e-9)
    assert state is None


def test_our_model_with_linear_attention_hears_no_padding_and_learns_its_rates() -> None:
    shape = TINY.model_copy(update={"schedule": "off"})
    torch.manual_seed(0)
    model = Linear(shape, 29).eval()
    torch.manual_seed(0)
    ours = Recognizer(shape, 29)
    gates = sum(p.numel() for block in model.blocks for p in block.mix.lr_proj.parameters())
    assert parameters(model) == parameters(ours) + gates
    torch.testing.assert_close(model.blocks[0].mix.w0, ours.blocks[0].mix.w0)
    waves = torch.randn(2, 16_000)
    both = model(waves, torch.tensor([16_000, 9_000]))
    alone = model(waves[1:, :9_000], torch.tensor([9_000]))
    length = int(alone.lengths[0])
    torch.testing.assert_close(both.log_probs[1, :length], alone.log_probs[0], atol=1e-5, rtol=0)
    both.log_probs.exp()[0, :, 1].sum().backward()
    assert all(block.mix.lr_proj.weight.grad.abs().max() > 0 for block in model.blocks)


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


def ended(recipe: str, seed: int, points: list[tuple[float, float]], **errors: list[int]) -> dict:
    """A run as it is stored, with (seconds, CER) of its validations."""
    curve = [{"step": n, "seconds": s, "cer": c, "wer": 2 * c} for n, (s, c) in enumerate(points)]
    between = [{"step": 9, "seconds": 0.5, "loss": 1.0}]
    seconds = max(s for s, _ in points)
    return {"recipe": recipe, "seed": seed, "seconds": seconds, "curve": between + curve,
            "speakers": errors}  # fmt: skip


def test_recipes_are_compared_after_as_much_time_as_the_shortest_run_took() -> None:
    runs = {
        "ours": [ended("ours", 0, [(50, 0.6), (100, 0.4)])],
        "muon": [ended("muon", n, [(60, 0.5), (120, 0.3 + n / 10), (150, 0.1)]) for n in (0, 1)],
        "off": [ended("off", 0, [(40, 0.7), (75, 0.3)])],
    }
    assert at(runs["muon"], 90)["cer"] == pytest.approx([0.4, 0.45])
    assert at(runs["muon"], 59) == at(runs["muon"], 151) == {"cer": [], "wer": []}
    found = [(row.unit, row.ours, row.theirs) for row in compared(runs)]
    assert found[:2] == [("cer", [0.4], []), ("wer", [0.8], [])]
    assert found[2] == ("cer", pytest.approx([0.5 - 0.2 * 2 / 3, 0.5 - 0.1 * 2 / 3]), [0.4])
    assert found[4] == ("cer", [0.3], pytest.approx([0.5])), "of a short run, when it ended"
    assert [row.what.split(" s,")[0][-3:] for row in compared(runs)[::2]] == ["100", "100", " 75"]


def test_a_recipe_that_is_to_be_better_has_a_goal_and_it_is_a_fifth_below_the_first() -> None:
    points = [(1.0, 0.5)]
    runs = {name: [ended(name, 0, points)] for name in ("ours", "muon", "shipped")}
    assert [row.goal_ratio for row in compared(runs)] == [None] * 4 + [0.8, None]


def test_the_first_of_a_list_is_what_its_others_are_compared_with() -> None:
    runs = {
        name: [ended(name, 0, [(1.0, rate)], A=[int(100 * rate), 100])]
        for name, rate in (("shipped", 0.5), ("inter", 0.4))
    }
    found = [(row.ours, row.theirs, row.goal_ratio) for row in compared(runs)]
    assert found[::2] == [([0.5], [], None), ([0.4], [0.5], None)]
    assert differences(runs)["inter"]["difference"] == pytest.approx(-0.1)


@pytest.mark.parametrize(("arms", "name"), REPORTS)
def test_a_report_of_a_list_says_again_what_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arms: str, name: str
) -> None:
    for module in (learn, harness):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench.learn", "--report", "--arms", arms])
    learn.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.json", f"{name}.svg"]
    committed = REPOSITORY / "bench" / "results" / f"{name}.json"
    said, before = (json.loads(path.read_text()) for path in (tmp_path / committed.name, committed))
    for each in (said, before):
        del each["machine"]
    assert said == before


def test_a_report_of_a_list_whose_first_has_not_run_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.learn", "--report", "--arms", "rates"])
    with pytest.raises(SystemExit, match=r"no run of adamw-0\.001 has ended"):
        learn.main()


def test_lines_of_one_kind_have_one_color() -> None:
    lines = {name: [(0, 9), (1, 8)] for name in ("set 0", "set 1", "still 0")}
    colors = lambda drawn: re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1\.5", drawn)
    apart, seeds = svg("t", "x", lines), svg("t", "x", lines, lambda name: name.split()[0])
    assert [len(set(colors(drawn))) for drawn in (apart, seeds)] == [3, 2]


def test_what_is_said_of_speakers_is_what_the_stored_errors_say() -> None:
    path = REPOSITORY / "bench" / "results" / "distillation_charged.json"
    found = json.loads(path.read_text())
    words = {(arm, int(n)): each for name, each in found["word_errors"].items()
             for arm, n in [name.rsplit("-", 1)]}  # fmt: skip
    assert found["wer_apart"] == students_apart(words)
    assert {each["seeds"] for each in found["wer_apart"].values()} == {3}
    for each in words.values():
        made = each["substitutions"] + each["deletions"] + each["insertions"]
        assert [made, each["words"]] == [
            sum(n) for n in zip(*each["speakers"].values(), strict=True)
        ]


def test_recipes_are_paired_by_speaker_over_the_seeds_that_both_have() -> None:
    runs = {
        "ours": [ended("ours", n, [(1, 1)], A=[8 + n, 10], B=[4, 10]) for n in (0, 1)],
        "muon": [ended("muon", n, [(1, 1)], A=[4, 10], B=[3, 10]) for n in (1, 2)],
        "off": [ended("off", 0, [(1, 1)])],
    }
    (found,) = differences(runs).items()
    assert found == ("muon", {"difference": -0.3, "low": -0.5, "high": -0.1, "seeds": 1})


def test_students_are_paired_by_speaker_over_the_seeds_that_both_have() -> None:
    words = {
        ("distilled", 0): {"speakers": {"A": [4, 10], "B": [3, 10]}},
        ("distilled", 1): {"speakers": {"A": [0, 10], "B": [0, 10]}},
        ("alone", 0): {"speakers": {"B": [5, 10], "A": [9, 10]}},
        ("alone_longer", 1): {"speakers": {"A": [1, 10], "B": [1, 10]}},
    }
    assert students_apart(words) == {
        "distilled less alone": {"difference": -0.35, "low": -0.5, "high": -0.2, "seeds": 1},
        "distilled less alone_longer": {"difference": -0.1, "low": -0.1, "high": -0.1, "seeds": 1},
    }


def test_the_time_of_a_step_leaves_out_what_was_measured_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moments = iter([10.0, 11.0, 11.0, 50.0, 52.0, 52.0])
    monkeypatch.setattr("bench.learn.clock", lambda: next(moments))
    timed = Timed(RECIPES["ours"].fresh(Vocabulary.characters(), 0, tiny=True))
    timed.begin(5.0)
    timed.end_step(1, None, None)
    timed.pause()
    timed.end_step(2, None, None)
    assert timed.seconds == 5.0 + 1.0 + 2.0


def test_a_difference_of_error_rates_comes_with_how_sure_it_is() -> None:
    said = ["ONE TWO THREE FOUR"] * 50
    good, bad = word_errors(said, said), word_errors(said, ["ONE TWO THREE", "ONE TWO FOUR"] * 25)
    assert bad.sum(0).tolist() == [50, 200]
    sure = difference(bad, good)
    assert sure == {"difference": 0.25, "low": 0.25, "high": 0.25}
    sums = by_speaker(bad, ["B", "A"] * 25)
    assert {name: row.tolist() for name, row in sums.items()} == {"A": [25, 100], "B": [25, 100]}
    mixed = word_errors(said, ["ONE TWO THREE FOUR", "ONE"] * 25)
    unsure = difference(mixed, bad)
    assert unsure["low"] < unsure["difference"] < unsure["high"]


def test_pieces_of_long_speech_keep_every_utterance_whole_and_in_order() -> None:
    spoken = [Utterance(str(n), Path(), seconds, "", "") for n, seconds in enumerate((4, 5, 9, 3))]
    cut = lambda seconds: [[each.id for each in piece] for piece in pieces(spoken, seconds)]
    assert cut(0.0) == [["0"], ["1"], ["2"], ["3"]]
    assert cut(10.0) == [["0", "1"], ["2"], ["3"]]
    assert cut(float("inf")) == [["0", "1", "2", "3"]]


def test_steps_are_scaled_down_from_fifteen_seconds_on_or_left_out() -> None:
    model = RECIPES["ours"].fresh(Vocabulary.characters(), 0, tiny=True).eval()
    changes = {}
    for way in WAYS:
        scale(model, way)
        waves = torch.randn(1, 60 * 16_000, generator=torch.Generator().manual_seed(0))
        long, short = (model(waves[:, :n], torch.tensor([n])) for n in (960_000, 160_000))
        changes[way] = float(long.fast.change.detach()), float(short.fast.change.detach())
    assert max(changes["none"]) < 1e-4, "the rounding of row norms"
    assert changes["capped"][1] == changes["sum"][1] > 0
    assert changes["capped"][0] == pytest.approx(changes["sum"][0] / 4, rel=0.05)


def test_a_curve_is_a_picture_with_every_line_named() -> None:
    drawn = svg("rates", "steps", {"a & b": [(0, 100), (10, 50)], "c": []})
    picture = ElementTree.fromstring(drawn)
    words = ["".join(each.itertext()) for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert {"rates", "steps", "a & b: 50.0", "c"} <= set(words)
    assert drawn == svg("rates", "steps", {"a & b": [(0, 100), (10, 50)], "c": []})


@pytest.mark.parametrize(("arms", "name"), REPORTS)
def test_the_learning_curves_are_committed_with_what_they_were_measured_with(
    arms: str, name: str
) -> None:
    results = REPOSITORY / "bench" / "results"
    runs, described = stored(ARMS[arms]), json.loads((results / f"{name}.json").read_text())
    assert set(described["models"]) == set(runs) >= set(ARMS[arms][:3])
    for run in (run for each in runs.values() for run in each):
        assert run["commit"] and run["training"] and run["model"] and run["seconds"] > 0
        assert max(point["step"] for point in run["curve"]) == run["steps"]
        assert max(point["seconds"] for point in run["curve"]) == pytest.approx(
            run["seconds"], 1e-3
        )
    assert (results / f"{name}.svg").exists()
