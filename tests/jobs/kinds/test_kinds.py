"""The kinds: what every one of them must offer, and what those that learn leave behind."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pydantic import BaseModel, TypeAdapter, ValidationError

from jobs import kinds
from jobs.errors import Superseded
from jobs.job import Job
from jobs.pipeline import Resources
from jobs.reading import json_schema
from lact_asr.config.precision import MEANING, Precision
from lact_asr.data.manifest import Utterance, read_manifest, write_manifest
from lact_asr.utils.errors import DataError, Failed, Interrupted
from lact_asr.utils.files import read_json
from tests.conftest import REPOSITORY
from tests.lact_asr.tiny_runs import manifests

SMALL = {"hidden": 32, "layers": 1, "attention_heads": 2, "lact_heads": 1, "mlp": 64, "dropout": 0}
FEW = {
    "max_steps": 60,
    "batch_seconds": 14,
    "valid_every": 30,
    "checkpoint_every": 20,
    "optim": {"learning_rate": 1e-2, "warmup_steps": 5},
}
Told = tuple[Job, list[dict], list[dict]]


def models(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A settings block and all blocks inside it."""
    yield path, model
    for name, field in model.model_fields.items():
        inner = field.annotation
        for each in (inner, *getattr(inner, "__args__", ())):
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield from models(each, f"{path}.{name}")


BLOCKS = [
    (path, block)
    for name in kinds.NAMES
    for which in ("Settings", "Result")
    for path, block in models(getattr(kinds.load(name), which), f"{name}.{which}")
]


def test_a_precision_is_called_the_same_in_every_kind() -> None:
    found = {
        path: block.model_fields["precision"]
        for path, block in BLOCKS
        if "precision" in block.model_fields and ".Settings" in path
    }
    assert {path.partition(".")[0] for path in found} >= {
        *("train", "distill", "language_model", "overfit"),
        *("evaluate", "cache", "pseudo_labels", "diagnose"),
    }
    for path, field in found.items():
        assert field.annotation == Precision, path
        assert MEANING in (field.description or ""), path


@pytest.mark.parametrize("name", kinds.NAMES)
def test_a_kind_has_a_sentence_resources_settings_a_result_and_run(name: str) -> None:
    kind = kinds.load(name)
    assert re.fullmatch(r"[A-Z].{20,98}\.", json_schema.summary(kind)), json_schema.summary(kind)
    assert isinstance(kind.RESOURCES, Resources)
    assert list(kind.run.__annotations__) == ["settings", "job", "return"]
    assert kind.run.__annotations__["settings"] is kind.Settings
    assert kind.run.__annotations__["return"] is kind.Result


@pytest.mark.parametrize(("path", "block"), BLOCKS, ids=[path for path, _ in BLOCKS])
def test_every_setting_and_result_says_what_it_means_and_its_default_is_valid(
    path: str, block: type[BaseModel]
) -> None:
    assert block.model_config["frozen"]
    for name, field in block.model_fields.items():
        is_block = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.description or is_block, f"{path}.{name} has no description"
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            typed = TypeAdapter(field.annotation).validate_python(default)
            assert typed == default, f"{path}.{name}"


@pytest.mark.parametrize("name", kinds.NAMES)
def test_no_kind_imports_a_model_package_before_it_runs(name: str) -> None:
    blocked = "torch", "torchaudio", "jiwer", "soundfile", "numpy", "submitit"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"from jobs import kinds; kinds.load({name!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_what_differs_from_a_named_size_is_checked_where_it_stands() -> None:
    given = {"manifest": "m.jsonl", "size": "tiny", "model": {"hiden": 3, "layers": "x"}}
    with pytest.raises(ValidationError) as caught:
        kinds.load("overfit").Settings.model_validate(given)
    mistakes = {error["loc"]: error["msg"] for error in caught.value.errors()}
    assert mistakes[("model", "hiden")] == "the lact model has no 'hiden': did you mean 'hidden'?"
    assert "'x'" in mistakes[("model", "layers")]
    with pytest.raises(ValidationError, match=r"size\n.*no teacher model 'base': valid are tiny, "):
        kinds.load("overfit").Settings(manifest="m", family="teacher", size="base")
    with pytest.raises(ValidationError, match=r"model\n.*143 is not a multiple of"):
        kinds.load("overfit").Settings(manifest="m", model={"hidden": 143})


def told(folder: Path, stop: bool = False) -> Told:
    """A job of one process, with what it reports and what happens to it."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics: list[dict] = []
    events: list[dict] = []

    def event(name: str, **facts: Any) -> None:
        events.append({"event": name, **facts})

    job = Job(folder, 0, 1, 0, lambda line: metrics.append(dict(line)), event, lambda: stop)
    return job, metrics, events


def run(name: str, job: Job, **given: Any) -> Any:
    """A step of this kind, its result as result.json would hold it."""
    kind = kinds.load(name)
    result = kind.run(kind.Settings.model_validate(given), job)
    return kind.Result.model_validate_json(result.model_dump_json())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Manifests of a language of tones."""
    return manifests(tmp_path_factory.mktemp("corpus"), 24, 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, Path]) -> tuple[Path, Any]:
    """The folder of a train step and its result."""
    folder = tmp_path_factory.mktemp("train")
    more = {"preset": "plain", "model": SMALL, "training": FEW}
    return folder, run("train", told(folder)[0], **corpus, **more)


def test_train_leaves_the_best_checkpoint_and_its_rates(trained: tuple[Path, Any]) -> None:
    folder, result = trained
    assert result.checkpoint == folder / "checkpoints" / "best"
    assert result.steps == 60 and result.steps_skipped == 0
    assert 0 <= result.cer <= result.wer <= 1
    state = read_json(result.checkpoint / "state.json")
    assert (result.wer, result.cer, result.loss) == (state["wer"], state["cer"], state["loss"])
    assert 20_000 < result.parameters < 60_000


def test_teacher_and_distill_pass_the_vocabulary_on_and_evaluate_reads_both(
    tmp_path: Path, corpus: dict[str, Path]
) -> None:
    short = {**FEW, "max_steps": 4, "valid_every": 4}
    small = {"hidden": 32, "blocks": 1, "heads": 2, "mlp": 32, "trunk_width": 0.0625}
    more = {"preset": "plain", "training": short}
    teacher = run("teacher", told(tmp_path / "t")[0], **corpus, **more, model=small)
    job, metrics, _ = told(tmp_path / "s")
    distill = {"teacher": teacher.checkpoint, "model": SMALL}
    student = run("distill", job, **corpus, **more, **distill)
    assert any("kd" in line for line in metrics)
    configs = [read_json(each.checkpoint / "config.json") for each in (teacher, student)]
    assert [config["family"] for config in configs] == ["teacher", "lact"]
    assert configs[0]["vocabulary"] == configs[1]["vocabulary"]
    for each in ("t", "s"):  # the step's folder stands for its best checkpoint
        job, _, _ = told(tmp_path / "e")
        result = run("evaluate", job, checkpoint=tmp_path / each, manifest=corpus["dev"])
        assert result.utterances == 4 and result.wer is not None


@pytest.mark.parametrize("name", ["train", "teacher"])
def test_training_that_is_asked_to_stop_says_where_it_stands_and_goes_on_from_there(
    tmp_path: Path, corpus: dict[str, Path], name: str
) -> None:
    small = SMALL if name == "train" else {"hidden": 32, "blocks": 1, "heads": 2, "mlp": 32}
    short = {**FEW, "max_steps": 2, "valid_every": 2}
    more = {"preset": "plain", "model": small, "training": short}
    with pytest.raises(Interrupted) as caught:
        run(name, told(tmp_path, stop=True)[0], **corpus, **more)
    assert caught.value.position == 1
    job, _, events = told(tmp_path)
    assert run(name, job, **corpus, **more).steps == 2
    assert [event["step"] for event in events if event["event"] == "resumed"] == [1]


@pytest.mark.parametrize("name", ["train", "language_model", "cache", "evaluate", "download"])
def test_a_kind_writes_nothing_once_a_newer_start_has_its_folder(
    tmp_path: Path, corpus: dict[str, Path], trained: tuple[Path, Any], name: str
) -> None:
    def fence() -> None:
        raise Superseded("goes on elsewhere")

    short = {"max_steps": 2, "valid_every": 1}
    given: dict[str, dict[str, Any]] = {
        "train": {**corpus, "preset": "plain", "model": SMALL, "training": {**FEW, **short}},
        "language_model": {**corpus, "training": short},
        "cache": {"teacher": trained[0], "manifest": corpus["dev"]},
        "evaluate": {"checkpoint": trained[0], "manifest": corpus["dev"]},
        "download": {
            "source": "synthetic",
            "root": tmp_path / "data",
            "synthetic": {"utterances": 10, "test_utterances": 1},
        },
    }
    job = told(tmp_path / "step")[0]._replace(fence=fence)
    with pytest.raises(Superseded):
        run(name, job, **given[name])
    left = [path.name for path in tmp_path.rglob("*") if path.suffix != ".json"]
    assert not {"model.safetensors", "hypotheses.jsonl", "manifests"} & set(left)
    assert not [name for name in left if name.endswith(".bin")]


def test_evaluate_stores_hypotheses_and_the_worst_and_prints_samples(
    tmp_path: Path,
    corpus: dict[str, Path],
    trained: tuple[Path, Any],
    capsys: pytest.CaptureFixture,
) -> None:
    job, metrics, _ = told(tmp_path)
    result = run("evaluate", job, checkpoint=trained[0], manifest=corpus["train"], samples=2)
    lines = [json.loads(line) for line in result.hypotheses.read_text().splitlines()]
    assert result.hypotheses == tmp_path / "hypotheses.jsonl"
    assert len(lines) == result.utterances == 24
    assert set(lines[0]) == {"id", "text", "reference", "wer"}
    words = sum(len(line["reference"].split()) for line in lines)
    errors = result.substitutions + result.deletions + result.insertions
    assert words == result.words
    assert result.wer == errors / words
    pooled = sum(line["wer"] * len(line["reference"].split()) for line in lines)
    assert round(pooled) == errors
    worst = read_json(tmp_path / "worst.json")
    assert len(worst) == min(10, sum(line["wer"] > 0 for line in lines))
    assert [each["errors"] for each in worst] == sorted((w["errors"] for w in worst), reverse=True)
    out = capsys.readouterr().out
    assert len(re.findall(r"^True: .*\nPred: .*\nMatch: ", out, re.M)) == 2
    assert all(each["alignment"] in out for each in worst)
    assert f"WER {result.wer:.2%}, CER {result.cer:.2%}" in out
    assert metrics[-1] == {"step": 24, "total_steps": 24}
    assert 0 < result.real_time_factor < 10
    assert result.audio_seconds == pytest.approx(
        sum(json.loads(line)["duration"] for line in corpus["train"].read_text().splitlines()),
        abs=1e-2,
    )


def test_evaluate_takes_some_utterances_spread_over_the_list(
    tmp_path: Path, corpus: dict[str, Path], trained: tuple[Path, Any]
) -> None:
    given = {"checkpoint": trained[0], "manifest": corpus["train"], "num_samples": 3}
    result = run("evaluate", told(tmp_path)[0], **given)
    ids = [json.loads(line)["id"] for line in result.hypotheses.read_text().splitlines()]
    assert ids == ["0-0", "0-11", "0-23"]


def test_evaluate_takes_audio_without_texts_and_then_has_no_rates(
    tmp_path: Path, trained: tuple[Path, Any], capsys: pytest.CaptureFixture
) -> None:
    files = [tmp_path / name / "talk.wav" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        soundfile.write(file, np.zeros(8_000), 8_000)  # at another rate
    result = run("evaluate", told(tmp_path)[0], checkpoint=trained[0], audio=files)
    assert (result.wer, result.cer, result.words, result.insertions) == (None,) * 4
    assert result.audio_seconds == 2.0
    lines = [json.loads(line) for line in result.hypotheses.read_text().splitlines()]
    assert [line["id"] for line in lines] == list(map(str, files))
    assert {line["reference"] for line in lines} == {None}
    out = capsys.readouterr().out
    assert out.count("Pred:") == 2 and "True:" not in out
    assert not (tmp_path / "worst.json").exists()


def test_evaluate_refuses_what_it_cannot_score_honestly_and_keeps_what_it_has_heard(
    tmp_path: Path, corpus: dict[str, Path], trained: tuple[Path, Any]
) -> None:
    gone = Utterance("gone", tmp_path / "gone.wav", 1.0, "A B", "x")
    known = read_manifest(corpus["dev"])
    write_manifest(tmp_path / "gone.jsonl", [gone, *known])
    with pytest.raises(
        DataError, match=r"^1 of \d+ utterances cannot be read: utterance gone: can"
    ):
        given = {"checkpoint": trained[0], "manifest": tmp_path / "gone.jsonl"}
        run("evaluate", told(tmp_path)[0], **given)
    kept = (tmp_path / "hypotheses.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in kept] == [each.id for each in known]
    (tmp_path / "no.wav").write_text("no audio")
    with pytest.raises(DataError) as several:
        paths = [tmp_path / "no.wav", tmp_path / "gone.wav"]
        run("evaluate", told(tmp_path)[0], checkpoint=trained[0], audio=paths)
    said = str(several.value).splitlines()
    assert all(str(path) in line for path, line in zip(paths, said, strict=True))
    with pytest.raises(ValidationError, match="either manifest: FILE or audio"):
        run("evaluate", told(tmp_path)[0], checkpoint=trained[0])


def test_overfit_passes_a_sound_model_and_reports_what_was_measured(
    tmp_path: Path, corpus: dict[str, Path]
) -> None:
    job, metrics, _ = told(tmp_path)
    given = {"model": {**SMALL, "dropout": 0.5}, "learning_rate": 1e-2, "warmup_steps": 5}
    result = run("overfit", job, manifest=corpus["train"], **given)
    assert (result.verdict, result.wer) == ("PASSED", 0.0)
    assert set(result.checks) >= {"first loss", "gradients", "padding", "silence", "blind control"}
    assert result.blind_wer > 0.5
    assert any(line.get("wer") == 0 for line in metrics)


def test_overfit_learns_with_the_optimizer_the_pieces_and_the_losses_of_what_it_guards(
    tmp_path: Path, corpus: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    job, _, _ = told(tmp_path)
    given = {
        "like": "train",
        "model": {**SMALL, "layers": 2, "dropout": 0.5},
        "optimizer": {"method": "muon"},
        "vocabulary": "bpe",
        "vocabulary_size": 32,
        "ctc": {"intermediate": [1]},
        "learning_rate": 1e-2,
        "warmup_steps": 5,
    }
    result = run("overfit", job, manifest=corpus["train"], **given)
    assert (result.verdict, result.wer) == ("PASSED", 0.0)
    said = capsys.readouterr().out
    assert "Learning like train: lact tiny, 32 symbols, muon at rate 0.01, fp32, no dropout" in said


def test_overfit_fails_the_step_for_a_defect_and_leaves_the_rest_to_the_gate(
    tmp_path: Path, corpus: dict[str, Path]
) -> None:
    given = {"manifest": corpus["train"], "model": SMALL, "steps": 10, "learning_rate": 1e-6}
    given["relaxed_rate"] = None
    with pytest.raises(Failed, match=r"^can't learn: WER [\d.]+% after 10 steps$") as caught:
        run("overfit", told(tmp_path)[0], **given)
    assert caught.value.cause == "gate_missed"
    near = {**given, "learning_rate": 1e-2, "steps": 18, "marginal_wer": 0.99}
    result = run("overfit", told(tmp_path)[0], **near, warmup_steps=5, blind_control=False)
    assert result.verdict == "MARGINAL" and result.wer > 0 and result.blind_wer is None


def test_the_second_try_of_overfit_is_on_record_as_a_remedy(
    tmp_path: Path, corpus: dict[str, Path]
) -> None:
    job, _, events = told(tmp_path)
    given = {"manifest": corpus["train"], "model": SMALL, "steps": 10, "learning_rate": 1e-6}
    with pytest.raises(Failed):
        run("overfit", job, **given)
    [remedy] = [each for each in events if each["event"] == "remedy"]
    assert remedy["cause"] == "gate_missed" and "second try at rate" in remedy["reason"]


def test_overfit_that_is_asked_to_stop_has_nothing_to_go_on_from(
    tmp_path: Path, corpus: dict[str, Path]
) -> None:
    with pytest.raises(Interrupted) as caught:
        run("overfit", told(tmp_path, stop=True)[0], manifest=corpus["train"], model=SMALL)
    assert caught.value.position == 0


def test_a_kind_of_one_process_says_so(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 2, 0, lambda line: None, lambda *_, **__: None, lambda: False)
    with pytest.raises(Failed, match="overfit runs as one process: write nodes: 1"):
        run("overfit", job, manifest=tmp_path)


def test_a_program_ended_by_the_cluster_is_no_failed_one_even_if_our_signal_comes_late(
    tmp_path: Path,
) -> None:
    killed = {"argv": ["sh", "-c", "kill -TERM $$"]}
    begun = time.monotonic()
    late = lambda: 15 if time.monotonic() > begun + 0.3 else None
    job = Job(tmp_path, 0, 1, 0, lambda line: None, lambda *_, **__: None, bool, late)
    with pytest.raises(Interrupted):
        run("command", job, **killed)
    with pytest.raises(Failed, match="sh was ended by signal 15"):
        run("command", told(tmp_path)[0], **killed)
