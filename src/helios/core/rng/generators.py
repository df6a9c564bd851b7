"""The generators of this process: seeding them in microseconds, and saving and restoring their states."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, Final

import torch

from helios.core.rng.lazy import install, save_lazy_states
from helios.core.rng.lazy_numpy import NUMPY_GENERATOR
from helios.core.rng.pending import note_key
from helios.core.rng.seeds import check_seed, get_default_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

_HOST_ONLY: Final = ("cpu", "meta")  # Types of devices that have no generator beside the host's.


@dataclasses.dataclass
class DefaultNumpyRNG:
    """A holder of a NumPy generator, so that every holder of it sees a reseeding."""

    generator: np.random.Generator


_NUMPY_RNG: Final = DefaultNumpyRNG(NUMPY_GENERATOR)
seed_torch: Final = torch.default_generator.manual_seed


def get_default_numpy_rng() -> DefaultNumpyRNG:
    """Return the holder of the NumPy generator that Helios keys along with the others."""
    return _NUMPY_RNG


def key_generators(seed: int) -> None:
    """Seed every generator of the host: torch's at once, NumPy's two and Python's before they are used next.

    Args:
        seed: a derived seed in [0, 2**64).
    """
    seed_torch(seed)
    note_key(None, seed)


def make_seed_fn(device: torch.device | None = None) -> Callable[[int], None]:
    """Return the function that seeds the host's generators and that of one accelerator.

    `torch.manual_seed` visits every accelerator and costs hundreds of microseconds; this visits one.

    Args:
        device: the device of the run; `None` or a CPU device for the host's generators only.
    """
    install()  # Again: since the last run, somebody may have given NumPy's legacy functions another bit generator.
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

    The generators are those that `make_seed_fn(device)` seeds. Saving and restoring one that was used since it was
    keyed takes up to 0.1 ms (NumPy's legacy generator). Seeding is faster, but restarts a sequence of draws; this
    continues in the middle of one.

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
        restore_lazy_states = save_lazy_states()
        host, others = torch.get_rng_state(), [get_state() for get_state, _ in accelerators]

        def restore_rng_state() -> None:
            restore_lazy_states()
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
    note_key(None, seed)
    if not skip_torch:
        torch.manual_seed(seed)
