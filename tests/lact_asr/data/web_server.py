"""A real web site in a thread that misbehaves on request."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class CorpusServer:
    """What the server serves, and what is wrong with it at the moment."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path, such as /12/dev-clean.tar.gz
    ranges: bool = True  # knows Range
    if_range: bool = True  # knows If-Range
    dated: bool = False  # Last-Modified instead of ETag
    lengths: bool = True  # says Content-Length
    cuts: list[int] = field(default_factory=list)  # the next answers end after so many bytes
    busy: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # the next answers: these
    damaged: int = 0  # so many answers more have a wrong byte
    headers: dict[str, str] = field(default_factory=dict)  # sent with every file
    rate: float = float("inf")  # bytes a second
    stalls_at: float = float("inf")  # bytes sent, after which it sends no more
    asked: list[str] = field(default_factory=list)  # the Range header of each request, or ""
    sent: int = 0  # bytes of files
    address: str = ""

    def tag(self, path: str) -> str:
        """The ETag of a file: it changes when the bytes change."""
        return f'"{hashlib.md5(self.files[path]).hexdigest()}"'


@contextlib.contextmanager
def serving(site: CorpusServer) -> Iterator[CorpusServer]:
    """The site on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    site: CorpusServer

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(self.headers.get("Range", ""))
        if site.busy:
            return self._answer(*site.busy.pop(0))
        if self.path not in site.files:
            return self._answer(404, {})
        data, tag = site.files[self.path], site.tag(self.path)
        version = (
            {"Last-Modified": "Mon, 12 Feb 2018 10:00:00 GMT"} if site.dated else {"ETag": tag}
        )
        start = self._start(tag, version)
        if start >= len(data):
            return self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
        if start:
            version["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        length = {"Content-Length": str(len(data) - start)} if site.lengths else {}
        self._head(206 if start else 200, {**length, **version, **site.headers})
        self._body(bytearray(data[start:]))

    def _start(self, tag: str, version: dict[str, str]) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        changed = self.site.if_range and condition not in (None, *version.values())
        return int(asked[1]) if asked and self.site.ranges and not changed else 0

    def _body(self, data: bytearray) -> None:
        if self.site.damaged:
            self.site.damaged -= 1
            data[len(data) // 2] ^= 1
        if self.site.cuts:
            data = data[: self.site.cuts.pop(0)]
            self.close_connection = True
        for at in range(0, len(data), 1 << 14):
            piece = data[at : at + (1 << 14)]
            while self.site.sent >= self.site.stalls_at:
                time.sleep(0.01)
            time.sleep(len(piece) / self.site.rate)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(piece)
            self.site.sent += len(piece)

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self._head(status, {"Content-Length": "0", **headers})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""
