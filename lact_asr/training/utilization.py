"""How much of the machine a training uses: the share of its arithmetic (MFU), the GPU's memory.

The operations are those that the model needs, by a formula: 6 per learning parameter and token
(2 forward, 4 backward; Kaplan et al. 2020), and what LaCT layers do beside their parameters.
Padding and activations computed twice are no use of a machine; a counter of what is carried out
(torch.utils.flop_counter) would have them in, sees into no fused kernel, and lets its first batch
decide. Attention over whole utterances is left out: 9 % of a transformer of `base`'s size at 16 s.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lact_asr.distributed.processes import World
from lact_asr.model.interface import Model
from lact_asr.model.lact_layer import LaCTLayer
from lact_asr.training.material import Material

# FLOP/s of products in bf16, dense, by NVIDIA's data sheets; the first name that fits counts.
PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
}


def peak(name: str) -> float | None:
    """FLOP/s in bf16 of a GPU by its name; None where it is not known."""
    return next((value for known, value in PEAKS.items() if known in name), None)


def operations(model: Model) -> float:
    """Floating-point operations per token, forward and backward."""
    tables = [each.weight for each in model.modules() if isinstance(each, nn.Embedding)]
    looked_up = {id(weight) for weight in tables}
    learning = (p for p in model.parameters() if p.requires_grad and id(p) not in looked_up)
    layers = (each for each in model.modules() if isinstance(each, LaCTLayer))
    return 6.0 * sum(each.numel() for each in learning) + sum(map(_beside, layers))


def _beside(layer: LaCTLayer) -> float:
    """Attention inside the window, and learning: the fast weights' own gradient, 12 d^2 a head."""
    config = layer.config
    fast = sum(each.numel() for each in (layer.w0, layer.w1, layer.w2))  # 3 d^2 a head
    learned = 0 if config.schedule == "off" else 4 * fast
    return 3 * (4.0 * config.window * config.hidden + learned)


@dataclass(frozen=True)
class Utilization:
    """What a unit of throughput costs, and what there is to pay it with."""

    operations: float  # per unit of the material's amount
    peak: float | None  # FLOP/s of all ranks together, where it is known
    device: torch.device

    @classmethod
    def of(
        cls, model: Model, material: Material, world: World, device: torch.device
    ) -> "Utilization":
        """Of a model that learns from a material; before it is split over ranks."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        known = peak(name)
        each = operations(model) * material.tokens_per_amount
        return cls(each, known and known * world.world_size, device)

    def metrics(self, rate: float) -> dict[str, float]:
        """At so much a second; counters that the process keeps, nothing is asked of the device."""
        found = {}
        if self.peak:
            found["mfu"] = self.operations * rate / self.peak
        if self.device.type == "cuda":
            found["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return found


def shown(metrics: dict[str, float]) -> str:
    """The same as a part of a progress line."""
    parts = []
    if "mfu" in metrics:
        parts.append(f"{metrics['mfu']:.1%} of peak")
    if "gpu_memory_gb" in metrics:
        parts.append(f"{metrics['gpu_memory_gb']:.1f} GB")
    return "".join(f"{part} | " for part in parts)
