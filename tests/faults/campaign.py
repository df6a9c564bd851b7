"""Attacks on a run, one after the other, in processes that are forked from this one: `python -m tests.faults.campaign`.

It is started with the shim of `shim.c` preloaded. For each attack a process trains under it, however that ends, and
another one, which nobody disturbs, resumes. What both did is printed as a line of JSON.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from helios.errors import HeliosError
from helios.testing import TinyDataModule, TinyModel
from tests.trainer.parts import make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios import TrainingState

KINDS: Final = {"write": 1, "fsync": 2, "rename": 4, "unlink": 8, "open": 16}
ERRORS: Final = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "kill": 0}
SIGNALS: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGKILL")
OPTIONS: Final[dict[str, Any]] = {"train_unit": "iteration", "total_steps": 12, "chkpt_frequency": 2}


class Campaign:
    """Runs attacks below one folder."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._numbers = random.Random(seed)
        self._shim = ctypes.CDLL(None)
        self.expected = self._in_process(lambda: _train(root / "undisturbed"))

    def attack(
        self, name: str, under_attack: Callable[[Path], str], parent: Callable[[int], None] | None = None
    ) -> None:
        """Train under attack and resume; print what came of it.

        Args:
            name: what the attack is.
            under_attack: arms the attack in the process that is attacked, given the folder, and trains.
            parent: attacks that process from outside, given its id.
        """
        folder = self._root / "attacked"
        shutil.rmtree(folder, ignore_errors=True)
        ended = self._in_process(lambda: under_attack(folder), parent)
        resumed = self._in_process(lambda: _train(folder))
        left = [path.name for path in folder.rglob("*") if path.name.startswith(".")]
        _report(attack=name, ended=ended, resumed=resumed, left=left)

    def fail_disk(self, kind: str, error: str, at: int, *, stays: bool) -> None:
        """Let the at-th call of a kind fail, and those after it if the fault stays."""

        def train(folder: Path) -> str:
            self._shim.arm(str(folder).encode(), KINDS[kind], ctypes.c_long(at), ERRORS[error], stays)
            return _train(folder)

        self.attack(f"{kind} {at}: {error}{' from then on' if stays else ''}", train)

    def count_calls(self) -> dict[str, int]:
        """Return how many calls of each kind an undisturbed run makes."""
        counts = {}
        for kind, number in KINDS.items():
            folder = self._root / f"counted {kind}"

            def train(folder: Path = folder, number: int = number) -> str:
                self._shim.arm(str(folder).encode(), number, ctypes.c_long(0), 1, 0)
                _train(folder)
                return str(self._shim.calls())

            counts[kind] = int(self._in_process(train))
        return counts

    def fill_disk_with_debris(self) -> None:
        """Leave what a killed writer may have left on a disk that has room for it and for two checkpoints."""

        def train(folder: Path) -> str:
            _train(folder, total_steps=2)
            for path in (folder / "tiny").glob("*.pth"):
                debris = path.with_name(f".{path.name}.0123456789abcdef.tmp")
                debris.write_bytes(bytes(200_000))
            self._shim.arm_quota(str(folder).encode(), ctypes.c_long(200_000))
            return _train(folder)

        self.attack("a disk full of debris", train)

    def damage(self, how: str) -> None:
        """Flip or cut off bytes of a checkpoint of a run that was stopped half-way."""
        numbers = random.Random(self._numbers.random())

        def train(folder: Path) -> str:
            _train(folder, total_steps=6)
            paths = sorted((folder / "tiny").glob("*.pth"))
            for path in numbers.sample(paths, numbers.randrange(1, len(paths))):  # One is left.
                content = bytearray(path.read_bytes())
                place = numbers.randrange(len(content))
                if how == "flipped":
                    content[place] ^= 1 << numbers.randrange(8)
                else:
                    del content[place:]
                path.write_bytes(content)
            return "damaged"

        self.attack(f"bytes {how}", train)

    def signal_at_random(self, name: str) -> None:
        """Send a signal at a random moment of the run."""
        delay = self._numbers.uniform(0, 0.12)

        def send(process: int) -> None:
            time.sleep(delay)
            os.kill(process, getattr(signal, name))

        self.attack(f"{name} after {delay:.3f} s", lambda folder: _train(folder, pause=0.01), send)

    @staticmethod
    def _in_process(task: Callable[[], str], parent: Callable[[int], None] | None = None) -> str:
        """Return what a task returned in a process of its own, or how that process ended."""
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            try:
                with os.fdopen(writer, "w") as file:
                    file.write(task())
            finally:
                os._exit(0)
        os.close(writer)
        if parent is not None:
            parent(process)
        with os.fdopen(reader) as file:
            result = file.read()
        _, status = os.waitpid(process, 0)
        return result or f"signal {os.waitstatus_to_exitcode(status)}"


class _Pausing(TinyModel):
    """Takes its time, so that a signal finds it at work."""

    pause = 0.0

    def on_training_batch_start(self, state: TrainingState) -> None:
        del state
        time.sleep(self.pause)


def _train(folder: Path, *, pause: float = 0.0, **options: Any) -> str:
    """Return a digest of what the run ends with, or how it ended in place of that."""
    model = _Pausing()
    model.pause = pause
    try:
        if not make_trainer(folder, **{**OPTIONS, **options}).fit(model, TinyDataModule()):
            return "stopped"
        return _digest(model.state_dict())
    except HeliosError as error:
        return f"refused: {type(error).__name__}: {error}"
    except KeyboardInterrupt:
        return "interrupted"
    except BaseException:  # noqa: BLE001 - the verdict is the caller's.
        return traceback.format_exc()


def _report(**entry: object) -> None:
    sys.stdout.write(f"{json.dumps(entry)}\n")
    sys.stdout.flush()


def _digest(value: Any) -> str:
    digest = hashlib.sha256()

    def source(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(part.detach().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for key, item in part.items():
                digest.update(repr(key).encode())
                source(item)
        elif isinstance(part, list | tuple):
            for item in part:
                source(item)
        else:
            digest.update(repr(part).encode())

    source(value)
    return digest.hexdigest()


def main(root: Path, rounds: int, seed: int) -> None:
    """Attack a run; more rounds attack it at more places.

    Args:
        root: a folder for all of it.
        rounds: how many attacks of each kind; 0 for every place where a disk can fail.
        seed: of what is drawn at random.
    """
    torch.set_num_threads(1)
    _train(root / "warm")  # What is imported late is imported here, once for all processes that are forked.
    campaign, numbers = Campaign(root, seed), random.Random(seed)
    _report(expected=campaign.expected)
    campaign.fill_disk_with_debris()
    campaign.fail_disk("unlink", "EIO", 2, stays=True)  # The lock, when all is done.
    faults = [
        (kind, error, at, stays)
        for kind, count in campaign.count_calls().items()
        for error in ERRORS
        for stays in ((False,) if error == "kill" else (False, True))
        for at in range(1, count + 1)
    ]
    for kind, error, at, stays in numbers.sample(faults, rounds) if rounds else faults:
        campaign.fail_disk(kind, error, at, stays=stays)
    for _ in range(rounds or 200):
        campaign.damage(numbers.choice(["flipped", "cut off"]))
        campaign.signal_at_random(numbers.choice(SIGNALS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
