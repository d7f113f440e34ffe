"""Checkpoints: folders that are whole or absent.

    checkpoints/00001200/   model.safetensors  trainer.pt  config.json  state.json
    checkpoints/best/       model.safetensors  config.json  state.json
    checkpoints/diverged/   one that nothing goes on from: made while the run diverged
    checkpoints/damaged-00001200/   one whose files are not what was written

A folder is written under a temporary name, file by file with state.json last, synced and renamed:
one without state.json does not exist for anybody, and its checksums tell whether the rest is as it
was written. config.json holds all that is needed to build the
model again (family, its settings, the vocabulary). Weights are safetensors, which any framework
reads without torch, and what else there is is read with weights_only: a checkpoint from a stranger
cannot run code.
"""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lact_asr.distributed.fsdp import all_like
from lact_asr.model.interface import Model
from lact_asr.text.load import load_vocabulary
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training.checksums import STATE as STATE
from lact_asr.training.checksums import require_same, seal
from lact_asr.utils.errors import Damaged, DataError, Unreadable
from lact_asr.utils.files import naming_file, read_object, write_json, writer
from lact_asr.utils.locks import no_fence

AnyModel = TypeVar("AnyModel", bound=Model)

BEST = "best"
DIVERGED = "diverged"
DAMAGED = "damaged"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_DESCRIBED = {"family", "model", "vocabulary", "training"}


def save(
    folder: Path,
    name: str,
    contents: Mapping[str, Any],
    fence: Callable[[], None] = no_fence,
) -> Path:
    """Write the checkpoint `folder/name`: tensors by name as *.safetensors, anything as *.pt, JSON.

    An older one of that name is replaced; if that is cut short, `recover` brings it back. `fence`
    raises where a newer process has taken the folder over: before it is touched, and before the
    new checkpoint, which may take minutes to write, is put in its place.
    """
    fence()
    folder.mkdir(parents=True, exist_ok=True)
    target, old = folder / name, folder / f".old.{name}"
    temporary = folder / f".new.{name}.{writer()}"
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    try:
        _fill(temporary, contents)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)  # half of it takes room on a full disk
        raise
    fence()
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    _sync(folder)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _fill(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint, state.json last."""
    for file, content in contents.items():
        if file != STATE:
            _write(folder / file, content)
    write_json(folder / STATE, seal(folder, contents[STATE]))
    _sync(folder)


def recover(folder: Path) -> None:
    """Finish a replacement that was cut between its two renames."""
    for old in folder.glob(".old.*"):
        target = folder / old.name.removeprefix(".old.")
        if not target.exists():
            old.rename(target)


def describe(model: Model, vocabulary: Vocabulary, training: Any) -> dict[str, Any]:
    """The config.json of a model trained with a TrainingConfig."""
    return {
        "family": model.family,
        "model": model.config.model_dump(mode="json"),
        "vocabulary": vocabulary.to_dict(),
        "training": training.model_dump(mode="json"),
    }


def complete(path: Path) -> bool:
    """Whether a folder is a checkpoint."""
    return (path / STATE).is_file()


def by_step(folder: Path) -> list[Path]:
    """The numbered checkpoints in a `checkpoints` folder, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if complete(path))


def latest(folder: Path) -> Path | None:
    """The newest numbered checkpoint."""
    return next(iter(by_step(folder)[::-1]), None)


def newest_whole(folder: Path) -> tuple[Path | None, list[Damaged]]:
    """The newest numbered checkpoint that is as it was written, and what is wrong with newer ones.

    DataError where there are some, and none is whole: a run never begins anew unasked.
    """
    flaws = []
    for path in sorted(folder.glob("[0-9]*"))[::-1]:
        try:
            _require_whole(path)
        except Damaged as flaw:
            flaws.append(flaw)
        else:
            return path, flaws
    if flaws:
        each = "; ".join(f"{flaw.path.parent.name}/{flaw.path.name}: {flaw.why}" for flaw in flaws)
        raise DataError(
            f"no checkpoint in {folder} is as it was written ({each}). Copy one there again; or "
            "move them away and begin anew, with init_from if best/ is whole"
        )
    return None, []


def _require_whole(path: Path) -> None:
    """Damaged where a checkpoint is not as it was written; without checksums, where it is
    unreadable.
    """
    if not require_same(path):
        read_config(path)
        for file in (path / WEIGHTS, path / "trainer.pt"):
            load(file)


def put_damaged_aside(path: Path) -> Path:
    """Rename a checkpoint so that nothing goes on from it; its new place."""
    aside, again = path.with_name(f"{DAMAGED}-{path.name}"), 1
    while aside.exists():
        again += 1
        aside = path.with_name(f"{DAMAGED}-{path.name}.{again}")
    return path.rename(aside)


def prune(folder: Path, keep: int, spared: int | None = None) -> None:
    """Remove numbered checkpoints, and half-written ones, except the newest `keep` and, where it is
    older, the one of the step `spared`.

    A process that reads audio, forked while one was written, has its files open, and NFS keeps such
    a file under another name: the folder goes the next time.
    """
    kept = by_step(folder)[-keep:]
    kept += [path for path in by_step(folder) if int(path.name) == spared]
    for path in [*folder.glob("[0-9]*"), *folder.glob(".new.*")]:
        if path not in kept:
            try:
                shutil.rmtree(path)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise


def put_aside(folder: Path, after: int) -> list[Path]:
    """Rename the numbered checkpoints after a step, so that nothing goes on from them; which.

    The newest stays to be looked at, as `diverged`.
    """
    useless = [path for path in by_step(folder) if int(path.name) > after]
    for path in useless:
        shutil.rmtree(folder / DIVERGED, ignore_errors=True)
        path.rename(folder / DIVERGED)
    return useless


def find(path: Path) -> Path:
    """The checkpoint meant by a path: itself, else its best, else its newest.

    `path` may be a checkpoint, a `checkpoints` folder, or the folder that holds one.
    """
    for folder in (path, path / "checkpoints"):
        choices = [folder, folder / BEST, *by_step(folder)[::-1]]
        found = next(filter(complete, choices), None)
        if found:
            return found
    raise DataError(
        f"no checkpoint at {path}: {_names(path)}. Name a folder with {WEIGHTS}, config.json and "
        f"{STATE}, or one that holds best/ or checkpoints/"
    )


def load_model(
    path: Path, families: Mapping[str, Callable[[dict[str, Any], int], AnyModel]]
) -> tuple[AnyModel, Vocabulary, dict[str, Any]]:
    """The model of a checkpoint on the CPU in eval mode, its vocabulary, and its config.json."""
    require_same(path, WEIGHTS)
    config = read_config(path)
    if config["family"] not in families:
        raise DataError(
            f"{path} holds a model of the family {config['family']!r}; "
            f"known here: {', '.join(sorted(families))}"
        )
    vocabulary = load_vocabulary(config["vocabulary"])
    try:
        model = families[config["family"]](config["model"], len(vocabulary))
    except (LookupError, TypeError, ValueError) as error:
        raise Damaged(path / CONFIG, f"no model can be made from it: {error}") from error
    restore(model, path / WEIGHTS)
    return model.eval(), vocabulary, config


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a checkpoint; Damaged where it is not what was written."""
    require_same(path, CONFIG)
    try:
        found = read_object(path / CONFIG)
    except Unreadable as error:
        raise Damaged(path / CONFIG, error.why) from None
    if found is None or not found.keys() >= _DESCRIBED:
        raise Damaged(path / CONFIG, f"it does not say {', '.join(sorted(_DESCRIBED))}")
    try:
        load_vocabulary(found["vocabulary"])
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise Damaged(path / CONFIG, f"its vocabulary is none: {error}") from error
    return found


def restore(module: nn.Module, file: Path, without: str | None = None) -> None:
    """Load weights, but not those whose names begin with `without`; DataError says which do not
    fit.
    """
    values = load(file)
    if without is not None:
        kept = {n: v for n, v in module.state_dict().items() if n.startswith(without)}
        values = {n: v for n, v in values.items() if not n.startswith(without)} | kept
    try:
        module.load_state_dict(all_like(values, module))
    except RuntimeError as error:
        raise DataError(f"the weights in {file} do not fit the model: {error}") from error


def load(file: Path) -> Any:
    """What `save` wrote, on the CPU; Damaged if it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # changed bytes are met by whatever part of pickle reads them
        raise Damaged(file, f"it cannot be read: {error}") from error


def _write(path: Path, content: Any) -> None:
    if path.suffix == ".json":
        write_json(path, content)
        return
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        with (
            naming_file(path),
            path.open("wb") as file,
        ):  # torch itself does not say that a disk is full
            torch.save(content, file)
    _sync(path)


def _sync(path: Path) -> None:
    """Make a file, or renames inside a folder, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(path: Path) -> str:
    if not path.exists():
        return "there is nothing of that name"
    if path.is_file():
        return "it is a file"
    names = sorted(child.name for child in path.iterdir())
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"it contains {listed}" if names else "it is an empty folder"
