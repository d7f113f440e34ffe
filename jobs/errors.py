"""What can go wrong, and whose turn it then is.

UserError          the user can mend it: what, where, what to write instead; no traceback, exit 2
  SpecError        mistakes in a file, all of them at once, each with file:line
  ClusterError     the cluster refused, or a step failed: exit 1
    SubmitRefused  it refused a job, and nothing was queued
      LimitReached because of how many jobs the user has in the queue by now
    Unreachable    it does not answer at the moment: the same request may work later
    Elsewhere      the run belongs to another Slurm, or to another machine
Superseded         a newer start of the step has begun: this one leaves without writing

A kind that was interrupted, and one that failed in a way that has a name, say so by
`lact_asr.utils.errors.Interrupted` and `Failed`, as the loops below them do. Anything else is a
bug of ours and keeps its traceback.
"""

from collections.abc import Iterable, Sequence


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


class SubmitRefused(ClusterError):
    """The cluster has refused a job: nothing was queued."""


class LimitReached(SubmitRefused):
    """The cluster takes no more jobs of this user at the moment."""


class Unreachable(ClusterError):
    """The cluster does not answer at the moment."""


class Elsewhere(ClusterError):
    """The run belongs to another Slurm, or to another machine: here its job ids mean others."""


class Superseded(Exception):
    """A newer start of the step has begun; the message says what has become of the step."""


def nearest(word: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?` for a mistyped name, or the valid names."""
    import difflib  # 5 ms that a command without mistakes saves

    names = list(names)
    close = difflib.get_close_matches(word, names, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid are {', '.join(names)}" if names else "nothing is valid here"
