"""Key-value stores through which the ranks of a run communicate."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import secrets
import socket
import time
from typing import Any, Final, Protocol

import torch.distributed as dist

from helios.core.distributed import TIMEOUT
from helios.errors import NotRunningError
from helios.ranks.messages import foreign_content

_LOOPBACK: Final = "127.0.0.1"
_BACKLOG: Final = 2048  # Connections that may wait to be accepted; torch's own number.
_SIGNATURE: Final = hashlib.sha256().digest_size
_NAME: Final = re.compile(rb"[0-9a-f]{32}")  # Of one start of a job.
_POLL: Final = 0.01  # Seconds between two checks for the other ranks.


class Store(Protocol):
    """A key-value store that all ranks of a run use: the needed methods of `torch.distributed.Store`."""

    def set(self, key: str, value: str | bytes, /) -> None:
        """Set the value of a key."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return the value of a key; waits for one that is not set."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether all of these keys are set."""
        ...

    def compare_set(self, key: str, expected: str | bytes, value: str | bytes, /) -> bytes:
        """Set the value of a key if it is the one expected, empty for a key that is not set; return the value then."""
        ...

    def delete_key(self, key: str, /) -> bool:
        """Delete a key; return whether it was set."""
        ...

    def queue_push(self, key: str, value: str | bytes, /) -> None:
        """Put a value at the end of a queue."""
        ...

    def queue_pop(self, key: str, /) -> bytes:
        """Take the value at the head of a queue; waits for one if there is none."""
        ...

    def queue_len(self, key: str, /) -> int:
        """Return the length of a queue."""
        ...

    def clone(self) -> Store:
        """Return the same store over another connection, for another thread."""
        ...


_torchrun_store: Store | None = None
_rendezvous_numbers = itertools.count()


def next_rendezvous_store() -> Store:
    """Return a new store, without keys, for the ranks that `torchrun` has started.

    All ranks must call it equally often. All these stores use one connection per process, with a different prefix for
    each, so that a run does not read the keys of the previous one.
    """
    global _torchrun_store  # noqa: PLW0603 - one connection per process.
    if _torchrun_store is None:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]  # torch exports it, its annotations do not
        _torchrun_store = _prefix(_agree_on_name(store, rank, world_size), store)
    return _prefix(f"{next(_rendezvous_numbers)}", _torchrun_store)


def _prefix(prefix: str, store: Any) -> Store:
    prefixed: Any = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]  # torch exports it, its annotations do not
    agreed: Store = prefixed
    return agreed


def _agree_on_name(store: Any, rank: int, world_size: int) -> str:
    """Return a name that the ranks of this start of the job share, and that no earlier start has used.

    After a failure, `torchrun` starts all ranks again with the same store, which still has the keys of the previous
    ranks; and the number of restarts that it reports may differ between machines. So each rank writes a new random name
    ("hello"). Rank 0 answers with a name for all and with the names that it has read ("welcome"), so that no rank takes
    the answer to an earlier rank for its own. Rank 0 continues when all ranks have acknowledged the name ("thanks").
    """
    own = secrets.token_hex(16)
    others = range(1, world_size)
    if rank > 0:
        store.set(f"helios/hello/{rank}", own)
        while True:
            name, _, greeted = (store.get("helios/welcome") if store.check(["helios/welcome"]) else b"").partition(b" ")
            if own.encode() in greeted.split():
                if not _NAME.fullmatch(name):
                    raise foreign_content("helios/welcome", name)
                store.set(f"helios/thanks/{rank}", name)
                return name.decode()
            time.sleep(_POLL)

    def read(what: str) -> list[bytes]:
        keys = [f"helios/{what}/{other}" for other in others]
        return [store.get(key) if store.check([key]) else b"" for key in keys]

    answered: list[bytes] | None = None
    while read("thanks") != [own.encode()] * len(others):
        if (hellos := read("hello")) != answered:
            store.set("helios/welcome", b" ".join([own.encode(), *hellos]))
            answered = hellos
        time.sleep(_POLL)
    return own


def host_store() -> tuple[Store, int]:
    """Host a store in this process, for ranks on this machine.

    Returns:
        The store, which closes when nothing refers to it any more, and its port.
    """
    # By default, torch's store listens on every interface, whatever its host name is. So it gets a socket that is bound
    # to the loopback interface.
    with socket.create_server((_LOOPBACK, 0), backlog=_BACKLOG) as listener:
        port = listener.getsockname()[1]
        store: Any = dist.TCPStore(  # type: ignore[attr-defined]  # torch exports it, its annotations do not
            _LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
    return store, port


class HostedStore:
    """The store of a run, hosted by this process until it is closed.

    torch has no method to close a store: it closes when nothing refers to it any more. The traceback of an error may
    refer to the frames of a run for a long time, so a run closes its store explicitly.

    Attributes:
        port: the port at which ranks on this machine connect.
    """

    def __init__(self) -> None:
        """Open the store."""
        self._store: Store | None
        self._store, self.port = host_store()

    def sign_with(self, secret: bytes) -> SignedStore:
        """Return the store with values that are signed with a secret.

        Raises:
            NotRunningError: if the store is closed.
        """
        if self._store is None:
            raise NotRunningError("the store of the run is closed: open one with each run")
        return SignedStore(self._store, secret)

    def close(self) -> None:
        """Close the store."""
        self._store = None


def connect_store(port: int) -> Store:
    """Return the store that another process of this machine hosts."""
    store: Any = dist.TCPStore(_LOOPBACK, port, is_master=False)  # type: ignore[attr-defined]  # as above
    reached: Store = store
    return reached


class SignedStore:
    """A store whose values are signed with a secret of the run.

    Reading a value raises `StoreContentError` if it was set without the secret, or was signed for another key.

    Args:
        store: the store with the signed values.
        secret: a secret that only the processes of the run know.
    """

    def __init__(self, store: Store, secret: bytes) -> None:
        self._store = store
        self._secret = secret

    def set(self, key: str, value: str | bytes, /) -> None:
        """Set the value of a key."""
        self._store.set(key, self._sign(key, value))

    def get(self, key: str, /) -> bytes:
        """Return the value of a key; waits for one that is not set."""
        return self._verify(key, self._store.get(key))

    def check(self, keys: list[str], /) -> bool:
        """Return whether all of these keys are set, by any process."""
        return self._store.check(keys)

    def compare_set(self, key: str, expected: str | bytes, value: str | bytes, /) -> bytes:
        """Set the value of a key if it is the one expected, empty for a key that is not set; return the value then."""
        signed = self._sign(key, expected) if expected else ""
        return self._verify(key, self._store.compare_set(key, signed, self._sign(key, value)))

    def delete_key(self, key: str, /) -> bool:
        """Delete a key; return whether it was set."""
        return self._store.delete_key(key)

    def queue_push(self, key: str, value: str | bytes, /) -> None:
        """Put a value at the end of a queue."""
        self._store.queue_push(key, self._sign(key, value))

    def queue_pop(self, key: str, /) -> bytes:
        """Take the value at the head of a queue; waits for one if there is none."""
        return self._verify(key, self._store.queue_pop(key))

    def queue_len(self, key: str, /) -> int:
        """Return the length of a queue."""
        return self._store.queue_len(key)

    def clone(self) -> Store:
        """Return the same store over another connection, for another thread."""
        return SignedStore(self._store.clone(), self._secret)

    def _sign(self, key: str, value: str | bytes) -> bytes:
        content = value.encode() if isinstance(value, str) else value
        return self._signature(key, content) + content

    def _verify(self, key: str, signed: bytes) -> bytes:
        signature, content = signed[:_SIGNATURE], signed[_SIGNATURE:]
        if not hmac.compare_digest(signature, self._signature(key, content)):
            raise foreign_content(key, signed)
        return content

    def _signature(self, key: str, content: bytes) -> bytes:
        # No key contains a zero byte, so two different pairs of key and content never give the same input.
        return hmac.digest(self._secret, key.encode() + b"\0" + content, "sha256")
