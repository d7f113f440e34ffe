"""The share of a machine's arithmetic that a training uses, and when it is known."""

import pytest
import torch

from distill.config.language_model import LanguageModelConfig
from distill.language_model.model import LanguageModel
from lact_asr.config.model import SIZES
from lact_asr.config.training import CTCConfig
from lact_asr.distributed.processes import World
from lact_asr.model.interface import count_parameters
from lact_asr.model.recognizer import Recognizer
from lact_asr.training import utilization
from lact_asr.training.objective import CTCObjective
from lact_asr.training.utilization import Utilization, operations, peak, shown
from tests.lact_asr.tiny_runs import run, tiny, tones

CPU = torch.device("cpu")


def counted(model: Recognizer, seconds: float) -> float:
    """What PyTorch's own counter sees of a forward pass, as operations per token."""
    from torch.utils.flop_counter import FlopCounterMode

    waves = torch.randn(1, round(16_000 * seconds))
    lengths = torch.tensor([waves.shape[1]])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(waves, lengths)
    return counter.get_total_flops() / int(model.output_lengths(lengths))


@pytest.mark.parametrize("changes", [{}, {"schedule": "off"}], ids=["learns", "off"])
def test_the_formula_is_three_forward_passes_but_for_the_front_end(changes: dict) -> None:
    """Convolutions see two frames a token or more; a block of queries sees twice its window."""
    model = tiny(hidden=256, layers=4, mlp=1024, lact_heads=2, window=32, **changes).eval()
    assert operations(model) == pytest.approx(3 * counted(model, 20.0), rel=0.1)


def test_learning_at_test_time_costs_four_readings() -> None:
    with torch.device("meta"):
        base = Recognizer(SIZES["base"], 1024)
        off = Recognizer(SIZES["base"].model_copy(update={"schedule": "off"}), 1024)
    gates = 6 * (count_parameters(base) - count_parameters(off))
    assert operations(base) - operations(off) - gates == 12 * 36 * 768 * 768 // 4
    assert 6 * count_parameters(base) < operations(base) < 8 * count_parameters(base)


def test_what_is_looked_up_is_no_arithmetic() -> None:
    with torch.device("meta"):
        model = LanguageModel(LanguageModelConfig(hidden=64, heads=2, blocks=1, mlp=64), 1000)
    tables = sum(
        each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Embedding)
    )
    assert tables and operations(model) == 6 * (count_parameters(model) - tables)


def test_the_peak_is_known_of_some_gpus_by_their_names() -> None:
    assert peak("NVIDIA H200") == peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("NVIDIA H100 PCIe") == 756e12
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("Tesla T4") is None and peak("") is None


def test_the_share_is_what_is_needed_a_second_of_the_peak_of_all_ranks() -> None:
    use = Utilization(operations=2e9, peak=4 * 1e12, device=CPU)
    assert use.metrics(500.0) == {"mfu": 0.25}
    assert shown({"mfu": 0.25, "gpu_memory_gb": 31.26}) == "25.0% of peak | 31.3 GB | "
    assert Utilization(2e9, None, CPU).metrics(500.0) == {} and shown({}) == ""


@pytest.mark.parametrize(("ctc", "views"), [(CTCConfig(), 1), (CTCConfig(consistency=0.2), 2)])
def test_a_training_says_it_of_all_its_audio_and_every_time_it_is_heard(
    tmp_path, monkeypatch, capsys, ctc, views
) -> None:
    real = Utilization.of

    def known(*given: object) -> Utilization:
        return Utilization(real(*given).operations, 1e9, CPU)

    monkeypatch.setattr(Utilization, "of", known)
    model = tiny()
    _, recorded = run(tmp_path, tones(tmp_path, 4), CTCObjective(model, ctc), max_steps=2)
    per_second = views * 25 * operations(model)
    lines = [line for line in recorded.metrics if "mfu" in line]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["mfu"] == pytest.approx(per_second * line["audio_seconds_per_second"] / 1e9)
    assert capsys.readouterr().out.count("% of peak | ") == 2


def test_where_the_peak_is_not_known_nothing_is_said(tmp_path, capsys) -> None:
    _, recorded = run(tmp_path, tones(tmp_path, 4), max_steps=1)
    assert not any({"mfu", "gpu_memory_gb"} & line.keys() for line in recorded.metrics)
    assert "of peak" not in capsys.readouterr().out


def test_a_gpu_that_is_known_counts_once_for_every_rank(monkeypatch) -> None:
    class Heard:
        tokens_per_amount = 50.0

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    model = tiny()
    use = Utilization.of(model, Heard(), World(3, 8), torch.device("cuda"))
    assert use.peak == 8 * 989e12
    assert use.operations == 50 * operations(model)
    assert utilization.peak("NVIDIA H200") == 989e12
