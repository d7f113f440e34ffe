"""The ways work ends before its result, in models and in jobs alike.

`DataError` is the user's to mend: a file, an utterance, a character; the message names it. One of
them, `Misfit`, is a checkpoint that does not fit the settings.
`Interrupted` is a stop on request with the work saved. `Failed` is work that cannot go on as
configured; its cause is what a remedy answers to.
"""

from pathlib import Path


class DataError(Exception):
    """Something in the data is wrong; the message says what, where and what to do."""


class Misfit(DataError):
    """A checkpoint of another model, vocabulary, objective or optimizer than the present ones."""


class Unreadable(DataError):
    """A file that is there and cannot be read: which, and why."""

    def __init__(self, path: Path, why: str | None) -> None:
        super().__init__(f"{path} cannot be read: {why}")
        self.why = why or "no reason is known"


class Damaged(DataError):
    """A file of a checkpoint that is not as it was written: which, and why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is damaged: {why}. Copy it again, or name another checkpoint")
        self.path, self.why = path, why


class Interrupted(Exception):
    """`should_stop()` came true: what is done is saved, and the next call goes on from there.

    `position` says how far it came (a training step, a number of bytes): a step that meets its
    time limit three times without getting further is not started a fourth time. None: nothing was
    saved, or nobody knows.
    """

    def __init__(self, position: float | None = None) -> None:
        super().__init__(
            "how far it came is not known" if position is None else f"saved at {position}"
        )
        self.position = position


class Failed(Exception):
    """Work that cannot go on: `cause` names why, in one word (`diverged`, `gate_missed`)."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause
