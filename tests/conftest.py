"""What every test may ask for: speech made on the spot, and the folder `shared` where it is."""

import os
from pathlib import Path

import hypothesis
import pytest

from lact_asr.data.synthetic.corpus import synthesise
from lact_asr.data.synthetic.sentences import Synthetic

# Read when torch is imported, here and in the processes that tests start. On shared cores two
# threads were 4 to 9 times slower than one, and sums of one thread do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A loaded machine makes an example slow, not wrong.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


def shared(relative: str) -> Path:
    """A path in the shared folder; the test skips, saying so, where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} in the folder 'shared' beside the checkout")
    return path


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic speech of eight voices in LibriSpeech layout: about 2 s each, made in 1.5 s."""
    recipe = Synthetic(utterances=24, test_utterances=8, words=5, voices=8)
    return synthesise(recipe, tmp_path_factory.mktemp("speech"))


@pytest.fixture
def real_speech() -> Path:
    """257 real utterances in LibriSpeech layout, for what is about real speech itself."""
    return shared("data/speech")
