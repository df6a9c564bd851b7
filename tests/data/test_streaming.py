from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.checkpoint.plain import decode, encode
from helios.core.rng import key_generators
from helios.data.loading import create_dataloader
from helios.data.sources import StreamSource, make_source
from helios.errors import ArgumentTypeError, CheckpointMismatchError
from tests.data.drawing import Reshuffling, Restarting, RestartingWithoutState, Rewinding, StayingAtEnd, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# Tests run on machines with fewer cores than some of them have workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

KINDS = [Rewinding, StayingAtEnd, Reshuffling, Restarting, Stream, RestartingWithoutState]
EPOCHS = 3


def make_stream_source(dataset: Stream, **options: Any) -> StreamSource:
    source = make_source(*create_dataloader(dataset, random_seed=5, collate_fn=list, **options))
    assert isinstance(source, StreamSource)
    return source


def saved(position: dict[str, Any]) -> dict[str, Any]:
    """Return a position after saving it to and loading it from a checkpoint."""
    position = copy.deepcopy(decode(encode(position)))
    assert isinstance(position, dict)
    return position


def disturb() -> None:
    """Change the generators to random states, as training does between two batches."""
    key_generators(torch.seed() % 2**64)


def train(
    source: StreamSource, epoch: int = 0, done: int = 0, position: dict[str, Any] | None = None
) -> tuple[list[tuple[int, Any]], list[tuple[int, int, dict[str, Any]]]]:
    """Return the batches up to the end of the last epoch, and the position after each of them and each epoch."""
    batches, positions = [], []
    for current in range(epoch, EPOCHS):
        disturb()
        for batch in source.iterate(current, done, position):
            batches.append((current, batch))
            done += 1
            positions.append((current, done, saved(source.position_state(done))))
            disturb()
        done, position = 0, None
        positions.append((current + 1, 0, saved(source.position_state(0))))
    return batches, positions


def ensure_every_resume_is_exact(make: Callable[[], Stream], **options: Any) -> None:
    """Resume with new objects after every batch and every epoch, and compare all later batches."""
    batches, positions = train(make_stream_source(make(), **options))
    assert batches
    seen = 0
    for epoch, done, position in positions:
        seen += done > 0
        rest, _ = train(make_stream_source(make(), **options), epoch, done, position)
        assert rest == batches[seen:], (epoch, done, position)


# -------------------------------------------------------------------------------------------------- resuming in process


@pytest.mark.parametrize("kind", KINDS)
@given(size=st.integers(1, 9), batch_size=st.integers(1, 4), drop_last=st.booleans())
@settings(max_examples=10)
def test_a_stream_resumes_after_every_batch(kind: type[Stream], size: int, batch_size: int, drop_last: bool) -> None:
    """After any batch or epoch, a resume yields the remaining batches, whatever the dataset does at its end."""
    if drop_last and size < batch_size:
        return
    ensure_every_resume_is_exact(lambda: kind([size]), batch_size=batch_size, drop_last=drop_last)


def test_a_stream_is_batched_as_it_comes() -> None:
    """An epoch of a stream is its items in order, in batches, the last one short unless it is dropped."""
    for drop_last in (False, True):
        batches, _ = train(make_stream_source(Rewinding([5]), batch_size=2, drop_last=drop_last))
        numbers = [(epoch, [int(number) for _, number, *_ in batch]) for epoch, batch in batches]
        expected = [[0, 1], [2, 3]] if drop_last else [[0, 1], [2, 3], [4]]
        assert numbers == [(epoch, batch) for epoch in range(EPOCHS) for batch in expected]


def test_resuming_a_resumed_stream() -> None:
    """A run that is interrupted after every single batch sees what the uninterrupted one sees."""
    for kind in KINDS:
        batches, _ = train(make_stream_source(kind([7]), batch_size=2))
        pieced: list[Any] = []
        epoch, done, position = 0, 0, None
        while epoch < EPOCHS:
            source = make_stream_source(kind([7]), batch_size=2)
            batch = next(source.iterate(epoch, done, position), None)
            if batch is None:
                epoch, done = epoch + 1, 0
            else:
                pieced.append((epoch, batch))
                done += 1
            position = saved(source.position_state(done))
        assert pieced == batches


def test_a_resumed_stream_fetches_less_than_a_batch_again() -> None:
    """A stream with state continues from it; at its end, less than a batch is read again."""

    class Counting(Rewinding):
        read = 0

        def item(self, number: int) -> list[float]:
            self.read += 1
            return super().item(number)

    _, positions = train(make_stream_source(Counting([11]), batch_size=3))
    for epoch, done, position in positions:
        dataset = Counting([11])
        batch = next(make_stream_source(dataset, batch_size=3).iterate(epoch, done, position), None)
        assert dataset.read <= 3 + 2
        if batch is not None and done:
            assert dataset.read == len(batch)


def test_the_state_of_a_checkpoint_does_not_change() -> None:
    """A position that was returned does not change while the dataset continues and changes its lists."""

    class Appending(Rewinding):
        def __init__(self, sizes: Sequence[int]) -> None:
            super().__init__(sizes)
            self.seen: list[int] = []

        def item(self, number: int) -> list[float]:
            self.seen.append(number)
            return super().item(number)

        def state_dict(self) -> dict[str, Any]:
            return {"position": self.position, "seen": self.seen}

    source = make_stream_source(Appending([6]), batch_size=2)
    batches = source.iterate(0)
    next(batches)
    position = source.position_state(1)
    copied = copy.deepcopy(position)
    list(batches)
    assert position == copied


# ------------------------------------------------------------------------------------------------ resuming with workers


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Rewinding, (5,)),
        (Rewinding, (2, 5)),
        (Reshuffling, (5, 3)),
        (Reshuffling, (3, 1, 2)),  # In every other epoch the second worker sends nothing.
        (StayingAtEnd, (1, 4)),
        (Restarting, (0, 3)),
        (RestartingWithoutState, (3, 2)),
    ],
)
def test_a_stream_with_workers_resumes_after_every_batch(
    kind: type[Stream], sizes: tuple[int, ...], persistent: bool
) -> None:
    """A resume is exact with workers whose parts differ in length, in all later epochs too."""
    ensure_every_resume_is_exact(
        lambda: kind(sizes), batch_size=2, num_workers=len(sizes), persistent_workers=persistent
    )


def test_workers_end_where_their_parts_end() -> None:
    """Every item of every worker's part comes once an epoch; the workers that have items left take turns."""
    batches, _ = train(make_stream_source(Rewinding([3, 7]), batch_size=2, num_workers=2))
    first = [[(int(worker), int(number)) for worker, number, *_ in batch] for epoch, batch in batches if epoch == 0]
    assert first == [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 2)], [(1, 2), (1, 3)], [(1, 4), (1, 5)], [(1, 6)]]


@pytest.mark.parametrize("persistent", [False, True])
def test_an_epoch_that_is_iterated_again_is_the_same(persistent: bool) -> None:
    """Draws are a function of the epoch, not of how often it was iterated over, which validation does repeatedly."""
    source = make_stream_source(Restarting([5]), batch_size=2, num_workers=1, persistent_workers=persistent)
    first = list(source.iterate(0))
    assert list(source.iterate(0)) == first
    assert list(source.iterate(1)) != first


def test_draws_of_a_stream_do_not_depend_on_workers() -> None:
    """One worker draws what the training process draws, in every epoch."""
    for kind in (Rewinding, Restarting, Stream):
        in_process, _ = train(make_stream_source(kind([5]), batch_size=2))
        with_worker, _ = train(make_stream_source(kind([5]), batch_size=2, num_workers=1, persistent_workers=True))
        assert in_process == with_worker


def test_draws_of_a_stream_are_pinned() -> None:
    """Draws in `__iter__` are a function of (seed, epoch, worker, batch): these, in every version."""
    batches, _ = train(make_stream_source(Stream([2]), batch_size=1))
    drawn = [batch[0][2:] for epoch, batch in batches if epoch == 1]
    assert drawn == [
        [0.8497172555562157, 0.9530516210341768, 0.046602825237780254, 0.7156788464169317],
        [0.1404646092277425, 0.7974318685842393, 0.4325378730016223, 0.4311162392189628],
    ]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_another_number_of_workers_is_refused() -> None:
    """The states of two workers cannot be loaded by one, nor by three."""
    _, positions = train(make_stream_source(Rewinding([3, 3]), batch_size=2, num_workers=2))
    for workers in (0, 3):
        source = make_stream_source(Rewinding([3, 3, 3]), batch_size=2, num_workers=workers)
        with pytest.raises(CheckpointMismatchError, match=f"of 2 workers.*num_workers asks for {max(workers, 1)} now"):
            source.iterate(*positions[0])


def test_a_state_that_is_no_dictionary_is_refused() -> None:
    """The error for a `state_dict` that returns no dictionary names the dataset."""

    class Bad(Rewinding):
        def state_dict(self) -> Any:
            return [1]

    with pytest.raises(ArgumentTypeError, match=r"Bad.state_dict\(\) returned a list"):
        list(make_stream_source(Bad([3])).iterate(0))
