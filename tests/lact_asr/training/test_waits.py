"""A step waits once for its device: for one tensor, behind the last backward pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lact_asr.config.training import CTCConfig
from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.distributed.device import made, sent
from lact_asr.training.objective import CTCObjective
from tests.lact_asr.tiny_runs import VOCABULARY, quiet_logger, settings, tiny, tones
from tests.waits import DEVICE, Waits, step

CAUSAL = {"schedule": "apply_then_update", "chunk": 8, "window": 8, "momentum": True}
OBJECTIVES: dict[str, Callable[[], CTCObjective]] = {
    "plain CTC": lambda: CTCObjective(tiny(dropout=0.1, layer_drop=0.1, conv_kernel=5)),
    "causal, in chunks": lambda: CTCObjective(tiny(**CAUSAL)),
    "characters at inner blocks": lambda: CTCObjective(
        tiny(layers=3),
        CTCConfig(intermediate=(1, 2), intermediate_symbols="characters"),
        VOCABULARY,
    ),
    "intermediate CTC and consistency": lambda: CTCObjective(
        tiny(layers=3), CTCConfig(intermediate=(1, 2), consistency=0.2)
    ),
}


def batches(folder: Path) -> list[Batch]:
    reader = Reader(whole_corpus(tones(folder, 4), VOCABULARY))
    return [reader[rows] for rows in ([0, 1], [2, 3])]


@pytest.mark.parametrize("method", ["adamw", "muon"])
@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_a_step_reads_one_tensor_and_sends_nothing_that_is_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], CTCObjective],
    method: str,
) -> None:
    config = settings(optim={"method": method})
    seen = step(make(), batches(tmp_path), config, quiet_logger(DEVICE), monkeypatch)
    assert seen.reads == ["copied to the CPU"]
    assert seen.sent == []


def test_ctc_at_several_blocks_is_one_call_for_each_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call waits for all that the device is at: PyTorch's kernels copy the lengths."""
    objective = OBJECTIVES["intermediate CTC and consistency"]()
    seen = step(objective, batches(tmp_path), settings(), quiet_logger(DEVICE), monkeypatch)
    assert seen.losses == [3 * 2 * 2] * 2, "outputs x views x utterances, of two micro-batches"


def test_what_waits_is_seen() -> None:
    with Waits() as seen:
        there = torch.ones(3, device=DEVICE)
        assert float(there.sum()) == 1.0 and there.tolist() == [1.0, 1.0, 1.0]
        with pytest.raises(AssertionError, match="index"):
            there[there > 0]
        with pytest.raises(AssertionError, match="nonzero"):
            there.nonzero()
        torch.nn.functional.ctc_loss(
            torch.ones(4, 1, 3, device=DEVICE),
            torch.ones(2, dtype=torch.int64, device=DEVICE),
            torch.tensor([4]).to(DEVICE),
            torch.tensor([2]),
            reduction="none",
        )
        torch.zeros(2).to(DEVICE, non_blocking=True)
        torch.tensor([2.0], device=DEVICE)
    assert seen.reads == [
        "_local_scalar_dense", "copied to the CPU", "index", "nonzero", "lengths of CTC",
    ]  # fmt: skip
    assert seen.sent == ["(1,) torch.int64", "tensor of a list"]


def test_lengths_stay_on_the_cpu_wherever_a_batch_goes(tmp_path: Path) -> None:
    batch = batches(tmp_path)[0]
    moved = replace(batch).to(DEVICE)
    assert moved.waves.is_meta and moved.targets.is_meta
    assert moved.wave_lengths.is_cpu and moved.target_lengths.is_cpu
    assert moved.seconds == batch.seconds and moved.amount == batch.amount


def test_numbers_are_made_on_a_device_and_small_tensors_sent_as_they_are() -> None:
    numbers = made([1.5, -2.0, 2**40 + 1.0], torch.device("cpu"))
    assert numbers.dtype == torch.float64 and numbers.tolist() == [1.5, -2.0, 2**40 + 1]
    lengths = torch.tensor([3, 5])
    assert sent(lengths, torch.device("cpu")) is lengths
    assert sent(lengths, DEVICE).is_meta
