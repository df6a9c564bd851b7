"""Writes tensors of every kind, and restores them into constructed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from helios.checkpoint.shard_layout import fit_tensor
from helios.checkpoint.shard_tree import is_sharded
from helios.checkpoint.state.anchors import UncapturableError
from helios.checkpoint.state.classes import name_of, show
from helios.checkpoint.state.values import TAG

if TYPE_CHECKING:
    from helios.checkpoint.state.writing import Writer

GRAPH: Final = (
    "holds the graph of its computation, of which its value alone is saved: keep it.detach() in the attribute"
)
_OF_RUN: Final = "run"  # Stands for the device of the run, which may be another one when the checkpoint is read.
_PLAIN: Final = (torch.Tensor, torch.nn.Parameter)


def encode_tensor(writer: Writer, tensor: torch.Tensor, path: str, anchor: str | None) -> Any:
    """Return a tensor as plain data: unchanged if `torch.load(..., weights_only=True)` reads it.

    Raises:
        UncapturableError: if it cannot be written.
    """
    # `isinstance` with Parameter takes microseconds, which matter with thousands of tensors.
    if type(tensor) not in _PLAIN and isinstance(
        tensor, torch.nn.UninitializedParameter | torch.nn.UninitializedBuffer
    ):
        raise UncapturableError(path, "has no shape yet", "run a batch through the lazy module when it is made")
    if tensor.grad_fn is not None:
        writer.findings[path] = GRAPH
        tensor = tensor.detach()
    if is_sharded(tensor):
        return tensor
    if anchor is None and (shared := writer.graph.anchors.find_sharing(tensor)) is not None:
        return _encode_view(tensor, shared)
    if type(tensor) not in _PLAIN:
        node = _encode_subclass(writer, tensor, path)
    elif vars(tensor):
        bare = tensor.detach().requires_grad_(tensor.requires_grad)
        attributes = {name: writer.attribute(value, f"{path}.{name}") for name, value in vars(tensor).items()}
        node = {TAG: "tensor", "of": bare, "attributes": attributes}
        if type(tensor) is torch.nn.Parameter:
            node["of"] = torch.nn.Parameter(tensor.detach(), tensor.requires_grad)
    elif anchor is not None or tensor.device.type == "cpu":
        return tensor
    else:
        node = {TAG: "tensor", "of": tensor}
    if tensor.device.type != "cpu":
        # Checkpoints are read onto the CPU; a constructed tensor is already on its device.
        node["device"] = name_device(tensor.device, writer.device)
    return node


def _encode_view(tensor: torch.Tensor, path: str) -> dict[str, Any]:
    """Return, as plain data, a tensor that shares the memory of a constructed one."""
    return {
        TAG: "view",
        "of": path,
        "dtype": tensor.dtype,
        "offset": tensor.storage_offset(),
        "size": list(tensor.shape),
        "stride": list(tensor.stride()),
        "is_parameter": isinstance(tensor, torch.nn.Parameter),
        "requires_grad": tensor.requires_grad,
    }


def _encode_subclass(writer: Writer, tensor: torch.Tensor, path: str) -> dict[str, Any]:
    kind = type(tensor)
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        parts = {name: writer.encode(getattr(tensor, name), f"{path}.{name}") for name in names}
        return {
            TAG: "wrapper",
            "class": list(name_of(kind)),
            "parts": parts,
            "context": writer.encode(context, f"{path}.__tensor_flatten__()"),
            "size": list(tensor.shape),
            "stride": list(tensor.stride()),
        }
    if not writer.graph.classes.may_make(kind) and writer.graph.anchors.path_of(tensor) is None:
        raise UncapturableError(path, f"is {show(kind)} made during training", "make it in setup")
    node: dict[str, Any] = {TAG: "subclass", "class": list(name_of(kind)), "of": as_plain(tensor)}
    if vars(tensor):
        node["attributes"] = {name: writer.attribute(value, f"{path}.{name}") for name, value in vars(tensor).items()}
    return node


def as_plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of a subclass as a `torch.Tensor` that shares its memory."""
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as in torch's documentation of subclasses.
        return tensor.detach().as_subclass(torch.Tensor)


def name_device(device: torch.device, of_run: torch.device | None) -> str:
    """Return the name that is written for a device; the device of the run has a special name."""
    return _OF_RUN if device == of_run else str(device)


def resolve_device(name: str | None, device: torch.device | None) -> torch.device:
    """Return the device that was written as `name`.

    Args:
        name: the name that `encode_tensor` wrote.
        device: the device of the run in this process.
    """
    if name is None:
        return torch.device("cpu")
    if name == _OF_RUN or torch.device(name).type != (device or torch.device("cpu")).type:
        return torch.device("cpu") if device is None else device
    return torch.device(name)


def fill_tensor(live: torch.Tensor, saved: torch.Tensor) -> None:
    """Copy the content of a saved tensor into a constructed one, in its memory if that fits, else in new memory."""
    modes = torch.no_grad(), torch.inference_mode(mode=live.is_inference())
    with torch._C.DisableTorchFunctionSubclass(), modes[0], modes[1]:  # noqa: SLF001 - see `as_plain`.
        saved = fit_tensor(saved, live).detach()
        is_same_kind = (live.shape, live.dtype, live.layout) == (saved.shape, saved.dtype, saved.layout)
        if is_same_kind and live.layout is torch.strided and not _overlaps(live):
            live.detach().copy_(saved)
        else:
            live.data = saved.to(live.device, copy=True)  # Memory that was read from a file cannot be resized.


def renew_tensor(
    saved: torch.Tensor, device: torch.device, storages: dict[tuple[int, torch.device], torch.UntypedStorage]
) -> torch.Tensor:
    """Return a saved tensor with new memory, on a device.

    Args:
        saved: the tensor that was read.
        device: the device.
        storages: the memory that was made so far, so that tensors share it again.
    """
    is_view_of_memory = saved.layout is torch.strided and not (saved.is_meta or saved.is_conj() or saved.is_neg())
    if is_sharded(saved) or saved.is_quantized or not is_view_of_memory:
        renewed = saved.detach() if is_sharded(saved) else saved.detach().to(device, copy=True)
    else:
        memory = saved.untyped_storage()
        key = memory.data_ptr(), device
        if key not in storages:
            copied = memory.clone() if device.type == "cpu" else memory.to(device=device)  # type: ignore[no-untyped-call]  # torch has not annotated it.
            storages[key] = copied
        renewed = torch.empty(0, dtype=saved.dtype, device=device)
        renewed.set_(storages[key], saved.storage_offset(), saved.size(), saved.stride())
    if type(saved) is not torch.Tensor and isinstance(saved, torch.nn.Parameter):
        return torch.nn.Parameter(renewed, saved.requires_grad)
    return renewed.requires_grad_(saved.requires_grad)


def _overlaps(tensor: torch.Tensor) -> bool:
    """Return whether elements of a tensor share memory with each other, as in an expanded tensor."""
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
