"""Teachers of other libraries: models of random weights, saved by their own library, read by us."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from distill.config.distillation import DistillConfig
from distill.models.foreign_files import bundle, from_torchaudio, from_transformers, map_symbols
from distill.models.registry import FAMILIES
from distill.objective import DistillObjective
from distill.teachers import Live
from jobs.kinds import adopt, cache, distill, evaluate
from lact_asr.data.manifest import write_manifest
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.utils.errors import DataError
from tests.distill.test_wiring import job
from tests.distill.tiny_models import batch, part, tiny_baseline, utterances

LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"
LABELS = ["-", "|", *LETTERS]
ARGUMENTS: dict[str, Any] = {
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(16, 10, 5), (16, 8, 8), (16, 8, 8)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 64,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.1,
    "aux_num_out": len(LABELS),
}


def torchaudio_model(folder: Path, first: bool = False, **changes: Any) -> tuple[Any, Path]:
    """A model of torchaudio and its state dict."""
    from torchaudio.models import wav2vec2_model

    torch.manual_seed(0)
    model = wav2vec2_model(**{**ARGUMENTS, "encoder_layer_norm_first": first, **changes}).eval()
    torch.nn.init.normal_(model.aux.weight)
    torch.save(model.state_dict(), folder / "weights.pt")
    return model, folder / "weights.pt"


@pytest.fixture
def huggingface() -> Any:
    return pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install '.[transformers]'"
    )


CONVOLUTIONS = {"conv_dim": [16] * 3, "conv_kernel": [10, 8, 8], "conv_stride": [5, 8, 8]}
SMALL = {
    **CONVOLUTIONS, "num_feat_extract_layers": 3, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4, "vocab_size": 32, "pad_token_id": 0,
}  # fmt: skip
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]


def huggingface_folder(
    package: Any, folder: Path, kind: str = "Wav2Vec2", **changes: Any
) -> tuple[Any, Path]:
    """A model of transformers and the folder that it and its processor were saved to."""
    torch.manual_seed(0)
    config = getattr(package, f"{kind}Config")(**{**SMALL, **changes})
    model = getattr(package, f"{kind}ForCTC")(config).eval()
    torch.nn.init.normal_(model.lm_head.weight)
    (folder / "vocab").write_text(json.dumps({name: n for n, name in enumerate(TOKENS)}))
    tokenizer = package.Wav2Vec2CTCTokenizer(str(folder / "vocab"))
    extractor = package.Wav2Vec2FeatureExtractor(do_normalize=True)
    package.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder / "saved")
    model.save_pretrained(folder / "saved")
    return model, folder / "saved"


@pytest.mark.parametrize("first", [False, True])
def test_a_torchaudio_model_says_here_what_it_says_there(speech, tmp_path, first):
    theirs, weights = torchaudio_model(tmp_path, first)
    arguments = {**ARGUMENTS, "encoder_layer_norm_first": first}
    found = from_torchaudio(weights, arguments, LABELS, normalize=True)
    assert found.vocabulary == Vocabulary.characters() and found.unused == []
    spoken = batch(speech, 2)
    ours = found.model(spoken.waves, spoken.wave_lengths)
    for row, length in enumerate(spoken.wave_lengths.tolist()):
        wave = spoken.waves[row : row + 1, :length]
        logits, _ = theirs(F.layer_norm(wave, wave.shape))
        frames = int(ours.lengths[row])
        assert frames == logits.shape[1] == found.model.output_lengths(length)
        order = [0, *(1 + (" " + LETTERS).replace(" ", "|").index(c.replace(" ", "|"))
                      for c in found.vocabulary.symbols)]  # fmt: skip
        expected = logits[0][:, order].log_softmax(-1)
        torch.testing.assert_close(ours.log_probs[row, :frames], expected, atol=1e-4, rtol=1e-3)
    assert [states.shape[-1] for states in ours.hidden] == [32, 32]
    alone = found.model(*(lambda one: (one.waves, one.wave_lengths))(part(spoken, [0])))
    frames = int(alone.lengths[0])
    torch.testing.assert_close(alone.log_probs[0], ours.log_probs[0, :frames])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Wav2Vec2", {}),
        ("Wav2Vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
        ("Hubert", {}),
    ],
)
def test_a_model_of_transformers_says_here_what_it_says_there(
    speech, tmp_path, huggingface, kind, changes
):
    theirs, folder = huggingface_folder(huggingface, tmp_path, kind, **changes)
    found = from_transformers(folder)
    assert found.vocabulary == Vocabulary.characters()
    assert found.unused == ["<s>", "</s>", "<unk>"]
    extractor = huggingface.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    spoken = batch(speech, 2)
    ours = found.model(spoken.waves, spoken.wave_lengths)
    for row, length in enumerate(spoken.wave_lengths.tolist()):
        wave = spoken.waves[row, :length].numpy()
        heard = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            logits = theirs(heard).logits[0]
        frames = int(ours.lengths[row])
        assert frames == len(logits) == found.model.output_lengths(length)
        written = ["|" if c == " " else c for c in found.vocabulary.symbols]
        order = [0, *(TOKENS.index(each) for each in written)]
        expected = logits[:, order].log_softmax(-1)
        torch.testing.assert_close(ours.log_probs[row, :frames], expected, atol=2e-3, rtol=1e-3)
    assert "saved" not in json.dumps(found.model.config.arguments), "no place of a folder is kept"


def test_a_model_that_was_saved_in_half_precision_runs_in_whole(speech, tmp_path, huggingface):
    theirs, folder = huggingface_folder(huggingface, tmp_path)
    theirs.half().save_pretrained(folder)
    found = from_transformers(folder)
    assert {each.dtype for each in found.model.parameters()} == {torch.float32}
    again = FAMILIES["foreign"](found.model.config.model_dump(), len(found.vocabulary))
    assert {each.dtype for each in again.parameters()} == {torch.float32}
    spoken = batch(speech, 1)
    assert found.model(spoken.waves, spoken.wave_lengths).log_probs.isfinite().all()


def test_an_adopted_teacher_is_kept_teaches_and_is_evaluated_like_any_other(speech, tmp_path):
    _, weights = torchaudio_model(tmp_path)
    settings = adopt.Settings(weights=weights, arguments=ARGUMENTS, labels=LABELS)
    made = adopt.run(settings, job(tmp_path / "adopt")[0])
    assert (made.symbols, made.layers, made.unused) == (29, 2, [])
    assert made.frame_rate == pytest.approx(50, abs=0.01)
    write_manifest(tmp_path / "train.jsonl", list(utterances(speech)[:4]))
    files = {"teacher": made.checkpoint, "manifest": tmp_path / "train.jsonl"}
    kept = cache.run(
        cache.Settings(**files, hidden="all", batch_seconds=9.0), job(tmp_path / "cache")[0]
    )
    done = distill.run(
        distill.Settings(
            teacher=made.checkpoint, cache=kept.cache, preset="plain",
            train=files["manifest"], dev=files["manifest"], model={"layers": 1},
            distill={"feature_weight": 0.1, "layerwise_weight": 0.1, "curriculum": "all_on"},
            training={"max_steps": 2, "batch_seconds": 12},
        ),
        job(tmp_path / "student")[0],
    )  # fmt: skip
    assert (done.steps, done.steps_skipped) == (2, 0)
    heard = evaluate.run(
        evaluate.Settings(checkpoint=made.checkpoint, manifest=files["manifest"]),
        job(tmp_path / "evaluate")[0],
    )
    assert heard.wer > 0.5, "its weights are random"


def test_what_an_adopted_teacher_teaches_is_what_it_says_at_the_students_rate(speech, tmp_path):
    _, weights = torchaudio_model(tmp_path)
    found = from_torchaudio(weights, ARGUMENTS, LABELS, normalize=False)
    assert Live(found.model, found.vocabulary).frame_rate == pytest.approx(50, abs=0.01)
    source, spoken = Live(found.model, found.vocabulary), batch(speech, 2)
    taught = DistillObjective(tiny_baseline(), source, DistillConfig(), vocabulary=found.vocabulary)
    assert taught.ratio == pytest.approx(2, abs=1e-3)
    taught.begin_step([spoken], lambda sums: sums)
    loss = taught(spoken, 0.0)
    loss.total.backward()
    assert loss.parts["kd"].value > 0
    assert all(each.grad.isfinite().all() for each in taught.trainable.parameters())


def test_bundles_of_torchaudio_are_known_by_name():
    arguments, labels, normalize = bundle("WAV2VEC2_ASR_BASE_960H")
    assert len(labels) == arguments["aux_num_out"] == 29 and not normalize
    assert bundle("HUBERT_ASR_LARGE")[2] is True
    with pytest.raises(DataError, match=r"no bundle 'WAV2VEC2': write one of .*HUBERT_ASR_XLARGE"):
        bundle("WAV2VEC2")


def test_weights_of_a_wrapped_bundle_and_of_something_else(tmp_path):
    theirs, weights = torchaudio_model(tmp_path)
    wrapped = {f"model.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(wrapped, weights)
    from_torchaudio(weights, ARGUMENTS, LABELS, normalize=True)
    with pytest.raises(DataError, match="labels are to be all 29 that the model gives"):
        from_torchaudio(weights, ARGUMENTS, LABELS[1:], normalize=True)
    deeper = {**ARGUMENTS, "encoder_num_layers": 3}
    with pytest.raises(DataError, match=r"(?s)do not fit the model: .*layers.2"):
        from_torchaudio(weights, deeper, LABELS, normalize=True)
    torch.save(theirs.aux, weights)  # a module, not its state
    with pytest.raises(DataError, match="is no state dict"):
        from_torchaudio(weights, ARGUMENTS, LABELS, normalize=True)


def test_a_folder_that_is_no_ctc_model_over_samples_is_refused_in_words(tmp_path):
    with pytest.raises(DataError, match=r"has no config.json: name a folder that `save_pretrain"):
        from_transformers(tmp_path)
    for about, message in (
        ({"architectures": ["GPT2LMHeadModel"]}, "holds GPT2LMHeadModel: a teacher has a CTC head"),
        ({"architectures": ["ParakeetForCTC"]}, "teach its transcripts, kind `pseudo_labels`"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(about))
        with pytest.raises(DataError, match=message):
            from_transformers(tmp_path)


def test_symbols_are_mapped_by_what_they_write():
    found = map_symbols(["a", "B", "<s>", "|", "_", "ß", "b"], 4, "|", upper=True)
    assert found.vocabulary.symbols == (" ", "A", "B", "ß")
    assert found.numbers == (4, 3, 0, 1, 5) and found.unused == ["<s>", "b"]
    plain = map_symbols(["a", "B", "|", "_"], 3, "|", upper=False)
    assert plain.vocabulary.symbols == (" ", "B", "a") and plain.numbers == (3, 2, 1, 0)
    with pytest.raises(DataError, match="3 of its 5 symbols are no single characters"):
        map_symbols(["_", "the", "ing", "er", "a"], 0, "|", upper=True)


def test_an_adopted_checkpoint_is_read_again_with_the_same_weights(tmp_path):
    theirs, weights = torchaudio_model(tmp_path)
    settings = adopt.Settings(weights=weights, arguments=ARGUMENTS, labels=LABELS)
    made = adopt.run(settings, job(tmp_path / "adopt")[0])
    model, vocabulary, described = checkpoint.load_model(made.checkpoint, FAMILIES)
    assert described["family"] == "foreign" and vocabulary == Vocabulary.characters()
    for name, value in theirs.state_dict().items():
        assert model.inner.model.state_dict()[name].equal(value), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of the two"),
        ({"folder": "a", "weights": "b"}, "one of the two"),
        ({"weights": "b"}, "with a bundle, or with arguments"),
        ({"weights": "b", "bundle": "X", "arguments": {"a": 1}}, "with a bundle, or with"),
    ],
)
def test_a_model_is_named_in_one_way(given, message):
    with pytest.raises(ValueError, match=message):
        adopt.Settings(**given)
