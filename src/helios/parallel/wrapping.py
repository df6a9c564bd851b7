"""Networks that several ranks train together, and how they keep quiet while they are evaluated."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helios.checkpoint.fsdp import unsharded
from helios.checkpoint.parts import bare_name, find_wrappers
from helios.parallel.sharding import shard_network
from helios.ranks.mesh import make_mesh

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

STRATEGIES: Final = ("ddp", "fsdp")
_COMMUTING: Final = 2  # Ranks whose sum is the same to the bit in whichever order they are added up.


def wrap_network(
    network: nn.Module, device: torch.device, strategy: str, units: Iterable[nn.Module], options: dict[str, Any]
) -> nn.Module:
    """Return a network that all ranks train together; see `Model.wrap`."""
    network = network.to(device)
    if strategy == "fsdp":
        return shard_network(network, make_mesh(device.type), units, **options)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return network  # There is nothing to exchange, and torch refuses to.
    wrapped = DistributedDataParallel(network, device_ids=None if device.index is None else [device.index], **options)
    _settle_buckets(wrapped)
    return wrapped


def _settle_buckets(network: DistributedDataParallel) -> None:
    """Have a network's gradients laid out now as they will be throughout training.

    DDP adds gradients up in buckets, and lays them out anew after its first backward pass, in the order in which they
    came. Where an element lies in a bucket decides in which order more than two ranks are added up, and so how that is
    rounded: the first step of a process would round otherwise than the same step in a run that goes on. So the first
    backward pass is made here, and it is nobody's. The gradients come in the reverse order of the parameters, which is
    about what they will do in training.
    """
    # With `find_unused_parameters` nothing is laid out anew. A static graph is what DDP sees in its first pass, which
    # must be a real one: there, more than two ranks resume to what is equal up to rounding. With `mixed_precision`, it
    # is the forward pass that makes what gradients come to. Parameters that are all delayed have no buckets.
    is_beyond_us = network.find_unused_parameters or network.static_graph or network.mixed_precision is not None
    if is_beyond_us or not hasattr(network, "reducer") or network.process_group.size() <= _COMMUTING:
        return
    sparse = {id(part.weight) for part in network.modules() if getattr(part, "sparse", False)}
    parameters = [parameter for parameter in network.module.parameters() if parameter.requires_grad]
    sums = [_touch(parameter, is_sparse=id(parameter) in sparse) for parameter in parameters]
    network.reducer.prepare_for_backward([])
    torch.autograd.backward(sums, [torch.zeros_like(total) for total in sums])
    network.zero_grad(set_to_none=True)


def _touch(parameter: torch.Tensor, *, is_sparse: bool) -> torch.Tensor:
    """Return something that the parameter has a gradient of, sparse if DDP expects it to be."""
    if not is_sparse:
        return parameter.sum()
    first_row = torch.zeros(1, dtype=torch.int64, device=parameter.device)
    return nn.functional.embedding(first_row, parameter, sparse=True).sum()


def get_buffer_sync_flags(networks: Mapping[str, nn.Module]) -> dict[str, bool]:
    """Return of each network of which every rank has a copy whether its next forward pass takes over rank 0's buffers.

    After a pass under `no_sync` or without gradients it does not: a run that goes on there must know.

    Args:
        networks: the networks by name; those that `wrap_network` has not wrapped are left out.
    """
    return {name: bool(network.require_forward_param_sync) for name, network in _wrapped(networks)}


def restore_buffer_sync_flags(networks: Mapping[str, nn.Module], flags: Mapping[str, bool]) -> None:
    """Restore what `get_buffer_sync_flags` returned, for the networks that are wrapped; one that was not is synced."""
    for name, network in _wrapped(networks):
        network.require_forward_param_sync = flags.get(name, True)


def mark_used(
    networks: Mapping[str, nn.Module], in_flight: Iterable[torch.Tensor], unreduced: Iterable[torch.Tensor]
) -> None:
    """Have networks exchange the gradients of parameters the next time, whether they use them then or not.

    With `find_unused_parameters`, DDP exchanges what any rank has used since the last exchange, and leaves the rest as
    it is on each rank. It notes that in a map of its own, also under `no_sync`, and nobody can set that but a backward
    pass. So one is made here, and it is nobody's: the gradients of the parameters are worth nothing afterwards.

    Args:
        networks: the networks by name; those that need no such map are left alone.
        in_flight: the parameters that have gradients. After a pass that has exchanged them, these are alike on all
            ranks, and are not marked: to exchange them again would only round them.
        unreduced: those of which each rank has a gradient for itself, whatever the last pass was.
    """
    ids_in_flight, ids_unreduced = {id(each) for each in in_flight}, {id(each) for each in unreduced}
    for _, network in _wrapped(networks):
        wanted = ids_unreduced if network.require_forward_param_sync else ids_in_flight
        if network.find_unused_parameters:
            used = [each for each in network.parameters() if each.requires_grad and id(each) in wanted]
            sums = [parameter.sum() for parameter in used]
            torch.autograd.backward(sums, [torch.zeros_like(total) for total in sums])


def _wrapped(networks: Mapping[str, nn.Module]) -> list[tuple[str, DistributedDataParallel]]:
    """Return what DDP has wrapped in networks or around them, compiled or not, by the name it has without wrappers."""
    found: dict[int, tuple[str, DistributedDataParallel]] = {}
    for name, network in networks.items():
        wrappers = find_wrappers(network)
        for path, module in network.named_modules():
            if isinstance(module, DistributedDataParallel):
                bare_path = bare_name(path, wrappers)
                found.setdefault(id(module), (f"{name}.{bare_path}" if bare_path else name, module))
    return list(found.values())


@contextlib.contextmanager
def local_forward(networks: Collection[nn.Module], *, is_uneven: bool) -> Iterator[None]:
    """Let forward passes exchange nothing while the context lasts, so that ranks may make different numbers of them.

    Args:
        networks: as `wrap_network` has returned them; those it has not are left alone.
        is_uneven: whether the ranks do make different numbers. Only then is a network that is spread over them put
            together on each, which takes memory.
    """
    with contextlib.ExitStack() as stack:
        for _, network in _wrapped({str(n): network for n, network in enumerate(networks)}):
            stack.enter_context(_with_buffers_of_first(network))
        if is_uneven:
            stack.enter_context(unsharded(networks))
        yield


@contextlib.contextmanager
def _with_buffers_of_first(network: DistributedDataParallel) -> Iterator[None]:
    """Take over rank 0's buffers once, in place of before every forward pass."""
    needs_sync = network.require_forward_param_sync
    network.require_forward_param_sync = True  # Also in the middle of an accumulation, where a forward pass would not.
    if network.will_sync_module_buffers():  # type: ignore[no-untyped-call]  # torch has not annotated it.
        network._sync_buffers()  # type: ignore[no-untyped-call]  # noqa: SLF001 - what its forward does; not public.
    network.require_forward_param_sync = False
    try:
        yield
    finally:
        network.require_forward_param_sync = needs_sync
