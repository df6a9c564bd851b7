"""Processes of processes that the tests' fork server has made."""

import multiprocessing
import multiprocessing.forkserver
from unittest import mock


def fork_ranks() -> None:
    """Let `fit` in this process, a child of the fork server, have its ranks forked from that same server.

    Python would start a server of its own for every such process, which must import torch and everything first.
    """
    mock.patch.object(multiprocessing.forkserver._forkserver, "ensure_running").start()
    multiprocessing.set_start_method("forkserver", force=True)
