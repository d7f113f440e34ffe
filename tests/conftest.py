"""What every test may ask for: the shared data and oracle beside the checkout, where they are."""

import os
from pathlib import Path

import pytest

# Read when torch is imported, here and in the processes that tests start. On shared cores two
# threads were 4 to 9 times slower than one, and sums of one thread do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def shared(relative: str) -> Path:
    """A path in the shared folder; the test skips, saying so, where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} in the folder 'shared' beside the checkout")
    return path


@pytest.fixture
def speech() -> Path:
    """257 real utterances in LibriSpeech layout."""
    return shared("data/speech")
