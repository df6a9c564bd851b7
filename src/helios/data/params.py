"""How a dataset is loaded: the parameters of a data loader, and their checks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from helios.core.logging import get_root_logger
from helios.core.rng import check_seed
from helios.data.samplers import ResumableSampler
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from helios.data.fetching import CollateFn


@dataclasses.dataclass
class DataLoaderParams:
    """How a dataset is loaded.

    The values are checked when the parameters are made, and, as they can be assigned later, whenever they are used.

    Attributes:
        random_seed: the seed of the order and of the draws in the dataset, in [0, 2**63); that of the trainer if it is
            `None`.
        batch_size: samples per batch and rank.
        shuffle: whether each epoch has a different, random order.
        num_workers: processes that fetch samples; 0 to fetch in the training process.
        pin_memory: copy batches into page-locked memory. `None` pins in a run on a GPU, and outside of a run where CUDA
            is available, unless the tensors of the dataset are on a device already.
        drop_last: leave out the last batch of an epoch if it is short.
        is_distributed: divide the samples among the ranks; `None` to do so when there is a process group.
        sampler: the order of samples, in place of the one that `shuffle` and `is_distributed` choose.
        collate_fn: makes a batch of a list of samples; torch's `default_collate` if it is `None`.
        debug_mode: ignore `num_workers` and fetch in the training process, where a debugger can follow.
        persistent_workers: keep the worker processes from epoch to epoch.
        timeout: seconds to wait for a batch from the workers; 0 for no limit.
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
        """Check every value; see `check`."""
        self.check()

    def check(self) -> None:
        """Check every value.

        Raises:
            ConfigurationError: if a value is out of range, or two contradict each other.
            ArgumentTypeError: if a value has the wrong type.
        """
        if self.random_seed is not None:
            check_seed(self.random_seed)
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
                "order is a function of the epoch and the position"
            )
        if self.sampler is not None and self.shuffle:
            raise ConfigurationError("shuffle=True and a sampler contradict each other: pass one of them")
        if self.collate_fn is not None and not callable(self.collate_fn):
            raise ArgumentTypeError(
                f"collate_fn {self.collate_fn!r} cannot be called: pass a function of a list of samples"
            )
        if self.persistent_workers and self.num_workers == 0:
            raise ConfigurationError("persistent_workers=True needs workers: set num_workers to 1 or more")
        _check_timeout(self.timeout, self.num_workers)

    @classmethod
    def from_dict(cls, params: Mapping[str, Any]) -> DataLoaderParams:
        """Return the parameters with the values of a mapping, and defaults for the others.

        Args:
            params: values by the name of the parameter. The log warns of other names, and they are ignored, so that
                the mapping may be a part of a larger configuration.

        Raises:
            ConfigurationError: if a value breaks a rule.
            ArgumentTypeError: if `params` is no mapping, or a value has the wrong type.
        """
        if not isinstance(params, Mapping):
            raise ArgumentTypeError(
                f"params is {params!r}, a {type(params).__name__}: pass a dict of parameters by name"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in params if name not in names]
        if unknown:
            get_root_logger().warning(
                "data loader parameters %s are unknown, and are ignored: there are %s; correct the names, or leave "
                "them out",
                unknown,
                names,
            )
        return cls(**{name: params[name] for name in names if name in params})

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters by name; `from_dict` is the inverse."""
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
        raise ConfigurationError(
            f"timeout={timeout} limits the wait for workers: set num_workers to 1 or more, or timeout to 0"
        )


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is {value!r}, a {type(value).__name__}: pass True or False")
