"""What is kept of a teacher, and whether that is enough for what a student asks. No torch.

The launcher judges with it the settings of two steps, and a cache on disk, what is in it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from distill.config.distillation import DistillConfig

WHOLE = 256  # vocabularies up to this size are kept whole


class Kept(NamedTuple):
    """The part of a cache that settings ask for."""

    symbols: int  # V, with the blank
    kept: int  # of each frame
    temperatures: Sequence[float]  # whose norms are kept, where not all symbols are
    hidden: str  # layers whose states are kept: none, last, all


def kept_symbols(symbols: int, wanted: int) -> int:
    """How many symbols of a frame a cache keeps."""
    return symbols if symbols <= WHOLE else min(wanted, symbols - 1)


def kept_temperatures(symbols: int, wanted: Sequence[float]) -> list[float]:
    """Temperatures whose norms a cache keeps; kept whole, it serves any."""
    return [] if symbols <= WHOLE else sorted({1.0, *wanted})


def lacking(cache: Kept, config: DistillConfig) -> Iterator[tuple[str, str]]:
    """Settings that ask for more than is kept, each with what is wrong and what to write."""
    yield from _lacking_states(cache.hidden, config)
    if cache.kept < cache.symbols:
        yield from _lacking_symbols(cache, config)


def _lacking_states(hidden: str, config: DistillConfig) -> Iterator[tuple[str, str]]:
    def too_few(setting: str, words: str, needed: str, wanted: str) -> tuple[str, str]:
        return setting, (
            f"holds hidden states of layers: {hidden}, and {words} needs {needed}: write "
            f"`hidden: {wanted}` in the `cache` step, with another folder"
        )

    last, every = "the teacher's last hidden states", "all of the teacher's hidden states"
    if hidden != "all" and config.layerwise_weight:
        yield too_few("layerwise_weight", "a layerwise_weight above 0", every, "all")
    if hidden != "all" and config.router.kind != "off":
        yield too_few("router", "the router", every, "all")
    if hidden == "none" and config.target != "outputs":
        yield too_few("target", f"target: {config.target}", last, "last")
    if hidden == "none" and config.feature_weight:
        yield too_few("feature_weight", "a feature_weight above 0", last, "last")
    if hidden == "none" and config.contrastive_weight:
        yield too_few("contrastive_weight", "a contrastive_weight above 0", last, "last")


def _lacking_symbols(cache: Kept, config: DistillConfig) -> Iterator[tuple[str, str]]:
    held = f"holds {cache.kept} of {cache.symbols} symbols a frame"
    if config.temperature not in cache.temperatures:
        listed = ", ".join(f"{tau:g}" for tau in cache.temperatures)
        yield "temperature", f"{held} for temperatures {listed}, not {config.temperature:g}"
    if config.target != "outputs":  # a map's distributions, of all the student's symbols
        return
    if config.kd == "frames" and (config.top_k or cache.symbols) > cache.kept:
        wanted = config.top_k or "all"
        yield "top_k", f"{held}: write top_k: {cache.kept} or less, not {wanted}"
    if config.blank_policy == "drop_class":
        yield "blank_policy", f"{held}: blank_policy drop_class needs all the others"
