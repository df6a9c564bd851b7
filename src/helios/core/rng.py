"""Randomness that is addressed, not consumed.

Every draw that training makes is a function of *where* it is made: before a training step the generators are keyed by
(seed, "step", rank, step), before a sample is fetched by (seed, "sample", epoch, index), and so on. What ran before,
how often validation ran or which process fetches a sample then cannot shift a draw, and a resumed run has nothing to
restore.

The generators are those that user code draws from: torch's default generator (and that of the accelerator in use),
Python's `random`, NumPy's legacy `numpy.random.*` functions, and the `numpy.random.Generator` held by
`get_default_numpy_rng`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
from _random import Random as _CoreRandom
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch

from helios.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Key: TypeAlias = int | str

_DEFAULT_SEED: Final = 6691
_SEED_BYTES: Final = 8
_MERSENNE_WORDS: Final = 624
_PHILOX_WORDS: Final = 4
_NUMPY_SEED_MASK: Final = 0xFFFF_FFFF  # numpy.random.seed takes 32 bits.


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
    # The tag and the length keep ("ab", "c"), ("a", "bc") and (1, "1") apart.
    raw = key.to_bytes(16, "little", signed=True) if isinstance(key, int) else key.encode()
    return (b"i" if isinstance(key, int) else b"s") + len(raw).to_bytes(4, "little") + raw


def _hash(seed: int, keys: tuple[Key, ...]) -> hashlib.blake2b:
    return hashlib.blake2b(b"".join(map(_encode, (seed, *keys))), digest_size=_SEED_BYTES, person=b"helios-seed")


def derive_seed(seed: int, *keys: Key) -> int:
    """Hash a seed and any number of keys to a new seed in [0, 2**64).

    Different keys give seeds that are independent for every practical purpose (BLAKE2b, RFC 7693).

    >>> derive_seed(0, "step", 0, 7) == derive_seed(0, "step", 0, 7)
    True
    >>> derive_seed(0, "step", 0, 7) == derive_seed(0, "step", 7, 0)
    False
    """
    return int.from_bytes(_hash(seed, keys).digest(), "little")


class SeedSequence:
    """The seeds `derive_seed(seed, *keys, n)` for varying `n`, with the constant part hashed once (0.5 µs a seed)."""

    def __init__(self, seed: int, *keys: Key) -> None:
        """Hash the part that stays the same."""
        self._keys = (seed, *keys)
        self._prefix = _hash(seed, keys)

    def __reduce__(self) -> tuple[type[SeedSequence], tuple[Key, ...]]:
        """Pickle the keys, for workers that are spawned: a half-done hash cannot be."""
        return SeedSequence, self._keys

    def __getitem__(self, n: int) -> int:
        """Return `derive_seed(seed, *keys, n)`."""
        h = self._prefix.copy()
        # _encode(n), written out: this runs before every training step.
        h.update(b"i\x10\x00\x00\x00" + n.to_bytes(16, "little", signed=True))
        return int.from_bytes(h.digest(), "little")


@dataclasses.dataclass
class DefaultNumpyRNG:
    """A holder of a NumPy generator, so that everybody who holds it sees a reseeding."""

    generator: np.random.Generator


# Philox is counter-based: setting its key costs under a microsecond, where seeding NumPy's default generator takes 20.
_PHILOX = np.random.Philox(key=_DEFAULT_SEED)
_NUMPY_RNG = DefaultNumpyRNG(np.random.Generator(_PHILOX))
_PHILOX_START: Any = dict(_PHILOX.state)
_PHILOX_KEY = _PHILOX_START["state"]["key"]
_key_python = _CoreRandom.seed


def get_default_numpy_rng() -> DefaultNumpyRNG:
    """Return the holder of the NumPy generator that Helios keys along with the others."""
    return _NUMPY_RNG


_key_torch = torch.default_generator.manual_seed
_key_legacy_numpy = np.random.seed  # The legacy functions are what many data sets draw from.
_python_generator: Any = random._inst  # noqa: SLF001 - random.seed is this object's method.


def key_generators(seed: int) -> None:
    """Set every host generator to the start of the stream that belongs to `seed`.

    Args:
        seed: a derived seed in [0, 2**64).
    """
    _key_torch(seed)
    _PHILOX_KEY[0] = seed
    _PHILOX.state = _PHILOX_START
    _key_legacy_numpy(seed & _NUMPY_SEED_MASK)
    # What random.seed does, without its detours.
    _key_python(_python_generator, seed)
    _python_generator.gauss_next = None


def make_seed_fn(device: torch.device | None = None) -> Callable[[int], None]:
    """Return the function that keys the host's generators and that of one accelerator.

    `torch.manual_seed` visits every accelerator and costs hundreds of microseconds; this visits one.

    Args:
        device: the device of the run; `None` or a CPU device for the host alone.
    """
    if device is None or device.type in ("cpu", "meta"):
        return key_generators
    manual_seed = _accelerator_seed(device)

    def key_with_accelerator(seed: int) -> None:
        key_generators(seed)
        manual_seed(seed)

    return key_with_accelerator


_accelerator_seeds: list[Callable[[int], object]] = []  # Of the accelerator that this process trains on, if any.


def _leave_accelerator() -> None:
    _accelerator_seeds.clear()


if hasattr(os, "register_at_fork"):  # A forked process, such as a data loader's worker, cannot use its parent's GPU.
    os.register_at_fork(after_in_child=_leave_accelerator)


@contextlib.contextmanager
def training_on(device: torch.device) -> Iterator[None]:
    """Have `key_process` key the generator of a device, too, while the context lasts.

    Args:
        device: the device of the run; for a CPU device nothing is added.
    """
    before = list(_accelerator_seeds)
    _accelerator_seeds[:] = [] if device.type in ("cpu", "meta") else [_accelerator_seed(device)]
    try:
        yield
    finally:
        _accelerator_seeds[:] = before


def key_process(seed: int) -> None:
    """Set every generator that data may be drawn from in this process to the start of the stream of `seed`.

    Those are the host's and, where a dataset is read in the process that trains, that of its accelerator.
    """
    key_generators(seed)
    for manual_seed in _accelerator_seeds:
        manual_seed(seed)


def make_rng_state_saver(device: torch.device | None = None) -> Callable[[], Callable[[], None]]:
    """Return a function that notes where the generators are that `make_seed_fn` keys, and returns what puts them back.

    Marking and going back take 0.1 ms, most of it for NumPy's legacy generator. Keying takes less: this is for places
    in the middle of a stream.

    Args:
        device: the device of the run; `None` or a CPU device for the host alone.
    """
    accelerators: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []
    if device is not None and device.type == "cuda":
        generator = _cuda_generator(device)
        accelerators = [(generator.get_state, generator.set_state)]
    elif device is not None and device.type not in ("cpu", "meta"):
        module = getattr(torch, device.type)
        accelerators = [(module.get_rng_state, module.set_rng_state)]

    def save_rng_state() -> Callable[[], None]:
        python, legacy, philox = random.getstate(), np.random.get_state(), _PHILOX.state  # noqa: NPY002 - see key_generators.
        host, others = torch.get_rng_state(), [get() for get, _ in accelerators]

        def restore() -> None:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002 - see key_generators.
            _PHILOX.state = philox
            torch.set_rng_state(host)
            for (_, put), state in zip(accelerators, others, strict=True):
                put(state)

        return restore

    return save_rng_state


def _accelerator_seed(device: torch.device) -> Callable[[int], object]:
    if device.type == "cuda":
        return _cuda_generator(device).manual_seed
    # mps and xpu offer no generator object; their module's function sets the current device's.
    manual_seed: Callable[[int], object] = getattr(torch, device.type).manual_seed
    return manual_seed


def _cuda_generator(device: torch.device) -> torch.Generator:
    # There are no generators before CUDA is initialised, and a seed that was set before would be applied only then.
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has not annotated it.
    index = torch.cuda.current_device() if device.index is None else device.index
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


def seed_rngs(seed: int | None = None, skip_torch: bool = False) -> None:
    """Seed Python's, NumPy's and torch's generators, those of all accelerators included.

    Args:
        seed: the seed in [0, 2**63); the default seed if it is `None`.
        skip_torch: leave torch's generators as they are.
    """
    seed = check_seed(_DEFAULT_SEED if seed is None else seed)
    random.seed(seed)
    _key_legacy_numpy(seed & _NUMPY_SEED_MASK)
    _PHILOX_KEY[0] = seed
    _PHILOX.state = _PHILOX_START
    if not skip_torch:
        torch.manual_seed(seed)


def get_rng_state_dict() -> dict[str, Any]:
    """Return the state of every generator, as plain data that `load_rng_state_dict` takes back."""
    kind, words, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - see key_generators.
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {
            "kind": str(kind),
            "words": torch.from_numpy(np.asarray(words).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "generator": _plain_philox(_PHILOX.state),
        "torch": torch.get_rng_state(),
    }
    if _can_use_cuda():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_rng_state_dict(state_dict: dict[str, Any]) -> None:
    """Put every generator into the state that `get_rng_state_dict` returned.

    Raises:
        ConfigurationError: if it is something else; all generators are then as they were.
    """
    put_back = make_rng_state_saver()()
    try:
        _load_rng_state_dict(state_dict)
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        put_back()
        raise ConfigurationError(
            f"state_dict is not what get_rng_state_dict returned ({type(error).__name__}: {error}): pass that"
        ) from error


def _load_rng_state_dict(state_dict: dict[str, Any]) -> None:
    random.setstate(_as_tuples(state_dict["python"]))
    legacy = state_dict["numpy"]
    words = legacy["words"].numpy().astype(np.uint32)
    # NumPy would read memory that is not its own at positions that it was not told by itself.
    _check_position(legacy["position"], _MERSENNE_WORDS)
    _check_position(state_dict["generator"]["buffer_pos"], _PHILOX_WORDS)
    np.random.set_state((legacy["kind"], words, legacy["position"], legacy["has_gauss"], legacy["gauss"]))  # noqa: NPY002
    _PHILOX.state = _philox_state(state_dict["generator"])
    torch.set_rng_state(state_dict["torch"])
    if "cuda" in state_dict and _can_use_cuda():
        # The machine may have fewer GPUs than the one on which the state was taken.
        torch.cuda.set_rng_state_all(state_dict["cuda"][: torch.cuda.device_count()])


def _can_use_cuda() -> bool:
    # A process that was forked after CUDA was initialised, such as a data loader's worker, cannot use it.
    return torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()  # noqa: SLF001 - torch has no public name for it; torch.random asks it, too.


def _check_position(position: object, last: int) -> None:
    if type(position) is not int or not 0 <= position <= last:
        raise ValueError(f"a generator stands at {position!r}, which is none of its {last} words")


def _plain_philox(state: Any) -> dict[str, Any]:
    return {
        "counter": [int(word) for word in state["state"]["counter"]],
        "key": [int(word) for word in state["state"]["key"]],
        "buffer": [int(word) for word in state["buffer"]],
        "buffer_pos": int(state["buffer_pos"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def _philox_state(plain: dict[str, Any]) -> Any:
    return {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array(plain["counter"], dtype=np.uint64),
            "key": np.array(plain["key"], dtype=np.uint64),
        },
        "buffer": np.array(plain["buffer"], dtype=np.uint64),
        "buffer_pos": plain["buffer_pos"],
        "has_uint32": plain["has_uint32"],
        "uinteger": plain["uinteger"],
    }


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
