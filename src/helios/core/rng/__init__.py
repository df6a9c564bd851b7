"""Random numbers as a function of where they are drawn, so that a resumed run draws the same ones.

To *key* the generators by (seed, "step", rank, step) means to seed them with `derive_seed(seed, "step", rank, step)`.
Helios keys them before each training step, by (seed, "sample", epoch, index) before a sample is fetched, and so on.
Earlier draws therefore cannot shift later ones: how often validation runs, or which process fetches a sample, changes
nothing, and a resumed run has no generator state to restore.

The generators are those that user code draws from: torch's default generator (and that of the accelerator in use),
Python's `random`, NumPy's legacy `numpy.random.*` functions, and the `numpy.random.Generator` that
`get_default_numpy_rng` holds.
"""

from helios.core.rng.generators import (
    get_default_numpy_rng,
    key_generators,
    key_process,
    make_rng_state_saver,
    make_seed_fn,
    seed_rngs,
    training_on,
)
from helios.core.rng.seeds import SeedSequence, check_seed, derive_seed, get_default_seed
from helios.core.rng.state_dict import get_rng_state_dict, load_rng_state_dict

__all__ = [
    "SeedSequence",
    "check_seed",
    "derive_seed",
    "get_default_numpy_rng",
    "get_default_seed",
    "get_rng_state_dict",
    "key_generators",
    "key_process",
    "load_rng_state_dict",
    "make_rng_state_saver",
    "make_seed_fn",
    "seed_rngs",
    "training_on",
]
