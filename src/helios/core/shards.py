"""Networks of which every rank holds a part, by `fully_shard` (FSDP2), and the states that they take.

Nothing here imports what it does not need: whoever has no sharded tensor never loads the packages that make them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from helios.core.distributed import is_dist_active
from helios.core.shard_tree import is_sharded, map_tree, may_be_sharded
from helios.errors import CheckpointMismatchError, ConfigurationError, NotRunningError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Mesh: TypeAlias = "DeviceMesh"
NetworkT = TypeVar("NetworkT", bound=nn.Module)


def make_mesh(device_type: str) -> DeviceMesh:
    """Return the mesh of all ranks, of one dimension.

    Args:
        device_type: where the ranks hold their parts, "cuda" or "cpu".

    Raises:
        NotRunningError: if there is no process group.
    """
    if not is_dist_active():
        raise NotRunningError(
            "a mesh is made of the ranks of a process group, and there is none: call init_dist() first"
        )
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - see the module's docstring.

    return init_device_mesh(device_type, (dist.get_world_size(),), mesh_dim_names=("ranks",))


def shard_network(network: NetworkT, mesh: DeviceMesh, units: Iterable[nn.Module] = (), **options: Any) -> NetworkT:
    """Shard a network over the ranks, in place, before its optimizer is made.

    The parameters become `DTensor`s, cut along dimension 0. They are brought together unit by unit: a unit is what is
    whole on every rank at once.

    Args:
        network: the network. Every rank keeps its own part of the values it has: they must be alike.
        mesh: the ranks, as `make_mesh` returns them.
        units: parts of the network that are units of their own, such as its blocks; the rest of it is one more.
        options: passed on to `torch.distributed.fsdp.fully_shard`: `mp_policy`, `reshard_after_forward`,
            `offload_policy`, ...

    Returns:
        The same network, whose class `fully_shard` has changed.

    Raises:
        ConfigurationError: if a unit is not a part of the network.
    """
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415 - see the module's docstring.

    wanted = {id(unit): unit for unit in units}
    # From the inside out: a unit leaves to the one around it what is not a unit's yet.
    parts = [part for part in reversed(list(network.modules())) if id(part) in wanted and part is not network]
    for unit in wanted.values():
        if unit is not network and all(unit is not part for part in parts):
            raise ConfigurationError(
                f"the unit {type(unit).__name__} is no part of the {type(network).__name__}: a unit must be one of "
                "network.modules(); take it from the network that is sharded, not from a copy",
            )
    modules: list[nn.Module] = [*parts, network]
    for module in modules:
        fully_shard(module, mesh=mesh, **options)
    return network


# ---------------------------------------------------------------------------------------------- whole on every rank


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


# -------------------------------------------------------------------------------------------------------------- states


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
