"""The nine ways in which the founding notes' trainings went wrong, each put into a real run.

    python -m bench.pathologies --data ../shared/data/speech/dev

One pipeline on a private Slurm, on real speech, unattended: a step for each pathology, and beside
three of them the notes' own way (docs/origin.md), for comparison. What was put in, what the run did
about it and the numbers come from the files of the steps. What takes days there is scaled: a run of
the notes has 25,000 steps and 24 hours, one of these 100 and a minute.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.disturbances import SMALL, TRAINING
from bench.fault_cases import fault
from bench.faults import about_machine, speech_of
from bench.harness import RESULTS, argument_parser
from distill.models.registry import FAMILIES
from jobs.healing.remedies import changes_of, in_words
from jobs.step_folder import StepDir
from lact_asr.config.training import StoppingConfig
from lact_asr.data.dataset import Reader, whole_corpus
from lact_asr.data.manifest import read_manifest
from lact_asr.text.normalize import CHARACTERS
from lact_asr.training import checkpoint, early_stopping
from lact_asr.utils.files import write_atomic, write_json
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.launcher import Launcher

STEPS = 100  # of a training, for their 25,000
BAD_STEP = max(1, round(748 / 25_000 * STEPS))
WIDTH = int(SMALL["hidden"])
# Their projector had 1,024 inputs; as spread as theirs its outputs are from states sqrt(1024 / 32)
# times as large: 19, with which a divergence of 9.41 of at most 10.37 nats was reckoned.
RMS_OF_KL = 19 * (1024 / WIDTH) ** 0.5
RMS_OF_SCALES = 13.2  # whose mean square is 175, the middle of 150 to 200
DAYS = 6000  # steps: three minutes where 45 are taken in a second, and more elsewhere
QUICK = {"max_steps": STEPS, "valid_every": STEPS // 2, "checkpoint_every": STEPS // 10}
STOPPING = {"patience": 10, "warmup_steps": 0, "not_before": 0.0}
Evidence = Mapping[str, StepDir]


@dataclass(frozen=True)
class Pathology:
    """One of the nine."""

    name: str
    saw: str  # what the notes saw
    how: str  # how it is put in here
    step: str  # of the pipeline
    why: Callable[[Evidence], str]  # one line; empty where it cannot be said: then it went wrong


def training(kind: str = "train", *faults: Any, **more: Any) -> dict[str, Any]:
    """A step that trains on the speech."""
    settings: dict[str, Any] = {"train": "few.jsonl", "dev": "few.jsonl", "preset": "plain"}
    if kind != "teacher":
        settings |= {"model": SMALL}
    given = {**TRAINING, **QUICK, **more.pop("training", {})}
    step = {"kind": kind, "settings": {**settings, "training": given, **more}}
    return {**step, "faults": list(faults), **SIZE}


# three at once on a node
SIZE: dict[str, Any] = {"resources": {"time": "1h", "cpus": 1, "memory_gb": 5}}


def distill(teacher: str, learned: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return training(
        "distill", *more.pop("faults", ()), teacher=teacher, distill=dict(learned), **more
    )


def steps() -> dict[str, dict[str, Any]]:
    """The pipeline; the names of teachers are the folders that `teachers` writes."""
    overfit = {"manifest": "few.jsonl", "longest": 4.0, "steps": 100, "learning_rate": 1.2e-4}
    inf = fault("inf_gradient", 1, times=3)
    raw = {"feature": "original", "feature_weight": WIDTH, "curriculum": "all_on"}
    ramp = {"valid_every": 2, "stopping": STOPPING}  # as many validations as their 25,000 have
    day = training(training={"max_steps": DAYS, "valid_every": DAYS, "checkpoint_every": 100})
    return {
        "inf": training("teacher", inf, preset="standard", training={"optim": {}}),
        "nan": distill(
            "quiet", {}, faults=[fault("nan_data", BAD_STEP)], training={"batch_seconds": 30}
        ),
        "projector_original": distill("louder", {"target": "original"}),
        "projector": distill("louder", {"target": "projector"}),
        "scales_original": distill("loud", raw),
        "scales": distill("loud", {"feature_weight": 1.0, "curriculum": "all_on"}),
        "stopping": distill("untrained", {"feature_weight": 5.0}, training=ramp),
        "gate": {"kind": "overfit", "settings": overfit, "gate": {"wer": "<= 0.0"}, **SIZE},
        "memory": training("train", fault("out_of_memory_gpu", STEPS // 2)),
        "fp32": training(
            "train",
            fault("nan_weight", STEPS // 2),
            preset="original",
            training={"optim": {"warmup_steps": 5}, "precision": "fp32"},
        ),
        "day": {**day, "resources": {**SIZE["resources"], "time": "1m"}},
    }


def teachers(trained: Path, few: Path, folder: Path) -> None:
    """The trained teacher, the same with the states of its last block grown, and one that never
    learned, whose states stay hard to guess.
    """
    model, vocabulary, _ = checkpoint.load_model(checkpoint.find(trained), FAMILIES)
    described = json.loads((checkpoint.find(trained) / checkpoint.CONFIG).read_text())

    def save(name: str, weights: Mapping[str, Any]) -> None:
        contents = {checkpoint.WEIGHTS: weights, checkpoint.CONFIG: described}
        checkpoint.save(folder, name, {**contents, checkpoint.STATE: {"step": 1}})

    torch.manual_seed(7)
    save("untrained", type(model)(model.config, len(vocabulary)).state_dict())
    shortest = read_manifest(few)[:8]
    heard = Reader(whole_corpus(shortest, vocabulary))[list(range(len(shortest)))]
    save("quiet", model.state_dict())
    for name, wanted in (("loud", RMS_OF_SCALES), ("louder", RMS_OF_KL)):
        for _ in range(8):
            _grow(model, wanted / _rms(model, heard))
        save(name, model.state_dict())


@torch.no_grad()
def _rms(model: Any, heard: Any) -> float:
    return float(model.eval()(heard.waves, heard.wave_lengths).hidden[-1].square().mean().sqrt())


@torch.no_grad()
def _grow(model: Any, factor: float) -> None:
    for layer in (model.blocks[-1].mix.o_proj, model.blocks[-1].mlp.down):
        layer.weight.mul_(factor)


def numbers(step: StepDir, name: str) -> list[tuple[int, float]]:
    """A metric of a training, with its steps."""
    return [(line["step"], line[name]) for line in step.metrics() if line.get(name) is not None]


def first(step: StepDir, name: str) -> float:
    return numbers(step, name)[0][1]


def last(step: StepDir, name: str) -> float:
    return numbers(step, name)[-1][1]


def events(step: StepDir, name: str) -> list[dict[str, Any]]:
    return [event for event in step.events() if event["event"] == name]


def _infinite_gradient(found: Evidence) -> str:
    step = found["inf"]
    taken = [str(event["step"]) for event in events(step, "step_retried")]
    return (
        f"no update is made with such a gradient: steps {', '.join(taken)} were taken again at "
        f"once; loss {first(step, 'loss'):.2f} to {last(step, 'loss'):.2f}"
    )


def _nan_in_a_loss(found: Evidence) -> str:
    (out,) = events(found["nan"], "quarantined")
    (again,) = events(found["nan"], "step_retried")
    return (
        f"utterance {out['id']} was found and left out, and step {again['step']} taken with the "
        f"rest of its batch: loss {again['loss']:.2f}"
    )


def _random_projector(found: Evidence) -> str:
    theirs, ours = found["projector_original"], found["projector"]
    most = math.log(len(CHARACTERS) + 1)
    valid = [last(each, "valid_loss") for each in (theirs, ours)]
    share = first(theirs, "kd") / most
    assert share > 0.8 and valid[1] < valid[0], (share, valid)
    return (
        f"their way: KL {first(theirs, 'kd'):.2f} at step 1, {share:.0%} of ln V, as 9.4 is of "
        f"32,000 symbols, and a dev loss of {valid[0]:.2f} in the end; `target: projector` (a norm "
        f"before the map, which learns from the texts): KL {first(ours, 'kd'):.3f}, {valid[1]:.2f}"
    )


def _loss_scales(found: Evidence) -> str:
    theirs, ours = found["scales_original"], found["scales"]
    sizes = [first(each, "feature_weighted") for each in (theirs, ours)]
    assert 150 < sizes[0] < 200 and sizes[1] < 4, sizes
    return (
        f"their mean square: {sizes[0]:.0f} at step 1 beside a CTC loss of "
        f"{first(theirs, 'ctc'):.1f}, gradient norm {first(theirs, 'grad_norm'):.0f}; the default "
        f"`ln_mse` knows no scale: {sizes[1]:.1f}, gradient norm {first(ours, 'grad_norm'):.0f}"
    )


def _fooled_stopping(found: Evidence) -> str:
    step, rule = found["stopping"], StoppingConfig.model_validate(STOPPING)
    total, dev = dict(numbers(step, "loss")), dict(numbers(step, "valid_loss"))
    mark: list[float] = []
    stale = 0
    for number in dev:
        mark, stale = early_stopping.watch(rule, number, [total[number]], mark, stale)
        if early_stopping.should_stop_early(rule, number / STEPS, stale):
            break
    ended = int((step.result() or {})["steps"])
    assert number < ended and min(dev.values()) < 0.99 * dev[number], (number, ended)
    return (
        f"the weighted sum rose with the ramp, to {total[number]:.1f} from {mark[0]:.1f}: their "
        f"rule stops at step {number} of {STEPS}, dev loss {dev[number]:.2f} and falling; dev WER "
        f"and loss are watched here, it went on to step {ended}, dev loss {min(dev.values()):.2f}"
    )


def _missed_gate(found: Evidence) -> str:
    (event,) = events(found["gate"], "remedy")
    result = found["gate"].result() or {}
    return f"{event['reason']}: {result['verdict']} after {result['steps']} steps"


def _changed(name: str) -> Callable[[Evidence], str]:
    def why(found: Evidence) -> str:
        (event,) = events(found[name], "remedy")
        return f"{event['cause']}: {in_words(changes_of(event))}, went on by itself"

    return why


def _short_day(found: Evidence) -> str:
    step = found["day"]
    limits = [event["position"] for event in events(step, "interrupted")]
    taken = [number for number, _ in numbers(step, "learning_rate")]
    assert len(limits) >= 2, limits
    successors = sum(bool(each.continues) for each in step.submissions())
    return (
        f"warned 15 s before each limit it saved, at steps {', '.join(map(str, limits))}, and went "
        f"on, {successors} of {len(limits)} times in a job that it had put behind itself; "
        f"{len(taken) - len(set(taken))} steps taken twice"
    )


PATHOLOGIES = (
    Pathology(
        "gradient norm inf at batch 0",
        "inf at batches 0, 1 and 2; loss 95 and no better",
        "infinity in a gradient of steps 1, 2 and 3; a teacher, preset: standard, which is theirs",
        "inf",
        _infinite_gradient,
    ),
    Pathology(
        "NaN at step 748",
        "of 25,000, in a loss of the distillation; all weights NaN from there on",
        f"NaN in an utterance of step {BAD_STEP} of {STEPS}, distilling",
        "nan",
        _nan_in_a_loss,
    ),
    Pathology(
        "random projector",
        "KL 9.4 of 10.4 at the start, and loss rising",
        f"the teacher's last states grown to an RMS of {RMS_OF_KL:.0f}, as much for {WIDTH} "
        "channels as 19 for 1,024",
        "projector",
        _random_projector,
    ),
    Pathology(
        "loss scales of 150 to 200",
        "of the feature loss, beside losses of 1 to 3",
        f"the teacher's last states grown to an RMS of {RMS_OF_SCALES:g}; feature_weight: {WIDTH} "
        "takes their second division by the width away",
        "scales",
        _loss_scales,
    ),
    Pathology(
        "early stopping fooled by the ramp",
        "training ended while its weights were still rising",
        f"validated every 2 of {STEPS} steps, patience {STOPPING['patience']}, feature_weight: 5 "
        "on the states of an untrained teacher; both rules on the same run",
        "stopping",
        _fooled_stopping,
    ),
    Pathology(
        "overfit gate at 85 %",
        "FAILED (can't learn), WER 85 % after 3,000 epochs",
        "the gate with 0.12 of its default learning rate, and 100 steps",
        "gate",
        _missed_gate,
    ),
    Pathology(
        "out of memory",
        "by hand: --batch_size 8 --gradient_accumulation_steps 3",
        f"torch.OutOfMemoryError at step {STEPS // 2}",
        "memory",
        _changed("memory"),
    ),
    Pathology(
        "NaN in fp32",
        "by hand: rate 5e-5, --max_grad_norm 0.5",
        f"a weight NaN at step {STEPS // 2}, precision: fp32, preset: original, which is theirs",
        "fp32",
        _changed("fp32"),
    ),
    Pathology(
        "a 24 h limit on a training of 3 days",
        "ended by the limit",
        f"scaled by 1,440: resources.time: 1m, {DAYS} steps",
        "day",
        _short_day,
    ),
)


def described(each: Pathology, found: Evidence, states: Mapping[str, str]) -> dict[str, Any]:
    """A row; what did not come as it should is said in it."""
    state = states[each.step]
    try:
        why = each.why(found)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        why = f"NOT AS IT SHOULD BE: {type(error).__name__} {error}"
    by_hand = [one for one in found[each.step].submissions() if not one.continues]
    alone = len(by_hand) == 1  # nobody has resumed it
    good = state == "succeeded" and alone and not why.startswith("NOT")
    facts = {"pathology": each.name, "saw": each.saw, "how": each.how, "ended": state}
    return {**facts, "why": why, "good": good}


def page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    heads = ["pathology", "what the notes saw", "put in here", "ended", "why"]
    cells = [[row[key] for key in ("pathology", "saw", "how", "ended", "why")] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *cells]]
    good = sum(row["good"] for row in rows)
    return "\n".join(
        [
            "# The notes' nine pathologies",
            "",
            "Written by `python -m bench.pathologies`: one pipeline on a private Slurm, which "
            "nobody touched, a step for",
            "each. Where a default prevents one, the notes' own way was run beside it.",
            "",
            f"- ended in success, unattended, for the reason that is given: {good} of {len(rows)}",
            f"- measured on {about['slurm']}, {about['cores']} cores, {about['speech']}, commit "
            f"{about['commit']}",
            "",
            *lines,
            "",
        ]
    )


def run(slurm: PrivateSlurm, folder: Path, data: Path | None) -> list[dict[str, Any]]:
    """The teachers, then everything; the rows."""
    few = speech_of(data, folder)
    (work := folder / "work").mkdir()
    (work / "few.jsonl").write_text(few.read_text())
    launcher = Launcher(work, slurm)
    launcher("run", launcher.write({"teacher": training()}), "--wait")
    teachers(launcher.newest() / "steps" / "teacher", few, work)
    launcher("run", launcher.write(steps(), "pathologies"))
    while launcher.queued():  # each step has a time limit
        time.sleep(1.0)
    found = {name: StepDir(launcher.newest() / "steps" / name) for name in steps()}
    return [described(each, found, launcher.states()) for each in PATHOLOGIES]


def main() -> None:
    """Run all; write bench/results/pathologies.md and .json."""
    parser = argument_parser("pathologies", __doc__)
    parser.add_argument("--data", type=Path, help="speech in LibriSpeech layout")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="pathologies-") as name,
        PrivateSlurm(Path(name) / "slurm", nodes=1) as slurm,
    ):
        rows = run(slurm, Path(name), given.data)
        about = about_machine(slurm, given.data)
    print(said := page(rows, about))
    write_atomic(RESULTS / "pathologies.md", said)
    write_json(RESULTS / "pathologies.json", {"benchmark": "pathologies", **about, "rows": rows})


if __name__ == "__main__":
    main()
