"""Named sets of training settings. No torch.

`PRESETS` are what a pipeline file's `training` is completed from. "modern" is what the best public
CTC recipes have in common; "original" is this project's first recipe; "plain" leaves the defaults,
which add nothing: for corpora of an hour, where a few hundred steps decide.
"""

from collections.abc import Mapping
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "modern": {
        "precision": "auto",
        "augment": {"speeds": (0.9, 1.0, 1.1), "frequency_masks": 2, "time_masks": 10},
        "average": {"decay": 0.999},
        "optim": {"method": "muon"},
    },
    # Batches of 12 utterances of up to 20 s; their loss table ends at 100,000 steps.
    "original": {
        "max_steps": 100_000,
        "batch_utterances": 12,
        "accumulate": 2,
        "max_duration": 20.0,
        "valid_every": 1000,
        "checkpoint_every": 5000,
        "precision": "fp32",
        "optim": {"learning_rate": 1e-4, "warmup_steps": 2000, "decay": "constant"},
    },
    "plain": {},
}


def merge_preset(given: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and from the preset what it leaves open, block by block."""
    merged = {**preset, **given}
    for name in preset.keys() & given.keys():
        if isinstance(preset[name], Mapping) and isinstance(given[name], Mapping):
            merged[name] = merge_preset(given[name], preset[name])
    return merged
