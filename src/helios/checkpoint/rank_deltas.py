"""What a rank has apart from rank 0: all of its state that is not the same to the bit.

Most of a state is the same on every rank: the weights, the optimizer's moments. A checkpoint has it once, as rank 0
does, and for each other rank the leaves that differ there: a generator of its own, what a plug-in has counted, the
gradients of an accumulation that have not been exchanged yet.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from helios.checkpoint.plain import dump, encode, load
from helios.checkpoint.shard_tree import is_sharded, map_tree
from helios.checkpoint.state.digest import digest_of
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from helios.ranks.host_group import HostGroup

Path: TypeAlias = tuple[Any, ...]
# A path, and what is there: a value, or nothing, as it is rank 0's alone, or a dictionary whose keys have this order.
Entry: TypeAlias = tuple[Path, Any, str]
RankDelta: TypeAlias = list[Entry]

_VALUE: Final = "value"
_NOTHING: Final = "nothing"
_ORDER: Final = "order"


def digests_of(data: dict[str, Any]) -> dict[Path, bytes]:
    """Return the digest of each leaf of a state by its path; see `find_differences`."""
    return {path: _digest(leaf) for path, leaf in _leaves(data)}


def collect_rank_deltas(data: dict[str, Any], host_group: HostGroup) -> list[RankDelta]:
    """Return, on rank 0, for each rank what it has apart from rank 0; an empty list on the others. A collective.

    Args:
        data: this rank's state: dictionaries, the keys and leaves of which are plain data.
        host_group: what the ranks agree through.
    """
    encode(data, "checkpoint")  # What is not plain is refused by its path.
    expected = host_group.broadcast_object(digests_of(data) if host_group.rank == 0 else {})
    rank_delta = [] if host_group.rank == 0 else find_differences(data, expected)
    # On the CPU: on another rank, or another machine, this rank's device may be somebody else's, or not there.
    packed = host_group.gather_object(dump(map_tree(rank_delta, lambda _, leaf: _on_host(leaf))))
    return [load(each) for each in packed or []]


def _on_host(leaf: Any) -> Any:
    return leaf if not isinstance(leaf, torch.Tensor) or leaf.is_cpu or leaf.is_meta else leaf.detach().cpu()


def apply_rank_delta(data: Mapping[str, Any], rank_delta: Sequence[Entry]) -> dict[str, Any]:
    """Return rank 0's state with what another rank has apart from it. What is the same is shared, not copied."""
    tables: dict[Path, Any] = {(): dict(data)}  # Copies: each is made once, however much of it differs.

    def table_at(path: Path) -> Any:
        if path not in tables:
            outer = table_at(path[:-1])
            inner = outer.get(path[-1])
            tables[path] = outer[path[-1]] = copy.copy(inner) if isinstance(inner, dict) else {}
        return tables[path]

    for path, value, kind in rank_delta:
        if kind == _ORDER:
            table = table_at(path)
            for key in value:
                table[key] = table.pop(key)
        elif kind == _VALUE:
            table_at(path[:-1])[path[-1]] = value
        else:
            table_at(path[:-1]).pop(path[-1], None)
    result: dict[str, Any] = tables[()]
    return result


def select_rank_state(data: dict[str, Any], host_group: HostGroup) -> dict[str, Any]:
    """Return what a checkpoint holds for this rank.

    A rank that was not there when it was written starts with what rank 0 had. When there were more ranks or fewer, the
    gradients in flight that each had for itself are averaged over them: their mean over the ranks of now is the same.

    Raises:
        CheckpointMismatchError: if every rank had its own part of a stream, and there were more or fewer ranks.
    """
    rank_deltas: list[RankDelta] = data.get("ranks", [[]])
    base = {part: value for part, value in data.items() if part != "ranks"}
    if len(rank_deltas) == host_group.world_size:
        return apply_rank_delta(base, rank_deltas[host_group.rank])
    if base.get("training", {}).get("feed", {}).get("kind") == "stream":
        raise CheckpointMismatchError(
            "the checkpoint is from the middle of an epoch over an iterable dataset, of which each of "
            f"{len(rank_deltas)} ranks had its own part, and now there are {host_group.world_size}: resume with as many"
        )
    mine = apply_rank_delta(base, rank_deltas[host_group.rank] if host_group.rank < len(rank_deltas) else [])
    if any(path[0] == "gradients" for rank_delta in rank_deltas for path, *_ in rank_delta):
        mine["gradients"] = _average([apply_rank_delta(base, rank_delta)["gradients"] for rank_delta in rank_deltas])
    return mine


def _average(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of the ranks' gradients; a rank that has none counts with zeros."""
    names = {name: None for gradients in each for name in gradients}
    parts = {name: [gradients[name] for gradients in each if name in gradients] for name in names}
    return {
        # A description of one that is spread over the ranks is the same on all of them.
        name: sum(values) / len(each) if isinstance(values[0], torch.Tensor) else values[0]
        for name, values in parts.items()
    }


def find_differences(data: dict[str, Any], expected: Mapping[Path, bytes]) -> RankDelta:
    """Return what a state has apart from the one whose digests are given."""
    leaves = dict(_leaves(data))
    tables = {path[:end] for path in leaves for end in range(len(path))}
    gone: dict[Path, None] = {}
    for path in expected:
        prefixes = (path[:end] for end in range(1, len(path) + 1))
        first = next((prefix for prefix in prefixes if prefix not in tables), None)
        if first is not None and first not in leaves:
            gone[first] = None
    rank_delta: RankDelta = [(path, None, _NOTHING) for path in gone]
    rank_delta += [(path, leaf, _VALUE) for path, leaf in leaves.items() if expected.get(path) != _digest(leaf)]
    # What the delta makes of the keys that rank 0 has: what it adds comes last, wherever it belongs.
    keys = apply_rank_delta(apply_rank_delta({}, [(path, None, _VALUE) for path in expected]), rank_delta)
    return [*rank_delta, *_find_disorder(data, keys)]


def _find_disorder(data: Mapping[Any, Any], keys: Mapping[Any, Any], path: Path = ()) -> Iterator[Entry]:
    if path and list(data) != list(keys):
        yield path, list(data), _ORDER
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _find_disorder(value, keys[key], (*path, key))


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Iterate over what is no dictionary, and over dictionaries that are empty, by their keys."""
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path, value


def _digest(leaf: Any) -> bytes:
    # Of a tensor that is spread over the ranks, this rank's part: the object is another one each time.
    return digest_of(leaf.to_local() if is_sharded(leaf) else leaf)


def with_sharded(rank_delta: RankDelta, data: Mapping[str, Any], host_group: HostGroup) -> RankDelta:
    """Return a rank delta that has the same sharded tensors on every rank; a collective.

    All ranks write such a tensor together, also if the part of one alone differs.

    Args:
        rank_delta: what this rank's state has apart from an earlier one.
        data: this rank's state.
        host_group: what the ranks agree through.
    """
    if host_group.world_size == 1:
        return rank_delta
    mine = [path for path, value, _ in rank_delta if is_sharded(value)]
    missing = {path for paths in host_group.all_gather_object(mine) for path in paths} - set(mine)
    leaves = dict(_leaves(data))
    return [*rank_delta, *((path, leaves[path], _VALUE) for path in sorted(missing, key=repr))]
