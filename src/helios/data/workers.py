"""The worker processes of a data loader: their seeds, and waiting for them, with a word when it takes long.

torch waits in silence for ever, or raises after `timeout` seconds without saying which loader it was. An iterator of
torch can be asked again after its timeout, and still has the batch when it comes. So it is given a short one, and asked
again and again: a step that gets its batch in time pays for a call of a function.
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
    from torch.utils.data import DataLoader

    from helios.data.samplers import ResumableSampler

_STEP: Final = 5.0  # Seconds between two looks at the workers; torch itself looks as often.
_REPEAT: Final = 60.0  # Seconds between two warnings.
_TIMED_OUT: Final = "DataLoader timed out after"
_WORKER_DIED: Final = "DataLoader worker (pid"


def iterate(loader: DataLoader[Any], phase: str) -> Iterator[Any]:
    """Begin to iterate over a data loader. Where it has no workers, this is `iter`.

    Args:
        loader: the loader. Its `timeout` is the limit of the wait for one batch, in seconds; 0 for none.
        phase: what the batches are for, for messages: "training", say.

    Raises:
        TrainingError: by the iterator, if no batch came in time, or a worker has died.
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
        # An iterator reads it once, when it is made.
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
        """Ask again until there is a batch, or it is time to give up."""
        waited, warn_at = 0.0, _REPEAT
        while True:
            if not str(reason).startswith(_TIMED_OUT):
                raise self._explain(reason) from reason.__cause__
            waited += self._step
            if waited >= self._limit:
                raise TrainingError(
                    f"the {self._name} gave no batch for {self._limit:g} s, which is its timeout: a worker hangs in "
                    f"__getitem__ or in the collate function, or needs longer. {self._say_workers()}. Set num_workers=0"
                    " to see where it is, or raise the timeout",
                ) from reason
            if waited >= warn_at:
                warn_at = waited + _REPEAT
                get_root_logger().warning(
                    "no batch for %.0f s from the %s. %s. Set num_workers=0 to see where it is, or a timeout to end"
                    " such a wait",
                    *(waited, self._name, self._say_workers()),
                )
            try:
                return next(self._batches)
            except RuntimeError as error:
                reason = error

    def _say_workers(self) -> str:
        # torch has no public way to them; without, the sentence only says less.
        pids = [worker.pid for worker in getattr(self._batches, "_workers", [])]
        named = ", ".join(f"{pid}{_say_state(pid)}" for pid in pids)
        return f"It has {self._workers} workers{f', processes {named}' if named else ''}"

    def _explain(self, reason: RuntimeError) -> RuntimeError:
        """Return what to raise for an error of torch's: what a worker has raised stays as it is."""
        if not str(reason).startswith(_WORKER_DIED):
            return reason
        # What torch notices second, that a process is gone, hides by which signal it was ended.
        first = reason.__cause__ if str(reason.__cause__).startswith(_WORKER_DIED) else reason
        told = str(first).strip().rstrip(".")
        return TrainingError(
            f"a worker of the {self._name} died: {told}. If the system has killed it, there may have been no memory "
            "left: lower num_workers or batch_size",
        ).with_traceback(reason.__traceback__)


def _say_state(pid: int) -> str:
    return f" (stopped: 'kill -CONT {pid}' has it go on)" if is_stopped(pid) else ""


def _name_of(dataset: object) -> str:
    if isinstance(dataset, KeyedDataset | StreamedBatches):
        return _name_of(dataset.dataset)
    if isinstance(dataset, Subset):
        return f"a Subset of {_name_of(dataset.dataset)}"
    return "TensorDataset" if isinstance(dataset, TensorFetcher) else type(dataset).__name__


def make_worker_generator(seed: int) -> torch.Generator:
    """Return the generator from which torch draws a seed for the workers whenever a loader is iterated over.

    Without it, torch would draw from the generator that training uses. A source seeds it anew in each epoch.
    """
    return torch.Generator().manual_seed(rng.derive_seed(seed, "workers"))


def worker_seeds_of(seed: int, sampler: ResumableSampler) -> rng.SeedSequence:
    """Return the seeds, by epoch, of the generator from which torch draws that of the workers."""
    return rng.SeedSequence(seed, "workers", *((sampler.rank,) if sampler.rank > 0 else ()))


def begin_worker(info: DistributedInfo, worker_id: int) -> None:
    """Key a worker's generators by its seed, those that torch does not know of as well.

    Let a worker stand where the rank does that it fetches for, and end with it, however that one is killed.

    A worker that was not forked knows of no ranks, and a data set that shares itself out would give it everything.

    torch has it look for its parent every 5 seconds, where it can: not where that one was killed with one of their
    common locks in its hands, nor where the worker itself has hardly begun.
    """
    del worker_id
    set_dist_info(info)
    torch_info = get_worker_info()
    if torch_info is not None:
        rng.key_generators(torch_info.seed)
    follow_parent()


def seed_workers(loader: DataLoader[Any], seeds: rng.SeedSequence | None, epoch: int) -> None:
    """Have torch make the seeds of a loader's workers from the epoch, and not from how often it was iterated over."""
    if isinstance(loader.generator, torch.Generator) and seeds is not None:
        # Persistent workers keep the seed of the epoch in which they were started, which a resume changes.
        loader.generator.manual_seed(seeds[0 if loader.persistent_workers else epoch])
