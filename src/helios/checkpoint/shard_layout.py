"""Saved states of networks and optimizers, laid out as the object that takes them is sharded now.

Nothing here imports what it does not need: a run without sharded tensors never loads the packages that make them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.shard_tree import is_sharded, map_tree, may_be_sharded
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from torch import nn


def fit_network(state: dict[str, Any], network: nn.Module) -> dict[str, Any]:
    """Return a network's saved state with each tensor laid out as the network's own of that name.

    What was saved whole and is sharded now is cut, which each rank does by itself: all must have the same. What was
    saved in shards and is whole now, or sharded in another way, is brought together: all ranks must call this then.

    Args:
        state: what `network.state_dict()` returned.
        network: the network that takes it.

    Raises:
        CheckpointMismatchError: if a parameter or a buffer was saved in another dtype than the network's own.
    """
    ensure_same_dtypes(state, network)
    if not may_be_sharded():
        return state
    present = network.state_dict()

    def fit(path: tuple[Any, ...], leaf: Any) -> Any:
        own = present.get(path[0]) if len(path) == 1 else None
        return fit_tensor(leaf, own) if isinstance(own, torch.Tensor) and isinstance(leaf, torch.Tensor) else leaf

    fitted: dict[str, Any] = map_tree(state, fit)
    return fitted


def ensure_same_dtypes(state: dict[str, Any], network: nn.Module) -> None:
    """Check that a network takes its saved state as it is: torch would convert it, and lose digits, without a word.

    Args:
        state: what `network.state_dict()` returned.
        network: the network that takes it.

    Raises:
        CheckpointMismatchError: if a parameter or a buffer was saved in another dtype than the network's own.
    """
    own = itertools.chain(
        network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
    )
    for name, present in own:
        saved = state.get(name)
        if isinstance(saved, torch.Tensor) and saved.dtype != present.dtype:
            raise CheckpointMismatchError(
                f"{name!r} of the {type(network).__name__} was saved as {saved.dtype}, and is {present.dtype} now: "
                "make it as it was, or begin another run, under another save_name; to test in another precision, "
                "convert the network in on_testing_start"
            )


def fit_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's saved state with the tensors of each parameter laid out as the parameter is now.

    Whole tensors of another shape than the parameter's stay whole. For the rest see `fit_network`.

    Args:
        state: what `optimizer.state_dict()` returned.
        optimizer: the optimizer that takes it.
    """
    if not may_be_sharded():
        return state
    saved = (index for group in state["param_groups"] for index in group["params"])
    present = (parameter for group in optimizer.param_groups for parameter in group["params"])
    # Where the two differ in number, the optimizer itself says so.
    parameters = dict(zip(saved, present, strict=False))

    def fit(path: tuple[Any, ...], leaf: Any) -> Any:
        parameter = parameters.get(path[0])
        # The count of steps is whole whatever the parameter is, one without dimensions too.
        if parameter is None or path[1:] == ("step",) or not isinstance(leaf, torch.Tensor):
            return leaf
        return fit_tensor(leaf, parameter)

    return {**state, "state": map_tree(state["state"], fit)}


def fit_tensor(saved: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return a saved tensor, whole or sharded as another one is; of another shape, it is whole."""
    if not is_sharded(present):
        return saved.full_tensor() if is_sharded(saved) else saved
    if is_sharded(saved):
        if (saved.device_mesh, saved.placements) == (present.device_mesh, present.placements):
            return saved
        saved = saved.full_tensor()
    if saved.shape != present.shape:
        return saved
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - see the module's docstring.

    # Without a source, no rank sends anything: each cuts its part out of what it has.
    return distribute_tensor(saved.detach(), present.device_mesh, present.placements, src_data_rank=None)
