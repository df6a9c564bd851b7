"""Strangers who come to the ports of a run at random moments, and write what they like."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from helios import Trainer
from helios.errors import RankFailedError
from tests.faults.sockets import listening
from tests.faults.strangers import connect, craft, overwrite
from tests.faults.test_strangers import LATER
from tests.processes import survivors
from tests.trainer.parts import CountingModel, ListData

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState

SOON = 60  # seconds for a run of tenths of one


class Visited(CountingModel):
    """Trains for some tenths of a second, on ranks that leave a file each."""

    def __init__(self, folder: Path) -> None:
        super().__init__("visited")
        self.folder = folder

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        (self.folder / f"rank-{os.getpid()}").touch()

    def train_step(self, batch: Any, state: TrainingState) -> None:
        super().train_step(batch, state)
        time.sleep(0.01)


def shout(port: int, numbers: random.Random) -> None:
    """Send bytes to a port that mean nothing."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(numbers.randbytes(numbers.choice([1, 8, 64, 4096])))
        time.sleep(numbers.random() * 0.1)


def visit(folder: Path, before: set[tuple[str, int]], harm: bytes, seed: int) -> None:
    """Wait until there is a port, and for a moment; then write to what is found, or shout at it."""
    numbers = random.Random(seed)
    deadline = time.monotonic() + SOON
    while not (ports := listening([os.getpid()]) - before) and time.monotonic() < deadline:
        time.sleep(0.001)
    ((_, port),) = ports
    time.sleep(numbers.random() * 0.5)
    ranks = [int(path.name.rpartition("-")[2]) for path in folder.glob("rank-*")]
    if seed % 2:
        found = {port}
        for rank in ranks:
            with contextlib.suppress(OSError):  # It has ended.
                found |= {each for _, each in listening([rank])}
        for each in found:
            shout(each, numbers)
        return
    with contextlib.suppress(RuntimeError, ValueError):  # The run is over.
        store = connect(port)
        content = numbers.choice([harm, b"", b"1", numbers.randbytes(40)])
        overwrite(store, content, numbers.sample(LATER, numbers.randint(0, len(LATER))))


@pytest.mark.soak
@pytest.mark.usefixtures("forked_ranks")
@pytest.mark.parametrize("seed", range(60))
def test_strangers_at_random_moments(tmp_path: Path, seed: int) -> None:
    """A run whose ports strangers write to ends well or with an error of ours, soon, and runs nothing."""
    before = listening([os.getpid()])
    harm = tmp_path / "harm"
    stranger = threading.Thread(target=visit, args=(tmp_path, before, craft(harm), seed))
    stranger.start()
    start = time.monotonic()
    with contextlib.suppress(RankFailedError):
        Trainer(total_steps=10, num_processes=2, print_banner=False).fit(Visited(tmp_path), ListData())
    assert time.monotonic() - start < SOON
    stranger.join()
    assert not harm.exists()
    assert survivors([int(path.name.rpartition("-")[2]) for path in tmp_path.glob("rank-*")]) == []
