"""The pipelines that come with us, which a command line names without a path: `run demo`."""

from pathlib import Path

from jobs.errors import UserError, nearest

PIPELINES = Path(__file__).parents[1] / "pipelines"


def find_pipeline(text: str) -> Path:
    """The file that a command line means: one that is there, else one of ours by its name.

    A text with a slash or a suffix is a path, whether or not there is a file. UserError for a word
    that is neither a file nor a name.
    """
    path = Path(text)
    if "/" in text or path.suffix or path.is_file():
        return path
    known = sorted(file.stem for file in PIPELINES.glob("[!.]*.yaml"))
    if text in known:
        return PIPELINES / f"{text}.yaml"
    hint = nearest(text, known)
    listed = "" if hint.startswith("valid") else f" Ours are {', '.join(known)}"
    raise UserError(f"{text!r} is neither a file nor a pipeline of ours: {hint}{listed}")
