"""How ranks get the checkpoint that rank 0 has chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.checkpoint import sharing
from helios.checkpoint.archive import load_archive, save_archive
from helios.checkpoint.names import CheckpointName
from helios.checkpoint.store import CheckpointStore
from helios.ranks.host_group import HostGroup
from tests.ranks.host_groups import join_host_group
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

DATA = {"weights": torch.arange(40.0), "name": "ü", "seed": 3}


def receive(rank: int, root: Path, what: str) -> list[Any]:
    """Return what a rank has received, and which files it has loaded, where rank 1 sees the file or not."""
    path = root / "a.pth"
    if what == "nothing":
        newest = None
    elif rank == 0:
        newest = (path, load_archive(path), False)
    else:
        newest = None
    loaded: list[str] = []
    sharing._CHUNK = 100  # type: ignore[misc]  # so that a small file is sent in several chunks
    if rank == 1 and what == "unseen":
        sharing._has_checksum = lambda *_: False  # as on another machine
    if rank == 1 and what == "another":
        other = root / "b.pth"
        save_archive(other, {"seed": 4})
        sharing._archive_of = lambda *_, **__: other  # a file of the same name on another disk
    original = sharing.load_archive  # type: ignore[attr-defined]  # not exported

    def load(path: Path, *, verify: bool = True) -> dict[str, Any]:
        loaded.append(path.name)
        return original(path, verify=verify)

    sharing.load_archive = load  # type: ignore[attr-defined]  # not exported
    received = sharing.share_checkpoint(newest, join_host_group())
    if received is None:
        return ["nothing", loaded]
    assert received[0] == path
    assert torch.equal(received[1]["weights"], DATA["weights"])  # type: ignore[arg-type]  # a tensor
    return [received[1]["name"], received[1]["seed"], [name == "a.pth" for name in loaded]]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("seen", [["ü", 3, []], ["ü", 3, [True]]]),
        ("unseen", [["ü", 3, []], ["ü", 3, [False]]]),
        ("another", [["ü", 3, []], ["ü", 3, [False]]]),
        ("nothing", [["nothing", []], ["nothing", []]]),
    ],
)
def test_every_rank_gets_the_checkpoint_of_rank_0(tmp_path: Path, what: str, expected: list[Any]) -> None:
    """A rank reads the file if it sees the same one, and is sent its bytes if not; rank 0 does not read it again."""
    save_archive(tmp_path / "a.pth", DATA)
    assert run_ranks(tmp_path, 2, receive, tmp_path, what) == expected


def test_a_snapshot_is_not_changed_by_training(tmp_path: Path) -> None:
    """What is committed later is what was collected, whatever training does to the tensors in between."""
    store, weights = CheckpointStore(tmp_path, "m"), torch.zeros(3)
    pending = store.collect(CheckpointName("m", 1, 1), {"model": {"weights": weights, "steps": 1}}, HostGroup())
    snapshot = pending.snapshot()
    weights.add_(1)
    saved = load_archive(store.commit(snapshot))
    assert saved["model"]["weights"].tolist() == [0.0, 0.0, 0.0]
    assert load_archive(store.commit(pending))["model"]["weights"].tolist() == [1.0, 1.0, 1.0]
