"""What the names of a precision come to on a device."""

import pytest
import torch

from lact_asr.model.forward import autocast, in_force

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        (CPU, "auto", "fp32"),
        (GPU, "auto", "bf16"),
        (CPU, "bf16", "bf16"),
        (GPU, "fp32", "fp32"),
    ],
)
def test_auto_is_bf16_on_gpus_alone(device: torch.device, precision: str, expected: str) -> None:
    assert in_force(device, precision) == expected


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_products_inside_are_of_the_precision(precision: str, kind: torch.dtype) -> None:
    square = torch.ones(2, 2)
    with autocast(CPU, precision):
        assert (square @ square).dtype == kind
