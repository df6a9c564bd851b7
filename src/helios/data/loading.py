"""Making data loaders that a trainer can resume at any batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from helios.core import rng
from helios.core.distributed import get_dist_info, is_dist_active
from helios.core.registry import Registry
from helios.data.fetching import CollateFn, refuse_stop_iteration
from helios.data.keyed_loader import make_keyed_loader
from helios.data.params import DataLoaderParams
from helios.data.samplers import (
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
)
from helios.data.streaming import StreamedBatches, pass_on
from helios.data.workers import begin_worker, make_worker_generator
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.data import Dataset as TorchDataset

AnyDataset: TypeAlias = "TorchDataset[Any]"

COLLATE_FN_REGISTRY: Final = Registry[Any]("collate function")
"""Collate functions, and classes and functions that make one; torch's `default_collate` is registered."""

COLLATE_FN_REGISTRY.register(default_collate)


def create_collate_fn(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Return a collate function by name.

    What is registered under the name is called with the arguments, and makes the collate function. A function that
    cannot be called without arguments, such as torch's `default_collate`, which needs the samples, is itself the
    collate function, and is returned if there are no arguments.

    Args:
        type_name: the name in `COLLATE_FN_REGISTRY`.
        *args: passed on.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is no such name; the message lists the registered ones.
    """
    registered = COLLATE_FN_REGISTRY.get(type_name)
    if not args and not kwargs and inspect.isfunction(registered) and _needs_arguments(registered):
        return registered
    return registered(*args, **kwargs)


def _needs_arguments(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    return False


def create_dataloader(
    dataset: AnyDataset,
    random_seed: int | None = None,
    batch_size: int = 1,
    shuffle: bool = False,
    num_workers: int = 0,
    pin_memory: bool | None = None,
    drop_last: bool = False,
    debug_mode: bool = False,
    is_distributed: bool | None = None,
    sampler: ResumableSampler | None = None,
    collate_fn: CollateFn | None = None,
    persistent_workers: bool = False,
    timeout: float = 0,
) -> tuple[DataLoader[Any], ResumableSampler | None]:
    """Make a data loader that a trainer can resume at any batch.

    Args:
        dataset: a map-style dataset with a length, or an `IterableDataset`.
        random_seed: the seed of the order and of the draws, in [0, 2**63); the default seed if it is `None`. See
            `DataLoaderParams` for this and the other arguments.
        batch_size: samples per batch and rank.
        shuffle: whether each epoch has a different, random order.
        num_workers: processes that fetch samples.
        pin_memory: copy batches into page-locked memory.
        drop_last: leave out a short last batch.
        debug_mode: fetch in this process.
        is_distributed: divide the samples among the ranks.
        sampler: the order of samples.
        collate_fn: makes a batch of a list of samples.
        persistent_workers: keep the worker processes from epoch to epoch.
        timeout: seconds to wait for a batch from the workers; 0 for no limit.

    Returns:
        The loader, and the sampler that decides its order; the sampler is `None` for an `IterableDataset`, which
        decides its order itself.

    Raises:
        ConfigurationError: if a value is out of range, two contradict each other, or the dataset is empty.
        ArgumentTypeError: if an argument has the wrong type.
    """
    arguments = dict(locals())
    del arguments["dataset"]
    return make_loader(dataset, DataLoaderParams(**arguments), rng.get_default_seed())


def make_loader(
    dataset: AnyDataset,
    params: DataLoaderParams,
    default_seed: int,
    *,
    training: bool = True,
    device: torch.device | None = None,
) -> tuple[DataLoader[Any], ResumableSampler | None]:
    """Make the loader of a dataset; see `create_dataloader`.

    Args:
        dataset: the dataset.
        params: how to load it.
        default_seed: the seed if `params` has none.
        training: whether ranks may repeat samples so that all have the same number of batches.
        device: the device of the run; `None` outside of a run.

    Raises:
        ConfigurationError: if a parameter is out of range, two contradict each other, or the dataset is empty.
        ArgumentTypeError: if a parameter has the wrong type, or the dataset cannot be loaded.
    """
    params.check()
    seed = default_seed if params.random_seed is None else params.random_seed
    workers = 0 if params.debug_mode else params.num_workers
    options: dict[str, Any] = {
        "num_workers": workers,
        "timeout": params.timeout if workers > 0 else 0,
        "pin_memory": _should_pin(dataset, device) if params.pin_memory is None else params.pin_memory,
        "persistent_workers": params.persistent_workers and workers > 0,
    }
    if isinstance(dataset, IterableDataset):
        return _make_stream_loader(dataset, params, seed, options), None
    size = _size_of(dataset)
    sampler = params.sampler or _choose_sampler(dataset, params, seed, training=training)
    if params.drop_last and len(sampler) < params.batch_size:
        raise ConfigurationError(
            f"drop_last=True leaves no batch: batch_size is {params.batch_size} and an epoch has {len(sampler)} of "
            f"{size} samples on this rank; lower batch_size or keep the last batch"
        )
    loader = make_keyed_loader(
        dataset,
        sampler,
        seed,
        batch_size=params.batch_size,
        drop_last=params.drop_last,
        collate_fn=params.collate_fn,
        **options,
    )
    return loader, sampler


def _make_stream_loader(
    dataset: IterableDataset[Any], params: DataLoaderParams, seed: int, options: dict[str, Any]
) -> DataLoader[Any]:
    if params.shuffle or params.sampler is not None:
        name = "shuffle=True" if params.shuffle else "a sampler"
        raise ConfigurationError(
            f"{name} cannot be used with an IterableDataset, which has its own order: shuffle in the dataset"
        )
    rank = get_dist_info().rank if is_dist_active() else 0
    collate_fn = params.collate_fn or default_collate
    return DataLoader(
        StreamedBatches(dataset, params.batch_size, collate_fn, seed, params.drop_last, rank),
        batch_size=None,  # The stream yields whole batches, which are collated already.
        collate_fn=pass_on,
        worker_init_fn=functools.partial(begin_worker, get_dist_info(), None),
        generator=make_worker_generator(seed),
        **options,
    )


def _should_pin(dataset: object, device: torch.device | None) -> bool:
    # In a run on the CPU, pinning would have no use, and would initialise CUDA.
    is_on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    tensors = dataset.tensors if isinstance(dataset, TensorDataset) else ()
    return is_on_gpu and all(tensor.device.type == "cpu" for tensor in tensors)  # torch pins CPU tensors only.


def _size_of(dataset: object) -> int:
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise ArgumentTypeError(
            f"{type(dataset).__name__} cannot be loaded: pass a dataset with __len__ and __getitem__, or an "
            "IterableDataset"
        )
    try:
        size = len(dataset)
    except StopIteration as error:
        raise refuse_stop_iteration(f"{type(dataset).__name__}.__len__ raised StopIteration") from error
    if size == 0:
        raise ConfigurationError(f"{type(dataset).__name__} has 0 samples: a dataset must have at least one")
    return size


def _choose_sampler(dataset: Any, params: DataLoaderParams, seed: int, *, training: bool) -> ResumableSampler:
    if is_dist_active() if params.is_distributed is None else params.is_distributed:
        info = get_dist_info()
        return ResumableDistributedSampler(
            dataset,
            info.world_size,
            info.rank,
            shuffle=params.shuffle,
            seed=seed,
            drop_last=params.drop_last,
            pad=training,
        )
    return ResumableRandomSampler(dataset, seed=seed) if params.shuffle else ResumableSequentialSampler(dataset)
