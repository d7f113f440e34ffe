"""Loss weights over the course of training: pure functions of progress, so that resuming is exact.

Progress is optimizer steps done / steps in all, clamped to 0..1. The original recipe mixed 25,000
micro-steps and 12,500 optimizer steps; a share means the same in both.
"""

from distill.config.hints import HintConfig
from distill.config.kd import RampConfig

COMPONENTS = ("kd", "feature", "attention", "layerwise", "contrastive")
Ramp = tuple[float, float]  # progress where a weight leaves 0, and where it reaches 1

# The KD term has its own weight (kd_weight) and is never held back here.
CURRICULA: dict[str, dict[str, Ramp]] = {
    "original": {
        "feature": (0.1, 0.4),
        "attention": (0.1, 0.4),
        "layerwise": (0.4, 0.7),
        "contrastive": (0.7, 1.0),
    },
    "ramp_0_60": {
        "feature": (0.0, 0.6),
        "attention": (0.0, 0.6),
        "layerwise": (0.4, 0.7),
        "contrastive": (0.7, 1.0),
    },
    "all_on": {},
}


def rise(progress: float, ramp: Ramp) -> float:
    """0 before the ramp, 1 after it, linear on it."""
    start, end = ramp
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start))


def curriculum(name: str, progress: float) -> dict[str, float]:
    """The factor of each component, 0..1; components without a ramp are always on."""
    ramps = CURRICULA[name]
    return {key: rise(progress, ramps[key]) if key in ramps else 1.0 for key in COMPONENTS}


def weights(config: HintConfig, progress: float) -> dict[str, float]:
    """What the KD loss and the hints that all students share are multiplied by."""
    gates = curriculum(config.curriculum, progress)
    return {
        "kd": kd_weight(progress, config),
        "feature": config.feature_weight * gates["feature"],
        "attention": config.attention_weight * gates["attention"],
        "layerwise": config.layerwise_weight * gates["layerwise"],
    }


def kd_weight(progress: float, config: RampConfig) -> float:
    """The absolute weight of the KD loss: by default 0.1 rising to 0.7 over the first 20 %."""
    share = rise(progress, (0.0, config.kd_ramp))
    return config.kd_start + (config.kd_end - config.kd_start) * share
