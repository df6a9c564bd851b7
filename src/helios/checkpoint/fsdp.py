"""What torch keeps of the networks that `fully_shard` (FSDP2) has sharded: the one file that reads its attributes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.shard_tree import is_sharded
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn
    from torch.distributed.fsdp import FSDPModule


@contextlib.contextmanager
def unsharded(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Hold the whole of the networks on every rank while the context lasts, so that forward passes tell nobody.

    Ranks may then make different numbers of passes. These must be made under `torch.no_grad`, and must neither change
    parameters nor ask for a `state_dict`, which would shard the network again. All ranks must enter together; each
    leaves by itself, and finds the networks as they were.

    Args:
        networks: any networks; to those that are not sharded nothing happens.
    """
    states = find_states(networks)
    habits = [_Habit.of(state, group) for state in states for group in state._fsdp_param_groups]  # noqa: SLF001 - see _Habit.
    modules: list[FSDPModule] = [module for state in states for module in state._modules]  # noqa: SLF001 - see _Habit.
    try:
        for habit in habits:
            habit.group.post_forward_mesh_info = None
        # What is brought together in inference mode could never be trained afterwards.
        with torch.inference_mode(mode=False):
            for module in modules:
                module.unshard()
        yield
    finally:
        for habit in habits:
            habit.resume()
        for module in modules:
            module.reshard()


def find_states(networks: Iterable[nn.Module]) -> list[Any]:
    """Return what torch keeps of each unit of the networks, those of networks that users have sharded too."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    modules = itertools.chain.from_iterable(network.modules() for network in networks)
    states = [module._get_fsdp_state() for module in modules if isinstance(module, fsdp.FSDPModule)]  # noqa: SLF001 - see _Habit.
    return list({id(state): state for state in states}.values())  # Modules may share one.


@dataclasses.dataclass
class _Habit:
    """What a group of sharded parameters, those of a unit, did before it was told to stay whole.

    These are torch's own attributes: it lets nobody read what `set_reshard_after_forward` sets, and that method takes
    neither a number of ranks nor "unless it is the root", which is the default. Remembering what `shard_network` was
    told would need none of them, but would miss networks that users shard themselves, and what they set later.
    """

    state: Any
    group: Any
    mesh_info: Any
    passes: int

    @classmethod
    def of(cls, state: Any, group: Any) -> _Habit:
        """Remember how a group behaves now."""
        return cls(state, group, group.post_forward_mesh_info, len(_passes_of(group)))

    def resume(self) -> None:
        """Let the group behave as it did."""
        # The first pass of all makes a network the root, and the root stays whole unless it was told otherwise.
        if not (self.state._is_root and self.state._auto_reshard_after_forward):  # noqa: SLF001 - see above.
            self.group.post_forward_mesh_info = self.mesh_info
        # A backward pass brings units together in the reverse of the order in which they are on record, with those of
        # passes under no_grad among them: ranks that have made different numbers of these would wait for each other.
        del _passes_of(self.group)[self.passes :]
        indices = self.group._post_forward_indices  # noqa: SLF001 - see above.
        indices[:] = [index for index in indices if index < self.passes]


def _passes_of(group: Any) -> list[Any]:
    passes: list[Any] = getattr(group.comm_ctx, "post_forward_order", [])  # There is none before the first pass.
    return passes


@dataclasses.dataclass(frozen=True)
class ShardedParameter:
    """A parameter that is spread over the ranks, and its gradients.

    There may be two: of what the ranks have exchanged, each has its part. What has been kept back from an exchange, by
    `set_requires_gradient_sync(False)`, each has for itself, and whole. torch lets nobody read that, or set it.
    """

    parameter: Any
    group: Any

    @property
    def part(self) -> nn.Parameter:
        """What stands for the parameter in its module while it is spread; its `grad` is this rank's part."""
        part: nn.Parameter = self.parameter.sharded_param
        return part

    def get_unreduced(self, name: str) -> torch.Tensor | None:
        """Return the gradient that this rank has kept back, if there is one.

        Args:
            name: what to call the parameter in an error.

        Raises:
            ConfigurationError: if it cannot be taken, as it is no whole tensor.
        """
        gradient: torch.Tensor | None = self.parameter.unsharded_accumulated_grad
        if gradient is None and self._has_been_whole():
            gradient = self.parameter._unsharded_param.grad  # noqa: SLF001 - see the class.
        if is_sharded(gradient) or self.group._partial_reduce_output is not None:  # noqa: SLF001 - see the class.
            raise ConfigurationError(
                f"a checkpoint is due while the gradient of {name} has been exchanged within some ranks, and kept back "
                "from others: it can be saved only if all is exchanged or nothing. Let each batch exchange gradients, "
                "without set_requires_all_reduce(False) or set_requires_gradient_sync(False), or save checkpoints at "
                "whole optimizer steps, by chkpt_frequency"
            )
        return gradient

    def set_unreduced(self, gradient: torch.Tensor | None) -> None:
        """Set the gradient that `get_unreduced` returns. The parameter must have been whole once."""
        whole = self.parameter._unsharded_param  # noqa: SLF001 - see the class.
        whole.grad = self.parameter.unsharded_accumulated_grad = None
        if gradient is None:
            return
        gradient = gradient.to(whole.device, self.parameter.reduce_dtype or whole.dtype, copy=True)
        # As torch does it after a backward pass: what is added up in another dtype than the parameter's is set aside.
        if gradient.dtype == whole.dtype:
            whole.grad = gradient
        else:
            self.parameter.unsharded_accumulated_grad = gradient

    def _has_been_whole(self) -> bool:
        return hasattr(self.parameter, "_unsharded_param")

    def stand_ins(self) -> list[nn.Parameter]:
        """Return all that may stand for the parameter in its module."""
        return [self.part, self.parameter._unsharded_param] if self._has_been_whole() else [self.part]  # noqa: SLF001 - see the class.


def find_sharded(networks: Iterable[nn.Module]) -> dict[int, ShardedParameter]:
    """Return the parameters that `fully_shard` has spread, by the ids of what stands for each in its module."""
    groups = [group for state in find_states(networks) for group in state._fsdp_param_groups]  # noqa: SLF001 - see ShardedParameter.
    sharded = [ShardedParameter(parameter, group) for group in groups for parameter in group.fsdp_params]
    return {id(stand_in): each for each in sharded for stand_in in each.stand_ins()}


def unshard_once(networks: Iterable[nn.Module]) -> None:
    """Put each unit of the networks together, and shard it again, so that there is what gradients are kept back in.

    All ranks must call this. Networks that are not sharded are left alone.
    """
    for state in find_states(networks):
        for module in state._modules:  # noqa: SLF001 - see ShardedParameter.
            module.unshard()
            module.reshard()
