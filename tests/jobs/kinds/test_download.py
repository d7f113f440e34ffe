"""The download kind: every source ends in manifests for train, dev and test."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.errors import UserError
from jobs.job import Job
from jobs.kinds import download
from jobs.kinds.download import Result, Settings, keys, run
from lact_asr.data.corpora import LIBRISPEECH
from lact_asr.data.manifest import read_manifest
from lact_asr.utils.errors import DataError, Failed, Interrupted
from tests.lact_asr.data.noise_corpus import archive, chapter, facts, subset_folder
from tests.lact_asr.data.web_server import CorpusServer, serving

SMALL = {"utterances": 12, "test_utterances": 4}


def job(folder: Path, should_stop: Callable[[], bool] = lambda: False, size: int = 1) -> Job:
    """A job as the worker makes it, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return Job(folder, 0, size, 0, lambda metrics: None, lambda name, **facts: None, should_stop)


def ids(manifest: Path) -> set[str]:
    return {each.id for each in read_manifest(manifest)}


def lengths(result: Result) -> list[int]:
    return [len(read_manifest(path)) for path in (result.train, result.dev, result.test)]


@pytest.fixture
def openslr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CorpusServer]:
    """A site with three small archives under the names of LibriSpeech's."""
    with serving(CorpusServer()) as site:
        for first, name in enumerate(["train-clean-100", "train-clean-360", "dev-clean"]):
            folder = tmp_path / "original" / name
            for speaker in (10 * first + 1, 10 * first + 2):
                chapter(folder, speaker, utterances=3)
            data = archive(folder, name)
            site.files[f"/12/{name}.tar.gz"] = data
            monkeypatch.setitem(LIBRISPEECH, name, facts(name, data, 6))
        yield site


def librispeech(site: CorpusServer, root: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "source": "librispeech",
        "train": ["train-clean-100", "train-clean-360"],
        "dev": ["dev-clean"],
        "test": ["dev-clean"],
        "root": root,
        "mirror": site.address,
        "retries": 2,
    }
    return Settings(**{**given, **changes})


def test_librispeech_comes_from_the_mirror_with_one_manifest_per_subset(
    openslr: CorpusServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    result = run(librispeech(openslr, root), job(tmp_path / "job"))
    assert lengths(result) == [12, 6, 6]
    assert (result.utterances, result.hours) == (18, round(18 * 0.5 / 3600, 4))
    manifests = root / "manifests"
    assert result.manifests == {
        name: manifests / f"{name}.jsonl"
        for name in (
            "dev-clean",
            "train-clean-100",
            "train-clean-360",
            "train-clean-100+train-clean-360",
        )
    }
    told = keys(librispeech(openslr, root).model_dump())["manifests"]
    assert sorted(told) == sorted(result.manifests), "what `check` expects"
    assert result.train == manifests / "train-clean-100+train-clean-360.jsonl"
    assert result.dev == result.test == manifests / "dev-clean.jsonl"
    assert all(each.audio.exists() for each in read_manifest(result.train))
    assert "note: test shares utterances with dev" in capsys.readouterr().out


def test_up_to_date_needs_no_server_and_survives_a_move_of_the_root(
    openslr: CorpusServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(librispeech(openslr, tmp_path / "root"), job(tmp_path / "job"))
    (tmp_path / "root").rename(tmp_path / "moved")
    assert "headers of train-clean-100" in capsys.readouterr().out
    nowhere = librispeech(openslr, tmp_path / "moved", mirror="http://127.0.0.1:9")
    again = run(nowhere, job(tmp_path / "job"))
    assert again.train == tmp_path / "moved" / first.train.relative_to(tmp_path / "root")
    assert all(each.audio.exists() for each in read_manifest(again.train))
    assert len(openslr.asked) == 3
    assert "headers of" not in capsys.readouterr().out


def test_where_no_server_answers_the_way_around_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"train": ["dev-other"], "dev": ["dev-clean"], "test": ["dev-clean"]}
    nowhere = Settings(
        source="librispeech",
        **parts,
        root=tmp_path / "root",
        mirror="http://127.0.0.1:9",
        retries=1,
    )
    with pytest.raises(Failed) as failed:
        run(nowhere, job(tmp_path / "corpus"))
    assert failed.value.cause == "server_unreachable"
    assert "Connection refused; no further in 1 attempts" in str(failed.value)
    assert "`run FILE --only corpus --cluster local` on a login node" in str(failed.value)
    monkeypatch.setitem(LIBRISPEECH, "dev-clean", replace(facts("dev-clean", b"", 6), size=10**18))
    with pytest.raises(Failed) as failed:
        run(nowhere, job(tmp_path / "corpus"))
    assert failed.value.cause == "disk_full" and "internet" not in str(failed.value)


def test_an_interrupted_download_says_how_far_it_came_and_goes_on(
    openslr: CorpusServer, tmp_path: Path
) -> None:
    settings = librispeech(openslr, tmp_path / "root")
    part = tmp_path / "root" / "dev-clean.tar.gz.part"
    openslr.rate = 200_000
    with pytest.raises(Interrupted) as interrupted:
        run(settings, job(tmp_path / "job", lambda: part.exists() and part.stat().st_size > 0))
    assert interrupted.value.position == part.stat().st_size
    assert lengths(run(settings, job(tmp_path / "job"))) == [12, 6, 6]


def test_a_damaged_mirror_ends_in_an_error_and_no_manifest(
    openslr: CorpusServer, tmp_path: Path
) -> None:
    openslr.damaged = 99
    with pytest.raises(DataError, match="checksum"):
        run(librispeech(openslr, tmp_path / "root"), job(tmp_path / "job"))
    assert not list((tmp_path / "root").rglob("*.jsonl"))
    assert not list((tmp_path / "root").rglob("*.flac"))


def test_speakers_held_out_of_train_become_dev_and_test(
    openslr: CorpusServer, tmp_path: Path
) -> None:
    both = librispeech(openslr, tmp_path / "root", dev=[], test=[], holdout_speakers=1)
    result = run(both, job(tmp_path / "job"))
    assert lengths(result) == [6, 3, 3]
    one = librispeech(openslr, tmp_path / "root", dev=[], holdout_speakers=1)
    other = run(one, job(tmp_path / "job"))
    assert lengths(other) == [9, 3, 6]
    for settings, found in ((both, result), (one, other)):
        assert set(keys(settings.model_dump())["manifests"]) == set(found.manifests)
    assert lengths(result) == [6, 3, 3], "the manifests of the first run are still its own"


def test_real_speech_in_a_folder_is_listed_in_the_run(real_speech: Path, tmp_path: Path) -> None:
    settings = Settings(
        source="folder", folder=real_speech, train=["train"], dev=["dev"], test=["extra"]
    )
    result = run(settings, job(tmp_path / "job"))
    assert lengths(result) == [168, 39, 50]
    assert result.hours == pytest.approx(0.548, abs=0.001)
    assert result.train == tmp_path / "job" / "manifests" / "train.jsonl"
    assert all(each.audio.is_relative_to(real_speech) for each in read_manifest(result.test))


def test_a_folder_with_one_subset_is_split_by_speaker(speech: Path, tmp_path: Path) -> None:
    settings = Settings(source="folder", folder=speech, train=["train"], holdout_speakers=2)
    result = run(settings, job(tmp_path / "job"))
    assert sum(lengths(result)) == 24
    parts = [read_manifest(path) for path in (result.train, result.dev, result.test)]
    heard = [{each.speaker for each in part} for part in parts]
    assert [len(speakers) for speakers in heard] == [4, 2, 2]
    assert not heard[0] & heard[1] and not heard[0] & heard[2] and not heard[1] & heard[2]


def test_an_utterance_in_train_and_test_is_refused(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        subset_folder(tmp_path / "data" / name, speakers=1)
    settings = Settings(
        source="folder", folder=tmp_path / "data", train=["train"], dev=["dev"], test=["test"]
    )
    with pytest.raises(DataError, match="3 utterances are in train and in dev: 1-7-0000"):
        run(settings, job(tmp_path / "job"))


def test_synthetic_speech_is_made_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from jobs.job import Job;"
        "from jobs.kinds.download import *; say = lambda *a, **k: None; where = Path(sys.argv[1]);"
        f"settings = Settings(source='synthetic', root=where, synthetic={SMALL});"
        "print(run(settings, Job(where, 0, 1, 0, say, say, lambda: False)).model_dump_json());"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    result = Result.model_validate_json(done.stdout.splitlines()[-1])
    assert lengths(result) == [12, 4, 4]
    assert keys({"source": "synthetic"}) == {"manifests": ["train", "dev", "test"]}
    assert list(result.manifests) == ["train", "dev", "test"]
    said = [{each.text for each in read_manifest(path)} for path in result.manifests.values()]
    assert not said[0] & said[1] and not said[0] & said[2] and not said[1] & said[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "librispech"}, "Input should be 'librispeech', 'mini_librispeech'"),
        ({"source": "librispeech"}, "`train` names no subset"),
        (
            {"source": "librispeech", "train": ["train-clean-10"], "dev": ["x"]},
            "has no subset 'train-clean-10': did you mean 'train-clean-100'?",
        ),
        (
            {"source": "librispeech", "train": ["train-clean-100"], "dev": ["dev-clean"]},
            "`test` names no subset: name one, or set `holdout_speakers`",
        ),
        (
            {"source": "mini_librispeech", "train": ["all"], "holdout_speakers": 2},
            "no subset 'all': valid are train-clean-5, dev-clean-2",
        ),
        (
            {"source": "folder", "train": ["a"], "dev": ["a"], "test": ["b"]},
            "source: folder needs `folder`",
        ),
        (
            {"source": "folder", "folder": "x", "train": ["a"], "dev": ["a"], "test": ["b"]},
            "`dev` and `train` share a",
        ),
        (
            {
                "source": "folder",
                "folder": "x",
                "train": ["a"],
                "dev": ["b"],
                "test": ["c"],
                "holdout_speakers": 1,
            },
            "`holdout_speakers` has nothing to do",
        ),
        ({"source": "folder", "folder": "x", "train": ["../a"]}, "'../a' is no subset: write the"),
        ({"source": "synthetic", "train": ["a"]}, "makes its own subsets: name none"),
        ({"source": "synthetic", "folder": "x"}, "`folder` goes with source: folder"),
        ({"source": "synthetic", "mirror": "ftp://x"}, "should match pattern"),
        ({"source": "synthetic", "synthetic": {"voices": 99}}, "less than or equal to 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_what_to_write(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(**given)
    assert said in str(error.value)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="write nodes: 1, gpus: 0"):
        run(Settings(source="synthetic", root=tmp_path), job(tmp_path, size=2))


def test_the_data_root_is_absolute_and_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAINYARD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert download.data_root() == tmp_path / "data"
    monkeypatch.setenv("TRAINYARD_DATA", "elsewhere")
    assert Settings(source="synthetic").root == tmp_path / "elsewhere"
    monkeypatch.setenv("TRAINYARD_DATA", "")
    assert download.data_root() == tmp_path / "data"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRAINYARD_DATA", "~/corpora")  # a shell leaves it so in quotation marks
    assert download.data_root() == tmp_path / "home" / "corpora"
    monkeypatch.setenv("TRAINYARD_DATA", "~nobody-at-all/corpora")
    with pytest.raises(UserError, match="TRAINYARD_DATA is '~nobody-at-all/corpora': nobody knows"):
        download.data_root()
