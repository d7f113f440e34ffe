"""The output of a command that has no reader any more, or no room: what the command does goes on.

`run FILE | true`, or a log on a full disk, ended `run` between creating a run and submitting it,
the first of them with the exit status of success.
"""

import io
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Output(io.FileIO):
    """A descriptor to write to. From the first failure on, all that is written is thrown away."""

    failed: OSError | None = None
    raises = False  # whether the first failure is raised

    def write(self, data: "Buffer", /) -> int:
        """As to any file, as long as it can be written."""
        if self.failed is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = error
                if self.raises:
                    raise
        return memoryview(data).nbytes


def over(stream: TextIO) -> tuple[Output, TextIO]:
    """The same descriptor as output that may fail; the stream that writes to it."""
    raw = Output(stream.fileno(), "w", closefd=False)
    by_line = stream.line_buffering if isinstance(stream, io.TextIOWrapper) else True
    return raw, io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=by_line
    )
