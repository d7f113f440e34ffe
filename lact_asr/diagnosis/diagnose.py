"""Where the numbers of a model go wrong: one batch forward and backward, watched module by module.

Every module's outputs, and the gradients that reach and leave it, are looked at in the order in
which they are computed. The first value that is NaN, infinite or larger than a limit names a
module: the one that produced it from sound inputs. A value that goes wrong between two modules
(attention, say, inside its layer) is found where the next one receives it, and belongs to the
innermost module that was running then. The weights are looked at last, for what no value touched.

Runs in training mode, where training diverges, with dropout by a fixed seed. It works on any model
of the project, also on a checkpoint whose training has not survived.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lact_asr.data.batch import Batch
from lact_asr.diagnosis.ranges import Range, Row
from lact_asr.model.ctc_loss import ctc_losses
from lact_asr.model.forward import autocast, forward_batch
from lact_asr.model.interface import CTCModel

LIMIT = 1e4  # sound models stay below 100, in activations and in gradients per label token
LOSS, WAVES = "the loss", "the waves"  # in place of a module


@dataclass(frozen=True)
class Finding:
    """The first value that went wrong."""

    module: str  # a name in the model, or LOSS or WAVES
    where: str  # forward, loss, backward or weights
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """The first finding, if there is one, and the ranges of every module that took part."""

    first: Finding | None
    loss: float  # per label token
    rows: list[Row]  # in the order of the forward pass

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return self.first is None

    def report(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "healthy": self.healthy,
            "first": asdict(self.first) if self.first else None,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "modules": [row.numbers() for row in self.rows],
        }


def diagnose(
    model: CTCModel, batch: Batch, limit: float = LIMIT, precision: str = "fp32"
) -> Diagnosis:
    """One forward and backward pass of CTC on the model's device; leaves no gradients behind."""
    device = next(model.parameters()).device
    batch = batch.to(device)
    watch = _Watch(model, limit)
    torch.manual_seed(0)
    model.train()
    try:
        loss = _walk(model, batch, watch, precision, device)
        watch.weights()
    finally:
        watch.remove()
        model.zero_grad(set_to_none=True)
        model.eval()
    return Diagnosis(watch.first, loss, list(watch.rows.values()))


def _walk(
    model: CTCModel, batch: Batch, watch: "_Watch", precision: str, device: torch.device
) -> float:
    """Forward, loss and backward; the loss per label token."""
    watch.inspect(WAVES, "forward", batch.waves, "the audio")
    with autocast(device, precision):
        output = forward_batch(model, batch)
    losses = ctc_losses(output.log_probs, output.lengths, batch)
    watch.inspect(LOSS, "loss", losses, f"CTC of {', '.join(batch.ids)}", limit=math.inf)
    loss = losses.sum() / batch.target_lengths.sum().clamp(min=1)
    loss.backward()
    return float(loss.detach())


@dataclass(eq=False)
class _Call:
    """One module at work."""

    row: Row
    parent: "_Call | None"


class _Watch:
    """Hooks on every module; remembers the first wrong value and the ranges of all."""

    def __init__(self, model: CTCModel, limit: float) -> None:
        self.model, self.limit = model, limit
        self.first: Finding | None = None
        self.rows: dict[str, Row] = {}
        self._stack: list[_Call] = []
        self._outermost: dict[int, tuple[Tensor, _Call]] = {}  # the last call that returned it
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            name = name or type(module).__name__
            self._handles += [
                module.register_forward_pre_hook(self._before(name), with_kwargs=True),
                module.register_forward_hook(self._after, with_kwargs=True),
            ]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                owner = name.rpartition(".")[0] or type(model).__name__
                self._handles.append(parameter.register_hook(self._watch_parameter(owner, name)))

    def remove(self) -> None:
        """Take all hooks away again."""
        for handle in self._handles:
            handle.remove()

    def inspect(
        self, module: str, where: str, x: Tensor, what: str, limit: float = math.nan
    ) -> Range:
        """Measure values; if they are the first wrong ones, the module is to blame."""
        values = Range()
        values.add(x)
        wrong = values.wrong(self.limit if math.isnan(limit) else limit)
        if wrong and self.first is None:
            self.first = Finding(module, where, f"{what}: {wrong}")
        return values

    def weights(self) -> None:
        """Ranges of every parameter and buffer; wrong ones count if nothing else was wrong."""
        for name, value in self.model.state_dict().items():
            owner, _, own = name.rpartition(".")
            owner = owner or type(self.model).__name__
            if value.is_floating_point():
                self.inspect(owner, "weights", value, own, limit=math.inf)
                if owner in self.rows:
                    self.rows[owner].weights.add(value)

    # --- forward ----------------------------------------------------------------------------------

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, named: Any) -> Any:
            for x in _tensors((arguments, named)):
                if x.requires_grad:  # others may be masks, with -inf in its right place
                    blamed = self._stack[-1].row.module if self._stack else WAVES
                    self.inspect(blamed, "forward", x, f"between its parts, before {name}")
            row = self.rows.setdefault(name, Row(name, type(module).__name__))
            call = _Call(row, self._stack[-1] if self._stack else None)
            self._stack.append(call)
            return self._watch_arguments(arguments, call), self._watch_arguments(named, call)

        return hook

    def _watch_arguments(self, value: Any, call: _Call) -> Any:
        """The arguments, each tensor as a view of its own, so that its gradient is this call's."""
        if isinstance(value, tuple):
            return tuple(self._watch_arguments(x, call) for x in value)
        if isinstance(value, dict):
            return {key: self._watch_arguments(x, call) for key, x in value.items()}
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        view = value.view_as(value)
        view.register_hook(lambda g: self._backward(call.row.module, g, "the gradient it returns"))
        return view

    def _after(self, module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
        call = self._stack.pop()
        for x in _tensors(output):
            call.row.activations.add(x)
            self.inspect(call.row.module, "forward", x, f"output{_broken_parts(module)}")
            if x.requires_grad:
                x.register_hook(self._watch_output(id(x), call))
                self._outermost[id(x)] = (x, call)

    # --- backward ---------------------------------------------------------------------------------

    def _watch_output(self, key: int, producer: _Call) -> Any:
        """The gradient of an output: wrong here first means wrong behind all that returned it."""

        def hook(gradient: Tensor) -> None:
            producer.row.gradients.add(gradient)
            parent = self._outermost[key][1].parent
            blamed = parent.row.module if parent else LOSS
            self._backward(blamed, gradient, f"the gradient of the output of {producer.row.module}")

        return hook

    def _watch_parameter(self, owner: str, name: str) -> Any:
        def hook(gradient: Tensor) -> None:
            if owner in self.rows:
                self.rows[owner].weight_gradients.add(gradient)
            self._backward(owner, gradient, f"the gradient of {name}")

        return hook

    def _backward(self, module: str, gradient: Tensor, what: str) -> None:
        self.inspect(module, "backward", gradient, what)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in an argument or an answer."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for x in value:
            yield from _tensors(x)
    elif is_dataclass(value):
        yield from _tensors(tuple(getattr(value, each.name) for each in fields(value)))


def _broken_parts(module: nn.Module) -> str:
    """Which of a module's own parameters are not finite, in words."""
    own = [
        name
        for name, parameter in module.named_parameters(recurse=False)
        if not torch.isfinite(parameter).all()
    ]
    return f" (its {', '.join(own)} not finite)" if own else ""


def table(diagnosis: Diagnosis) -> str:
    """The ranges of every module, one line each."""
    width = max((len(row.module) for row in diagnosis.rows), default=0)
    lines = [f"{'module':<{width}}  {'activations: min, max, rms':>32}  {'gradients':>32}"]
    for row in diagnosis.rows:
        cells = (_cell(row.activations), _cell(row.gradients))
        lines.append(f"{row.module:<{width}}  {cells[0]:>32}  {cells[1]:>32}".rstrip())
    return "\n".join(lines)


def _cell(values: Range) -> str:
    if not values.count:
        return ""
    if values.broken == values.count:
        return "nothing finite"
    broken = f" +{values.broken} broken" if values.broken else ""
    return f"{values.low:.3g} {values.high:.3g} {values.rms:.3g}{broken}"
