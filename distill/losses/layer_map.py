"""Which teacher layer a student layer is compared with.

`uniform` spreads the student's layers evenly over the teacher's, the last on the last. `cka` looks:
linear centred kernel alignment (Kornblith et al. 2019) of every pair of layers on real speech, and
of all mappings that never go backwards the one with the largest sum. It compares what the student
is at that moment; on an untrained one it finds which of the teacher's layers are close to the
input. Layers are counted from 1, as in a pipeline file.

Shapes: B batch, S student frames, D width, L_S and L_T layers of student and teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Pairs = list[tuple[int, int]]  # (student layer, teacher layer)


def uniform(student_layers: int, teacher_layers: int) -> Pairs:
    """Layer i of L_S to the teacher's round(i L_T / L_S), at least 1."""
    return [
        (i, max(1, int(i * teacher_layers / student_layers + 0.5)))
        for i in range(1, student_layers + 1)
    ]


def check(pairs: Sequence[tuple[int, int]], student_layers: int, teacher_layers: int) -> Pairs:
    """The pairs as they are; ValueError if one names a layer that is not there."""
    for student, teacher in pairs:
        if not (1 <= student <= student_layers and 1 <= teacher <= teacher_layers):
            raise ValueError(
                f"[{student}, {teacher}] names no pair of layers: the student has "
                f"{student_layers}, the teacher {teacher_layers}, counted from 1"
            )
    return list(pairs)


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Similarity 0..1 of two sets of states of the same frames, [N,D] and [N,D'].

    It does not change with a rotation or a scale of either.
    """
    one, other = (x.double() - x.double().mean(0) for x in (one, other))
    cross = (one.T @ other).square().sum()
    norms = (one.T @ one).norm() * (other.T @ other).norm()
    return float(cross / norms.clamp_min(1e-30))


def similarities(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """[L_S,L_T] of states [B,S,D] on one grid, over the frames in the mask [B,S]."""
    return torch.tensor([[linear_cka(s[mask], t[mask]) for t in teacher] for s in student])


def best_monotone(similarity: Tensor) -> Pairs:
    """The mapping with the largest sum of similarities in which no later layer maps before an
    earlier one's; of equal ones the one with the earliest layers.
    """
    rows, columns = similarity.shape
    best = torch.zeros(rows, columns, dtype=torch.float64)  # with row i mapped to column j
    for row in range(rows):
        before = best[row - 1].cummax(0).values if row else 0.0
        best[row] = before + similarity[row].double()
    chosen, limit = [], columns
    for row in reversed(range(rows)):
        limit = int(best[row, :limit].argmax()) + 1
        chosen.append((row + 1, limit))
    return chosen[::-1]


def table(similarity: Tensor, pairs: Pairs) -> str:
    """The matrix for people, the chosen teacher layer of each row marked, the uniform one named."""
    rows, columns = similarity.shape
    lines = ["CKA       " + " ".join(f"{f't{j}':>6}" for j in range(1, columns + 1))]
    for (student, teacher), (_, even) in zip(pairs, uniform(rows, columns), strict=True):
        cells = [
            f"{value:5.2f}{'*' if j == teacher else ' '}"
            for j, value in enumerate(similarity[student - 1].tolist(), 1)
        ]
        moved = f"  t{teacher} instead of t{even}" if teacher != even else ""
        lines.append(f"student {student:>2}" + " ".join(cells) + moved)
    return "\n".join(lines)
