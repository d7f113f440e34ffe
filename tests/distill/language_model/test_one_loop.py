"""What language models have from the one loop: what speech has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.language_model.model import LanguageModel, LMObjective
from distill.language_model.texts import TextFeed, Texts
from distill.language_model.trainer import held_out
from lact_asr.data.batch_plan import Position
from lact_asr.distributed import processes
from lact_asr.distributed.processes import World
from lact_asr.training import checkpoint
from lact_asr.training.loss import Loss
from lact_asr.utils.errors import Failed, Misfit
from lact_asr.utils.files import read_json
from tests.distill.language_model.test_language_model import (
    CPU,
    VOCABULARY,
    model,
    sentences,
    texts_run,
)
from tests.lact_asr.tiny_runs import RecordedEvents, replace_file
from tests.ranks import in_ranks


def numbered(folder: Path) -> list[int]:
    return [int(path.name) for path in checkpoint.by_step(folder / "checkpoints")]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoints" / name / checkpoint.WEIGHTS)


def test_micro_batches_of_a_step_are_the_next_texts_and_count_by_their_symbols(tmp_path):
    student, recorded = model(), RecordedEvents()
    objective, texts = LMObjective(model(), 256), Texts(sentences(120), VOCABULARY, 300)
    texts_run(tmp_path, student, recorded, batch_tokens=300, accumulate=2, max_steps=3)
    one, other = (objective(texts.drawn(number, 0), 0.0) for number in range(2))
    expected = (one.total + other.total) / (one.weight + other.weight)
    assert recorded.losses()[1] == pytest.approx(expected.item(), rel=1e-6)
    trainer = checkpoint.load(tmp_path / "checkpoints/00000003/trainer.pt")
    feed = TextFeed(texts, 0, World(), Position.from_dict(trainer["position"]))
    assert feed.number == 6


def test_the_place_in_the_texts_means_the_same_to_any_number_of_ranks():
    texts = Texts(sentences(60), VOCABULARY, 200)
    alone = TextFeed(texts, 1, World(), Position())
    expected = [alone.take().ids for _ in range(3 * len(texts.plan))]
    ranks = [TextFeed(texts, 1, World(rank, 2), Position(0)) for rank in range(2)]
    found = [feed.take().ids for _ in range(len(texts.plan)) for feed in ranks]
    later = TextFeed(texts, 1, World(), Position.from_dict(ranks[1].position.to_dict()))
    assert found + [later.take().ids for _ in range(len(texts.plan))] == expected


def test_checkpoints_and_validations_have_steps_of_their_own(tmp_path):
    recorded = RecordedEvents()
    texts_run(tmp_path, model(), recorded, valid_every=4, checkpoint_every=5, keep_checkpoints=9)
    assert [row["step"] for row in recorded.metrics if "perplexity" in row] == [4, 8, 12]
    assert numbered(tmp_path) == [5, 10, 12]


def test_training_that_gains_nothing_ends_early(tmp_path):
    stopping = {"patience": 2, "warmup_steps": 0, "not_before": 0.0}
    result = texts_run(
        tmp_path,
        model(),
        RecordedEvents(),
        max_steps=90,
        stopping=stopping,
        optim={"learning_rate": 1e-12},
    )
    assert result.step == 18


def test_means_of_the_weights_are_measured_and_kept(tmp_path):
    recorded, student = RecordedEvents(), model()
    average = {"decay": 0.9, "last": 2}
    result = texts_run(tmp_path, student, recorded, average=average)
    rows = [row for row in recorded.metrics if "perplexity" in row]
    assert [row["step"] for row in rows] == [6, 12, 12]
    assert result.best["perplexity"] == min(row["perplexity"] for row in rows)
    kept = model(seed=3)
    kept.load_state_dict(weights(tmp_path, "best"))
    texts = Texts(sentences(40, seed=1), VOCABULARY, 600)
    assert held_out(kept, texts, World(), CPU).loss == pytest.approx(result.loss, rel=1e-5)
    assert held_out(student, texts, World(), CPU).loss != pytest.approx(result.loss, rel=1e-3)


def test_other_texts_begin_a_new_epoch_and_the_record_says_what_has_changed(tmp_path):
    texts_run(tmp_path, model(), RecordedEvents(), stop_at=3)
    recorded = RecordedEvents()
    texts_run(tmp_path, model(), recorded, sentences(100), optim={"learning_rate": 1e-3})
    (resumed,) = recorded.named("resumed")
    assert resumed["step"] == 3 and resumed["epoch"] == 1
    assert resumed["changed"] == ["optim.learning_rate: 0.005 before, 0.001 now"]


class Odd(LMObjective):
    """A model whose loss is multiplied at some steps, the first is 1, whatever it reads."""

    def __init__(self, model: LanguageModel, factor: float, at: range) -> None:
        super().__init__(model, 256)
        self.factor, self.at, self.steps = factor, at, 0

    def begin_step(self, batches, all_sum) -> None:
        self.steps += 1

    def __call__(self, batch, progress) -> Loss:
        loss = super().__call__(batch, progress)
        return replace(loss, total=loss.total * (self.factor if self.steps in self.at else 1))


def test_a_spike_is_dropped_and_its_texts_are_named(tmp_path):
    recorded, objective = RecordedEvents(), Odd(model(), 1e4, range(9, 10))
    result = texts_run(tmp_path, objective, recorded, guard={"skip_ratio": 10.0})
    assert result.steps_skipped == 1
    (dropped,) = recorded.named("step_dropped")
    assert dropped["step"] == 9 and set(dropped["ids"]) <= {each[:40] for each in sentences(120)}


def test_a_run_that_diverges_goes_on_from_a_sound_checkpoint(tmp_path):
    recorded, objective = RecordedEvents(), Odd(model(), float("nan"), range(13, 99))
    with pytest.raises(Failed, match=r"20 steps in a row.*goes on from step 6"):
        texts_run(tmp_path, objective, recorded, max_steps=60, keep_checkpoints=9)
    assert [each["checkpoint"] for each in recorded.named("put_aside")] == ["00000012"]
    assert numbered(tmp_path) == [6]


class Narrow(LMObjective):
    """Runs out of memory at more than so many texts."""

    most = 12

    def __call__(self, batch, progress) -> Loss:
        if len(batch.ids) > self.most:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return super().__call__(batch, progress)


def test_memory_that_will_not_do_shows_first_and_says_what_to_halve(tmp_path):
    for probe, said in ((True, "before the first step"), (False, "ran out at step")):
        with pytest.raises(Failed, match=rf"{said}.*halve batch_tokens and") as caught:
            texts_run(tmp_path, Narrow(model(), 256), RecordedEvents(), probe=probe)
        assert caught.value.cause == "out_of_memory_gpu"
    recorded = RecordedEvents()
    texts_run(tmp_path, model(), recorded, probe=True, max_steps=1)
    longest = max(len(each) + 1 for each in sentences(120))
    ((count, length), *_) = recorded.named("probed")[0]["batches"]
    assert length == longest and count * length <= 600


def test_an_older_process_writes_nothing(tmp_path):
    def fence() -> None:
        raise InterruptedError("a newer one has begun")

    with pytest.raises(InterruptedError):
        texts_run(tmp_path, model(), RecordedEvents(), fence=fence)
    assert numbered(tmp_path) == []
    assert not (tmp_path / "checkpoints/best").exists()


def test_a_checkpoint_of_the_loop_that_was_is_refused_with_what_to_write(tmp_path):
    texts_run(tmp_path, model(), RecordedEvents(), stop_at=3)
    path = tmp_path / "checkpoints/00000003"
    trainer = checkpoint.load(path / "trainer.pt")
    state = {"step": 3, "validated": 0, "best": 9.5, "in_a_row": 0}
    replace_file(path / "trainer.pt", {"optimizer": trainer["optimizer"], "state": state})
    with pytest.raises(Misfit, match=f"init_from: {path}"):
        texts_run(tmp_path, model(), RecordedEvents())


def sharded_rank(folder: Path) -> None:
    """One of two ranks, which both train twice: with a copy of the model, and with half of it.

    Of three batches of dev texts one rank measures two, and the other waits in between.
    """
    world = processes.start()
    assert len(Texts(sentences(40, seed=1), VOCABULARY, 400).plan) == 3
    short = {"max_steps": 4, "valid_every": 2, "batch_tokens": 400}
    for sharded in (False, True):
        recorded = RecordedEvents()
        where = folder / str(sharded)
        result = texts_run(where, model(), recorded, sharded=sharded, **short)
        torch.save((recorded.losses(), result.loss), folder / f"{sharded}{world.rank}.pt")


def test_a_model_split_over_two_ranks_learns_the_same(tmp_path):
    assert in_ranks(sharded_rank, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    (whole, loss), (split, other) = (torch.load(tmp_path / f"{each}0.pt") for each in (False, True))
    assert split.keys() == whole.keys() == {1, 2, 3, 4}
    assert list(split.values()) == pytest.approx(list(whole.values()), rel=1e-4)
    assert other == pytest.approx(loss, rel=1e-4)
    assert torch.load(tmp_path / "True1.pt")[1] == other
    one, two = (weights(tmp_path / str(each), "best") for each in (False, True))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    assert read_json(tmp_path / "True/checkpoints/best/state.json")["loss"] == other
