"""What a micro-batch may hold: seconds of audio with their padding, or a number of utterances."""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Budget(NamedTuple):
    """One of the two; an utterance longer than the seconds is a batch of its own."""

    seconds: float | None
    utterances: int | None = None

    def holds(self, count: int, longest: float) -> bool:
        """Whether so many utterances, the longest of so many seconds, fit."""
        if self.seconds is None:
            return count <= self.room(longest)
        return count * longest <= self.seconds

    def room(self, longest: float) -> int:
        """The most utterances of this length that fit, at least one."""
        if self.seconds is None:
            return self.utterances or 1
        return max(1, int(self.seconds // longest))

    def batches(self, durations: "NDArray[Any]") -> float:
        """About how many make an epoch."""
        if self.seconds is None:
            return len(durations) / (self.utterances or 1)
        return float(durations.sum()) / self.seconds

    def part(self, share: float) -> "Budget":
        """A share of it."""
        if self.seconds is None:
            return Budget(None, max(1, round((self.utterances or 1) * share)))
        return Budget(self.seconds * share)
