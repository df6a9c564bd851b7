"""Access to the internals of networks sharded by `fully_shard` (FSDP2); no other file reads torch's private ones."""

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
    """Hold the whole networks on every rank while the context lasts, so that forward passes need no communication.

    Ranks may then make different numbers of passes. These must be made under `torch.no_grad`, and must neither change
    parameters nor call `state_dict`, which would shard the network again. All ranks must enter together. They may leave
    at different times, and the networks are then sharded as before.

    Args:
        networks: any networks; those that are not sharded stay as they are.
    """
    states = find_states(networks)
    settings = [_ReshardSettings.of(state, group) for state in states for group in state._fsdp_param_groups]  # noqa: SLF001 - see _ReshardSettings.
    modules: list[FSDPModule] = [module for state in states for module in state._modules]  # noqa: SLF001 - see _ReshardSettings.
    try:
        for setting in settings:
            setting.group.post_forward_mesh_info = None
        # Parameters that are unsharded in inference mode could never be trained afterwards.
        with torch.inference_mode(mode=False):
            for module in modules:
                module.unshard()
        yield
    finally:
        for setting in settings:
            setting.restore()
        for module in modules:
            module.reshard()


def find_states(networks: Iterable[nn.Module]) -> list[Any]:
    """Return torch's FSDP state of each unit of the networks, including networks that users have sharded themselves."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    modules = itertools.chain.from_iterable(network.modules() for network in networks)
    states = [module._get_fsdp_state() for module in modules if isinstance(module, fsdp.FSDPModule)]  # noqa: SLF001 - see _ReshardSettings.
    return list({id(state): state for state in states}.values())  # Modules may share one.


@dataclasses.dataclass
class _ReshardSettings:
    """Whether the parameters of one unit are sharded again after a forward pass, as it was before `unsharded`.

    torch has no public way to read what `set_reshard_after_forward` sets, and that method accepts neither a number of
    ranks nor the default ("unless it is the root"). Storing the arguments of `shard_network` would not be enough: users
    may shard networks themselves, and may change the setting later.
    """

    state: Any
    group: Any
    mesh_info: Any
    passes: int

    @classmethod
    def of(cls, state: Any, group: Any) -> _ReshardSettings:
        """Return the current settings of a group."""
        return cls(state, group, group.post_forward_mesh_info, len(_passes_of(group)))

    def restore(self) -> None:
        """Give the group its settings back."""
        # The first forward pass determines which network is the root. By default, the root stays unsharded.
        if not (self.state._is_root and self.state._auto_reshard_after_forward):  # noqa: SLF001 - see above.
            self.group.post_forward_mesh_info = self.mesh_info
        # A backward pass unshards the units in the reverse order of the recorded forward passes, and torch records
        # those under no_grad as well. Ranks that made different numbers of passes would wait for each other, so the
        # new entries are removed.
        del _passes_of(self.group)[self.passes :]
        indices = self.group._post_forward_indices  # noqa: SLF001 - see above.
        indices[:] = [index for index in indices if index < self.passes]


def _passes_of(group: Any) -> list[Any]:
    passes: list[Any] = getattr(group.comm_ctx, "post_forward_order", [])  # There is none before the first pass.
    return passes


@dataclasses.dataclass(frozen=True)
class ShardedParameter:
    """A sharded parameter and its gradients.

    It may have two gradients. After a reduction, each rank holds its shard of the reduced gradient. Without one, after
    `set_requires_gradient_sync(False)`, each rank holds an unreduced gradient of the whole parameter, which torch
    has no public way to read or set.
    """

    parameter: Any
    group: Any

    @property
    def shard(self) -> nn.Parameter:
        """The parameter that the module has while it is sharded; its `grad` is this rank's shard."""
        shard: nn.Parameter = self.parameter.sharded_param
        return shard

    def get_unreduced(self, name: str) -> torch.Tensor | None:
        """Return the unreduced gradient of this rank; `None` if there is none.

        Args:
            name: the name of the parameter, for an error.

        Raises:
            ConfigurationError: if the gradient is reduced among some ranks only, and so cannot be saved.
        """
        gradient: torch.Tensor | None = self.parameter.unsharded_accumulated_grad
        if gradient is None and self._was_unsharded():
            gradient = self.parameter._unsharded_param.grad  # noqa: SLF001 - see the class.
        if is_sharded(gradient) or self.group._partial_reduce_output is not None:  # noqa: SLF001 - see the class.
            raise ConfigurationError(
                f"a checkpoint is due while the gradient of {name} is reduced among some ranks but not among all: it "
                "can be saved only if it is reduced among all or not at all. Reduce gradients in each batch, without "
                "set_requires_all_reduce(False) or set_requires_gradient_sync(False), or set chkpt_frequency so that "
                "checkpoints are saved at whole optimizer steps"
            )
        return gradient

    def set_unreduced(self, gradient: torch.Tensor | None) -> None:
        """Set the gradient that `get_unreduced` returns. The parameter must have been unsharded once."""
        whole = self.parameter._unsharded_param  # noqa: SLF001 - see the class.
        whole.grad = self.parameter.unsharded_accumulated_grad = None
        if gradient is None:
            return
        gradient = gradient.to(whole.device, self.parameter.reduce_dtype or whole.dtype, copy=True)
        # As torch does after a backward pass: a gradient of another dtype than the parameter's is stored separately.
        if gradient.dtype == whole.dtype:
            whole.grad = gradient
        else:
            self.parameter.unsharded_accumulated_grad = gradient

    def _was_unsharded(self) -> bool:
        return hasattr(self.parameter, "_unsharded_param")

    def stand_ins(self) -> list[nn.Parameter]:
        """Return all objects that the module may have as this parameter."""
        return [self.shard, self.parameter._unsharded_param] if self._was_unsharded() else [self.shard]  # noqa: SLF001 - see the class.


def find_sharded(networks: Iterable[nn.Module]) -> dict[int, ShardedParameter]:
    """Return the sharded parameters by the ids of the objects that the modules may have as these parameters."""
    groups = [group for state in find_states(networks) for group in state._fsdp_param_groups]  # noqa: SLF001 - see ShardedParameter.
    sharded = [ShardedParameter(parameter, group) for group in groups for parameter in group.fsdp_params]
    return {id(stand_in): each for each in sharded for stand_in in each.stand_ins()}


def unshard_once(networks: Iterable[nn.Module]) -> None:
    """Unshard each unit of the networks and shard it again, so that torch allocates the unreduced gradients.

    All ranks must call this. Networks that are not sharded stay as they are.
    """
    for state in find_states(networks):
        for module in state._modules:  # noqa: SLF001 - see ShardedParameter.
            module.unshard()
            module.reshard()
