"""The checks of the overfit gate: each returns what it measured, or raises `Defect` with it.

Legend: B utterances, N samples, L output frames, V symbols.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lact_asr.data.batch import Batch
from lact_asr.decoding.metrics import score
from lact_asr.model.interface import CTCModel
from lact_asr.text.ctc import frames_needed, uniform_ctc_loss

SHOWN = 3  # names in a message
Run = Callable[[Batch], tuple[Tensor, Tensor]]  # log_probs [B,L,V] and lengths [B]


class Defect(Exception):
    """A check has failed; the message says which, with its numbers."""


def frames(model: CTCModel, batch: Batch) -> str:
    """CTC needs an output frame per label, and one more between equal neighbours."""
    counts = model.output_lengths(batch.wave_lengths).tolist()
    pairs = list(zip(batch.ids, counts, map(frames_needed, labels(batch)), strict=True))
    short = [identity for identity, count, needed in pairs if count < needed]
    if short:
        raise Defect(
            f"frames: {len(short)} of {len(pairs)} utterances have more labels than output frames "
            f"({some(short)}): lower the subsampling"
        )
    return f"{min(count / needed for _, count, needed in pairs):.2f} per label or more"


def first_loss(
    model: CTCModel, batch: Batch, symbols: int, loss: float, bounds: tuple[float, float]
) -> str:
    """An untrained model is about as good as a uniform one, whose loss has a closed form.

    Outputs that are not normalized, wrong lengths and losses zeroed as impossible show here.
    """
    counts = model.output_lengths(batch.wave_lengths).tolist()
    pairs = list(zip(counts, labels(batch), strict=True))
    total = sum(uniform_ctc_loss(count, ids, symbols) for count, ids in pairs)
    uniform = total / sum(len(ids) for _, ids in pairs)
    measured = f"{loss:.3f}, a uniform model's is {uniform:.3f}"
    low, high = bounds
    if not low * uniform <= loss <= high * uniform:
        raise Defect(f"first loss: {measured}: not within {low:g} to {high:g} times that")
    return measured


def with_gradient(model: nn.Module) -> set[str]:
    """Names of the parameters whose gradient is not zero everywhere."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


def gradients(model: nn.Module, moved: Collection[str]) -> str:
    """Nothing is detached and nothing unused."""
    learning = [name for name, value in model.named_parameters() if value.requires_grad]
    dead = [name for name in learning if name not in moved]
    if dead:
        raise Defect(f"gradients: {len(dead)} of {len(learning)} parameters get none: {some(dead)}")
    return f"reach all {len(learning)} parameters"


def padding(run: Run, batch: Batch, limit: float) -> str:
    """An utterance decodes in a batch as it does alone; `run` must compute in float32."""
    together, counts = run(batch)  # [B,L,V]
    drifts = []
    for row in range(len(batch)):
        alone, _ = run(batch.rows([row]))
        count = int(counts[row])
        drifts.append((alone[0, :count] - together[row, :count]).abs().max())
    worst = float(torch.stack(drifts).max())
    if not worst <= limit:
        raise Defect(
            f"padding: log-probabilities change by {worst:.2g} when an utterance is decoded in a "
            f"batch (limit {limit:g}): something does not mask"
        )
    return f"changes log-probabilities by {worst:.1g}"


def silence(hear: Callable[[Batch], list[str]], batch: Batch, limit: float) -> str:
    """A trained model must not know the texts from the lengths of the clips alone."""
    wer = score(batch.texts, hear(_blinded(batch))).wer
    if wer <= limit:
        raise Defect(f"silence: given silence the model still says the texts (WER {wer:.2%})")
    return f"heard at {wer:.0%} WER"


def silence_batch(batch: Batch) -> Batch:
    """Silence of one length for every utterance: padding counts as audio."""
    blind = _blinded(batch)
    longest = torch.full_like(batch.wave_lengths, batch.waves.shape[1])
    if blind.video is None or blind.video_lengths is None:
        return replace(blind, wave_lengths=longest)
    most = torch.full_like(blind.video_lengths, blind.video.shape[1])
    return replace(blind, wave_lengths=longest, video_lengths=most)


def _blinded(batch: Batch) -> Batch:
    """Silence, and a dark picture where there is one, of the same lengths."""
    video = None if batch.video is None else torch.zeros_like(batch.video)
    return replace(batch, waves=torch.zeros_like(batch.waves), video=video)


def blind_control(wer: float, steps: int, limit: float) -> str:
    """A model trained on blinded utterances must not have learned the texts."""
    if wer <= limit:
        raise Defect(
            f"blind control: trained on silence of one length the model says the texts all the "
            f"same (WER {wer:.2%} after {steps} steps): they reach it by another way than hearing"
        )
    return f"{wer:.0%} WER after {steps} steps"


def labels(batch: Batch) -> list[list[int]]:
    """The label ids of each utterance."""
    parts = batch.targets.cpu().split(batch.target_lengths.tolist())
    return [part.tolist() for part in parts]


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join([*names[:SHOWN], *more])
