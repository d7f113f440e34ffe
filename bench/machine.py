"""What a benchmark ran on: the device, its name, its measured matrix product and memory."""

import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision() -> str:
    """Arithmetic of the forward passes: bf16 on a GPU."""
    return "bf16" if device().type == "cuda" else "fp32"


def machine() -> dict[str, Any]:
    """The device in words, and what was therefore not measured."""
    facts: dict[str, Any] = {
        "device": device().type,
        "time": "wall" if device().type == "cuda" else "processor, one thread",
        "precision": precision(),
        "torch": torch.__version__,
        "load": [round(load, 1) for load in os.getloadavg()],
    }
    if device().type == "cuda":
        return facts | {"name": torch.cuda.get_device_name()}
    return facts | {"name": _processor(), "not_measured": "anything on a GPU: there was none"}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - no file of ours
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def synchronize() -> None:
    """Wait for the device."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def clock() -> float:
    """Seconds to subtract: of wall time with a GPU, of processor time without, and with that of
    programs that were waited for, as compilers are.
    """
    if device().type == "cuda":
        return time.perf_counter()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def put_compilers_on_the_clock(folder: Path) -> None:
    """What PyTorch compiles from now on is waited for, and begins with what `folder` has alone."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.resolve())


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Time of one call, the device's work included.

    Without a GPU it is processor time, of one thread as the benchmarks set it: what a quiet machine
    would take, whatever else this one does.
    """
    synchronize()
    began = clock()
    for _ in range(times):
        work()
    synchronize()
    return (clock() - began) / times


def stopwatch() -> Callable[[], float]:
    """A function that says how long ago it was called last, in the seconds of `seconds`."""
    last = clock()

    def lap() -> float:
        nonlocal last
        synchronize()
        before, last = last, clock()
        return last - before

    return lap


def matmul_peak(size: int | None = None) -> float:
    """FLOP/s of a large square matrix product in the precision of the benchmarks, measured."""
    size = size or (8192 if device().type == "cuda" else 1024)
    kind = torch.bfloat16 if precision() == "bf16" else torch.float32
    a = torch.randn(size, size, device=device(), dtype=kind)
    work = lambda: a @ a
    work()
    return 2 * size**3 / min(seconds(work, 5) for _ in range(5))


def bandwidth(numbers: int | None = None) -> float:
    """Bytes a second of a copy of float32 numbers too many for the caches, read and written."""
    numbers = numbers or (1 << 28 if device().type == "cuda" else 1 << 26)
    source = torch.ones(numbers, device=device())
    target = torch.empty_like(source)
    work = lambda: target.copy_(source)
    work()
    return 8 * numbers / median(seconds(work) for _ in range(5))
