from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from helios.checkpoint import files, shard_files
from helios.checkpoint.archive import save_archive
from helios.checkpoint.files import remove_temporaries
from helios.checkpoint.shard_files import fill_shards, load_sharded_plain, save_sharded
from helios.checkpoint.shard_tree import has_shards
from helios.checkpoint.state.parts import set_state
from helios.errors import (
    ArgumentTypeError,
    CheckpointError,
    ConfigurationError,
    CorruptCheckpointError,
)
from helios.ranks.mesh import make_mesh
from helios.testing import are_equal
from tests.parallel.test_sharding import make_optimizer, make_sharded, state_of, train, whole
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def save(path: Path, data: dict[str, Any]) -> None:
    save_sharded(path, data, group=dist.group.WORLD)  # type: ignore[arg-type]  # There is one.


def sharded(tensor: torch.Tensor, dim: int | None = 0) -> Any:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: PLC0415 - in the ranks alone.

    placement = Replicate() if dim is None else Shard(dim)
    return distribute_tensor(tensor, make_mesh("cpu"), [placement], src_data_rank=None)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ----------------------------------------------------------------------------------------------------------- round trip


def save_training(rank: int, path: Path) -> Any:
    network = make_sharded()
    optimizer = make_optimizer(network)
    train(network, optimizer, rank, range(3))
    save(path, {"training": {"step": 3, "rank": rank}, "parts": state_of(network, optimizer)})
    saved = whole(state_of(network, optimizer))
    train(network, optimizer, rank, range(3, 6))
    return saved, whole(state_of(network, optimizer))


def load_training(rank: int, path: Path) -> Any:
    network = make_sharded(seed=5)
    optimizer = make_optimizer(network)
    data = fill_shards(load_sharded_plain(path, verify=rank == 0), path, make_mesh("cpu"))
    set_state(network, data["parts"]["network"], "network")
    set_state(optimizer, data["parts"]["optimizer"], "optimizer")
    loaded = whole(state_of(network, optimizer))
    train(network, optimizer, rank, range(data["training"]["step"], 6))
    return data["training"], loaded, whole(state_of(network, optimizer))


def test_training_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """A checkpoint of 2 ranks is loaded exactly by 2 ranks, by 3 ranks and by 1 process."""
    path = tmp_path / "place" / "a.pth"
    (saved, trained), _ = run_ranks(tmp_path, 2, save_training, path)
    assert names_in(path.parent) == ["a.pth"]
    for world_size in (2, 3):
        for training, loaded, trained_then in run_ranks(tmp_path, world_size, load_training, path):
            assert training == {"step": 3, "rank": 0}
            assert are_equal(loaded, saved)
            assert are_equal(trained_then, trained) == (world_size == 2)
    assert not dist.is_initialized()
    single = fill_shards(load_sharded_plain(path), path, None)
    assert are_equal(whole(single["parts"]), saved)
    assert not has_shards(single)


KINDS: dict[str, tuple[Callable[[], torch.Tensor], int | None]] = {
    "odd": (lambda: torch.randn(7, 2), 0),
    "one": (lambda: torch.randn(1, 3), 0),
    "second": (lambda: torch.randn(3, 5).bfloat16(), 1),
    "empty": (lambda: torch.randn(0, 3), 0),
    "scalar": (lambda: torch.tensor(-0.0), None),
    "replicated": (lambda: torch.randn(4).half(), None),
    "nan": (lambda: torch.tensor([float("nan"), -float("inf"), 1e-45]), 0),
    "double": (lambda: torch.randn(5, dtype=torch.double), 0),
    "integers": (lambda: torch.randint(-(2**62), 2**62, (5,)), 0),
    "bytes": (lambda: torch.randint(0, 255, (5,)).to(torch.uint8), 0),
    "booleans": (lambda: torch.randn(5) > 0, 0),
    "float8": (lambda: torch.randn(5).to(torch.float8_e4m3fn), 0),
}


def make_kinds() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: make() for name, (make, _) in KINDS.items()}


def bits(tensor: torch.Tensor) -> Any:
    return tensor.dtype, tuple(tensor.shape), bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def save_kinds(_: int, path: Path) -> None:
    save(path, {"a": [{name: sharded(tensor, KINDS[name][1])} for name, tensor in make_kinds().items()]})


def load_kinds(_: int, path: Path) -> Any:
    loaded = fill_shards(load_sharded_plain(path), path, make_mesh("cpu"))["a"]
    expected = [{name: sharded(tensor, KINDS[name][1])} for name, tensor in make_kinds().items()]
    return [
        (name, part[name].placements == own[name].placements, bits(part[name].to_local()) == bits(own[name].to_local()))
        for part, own in zip(loaded, expected, strict=True)
        for name in own
    ]


@pytest.mark.parametrize("ranks", [(2, 3), (3, 2)])
def test_every_kind_of_tensor_survives(tmp_path: Path, ranks: tuple[int, int]) -> None:
    """Uneven, tiny, empty and 0-dimensional tensors of all dtypes come back to the bit on more ranks or fewer."""
    path = tmp_path / "a.pth"
    run_ranks(tmp_path, ranks[0], save_kinds, path)
    for told in run_ranks(tmp_path, ranks[1], load_kinds, path):
        assert told == [(name, True, True) for name in KINDS]
    loaded = fill_shards(load_sharded_plain(path), path, None)["a"]
    assert [bits(part[name]) for name, part in zip(KINDS, loaded, strict=True)] == [
        bits(t) for t in make_kinds().values()
    ]


@pytest.mark.usefixtures("alone")
def test_nothing_in_the_folder_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is an archive and safetensors files alone, and is read with pickle out of order."""
    path = tmp_path / "a.pth"
    save(path, {"a": sharded(torch.ones(3)), "b": b"", "c": 1})
    assert names_in(path) == ["plain.pth", SHARD]
    assert (path / "plain.pth").read_bytes()[:2] == b"PK"
    assert torch.load(path / "plain.pth", weights_only=True)["shards"].keys() == {SHARD}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    data = fill_shards(load_sharded_plain(path), path, None)
    assert are_equal(data, {"a": torch.ones(3), "b": b"", "c": 1})


@pytest.mark.usefixtures("alone")
def test_an_old_checkpoint_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a folder of the same name gives way, and every file is forced to the disk."""
    path = tmp_path / "a.pth"
    path.write_text("a file")
    synced = list[str]()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", note)
    for value in (1.0, 2.0):
        synced.clear()
        save(path, {"a": sharded(torch.full((3,), value))})
        assert are_equal(fill_shards(load_sharded_plain(path), path, None), {"a": torch.full((3,), value)})
        assert synced[0] == SHARD
        assert synced[1].startswith(".plain.pth")
    assert names_in(tmp_path) == ["a.pth", "meet"]


# --------------------------------------------------------------------------------------------------------------- damage


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit of a shard": (lambda path: flip(path / SHARD), "does not match its checksum"),
    "a bit of the rest": (lambda path: flip(path / "plain.pth"), "plain.pth does not match its checksum"),
    "a shard's end": (lambda path: os.truncate(path / SHARD, 20), "has 20 bytes, and was written with"),
    "a shard": (lambda path: (path / SHARD).unlink(), "and has \\[\\]"),
    "the rest": (lambda path: (path / "plain.pth").unlink(), "a.pth has no plain.pth: it is no checkpoint"),
    "one too many": (lambda path: shutil.copy(path / SHARD, path / "b.safetensors"), "and has .'b.safetensors'"),
    "another archive": (
        lambda path: shutil.copy(path.parent / "x", path / "plain.pth"),
        "a.pth is damaged: 'data'",
    ),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    """What is changed, lost or added is found, and the error names the checkpoint."""
    path = tmp_path / "a.pth"
    save(path, {"a": sharded(torch.ones(3))})
    save_archive(tmp_path / "x", {"other": 1})
    spoil, message = DAMAGES[damage]
    load_sharded_plain(path)
    spoil(path)
    with pytest.raises(CorruptCheckpointError, match=message) as caught:
        load_sharded_plain(path)
    assert "a.pth" in str(caught.value)


@pytest.mark.usefixtures("alone")
def test_one_rank_may_check_for_all(tmp_path: Path) -> None:
    """Without verification shards are not looked at; those that cannot be read are an error even so."""
    path = tmp_path / "a.pth"
    save(path, {"a": sharded(torch.ones(3))})
    os.truncate(path / SHARD, 20)
    plain = load_sharded_plain(path, verify=False)
    with pytest.raises(CorruptCheckpointError, match="the shards of a.pth cannot be read: .*deserializing header"):
        fill_shards(plain, path, None)
    with pytest.raises(FileNotFoundError):
        load_sharded_plain(tmp_path / "b.pth")


# ------------------------------------------------------------------------------------------------------------- failures


def fail_to_save(rank: int, path: Path, failure: str) -> Any:
    data: dict[str, Any] = {"a": sharded(torch.ones(300)), "b": 2}
    save(path, {"a": sharded(torch.ones(2)), "b": 1})
    with pytest.MonkeyPatch.context() as patch:
        if failure == "rank 1's disk is full" and rank == 1:
            # One byte less than a shard: what is written is cut off, and an error of the system.
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if failure == "rank 0 has no room for the archive" and rank == 0:
            patch.setattr(shard_files, "save_archive", refuse)
        if failure == "rank 0 cannot rename" and rank == 0:
            patch.setattr(files, "_supplant", refuse)
        if failure == "rank 1 has other tensors" and rank == 1:
            data["c"] = sharded(torch.ones(2))
        if failure == "rank 0's data is not plain" and rank == 0:
            data["b"] = path
        if failure == "rank 1 has no safetensors" and rank == 1:
            patch.setitem(sys.modules, "safetensors", None)
        if failure == "rank 1 is interrupted" and rank == 1:
            patch.setattr(shard_files, "take_shards_out", interrupt)
        if failure == "rank 1 writes elsewhere" and rank == 1:
            patch.setattr(shard_files, "_hash", lambda file: file.rename(f"{file}.elsewhere") and "")
        try:
            save(path, data)
        except BaseException as error:  # noqa: BLE001 - the test looks at its type.
            return type(error), str(error)
    return None


def refuse(*_: Any) -> None:
    raise OSError(28, "no room")


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


OUTCOMES: dict[str, tuple[tuple[type[BaseException], str], tuple[type[BaseException], str]]] = {
    "rank 1's disk is full": (
        (OSError, "rank 1 could not write"),
        (OSError, "rank 1 could not write its shards: OSError"),
    ),
    "rank 0 has no room for the archive": (
        (OSError, "no room"),
        (OSError, "rank 0 could not continue to save: OSError"),
    ),
    "rank 0 cannot rename": ((OSError, "no room"), (OSError, "rank 0 could not continue to save: OS")),
    "rank 1 has other tensors": ((CheckpointError, "rank 1 has other"), (CheckpointError, "rank 1 has other sharded")),
    "rank 0's data is not plain": ((ArgumentTypeError, "checkpoint['b'] is"), (CheckpointError, "rank 0 could not")),
    "rank 1 has no safetensors": (
        (CheckpointError, "rank 1 could"),
        (ConfigurationError, "pip install 'helios-train[sh"),
    ),
    "rank 1 is interrupted": ((CheckpointError, "rank 1 could not continue to save: Keyb"), (KeyboardInterrupt, "")),
    "rank 1 writes elsewhere": ((CheckpointError, "all ranks share"), (CheckpointError, "rank 0 could not continue")),
}


@pytest.mark.parametrize("failure", OUTCOMES)
def test_a_failure_of_one_rank_is_one_of_all(tmp_path: Path, failure: str) -> None:
    """When one rank cannot save, none waits for it, each raises, and the old checkpoint alone is there."""
    path = tmp_path / "place" / "a.pth"
    told = run_ranks(tmp_path, 2, fail_to_save, path, failure)
    for (kind, message), (expected, part) in zip(told, OUTCOMES[failure], strict=True):
        assert issubclass(kind, expected)
        assert part in message
    assert names_in(path.parent) == ["a.pth"]
    assert fill_shards(load_sharded_plain(path), path, None)["b"] == 1


def be_killed(rank: int, path: Path, victim: int, moment: int) -> None:
    """Save twice, and be killed when the second save has forced so many files and folders to the disk."""
    save(path, {"a": sharded(torch.full((5,), 1.0)), "version": 1})
    fsync, left = os.fsync, moment

    def count(descriptor: Any) -> None:
        nonlocal left
        if rank == victim:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    setattr(os, "fsync", count)  # noqa: B010 - an assignment would have to repeat what fsync takes.
    try:
        save(path, {"a": sharded(torch.full((5,), 2.0)), "version": 2})
    except RuntimeError:  # The other rank has gone away.
        os.kill(os.getpid(), signal.SIGKILL)


# On rank 0: the shard, the archive, the folder with it, the folder again before it has its name, the one around it then
# and when the old one is gone. Rank 1 writes its shard alone.
@pytest.mark.parametrize(
    ("victim", "moment", "version"),
    [(0, 0, 1), (0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 2), (0, 5, 2), (1, 0, 1)],
)
def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path, victim: int, moment: int, version: int) -> None:
    """Whenever a rank is killed, there is one whole checkpoint, and the rest is known as temporary."""
    path = tmp_path / "place" / "a.pth"
    assert run_ranks(tmp_path, 2, be_killed, path, victim, moment)[victim] is None
    data = fill_shards(load_sharded_plain(path), path, None)
    assert are_equal(data, {"a": torch.full((5,), float(version)), "version": version})
    assert len(remove_temporaries(path.parent)) == (victim == 0 and moment < 5)
    assert names_in(path.parent) == ["a.pth"]


SCRIPT = """
import sys
sys.modules["safetensors"] = None
import helios, helios.checkpoint.shard_files
from pathlib import Path
try:
    helios.checkpoint.shard_files.fill_shards({}, Path(), None)
except ValueError as error:
    print(error)
"""


def test_the_extra_is_needed_only_for_shards() -> None:
    """Without safetensors the library can be imported, and an error names the extra when it is needed."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True)
    assert "which is not installed: pip install 'helios-train[sharded]'" in done.stdout
