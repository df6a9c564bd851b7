from __future__ import annotations

import contextlib
import functools
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios.errors import NotRunningError, TrainingError
from helios.ranks import object_host
from helios.ranks.object_host import ObjectHost, call_host, host_channel, register_proxy

if TYPE_CHECKING:
    from collections.abc import Iterator


class Account:
    """Stays in the calling process, and holds what no other process may have a copy of."""

    def __init__(self, balance: int = 0) -> None:
        self.balance = balance
        self.cannot_travel = lambda: None

    def add(self, amount: int, *, times: int = 1) -> int:
        """Add to the balance and return it."""
        self.balance += amount * times
        return self.balance


class SavingsAccount(Account):
    """A special case."""


class Refusal(Exception):  # noqa: N818 - as users write it.
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.held = lambda: text


class Counter:
    """The stand-in of an account, where ranks are."""

    def __init__(self, number: int, opening_balance: int) -> None:
        self.number, self.opening_balance = number, opening_balance

    def add(self, amount: int, *, times: int = 1) -> Any:
        """Add it in the calling process."""
        return call_host(self.number, "add", amount, times=times)


def answer(account: Account, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Answer in the calling process, or fail in one of many ways."""
    if name == "raise":
        raise arguments[0](arguments[1])
    if name == "lambda":
        return account.cannot_travel
    return getattr(account, name)(*arguments, **options)


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a proxy for accounts during a test."""
    monkeypatch.setattr(object_host, "_kinds", {})
    register_proxy(Account, lambda account, number: (Counter, (number, account.balance)), answer)


@contextlib.contextmanager
def sent_out(value: Any) -> Iterator[Any]:
    """Act as another process that was sent a value, while the context lasts."""
    here = ObjectHost()
    packed = here.pack(value)
    with host_channel(here.answer):
        yield pickle.loads(packed)


def test_calls_of_a_proxy_run_on_the_hosted_object() -> None:
    """A call of a proxy runs on the hosted object; arguments and result are passed on."""
    account = Account(5)
    with sent_out({"held": [account]}) as arrived:
        (counter,) = arrived["held"]
        assert isinstance(counter, Counter)
        assert counter.opening_balance == 5
        assert counter.add(2, times=3) == 11
    assert account.balance == 11


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3)))
def test_each_object_has_one_proxy(order: list[int]) -> None:
    """An object has the same proxy wherever it occurs; equal objects have different ones."""
    accounts = [Account() if number % 2 else SavingsAccount() for number in range(4)]
    with sent_out([accounts[which] for which in order]) as counters:
        for counter in counters:
            counter.add(1)
        assert [account.balance for account in accounts] == [order.count(which) for which in range(4)]
        same = [[a is b for b in counters] for a in counters]
    assert same == [[a == b for b in order] for a in order]


def test_a_host_packs_several_times() -> None:
    """Proxies of several messages of the same host work at the same time."""
    here, first, second = ObjectHost(), Account(1), Account(2)
    packed = [here.pack(first), here.pack([second, first])]
    with host_channel(here.answer):
        once = pickle.loads(packed[0])
        other, again = pickle.loads(packed[1])
        assert [counter.add(10) for counter in (once, other, again)] == [11, 12, 21]


def test_other_objects_are_pickled_as_usual() -> None:
    """The class of hosted objects is pickled as usual, and so is every other object."""
    value = [Account, functools.partial(int, "12"), {"a": (1, 2.5)}]
    with sent_out(value) as arrived:
        assert arrived[0] is Account
        assert arrived[1]() == 12
        assert arrived[2] == value[2]


def test_an_error_of_the_hosted_object_is_raised_by_the_call() -> None:
    """A call raises the error of the hosted object, in its own type if that can be pickled."""
    with sent_out(Account()) as counter:
        with pytest.raises(KeyError, match="no such account"):
            call_host(counter.number, "raise", KeyError, "no such account")
        with pytest.raises(TrainingError, match=r"^tests\.ranks\.test_object_host\.Refusal: not today$"):
            call_host(counter.number, "raise", Refusal, "not today")
        with pytest.raises(AttributeError, match="lambda"):
            call_host(counter.number, "lambda")
        assert counter.add(1) == 1, "the host still answers after these errors"


def test_a_proxy_needs_a_channel() -> None:
    """A proxy outside of a run raises an error; the channel is open only while the context lasts."""
    account = Account()
    with sent_out(account) as counter:
        with sent_out(Account(100)):
            assert counter.add(1) == 101, "the innermost channel counts"
        assert counter.add(1) == 1
    with pytest.raises(NotRunningError, match="add calls the process that called fit, .* during a run only"):
        counter.add(1)


def test_an_error_closes_the_channel() -> None:
    """The channel is closed when a run fails."""
    with pytest.raises(KeyError), sent_out(Account()):
        raise KeyError
    assert object_host._channels == []
