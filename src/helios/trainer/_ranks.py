"""What the ranks of a run do side by side, beyond what the model's own step exchanges."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import torch

from helios.core.distributed import all_reduce_tensors
from helios.errors import ConfigurationError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helios.core.control import Control
    from helios.data.feed import BatchFeed
    from helios.model.model import Model


def check_lengths(feed: BatchFeed, control: Control) -> None:
    """Check that all ranks train on equally many batches an epoch.

    Raises:
        ConfigurationError: if not: the rank with most would wait for the others for ever.
    """
    lengths = control.gather(feed.batches_per_epoch())
    if len(set(lengths)) > 1:
        raise ConfigurationError(
            f"an epoch has {', '.join(map(str, lengths))} batches on ranks 0 to {control.world_size - 1}: each must "
            "train on equally many; leave the sampler to create_dataloader, or use a ResumableDistributedSampler that "
            "pads or drops the rest"
        )


def in_step(batches: Iterator[Any], control: Control) -> Iterator[Any]:
    """Yield batches as long as every rank has one; what single ranks have left then is read, and not trained on.

    Without it, a rank with a batch more would wait for ever for the others' gradients. The rest is read so that the
    data set is at its end when the next epoch starts.
    """
    nothing = object()
    while True:
        batch = next(batches, nothing)
        (is_over,) = control.vote(batch is nothing)
        if is_over:
            break
        yield batch
    for _ in batches:
        pass


def average_losses(model: Model, control: Control) -> None:
    """Put the mean over all ranks in the place of a model's losses, on the device that they are on.

    The running losses go on from their mean: the sum of means is the mean of sums.

    Raises:
        TrainingError: if the ranks have losses of different names.
    """
    if control.world_size == 1:
        return
    tables = [model._loss_items, model._running_losses]  # noqa: SLF001 - API.md names them.
    names = [sorted(table) for table in tables]
    signature = zlib.crc32(repr(names).encode())
    last, first = control.vote(signature, -signature)
    if last != -first:
        raise TrainingError(
            f"rank {control.rank} has the losses {names[0]}, and others have not the same: when losses are logged, all "
            "ranks must have put those of the same names into _loss_items"
        )
    losses = [(table, name) for table, ordered in zip(tables, names, strict=True) for name in ordered]
    if not losses:
        return
    values = [torch.as_tensor(table[name]).detach() for table, name in losses]
    total = all_reduce_tensors(torch.cat([value.reshape(-1).float() for value in values])) / control.world_size
    means = torch.split(total, [value.numel() for value in values])
    for (table, name), value, mean in zip(losses, values, means, strict=True):
        table[name] = mean.reshape(value.shape).to(value.dtype if value.is_floating_point() else mean.dtype)
