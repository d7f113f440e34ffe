"""Epoch plans, what is trained on, and reading: real files, some of them damaged."""

import multiprocessing
import os
import resource
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from lact_asr.config.budget import Budget
from lact_asr.data.batch_plan import Position, batches_from, by_length, epoch_plan
from lact_asr.data.dataset import (
    EMPTY,
    FOREIGN,
    INFEASIBLE,
    TOO_LONG,
    Reader,
    shared_memory,
    usable,
    whole_corpus,
)
from lact_asr.data.loader import Stream, loader
from lact_asr.data.manifest import read_manifest
from lact_asr.distributed.processes import World
from lact_asr.utils.errors import DataError
from tests.conftest import REPOSITORY
from tests.lact_asr.tiny_runs import RATE, VOCABULARY, manifest, settings, tiny, tones

lengths = st.lists(st.floats(0.5, 20), min_size=1, max_size=60).map(np.array)
worlds = st.integers(1, 5)


@given(lengths, st.floats(2, 100), st.integers(0, 5), st.integers(0, 3), worlds)
def test_every_utterance_comes_once_an_epoch_and_ranks_are_equal(d, budget, seed, epoch, world):
    plan = epoch_plan(d, Budget(budget), seed, epoch, world)
    assert len(plan) == world
    assert len({len(batches) for batches in plan}) == 1
    batches = [batch for rank in plan for batch in rank]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * d[batch].max() <= budget
    taken = sorted(np.concatenate(batches).tolist())
    assert set(taken) == set(range(len(d)))
    repeated = len(taken) - len(d)
    assert repeated == 0 or (repeated < world and max(map(len, batches)) == 1)


@given(lengths, st.floats(2, 100), worlds, worlds, st.integers(0, 40))
def test_a_run_goes_on_inside_an_epoch_with_another_world_size(d, budget, world, other, done):
    def start(rank, size, position):
        return batches_from(position, d, Budget(budget), 0, rank, size)

    first = [list(islice(start(rank, world, Position()), done)) for rank in range(world)]
    position = first[0][-1][1] if done else Position()
    assert all(not done or each[-1][1] == position for each in first)
    epoch = position.epoch
    seen = [i for rank in first for batch, p in rank if p.epoch == epoch for i in batch]
    for rank in range(other):
        for batch, p in start(rank, other, Position.from_dict(position.to_dict())):
            if p.epoch > epoch:
                break
            seen += batch.tolist()
    assert set(seen) == set(range(len(d)))
    assert len(seen) - len(d) <= (world - 1) + (other - 1)


def test_going_on_gives_the_batches_that_would_have_come():
    d = np.random.default_rng(0).uniform(1, 15, 100)
    whole = list(islice(batches_from(Position(), d, Budget(40), 3, 1, 2), 60))
    for cut in (1, 17, 40, 59):
        rest = batches_from(whole[cut - 1][1], d, Budget(40), 3, 1, 2)
        for (batch, position), (again, there) in zip(whole[cut:], rest, strict=False):
            assert batch.tolist() == again.tolist()
            assert position == there


def test_epochs_differ_in_their_batches_and_the_first_begins_with_the_longest():
    d = np.random.default_rng(0).uniform(1, 15, 400)
    first, second = (epoch_plan(d, Budget(60), 0, epoch, 1)[0] for epoch in (0, 1))
    assert d.argmax() in first[0]
    assert {tuple(sorted(b)) for b in first} != {tuple(sorted(b)) for b in second}


def test_decoding_takes_every_utterance_longest_first():
    d = np.array([3.0, 90.0, 1.0, 2.0])
    assert [batch.tolist() for batch in by_length(d, 10)] == [[1], [2, 3, 0]]


def test_what_cannot_be_trained_on_is_named_with_its_reason(tmp_path):
    good = tones(tmp_path, 6)
    text = good[0].text
    bad = [
        replace(good[0], id="long", duration=31.0),
        replace(good[0], id="foreign", text="ÜBER 99"),
        replace(good[0], id="empty", text=" "),
        replace(good[0], id="fast", text=text * 3),
    ]
    corpus, dropped = usable([*good, *bad], VOCABULARY, tiny().output_lengths, settings())
    reasons = {TOO_LONG: "long", FOREIGN: "foreign", EMPTY: "empty", INFEASIBLE: "fast"}
    assert dropped == {reason: [identity] for reason, identity in reasons.items()}
    assert [corpus.ids.text(i) for i in range(len(corpus))] == [each.id for each in good]
    assert len(whole_corpus([*good, *bad], VOCABULARY)) == 10


def test_more_unusable_utterances_than_usable_ones_is_an_error(tmp_path):
    few = tones(tmp_path, 1)
    long = [replace(few[0], id=f"{n}", duration=50.0) for n in range(2)]
    with pytest.raises(DataError, match=r"only 1 of 3 utterances .*2 longer than the limit"):
        usable([*few, *long], VOCABULARY, tiny().output_lengths, settings())


def test_text_is_brought_to_normal_form_and_comes_back_from_the_batch(tmp_path):
    utterance = replace(tones(tmp_path, 1)[0], text=" bad  cab, ")
    batch = Reader(whole_corpus([utterance], VOCABULARY))[[0]]
    assert batch.texts == ["BAD CAB"]
    assert VOCABULARY.decode(batch.targets.tolist()) == "BAD CAB"
    assert batch.targets.dtype == batch.target_lengths.dtype == torch.int64


def test_a_batch_is_padded_with_zeros(tmp_path):
    corpus = whole_corpus(tones(tmp_path, 3), VOCABULARY)
    batch = Reader(corpus)[[0, 1, 2]]
    for wave, length, path in zip(batch.waves, batch.wave_lengths, range(3), strict=True):
        whole, _ = soundfile.read(corpus.paths.text(path), dtype="float32")
        assert np.array_equal(wave[:length].numpy(), whole)
        assert not wave[length:].any()
    assert batch.seconds == pytest.approx(corpus.durations.sum())


def damaged(folder, good):
    """Three utterances with files that are cut, not finite, and absent."""
    cut, nan = folder / "cut.wav", folder / "nan.wav"
    wave, _ = soundfile.read(good.audio, dtype="float32")
    soundfile.write(cut, wave[: len(wave) // 2], RATE)
    wave[100] = np.nan
    soundfile.write(nan, wave, RATE, subtype="FLOAT")
    paths = {"cut": cut, "nan": nan, "absent": folder / "absent.flac"}
    return [replace(good, id=name, audio=path) for name, path in paths.items()]


def test_unreadable_files_are_left_out_of_their_batch_and_named(tmp_path):
    good = tones(tmp_path, 2)
    corpus = whole_corpus([good[0], *damaged(tmp_path, good[0]), good[1]], VOCABULARY)
    batch = Reader(corpus)[[0, 1, 2, 3, 4]]
    assert batch.ids == [good[0].id, good[1].id]
    why = dict(batch.unreadable)
    assert "the file is cut off" in why["cut"]
    assert "NaN" in why["nan"]
    assert "absent.flac" in why["absent"]


def test_a_batch_of_nothing_but_unreadable_files_gets_a_spare_utterance(tmp_path):
    good = tones(tmp_path, 1)
    corpus = whole_corpus([*damaged(tmp_path, good[0]), *good], VOCABULARY)
    batch = Reader(corpus, spare=True)[[1]]
    assert batch.ids == [good[0].id]
    assert [identity for identity, _ in batch.unreadable] == ["nan", "absent"]
    hopeless = whole_corpus(damaged(tmp_path, good[0]), VOCABULARY)
    with pytest.raises(DataError, match="in a row are unreadable"):
        Reader(hopeless, spare=True)[[0]]


def test_workers_give_the_same_batches_and_leave_the_random_state_alone(tmp_path):
    corpus = whole_corpus(tones(tmp_path, 8), VOCABULARY)
    order = by_length(corpus.durations, 4.0)
    before = torch.get_rng_state()
    alone, helped = (list(loader(corpus, order, workers)) for workers in (0, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert len(alone) == len(order) > 2
    for one, other in zip(alone, helped, strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.waves, other.waves)


FULL = "/dev/shm is full: "


@pytest.mark.parametrize(
    ("short_of", "said"),
    [
        ("letters", ""),
        ("room", FULL + "batches come through pipes, which takes longer\n"),
        ("locks", FULL + "no process reads ahead, the training reads itself\n"),
    ],
)
def test_batches_are_read_where_workers_are_short_of(tmp_path, short_of, said):
    """Letters for the path of a socket, and /dev/shm: a training waited forever, or ended."""
    manifest(tmp_path)
    folder = tmp_path / ("x" * 90 if short_of == "letters" else "t")
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.ranks", __name__, f"short_of_{short_of}", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, said), done.stderr


def test_shared_memory_is_taken_while_there_is_room_for_the_workers_and_their_locks():
    seen = os.statvfs("/dev/shm")
    room = seen.f_bavail * seen.f_frsize
    assert shared_memory(room // 8) is None, "half as much would be too much"
    taken = shared_memory(1000)
    assert taken is not None and (taken.nbytes(), taken.is_shared()) == (1000, True)


def short_of_room(folder):
    """A limit on the size of files, locks but not batches, stands for a full /dev/shm."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    short_of_letters(folder)


def short_of_locks(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4))
    short_of_letters(folder)


def short_of_letters(folder):
    corpus = whole_corpus(read_manifest(folder / "tones.jsonl"), VOCABULARY)
    order = by_length(corpus.durations, 4.0)
    alone, helped = (list(loader(corpus, order, workers)) for workers in (0, 1))
    for one, other in zip(alone, helped, strict=True):
        assert (one.ids, one.texts) == (other.ids, other.texts)
        for name in ("waves", "wave_lengths", "targets", "target_lengths"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_worker_survives_the_clusters_signals_and_ends_with_its_parent(tmp_path):
    stream = Stream(
        whole_corpus(tones(tmp_path, 4), VOCABULARY), settings(), World(), 1, Position()
    )
    stream.take()
    (worker,) = multiprocessing.active_children()
    command = f"kill -TERM {worker.pid}; kill -USR1 {worker.pid}; kill -USR2 {worker.pid}"
    subprocess.run(["sh", "-c", command], check=True)
    for _ in range(10):  # more than were read ahead
        stream.take()
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert not worker.is_alive()


def test_the_position_is_that_of_the_batch_taken_not_of_the_batch_read_ahead(tmp_path):
    corpus, _ = usable(tones(tmp_path, 12), VOCABULARY, tiny().output_lengths, settings())
    alone, helped = (Stream(corpus, settings(), World(), workers, Position()) for workers in (0, 2))
    for _ in range(7):
        assert alone.take().ids == helped.take().ids
        assert alone.position == helped.position
    again = Stream(corpus, settings(), World(), 0, helped.position)
    assert again.take().ids == alone.take().ids
