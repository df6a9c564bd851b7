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
def test_items_come_out_in_the_order_in_which_they_came(items: list[object]) -> None:
    """Everything comes out once, first in first out, and the queue says how much there is."""
    rank, home = make_line()
    for number, item in enumerate(items):
        (rank.put if number % 2 else home.put)(item)
    assert (home.qsize(), len(home), home.empty()) == (len(items), len(items), not items)
    assert [home.get() if number % 2 else home.get_nowait() for number in range(len(items))] == items
    assert home.empty()
    assert (home.qsize(), len(home)) == (0, 0)


def test_an_empty_queue_says_so_at_once() -> None:
    """`get` never waits, as nothing can come any more; its error is the standard one and says what to do."""
    began = time.monotonic()
    for take in (ResultQueue().get, ResultQueue().get_nowait, lambda: ResultQueue().get(True, 60)):
        with pytest.raises(
            queue.Empty, match="each item that a rank puts, for example in on_training_end, can be taken out once"
        ):
            take()
    assert time.monotonic() - began < 5


def test_the_arguments_of_the_standard_queue_are_taken() -> None:
    """Code that passes `block` and `timeout`, as to a queue of the standard library, works as it is."""
    rank, home = make_line()
    rank.put(1, True, 5)  # noqa: FBT003 - as such code does.
    rank.put(2, block=False)
    rank.put_nowait(3)
    assert [home.get(True, 5), home.get(block=False), home.get(timeout=5)] == [1, 2, 3]


def test_tensors_are_put_in_by_value() -> None:
    """What happens to a tensor after it was put in changes nothing, and no memory is shared with anybody."""
    rank, home = make_line()
    tensor = torch.arange(1000.0)
    rank.put({"weights": tensor})
    tensor.zero_()
    assert torch.equal(home.get()["weights"], torch.arange(1000.0))
    assert len(pack(tensor)) > 1000 * tensor.element_size()


def test_what_cannot_be_pickled_is_refused_where_it_is_put_in() -> None:
    """The error comes where the item is put in, and nothing of it arrives."""
    rank, home = make_line()
    for put in (rank.put, home.put):
        with pytest.raises(AttributeError, match="lambda"):
            put(lambda: None)
    assert home.empty()


def test_what_a_failed_run_has_put_in_is_not_taken_for_the_next_ones() -> None:
    """It can be taken out until the next run begins, which drops that alone, however equal the rest is."""
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
