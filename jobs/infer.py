"""`launch.py infer`: a pipeline of one `evaluate` step, made from the command line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import kinds
from jobs.errors import UserError
from jobs.spec import Pipeline, Step
from jobs.store import Run, is_run
from jobs.validation import nearest


def inference_pipeline(
    *,
    checkpoint: Path,
    subset: str | None,
    manifest: Path | None,
    audio: Sequence[Path],
    num_samples: int,
) -> Pipeline:
    """One step that transcribes a subset, a manifest or audio files (UserError, all at once)."""
    if subset:
        manifest = _manifest_of(subset, checkpoint)
    missing = [path for path in (checkpoint, manifest, *audio) if path and not path.exists()]
    if missing:
        raise UserError("\n".join(f"{path} does not exist" for path in missing))
    kind = kinds.load("evaluate")
    given: dict[str, Any] = {"checkpoint": checkpoint.absolute(), "num_samples": num_samples}
    given["manifest"] = manifest.absolute() if manifest else None
    given["audio"] = [path.absolute() for path in audio]
    settings = kind.Settings.model_validate(given).model_dump(mode="json")
    resources = kind.RESOURCES.model_dump(mode="json")
    step = Step(name="infer", kind="evaluate", settings=settings, resources=resources)
    return Pipeline(name="infer", description=f"inference with {checkpoint}", steps=(step,))


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
