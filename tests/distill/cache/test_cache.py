"""The teacher's cache: nothing is lost in it, damage is named, and a kill costs one shard."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.cache import filling, format
from distill.cache.teacher import Cached
from distill.config.distillation import DistillConfig
from distill.losses import functions as losses
from distill.losses.kd import Outputs
from distill.losses.spikes import shown_frames, take_frames
from distill.objective import DistillObjective
from distill.teachers import Live, Source
from lact_asr.data import batch_plan
from lact_asr.data.batch import Batch
from lact_asr.data.speed import change_speed
from lact_asr.distributed import processes
from lact_asr.model.interface import CTCOutput
from lact_asr.model.masks import length_mask
from lact_asr.text.vocabulary import Vocabulary
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import read_json, write_json
from tests.conftest import REPOSITORY
from tests.distill.tiny_models import VOCABULARY, batch, tiny_baseline, tiny_teacher, utterances
from tests.ranks import in_ranks
from tests.slurm.cluster import PATIENCE

SMALL = {"blocks": 2, "mlp": 144}
AT_ONCE = {"curriculum": "all_on"}
MANY = Vocabulary([chr(0x4E00 + number) for number in range(300)])  # too many to be kept whole


def teacher(vocabulary: Vocabulary = VOCABULARY) -> torch.nn.Module:
    """A tiny teacher with peaked outputs."""
    model = tiny_teacher(seed=1, **SMALL)
    model.head = torch.nn.Linear(model.config.hidden, len(vocabulary))
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def filled(
    folder: Path, speech: Path, vocabulary: Vocabulary = VOCABULARY, count: int = 4, **changes: Any
) -> Cached:
    """A cache of the first utterances, and a source that reads it."""
    keep = {"kept": 8, "temperatures": [2.0], "hidden": "last", "precision": "fp32"}
    speeds = changes.pop("speeds", [1.0])
    model = teacher(vocabulary)
    form = filling.form_of(model, vocabulary, **{**keep, **changes})
    texts = [replace(each, text="") for each in utterances(speech)[:count]]
    filling.fill(
        folder, model, vocabulary, texts, form,
        speeds=speeds, batch_seconds=6.0, world=processes.start(), device=torch.device("cpu"),
        report=lambda line: None, should_stop=lambda: False,
    )  # fmt: skip
    return Cached(folder, filling.identity(model, vocabulary))


def test_what_is_read_is_what_the_teacher_says(speech, tmp_path):
    spoken, source = batch(speech, 4), filled(tmp_path / "all", speech, hidden="all")
    live, last = Live(teacher(), VOCABULARY), filled(tmp_path / "last", speech)
    said, read = live(spoken, 2.0), source(spoken, 2.0)
    assert (source.frame_rate, source.widths) == (live.frame_rate, live.widths)
    assert last.widths == live.widths[-1:]
    assert last(spoken, 2.0).hidden[0].equal(read.hidden[-1])
    assert read.lengths.equal(said.lengths) and source.lengths(spoken).equal(said.lengths)
    for row, frames in enumerate(said.lengths.tolist()):
        before, after = said.log_probs[row, :frames], read.log_probs[row, :frames]
        likely = before > before.amax(-1, keepdim=True) - 16
        assert (before - after)[likely].abs().max() <= 4e-3
        assert (before.exp() - after.exp()).abs().max() <= 1e-3
        for heard, kept in zip(said.hidden, read.hidden, strict=True):
            assert 0 < (heard - kept)[row, :frames].abs().max() < 2e-3 * heard.abs().max()


def test_of_a_large_vocabulary_the_likeliest_symbols_and_the_exact_rest_are_kept(speech, tmp_path):
    spoken, source = batch(speech, 4), filled(tmp_path, speech, MANY)
    said = Live(teacher(MANY), MANY)(spoken, 2.0)
    read = source(spoken, 2.0)
    for row, frames in enumerate(said.lengths.tolist()):
        expected = losses.top_k(said.log_probs[row, :frames], 8, 2.0)
        kept = losses.TopK(*(part[row, :frames] for part in read.kept))
        assert kept.ids.equal(expected.ids)
        assert (kept.log_probs - expected.log_probs).abs().max() <= 4e-3
        assert (kept.log_probs.exp().sum(-1) - expected.log_probs.exp().sum(-1)).abs().max() < 1e-3
        assert (kept.log_probs.exp().sum(-1) <= 1).all()
        spread = read.log_probs[row, :frames]
        torch.testing.assert_close(spread.exp().sum(-1), torch.ones(frames), atol=1e-3, rtol=0)
        assert spread.argmax(-1).equal(said.log_probs[row, :frames].argmax(-1))


def gradients(source: Source, spoken: Batch, **changes: Any) -> tuple[torch.Tensor, float]:
    """Of a student who learns from a source, as one vector; and its loss."""
    torch.manual_seed(0)
    taught = DistillObjective(
        tiny_baseline(), source, DistillConfig(**changes), vocabulary=source.vocabulary
    )
    taught.begin_step([spoken], lambda sums: sums)
    loss = taught(spoken, 0.5)
    loss.total.backward()
    every = [parameter.grad.flatten() for parameter in taught.trainable.parameters()]
    return torch.cat(every), loss.total.item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"feature_weight": 1.0, **AT_ONCE},
        {"kd": "sequence"},
        {"kd": "guided", "temperature": 1.0},
        {"blank_policy": "drop_class", "temperature": 5.0},
        {"contrastive_weight": 1.0, **AT_ONCE},
        {"layerwise_weight": 1.0, **AT_ONCE},
        {"feature_weight": 1.0, "router": {"kind": "recommended"}, **AT_ONCE},
        {"feature_weight": 1.0, "router": {"kind": "original"}, **AT_ONCE},
    ],
    ids=str,
)
def test_a_student_learns_the_same_from_the_cache_to_one_in_a_thousand(speech, tmp_path, changes):
    spoken, source = batch(speech, 4), filled(tmp_path, speech, hidden="all")
    live, loss = gradients(Live(teacher(), VOCABULARY), spoken, **changes)
    read, again = gradients(source, spoken, **changes)
    assert again == pytest.approx(loss, rel=1e-3)
    assert (live - read).norm() <= 1e-3 * live.norm()


def test_a_student_of_half_the_rate_learns_from_the_likeliest_symbols_of_the_frames_shown(
    speech, tmp_path
):
    spoken, source = batch(speech, 4), filled(tmp_path, speech, MANY)
    read, size = source(spoken, 2.0), -(-int(source.lengths(spoken).max()) // 2)
    mask = length_mask((read.lengths + 1) // 2, size)
    shown = shown_frames(read.log_probs, read.lengths, mask.sum(1), size, 2.0)
    kept = losses.TopK(*(take_frames(part, shown)[..., :5] for part in read.kept))
    even = torch.full((4, size, len(MANY)), -math.log(len(MANY)))
    expected = losses.masked_sum(losses.top_k_kd(even, kept, 2.0), mask)
    kd = Outputs(DistillConfig(top_k=5), MANY, MANY, ratio=2.0, rate=12.5)
    paid = kd(CTCOutput(even, mask.sum(1), []), read, mask, spoken, torch.tensor(1.0))
    assert float(paid) == pytest.approx(float(expected), rel=1e-6) and float(paid) > 0


def test_utterances_at_changed_speeds_have_records_of_their_own(speech, tmp_path):
    spoken, source = batch(speech, 4), filled(tmp_path, speech, speeds=[1.0, 0.9])
    slow = change_speed(spoken, 0.9)
    said, read = Live(teacher(), VOCABULARY)(slow, 2.0), source(slow, 2.0)
    assert read.lengths.equal(said.lengths) and (read.lengths > source(spoken, 2.0).lengths).all()
    frames = int(said.lengths[0])
    assert (said.log_probs - read.log_probs)[0, :frames].exp().sub(1).abs().max() < 0.1
    with pytest.raises(DataError, match=r"at speed 0.9, 1, not at 1.1: add it to the `cache`"):
        source(change_speed(spoken, 1.1), 2.0)


def test_settings_that_ask_for_more_than_was_kept_are_refused(speech, tmp_path):
    whole = filled(tmp_path / "whole", speech, hidden="none", count=1)
    some = filled(tmp_path / "some", speech, MANY, count=1)
    ok, routed = {"top_k": 8}, {"feature_weight": 1, "router": {"kind": "original"}}
    some.check(DistillConfig(**ok))
    for source, changes, message in (
        (whole, {"feature_weight": 0.1}, "layers: none, and a feature_weight above 0 needs"),
        (whole, {"contrastive_weight": 1}, "contrastive_weight .* write `hidden: last`"),
        (whole, {"target": "projector"}, "target: projector needs"),
        (some, {**ok, "layerwise_weight": 1}, "layers: last, .* write `hidden: all`"),
        (some, {**ok, **routed}, "router needs all of the teacher's hidden states"),
        (some, {}, "write top_k: 8 or less, not all"),
        (some, {"top_k": 9}, "write top_k: 8 or less, not 9"),
        (some, {**ok, "temperature": 3.0}, "a frame for temperatures 1, 2, not 3"),
        (some, {"target": "projector", "temperature": 3.0}, "temperatures 1, 2, not 3"),
        (some, {**ok, "blank_policy": "drop_class"}, "drop_class needs"),
    ):
        with pytest.raises(DataError, match=message):
            source.check(DistillConfig(**changes))
    whole.check(DistillConfig(temperature=7.0, blank_policy="drop_class"))


def test_another_teachers_words_are_refused_by_name(speech, tmp_path):
    filled(tmp_path, speech, count=1)
    other = teacher()
    other.head.bias.data[3] += 1e-3
    with pytest.raises(DataError, match=r"words of another teacher \(weights differ\)"):
        Cached(tmp_path, filling.identity(other, VOCABULARY))
    with pytest.raises(
        DataError, match=r"something else \(hidden: last there, none wanted; widths"
    ):
        filled(tmp_path, speech, count=1, hidden="none")


def test_an_utterance_that_is_not_there_or_sounds_otherwise_is_named(speech, tmp_path):
    spoken, source = batch(speech, 4), filled(tmp_path, speech, count=3)
    with pytest.raises(DataError, match=f"no teacher's words for {spoken.ids[3]}"):
        source(spoken, 2.0)
    with pytest.raises(DataError, match=f"1 of 4 records are missing: .*{spoken.ids[3]}"):
        source.require(spoken.ids, [1.0], 0)
    source.require(spoken.ids, [1.0], 1)
    cut = replace(spoken, wave_lengths=spoken.wave_lengths - 160)
    with pytest.raises(DataError, match=f"{spoken.ids[0]} at speed 1 has .* samples, and had"):
        source(cut, 2.0)


def test_other_audio_of_the_same_length_is_named_at_any_speed(speech, tmp_path):
    spoken, source = batch(speech, 4), filled(tmp_path, speech, speeds=[1.0, 0.9])
    source(spoken, 2.0)
    nearly = spoken.waves * (1 + 1e-5 * torch.randn(spoken.waves.shape))  # another device's digits
    source(change_speed(replace(spoken, waves=nearly), 0.9), 2.0)
    quieter = spoken.waves.clone()
    quieter[1, : spoken.wave_lengths[1] // 3] *= 0.9
    for speed in (1.0, 0.9):
        other = change_speed(replace(spoken, waves=quieter), speed)
        with pytest.raises(DataError, match=f"{spoken.ids[1]} at speed {speed:g} is other audio"):
            source(other, 2.0)


def test_a_cache_from_before_audio_had_checksums_is_read_and_one_from_before_that_is_refused(
    speech, tmp_path
):
    spoken, now = batch(speech, 4), filled(tmp_path, speech)
    described = read_json(tmp_path / "cache.json")
    assert (described["version"], described.pop("features")) == (3, 1)
    write_json(tmp_path / "cache.json", {**described, "version": 2})
    for path in tmp_path.glob("0*.json"):
        write_json(path, [row[:-1] for row in read_json(path)])
    before = Cached(tmp_path, filling.identity(teacher(), VOCABULARY))
    assert before(spoken, 2.0).log_probs.equal(now(spoken, 2.0).log_probs)
    before(replace(spoken, waves=spoken.waves / 2), 2.0)
    write_json(tmp_path / "cache.json", {**described, "version": 1})
    with pytest.raises(DataError, match="version 1, this code reads 2 and 3: run its `cache` step"):
        Cached(tmp_path, filling.identity(teacher(), VOCABULARY))


def test_what_a_teacher_said_of_other_features_is_refused(speech, tmp_path):
    filled(tmp_path, speech, count=1)
    described = read_json(tmp_path / "cache.json")
    write_json(tmp_path / "cache.json", {**described, "features": 0})
    with pytest.raises(DataError, match=r"another teacher \(features differ\)"):
        Cached(tmp_path, filling.identity(teacher(), VOCABULARY))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named(speech, tmp_path, harm):
    spoken, source = batch(speech, 4), filled(tmp_path, speech)
    entry = source.reader.entry(spoken.ids[2], 1.0, int(spoken.wave_lengths[2]))
    shard = tmp_path / f"{entry.shard}.bin"
    data = bytearray(shard.read_bytes())
    if harm == "flip":
        data[entry.offset + entry.length // 2] ^= 1
    shard.write_bytes(data[: entry.offset + entry.length - 1] if harm == "cut" else data)
    if harm == "remove":
        shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name}.*{shard.stem}.json and run the `cache`"):
        source(spoken, 2.0)
    if harm == "flip":
        first = source.reader.entry(spoken.ids[0], 1.0, int(spoken.wave_lengths[0]))
        assert len(source.reader.record(first)["scores"]) == first.frames, "it is sound"


@pytest.mark.parametrize("wrong", ["nan", "large"])
def test_a_teacher_that_says_what_cannot_be_kept_is_not_written_down(speech, tmp_path, wrong):
    model = teacher()
    if wrong == "nan":
        model.head.bias.data[5] = torch.nan
    else:
        model.blocks[-1].register_forward_hook(lambda module, given, out: out * 1e6)
    form = filling.form_of(
        model, VOCABULARY, kept=8, temperatures=[], hidden="last", precision="fp32"
    )
    with pytest.raises(DataError, match=f"output on {utterances(speech)[0].id} is not finite"):
        filling.fill(
            tmp_path, model, VOCABULARY, utterances(speech)[:1], form,
            speeds=[1.0], batch_seconds=9.0, world=processes.start(), device=torch.device("cpu"),
            report=print, should_stop=lambda: False,
        )  # fmt: skip
    assert not list(tmp_path.glob("*.bin"))


def slowly(folder: Path) -> None:
    """Fill a cache of eight utterances, a shard for each, slowly: something to kill."""
    filling.FLUSH = 0.0
    write = format.Writer.flush

    def flush(writer: format.Writer) -> None:
        write(writer)
        time.sleep(0.3)

    format.Writer.flush = flush
    batch_plan.by_length = lambda durations, _: [np.array([row]) for row in range(len(durations))]
    filled(folder / "cache", folder / "speech", count=8)


def names(folder: Path) -> list[str]:
    """Utterances in the complete shards, each as often as it is there."""
    shards = sorted(folder.glob("[0-9]*.json"))
    return [row[0] for shard in shards for row in json.loads(shard.read_text())]


def test_killed_in_the_middle_it_goes_on_and_hears_nothing_twice(speech, tmp_path):
    (tmp_path / "speech").symlink_to(speech)
    words = [sys.executable, "-m", "tests.ranks", __name__, "slowly", str(tmp_path)]
    process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    folder = tmp_path / "cache"
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("[0-9]*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.bin")}
    assert 2 <= len(names(folder)) < 8
    (folder / "000-00007.bin").write_bytes(b"records whose index was never written")
    source = filled(folder, speech, count=8)
    assert sorted(names(folder)) == sorted(each.id for each in utterances(speech))
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.bin")}
    assert before.items() <= kept.items(), "what was written was written again"
    spoken, live = batch(speech, 8), Live(teacher(), VOCABULARY)
    torch.testing.assert_close(
        source(spoken, 1.0).log_probs[0, :40], live(spoken, 1.0).log_probs[0, :40],
        atol=0.02, rtol=0,
    )  # fmt: skip


def shared_out(folder: Path) -> None:
    """One rank's share of a cache."""
    filled(folder / "cache", folder / "speech", count=8)


def test_two_processes_share_the_work(speech, tmp_path):
    (tmp_path / "speech").symlink_to(speech)
    codes = in_ranks(shared_out, tmp_path, 2)
    assert codes == [0, 0], (tmp_path / "rank0.log").read_text()
    folder = tmp_path / "cache"
    assert sorted(names(folder)) == sorted(each.id for each in utterances(speech))
    assert {path.name[:3] for path in folder.glob("*.bin")} == {"000", "001"}
    spoken = batch(speech, 8)
    assert filled(folder, speech, count=8)(spoken, 1.0).lengths.equal(
        Live(teacher(), VOCABULARY).lengths(spoken)
    )
