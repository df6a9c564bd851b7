from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from helios.checkpoint.archive import load_archive, save_archive
from helios.core.rng import (
    SeedSequence,
    derive_seed,
    generators,
    get_default_numpy_rng,
    get_default_seed,
    get_rng_state_dict,
    key_generators,
    key_process,
    load_rng_state_dict,
    make_rng_state_saver,
    make_seed_fn,
    seed_rngs,
    training_on,
)
from helios.errors import ConfigurationError
from tests.gpu.tensors import gpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.gpu.driver import Driver

NUMBERS = st.integers(-(2**127), 2**127 - 1)
KEYS = st.lists(NUMBERS | st.text(max_size=8), max_size=5)


def draw_everything() -> list[Any]:
    """Draw each kind of number from each generator; an odd number of Gaussians leaves one cached."""
    return [
        random.random(),
        random.gauss(0, 1),
        random.getrandbits(64),
        float(np.random.random()),
        float(np.random.standard_normal()),
        int(np.random.randint(1000)),
        float(get_default_numpy_rng().generator.standard_normal()),
        int(get_default_numpy_rng().generator.integers(2**31, dtype=np.uint32)),
        torch.rand(3).tolist(),
        torch.randn(1).tolist(),
    ]


def test_the_default_seed_is_a_fact() -> None:
    """The default seed is 6691."""
    assert get_default_seed() == 6691


@pytest.mark.parametrize(
    ("keys", "seed"),
    [
        ((6691,), 2_874_277_560_816_285_663),
        ((6691, "step", 0, 0), 16_368_698_120_182_531_079),
        ((6691, "sample", 3, 12345), 260_774_709_094_452_345),
        ((0, "setup"), 8_162_660_032_511_773_159),
        ((2**63 - 1, "step", -1), 21_518_151_242_678_084),
    ],
)
def test_derived_seeds_never_change(keys: tuple[Any, ...], seed: int) -> None:
    """The values are pinned: another value would change every run that is resumed with a new version."""
    assert derive_seed(*keys) == seed


@given(st.integers(0, 2**63 - 1), KEYS, KEYS)
def test_different_addresses_have_different_seeds(seed: int, first: list[Any], second: list[Any]) -> None:
    """No two lists of keys share a seed, however the same characters are divided among the keys."""
    assert (derive_seed(seed, *first) == derive_seed(seed, *second)) == (first == second)


def test_tags_and_lengths_separate_keys() -> None:
    """("ab", "c"), ("a", "bc"), (1,), ("1",), () and the bytes of a number as text all give different seeds."""
    as_text = (1).to_bytes(16, "little").decode()
    addresses: list[tuple[Any, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (), ("",), (as_text,), (0, 1)]
    assert len({derive_seed(0, *keys) for keys in addresses}) == len(addresses)


@given(st.integers(0, 2**63 - 1), KEYS, NUMBERS)
def test_a_sequence_of_seeds_is_derive_seed(seed: int, keys: list[Any], n: int) -> None:
    """`SeedSequence(seed, *keys)[n]` is `derive_seed(seed, *keys, n)`, in any order of indices."""
    seeds = SeedSequence(seed, *keys)
    assert seeds[n] == derive_seed(seed, *keys, n)
    assert seeds[0] == derive_seed(seed, *keys, 0)
    assert 0 <= seeds[n] < 2**64


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("make", [lambda: key_generators, lambda: make_seed_fn(torch.device("cpu")), make_seed_fn])
def test_keying_reaches_every_generator(seed: int, make: Callable[[], Callable[[int], None]]) -> None:
    """After keying, each generator draws the same, whatever it drew before, cached Gaussians included."""
    key = make()
    key(seed)
    first = draw_everything()
    random.gauss(0, 1)
    np.random.standard_normal()
    get_default_numpy_rng().generator.integers(2**31, dtype=np.uint32)
    key(seed)
    assert draw_everything() == first
    key(seed ^ 1)
    second = draw_everything()
    assert all(new != old for new, old in zip(second, first, strict=True))


def test_keying_python_is_seeding_python() -> None:
    """`key_generators` seeds Python's, NumPy's legacy and torch's generators as their own `seed` functions do."""
    for seed in (0, 7, 2**64 - 1):
        key_generators(seed)
        drawn = [random.random(), random.gauss(0, 1)], np.random.random(2).tolist(), torch.rand(2).tolist()
        random.seed(seed)
        np.random.seed(seed & 0xFFFF_FFFF)
        torch.manual_seed(seed)
        assert drawn == ([random.random(), random.gauss(0, 1)], np.random.random(2).tolist(), torch.rand(2).tolist())


def test_seeding_is_repeatable_and_can_skip_torch() -> None:
    """`seed_rngs` seeds every generator; with `skip_torch` all but torch's."""
    seed_rngs(5)
    first = draw_everything()
    seed_rngs(5)
    assert draw_everything() == first
    seed_rngs()
    default = draw_everything()
    seed_rngs(get_default_seed())
    assert draw_everything() == default
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    seed_rngs(5, skip_torch=True)
    assert torch.equal(torch.rand(2), expected)
    assert random.random() == first[0]


@pytest.mark.parametrize("seed", [-1, 2**63, True, 1.0, "1"])
def test_an_impossible_seed_is_refused(seed: Any) -> None:
    """A seed outside of [0, 2**63), or of another type than int, is an error that states the valid range."""
    with pytest.raises(ConfigurationError, match=r"is out of range: pass an integer in \[0, 2\*\*63\)"):
        seed_rngs(seed)


def test_the_state_of_every_generator_comes_back(tmp_path: Path) -> None:
    """After saving to and loading from a file, all generators continue where they were, cached draws included."""
    draw_everything()
    path = tmp_path / "rng.pth"
    save_archive(path, get_rng_state_dict())
    expected = [draw_everything() for _ in range(3)]
    seed_rngs(99)
    load_rng_state_dict(load_archive(path))
    assert [draw_everything() for _ in range(3)] == expected


def test_a_taken_state_stays_as_it_was() -> None:
    """A state is a snapshot: later draws do not change it."""
    state = get_rng_state_dict()
    expected = draw_everything()
    load_rng_state_dict(state)
    assert draw_everything() == expected


@pytest.mark.parametrize("device", [None, torch.device("cpu"), torch.device("meta")])
def test_a_saved_state_is_restored(device: torch.device | None) -> None:
    """After restoring, each generator draws what it drew after the state was saved, cached Gaussians included."""
    save_rng_state = make_rng_state_saver(device)
    draw_everything()
    restore_rng_state = save_rng_state()
    expected = draw_everything()
    for seed in (3, 4):
        key_generators(seed)
        draw_everything()
        restore_rng_state()
        assert draw_everything() == expected


def test_saving_asks_the_module_of_other_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an accelerator has no generator object, the functions of its module save and restore its state."""
    state = [torch.tensor([1, 2])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", state.append)
    make_rng_state_saver(torch.device("mps"))()()
    assert state[1] is state[0]


def test_keying_reaches_the_gpu(cuda: Driver | None) -> None:
    """The seed function of a CUDA device seeds that device, too, and the state dictionary contains its state.

    This also holds when CUDA has not been initialised: there are no generators yet, and an earlier seed is queued.
    """
    del cuda
    torch.manual_seed(5)
    key = make_seed_fn(torch.device("cuda", 0))
    key(3)
    first = torch.rand(4, device="cuda"), torch.rand(4)
    key(3)
    assert all(map(torch.equal, first, (torch.rand(4, device="cuda"), torch.rand(4))))
    state = get_rng_state_dict()
    expected = torch.rand(4, device="cuda")
    load_rng_state_dict(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
    load_rng_state_dict({**state, "cuda": [*state["cuda"], state["cuda"][0]]})  # Of a machine with one GPU more.
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_a_saved_state_of_the_gpu_is_restored(cuda: Driver | None) -> None:
    """The state saver of a CUDA device restores that device, too, also if it is the first to use CUDA."""
    del cuda
    restore_rng_state = make_rng_state_saver(torch.device("cuda", 0))()
    expected = torch.rand(4, device="cuda"), torch.rand(4)
    make_seed_fn(torch.device("cuda", 0))(3)
    restore_rng_state()
    assert all(map(torch.equal, expected, (torch.rand(4, device="cuda"), torch.rand(4))))


class Counting(Dataset[int]):
    """Returns how many accelerators `key_process` seeds in the process that fetches a sample."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return len(generators._accelerator_seeds)


def test_a_forked_worker_keys_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process, which cannot use the GPU of its parent, keys the host's generators alone."""
    monkeypatch.setattr(generators, "_accelerator_seeds", [lambda _: None])
    loader = DataLoader(Counting(), num_workers=1, multiprocessing_context="fork")
    assert [int(count) for count in loader] == [0]
    assert [int(count) for count in DataLoader(Counting())] == [1]


def test_data_is_keyed_on_the_gpu_that_trains(cuda: Driver | None) -> None:
    """While a run on a GPU lasts, reading data in its process keys the generator of the GPU, too."""
    del cuda
    device = torch.device("cuda", 0)
    with training_on(device):
        key_process(3)
        first = torch.rand(4, device="cuda"), torch.rand(4)
        key_process(3)
        assert all(map(torch.equal, first, (torch.rand(4, device="cuda"), torch.rand(4))))
        with training_on(torch.device("cpu")):
            key_process(3)
        second = torch.rand(4, device="cuda"), torch.rand(4)
        assert (torch.equal(first[0], second[0]), torch.equal(first[1], second[1])) == (False, True)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build has the real driver")
def test_a_forked_process_has_the_generators_of_the_host() -> None:
    """The state of a forked process, which cannot use GPUs, is that of the host's generators alone."""
    with gpus(1) as driver:
        state = get_rng_state_dict()
        assert "cuda" in state
        driver._process = os.getppid()  # As if this process had been forked from the one that has used the GPU.
        assert "cuda" not in get_rng_state_dict()
        load_rng_state_dict(state)
