"""Several processes as one: who am I, and the few things that all ranks decide together.

The world comes from the environment (`lact_asr.distributed.place`). A single process opens no
socket and joins no group.
"""

import atexit
import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lact_asr.distributed import place
from lact_asr.distributed.fsdp import split
from lact_asr.utils.errors import DataError

TIMEOUT = 1800.0  # seconds that a rank waits for the others: $TRAINYARD_COLLECTIVE_SECONDS
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among its peers, one process per GPU."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def device(self) -> torch.device:
        """This process's GPU, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # a launcher may show each process one GPU only: then that is its number 0
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def on_node(self) -> int:
        """Processes of a node; DataError where nodes have more or fewer, or share neighbours."""
        places = self.gather(self.local_rank)
        size = max(places) + 1
        if self.world_size % size or places != [rank % size for rank in range(self.world_size)]:
            raise DataError(
                "sharded: node wants as many processes on every node, numbered node by node, and "
                f"the ranks have the places {places} on theirs: write sharded: true, or ask for "
                "whole nodes"
            )
        return size

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those of the items that are this rank's: every n-th."""
        return items[self.rank :: self.world_size]

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def all_rows(self, values: Tensor) -> Tensor:
        """Every rank's vector as a row, in the order of ranks; all are of one length."""
        if self.world_size == 1:
            return values[None]
        rows = values.new_empty(self.world_size * len(values))
        torch.distributed.all_gather_into_tensor(rows, values)
        return rows.view(self.world_size, -1)

    def exchange(self, sent: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
        """The vectors that the ranks have for this one, of these lengths; `sent`: one for each."""
        received = sent[0].new_empty(sum(lengths))
        torch.distributed.all_to_all_single(
            received, torch.cat(list(sent)), list(lengths), [len(each) for each in sent]
        )
        return list(received.split(list(lengths)))

    def all_max(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        return any(self.gather(flag))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on all of them; for small picklable values."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def wrap(self, module: nn.Module, unused_parameters: bool = False) -> nn.Module:
        """The module with gradients averaged over ranks, all starting from rank 0's weights.

        One that is split over them (`lact_asr.distributed.fsdp`) does so by itself. What a forward
        pass changes beside weights is left to the ranks: DDP would send rank 0's, tables that are
        the same everywhere among them, before each forward pass.
        """
        if self.world_size == 1 or split(module):
            return module
        wrapped = nn.parallel.DistributedDataParallel(
            module,
            find_unused_parameters=unused_parameters,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
        )
        if not unused_parameters:
            _settle_places(wrapped)
        return wrapped


ALONE = World()


def _settle_places(wrapped: nn.parallel.DistributedDataParallel) -> None:
    """Let DDP choose now, by the gradients of a plain sum, where in its buckets each gradient lies.

    It does so once, in the order in which the first backward pass brings them, unless it looks for
    unused parameters. The place of a number decides in which order three ranks or more add it up:
    without this the first step of a process is rounded otherwise than the same step of one that
    began earlier (four ranks on CPUs, stopped and resumed: weights apart by 3e-8).
    """
    inner = wrapped.module
    learning = [each for each in inner.parameters() if each.requires_grad]
    inner.forward = lambda: sum(each.sum() for each in learning)
    wrapped().backward()
    with wrapped.no_sync():
        wrapped()  # it packs them before a forward pass
    del inner.forward
    for each in learning:
        each.grad = None


def unwrapped(module: nn.Module) -> Any:
    """What `World.wrap` was given."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def no_sync(module: nn.Module) -> AbstractContextManager[None]:
    """A backward pass inside leaves gradients on this rank, for all but the last micro-batch."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def start() -> World:
    """The world of this process, connected if it has peers: gloo on CPUs, NCCL on GPUs."""
    world = World(*place.from_environment(os.environ))
    if world.world_size == 1 or torch.distributed.is_initialized():
        return world
    if torch.cuda.is_available():
        torch.cuda.set_device(world.device())
    address, port = meeting_point(os.environ)
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=world.rank,
        world_size=world.world_size,
        timeout=timedelta(seconds=patience(os.environ)),
    )
    atexit.register(torch.distributed.destroy_process_group)
    return world


def meeting_point(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of rank 0: given, or the job's first node and a port made of its id and of
    how often it has begun; neighbouring ids may share a node.
    """
    job, begun = (int(environment.get(f"SLURM_{name}_ID", "0")) for name in ("JOB", "STEP"))
    port = 15_000 + (job + 4_099 * begun) % 15_000  # below the ephemeral ports
    port = int(environment.get("MASTER_PORT", port))
    if "MASTER_ADDR" in environment:
        return environment["MASTER_ADDR"], port
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    if not nodes or environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1", port
    return _address(_scontrol("show", "hostnames", nodes).split()[0]), port


def patience(environment: Mapping[str, str]) -> float:
    """Seconds after which a rank that waits for the others gives up; DataError for what is none."""
    given = environment.get("TRAINYARD_COLLECTIVE_SECONDS", TIMEOUT)
    try:
        return max(1.0, float(given))
    except ValueError:
        said = f"TRAINYARD_COLLECTIVE_SECONDS is {given!r}: write seconds, such as 1800"
        raise DataError(said) from None


def _address(node: str) -> str:
    """A node's address; Slurm's own record where its name does not resolve."""
    try:
        return socket.gethostbyname(node)
    except OSError:
        record = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", node))
        return record[1] if record else node


def _scontrol(*arguments: str) -> str:
    return subprocess.run(
        ["scontrol", *arguments], check=True, capture_output=True, text=True
    ).stdout
