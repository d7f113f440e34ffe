"""Rendered scripts run with plain sbatch, and ask for what `run` asks for, line for line."""

import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launching import Launcher, chain, sh

SITE = """\
partition: gpu,preempt
account: lab
qos: normal
gpu_request: {request}
warning_seconds: 30
setup: ["export FROM_SETUP='a b'"]
environment: {{FROM_SITE: "it's $HOME"}}
extra: {{exclude: n4, mail-type: NONE, overcommit: true}}
"""


@pytest.fixture
def launcher(tmp_path: Path, slurm: PrivateSlurm) -> Launcher:
    return Launcher(tmp_path, slurm)


def steps() -> dict[str, object]:
    wide = sh("echo $SLURM_PROCID $FROM_SETUP, $FROM_SITE >> wide", "one")
    wide["resources"] |= {"gpus": 2, "nodes": 2, "cpus": 2, "memory_gb": 1.5, "time": "1h30m"}
    return {**chain(one=""), "wide": wide, "behind": sh("echo behind >> ran", "one", "wide")}


def directives(script: Path, run: Path) -> list[str]:
    """The #SBATCH lines of a script, without what is a run's own."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    own = ("#SBATCH --job-name=", "#SBATCH --dependency=")
    return [line.replace(str(run), "RUN") for line in lines if not line.startswith(own)]


def command(script: Path, run: Path) -> list[str]:
    """The words with which a script starts its processes."""
    lines = script.read_text().replace("%j_%t", "ID").replace(str(run), "RUN").splitlines()
    line = next(line for line in lines if line.startswith("srun")).replace("=", " ")
    options, _, program = line.partition(" -c ")
    return [*sorted(options.split()), program]


@pytest.mark.parametrize("request_of_gpus", ["gpus-per-node", "gres"])
def test_rendered_scripts_ask_for_what_submitit_asks_for_and_run_with_plain_sbatch(
    launcher: Launcher, request_of_gpus: str
) -> None:
    (launcher.folder / "site.yaml").write_text(SITE.format(request=request_of_gpus))
    file = launcher.write(steps())
    launcher("render", file, "--out", "scripts", "--cluster", "site.yaml")
    rendered = launcher.folder / "scripts"
    script = [str(rendered / "submit_all.sh")]
    environment = launcher.environment
    done = subprocess.run(script, env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    launcher("run", file, "--cluster", "site.yaml", "--wait")
    run = launcher.newest()
    for step in steps():
        (submitted,) = (run / "steps" / step / "logs").glob("*_submission.sh")
        ours = rendered / f"{step}.sbatch"
        assert directives(ours, rendered) == directives(submitted, run)
        assert command(ours, rendered) == command(submitted, run)

    ended = ["one", "wide", "behind"]
    launcher.slurm.wait_for(
        lambda: [s["state"] for s in launcher.status(run="scripts").values()] == ["succeeded"] * 3
    )
    assert sorted(launcher.ran()) == sorted(["one", "behind"] * 2)
    traces = (launcher.folder / "wide").read_text().splitlines()
    assert sorted(traces) == sorted([f"{rank} a b, it's $HOME" for rank in range(4)] * 2)
    launcher.expect_accounts(**{name: ["COMPLETED"] for name in ended})
