"""The worker processes of a data loader: their seeds, their start, and waiting for their batches.

torch waits without limit and without a message, or raises after `timeout` seconds without naming the loader. After a
timeout, `next` of torch's iterator can be called again and still returns the batch. So the iterator gets a timeout of a
few seconds here and is called repeatedly, with warnings in between; a batch that comes in time costs one function call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.data import Subset, get_worker_info

from helios.core import rng
from helios.core.distributed import DistributedInfo, set_dist_info
from helios.core.logging import get_root_logger
from helios.data.fetching import KeyedDataset, TensorFetcher
from helios.data.streaming import StreamedBatches
from helios.errors import TrainingError
from helios.ranks.processes import follow_parent, is_stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.data import DataLoader

    from helios.data.samplers import ResumableSampler

_STEP: Final = 5.0  # Seconds of one wait; torch itself checks its workers as often (MP_STATUS_CHECK_INTERVAL).
_REPEAT: Final = 60.0  # Seconds between two warnings.
# torch raises plain RuntimeErrors; these are how their messages begin.
_TIMED_OUT: Final = "DataLoader timed out after"
_WORKER_DIED: Final = "DataLoader worker (pid"


def iterate(loader: DataLoader[Any], phase: str) -> Iterator[Any]:
    """Return an iterator over a data loader that warns of long waits. Without workers, this is `iter`.

    Args:
        loader: the loader. Its `timeout` is the limit of the wait for one batch, in seconds; 0 for none.
        phase: the phase of the run, for messages: "training", for example.

    Returns:
        The iterator; its `__next__` raises `TrainingError` if no batch came in time, or a worker has died.
    """
    return iter(loader) if loader.num_workers == 0 else _Batches(loader, phase)


class _Batches(Iterator[Any]):
    """The batches that workers fetch."""

    def __init__(self, loader: DataLoader[Any], phase: str) -> None:
        limit = loader.timeout
        self._limit = limit or math.inf
        self._step = limit / math.ceil(limit / _STEP) if limit else _STEP
        self._name = f"{phase} data loader of {_name_of(loader.dataset)}"
        self._workers = loader.num_workers
        # The iterator reads the timeout once, when it is made.
        loader.timeout = self._step
        try:
            self._batches = iter(loader)
        finally:
            loader.timeout = limit

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except RuntimeError as error:
            reason = error
        return self._wait(reason)

    def _wait(self, reason: RuntimeError) -> Any:
        """Call `next` again until there is a batch, or the limit is reached."""
        waited, warn_at = 0.0, _REPEAT
        while True:
            if not str(reason).startswith(_TIMED_OUT):
                raise self._explain(reason) from reason.__cause__
            waited += self._step
            if waited >= self._limit:
                raise TrainingError(
                    f"the {self._name} gave no batch for {self._limit:g} s, which is its timeout: a worker hangs in "
                    f"__getitem__ or in the collate function, or needs longer. {self._describe_workers()}. Set "
                    "num_workers=0 to see where it hangs, or raise the timeout"
                ) from reason
            if waited >= warn_at:
                warn_at = waited + _REPEAT
                get_root_logger().warning(
                    "no batch for %.0f s from the %s. %s. Set num_workers=0 to see where a worker hangs, or a timeout "
                    "to end such a wait with an error",
                    *(waited, self._name, self._describe_workers()),
                )
            try:
                return next(self._batches)
            except RuntimeError as error:
                reason = error

    def _describe_workers(self) -> str:
        # torch has no public access to the worker processes; without it, the message leaves their ids out.
        pids = [worker.pid for worker in getattr(self._batches, "_workers", [])]
        named = ", ".join(f"{pid}{_describe_state(pid)}" for pid in pids)
        return f"It has {self._workers} workers{f', processes {named}' if named else ''}"

    def _explain(self, reason: RuntimeError) -> RuntimeError:
        """Return what to raise for an error of torch: what the code in a worker raised is returned unchanged."""
        if not str(reason).startswith(_WORKER_DIED):
            return reason
        # torch's last error only says that the process has exited; its cause says by which signal.
        first = reason.__cause__ if str(reason.__cause__).startswith(_WORKER_DIED) else reason
        message = str(first).strip().rstrip(".")
        return TrainingError(
            f"a worker of the {self._name} died: {message}. If the system has killed it, there may have been no memory "
            "left: lower num_workers or batch_size"
        ).with_traceback(reason.__traceback__)


def _describe_state(pid: int) -> str:
    return f" (stopped: 'kill -CONT {pid}' continues it)" if is_stopped(pid) else ""


def _name_of(dataset: object) -> str:
    if isinstance(dataset, KeyedDataset | StreamedBatches):
        return _name_of(dataset.dataset)
    if isinstance(dataset, Subset):
        return f"a Subset of {_name_of(dataset.dataset)}"
    return "TensorDataset" if isinstance(dataset, TensorFetcher) else type(dataset).__name__


def make_worker_generator(seed: int) -> torch.Generator:
    """Return the `generator` of a data loader: torch draws the base seed of the workers from it at each `iter`.

    Without it, torch would draw from the default generator, and shift what training draws. `seed_workers` seeds it for
    each epoch.

    Args:
        seed: the seed of the loader.
    """
    return torch.Generator().manual_seed(rng.derive_seed(seed, "workers"))


def worker_seeds_of(seed: int, sampler: ResumableSampler) -> rng.SeedSequence:
    """Return, by epoch, the seeds of the generator from which torch draws the base seed of the workers.

    Args:
        seed: the seed of the loader.
        sampler: its sampler; the workers of each rank have different seeds.
    """
    return rng.SeedSequence(seed, "workers", *((sampler.rank,) if sampler.rank > 0 else ()))


def begin_worker(info: DistributedInfo, init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    """Set up a worker process; the `worker_init_fn` of every loader, with the first two arguments bound.

    The worker gets the rank of the process that it fetches for: one that was spawned would not know it, and a dataset
    that divides its samples by rank would yield all of them. It ends when that process ends, however that one is
    killed. torch's own check, every 5 seconds, misses a parent that was killed while it held a lock of the queue
    between them, and does not run before the worker's first fetch.

    Args:
        info: the rank and the world size of the parent.
        init_fn: the user's `worker_init_fn`, if there is one.
        worker_id: the number of the worker, from 0.
    """
    set_dist_info(info)
    torch_info = get_worker_info()
    if torch_info is not None:
        # torch seeds its own generator, Python's and NumPy's legacy one; this also seeds the one of
        # get_default_numpy_rng, which a forked worker would otherwise inherit in the state of the parent's.
        rng.key_generators(torch_info.seed)
    follow_parent()
    if init_fn is not None:
        init_fn(worker_id)


def seed_workers(loader: DataLoader[Any], seeds: rng.SeedSequence, epoch: int) -> None:
    """Make the workers' seeds a function of the epoch, instead of how often the loader was iterated over.

    Args:
        loader: the loader, before `iter`.
        seeds: its `worker_seeds`.
        epoch: the epoch, from 0.
    """
    if isinstance(loader.generator, torch.Generator):  # Not where a user has made a loader from parts of another one.
        # Persistent workers keep the seed of the epoch in which they were started, which differs after a resume. So
        # theirs does not depend on the epoch.
        loader.generator.manual_seed(seeds[0 if loader.persistent_workers else epoch])
