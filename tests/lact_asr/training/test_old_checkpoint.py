"""A checkpoint that an old version of this code left goes on as that version went on."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lact_asr.training import checkpoint
from lact_asr.training.objective import CTCObjective
from lact_asr.utils.files import read_json, write_json
from tests.conftest import REPOSITORY
from tests.lact_asr.tiny_runs import run, tiny, tones

OLD = Path(__file__).parent / "old_checkpoint"
MODEL = {"hidden": 8, "attention_heads": 2, "lact_heads": 1, "mlp": 8, "mels": 16, "dropout": 0.1}
RUN = {"augment": {"speeds": (0.9, 1.0)}, "average": {"decay": 0.9}}
# sums in an order that does not depend on what the processor can do, for MKL, ATen and oneDNN
PORTABLE = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}


def go_on(folder: Path) -> None:
    """Three more steps from the old checkpoint; what they came to."""
    shutil.copytree(OLD / "00000003", folder / "run/checkpoints/00000003")
    objective = CTCObjective(tiny(seed=1, **MODEL))  # other weights than those of the checkpoint
    _, recorded = run(folder / "run", tones(folder, 6), objective, **RUN)
    weights = checkpoint.load(folder / "run/checkpoints/00000006/model.safetensors")
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    validated = next(line for line in recorded.metrics if line.get("step") == 6 and "wer" in line)
    found = {"losses": recorded.losses(), "valid_loss": validated["valid_loss"]}
    found |= {"weights": digest.hexdigest(), "resumed": recorded.named("resumed")}
    write_json(folder / "found.json", found)


def test_a_checkpoint_of_old_code_goes_on_as_it_did_then(tmp_path):
    """Bit for bit with the torch and on the kind of processor that it was written with."""
    command = [sys.executable, "-m", "tests.ranks", __name__, "go_on", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | PORTABLE, check=True)
    found, then = read_json(tmp_path / "found.json"), read_json(OLD / "went_on.json")
    assert [(each["step"], each["changed"]) for each in found["resumed"]] == [(3, [])]
    assert found["losses"] == pytest.approx(then["losses"], rel=1e-5)
    assert found["valid_loss"] == pytest.approx(then["valid_loss"], rel=1e-5)
    if (torch.__version__.split("+")[0], platform.machine()) == (then["torch"], then["machine"]):
        assert found["losses"] == then["losses"]
        assert found["valid_loss"] == then["valid_loss"]
        assert found["weights"] == then["weights"]
