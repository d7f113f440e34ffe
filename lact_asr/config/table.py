"""Settings of a table of the user's own recordings. No torch."""

from pydantic import Field

from lact_asr.config.base import Frozen


class Columns(Frozen):
    """Names of a table's columns, or of the keys of its JSON lines."""

    audio: str = Field("audio", description="column with the path of the recording")
    text: str = Field("text", description="column with what is said")
    speaker: str = Field("speaker", description="column with the speaker; may be absent")
    id: str = Field("id", description="column with a name for the line; may be absent")
    offset: str = Field(
        "",
        description="column with where an utterance begins in its recording, seconds; `offset` or "
        "`start` if not given; may be absent: recordings are utterances then",
    )
    end: str = Field(
        "end", description="column with where such an utterance ends; may be absent: see `duration`"
    )
    duration: str = Field(
        "duration", description="column with its length, seconds, if there is no `end`"
    )
    channel: str = Field(
        "channel",
        description="column with the channel that is heard, 0 or A the first; may be absent: their "
        "mean is heard",
    )
