"""Language models that write with different symbols: where texts meet, what is taught, that it is
learned.
"""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill.config.language_model import LMDistillConfig
from distill.language_model.across import Across, meeting
from distill.language_model.batch import TextBatch, text_batch
from distill.language_model.model import LanguageModel, LMObjective
from distill.losses import functions as losses
from jobs.kinds import language_model
from lact_asr.config.text import TextConfig
from lact_asr.text.bpe import BPEVocabulary
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError
from tests.distill.language_model.test_language_model import WORDS, sentences, step
from tests.distill.language_model.test_language_model import model as by_characters
from tests.distill.tiny_models import per_label, shares_of

CHARACTERS = Vocabulary.characters()
PIECES = BPEVocabulary.learn(sentences(200), 45)
ANY = TextConfig(alphabet="texts", case="keep")
RARE = BPEVocabulary.learn(["ein Zug", "eine Züge", "naïve Züge"] * 9, 290, ANY)


def by_pieces(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    config = by_characters().config.model_copy(update={"blocks": 3})
    return LanguageModel(config, len(PIECES))


def batch(texts: list[str], vocabulary: Vocabulary) -> TextBatch:
    return text_batch([vocabulary.encode(text) for text in texts], texts)


def written(label: int, vocabulary: Vocabulary, first: bool) -> str:
    """What a symbol writes, as one would do it by hand."""
    piece = vocabulary.symbols[label - 1].replace("\u2581", " ")
    return piece.removeprefix(" ") if first and vocabulary is PIECES else piece


def stretches_of(text: str, vocabulary: Vocabulary, model: LanguageModel) -> dict[str, float]:
    """How likely a text is up to the end of each symbol, in float64: prefix to log-probability."""
    row = vocabulary.encode(text)
    states = model(torch.tensor([[0, *row]]))[0]
    scores = model.head(states).detach().double().log_softmax(-1)
    prefix, total, found = "", 0.0, {}
    for place, label in enumerate(row):
        prefix += written(label, vocabulary, place == 0)
        total = total + scores[place, label]
        found[prefix] = total
    return {**found, "": total + scores[len(row), 0]}  # the end is known by no prefix


def reference(
    text: str, student: LanguageModel, teacher: LanguageModel, temperature: float
) -> float:
    """The divergence over stretches, one after the other."""
    mine = stretches_of(text, CHARACTERS, student)
    theirs = stretches_of(text, PIECES, teacher)
    sum_, before = 0.0, (0.0, 0.0)
    for prefix in [each for each in mine if each in theirs]:
        q, p = (float(each[prefix]) - b for each, b in zip((mine, theirs), before, strict=True))
        p, q = math.exp(p / temperature), math.exp(q / temperature)
        sum_ += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        before = (float(mine[prefix]), float(theirs[prefix]))
    return temperature**2 * sum_


def test_texts_meet_where_a_symbol_of_both_ends():
    # T H E _ C A T beside THE _C AT, and nothing beside a symbol without bytes
    assert meeting([1] * 7, [3, 2, 2]) == ([0, 0, 0, 1, 1, 2, 2, 3], [0, 1, 2, 3])
    assert meeting([2, 3, 1], [3, 2, 1]) == ([0, 0, 1, 2], [0, 0, 1, 2])
    assert meeting([1, 1], [0, 1, 1]) == ([0, 1, 2], [0, 0, 1, 2])
    assert meeting([1, 1], [3]) is None
    assert meeting([1, 1], []) is None


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
def test_the_bytes_of_symbols_are_those_of_the_text(words: list[str]):
    text = " ".join(words)
    for vocabulary in (CHARACTERS, PIECES):
        assert sum(vocabulary.widths(vocabulary.encode(text))) == len(text.encode())


def test_letters_that_are_written_in_bytes_count_as_such():
    for text in ("naïve Züge", "日本 Zug", "Züge"):
        assert sum(RARE.widths(RARE.encode(text))) == len(text.encode())
    found = Vocabulary.found(["naïve Züge"], ANY)
    assert sum(found.widths(found.encode("Züge"))) == 5


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk", [3, 4096])
def test_what_is_taught_is_the_likelihood_of_stretches(temperature, chunk):
    student, teacher = by_characters(), by_pieces(seed=1)
    texts = ["THE CAT SAT", "ON A", "DOG AND HER DOG"]
    config = LMDistillConfig(temperature=temperature)
    objective = LMObjective(student, chunk, teacher, config, across=Across(CHARACTERS, PIECES))
    loss = objective(batch(texts, CHARACTERS), 1.0)
    expected = sum(reference(text, student, teacher, temperature) for text in texts)
    assert float(loss.parts["kd"].value) == pytest.approx(expected, rel=1e-4)
    alone = LMObjective(student, 64)(batch(texts, CHARACTERS), 1.0).parts["lm"].value
    assert float(loss.parts["lm"].value) == pytest.approx(float(alone), rel=1e-5)
    total = 0.3 * float(alone) + 0.7 * expected
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-4)
    assert int(loss.weight) == sum(map(len, texts)) + len(texts)
    loss.total.backward()
    assert all(each.grad is not None for each in student.parameters())
    assert all(each.grad is None for each in teacher.parameters())


def test_a_text_teaches_the_same_whatever_else_is_in_the_batch():
    texts = ["THE CAT SAT", "ON", "A MAT AND SO DID HER DOG"]
    student, teacher = by_characters(), by_pieces(seed=1)
    objective = LMObjective(student, 64, teacher, across=Across(CHARACTERS, PIECES))
    taught = lambda some: float(objective(batch(some, CHARACTERS), 1.0).parts["kd"].value)
    assert taught(texts) == pytest.approx(sum(taught([text]) for text in texts), rel=1e-4)


def test_a_text_that_the_teacher_cannot_write_is_learned_and_not_taught():
    few = Vocabulary([each for each in CHARACTERS.symbols if each != "Z"])
    student, teacher = by_characters(), LanguageModel(by_characters().config, len(few))
    objective = LMObjective(student, 64, teacher, across=Across(CHARACTERS, few))
    one, both, none = (
        objective(batch(texts, CHARACTERS), 1.0).parts
        for texts in (["A CAT"], ["A CAT", "ZOO"], ["ZOO"])
    )
    assert float(both["kd"].value) == pytest.approx(float(one["kd"].value), rel=1e-5)
    assert float(both["lm"].value) > float(one["lm"].value)
    assert float(none["kd"].value) == 0


def test_a_model_beside_itself_pays_nothing_and_stands_still():
    p = torch.tensor([-0.5, -3.0, -20.0, 0.0])
    for temperature in (1.0, 2.0, 100.0):
        q = p.clone().requires_grad_()
        cost = losses.likelihood_kd(q, p, temperature) / temperature**2
        cost.sum().backward()
        assert cost.abs().max() == 0 and q.grad.abs().max() < 1e-6


def test_two_outcomes_diverge_less_than_all_of_them():
    torch.manual_seed(0)
    p, q = torch.randn(2, 50, 9).mul(3).log_softmax(-1)
    whole = losses.frame_kd(q, p, 1.0)
    for symbol in range(9):
        part = losses.likelihood_kd(q[:, symbol], p[:, symbol], 1.0)
        assert (part >= 0).all() and (part <= whole + 1e-5).all()


def test_a_uniform_student_costs_what_is_expected_of_it():
    student = by_characters()
    torch.nn.init.zeros_(student.head.weight)
    across = Across(CHARACTERS, PIECES)
    loss = LMObjective(student, 7, by_pieces(seed=1), across=across)(
        batch(["CAT SAT"], CHARACTERS), 0.1
    )
    assert shares_of(per_label(loss)) == pytest.approx({"lm": 1, "kd": 1}, rel=1e-5)


def test_models_that_write_other_texts_are_refused():
    with pytest.raises(DataError, match="another form than the student"):
        Across(CHARACTERS, RARE)


def test_a_student_with_its_own_vocabulary_learns_from_a_teacher_alone(tmp_path: Path):
    """No text is judged (alpha: 1): whatever it knows, it has from the likelihood of stretches."""
    pieces = {"vocabulary": "bpe", "vocabulary_size": 45}
    teacher, _ = step(tmp_path, "teacher", **pieces)
    student, rows = step(
        tmp_path,
        "student",
        teacher=teacher.checkpoint,
        own_vocabulary=True,
        distill={"alpha": 1.0},
    )
    taught = [row["kd"] for row in rows if "kd" in row]
    assert sum(taught[-5:]) < 0.5 * sum(taught[:5])
    assert student.perplexity < 8 < len(CHARACTERS), "of a symbol, and even odds are 29"
    assert student.teacher_perplexity == pytest.approx(teacher.perplexity, rel=1e-4)
    assert student.teacher_perplexity > student.perplexity, "pieces are longer than letters"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": None}, "goes with a teacher"),
        ({"teacher_layers": (1,)}, "wants the teacher's vocabulary"),
        ({"distill": {"attention_weight": 0.1}}, "distill.attention_weight compares place by"),
    ],
)
def test_what_wants_one_vocabulary_is_refused_with_two(settings, message):
    given = {"train": "t", "dev": "d", "teacher": "t", "own_vocabulary": True, **settings}
    with pytest.raises(ValueError, match=message):
        language_model.Settings.model_validate(given)
