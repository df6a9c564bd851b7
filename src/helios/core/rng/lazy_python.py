"""Python's generator, keyed when it is used next: see `helios.core.rng.lazy`."""

from __future__ import annotations

import random
import sys
import types
from typing import TYPE_CHECKING, Any, Final, cast

from helios.core.rng.pending import pending, seed_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import MethodType

PYTHON: Final[Any] = cast("MethodType", random.seed).__self__  # The functions of module random are its methods.
# Its C base class seeds it from an integer directly; random.seed does the same after checks in Python.
_seed: Final = super(random.Random, PYTHON).seed
_draw_random: Final[Any] = super(random.Random, PYTHON).random
_draw_bits: Final[Any] = super(random.Random, PYTHON).getrandbits


class LazyRandom(random.Random):
    """The class of Python's generator: whatever is done with it passes one of these methods first."""

    taken: list[Any] | None = None

    def take(self) -> None:
        """Take the pending key."""
        key = self.taken = pending.key
        if key is not None:
            _seed(seed_of(key))
            vars(self)["gauss_next"] = None

    def random(self) -> float:
        """Draw from [0, 1)."""
        if self.taken is not pending.key:
            self.take()
        number: float = _draw_random()
        return number

    def getrandbits(self, k: int, /) -> int:
        """Draw an integer of k bits."""
        if self.taken is not pending.key:
            self.take()
        bits: int = _draw_bits(k)
        return bits

    @property
    def gauss_next(self) -> float | None:
        """The second of two Gaussians drawn together, which `gauss` reads first."""
        if self.taken is not pending.key:
            self.take()
        gauss: float | None = vars(self)["gauss_next"]
        return gauss

    @gauss_next.setter
    def gauss_next(self, gauss: float | None) -> None:
        # After `seed` and `setstate`, which assign it, too, the state is the caller's: no key is pending any more.
        self.taken = pending.key
        vars(self)["gauss_next"] = gauss

    @property
    def VERSION(self) -> int:  # type: ignore[override]  # noqa: N802 - a constant in the base class.
        """The version of the state, which `getstate` reads before the state."""
        if self.taken is not pending.key:
            self.take()
        return random.Random.VERSION

    def __reduce__(self) -> Any:
        """Return how to copy it: a copy is an ordinary generator, which is not keyed."""
        return random.Random, (), self.getstate()


def install_python() -> tuple[Callable[[], None], ...]:
    """Make Python's generator wait for its next use; return what must be called with each key if it cannot."""
    if type(PYTHON) is LazyRandom:
        return ()
    if any(_is_held_elsewhere(name) for name in ("random", "getrandbits")):
        return (_seed_at_once,)
    PYTHON.__class__ = LazyRandom
    PYTHON.taken = None
    random.random, random.getrandbits = PYTHON.random, PYTHON.getrandbits
    return ()


def _is_held_elsewhere(name: str) -> bool:
    """Whether there are references to a function of module random beside that of the module."""
    control = types.SimpleNamespace(**{name: getattr(PYTHON, name)})  # A new object, which nobody else has.
    return _count_references(random, name) > _count_references(control, name)


def _count_references(owner: object, name: str) -> int:
    return sys.getrefcount(getattr(owner, name))


def _seed_at_once() -> None:
    if pending.key is not None:
        _seed(seed_of(pending.key))
        PYTHON.gauss_next = None
