"""Where weights come from: whether a checkpoint fits the model at hand, and beginning with it.

A checkpoint may go on as the run that it is, or be what another run begins with. Either way its
tensors must have the names and shapes of the present model's, and its vocabulary must be the
present one, but where the output layer begins anew. What changes no tensor (dropout, the attention
window) may differ.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from lact_asr.model.interface import Model
from lact_asr.text.load import load_vocabulary
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint
from lact_asr.training.checksums import facts, require_same
from lact_asr.utils.errors import Damaged, Misfit

HEAD = "head."  # names of the output layer's tensors begin so: `Model.head`
_NAMED = 3  # tensors in a message


def begin_from(path: Path, model: Model, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Give a fresh model the weights of a checkpoint, without a vocabulary all but its output
    layer's; facts about it, for the record.

    `path` is what `checkpoint.find` takes. DataError where it is none; Misfit where it is of
    another model or vocabulary.
    """
    found = checkpoint.find(path)
    require_same(found, checkpoint.WEIGHTS)
    require_fit(found, model, vocabulary)
    checkpoint.restore(model, found / checkpoint.WEIGHTS, None if vocabulary else HEAD)
    before = checkpoint.read_config(found)["model"]
    changed = changes(before, model.config.model_dump(mode="json"))
    anew = {} if vocabulary else {"new_head": True}
    return {"checkpoint": str(found), **facts(found), "changed": changed, **anew}


def require_fit(path: Path, model: Model, vocabulary: Vocabulary | None) -> None:
    """Misfit that says how the model or vocabulary of a checkpoint is another, and what to write.
    Without a vocabulary the output layer may be another, too.

    DataError where it cannot be read.
    """
    stored, unlike = checkpoint.read_config(path), _unlike(path, model)
    if vocabulary is None:
        unlike = [name for name in unlike if not name.startswith(HEAD)]
    other = _other_settings(stored, model) if unlike else ""
    if vocabulary is not None and stored["vocabulary"] != vocabulary.to_dict():
        there, here = (
            _name_vocabulary(load_vocabulary(stored["vocabulary"])),
            _name_vocabulary(vocabulary),
        )
        other = f"its vocabulary is {there}, not {here}{f'; {other}' if other else ''}"
    elif not other and unlike:
        other = f"other tensors are {', '.join(unlike[:_NAMED])}"
    if other:
        raise Misfit(f"{path} is of another model: {other}")


def changes(before: Mapping[str, Any], now: Mapping[str, Any], inside: str = "") -> list[str]:
    """Settings that differ: `optim.learning_rate: 4.0 before, 0.004 now`.

    One that nobody knew before is none of them.
    """
    found = []
    for name, one in before.items():
        other = now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += changes(one, other, f"{inside}{name}.")
        elif one != other:
            found.append(f"{inside}{name}: {one} before, {other} now")
    return found


def _other_settings(stored: Mapping[str, Any], model: Model) -> str:
    """What to write to have the stored model; empty where the settings are the same."""
    if stored["family"] != model.family:
        return f"write family: {stored['family']}, not {model.family}"
    present = model.config.model_dump(mode="json")
    different = [name for name, value in stored["model"].items() if present.get(name) != value]
    there, here = (
        ", ".join(f"{name}: {values.get(name)}" for name in different)
        for values in (stored["model"], present)
    )
    return f"write model: {{{there}}}, not {{{here}}}" if different else ""


def _unlike(path: Path, model: nn.Module) -> list[str]:
    """Tensors that only a checkpoint or only the model has, or in another shape."""
    there = _shapes(path / checkpoint.WEIGHTS)
    here = {name: list(value.shape) for name, value in model.state_dict().items()}
    return sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shape of every tensor in a file of weights, which stays unread."""
    try:
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            return {name: tensors.get_slice(name).get_shape() for name in names}
    except (OSError, SafetensorError) as error:
        raise Damaged(file, f"it cannot be read: {error}") from error


def _name_vocabulary(vocabulary: Vocabulary) -> str:
    return f"{vocabulary.kind} with {len(vocabulary)} symbols"
