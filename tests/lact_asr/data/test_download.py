"""Downloads end with the right bytes or a clear error, whatever the server does."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lact_asr.data import download as module
from lact_asr.data.download import Download, fetch
from lact_asr.utils.errors import DataError, Failed, Interrupted
from tests.lact_asr.data.web_server import CorpusServer, serving

DATA = random.Random(0).randbytes(1_500_000)
PATH = "/12/dev-clean.tar.gz"


@pytest.fixture
def server() -> Iterator[CorpusServer]:
    with serving(CorpusServer(files={PATH: DATA})) as running:
        yield running


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def asking(server: CorpusServer, folder: Path, data: bytes = DATA) -> Download:
    """The download of a test: small pauses, the given bytes expected."""
    url, target = server.address + PATH, folder / "dev-clean.tar.gz"
    return Download(url, target, sha256(data), len(data), tries=4, pause=0.01)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_arrives_and_nothing_else_stays(server: CorpusServer, tmp_path: Path) -> None:
    path = fetch(asking(server, tmp_path))
    assert path.read_bytes() == DATA
    assert leftovers(tmp_path) == ["dev-clean.tar.gz"]


def test_md5_is_a_checksum_too(server: CorpusServer, tmp_path: Path) -> None:
    right = "md5:" + hashlib.md5(DATA).hexdigest()
    assert fetch(replace(asking(server, tmp_path), checksum=right)).read_bytes() == DATA


@pytest.mark.parametrize("dated", [False, True])
def test_after_cut_connections_it_goes_on_by_range(
    server: CorpusServer, tmp_path: Path, dated: bool
) -> None:
    server.dated = dated
    server.cuts = [400_000, 300_000, 500_000]
    assert fetch(asking(server, tmp_path)).read_bytes() == DATA
    assert server.asked[0] == ""
    assert all(header.startswith("bytes=") for header in server.asked[1:])
    assert server.sent < len(DATA) + 4 * module.CHUNK


def test_a_cut_is_noticed_where_the_server_does_not_say_the_length(
    server: CorpusServer, tmp_path: Path
) -> None:
    server.lengths = False
    server.cuts = [400_000]
    assert fetch(asking(server, tmp_path)).read_bytes() == DATA
    assert server.asked == ["", "bytes=400000-"]


def test_a_server_without_range_is_started_over_cleanly(
    server: CorpusServer, tmp_path: Path
) -> None:
    server.ranges = False
    server.cuts = [1_000_000, 1_200_000]
    assert fetch(asking(server, tmp_path)).read_bytes() == DATA


def test_a_server_without_range_that_always_cuts_is_given_up(
    server: CorpusServer, tmp_path: Path
) -> None:
    server.ranges = False
    server.cuts = [700_000, 500_000] * 50
    with pytest.raises(Failed, match="no further in 4 attempts"):
        fetch(asking(server, tmp_path))
    assert len(server.asked) <= 6


def test_a_busy_server_is_asked_again_after_the_time_it_names(
    server: CorpusServer, tmp_path: Path
) -> None:
    server.busy = [(503, {"Retry-After": "1"}), (503, {})]
    started = time.monotonic()
    assert fetch(asking(server, tmp_path)).read_bytes() == DATA
    assert time.monotonic() - started >= 1


def test_an_absurd_retry_after_is_capped(
    server: CorpusServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.1)
    server.busy = [
        (503, {"Retry-After": "86400"}),
        (429, {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}),
    ]
    assert fetch(asking(server, tmp_path)).read_bytes() == DATA


def test_one_wrong_byte_is_noticed_and_fetched_again(server: CorpusServer, tmp_path: Path) -> None:
    server.damaged = 1
    assert fetch(asking(server, tmp_path)).read_bytes() == DATA
    assert len(server.asked) == 2


def test_bytes_that_stay_wrong_are_an_error_and_not_kept(
    server: CorpusServer, tmp_path: Path
) -> None:
    server.damaged = 99
    with pytest.raises(DataError, match="came twice with a checksum other than sha256:"):
        fetch(asking(server, tmp_path))
    assert leftovers(tmp_path) == []
    assert len(server.asked) == 2


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_meanwhile_is_started_over(
    server: CorpusServer, tmp_path: Path, if_range: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    server.if_range = if_range
    changed = bytes(reversed(DATA))
    download = asking(server, tmp_path, changed)
    with pytest.raises(Interrupted):
        fetch(replace(download, should_stop=lambda: download.arrived >= 500_000))
    server.files[PATH] = changed
    assert fetch(download).read_bytes() == changed
    assert server.asked[1].startswith("bytes=")
    assert "wrong checksum" not in capsys.readouterr().out, "noticed before the last byte"


def test_another_mirror_goes_on_where_the_first_one_stopped(
    server: CorpusServer, tmp_path: Path
) -> None:
    first = asking(server, tmp_path)
    with pytest.raises(Interrupted) as stopped:
        fetch(replace(first, should_stop=lambda: first.arrived >= 500_000))
    assert stopped.value.position == first.arrived
    with serving(CorpusServer(files={PATH: DATA}, dated=True)) as mirror:
        assert fetch(asking(mirror, tmp_path)).read_bytes() == DATA
        assert mirror.asked == [f"bytes={stopped.value.position}-"]
        assert mirror.sent == len(DATA) - stopped.value.position


def test_a_killed_download_goes_on_from_its_last_byte(server: CorpusServer, tmp_path: Path) -> None:
    download = asking(server, tmp_path)
    server.stalls_at = 1_000_000
    code = (
        "import sys; from pathlib import Path; from lact_asr.data.download import *;"
        "fetch(Download(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))"
    )
    given = [download.url, str(download.target), download.checksum, str(download.size)]
    process = subprocess.Popen([sys.executable, "-c", code, *given])
    while download.arrived < 500_000:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = download.arrived
    assert not download.target.exists()
    server.stalls_at = float("inf")
    assert fetch(download).read_bytes() == DATA
    assert server.asked == ["", f"bytes={kept}-"]


def test_no_server_at_all_is_given_up_with_the_reason(tmp_path: Path) -> None:
    with serving(CorpusServer()) as server:
        download = asking(server, tmp_path)
    with pytest.raises(Failed, match="Connection refused; no further in 4 attempts"):
        fetch(download)


def test_a_missing_file_is_an_error_at_once(server: CorpusServer, tmp_path: Path) -> None:
    server.files.clear()
    with pytest.raises(DataError, match="the server answers 404 Not Found; check `mirror`"):
        fetch(asking(server, tmp_path))
    assert len(server.asked) == 1


def test_a_log_in_page_is_not_taken_for_the_file(server: CorpusServer, tmp_path: Path) -> None:
    server.files[PATH] = b"<html>please log in</html>"
    with pytest.raises(DataError, match="26 bytes, but the file has 1,500,000"):
        fetch(asking(server, tmp_path))
    assert leftovers(tmp_path) == []


def test_an_archive_is_not_unzipped_on_the_way(server: CorpusServer, tmp_path: Path) -> None:
    server.headers = {"Content-Encoding": "gzip"}  # as servers send that label .gz files so
    assert fetch(asking(server, tmp_path)).read_bytes() == DATA


def test_a_file_brought_by_hand_is_checked_and_replaced_if_wrong(
    server: CorpusServer, tmp_path: Path
) -> None:
    download = asking(server, tmp_path)
    download.target.write_bytes(DATA)
    assert fetch(download) == download.target
    assert server.asked == []
    download.target.write_bytes(DATA[:-1] + b"x")
    assert fetch(download).read_bytes() == DATA
    assert len(server.asked) == 1


def test_waiting_for_a_busy_server_can_be_interrupted(server: CorpusServer, tmp_path: Path) -> None:
    server.busy = [(503, {"Retry-After": "120"})]
    started = time.monotonic()
    with pytest.raises(Interrupted):
        fetch(
            replace(asking(server, tmp_path), should_stop=lambda: time.monotonic() > started + 0.2)
        )
    assert time.monotonic() - started < 60
