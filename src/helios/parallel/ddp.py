"""Networks wrapped in DDP: bucket order, buffer broadcasts and unused parameters."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helios.checkpoint.state.parts import bare_name, find_wrappers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

_COMMUTING: Final = 2  # Up to so many ranks, a sum has the same bits in whichever order it is computed.


def wrap_ddp(network: nn.Module, device: torch.device, options: Mapping[str, Any]) -> nn.Module:
    """Return a network wrapped in DDP; one without trainable parameters is returned as it is, as DDP refuses it.

    Args:
        network: the network, on the device.
        device: the device of this rank.
        options: further arguments of `DistributedDataParallel`.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    wrapped = DistributedDataParallel(network, device_ids=None if device.index is None else [device.index], **options)
    _settle_buckets(wrapped)
    return wrapped


def _settle_buckets(network: DistributedDataParallel) -> None:
    """Make DDP assign gradients to their final buckets now, by a first backward pass with gradients of zero.

    DDP reduces gradients in buckets, and rebuilds the buckets after the first backward pass, in the order in which the
    gradients became ready. With more than two ranks, the position of an element in its bucket decides in which order
    the ranks' values are added, and therefore the rounding. Without this pass, the first step of a resumed process
    would round differently from the same step of an uninterrupted run. Here, gradients become ready in the reverse
    order of the parameters, which is close to their order in training.

    `prepare_for_backward` of the reducer is what DDP's forward calls before a backward pass:
    https://github.com/pytorch/pytorch/blob/main/torch/nn/parallel/distributed.py (`_pre_forward`).
    """
    # With `find_unused_parameters`, buckets are not rebuilt. With `static_graph`, DDP records the graph in its first
    # pass, which must be a real one: then more than two ranks resume to results that are equal up to rounding only.
    # With `mixed_precision`, the forward pass makes the low-precision copies that gradients are computed for. DDP has
    # no reducer if all parameters are in `delay_all_reduce_named_params`.
    is_unsupported = network.find_unused_parameters or network.static_graph or network.mixed_precision is not None
    if is_unsupported or not hasattr(network, "reducer") or network.process_group.size() <= _COMMUTING:
        return
    sparse = {id(module.weight) for module in network.modules() if getattr(module, "sparse", False)}
    parameters = [parameter for parameter in network.module.parameters() if parameter.requires_grad]
    sums = [_use(parameter, is_sparse=id(parameter) in sparse) for parameter in parameters]
    network.reducer.prepare_for_backward([])
    torch.autograd.backward(sums, [torch.zeros_like(total) for total in sums])
    network.zero_grad(set_to_none=True)


def _use(parameter: torch.Tensor, *, is_sparse: bool) -> torch.Tensor:
    """Return a scalar that depends on the parameter; the gradient is sparse if DDP expects a sparse one."""
    if not is_sparse:
        return parameter.sum()
    first_row = torch.zeros(1, dtype=torch.int64, device=parameter.device)
    return nn.functional.embedding(first_row, parameter, sparse=True).sum()


def get_buffer_sync_flags(networks: Mapping[str, nn.Module]) -> dict[str, bool]:
    """Return, per DDP network, whether its next forward pass broadcasts the buffers of rank 0.

    It does not after a pass under `no_sync` or without gradients. A resumed run needs the flag.

    Args:
        networks: the networks by name; those without DDP are left out.
    """
    return {name: bool(network.require_forward_param_sync) for name, network in _find_ddp(networks)}


def restore_buffer_sync_flags(networks: Mapping[str, nn.Module], flags: Mapping[str, bool]) -> None:
    """Restore what `get_buffer_sync_flags` returned; a DDP network without a flag broadcasts its buffers."""
    for name, network in _find_ddp(networks):
        network.require_forward_param_sync = flags.get(name, True)


def mark_used(
    networks: Mapping[str, nn.Module], in_flight: Iterable[torch.Tensor], unreduced: Iterable[torch.Tensor]
) -> None:
    """Make the next all-reduce of DDP include these parameters, even if no backward pass uses them until then.

    With `find_unused_parameters`, DDP reduces only the parameters that a rank has used since the last all-reduce, and
    leaves the gradients of the others as they are on each rank. It records their use in a private map, under `no_sync`
    as well, and only a backward pass sets it. So a backward pass with gradients of zero is made here. The caller sets
    the gradients of the parameters afterwards.

    Args:
        networks: the networks by name; those without such a map are left alone.
        in_flight: the parameters that have gradients. After a pass that has reduced them, these are equal on all
            ranks, and are not marked: reducing them again would only round them.
        unreduced: the parameters whose gradient each rank has for itself, whatever the last pass was.
    """
    ids_in_flight, ids_unreduced = {id(each) for each in in_flight}, {id(each) for each in unreduced}
    for _, network in _find_ddp(networks):
        wanted = ids_unreduced if network.require_forward_param_sync else ids_in_flight
        if network.find_unused_parameters:
            used = [each for each in network.parameters() if each.requires_grad and id(each) in wanted]
            sums = [parameter.sum() for parameter in used]
            torch.autograd.backward(sums, [torch.zeros_like(total) for total in sums])


def _find_ddp(networks: Mapping[str, nn.Module]) -> list[tuple[str, DistributedDataParallel]]:
    """Return the DDP modules in and around the networks, compiled or not, by their names without wrappers."""
    found: dict[int, tuple[str, DistributedDataParallel]] = {}
    for name, network in networks.items():
        wrappers = find_wrappers(network)
        for path, module in network.named_modules():
            if isinstance(module, DistributedDataParallel):
                bare_path = bare_name(path, wrappers)
                found.setdefault(id(module), (f"{name}.{bare_path}" if bare_path else name, module))
    return list(found.values())


@contextlib.contextmanager
def local_forward(networks: Collection[nn.Module]) -> Iterator[None]:
    """Let forward passes of DDP run without collectives; buffers are broadcast once, on entry.

    Args:
        networks: any networks; those without DDP are left alone.
    """
    with contextlib.ExitStack() as stack:
        for _, network in _find_ddp({str(n): network for n, network in enumerate(networks)}):
            stack.enter_context(_broadcast_buffers_once(network))
        yield


@contextlib.contextmanager
def _broadcast_buffers_once(network: DistributedDataParallel) -> Iterator[None]:
    """Broadcast the buffers of rank 0 now, and not before each forward pass.

    `will_sync_module_buffers` and `_sync_buffers` are what DDP's forward calls:
    https://github.com/pytorch/pytorch/blob/main/torch/nn/parallel/distributed.py (`_pre_forward`).
    """
    needs_sync = network.require_forward_param_sync
    network.require_forward_param_sync = True  # In an accumulation under `no_sync` too, where forward would not.
    if network.will_sync_module_buffers():  # type: ignore[no-untyped-call]  # torch has not annotated it.
        network._sync_buffers()  # type: ignore[no-untyped-call]  # noqa: SLF001 - see above; there is no public method.
    network.require_forward_param_sync = False
    try:
        yield
    finally:
        network.require_forward_param_sync = needs_sync
