"""Keys that Python's generator and NumPy's two take when they are used next."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.core.rng import get_default_numpy_rng, key_generators, make_rng_state_saver
from helios.core.rng.lazy import install
from helios.core.rng.lazy_numpy import MT19937, PHILOX, get_legacy
from helios.core.rng.lazy_python import PYTHON
from helios.core.rng.pending import pending

if TYPE_CHECKING:
    from collections.abc import Callable

# Bound before Helios changes anything, as in a module that was imported earlier.
seed, getstate, setstate, gauss = random.seed, random.getstate, random.setstate, random.gauss
legacy_random: Any = np.random.rand

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "beta": (1, 2),
    "betavariate": (1, 2),
    "binomial": (9, 0.5),
    "binomialvariate": (9, 0.5),
    "bytes": (3,),
    "chisquare": (2,),
    "choice": ([1, 2, 3],),
    "choices": ([1, 2, 3],),
    "dirichlet": ([1.0, 2.0],),
    "expovariate": (1.0,),
    "f": (2, 3),
    "gamma": (2,),
    "gammavariate": (1, 2),
    "geometric": (0.3,),
    "getrandbits": (70,),
    "gumbel": (),
    "hypergeometric": (5, 6, 4),
    "integers": (100,),
    "logseries": (0.5,),
    "lognormvariate": (0, 1),
    "multinomial": (5, [0.5, 0.5]),
    "multivariate_hypergeometric": ([5, 6], 4),
    "multivariate_normal": ([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]),
    "negative_binomial": (3, 0.5),
    "noncentral_chisquare": (2, 3),
    "noncentral_f": (2, 3, 4),
    "normalvariate": (),
    "paretovariate": (1,),
    "pareto": (1,),
    "permutation": (9,),
    "permuted": (list(range(9)),),
    "power": (2,),
    "randbytes": (4,),
    "randint": (1, 99),
    "random_integers": (99,),
    "randrange": (99,),
    "sample": (range(99), 3),
    "shuffle": ([*range(9)],),
    "standard_gamma": (2,),
    "standard_t": (2,),
    "triangular": (0, 1, 2),
    "uniform": (0, 1),
    "vonmises": (0, 1),
    "vonmisesvariate": (0, 1),
    "wald": (1, 1),
    "weibull": (2,),
    "weibullvariate": (1, 2),
    "zipf": (2,),
}
NOT_DRAWING = {"seed", "setstate", "set_state", "spawn", "bit_generator"}


def functions_of(owner: Any, of: Any) -> list[str]:
    """Return the names of the public functions of `owner` that are methods of `of`."""
    return [
        name
        for name in dir(owner)
        if not name.startswith("_")
        and name not in NOT_DRAWING
        and getattr(getattr(owner, name), "__self__", None) is of
    ]


GENERATOR = get_default_numpy_rng().generator
CASES = [
    *((random, name) for name in functions_of(random, PYTHON)),
    *((np.random, name) for name in functions_of(np.random, legacy_random.__self__)),
    *((GENERATOR, name) for name in functions_of(GENERATOR, GENERATOR)),
    (get_legacy, "random_raw"),
    (PHILOX, "random_raw"),
]


def seed_at_once(number: int) -> None:
    """Seed all three as each library does it."""
    random.seed(number)
    np.random.seed(number & 0xFFFF_FFFF)
    PHILOX.state = np.random.Philox(key=number).state


@pytest.fixture(autouse=True)
def keyed() -> None:
    """Helios has keyed the generators before."""
    key_generators(1)


@pytest.mark.filterwarnings("ignore:This function is deprecated")
@pytest.mark.parametrize(("owner", "name"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_function_takes_the_key_first(owner: Any, name: str) -> None:
    """Every function of `random`, `numpy.random` and of the generator returns after a key what seeding gives."""
    draw = getattr(owner() if owner is get_legacy else owner, name)
    found = []
    for key in (key_generators, seed_at_once):
        random.gauss(), np.random.standard_normal(), GENERATOR.integers(9, dtype=np.uint32)
        key(7)
        arguments = copy.deepcopy(ARGUMENTS.get(name, ()))
        if name == "triangular" and owner is random:
            arguments = (0, 1)
        found.append(repr((draw(*arguments), arguments, random.random(), legacy_random(), GENERATOR.random())))
    assert found[0] == found[1]


Action = tuple[str, "Callable[[], Any]"]
STATES: list[Any] = []
ACTIONS: dict[str, Callable[[], Any]] = {
    "key": lambda: key_generators(random.getrandbits(63)),
    "same key": lambda: key_generators(5),
    "python": lambda: random.random(),  # noqa: PLW0108 - looked up at each call, on purpose.
    "python int": lambda: random.randrange(2**70),
    "python gauss": gauss,
    "legacy": legacy_random,
    "legacy gauss": np.random.standard_normal,
    "generator": GENERATOR.random,
    "generator int": lambda: int(GENERATOR.integers(2**20, dtype=np.uint32)),
    "seed python": lambda: seed(3),
    "seed legacy": lambda: np.random.seed(3),
    "take python": lambda: STATES.append((setstate, getstate())),
    "take legacy": lambda: STATES.append((np.random.set_state, np.random.get_state())),
    "take generator": lambda: STATES.append((lambda s: setattr(PHILOX, "state", s), PHILOX.state)),
    "restore last": lambda: STATES and STATES[-1][0](STATES[-1][1]),
    "save all": lambda: STATES.append((lambda restore: restore(), make_rng_state_saver()())),
}


def play(names: list[str]) -> list[str]:
    """Return what a sequence of actions returns."""
    STATES.clear()
    seed_at_once(11)
    return [repr(result) if isinstance(result := ACTIONS[name](), float | int) else "" for name in names]


@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=25))
@settings(max_examples=300, deadline=None)
def test_waiting_for_the_first_use_changes_no_draw(names: list[str]) -> None:
    """Keys, draws, seeds and saved states in any order: each draw is that of generators that are seeded at once."""
    waiting = play(names)
    kept = pending.at_once
    pending.at_once = (PYTHON.take, get_legacy().take, PHILOX.take)
    try:
        assert play(names) == waiting
    finally:
        pending.at_once = kept


def test_a_key_that_nobody_has_taken_is_saved_and_restored() -> None:
    """Restoring makes a key pending again, whatever was drawn and keyed since, and as often as it is called."""
    key_generators(5)
    restore = make_rng_state_saver()()
    expected = random.random(), legacy_random(), GENERATOR.random()
    for number in (None, 6):
        if number is not None:
            key_generators(number)
        random.random(), legacy_random(), GENERATOR.random()
        restore()
        assert (random.random(), legacy_random(), GENERATOR.random()) == expected


def test_in_the_tests_all_three_wait() -> None:
    """Nothing here is seeded at once, so that the tests above are of what they say."""
    assert pending.at_once == ()
    key_generators(3)
    assert all(generator.taken is not pending.key for generator in (PYTHON, get_legacy(), PHILOX))
    random.random(), legacy_random(), GENERATOR.random()
    assert all(generator.taken is pending.key for generator in (PYTHON, get_legacy(), PHILOX))


def test_a_copy_is_an_ordinary_generator() -> None:
    """Copies, jumped and spawned ones have no part in later keys, and pickles need no Helios."""
    key_generators(5)
    legacy = get_legacy()
    copies = [
        *(make(generator) for generator in (legacy, PHILOX, PYTHON) for make in (copy.copy, copy.deepcopy)),
        *(pickle.loads(pickle.dumps(generator)) for generator in (legacy, PHILOX, PYTHON)),
        *(generator.jumped() for generator in (legacy, PHILOX)),
        *MT19937(7).spawn(1),
    ]
    assert {type(made) for made in copies} == {np.random.MT19937, np.random.Philox, random.Random}
    assert copies[0].random_raw() == legacy.random_raw()
    assert copies[2].random_raw() == PHILOX.random_raw()
    assert copies[4].random() == random.random()
    PHILOX.advance(3)
    key_generators(5)
    plain = copy.copy(PHILOX)
    PHILOX.advance(3)
    assert PHILOX.random_raw() == plain.advance(3).random_raw()


def test_where_pointers_are_given_out_every_key_is_taken_at_once() -> None:
    """Code in C may draw through the pointers of a bit generator without its lock."""
    kept = pending.at_once
    try:
        key_generators(5)
        expected = PHILOX.random_raw()
        function = PHILOX.ctypes.next_uint64
        for _ in range(2):
            key_generators(5)
            assert function(PHILOX.ctypes.state) == expected
        install()
        assert PHILOX.take in pending.at_once
    finally:
        pending.at_once = kept


def test_another_bit_generator_of_the_legacy_functions_is_seen() -> None:
    """One that `numpy.random.set_bit_generator` has set since is replaced when a run begins, or seeded at once."""
    mine: Any = get_legacy()
    try:
        np.random.set_bit_generator(np.random.MT19937(4))  # type: ignore[attr-defined]  # NumPy has not annotated it.
        np.random.seed(4)
        expected = legacy_random(), np.random.standard_normal()
        np.random.seed(4)
        pending.key = None
        install()
        assert type(get_legacy()) is MT19937
        assert (legacy_random(), np.random.standard_normal()) == expected
        np.random.set_bit_generator(np.random.PCG64(4))  # type: ignore[attr-defined]  # as above
        install()
        drawn = []
        for _ in range(2):
            key_generators(3)
            drawn.append(legacy_random())
        assert drawn[0] == drawn[1]
    finally:
        np.random.set_bit_generator(mine)  # type: ignore[attr-defined]  # as above
        pending.at_once = ()


HELD = """
import random
{imports}
from helios.core.rng import key_generators
from helios.core.rng.pending import pending
found = []
for _ in range(2):
    key_generators(5)
    found.append({draw})
random.seed(5)
print(found == [{draw}] * 2 or found == [found[0]] * 2 and found[0] == {again}, len(pending.at_once))
"""


@pytest.mark.parametrize(
    ("imports", "draw", "waits"),
    [
        ("from random import random as draw", "draw()", False),
        ("from random import getrandbits as draw", "draw(64)", False),
        ("from random import uniform as draw", "draw(0, 1)", True),
        ("import random as other", "other.random()", True),
    ],
)
def test_functions_that_were_imported_before_draw_by_the_key(imports: str, draw: str, waits: bool) -> None:
    """`from random import random` before Helios: the draws are those of the key, seeded at once as nothing else can."""
    again = f"(random.seed(5), {draw})[1]"
    script = HELD.format(imports=imports, draw=draw, again=again)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert ran.stdout.split() == ["True", "0" if waits else "1"]
