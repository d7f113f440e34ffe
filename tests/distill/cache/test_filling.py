"""Filling the cache of a teacher that watches: what it saw is in what is kept, at any speed."""

from dataclasses import replace

import numpy as np
import torch

from distill.cache import filling
from distill.cache.teacher import Cached
from distill.teachers import Live
from lact_asr.data.speed import change_speed
from lact_asr.distributed import processes
from tests.distill.tiny_models import VOCABULARY, batch, tiny_teacher, utterances


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
