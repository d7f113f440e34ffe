"""How well the model does on the dev utterances: loss, WER and CER over every one of them.

Nothing is left out by length, and a file that cannot be read counts as silence heard: both would
flatter. The ranks share the work; each decodes every n-th batch.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lact_asr.config.model import SAMPLE_RATE
from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import by_length
from lact_asr.data.dataset import Corpus
from lact_asr.data.loader import loader
from lact_asr.decoding.metrics import Scores, score
from lact_asr.decoding.transcribe import decode
from lact_asr.distributed.device import sent
from lact_asr.distributed.fsdp import run_dummy_forwards
from lact_asr.distributed.processes import World
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.interface import CTCModel, CTCOutput
from lact_asr.model.masks import length_mask
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.material import Sample
from lact_asr.utils.spread import spread

SILENCE = SAMPLE_RATE // 10  # samples that a split model hears while other ranks decode


def comparison_key(wer: float, loss: float) -> tuple[float, float]:
    """By what models are compared, lower is better: WER, and from 100 % on the loss alone.

    A model that begins to speak inserts words: its WER went from 101 % to 103 % while its loss fell
    from 2.6 to 2.2 and its CER from 67 % to 58 %.
    """
    return min(wer, 1.0), loss


@dataclass(frozen=True)
class Validation:
    """How well a model does on speech."""

    loss: float  # nats per label token, over the utterances that have a CTC path
    scores: Scores
    samples: list[Sample]
    unreadable: list[tuple[str, str]]  # (id, why)
    signs: dict[str, float]  # `Measure.signs`
    fast: dict[str, float]  # what test-time training did, per utterance; empty where there is none


@dataclass(frozen=True)
class Dev:
    """What is measured on: the batches of this rank, to be read at each validation.

    Processes that read them live from one validation to the next.
    """

    corpus: Corpus
    batches: Iterable[Batch]
    most: int  # batches that any rank has

    @classmethod
    def of(cls, corpus: Corpus, config: TrainingConfig, world: World, workers: int) -> "Dev":
        """Every n-th batch of the corpus."""
        shares = by_length(corpus.durations, config.most_seconds)
        mine = world.share(shares)
        batches = loader(corpus, mine, min(workers, len(mine)), again=True)
        return cls(corpus, batches, -(-len(shares) // world.world_size))


def validate(
    model: CTCModel,
    dev: Dev,
    vocabulary: Vocabulary,
    config: TrainingConfig,
    world: World,
    device: torch.device,
) -> Validation:
    """Decode the corpus; every rank returns the same result. Leaves the model in eval mode."""
    model.eval()
    corpus = dev.corpus
    heard: dict[str, str] = {}
    unreadable: list[tuple[str, str]] = []
    calls = 0
    # loss, its labels, frames, blanks; utterances with fast weights, their step sizes and changes
    sums = torch.zeros(7, dtype=torch.float64, device=device)
    for batch, output, texts in decode(
        model, vocabulary, dev.batches, device, config.precision, unreadable.extend
    ):
        heard |= zip(batch.ids, texts, strict=True)
        lengths = model.output_lengths(batch.wave_lengths)
        losses = ctc_losses(output.log_probs, lengths, batch)
        # 0: no path fits the labels
        tokens = sent(batch.target_lengths, losses.device) * (losses > 0)
        blank = (output.log_probs.argmax(-1) == 0) & length_mask(
            output.lengths, output.log_probs.shape[1]
        )
        counts = tokens.sum(), output.lengths.sum(), blank.sum()
        sums += torch.stack([losses[tokens > 0].sum(), *counts, *_fast_sums(output)])
        calls += 1
    silence = torch.zeros(1, SILENCE, device=device), torch.tensor([SILENCE], device=device)
    run_dummy_forwards(model, dev.most - calls, *silence)
    loss, weight, frames, blanks, learned, steps, changes = world.all_sum(sums).tolist()
    for part, missing in world.gather((heard, unreadable)):
        heard |= part
        unreadable += [each for each in missing if each not in unreadable]
    true = [corpus.texts.text(index) for index in range(len(corpus))]
    pred = [heard.get(corpus.ids.text(index), "") for index in range(len(corpus))]
    samples = [
        Sample(corpus.ids.text(index), true[index], pred[index])
        for index in spread(range(len(corpus)), config.samples)
    ]
    signs = {
        "blank_share": blanks / max(frames, 1),
        "empty_share": sum(not each for each in pred) / len(pred),
        "frames_per_label": frames / len(corpus.labels.flat),
    }
    fast = {}
    if learned:
        fast = {"fast_step_size": steps / learned, "fast_change": changes / learned}
    loss = loss / weight if weight else math.inf
    return Validation(loss, score(true, pred), samples, unreadable, signs, fast)


def _fast_sums(output: CTCOutput) -> tuple[Tensor, Tensor, Tensor]:
    """Utterances whose fast weights learned, their step sizes and the weights' changes, summed."""
    if output.fast is None:
        none = output.lengths.new_zeros(())
        return none, none, none
    step_sizes, changes = output.fast
    return torch.ones_like(output.lengths).sum(), step_sizes.sum(), changes.sum()
