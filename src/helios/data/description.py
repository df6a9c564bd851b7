"""The properties of the data that decide which samples a run sees, in which order and batches.

They are saved in a checkpoint's passport, the values that are compared when a run is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helios.data.fetching import KeyedBatchSampler
from helios.data.streaming import StreamedBatches

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from helios.data.samplers import ResumableSampler


def describe_loader(loader: Sequence[Any] | DataLoader[Any], sampler: ResumableSampler | None) -> dict[str, Any]:
    """Return the entries of the passport for one data loader.

    An entry that does not apply is `None`: an iterable dataset has no length, for example.

    Args:
        loader: a data loader, or a sequence of batches.
        sampler: the sampler that decides the loader's order; `None` if there is none.
    """
    described: dict[str, Any] = dict.fromkeys(
        ("length", "batch_size", "order", "drop_last", "seed", "replicas", "workers"), None
    )
    if isinstance(loader, Sequence):
        return {**described, "kind": "list of batches", "length": len(loader)}
    stream, batches = loader.dataset, loader.batch_sampler
    if isinstance(stream, StreamedBatches):
        # Each worker yields its part of the stream, so the number of workers decides the order.
        parts = {name: getattr(stream, name) for name in ("batch_size", "drop_last", "seed")}
        return {**described, "kind": "iterable dataset", "workers": max(1, loader.num_workers), **parts}
    if sampler is not None:
        described.update(length=sampler.size, order=sampler.order_name, replicas=sampler.num_replicas)
    source = batches if isinstance(batches, KeyedBatchSampler) else loader
    described.update(batch_size=source.batch_size, drop_last=source.drop_last, seed=getattr(source, "seed", None))
    return {**described, "kind": "map-style dataset"}
