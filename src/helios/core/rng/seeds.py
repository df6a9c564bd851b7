"""Seeds that are derived from a seed and the place where they are used."""

from __future__ import annotations

import hashlib
import struct
from typing import Final, TypeAlias

from helios.errors import ConfigurationError

Key: TypeAlias = int | str

_DEFAULT_SEED: Final = 6691
_SEED_BYTES: Final = 8
_pack: Final = struct.Struct("<5sqq").pack


def get_default_seed() -> int:
    """Return the seed that is used wherever none is given: 6691."""
    return _DEFAULT_SEED


def check_seed(seed: int) -> int:
    """Return `seed` if it can seed every generator.

    Raises:
        ConfigurationError: if it is not an integer in [0, 2**63).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigurationError(f"random seed {seed!r} is out of range: pass an integer in [0, 2**63)")
    return seed


def _encode(key: Key) -> bytes:
    # The tag and the length distinguish ("ab", "c") from ("a", "bc"), and 1 from "1".
    raw = key.to_bytes(16, "little", signed=True) if isinstance(key, int) else key.encode()
    return (b"i" if isinstance(key, int) else b"s") + len(raw).to_bytes(4, "little") + raw


def _hash(seed: int, keys: tuple[Key, ...]) -> hashlib.blake2b:
    return hashlib.blake2b(b"".join(map(_encode, (seed, *keys))), digest_size=_SEED_BYTES, person=b"helios-seed")


def derive_seed(seed: int, *keys: Key) -> int:
    """Hash a seed and any number of keys to a new seed in [0, 2**64), with BLAKE2b (RFC 7693).

    Different keys give seeds that are independent for every practical purpose.

    Args:
        seed: the seed of the run.
        *keys: the place where the new seed is used; integers in [-2**127, 2**127) and strings.

    >>> derive_seed(0, "step", 0, 7) == derive_seed(0, "step", 0, 7)
    True
    >>> derive_seed(0, "step", 0, 7) == derive_seed(0, "step", 7, 0)
    False
    """
    return int.from_bytes(_hash(seed, keys).digest(), "little")


class SeedSequence:
    """The seeds `derive_seed(seed, *keys, n)` for varying `n`; the constant part is hashed once (0.4 µs a seed)."""

    def __init__(self, seed: int, *keys: Key) -> None:
        """Hash the constant part."""
        self._keys = (seed, *keys)
        self._prefix = _hash(seed, keys)

    def __reduce__(self) -> tuple[type[SeedSequence], tuple[Key, ...]]:
        """Pickle the keys, for workers that are spawned: a hash object cannot be pickled."""
        return SeedSequence, self._keys

    def __getitem__(self, n: int) -> int:
        """Return `derive_seed(seed, *keys, n)`."""
        h = self._prefix.copy()
        # _encode(n), inlined because this runs before every training step: the tag, the length 16, and the integer.
        try:
            h.update(_pack(b"i\x10\x00\x00\x00", n, n >> 63))
        except struct.error:  # More than 64 bits.
            h.update(_encode(n))
        return int.from_bytes(h.digest(), "little")
