from __future__ import annotations

import os
import pickle
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
import torch

from helios.core.distributed import all_reduce_tensors
from helios.errors import ConfigurationError, RankFailedError, StoreContentError, TrainingError
from helios.ranks.failures import Failure, portable
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

GONE = "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4507"


class TwoArguments(Exception):  # noqa: N818 - as users write it.
    """Can be pickled, and not be made again: it is called with its message alone then."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


class Holding(Exception):  # noqa: N818 - as above.
    """Refuses to be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.held = lambda: text


class Changing(Exception):  # noqa: N818 - as above.
    """Comes back as something that cannot be raised."""

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("no exception",)


class Stop(Exception):  # noqa: N818 - control flow, and no error.
    """As a plug-in would raise it."""


class StopAtOnce(Stop):
    """A special case."""


def raised(error: BaseException) -> BaseException:
    """Return an error with the traceback of this function."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def travel(failure: Failure) -> Failure:
    """Return what another process gets."""
    arrived: Failure = pickle.loads(pickle.dumps(failure))
    return arrived


def test_an_error_arrives_with_all_that_is_known_of_it() -> None:
    """Rank, machine, time, text and traceback of an exception are sent; the exception is the cause of the error."""
    before = time.monotonic()
    failure = travel(Failure.of(raised(ConfigurationError("steps is -1")), 3))
    assert (failure.rank, failure.host, failure.is_echo) == (3, socket.gethostname(), False)
    assert before <= failure.when <= time.monotonic()
    error = failure.to_error()
    assert isinstance(error, RankFailedError)
    assert error.rank == 3
    assert type(error.__cause__) is ConfigurationError
    assert error.__cause__.args == ("steps is -1",)
    first, _, told = str(error).partition("\n\n")
    place = f"rank 3 (on {socket.gethostname()})"
    assert first == f"{place} failed first: helios.errors.ConfigurationError: steps is -1"
    assert told.startswith("Traceback (most recent call last)")
    assert 'test_failures.py", line ' in told
    assert ", in raised\n" in told


@pytest.mark.parametrize("error", [TwoArguments("a", 1), Holding("a 1"), Changing("a 1")])
def test_an_error_that_cannot_be_pickled_is_sent_as_text(error: Exception) -> None:
    """If an exception cannot be pickled or unpickled, everything but the exception itself is sent."""
    arrived = travel(Failure.of(raised(error), 1)).to_error()
    assert isinstance(arrived, RankFailedError)
    assert arrived.__cause__ is None
    assert f"failed first: {type(error).__module__}.{type(error).__qualname__}: a 1\n\nTraceback" in str(arrived)


def test_control_flow_arrives_as_it_is() -> None:
    """An exception of a control-flow type, or derived from one, is raised itself, with the report as its cause."""
    for kind in (Stop, StopAtOnce):
        arrived = travel(Failure.of(raised(kind("enough")), 1)).to_error([Stop])
        assert type(arrived) is kind
        assert arrived.args == ("enough",)
        assert isinstance(arrived.__cause__, RankFailedError)
        assert ", in raised\n" in str(arrived.__cause__)
    assert isinstance(travel(Failure.of(raised(Stop()), 1)).to_error([StopAtOnce]), RankFailedError)


def test_control_flow_may_be_registered_on_one_rank_only() -> None:
    """An exception of a type that only its rank has registered is raised itself, too; other errors are not."""
    assert type(travel(Failure.of(raised(StopAtOnce()), 1, [Stop])).to_error()) is StopAtOnce
    assert isinstance(travel(Failure.of(raised(KeyError()), 1, [Stop])).to_error(), RankFailedError)
    assert isinstance(travel(Failure.of(raised(Holding("a")), 1, [Holding])).to_error(), RankFailedError)


def through_store(failure: Failure) -> Failure:
    """Return what other ranks read from the store of a run."""
    return Failure.from_message(failure.to_message(), "failed")


@pytest.mark.parametrize(
    "error",
    [ConfigurationError("steps is -1"), KeyError(("a", 1)), FileNotFoundError(2, "gone", "x"), StopAtOnce("a", 1)],
)
def test_an_error_is_constructed_from_plain_data(error: Exception) -> None:
    """Over a store, errors of Python's, Helios' and registered types keep their type and arguments."""
    failure = through_store(Failure.of(raised(error), 3, [Stop]))
    arrived = failure.to_error([Stop])
    cause = arrived if isinstance(error, Stop) else arrived.__cause__
    assert type(cause) is type(error)
    assert (cause.args, str(cause)) == (error.args, str(error))
    report = arrived.__cause__ if isinstance(error, Stop) else arrived
    assert isinstance(report, RankFailedError)
    assert report.rank == 3
    assert str(report) == failure.describe()
    assert ", in raised\n" in str(report)


def test_an_error_of_another_type_arrives_as_text_over_a_store() -> None:
    """Over a store, only known classes are looked up; of other errors, text and traceback are sent."""
    for error in (Stop("a 1"), subprocess.CalledProcessError(1, "x"), TwoArguments("a", 1)):
        failure = through_store(Failure.of(raised(error), 1, [type(error)]))
        arrived = failure.to_error([TwoArguments])
        assert isinstance(arrived, RankFailedError)
        assert arrived.__cause__ is None
        assert f"{type(error).__qualname__}: {error}\n\nTraceback" in str(arrived)


def test_arguments_that_are_no_plain_data_are_left_out() -> None:
    """Over a store, arguments that are not plain data are replaced by the text of the error."""
    arrived = through_store(Failure.of(raised(ValueError(object(), 1)), 1)).to_error()
    assert type(arrived.__cause__) is ValueError
    assert str(arrived.__cause__).startswith("(<object object at")


def test_a_lost_rank_is_lost_over_a_store_too() -> None:
    """Over a store, an error about another rank keeps its text, its rank and whether that rank is lost."""
    for failure in (Failure.lost(1, "there", "gone"), Failure.of(raised(RankFailedError("gone", 1, is_lost=True)), 0)):
        error = through_store(failure).to_error()
        assert isinstance(error, RankFailedError)
        assert (error.rank, error.is_lost) == (1, True)


HONEST = Failure.of(ValueError("x"), 1).to_message()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        pickle.dumps(Failure.lost(0, "a", "b")),
        b"[1]",
        HONEST[:-1],
        HONEST.replace(b'"rank"', b'"bank"'),
        HONEST.replace(b'"when"', b'"kind"'),
        HONEST.replace(b'"tuple"', b'"Failure"'),
        HONEST.replace(b'["is_lost", false]', b'["is_lost", 0]'),
    ],
)
def test_content_that_is_not_a_failure_is_refused(message: bytes) -> None:
    """Foreign content in place of a failure raises an error with the key, and no object is made of it."""
    assert message != HONEST
    with pytest.raises(StoreContentError, match="the store of the run holds .* under 'failed', which no rank"):
        Failure.from_message(message, "failed")


def test_foreign_control_flow_is_reported() -> None:
    """A failure in a store that claims to be control flow, and is not registered here, is reported as a failure."""
    claimed = through_store(Failure.of(SystemExit(0), 1, [SystemExit]))
    assert claimed.is_control_flow
    error = claimed.to_error([Stop])
    assert isinstance(error, RankFailedError)
    assert type(error.__cause__) is SystemExit


def test_a_killed_rank_has_no_traceback() -> None:
    """The message about a killed rank is one line."""
    error = Failure(2, "there", 0.0, "it was ended by SIGKILL").to_error()
    assert str(error) == "rank 2 (on there) failed first: it was ended by SIGKILL"
    assert error.__cause__ is None


def chained(cause: BaseException, *, explicit: bool) -> BaseException:
    """Return an error that was raised while another was handled."""
    error = TrainingError("no gradients")
    error.__cause__, error.__context__ = (cause, None) if explicit else (None, cause)
    return error


def test_an_echo_is_distinguished_from_other_errors() -> None:
    """An error caused by a lost connection between ranks is an echo; a user's own error is not."""
    echo = RuntimeError(GONE)
    for error in (echo, chained(echo, explicit=True), chained(chained(echo, explicit=False), explicit=True)):
        assert Failure.of(error, 0).is_echo, error
    circle = chained(ValueError("a"), explicit=False)
    circle.__context__ = chained(circle, explicit=True)
    for error in (circle, RuntimeError("shapes differ"), ConnectionResetError("Connection reset by peer"), Stop(GONE)):
        assert not Failure.of(error, 0).is_echo, error


def lose_the_other(rank: int) -> bool:
    """On rank 0, return whether the end of rank 1 in the middle of everything is an echo."""
    all_reduce_tensors(torch.ones(1))
    if rank == 1:
        os._exit(1)
    with pytest.raises(RuntimeError) as caught:
        all_reduce_tensors(torch.ones(1))
    return Failure.of(caught.value, rank).is_echo


def test_an_error_of_gloo_is_an_echo(tmp_path: Path) -> None:
    """The error of a collective with a lost rank is recognized by the message of the installed torch."""
    assert run_ranks(tmp_path, 2, lose_the_other) == [True, None]


def test_a_portable_error_says_the_same() -> None:
    """An error that can be pickled is portable itself; for another, a `TrainingError` has the text."""
    error = KeyError("a")
    assert portable(error) is error
    for other in (TwoArguments("a", 1), Holding("a 1"), Changing("a 1")):
        substitute = portable(other)
        assert type(substitute) is TrainingError
        assert str(substitute) == f"tests.ranks.test_failures.{type(other).__name__}: a 1"
        assert portable(substitute) is substitute


def test_an_error_caused_by_another_rank_is_an_echo() -> None:
    """A rank that raises another rank's failure was not the first to fail."""
    told = RankFailedError("rank 1 failed first: no room", 1, is_lost=True)
    failure = travel(Failure.of(raised(told), 0))
    assert failure.is_echo
    error = failure.to_error()
    assert isinstance(error, RankFailedError)
    assert (str(error), error.rank, error.is_lost) == ("rank 1 failed first: no room", 1, True)
    error = OSError("rank 1 could not continue to save")
    error.__cause__ = told
    assert Failure.of(error, 0).is_echo


def test_a_lost_rank_is_distinguished_from_one_that_has_raised() -> None:
    """`is_lost` tells whether a rank was killed, so that its trial can be run again, or has raised an error."""
    gone, failed = Failure.lost(1, "there", "it was ended by SIGKILL"), Failure.of(raised(ValueError("x")), 1)
    for failure, is_lost in ((gone, True), (failed, False)):
        error = travel(failure).to_error()
        assert isinstance(error, RankFailedError)
        assert error.is_lost is is_lost
        assert pickle.loads(pickle.dumps(error)).is_lost is is_lost
