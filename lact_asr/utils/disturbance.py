"""What may happen to a training from outside, between two of its steps."""


def undisturbed(*_: object) -> None:
    """The `disturb` of a training into which nobody puts faults."""
