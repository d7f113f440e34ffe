"""How long a step of a recipe of `bench.learn` takes beside another's, in turns on the same speech.

    python -m bench.pace --data mini_librispeech/train-clean-5 [--recipe NAME ...] [--rounds 30]

The processor time of a whole run depends on what shares its core: the 4,000 steps of `ours` have
taken from 1,333 to 1,519 s. Here the recipes' steps take turns, and the ratio says how many steps
of one are as long as so many of the first. What comes before the first round, compilers and all, is
told beside it.
"""

import tempfile
from pathlib import Path

import torch

from bench.harness import Row, argument_parser, commit, rounds, show, write
from bench.machine import clock, device, machine, put_compilers_on_the_clock, stopwatch
from bench.recipes import RECIPES
from lact_asr.data.batch_plan import Position
from lact_asr.data.librispeech import scan
from lact_asr.data.manifest import Utterance
from lact_asr.distributed.processes import World
from lact_asr.model.blocks import compile_blocks
from lact_asr.text.normalize import in_normal_form
from lact_asr.training import optim, train_step
from lact_asr.training.objective import CTCObjective
from lact_asr.training.speech import Speech

USUAL = ("ours", "unmasked", "spelled1600", "spelled_fast")
WARM = 3  # steps that allocate, compile, and compile again for any length


class Contestant:
    """A recipe that takes one training step after the other."""

    def __init__(self, name: str, speech: list[Utterance], tiny: bool) -> None:
        recipe = RECIPES[name]
        vocabulary = recipe.vocabulary(in_normal_form(each.text) for each in speech)
        config = recipe.settings(recipe.steps, seed=0).model_copy(update={"workers": 0})
        model = recipe.fresh(vocabulary, 0, tiny).to(device()).train()
        if config.compile:
            compile_blocks(model, strict=True)
        objective, world = CTCObjective(model, recipe.loss(), vocabulary), World()
        self.objective, self.took = objective, list[float]()
        self._optimizer = optim.build(objective, config.optim)
        self._called = train_step.ObjectiveModule(objective)
        self._setting = train_step.Setting(config, world, device())
        self._speech = Speech(objective, speech, speech[:1], vocabulary, config, world, device())
        self._feed = self._speech.feed(Position())
        began = clock()
        for _ in range(WARM):
            self()
        self.before, self.took = clock() - began, []

    def __call__(self) -> None:
        """One more step."""
        batch = self._speech.prepared(self._feed.take())
        watch = stopwatch()
        self.objective.begin_step([batch], World().all_sum)
        train_step.take_step(self._called, self._optimizer, [batch], 0.0, self._setting, False, {})
        self.took.append(watch())


def main() -> None:
    """Measure, print the table, write bench/results/pace.json."""
    parser = argument_parser("pace", __doc__, tiny="models that learn nothing; nothing written")
    parser.add_argument("--data", type=Path, required=True, help="a folder in LibriSpeech layout")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="two or more")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    first, *others = given.recipe or USUAL
    speech = scan(given.data)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        put_compilers_on_the_clock(Path(folder))
        contest = {name: Contestant(name, speech, given.tiny) for name in (first, *others)}
        rounds(1 if given.tiny else given.rounds, *contest.values())
    rows = [Row(f"step of {first}", ours=contest[first].took)]
    for name in others:
        beside = contest[first].took
        rows.append(Row(f"step of {name}, beside {first}", ours=contest[name].took, theirs=beside))
    before = {name: round(each.before, 1) for name, each in contest.items()}
    show("steps in turns: median (least-most)", rows)
    print(f"seconds of the {WARM} steps before the first round, compilers included: {before}")
    if not given.tiny:
        about = {"ran_on": machine(), "commit": commit(), "seconds_before": before}
        print(f"written to {write('pace', rows, **about)}")


if __name__ == "__main__":
    main()
