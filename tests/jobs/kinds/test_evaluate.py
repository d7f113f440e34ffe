"""An evaluation over several processes scores as one does, and only the first of them writes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.job import Job
from jobs.kinds import evaluate
from lact_asr.data.manifest import read_manifest, write_manifest
from lact_asr.distributed import processes
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import read_json, write_json
from tests.lact_asr.tiny_runs import save_untrained, tiny, tones
from tests.ranks import in_ranks

COUNT = 7
SETTINGS = {"batch_seconds": 2.0, "samples": 2, "worst": 2}


def evaluated(folder: Path, rank: int, world_size: int, manifest: str = "dev.jsonl") -> dict:
    """What a rank returns and what it reports, its files in a folder of its own."""
    lines: list[dict] = []
    own = folder / f"of-{rank}-of-{world_size}"
    own.mkdir()
    job = Job(own, rank, world_size, rank, lines.append, lambda *_, **__: None, lambda: False)
    settings = evaluate.Settings(
        checkpoint=folder / "model", manifest=folder / manifest, **SETTINGS
    )
    result = evaluate.run(settings, job).model_dump(mode="json")
    return {"result": result, "lines": lines}


def rank(folder: Path) -> None:
    """Evaluate; then meet a file that only one of the ranks cannot read."""
    world = processes.start()
    found = evaluated(folder, world.rank, world.world_size)
    (folder / "of-0-of-2").rename(folder / "kept") if world.main else None
    world.gather(None)
    (folder / "of-1-of-2").rename(folder / "other") if not world.main else None
    with pytest.raises(DataError, match="utterance lost: ") as caught:
        evaluated(folder, world.rank, world.world_size, "broken.jsonl")
    write_json(folder / f"{world.rank}.json", {**found, "refused": str(caught.value)})


def test_two_ranks_share_the_work_and_come_to_what_one_comes_to(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    model = tiny()
    torch.nn.init.normal_(model.head.weight)
    save_untrained(tmp_path / "model", model)
    write_manifest(tmp_path / "dev.jsonl", tones(tmp_path, COUNT))
    said = read_manifest(tmp_path / "dev.jsonl")
    lost = replace(said[0], id="lost", audio=tmp_path / "lost.flac")
    write_manifest(tmp_path / "broken.jsonl", [*said, lost])
    alone, lines = evaluated(tmp_path, 0, 1).values()
    batches = np.diff([0, *(line["step"] for line in lines)])
    assert len(batches) > 2
    assert in_ranks(rank, tmp_path, 2) == [0, 0], (tmp_path / "rank1.log").read_text()
    own = tmp_path / "of-0-of-1"
    for number in range(2):
        told = read_json(tmp_path / f"{number}.json")
        for name, value in alone.items():
            if name not in ("hypotheses", "real_time_factor"):
                assert told["result"][name] == value, name
        heard = [line["step"] for line in told["lines"]]
        share = 2 * np.cumsum(batches[number::2])  # every second batch, and it stands for all
        assert heard == [*share.clip(max=COUNT).tolist(), COUNT]
        assert told["lines"][-1]["total_steps"] == COUNT
        assert "lost.flac" in told["refused"]
    factors = {read_json(tmp_path / f"{n}.json")["result"]["real_time_factor"] for n in range(2)}
    assert len(factors) == 1 and factors.pop() > 0
    for name in ("hypotheses.jsonl", "worst.json"):
        assert (tmp_path / "kept" / name).read_bytes() == (own / name).read_bytes()
    assert list((tmp_path / "other").iterdir()) == []
    logs = [(tmp_path / f"rank{n}.log").read_text() for n in range(2)]
    assert "Real-time factor" in logs[0] and "WER" not in logs[1] and "Sample" not in logs[1]
