"""What a value is, as text: its type, its bits, its order; written without anything of Helios."""

from __future__ import annotations

import array
import collections
import hashlib
import random
from typing import Any

import numpy as np
import torch


def describe(value: Any, depth: int = 0) -> Any:  # noqa: C901, PLR0911, PLR0912 - one return for each kind.
    """Return a value as lists of text, equal for values that are equal to the bit and of the same types."""
    kind = f"{type(value).__module__.replace('__mp_main__', '__main__')}.{type(value).__qualname__}"
    if depth > 12:
        return "deep"
    if isinstance(value, torch.Tensor):
        is_strided = value.layout is torch.strided
        plain = value.detach().as_subclass(torch.Tensor).resolve_conj() if is_strided else value.detach().to_dense()
        data = _digest(plain.clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        facts = [str(value.dtype), list(value.shape), str(value.layout), value.requires_grad, str(value.device)]
        return [kind, facts, data, describe(vars(value), depth + 1)]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        mask = describe(np.asarray(value.mask), depth + 1) if isinstance(value, np.ma.MaskedArray) else None
        is_fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        # The numbers under a mask are nobody's.
        content = value.filled().tobytes() if isinstance(value, np.ma.MaskedArray) else value.tobytes()
        return [kind, str(value.dtype.descr), list(value.shape), is_fortran, _digest(content), mask]
    if isinstance(value, np.ndarray):
        return [kind, [describe(item, depth + 1) for item in value.reshape(-1)]]
    if isinstance(value, torch.Generator):
        return [kind, _digest(value.get_state().numpy().tobytes())]
    if isinstance(value, np.random.Generator | np.random.BitGenerator):
        bits = value.bit_generator if isinstance(value, np.random.Generator) else value
        return [kind, describe(bits.state, depth + 1)]
    if isinstance(value, np.random.RandomState):
        return [kind, describe(value.get_state(legacy=False), depth + 1)]
    if isinstance(value, random.Random):
        return [kind, _digest(repr(value.getstate()).encode())]
    if isinstance(value, np.generic):
        return [kind, str(value.dtype), value.tobytes().hex()]
    extra: list[Any] = []
    if isinstance(value, collections.defaultdict):
        extra = [value.default_factory.__qualname__ if value.default_factory else None]
    if isinstance(value, collections.deque):
        extra = [value.maxlen]
    if isinstance(value, dict):
        return [kind, extra, [[describe(k, depth + 1), describe(v, depth + 1)] for k, v in value.items()]]
    if isinstance(value, set | frozenset):
        return [kind, sorted(str(describe(item, depth + 1)) for item in value)]
    if isinstance(value, list | tuple | collections.deque):
        attributes = describe(getattr(value, "__dict__", {}), depth + 1)
        return [kind, extra, [describe(item, depth + 1) for item in value], attributes]
    if isinstance(value, array.array | bytearray):
        return [kind, getattr(value, "typecode", ""), bytes(value).hex()]
    if isinstance(value, float | complex):
        return [kind, repr(value)]
    if type(value).__module__ in ("kinds", "tests.checkpoint.kinds", "types", "collections") and hasattr(
        value, "__dict__"
    ):
        return [kind, [[name, describe(item, depth + 4)] for name, item in vars(value).items()]]
    if hasattr(type(value), "__slots__") and hasattr(value, "number"):
        return [kind, value.number, hasattr(value, "unset")]
    return [kind, repr(value)]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
