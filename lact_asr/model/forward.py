"""A model's forward pass over a batch, the same in training and decoding."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from lact_asr.data.batch import Batch
from lact_asr.distributed.device import sent
from lact_asr.model.interface import CTCModel, CTCOutput


def forward_batch(model: CTCModel, batch: Batch, **asked: bool) -> CTCOutput:
    """The model's output on a batch, through the batch's augmentation if it has one, and on its
    video if the model looks at any; `asked` is what the model is to give beside it.
    """
    more: dict[str, Any] = {"augment": batch.augment} if batch.augment else {}
    if batch.video is not None and model.video_shape:
        more |= {"video": batch.video, "video_lengths": batch.video_lengths}
    lengths = sent(batch.wave_lengths, batch.waves.device)
    output: CTCOutput = model(batch.waves, lengths, **more, **asked)
    return output


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The context of a forward pass, in training and decoding alike."""
    wanted = in_force(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def in_force(device: torch.device, precision: str) -> str:
    """What a precision comes to on a device: fp32 or bf16."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision
