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
from helios.core import rng
from helios.core.rng import (
    SeedSequence,
    derive_seed,
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
    """Draw from each generator, of each kind of number; an odd number of Gaussians leaves one cached."""
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
    """No two lists of keys share a seed, wherever the bounds between the keys lie."""
    assert (derive_seed(seed, *first) == derive_seed(seed, *second)) == (first == second)


def test_tags_and_lengths_separate_keys() -> None:
    """("ab", "c"), ("a", "bc"), (1,), ("1",), () and the bytes of a number as text are all apart."""
    as_text = (1).to_bytes(16, "little").decode()
    addresses: list[tuple[Any, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), (1,), ("1",), (), ("",), (as_text,), (0, 1)]
    assert len({derive_seed(0, *keys) for keys in addresses}) == len(addresses)


@given(st.integers(0, 2**63 - 1), KEYS, NUMBERS)
def test_a_sequence_of_seeds_is_derive_seed(seed: int, keys: list[Any], n: int) -> None:
    """`SeedSequence(seed, *keys)[n]` is `derive_seed(seed, *keys, n)`, in any order of asking."""
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
    """The short way into Python's generator gives what `random.seed` gives, and so does the one into NumPy's."""
    for seed in (0, 7, 2**64 - 1):
        key_generators(seed)
        drawn = [random.random(), random.gauss(0, 1)], np.random.random(2).tolist(), torch.rand(2).tolist()
        random.seed(seed)
        np.random.seed(seed & 0xFFFF_FFFF)
        torch.manual_seed(seed)
        assert drawn == ([random.random(), random.gauss(0, 1)], np.random.random(2).tolist(), torch.rand(2).tolist())


def test_seeding_is_repeatable_and_can_skip_torch() -> None:
    """`seed_rngs` puts every generator to the start of a seed's stream; with `skip_torch` all but torch's."""
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
    """A seed outside of [0, 2**63), or that is no integer, is an error that says which seeds there are."""
    with pytest.raises(ConfigurationError, match=r"is out of range: pass an integer in \[0, 2\*\*63\)"):
        seed_rngs(seed)


def test_the_state_of_every_generator_comes_back(tmp_path: Path) -> None:
    """After a trip through a file, all generators go on where they were, in the middle of cached draws."""
    draw_everything()
    path = tmp_path / "rng.pth"
    save_archive(path, get_rng_state_dict())
    expected = [draw_everything() for _ in range(3)]
    seed_rngs(99)
    load_rng_state_dict(load_archive(path))
    assert [draw_everything() for _ in range(3)] == expected


def test_a_taken_state_stays_as_it_was() -> None:
    """A state is a snapshot: drawing on does not change it."""
    state = get_rng_state_dict()
    expected = draw_everything()
    load_rng_state_dict(state)
    assert draw_everything() == expected


@pytest.mark.parametrize("device", [None, torch.device("cpu"), torch.device("meta")])
def test_a_mark_is_gone_back_to(device: torch.device | None) -> None:
    """After going back, each generator draws what it drew after the mark, cached Gaussians and all."""
    mark = make_rng_state_saver(device)
    draw_everything()
    go_back = mark()
    expected = draw_everything()
    for seed in (3, 4):
        key_generators(seed)
        draw_everything()
        go_back()
        assert draw_everything() == expected


def test_marking_asks_the_module_of_other_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an accelerator has no generator object, its module's functions mark, and go back."""
    state = [torch.tensor([1, 2])]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", state.append)
    make_rng_state_saver(torch.device("mps"))()()
    assert state[1] is state[0]


def test_keying_reaches_the_gpu(cuda: Driver | None) -> None:
    """The keyer of a CUDA device keys that device, too, and so does the state dictionary.

    Also before anything has initialised CUDA, when there are no generators yet, and a seed is still to be applied.
    """
    del cuda
    torch.manual_seed(5)
    key = make_seed_fn(torch.device("cuda", 0))
    key(3)
    first = torch.rand(4, device="cuda"), torch.rand(4)
    key(3)
    assert all(map(torch.equal, first, (torch.rand(4, device="cuda"), torch.rand(4))))
    state = rng.get_rng_state_dict()
    expected = torch.rand(4, device="cuda")
    load_rng_state_dict(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
    load_rng_state_dict({**state, "cuda": [*state["cuda"], state["cuda"][0]]})  # Of a machine with one GPU more.
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_a_mark_on_the_gpu_is_gone_back_to(cuda: Driver | None) -> None:
    """The marker of a CUDA device goes back on that device, too, also if it is the first to use CUDA."""
    del cuda
    go_back = make_rng_state_saver(torch.device("cuda", 0))()
    expected = torch.rand(4, device="cuda"), torch.rand(4)
    make_seed_fn(torch.device("cuda", 0))(3)
    go_back()
    assert all(map(torch.equal, expected, (torch.rand(4, device="cuda"), torch.rand(4))))


class Counting(Dataset[int]):
    """Tells how many accelerators `key_process` keys where a sample is fetched."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return len(rng._accelerator_seeds)


def test_a_forked_worker_keys_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process cannot use the GPU of its parent, whoever has started it: it keys the host alone."""
    monkeypatch.setattr(rng, "_accelerator_seeds", [lambda _: None])
    loader = DataLoader(Counting(), num_workers=1, multiprocessing_context="fork")
    assert [int(count) for count in loader] == [0]
    assert [int(count) for count in DataLoader(Counting())] == [1]


def test_data_is_keyed_on_the_gpu_that_trains(cuda: Driver | None) -> None:
    """While a run on a GPU lasts, data that is read in its process is keyed there, too."""
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


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build has what is stood in for")
def test_a_forked_process_has_the_generators_of_the_host() -> None:
    """The state is that of the generators a process can use: one that was forked leaves GPUs alone."""
    with gpus(1) as driver:
        state = rng.get_rng_state_dict()
        assert "cuda" in state
        driver._process = os.getppid()  # As if this process had been forked from the one that has used the GPU.
        assert "cuda" not in rng.get_rng_state_dict()
        load_rng_state_dict(state)
