"""NumPy's legacy generator and the one that Helios holds, keyed when they are used: see `helios.core.rng.lazy`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import numpy as np

from helios.core.rng.pending import pending, seed_of

if TYPE_CHECKING:
    from collections.abc import Callable

_SEED_MASK: Final = 0xFFFF_FFFF  # numpy.random.seed takes 32 bits.
# Philox is counter-based: setting its key takes a microsecond, while seeding NumPy's default generator takes 20.
# Setting the state copies it, so one dictionary serves for all seeds; _PHILOX_KEY is the array in it with the key.
_PHILOX_START: Final[Any] = dict(np.random.Philox(key=0).state)
_PHILOX_KEY: Final = _PHILOX_START["state"]["key"]
_LEGACY: Final = cast("Any", np.random)  # NumPy's annotations do not know all of its functions.
_seed_legacy: Final = np.random.seed


class _Lock:
    """The lock of a bit generator, which lets it take the pending key before it is held."""

    def __init__(self, owner: LazyBits) -> None:
        self._owner = owner
        lock: Any = np.random.BitGenerator.lock.__get__(owner)  # type: ignore[attr-defined]  # a property, in Cython
        self._acquire, self.release = lock.acquire, lock.release

    def __enter__(self) -> None:
        if self._owner.taken is not pending.key:
            self._owner.take()
        self._acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, *arguments: Any, **options: Any) -> bool:
        if self._owner.taken is not pending.key:
            self._owner.take()
        acquired: bool = self._acquire(*arguments, **options)
        return acquired


def _pointer(name: str) -> Any:
    """Return a property of a bit generator that gives out pointers, to code that may not hold the lock."""
    read = getattr(np.random.BitGenerator, name).__get__

    def read_and_key_at_once(self: LazyBits) -> Any:
        self.take()
        if self.take not in pending.at_once:
            pending.at_once = (*pending.at_once, self.take)
        return read(self)

    return property(read_and_key_at_once)


class LazyBits:
    """What the two bit generators have in common: whatever is done with one passes one of these methods first."""

    plain: ClassVar[Any]  # The class of NumPy that a subclass is derived from.
    taken: list[Any] | None = None
    ctypes, cffi, capsule = _pointer("ctypes"), _pointer("cffi"), _pointer("capsule")

    def take(self) -> None:
        """Take the pending key."""
        raise NotImplementedError

    @property
    def lock(self) -> Any:
        """The lock that NumPy's functions hold while they draw."""
        try:
            return vars(self)["_lock"]
        except KeyError:
            return vars(self).setdefault("_lock", _Lock(self))

    @property
    def state(self) -> Any:
        """The state."""
        if self.taken is not pending.key:
            self.take()
        return self.plain.state.__get__(self)

    @state.setter
    def state(self, state: Any) -> None:
        self.plain.state.__set__(self, state)
        self.taken = pending.key

    def random_raw(self, *arguments: Any, **options: Any) -> Any:
        """Draw without a distribution."""
        if self.taken is not pending.key:
            self.take()
        return self.plain.random_raw(self, *arguments, **options)

    def jumped(self, *arguments: Any) -> Any:
        """Return a copy further on, an ordinary one of NumPy."""
        return copy.copy(self).jumped(*arguments)

    def spawn(self, *arguments: Any) -> Any:
        """Return independent ones, ordinary ones of NumPy."""
        return copy.copy(self).spawn(*arguments)

    def __reduce__(self) -> Any:
        """Return how to copy it: a copy is an ordinary one of NumPy, which is not keyed."""
        make, _, state = self.plain.__reduce__(self)
        return make, (self.plain,), state


# NumPy writes the name of the class into states and compares it, so the names are NumPy's.
class MT19937(LazyBits, np.random.MT19937):  # type: ignore[override]  # NumPy's lock is read-only, too.
    """The bit generator of NumPy's legacy functions."""

    plain = np.random.MT19937

    def take(self) -> None:
        """Take the pending key."""
        self.taken = pending.key
        if self.taken is not None:
            _seed_legacy(seed_of(self.taken) & _SEED_MASK)  # With the second of two Gaussians.

    def _legacy_seeding(self, seed: Any) -> None:
        super()._legacy_seeding(seed)
        self.taken = pending.key


class Philox(LazyBits, np.random.Philox):  # type: ignore[override]  # As above.
    """The bit generator of the NumPy generator that Helios holds."""

    plain = np.random.Philox

    def take(self) -> None:
        """Take the pending key."""
        if pending.key is not None:
            self.rekey(seed_of(pending.key))
        self.taken = pending.key

    def rekey(self, seed: int) -> None:
        """Start at a key in [0, 2**64)."""
        _PHILOX_KEY[0] = seed
        self.state = _PHILOX_START

    def advance(self, delta: int) -> Any:
        """Advance by so many draws."""
        if self.taken is not pending.key:
            self.take()
        return super().advance(delta)


def get_legacy() -> Any:
    """Return the bit generator of NumPy's legacy functions."""
    return _LEGACY.get_bit_generator()


def install_legacy() -> tuple[Callable[[], None], ...]:
    """Make NumPy's legacy generator wait for its next use; return what must be called with each key if it cannot."""
    current = get_legacy()
    if type(current) is MT19937:
        return ()
    if type(current) is not np.random.MT19937:
        return (_seed_legacy_at_once,)
    state = np.random.get_state()  # noqa: NPY002 - the legacy generator is the subject here.
    before = pending.at_once
    legacy = MT19937()
    _LEGACY.set_bit_generator(legacy)  # It asks for the pointers, but its functions hold the lock.
    pending.at_once = before
    np.random.set_state(state)  # noqa: NPY002 - see above.
    legacy.taken = None
    return ()


def _seed_legacy_at_once() -> None:
    if pending.key is not None:
        _seed_legacy(seed_of(pending.key) & _SEED_MASK)


_kept = pending.at_once
PHILOX: Final = Philox(key=0)
NUMPY_GENERATOR: Final = np.random.Generator(PHILOX)
pending.at_once = _kept  # The generator has asked for the pointers, but its methods hold the lock.
