"""Inner blocks that write characters where the output writes pieces of words."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from lact_asr.config.text import TextConfig
from lact_asr.config.training import CTCConfig
from lact_asr.data.batch import Batch
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.bpe import BPEVocabulary
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective
from lact_asr.training.spelling import Spelling
from lact_asr.training.trainer import FitResult
from lact_asr.utils.errors import Interrupted, Misfit
from tests.lact_asr.tiny_runs import MODEL, VOCABULARY, run, tones

SPELLED = CTCConfig(intermediate=(1, 2), intermediate_weight=0.4, intermediate_symbols="characters")
PIECES = BPEVocabulary.learn(["ABBA CAB DAD FACE EGG BAG ABACAB", "FEED A CABBAGE"] * 3, 40)


def model(layers: int = 3, **changes: object) -> Recognizer:
    torch.manual_seed(0)
    config = MODEL.model_dump() | {"layers": layers, **changes}
    return Recognizer(type(MODEL).model_validate(config), len(PIECES))


def spoken(folder: Path) -> Batch:
    return Reader(whole_corpus(tones(folder, 3), PIECES))[[0, 1, 2]]


def test_the_characters_of_a_vocabulary_are_those_of_its_pieces() -> None:
    assert PIECES.spelled() == VOCABULARY.spelled() == VOCABULARY
    form = TextConfig(alphabet="texts", case="lower")
    texts = ["über grüne wiesen"] * 300 + ["ein ☃"]
    german = BPEVocabulary.learn(texts, 300, form)
    assert "".join(german.spelled().symbols) == " beginrswü"
    assert german.spelled().form == form
    labels, lengths = Spelling(4, german).labels(["grüner ☃"])
    assert german.spelled().decode(labels.tolist()) == "grüner " and lengths.tolist() == [7]
    assert [each.dtype for each in Spelling(4, german).labels([])] == [torch.int64] * 2


def test_the_total_is_the_output_in_pieces_and_the_inner_blocks_in_characters(
    tmp_path: Path,
) -> None:
    batch = spoken(tmp_path)
    objective = CTCObjective(model(), SPELLED, PIECES)
    loss = objective(batch, 0.0)
    output = objective.model(batch.waves, batch.wave_lengths)
    spelling = objective.spelling
    assert spelling

    def ctc(log_probs: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        labels = [torch.tensor(vocabulary.encode(text)) for text in batch.texts]
        counts = torch.tensor([len(each) for each in labels])
        frames = log_probs.transpose(0, 1)
        return F.ctc_loss(frames, torch.cat(labels), output.lengths, counts, reduction="sum")

    inner = [
        ctc(spelling.head(spelling.norm(states)).log_softmax(-1), VOCABULARY)
        for states in output.hidden[:2]
    ]
    own = ctc(output.log_probs, PIECES)
    expected = 0.6 * own + 0.4 * sum(inner) / 2
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.parts["intermediate"].value.item() == pytest.approx(
        (sum(inner) / 2).item(), rel=1e-5
    )
    assert loss.weight == sum(len(PIECES.encode(text)) for text in batch.texts)
    parameters = list(objective.trainable.parameters())
    found, wanted = (torch.autograd.grad(each, parameters) for each in (loss.total, expected))
    for one, other in zip(found, wanted, strict=True):
        assert torch.isfinite(one).all() and torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_in_bfloat16_characters_are_judged_in_float32(tmp_path: Path) -> None:
    objective = CTCObjective(model(), SPELLED, PIECES)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(spoken(tmp_path), 0.0)
    assert loss.total.dtype == loss.parts["intermediate"].value.dtype == torch.float32
    assert objective.spelling is not None
    assert objective.spelling.read_out(torch.zeros(1, 2, 32).bfloat16()).dtype == torch.float32


def test_an_interrupted_training_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    train = tones(tmp_path, 6)

    def trained(folder: str, **given: float) -> FitResult | Interrupted:
        objective = CTCObjective(model(dropout=0.2), SPELLED, PIECES)
        done, _ = run(tmp_path / folder, train, objective, vocabulary=PIECES, **given)
        return done

    whole = trained("whole")
    assert isinstance(trained("cut", stop_at=3), Interrupted)
    trained("cut")
    ends = [checkpoint.latest(tmp_path / name / "checkpoints") for name in ("whole", "cut")]
    weights = [checkpoint.load(each / checkpoint.WEIGHTS) for each in ends]
    beside = [checkpoint.load(each / "trainer.pt")["beside"] for each in ends]
    for one, other in (weights, beside):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {name.split(".")[0] for name in beside[0]} == {"spelling"}
    assert not any("spelling" in name for name in weights[0]), "nobody needs it to transcribe"
    first = CTCObjective(model(dropout=0.2), SPELLED, PIECES).spelling
    assert first and not torch.equal(first.head.weight, beside[0]["spelling.head.weight"])
    assert isinstance(whole, FitResult) and whole.step == 6
    plain = CTCObjective(model(dropout=0.2), replace_symbols(SPELLED), PIECES)
    with pytest.raises(Misfit, match="belongs to another objective"):
        run(tmp_path / "cut", train, plain, vocabulary=PIECES, max_steps=9)


def replace_symbols(config: CTCConfig) -> CTCConfig:
    return config.model_copy(update={"intermediate_symbols": "output"})


def test_a_text_whose_characters_no_frames_are_left_for_counts_in_pieces_alone(
    tmp_path: Path,
) -> None:
    batch = spoken(tmp_path)
    objective = CTCObjective(model(), SPELLED, PIECES)
    frames = int(objective.model.output_lengths(batch.wave_lengths)[0])
    texts = ["A" * frames, *batch.texts[1:]]
    loss, short = objective(batch, 0.0), objective(replace(batch, texts=texts), 0.0)
    assert short.counts["zeroed"] == 0
    assert torch.isfinite(short.total) and short.total < loss.total
    gradients = torch.autograd.grad(short.total, list(objective.trainable.parameters()))
    assert all(torch.isfinite(each).all() for each in gradients)


def test_characters_are_written_somewhere() -> None:
    with pytest.raises(ValidationError, match=r"names no block that writes them: write interm"):
        CTCConfig(intermediate_symbols="characters")
