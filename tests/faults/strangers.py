"""A stranger who has found the port of a run's store: reads which keys there are, and writes under all of them."""

from __future__ import annotations

import os
import pickle
import time
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tests.distributed.parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class _Harm:
    """Makes a folder when it is unpickled: the least that code in a pickle can do."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._path,)


def craft(path: Path) -> bytes:
    """Return a pickle that makes a folder when it is loaded."""
    return pickle.dumps(_Harm(path))


def connect(port: int) -> Any:
    """Return the store that listens on a port of this machine."""
    return dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]  # torch exports it


def find_prefix(store: Any) -> str:
    """Return what comes before the names of Helios' keys under torchrun, once a rank has given a sign of life."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for key in store.list_keys():
            if key.endswith("beat/0"):
                return str(key).removesuffix("beat/0")
        time.sleep(0.05)
    raise TimeoutError(f"there is no sign of life among {store.list_keys()}")


def overwrite(
    store: Any, payload: bytes, further: Iterable[str] = (), queues: Iterable[str] = (), prefix: str = ""
) -> set[str]:
    """Write a payload under every key of a store.

    Args:
        store: the store.
        payload: what to write.
        further: keys that ranks may use later, without the prefix.
        queues: queues of the ranks, without the prefix: the payload is put at their ends.
        prefix: what the ranks of a run put before the names of their keys.

    Returns:
        The keys that there were.
    """
    present = {*store.list_keys()}
    for queue in queues:
        store.queue_push(prefix + queue, payload)
    for key in present.union(prefix + key for key in further):
        store.set(key, payload)
    return present
