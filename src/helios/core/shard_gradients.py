"""Gradients of networks of which every rank holds a part: what has been exchanged, and what is still to be."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from helios.core.shard_tree import is_sharded
from helios.core.shards import find_states
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import nn


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

    def get_kept_back(self, name: str) -> torch.Tensor | None:
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

    def keep_back(self, gradient: torch.Tensor | None) -> None:
        """Set the gradient that `get_kept_back` returns. The parameter must have been whole once."""
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


def be_whole_once(networks: Iterable[nn.Module]) -> None:
    """Put each unit of the networks together, and shard it again, so that there is what gradients are kept back in.

    All ranks must call this. Networks that are not sharded are left alone.
    """
    for state in find_states(networks):
        for module in state._modules:  # noqa: SLF001 - see ShardedParameter.
            module.unshard()
            module.reshard()
