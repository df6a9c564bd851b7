from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from helios.data.datamodule import DataModule
from helios.data.loading import create_dataloader
from helios.data.sources import StreamSource, make_source
from helios.errors import TrainingError
from helios.model import Model
from helios.trainer import Trainer
from tests.data.drawing import Rewinding, Stream

if TYPE_CHECKING:
    from helios.core.state import TrainingState

# Tests run on machines with fewer cores than some of them have workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def make_stream_source(dataset: Stream, **options: Any) -> StreamSource:
    source = make_source(*create_dataloader(dataset, random_seed=5, collate_fn=list, **options))
    assert isinstance(source, StreamSource)
    return source


def test_a_stream_without_state_warns_of_what_is_lost() -> None:
    """A stream without state is warned of once; for one with state, the log says that a resume is exact."""

    class Log(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.lines.append(record.getMessage())

    log, logger = Log(), logging.getLogger("tests.data.streaming")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with pytest.warns(UserWarning, match=r"Stream has no state_dict.*reads and drops") as caught:
        make_stream_source(Stream([3])).announce(logger)
    assert len(caught) == 1
    assert log.lines == []
    make_stream_source(Rewinding([3])).announce(logger)
    assert log.lines == [
        "Rewinding has state_dict and load_state_dict: its state is saved in checkpoints, and a resume is exact"
    ]


class StreamModule(DataModule):
    def __init__(self, dataset: Any) -> None:
        super().__init__()
        self.dataset = dataset

    def setup(self) -> None:
        self._train_dataset = self._create_dataset(self.dataset, {"batch_size": 2, "collate_fn": list})


class Idle(Model):
    def setup(self, fast_init: bool = False) -> None:
        pass

    def train_step(self, batch: Any, state: TrainingState) -> None:
        pass


def test_a_trainer_warns_once_a_run() -> None:
    """A run of several epochs over a stream without state warns once."""
    with pytest.warns(UserWarning, match="has no state_dict") as caught:
        Trainer(total_steps=3, use_cpu=True, print_banner=False).fit(Idle("stream"), StreamModule(Stream([3])))
    assert len(caught) == 1


def test_a_stream_without_a_second_epoch_is_an_error() -> None:
    """A stream that yields nothing in its second epoch ends training with an error that says why, not in a hang."""

    class Once(Rewinding):
        def __iter__(self) -> Any:
            while self.position < self.size:
                self.position += 1
                yield self.item(self.position - 1)

    trainer = Trainer(total_steps=3, use_cpu=True, print_banner=False)
    with pytest.raises(TrainingError, match="epoch 2 has no batch.*must go back to its start"):
        trainer.fit(Idle("stream"), StreamModule(Once([3])))
