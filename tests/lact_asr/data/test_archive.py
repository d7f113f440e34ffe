"""A corpus folder is whole or absent: at any moment, after any failure."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lact_asr.data.archive import check_room, download_subset, unpack
from lact_asr.data.corpora import Subset
from lact_asr.data.disk_space import MARKER
from lact_asr.utils.errors import DataError, Failed, Interrupted
from tests.lact_asr.data.noise_corpus import archive, facts, subset_folder
from tests.lact_asr.data.web_server import CorpusServer, serving
from tests.slurm.cluster import PATIENCE

NAME = "dev-clean"
OBTAIN = """
import sys
from pathlib import Path
from lact_asr.data.corpora import Subset
from lact_asr.data.archive import download_subset
name, resource, checksum, size, utterances, root, mirror = sys.argv[1:]
subset = Subset(name, int(resource), checksum, int(size), int(utterances))
download_subset(subset, Path(root), mirror, 4)
"""


@pytest.fixture
def server() -> Iterator[CorpusServer]:
    with serving(CorpusServer()) as running:
        yield running


@pytest.fixture
def offer(server: CorpusServer, tmp_path: Path) -> Callable[..., Subset]:
    """Put an archive of 6 utterances on the site: its facts."""

    def put(utterances: int = 6, **extra: bytes) -> Subset:
        data = archive(subset_folder(tmp_path / "original"), NAME, extra)
        server.files[f"/12/{NAME}.tar.gz"] = data
        return facts(NAME, data, utterances)

    return put


def process(subset: Subset, root: Path, server: CorpusServer) -> "subprocess.Popen[bytes]":
    """`download_subset` in a process of its own."""
    known = [subset.name, subset.resource, subset.checksum, subset.size, subset.utterances]
    given = [str(value) for value in (*known, root, server.address)]
    return subprocess.Popen([sys.executable, "-c", OBTAIN, *given])


def visible(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "LibriSpeech").glob("*") if not p.name.startswith("."))


def test_a_subset_arrives_whole_with_its_licence_and_marker(
    server: CorpusServer, offer: Callable[..., Subset], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    folder = download_subset(offer(), root, server.address, 4)
    assert folder == root / "LibriSpeech" / NAME
    assert len(list(folder.rglob("*.flac"))) == 6
    assert (folder / MARKER).exists()
    assert visible(root) == ["LICENSE.TXT", NAME]
    assert not list(root.glob("*.tar.gz*"))


def test_up_to_date_asks_nobody(
    server: CorpusServer, offer: Callable[..., Subset], tmp_path: Path
) -> None:
    subset = offer()
    download_subset(subset, tmp_path, server.address, 4)
    download_subset(subset, tmp_path, "http://127.0.0.1:9", 1)
    assert len(server.asked) == 1


def test_a_wrong_count_is_refused_and_nothing_looks_complete(
    server: CorpusServer, offer: Callable[..., Subset], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    message = "6 transcripts and 6 audio files .* but the subset has 7 utterances"
    with pytest.raises(DataError, match=message):
        download_subset(offer(utterances=7), root, server.address, 4)
    assert list((root / "LibriSpeech").iterdir()) == []


@pytest.mark.parametrize("member", ["../escaped.txt", "/escaped.txt", "LibriSpeech/../../x"])
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, member: str) -> None:
    data = archive(subset_folder(tmp_path / "original"), NAME, {member: b"owned"})
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(data)
    target = tmp_path / "a" / "b" / "LibriSpeech" / NAME
    if member.startswith("/"):  # made relative, which is harmless
        unpack(packed, target, facts(NAME, data, 6))
    else:
        with pytest.raises(DataError, match="refused to unpack it"):
            unpack(packed, target, facts(NAME, data, 6))
        assert list(target.parent.iterdir()) == []
    assert not list(tmp_path.rglob("escaped.txt")) and not Path("/escaped.txt").exists()


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.9])
def test_a_truncated_archive_is_a_clear_error(tmp_path: Path, keep: float) -> None:
    data = archive(subset_folder(tmp_path / "original"), NAME)
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(data[: int(len(data) * keep)])
    target = tmp_path / "LibriSpeech" / NAME
    with pytest.raises(DataError, match="damaged archive"):
        unpack(packed, target, facts(NAME, data, 6))
    assert list(target.parent.iterdir()) == []


def test_an_unsafe_python_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("tarfile.data_filter")
    with pytest.raises(DataError, match=r"use Python 3\.10\.12"):
        unpack(tmp_path / "packed.tar.gz", tmp_path / NAME, facts(NAME, b"", 0))


def test_a_folder_of_someone_else_is_not_taken_for_a_corpus(
    server: CorpusServer, offer: Callable[..., Subset], tmp_path: Path
) -> None:
    theirs = tmp_path / "LibriSpeech" / NAME / "84"
    theirs.mkdir(parents=True)
    with pytest.raises(DataError, match="exists but was not made by this download"):
        download_subset(offer(), tmp_path, server.address, 4)
    assert theirs.exists()
    assert server.asked == []


def test_too_little_room_is_told_before_the_first_byte(
    server: CorpusServer, offer: Callable[..., Subset], tmp_path: Path
) -> None:
    huge = replace(offer(), size=10**18)
    message = r"dev-clean needs 2\.05e\+06 TB free in .*archive 1e\+06 TB.* there are"
    with pytest.raises(Failed, match=message) as failed:
        download_subset(huge, tmp_path, server.address, 4)
    assert failed.value.cause == "disk_full"
    assert server.asked == []


def test_bytes_that_have_arrived_need_no_room_again(tmp_path: Path) -> None:
    huge = Subset(NAME, resource=12, checksum="", size=10**18, utterances=1)
    with pytest.raises(Failed, match=r"\(archive 0 B, unpacked"):
        check_room(tmp_path, huge, arrived=10**18)


def test_killed_in_the_middle_of_unpacking_it_starts_unpacking_again(
    server: CorpusServer, tmp_path: Path
) -> None:
    data = archive(subset_folder(tmp_path / "original", speakers=5, utterances=100), NAME)
    server.files[f"/12/{NAME}.tar.gz"] = data
    subset, root = facts(NAME, data, 500), tmp_path / "root"
    running = process(subset, root, server)
    unpacking = root / "LibriSpeech" / f".{NAME}.unpacking"
    while len(list(unpacking.rglob("*.flac"))) < 20:
        assert running.poll() is None, "the process ended before it could be killed"
        time.sleep(0.001)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert visible(root) == []
    folder = download_subset(subset, root, server.address, 4)
    assert len(list(folder.rglob("*.flac"))) == 500
    assert len(server.asked) == 1, "the archive was whole and is not fetched twice"
    assert not unpacking.exists()


def test_two_jobs_that_want_the_same_subset_fetch_it_once(
    server: CorpusServer, offer: Callable[..., Subset], tmp_path: Path
) -> None:
    subset, root = offer(), tmp_path / "root"
    server.rate = 20_000
    jobs = [process(subset, root, server) for _ in range(2)]
    assert [job.wait(PATIENCE) for job in jobs] == [0, 0]
    assert len(server.asked) == 1
    assert visible(root) == ["LICENSE.TXT", NAME]


def test_unpacking_can_be_interrupted(tmp_path: Path) -> None:
    data = archive(subset_folder(tmp_path / "original"), NAME)
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(data)
    with pytest.raises(Interrupted):
        unpack(packed, tmp_path / "LibriSpeech" / NAME, facts(NAME, data, 6), lambda: True)
    assert list((tmp_path / "LibriSpeech").iterdir()) == []
