"""Archives with a valid checksum that `save_archive` would never write."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from helios.checkpoint.archive import _Sealer

if TYPE_CHECKING:
    from pathlib import Path


def seal(path: Path, value: Any) -> None:
    """Write anything that `torch.save` takes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    _seal_bytes(path, buffer.getvalue())


def seal_nested(path: Path, depth: int) -> None:
    """Write a dictionary with a list in a list, and so on: deeper than anything that recurses can go."""
    nested = b"]" * depth + b"a" * (depth - 1)
    pickled = b"\x80\x02}X\x05\x00\x00\x00model" + nested + b"s."
    whole = io.BytesIO()
    torch.save({}, whole)
    buffer = io.BytesIO()
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    _seal_bytes(path, buffer.getvalue())


def _seal_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        sealer = _Sealer(file)
        sealer.write(content)
        sealer.seal()
