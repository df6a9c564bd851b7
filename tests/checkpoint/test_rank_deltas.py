"""A checkpoint holds for each rank all that it has apart from rank 0."""

from __future__ import annotations

import collections
import copy
import math
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.checkpoint.archive import load_archive, save_archive
from helios.checkpoint.rank_deltas import RankDelta, apply_rank_delta, collect_rank_deltas, select_rank_state
from helios.core.distributed import DistributedInfo
from helios.errors import ArgumentTypeError, CheckpointMismatchError
from helios.ranks.host_group import HostGroup
from helios.testing import are_equal

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


class Table:
    """What ranks lay on the table for each other, one after the other in one process."""

    def __init__(self) -> None:
        self.shared: bytes | None = None


class TurnByTurn(HostGroup):
    """One of several ranks that have their turns one after the other; rank 0 has the first."""

    def __init__(self, rank: int, world_size: int, table: Table) -> None:
        super().__init__(DistributedInfo(rank, world_size, rank, world_size))
        self._table = table

    def broadcast_object(self, value: Any) -> Any:
        if self.rank == 0:
            self._table.shared = pickle.dumps(value)
        assert self._table.shared is not None
        return pickle.loads(self._table.shared)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return what this rank has said; the rest is not needed."""
        return [pickle.loads(pickle.dumps(value))]


def ranks(count: int) -> list[TurnByTurn]:
    table = Table()
    return [TurnByTurn(rank, count, table) for rank in range(count)]


def overlays_of(states: list[dict[str, Any]]) -> list[RankDelta]:
    """Return what each rank has apart from rank 0."""
    together = zip(states, ranks(len(states)), strict=True)
    return [collect_rank_deltas(state, host_group)[0] for state, host_group in together]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 2), max_size=2))
    values = draw(st.lists(st.sampled_from([0.0, -0.0, 1.0, math.nan]), min_size=4, max_size=4))
    return torch.tensor(values[: math.prod(shape)]).reshape(shape).to(draw(st.sampled_from(DTYPES)))


# Few keys and few values, so that two states have much in common.
LEAVES = (
    st.sampled_from([None, True, 1, 1.0, 0.0, -0.0, math.nan, math.inf, 1j, "", "a", b"", b"a", torch.float16])
    | st.sampled_from([(), [], {1, "a"}, {}, [{}], [math.nan], (1, 2), [b""], [np.zeros(2)], np.arange(3), np.zeros(0)])
    | tensors()
)
TABLES = st.recursive(
    LEAVES,
    lambda parts: (
        st.dictionaries(st.sampled_from(["a", "b", "c"]), parts, max_size=3)
        | st.dictionaries(st.sampled_from([7, (7, "a")]), parts, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "b"]), parts, max_size=2).map(collections.OrderedDict)
        | st.lists(parts, max_size=2)
    ),
    max_leaves=8,
)
# The outermost keys come from one line of code, in one order.
STATES = st.tuples(TABLES, TABLES).map(lambda parts: {"model": parts[0], "plugins": parts[1]})


@settings(max_examples=300)
@given(STATES, STATES)
def test_a_rank_is_rank_0_with_what_it_has_apart(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Rank 0's state with another rank's rank_delta is that rank's, to the bit, the order of keys included."""
    before = copy.deepcopy(first)
    nothing, rank_delta = overlays_of([first, second])
    assert nothing == []
    assert are_equal(apply_rank_delta(first, rank_delta), second)
    assert are_equal(first, before), "rank 0's state is shared by all, and never changed"


@given(STATES)
def test_what_is_the_same_is_not_kept_twice(state: dict[str, Any]) -> None:
    """A rank that has what rank 0 has adds nothing to a checkpoint."""
    assert overlays_of([state, copy.deepcopy(state)]) == [[], []]


def test_only_what_differs_is_kept() -> None:
    """The rank_delta has the leaves that differ, and weights that all ranks share are not among them."""
    weights = {"net": {"weight": torch.ones(1000), "bias": torch.ones(10)}}
    first = {"model": weights, "plugins": {"a": {"seen": 3, "limit": 9}}}
    second = {"model": copy.deepcopy(weights), "plugins": {"a": {"limit": 9, "seen": 4, "own": 1}}}
    (_, rank_delta) = overlays_of([first, second])
    assert {path for path, *_ in rank_delta} == {("plugins", "a", "seen"), ("plugins", "a", "own"), ("plugins", "a")}
    applied = apply_rank_delta(first, rank_delta)
    assert applied["model"]["net"] is weights["net"]
    assert list(applied["plugins"]["a"]) == ["limit", "seen", "own"]


@settings(max_examples=50)
@given(st.lists(STATES, min_size=2, max_size=3))
def test_each_rank_gets_its_own_share_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, Any]]
) -> None:
    """Through a file, every one of two or three ranks gets back what it had."""
    path = tmp_path_factory.mktemp("share") / "archive"
    save_archive(path, {**states[0], "ranks": overlays_of(states)})
    shares = [select_rank_state(load_archive(path), host_group) for host_group in ranks(len(states))]
    assert all(map(are_equal, shares, states))


@pytest.mark.parametrize(
    "make",
    [
        lambda size: torch.tensor([1 + 2j, 3] * size).conj(),
        lambda size: torch.tensor([1 + 2j, 3] * size).conj().imag,
        lambda size: torch.arange(6.0 * size).reshape(2, 3 * size).t(),
        lambda size: torch.eye(size).to_sparse(),
        lambda size: torch.eye(size).to_sparse_csr(),
        lambda size: torch.nn.Parameter(torch.ones(size)),
        lambda size: torch.ones(size, device="meta"),
    ],
)
def test_tensors_of_every_kind_are_compared(make: Callable[[int], torch.Tensor]) -> None:
    """Views, transposed and sparse tensors, as the gradients of an embedding may be, are told from others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rank_deltas = overlays_of([{"g": {"a": make(size)}} for size in (2, 2, 3)])
    assert rank_deltas[:2] == [[], []]
    ((path, value, _),) = rank_deltas[2]
    assert path == ("g", "a")
    assert value.shape == make(3).shape


def test_what_cannot_be_saved_is_refused_by_its_path() -> None:
    """What is no plain data is refused on the rank that has it, whichever it is."""
    with pytest.raises(ArgumentTypeError, match=r"checkpoint\['plugins'\]\['a'\]\[1\] is a builtins.object"):
        overlays_of([{"plugins": {"a": 1}}, {"plugins": {"a": [0, object()]}}])


@pytest.mark.timeout(60)  # Seconds; with a copy for each of the samples it takes several minutes.
def test_a_large_overlay_is_applied_at_once() -> None:
    """What one rank has for each of its samples is taken over in a time that grows with their number alone."""
    first, second = ({"plugins": {"a": {"losses": dict.fromkeys(range(100_000), loss)}}} for loss in (0.5, 1.5))
    (_, rank_delta) = overlays_of([first, second])
    assert apply_rank_delta(first, rank_delta) == second


def share_of(rank: int, count: int, data: dict[str, Any]) -> dict[str, Any]:
    """Return what a rank of so many gets of a checkpoint."""
    return select_rank_state(data, ranks(count)[rank])


def checkpoint_of(*states: dict[str, Any]) -> dict[str, Any]:
    return {**states[0], "ranks": overlays_of([*states])}


@pytest.mark.parametrize("count", [1, 3])
def test_with_other_ranks_gradients_in_flight_are_averaged(count: int) -> None:
    """With another number of ranks, all continue with the mean of the gradients; a rank without one counts as zero."""
    both, one = torch.tensor([1.0, 2.0]), torch.tensor([4.0])
    data = checkpoint_of(
        {"gradients": {"a": both, "b": one}, "plugins": {"seen": 1}},
        {"gradients": {"a": 3 * both, "c": 2 * one}, "plugins": {"seen": 2}},
    )
    for rank in range(count):
        share = share_of(rank, count, data)
        assert "ranks" not in share
        assert {name: gradient.tolist() for name, gradient in share["gradients"].items()} == {
            "a": [2.0, 4.0],
            "b": [2.0],
            "c": [4.0],
        }
        assert share["plugins"] == {"seen": 2 if rank == 1 else 1}, "a new rank begins with what rank 0 had"


def test_gradients_that_are_alike_stay_as_they_are() -> None:
    """Gradients that all ranks have in common are no sum of anything, and are kept to the bit."""
    gradients = {"a": torch.tensor([0.1, 0.2])}
    share = share_of(0, 1, checkpoint_of({"gradients": gradients}, {"gradients": copy.deepcopy(gradients)}))
    assert are_equal(share["gradients"], gradients)


def test_a_stream_is_resumed_by_as_many_ranks() -> None:
    """In the middle of a stream each rank had its own part, and another number of ranks is refused."""
    states = [{"training": {"feed": {"kind": "stream", "position": 5 + rank}}, "gradients": {}} for rank in range(2)]
    data = checkpoint_of(*states)
    assert [share_of(rank, 2, data) for rank in range(2)] == states
    for count in (1, 3):
        with pytest.raises(CheckpointMismatchError, match=f"2 ranks had its own part, .* are {count}: resume"):
            share_of(0, count, data)
    with pytest.raises(CheckpointMismatchError, match="1 ranks had its own part, and now there are 2"):
        share_of(0, 2, states[0])


def test_a_checkpoint_of_one_process_is_everybody_s() -> None:
    """What one process has saved, all ranks begin with; what two have saved, one begins with rank 0's part."""
    alone = {"model": {"a": 1}, "gradients": {}}
    assert [share_of(rank, 2, alone) for rank in range(2)] == [alone, alone]
    assert share_of(0, 1, checkpoint_of(alone, {**alone, "model": {"a": 2}})) == alone
