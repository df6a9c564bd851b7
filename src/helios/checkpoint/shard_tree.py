"""Trees of plain data with sharded tensors (`DTensor`) in them: finding them, taking them out and putting them in.

Nothing here imports what it does not need: whoever has no sharded tensor never loads the package that makes them.
"""

from __future__ import annotations

import copy
import hashlib
import sys
import urllib.parse
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import torch

from helios.errors import ArgumentTypeError, CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_MARK: Final = "__helios_shards__"


def may_be_sharded() -> bool:
    """Whether there can be a sharded tensor in this process: what makes them has been imported."""
    return "torch.distributed.tensor" in sys.modules


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether this is a tensor of which every rank holds a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def has_shards(data: Any) -> bool:
    """Whether there is a sharded tensor in a tree of dictionaries, lists and tuples."""
    return map_tree(data, lambda _, leaf: None if is_sharded(leaf) else leaf) is not data


def set_shards_aside(data: Any) -> tuple[Any, list[DTensor]]:
    """Return a tree with `None` in place of each sharded tensor, and the tensors in the order of their places."""
    shards: list[DTensor] = []
    if not may_be_sharded():
        return data, shards
    return map_tree(data, lambda _, leaf: shards.append(leaf) if is_sharded(leaf) else leaf), shards


def map_tree(
    data: Any,
    change: Callable[[tuple[Any, ...], Any], Any],
    *,
    is_leaf: Callable[[Any], bool] = lambda _: False,
    path: tuple[Any, ...] = (),
) -> Any:
    """Return a tree of dictionaries, lists and tuples with other leaves, sharing every part that stays as it is.

    Args:
        data: the tree.
        change: is given the keys that lead to a leaf, and the leaf, and returns what takes its place.
        is_leaf: tells of a dictionary, list or tuple whether it is a leaf nevertheless.
        path: the keys that lead to `data`.
    """
    if isinstance(data, dict) and not is_leaf(data):
        items = {key: map_tree(item, change, is_leaf=is_leaf, path=(*path, key)) for key, item in data.items()}
        changed = {key: item for key, item in items.items() if item is not data[key]}
        if not changed:
            return data
        copied = copy.copy(data)  # A module's state_dict carries its version in an attribute, which must stay.
        copied.update(changed)
        return copied
    if type(data) in (list, tuple) and not is_leaf(data):
        entries = [map_tree(item, change, is_leaf=is_leaf, path=(*path, index)) for index, item in enumerate(data)]
        return data if all(new is old for new, old in zip(entries, data, strict=True)) else type(data)(entries)
    return change(path, data)


# ---------------------------------------------------------------------------------------------------- descriptions


def take_shards_out(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    """Return a tree with a description in place of each sharded tensor, the tensors by key, and a digest.

    Trees have the same digest if their sharded tensors are at the same places and of the same global shapes, dtypes and
    placements, whatever else is in them.

    Raises:
        ArgumentTypeError: if a tensor is of a kind that shards cannot be written of.
    """
    tensors: dict[str, torch.Tensor] = {}
    addresses: set[int] = set()
    plan = hashlib.sha256()

    def take(path: tuple[Any, ...], leaf: Any) -> Any:
        if _is_description(leaf):
            raise ArgumentTypeError(
                f"{_key(path)} has the key {_MARK!r}, which Helios uses for itself: use another one"
            )
        if not is_sharded(leaf):
            return leaf
        description = _describe(leaf, _key(path))
        plan.update(repr(description).encode())
        tensors[description[_MARK]] = _with_own_memory(leaf, addresses).detach()
        return description

    plain: dict[str, Any] = map_tree(data, take, is_leaf=_is_description)
    return plain, tensors, plan.hexdigest()


def _key(path: tuple[Any, ...]) -> str:
    # What is quoted is no slash and no bracket: no two paths have the same key.
    return "".join(f"/{urllib.parse.quote(key, safe='')}" if isinstance(key, str) else f"/[{key!r}]" for key in path)


def _describe(tensor: DTensor, key: str) -> dict[str, Any]:
    from torch.distributed.tensor import Replicate, Shard  # noqa: PLC0415 - loaded already: there is a tensor.

    if any(type(placement) not in (Shard, Replicate) for placement in tensor.placements):
        raise ArgumentTypeError(
            f"{key} is placed as {tensor.placements}, and only tensors that are cut along dimensions (Shard) or alike "
            "on all ranks (Replicate) can be saved: redistribute() it before",
        )
    if tensor.dtype.is_complex:
        raise ArgumentTypeError(
            f"{key} is a sharded tensor of {tensor.dtype}, which safetensors files cannot hold: keep its "
            "torch.view_as_real instead",
        )
    dimensions = [placement.dim if isinstance(placement, Shard) else None for placement in tensor.placements]
    return {_MARK: key, "shape": list(tensor.shape), "dtype": tensor.dtype, "cut_along": dimensions}


def _is_description(value: object) -> bool:
    return isinstance(value, dict) and _MARK in value


def _with_own_memory(tensor: DTensor, addresses: set[int]) -> torch.Tensor:
    """Return a tensor as safetensors takes it: contiguous, and in memory of its own, which tied ones share."""
    part = tensor.to_local()
    address = part.untyped_storage().data_ptr()
    if part.is_contiguous() and address not in addresses:
        addresses.add(address)
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def put_shards_in(data: dict[str, Any], mesh: DeviceMesh | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a tree with a new tensor in place of each description, and the tensors by key, for somebody to fill.

    Args:
        data: what `take_shards_out` returned; it is not changed.
        mesh: the ranks over which the tensors are cut as they were; `None` for whole tensors on the CPU.

    Raises:
        CheckpointMismatchError: if the mesh has another number of dimensions than the one that they were cut over.
    """
    tensors: dict[str, torch.Tensor] = {}

    def put_in(_: tuple[Any, ...], leaf: Any) -> Any:
        if not _is_description(leaf):
            return leaf
        tensor = tensors[leaf[_MARK]] = _allocate(leaf, mesh)
        return tensor

    filled: dict[str, Any] = map_tree(data, put_in, is_leaf=_is_description)
    return filled, tensors


def _allocate(description: dict[str, Any], mesh: DeviceMesh | None) -> torch.Tensor:
    shape, dtype = description["shape"], description["dtype"]
    if mesh is None:
        return torch.empty(shape, dtype=dtype)
    import torch.distributed.tensor as sharded  # noqa: PLC0415 - heavy, and needed by few.

    dimensions = description["cut_along"]
    if len(dimensions) != mesh.ndim:
        raise CheckpointMismatchError(
            f"{description[_MARK]} was saved by ranks in a mesh of {len(dimensions)} dimensions, and the mesh has "
            f"{mesh.ndim}: load it on one of as many",
        )
    placements = [sharded.Replicate() if dim is None else sharded.Shard(dim) for dim in dimensions]
    return sharded.empty(shape, dtype=dtype, device_mesh=mesh, placements=placements)
