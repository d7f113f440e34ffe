"""What `check` and `run` ask before anything is queued: every reason why the cluster would refuse.

Each distinct request is put to the controller with `sbatch --test-only` (5 ms). It names one reason
at a time, so what it names is reported, taken out of the request, and the rest asked again. It
accepts a time limit over the partition's - the job would wait for ever - so MaxTime is compared
here.
"""

import getpass
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs import kinds
from jobs.backends.slurm.client import ask, call, partitions, seconds
from jobs.backends.slurm.sbatch import directives, flags, request
from jobs.cluster import Cluster, unfit
from jobs.errors import ClusterError, nearest
from jobs.pipeline import Pipeline, Resources, Space, Step, format_minutes
from jobs.reading.paths import walk

_PARALLEL = 4  # questions to the controller at once
_ELSEWHERE = "set TRAINYARD_RUNS to another folder"
_FREE_GB = 1.0  # what a run takes beside its checkpoints: code, logs, records
_FAULTS = {  # what --test-only says -> the part of the request that it means
    r"[Ii]nvalid partition": "partition",
    r"[Ii]nvalid account": "account",
    r"[Ii]nvalid qos": "qos",
    r"[Ii]nvalid feature|Invalid constraint": "constraint",
}


_IN_SERVICE = re.compile(r"(allocated|idle|mixed|completing)[~#+!%$@^-]*")  # sinfo; `*`: silent


def problems(pipeline: Pipeline, cluster: Cluster, runs: Path) -> list[str]:
    """Every problem found, each with what to write instead; none means that all is well."""
    found = [*_disks(pipeline, runs), *_setup(cluster)]
    steps = {step.name: step.resources for step in pipeline.steps}
    by_problem: dict[str, list[str]] = {}
    for resources, names in _distinct(steps):
        for problem in _max_time(resources, cluster):
            by_problem.setdefault(problem, []).extend(names)
    if cluster.backend == "slurm":
        if trouble := unfit(runs):
            found.append(f"runs folder {trouble}: {_ELSEWHERE}")
        try:
            controller, distinct = _Controller(cluster.name), _distinct(steps)
            wanted = [directives(request(cluster, resources)) for resources, _ in distinct]
            with ThreadPoolExecutor(_PARALLEL) as pool:
                said = list(pool.map(_test_only, wanted))
            for (resources, names), asked, answer in zip(distinct, wanted, said, strict=True):
                for problem in controller.problems(resources, asked, answer):
                    by_problem.setdefault(problem, []).extend(names)
            if not shutil.which("srun"):
                found.append("srun is not on PATH, with which a job starts its step: put it there")
        except ClusterError as error:
            found.append(str(error))
    for problem, names in by_problem.items():
        everywhere = len(names) == len(steps)
        found.append(problem if everywhere else f"{', '.join(names)}: {problem}")
    return found


def _distinct(steps: Mapping[str, Resources]) -> list[tuple[Resources, list[str]]]:
    """Each request once, with the steps that make it."""
    names: dict[Resources, list[str]] = {}
    for name, resources in steps.items():
        names.setdefault(resources, []).append(name)
    return list(names.items())


def _disks(pipeline: Pipeline, runs: Path) -> Iterator[str]:
    """Room for the run, and for what its steps put elsewhere."""
    yield from _disk("runs folder", runs, _FREE_GB, "", _ELSEWHERE)
    for step in pipeline.steps:
        if (space := _space(step)) and space.bytes:
            name, gigabytes = f"{step.name}: data folder", space.bytes / 1e9
            yield from _disk(name, space.folder, gigabytes, f" for {space.what}", space.elsewhere)


def _space(step: Step) -> Space | None:
    """What a step takes outside of the run, where its kind knows and no setting is a reference."""
    kind = kinds.load(step.kind)
    if not hasattr(kind, "space") or any("${" in str(value) for _, value in walk(step.settings)):
        return None
    space: Space = kind.space(kind.Settings.model_validate(step.settings))
    return space


def _disk(name: str, path: Path, needed: float, use: str, elsewhere: str) -> Iterator[str]:
    """Room of so many GB on the file system where a folder is, or will be."""
    folder = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not folder.is_dir():
        yield f"{name} {path}: {folder} is not a folder: {elsewhere}"
        return
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK | os.X_OK):
        yield f"{name} {path}: {folder} is not writable: {elsewhere}"
    elif free < needed:
        yield f"{name} {path}: {free:.1f} GB free, {needed:.1f} GB needed{use}: {elsewhere}"


def _setup(cluster: Cluster) -> Iterator[str]:
    """Set-up lines that bash can read, whose files are there; a Python that is there."""
    where = f"cluster {cluster.name}"
    if cluster.setup and (said := _bash_says(cluster.setup)):
        yield f"{where}: setup: write lines that bash understands: {said}"
    for line in cluster.setup:
        words = re.match(r"\s*(?:source|\.|cd)\s+[\"']?([^\"'\s;&|]+)", line)
        path = os.path.expandvars(words[1].replace("~", "$HOME", 1)) if words else ""
        if path.startswith("/") and not Path(path).exists() and "$" not in path:
            yield f"{where}: setup: {line!r}: {path} does not exist: write a path that does"
    python = shlex.split(cluster.python)[0] if cluster.python else ""
    if python and not shutil.which(python) and (python.startswith("/") or not cluster.setup):
        yield f"{where}: python: {python} is not a program: write the path of one"


def _bash_says(lines: Sequence[str]) -> str:
    """What bash finds wrong with the syntax of some lines."""
    checked = subprocess.run(  # in the words, and the encoding, of the user's locale
        ["bash", "-n"], input="\n".join(lines), capture_output=True, text=True, errors="replace"
    )
    return checked.stderr.strip() if checked.returncode else ""


def _max_time(resources: Resources, cluster: Cluster) -> Iterator[str]:
    if cluster.max_time and resources.time > cluster.max_time:
        yield _too_long(resources.time, cluster.max_time, f"cluster {cluster.name}")


def _too_long(minutes: int, limit: int, where: str) -> str:
    return (
        f"resources.time {format_minutes(minutes)} is over the limit of {where}: "
        f"write {format_minutes(limit)} or less"
    )


class _Controller:
    """What Slurm says of its partitions and of requests."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        # beside those of the requests; without -a partitions with Hidden=YES are not there
        self._question = ask("scontrol", "-a", "show", "partition", "-o")

    @cached_property
    def partitions(self) -> dict[str, dict[str, str]]:
        """MaxTime, Default ... of each."""
        return partitions(self._question.answer())

    def problems(self, resources: Resources, wanted: Mapping[str, Any], said: str) -> list[str]:
        """Every reason to refuse one request, of which --test-only has said `said`."""
        limits = self._over_limit(resources, wanted)
        return [*self._refusals(resources, wanted, said), *limits, *self._closed_partitions(wanted)]

    def _partitions_of(self, wanted: Mapping[str, Any]) -> list[str]:
        """The partitions of a request that exist; the default one where it names none."""
        named = str(wanted.get("partition", "")).split(",")
        return [name for name in named if name in self.partitions] or [
            name for name, facts in self.partitions.items() if facts.get("Default") == "YES"
        ]

    def _over_limit(self, resources: Resources, wanted: Mapping[str, Any]) -> Iterator[str]:
        """A time limit over MaxTime of every partition that the job may go to."""
        chosen = self._partitions_of(wanted)
        limits = [seconds(self.partitions[name]["MaxTime"]) for name in chosen]
        known = [limit for limit in limits if limit is not None]  # None is UNLIMITED
        if known and len(known) == len(limits) and resources.time * 60 > max(known):
            where = f"partition {','.join(chosen)}"
            yield _too_long(resources.time, int(max(known) // 60), where)

    def _closed_partitions(self, wanted: Mapping[str, Any]) -> Iterator[str]:
        """Partitions in which no job starts: sbatch queues for one that is DOWN all the same."""
        states = {
            name: self.partitions[name].get("State", "UP") for name in self._partitions_of(wanted)
        }
        if states and "UP" not in states.values():
            closed = ", ".join(f"{name} is {state}" for name, state in states.items())
            up = [name for name, facts in self.partitions.items() if facts.get("State") == "UP"]
            advice = f"write one that is UP ({', '.join(up)})" if up else "wait: none is UP"
            yield f"cluster {self.cluster}: partition {closed}, no job starts there: {advice}"

    def _refusals(
        self, resources: Resources, wanted: Mapping[str, Any], said: str
    ) -> Iterator[str]:
        """Everything that --test-only names, one part of the request after the other."""
        left = dict(wanted)
        while said:
            means = next((key for word, key in _FAULTS.items() if re.search(word, said)), "")
            if means not in left:
                yield from self._of_nodes(resources, left, said)
                return
            value = str(left.pop(means))
            known = self._valid_values(means)
            wrong = next((part for part in value.split(",") if part not in known), value)
            advice = nearest(wrong, known) if known else "leave it out: none is defined here"
            yield f"cluster {self.cluster}: {means} {wrong!r} is not valid: {advice}"
            said = _test_only(left)

    def _valid_values(self, what: str) -> list[str]:
        """The valid values of a part of a request."""
        if what == "partition":
            return list(self.partitions)
        if what == "constraint":
            said = call("sinfo", "-a", "-h", "-o", "%f").replace("(null)", "")
        else:
            mine = ["show", "assoc", f"user={getpass.getuser()}", f"format={what}"]
            said = call("sacctmgr", "-n", "-P", *mine)
        return sorted(set(said.replace(",", "\n").split()))

    def _of_nodes(self, resources: Resources, wanted: Mapping[str, Any], said: str) -> list[str]:
        """What the nodes do not have, number by number, or else what the controller said.

        --test-only refuses what needs nodes that are drained at the moment; sbatch takes it. A node
        that was away when it was asked may be back when the nodes are: then it is asked again.
        """
        chosen = ",".join(self._partitions_of(wanted))
        lines = call("sinfo", "-h", "-p", chosen, "-o", "%D|%c|%m|%G|%T").splitlines()
        nodes, cpus, memory, gpus, states = zip(*(line.split("|") for line in lines), strict=True)
        found = _too_large(resources, f"partition {chosen}", nodes, cpus, memory, gpus)
        absent = "configuration" in said and not all(_IN_SERVICE.fullmatch(word) for word in states)
        absent = absent or "inactive or drain" in said  # which partition, says _closed
        if found or absent or not (again := _test_only(wanted)):
            return found
        return [f"Slurm would refuse it: {again}"]


def _too_large(resources: Resources, where: str, *columns: Sequence[str]) -> list[str]:
    """Numbers over what sinfo's columns have: nodes, CPUs, MB and GPUs of each group of nodes."""
    nodes, cpus, memory, gpus = columns
    most_gpus = max(map(_gpus, gpus))
    processes = max(1, min(resources.gpus, most_gpus))
    sizes = [  # name, asked for, who has how much of it
        ("nodes", resources.nodes, where, sum(map(_number, nodes))),
        ("gpus", resources.gpus, f"a node of {where}", most_gpus),
        ("cpus", resources.cpus, f"a process on {where}", max(map(_number, cpus)) // processes),
        ("memory_gb", resources.memory_gb, f"a node of {where}", max(map(_number, memory)) // 1024),
    ]
    return [
        f"resources.{name}: {asked:g} is more than {whose} has: write {name}: {has} or less"
        for name, asked, whose, has in sizes
        if asked > has
    ]


def _test_only(wanted: Mapping[str, Any]) -> str:
    """Why the controller would refuse a request; empty where it would take it."""
    status, _, complaints = ask("sbatch", "--test-only", *flags(wanted), "--wrap=true").finish()
    if status == 0:
        return ""
    lines = [line for line in complaints.splitlines() if line.strip()]
    return "; ".join(re.sub(r"^[a-z ]+: (error: )?", "", line) for line in lines) or "no reason"


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)


def _gpus(gres: str) -> int:
    """GPUs in `gpu:a100:4(S:0-1),gpu:v100:2`."""
    return sum(int(count) for count in re.findall(r"gpu:(?:[^:,()]+:)?(\d+)", gres))
