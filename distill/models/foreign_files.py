"""Models of other libraries as their users keep them: read, and their symbols mapped to ours.

Nothing is downloaded and nothing in a file is run: weights are safetensors, or a state dict read
with weights_only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.config.foreign import ForeignConfig
from distill.models.foreign import Foreign, transformers
from lact_asr.text.normalize import CHARACTERS
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import read_json

RATE = 16_000  # samples a second that all of this project's models hear
DELIMITER = "|"  # how both libraries write the space between words
BLANK = "-"  # how torchaudio writes the blank


class Adopted(NamedTuple):
    """A foreign model with its vocabulary."""

    model: Foreign
    vocabulary: Vocabulary
    unused: list[str]  # its symbols that no text of ours has


class Symbols(NamedTuple):
    """A library's symbols in our order."""

    vocabulary: Vocabulary
    numbers: tuple[int, ...]  # the library's, the blank's first
    unused: list[str]


def map_symbols(labels: Sequence[str], blank: int, delimiter: str, upper: bool) -> Symbols:
    """The characters among a library's labels, ours first; DataError where they are pieces.

    With `upper`, letters are written large, as texts here are.
    """
    found: dict[str, int] = {}
    unused: list[str] = []
    for number, label in enumerate(labels):
        symbol = " " if label == delimiter else label
        if upper and len(symbol.upper()) == 1:
            symbol = symbol.upper()
        if number == blank or len(symbol) != 1 or symbol in found:
            unused += [label] if number != blank else []
        else:
            found[symbol] = number
    if len(found) <= len(unused):
        raise DataError(
            f"{len(unused)} of its {len(labels)} symbols are no single characters "
            f"({', '.join(map(repr, unused[:5]))} ...): what it says frame by frame cannot be "
            "compared. Teach its transcripts: kind `pseudo_labels`"
        )
    ours = [symbol for symbol in CHARACTERS if symbol in found]
    order = [*ours, *(symbol for symbol in found if symbol not in ours)]
    return Symbols(Vocabulary(order), (blank, *(found[each] for each in order)), unused)


def from_transformers(folder: Path, upper: bool = True) -> Adopted:
    """The CTC model that `save_pretrained` wrote to a folder, with its processor beside it."""
    about = _json(folder, "config.json")
    _refuse_other_models(folder, about)
    heard = _json(folder, "preprocessor_config.json", {})
    if heard.get("sampling_rate", RATE) != RATE:
        raise DataError(f"{folder} hears {heard['sampling_rate']} samples a second, not {RATE}")
    written = _json(folder, "tokenizer_config.json", {})
    numbers = _json(folder, "vocab.json")
    labels = [""] * about["vocab_size"]
    for label, number in numbers.items():
        labels[number] = label
    delimiter = written.get("word_delimiter_token", DELIMITER)
    symbols = map_symbols(labels, about["pad_token_id"], delimiter, upper)
    model = transformers().AutoModelForCTC.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,  # whatever it was saved in: half precision runs on GPUs alone
    )
    arguments = {**model.config.to_dict(), "dtype": "float32"}
    arguments.pop("_name_or_path", None)  # the place of a folder is nobody's business
    config = ForeignConfig(
        library="transformers",
        arguments=arguments,
        convolutions=tuple(zip(about["conv_kernel"], about["conv_stride"], strict=True)),
        symbols=symbols.numbers,
        normalize=heard.get("do_normalize", True),
        blocks=about["num_hidden_layers"],
    )
    return _adopt(config, model.state_dict(), symbols, folder)


def _refuse_other_models(folder: Path, about: Mapping[str, Any]) -> None:
    """DataError for what is no CTC model over samples."""
    named = ", ".join(about.get("architectures") or ["nothing"])
    if not named.endswith("ForCTC"):
        raise DataError(f"{folder} holds {named}: a teacher has a CTC head, such as Wav2Vec2ForCTC")
    if "conv_kernel" not in about or about.get("add_adapter"):
        raise DataError(
            f"{folder} holds {named}, whose frames convolutions over samples do not make: "
            "teach its transcripts, kind `pseudo_labels`"
        )


def from_torchaudio(
    weights: Path,
    arguments: Mapping[str, Any],
    labels: Sequence[str],
    *,
    normalize: bool,
    upper: bool = True,
) -> Adopted:
    """A `wav2vec2_model` from its state dict; `labels` has the blank, "-"."""
    if BLANK not in labels or len(labels) != arguments["aux_num_out"]:
        raise DataError(
            f"labels are to be all {arguments['aux_num_out']} that the model gives, in its order, "
            f"{BLANK!r} for the blank; there are {len(labels)}"
        )
    symbols = map_symbols(labels, list(labels).index(BLANK), DELIMITER, upper)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # changed bytes are met by whatever part of pickle reads them
        raise DataError(
            f"{weights} is no state dict ({error}): write one with "
            "torch.save(bundle.get_model().state_dict(), FILE)"
        ) from error
    if all(name.startswith("model.") for name in state):  # a bundle that normalizes is wrapped
        state = {name.removeprefix("model."): value for name, value in state.items()}
    config = ForeignConfig(
        library="torchaudio",
        arguments=dict(arguments),
        convolutions=tuple((w, s) for _, w, s in arguments["extractor_conv_layer_config"]),
        symbols=symbols.numbers,
        normalize=normalize,
        blocks=arguments["encoder_num_layers"],
    )
    return _adopt(config, state, symbols, weights)


def bundle(name: str) -> tuple[dict[str, Any], list[str], bool]:
    """Arguments, labels and whether samples are normalized, of a bundle of torchaudio.

    2.11 is the last torchaudio: its private names will not change any more.
    """
    from torchaudio import pipelines

    known = {
        each: value
        for each, value in vars(pipelines).items()
        if isinstance(value, pipelines.Wav2Vec2ASRBundle)
    }
    if name not in known:
        raise DataError(f"torchaudio has no bundle {name!r}: write one of {', '.join(known)}")
    found = known[name]
    return dict(found._params), list(found.get_labels(blank=BLANK)), found._normalize_waveform


def _adopt(
    config: ForeignConfig, state: Mapping[str, Tensor], symbols: Symbols, place: Path
) -> Adopted:
    model = Foreign(config, len(symbols.vocabulary))
    try:
        model.inner.model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"the weights of {place} do not fit the model: {error}") from error
    return Adopted(model.eval(), symbols.vocabulary, symbols.unused)


def _json(folder: Path, name: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return read_json(folder / name)
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise DataError(
            f"{folder} has no {name}: name a folder that `save_pretrained` of model and processor "
            "wrote"
        ) from None
    except ValueError as error:
        raise DataError(f"{folder / name} is no JSON: {error}") from error
