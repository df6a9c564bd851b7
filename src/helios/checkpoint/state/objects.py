"""Writes classes, functions, arrays, generators and objects of any class as plain data."""

from __future__ import annotations

import contextvars
import datetime
import io
import random
import re
import struct
import types
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from helios.checkpoint.state.anchors import UncapturableError, is_below
from helios.checkpoint.state.classes import is_own, is_own_module, is_tool, name_of, show, slots_of
from helios.checkpoint.state.contents import register_contents
from helios.checkpoint.state.tensors import name_device
from helios.checkpoint.state.values import FACTORIES, PLAIN, TAG, encode_array
from helios.checkpoint.state.writing import EXCLUDED

if TYPE_CHECKING:
    import functools

    from helios.checkpoint.state.writing import Writer

# Objects whose content cannot be read, but cannot be changed either.
_IMMUTABLE: Final[tuple[type, ...]] = (
    *(types.GenericAlias, types.UnionType, types.CodeType, types.MappingProxyType, re.Match, struct.Struct),
    *(datetime.tzinfo, torch.finfo, torch.iinfo, contextvars.ContextVar),
    # Views of a dictionary, which is saved itself.
    *(type({}.keys()), type({}.values()), type({}.items())),
)
_GENERATORS: Final = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_WORD: Final = struct.calcsize("P")
_ARRAYS: Final = (np.matrix, np.recarray, np.ndarray)


def encode_array_of_any_kind(writer: Writer, value: np.ndarray[Any, Any], path: str, anchor: str | None) -> Any:
    """Return an array, also a masked one and one of objects, as plain data."""
    if isinstance(value, np.memmap):
        if anchor is not None:
            return {TAG: "constant"}
        raise UncapturableError(
            path, "is a np.memmap opened during training, whose file is not in the checkpoint", "open it in setup"
        )
    if isinstance(value, np.ma.MaskedArray):
        return {
            TAG: "masked",
            "data": writer.encode_inner(np.array(value.data), path),
            "hard": bool(value.hardmask),
            "mask": writer.encode_inner(np.array(value.mask), path),
            "fill": encode_array(np.asarray(value.fill_value)),
        }
    node = encode_array(np.asarray(value))
    writer.arrays.append((value, path))
    if node is None:
        node = {
            TAG: "objects",
            "shape": list(value.shape),
            "items": [writer.encode(item, f"{path}[{index}]") for index, item in enumerate(value.reshape(-1))],
            **_kind_of_strings(value.dtype, path),
        }
    base = next(base for base in _ARRAYS if isinstance(value, base))
    return {**node, "base": base.__name__, **writer.of_class(value, path, base)}


def _kind_of_strings(dtype: np.dtype[Any], path: str) -> dict[str, Any]:
    """Return the parameters of a variable-width string dtype; nothing for an array of objects."""
    if not isinstance(dtype, np.dtypes.StringDType):
        return {}
    if hasattr(dtype, "na_object"):
        raise UncapturableError(
            path, "is an array of strings with a value for missing ones", "keep an array of objects, or a list"
        )
    return {"strings": {"coerce": dtype.coerce}}


def _state_of_generator(value: Any, device: torch.device | None) -> Any | None:
    if isinstance(value, torch.Generator):
        return {"device": name_device(value.device, device), "state": value.get_state()}
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    if isinstance(value, np.random.BitGenerator):
        return value.state
    if isinstance(value, random.Random):
        return value.getstate()
    return None


def encode_generator(writer: Writer, value: Any, path: str, anchor: str | None) -> Any | None:
    """Return a generator of random numbers as plain data; `None` for anything else.

    A generator of a user's class can only be restored in place, because its constructor is not called.
    """
    state = _state_of_generator(value, writer.device)
    if state is None:
        return None
    base = next((base for base in _GENERATORS if isinstance(value, base)), type(value))
    if base is not type(value) and anchor is None:
        raise UncapturableError(path, f"is {show(type(value))} made during training", "make it in setup")
    node = {TAG: "generator", "of": writer.encode_inner(state, path), "class": base.__name__}
    if base is type(value):
        return node
    attributes = {
        name: writer.attribute(held, f"{path}.{name}") for name, held in vars(value).items() if name != "gauss_next"
    }
    return {**node, "attributes": attributes}


def encode_class(writer: Writer, value: type, path: str) -> Any:
    """Return a class as plain data: its name."""
    if FACTORIES.get(value.__name__) is not value and not writer.graph.classes.may_make(value):
        return writer.constant(value, path, f"is the class {value.__qualname__}, assigned during training")
    return {TAG: "class", "of": list(name_of(value))}


def encode_function(writer: Writer, value: types.FunctionType, path: str, anchor: str | None) -> Any:
    """Return a function as plain data: its name, the content of its closure, and its attributes."""
    if not is_own_module(value.__module__ or ""):
        return writer.constant(value, path, f"is the function {value.__qualname__}, assigned during training")
    if anchor is None and "<" in value.__qualname__:
        raise UncapturableError(
            path,
            f"is the function {value.__qualname__}, made during training",
            "make it in setup, and keep what it changes in attributes",
        )
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    held = {name: cell.cell_contents for name, cell in cells if not _is_empty(cell)}
    node: dict[str, Any] = {TAG: "function", "of": [value.__module__, value.__qualname__]}
    if held:
        node["cells"] = {name: writer.attribute(item, f"{path}.<{name}>") for name, item in held.items()}
    if (defaults := encode_defaults(writer, value, path)) is not None:
        node["defaults"] = defaults
    if vars(value):
        node["attributes"] = {name: writer.attribute(item, f"{path}.{name}") for name, item in vars(value).items()}
    return node


def encode_defaults(writer: Writer, function: types.FunctionType, path: str) -> dict[str, Any] | None:
    """Return the defaults of a function's arguments as plain data; `None` if no call could change them."""
    defaults = dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {})
    if all(type(value) in PLAIN for value in defaults.values()):
        return None
    return {str(key): writer.attribute(value, f"{path}.<default {key}>") for key, value in defaults.items()}


def encode_partial(writer: Writer, value: functools.partial[Any], path: str) -> Any:
    """Return a `functools.partial` as plain data."""
    return {
        TAG: "partial",
        "function": writer.encode(value.func, f"{path}.func"),
        "args": [writer.encode(item, f"{path}.args[{index}]") for index, item in enumerate(value.args)],
        "keywords": {name: writer.encode(item, f"{path}.keywords.{name}") for name, item in value.keywords.items()},
    }


def _is_empty(cell: types.CellType) -> bool:
    return cell == types.CellType()


def encode_part(writer: Writer, value: Any, path: str, anchor: str | None) -> Any:
    """Add an object with a `state_dict` to the encoder's parts; it may have replaced a constructed one of its class."""
    if anchor is None and writer.graph.anchors.type_at(path) is not type(value):
        raise UncapturableError(
            path,
            f"is {show(type(value))} made during training, which a resumed run does not make",
            "make it in setup",
        )
    where = path if anchor is None else anchor
    if not is_below(where, writer.root):
        if any(is_below(where, root) for root in writer.graph.roots):
            return {TAG: "same", "at": where}  # Another part of the run has written it.
        raise UncapturableError(
            path, f"is {show(type(value))} held by a class", "hold it in an attribute of the object"
        )
    if writer.parts.get(where, value) is not value:
        raise UncapturableError(
            path, f"is {show(type(value))} made during training, beside the one made before it", "make both in setup"
        )
    writer.parts[where] = value
    writer.note_classes(type(value))
    register_contents(value, where, writer.graph, registers=writer.registers is not None)
    return {TAG: "part"}


def encode_object(writer: Writer, value: Any, path: str, anchor: str | None) -> Any:
    """Return an object of any class as plain data: its class and its attributes."""
    kind = type(value)
    if isinstance(value, types.ModuleType | types.BuiltinFunctionType | property):
        return writer.constant(value, path, f"is {value!r}, assigned during training")
    if is_tool(kind):
        return writer.constant(value, path, f"is {show(kind)}, a tool without a state", is_silent=True)
    if isinstance(value, io.IOBase) or (hasattr(kind, "__next__") and not is_own(kind)):
        raise UncapturableError(
            path,
            f"is {show(kind)}, whose position cannot be saved",
            "keep a counter in an attribute and find the position in on_training_start, or name the attribute in "
            f"{EXCLUDED} of its class",
        )
    if kind is object or not (kind.__dictoffset__ or slots_of(kind)) or _has_hidden_content(kind):
        return _encode_opaque(writer, value, path)
    if anchor is None:
        writer.ensure_made(kind, path)
    else:
        writer.graph.classes.note(kind)
        writer.note_classes(kind)
    # An attribute that is left out of a new object would be missing, so there must be a warning.
    attributes = writer.attributes_of(value, path, tells_all=anchor is None)
    return {TAG: "object", "class": list(name_of(kind)), "attributes": attributes}


def _has_hidden_content(kind: type) -> bool:
    """Return whether objects of a class have content outside of their dictionary and slots, as those of C classes."""
    shown = len(slots_of(kind)) + bool(kind.__dictoffset__ > 0) + bool(kind.__weakrefoffset__ > 0)
    return bool(kind.__itemsize__) or kind.__basicsize__ > object.__basicsize__ + _WORD * shown


def _encode_opaque(writer: Writer, value: Any, path: str) -> Any:
    kind = type(value)
    node = writer.constant(value, path, f"is {show(kind)} made during training, which cannot be saved")
    if kind is not object and not isinstance(value, _IMMUTABLE) and not callable(value):
        writer.findings[path] = (
            f"is {show(kind)}, which cannot be looked into: what training changes in it is not saved; if it "
            f"changes nothing there, name the attribute in {EXCLUDED} of its class"
        )
    return node
