"""`launch.py infer` and `diagnose`: one step that takes a checkpoint to some audio."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs import kinds
from jobs.errors import UserError, nearest
from jobs.spec import Pipeline, Step
from jobs.store import Run, is_run


def one_step(
    name: str,
    kind: str,
    *,
    checkpoint: Path,
    subset: str | None,
    manifest: Path | None,
    audio: Sequence[Path],
    **settings: Any,
) -> Pipeline:
    """One step on a subset, a manifest or audio files, with further settings of its kind.

    UserError for everything that is not there, or that a setting does not allow, at once.
    """
    if subset:
        manifest = _manifest_of(subset, checkpoint)
    missing = [path for path in (checkpoint, manifest, *audio) if path and not path.exists()]
    if missing:
        raise UserError("\n".join(f"{path} does not exist" for path in missing))
    given = {
        "checkpoint": checkpoint.absolute(),
        "manifest": manifest.absolute() if manifest else None,
        "audio": [path.absolute() for path in audio],
        **settings,
    }
    module = kinds.load(kind)
    try:
        checked = module.Settings.model_validate(given).model_dump(mode="json")
    except ValidationError as error:
        wrong = (f"{e['loc'][-1]}: {e['msg']}, not {e['input']}" for e in error.errors())
        raise UserError("\n".join(wrong)) from None
    resources = module.RESOURCES.model_dump(mode="json")
    step = Step(name=name, kind=kind, settings=checked, resources=resources)
    return Pipeline(name=name, description=f"{name} with {checkpoint}", steps=(step,))


def _manifest_of(subset: str, checkpoint: Path) -> Path:
    """The manifest of a subset: of a corpus, or of the run that the checkpoint comes from."""
    folder = Path(os.environ.get("TRAINYARD_DATA", "data")) / "manifests"
    known = {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    run = next((Run(path) for path in checkpoint.absolute().parents if is_run(path)), None)
    results = [run.step(step["name"]).result() or {} for step in run.steps()] if run else []
    for result in results:
        made = result.get("manifests", {})
        known.update({name: Path(manifest) for name, manifest in made.items()})
    if subset not in known:
        places = f"{folder}{f' or {run.path}' if run else ''}"
        raise UserError(f"no subset {subset!r} in {places}: {nearest(subset, known)}")
    return known[subset]
