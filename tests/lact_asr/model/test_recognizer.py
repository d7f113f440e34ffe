"""The whole recognizer: sizes, padding, gradients, precision, and that it learns."""

import json

import pytest
import torch
from torch import Tensor

from lact_asr.config.model import SIZES, ModelConfig, named_size
from lact_asr.model.recognizer import FAMILIES, Block, Convolution, Recognizer
from lact_asr.model.window_attention import Layout, attend
from lact_asr.text.normalize import normalize
from lact_asr.text.vocabulary import Vocabulary
from tests.conftest import shared
from tests.lact_asr.model.reference import distance
from tests.lact_asr.model.test_lact_layer import CAUSAL, SMALL, awake, small_config, variants


def waves(seconds: list[float]) -> tuple[Tensor, Tensor]:
    """Noise at 16 kHz, junk past each length."""
    lengths = torch.tensor([int(16_000 * s) for s in seconds])
    g = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(len(seconds), int(lengths.max()), generator=g), lengths


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
        model = Recognizer(SIZES[size], symbols)
    found = sum(p.numel() for p in model.parameters())
    # Without momentum there is no gate for it: heads x (width + 1) fewer per layer.
    config = SIZES[size]
    assert found == published - config.layers * config.lact_heads * (config.hidden + 1)
    assert found == pytest.approx(published, rel=0.01)


@torch.no_grad()
def padding_drift(model: Recognizer) -> float:
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


with_and_without_convolution = pytest.mark.parametrize("kernel", [0, 5])


@with_and_without_convolution
@variants
def test_padding_and_neighbours_change_no_output(changes, kernel):
    model = Recognizer(small_config({**changes, "conv_kernel": kernel}), 29).eval()
    assert padding_drift(model) < 1e-5
    awake(model)  # these weights blow rounding up 100 times: judge the law in float64
    assert padding_drift(model.double()) < 1e-11


@with_and_without_convolution
@variants
def test_every_parameter_learns_from_every_batch(changes, kernel):
    model = Recognizer(small_config({**changes, "conv_kernel": kernel}), 29)
    awake(model)
    output = model(*waves([1.0, 0.6]))
    output.log_probs[..., 3].sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_batch_too_short_to_learn_from_still_has_every_gradient():
    model = Recognizer(small_config({**CAUSAL, "momentum": True}), 29)
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
    output = Recognizer(small_config(changes), 29)(*waves([1.0, 0.3]))
    assert output.updates_run == updates
    assert output.log_probs.shape == (2, 25, 29)
    assert [x.shape for x in output.hidden] == [(2, 25, 24)] * 2
    torch.testing.assert_close(output.log_probs.exp().sum(-1), torch.ones(2, 25))


@torch.no_grad()
def test_eval_mode_tells_step_sizes_and_changes_of_the_fast_weights_by_utterance():
    model = Recognizer(small_config({"layers": 1}), 29).double().eval()
    awake(model)
    batch, lengths = waves([1.0, 0.6])
    fast = model(batch.double(), lengths).fast
    block, mix = model.blocks[0], model.blocks[0].mix
    for row, length in enumerate(lengths):
        clip = batch[row : row + 1, :length].double()
        x, count = model.encoder(*model.features(clip, lengths[row : row + 1]))
        layout = Layout.of(model.config, x, count)
        normed = block.mix_norm(x)
        state = mix(normed, layout)[1]
        start = torch.tensor(0.3, dtype=torch.float64).expm1().log()
        steps = (mix.lr_proj(normed) + start).exp().log1p()  # [1,L,3H]
        changes = [
            (now[head] - before[head]).square().sum().sqrt() / before[head].square().sum().sqrt()
            for now, before in zip(state.weights, (mix.w0, mix.w1, mix.w2), strict=True)
            for head in range(2)
        ]
        torch.testing.assert_close(fast.step_size[row], steps.mean())
        torch.testing.assert_close(fast.change[row], torch.stack(changes).mean())
        assert fast.change[row] > 0.01


def test_what_the_fast_weights_did_is_the_mean_over_blocks_and_costs_training_nothing():
    model = Recognizer(small_config({"layers": 2}), 29).eval()
    awake(model)
    batch = waves([1.0])
    model.blocks[1].mix.lr_proj.bias.data.fill_(-100.0)  # no step
    both = model(*batch).fast.change
    model.blocks = model.blocks[:1]
    torch.testing.assert_close(both, model(*batch).fast.change / 2)
    assert model.train()(*batch).fast is None
    assert Recognizer(small_config({"schedule": "off"}), 29).eval()(*batch).fast is None


def test_the_updates_change_what_the_recognizer_says():
    config = small_config({})
    model = Recognizer(config, 29).eval()
    awake(model)
    still = Recognizer(config.model_copy(update={"schedule": "off"}), 29).eval()
    still.load_state_dict(model.state_dict(), strict=False)
    batch = waves([1.0])
    assert distance(still(*batch).log_probs, model(*batch).log_probs) > 0.01


@with_and_without_convolution
def test_the_causal_schedule_says_the_same_whatever_follows(kernel):
    model = Recognizer(small_config({**CAUSAL, "conv_kernel": kernel}), 29).eval()
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


@pytest.mark.parametrize("changes", [{}, CAUSAL], ids=["both sides", "causal"])
def test_the_convolution_equals_a_loop_over_tokens_that_knows_no_padding(changes):
    config = small_config({**changes, "conv_kernel": 5})
    module = Convolution(config).double()
    awake(module)
    lengths = torch.tensor([11, 4])
    x = torch.randn(2, 11, 24, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found, before = module(x, lengths), 4 if config.causal else 2
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(lengths.tolist()):
        gate, up = (y[row, :length] @ module.gate_up.weight.T).chunk(2, -1)
        heard = gate.sigmoid() * up
        for place in range(length):
            token = module.depthwise.bias
            for tap in range(5):
                if 0 <= place + tap - before < length:
                    kernel = module.depthwise.weight[:, 0, 0, tap]
                    token = token + kernel * heard[place + tap - before]
            token = token / (token.square().mean() + 1e-6).sqrt() * module.norm.weight
            token = (token * token.sigmoid()) @ module.down.weight.T
            torch.testing.assert_close(found[row, place], token, rtol=1e-10, atol=1e-10)
            total = total + (token * probe(row, place)).sum()
    inside = [found[r, p] * probe(r, p) for r, n in enumerate(lengths) for p in range(n)]
    torch.stack(inside).sum().backward(inputs=x)
    total.backward(inputs=y)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-9, atol=1e-9)


def probe(row: int, place: int) -> Tensor:
    """Weights that tell one output from another."""
    return torch.cos(torch.arange(24, dtype=torch.float64) * (1 + row) + place)


def test_a_kernel_without_a_middle_is_refused():
    with pytest.raises(ValueError, match=r"conv_kernel 4 is even.*write 5"):
        small_config({"conv_kernel": 4})


def test_dropped_attention_weights_are_missing_and_the_others_larger_by_as_much():
    config = small_config({"attention_heads": 4})
    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 6, 4, 6, dtype=torch.float64)
    v = torch.eye(6, dtype=torch.float64)[None, :, None].expand(3, 6, 4, 6)  # shows the weights
    layout = Layout.of(config, q.flatten(2), torch.tensor([6, 6, 6]))
    whole, found = attend(q, k, v, layout), attend(q, k, v, layout, 0.25)
    dropped = found == 0
    torch.testing.assert_close(found[~dropped], whole[~dropped] / 0.75)
    assert 0.1 < dropped.double().mean() < 0.4


def test_attention_weights_are_dropped_in_training_only():
    model = Recognizer(small_config({"attention_dropout": 0.5}), 29)
    plain = Recognizer(small_config({}), 29)
    plain.load_state_dict(model.state_dict())
    batch = waves([1.0])
    assert not torch.equal(model(*batch).log_probs, plain(*batch).log_probs)
    assert torch.equal(model.eval()(*batch).log_probs, plain.eval()(*batch).log_probs)


def test_a_passed_by_block_changes_nothing_and_a_taken_one_makes_up_for_it():
    block = Block(small_config({"layer_drop": 0.25, "conv_kernel": 3})).double()
    awake(block)
    x = torch.randn(64, 5, 24, dtype=torch.float64)
    layout = Layout.of(block.config, x, torch.full((64,), 5))
    found, whole = block(x, layout)[0], block.eval()(x, layout)[0]
    passed = (found == x).flatten(1).all(1)
    assert 4 <= passed.sum() <= 28  # of 64, 16 expected
    torch.testing.assert_close(found[~passed], (x + (whole - x) / 0.75)[~passed])
    assert not (whole == x).flatten(1).all(1).any()


def test_a_model_that_passes_every_block_by_still_has_every_gradient():
    model = Recognizer(small_config({"layer_drop": 0.999, "conv_kernel": 3}), 29)
    torch.manual_seed(0)
    model(*waves([0.5])).log_probs[..., 3].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_configuration_from_before_these_options_means_none_of_them():
    old = small_config({}).model_dump()
    for name in ("conv_kernel", "attention_dropout", "layer_drop"):
        del old[name]
    assert ModelConfig.model_validate(old) == small_config({})
    assert not any("conv" in name for name in Block(small_config({})).state_dict())


def test_bfloat16_autocast_stays_close_and_ends_in_float32():
    model = Recognizer(named_size("tiny", {"layers": 2, "dropout": 0.0}), 29).eval()
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
    model = Recognizer(named_size("tiny", changes), 29).eval()
    for samples in (1, 160, 161, 1281, 16_000, 16_001):
        output = model(torch.zeros(1, samples), torch.tensor([samples]))
        assert output.lengths.item() == output.log_probs.shape[1] == model.output_lengths(samples)
    counts = model.output_lengths(torch.tensor([1, 16_000]))
    assert counts.tolist() == [1, -(-100 // subsampling)]


def test_a_model_comes_back_from_its_config_and_weights():
    model = Recognizer(small_config({}), 29).eval()
    config = json.loads(json.dumps(model.config.model_dump()))
    again = FAMILIES[model.family](config, 29).eval()
    again.load_state_dict(model.state_dict())
    batch = waves([0.5])
    assert torch.equal(again(*batch).log_probs, model(*batch).log_probs)


def test_ten_real_utterances_are_learned_by_heart_within_250_steps():
    soundfile = pytest.importorskip("soundfile")
    texts, clips = [], []
    for listing in sorted(shared("data/speech").rglob("*.trans.txt")):
        for line in listing.read_text().splitlines():
            name, text = line.split(" ", 1)
            clip, _ = soundfile.read(listing.parent / f"{name}.flac", dtype="float32")
            if 32_000 <= len(clip) < 40_000 and normalize(text) not in texts:
                texts.append(normalize(text))
                clips.append(torch.from_numpy(clip))
    texts, clips = texts[:10], clips[:10]
    assert len(texts) == 10
    vocabulary = Vocabulary.characters()
    targets = torch.tensor([index for text in texts for index in vocabulary.encode(text)])
    sizes = torch.tensor([len(text) for text in texts])
    batch = torch.nn.utils.rnn.pad_sequence(clips, True), torch.tensor([len(c) for c in clips])
    torch.manual_seed(0)
    model = Recognizer(named_size("tiny", {"dropout": 0.0}), len(vocabulary))
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
