"""Converts the states of users' `state_dict` methods to plain data and back."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

from helios.checkpoint.state.anchors import Graph, UncapturableError
from helios.checkpoint.state.decoding import decode
from helios.checkpoint.state.encoding import encode
from helios.checkpoint.state.parts import get_state
from helios.errors import ArgumentTypeError


def encode_state(state: Any, owner: str) -> Any:
    """Return the result of a `state_dict` method as plain data.

    Args:
        state: the result.
        owner: the name of the object, for an error.

    Raises:
        ArgumentTypeError: if a checkpoint cannot hold a part of it.
    """
    try:
        return encode(state, f"{owner}.state_dict()", Graph())
    except UncapturableError as error:
        path, what = error.path, error.what
    except RecursionError:
        path, what = owner, "is nested too deeply"
    raise ArgumentTypeError(
        f"{path} {re.split(',? made during training', what)[0]}, which a checkpoint cannot hold: "
        "return plain data from state_dict() and rebuild the object in load_state_dict()"
    )


def decode_state(state: Any, owner: str) -> Any:
    """Return the state that `encode_state` got.

    Raises:
        CheckpointMismatchError: if this is not its result.
    """
    return decode(state, f"{owner}.state_dict()", Graph())


def encode_part_state(part: Any, name: str) -> Any:
    """Return the state of a network, an optimizer or a similar object as plain data.

    Args:
        part: the object.
        name: its name, for an error.

    Raises:
        ArgumentTypeError: if a checkpoint cannot hold a part of the state.
    """
    state = get_state(part)
    if not isinstance(part, nn.Module):
        return encode_state(state, name)
    # The state of a network has the versions of its modules in an attribute.
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            state[key] = encode_state(value, f"{name}.{key}")
    return state


def decode_part_state(part: Any, state: Any, name: str) -> Any:
    """Return the state that `encode_part_state` got."""
    if not isinstance(part, nn.Module):
        return decode_state(state, name)
    decoded = copy.copy(state)
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            decoded[key] = decode_state(value, f"{name}.{key}")
    return decoded
