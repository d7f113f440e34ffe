"""What every test may ask for: speech made on the spot, and the folder `shared` where it is."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

# Read when torch is imported, here and in the processes that tests start. On shared cores two
# threads were 4 to 9 times slower than one, and sums of one thread do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
# a third each of the time that tests/slurm takes; what is not named shares a third Slurm
SLURMS = {
    "slurm of successors": ("test_ledger", "test_self_driving", "test_successor"),
    "slurm of once": (
        "test_exactly_once",
        "test_fence",
        "test_hostile_cancel",
        "test_hostile_resume",
        "test_looking",
    ),
}
# each takes half a minute and more: begun last, the others would have ended long before
FIRST = (
    *SLURMS,
    "slurm",
    "tests/test_bench.py",
    "tests/lact_asr/model/test_blocks.py",
    "tests/lact_asr/distributed/test_fsdp.py",
    "tests/lact_asr/diagnosis/test_overfit.py",
    "tests/lact_asr/training/test_recovery.py",
    "tests/lact_asr/training/test_killed.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Tests are patient, and see a GPU only where `tests/gpu` alone is asked for: everything else
    is compared with what the CPU computes.
    """
    # The background of a shell ignores Ctrl-C; what tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from hypothesis import HealthCheck, settings  # not for the processes that import this file

    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")
    if not all("tests/gpu" in word for word in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` starts: three more than there are cores, since three mostly wait for Slurm."""
    return min(len(os.sched_getaffinity(0)) + 3, 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """With `pytest -n auto` there are three private Slurms, whose tests mostly wait, and beside
    them the others run, a file in one worker. `--dist loadgroup` does nothing under pytest 9.2:
    https://github.com/pytest-dev/pytest-xdist/issues/1386
    """
    if config.getoption("dist") != "load":
        return None  # whoever asks for another way gets xdist's own

    from xdist.scheduler import LoadFileScheduling

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(super()._split_scope(nodeid))

    config.option.loadscopereorder = False  # the order is ours
    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    items.sort(key=lambda item: _place(_group(item.nodeid.split("::")[0])))


def _group(file: str) -> str:
    if not file.startswith("tests/slurm/"):
        return file
    return next((name for name, files in SLURMS.items() if Path(file).stem in files), "slurm")


def _place(group: str) -> int:
    return FIRST.index(group) if group in FIRST else len(FIRST)


def shared(relative: str) -> Path:
    """A path in the shared folder; the test skips, saying so, where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} in the folder 'shared' beside the checkout")
    return path


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic speech of eight voices in LibriSpeech layout: about 2 s each, made in 1.5 s."""
    from lact_asr.data.synthetic.corpus import synthesize
    from lact_asr.data.synthetic.sentences import Synthetic

    recipe = Synthetic(utterances=24, test_utterances=8, words=5, voices=8)
    return synthesize(recipe, tmp_path_factory.mktemp("speech"))


@pytest.fixture
def real_speech() -> Path:
    """257 real utterances in LibriSpeech layout, for what is about real speech itself."""
    return shared("data/speech")
