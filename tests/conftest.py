"""What every test may ask for: speech made on the spot, and the folder `shared` where it is."""

import os
import signal
from pathlib import Path

import pytest

# Read when torch is imported, here and in the processes that tests start. On shared cores two
# threads were 4 to 9 times slower than one, and sums of one thread do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
# about half of the time that tests/slurm takes
SECOND_SLURM = (
    "test_exactly_once",
    "test_fence",
    "test_hostile_cancel",
    "test_hostile_resume",
    "test_successor",
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
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker runs")
    if not all("tests/gpu" in word for word in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` starts: one worker more than there are cores, since two of them mostly wait
    for Slurm.
    """
    return min(len(os.sched_getaffinity(0)) + 1, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n auto --dist loadgroup` there are two private Slurms, whose tests mostly wait,
    and beside them the others run, a file in one worker.
    """
    for item in items:
        group = str(item.path.relative_to(REPOSITORY))
        if group.startswith("tests/slurm"):
            group = "second slurm" if item.path.stem in SECOND_SLURM else "slurm"
        item.add_marker(pytest.mark.xdist_group(group))


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
