"""The mix layer against reference and oracle, and the laws of the whole recogniser."""

import json

import pytest
import torch
from torch import Tensor

from lact_asr.config import SIZES, ModelConfig, sized
from lact_asr.lact import test_time_training
from lact_asr.mix import Layout, Mix, attend
from lact_asr.model import FAMILIES, Recogniser
from lact_asr.text import Vocabulary, normalise
from tests.conftest import shared
from tests.lact_asr import reference
from tests.lact_asr.test_lact import distance, oracle

SMALL = {"hidden": 24, "layers": 2, "attention_heads": 4, "lact_heads": 2, "mlp": 40}
CAUSAL = {"schedule": "apply_then_update", "chunk": 4, "window": 8}
VARIANTS = {
    "set": {},
    "set in narrow windows": {"window": 4},
    "set, orthogonalised": {"orthogonalize": "five_stage", "fast_width": 1.5},
    "causal": {**CAUSAL, "momentum": True, "prenorm": True},
    # Twice the head width in tokens: from fewer, Newton-Schulz blows rounding up 500 times.
    "causal, orthogonalised": {
        **{"schedule": "apply_then_update", "chunk": 12, "window": 12, "lact_heads": 4},
        **{"momentum": True, "orthogonalize": "fixed"},
    },
    "chunk-inclusive": {"schedule": "update_then_apply", "chunk": 4, "window": 6},
    "off": {"schedule": "off", "qk_norm": False},
}
variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def small(changes: dict) -> ModelConfig:
    """A tiny configuration whose updates are large enough to be seen."""
    return sized("tiny", {**SMALL, "base_step": 0.3, "dropout": 0.0, **changes})


def awake(module: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter off its resting value: no gain of 1, no branch near 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def waves(seconds: list[float]) -> tuple[Tensor, Tensor]:
    """Noise at 16 kHz, junk past each length."""
    lengths = torch.tensor([int(16_000 * s) for s in seconds])
    g = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(len(seconds), int(lengths.max()), generator=g), lengths


@variants
def test_the_mix_layer_equals_the_naive_reference(changes):
    config = small(changes)
    mix = Mix(config).double()
    awake(mix)
    lengths = torch.tensor([14, 9])
    x = torch.randn(2, 14, 24, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    parameters = {n: p.detach().clone().requires_grad_() for n, p in mix.named_parameters()}
    found, _ = mix(x, Layout.of(config, x, lengths))
    wanted = [reference.mix(y[b, :n], parameters, config) for b, n in enumerate(lengths)]
    for b, n in enumerate(lengths):
        assert distance(found[b, :n], wanted[b]) < 1e-9
    probe = torch.randn(14, 24, dtype=torch.float64)
    sum((found[b, :n] * probe[:n]).sum() for b, n in enumerate(lengths)).backward()
    sum((row * probe[: len(row)]).sum() for row in wanted).backward()
    assert distance(x.grad, y.grad) < 1e-8
    for name, parameter in mix.named_parameters():
        assert distance(parameter.grad, parameters[name].grad) < 1e-7, name


@pytest.mark.parametrize("size", [1, 8, 9, 14, 20, 27])
@pytest.mark.parametrize("changes", [{"window": 6}, {**CAUSAL, "window": 5}, {"window": 1}])
def test_attention_in_blocks_equals_attention_in_a_loop(changes, size):
    config = small(changes)
    q, k, v = torch.randn(3, 1, size, 4, 6, dtype=torch.float64)
    layout = Layout.of(config, q.flatten(2), torch.tensor([size]))
    flat = (x[0].flatten(1) for x in (q, k, v))
    wanted = reference.attention(*flat, 4, config.window, config.causal)
    assert distance(attend(q, k, v, layout)[0], wanted) < 1e-12


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_the_published_causal_layer_comes_out_of_ours(kind):
    meta, arrays = oracle("s11_layer_causal")
    config = sized(
        "tiny",
        {
            "hidden": meta["hidden_size"],
            "attention_heads": meta["num_attn_heads"],
            "lact_heads": meta["num_lact_heads"],
            "window": meta["window_size"],
            "schedule": "apply_then_update",
            "chunk": meta["chunk_size"],
            "base_step": meta["base_lr"],
            "qk_norm": False,
            "momentum": True,
            "orthogonalize": "five_stage",
        },
    )
    mix = Mix(config).to(kind)
    renamed = {name.replace(".0.", "."): x for name, x in arrays.items()}
    mix.load_state_dict({n[6:]: x for n, x in renamed.items() if n.startswith("param.")})
    x = arrays["x"].to(kind).requires_grad_()
    found, updates = mix(x, Layout.of(config, x, torch.tensor([21, 21])))
    exact = kind == torch.float64
    assert distance(found, arrays["out"]) < (1e-9 if exact else 1e-4)
    assert set(updates.tolist()) == {meta["updates_run"]}
    (found * arrays["probe"]).sum().backward()
    bound = 1e-6 if exact else 3e-4  # expected gradients are stored in float32
    assert distance(x.grad, arrays["grad_x"]) < bound
    for name, parameter in mix.named_parameters():
        if name != "qkv.weight":  # the published case has no gradient for it
            assert distance(parameter.grad, renamed[f"grad.{name}"]) < bound, name


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_the_published_set_layer_comes_out_of_our_operator(kind):
    meta, arrays = oracle("s12_layer_set_muon")
    p = {name[6:]: x.to(kind) for name, x in arrays.items() if name.startswith("param.")}
    x, heads = arrays["x"].to(kind), meta["num_lact_heads"]

    def rows(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)

    q, k, v = (rows(y) for y in torch.nn.functional.silu(x @ p["to_qkv.weight"].T).chunk(3, -1))
    q, k = (y / (y.norm(dim=-1, keepdim=True) + 1e-5) for y in (q, k))
    start = torch.tensor(meta["base_lr"], dtype=torch.float64).expm1().log().to(kind)
    steps = torch.nn.functional.softplus(x @ p["lr_proj.weight"].T + start)
    y, _ = test_time_training(
        *(p[name].repeat(len(x), 1, 1) for name in ("w0", "w1", "w2")),
        *(q, k, v),
        *rows(steps).split(1, -1),
        schedule="set",
        orthogonalize="five_stage",
    )
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["o_norm.weight"]
    y = y.unflatten(0, (len(x), heads)).transpose(1, 2).flatten(2)
    exact = kind == torch.float64
    assert distance(y @ p["o_proj.weight"].T, arrays["out"]) < (1e-9 if exact else 1e-4)


@pytest.mark.parametrize(
    ("size", "symbols", "published"),
    [
        ("base", 1024, 100_328_176),
        ("base", 32, 99_565_328),
        ("improved", 1024, 204_306_384),
        ("improved", 32, 203_289_584),
        ("large", 1024, 492_848_032),
        ("large", 32, 491_323_328),
    ],
)
def test_a_named_size_has_its_published_number_of_parameters(size, symbols, published):
    with torch.device("meta"):
        model = Recogniser(SIZES[size], symbols)
    found = sum(p.numel() for p in model.parameters())
    # Without momentum there is no gate for it: heads x (width + 1) fewer per layer.
    config = SIZES[size]
    assert found == published - config.layers * config.lact_heads * (config.hidden + 1)
    assert found == pytest.approx(published, rel=0.01)


@torch.no_grad()
def padding_drift(model: Recogniser) -> float:
    """How far an utterance's answer moves when it is read beside longer ones."""
    batch, lengths = waves([2.0, 0.7, 1.31])
    batch = batch.to(model.head.weight.dtype)
    together, worst = model(batch, lengths), 0.0
    for row, length in enumerate(lengths):
        alone = model(batch[row : row + 1, :length], lengths[row : row + 1])
        count = alone.lengths.item()
        assert together.lengths[row] == count == model.output_lengths(int(length))
        drift = together.log_probs[row, :count] - alone.log_probs[0]
        worst = max(worst, float(drift.abs().max()))
    return worst


@variants
def test_padding_and_neighbours_change_no_output(changes):
    model = Recogniser(small(changes), 29).eval()
    assert padding_drift(model) < 1e-5
    awake(model)  # these weights blow rounding up 100 times: judge the law in float64
    assert padding_drift(model.double()) < 1e-11


@variants
def test_every_parameter_learns_from_every_batch(changes):
    model = Recogniser(small(changes), 29)
    awake(model)
    output = model(*waves([1.0, 0.6]))
    output.log_probs[..., 3].sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_batch_too_short_to_learn_from_still_has_every_gradient():
    model = Recogniser(small({**CAUSAL, "momentum": True}), 29)
    output = model(*waves([0.15]))
    output.log_probs.sum().backward()
    assert output.updates_run == 0
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({}, 1),
        ({"schedule": "off"}, 0),
        (CAUSAL, 6),  # 25 tokens: chunks 4 4 4 4 4 4 1, the last only read
        ({"schedule": "update_then_apply", "chunk": 4}, 7),
    ],
)
def test_a_forward_pass_reports_its_updates(changes, updates):
    output = Recogniser(small(changes), 29)(*waves([1.0, 0.3]))
    assert output.updates_run == updates
    assert output.log_probs.shape == (2, 25, 29)
    assert [x.shape for x in output.hidden] == [(2, 25, 24)] * 2
    torch.testing.assert_close(output.log_probs.exp().sum(-1), torch.ones(2, 25))


def test_the_updates_change_what_the_recogniser_says():
    config = small({})
    model = Recogniser(config, 29).eval()
    awake(model)
    still = Recogniser(config.model_copy(update={"schedule": "off"}), 29).eval()
    still.load_state_dict(model.state_dict(), strict=False)
    batch = waves([1.0])
    assert distance(still(*batch).log_probs, model(*batch).log_probs) > 0.01


def test_the_causal_schedule_says_the_same_whatever_follows():
    model = Recogniser(small(CAUSAL), 29).eval()
    awake(model)
    batch, lengths = waves([2.0])
    mel, frames = model.features(batch, lengths)
    changed = mel.clone()
    changed[:, 120:] += 1
    x, counts = model.encoder(mel, frames)
    y, _ = model.encoder(changed, frames)
    layout = Layout.of(model.config, x, counts)
    for block in model.blocks:
        x, y = block(x, layout)[0], block(y, layout)[0]
    differs = (x - y).abs().amax(-1)[0] > 1e-6
    assert not differs[:29].any()  # 120 frames are 30 tokens; convolutions look one token ahead
    assert differs[30:].all()


def test_bfloat16_autocast_stays_close_and_ends_in_float32():
    model = Recogniser(sized("tiny", {"layers": 2, "dropout": 0.0}), 29).eval()
    batch = waves([1.5, 1.0])
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*batch)
    assert output.log_probs.dtype == torch.float32
    assert distance(output.log_probs, exact.log_probs) < 2e-2
    output.log_probs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("subsampling", [1, 2, 4, 8])
def test_output_lengths_are_plain_arithmetic(subsampling):
    changes = {**SMALL, "subsampling": subsampling, "conv_layers": 3, "layers": 1}
    model = Recogniser(sized("tiny", changes), 29).eval()
    for samples in (1, 160, 161, 1281, 16_000, 16_001):
        output = model(torch.zeros(1, samples), torch.tensor([samples]))
        assert output.lengths.item() == output.log_probs.shape[1] == model.output_lengths(samples)
    counts = model.output_lengths(torch.tensor([1, 16_000]))
    assert counts.tolist() == [1, -(-100 // subsampling)]


def test_a_model_comes_back_from_its_config_and_weights():
    model = Recogniser(small({}), 29).eval()
    config = json.loads(json.dumps(model.config.model_dump()))
    again = FAMILIES[model.family](config, 29).eval()
    again.load_state_dict(model.state_dict())
    batch = waves([0.5])
    assert torch.equal(again(*batch).log_probs, model(*batch).log_probs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_heads": 5}, "hidden 144 is not a multiple of attention_heads"),
        ({"lact_heads": 7}, "hidden 144 is not a multiple of lact_heads"),
        ({"attention_heads": 48}, "must be even"),
        ({"subsampling": 8}, "needs 3 conv_layers"),
        ({"schedule": "apply_then_update"}, "needs a chunk"),
        ({"chunk": 64}, "takes no chunk"),
        ({"momentum": True}, "nothing to carry"),
        ({"schedule": "apply_then_update", "chunk": 200}, "window 128 is shorter than chunk 200"),
        ({"hiden": 3}, "hiden"),
    ],
)
def test_a_configuration_that_cannot_work_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        sized("tiny", changes)


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no model size 'huge'; sizes are tiny, base, improved"):
        sized("huge", {})


def test_a_causal_schedule_that_would_never_update_is_refused():
    config = sized("tiny", {"schedule": "apply_then_update", "chunk": 100, "window": 128})
    config.check_updates(longest=4.01)  # 101 tokens: one update, seen by one token
    with pytest.raises(ValueError, match=r"chunk 100 would never be updated from.* 100 tokens"):
        config.check_updates(longest=4.0)
    SIZES["tiny"].check_updates(longest=0.1)


def test_orthogonalised_updates_from_too_few_tokens_are_warned_about():
    config = sized("tiny", {"orthogonalize": "five_stage"})  # head width 72
    config.check_updates(longest=6.0)
    with pytest.warns(UserWarning, match=r"more than 144 tokens an update.* at most 100"):
        config.check_updates(longest=4.0)


def test_ten_real_utterances_are_learned_by_heart_within_250_steps():
    soundfile = pytest.importorskip("soundfile")
    texts, clips = [], []
    for listing in sorted(shared("data/speech").rglob("*.trans.txt")):
        for line in listing.read_text().splitlines():
            name, text = line.split(" ", 1)
            clip, _ = soundfile.read(listing.parent / f"{name}.flac", dtype="float32")
            if 32_000 <= len(clip) < 40_000 and normalise(text) not in texts:
                texts.append(normalise(text))
                clips.append(torch.from_numpy(clip))
    texts, clips = texts[:10], clips[:10]
    assert len(texts) == 10
    vocabulary = Vocabulary.characters()
    targets = torch.tensor([index for text in texts for index in vocabulary.encode(text)])
    sizes = torch.tensor([len(text) for text in texts])
    batch = torch.nn.utils.rnn.pad_sequence(clips, True), torch.tensor([len(c) for c in clips])
    torch.manual_seed(0)
    model = Recogniser(sized("tiny", {"dropout": 0.0}), len(vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(1, 251):
        output = model(*batch)
        heard = []
        for row, count in zip(output.log_probs.argmax(-1), output.lengths, strict=True):
            heard.append(vocabulary.decode(row[:count].unique_consecutive().tolist()))
        if heard == texts:
            return
        loss = torch.nn.functional.ctc_loss(
            output.log_probs.transpose(0, 1), targets, output.lengths, sizes, reduction="sum"
        )
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, step / 20)
        optimizer.zero_grad()
        (loss / sizes.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    pytest.fail(f"after 250 steps: {heard}")
