"""Download one large file over a bad connection, and end with the right bytes or a clear error.

The bytes go to NAME.part; beside it NAME.part.json says which version of the file they belong to
(ETag, Last-Modified). After a cut connection, a busy server or a killed process the download goes
on from the end of NAME.part by HTTP Range, from another mirror too; where the server lacks Range,
or the file has changed, it starts over. Only a file whose checksum is right gets the name NAME.
"""

import email.utils
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import urllib3

from lact_asr.data.disk_space import bytes_on_disk, part_of
from lact_asr.utils.errors import DataError, Failed, Interrupted
from lact_asr.utils.files import read_json, write_json
from lact_asr.utils.locks import never
from lact_asr.utils.progress import Progress, size

CHUNK = 1 << 16  # bytes between two checks of should_stop: 0.7 s at 100 kB/s
TIMEOUT = (15, 30)  # seconds to connect, and without a byte
LONGEST_WAIT = 300.0  # seconds, whatever Retry-After says
BUSY = (408, 425, 429, 500, 502, 503, 504)  # worth asking again
ACCEPT = {"Accept-Encoding": "identity"}  # or some servers unpack a .tar.gz on the way


class _Again(Exception):
    """This attempt ended early: what happened, and for how long the server asked us to wait."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Download:
    """What to fetch, where to, and how its bytes are known to be right."""

    url: str
    target: Path
    checksum: str  # "sha256:<hex>" or "md5:<hex>"
    size: int  # bytes
    tries: int = 8  # attempts in a row that may get no further than those before
    pause: float = 1.0  # seconds before the second attempt, doubled for each one after it
    should_stop: Callable[[], bool] = field(default=never)

    @property
    def part(self) -> Path:
        """Where the bytes wait until the checksum is right."""
        return part_of(self.target)

    @property
    def version(self) -> Path:
        """Which version of the file the bytes in `part` belong to."""
        return self.target.with_name(self.target.name + ".part.json")

    @property
    def arrived(self) -> int:
        """Bytes on disk so far."""
        return bytes_on_disk(self.target)


def fetch(download: Download) -> Path:
    """The file on disk with the right checksum, however it had to be got.

    Raises DataError where another try would not help, Failed where no try has got further,
    Interrupted where `should_stop()` says so.
    """
    if download.target.exists():  # verified before it got this name, or brought by hand: look again
        if matches(download.target, download.checksum, download.should_stop):
            return download.target
        print(f"{download.target} does not have its checksum; it is fetched again", flush=True)
        download.target.unlink()
    for last_chance in (False, True):
        _fill(download)
        if matches(download.part, download.checksum, download.should_stop):
            download.part.replace(download.target)
            download.version.unlink(missing_ok=True)
            return download.target
        _discard(download)
        if not last_chance:
            print(f"{download.url}: wrong checksum; once more from the first byte", flush=True)
    raise DataError(
        f"{download.url} came twice with a checksum other than {download.checksum}; nothing was"
        " kept. The mirror may hold a damaged or another file: set `mirror` to another one."
    )


def matches(path: Path, checksum: str, should_stop: Callable[[], bool] = never) -> bool:
    """Whether the bytes on disk have this checksum ("sha256:<hex>" or "md5:<hex>")."""
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with (
        path.open("rb") as file,
        Progress(f"checking {path.name}", path.stat().st_size, "B") as progress,
    ):
        while chunk := file.read(1 << 22):
            if should_stop():
                raise Interrupted(path.stat().st_size)
            digest.update(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest() == expected.lower()


def _fill(download: Download) -> None:
    """Attempt after attempt until `part` has its full length."""
    fruitless, most = 0, download.arrived
    while download.arrived < download.size:
        try:
            _attempt(download)
            return
        except _Again as again:
            fruitless = 0 if download.arrived > most else fruitless + 1
            most = max(most, download.arrived)
            if fruitless >= download.tries:
                raise Failed(
                    "server_unreachable",
                    f"{download.url}: {again}; no further in {fruitless} attempts."
                    f" {size(download.arrived)} are kept in {download.part}:"
                    " start again to go on from there, or set `mirror` to another one.",
                ) from again
            wait = download.pause * 2 ** max(0, fruitless - 1) if again.wait is None else again.wait
            wait = min(wait, LONGEST_WAIT)
            print(f"{download.url}: {again}; next attempt in {wait:.0f} s", flush=True)
            _sleep(wait, download)


def _attempt(download: Download) -> None:
    """One request, from the end of `part` where the server plays along."""
    try:
        with _open(download) as response:
            start = _start(download, response)
            _save(download, response, start)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Again(_plain(error)) from error


def _open(download: Download) -> requests.Response:
    """The answer to GET, with Range and If-Range where there is something to go on from."""
    headers = dict(ACCEPT)
    version = _known_version(download)
    if version:
        headers["Range"] = f"bytes={download.part.stat().st_size}-"
        if version["url"] == download.url and (version["etag"] or version["modified"]):
            headers["If-Range"] = version["etag"] or version["modified"]
    response = requests.get(download.url, headers=headers, stream=True, timeout=TIMEOUT)
    if response.status_code in (200, 206):
        return response
    with response:
        if response.status_code == 416:
            _discard(download)
            raise _Again("the server has fewer bytes than have arrived; starting over")
        if response.status_code in BUSY:
            reason = f"the server answers {response.status_code} {response.reason}"
            raise _Again(reason, _retry_after(response))
        raise DataError(
            f"{download.url}: the server answers {response.status_code} {response.reason};"
            " check `mirror`"
        )


def _start(download: Download, response: requests.Response) -> int:
    """Where in the file this answer begins; 0 empties `part`. DataError if it is another file."""
    known, version = _known_version(download), _version(download, response)
    begins, total = _span(response)
    if total not in (None, download.size):
        _discard(download)
        raise DataError(
            f"{download.url}: {total:,} bytes, but the file has {download.size:,}:"
            " this is another file (or a log-in page); check `mirror`"
        )
    if begins:
        same = known is not None and (known == version or known["url"] != download.url)
        if not same or begins != download.part.stat().st_size:
            _discard(download)
            raise _Again("the file has changed on the server; starting over", wait=0)
    else:
        download.part.write_bytes(b"")
    write_json(download.version, version)
    return begins


def _span(response: requests.Response) -> tuple[int, int | None]:
    """First byte of the answer, and the length of the whole file where the server says it."""
    if response.status_code == 206:
        # Content-Range: bytes 1000-4999/5000
        span = re.match(r"bytes (\d+)-\d+/(\d+)$", response.headers.get("Content-Range", ""))
        return (int(span[1]), int(span[2])) if span else (-1, None)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _save(download: Download, response: requests.Response, start: int) -> None:
    """Append the body to `part` as it arrives."""
    label = download.target.name
    with (
        download.part.open("ab") as file,
        Progress(label, download.size, "B", done=start) as progress,
    ):
        for chunk in _chunks(response):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise DataError(
                    f"cannot write {download.part}: {error.strerror}. Make room and start again:"
                    " it goes on from where it stopped."
                ) from error
            progress.advance(len(chunk))
            if download.should_stop():
                raise Interrupted(download.arrived)
            if progress.done > download.size:
                raise DataError(
                    f"{download.url}: more than {download.size:,} bytes; check `mirror`"
                )
        os.fsync(file.fileno())
    if download.arrived < download.size:
        raise _Again("the connection was cut")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    # raw and undecoded: `iter_content` would unzip a .gz that is served as Content-Encoding: gzip
    while chunk := response.raw.read(CHUNK, decode_content=False):
        yield chunk


def _version(download: Download, response: requests.Response) -> dict[str, str]:
    """What tells one version of the file from the next; weak ETags do not promise equal bytes."""
    etag = response.headers.get("ETag", "")
    return {
        "url": download.url,
        "etag": "" if etag.startswith("W/") else etag,
        "modified": response.headers.get("Last-Modified", ""),
    }


def _known_version(download: Download) -> dict[str, str] | None:
    """The version that `part` belongs to, if there are bytes to go on from."""
    try:
        known: Any = read_json(download.version)
    except FileNotFoundError:
        return None
    has_bytes = download.part.exists() and download.part.stat().st_size > 0
    return known if has_bytes else None


def _discard(download: Download) -> None:
    download.part.unlink(missing_ok=True)
    download.version.unlink(missing_ok=True)


def _retry_after(response: requests.Response) -> float | None:
    """Seconds the server asks us to wait: `Retry-After: 120`, or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _sleep(seconds: float, download: Download) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if download.should_stop():
            raise Interrupted(download.arrived)
        time.sleep(min(0.5, left))


def _plain(error: Exception) -> str:
    """The innermost reason, without the wrapping of three libraries."""
    while error.__context__ is not None and isinstance(error.__context__, Exception):
        error = error.__context__
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
