"""Models split over the processes: each holds its share of weights, gradients and optimizer state.

Fully sharded data parallelism (FSDP; Zhao et al. 2023) by PyTorch's `fully_shard`: block by block
the weights are gathered for a forward or backward pass and let go of behind it. With W processes
`large` keeps 493 M x 16 bytes / W instead of 7.9 GB on each, and every micro-batch sends its
weights twice. Gradients come back averaged over the processes, as without sharding.

Split inside each node only, with a copy on every node, weights stay on the fast links, and what
goes between nodes is one sum of a share's gradients a micro-batch; a process then keeps the above
by its number on a node (8: 1 GB of `large`).

What leaves the processes is always whole: a checkpoint does not know how it was trained, and can go
on with another number of processes, sharded or not. Gathering is a collective: all ranks take part,
in the same order.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from lact_asr.utils.errors import DataError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def split(module: nn.Module) -> bool:
    """Whether a module's parameters are shares of what they stand for."""
    return any(map(_is_share, module.parameters()))


def _is_share(value: object) -> "TypeGuard[DTensor]":
    """Whether this is a DTensor, whose import takes 0.33 s of every process's start."""
    return hasattr(value, "full_tensor")


def shard(
    model: nn.Module,
    trainable: nn.Module,
    blocks: nn.ModuleList,
    attends: bool = False,
    group: int | None = None,
) -> None:
    """Split a model in place, rank 0's weights; before the optimizer is made.

    `attends`: `log_attention` of its blocks is called beside their forward. `group`: so many
    neighbouring ranks have a copy among them, by default all. DataError where something outside the
    model learns too: it would be left unsplit. And for a model without blocks: backward begins at
    theirs, and without them would reach no gradient.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if not len(blocks):
        raise DataError(
            f"sharded training splits a model by its blocks, and {type(model).__name__} has none: "
            "write sharded: false"
        )
    inside = {id(parameter) for parameter in model.parameters()}
    beside = [name for name, p in trainable.named_parameters() if id(p) not in inside]
    if beside:
        raise DataError(
            f"sharded training splits the model alone, and {len(beside)} parameters beside it "
            f"learn too ({beside[0]}, ...): write sharded: false, or leave out the losses that "
            "bring them (projector, hints, router, uncertainty)"
        )
    for value in model.state_dict(keep_vars=True).values():
        torch.distributed.broadcast(value.data, 0)
    mesh = _mesh(group, next(model.parameters()).device.type)
    for block in blocks:
        fully_shard(block, mesh=mesh)
        if attends:
            register_fsdp_forward_method(block, "log_attention")
    # The rest stays gathered until it is through backward: `read_out` is called beside forward. As
    # a registered forward method it would let go of the convolutions before their backward.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def _mesh(group: int | None, device: str) -> "DeviceMesh | None":
    """The ranks as rows that have a copy each; None for a single row."""
    from torch.distributed.device_mesh import init_device_mesh

    size = torch.distributed.get_world_size()
    if group in (None, size):
        return None
    return init_device_mesh(device, (size // group, group), mesh_dim_names=("copy", "share"))


def whole(value: Any, keep: bool = True) -> Any:
    """What a tensor, or a mapping or list of them, is when put together, split ones on the CPU.

    With keep=False this rank takes part, and gets nothing for a split tensor.
    """
    if _is_share(value):
        gathered = full(value)
        return gathered.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: whole(each, keep) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(each, keep) for each in value)
    return value


def full(value: Tensor) -> Tensor:
    """A split tensor put together on its device; any other as it is."""
    return value.full_tensor() if _is_share(value) else value


def like(value: Tensor, present: Tensor) -> Tensor:
    """A whole tensor, or this rank's share of it where the present one of its shape is split."""
    if not _is_share(present) or value.shape != present.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(present.device, present.dtype)
    return distribute_tensor(value, present.device_mesh, present.placements, src_data_rank=None)


def all_like(values: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict from whole tensors."""
    present = module.state_dict()
    return {n: like(value, present[n]) if n in present else value for n, value in values.items()}


def optimizer_like(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict from whole tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {
            name: like(value, parameters[index])
            if isinstance(value, Tensor) and index < len(parameters)
            else value
            for name, value in each.items()
        }
        for index, each in saved["state"].items()
    }
    return {**saved, "state": state}


def local(value: Tensor) -> Tensor:
    """This rank's share of a split tensor, the same memory; any other tensor as it is."""
    return value.to_local() if _is_share(value) else value


def parts(value: Tensor) -> int:
    """Over how many neighbouring ranks a tensor is split; 1 for a whole one."""
    return value.device_mesh.shape[-1] if _is_share(value) else 1


def rows(whole: int, ranks: int) -> list[int]:
    """How many rows of so many each of these neighbours holds: `torch.chunk`, as `Shard` has it."""
    held = [len(each) for each in torch.empty(whole, 0).chunk(ranks)]
    return held + [0] * (ranks - len(held))


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The common norm () of all gradients, over all ranks where they are split."""
    return full(torch.nn.utils.get_total_norm(gradients))


def run_dummy_forwards(model: nn.Module, calls: int, *inputs: Tensor) -> None:
    """Call a split model so often on these, while other ranks, which wait for it, have batches."""
    for _ in range(calls if split(model) else 0):
        with torch.no_grad():
            model(*inputs)
