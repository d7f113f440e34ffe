"""Every family behind one interface, within its budget, and back from a checkpoint's config."""

import pytest
import torch

from distill.config.models import SIZES, named_size
from distill.models.registry import FAMILIES, count_layers
from lact_asr.config.model import SIZES as RECOGNIZERS
from lact_asr.model.interface import count_parameters
from tests.distill.tiny_models import VOCABULARY

TINY = {"lact": RECOGNIZERS["tiny"], **{family: SIZES[family]["tiny"] for family in SIZES}}


def build(family: str, size: str):
    return FAMILIES[family](SIZES[family][size].model_dump(), len(VOCABULARY))


def test_the_teacher_has_43_million_parameters_in_more_than_50_layers():
    model = build("teacher", "default")
    assert 40e6 <= count_parameters(model) <= 50e6
    assert count_parameters(model) == pytest.approx(43.2e6, rel=0.01)
    assert count_layers(model) >= 50


def test_the_teacher_with_video_keeps_the_budget_and_has_both_trunks():
    config = named_size("teacher", "default", {"video": "frames", "blocks": 8})
    model = FAMILIES["teacher"](config.model_dump(), len(VOCABULARY))
    assert 40e6 <= count_parameters(model) <= 50e6
    assert count_layers(model) >= 2 * 57


def test_the_baseline_has_15_7_million_parameters_in_20_layers():
    model = build("baseline", "default")
    assert count_parameters(model) == pytest.approx(15.7e6, rel=0.01)
    assert count_layers(model) == 20


@pytest.mark.parametrize("family", TINY)
def test_every_family_answers_alike_and_is_built_again_from_its_config(family):
    torch.manual_seed(0)
    model = FAMILIES[family](TINY[family].model_dump(mode="json"), len(VOCABULARY)).eval()
    again = FAMILIES[family](model.config.model_dump(mode="json"), len(VOCABULARY)).eval()
    again.load_state_dict(model.state_dict())
    assert model.family == family
    waves, lengths = 0.1 * torch.randn(2, 9600), torch.tensor([9600, 5000])
    output = model(waves, lengths)
    assert output.lengths.equal(model.output_lengths(lengths))
    assert output.log_probs.dtype == torch.float32
    assert output.log_probs.shape == (2, model.output_lengths(9600), len(VOCABULARY))
    torch.testing.assert_close(
        output.log_probs.exp().sum(-1), torch.ones(2, output.log_probs.shape[1])
    )
    assert len({state.shape for state in output.hidden}) == 1
    torch.testing.assert_close(again(waves, lengths).log_probs, output.log_probs)
