"""A student that begins as part of its teacher: some of its blocks, and all that is around them.

Sanh et al. 2019 (DistilBERT) took every second layer. The student has the teacher's widths and as
many blocks as are named.
"""

from collections.abc import Sequence

import torch

from lact_asr.model.interface import Model
from lact_asr.utils.errors import DataError


@torch.no_grad()
def take_layers(student: Model, teacher: Model, layers: Sequence[int]) -> None:
    """Give a student the named blocks of its teacher, counted from 1, in this order.

    DataError where the two are of another family, or differ in more than the number of blocks.
    """
    if student.family != teacher.family or not teacher.blocks:
        raise DataError(
            f"teacher_layers: a {student.family} student cannot begin as part of a "
            f"{teacher.family} teacher: leave it out, or choose a student of its family"
        )
    there, here = len(teacher.blocks), len(student.blocks)
    if len(layers) != here or not all(1 <= layer <= there for layer in layers):
        raise DataError(
            f"teacher_layers {list(layers)}: the student has {here} blocks, write as many of the "
            f"teacher's, 1 to {there}"
        )
    own = {f"{_place(student)}.{n}.": f"{_place(teacher)}.{m - 1}." for n, m in enumerate(layers)}
    theirs = teacher.state_dict()
    for name, weight in student.state_dict(keep_vars=True).items():
        prefix = next((each for each in own if name.startswith(each)), "")
        source = theirs.get(own[prefix] + name.removeprefix(prefix) if prefix else name)
        if source is None or source.shape != weight.shape:
            found = "none" if source is None else list(source.shape)
            raise DataError(
                f"teacher_layers: {name} is {list(weight.shape)} here and {found} in the teacher: "
                "write the teacher's widths under `model`"
            )
        weight.data.copy_(source)


def _place(model: Model) -> str:
    """The name of its blocks inside a model."""
    return next(name for name, module in model.named_modules() if module is model.blocks)
