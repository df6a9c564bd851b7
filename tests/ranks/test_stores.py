from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helios.errors import StoreContentError
from helios.ranks.stores import SignedStore, _agree_on_name, connect_store, host_store

if TYPE_CHECKING:
    from collections.abc import Callable

RANKS = 3
HOSTED, PORT = host_store()
CONNECTIONS: list[Any] = [HOSTED, *(HOSTED.clone() for _ in range(RANKS - 1))]  # Slow to make: all tests use the same.
KEYS = ["welcome", *(f"{what}/{rank}" for what in ("hello", "thanks") for rank in range(1, RANKS))]


class KilledError(Exception):
    """Ends a rank at some instant of a handshake."""


class Mortal:
    """A connection that raises instead of the call of a given number, as a kill would end the rank there."""

    def __init__(self, store: Any, calls: int | None) -> None:
        self._store, self._left = store, calls
        self._deadline = time.monotonic() + 5.0

    def __getattr__(self, name: str) -> Any:
        if time.monotonic() > self._deadline:
            raise TimeoutError("this rank waits for ever")
        if self._left is not None:
            if self._left == 0:
                raise KilledError
            self._left -= 1
        return getattr(self._store, name)


def forget() -> None:
    for key in KEYS:
        HOSTED.delete_key(f"helios/{key}")


def live(delays: list[float], deaths: list[int | None]) -> list[str]:
    """Let all ranks shake hands, each after its delay; return what those agree on that are not killed."""

    def shake(rank: int) -> str:
        time.sleep(delays[rank])
        return _agree_on_name(Mortal(CONNECTIONS[rank], deaths[rank]), rank, RANKS)

    with ThreadPoolExecutor(RANKS) as pool:
        ranks = [pool.submit(shake, rank) for rank in range(RANKS)]
        return [rank.result() for rank in ranks if not isinstance(rank.exception(), KilledError)]


DELAYS = st.lists(st.sampled_from([0.0, 0.005, 0.03]), min_size=RANKS, max_size=RANKS)


# Not shrunk: an example that fails takes as long as its ranks are patient.
@settings(max_examples=25, phases=[Phase.generate])
@given(DELAYS, st.integers(0, 12), DELAYS)
def test_each_start_agrees_on_a_new_name(first: list[float], kill: int, second: list[float]) -> None:
    """Restarted ranks, with the keys of killed ranks in the store, agree on a name among themselves only."""
    forget()
    # All are killed: one can be done with the handshake only if it went through for all, whoever dies later.
    before = live(first, [kill, kill, kill])
    now = live(second, [None] * RANKS)
    again = live(first, [None] * RANKS)
    assert len({*now}) == len({*again}) == 1
    assert len(now) == len(again) == RANKS
    assert not {*before} & {*now}
    assert not {*now} & {*again}


def test_a_foreign_name_is_refused() -> None:
    """A foreign process that answers a rank cannot choose the name of the store."""
    forget()
    with ThreadPoolExecutor(1) as pool:
        rank = pool.submit(_agree_on_name, CONNECTIONS[1], 1, 2)
        own = HOSTED.get("helios/hello/1")
        HOSTED.set("helios/welcome", b"../\x80 " + own)
        with pytest.raises(StoreContentError, match="under 'helios/welcome', which no rank of this run writes"):
            rank.result(30)
    forget()


def test_a_hosted_store_is_reached_by_its_port() -> None:
    """A value that one process sets is read by another one that connects to the port, and waits for it."""
    other = connect_store(PORT)
    HOSTED.set("here", "x")
    assert other.get("here") == b"x"
    threading.Timer(0.05, lambda: HOSTED.set("later", "y")).start()
    assert other.get("later") == b"y"


def test_two_stores_have_two_ports() -> None:
    """Each store has its own free port, so that two runs in one process stay separate."""
    store, port = host_store()
    assert port != PORT
    assert not store.check(["here"])


def test_a_hosted_store_listens_on_the_loopback_interface_only() -> None:
    """A connection to another address of this machine, as from a network, is refused."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=10):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", PORT), timeout=10)


def test_ranks_read_each_others_signed_values() -> None:
    """A value that one rank sets or queues is read by another one, over any connection."""
    one, other = SignedStore(CONNECTIONS[0], b"secret"), SignedStore(CONNECTIONS[1], b"secret").clone()
    one.set("signed/a", "x\0")
    assert other.get("signed/a") == b"x\0"
    assert other.compare_set("signed/b", "", "1") == b"1"
    assert one.compare_set("signed/b", "", "2") == b"1"
    assert one.compare_set("signed/b", "1", "2") == other.get("signed/b") == b"2"
    one.queue_push("signed/queue", b"")
    assert one.queue_len("signed/queue") == 1  # Asked over the connection that has pushed: a push is not acknowledged.
    assert other.queue_pop("signed/queue") == b""
    assert other.check(["signed/a"])
    assert one.delete_key("signed/a")
    assert not other.check(["signed/a"])


@pytest.mark.parametrize("forge", [lambda: b"7", lambda: b"7" * 40, lambda: HOSTED.get("signed/other")])
def test_a_value_that_is_not_signed_for_its_key_is_refused(forge: Callable[[], bytes]) -> None:
    """A value without the right signature raises an error, also a copy of another key's value."""
    store = SignedStore(CONNECTIONS[1], b"secret")
    store.set("signed/other", "7")
    SignedStore(HOSTED, b"another secret").set("signed/key", "7")
    for _ in range(2):
        reads: list[Callable[[], Any]] = [
            lambda: store.get("signed/key"),
            lambda: store.compare_set("signed/key", "", "1"),
        ]
        for read in reads:
            with pytest.raises(StoreContentError, match="under 'signed/key', which no rank of this run writes"):
                read()
        HOSTED.set("signed/key", forge())
