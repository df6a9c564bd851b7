"""The key that a generator takes when it is used next: see `helios.core.rng.lazy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Seeds(Protocol):
    """The seeds of a sequence of places, such as a `SeedSequence`."""

    def __getitem__(self, n: int) -> int:
        """Return the n-th seed in [0, 2**64)."""


class Pending:
    """The last key, as a list of the seeds and the number; after the first use, of `None` and the seed.

    Each key is a new list: a generator has taken it if it holds the same object. So one assignment makes it pending for
    all of them.

    Attributes:
        key: the last key; `None` before the first one.
        at_once: seed the generators that cannot wait until they are used.
    """

    __slots__ = ("at_once", "key")

    def __init__(self) -> None:
        """Start without a key."""
        self.key: list[Any] | None = None
        self.at_once: tuple[Callable[[], None], ...] = ()


pending: Final = Pending()


def note_key(seeds: Seeds | None, n: int) -> None:
    """Key NumPy's and Python's generators: by `seeds[n]`, or by `n` if `seeds` is `None`."""
    pending.key = [seeds, n]
    for take in pending.at_once:
        take()


def seed_of(key: list[Any]) -> int:
    """Return the seed of a key."""
    seeds, n = key
    if seeds is not None:
        key[:] = None, (n := seeds[n])  # Hashed once for all generators.
    seed: int = n
    return seed
