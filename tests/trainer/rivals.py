"""A second process that trains or tests with the checkpoints of a first one."""

from __future__ import annotations

import logging
import multiprocessing
from typing import TYPE_CHECKING, Any

from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

_context = multiprocessing.get_context("forkserver")


def run_elsewhere(root: Path, method: str, **options: Any) -> tuple[str, str]:
    """Call `fit` or `test` in another process; return what it raises, or the name of what it returns."""
    here, there = _context.Pipe()
    process = _context.Process(target=_run, args=(there, root, method, options), daemon=True)
    process.start()
    there.close()
    result: tuple[str, str] = here.recv()
    process.join()
    return result


def _run(answer: Connection, root: Path, method: str, options: dict[str, Any]) -> None:
    logging.getLogger("helios").setLevel(logging.CRITICAL)
    try:
        result = getattr(make_trainer(root, **options), method)(CountingModel(), ListData())
    except Exception as error:  # noqa: BLE001 - what it raises is the result.
        answer.send((type(error).__name__, str(error)))
    else:
        answer.send((str(result), ""))
