"""What becomes of a recognizer's fast weights when it hears more at once than it was trained on?

    python -m bench.long_speech --data mini_librispeech/train-clean-5 --checkpoint DIR

The inner step is a sum over tokens, so a long recording moves the fast weights further than a short
one. The speech of `bench.learn`'s held-out speakers is heard utterance by utterance and put
together to pieces of 30 s, 5 min and all of it (44 min): as it is (`sum`), with the steps of longer
pieces scaled down to what 15 s would sum to (`capped`), and with no step at all (`none`). Writes
bench/results/long_speech.json: error rates, and by how much the fast weights moved.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import Row, argument_parser, commit, show, write
from bench.learn import SPEAKERS
from bench.machine import device, machine
from lact_asr.config.model import SAMPLE_RATE
from lact_asr.data.audio import read_audio
from lact_asr.data.librispeech import hold_out, scan
from lact_asr.data.manifest import Utterance
from lact_asr.decoding.greedy import greedy
from lact_asr.decoding.metrics import score
from lact_asr.model.lact_layer import LaCTLayer
from lact_asr.model.recognizer import Recognizer, recognizer
from lact_asr.text.normalize import in_normal_form
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.training import checkpoint

LENGTHS = {"utterances": 0.0, "30 s": 30.0, "5 min": 300.0, "all": float("inf")}
TYPICAL = 15.0  # seconds: what most utterances of LibriSpeech come near, and none exceeds twice
WAYS = ("sum", "capped", "none")


def pieces(utterances: Sequence[Utterance], seconds: float) -> Iterator[list[Utterance]]:
    """Utterances in their order, as many together as begin within so many seconds."""
    piece: list[Utterance] = []
    for each in utterances:
        if piece and sum(u.duration for u in piece) + each.duration > seconds:
            yield piece
            piece = []
        piece.append(each)
    yield piece


def scale(model: Recognizer, way: str) -> None:
    """Scale the step sizes of every block as the way says."""
    typical = model.config.tokens(round(TYPICAL * SAMPLE_RATE))
    factors = {
        "sum": lambda tokens: 1.0,
        "capped": lambda tokens: min(1.0, typical / tokens),
        "none": lambda tokens: 0.0,
    }
    for block in model.blocks:
        mix = block.mix
        assert isinstance(mix, LaCTLayer)
        vars(mix)["_step_sizes"] = _scaled(mix, factors[way])


def _scaled(mix: LaCTLayer, factor: Callable[[int], float]) -> Callable[[Tensor], Tensor]:
    return lambda x: LaCTLayer._step_sizes(mix, x) * factor(x.shape[1])


@torch.no_grad()
def heard(model: Recognizer, vocabulary: Vocabulary, piece: list[Utterance]) -> tuple[str, float]:
    """The text of a piece, and by how much its fast weights have moved."""
    wave = torch.cat([torch.from_numpy(read_audio(each.audio)) for each in piece])
    output = model(wave[None].to(device()), torch.tensor([len(wave)], device=device()))
    moved = float(output.fast.change[0]) if output.fast else 0.0
    return greedy(output.log_probs, output.lengths, vocabulary)[0], moved


def measure(
    model: Recognizer, vocabulary: Vocabulary, unseen: Sequence[Utterance], seconds: float
) -> dict[str, float]:
    """Error rates of the pieces and the mean change of their fast weights."""
    cut = list(pieces(unseen, seconds))
    found = [heard(model, vocabulary, piece) for piece in cut]
    true = [in_normal_form(" ".join(each.text for each in piece)) for piece in cut]
    scores = score(true, [text for text, _ in found])
    change = sum(moved for _, moved in found) / len(found)
    return {"cer": scores.cer, "wer": scores.wer, "fast_change": change, "pieces": len(cut)}


def main() -> None:
    """Hear everything in every way, print the table, write it."""
    parser = argument_parser("long_speech", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="a folder in LibriSpeech layout")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a recognizer")
    given = parser.parse_args()
    model, vocabulary, config = checkpoint.load_model(
        checkpoint.find(given.checkpoint), {"lact": recognizer}
    )
    model.to(device())
    unseen, _ = hold_out(scan(given.data), SPEAKERS, 1)
    rows, found = [], {}
    for name, seconds in LENGTHS.items():
        for way in WAYS:
            scale(model, way)
            numbers = found[f"{name}, {way}"] = measure(model, vocabulary, unseen, seconds)
            moved = f"{name}, {way}: fast weights moved by {numbers['fast_change']:.2%}"
            rows.append(Row(f"CER, {moved}", "cer", ours=[round(numbers["cer"], 4)]))
            print(rows[-1].what, rows[-1].ours, flush=True)
    show("speech of unseen speakers, put together", rows)
    kept = {key: {n: round(v, 5) for n, v in each.items()} for key, each in found.items()}
    write(
        "long_speech",
        rows,
        ran_on=machine(),
        commit=commit(),
        model=config["model"],
        trained=config["training"],
        found=kept,
    )


if __name__ == "__main__":
    main()
