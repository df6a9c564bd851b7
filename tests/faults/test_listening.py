"""Nobody outside of this machine reaches a run that `fit` has started."""

from __future__ import annotations

import ipaddress
import multiprocessing
import os
import socket
from typing import TYPE_CHECKING

import pytest

from helios import Trainer
from tests.faults.sockets import listening
from tests.trainer.parts import CountingModel, ListData

if TYPE_CHECKING:
    from helios import TrainingState


class Looking(CountingModel):
    """Tells what its rank and the process that called `fit` listen on while they train."""

    def train_step(self, batch: object, state: TrainingState) -> None:
        del batch
        parent = multiprocessing.parent_process()
        assert parent is not None
        if state.global_iteration == 1:
            self.trainer.queue.put(listening([os.getpid(), parent.pid or 0]))


def test_what_a_process_listens_on_is_found() -> None:
    """The search finds sockets on one address, on all of them, and of IPv6; not those that are connected."""
    before = listening([os.getpid()])
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("", 0)) as every,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as other,
        socket.create_connection(one.getsockname()),
    ):
        expected = {("127.0.0.1", one), ("0.0.0.0", every), ("::1", other)}  # noqa: S104 - what is looked for.
        assert listening([os.getpid()]) - before == {(name, server.getsockname()[1]) for name, server in expected}


@pytest.mark.usefixtures("forked_ranks")
def test_a_run_listens_on_the_loopback_alone() -> None:
    """While two ranks train, neither they nor the process that called `fit` listen to anything outside."""
    before = listening([os.getpid()])  # Of other tests.
    trainer = Trainer(total_steps=1, num_processes=2, print_banner=False)
    assert trainer.fit(Looking("looking"), ListData())
    found = set().union(*(trainer.queue.get() for _ in range(2))) - before
    assert len(found) >= 3, "the store, and a socket of gloo's on each rank"
    assert [address for address, _ in found if not ipaddress.ip_address(address).is_loopback] == []
