"""Transcribe with a checkpoint and score: WER, CER, their parts, the worst utterances, speed.

Takes a manifest, or audio files; without transcripts the rates are null. Every hypothesis goes to
hypotheses.jsonl in the step's folder, the worst utterances with their alignment to worst.json. On
several GPUs each transcribes its share; the scores are those of one.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from jobs.job import Job
from jobs.kinds._inference import ListeningSettings, counter, utterances
from jobs.pipeline import Fraction, Resources
from lact_asr.config.base import Frozen
from lact_asr.config.precision import MEANING, Precision
from lact_asr.utils.files import write_atomic, write_json
from lact_asr.utils.spread import spread

if TYPE_CHECKING:
    from lact_asr.data.manifest import Utterance
    from lact_asr.decoding.metrics import Scores
    from lact_asr.decoding.transcribe import Hypothesis, Transcription
    from lact_asr.text.vocabulary import Vocabulary

HYPOTHESES = "hypotheses.jsonl"
_COUNTS = ("wer", "cer", "substitutions", "deletions", "insertions", "words")
RESOURCES = Resources(time="2h", cpus=2, memory_gb=16)


class Settings(ListeningSettings):
    """Which model, on what."""

    num_samples: int = Field(
        0, ge=0, description="utterances taken, evenly spread over the list; 0 is all"
    )
    samples: int = Field(20, ge=0, description="transcripts printed, evenly spread")
    worst: int = Field(10, ge=0, description="utterances with most errors, printed and stored")
    batch_seconds: float = Field(320.0, gt=0, description="padded audio of a batch, seconds")
    precision: Precision = Field("fp32", description=f"arithmetic of the model: {MEANING}")


class Result(Frozen):
    """Rates are fractions; null where there is no text to compare with."""

    wer: Fraction | None = Field(description="word errors per reference word")
    cer: Fraction | None = Field(description="character errors per reference character")
    substitutions: int | None = Field(description="words replaced")
    deletions: int | None = Field(description="words missing")
    insertions: int | None = Field(description="words too many")
    words: int | None = Field(description="words in the references")
    utterances: int = Field(description="utterances transcribed")
    audio_seconds: float = Field(description="their length, s")
    real_time_factor: float = Field(description="seconds of work per second of audio")
    hypotheses: Path = Field(description="JSON lines: id, text, reference, wer")


def run(settings: Settings, job: Job) -> Result:
    """Transcribe, store, print and score."""
    offered = utterances(settings)
    chosen = spread(offered, settings.num_samples or len(offered))
    transcription, heard = _transcribe(settings, chosen, job)
    scores = _scores(heard)
    factor = transcription.real_time_factor
    if job.rank == 0:
        _store(heard, job)
        for each in spread(heard, settings.samples):
            each.show()
        if scores:
            _show_worst(heard, settings.worst, job.directory / "worst.json")
            print(f"WER {scores.wer:.2%}, CER {scores.cer:.2%} ({_made_of(scores)})")
        print(
            f"Real-time factor {factor:.4f}: {1 / factor:.0f} times as fast as speech", flush=True
        )
    return Result(
        **(asdict(scores) if scores else dict.fromkeys(_COUNTS)),
        utterances=len(heard),
        audio_seconds=round(transcription.audio_seconds, 3),
        real_time_factor=round(factor, 6),
        hypotheses=job.directory / HYPOTHESES,
    )


def _store(heard: "Sequence[_Heard]", job: Job) -> None:
    """Write hypotheses.jsonl."""
    job.fence()
    write_atomic(job.directory / HYPOTHESES, "".join(each.line() for each in heard))


def _scores(heard: "Sequence[_Heard]") -> "Scores | None":
    """The rates and what they are made of; None where nobody wrote down what was said."""
    from lact_asr.decoding.metrics import score

    if not any(each.reference for each in heard):
        return None
    return score([each.reference for each in heard], [each.text for each in heard])


def _made_of(scores: "Scores") -> str:
    return (
        f"{scores.substitutions} substitutions, {scores.deletions} deletions, "
        f"{scores.insertions} insertions in {scores.words} words"
    )


@dataclass(frozen=True)
class _Heard:
    """One utterance: what was heard, and what was said (empty where nobody wrote it down)."""

    id: str
    text: str
    reference: str

    def rates(self) -> tuple[float | None, float | None]:
        """WER and CER, of an utterance with a reference."""
        from lact_asr.decoding.metrics import score

        if not self.reference:
            return None, None
        scores = score([self.reference], [self.text])
        return scores.wer, scores.cer

    def line(self) -> str:
        """One line of hypotheses.jsonl."""
        wer, _ = self.rates()
        row = {"id": self.id, "text": self.text, "reference": self.reference or None, "wer": wer}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def show(self) -> None:
        """The sample as the log has it."""
        wer, cer = self.rates()
        print(f"\nSample {self.id}")
        if self.reference:
            print(f"True: {self.reference}")
        print(f"Pred: {self.text}")
        if wer is not None:
            print("Match: ✓" if not wer else f"Match: WER {wer:.1%}, CER {cer:.1%}")


def _transcribe(
    settings: Settings, chosen: "list[Utterance]", job: Job
) -> "tuple[Transcription, list[_Heard]]":
    """What is heard, also beside what was said. Of a list with unreadable files the others' texts
    are stored, and Unheard is raised.
    """
    from distill.models.registry import FAMILIES
    from lact_asr.decoding.transcribe import Unheard, transcribe
    from lact_asr.distributed import processes
    from lact_asr.training import checkpoint

    path = checkpoint.find(settings.checkpoint)
    model, vocabulary, _ = checkpoint.load_model(path, FAMILIES)
    world = processes.start()
    if world.main:
        print(f"Transcribing {len(chosen)} utterances with {path}", flush=True)
    seconds, precision = settings.batch_seconds, settings.precision
    progress = counter(job, len(chosen), world.world_size)
    try:
        found = transcribe(
            model, vocabulary, chosen, seconds, world.device(), progress, precision, world=world
        )
    except Unheard as error:
        if world.main:
            _store(_beside(chosen, error.hypotheses, vocabulary), job)
            print(f"{HYPOTHESES} in {job.directory} has the texts of the others", flush=True)
        raise
    if world.world_size > 1:  # shares are not of one size
        job.report({"step": len(chosen), "total_steps": len(chosen)})
    return found, _beside(chosen, found.hypotheses, vocabulary)


def _beside(
    chosen: "Sequence[Utterance]", heard: "Sequence[Hypothesis]", vocabulary: "Vocabulary"
) -> list[_Heard]:
    """What was heard of each utterance, beside what was said; some may not have been heard."""
    texts = {each.id: each.text for each in heard}
    return [
        _Heard(each.id, texts[each.id], vocabulary.normal(each.text))
        for each in chosen
        if each.id in texts
    ]


def _show_worst(heard: "Sequence[_Heard]", count: int, file: Path) -> None:
    from lact_asr.decoding.metrics import worst

    ids, references = [each.id for each in heard], [each.reference for each in heard]
    mistakes = worst(ids, references, [each.text for each in heard], count)
    write_json(file, [asdict(mistake) for mistake in mistakes])
    for mistake in mistakes:
        print(f"\n{mistake.id}: {mistake.errors} errors in {mistake.words} words")
        print(mistake.alignment)
