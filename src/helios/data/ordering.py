"""Which index comes next: a pure function of (n, seed, epoch, position).

A shuffle here is a keyed permutation that is *evaluated*, position by position, and never stored. Seeking to the middle
of a billion samples costs what starting at the beginning costs, and ranks take strided positions of one global order.

Everything is computed in 64-bit integer arithmetic of our own, so that an order is the same on every platform and
under every version of NumPy and torch: a run that is resumed after an upgrade still sees the rest of its epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from helios.core.rng import SeedSequence, check_seed
from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Indices: TypeAlias = npt.NDArray[np.int64]
    Words: TypeAlias = npt.NDArray[np.uint64]

_ROUNDS: Final = 8
_MAX_TABLE: Final = 4096
_FIRST_CHUNK: Final = 256
_MAX_CHUNK: Final = 16_384
_CHUNK_GROWTH: Final = 4
_MAX_LENGTH: Final = 2**62
_WORD_BITS: Final = 64

# The constants of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
_GAMMA: Final = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1: Final = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2: Final = np.uint64(0x94D0_49BB_1331_11EB)


class Permutation:
    """A shuffle of `range(n)` that answers any position at once, in memory that does not depend on `n`.

    Up to 4096 indices it is a table: the indices sorted by a keyed 64-bit hash, so that every order is equally likely.
    Above, it is an alternating Feistel network on the ceil(log2 n) bits of a position (Luby & Rackoff, "How to
    construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 17, 1988; for halves of unequal
    width, Schneier & Kelsey, "Unbalanced Feistel networks and block cipher design", FSE 1996). It permutes the next
    power of two; results of `n` and more are sent through again until they fall below `n`, fewer than two passes on
    average, which leaves a permutation of `range(n)` (cycle walking: Black & Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002). It shuffles; it does not keep secrets.

    >>> Permutation(5, seed=0, epoch=0)(np.arange(5)).tolist()
    [2, 0, 3, 4, 1]
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        """Derive the keys.

        Args:
            n: the number of indices, in [0, 2**62].
            seed: the seed of the run, in [0, 2**63).
            epoch: the epoch, from 0.

        Raises:
            ConfigurationError: if an argument is out of range.
        """
        self._n = _check_length(n)
        keys = SeedSequence(check_seed(seed), "order", check_count("epoch", epoch))
        # A Feistel network is not good enough for tiny n: with halves of a bit or two a round has hardly any functions
        # to choose from, and with n = 2**k and halves of two or more bits only the even half of all orders can come.
        # Beyond the table's bound that half shows in nothing but the order of the last two indices given all others.
        self._table = _sorted_by_hash(n, keys[0]) if n <= _MAX_TABLE else None
        self._round_keys = [np.uint64(keys[number]) for number in range(_ROUNDS)]
        bits = max(n - 1, 0).bit_length()
        self._low_bits = bits // 2
        self._high_bits = bits - bits // 2

    def __len__(self) -> int:
        """Return `n`."""
        return self._n

    def __call__(self, positions: Indices) -> Indices:
        """Return the indices at these positions of the order.

        Args:
            positions: any positions in [0, n), in any order; int64, one-dimensional.

        Returns:
            The index at each position: int64, of the same length.

        Raises:
            ConfigurationError: if a position lies outside of [0, n).
        """
        words = np.array(positions, dtype=np.int64).view(np.uint64)
        # Seen as unsigned, a negative position is a huge one.
        if words.size and int(words.max()) >= self._n:
            raise ConfigurationError(f"a position lies outside of the order: pass positions in [0, {self._n})")
        if self._table is not None:
            return self._table[words.view(np.int64)]
        return self._walk(words).view(np.int64)

    def _walk(self, words: Words) -> Words:
        self._encipher(words)
        limit = np.uint64(self._n)
        outside = np.flatnonzero(words >= limit)
        while outside.size:
            again = self._encipher(words[outside])
            words[outside] = again
            outside = outside[again >= limit]
        return words

    def _encipher(self, words: Words) -> Words:
        """Permute `range(2**bits)` in place."""
        low_bits = np.uint64(self._low_bits)
        high = words >> low_bits
        low = words & np.uint64((1 << self._low_bits) - 1)
        mixed = np.empty_like(words)
        halves = ((low, high, self._high_bits), (high, low, self._low_bits))
        for number, key in enumerate(self._round_keys):
            source, target, target_bits = halves[number % 2]
            # A multiplication carries upwards only: the first one's high half is folded down before the second one, and
            # of that the topmost bits are taken, which every bit of the source and of the key has reached.
            np.add(source, key, out=mixed)
            np.multiply(mixed, _MIX_1, out=mixed)
            np.right_shift(mixed, np.uint64(32), out=words)
            np.bitwise_xor(mixed, words, out=mixed)
            np.multiply(mixed, _MIX_2, out=mixed)
            np.right_shift(mixed, np.uint64(_WORD_BITS - target_bits), out=mixed)
            np.bitwise_xor(target, mixed, out=target)
        np.left_shift(high, low_bits, out=words)
        np.bitwise_or(words, low, out=words)
        return words


def shuffled_indices(
    n: int, seed: int, epoch: int, start: int = 0, step: int = 1, stop: int | None = None, chunk: int = _MAX_CHUNK
) -> Iterator[int]:
    """Yield the indices at positions start, start + step, ... of the epoch's shuffle of `range(n)`.

    Evaluated a chunk at a time; the chunks begin small, so that the first index comes at once.

    Args:
        n: the number of indices, in [0, 2**62].
        seed: the seed of the run, in [0, 2**63).
        epoch: the epoch, from 0.
        start: the first position, at least 0; where it lies behind the last one, nothing is yielded.
        step: the distance between positions, at least 1.
        stop: the position to stop before; the end of the order if it is `None` or lies behind that.
        chunk: the greatest number of indices evaluated at a time. It changes the speed, never the order.

    Returns:
        An iterator of Python integers.

    Raises:
        ConfigurationError: if an argument is out of range.

    >>> list(shuffled_indices(7, seed=0, epoch=0))
    [2, 0, 6, 3, 5, 4, 1]
    >>> list(shuffled_indices(7, seed=0, epoch=0, start=1, step=2))
    [0, 3, 4]
    """
    positions = _positions(n, start, step, stop)
    if chunk < 1:
        raise ConfigurationError(f"chunk {chunk!r} is too small: pass at least 1")
    return _evaluate(Permutation(n, seed, epoch), positions, chunk)


def sequential_indices(n: int, start: int = 0, step: int = 1, stop: int | None = None) -> Iterator[int]:
    """Yield the indices at positions start, start + step, ... of `range(n)` in their natural order.

    Takes `shuffled_indices`' arguments and checks them alike, so that one can stand where the other stood.

    >>> list(sequential_indices(7, start=1, step=2))
    [1, 3, 5]
    """
    return iter(_positions(n, start, step, stop))


def check_count(name: str, value: int) -> int:
    """Return `value` if it can count or number something.

    Raises:
        ConfigurationError: if it is not an integer of at least 0; the message calls it `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name} {value!r} is out of range: pass an integer of at least 0")
    return value


def _check_length(n: int) -> int:
    if check_count("length", n) > _MAX_LENGTH:
        raise ConfigurationError(f"length {n} is too large: at most 2**62 samples can be ordered")
    return n


def _positions(n: int, start: int, step: int, stop: int | None) -> range:
    end = _check_length(n) if stop is None else min(n, check_count("stop", stop))
    if check_count("step", step) == 0:
        raise ConfigurationError("step 0 goes nowhere: pass at least 1")
    return range(check_count("start", start), end, step)


def _evaluate(order: Permutation, positions: range, max_chunk: int) -> Iterator[int]:
    done, size = 0, min(_FIRST_CHUNK, max_chunk)
    while piece := positions[done : done + size]:
        yield from order(np.arange(piece.start, piece.stop, piece.step, dtype=np.int64)).tolist()
        done += len(piece)
        size = min(size * _CHUNK_GROWTH, max_chunk)


def _sorted_by_hash(n: int, key: int) -> Indices:
    # SplitMix64's output function on its own sequence. Two equal hashes come once in 10**12 orders of 4096; the stable
    # sort settles even those alike everywhere.
    hashes = np.arange(n, dtype=np.uint64)
    hashes *= _GAMMA
    hashes += np.uint64(key)
    hashes ^= hashes >> np.uint64(30)
    hashes *= _MIX_1
    hashes ^= hashes >> np.uint64(27)
    hashes *= _MIX_2
    hashes ^= hashes >> np.uint64(31)
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)
