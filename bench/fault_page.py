"""The page of the fault matrix, bench/results/faults.md, and the data behind it."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.harness import RESULTS
from lact_asr.utils.files import read_json, write_atomic, write_json

HEADS = (
    "fault",
    "how",
    "cause named",
    "right",
    "ended",
    "behind ran",
    "seconds to recover",
    "steps lost",
    "weights",
    "what the run did",
    "a person",
    "commit",
)
_ABOUT = """\
# The fault matrix

Written by `make test-faults`. On a private Slurm a small recognizer learns from 24 utterances, 30
steps with a checkpoint every 5, with one step behind it: once undisturbed, then once for each
fault. *Right* is whether the run has named the cause that was put in, and no other. *Behind ran* is
how often the step behind was run: once where the training ended well, else never. *Seconds to
recover* run from the fault to the end of the next step of training that is new; of several faults
the longest. *Steps lost* were taken twice. *Weights*: whether the last ones are bit for bit those
of the undisturbed run.
"""


def known_rows() -> list[dict[str, Any]]:
    """The rows that were measured before."""
    path = RESULTS / "faults.json"
    return list(read_json(path)["rows"]) if path.exists() else []


def with_row(
    rows: Sequence[dict[str, Any]], row: dict[str, Any], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows with a new one in its place; what is no fault, such as a quiet run, is left out."""
    found = {each["fault"]: each for each in [*rows, row]}
    return [found[name] for name in names if name in found]


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the page."""
    how = f"{row['how']} ({row['note']})" if row["note"] else row["how"]
    came = row["came"]
    if came is None:
        return [row["fault"], how, "", "", "NOT MEASURED", *[""] * 6, row["commit"]]
    right = {None: "", True: "yes", False: f"NO: it is {row['right_cause']}"}[row["named_right"]]
    well = (came["ended"] == "succeeded") == row["survivable"]
    return [
        row["fault"],
        how,
        came["cause"] or "none",
        right,
        came["ended"] if well else came["ended"].upper(),
        str(row["behind"]),
        "" if came["seconds"] is None else f"{came['seconds']:.1f}",
        "" if came["lost"] is None else str(came["lost"]),
        came["weights"],
        came["did"],
        row["person"],
        row["commit"],
    ]


def page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The matrix in Markdown."""
    table = [HEADS, ["---"] * len(HEADS), *map(cells, rows)]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in table]
    where = f"{about['slurm']}, {about['cores']} cores at load {about['load']}, {about['speech']}"
    return "\n".join([_ABOUT, *_counts(rows), f"- measured on {where}", "", *lines, ""])


def _counts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    named = [row["named_right"] for row in rows if row["named_right"] is not None]
    should = [row["came"] or {} for row in rows if row["survivable"]]
    ended = sum(came.get("ended") == "succeeded" for came in should)
    same = sum(came.get("weights") == "identical" for came in should)
    return [
        f"- cause named right: {sum(named)} of {len(named)}",
        f"- survived, of those that should be: {ended} of {len(should)}; with the weights of the "
        f"undisturbed run: {same}",
    ]


def write(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """The page and the data."""
    write_atomic(RESULTS / "faults.md", page(rows, about))
    write_json(RESULTS / "faults.json", {"benchmark": "faults", **about, "rows": rows})
