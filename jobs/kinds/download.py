"""Bring a corpus and list it: one manifest each for train, dev and test.

LibriSpeech and Mini LibriSpeech come from OpenSLR or a mirror, into `root`, once for all pipelines;
`folder` takes what is already there in LibriSpeech layout; `table` takes your own corpus, a line
of CSV, TSV or JSON for each utterance, and `kaldi` data directories of Kaldi and ESPnet, after a
look at every recording; `synthetic` speaks a small corpus with espeak-ng. Up to date takes seconds.
Where compute nodes have no internet, run this step alone on a login node that shares `root`:
`run FILE --only STEP --cluster local`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from jobs.errors import nearest
from jobs.folders import folder_of
from jobs.job import Job
from jobs.pipeline import Inside, Made, Resources, Space
from lact_asr.config.base import Frozen
from lact_asr.config.table import Columns
from lact_asr.data.corpora import CORPORA, MIRROR, MIRRORS
from lact_asr.data.disk_space import peak
from lact_asr.data.synthetic.sentences import Synthetic
from lact_asr.utils.errors import DataError, Failed
from lact_asr.utils.files import is_there, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lact_asr.data.corpus_check import Finding
    from lact_asr.data.manifest import Utterance

    Utterances = list[Utterance]
    Part = tuple[str, Utterances]  # the manifest's name, without .jsonl, and what it lists

RESOURCES = Resources(time="6h", cpus=2, memory_gb=4)
PARTS = ("train", "dev", "test")
_OWN = ("folder", "table", "kaldi")  # corpora that are there already
_HEARD = ("table", "kaldi")  # of which every recording is looked at


def data_root() -> Path:
    """Where corpora live: $TRAINYARD_DATA, else ./data."""
    return folder_of("TRAINYARD_DATA", "data")


class Settings(Frozen):
    """Which corpus, and which of its subsets are for what."""

    source: Literal["librispeech", "mini_librispeech", "folder", "table", "kaldi", "synthetic"] = (
        Field(description="the corpus; synthetic makes its own train, dev and test")
    )
    train: Annotated[list[str], Inside("folder")] = Field(
        [], description="subsets to learn from, such as train-clean-100, or tables: [train.csv]"
    )
    dev: Annotated[list[str], Inside("folder")] = Field(
        [], description="subsets that choose the checkpoint"
    )
    test: Annotated[list[str], Inside("folder")] = Field(
        [], description="subsets that judge it; may name dev's on purpose"
    )
    holdout_speakers: int = Field(
        0,
        ge=0,
        le=1000,
        description="speakers moved from train to dev, and as many to test, where those are empty",
    )
    root: Annotated[Path, Made()] = Field(
        default_factory=data_root,
        description="where corpora are kept; $TRAINYARD_DATA, else ./data, if not given",
    )
    folder: Path | None = Field(
        None,
        description="for source: folder, LibriSpeech layout: FOLDER/SUBSET/SPEAKER/CHAPTER/; for "
        "source: table, where the tables are (.csv, .tsv, .jsonl, .json); for source: kaldi, where "
        "the data directories are",
    )
    audio_folder: Annotated[str, Inside("folder")] = Field(
        "",
        description="for source: table and kaldi, where the paths in tables and in wav.scp begin, "
        "from `folder` on, such as clips or ..; `folder` itself if not given",
    )
    columns: Columns = Columns()
    faulty: Literal["refuse", "leave_out"] = Field(
        "refuse",
        description="for source: table and kaldi, what becomes of recordings that are missing, "
        "unreadable, silent, too short for their text or doubled: the step fails and names them, "
        "or they are left out; the whole list is in corpus_check.txt in the step's folder",
    )
    mirror: str = Field(
        MIRROR, pattern=r"^https?://", description=f"one of {', '.join(MIRRORS)}, or your own copy"
    )
    retries: int = Field(
        8, ge=1, le=1000, description="attempts in a row that may get no further before giving up"
    )
    synthetic: Synthetic = Field(Synthetic(), description="for source: synthetic")

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        mistakes = [*self._mistakes_of_source(), *self._mistakes_of_subsets()]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def _mistakes_of_source(self) -> list[str]:
        if self.source in _OWN and self.folder is None:
            return [f"source: {self.source} needs `folder`, the path that holds the subsets"]
        if self.source not in _OWN and self.folder is not None:
            return [f"`folder` goes with source: folder, not with {self.source}"]
        if self.source not in _HEARD and self.audio_folder:
            return [f"`audio_folder` goes with source: table or kaldi, not with {self.source}"]
        return []

    def _mistakes_of_subsets(self) -> list[str]:
        if self.source == "synthetic":
            named = [*self.train, *self.dev, *self.test]
            return ["source: synthetic makes its own subsets: name none"] if named else []
        mistakes = [] if self.train else ["`train` names no subset"]
        for name in dict.fromkeys([*self.train, *self.dev, *self.test]):
            mistakes += self._unknown(name)
        for part in ("dev", "test"):
            if not getattr(self, part) and not self.holdout_speakers:
                mistakes.append(f"`{part}` names no subset: name one, or set `holdout_speakers`")
            if both := set(self.train) & set(getattr(self, part)):
                mistakes.append(f"`{part}` and `train` share {', '.join(sorted(both))}")
        if self.holdout_speakers and self.dev and self.test:
            mistakes.append("`holdout_speakers` has nothing to do: `dev` and `test` name subsets")
        return mistakes

    def _unknown(self, name: str) -> list[str]:
        known = CORPORA.get(self.source)
        if known is None:
            good = re.fullmatch(r"\w[\w.-]*", name)
            return (
                [] if good else [f"{name!r} is no subset: write the name of a folder in `folder`"]
            )
        if name in known:
            return []
        return [f"{self.source} has no subset {name!r}: {nearest(name, known)}"]


class Result(Frozen):
    """Where the manifests are."""

    train: Path = Field(description="manifest of the training utterances")
    dev: Path = Field(description="manifest of the utterances that choose the checkpoint")
    test: Path = Field(description="manifest of the utterances that judge it")
    manifests: dict[str, Path] = Field(description="every manifest written, by name")
    utterances: int = Field(description="in train, dev and test together")
    hours: float = Field(description="of audio in train, dev and test together")


def keys(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """What results hold by name: a manifest of each subset and of each part."""
    given = Settings.model_validate(settings)
    return {"manifests": list(dict.fromkeys([*_subsets_needed(given), *_names(given).values()]))}


def wrong_files(settings: Mapping[str, Any]) -> "Iterator[tuple[tuple[str, ...], str]]":
    """What the first lines of tables say against `columns`."""
    known = (settings[name] for name in ("source", "folder", "columns"))
    if settings["source"] != "table" or any("${" in str(part) for part in known):
        return
    from lact_asr.data.table import expect_columns

    columns = Columns.model_validate(settings["columns"])
    names = [name for part in PARTS for name in settings[part] if "${" not in name]
    for path in (Path(settings["folder"]) / name for name in dict.fromkeys(names)):
        try:
            if is_there(path) and path.is_file():
                expect_columns(path, columns)
        except DataError as error:
            yield ("columns",), str(error)


def space(settings: Settings) -> Space:
    """The disk that the subsets still take, at its peak; a small or a given corpus takes none."""
    known, names = CORPORA.get(settings.source, {}), _subsets_needed(settings)
    return Space(
        settings.root,
        peak((known[name] for name in names if name in known), settings.root),
        f"{settings.source} ({', '.join(names)}), archives and what is unpacked at the peak",
        "write another root in its settings, or set TRAINYARD_DATA to another folder",
    )


def run(settings: Settings, job: Job) -> Result:
    """Bring what is missing, then write the manifests."""
    if job.world_size > 1:
        raise DataError("download runs as one process: write nodes: 1, gpus: 0")
    home, subsets = _bring(settings, job)
    parts = _parts(settings, subsets)
    if set(settings.dev) & set(settings.test):
        print("note: test shares utterances with dev, which chooses the checkpoint", flush=True)
    return _write(home, subsets, parts, job)


def _subsets_needed(settings: Settings) -> list[str]:
    """The subsets, in the order in which they come."""
    return sorted({*settings.train, *settings.dev, *settings.test})


def _subsets_of(part: str, settings: Settings) -> list[str]:
    subsets: list[str] = [part] if settings.source == "synthetic" else getattr(settings, part)
    return subsets


def _names(settings: Settings) -> dict[str, str]:
    """The name of each part's manifest."""
    names = {part: "+".join(_subsets_of(part, settings)) for part in PARTS}
    if empty := [part for part in PARTS if not names[part]]:
        stem = f"{names['train']}-without-{len(empty)}x{settings.holdout_speakers}-speakers"
        names |= {part: f"{stem}-{part}" for part in ("train", *empty)}
    return names


def _bring(settings: Settings, job: Job) -> tuple[Path, "dict[str, Utterances]"]:
    """The folder for the manifests, and the utterances of each subset named."""
    from lact_asr.data.librispeech import scan

    wanted = _subsets_needed(settings)
    if settings.source == "synthetic":
        from lact_asr.data.synthetic.corpus import synthesize

        made = synthesize(settings.synthetic, settings.root)
        return made / "manifests", {part: scan(made / part) for part in PARTS}
    if settings.source in _HEARD:
        return job.directory / "manifests", _tables(settings, wanted, job)
    if settings.folder is not None:  # it may change and it may be read-only: manifests to the run
        folder = settings.folder
        return job.directory / "manifests", {name: scan(folder / name) for name in wanted}
    home = settings.root / "manifests"
    return home, {name: _from_openslr(name, home, settings, job) for name in wanted}


def _tables(settings: Settings, names: Sequence[str], job: Job) -> "dict[str, Utterances]":
    """The utterances of each table; DataError with what is wrong with them, unless left out."""
    from lact_asr.data.kaldi import read_kaldi
    from lact_asr.data.table import check_table, read_table

    assert settings.folder is not None  # as `_mistakes_of_source` has seen
    seen: dict[int, str] = {}
    start = settings.folder / settings.audio_folder
    paths = {name: settings.folder / name for name in names}
    if settings.source == "kaldi":
        read = {name: read_kaldi(path, start) for name, path in paths.items()}
    else:
        read = {name: read_table(path, settings.columns, start) for name, path in paths.items()}
    checked = {name: check_table(rows, seen, name) for name, rows in read.items()}
    lines = [line for each in checked.values() for line in each.lines()]
    job.fence()
    report = job.directory / "corpus_check.txt"
    write_atomic(report, "".join(f"{line}\n" for line in lines))
    for name, each in checked.items():
        print(f"{name}: {len(each.utterances):,} of {len(read[name]):,} utterances are sound")
        if each.findings:
            print(f"{name}: {each.counts()}; see {report}", flush=True)
            job.event("corpus_check", table=name, found=each.counts(), report=str(report))
    if settings.faulty == "refuse":
        _refuse([fault for each in checked.values() for fault in each.fatal()], report)
    return {name: each.utterances for name, each in checked.items()}


def _refuse(faults: "Sequence[tuple[str, Finding]]", report: Path) -> None:
    from lact_asr.data.manifest import raise_all
    from lact_asr.data.table import counts

    if faults:
        found = counts(finding for _, finding in faults)
        advice = f"{found}: mend these, or write faulty: leave_out; all findings are in {report}"
        raise_all([advice, *(f"{place}: {finding.said}" for place, finding in faults)])


def _elsewhere(step: str) -> str:
    return (
        f"Where compute nodes have no internet: `run FILE --only {step} --cluster local` "
        "on a login node that shares `root`, then `resume`."
    )


def _from_openslr(name: str, home: Path, settings: Settings, job: Job) -> "Utterances":
    """A subset of LibriSpeech, listed once: a manifest that is there is not written again."""
    from lact_asr.data.archive import download_subset
    from lact_asr.data.librispeech import scan
    from lact_asr.data.manifest import read_manifest

    subset = CORPORA[settings.source][name]
    given = (settings.root, settings.mirror, settings.retries, job.should_stop)
    try:
        folder = download_subset(subset, *given)
    except Failed as failed:
        if failed.cause != "server_unreachable":
            raise
        raise Failed(failed.cause, f"{failed} {_elsewhere(job.directory.name)}") from failed
    manifest = home / f"{name}.jsonl"
    return read_manifest(manifest) if manifest.exists() else scan(folder)


def _parts(settings: Settings, subsets: "dict[str, Utterances]") -> "dict[str, Part]":
    """Train, dev and test: a name for the manifest, and the utterances."""
    from lact_asr.data.librispeech import hold_out

    found = {part: _join_subsets(subsets, _subsets_of(part, settings)) for part in PARTS}
    if empty := [part for part in PARTS if not _subsets_of(part, settings)]:
        *held, rest = hold_out(found["train"], settings.holdout_speakers, len(empty))
        found |= {**dict(zip(empty, held, strict=True)), "train": rest}
    names = _names(settings)
    parts = {part: (names[part], found[part]) for part in PARTS}
    if nothing := [part for part in PARTS if not parts[part][1]]:
        raise DataError(f"no utterances are left for {', '.join(nothing)}")
    heard = {each.id for each in parts["train"][1]}
    for part in ("dev", "test"):
        if both := sorted(each.id for each in parts[part][1] if each.id in heard):
            raise DataError(f"{len(both)} utterances are in train and in {part}: {both[0]} ...")
    return parts


def _join_subsets(subsets: "dict[str, Utterances]", names: Sequence[str]) -> "Utterances":
    joined = {each.id: each for name in names for each in subsets[name]}
    if len(joined) < sum(len(subsets[name]) for name in names):
        raise DataError(f"{', '.join(names)}: the same utterance ids occur in more than one")
    return list(joined.values())


def _write(
    home: Path, subsets: "dict[str, Utterances]", parts: "dict[str, Part]", job: Job
) -> Result:
    """One manifest per subset and per part; a part that is a subset shares its manifest."""
    from lact_asr.data.manifest import write_manifest

    lists = {**subsets, **dict(parts.values())}
    manifests = {name: home / f"{name}.jsonl" for name in lists}
    job.fence()
    for name, utterances in lists.items():
        write_manifest(manifests[name], utterances)
    for part, (name, utterances) in parts.items():
        hours = sum(each.duration for each in utterances) / 3600
        speakers = len({each.speaker for each in utterances})
        facts = {"utterances": len(utterances), "hours": round(hours, 3), "speakers": speakers}
        print(f"{part}: {', '.join(f'{n:,} {what}' for what, n in facts.items())}", flush=True)
        job.event("manifest", part=part, manifest=str(manifests[name]), **facts)
    seconds = {each.id: each.duration for _, found in parts.values() for each in found}
    return Result(
        train=manifests[parts["train"][0]],
        dev=manifests[parts["dev"][0]],
        test=manifests[parts["test"][0]],
        manifests=manifests,
        utterances=len(seconds),
        hours=round(sum(seconds.values()) / 3600, 4),
    )
