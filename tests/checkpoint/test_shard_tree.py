from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from helios.checkpoint.plain import encode
from helios.checkpoint.shard_tree import has_shards, map_tree, put_shards_in, take_shards_out
from helios.errors import ArgumentTypeError, CheckpointMismatchError
from helios.ranks.mesh import make_mesh

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("alone")


def sharded(tensor: torch.Tensor, placement: Any = None) -> Any:
    from torch.distributed.tensor import DTensor, Shard  # noqa: PLC0415 - the library loads it late, too.

    return DTensor.from_local(tensor, make_mesh("cpu"), [placement or Shard(0)])


def test_a_tree_shares_what_stays(tmp_path: Path) -> None:
    """Leaves are changed by their paths; parts without changes are the same objects, and types and attributes stay."""
    state = cast("Any", collections.OrderedDict(a=1, b=2))
    state._metadata = {"version": 3}  # As torch does.
    tree = {"x": state, "y": [1, (2, "a")], "z": {"same": [tmp_path]}}
    assert map_tree(tree, lambda _, leaf: leaf) is tree
    changed = map_tree(tree, lambda path, leaf: f"{path}" if leaf in (2, "a") else leaf)
    assert changed == {
        "x": {"a": 1, "b": "('x', 'b')"},
        "y": [1, ("('y', 1, 0)", "('y', 1, 1)")],
        "z": {"same": [tmp_path]},
    }
    assert vars(changed["x"]) == {"_metadata": {"version": 3}}
    assert isinstance(changed["x"], collections.OrderedDict)
    assert changed["z"] is tree["z"]
    assert state["b"] == 2


def test_keys_tell_places_apart() -> None:
    """No two places of a tree have the same key, however they are named; descriptions say what was there."""
    tree = {"a": {"b": 0, 1: 0, "1": 0, "[1]": 0, "%": 0}, "a/b": 0, "a%2Fb": 0, "l": [0, {"__metadata__": 0}]}
    tree = map_tree(tree, lambda *_: sharded(torch.zeros(2, 3, dtype=torch.half)))
    plain, tensors, _ = take_shards_out(tree)
    assert sorted(tensors) == sorted({
        "/a/b", "/a/[1]", "/a/1", "/a/%5B1%5D", "/a/%25", "/a%2Fb", "/a%252Fb", "/l/[0]", "/l/[1]/__metadata__",
    })  # fmt: skip
    assert plain["a"][1] == {
        "__helios_shards__": "/a/[1]",
        "shape": [2, 3],
        "dtype": torch.half,
        "cut_along": [0],
    }
    assert encode(plain) is plain
    assert has_shards(tree)
    assert not has_shards(plain)


def test_ranks_can_compare_their_plans() -> None:
    """A digest depends on places, shapes, dtypes and placements of sharded tensors, and on nothing else."""
    from torch.distributed.tensor import Replicate  # noqa: PLC0415 - the library loads it late, too.

    def digest(name: str, tensor: Any, other: Any = 0) -> str:
        return take_shards_out({name: tensor, "other": other})[2]

    first = digest("a", sharded(torch.zeros(2)))
    assert first == digest("a", sharded(torch.ones(2)), other=torch.ones(3))
    others = [
        digest("b", sharded(torch.zeros(2))),
        digest("a", sharded(torch.zeros(3))),
        digest("a", sharded(torch.zeros(2, dtype=torch.half))),
        digest("a", sharded(torch.zeros(2), Replicate())),
        digest("a", torch.zeros(2)),
    ]
    assert len({first, *others}) == 6


def test_what_shards_cannot_be_written_of_is_refused() -> None:
    """Pending sums, complex numbers and the name of a description are refused by their places, with a remedy."""
    from torch.distributed.tensor import Partial  # noqa: PLC0415 - the library loads it late, too.

    for value, message in [
        (sharded(torch.ones(2), Partial()), r"/a/\[0\] is placed as .*Partial.*redistribute\(\) it before"),
        (sharded(torch.ones(2, dtype=torch.complex64)), r"/a/\[0\] .* torch.complex64, .*view_as_real"),
        ({"__helios_shards__": 1}, r"/a/\[0\] has the key '__helios_shards__', .* use another one"),
    ]:
        with pytest.raises(ArgumentTypeError, match=message):
            take_shards_out({"a": [value]})


def test_tensors_that_share_memory_are_written_apart() -> None:
    """Tied and transposed tensors come out contiguous, each in memory of its own; others are not copied."""
    tensor = sharded(torch.arange(6.0).reshape(2, 3))
    tree = {"a": tensor, "b": tensor.detach(), "c": sharded(torch.arange(6.0).reshape(3, 2).t())}
    _, tensors, _ = take_shards_out(tree)
    parts = {key: part.to_local() for key, part in tensors.items()}  # type: ignore[attr-defined]  # all are sharded
    assert all(part.is_contiguous() for part in parts.values())
    assert len({part.untyped_storage().data_ptr() for part in parts.values()}) == 3
    assert parts["/a"].data_ptr() == tensor.to_local().data_ptr()
    assert torch.equal(parts["/b"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(parts["/c"], torch.arange(6.0).reshape(3, 2).t())


def test_descriptions_become_tensors() -> None:
    """New tensors are as they were described: cut over a mesh of as many dimensions, or whole without one."""
    plain, _, _ = take_shards_out({"a": [sharded(torch.ones(5, 2).bool())], "b": 1})
    for mesh in (None, make_mesh("cpu")):
        filled, tensors = put_shards_in(plain, mesh)
        assert filled["a"][0] is tensors["/a/[0]"]
        assert (tensors["/a/[0]"].shape, tensors["/a/[0]"].dtype) == ((5, 2), torch.bool)
        assert has_shards(filled) == (mesh is not None)
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - the library loads it late, too.

    with pytest.raises(CheckpointMismatchError, match="/a/.0. was saved .* mesh of 1 dimensions, and the mesh has 2"):
        put_shards_in(plain, init_device_mesh("cpu", (1, 1)))


def test_one_file_does_not_hold_a_part() -> None:
    """A sharded tensor is refused where plain data is written to one file, by its path, with a remedy."""
    with pytest.raises(
        ArgumentTypeError, match=r"state\['a'\] is a sharded tensor .DTensor.*save_sharded on all ranks"
    ):
        encode({"a": sharded(torch.ones(2))})
