"""Every setting of the recogniser and its training, with default, unit, bounds and meaning. No torch here.

`ModelConfig` and the named sizes come first, then the optimiser and the training loop. The launcher shows these fields in
`kinds` and checks pipeline files against them; checkpoints store them as `config.json`.
"""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A settings block: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
