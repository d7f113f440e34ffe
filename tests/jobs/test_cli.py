"""The command line: what it teaches, what it costs, and what it says to a wrong word."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from jobs import kinds
from jobs.reading.yaml12 import read
from tests.conftest import REPOSITORY
from tests.jobs.launcher import ASCII, Launcher
from tests.slurm.cluster import PATIENCE

COMMANDS = [
    "run",
    "check",
    "kinds",
    "schema",
    "status",
    "logs",
    "cancel",
    "resume",
    "render",
    "infer",
    "ledger",
    "rehearse",
    "diagnose",
]  # the contract of DESIGN


ONE_STEP = "steps: {a: {kind: command, settings: {argv: [echo]}}}"
INFER = ["infer", "--checkpoint-dir", ".", "p.yaml", "--cluster", "local"]


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def test_help_names_every_command_and_each_command_explains_itself(launch: Launcher) -> None:
    text = launch("--help").stdout
    for command in COMMANDS:
        assert f"    {command} " in text
        assert launch(command, "--help").returncode == 0


def test_kinds_shows_every_setting_with_its_meaning(launch: Launcher) -> None:
    listed = launch("kinds").stdout
    for name in kinds.NAMES:
        assert name in listed
        shown = launch("kinds", name).stdout
        for field in kinds.load(name).Settings.model_fields:
            assert field in shown
    wrong = launch("kinds", "trian")
    assert (wrong.returncode, wrong.stderr) == (2, "no kind 'trian': did you mean 'train'?\n")


def test_kinds_are_told_where_python_leaves_docstrings_out(launch: Launcher) -> None:
    launch.environment["PYTHONOPTIMIZE"] = "2"
    for words in (["kinds"], ["kinds", "train"], ["schema"]):
        assert launch(*words).returncode == 0
    assert "jobs.kinds.train" in launch("kinds").stdout  # in the place of its first sentence


def test_the_schema_accepts_our_pipelines_and_refuses_a_wrong_key(launch: Launcher) -> None:
    schema = json.loads(launch("schema").stdout)
    for file in (REPOSITORY / "jobs" / "pipelines").glob("*.yaml"):
        jsonschema.validate(read(file).value, schema)
    wrong = {"steps": {"a": {"kind": "command", "settings": {"argvs": ["x"]}}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], "no runs in"),
        (["logs", "x/y"], "no runs in"),
        (["run", "missing.yaml"], "missing.yaml: cannot be read: No such file"),
        (["check", "./demo"], "demo: cannot be read: No such file"),
        (["check", "dem"], "a pipeline of ours: did you mean 'demo'? Ours are demo, distillation,"),
        (
            ["render", "mine", "--out", "o"],
            "'mine' is neither a file nor a pipeline of ours: valid",
        ),
        (["run", "p.yaml", "--cluster", "lokal"], "no cluster 'lokal': did you mean 'local'?"),
        (["run", "p.yaml", "--only", "b"], "--only b: valid are a"),
        (["infer", "--checkpoint-dir", "nowhere", "a.flac"], "nowhere does not exist"),
        (["infer", "--checkpoint-dir", ".", "../x"], "../x does not exist"),
        (["infer", "--checkpoint-dir", ".", ".."], ".. is a folder: write ../*"),
        (
            ["infer", "--checkpoint-dir", ".", "--test-subset", "dev"],
            "/data/manifests: nothing is valid here",
        ),
        (
            [*INFER, "--num-samples", "-1"],
            "infer: num_samples: write a number greater than or equal to 0, not -1",
        ),
        (
            [*INFER, "--set", "samples=x", "--set", "resources.gpu=1", "--set", "batch_second=3"],
            '--set samples=x: samples: write a valid integer, not "x"\n'
            "--set batch_second=3: batch_second: unknown key 'batch_second': did you mean "
            "'batch_seconds'?\n"
            "--set resources.gpu=1: resources.gpu: unknown key 'gpu': write gpus: ... (GPUs per "
            "node; one process each)\n",
        ),
        ([*INFER, "--set", "samples"], "--set samples: write setting=value"),
        (
            [*INFER, "--set", "batch_seconds=.inf"],
            "--set batch_seconds=.inf: batch_seconds: write a number that has an end",
        ),
        (["diagnose", "--checkpoint-dir", "nowhere", "a.flac"], "nowhere does not exist"),
        (
            ["run", "p.yaml", "--clustr", "local"],
            "launch.py run: error: no such argument: --clustr: did you mean '--cluster'?",
        ),
        (["status", "--follow"], "no such argument: --follow: valid are --watch, --json"),
        (["check", "p.yaml", "q.yaml"], "launch.py check: error: no such argument: q.yaml\n"),
    ],
)
def test_a_wrong_word_is_answered_with_what_is_right(
    launch: Launcher, arguments: list[str], words: str
) -> None:
    launch.write(ONE_STEP)
    done = launch(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (launch.folder / "runs").exists()


def test_the_version_tells_what_a_report_of_a_mistake_needs(launch: Launcher) -> None:
    done = launch("--version")
    assert done.returncode == 0
    assert re.fullmatch(
        r"trainyard \S+( \(commit [0-9a-f]{12}(, changed)?\))?, torch 2\S+, torchaudio 2\S+, "
        r"submitit 1\S+, Python 3\.\d+\.\d+, Linux-.*\n",
        done.stdout,
    )


def test_infer_refuses_a_name_that_is_not_utf8(launch: Launcher) -> None:
    audio = os.fsencode(launch.folder) + b"/gr\xfc\xdfe.wav"
    Path(os.fsdecode(audio)).touch()
    done = launch("infer", "--checkpoint-dir", ".", os.fsdecode(audio))
    shown = f"{launch.folder}/gr\\udcfc\\udcdfe.wav is not UTF-8: rename it\n"
    assert (done.returncode, done.stderr) == (2, shown)


def test_a_pipeline_that_comes_with_us_needs_no_path_and_a_file_here_comes_first(
    launch: Launcher,
) -> None:
    (launch.folder / "demo").mkdir()  # of the same name, and no file
    assert launch("check", "demo").stdout == "demo: 7 steps, no mistakes\n"
    assert launch("run", "demo", "--dry-run", "--cluster", "local").returncode == 0
    (launch.folder / "demo").rmdir()
    launch.write(ONE_STEP, "demo")
    assert launch("check", "demo").stdout == "demo: 1 step, no mistakes\n"


def test_a_dry_run_shows_the_plan_and_creates_nothing(launch: Launcher) -> None:
    path = launch.write(ONE_STEP)
    done = launch("run", path, "--cluster", "local", "--dry-run")
    assert done.returncode == 0
    assert "a (command) time=1h" in done.stdout
    assert not (launch.folder / "runs").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["kinds"], ["check", "p.yaml"]])
def test_no_command_of_the_login_node_imports_torch(launch: Launcher, arguments: list[str]) -> None:
    path = launch.write(ONE_STEP)
    launch("run", path, "--cluster", "local", "--wait")
    heavy = {"torch", "torchaudio", "numpy", "soundfile", "submitit"}
    if arguments in (["--help"], ["status"]):
        heavy |= {"pydantic", "yaml"}
    program = (
        "import sys; sys.argv = ['launch.py', *sys.argv[1:]]\n"
        "from jobs.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=launch.folder,
        env={**launch.environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_text_is_utf8_whatever_the_locale_says(tmp_path: Path, speech: Path) -> None:
    """In a locale of ASCII: the file, its name, names of files in it, the log and the record."""
    launch = Launcher(tmp_path, ASCII)
    tables = {}
    for part, audio in zip(("träin", "däv", "tëst"), sorted(speech.rglob("*.flac")), strict=False):
        shutil.copy(audio, tmp_path / f"{part}.flac")
        tables[part] = f"{part}.csv"
        (tmp_path / tables[part]).write_text(f"audio,text\n{part}.flac,a word\n", encoding="utf-8")
    train, dev, test = (f"[{name}]" for name in tables.values())
    path = launch.write(
        f"""
description: Größe über alles
steps:
  corpus:
    kind: download
    settings: {{source: table, folder: ., train: {train}, dev: {dev}, test: {test}}}
  echo:
    kind: command
    needs: [corpus]
    settings: {{argv: [printenv, WORT], environment: {{WORT: größer}}}}
""",
        "größe.yaml",
    )
    run = launch.run(path, "--cluster", "local", "--wait")
    assert launch.status()["echo"]["state"] == "succeeded", launch("logs", f"{run.name}/corpus")
    result = json.loads((run / "steps/corpus/result.json").read_bytes())
    assert Path(result["train"]).read_text(encoding="utf-8").count("träin.flac") == 1
    assert launch("logs", f"{run.name}/echo").stdout.strip() == "größer"
    assert "träin.csv: 1 of 1 utterances are sound" in launch("logs", f"{run.name}/corpus").stdout


def test_a_folder_whose_name_is_no_text_is_refused_and_nothing_is_left_in_it(
    tmp_path: Path,
) -> None:
    launch = Launcher(tmp_path / os.fsdecode("größe".encode("latin-1")))
    launch.folder.mkdir()
    done = launch("run", launch.write(ONE_STEP), "--cluster", "local")
    assert done.returncode == 2
    assert "not UTF-8: rename it" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in launch.folder.iterdir()] == ["p.yaml"]


def test_a_file_that_can_be_read_only_once_is_kept_as_it_was(launch: Launcher) -> None:
    """`run <(sed ... p.yaml)`: what is kept is what was read, and what `resume` goes on with."""
    command = f"{sys.executable} {REPOSITORY / 'launch.py'}"
    path = launch.write("description: first\n" + ONE_STEP)
    words = [
        f"{command} check <(cat {path})",
        f"{command} run <(cat {path}) --cluster local --wait",
        f"{command} resume {launch.folder}/runs/*-* <(sed s/first/second/ {path}) --redo a --wait",
    ]
    for line in words:
        subprocess.run(["bash", "-c", line], cwd=launch.folder, env=launch.environment, check=True)
    (kept,) = launch.folder.glob("runs/*/pipeline.yaml")
    assert kept.read_text() == "description: second\n" + ONE_STEP
    assert json.loads(kept.with_name("run.json").read_text())["description"] == "second"


def test_from_a_folder_that_is_no_more_and_without_anybody_who_listens(launch: Launcher) -> None:
    python, command = sys.executable, REPOSITORY / "launch.py"
    gone = subprocess.run(
        ["bash", "-c", f"mkdir gone; cd gone; rmdir ../gone; {python} {command} status"],
        cwd=launch.folder,
        capture_output=True,
        text=True,
    )
    assert gone.returncode == 2
    assert gone.stderr == "the folder that you are in has been removed: cd to another one\n"
    path = launch.write(ONE_STEP)
    words = f"{python} {command} run {path} --cluster local --wait <&- >&- 2>&-"
    subprocess.run(["bash", "-c", words], cwd=launch.folder, env=launch.environment, check=True)
    assert launch.status()["a"]["state"] == "succeeded"


def without_reader() -> int:
    """The end to write to of a pipe that nobody reads any more, as after `| true`."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def without_room() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize(
    ("where", "said", "shown"),
    [
        (without_reader, "", 0),
        (without_room, "the output could not be written: No space left on device\n", 1),
    ],
)
def test_what_nobody_can_read_is_done_all_the_same_and_what_is_only_shown_ends(
    launch: Launcher, where: Callable[[], int], said: str, shown: int
) -> None:
    def unread(*arguments: object) -> tuple[int, str]:
        output = where()
        done = launch(*arguments, stdout=output)
        os.close(output)
        return done.returncode, done.stderr

    local = ("--cluster", "local")
    assert unread("run", launch.write(ONE_STEP), *local, "--wait") == (0, said)
    assert launch.status()["a"]["state"] == "succeeded"
    failing = launch.write(ONE_STEP.replace("echo", "'false'"))
    assert unread("run", failing, *local, "--wait") == (1, said)
    assert launch.status()["a"]["state"] == "failed"
    talking = launch.write(ONE_STEP.replace("echo", "sh, -c, echo here; sleep 600"))
    assert unread("run", talking, *local) == (0, said)
    while "here" not in launch("logs", "/a").stdout:
        time.sleep(0.1)
    for shows in (["status"], ["kinds"], ["logs", "/a", "-f"]):
        assert unread(*shows) == (shown, said), shows
    run = launch("status", "--json").stdout.split('"run": "')[1].split('"')[0]
    assert unread("cancel", run) == (0, said)
    assert launch.status()["a"]["state"] == "cancelled"


def test_every_kind_is_read_with_torch_out_of_reach() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['torchaudio'] = None\n"
        "from jobs import kinds\n"
        "for name in kinds.NAMES:\n"
        "    kind = kinds.load(name)\n"
        "    assert kind.__doc__ and kind.RESOURCES and kind.Settings and kind.run\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_ctrl_c_while_a_run_is_made_leaves_none(launch: Launcher) -> None:
    """The commit is asked of a `git` that takes its time."""
    slow = launch.folder / "bin" / "git"
    slow.parent.mkdir()
    asked = launch.folder / "asked"
    slow.write_text(f"#!/bin/sh\ntouch {asked}\nexec sleep 60 > /dev/null 2>&1\n")
    slow.chmod(0o755)
    path = f"{slow.parent}:{os.environ['PATH']}"
    command = [sys.executable, str(REPOSITORY / "launch.py"), "run", "demo", "--cluster", "local"]
    said = launch.folder / "said"
    with said.open("w") as file:
        made = subprocess.Popen(
            command,
            cwd=launch.folder,
            env={**launch.environment, "PATH": path},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    end = time.monotonic() + PATIENCE
    while not asked.exists():
        assert time.monotonic() < end and made.poll() is None
        time.sleep(0.05)
    os.killpg(made.pid, signal.SIGINT)  # as a terminal does
    assert made.wait(timeout=50) == 130 and said.read_text() == "stopped\n"
    assert list(launch.folder.glob("runs/*")) == []


DYING = """
import argparse, os, signal, sys, time
from jobs import cli

class Faulty:
    def __del__(self):
        raise ValueError("a fault")

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

def act(given):
    Faulty()
    Dying()
    time.sleep(20)
    return 0

cli.parse = lambda arguments: argparse.Namespace(act=act)
sys.exit(cli.main())
"""


def test_ctrl_c_counts_in_a_destructor_too() -> None:
    """Python throws away what is raised there, and the command would go on."""
    program = [sys.executable, "-c", DYING]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 130 and done.stderr.endswith("ValueError: a fault\nstopped\n")
    assert "KeyboardInterrupt" not in done.stderr


def test_whoever_calls_trainyard_is_told_of_no_other_command(launch: Launcher) -> None:
    """Whatever a job has written down is told by both names: it names neither."""
    command = launch.folder / "trainyard"
    command.write_text((REPOSITORY / "launch.py").read_text())
    launch.environment = {**launch.environment, "PYTHONPATH": str(REPOSITORY)}
    failing = "steps: {a: {kind: command, settings: {argv: ['false']}}}"
    commands = (
        ["run", launch.write(failing), "--cluster", "local", "--wait"],
        ["status", "--json"],
        ["resume"],
        *([word, "--help"] for word in COMMANDS),
        *(["kinds", kind] for kind in kinds.NAMES),
    )
    for words in commands:
        done = subprocess.run(
            [sys.executable, str(command), *map(str, words)],
            cwd=launch.folder,
            env=launch.environment,
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        assert said and "launch.py" not in said.replace(str(REPOSITORY), ""), said
