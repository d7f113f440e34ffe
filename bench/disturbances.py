"""Runs of the fault matrix, and what is done to them from outside: killed, moved, spoiled."""

import contextlib
import json
import math
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

from jobs.step_folder import StepDir
from lact_asr.data.manifest import read_manifest, write_manifest
from tests.slurm.cluster import PrivateSlurm, start_daemon
from tests.slurm.launcher import Launcher, sh

UTTERANCES = 24
NODE = "n4"  # where those runs are that touch their node
AT = 18  # the step before which a fault comes
PATIENCE = 600.0  # seconds that a run may take
BOOT = 25.0  # seconds that a node without power is away
SMALL = {"hidden": 32, "layers": 1, "attention_heads": 2, "lact_heads": 1, "mlp": 64, "dropout": 0}
TRAINING = {
    "max_steps": 30,
    "batch_seconds": 14,
    "valid_every": 15,
    "checkpoint_every": 5,
    "log_every": 1,
    "samples": 0,
    "optim": {"learning_rate": 2e-3, "warmup_steps": 5},
}


@dataclass(frozen=True)
class Case:
    """One row of the matrix."""

    name: str
    how: str
    cause: str = ""  # the right one; empty where there is nothing to name
    faults: Sequence[Mapping[str, Any]] = ()
    act: "Callable[[Disturbed], None] | None" = None  # from outside, once the run is submitted
    like: str = "one process"  # the undisturbed run that it is compared with
    survives: bool = True
    person: str = ""  # what a person had to do for the run to end well
    training: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = ""  # what the cluster file says
    alone: bool = False  # it touches daemons that the other runs need


class Disturbed:
    """A run of the matrix, in a folder of its own."""

    def __init__(self, slurm: PrivateSlurm, folder: Path, case: Case, few: Path) -> None:
        self.slurm, self.folder, self.case = slurm, folder, case
        self.said = ""  # the cause that `status` named before a person did something
        folder.mkdir()
        self.launcher = Launcher(folder, slurm)
        write_manifest(folder / "few.jsonl", read_manifest(few))
        (folder / "site.yaml").write_text(case.cluster or "extra: {}\n")

    @property
    def step(self) -> StepDir:
        return StepDir(self.launcher.newest() / "steps" / "train")

    def run(self) -> str:
        """From submission to the end; the state of the training."""
        settings: dict[str, Any] = {
            "train": "few.jsonl",
            "dev": "few.jsonl",
            "preset": "plain",
            "model": SMALL,
        }
        settings |= {"training": {**TRAINING, **self.case.training}, **self.case.settings}
        train = {"kind": "train", "settings": settings, "faults": list(self.case.faults)}
        train["resources"] = {"time": "20m", "cpus": 1, "memory_gb": 2}
        train |= self.case.step
        steps = {"train": train, "behind": sh("echo behind >> ran", "train")}
        self.launcher("run", self.launcher.write(steps), "--cluster", "site.yaml")
        if self.case.act:
            self.case.act(self)
        self.wait_for(self.ended, PATIENCE)
        return self.launcher.states()["train"]

    def ended(self) -> bool:
        """Whether nothing of it is in the queue any more."""
        return not self.launcher.queued() and self.settled()

    def settled(self) -> bool:
        active = ("waiting", "queued", "running")
        return not any(state in active for state in self.launcher.states().values())

    def wait_for(
        self, condition: Callable[[], object], seconds: float = 240, pause: float = 0.1
    ) -> None:
        """Wait until something holds; AssertionError if it never does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"gave up after {seconds:g} s"
            time.sleep(pause)

    def reached(self) -> int:
        """The newest step of training."""
        return max((line["step"] for line in self.step.metrics() if "step" in line), default=0)

    def past(self, number: int) -> bool:
        """Whether the training is past a step, or will never be."""
        return self.reached() > number or self.settled()

    @property
    def last(self) -> int:
        """The step with which the training ends."""
        return int({**TRAINING, **self.case.training}["max_steps"])

    def begun(self, name: str) -> bool:
        """Whether a step of the run has begun."""
        return bool(self.step.upstream(name).events())

    def until_step(self, number: int) -> None:
        self.wait_for(lambda: self.reached() >= number)

    def note(self) -> None:
        """Put on record that a fault comes now, as those do that come from inside."""
        facts = {"planned": {"fault": self.case.name}, "step": self.reached() + 1, "rank": 0}
        self.step.add_fault(facts)

    def workers(self) -> list[psutil.Process]:
        """The processes of the training that have begun to train or will."""
        place = str(self.step.path)
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            ours = any("jobs.worker" in word for word in words) and words[-1] == place
            if ours and "srun" not in words[0]:
                found.append(process)
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the worker by a signal."""
        for process in self.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    @property
    def checkpoints(self) -> Path:
        return self.step.path / "checkpoints"


def kill_at_random_moments(run: Disturbed, times: int = 20, seed: int = 0) -> None:
    """SIGKILL again and again; every second one waits for a checkpoint that is being written."""
    chance, inside = random.Random(seed), 0
    for number in range(times):
        before = run.reached() if number else -1
        run.wait_for(partial(run.past, before))
        time.sleep(chance.uniform(0, 0.5))  # on a quiet core 20 steps a second: 300 are enough
        if number % 2:
            with contextlib.suppress(AssertionError):
                run.wait_for(lambda: list(run.checkpoints.glob(".new.*")), 5)
        if run.settled():
            break
        inside += bool(list(run.checkpoints.glob(".new.*")))
        run.note()
        run.kill()
    (run.folder / "note").write_text(
        f"{len(run.step.faults())} kills, {inside} inside a checkpoint"
    )


def crash(run: Disturbed) -> None:
    run.until_step(AT)
    run.note()
    run.kill(signal.SIGSEGV)


def take_node(run: Disturbed) -> None:
    """A job of a higher partition takes the node, and gives it back."""
    run.until_step(AT)
    _take(run)


def take_node_five_times(run: Disturbed) -> None:
    for _ in range(5):
        before = run.reached()
        run.wait_for(partial(run.past, before + 2))
        _take(run)


def _take(run: Disturbed) -> None:
    run.note()
    job = run.launcher.status()["train"]["job"]
    taker = ["--partition=gpu", f"--nodelist={NODE}", "--exclusive", "--output=/dev/null"]
    higher = run.slurm.run("sbatch", "--parsable", *taker, "--wrap", "sleep 600").strip()
    run.wait_for(lambda: run.slurm.state(job) == "PENDING")
    run.slurm.run("scancel", higher)


def fail_node(run: Disturbed) -> None:
    """The administrator's word for a node that has gone: Slurm requeues what ran there."""
    run.until_step(AT)
    run.note()
    run.slurm.run("scontrol", "update", f"nodename={NODE}", "state=down", "reason=power")
    job = run.launcher.status()["train"]["job"]
    run.wait_for(lambda: run.slurm.state(job) != "RUNNING" or _begun(run) > 1)
    with contextlib.suppress(RuntimeError):  # it has come back by itself
        run.slurm.run("scontrol", "update", f"nodename={NODE}", "state=resume")


def _begun(run: Disturbed) -> int:
    """How often the training has begun."""
    return sum("host" in event for event in run.step.events())


def cancel_by_hand(run: Disturbed) -> None:
    run.until_step(AT)
    run.note()
    run.slurm.run("scancel", run.launcher.status()["train"]["job"])


def spoil_newest_checkpoint(run: Disturbed) -> None:
    """While the job waits in the queue again, half of the newest weights become zeros."""
    run.wait_for(lambda: any(event["event"] == "interrupted" for event in run.step.events()))
    newest = sorted(run.checkpoints.glob("[0-9]*"))[-1] / "model.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def cut_newest_checkpoint(run: Disturbed) -> None:
    """While the job waits in the queue again, the newest weights lose their second half."""
    run.wait_for(lambda: any(event["event"] == "interrupted" for event in run.step.events()))
    newest = sorted(run.checkpoints.glob("[0-9]*"))[-1] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])


def restart_controller(run: Disturbed) -> None:
    """slurmctld is killed, is away for ten seconds in which the training goes on, comes back."""
    run.until_step(AT // 2)
    run.note()
    with daemon_away(run.slurm, "slurmctld"):
        time.sleep(10)


def stop_a_rank(run: Disturbed) -> None:
    """SIGSTOP: the rank is there, answers nobody, and the others wait for it in a collective."""
    run.until_step(AT)
    run.note()
    for process in run.workers():
        if process.environ()["SLURM_PROCID"] == "1":
            process.suspend()


def lose_slurmd(run: Disturbed) -> None:
    """The daemon of the node is killed, is away for ten seconds, comes back; its job goes on."""
    run.until_step(AT // 2)
    run.note()
    with daemon_away(run.slurm, "slurmd", NODE):
        time.sleep(10)


def lose_power(run: Disturbed) -> None:
    """Everything of the node is killed at once, its daemon too, and it comes back empty.

    Later than after BatchStartTimeout (10 s) + 10 s, as a real one does: until then Slurm takes a
    job that the node does not know for one that is about to begin there, and looks again much later
    (22.05: a job of 6 s was said to run for 9 minutes).
    """
    run.until_step(AT)
    run.note()
    job = run.launcher.status()["train"]["job"]
    with daemon_away(run.slurm, "slurmd", NODE):
        mine = [each for each in _of_cluster(run.slurm) if _job_of(each) == job]
        keepers = {parent for each in mine if (parent := each.parent())}
        for process in [*(each for each in keepers if each.name() == "slurmstepd"), *mine]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(BOOT)


def move_clock_back(run: Disturbed, seconds: float = 3600.0) -> None:
    """What a clock leaves that is moved back by an hour while the job waits in the queue: all that
    is on record, and every file, is from the future.
    """
    run.wait_for(lambda: any(event["event"] == "interrupted" for event in run.step.events()))
    for path in run.launcher.newest().rglob("*"):
        if path.suffix in (".jsonl", ".json"):
            later = lambda found: f'"time": {float(found[1]) + seconds!r}'
            path.write_text(re.sub(r'"time": (\d{9,}\.?\d*)', later, path.read_text()))
        if not path.is_symlink():
            os.utime(path, times=(path.stat().st_mtime + seconds,) * 2)
    run.wait_for(run.ended, PATIENCE)
    run.launcher("ledger", run.launcher.newest().name)


def show_result_late(run: Disturbed, seconds: float = 6.0) -> None:
    """As between the nodes of a slow file system: the result is seen once the job has long ended,
    and the step behind has begun.
    """
    result, hidden = run.step.path / "result.json", run.folder / "result.json"
    run.until_step(run.last - 1)
    run.note()
    run.wait_for(lambda: _moved(result, hidden), pause=0.0)
    run.wait_for(lambda: run.begun("behind"), PATIENCE)
    said = run.launcher.states()["train"]
    time.sleep(seconds)
    hidden.rename(result)
    (run.folder / "note").write_text(f"seen {seconds:g} s late; until then `status` said {said}")


def _moved(path: Path, to: Path) -> bool:
    try:
        path.rename(to)
    except FileNotFoundError:
        return False
    return True


def lose_database(run: Disturbed) -> None:
    """slurmdbd is away until the training has ended."""
    run.until_step(AT // 2)
    run.note()
    with daemon_away(run.slurm, "slurmdbd"):
        run.wait_for(lambda: run.launcher.states()["behind"] == "succeeded")


def move_run(run: Disturbed) -> None:
    """The run's folder gets another name while it trains; a person gives it back, and resumes."""
    run.until_step(AT)
    run.note()
    here = run.launcher.newest()
    away = here.rename(here.with_name(f"{here.name}-moved"))
    run.wait_for(lambda: not run.launcher.queued())
    if here.exists():  # what was written since lies in a folder of that name
        shutil.rmtree(here)
    away.rename(here)
    run.said = run.launcher.status()["train"]["cause"]
    run.launcher("resume", here.name)


def fill_disk(run: Disturbed) -> None:
    """Runs lie on a small disk of their own; what is free of it is taken; a person makes room."""
    run.until_step(AT // 2)
    run.note()
    ballast = run.launcher.newest().parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ballast.parent).free)
        while True:
            file.write(bytes(4096))
    run.wait_for(lambda: run.launcher.states()["train"] == "failed")
    run.wait_for(lambda: not run.launcher.queued())
    ballast.unlink()
    run.launcher("resume", run.launcher.newest().name)


def spoil_utterance(run: Disturbed) -> None:
    """NaN in the samples of one file, before the run begins to read it."""
    utterances = read_manifest(run.folder / "few.jsonl")
    bad = utterances[UTTERANCES // 2]
    samples, rate = soundfile.read(bad.audio, dtype="float32")
    samples[len(samples) // 3 :] = math.nan
    path = run.folder / "nan.wav"
    soundfile.write(path, samples.astype(np.float32), rate, subtype="FLOAT")
    lines = [json.loads(line) for line in (run.folder / "few.jsonl").read_text().splitlines()]
    lines[UTTERANCES // 2]["audio"] = str(path)
    (run.folder / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.step.add_fault({"planned": {"fault": "nan in a file"}, "step": 1, "rank": 0})


def lose_manifest(run: Disturbed) -> None:
    (run.folder / "few.jsonl").unlink()
    run.step.add_fault({"planned": {"fault": "no manifest"}, "step": 1, "rank": 0})


@contextlib.contextmanager
def daemon_away(slurm: PrivateSlurm, name: str, node: str = "") -> Iterator[None]:
    """Kill a daemon of the private cluster (of a node); behind the block it is there again."""
    command = [name, "-D"] + (["-N", node] if node else [])
    for process in _of_cluster(slurm, name):
        if node in ("", *process.cmdline()):
            process.kill()
            slurm.wait_for(partial(_has_ended, process))
    try:
        yield
    finally:
        start_daemon(command, slurm.environment, slurm.directory / "log" / f"{name}.again")
        ask = {
            "slurmctld": ["scontrol", "ping"],
            "slurmdbd": ["sacctmgr", "-n", "show", "cluster"],
            "slurmd": ["sinfo", "-h", "-n", node, "-o", "%T"],
        }
        slurm.wait_for(lambda: not re.search(r"DOWN|\*", _said(slurm, ask[name]).upper()))


def _of_cluster(slurm: PrivateSlurm, name: str = "") -> list[psutil.Process]:
    """The processes (of a name) of this cluster: another one on this machine has such too."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            asked = name in ("", process.info["name"])
            if asked and process.environ().get("SLURM_CONF") == str(slurm.conf):
                found.append(process)
    return found


def _has_ended(process: psutil.Process) -> bool:
    """Whether a process has; its keeper may leave it a zombie."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _job_of(process: psutil.Process) -> str:
    """The job of Slurm's that a process belongs to."""
    with contextlib.suppress(psutil.Error):
        return str(process.environ().get("SLURM_JOB_ID", ""))
    return ""


def _said(slurm: PrivateSlurm, command: Sequence[str]) -> str:
    try:
        return slurm.run(*command)
    except RuntimeError:
        return "DOWN"
