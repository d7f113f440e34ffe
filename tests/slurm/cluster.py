"""A private Slurm for the tests: munge, MariaDB, slurmdbd, slurmctld and slurmds with fake GPUs.

    python -m tests.slurm.cluster DIR [--nodes 4] [--gpus 4]   prints export SLURM_CONF=..., stays
    python -m tests.slurm.cluster DIR --down                   takes down the one kept in DIR

Everything lives in DIR, listens on free loopback ports and runs as the calling user; root is not
needed. All daemons are foreground children of one keeper process, which ends when it is told to or
when the process that asked for it is gone, and takes every descendant with it, jobs included. Were
the keeper itself killed with SIGKILL, the kernel kills the daemons (PR_SET_PDEATHSIG).

Partitions: gpu (default), preempt (same nodes, lower tier: its jobs are requeued when gpu needs
their nodes), short (MaxTime 2 minutes). Account: lab; jobs without a valid account are refused.
Seen to work with Slurm 22.05.8 on Debian 12.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from tests.slurm.configuration import CONFIGURATION

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    "slurm-wlm slurm-wlm-basic-plugins slurmctld slurmd slurm-client slurmdbd munge mariadb-server"
)
PROGRAMS = (
    "munged mariadb-install-db mariadbd mariadb slurmdbd slurmctld slurmd sacctmgr sbatch srun"
)
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # daemons live in sbin
PATIENCE = 600.0  # seconds: no test depends on how quick a loaded machine is
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
# Ports from 32768 on go to whoever connects: one was taken between the choice and slurmd's start.
# Those from 15000 to 30000 belong to the ranks of jobs.
PORTS, STRETCH = range(10_000, 15_000), 16
LONGEST_SOCKET = 107  # bytes of sun_path, <linux/un.h>


def missing_programs() -> list[str]:
    """Programs of the Debian packages in PACKAGES that are not installed here."""
    return [name for name in PROGRAMS.split() if shutil.which(name, path=SYSTEM_PATH) is None]


class PrivateSlurm:
    """A running private cluster: `with PrivateSlurm(directory) as slurm: slurm.run("sinfo")`."""

    def __init__(self, directory: Path, nodes: int = 4, gpus: int = 4) -> None:
        self.directory, self.nodes, self.gpus = Path(directory).resolve(), nodes, gpus
        self.conf = self.directory / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a subprocess needs to talk to this cluster, and to no other."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return {**inherited, "PATH": SYSTEM_PATH, "SLURM_CONF": str(self.conf)}

    def __enter__(self) -> PrivateSlurm:
        (self.directory / "log").mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.slurm.cluster", str(self.directory)]
        command += [f"--nodes={self.nodes}", f"--gpus={self.gpus}", f"--parent={os.getpid()}"]
        with (self.directory / "log" / "keeper.log").open("w") as log:
            self._keeper = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C in pytest must reach the fixture, not the daemons
            )
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline().startswith(b"export"):
            self._keeper.wait()
            said = (self.directory / "log" / "keeper.log").read_text()
            raise RuntimeError(f"the private Slurm in {self.directory} did not start:\n{said}")
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.terminate()
        self._keeper.communicate(timeout=PATIENCE)

    def run(self, *command: str) -> str:
        """Standard output of a Slurm command; RuntimeError with its stderr if it fails."""
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            errors="replace",  # a job's name may be any bytes
            timeout=PATIENCE,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED ... as the controller says, which forgets after 300 s."""
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; AssertionError with the queue if it never does."""
        end, pause = time.monotonic() + PATIENCE, 0.05
        while not condition():
            assert time.monotonic() < end, f"gave up after {PATIENCE} s; the queue:\n{self.queue()}"
            time.sleep(pause)
            pause = min(1.2 * pause, 0.25)  # most conditions start a process

    def queue(self) -> str:
        return self.run("squeue", "-t", "all", "-o", "%.6i %.12T %.9P %.40j %.24E %R")

    def clear(self) -> None:
        """End every job and wait until the nodes are free again.

        A hangup first: a cancelled job that ignores SIGTERM is killed after KillWait only.
        """
        mine = ["scancel", f"--user={getpass.getuser()}"]
        self.run(*mine, "--state=PENDING")
        with contextlib.suppress(RuntimeError):  # one of them has just ended
            self.run(*mine, "--signal=HUP", "--full")
        self.run(*mine)
        self.wait_for(lambda: not self.run("squeue", "-h").strip() and self._nodes_are_idle())

    def _nodes_are_idle(self) -> bool:
        """No job on any node, and all of them answer: one that was resumed may take seconds."""
        return self.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%t") == "idle\n" * self.nodes


@contextlib.contextmanager
def new_slurm(nodes: int = 4) -> Iterator[PrivateSlurm]:
    """A private cluster in a new folder, which goes away with it."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: Unix sockets live in it
    with PrivateSlurm(directory, nodes) as cluster:
        yield cluster
    shutil.rmtree(directory)


# --- the keeper process ---------------------------------------------------------------------------


class Keeper:
    """Starts the daemons as its children and, in the end, kills all that descends from it."""

    def __init__(self, directory: Path, nodes: int, gpus: int, asker: int) -> None:
        """Clusters that one process (`asker`, its pid) asks for hand out the same ids."""
        self.directory, self.nodes, self.gpus = directory.resolve(), nodes, gpus
        self.asker, self.user = asker, getpass.getuser()
        self._claims = contextlib.ExitStack()  # its ports are its own until the end
        self.environment = {**os.environ, "PATH": SYSTEM_PATH}
        self.environment["SLURM_CONF"] = str(self.directory / "slurm.conf")
        self.socket, self.database = self.directory / "munge.socket", self.directory / "db.socket"
        if len(str(self.socket)) > LONGEST_SOCKET:
            raise SystemExit(f"{self.socket}: too long for a Unix socket; use a shorter directory")

    def up(self) -> None:
        for name in ("state", "dev", "log", "run", "spool", "tmp"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        ports = self._claims.enter_context(claimed_ports(3 + self.nodes))
        self._write_configuration(ports)
        self._start_database(ports[0])
        self._start_munge()
        self._daemon("slurmdbd", "slurmdbd", "-D")
        self._until("sacctmgr", "-n", "show", "cluster")
        for what in ("cluster mini", "account lab", f"user {self.user} account=lab"):
            self._call("sacctmgr", "-i", "add", *what.split())
        self._daemon("slurmctld", "slurmctld", "-D")
        for i in range(1, self.nodes + 1):
            self._daemon(f"slurmd.n{i}", "slurmd", "-D", "-N", f"n{i}")
        self._until("sinfo", "-h", "-N", "-p", "gpu", "-o", "%t", output="idle\n" * self.nodes)

    def down(self) -> None:
        """Kill every descendant; as their subreaper the keeper inherits those that fork away."""
        me = psutil.Process()
        while children := me.children(recursive=True):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=5)

    def _write_configuration(self, ports: list[int]) -> None:
        values = {
            "dir": self.directory,
            "me": self.user,
            "socket": self.socket,
            "db_port": ports[0],
            "dbd_port": ports[1],
            "ctld_port": ports[2],
            "ports": ",".join(map(str, ports[3:])),
            "nodes": self.nodes,
            "gpus": self.gpus,
            "last_gpu": self.gpus - 1,
            "first_job": 1 + self.asker * 1_009 % 14_000,  # ranks meet at a port made of the id
        }
        for i in range(self.gpus):
            (self.directory / "dev" / f"gpu{i}").touch()
        for name, text in CONFIGURATION.items():
            path = self.directory / name
            path.write_text(text.format(**values))
            path.chmod(0o600)
        (self.directory / "munge.key").write_bytes(secrets.token_bytes(128))
        (self.directory / "munge.key").chmod(0o600)

    def _start_munge(self) -> None:
        files = {"key-file": "munge.key", "socket": "munge.socket", "seed-file": "munge.seed"}
        files |= {"pid-file": "run/munge.pid", "log-file": "log/munge.log"}
        flags = [f"--{flag}={self.directory / file}" for flag, file in files.items()]
        self._daemon("munged", "munged", "--foreground", "--force", *flags)

    def _start_database(self, port: int) -> None:
        # two databases installed at once delete each other's temporary tables in /tmp
        where = ["--no-defaults", f"--datadir={self.directory / 'db'}", f"--user={self.user}"]
        where.append(f"--tmpdir={self.directory / 'tmp'}")
        method = "--auth-root-authentication-method=normal"
        self._call("mariadb-install-db", *where, method, "--skip-test-db")
        files = [f"--socket={self.database}", f"--pid-file={self.directory / 'run' / 'db.pid'}"]
        address = ["--bind-address=127.0.0.1", f"--port={port}", "--skip-name-resolve"]
        quick = "--innodb-flush-log-at-trx-commit=0"
        self._daemon("mariadbd", "mariadbd", *where, *files, *address, quick)
        sql = ["mariadb", "--no-defaults", "-u", "root", f"--socket={self.database}", "-e"]
        account = "create user slurm@'127.0.0.1' identified by 'slurm';"
        self._until(*sql, "select 1")
        self._call(*sql, f"{account} grant all on slurm_acct.* to slurm@'127.0.0.1'")

    def _daemon(self, name: str, *command: str) -> None:
        start_daemon(command, self.environment, self.directory / "log" / f"{name}.out")

    def _call(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{command[0]}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _until(self, *command: str, output: str | None = None) -> None:
        """Repeat a command until it succeeds (and prints exactly `output`, where that is given)."""
        end = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            if done.returncode == 0 and output in (None, done.stdout):
                return
            if time.monotonic() > end:
                said = f"{done.stdout}{done.stderr}"
                raise SystemExit(f"gave up on {' '.join(command)} after {PATIENCE} s: {said}")
            time.sleep(0.05)


def start_daemon(command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """A process of its own session, which the kernel kills when this process is gone."""
    with log.open("w") as said:
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    """In a new child, before exec: ask the kernel for SIGKILL when the keeper is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def claimed_ports(count: int) -> Iterator[list[int]]:
    """Ports nobody listens on, which inside the with block no other process of these tests takes.

    A lock on a file says so: a port that was only looked at went to another worker's ranks. It lies
    where all look, whatever their TMPDIR: the ports are the machine's.
    """
    folder = Path("/tmp") / f"trainyard-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    stretches = (PORTS.stop - PORTS.start) // STRETCH
    for turn in range(stretches):
        first = PORTS.start + (os.getpid() + turn) % stretches * STRETCH
        with (folder / str(first)).open("w") as claim:
            if not _is_free(claim, range(first, first + count)):
                continue
            yield list(range(first, first + count))
            return
    raise SystemExit(f"no {count} free ports in a row from {PORTS.start} to {PORTS.stop}")


def _is_free(claim: TextIO, ports: range) -> bool:
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.ExitStack() as stack:
            for port in ports:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def kept(directory: Path, nodes: int, gpus: int, asker: int) -> Iterator[None]:
    """A cluster that is up inside the with block, of which this process is the keeper."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    keeper = Keeper(directory, nodes, gpus, asker)
    pid = keeper.directory / "keeper.pid"
    try:
        keeper.up()
        pid.write_text(str(os.getpid()))
        yield
    finally:
        keeper.down()
        pid.unlink(missing_ok=True)


def take_down(directory: Path) -> None:
    """End the keeper of the cluster in a directory and wait until it has cleaned up."""
    pid = directory.resolve() / "keeper.pid"
    if not pid.exists():
        raise SystemExit(f"no private Slurm is kept in {directory}")
    keeper = psutil.Process(int(pid.read_text()))
    keeper.terminate()
    keeper.wait(timeout=PATIENCE)


def main() -> None:
    """Be the keeper of a private Slurm until told to stop, or until --parent is gone."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("directory", type=Path)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=4, help="fake GPUs per node")
    parser.add_argument("--parent", type=int, help="stop when this is no longer the parent's pid")
    parser.add_argument("--down", action="store_true", help="stop the one kept in the directory")
    args = parser.parse_args()
    if args.down:
        return take_down(args.directory)
    if missing := missing_programs():
        raise SystemExit(f"{', '.join(missing)}: not installed. Debian: apt-get install {PACKAGES}")
    with kept(args.directory, args.nodes, args.gpus, args.parent or os.getpid()):
        print(f"export SLURM_CONF={args.directory.resolve() / 'slurm.conf'}", flush=True)
        while args.parent in (None, os.getppid()):
            time.sleep(0.2)


if __name__ == "__main__":
    main()
