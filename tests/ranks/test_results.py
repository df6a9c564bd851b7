from __future__ import annotations

import queue
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios.ranks.results import ResultQueue, SendingQueue, pack


def make_line() -> tuple[SendingQueue, ResultQueue]:
    """Return the two ends of a queue, with nothing between them."""
    home = ResultQueue()
    return SendingQueue(lambda item: home.extend([item])), home


@given(st.lists(st.one_of(st.none(), st.integers(), st.text(), st.lists(st.floats(allow_nan=False)))))
def test_items_are_returned_in_order(items: list[object]) -> None:
    """Each item is returned once, first in first out, and the queue reports its size."""
    rank, home = make_line()
    for number, item in enumerate(items):
        (rank.put if number % 2 else home.put)(item)
    assert (home.qsize(), len(home), home.empty()) == (len(items), len(items), not items)
    assert [home.get() if number % 2 else home.get_nowait() for number in range(len(items))] == items
    assert home.empty()
    assert (home.qsize(), len(home)) == (0, 0)


def test_an_empty_queue_raises_at_once() -> None:
    """`get` never waits, because no item can arrive; it raises the standard error, with the remedy."""
    began = time.monotonic()
    for take in (ResultQueue().get, ResultQueue().get_nowait, lambda: ResultQueue().get(True, 60)):
        with pytest.raises(
            queue.Empty, match="each item that a rank puts, for example in on_training_end, can be taken out once"
        ):
            take()
    assert time.monotonic() - began < 5


def test_the_arguments_of_the_standard_queue_are_accepted() -> None:
    """Code that passes `block` and `timeout`, as to a queue of the standard library, works unchanged."""
    rank, home = make_line()
    rank.put(1, True, 5)  # noqa: FBT003 - as such code does.
    rank.put(2, block=False)
    rank.put_nowait(3)
    assert [home.get(True, 5), home.get(block=False), home.get(timeout=5)] == [1, 2, 3]


def test_tensors_are_put_by_value() -> None:
    """Later changes to a tensor do not change the item, and no memory is shared."""
    rank, home = make_line()
    tensor = torch.arange(1000.0)
    rank.put({"weights": tensor})
    tensor.zero_()
    assert torch.equal(home.get()["weights"], torch.arange(1000.0))
    assert len(pack(tensor)) > 1000 * tensor.element_size()


def test_an_item_that_cannot_be_pickled_is_refused_by_put() -> None:
    """`put` raises the error, and the item is not sent."""
    rank, home = make_line()
    for put in (rank.put, home.put):
        with pytest.raises(AttributeError, match="lambda"):
            put(lambda: None)
    assert home.empty()


def test_items_of_a_failed_run_are_dropped_by_the_next_run() -> None:
    """Items of a failed run stay readable until the next run starts, which drops these and no equal ones."""
    home = ResultQueue()
    with home.filling():
        home.put("same")
        home.put("well")
    with pytest.raises(ZeroDivisionError), home.filling():
        home.put("same")
        home.put("ill")
        raise ZeroDivisionError
    home.put("same")
    assert len(home) == 5
    assert home.get() == "same"
    with home.filling():
        home.put("next")
    assert [home.get() for _ in range(len(home))] == ["well", "same", "next"]
    with home.filling():
        assert home.empty()
