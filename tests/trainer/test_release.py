"""What a run needs is released when it ends, without the help of the garbage collector."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

import pytest

from helios.core.logging import get_root_logger
from helios.trainer._jobs import TrainingJob
from helios.trainer._loop import TrainingLoop
from helios.trainer._saving import Saver
from helios.trainer._session import Session
from tests.trainer.parts import CountingModel, Failing, ListData, make_trainer

if TYPE_CHECKING:
    from pathlib import Path

KINDS = (TrainingJob, TrainingLoop, Saver, Session)


def count() -> list[int]:
    """Return how many objects of each kind are alive."""
    alive = gc.get_objects()
    return [sum(type(thing) is kind for thing in alive) for kind in KINDS]


@pytest.mark.parametrize("where", ["", "step", "end", "setup"])
def test_a_run_that_has_ended_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """With the collector off, job, loop, saver and session are gone after `fit`, also if something has raised."""
    monkeypatch.setattr(get_root_logger(), "disabled", True)  # pytest keeps the record of an error, and its frames.
    gc.collect()
    before = count()
    gc.disable()
    try:
        model = Failing(where, ValueError("boom")) if where else CountingModel()
        with contextlib.suppress(ValueError):
            make_trainer(tmp_path, valid_frequency=1).fit(model, ListData())
        if where:
            model.error.__traceback__ = None  # type: ignore[attr-defined]  # the model keeps the error and its frames
        assert count() == before
    finally:
        gc.enable()
