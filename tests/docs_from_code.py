"""docs/when-things-go-wrong.md from the table of causes: `python -m tests.docs_from_code`."""

from collections.abc import Iterator

from jobs.causes import CAUSES
from jobs.healing.heal import PAGE
from tests.conftest import REPOSITORY

_HEAD = """\
# When things go wrong

A step that ends without its result has a *cause*: one word. `status` shows it before the sentence
that says what happened, `status --json` has it as `cause`, and `failure.json` in the step's folder
keeps it. This page is written from the table in `jobs/causes.py`, which the code uses.

What a run can mend, it mends itself: inside the same Slurm job where that is possible, so that the
place in the queue stays, else in a job that goes on with the step. Either way the steps behind it
wait on. Each *remedy* is an event in `events.jsonl` with its cause, its reason
and each setting before and after; `status` counts them, `result.json` says which were in force at
the end. How often a step heals itself stands in the pipeline file; what is not named keeps its
default:

```yaml
steps:
  train:
    kind: command
    settings: {argv: [python, train.py]}
    remedies: {program_failed: 2, killed: 5}   # `remedies: none` is never
```

What changes a setting is done so often in all. What only begins again is done so often without
getting further: a step that is killed after each new checkpoint begins again as often as it takes.
A setting that a person has changed since, with `--set` of `resume`, is left as it is.

One end has no record: that of a step whose run was moved or renamed while it ran. The record went
with the folder, and the code too; where trainyard is installed beside it, the last line of the log,
which has moved as well, says `missing_file`. `status` has what Slurm says of the job. Give the
folder its name back, then `resume`.
"""


def when_things_go_wrong() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for name, about in CAUSES.items():
        yield f"## {name}\n"
        yield f"- *What it means*: {about.meaning}."
        often = f" (at most {about.retries} times)" if about.retries else ""
        yield f"- *What the run does itself*{often}: {about.itself}."
        yield f"- *What is left for a person*: {about.person}.\n"


if __name__ == "__main__":
    (REPOSITORY / PAGE).write_text(when_things_go_wrong())
