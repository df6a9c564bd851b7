"""Makes tensors, arrays, generators and scalars, or restores them into constructed ones."""

from __future__ import annotations

import array
import collections
import enum
import random
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helios.checkpoint.state.tensors import fill_tensor, renew_tensor, resolve_device
from helios.checkpoint.state.values import decode_array, decode_value
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from helios.checkpoint.state.reading import Reader

BASES: Final[dict[str, Any]] = {
    base.__name__: base
    for base in (
        *(str, int, float, complex, bytes, tuple, frozenset, set, list, dict, bytearray),
        *(collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter),
    )
}
_BIT_GENERATORS: Final = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


def decode_tensor(reader: Reader, saved: torch.Tensor, path: str, live: Any) -> torch.Tensor:
    """Return a tensor: the constructed one with the saved content, or a new one."""
    # The types may differ: a sharded parameter is read as a tensor.
    if isinstance(live, torch.Tensor) and (live.layout, live.dtype) == (saved.layout, saved.dtype):
        fill_tensor(live, saved)
        if type(live) is type(saved) and live.is_leaf and live.requires_grad != saved.requires_grad:
            live.requires_grad_(saved.requires_grad)
        return reader.known(path, live)  # type: ignore[no-any-return]  # it is a tensor
    return reader.known(path, _renew(reader, saved, None))  # type: ignore[no-any-return]  # it is a tensor


def _renew(reader: Reader, saved: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    return renew_tensor(saved, device or saved.device, reader.graph.storages)


def decode_marked_tensor(reader: Reader, tag: str, node: dict[str, Any], path: str, live: Any) -> Any:
    """Return a tensor that was written with a device, a class or attributes."""
    live = reader.live(path, live)
    device = resolve_device(node.get("device"), reader.device)
    if tag == "tensor":
        tensor = (
            reader.known(path, _renew(reader, node["of"], device))
            if live is None
            else decode_tensor(reader, node["of"], path, live)
        )
    else:
        kind = reader.class_of(node["class"], path) if live is None else type(live)
        if tag == "wrapper":
            tensor = _wrapper(reader, kind, node, path, live)
        elif live is None:
            tensor = _renew(reader, node["of"], device).as_subclass(kind)
        else:
            fill_tensor(live, node["of"])
            tensor = live
        reader.known(path, tensor)
    if "attributes" in node:
        reader.fill_attributes(tensor, node["attributes"], path)
    return tensor


def decode_view(reader: Reader, node: dict[str, Any], path: str, _: Any) -> torch.Tensor:
    """Return a tensor that shares the memory of a constructed one."""
    base = reader.constructed(node["of"])
    view = torch.empty(0, dtype=node["dtype"], device=base.device)
    view.set_(base.untyped_storage(), node["offset"], node["size"], node["stride"])
    if node["is_parameter"]:
        view = torch.nn.Parameter(view, node["requires_grad"])
    return reader.known(path, view.requires_grad_(node["requires_grad"]))  # type: ignore[no-any-return]  # it is a tensor


def _wrapper(reader: Reader, kind: Any, node: dict[str, Any], path: str, live: Any) -> Any:
    parts = {name: reader.decode(part, f"{path}.{name}") for name, part in node["parts"].items()}
    if live is not None:
        return live  # Its components are constructed, and were restored.
    context = reader.decode(node["context"], f"{path}.__tensor_flatten__()")
    return kind.__tensor_unflatten__(parts, context, tuple(node["size"]), tuple(node["stride"]))


def decode_array_of_any_kind(reader: Reader, tag: str, node: dict[str, Any], path: str, live: Any) -> Any:
    """Return an array, also a masked one or one of objects."""
    value: Any
    live = reader.live(path, live)
    if tag == "masked":
        data, mask = (reader.decode(node[name], f"{path}.<inner>") for name in ("data", "mask"))
        fill = decode_array(node["fill"])[()]
        make: Any = np.ma.MaskedArray
        value = make(data, mask=mask, fill_value=fill, hard_mask=node["hard"])
        if type(live) is make and live.dtype == data.dtype and live.shape == data.shape:
            live.soften_mask()
            live[...] = value
            live.mask = mask
            live.fill_value = fill
            if node["hard"]:
                live.harden_mask()
            value = live
        return reader.known(path, value)
    if tag == "objects":
        value = np.empty(len(node["items"]), dtype=object)
        value[:] = [reader.decode(item, f"{path}[{index}]") for index, item in enumerate(node["items"])]
        if "strings" in node:
            value = value.astype(np.dtypes.StringDType(coerce=node["strings"]["coerce"]))
        value = value.reshape(node["shape"])
    else:
        value = decode_array(node)
    kind = reader.class_of(node["class"], path) if "class" in node and node["base"] == "ndarray" else None
    kind = kind or {"matrix": np.matrix, "recarray": np.recarray}.get(node["base"], np.ndarray)
    is_same = isinstance(live, np.ndarray) and type(live) is kind and live.flags.writeable
    if is_same and (live.dtype, live.shape) == (value.dtype, value.shape):
        live[...] = value
        value = live
    elif kind is not np.ndarray:
        value = value.view(kind)
    reader.known(path, value)
    if "attributes" in node:
        reader.fill_attributes(value, node["attributes"], path)
    return value


def decode_typed_array(reader: Reader, node: dict[str, Any], path: str, live: Any) -> Any:
    """Return an `array.array`."""
    live = reader.live(path, live)
    target = live if isinstance(live, array.array) and live.typecode == node["code"] else array.array(node["code"])
    del target[:]
    target.frombytes(decode_value(node["of"]) if isinstance(node["of"], dict) else node["of"])
    return reader.known(path, target)


def decode_generator(reader: Reader, node: dict[str, Any], path: str, live: Any) -> Any:
    """Return a generator of random numbers: the constructed one in the saved state, or a new one."""
    target: Any
    state, kind, live = reader.decode(node["of"], f"{path}.<inner>"), node["class"], reader.live(path, live)
    if kind == "Generator" and "device" in state:
        device = resolve_device(state["device"], reader.device)
        target = live if isinstance(live, torch.Generator) else torch.Generator(device)
        target.set_state(state["state"])
    elif kind == "RandomState":
        target = live if isinstance(live, np.random.RandomState) else np.random.RandomState()
        target.set_state(state)
    elif kind in ("Generator", *_BIT_GENERATORS):
        is_same = isinstance(live, np.random.Generator) if kind == "Generator" else type(live).__name__ == kind
        target = live if is_same else None
        if target is None:
            if state["bit_generator"] not in _BIT_GENERATORS:
                raise CheckpointMismatchError(f"{path} is a generator of kind {state['bit_generator']!r}")
            target = getattr(np.random, state["bit_generator"])()
            target = np.random.Generator(target) if kind == "Generator" else target
        (target.bit_generator if kind == "Generator" else target).state = state
    else:
        target = live if isinstance(live, random.Random) else random.Random()  # noqa: S311 - the user's choice.
        version, internal, gauss_next = state
        target.setstate((version, tuple(internal), gauss_next))
    if "attributes" in node:
        reader.fill_attributes(target, node["attributes"], path, ignore=("gauss_next",))
    return reader.known(path, target)


def decode_scalar(reader: Reader, tag: str, node: dict[str, Any], path: str, live: Any) -> Any:
    """Return a member of an enumeration, or an object of a builtin scalar's subclass."""
    if tag == "enum":
        kind: Any = reader.class_of(node["class"], path)
        if not issubclass(kind, enum.Enum):
            raise TypeError(f"{kind.__name__} is no enumeration")
        member = (
            kind.__members__[node["name"]] if node["of"] is None else kind(reader.decode(node["of"], f"{path}.<inner>"))
        )
        reader.fill_attributes(member, node.get("attributes", {}), path, removes=False)
        return member
    base = BASES[tag]
    plain = decode_value(node["of"]) if isinstance(node["of"], dict) else node["of"]
    if tag == "bytearray":
        live = reader.live(path, live)
        target = live if isinstance(live, bytearray) else reader.make(bytearray, node, path)
        bytearray.__setitem__(target, slice(None), plain)
        return reader.finish(reader.known(path, target), node, path)
    return reader.finish(base.__new__(reader.class_of(node["class"], path), plain), node, path)
