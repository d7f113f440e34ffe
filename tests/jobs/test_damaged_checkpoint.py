"""`infer` with a checkpoint that has changed since it was written: one sentence, no traceback."""

from pathlib import Path

from lact_asr.training import checkpoint
from tests.jobs.launcher import Launcher
from tests.lact_asr.tiny_runs import save_untrained, tiny, tones


def test_infer_refuses_a_damaged_checkpoint_in_one_sentence(tmp_path: Path) -> None:
    path = save_untrained(tmp_path / "checkpoints/best", tiny())
    audio = tones(tmp_path, 1)[0].audio
    launch, asked = Launcher(tmp_path), ["infer", "--checkpoint-dir", ".", "--cluster", "local"]
    weights = path / checkpoint.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-2] ^= 64  # an exponent: the weight is there, and of another size
    weights.write_bytes(data)
    done = launch(*asked, audio)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert f"{checkpoint.WEIGHTS} is damaged: it is not as it was written" in said
    assert "Copy it again, or name another checkpoint" in said
    assert "Traceback" not in said
