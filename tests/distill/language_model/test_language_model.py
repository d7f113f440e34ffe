"""Language models: exact losses, perplexity of held-out text, a student that learns from one."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.config.language_model import LM_SIZES, LMDistillConfig, LMTrainingConfig
from distill.language_model.batch import PAD, TextBatch, text_batch
from distill.language_model.model import (
    LM_FAMILIES,
    LanguageModel,
    LMObjective,
    likelihood,
    perplexity,
)
from distill.language_model.texts import Texts
from distill.language_model.trainer import fit_texts
from distill.losses import functions as losses
from jobs.job import Job
from jobs.kinds import language_model
from lact_asr.data.manifest import Utterance, write_manifest
from lact_asr.distributed import processes
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.training.trainer import FitResult, Launcher
from lact_asr.utils.errors import Interrupted
from lact_asr.utils.files import read_json
from lact_asr.utils.locks import no_fence
from tests.distill.tiny_models import per_label, shares_of
from tests.lact_asr.tiny_runs import RecordedEvents, ended
from tests.ranks import in_ranks

VOCABULARY = Vocabulary.characters()
CPU = torch.device("cpu")
WORDS = ["THE", "CAT", "SAT", "ON", "A", "MAT", "AND", "SO", "DID", "HER", "DOG"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Two words of which the second follows from the first, over and over."""
    random = torch.Generator().manual_seed(seed)
    firsts = torch.randint(0, len(WORDS), (count, 3), generator=random).tolist()
    return [" ".join(f"{WORDS[i]} {WORDS[(i + 3) % len(WORDS)]}" for i in row) for row in firsts]


def model(seed: int = 0, **changes: Any) -> LanguageModel:
    torch.manual_seed(seed)
    config = LM_SIZES["tiny"].model_copy(update={"hidden": 32, "mlp": 64, **changes})
    return LanguageModel(config, len(VOCABULARY))


def batch(texts: list[str]) -> TextBatch:
    return text_batch([VOCABULARY.encode(text) for text in texts], texts)


def test_a_place_knows_what_came_before_it_and_nothing_else():
    one, other = batch(["CAT SAT", "ON"]), batch(["CAT DID"])
    states = model().eval()(one.inputs)
    again = model().eval()(other.inputs)
    torch.testing.assert_close(states[:1, :5], again[:, :5])  # <boundary> C A T space
    assert (states[0, 5] - again[0, 5]).abs().max() > 1e-3
    alone = model().eval()(batch(["ON"]).inputs)
    torch.testing.assert_close(states[1:, :3], alone)
    assert one.targets[1].tolist() == [*VOCABULARY.encode("ON"), 0, *[PAD] * 5]


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_the_loss_is_the_formula_however_it_is_cut_into_chunks(chunk):
    spoken, student, teacher = batch(["CAT SAT", "ON A MAT"]), model(), model(seed=1)
    config = LMDistillConfig(top_k=5)
    loss = LMObjective(student, chunk, teacher, config)(spoken, 0.1)
    there = spoken.targets != PAD
    q, p = (m.read_out(m(spoken.inputs)[there]) for m in (student, teacher))
    lm = -q.gather(-1, spoken.targets[there][:, None]).sum()
    kd = losses.top_k_kd(q, losses.top_k(p, 5, 2.0), 2.0).sum()
    torch.testing.assert_close(loss.total, 0.3 * lm + 0.4 * kd)
    assert int(loss.weight) == 8 + 9  # every symbol and the end
    assert loss.parts["kd_weighted"].value == pytest.approx(0.4 * float(kd.detach()), rel=1e-3)
    loss.total.backward()
    found = student.head.weight.grad.clone()
    student.zero_grad()
    (0.3 * lm + 0.4 * kd).backward()
    torch.testing.assert_close(found, student.head.weight.grad, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_uniform_student_costs_what_is_expected_of_it():
    student = model()
    torch.nn.init.zeros_(student.head.weight)
    loss = LMObjective(student, 7, model(seed=1), LMDistillConfig(top_k=5))(batch(["CAT SAT"]), 0.1)
    assert shares_of(per_label(loss)) == pytest.approx({"lm": 1, "kd": 1}, rel=1e-5)


def test_without_a_teacher_the_texts_count_in_full():
    loss = LMObjective(model(), 64)(batch(["CAT"]), 0.0)
    assert loss.parts.keys() == {"lm", "lm_weighted"}
    assert float(loss.total.detach()) == pytest.approx(float(loss.parts["lm"].value))


def test_perplexity_is_that_of_a_symbol_and_a_uniform_model_has_the_vocabulary_s_size():
    uniform = model()
    torch.nn.init.zeros_(uniform.head.weight)
    nll, symbols = likelihood(uniform, [batch(["CAT", "ON"]), batch(["A"])], CPU)
    assert symbols == 4 + 3 + 2
    assert perplexity(nll, symbols) == pytest.approx(len(VOCABULARY), rel=1e-5)
    assert perplexity(9.5e3, 1.0) == math.inf


def test_texts_that_cannot_be_written_are_counted_and_batches_keep_their_size():
    texts = Texts([*sentences(50), "ÉTÉ", ""], VOCABULARY, 200)
    assert texts.foreign == ["ÉTÉ", ""]
    assert sorted(i for rows in texts.plan for i in rows) == list(range(50))
    assert max(texts.batch(rows).inputs.numel() for rows in texts.plan) <= 200
    size = len(texts.plan)
    epoch = [texts.drawn(n, 3).ids for n in range(size)]
    assert sorted(name for ids in epoch for name in ids) == sorted(texts.names)
    assert [texts.drawn(n, 3).ids for n in range(size, 2 * size)] != epoch


def texts_run(
    folder: Path,
    student: LanguageModel | LMObjective,
    recorded: RecordedEvents,
    train: list[str] | None = None,
    stop_at: int = 999,
    fence: Callable[[], None] = no_fence,
    **changes: Any,
) -> FitResult | Interrupted:
    """fit_texts with the small parts; asked to stop once `stop_at` steps are done."""
    asked, record = iter(range(1, 9999)), lambda row: recorded.metrics.append(dict(row))
    launcher = Launcher(record, recorded.event, lambda: next(asked) >= stop_at, fence)
    optim = {"learning_rate": 5e-3, "warmup_steps": 5} | changes.pop("optim", {})
    short = {"max_steps": 12, "batch_tokens": 600, "valid_every": 6, "checkpoint_every": 6}
    return ended(
        fit_texts,
        student if isinstance(student, LMObjective) else LMObjective(student, 256),
        train or sentences(120),
        sentences(40, seed=1),
        VOCABULARY,
        LMTrainingConfig.model_validate({**short, "log_every": 1, "optim": optim, **changes}),
        folder,
        launcher,
        CPU,
    )


def train(folder: Path, steps: int = 12, stop_at: int = 999, rate: float = 5e-3, **changes: Any):
    """A run of a model with these changes: what came of it, its metrics, the model."""
    recorded, student = RecordedEvents(), model(**changes)
    result = texts_run(
        folder, student, recorded, stop_at=stop_at, max_steps=steps, optim={"learning_rate": rate}
    )
    return result, recorded.metrics, student


def test_it_learns_and_the_best_checkpoint_has_the_perplexity_that_is_reported(tmp_path, capsys):
    result, rows, _ = train(tmp_path, steps=60)
    seen = [row["perplexity"] for row in rows if "perplexity" in row]
    assert result.best["perplexity"] == min(seen) < 4 < seen[0]
    best, vocabulary, _ = checkpoint.load_model(result.checkpoint, LM_FAMILIES)
    texts = Texts(sentences(40, seed=1), vocabulary, 600)
    again = likelihood(best, texts.share(processes.World()), CPU)
    assert perplexity(*again) == pytest.approx(result.best["perplexity"], rel=1e-5)
    assert result.loss == pytest.approx(math.log(result.best["perplexity"]))
    assert "[LM] Raw: " in capsys.readouterr().out


def test_a_model_that_gets_worse_is_not_the_one_that_is_kept(tmp_path):
    _, rows, _ = train(tmp_path, steps=24, stop_at=14, rate=1.0)
    seen = [row["perplexity"] for row in rows if "perplexity" in row]
    best = read_json(checkpoint.find(tmp_path) / "state.json")
    assert best["perplexity"] == min(seen) < seen[-1]


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    changes = {"dropout": 0.2}
    _, through, whole = train(tmp_path / "one", **changes)
    stopped, before, _ = train(tmp_path / "two", stop_at=5, **changes)
    assert isinstance(stopped, Interrupted) and stopped.position == 5
    result, after, resumed = train(tmp_path / "two", **changes)
    assert result.step == 12
    untimed = lambda rows: [{k: v for k, v in r.items() if "second" not in k} for r in rows]
    told = lambda rows: [row for row in untimed(rows) if len(row) > 1]
    assert told(before + after) == told(through)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_goes_on_with_the_learning_rate_that_is_asked_for_now(tmp_path):
    train(tmp_path, stop_at=3)
    before = checkpoint.load(checkpoint.latest(tmp_path / "checkpoints") / checkpoint.WEIGHTS)
    _, _, student = train(tmp_path, stop_at=4, rate=1e-9)
    for name, value in student.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-7), name


def rank(folder: Path) -> None:
    """Training as one of two ranks."""
    world = processes.start()
    result, _, student = train(folder / "run", steps=6)
    weights = torch.cat([p.detach().flatten() for p in student.parameters()])
    torch.save((result.step, result.loss, weights), folder / f"{world.rank}.pt")


def test_two_ranks_train_one_model(tmp_path):
    assert in_ranks(rank, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    one, other = (torch.load(tmp_path / f"{number}.pt") for number in range(2))
    assert one[:2] == other[:2] and one[0] == 6
    assert torch.equal(one[2], other[2])


def step(
    tmp_path: Path, name: str, **settings: Any
) -> tuple[language_model.Result, list[dict[str, Any]]]:
    """The kind as a job runs it, and what it reports."""
    rows: list[dict[str, Any]] = []
    for part, count, seed in (("train", 120, 0), ("dev", 40, 1)):
        said = [
            Utterance(str(n), Path("none.wav"), 1.0, text, "")
            for n, text in enumerate(sentences(count, seed))
        ]
        write_manifest(tmp_path / f"{part}.jsonl", said)
    (tmp_path / name).mkdir()
    job = Job(
        directory=tmp_path / name,
        rank=0,
        world_size=1,
        local_rank=0,
        report=lambda row: rows.append(dict(row)),
        event=lambda name, **facts: None,
        should_stop=lambda: False,
    )
    training = {
        "max_steps": 60, "batch_tokens": 600, "valid_every": 20, "log_every": 10,
        "optim": {"learning_rate": 5e-3, "warmup_steps": 5},
    }  # fmt: skip
    result = language_model.run(
        language_model.Settings(
            train=tmp_path / "train.jsonl",
            dev=tmp_path / "dev.jsonl",
            size="tiny",
            training=training,
            **settings,
        ),
        job,
    )
    return result, rows


def test_a_step_trains_a_teacher_and_another_its_student(tmp_path):
    teacher, alone = step(tmp_path, "teacher")
    assert teacher.teacher_perplexity is None
    changes = {"hidden": 32, "blocks": 1}
    student, taught = step(tmp_path, "student", teacher=teacher.checkpoint, model=changes)
    assert not any("kd" in row for row in alone)
    weighed = [row["kd_weighted"] / row["kd"] for row in taught if "kd" in row]
    assert weighed[0] == pytest.approx(0.1) and weighed[-1] == pytest.approx(0.7)
    assert student.teacher_perplexity == pytest.approx(teacher.perplexity, rel=1e-4)
    assert student.parameters < teacher.parameters
    assert teacher.perplexity < 2.5 and student.perplexity < 4


def test_settings_that_make_no_model_are_refused_in_words():
    with pytest.raises(ValueError, match="even multiple of heads"):
        language_model.Settings(train="t", dev="d", size="tiny", model={"heads": 3})
    with pytest.raises(ValueError, match="depth"):
        language_model.Settings(train="t", dev="d", model={"depth": 3})
