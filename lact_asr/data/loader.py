"""Batches in their order, read ahead by worker processes or on the spot."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lact_asr.config.training import TrainingConfig
from lact_asr.data.batch import Batch
from lact_asr.data.batch_plan import Position, batches_from
from lact_asr.data.dataset import Corpus, Reader
from lact_asr.distributed.processes import World

_SOCKET = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # what multiprocessing adds to a temporary folder
CACHE = (
    3600  # seconds of audio: without workers a corpus up to this stays decoded in memory, 230 MB
)


def loader(
    corpus: Corpus,
    batches: Iterable[NDArray[Any]],
    workers: int = 0,
    spare: bool = False,
    again: bool = False,
) -> Iterable[Batch]:
    """The batches in their order, read ahead by worker processes (one thread each) if any.

    `again`: they are to be read more than once, and the workers live until the last time.
    """
    return _Loader(
        Reader(corpus, spare, cache=not workers and corpus.durations.sum() <= CACHE),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        persistent_workers=again and workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_begin,
        generator=torch.Generator(),  # the global one belongs to the model's dropout
    )


class _Loader(DataLoader[Batch]):
    """Without workers where there is no room for the locks between processes, which is said."""

    def __iter__(self) -> Any:
        if self.num_workers and self._iterator is None and not _have_locks(self.num_workers):
            print("/dev/shm is full: no process reads ahead, the training reads itself", flush=True)
            self.num_workers = 0
        return super().__iter__()


def _have_locks(workers: int) -> bool:
    """Whether there is room for what a loader takes: a queue to each, one back, and events."""
    try:
        [multiprocessing.Queue() for _ in range(2 * workers + 2)]
    except OSError:
        return False
    return True


class Stream:
    """The endless training batches of one rank, and the position behind the last one taken."""

    def __init__(
        self,
        corpus: Corpus,
        config: TrainingConfig,
        world: World,
        workers: int,
        start: Position,
        views: int = 1,
    ) -> None:
        order = batches_from(
            start,
            corpus.durations,
            config.budget(views),
            config.seed,
            world.rank,
            world.world_size,
        )
        self.position = start
        self._ahead: deque[Position] = deque()  # of batches that are being read
        self._batches = iter(
            loader(corpus, _note_positions(order, self._ahead), workers, spare=True)
        )

    def take(self) -> Batch:
        """The next batch."""
        batch = next(self._batches)
        self.position = self._ahead.popleft()
        return batch


def _note_positions(
    order: Iterator[tuple[NDArray[Any], Position]], ahead: deque[Position]
) -> Iterator[NDArray[Any]]:
    """The indices, their positions put aside; no method, so that no cycle keeps workers alive."""
    for indices, position in order:
        ahead.append(position)
        yield indices


def default_workers(device: torch.device) -> int:
    """Decoding takes one core per 5,000 s of audio a second: spare cores on a GPU machine."""
    return min(8, len(os.sched_getaffinity(0))) if device.type == "cuda" else 0


def _begin(_: int) -> None:
    """What a worker does before it reads."""
    _shorten_sockets()
    _leave_signals_to_the_parent()


def _shorten_sockets() -> None:
    """Batches come through sockets in TMPDIR, whose paths have 107 bytes at most (unix(7)): where
    it is too long they lie in /tmp, as with Python 3.14 (https://github.com/python/cpython/issues/132124).
    """
    if len(os.fsencode(tempfile.gettempdir())) + len(_SOCKET) > 107:
        tempfile.tempdir = "/tmp"


def _leave_signals_to_the_parent() -> None:
    """A worker leaves the cluster's warnings to its parent, whose handlers it has inherited.

    Slurm signals every process of a step. SIGTERM ends a worker only if its parent sent it: the
    parent needs its batches to reach the end of the step at which it saves.
    """
    for ignored in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_await_end, args=(os.getppid(),), daemon=True).start()


def _await_end(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
