"""What a checkpoint of a run holds, and whether a file holds it."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import torch

from helios.core.state import TrainingState
from helios.errors import CorruptCheckpointError

FORMAT: Final = 3  # Of what a checkpoint holds; one of another format is refused.

# The parts of a checkpoint by the keys that lead to them, and their types.
_PARTS: Final[dict[tuple[str, ...], type]] = {
    ("model",): dict,
    ("model", "class"): str,
    ("model", "encoded"): bool,
    ("model", "state"): dict,
    ("model", "base"): dict,
    ("model", "base", "attributes"): dict,
    ("model", "base", "modes"): dict,
    ("model", "base", "buffer_sync_flags"): dict,
    ("plugins",): dict,
    ("datamodule",): dict,
    ("training",): dict,
    ("training", "state"): dict,
    ("training", "stopped"): bool,
    ("training", "feed"): dict,
    ("gradients",): dict,
}
# What a position in the data has besides its kind.
_POSITIONS: Final[dict[str, dict[str, type]]] = {
    "list": {"size": int},
    "sampler": {"size": int, "samples": int},
    "stream": {"workers": int, "progress": dict, "last_worker": int},
}
_PATH_AND_VALUE: Final = 3  # An entry of what a rank has apart from rank 0: a path, a value, and what to do with it.


def check_contents(data: dict[str, Any], name: str) -> None:
    """Check that a file whose bytes are whole holds a checkpoint of a run.

    One of another format is not looked at: it may have other parts.

    Args:
        data: what it holds.
        name: the name of the file, for the error.

    Raises:
        CorruptCheckpointError: if it does not.
    """
    version = data.get("format")
    if type(version) is not int:
        raise CorruptCheckpointError(f"{name} has no format number: it is no checkpoint of a run")
    if version != FORMAT:
        return
    for keys, kind in _PARTS.items():
        _check_kind(_find(data, keys, name), kind, keys, name)
    for field in dataclasses.fields(TrainingState):
        _check_count(data["training"]["state"].get(field.name), field.name, name)
    position = data["training"]["feed"]
    if position:
        _check_position(position, name)
    _check_base(data["model"]["base"], name)
    _check_dtypes(data["training"].get("dtypes", {}), name)
    for plug_id, state in data["plugins"].items():
        _check_kind(state, dict, ("plugins", plug_id), name)
    for parameter, gradient in data["gradients"].items():
        # A dictionary describes a tensor that is spread over the ranks.
        _check_kind(gradient, (torch.Tensor, dict), ("gradients", parameter), name)
    _check_ranks(data.get("ranks", [[]]), name)


def _check_base(base: dict[str, Any], name: str) -> None:
    for attribute, value in base["attributes"].items():
        _check_kind(value, dict, ("model", "base", "attributes", attribute), name)
    for network, modes in base["modes"].items():
        _check_kind(modes, dict, ("model", "base", "modes", network), name)
        for module, mode in modes.items():
            keys = ("model", "base", "modes", network, module)
            _check_kind(mode, (list, tuple), keys, name)
            if not mode or type(mode[0]) is not bool:
                _refuse(name, keys, mode, "whether a module trains")


def _check_dtypes(dtypes: object, name: str) -> None:
    keys = ("training", "dtypes")
    if not isinstance(dtypes, dict):
        _refuse(name, keys, dtypes, "a dict")
        return
    for network, kinds in dtypes.items():
        if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
            _refuse(name, (*keys, network), kinds, "a list of names")


def _find(data: dict[str, Any], keys: tuple[str, ...], name: str) -> Any:
    part: Any = data
    for key in keys:
        if key not in part:
            raise CorruptCheckpointError(f"{name} has no {_show(keys)}: it is no checkpoint of a run")
        part = part[key]
    return part


def _check_kind(part: object, kind: type | tuple[type, ...], keys: tuple[Any, ...], name: str) -> None:
    if not isinstance(part, kind):
        _refuse(name, keys, part, f"a {(kind if isinstance(kind, type) else kind[0]).__name__}")


def _check_count(count: object, field: str, name: str) -> None:
    is_number = type(count) is int or (field == "average_iter_time" and type(count) is float)
    if not is_number or count < 0:  # type: ignore[operator]  # a number
        _refuse(name, ("training", "state", field), count, "a count")


def _check_position(position: dict[str, Any], name: str) -> None:
    kind = position.get("kind")
    if not isinstance(kind, str) or kind not in _POSITIONS:
        _refuse(name, ("training", "feed", "kind"), kind, f"one of {', '.join(_POSITIONS)}")
        return
    for part, wanted in _POSITIONS[kind].items():
        if type(position.get(part)) is not wanted:
            _refuse(name, ("training", "feed", part), position.get(part), f"a {wanted.__name__}")


def _check_ranks(ranks: Any, name: str) -> None:
    entries: list[Any] = [entry for rank_delta in ranks for entry in rank_delta] if _is_nested(ranks) else [None]
    for entry in entries:
        is_whole = isinstance(entry, list | tuple) and len(entry) == _PATH_AND_VALUE
        if not is_whole or type(entry[0]) is not tuple:
            _refuse(name, ("ranks",), ranks, "what each rank has apart from rank 0")


def _is_nested(ranks: Any) -> bool:
    return type(ranks) is list and bool(ranks) and all(type(rank_delta) is list for rank_delta in ranks)


def _refuse(name: str, keys: tuple[Any, ...], part: object, wanted: str) -> None:
    raise CorruptCheckpointError(
        f"{name} has a {type(part).__name__} for {_show(keys)}, which is {wanted} in a checkpoint of a run"
    )


def _show(keys: tuple[Any, ...]) -> str:
    return "".join(f"[{key!r}]" for key in keys)
