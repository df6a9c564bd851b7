"""Data loaders whose samples do not depend on who fetches them, or when."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from helios.core import rng
from helios.core.distributed import get_dist_info, is_dist_active
from helios.core.registry import Registry
from helios.data.fetching import CollateFn, KeyedBatchSampler, choose_fetcher, refuse_stop_iteration
from helios.data.samplers import (
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
)
from helios.data.streaming import StreamedBatches, pass_on
from helios.data.workers import begin_worker, make_worker_generator, worker_seeds_of
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from torch.utils.data import Dataset as TorchDataset

AnyDataset: TypeAlias = "TorchDataset[Any]"

COLLATE_FN_REGISTRY: Final = Registry[Any]("collate function")


def create_collate_fn(type_name: str, *args: Any, **kwargs: Any) -> Any:
    """Make a registered collate function: the object of this name, called with the arguments.

    Args:
        type_name: the name in `COLLATE_FN_REGISTRY`.
        *args: passed on.
        **kwargs: passed on.

    Raises:
        UnknownNameError: if there is none of this name; the message lists those there are.
    """
    return COLLATE_FN_REGISTRY.create(type_name, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class DataLoaderParams:
    """How a data set is loaded.

    Attributes:
        random_seed: the seed of the order and of the draws in the data set; that of the trainer if it is `None`.
        batch_size: samples per batch and rank.
        shuffle: whether every epoch has an order of its own.
        num_workers: processes that fetch samples; 0 to fetch in the training process.
        pin_memory: copy batches into page-locked memory; `None` for where they are copied to a GPU: in a run on one,
            or outside of any where CUDA is available, unless the dataset is known to be on a device already.
        drop_last: leave out the last batch of an epoch if it is short.
        is_distributed: share the samples out over the ranks; `None` for whenever there is a process group.
        sampler: the order of samples in place of the one that `shuffle` and `is_distributed` choose.
        collate_fn: makes a batch of a list of samples; torch's `default_collate` if it is `None`.
        debug_mode: fetch in the training process whatever `num_workers` says, so that a debugger can follow.
        persistent_workers: keep the worker processes from epoch to epoch.
        timeout: how many seconds to wait for a batch from the workers; 0 for no limit.
    """

    random_seed: int | None = None
    batch_size: int = 1
    shuffle: bool = False
    num_workers: int = 0
    pin_memory: bool | None = None
    drop_last: bool = False
    is_distributed: bool | None = None
    sampler: ResumableSampler | None = None
    collate_fn: CollateFn | None = None
    debug_mode: bool = False
    persistent_workers: bool = False
    timeout: float = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ConfigurationError: if a value is out of range, or two contradict each other.
            ArgumentTypeError: if a value has the wrong type.
        """
        if self.random_seed is not None:
            rng.check_seed(self.random_seed)
        _check_count("batch_size", self.batch_size, least=1)
        _check_count("num_workers", self.num_workers, least=0)
        for name in ("shuffle", "drop_last", "debug_mode", "persistent_workers"):
            _check_flag(name, getattr(self, name))
        for name in ("pin_memory", "is_distributed"):
            if getattr(self, name) is not None:
                _check_flag(name, getattr(self, name))
        if self.sampler is not None and not isinstance(self.sampler, ResumableSampler):
            raise ArgumentTypeError(
                f"sampler {type(self.sampler).__name__} cannot be resumed: derive it from ResumableSampler, whose "
                f"order is "
                "a function of the epoch and the position",
            )
        if self.sampler is not None and self.shuffle:
            raise ConfigurationError("shuffle=True and a sampler contradict each other: leave the order to one of them")
        if self.collate_fn is not None and not callable(self.collate_fn):
            raise ArgumentTypeError(
                f"collate_fn {self.collate_fn!r} cannot be called: pass a function of a list of samples"
            )
        if self.persistent_workers and self.num_workers == 0:
            raise ConfigurationError("persistent_workers=True needs workers: set num_workers to 1 or more")
        _check_timeout(self.timeout, self.num_workers)

    @classmethod
    def from_dict(cls, params: Mapping[str, Any]) -> DataLoaderParams:
        """Return the parameters that a mapping of their names holds.

        Raises:
            ConfigurationError: if it has names that there are not.
            ArgumentTypeError: if it is no mapping.
        """
        if not isinstance(params, Mapping):
            raise ArgumentTypeError(
                f"params is {params!r}, a {type(params).__name__}: pass a dict of parameters by name"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in params if name not in names]
        if unknown:
            raise ConfigurationError(f"data loader parameters {unknown} are unknown: there are {names}")
        return cls(**params)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters by name; `from_dict` takes them back."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _check_count(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} is {value!r}, a {type(value).__name__}: pass an integer of at least {least}")
    if value < least:
        raise ConfigurationError(f"{name} is {value}: pass at least {least}")


def _check_timeout(timeout: object, num_workers: int) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise ArgumentTypeError(f"timeout is {timeout!r}, a {type(timeout).__name__}: pass seconds, or 0 for no limit")
    if not 0 <= timeout < math.inf:
        raise ConfigurationError(f"timeout is {timeout}: pass seconds, or 0 for no limit")
    if timeout > 0 and num_workers == 0:
        raise ConfigurationError(f"timeout={timeout} needs workers, which are waited for: set num_workers to 1 or more")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is {value!r}, a {type(value).__name__}: pass True or False")


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
        dataset: a map-style data set with a length, or an `IterableDataset`.
        random_seed: see `DataLoaderParams`, for this and the others; the default seed if it is `None`.
        batch_size: samples per batch and rank.
        shuffle: whether every epoch has an order of its own.
        num_workers: processes that fetch samples.
        pin_memory: copy batches into page-locked memory.
        drop_last: leave out a short last batch.
        debug_mode: fetch in this process.
        is_distributed: share the samples out over the ranks.
        sampler: the order of samples.
        collate_fn: makes a batch of a list of samples.
        persistent_workers: keep the worker processes from epoch to epoch.
        timeout: seconds to wait for a batch from the workers; 0 for no limit.

    Returns:
        The loader, and the sampler that decides its order; `None` for an `IterableDataset`, which has its own.

    Raises:
        ConfigurationError: if a value is out of range, two contradict each other, or the data set is empty.
        ArgumentTypeError: if something has the wrong type.
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
    """Make the loader of a data set; see `create_dataloader`.

    Args:
        dataset: the data set.
        params: how to load it.
        default_seed: the seed if `params` has none.
        training: whether ranks may repeat samples so that all have the same number of batches.
        device: the device of the run; `None` outside of any.
    """
    seed = default_seed if params.random_seed is None else params.random_seed
    workers = 0 if params.debug_mode else params.num_workers
    common: dict[str, Any] = {
        "num_workers": workers,
        "timeout": params.timeout if workers > 0 else 0,
        "pin_memory": _should_pin(dataset, device) if params.pin_memory is None else params.pin_memory,
        "persistent_workers": params.persistent_workers and workers > 0,
        "worker_init_fn": functools.partial(begin_worker, get_dist_info()),
        "generator": make_worker_generator(seed),
    }
    if isinstance(dataset, IterableDataset):
        _ensure_streamable(params)
        collate_fn, rank = params.collate_fn or default_collate, get_dist_info().rank if is_dist_active() else 0
        stream = StreamedBatches(dataset, params.batch_size, collate_fn, seed, params.drop_last, rank)
        return DataLoader(stream, batch_size=None, collate_fn=pass_on, **common), None
    size = _size_of(dataset)
    sampler = params.sampler or _choose_sampler(dataset, params, seed, training=training)
    if params.drop_last and len(sampler) < params.batch_size:
        raise ConfigurationError(
            f"drop_last=True leaves no batch: batch_size is {params.batch_size} and an epoch has {len(sampler)} of "
            f"{size} "
            "samples on this rank; lower batch_size or keep the last batch",
        )
    fetcher, collate = choose_fetcher(dataset, params.collate_fn, seed)
    batches = KeyedBatchSampler(
        sampler,
        params.batch_size,
        drop_last=params.drop_last,
        worker_seeds=worker_seeds_of(seed, sampler),
        seed=seed,
    )
    return DataLoader(fetcher, batch_sampler=batches, collate_fn=collate, **common), sampler  # type: ignore[arg-type]  # Fetch


def _should_pin(dataset: object, device: torch.device | None) -> bool:
    # In a run on the CPU it would do nothing but initialise CUDA.
    is_on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    tensors = dataset.tensors if isinstance(dataset, TensorDataset) else ()
    return is_on_gpu and all(tensor.device.type == "cpu" for tensor in tensors)  # torch can pin nothing else.


def _ensure_streamable(params: DataLoaderParams) -> None:
    if params.shuffle or params.sampler is not None:
        name = "shuffle=True" if params.shuffle else "a sampler"
        raise ConfigurationError(
            f"{name} does not go with an IterableDataset, which has its own order: shuffle inside of it"
        )


def _size_of(dataset: object) -> int:
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise ArgumentTypeError(
            f"{type(dataset).__name__} cannot be loaded: a data set has __len__ and __getitem__, or is an "
            f"IterableDataset",
        )
    try:
        size = len(dataset)
    except StopIteration as error:
        raise refuse_stop_iteration(f"{type(dataset).__name__}.__len__ raised StopIteration") from error
    if size == 0:
        raise ConfigurationError(f"{type(dataset).__name__} has 0 samples: a data set must have at least one")
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
