"""Choosing the source for the data of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

from helios.core import rng
from helios.data.description import describe_loader
from helios.data.keyed_loader import adopt_loader
from helios.data.samplers import ResumableSampler
from helios.data.sources.sampler_source import SamplerSource
from helios.data.sources.sequence_source import SequenceSource
from helios.data.sources.stream_source import StreamSource
from helios.data.streaming import StreamedBatches
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from helios.data.sources.batch_source import BatchSource


def make_source(loader: object, sampler: object, phase: str = "training", seed: int | None = None) -> BatchSource:
    """Return the source for what a data module's `*_dataloader` method returned.

    Args:
        loader: a data loader, or a sequence of batches.
        sampler: the sampler that decides the loader's order; `None` for a sequence or an iterable dataset.
        phase: the phase of the run, for messages.
        seed: the seed of the draws in a sequence, or in a loader that `create_dataloader` did not make; the default
            seed if it is `None`.

    Raises:
        ArgumentTypeError: if the loader cannot be resumed.
        ConfigurationError: if it has no batch.
    """
    seed = rng.get_default_seed() if seed is None else seed
    if isinstance(loader, Sequence):
        source: BatchSource = SequenceSource(loader, seed)
    elif not isinstance(loader, DataLoader):
        raise ArgumentTypeError(
            f"{loader!r} is no data loader: return what create_dataloader returns, or a list of batches"
        )
    elif isinstance(loader.dataset, StreamedBatches):
        source = StreamSource(loader, loader.dataset, phase)
    elif isinstance(sampler, ResumableSampler):
        SamplerSource(loader, sampler, phase)  # Raises for a loader that cannot be resumed, before it is rebuilt.
        loader = adopt_loader(loader, sampler, seed)
        source = SamplerSource(loader, sampler, phase)
    else:
        raise ArgumentTypeError(
            f"the order of a data loader with the sampler {sampler!r} cannot be resumed: make it with "
            "create_dataloader, or pass it a ResumableSampler and return that one beside it"
        )
    if source.batches_per_epoch() == 0:
        raise ConfigurationError("the data loader has 0 batches: training needs at least one in every epoch")
    source.description = describe_loader(loader, sampler if isinstance(sampler, ResumableSampler) else None)
    return source
