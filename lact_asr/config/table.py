"""Settings of a table of the user's own recordings. No torch."""

from pydantic import Field

from lact_asr.config.base import Frozen


class Columns(Frozen):
    """Names of a table's columns, or of the keys of its JSON lines."""

    audio: str = Field("audio", description="column with the path of the recording")
    text: str = Field("text", description="column with what is said")
    speaker: str = Field("speaker", description="column with the speaker; may be absent")
    id: str = Field("id", description="column with a name for the line; may be absent")
