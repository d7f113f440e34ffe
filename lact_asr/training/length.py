"""How many steps a run has, where its length is given in epochs.

What an epoch takes depends on the data, the batches and the number of processes. A run that goes on
with others than before has heard what it has heard, and does the rest at the new pace.
"""

import math
from dataclasses import dataclass

from lact_asr.config.training import LoopConfig


@dataclass(frozen=True)
class Course:
    """A step, how often everything had been heard by then, and how an epoch goes from there on."""

    step: int = 0
    epochs: float = 0.0
    pace: float = 0.0  # steps an epoch; 0 before it is known

    def at_pace(self, pace: float, step: int) -> "Course":
        """The course of a process that begins at a step with so many steps an epoch."""
        if pace == self.pace:
            return self
        if not self.pace:  # the length was not given in epochs before
            return Course(0, 0.0, pace)
        return Course(step, self.epochs + (step - self.step) / self.pace, pace)

    def steps(self, epochs: float) -> int:
        """Steps in all until everything has been heard so often."""
        return max(1, self.step + math.ceil((epochs - self.epochs) * self.pace))


def total_steps(config: LoopConfig, course: Course) -> int:
    """Optimizer steps of a run in all."""
    if config.epochs is None:
        assert config.max_steps is not None  # one of the two is set
        return config.max_steps
    return course.steps(config.epochs)
