"""Keying a generator when it is used next: until then, all that a key costs is to note it.

Seeding Python's generator and NumPy's two takes 5 µs or more, and most steps and samples draw from none of them. So
`note_key` notes the key, and a generator that has not taken it yet is seeded with it before anything else is done with
it: before a draw, and before its state is read. What is drawn is the same as if all had been seeded at once.

For that, every use of the generator must pass some code in Python:

- NumPy's random functions hold the `lock` of their bit generator while they draw. The bit generators here are
  subclasses whose lock seeds them before it is acquired.
- The functions of module `random` are methods of one object. It is given a subclass of its class, whose `random` and
  `getrandbits` all other methods call. These two are functions in C, so they are replaced in the module, too. Where
  somebody holds a reference to one of them from before (`from random import random`), it would draw unnoticed: the
  generator is then seeded at once with each key.

A use of torch's generators passes no such code. They are seeded at once.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from helios.core.rng.lazy_numpy import PHILOX, LazyBits, get_legacy, install_legacy
from helios.core.rng.lazy_python import PYTHON, install_python
from helios.core.rng.pending import pending

if TYPE_CHECKING:
    from collections.abc import Callable


def install() -> None:
    """Make the generators wait for their first use; call it again when others may have replaced one."""
    kept = tuple(take for take in pending.at_once if isinstance(getattr(take, "__self__", None), LazyBits))
    pending.at_once = (*install_python(), *install_legacy(), *kept)
    for take in pending.at_once:
        take()


def save_lazy_states() -> Callable[[], None]:
    """Save where Python's generator and NumPy's two are, and return the function that goes back there.

    For one whose key is pending, that is noted, and its state is neither read nor restored.
    """
    key, legacy = pending.key, get_legacy()
    waiting: list[Any] = [
        generator for generator in (PYTHON, legacy, PHILOX) if getattr(generator, "taken", key) is not key
    ]
    restore: list[tuple[Callable[[Any], None], Any]] = []
    if PYTHON not in waiting:
        restore.append((random.setstate, random.getstate()))
    if legacy not in waiting:
        restore.append((np.random.set_state, np.random.get_state()))  # noqa: NPY002 - as above.
    if PHILOX not in waiting:
        restore.append((lambda state: setattr(PHILOX, "state", state), PHILOX.state))

    def restore_lazy_states() -> None:
        pending.key = key
        for set_state, state in restore:
            set_state(state)
        for generator in waiting:
            generator.taken = None

    return restore_lazy_states


pending.at_once = (install,)  # The first key installs them.
