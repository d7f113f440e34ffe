"""The ways a model package says no.

`DataError` is the user's to mend: a file, an utterance, a character; the message names it. One of
them, `Misfit`, is a checkpoint that does not fit the settings.
`Stopped` is an interruption with the work saved. `TrainingFailed` is a run that cannot go on as
configured; its class is what a remedy answers.
"""

from pathlib import Path


class DataError(Exception):
    """Something in the data is wrong; the message says what, where and what to do."""


class Misfit(DataError):
    """A checkpoint of another model, vocabulary, objective or optimiser than the present ones."""


class Unreadable(DataError):
    """A file that is there and cannot be read: which, and why."""

    def __init__(self, path: Path, why: str | None) -> None:
        super().__init__(f"{path} cannot be read: {why}")


class Stopped(Exception):
    """`should_stop()` came true; what is done is on disk, and the next call goes on from there.

    `position` says how far it came (bytes); None: there was nothing to save.
    """

    def __init__(self, position: int | None = None) -> None:
        super().__init__("stopped on request")
        self.position = position


class TrainingFailed(Exception):
    """Training cannot go on as configured: `failure_class` names why, in one word."""

    def __init__(self, failure_class: str, message: str) -> None:
        super().__init__(message)
        self.failure_class = failure_class
