"""One utterance without a finite loss: it is found, named and left out, and the rest trains on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import Utterance, read_manifest
from lact_asr.distributed import fsdp, processes
from lact_asr.training import checkpoint
from lact_asr.training.guard import note_quarantined
from lact_asr.training.loss import Loss
from lact_asr.training.objective import CTCObjective
from lact_asr.training.quarantine import NOT_FINITE, SPOILED, halve, without
from lact_asr.training.resume import State
from lact_asr.utils.errors import Failed
from tests.lact_asr.tiny_runs import (
    VOCABULARY,
    RecordedEvents,
    manifest,
    quiet_logger,
    run,
    tiny,
    tones,
)
from tests.lact_asr.training.test_resume import assert_same_bits
from tests.lact_asr.training.test_trainer import Poisoned
from tests.ranks import in_ranks

SHORT = {"max_steps": 8, "batch_seconds": 8.0, "valid_every": 8}


class Overflowing(CTCObjective):
    """CTC in which one utterance is far too loud: its features are NaN, its samples are not."""

    def __init__(self, model, loud: str) -> None:
        super().__init__(model)
        self.loud = loud
        self.progress = []  # of every call

    def __call__(self, batch: Batch, progress: float) -> Loss:
        self.progress.append(progress)
        gain = torch.tensor([1e30 if name == self.loud else 1.0 for name in batch.ids])
        return super().__call__(replace(batch, waves=batch.waves * gain[:, None]), progress)


def unread(folder: Path, utterances: list[Utterance], name: str) -> list[Utterance]:
    """The same, one of them without its file."""
    return [
        replace(each, audio=folder / "gone.wav") if each.id == name else each for each in utterances
    ]


def test_an_utterance_without_a_finite_loss_is_left_out_and_its_neighbours_train_as_without_it(
    tmp_path,
):
    train = tones(tmp_path, 10)
    loud = train[4].id
    fresh = lambda: tiny(dropout=0.2)
    objective = Overflowing(fresh(), loud)
    result, recorded = run(tmp_path / "loud", train, objective, **SHORT)
    run(tmp_path / "absent", unread(tmp_path, train, loud), CTCObjective(fresh()), **SHORT)
    assert_same_bits(tmp_path / "loud", tmp_path / "absent", "00000008")
    assert [facts["id"] for facts in recorded.named("quarantined")] == [loud]
    assert recorded.named("quarantined")[0]["reason"] == NOT_FINITE
    assert result.steps_skipped == 0
    step = recorded.named("quarantined")[0]["step"]
    assert [facts["step"] for facts in recorded.named("step_retried")] == [step]
    assert sorted(set(objective.progress)) == [n / 8 for n in range(8)], (
        "also while it is looked for"
    )


def test_an_utterance_in_quarantine_stays_there_after_resumption(tmp_path):
    train = tones(tmp_path, 10)
    loud, short = train[4].id, {**SHORT, "checkpoint_every": 1}
    _, before = run(tmp_path, train, Overflowing(tiny(), loud), stop_at=5, **short)
    assert [facts["id"] for facts in before.named("quarantined")] == [loud]
    result, after = run(tmp_path, train, Overflowing(tiny(), loud), **(short | {"max_steps": 20}))
    assert after.named("quarantined") == after.named("step_retried") == []
    assert result.steps_skipped == 0
    state = checkpoint.load(tmp_path / "checkpoints/00000020/trainer.pt")["state"]
    assert state["quarantined"] == {loud: NOT_FINITE}


def test_more_utterances_in_quarantine_than_allowed_are_bad_data(tmp_path):
    train = tones(tmp_path, 10)
    loud = train[4].id
    with pytest.raises(
        Failed, match=f"(?s)1 utterances have no .* is 0.*{loud}: its loss"
    ) as caught:
        run(tmp_path, train, Overflowing(tiny(), loud), max_unreadable=0, **SHORT)
    assert caught.value.cause == "bad_data"


def test_utterances_found_later_join_the_earlier_ones_and_as_many_as_allowed_are_no_failure():
    logger, state = quiet_logger(), State()
    for found in range(5):
        note_quarantined(state, 6, logger, {f"u{found}": "loud"})
    note_quarantined(state, 6, logger, {"u5": "silent"})
    assert state.quarantined == {**{f"u{n}": "loud" for n in range(5)}, "u5": "silent"}
    with pytest.raises(Failed) as caught:
        note_quarantined(state, 6, logger, {"u6": "loud"})
    first, *named = str(caught.value).splitlines()
    assert first.startswith("7 utterances have no finite loss, max_unreadable is 6. Mend them or")
    assert named == [f"u{n}: loud" for n in range(5)]


def test_a_nan_that_passes_costs_nothing_but_the_second_try(tmp_path):
    class Hit(CTCObjective):
        """The third loss is NaN, and that step's next one is not."""

        calls = 0

        def __call__(self, batch: Batch, progress: float) -> Loss:
            loss = super().__call__(batch, progress)
            self.calls += 1
            return replace(loss, total=loss.total * (float("nan") if self.calls == 3 else 1.0))

    train, fresh = tones(tmp_path, 6), lambda: tiny(dropout=0.2)
    _, recorded = run(tmp_path / "hit", train, Hit(fresh()), **SHORT)
    run(tmp_path / "whole", train, CTCObjective(fresh()), **SHORT)
    assert_same_bits(tmp_path / "hit", tmp_path / "whole", "00000008")
    assert [facts["step"] for facts in recorded.named("step_retried")] == [3]
    assert recorded.named("quarantined") == recorded.named("step_dropped") == []


def test_where_no_loss_is_finite_it_is_not_the_data(tmp_path):
    result, recorded = run(tmp_path, tones(tmp_path, 6), Poisoned(tiny(), at={3}), **SHORT)
    assert recorded.named("quarantined") == []
    assert [facts["step"] for facts in recorded.named("step_dropped")] == [3]
    assert result.steps_skipped == 1


def test_weights_that_are_not_finite_send_nobody_into_quarantine(tmp_path):
    class Broken(CTCObjective):
        """From the second step on a weight is NaN that one utterance alone needs."""

        def __call__(self, batch: Batch, progress: float) -> Loss:
            if progress:
                self.model.extra.data.fill_(torch.nan)
            loss = super().__call__(batch, progress)
            needed = self.model.extra.sum() if lone in batch.ids else 0.0
            return replace(loss, total=loss.total + needed)

    train, model, recorded = tones(tmp_path, 10), tiny(), RecordedEvents()
    lone, model.extra = train[4].id, torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(Failed, match="weights are not finite"):
        run(tmp_path, train, Broken(model), recorded=recorded, **SHORT)
    assert recorded.named("quarantined") == []
    assert recorded.named("step_dropped")


def test_a_gradient_that_is_not_finite_betrays_an_utterance_whose_loss_is(tmp_path):
    class Steep(CTCObjective):
        """One utterance adds the root of 0 to the loss: 0, whose slope is infinite."""

        def __call__(self, batch: Batch, progress: float) -> Loss:
            loss = super().__call__(batch, progress)
            nothing = self.model.head.bias.sum() * 0
            return replace(loss, total=loss.total + nothing.sqrt()) if steep in batch.ids else loss

    train = tones(tmp_path, 10)
    steep = train[4].id
    _, recorded = run(tmp_path, train, Steep(tiny()), **SHORT)
    assert [facts["id"] for facts in recorded.named("quarantined")] == [steep]
    assert recorded.named("step_dropped") == []


def test_halves_are_halved_until_what_is_not_sound_is_alone():
    asked = []

    def sound(rows):
        asked.append(list(rows))
        return not {2, 5} & set(rows)

    assert halve(range(8), sound) == [2, 5]
    assert halve([0], sound) == [] and halve([5], sound) == [5] and halve([], sound) == []
    asked.clear()
    assert halve(range(6, 14), sound) == [] and asked == [[*range(6, 14)]]


def test_a_batch_without_some_of_its_rows_is_the_batch_of_the_others(tmp_path):
    reader = Reader(whole_corpus(tones(tmp_path, 6), VOCABULARY))
    whole, expected = reader[[0, 1, 2, 3, 4, 5]], reader[[1, 4]]
    found = whole.rows([1, 4])
    assert (found.ids, found.texts) == (expected.ids, expected.texts)
    for name in ("waves", "wave_lengths", "targets", "target_lengths"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert without(whole, set()) is whole and without(whole, set(whole.ids)) is whole
    whole.waves[3, 5] = torch.nan
    assert whole.not_finite() == [3] and expected.not_finite() == []


def spoiled_rank(folder: Path, sharded: bool = False) -> None:
    """Rank 1 hears an utterance that overflows, and has no more to say of it than rank 0."""
    world = processes.start()
    train = read_manifest(folder / "tones.jsonl")
    objective = Overflowing(tiny(), "0-3")
    given = {**SHORT, "sharded": sharded}
    _, recorded = run(folder, train, objective, **given)
    weights = torch.cat([fsdp.full(p.detach()).flatten() for p in objective.model.parameters()])
    named = [facts["id"] for facts in recorded.named("quarantined")]
    torch.save((weights, named, len(recorded.named("step_dropped"))), folder / f"{world.rank}.pt")


def spoiled_share(folder: Path) -> None:
    """The same, the model split over the ranks."""
    spoiled_rank(folder, sharded=True)


@pytest.mark.parametrize("rank", [spoiled_rank, spoiled_share], ids=["copies", "split"])
def test_ranks_leave_an_utterance_out_together(rank, tmp_path):
    manifest(tmp_path)
    assert in_ranks(rank, tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    (one, named, dropped), (other, _, _) = (torch.load(tmp_path / f"{n}.pt") for n in range(2))
    assert named == ["0-3"] and dropped == 0
    assert torch.equal(one, other) and torch.isfinite(one).all()


def test_samples_that_are_nan_behind_the_reader_are_said_to_be(tmp_path):
    class Spoiled(CTCObjective):
        """One utterance turns to NaN in the memory of the batch."""

        def begin_step(self, batches, all_sum) -> None:
            for batch in batches:
                for row, name in enumerate(batch.ids):
                    if name == "0-4":
                        batch.waves[row] = torch.nan

    _, recorded = run(tmp_path, tones(tmp_path, 10), Spoiled(tiny()), **SHORT)
    assert [(f["id"], f["reason"]) for f in recorded.named("quarantined")] == [("0-4", SPOILED)]
    assert recorded.named("step_dropped") == []
