"""Fusion when modalities are missing, and its bounds."""

import pytest
import torch
from torch.nn import functional as F

from distill.models.attention import capped_attention
from distill.models.fusion import ModalityFusion, bound, hide_some
from tests.distill.tiny_models import tiny_teacher

WIDTHS = (6, 10)


def fusion(**changes) -> ModalityFusion:
    torch.manual_seed(0)
    return ModalityFusion(WIDTHS, 16, 4, **{"dropout": 0.0, "modality_dropout": 0.0, **changes})


def streams(frames: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, frames, width, generator=generator) for width in WIDTHS]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_with_every_modality_absent_and_full_of_nan_all_stays_finite(training, qk_norm):
    model = fusion(qk_norm=qk_norm, modality_dropout=0.5).train(training)
    broken = [torch.full_like(stream, torch.nan) for stream in streams()]
    fused, weights = model(broken, torch.zeros(2, 5, 2).bool())
    fused.square().sum().backward()
    assert fused.isfinite().all()
    assert weights[..., :2].eq(0).all() and weights[..., 2].eq(1).all(), "all on the null token"
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    missing = [name for name, grad in gradients.items() if grad is None]
    assert not missing, f"left the graph, which stops data-parallel training: {missing}"
    assert all(grad.isfinite().all() for grad in gradients.values())


def test_an_absent_modality_has_no_effect_on_its_utterance_and_none_on_the_others():
    model, present = fusion(), torch.ones(2, 5, 2).bool()
    whole, _ = model(streams(), present)
    present[1, :, 0] = False
    without, weights = model(streams(), present)
    other = streams()
    other[0][1] = torch.nan
    torch.testing.assert_close(model(other, present)[0], without)
    torch.testing.assert_close(without[0], whole[0])
    assert not torch.allclose(without[1], whole[1])
    assert weights[1, :, 0].eq(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_modality_dropout_hides_a_quarter_but_never_all_that_there_is():
    torch.manual_seed(0)
    present = torch.ones(4000, 1, 2).bool()
    present[:1000, :, 0] = False  # these have one modality: it must stay
    kept = hide_some(present, 0.25)
    assert kept.any(-1).all()
    assert kept[:1000].equal(present[:1000])
    hidden = 1 - kept[1000:].float().mean()
    assert hidden == pytest.approx(0.25 - 0.25**2, abs=0.02), "both hidden at once is undone"


def test_modality_dropout_is_for_training_only():
    model, present = fusion(modality_dropout=0.5), torch.ones(2, 5, 2).bool()
    torch.manual_seed(0)
    hidden = [(model(streams(), present)[1][..., :2] == 0).any() for _ in range(20)]
    assert any(hidden) and not all(hidden)
    assert (model.eval()(streams(), present)[1][..., :2] > 0).all()


def test_the_soft_bound_keeps_a_gradient_where_the_clamp_has_none():
    x = torch.tensor([-50.0, 0.1, 15.0], requires_grad=True)
    for kind, alive in (("soft", True), ("clamp", False)):
        x.grad = None
        out = bound(x, kind)
        out.sum().backward()
        assert out.abs().max() <= 10
        assert out[1].item() == pytest.approx(0.1, abs=1e-4)
        assert (x.grad[2] > 0).item() is alive


def test_attention_looks_at_nothing_but_what_is_seen():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4, 8)
    seen = torch.tensor([[True, False, True, True]])
    partial = capped_attention(query, key, value, seen, None)
    kept = seen[0]
    torch.testing.assert_close(
        partial, F.scaled_dot_product_attention(query, key[:, :, kept], value[:, :, kept])
    )


def test_the_score_cap_bounds_the_scores_of_exploding_queries():
    torch.manual_seed(0)
    query, key = 100 * torch.randn(1, 1, 3, 8), 100 * torch.randn(1, 1, 3, 8)
    seen, value = torch.ones(1, 3).bool(), torch.eye(3).view(1, 1, 3, 3)
    sharp, capped = (capped_attention(query, key, value, seen, cap) for cap in (None, 2.0))
    assert sharp.max() == 1, "without the cap attention is saturated"
    assert capped.max() <= 1 / (1 + 2 * torch.tensor(-4.0).exp())


def test_projections_start_small():
    weight = ModalityFusion((512,), 512, 8).projections[0].weight
    assert weight.abs().max() <= 0.5 * (6 / 1024) ** 0.5 + 1e-6


def test_attention_weights_are_dropped_in_training_and_never_in_evaluation():
    present = torch.ones(2, 5, 2).bool()
    model = fusion(attention_dropout=0.5)
    torch.manual_seed(0)
    one, other = model(streams(), present)[0], model(streams(), present)[0]
    assert not torch.allclose(one, other)
    kept = fusion(attention_dropout=0.0)
    torch.testing.assert_close(model.eval()(streams(), present), kept(streams(), present))
    teacher = tiny_teacher(attention_dropout=0.5)
    assert teacher.fusion.attention.dropout == 0.5
    assert teacher.blocks[0].attention.dropout == 0.0, "the original's is the fusion's"
