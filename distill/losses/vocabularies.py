"""What can be compared when student and teacher write differently, and what cannot.

Under one vocabulary a frame's distributions can be compared. Under two they cannot, whatever their
sizes: by index they are noise. What stays sound is the teacher's transcript, written anew in the
student's symbols (`kd: sequence`), and a map of its hidden states that learns the student's symbols
(`distill.losses.projector`). Language models, which say how likely a text is, can be compared by
stretches of it (`distill.language_model.across`).
"""

from dataclasses import replace

import torch

from distill.config.distillation import DistillConfig
from lact_asr.data.batch import Batch
from lact_asr.decoding.greedy import collapse
from lact_asr.model.interface import CTCOutput
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError


def check_vocabularies(student: Vocabulary, teacher: Vocabulary, config: DistillConfig) -> None:
    """DataError, naming the symbols in which they differ, where that matters."""
    if student == teacher or config.kd == "sequence" or config.target != "outputs":
        return
    pairs = zip(student.symbols, teacher.symbols, strict=False)
    moved = next((f"id {i} is {a!r} and {b!r}" for i, (a, b) in enumerate(pairs, 1) if a != b), "")
    extra = sorted(set(student.symbols) ^ set(teacher.symbols))
    some = ", ".join(map(repr, extra[:8])) + (" ..." if len(extra) > 8 else "")
    named = f"only one of them has {some}" if extra else moved
    raise DataError(
        f"student and teacher do not share a vocabulary ({len(student)} and {len(teacher)} symbols "
        f"with the blank; {named}): a frame's distributions cannot be compared. Write vocabulary: "
        "teacher, or distill.target: projector, or distill.kd: sequence"
    )


def with_teacher_transcripts(
    said: CTCOutput, batch: Batch, teacher: Vocabulary, student: Vocabulary
) -> Batch:
    """The batch with the teacher's greedy transcripts, in the student's symbols, as its texts."""
    labels = collapse(said.log_probs.argmax(-1), said.lengths)
    if teacher != student:
        labels = [student.encode(teacher.decode(row)) for row in labels]
    device = batch.targets.device
    return replace(
        batch,
        targets=torch.tensor([label for row in labels for label in row], device=device).long(),
        target_lengths=torch.tensor([len(row) for row in labels], device=device),
    )
