"""What every block of settings is made of. No torch."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A settings block: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
