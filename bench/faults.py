"""The fault matrix: real faults put into real training on a real Slurm, and what came of each.

A private cluster runs a small recognizer on speech, 30 steps with a checkpoint every 5, and one
step behind it: once undisturbed, then once for each fault. The table says which cause was named,
what the run did without anybody, how long it took, what was lost, and whether the last weights are
bit for bit those of the undisturbed run. Speech: the folder given with --data, else espeak-ng's.
"""

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile

from bench.fault_page import cells, known_rows, page, with_row, write
from bench.launcher import commit
from jobs.healing.rehearsal import Came, judge
from jobs.store import StepDir
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import read_manifest, write_manifest
from lact_asr.data.synthetic.corpus import synthesize
from lact_asr.data.synthetic.sentences import Synthetic
from tests.slurm.cluster import PACKAGES, PrivateSlurm, die_with_parent, missing_programs
from tests.slurm.launcher import Launcher, sh

UTTERANCES = 24
AT = 18  # the step before which a fault comes
PATIENCE = 600.0  # seconds that a run may take
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
    step: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = ""  # what the cluster file says
    alone: bool = False  # it touches daemons that the other runs need


class Disturbed:
    """A run of the matrix, in a folder of its own."""

    def __init__(self, slurm: PrivateSlurm, folder: Path, case: Case, few: Path) -> None:
        self.slurm, self.folder, self.case = slurm, folder, case
        folder.mkdir()
        self.launcher = Launcher(folder, slurm)
        write_manifest(folder / "few.jsonl", read_manifest(few))
        (folder / "site.yaml").write_text(case.cluster or "extra: {}\n")

    @property
    def step(self) -> StepDir:
        return StepDir(self.launcher.newest() / "steps" / "train")

    def run(self) -> str:
        """From submission to the end; the state of the training."""
        settings = {"train": "few.jsonl", "dev": "few.jsonl", "preset": "plain", "model": SMALL}
        settings["training"] = {**TRAINING, **self.case.training}
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

    def wait_for(self, condition: Callable[[], object], seconds: float = 240) -> None:
        """Wait until something holds; AssertionError if it never does."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"gave up after {seconds:g} s"
            time.sleep(0.1)

    def reached(self) -> int:
        """The newest step of training."""
        return max((line["step"] for line in self.step.metrics() if "step" in line), default=0)

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


# --- what is done from outside --------------------------------------------------------------------


def kill_at_random_moments(run: Disturbed, times: int = 20, seed: int = 0) -> None:
    """SIGKILL again and again; every second one waits for a checkpoint that is being written."""
    chance, inside = random.Random(seed), 0
    for number in range(times):
        before = run.reached() if number else -1
        run.wait_for(lambda b=before: run.reached() > b or run.settled())
        time.sleep(chance.uniform(0, 1.0))
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
    run.note()
    job = run.launcher.status()["train"]["job"]
    taker = ["--partition=gpu", "--nodelist=n4", "--exclusive", "--output=/dev/null"]
    higher = run.slurm.run("sbatch", "--parsable", *taker, "--wrap", "sleep 600").strip()
    run.wait_for(lambda: run.slurm.state(job) == "PENDING")
    run.slurm.run("scancel", higher)


def take_node_five_times(run: Disturbed) -> None:
    for _ in range(5):
        before = run.reached()
        run.wait_for(lambda b=before: run.reached() > b + 2 or run.settled())
        run.note()
        job = run.launcher.status()["train"]["job"]
        taker = ["--partition=gpu", "--nodelist=n4", "--exclusive", "--output=/dev/null"]
        higher = run.slurm.run("sbatch", "--parsable", *taker, "--wrap", "sleep 600").strip()
        run.wait_for(lambda j=job: run.slurm.state(j) == "PENDING")
        run.slurm.run("scancel", higher)


def fail_node(run: Disturbed) -> None:
    """The administrator's word for a node that has gone: Slurm requeues what ran there."""
    run.until_step(AT)
    run.note()
    run.slurm.run("scontrol", "update", "nodename=n4", "state=down", "reason=power")
    job = run.launcher.status()["train"]["job"]
    run.wait_for(lambda: run.slurm.state(job) != "RUNNING" or _begun(run) > 1)
    with contextlib.suppress(RuntimeError):  # it has come back by itself
        run.slurm.run("scontrol", "update", "nodename=n4", "state=resume")


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
def daemon_away(slurm: PrivateSlurm, name: str) -> Iterator[None]:
    """Kill a daemon of the private cluster; behind the block it is there again."""
    mine = str(slurm.conf)
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == name and process.environ().get("SLURM_CONF") == mine:
                process.kill()
                process.wait(30)
    try:
        yield
    finally:
        with (slurm.directory / "log" / f"{name}.again").open("w") as log:
            subprocess.Popen(
                [name, "-D"],
                env=slurm.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        ask = {"slurmctld": ["scontrol", "ping"], "slurmdbd": ["sacctmgr", "-n", "show", "cluster"]}
        slurm.wait_for(lambda: "DOWN" not in _said(slurm, ask[name]))


def _said(slurm: PrivateSlurm, command: Sequence[str]) -> str:
    try:
        return slurm.run(*command)
    except RuntimeError:
        return "DOWN"


# --- the matrix -----------------------------------------------------------------------------------

FROM_INSIDE = "the training's own hook: "
ON_N4 = "extra: {nodelist: n4}\n"
BELOW = "partition: preempt\nextra: {nodelist: n4}\n"
TWO = {"resources": {"time": "20m", "cpus": 1, "memory_gb": 2, "nodes": 2}}
FOUR = {"resources": {"time": "20m", "cpus": 1, "memory_gb": 2, "nodes": 2, "gpus": 2}}


def fault(name: str, at: int = AT, **more: Any) -> dict[str, Any]:
    return {"fault": name, "at_step": at, **more}


QUIET = (
    Case("one process", "undisturbed"),
    Case("two ranks", "undisturbed, on two nodes", step=TWO, like="two ranks"),
    Case("four ranks", "undisturbed, two on each of two nodes", step=FOUR, like="four ranks"),
    Case(
        "long",
        "undisturbed, 300 steps with a checkpoint every 2",
        training={"max_steps": 300, "checkpoint_every": 2, "valid_every": 150},
        like="long",
    ),
)
CASES = (
    Case("kill", "SIGKILL of the worker", "killed", [fault("kill")]),
    Case("crash", "SIGSEGV of the worker, from outside", "crashed", act=crash),
    Case(
        "kill at 20 moments",
        "SIGKILL at random moments, half of them waiting for a checkpoint being written",
        "killed",
        act=kill_at_random_moments,
        like="long",
        training=QUIET[3].training,
        step={"remedies": {"killed": 5}},
    ),
    Case(
        "kill of one rank of two",
        "SIGKILL of rank 1, which runs on the second node",
        "killed",
        [fault("kill", rank=1)],
        like="two ranks",
        step=TWO,
    ),
    Case(
        "kill of one rank of four",
        "SIGKILL of rank 3 of 4 on two nodes",
        "killed",
        [fault("kill", rank=3)],
        like="four ranks",
        step=FOUR,
    ),
    Case("requeue", "scontrol requeue of its own job", "preempted", [fault("preempt")]),
    Case(
        "preemption",
        "a job of a higher partition takes the node",
        "preempted",
        act=take_node,
        cluster=BELOW,
        alone=True,
    ),
    Case(
        "preemption, five times",
        "a job of a higher partition takes the node, five times in one run",
        "preempted",
        act=take_node_five_times,
        cluster=BELOW,
        training=QUIET[3].training,
        like="long",
        alone=True,
    ),
    Case(
        "node failed",
        "scontrol sets the node down: Slurm requeues with NODE_FAIL",
        "node_failed",
        act=fail_node,
        cluster=ON_N4,
        alone=True,
    ),
    Case("time limit", "SIGUSR2, the warning", "time_limit", [fault("time_limit", rank=None)]),
    Case(
        "time limit, five times",
        "SIGUSR2 at steps 4, 8, 13, 18 and 23",
        "time_limit",
        [fault("time_limit", at, rank=None) for at in (4, 8, 13, 18, 23)],
    ),
    Case(
        "out of GPU memory",
        "torch.OutOfMemoryError in the loop (no GPU on this machine)",
        "out_of_memory_gpu",
        [fault("out_of_memory_gpu")],
    ),
    Case(
        "out of host memory",
        "an allocation of 2^50 bytes, MemoryError",
        "out_of_memory_host",
        [fault("out_of_memory_host")],
    ),
    Case("NaN in a weight", "the first parameter set to NaN", "diverged", [fault("nan_weight")]),
    Case("NaN in a gradient", "one gradient of one step", faults=[fault("nan_gradient")]),
    Case("NaN in a batch", "the samples of one utterance, once", "bad_data", [fault("nan_data")]),
    Case(
        "NaN in a file",
        "a WAV of float32 with NaN, in every epoch",
        "bad_data",
        act=spoil_utterance,
    ),
    Case(
        "NaN in a rank's gradient",
        "rank 1 of 2, three steps",
        faults=[fault("nan_gradient", rank=1, times=3)],
        like="two ranks",
        step=TWO,
    ),
    Case(
        "rate x 1000",
        "for 60 of 300 steps",
        "diverged",
        [fault("rate", 60, times=60)],
        like="long",
        training=QUIET[3].training,
    ),
    Case(
        "disk full",
        "runs on a tmpfs of 1.2 GB, filled to the last byte; a person makes room and resumes",
        "disk_full",
        act=fill_disk,
        like="long",
        training=QUIET[3].training,
        person="made room, resume",
        alone=True,
    ),
    Case("ENOSPC", "/dev/full", "disk_full", [fault("disk_full")], survives=False),
    Case(
        "missing file",
        "opened in the loop",
        "missing_file",
        [fault("missing_file")],
        survives=False,
    ),
    Case("no manifest", "deleted once queued", "missing_file", act=lose_manifest, survives=False),
    Case(
        "import",
        "of a package that is not there",
        "import_error",
        [fault("import_error")],
        survives=False,
    ),
    Case("port in use", "bind() of a port twice", "port_in_use", [fault("port_in_use")]),
    Case("bug", "an IndexError", "error", [fault("bug")], survives=False),
    Case(
        "gate",
        "gate: {wer: <= 0}",
        "gate_missed",
        step={"gate": {"wer": "<= 0.0"}},
        survives=False,
    ),
    Case(
        "scancel",
        "by hand",
        "killed_by_hand",
        act=cancel_by_hand,
        survives=False,
        like="long",
        training=QUIET[3].training,
    ),
    Case(
        "spoiled checkpoint",
        "half of the newest weights zeroed while the job waits in the queue",
        "time_limit",
        [fault("time_limit", rank=None)],
        act=spoil_newest_checkpoint,
    ),
    Case(
        "cut checkpoint",
        "the newest weights cut in half while the job waits in the queue",
        "time_limit",
        [fault("time_limit", rank=None)],
        act=cut_newest_checkpoint,
    ),
    Case(
        "controller restarted",
        "slurmctld killed, away for 10 s",
        act=restart_controller,
        alone=True,
    ),
    Case("database away", "slurmdbd killed until all has ended", act=lose_database, alone=True),
    Case(
        "run moved",
        "its folder renamed while it trains; a person gives it back and resumes",
        "missing_file",
        act=move_run,
        person="gave the folder back, resume",
    ),
)


@dataclass
class Outcome:
    """One row, measured."""

    case: Case
    came: Came | None = None
    named_right: bool | None = None  # None: there was nothing to name
    behind: int = 0  # how often the step behind it ran
    seconds: float = 0.0
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether it came as it should."""
        came = self.came
        if came is None or self.named_right is False:
            return False
        done = came.ended == "succeeded"
        return done == self.case.survives and self.behind == int(done)


def carry_out(slurm: PrivateSlurm, work: Path, case: Case, few: Path) -> Outcome:
    """One run with its fault; what goes wrong with the matrix itself is told in the row."""
    began, name = time.time(), case.name.replace(" ", "_").replace(",", "")
    run, outcome = Disturbed(slurm, work / name, case, few), Outcome(case)
    quiet = (
        StepDir(next((work / case.like.replace(" ", "_")).glob("runs/*")) / "steps" / "train")
        if (case.name != case.like)
        else None
    )
    try:
        with small_disk(run.folder / "runs") if case.act is fill_disk else contextlib.nullcontext():
            state = run.run()
            step = quiet or run.step
            outcome.came = judge(case.name, step, run.step, state)
            if said := named_by_slurm(run, state):
                outcome.came = outcome.came._replace(cause=said)
    except Exception as error:
        outcome.note = f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ")
        with contextlib.suppress(AssertionError, ValueError):
            run.launcher("cancel", run.launcher.newest().name)
    outcome.behind = run.launcher.ran().count("behind")
    outcome.seconds = round(time.time() - began, 1)
    if (run.folder / "note").exists():
        outcome.note += (run.folder / "note").read_text()
    if case.cause and outcome.came:
        outcome.named_right = outcome.came.cause == case.cause
    return outcome


def named_by_slurm(run: Disturbed, state: str) -> str:
    """The cause of an end that no file of the step tells of: who has cancelled it, a bad node."""
    if state == "cancelled":
        return str(run.launcher.status()["train"]["cause"])
    nodes = run.launcher.newest().parent / "nodes.jsonl"
    return "node_failed" if nodes.exists() else ""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 1.2 GB at a folder, as much as the preflight asks for; mounting takes root."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1200m", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def speech_of(data: Path | None, work: Path) -> Path:
    """A manifest of the shortest utterances; of espeak-ng's where no real speech is given."""
    utterances = sorted(scan(data or spoken(work)), key=lambda each: (each.duration, each.id))
    write_manifest(work / "few.jsonl", utterances[:UTTERANCES])
    return work / "few.jsonl"


def spoken(work: Path) -> Path:
    made = synthesize(
        Synthetic(utterances=48, test_utterances=8, words=5, voices=8), work / "speech"
    )
    return made / "train"


def described(outcome: Outcome, commit: str) -> dict[str, Any]:
    """A row of the results, as data."""
    case, came = outcome.case, outcome.came
    return {
        "fault": case.name,
        "how": case.how,
        "right_cause": case.cause,
        "survivable": case.survives,
        "person": case.person,
        "named_right": outcome.named_right,
        "behind": outcome.behind,
        "wall_seconds": outcome.seconds,
        "note": outcome.note,
        "good": outcome.good,
        "came": came and came._asdict(),
        "commit": commit,
    }


def main() -> None:
    """Run the matrix; write bench/results/faults.md and faults.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, help="speech in LibriSpeech layout")
    parser.add_argument(
        "--only", default="", help="these cases, with commas: their rows are made anew"
    )
    parser.add_argument("--tiny", action="store_true", help="one case; nothing is written")
    parser.add_argument("--at-once", type=int, default=3, help="runs side by side (default 3)")
    given = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"{', '.join(missing)}: not installed. Debian: apt-get install {PACKAGES}")
    only = ["kill"] if given.tiny else [name for name in given.only.split(",") if name]
    cases = [case for case in CASES if not only or case.name in only]
    quiet = [case for case in QUIET if case.name in {each.like for each in cases}]
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as name,
        PrivateSlurm(Path(name) / "slurm") as slurm,
    ):
        about = {
            "slurm": slurm.run("sbatch", "--version").strip(),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1),
            "speech": "real speech" if given.data else "speech of espeak-ng",
        }
        version, rows = commit(), [] if given.tiny else known_rows()
        names, one_at_a_time = [case.name for case in CASES], threading.Lock()

        def note(outcome: Outcome) -> None:
            with one_at_a_time:
                rows[:] = with_row(rows, described(outcome, version), names)
                print(" | ".join(cells(described(outcome, version))), flush=True)
                if not given.tiny:
                    write(rows, about)

        measure(slurm, Path(name), quiet, cases, given.data, given.at_once, note)
    print(page(rows, about))


def measure(
    slurm: PrivateSlurm,
    folder: Path,
    quiet: Sequence[Case],
    cases: Sequence[Case],
    data: Path | None,
    at_once: int,
    note: Callable[[Outcome], None],
) -> None:
    """The undisturbed runs, then all others, those that touch daemons one after the other.

    What is known after each is noted: a matrix that is cut short has its first rows.
    """
    (work := folder / "work").mkdir()
    few = speech_of(data, folder)

    def one(case: Case) -> None:
        note(carry_out(slurm, work, case, few))

    for group in (quiet, [case for case in cases if not case.alone]):
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(one, group))
    for case in cases:
        if case.alone:
            one(case)


if __name__ == "__main__":
    main()
