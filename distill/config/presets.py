"""Named ways to train a teacher: how its layers start, its optimizer, what is dropped; and what
the named ways to train mean for a student. No torch.

`standard` and `emergency` are the original recipes against exploding gradients, word for word
(docs/origin.md): the second and last of them has a tenth of the learning rate (it learns ten
utterances no further than from 10.1 to 9.1 nats in 450 passes) and drops every step whose gradient
norm exceeds 10. `recommended` cures causes: GroupNorm (two utterances make no batch statistics),
bounded attention scores, a warm-up, gradients judged by their own past.
"""

from typing import Any

from lact_asr.config.presets import PRESETS, merge_preset

# Adam, batches of two utterances, and a clamp where scores were meant to be bounded.
_UNBOUNDED = {
    "norm": "batch",
    "qk_norm": False,
    "logit_cap": None,
    "output_cap": "clamp",
    "attention_dropout": 0.1,
}
_ADAM = {"warmup_steps": 0, "decay": "constant", "weight_decay": 0.0}

TEACHER: dict[str, dict[str, dict[str, Any]]] = {
    "recommended": {
        "model": {},
        "training": merge_preset(
            {
                "optim": {
                    "learning_rate": 1e-4,
                    "warmup_steps": 2000,
                    "betas": (0.9, 0.98),
                    "clip_norm": 1.0,
                },
                "guard": {"skip_ratio": 10.0},
                "stopping": {"patience": 20},
            },
            PRESETS["modern"],
        ),
    },
    "standard": {
        "model": {**_UNBOUNDED, "linear_std": 0.01},
        "training": {
            "batch_utterances": 2,
            "optim": {**_ADAM, "learning_rate": 1e-4, "betas": (0.9, 0.999), "clip_norm": 1.0},
        },
    },
    "emergency": {
        "model": {**_UNBOUNDED, "linear_std": 0.001, "conv_scale": 0.5},
        "training": {
            "batch_utterances": 2,
            "optim": {**_ADAM, "learning_rate": 1e-5, "betas": (0.9, 0.98), "clip_norm": 0.5},
            "guard": {"skip_above": 10.0},
        },
    },
    "plain": {"model": {}, "training": {}},
}

# As the original recipe wants it: 20 validations without a gain, the first 1,000 steps not counted.
DISTILL: dict[str, dict[str, Any]] = {
    "modern": {**PRESETS["modern"], "stopping": {"patience": 20}},
    "original": {**PRESETS["original"], "stopping": {"patience": 20}},
    "plain": {},
}
