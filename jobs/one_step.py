"""`infer` and `diagnose`: one step that takes a checkpoint to some audio."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import UserError, nearest
from jobs.store import Run, is_run

if TYPE_CHECKING:
    from jobs.cluster import Cluster


def one_step(
    name: str,
    kind: str,
    cluster: "Cluster",
    *,
    checkpoint: Path,
    subset: str | None,
    manifest: Path | None,
    audio: Sequence[Path],
    **settings: Any,
) -> dict[str, Any]:
    """One step on a subset, a manifest or audio files, as a pipeline file would have it.

    It asks for a GPU where the cluster has some. UserError with everything that cannot be taken.
    """
    if subset:
        manifest = _manifest_of(subset, checkpoint)
    named = (checkpoint, manifest, *audio)
    mistakes = [f"{path} does not exist" for path in named if path and not path.exists()]
    mistakes += [f"{path} is a folder: write {path}/*" for path in audio if path.is_dir()]
    mistakes += [f"{path} is not UTF-8: rename it" for path in named if path and not _is_text(path)]
    if mistakes:
        raise UserError("\n".join(mistakes))
    given = {
        "checkpoint": str(checkpoint.absolute()),
        "manifest": str(manifest.absolute()) if manifest else None,
        "audio": [str(path.absolute()) for path in audio],
        **settings,
    }
    resources = {"gpus": int(has_gpus(cluster))}
    step = {"kind": kind, "settings": given, "resources": resources}
    return {"name": name, "description": f"{name} with {checkpoint}", "steps": {name: step}}


def _is_text(path: Path) -> bool:
    """Whether a path can be written to a file as text: names of Linux are bytes."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        return False
    return True


def has_gpus(cluster: "Cluster") -> bool:
    """Whether a step that asks for a GPU can run: its partition has some, or the file says so.

    ClusterError where Slurm does not answer.
    """
    if cluster.backend != "slurm" or cluster.gpu_type:
        return bool(cluster.gpu_type)
    from jobs.backends.slurm.client import call

    wanted = cluster.partition.split(",")
    for line in call("sinfo", "-a", "-h", "-o", "%P|%G").splitlines():  # gpu*|gpu:h200:4(S:0-1)
        partition, _, gres = line.partition("|")
        default = partition.endswith("*")
        chosen = partition.rstrip("*") in wanted if cluster.partition else default
        if chosen and re.search(r"\bgpu\b", gres):
            return True
    return False


def _manifest_of(subset: str, checkpoint: Path) -> Path:
    """The manifest of a subset: of a corpus, or of the run that the checkpoint comes from."""
    from jobs.kinds.download import data_root

    folder = data_root() / "manifests"
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
