"""When further training is no use: the dev WER has not fallen for a while. No torch.

What is watched is what the model is for. The original recipe watched the training loss, a sum whose
weights are scheduled: it rises while they rise, and on the original own curve, with everything
well, it stops training at step 11,000 of 25,000. Neither WER nor the validation loss has such
weights.
"""

from collections.abc import Sequence

from lact_asr.config.training import StoppingConfig


def watch(
    config: StoppingConfig, step: int, seen: Sequence[float], mark: Sequence[float], stale: int
) -> tuple[list[float], int]:
    """The values to beat and the validations without a gain, after another one at `step`.

    Values are in order of importance, lower is better; there is no mark before the first.
    """
    if step < config.warmup_steps:
        return list(mark), stale
    if not mark or _lower(seen, mark, config.min_delta):
        return list(seen), 0
    return list(mark), stale + 1


def should_stop_early(config: StoppingConfig, progress: float, stale: int) -> bool:
    """Whether to stop at this share of the training."""
    return 0 < config.patience <= stale and progress >= config.not_before


def _lower(seen: Sequence[float], mark: Sequence[float], delta: float) -> bool:
    for now, before in zip(seen, mark, strict=True):
        if now < before - delta:
            return True
        if now > before:
            return False
    return False
