"""The states of all generators as plain data."""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import torch

from helios.core.rng.generators import make_rng_state_saver
from helios.core.rng.lazy_numpy import PHILOX
from helios.errors import ConfigurationError

_MERSENNE_WORDS: Final = 624
_PHILOX_WORDS: Final = 4


def get_rng_state_dict() -> dict[str, Any]:
    """Return the state of every generator, as plain data for `load_rng_state_dict`.

    The keys are "python", "numpy" (the legacy generator), "generator" (that of `get_default_numpy_rng`), "torch", a
    uint8 tensor, and, where CUDA can be used, "cuda", a list with one uint8 tensor per GPU.
    """
    kind, words, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - many datasets draw from it.
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": {
            "kind": str(kind),
            "words": torch.from_numpy(np.asarray(words).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "generator": _philox_to_plain(PHILOX.state),
        "torch": torch.get_rng_state(),
    }
    if _can_use_cuda():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def load_rng_state_dict(state_dict: dict[str, Any]) -> None:
    """Restore the state of every generator.

    Args:
        state_dict: what `get_rng_state_dict` returned. States of GPUs that this machine lacks are ignored.

    Raises:
        ConfigurationError: if it is something else; all generators are then unchanged.
    """
    restore_rng_state = make_rng_state_saver()()
    try:
        _load_rng_state_dict(state_dict)
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        restore_rng_state()
        raise ConfigurationError(
            f"state_dict is not what get_rng_state_dict returned ({type(error).__name__}: {error}): pass that"
        ) from error


def _load_rng_state_dict(state_dict: dict[str, Any]) -> None:
    random.setstate(_as_tuples(state_dict["python"]))
    legacy = state_dict["numpy"]
    words = legacy["words"].numpy().astype(np.uint32)
    # NumPy checks no position, and would read beyond the end of its buffer.
    _check_position(legacy["position"], _MERSENNE_WORDS)
    _check_position(state_dict["generator"]["buffer_pos"], _PHILOX_WORDS)
    np.random.set_state((legacy["kind"], words, legacy["position"], legacy["has_gauss"], legacy["gauss"]))  # noqa: NPY002
    PHILOX.state = _philox_from_plain(state_dict["generator"])
    torch.set_rng_state(state_dict["torch"])
    if "cuda" in state_dict and _can_use_cuda():
        torch.cuda.set_rng_state_all(state_dict["cuda"][: torch.cuda.device_count()])


def _can_use_cuda() -> bool:
    # A process that was forked after CUDA was initialised, such as a data loader's worker, cannot use it. torch.random
    # asks the same private function; no public one tells such a process from one that has not used CUDA yet.
    return torch.cuda.is_available() and not torch.cuda._is_in_bad_fork()  # noqa: SLF001 - see above.


def _check_position(position: object, last: int) -> None:
    if type(position) is not int or not 0 <= position <= last:
        raise ValueError(f"the position of a generator is {position!r}, and not an integer in [0, {last}]")


def _philox_to_plain(state: Any) -> dict[str, Any]:
    return {
        "counter": [int(word) for word in state["state"]["counter"]],
        "key": [int(word) for word in state["state"]["key"]],
        "buffer": [int(word) for word in state["buffer"]],
        "buffer_pos": int(state["buffer_pos"]),
        "has_uint32": int(state["has_uint32"]),
        "uinteger": int(state["uinteger"]),
    }


def _philox_from_plain(plain: dict[str, Any]) -> Any:
    return {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array(plain["counter"], dtype=np.uint64),
            "key": np.array(plain["key"], dtype=np.uint64),
        },
        "buffer": np.array(plain["buffer"], dtype=np.uint64),
        "buffer_pos": plain["buffer_pos"],
        "has_uint32": plain["has_uint32"],
        "uinteger": plain["uinteger"],
    }


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
