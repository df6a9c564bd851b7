"""The index at each position of an epoch: a pure function of (n, seed, epoch, position).

A shuffle here is a keyed permutation that is *evaluated* at the positions that are asked for, and never stored. Seeking
to the middle of a billion samples takes as long as starting at the beginning, and each rank evaluates every
`num_replicas`-th position of one global order.

The module uses 64-bit integer operations only, and no random generator of a library, so that an order is the same on
every platform and with every version of NumPy and torch: a run that is resumed after an upgrade sees the rest of its
epoch.
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

# Four rounds are enough with ideal round functions (Luby & Rackoff, cited below). The round function here is a fast and
# simple one, so it gets twice as many.
_ROUNDS: Final = 8
_MAX_TABLE: Final = 4096  # Indices; up to here the order is a sorted table.
# Indices evaluated at a time. The first chunk is small, so that the first batch comes at once; later ones are large, so
# that the overhead of the NumPy calls is negligible, while their arrays (128 KiB each) stay in the processor's cache.
_FIRST_CHUNK: Final = 256
_MAX_CHUNK: Final = 16_384
_CHUNK_GROWTH: Final = 4
_MAX_LENGTH: Final = 2**62  # Samples; positions, padded for several ranks, stay within int64.
_WORD_BITS: Final = 64

# The constants of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
_GAMMA: Final = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_1: Final = np.uint64(0xBF58_476D_1CE4_E5B9)
_MIX_2: Final = np.uint64(0x94D0_49BB_1331_11EB)


class Permutation:
    """A shuffle of `range(n)` that can be evaluated at any position, in memory that does not depend on `n`.

    Up to 4096 indices it is a table: the indices sorted by a keyed 64-bit hash, so that every order is equally likely.

    Above, it is an alternating Feistel network on the ceil(log2 n) bits of a position (Luby & Rackoff, "How to
    construct pseudorandom permutations from pseudorandom functions", SIAM J. Comput. 17, 1988; for halves of unequal
    width, Schneier & Kelsey, "Unbalanced Feistel networks and block cipher design", FSE 1996). The network permutes
    `range(2**bits)`, the next power of two. Results of `n` and more are passed through it again until they fall below
    `n`, which leaves a permutation of `range(n)` (cycle walking: Black & Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002); this takes fewer than two passes on average. The order is not cryptographically secure.

    >>> Permutation(5, seed=0, epoch=0)(np.arange(5)).tolist()
    [2, 0, 3, 4, 1]
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        """Derive the keys of the rounds, and sort the table of a small order.

        Args:
            n: the number of indices, in [0, 2**62].
            seed: the seed of the run, in [0, 2**63).
            epoch: the epoch, from 0.

        Raises:
            ConfigurationError: if an argument is out of range.
        """
        self._n = _check_length(n)
        keys = SeedSequence(check_seed(seed), "order", check_count("epoch", epoch))
        # A Feistel network is not good enough for small n. With halves of one or two bits, a round chooses among few
        # functions. And for n = 2**k with halves of two or more bits, it can produce even permutations only, one half
        # of all orders; above 4096 indices this only determines the order of the last two, given all others.
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
        # Viewed as unsigned, a negative position is a huge one, so one comparison finds both.
        if words.size and int(words.max()) >= self._n:
            raise ConfigurationError(f"a position lies outside of the order: pass positions in [0, {self._n})")
        if self._table is not None:
            return self._table[words.view(np.int64)]
        return self._walk(words).view(np.int64)

    def _walk(self, words: Words) -> Words:
        """Permute `range(n)` in place: apply the network until every result is below `n`.

        As the network is a bijection of `range(2**bits)`, following it from a position below `n` ends at the next
        element of the same cycle that is below `n`, a different one for each position.
        """
        self._encipher(words)
        limit = np.uint64(self._n)
        outside = np.flatnonzero(words >= limit)
        while outside.size:
            again = self._encipher(words[outside])
            words[outside] = again
            outside = outside[again >= limit]
        return words

    def _encipher(self, words: Words) -> Words:
        """Permute `range(2**bits)` in place: in each round, xor one half with a keyed function of the other.

        The halves are `low`, of floor(bits / 2) bits, and `high`, of the rest; the rounds alternate between them. Each
        round is its own inverse, whatever the keyed function is, and so the network is a bijection.
        """
        low_bits = np.uint64(self._low_bits)
        high = words >> low_bits
        low = words & np.uint64((1 << self._low_bits) - 1)
        mixed = np.empty_like(words)
        halves = ((low, high, self._high_bits), (high, low, self._low_bits))
        for number, key in enumerate(self._round_keys):
            source, target, target_bits = halves[number % 2]
            # A multiplication propagates bits upwards only. So the upper half of the first product is folded into the
            # lower one before the second multiplication, and the topmost bits of that product are taken: they depend on
            # every bit of the source and of the key. The constants are those of SplitMix64.
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

    They are evaluated a chunk at a time; the chunks begin small, so that the first index comes at once.

    Args:
        n: the number of indices, in [0, 2**62].
        seed: the seed of the run, in [0, 2**63).
        epoch: the epoch, from 0.
        start: the first position, at least 0; nothing is yielded if it lies behind the last one.
        step: the distance between positions, at least 1.
        stop: the position to stop before; the end of the order if it is `None` or larger.
        chunk: the largest number of indices evaluated at a time. It changes the speed, never the order.

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

    The arguments and the errors are those of `shuffled_indices`, so that one can replace the other.

    >>> list(sequential_indices(7, start=1, step=2))
    [1, 3, 5]
    """
    return iter(_positions(n, start, step, stop))


def check_count(name: str, value: int) -> int:
    """Return `value` if it is a count.

    Args:
        name: the name of the value in the message.
        value: the value.

    Raises:
        ConfigurationError: if it is not an integer of at least 0.
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
        raise ConfigurationError("step 0 never advances: pass at least 1")
    return range(check_count("start", start), end, step)


def _evaluate(order: Permutation, positions: range, max_chunk: int) -> Iterator[int]:
    done, size = 0, min(_FIRST_CHUNK, max_chunk)
    while piece := positions[done : done + size]:  # A slice of a range is a range: no list of positions is made.
        yield from order(np.arange(piece.start, piece.stop, piece.step, dtype=np.int64)).tolist()
        done += len(piece)
        size = min(size * _CHUNK_GROWTH, max_chunk)


def _sorted_by_hash(n: int, key: int) -> Indices:
    # SplitMix64's output function, applied to its states key, key + gamma, key + 2 gamma and so on. Two of 4096 hashes
    # are equal once in 10**12 orders; the stable sort gives the same order everywhere even then.
    hashes = np.arange(n, dtype=np.uint64)
    hashes *= _GAMMA
    hashes += np.uint64(key)
    hashes ^= hashes >> np.uint64(30)
    hashes *= _MIX_1
    hashes ^= hashes >> np.uint64(27)
    hashes *= _MIX_2
    hashes ^= hashes >> np.uint64(31)
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)
