"""Data loaders of torch's own, made so that a resume finds the draws of their samples again."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler, DataLoader, default_collate

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.data.fetching import KeyedBatchSampler, choose_fetcher, draws_nothing
from helios.data.workers import begin_worker, make_worker_generator, worker_seeds_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios.core.distributed import DistributedInfo
    from helios.data.samplers import ResumableSampler


def adopt_loader(loader: DataLoader[Any], sampler: ResumableSampler, seed: int) -> DataLoader[Any]:
    """Return a loader of the same batches as torch's own, that keys the generators as `create_dataloader`'s does.

    One of a class derived from `DataLoader`, or with a batch sampler of one's own, is returned as it is, with a warning
    that its samples' draws are not exact under a resume.

    Args:
        loader: the loader.
        sampler: the sampler that decides its order.
        seed: the seed of the draws.
    """
    inner: Any = loader.batch_sampler
    if isinstance(inner, KeyedBatchSampler):
        return loader
    if type(loader) is not DataLoader or type(inner) is not BatchSampler:
        if not draws_nothing(loader.dataset):
            get_root_logger().warning(
                "random numbers that %s draws for a sample are not keyed, because the loader is a %s with a %s: if it "
                "draws any, a resume is not exact. Make the loader with create_dataloader; a class of datasets that "
                "draws none says so with draws_nothing = True",
                *(type(part).__name__ for part in (loader.dataset, loader, inner)),
            )
        return loader
    collate_fn = None if loader.collate_fn is default_collate else loader.collate_fn
    fetcher, collate = choose_fetcher(loader.dataset, collate_fn, seed)
    batches = KeyedBatchSampler(
        sampler,
        inner.batch_size,
        drop_last=inner.drop_last,
        worker_seeds=worker_seeds_of(seed, sampler),
        seed=seed,
    )
    return DataLoader(
        fetcher,
        batch_sampler=batches,  # type: ignore[arg-type]  # Fetch
        num_workers=loader.num_workers,
        collate_fn=collate,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=functools.partial(_begin_worker, get_dist_info(), loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
        generator=make_worker_generator(seed),
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )


def _begin_worker(info: DistributedInfo, init: Callable[[int], None] | None, worker_id: int) -> None:
    begin_worker(info, worker_id)
    if init is not None:
        init(worker_id)
