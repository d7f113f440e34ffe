"""In which steps it is measured and said what losses come to, and the original lines about it."""

from collections.abc import Mapping, Sequence

LOOK = 100  # steps between lines about the weights and the router
EACH = 5  # first steps, of which each has such lines


class Looks:
    """Knows the number of the next step, from the first on that has ended."""

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every
        self._next: int | None = None

    def after(self, step: int) -> bool:
        """A step has ended; whether lines are said about it."""
        self._next = step + 1
        return step % LOOK == 0 or step <= EACH

    @property
    def measured(self) -> bool:
        """Whether the next step is one that is logged, or may be."""
        step = self._next
        return step is None or step <= EACH or not (step % self.log_every and step % LOOK)


def curriculum_line(
    step: int, progress: float, weights: Mapping[str, float], names: Sequence[str]
) -> str:
    """The original line about weights, for those who look for it."""
    shown = ", ".join(f"{name}={weights[name]:.3f}" for name in names)
    return f"[CURRICULUM] Step {step} ({100 * progress:.1f}%): {shown}"


def balance_line(factors: Sequence[float], names: Sequence[str]) -> str:
    """What balancing multiplies each loss by."""
    shown = ", ".join(f"{name}={factor:.3f}" for name, factor in zip(names, factors, strict=True))
    return f"[BALANCE] {shown}"
