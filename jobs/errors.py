"""What can go wrong, and whose turn it then is.

UserError              the user can mend it: the message says what, where, and what to write instead; exit 2, no traceback
  SpecError            mistakes in a file, all of them at once, each with file:line
ClusterError           the cluster refused, or a step failed: exit 1, no traceback
Interrupted            raised by a kind that has saved its work and wants to go on in the next allocation
StepFailed             raised by a kind for a failure it has a name for (its `failure_class`)

Anything else is a bug of ours and keeps its traceback.
"""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend."""

    exit_code = 2


class SpecError(UserError):
    """Every mistake found in a pipeline or cluster file, one per line, each with file:line."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = list(mistakes)


class ClusterError(UserError):
    """The cluster refused, or a step failed."""

    exit_code = 1


class Interrupted(Exception):
    """The step has saved its work and goes on from there when it is started again."""


class StepFailed(Exception):
    """A failure with a name, such as `gate` or `divergence`."""

    def __init__(self, failure_class: str, message: str) -> None:
        super().__init__(message)
        self.failure_class = failure_class
