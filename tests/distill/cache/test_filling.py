"""Filling a cache: its form, how often it is written and told of, and a teacher that watches."""

import hashlib
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.cache import filling
from distill.cache.format import Form, open_cache, read_form, read_index
from distill.cache.teacher import Cached
from distill.models.pitch import PitchAndCepstra
from distill.teachers import Live
from lact_asr.data.manifest import Utterance
from lact_asr.data.speed import change_speed
from lact_asr.distributed import processes
from lact_asr.model.features import VERSION, LogMel
from lact_asr.model.interface import CTCOutput
from lact_asr.model.recognizer import Recognizer
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError, Interrupted
from tests.distill.tiny_models import VOCABULARY, batch, tiny_teacher, utterances
from tests.lact_asr import tiny_runs


def test_a_teacher_that_watches_is_kept_with_what_it_saw(speech, tmp_path):
    said = replace(utterances(speech)[0], video=tmp_path / "film.npy", text="")
    frames = int(25 * said.duration)
    seen = np.random.default_rng(0).normal(size=(frames, 3)).astype(np.float32)
    np.save(tmp_path / "film.npy", seen)
    model = tiny_teacher(seed=1, video="features", video_features=3)
    form = filling.form_of(
        model, VOCABULARY, kept=8, temperatures=[], hidden="none", precision="fp32"
    )
    filling.fill(
        tmp_path, model, VOCABULARY, [said], form,
        speeds=[1.0, 0.9], batch_seconds=9.0, world=processes.start(), device=torch.device("cpu"),
        report=print, should_stop=lambda: False,
    )  # fmt: skip
    source, live = Cached(tmp_path, filling.identity(model, VOCABULARY)), Live(model, VOCABULARY)
    blind = batch(speech, 1)
    film = {"video": torch.from_numpy(seen)[None], "video_lengths": torch.tensor([len(seen)])}
    for speed in (1.0, 0.9):
        with_film = change_speed(replace(blind, **film), speed)
        apart = [
            (source(with_film, 1.0).log_probs - live(heard, 1.0).log_probs).abs().max()
            for heard in (with_film, change_speed(blind, speed))
        ]
        assert apart[0] < 4e-3 < 0.05 < apart[1]


LETTERS = tiny_runs.VOCABULARY


def form(model: Recognizer, **changes: Any) -> Form:
    plain: dict[str, Any] = {
        "kept": 8, "temperatures": [], "hidden": "none", "precision": "fp32",
    }  # fmt: skip
    return filling.form_of(model, changes.pop("vocabulary", LETTERS), **{**plain, **changes})


def fill(
    folder: Path, model: Recognizer, said: Sequence[Utterance], **given: Any
) -> filling.Filled:
    """The longest utterance fits a batch; whatever else is asked for replaces these."""
    plain: dict[str, Any] = {
        "speeds": [1.0], "batch_seconds": max(each.duration for each in said),
        "world": processes.World(), "device": torch.device("cpu"),
        "report": lambda line: None, "should_stop": lambda: False,
    }  # fmt: skip
    of = given.pop("form", None) or form(model)
    return filling.fill(folder, model, LETTERS, said, of, **{**plain, **given})


@pytest.mark.parametrize(("size", "kept"), [(29, 29), (255, 255), (256, 256), (257, 8)])
def test_vocabularies_of_up_to_256_symbols_are_kept_whole(size, kept):
    symbols = Vocabulary([chr(0x4E00 + number) for number in range(size - 1)])
    assert len(symbols) == size
    found = form(Recognizer(tiny_runs.MODEL, size), vocabulary=symbols, temperatures=[2.0, 1.5])
    assert (found.symbols, found.kept) == (size, kept)
    assert found.temperatures == ([] if kept == size else [1.0, 1.5, 2.0])
    most = form(Recognizer(tiny_runs.MODEL, size), vocabulary=symbols, kept=999)
    assert most.kept == (256 if size == 257 else size), "one is left out: there must be a rest"


def test_a_form_says_whose_words_are_kept_and_in_what_precision():
    model = tiny_runs.tiny(layers=3)
    found = {kind: form(model, hidden=kind, precision="bf16") for kind in ("none", "last", "all")}
    assert [each.widths for each in found.values()] == [[], [32], [32] * 3]
    assert {each.precision for each in found.values()} == {"bf16"}
    every = found["all"]
    assert (every.hidden, every.family, every.frame_rate) == ("all", "lact", 25.0)
    assert every.model == model.config.model_dump(mode="json")
    assert every.vocabulary == LETTERS.to_dict()
    assert every.weights == filling.weights_hash(model)


def test_a_teachers_weights_have_the_name_that_caches_already_carry():
    """One that changes makes every cache on disk that of somebody else."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, -2.0)
    said = b"bias (1,) torch.float32" + struct.pack("<f", -2.0)
    said += b"weight (1, 2) torch.float32" + struct.pack("<2f", 0.5, 0.5)
    assert filling.weights_hash(model) == hashlib.sha256(said).hexdigest()


def test_features_have_the_version_that_caches_carry():
    """Where this goes red what a teacher hears has changed: count `VERSION` in
    lact_asr/model/features.py up, so that what was said of other features is not taught.
    """
    place = torch.arange(8000) / 16_000
    wave = 0.1 * torch.sin(2 * torch.pi * (200 + 2000 * place) * place)[None]
    length = torch.tensor([8000])
    mel, _ = LogMel(40)(wave, length)
    pitch = PitchAndCepstra(40, 20)(wave, length, mel)
    assert VERSION == 1
    found = [float(x.abs().mean()) for x in (mel[..., ::7], pitch)]
    assert found == pytest.approx([0.6939, 0.8225], rel=1e-3)


def test_what_a_kill_may_cost_is_written_as_often_as_reports_are_made(tmp_path, monkeypatch):
    """The clock goes on by one second at each look: a flush after 3, a report after 5 of them."""
    seconds = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(filling, "FLUSH", 3.0)
    monkeypatch.setattr(filling, "TELL", 5.0)
    said, told = tiny_runs.tones(tmp_path, 9), []
    written = []

    def should_stop() -> bool:
        written.append(len(read_index(tmp_path / "cache")))
        return False

    fill(
        tmp_path / "cache", tiny_runs.tiny(), said,
        report=told.append, should_stop=should_stop, batch_seconds=0.1,
    )  # fmt: skip
    # looks: one when it begins, one a batch, one after a flush; at 4 and 9 it is 4 s and more
    assert written == [0, 0, 0, 4, 4, 4, 4, 8, 8]
    assert told == [{"utterances": 5, "total": 9}]


def test_at_any_speed_a_batch_keeps_its_seconds_and_what_is_there_is_not_heard_again(tmp_path):
    said, model, heard = tiny_runs.tones(tmp_path, 4), tiny_runs.tiny(), []
    model.register_forward_pre_hook(lambda _, given: heard.append(tuple(given[0].shape)))
    longest = max(each.duration for each in said)
    form_here = form(model)
    heard.clear()
    told: list[Mapping[str, Any]] = []
    first = fill(tmp_path / "c", model, said[:2], speeds=[2.0], form=form_here)
    assert first.records == 2 and len(heard) == 2, "one played twice as fast counts as it was"
    heard.clear()
    done = fill(
        tmp_path / "c", model, said, speeds=[0.5, 2.0], batch_seconds=2 * longest, form=form_here
    )
    assert done.records == 8 and sum(rows for rows, _ in heard) == 6
    assert all(rows * samples <= 2 * longest * 16_000 + 2 for rows, samples in heard)
    assert told == [] and done.unreadable == {}


def test_a_cache_that_is_stopped_says_how_far_it_is_and_keeps_that(tmp_path):
    said, asked = tiny_runs.tones(tmp_path, 5), []
    with pytest.raises(Interrupted) as stopped:
        fill(
            tmp_path / "c", tiny_runs.tiny(), said, batch_seconds=0.1,
            should_stop=lambda: asked.append(1) or len(asked) == 3,
        )  # fmt: skip
    assert stopped.value.position == len(read_index(tmp_path / "c")) == len(asked) == 3


@dataclass(frozen=True)
class Second(processes.World):
    """The second of two processes; the first has opened the cache, and heard one bad file."""

    rank: int = 1
    world_size: int = 2

    def gather(self, value: Any) -> list[Any]:
        return [{"first": "torn"} if isinstance(value, dict) else value, value]


def test_a_share_of_the_work_is_filled_and_what_nobody_could_read_is_told_everybody(tmp_path):
    said, model = tiny_runs.tones(tmp_path, 4), tiny_runs.tiny()
    given: dict[str, Any] = {"world": Second(), "batch_seconds": 0.1}
    open_cache(tmp_path / "whole", form(model))
    assert fill(tmp_path / "whole", model, said, **given).records == 2
    mine = sorted(name for name, _ in read_index(tmp_path / "whole"))
    assert [path.name for path in (tmp_path / "whole").glob("*.bin")] == ["001-00000.bin"]
    next(each for each in said if each.id == mine[0]).audio.unlink()
    open_cache(tmp_path / "torn", form(model))
    done = fill(tmp_path / "torn", model, said, **given)
    assert done.records == 1 and done.unreadable.keys() == {"first", mine[0]}


def test_only_the_first_process_makes_a_folder_a_cache(tmp_path):
    said, model = tiny_runs.tones(tmp_path, 2), tiny_runs.tiny()
    with pytest.raises(FileNotFoundError):
        fill(tmp_path / "c", model, said, world=Second())
    fill(tmp_path / "c", model, said)
    assert read_form(tmp_path / "c") == form(model)
    with pytest.raises(DataError, match="is a cache of something else"):
        fill(tmp_path / "c", model, said, form=form(model, hidden="last"))


def test_of_many_symbols_the_likeliest_are_kept_with_the_norms_of_all():
    scores = torch.tensor([[[0.1, 3.0, 2.0, -1.0], [2.0, 0.0, 1.0, 5.0]]]).log_softmax(-1)
    states = [torch.full((1, 2, 3), float(number)).bfloat16() for number in range(3)]
    output = CTCOutput(scores, torch.tensor([2]), tuple(states))
    some = replace(
        form(tiny_runs.tiny(layers=3), hidden="all"),
        symbols=4, kept=2, temperatures=[1.0, 2.0], widths=[3, 3],
    )  # fmt: skip
    found = filling.kept_columns(output, some)
    assert found["ids"].tolist() == [[[1, 2], [3, 0]]]
    torch.testing.assert_close(found["scores"], torch.tensor([[[0.0, -1.0], [0.0, -3.0]]]))
    apart = scores - scores.amax(-1, keepdim=True)
    norms = torch.stack([(apart / tau).exp().sum(-1).log() for tau in (1.0, 2.0)], -1)
    torch.testing.assert_close(found["norms"], norms)
    assert found["hidden"].tolist() == [[[1.0] * 3 + [2.0] * 3] * 2], "the last ones, side by side"
    assert found["hidden"].dtype == torch.float32
