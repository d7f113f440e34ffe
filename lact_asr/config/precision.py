"""Names of the arithmetic that a model runs in, the same for every kind and setting. No torch.

What a name comes to on a device, `lact_asr.model.forward` says.
"""

from typing import Literal

Precision = Literal["auto", "fp32", "bf16"]
MEANING = "auto is bf16 on GPUs and fp32 elsewhere; weights and losses stay float32"
