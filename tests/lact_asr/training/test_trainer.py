"""The loop: what ranks decide together, bad data, what it leaves behind, and that it learns."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lact_asr.config.budget import Budget
from lact_asr.config.model import ModelConfig
from lact_asr.config.training import AverageConfig
from lact_asr.data.batch_plan import epoch_plan
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed import processes
from lact_asr.model.recognizer import Recognizer
from lact_asr.training import checkpoint, checksums
from lact_asr.training.clock import PHASES, metric
from lact_asr.training.guard import BREAKER
from lact_asr.training.loss import Loss
from lact_asr.training.objective import CTCObjective
from lact_asr.training.trainer import FitResult
from lact_asr.utils.errors import DataError, Failed
from lact_asr.utils.files import read_json
from tests.lact_asr.tiny_runs import VOCABULARY, RecordedEvents, manifest, run, tiny, tones
from tests.ranks import in_ranks


class Poisoned(CTCObjective):
    """CTC whose loss is NaN, whatever it hears, at given steps of this process."""

    def __init__(self, model, at) -> None:
        super().__init__(model)
        self.steps, self.at = 0, at

    def begin_step(self, batches, all_sum) -> None:
        self.steps += 1

    def __call__(self, batch, progress) -> Loss:
        loss = super().__call__(batch, progress)
        return replace(loss, total=loss.total * math.nan) if self.steps in self.at else loss


def poisoned_rank(folder: Path) -> None:
    """Rank 1 has a NaN in step 2, an unreadable file, and is asked to stop after step 4."""
    world = processes.start()
    utterances = read_manifest(folder / "tones.jsonl")
    objective = Poisoned(tiny(seed=world.rank), at={2} if world.rank == 1 else set())
    result, recorded = run(
        folder,
        utterances,
        objective,
        stop_at=[99, 4][world.rank],
        batch_seconds=2.0,
        max_steps=9,
        valid_every=9,
    )
    parameters = torch.cat([p.detach().flatten() for p in objective.model.parameters()])
    said = (type(result).__name__, result.position, recorded.events)
    torch.save((said, parameters), folder / f"{world.rank}.pt")


def test_two_ranks_drop_a_step_meet_a_bad_file_and_stop_together(tmp_path):
    utterances = manifest(tmp_path)
    durations = np.array([each.duration for each in utterances])
    bad = utterances[
        epoch_plan(durations, Budget(2.0), 0, 0, 2)[1][0][0]
    ]  # in rank 1's first batch
    bad.audio.write_bytes(b"no audio")
    codes = in_ranks(poisoned_rank, tmp_path, 2)
    assert codes == [0, 0], (tmp_path / "rank0.log").read_text()
    (one, weights_one), (two, weights_two) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert one[:2] == two[:2] == ("Interrupted", 4)
    assert torch.equal(weights_one, weights_two)
    assert torch.isfinite(weights_one).all()
    dropped = [facts for name, facts in one[2] if name == "step_dropped"]
    assert [facts["step"] for facts in dropped] == [2]
    assert dropped[0]["ids"]
    assert two[2] == []  # rank 0 keeps the record
    assert "Loss:" not in (tmp_path / "rank1.log").read_text()
    unreadable = [facts["files"].keys() for name, facts in one[2] if name == "unreadable"]
    assert unreadable == [{bad.id}]


def test_a_loss_that_stays_nan_ends_the_run_as_diverged_with_whole_weights(tmp_path):
    objective = Poisoned(tiny(), at=range(3, 999))
    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    recorded, train = RecordedEvents(), tones(tmp_path, 4)
    with pytest.raises(Failed, match=f"{BREAKER} steps in a row, up to step 22") as caught:
        run(tmp_path, train, objective, recorded=recorded, max_steps=99, valid_every=99)
    assert caught.value.cause == "diverged"
    assert [step for step, loss in recorded.losses().items() if loss is None] == list(range(3, 22))
    json.dumps(recorded.metrics, allow_nan=False)
    after = objective.model.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_memory_that_runs_out_is_a_failure_of_its_own_class(tmp_path):
    class Greedy(CTCObjective):
        def __call__(self, batch, progress) -> Loss:
            if progress > 0.3:
                raise torch.OutOfMemoryError("tried to allocate 80 GiB")
            return super().__call__(batch, progress)

    with pytest.raises(Failed) as caught:
        run(tmp_path, tones(tmp_path, 4), Greedy(tiny()))
    assert str(caught.value) == (
        "memory ran out at step 3 with batch_seconds 8; halve batch_seconds and double accumulate "
        "(tried to allocate 80 GiB)"
    )
    assert caught.value.cause == "out_of_memory_gpu"


def test_training_stops_early_when_validation_no_longer_improves(tmp_path, capsys):
    still = {"learning_rate": 1e-30, "weight_decay": 0.0}
    patient = {"patience": 2, "warmup_steps": 0, "not_before": 0.0}
    result, recorded = run(
        tmp_path, tones(tmp_path, 4), optim=still, max_steps=99, valid_every=1, stopping=patient
    )
    assert result.step == 3  # the best at step 1, then two without gain
    assert read_json(result.checkpoint / "state.json")["step"] == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "Validation at step" in line]
    assert [line.endswith("| best so far") for line in said] == [True, False, False]
    again, recorded = run(
        tmp_path, tones(tmp_path, 4), optim=still, max_steps=99, valid_every=1, stopping=patient
    )
    assert again == result
    assert recorded.losses() == {}


def test_unreadable_files_are_named_and_skipped_up_to_a_stated_number(tmp_path):
    train = tones(tmp_path, 6)
    train[2].audio.write_bytes(b"")
    train[4].audio.unlink()
    result, recorded = run(tmp_path / "two", train, max_unreadable=2, batch_seconds=2.0)
    assert isinstance(result, FitResult)
    events = recorded.named("unreadable")
    assert {identity for facts in events for identity in facts["files"]} == {
        train[2].id,
        train[4].id,
    }
    assert {facts["step"] for facts in events} <= {1, 2, 3}, "in the first pass"
    with pytest.raises(DataError, match="2 audio files are unreadable, max_unreadable is 1") as why:
        run(tmp_path / "one", train, max_unreadable=1)
    said = str(why.value).splitlines()[1:]
    assert {line.split(":")[0] for line in said} == {train[2].id, train[4].id}, "a line each"


def test_a_run_leaves_its_newest_and_best_checkpoints_and_says_how_it_goes(tmp_path, capsys):
    result, recorded = run(
        tmp_path, tones(tmp_path, 4), max_steps=9, keep_checkpoints=2, checkpoint_every=2
    )
    folder = tmp_path / "checkpoints"
    assert {each.name for each in folder.iterdir()} == {"00000008", "00000009", "best"}
    assert {each.name for each in (folder / "00000009").iterdir()} == {
        "model.safetensors",
        "trainer.pt",
        "config.json",
        "state.json",
    }
    assert result.checkpoint == checkpoint.find(tmp_path) == folder / "best"
    line = recorded.metrics[0]
    keys = {"step", "total_steps", "loss", "grad_norm", "learning_rate", "seconds_left", "zeroed"}
    assert keys | {"audio_seconds_per_second", "seconds_per_step"} <= line.keys()
    validations = [line for line in recorded.metrics if "wer" in line]
    assert [line["step"] for line in validations] == [3, 6, 9]
    spent = {metric(phase) for phase in PHASES}
    fast = {"fast_change", "fast_step_size"}
    assert validations[0].keys() == {"step", "valid_loss", "wer", "cer"} | fast | spent
    json.dumps(recorded.metrics, allow_nan=False)
    printed = capsys.readouterr().out
    assert printed.count("Step 1/9 | Loss: ") == 1
    assert printed.count("Sample Prediction 1") == 3
    assert "\nTrue: " in printed and "\nPred: " in printed


def test_bfloat16_trains_with_losses_in_float32(tmp_path):
    train = tones(tmp_path, 6)
    kinds = set()

    class Watched(CTCObjective):
        def __call__(self, batch, progress) -> Loss:
            loss = super().__call__(batch, progress)
            kinds.add((loss.total.dtype, torch.is_autocast_enabled("cpu")))
            return loss

    _, half = run(tmp_path / "half", train, Watched(tiny()), precision="bf16")
    _, full = run(tmp_path / "full", train)
    assert kinds == {(torch.float32, True)}
    assert half.losses() == pytest.approx(full.losses(), rel=0.05)
    assert half.losses() != full.losses()


def test_it_learns_eight_utterances_by_heart(speech, tmp_path):
    train = scan(speech / "train")[:8]
    torch.manual_seed(0)
    config = ModelConfig(
        hidden=64, layers=2, attention_heads=2, lact_heads=1, mlp=128, conv_layers=2, dropout=0.0
    )
    objective = CTCObjective(Recognizer(config, len(VOCABULARY)))
    short = {"max_steps": 150, "valid_every": 75, "checkpoint_every": 150, "log_every": 25}
    result, recorded = run(
        tmp_path,
        train,
        objective,
        dev=train,
        batch_seconds=60.0,
        optim={"warmup_steps": 10, "weight_decay": 0.0},
        **short,
    )
    assert result.wer == 0.0
    assert recorded.losses()[150] < 0.1 < 3 < recorded.losses()[1]


def state_of(folder: Path) -> dict[str, float]:
    return checksums.facts(folder)


def test_a_checkpoint_says_its_step_epoch_and_loss_and_the_best_its_figures(tmp_path):
    result, recorded = run(
        tmp_path, tones(tmp_path, 4), max_steps=3, checkpoint_every=1, batch_seconds=99.0,
        keep_checkpoints=9, optim={"learning_rate": 1e-30},
    )  # fmt: skip
    (shown,) = (line for line in recorded.metrics if "wer" in line)
    best = {"wer": shown["wer"], "cer": shown["cer"], "loss": shown["valid_loss"]}
    assert state_of(result.checkpoint) == {"step": 3, **best}
    assert result == FitResult(3, tmp_path / "checkpoints/best", best, 0)
    assert (result.wer, result.loss) == (best["wer"], best["loss"])
    first = recorded.metrics[0]["loss"]
    for step in (1, 2, 3):  # an epoch is one batch here
        kept = state_of(tmp_path / f"checkpoints/{step:08d}")
        assert kept == {"step": step, "epoch": step - 1, "loss": pytest.approx(first, rel=1e-5)}
    assert [line["epoch"] for line in recorded.metrics if "epoch" in line] == [0, 1, 2]


def test_where_no_validation_is_better_than_nothing_the_newest_checkpoint_is_the_result(tmp_path):
    class Deaf(CTCObjective):
        """Its model says NaN where it is measured."""

        def __init__(self, model) -> None:
            super().__init__(model)
            model.register_forward_hook(
                lambda it, _, said: (
                    said if it.training else replace(said, log_probs=said.log_probs * math.nan)
                )
            )

    result, _ = run(tmp_path, tones(tmp_path, 2), Deaf(tiny()), max_steps=2)
    assert result == FitResult(2, tmp_path / "checkpoints/00000002", {}, 0)
    assert (result.wer, result.loss) == (math.inf, math.inf)


def test_a_run_that_goes_on_says_from_where_and_what_has_changed(tmp_path, capsys):
    train = tones(tmp_path, 4)
    run(tmp_path, train, max_steps=9, stop_at=2, batch_seconds=99.0)
    capsys.readouterr()
    _, recorded = run(tmp_path, train, max_steps=9, stop_at=1, batch_seconds=99.0, seed=5)
    changed = ["seed: 0 before, 5 now"]
    assert recorded.named("resumed") == [
        {"step": 2, "epoch": 1, "checkpoint": "00000002", "changed": changed}
    ]
    assert "\nResumed from 00000002, epoch 1\n  seed: 0 before, 5 now\n" in capsys.readouterr().out


def test_one_process_is_not_split_even_if_that_is_asked_for(tmp_path):
    result, _ = run(tmp_path, tones(tmp_path, 2), max_steps=1, sharded=True)
    assert isinstance(result, FitResult)


def test_the_mean_of_checkpoints_says_of_how_many_it_is(tmp_path, capsys):
    given = {"average": AverageConfig(last=2), "max_steps": 3, "checkpoint_every": 1}
    run(tmp_path, tones(tmp_path, 2), **given)
    assert "The mean of the weights of 2 checkpoints:" in capsys.readouterr().out
