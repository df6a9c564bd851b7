"""Digests of plain data, to compare values without keeping copies."""

from __future__ import annotations

import hashlib
import itertools
import marshal
from typing import Any, Final

import torch

from helios.checkpoint.shard_tree import is_sharded

_SMALL: Final = 1 << 20  # A tensor of at most this many bytes is hashed directly.
_ROW: Final = 1024  # A larger tensor is summed in rows of this many words of eight bytes.
_SCALARS: Final = frozenset({type(None), bool, int, float, complex, str})
_MARSHALLED: Final = frozenset({list, tuple, dict})  # Serialized in C, in one call, if all contents are plain.
_LONG: Final = 2000  # Bits.
_NO_REFERENCES: Final = 2  # The last version of `marshal` whose output depends on values alone.


def digest_of(value: Any) -> bytes:
    """Return a digest of plain data: 16 bytes, equal for equal data.

    Types, the order of keys and the bits of numbers count. Tensors of more than 1 MiB are summed on their device, by
    rows and by columns, and the sums are hashed, so nothing large is copied to the host. Of a sharded tensor, only the
    version counts, so that all ranks get the same digest.

    Args:
        value: `None`, numbers, strings, bytes, tensors, and lists, tuples, sets and dictionaries of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, value)
    return digest.digest()


def holds_scalars_only(value: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether a sequence holds only numbers, strings and `None`, or tuples of them; without a Python loop."""
    kinds = set(map(type, value))
    if int in kinds and any(type(item) is int and is_long(item) for item in value):
        return False
    if kinds <= _SCALARS:
        return True
    if kinds - {tuple} <= _SCALARS:
        inner = itertools.chain.from_iterable(item for item in value if type(item) is tuple)
        return set(map(type, inner)) <= _SCALARS
    return False


def is_long(value: int) -> bool:
    """Return whether an integer has more digits than torch's files can hold."""
    return value.bit_length() > _LONG


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        _feed_tensor(digest, value)
        return
    kind = type(value)
    if kind in _MARSHALLED:
        try:
            data = marshal.dumps(value, _NO_REFERENCES)
        except ValueError:
            data = None  # It contains a tensor, or an object of a subclass.
        if data is not None:
            digest.update(b"plain ")
            digest.update(data)
            return
    items: list[Any] = []
    if isinstance(value, dict):
        items = [part for item in value.items() for part in item]
    elif isinstance(value, list | tuple):
        items = list(value)
    elif isinstance(value, set | frozenset):
        items = sorted(value, key=repr)
    digest.update(f"{kind.__name__} {len(items)} {'' if items else repr(value)} ".encode(errors="surrogatepass"))
    for item in items:
        _feed(digest, item)


def _feed_tensor(digest: hashlib.blake2b, tensor: torch.Tensor) -> None:
    trains, tensor = tensor.requires_grad and tensor.is_leaf, tensor.detach()
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.layout} {tensor.is_meta} {trains} ".encode())
    if tensor.is_meta or tensor.numel() == 0:
        return
    if is_sharded(tensor):
        digest.update(repr((id(tensor), tensor._version)).encode())  # noqa: SLF001 - autograd's own counter.
        return
    for part in _parts_of(tensor):
        # As bytes, because NumPy does not have all dtypes.
        data = part.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        _feed_bytes(digest, data)


def _parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the strided tensors that a tensor of any layout is made of."""
    if tensor.layout is torch.strided:
        return [tensor.int_repr(), tensor.dequantize()] if tensor.is_quantized else [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001 - `indices` refuses what is not coalesced.
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense()]


def _feed_bytes(digest: hashlib.blake2b, data: torch.Tensor) -> None:
    if data.numel() > _SMALL:
        if data.storage_offset() % 8:
            data = data.clone()  # Words of eight bytes must be aligned.
        rows = data.numel() // (8 * _ROW)
        # Sums of integers wrap around and do not depend on the order, so all devices give the same result.
        table = data[: rows * 8 * _ROW].view(torch.int64).reshape(rows, _ROW)
        digest.update(table.sum(0).cpu().numpy().data)
        digest.update(table.sum(1).cpu().numpy().data)
        data = data[rows * 8 * _ROW :]
    # A copy, because torch cannot resize memory that NumPy has accessed.
    digest.update(data.to("cpu", copy=True).numpy().data)
