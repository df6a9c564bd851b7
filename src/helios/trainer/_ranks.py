"""Collectives of the training loop: equal numbers of batches on all ranks, and averaged losses."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from helios.core.distributed import all_reduce_tensors
from helios.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helios.data.sources import BatchSource
    from helios.model.model import Model
    from helios.ranks.host_group import HostGroup


def check_lengths(source: BatchSource, host_group: HostGroup) -> None:
    """Check that all ranks have the same number of batches per epoch.

    Raises:
        ConfigurationError: if not: the rank with the most batches would wait for the others forever.
    """
    lengths = host_group.all_gather_object(source.batches_per_epoch())
    if len(set(lengths)) > 1:
        raise ConfigurationError(
            f"an epoch has {', '.join(map(str, lengths))} batches on ranks 0 to {host_group.world_size - 1}: each must "
            "train on equally many; leave the sampler to create_dataloader, or use a ResumableDistributedSampler that "
            "pads or drops the rest"
        )


def in_step(batches: Iterator[Any], host_group: HostGroup) -> Iterator[Any]:
    """Yield batches as long as every rank has one; the remaining batches of a rank are read, but not trained on.

    Otherwise, a rank with more batches would wait forever for the gradients of the others. The remaining batches are
    read so that the dataset is at its end when the next epoch starts.
    """
    nothing = object()
    while True:
        batch = next(batches, nothing)
        (is_over,) = host_group.all_reduce_max(batch is nothing)
        if is_over:
            break
        yield batch
    for _ in batches:
        pass


def average_losses(model: Model, host_group: HostGroup) -> None:
    """Replace a model's losses by their means over all ranks, on the same device.

    The running losses continue from their mean: the sum of means is the mean of sums. Losses on a GPU are reduced
    there, without a synchronization with the host; losses on the CPU are reduced over the hosts. If one rank has a loss
    on the CPU and another one on its GPU, all losses are reduced over the hosts.

    Raises:
        TrainingError: if the ranks have losses of different names or shapes.
    """
    if host_group.world_size == 1:
        return
    tables = [model._loss_items, model._running_losses]  # noqa: SLF001 - subclasses use them.
    losses = [(table, name, torch.as_tensor(table[name]).detach()) for table in tables for name in sorted(table)]
    described = [
        f"{'running ' * (table is tables[1])}{name!r} of shape {tuple(value.shape)}"
        f"{' in double precision' * (value.dtype == torch.float64)}"
        for table, name, value in losses
    ]
    signature = zlib.crc32(repr(described).encode())
    # The index of the GPU differs between ranks, so only device types, and which losses share a device, are compared.
    devices = list(dict.fromkeys(value.device for _, _, value in losses))
    pattern = [(devices.index(value.device), value.device.type) for _, _, value in losses]
    places = zlib.crc32(repr(pattern).encode())
    last, first, last_places, first_places = host_group.all_reduce_max(signature, -signature, places, -places)
    if last != -first:
        _refuse(described, host_group)
    over_hosts = last_places != -first_places
    groups: dict[torch.device, list[tuple[dict[str, Any], str, torch.Tensor]]] = {}
    for loss in losses:  # In the order of their names, which is the same on all ranks.
        groups.setdefault(torch.device("cpu") if over_hosts else loss[2].device, []).append(loss)
    for place, members in groups.items():
        means = _average_on(place, [value for _, _, value in members], host_group)
        for (table, name, value), mean in zip(members, means, strict=True):
            dtype = value.dtype if value.is_floating_point() else torch.float32
            table[name] = mean.reshape(value.shape).to(value.device, dtype)


def _average_on(place: torch.device, values: list[torch.Tensor], host_group: HostGroup) -> tuple[torch.Tensor, ...]:
    """Return the means over the ranks of some tensors, flattened and on one device, with one collective."""
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in values) else torch.float32
    flat = torch.cat([value.reshape(-1).to(place, dtype) for value in values])
    total = host_group.all_reduce_sum(flat) if place.type == "cpu" else all_reduce_tensors(flat)
    return torch.split(total / host_group.world_size, [value.numel() for value in values])


def _refuse(described: list[str], host_group: HostGroup) -> NoReturn:
    """Raise the error about the differences between this rank's losses and those of another rank."""
    everybody = host_group.all_gather_object(described)
    other, theirs = next((rank, theirs) for rank, theirs in enumerate(everybody) if theirs != described)
    raise TrainingError(
        f"rank {host_group.rank} has {_list_without(described, theirs)} among its losses where rank {other} has "
        f"{_list_without(theirs, described)}: when losses are logged, all ranks must have put those of the same names "
        "and shapes into _loss_items"
    )


def _list_without(entries: list[str], known: list[str]) -> str:
    return ", ".join(entry for entry in entries if entry not in known) or "nothing"
