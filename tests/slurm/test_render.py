"""Rendered scripts run with plain sbatch, and ask for what `run` asks for, line for line."""

import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import PATIENCE, PrivateSlurm
from tests.slurm.launcher import UNTIL_GO, Launcher, chain, sh

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


def submit_all(launcher: Launcher, name: str = "scripts", code: int = 0) -> str:
    """What a rendered submit_all.sh prints, called from elsewhere; it must exit with `code`."""
    script = str(launcher.folder / name / "submit_all.sh")
    done = subprocess.run(
        [script],
        env=launcher.environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def job_names(launcher: Launcher) -> list[str]:
    """All jobs submitted from the launcher's folder or below, ended or not."""
    return [line.split()[3] for line in launcher.queue().splitlines()]


def jobs(launcher: Launcher) -> list[str]:
    """The steps of these jobs."""
    return sorted(name.split(".")[0] for name in job_names(launcher))


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
    submit_all(launcher)
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


def test_a_second_submission_of_rendered_scripts_submits_nothing_and_says_what_to_do(
    launcher: Launcher,
) -> None:
    launcher("render", launcher.write(chain(one=UNTIL_GO, two="")), "--out", "scripts")
    submit_all(launcher)
    said = submit_all(launcher, code=2)
    assert "one was submitted, or tried, before" in said
    assert f"launch.py resume {launcher.folder / 'scripts'}" in said
    assert jobs(launcher) == ["one", "two"]


def test_rendered_scripts_cut_short_after_a_job_was_queued_are_resumed_without_a_second_one(
    launcher: Launcher,
) -> None:
    launcher("render", launcher.write(chain(one="", two="", three="")), "--out", "scripts")
    launcher.wrap("sbatch", '"$real" "$@"; test $nth = 1 || kill -9 $PPID')
    submit_all(launcher, code=-9)
    launcher.unwrap()
    submit_all(launcher, code=2)
    launcher("resume", "scripts", "--wait")
    assert launcher.ran() == ["one", "two", "three"]
    assert jobs(launcher) == ["one", "three", "two"]


def test_ids_are_understood_behind_a_banner_of_the_site(launcher: Launcher) -> None:
    launcher("render", launcher.write(chain(one="", two="")), "--out", "scripts")
    banner = "echo Welcome, this is job 3 of 7; echo 12 nodes"
    launcher.wrap("sbatch", f'{banner}; "$real" "$@"; echo Goodbye')
    submit_all(launcher)
    launcher("resume", "scripts", "--wait")
    assert launcher.ran() == ["one", "two"]
    assert jobs(launcher) == ["one", "two"]


def test_an_answer_without_an_id_ends_the_script_and_is_shown(launcher: Launcher) -> None:
    launcher("render", launcher.write(chain(one="", two="")), "--out", "scripts")
    launcher.wrap("sbatch", '"$real" "$@" >/dev/null; echo see you at job 3')
    said = submit_all(launcher, code=1)
    assert "sbatch has not named a job for one: see you at job 3" in said
    launcher.unwrap()
    launcher("resume", "scripts", "--wait")
    assert launcher.ran() == ["one", "two"]
    assert jobs(launcher) == ["one", "two"]


def test_two_renderings_of_one_pipeline_give_their_jobs_different_names(launcher: Launcher) -> None:
    """By its name a job is found whose id was never written down."""
    file = launcher.write(chain(one="", two=""))
    for name in ("scripts", "again"):
        launcher("render", file, "--out", name)
        submit_all(launcher, name)
    assert len(set(job_names(launcher))) == 4
