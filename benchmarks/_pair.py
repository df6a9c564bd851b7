"""Two processes with a process group, as `torchrun` would have started them on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

from helios.core.environment import prefer_loopback
from helios.core.logging import get_root_logger
from helios.ranks.stores import host_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RANKS: Final = 2


def run_pair(job: Callable[[], Any]) -> list[Any]:
    """Return what a job returns in each of two processes, in order of rank; raise if it fails in one of them.

    Args:
        job: a function at the top level of a module. It finds a gloo group; `fit` joins that and starts no process.
    """
    store, port = host_store()
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(rank)) for rank in range(RANKS)]
        torch.multiprocessing.spawn(_be_rank, (port, places, job), nprocs=RANKS)  # type: ignore[attr-defined,no-untyped-call]  # torch exports it, and has not annotated it.
        del store  # Open until here: the ranks have met there.
        return [pickle.loads(place.read_bytes()) for place in places]  # noqa: S301 - by the ranks.


def _be_rank(rank: int, port: int, results: list[Path], job: Callable[[], Any]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in (place | meeting).items()})
    prefer_loopback()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with silence():
        results[rank].write_bytes(pickle.dumps(job()))
    dist.destroy_process_group()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the log quiet, that of ranks started meanwhile too: what goes wrong here does so on purpose."""
    log = get_root_logger()
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)
