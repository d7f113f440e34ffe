"""How much disk a corpus takes while it comes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.data.corpora import LIBRISPEECH, Subset
from lact_asr.data.disk_space import MARKER, archive_of, folder_of, part_of, peak

SIZES = st.lists(st.integers(0, 10**12), max_size=6)


def subset(name: str, size: int) -> Subset:
    return Subset(name, resource=12, checksum=f"sha256:{name}", size=size, utterances=1)


def test_all_of_librispeech_takes_95_gb_at_its_peak(tmp_path: Path) -> None:
    every = [LIBRISPEECH[name] for name in sorted(LIBRISPEECH)]
    assert peak(every, tmp_path) == pytest.approx(94.96e9, rel=1e-3)
    assert peak(every, tmp_path / "not" / "there") == peak(every, tmp_path)


def test_what_is_there_is_not_needed_again(tmp_path: Path) -> None:
    first, second = subset("a", 1000), subset("b", 4000)
    assert peak([first, second], tmp_path) == 1050 + 4000 + 4200
    folder_of(first, tmp_path).mkdir(parents=True)
    (folder_of(first, tmp_path) / MARKER).write_text(json.dumps({"checksum": first.checksum}))
    assert peak([first, second], tmp_path) == 4000 + 4200
    part_of(archive_of(second, tmp_path)).write_bytes(bytes(1500))
    assert peak([first, second], tmp_path) == 2500 + 4200
    archive_of(second, tmp_path).write_bytes(bytes(4000))
    assert peak([first, second], tmp_path) == 4200
    (folder_of(first, tmp_path) / MARKER).write_text(json.dumps({"checksum": "another"}))
    assert peak([first, second], tmp_path) == max(2050, 1050 + 4200)


@given(SIZES)
def test_the_peak_is_that_of_bringing_one_after_the_other(sizes: list[int]) -> None:
    kept = most = 0
    for size in sizes:
        most = max(most, kept + size + int(size * 1.05))
        kept += int(size * 1.05)
    nowhere = Path("/nowhere")
    assert peak([subset(str(n), size) for n, size in enumerate(sizes)], nowhere) == most
