"""The generators of this process: seeding them in microseconds, and saving and restoring their states."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from helios.core.rng.seeds import check_seed, get_default_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import MethodType

_NUMPY_SEED_MASK: Final = 0xFFFF_FFFF  # numpy.random.seed takes 32 bits.
_HOST_ONLY: Final = ("cpu", "meta")  # Types of devices that have no generator beside the host's.


@dataclasses.dataclass
class DefaultNumpyRNG:
    """A holder of a NumPy generator, so that every holder of it sees a reseeding."""

    generator: np.random.Generator


# Philox is counter-based: setting its key takes under a microsecond, while seeding NumPy's default generator takes 20.
# Setting the state copies it, so one dictionary serves for all seeds: PHILOX_KEY is the array in it that holds the key.
PHILOX: Final = np.random.Philox(key=get_default_seed())
PHILOX_START: Final[Any] = dict(PHILOX.state)
PHILOX_KEY: Final = PHILOX_START["state"]["key"]
_NUMPY_RNG: Final = DefaultNumpyRNG(np.random.Generator(PHILOX))

# The functions of module random are methods of one generator. Its C base class seeds it from an integer directly;
# random.seed does the same after checks in Python, and also clears the cached second Gaussian.
PYTHON_GENERATOR: Final[Any] = cast("MethodType", random.seed).__self__
seed_python: Final = super(random.Random, PYTHON_GENERATOR).seed
seed_torch: Final = torch.default_generator.manual_seed
seed_legacy_numpy: Final = np.random.seed  # The legacy functions are those that many datasets draw from.


def get_default_numpy_rng() -> DefaultNumpyRNG:
    """Return the holder of the NumPy generator that Helios keys along with the others."""
    return _NUMPY_RNG


def key_generators(seed: int) -> None:
    """Seed every generator of the host: torch's, NumPy's two and Python's.

    Args:
        seed: a derived seed in [0, 2**64).
    """
    # Inlined, as this runs before every training step and every sample: 6 to 8 µs.
    seed_torch(seed)
    PHILOX_KEY[0] = seed
    PHILOX.state = PHILOX_START
    seed_legacy_numpy(seed & _NUMPY_SEED_MASK)
    seed_python(seed)
    PYTHON_GENERATOR.gauss_next = None


def make_seed_fn(device: torch.device | None = None) -> Callable[[int], None]:
    """Return the function that seeds the host's generators and that of one accelerator.

    `torch.manual_seed` visits every accelerator and costs hundreds of microseconds; this visits one.

    Args:
        device: the device of the run; `None` or a CPU device for the host's generators only.
    """
    if device is None or device.type in _HOST_ONLY:
        return key_generators
    manual_seed = _accelerator_seed(device)

    def seed_with_accelerator(seed: int) -> None:
        key_generators(seed)
        manual_seed(seed)

    return seed_with_accelerator


_accelerator_seeds: list[Callable[[int], object]] = []  # Of the accelerator that this process trains on, if any.


def _forget_accelerator() -> None:
    _accelerator_seeds.clear()


# A forked process, such as a data loader's worker, inherits the list, but cannot use the GPU of its parent: CUDA does
# not survive a fork (https://docs.pytorch.org/docs/stable/notes/multiprocessing.html).
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_accelerator)


@contextlib.contextmanager
def training_on(device: torch.device) -> Iterator[None]:
    """Make `key_process` seed the generator of a device, too, while the context lasts.

    Args:
        device: the device of the run; a CPU device adds nothing.
    """
    before = list(_accelerator_seeds)
    _accelerator_seeds[:] = [] if device.type in _HOST_ONLY else [_accelerator_seed(device)]
    try:
        yield
    finally:
        _accelerator_seeds[:] = before


def key_process(seed: int) -> None:
    """Seed every generator that data may be drawn from in this process.

    Those are the host's and, where a dataset is read in the process that trains, that of its accelerator.

    Args:
        seed: a derived seed in [0, 2**64).
    """
    key_generators(seed)
    for manual_seed in _accelerator_seeds:
        manual_seed(seed)


def make_rng_state_saver(device: torch.device | None = None) -> Callable[[], Callable[[], None]]:
    """Return a function that saves the states of the generators, and returns the function that restores them.

    The generators are those that `make_seed_fn(device)` seeds. Saving and restoring take 0.1 ms, most of it for NumPy's
    legacy generator. Seeding is faster, but restarts a sequence of draws; this continues in the middle of one.

    Args:
        device: the device of the run; `None` or a CPU device for the host's generators only.
    """
    accelerators: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []
    if device is not None and device.type == "cuda":
        generator = _cuda_generator(device)
        accelerators = [(generator.get_state, generator.set_state)]
    elif device is not None and device.type not in _HOST_ONLY:
        module = getattr(torch, device.type)
        accelerators = [(module.get_rng_state, module.set_rng_state)]

    def save_rng_state() -> Callable[[], None]:
        python, legacy, philox = random.getstate(), np.random.get_state(), PHILOX.state  # noqa: NPY002 - see seed_legacy_numpy.
        host, others = torch.get_rng_state(), [get_state() for get_state, _ in accelerators]

        def restore_rng_state() -> None:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002 - see seed_legacy_numpy.
            PHILOX.state = philox
            torch.set_rng_state(host)
            for (_, set_state), state in zip(accelerators, others, strict=True):
                set_state(state)

        return restore_rng_state

    return save_rng_state


def _accelerator_seed(device: torch.device) -> Callable[[int], object]:
    if device.type == "cuda":
        return _cuda_generator(device).manual_seed
    # mps and xpu offer no generator object; their module's function seeds that of the current device.
    manual_seed: Callable[[int], object] = getattr(torch, device.type).manual_seed
    return manual_seed


def _cuda_generator(device: torch.device) -> torch.Generator:
    # torch makes the generators when it initialises CUDA. A seed that was set before is queued until then, and would
    # overwrite the first one that is set here.
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has not annotated it.
    index = torch.cuda.current_device() if device.index is None else device.index
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


def seed_rngs(seed: int | None = None, skip_torch: bool = False) -> None:
    """Seed Python's, NumPy's and torch's generators, those of all accelerators included.

    Args:
        seed: the seed in [0, 2**63); the default seed if it is `None`.
        skip_torch: leave torch's generators unchanged.

    Raises:
        ConfigurationError: if the seed is out of range.
    """
    seed = check_seed(get_default_seed() if seed is None else seed)
    random.seed(seed)
    seed_legacy_numpy(seed & _NUMPY_SEED_MASK)
    PHILOX_KEY[0] = seed
    PHILOX.state = PHILOX_START
    if not skip_torch:
        torch.manual_seed(seed)
