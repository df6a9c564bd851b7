"""Data loaders of map-style datasets in which every random draw of a sample is repeated by a resumed run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler, DataLoader, default_collate

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.data.fetching import CollateFn, KeyedBatchSampler, choose_fetcher, draws_nothing
from helios.data.workers import begin_worker, make_worker_generator, worker_seeds_of
from helios.errors import ArgumentTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios.data.samplers import ResumableSampler


def make_keyed_loader(
    dataset: Any,
    sampler: ResumableSampler,
    seed: int,
    *,
    batch_size: int,
    drop_last: bool,
    collate_fn: CollateFn | None = None,
    worker_init_fn: Callable[[int], None] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """Return a loader that keys the generators before each sample and each call of the collate function.

    Args:
        dataset: a map-style dataset.
        sampler: the sampler that decides the order.
        seed: the seed of the draws.
        batch_size: samples per batch and rank.
        drop_last: leave out a short last batch.
        collate_fn: makes a batch of a list of samples; `None` for torch's `default_collate`.
        worker_init_fn: the user's function for each worker process; it runs after the worker's generators are keyed.
        **options: further arguments of `DataLoader`.
    """
    sampler.seed_draws(seed)
    fetcher, collate = choose_fetcher(dataset, collate_fn, seed)
    worker_seeds = worker_seeds_of(seed, sampler)
    batches = KeyedBatchSampler(sampler, batch_size, drop_last=drop_last, worker_seeds=worker_seeds, seed=seed)
    return DataLoader(
        fetcher,
        batch_sampler=batches,  # type: ignore[arg-type]  # It yields Fetch instead of a list of indices.
        collate_fn=collate,
        worker_init_fn=functools.partial(begin_worker, get_dist_info(), worker_init_fn),
        generator=make_worker_generator(seed),
        **options,
    )


def adopt_loader(loader: DataLoader[Any], sampler: ResumableSampler, seed: int) -> DataLoader[Any]:
    """Return a keyed loader of the same batches as a `DataLoader` that a user has made.

    A subclass of `DataLoader`, and a loader with the user's own batch sampler, are returned unchanged, with a warning
    that the draws of samples are not exact under a resume.

    Args:
        loader: the loader.
        sampler: the sampler that decides its order.
        seed: the seed of the draws.

    Raises:
        ArgumentTypeError: if seeking the sampler would not move such an unchanged loader, as it defines `__iter__`.
    """
    batches: Any = loader.batch_sampler
    if isinstance(batches, KeyedBatchSampler):
        return loader
    if type(loader) is not DataLoader or type(batches) is not BatchSampler:
        if sampler.is_iterated:
            raise ArgumentTypeError(
                f"the order of {type(sampler).__name__}, which defines __iter__, cannot be sought through a "
                f"{type(loader).__name__} with a {type(batches).__name__}: make the loader with create_dataloader, or "
                "define indices(epoch, position) instead"
            )
        if not draws_nothing(loader.dataset):
            get_root_logger().warning(
                "random numbers that %s draws for a sample are not keyed, because the loader is a %s with a %s: if it "
                "draws any, a resume is not exact. Make the loader with create_dataloader, or, if the dataset draws "
                "none, set draws_nothing = True in its class",
                *(type(part).__name__ for part in (loader.dataset, loader, batches)),
            )
        return loader
    return make_keyed_loader(
        loader.dataset,
        sampler,
        seed,
        batch_size=batches.batch_size,
        drop_last=batches.drop_last,
        collate_fn=None if loader.collate_fn is default_collate else loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )
