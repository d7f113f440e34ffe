"""Everything that waits for a GPU, in one command of under nine minutes and one JSON.

    python -m bench.gpu [--data mini_librispeech/train-clean-5] [--wheels DIR] [--seconds 540]

Runs from a bare copy of the repository on a machine that has Python and PyTorch; what else is
missing there comes from a folder of wheels, installed beside. Each part of `bench.gpu_parts` runs
in a process of its own and within a time of its own: one that raises, dies or takes too long is on
record with what it said and with all that it had measured by then, the others run all the same, and
the exit code is 1. What the parts leave over belongs to the training, which comes last. `--data` is
a folder in LibriSpeech layout; without it what needs speech is left out. The result is
bench/results/gpu.json, written anew after each part; without a GPU, or with --tiny, all of it runs
on the smallest sizes, and nothing is written unless --out says where.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import REPOSITORY, RESULTS, argument_parser, commit

LAST = 10.0  # seconds kept for the end of it all


@dataclass(frozen=True)
class Part:
    """A function of `bench.gpu_parts`."""

    name: str
    seconds: float  # at the most, of what is no trial
    speech: bool = False  # whether it needs some


PARTS = (
    Part("machine", 30),
    Part("tests", 110),
    Part("steps", 200),
    Part("operator", 30),
    Part("optimizers", 60),
    Part("decoding", 30, speech=True),
    Part("training", float("inf"), speech=True),
)


def main() -> int:
    """Run the parts, write what they found; 1 if one of them failed."""
    given = arguments()
    began = time.monotonic()
    found: dict[str, Any] = {"benchmark": "gpu", "commit": given.commit or commit(), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        work = Path(name)
        environment = installed(given.wheels, work / "wheels")
        for part in PARTS:
            if part.name not in (given.part or [part.name]):
                continue
            left = given.seconds - LAST - (time.monotonic() - began)
            seconds = left if given.tiny else min(part.seconds, left)
            result = outcome(part, seconds, given, work, environment)
            found["parts"][part.name] = result
            found["seconds"] = round(time.monotonic() - began, 1)
            print(told(part.name, result), flush=True)
            store(found, given)
    failed = [name for name, each in found["parts"].items() if each["state"] == "failed"]
    print(f"{len(found['parts'])} parts in {found['seconds']:.0f} s, failed: {failed or 'none'}")
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argument_parser("gpu", __doc__, tiny="the smallest sizes; nothing written")
    parser.add_argument("--data", type=Path, help="a folder in LibriSpeech layout")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install beside")
    parser.add_argument("--seconds", type=float, default=540.0, help="in all")
    parser.add_argument("--out", type=Path, help="instead of bench/results/gpu.json")
    parser.add_argument("--commit", default="", help="of a copy without .git")
    names = [part.name for part in PARTS]
    parser.add_argument("--part", action="append", choices=names, help="default: every one")
    return parser.parse_args()


def installed(wheels: Path | None, folder: Path) -> dict[str, str]:
    """The environment of the parts, in which the wheels can be imported."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if wheels is None:
        return environment
    words = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target"]
    files = sorted(map(str, wheels.glob("*.whl")))
    subprocess.run([sys.executable, "-m", "pip", *words, str(folder), *files], check=True)
    before = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [before])])}


def outcome(
    part: Part,
    seconds: float,
    given: argparse.Namespace,
    work: Path,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """What came of a part: `state` done, failed or left out, a message, rows and facts."""
    if part.speech and given.data is None:
        return {"state": "left out", "message": "no speech: --data names a folder of it"}
    if seconds <= 0:
        return {"state": "failed", "message": f"no time was left of {given.seconds:g} s"}
    words = [sys.executable, "-m", "bench.gpu_parts", part.name, "--work", str(work)]
    words += ["--seconds", f"{seconds:.1f}", *(["--tiny"] if given.tiny else [])]
    words += ["--data", str(given.data.resolve())] if given.data else []
    began, log = time.monotonic(), work / f"{part.name}.log"
    with log.open("w") as stream:
        code = run(words, environment, stream.fileno(), seconds)
    file = work / f"{part.name}.json"
    measured = json.loads(file.read_text()) if file.exists() else {}
    said = log.read_text(errors="replace")
    print(said, end="", flush=True)
    result = {"state": "done", "seconds": round(time.monotonic() - began, 1), **measured}
    if code is None:
        return {**result, "state": "failed", "message": f"not done after {seconds:.0f} s"}
    if code:
        return {**result, "state": "failed", "message": f"exit {code}: {said[-2000:].strip()}"}
    return result


def run(words: list[str], environment: Mapping[str, str], log: int, seconds: float) -> int | None:
    """The exit code of a command; None where it took too long, and was ended with all it began."""
    process = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def store(found: Mapping[str, Any], given: argparse.Namespace) -> None:
    """Write what there is so far, if it is to be kept."""
    ran_on = found["parts"].get("machine", {}).get("facts", {})
    path = given.out
    if path is None and not given.tiny and ran_on.get("device") == "cuda":
        path = RESULTS / "gpu.json"
    if path:
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(found, indent=1) + "\n")
        beside.replace(path)


def told(name: str, result: Mapping[str, Any]) -> str:
    """A part in a line, and a line for each goal."""
    rows = [row for row in result.get("rows", []) if row["met"] is not None]
    goals = [f"  {'met' if row['met'] else 'MISSED'}: {row['what']}" for row in rows]
    message = f": {result['message'].splitlines()[-1]}" if "message" in result else ""
    return "\n".join([f"=== {name}: {result['state']}{message}", *goals])


if __name__ == "__main__":
    sys.exit(main())
