"""Distillation losses as pure functions: one value per frame, the caller masks, weighs and sums.

Distributions come as log-probabilities in float32 and are softened here: softmax(log p / tau) is
softmax(logits / tau), whatever constant the logits lost. Values in nats, the teacher never gets a
gradient. Sums over frames, divided once by all frames of a step, do not depend on padding, on the
cut into micro-batches or on the number of processes; a mean per batch would.

Shapes: B batch, T frames, V vocabulary with the blank at 0, K symbols kept, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SURE = 1e-5  # nats: nothing is thought likelier, for the logarithm of what is left
NEVER = -1e4  # logarithm of a weight of 0 that can be subtracted from itself


class TopK(NamedTuple):
    """A teacher's K likeliest symbols per frame, with their exact softened log-probabilities."""

    ids: Tensor  # [B,T,K] int64
    log_probs: Tensor  # [B,T,K] float32, at the temperature they were taken at


def soften(log_probs: Tensor, temperature: float) -> Tensor:
    """The distribution at a temperature, as log-probabilities of the same shape."""
    return (log_probs.float() / temperature).log_softmax(-1)


def frame_kd(student: Tensor, teacher: Tensor, temperature: float, still: bool = True) -> Tensor:
    """tau^2 KL(teacher || student) per frame: [B,T,V] twice to [B,T]. Hinton et al. 2015.

    The square keeps gradients of one size as tau changes. A uniform student costs
    tau^2 (ln V - H_tau), two sets of small logits about (var_teacher + var_student) / 2 at any tau.
    """
    target = soften(teacher.detach() if still else teacher, temperature)
    divergence = F.kl_div(soften(student, temperature), target, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(-1)


def top_k(log_probs: Tensor, k: int, temperature: float) -> TopK:
    """What a teacher's frames [B,T,V] are reduced to; K is at most V - 1."""
    kept = soften(log_probs.detach(), temperature).topk(min(k, log_probs.shape[-1] - 1), dim=-1)
    return TopK(kept.indices, kept.values)


def top_k_kd(student: Tensor, teacher: TopK, temperature: float) -> Tensor:
    """tau^2 KL over K symbols and one bucket for all the rest: [B,T,V] to [B,T].

    The bucket's mass is exact on both sides, so the value lies between 0 and the full KL and is
    zero for a perfect student. Renormalizing over the K symbols instead is off by 26 nats at
    tau = 3 and V = 32,000; leaving the rest out can make the "divergence" negative.
    """
    student = soften(student, temperature)
    kept = student.gather(-1, teacher.ids)  # [B,T,K]
    rest = student.scatter(-1, teacher.ids, -torch.inf).logsumexp(-1)  # [B,T]
    mass = teacher.log_probs.exp()
    left = (1 - mass.sum(-1)).clamp_min(0)  # rounding may leave -1e-7
    divergence = (mass * (teacher.log_probs - kept)).sum(-1)
    return temperature**2 * (divergence + torch.xlogy(left, left) - left * rest)


def likelihood_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """tau^2 KL between p^(1/tau) and q^(1/tau), each beside all else: log-probabilities of the same
    events [N] twice to [N]. Minixhofer et al. 2025, binarized.
    """
    p, q = (each.float().clamp(max=-SURE) / temperature for each in (teacher.detach(), student))
    rest_p, rest_q = (-torch.expm1(each) for each in (p, q))
    return temperature**2 * (p.exp() * (p - q) + rest_p * (rest_p.log() - rest_q.log()))


def drop_blank(log_probs: Tensor) -> Tensor:
    """[B,T,V] without the blank, renormalized over the V - 1 symbols."""
    return log_probs[..., 1:].log_softmax(-1)


def select_frames(teacher: Tensor, mask: Tensor, policy: str, reach: int) -> Tensor:
    """[B,T] bool, the valid frames that take part in the KD loss, from the teacher's [B,T,V].

    `nonblank`: the teacher's best symbol is none; `selected`: within `reach` frames of such a
    frame; otherwise all. Frames left out count as zero, they do not raise the weight of the others.
    """
    if policy not in ("nonblank", "selected"):
        return mask
    spoken = (teacher.argmax(-1) != 0) & mask
    if policy == "nonblank":
        return spoken
    near = F.max_pool1d(spoken[:, None].float(), 2 * reach + 1, stride=1, padding=reach)
    return (near[:, 0] > 0) & mask


def guided(student: Tensor, teacher: Tensor) -> Tensor:
    """-ln q(best symbol of the teacher) per frame [B,T], zero where that is the blank.

    Kurata and Audhkhasi 2019, "Guiding CTC posterior spike timings": only spikes are imposed.
    """
    best = teacher.argmax(-1)
    cost = -student.gather(-1, best[..., None])[..., 0]
    return cost.masked_fill(best == 0, 0.0)


def layer_norm_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square between layer-normed vectors per frame: [B,T,D] twice to [B,T].

    2 - 2 corr: in 0..4, about 2 at the start, whatever the scale of hidden states. The original
    raw mean square was 150 to 200 because it grows with that scale.
    """
    width = student.shape[-1:]
    difference = F.layer_norm(student.float(), width) - F.layer_norm(teacher.float(), width)
    return difference.square().mean(-1)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos per frame: [B,T,D] twice to [B,T], in 0..2, about 1 at the start."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def contrastive(
    student: Tensor, teacher: Tensor, mask: Tensor, apart: int, temperature: float
) -> Tensor:
    """-ln of the share that the teacher's own frame gets among those of its utterance: [B,T,D]
    twice and valid frames [B,T] to [B,T]. InfoNCE, van den Oord et al. 2018.

    The others are all valid frames of the same utterance at least `apart` frames away, so that the
    value of a frame does not depend on what else is in the batch; about ln of their number at the
    start.
    """
    one, other = (F.normalize(x.float(), dim=-1) for x in (student, teacher.detach()))
    scores = one @ other.transpose(1, 2) / temperature  # [B,T,T]
    choice = scores.masked_fill(~candidates(mask, apart), -torch.inf).log_softmax(-1)
    return -choice.diagonal(dim1=1, dim2=2)


def candidates(mask: Tensor, apart: int) -> Tensor:
    """[B,T,T]: a frame, and the valid ones of its utterance at least `apart` frames from it."""
    place = torch.arange(mask.shape[1], device=mask.device)
    distance = (place[:, None] - place).abs()
    return ((distance >= max(apart, 1)) & mask[:, None]) | (distance == 0)


def original_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """The original feature loss: the mean square over the width, divided by the width once more.

    [B,T,D] twice to [B,T]; at the start (var_student + var_teacher) / D, whatever that is.
    """
    difference = student.float() - teacher.float()
    return difference.square().mean(-1) / difference.shape[-1]


UNRELATED = {"ln_mse": 2.0, "cosine": 1.0}  # what they are between states that share nothing
FEATURE = {"ln_mse": layer_norm_mse, "cosine": cosine_distance, "original": original_mse}


def attention(student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
    """KL(teacher || student) of the attention of each query, the mean over heads: to [B,T].

    Logarithms of attention weights [B,H,T,T], -inf where a query does not look, and valid keys
    `seen` [B,T]. The teacher's are renormalized over the keys that both look at: what lies outside
    a student's window it cannot learn. With other numbers of heads, their mean is compared. 0 to
    ln T; about half the sum of variances for small scores. Zagoruyko and Komodakis 2017 asked for
    maps; the divergence is that of Jiao et al. 2020 (TinyBERT) with a scale that has a meaning.
    """
    mine, theirs = _comparable(student, teacher, seen)
    return (theirs.exp() * (theirs - mine)).sum(-1).mean(1)


def original_attention(
    student: Tensor, teacher: Tensor, seen: Tensor, temperature: float
) -> Tensor:
    """The original attention loss, tau^2 / T times a `batchmean`: a sum over heads, softened.

    As `attention`, about H times as large.
    """
    mine, theirs = _comparable(student, teacher, seen, temperature)
    return temperature**2 * (theirs.exp() * (theirs - mine)).sum(-1).sum(1)


def _comparable(
    student: Tensor, teacher: Tensor, seen: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Both over the keys that both look at, softened; 0 for the others, and for none at all."""
    common = student.isfinite().all(1, keepdim=True) & teacher.isfinite().all(1, keepdim=True)
    common = common & seen[:, None, None]  # [B,1,T,T]: all heads have one window
    common = common | ~common.any(-1, keepdim=True)
    alike, looks = student.shape[1] == teacher.shape[1], []
    for x in (student, teacher.detach()):
        x = x.float().masked_fill(~x.isfinite(), NEVER)
        x = x if alike else x.logsumexp(1, keepdim=True)  # log_softmax divides by the heads
        looks.append((x / temperature).masked_fill(~common, -torch.inf).log_softmax(-1))
    mine, theirs = (x.masked_fill(~common, NEVER) for x in looks)
    return mine, theirs


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum over [B,T] where the mask is True; what padding holds has no effect."""
    return values.masked_fill(~mask, 0.0).sum()
