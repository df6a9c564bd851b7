"""A study under `torchrun`: rank 0 runs it, and every rank runs its objective."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, Final, cast

import optuna

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.errors import RankFailedError, StoreContentError, TrainingError
from helios.plugins.optuna._study_view import describe_study, view_study
from helios.plugins.optuna.plugin import TrialInterrupted
from helios.plugins.optuna.trial import TrialStandIn, share
from helios.ranks.failures import Failure, describe_error, make_error
from helios.ranks.messages import decode_message, encode_message, foreign_content
from helios.ranks.monitor import RankMonitor, announce_failure, lost_store
from helios.ranks.object_host import ObjectHost, ask_by
from helios.ranks.stores import next_rendezvous_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helios.core.distributed import DistributedInfo
    from helios.ranks.stores import Store

    Objective = Callable[[optuna.Trial], Any]

_POLL: Final = 0.005  # Seconds between two looks for a question: suggesting dozens of parameters shall not be felt.
_PATIENT_POLL: Final = 0.05  # Seconds between two looks for the next trial.
_QUESTIONS: Final = "questions"


def lead(run: Callable[[Objective], optuna.Study], objective: Objective) -> optuna.Study:
    """Run a study on rank 0, and have the other ranks run its objective along with this one.

    Args:
        run: runs the study with an objective.
        objective: the objective of all ranks.
    """
    store, info, home, numbers = next_rendezvous_store(), get_dist_info(), ObjectHost(), itertools.count()
    with RankMonitor(store.clone(), info) as monitor, _answering(store.clone(), home):
        raise_if_rank_failed = monitor.watch_stop_requests(lambda: False, lambda: 0)

        def announced(trial: optuna.Trial) -> Any:
            share(trial)
            number = next(numbers)
            _tell(store, number, "trial", [home.number_of(trial), trial.number])
            try:
                result = objective(trial)
            except (optuna.TrialPruned, TrialInterrupted):
                _wait_for_all(store, number, info, raise_if_rank_failed)
                raise
            _wait_for_all(store, number, info, raise_if_rank_failed)
            return result

        try:
            study = run(announced)
        except BaseException as error:
            _announce(store, error, rank=0)
            raise
        _tell(store, next(numbers), "end", describe_study(study))
    return study


def follow(objective: Objective) -> optuna.Study:
    """Run the objective of a study that rank 0 runs, trial by trial.

    Returns:
        What the study is in the end, to be read.

    Raises:
        RankFailedError: if rank 0 has failed, or another rank's machine is gone, between two trials.
    """
    store, info = next_rendezvous_store(), get_dist_info()
    with RankMonitor(store.clone(), info) as monitor, ask_by(_Asker(store, info.rank).ask):
        raise_if_rank_failed = monitor.watch_stop_requests(lambda: False, lambda: 0)
        number = 0
        while True:
            content = _listen(store, number, raise_if_rank_failed)
            if isinstance(content, optuna.Study):
                return content
            try:
                objective(cast("optuna.Trial", content))
            except (optuna.TrialPruned, TrialInterrupted):
                pass  # What becomes of the trial is rank 0's to say, who was given the same answer.
            except RankFailedError:
                raise  # All others have raised it, too.
            except BaseException as error:
                _announce(store, error, info.rank)  # Or rank 0 would wait for this rank in the next trial.
                raise
            with _in_reach():
                store.set(_done(number, info.rank), "")
            number += 1


def _announce(store: Store, error: BaseException, rank: int) -> None:
    """Tell the other ranks of an error that ends this one."""
    with contextlib.suppress(RuntimeError):  # The store is out of reach, and so are they.
        announce_failure(store, Failure.of(error, rank))


def _wait_for_all(store: Store, number: int, info: DistributedInfo, raise_if_rank_failed: Callable[[], bool]) -> None:
    """Wait until all ranks are through with a trial: until then it can be asked, and changed."""
    keys = [_done(number, rank) for rank in range(1, info.world_size)]
    with _in_reach():
        while not store.check(keys):
            raise_if_rank_failed()
            time.sleep(_POLL)
        for key in keys:
            store.delete_key(key)


def _done(number: int, rank: int) -> str:
    return f"done/{number}/{rank}"


def _news(number: int) -> str:
    return f"news/{number}"


def _tell(store: Store, number: int, kind: str, content: Any) -> None:
    store.set(_news(number), encode_message([kind, content]))


def _listen(store: Store, number: int, raise_if_rank_failed: Callable[[], bool]) -> TrialStandIn | optuna.Study:
    """Return what comes next: the stand-in of a trial, or a view of the study that has ended."""
    # Not by waiting in `get`: it may take days, and Ctrl-C shall be heard meanwhile, and the loss of a machine.
    key = _news(number)
    with _in_reach():
        while not store.check([key]):
            raise_if_rank_failed()
            time.sleep(_PATIENT_POLL)
        news = store.get(key)
        match decode_message(news, key):
            case ["trial", [int(home), int(of_study)]]:
                return TrialStandIn(home, of_study)
            case ["end", dict(described)]:
                try:
                    return view_study(described)
                except Exception as error:
                    raise foreign_content(key, news) from error
        raise foreign_content(key, news)


@contextlib.contextmanager
def _in_reach() -> Iterator[None]:
    """Say whose failure it is when the store is out of reach."""
    try:
        yield
    except RankFailedError:
        raise
    except RuntimeError as error:
        raise lost_store(error).to_error() from error


class _Asker:
    """Asks rank 0, one question at a time."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._asked = 0
        self._turn = threading.Lock()

    def ask(self, number: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        with self._turn:
            for place, value in (*enumerate(arguments, start=1), *options.items()):
                encode_message(value, f"argument {place} of {name}")  # What cannot be sent is refused by its name.
            question = encode_message([self._rank, self._asked, number, name, arguments, options])
            key = _answer(self._rank, self._asked)
            self._asked += 1
            with _in_reach():
                self._store.queue_push(_QUESTIONS, question)
                answer = self._store.get(key)
                self._store.delete_key(key)
                match decode_message(answer, key):
                    case [True, content]:
                        return content
                    case [False, [str(kind), tuple(made_with), str(text)]]:
                        error = make_error(kind, made_with, [optuna.exceptions.OptunaError]) or TrainingError(text)
                    case _:
                        raise foreign_content(key, answer)
            raise error


def _answer(rank: int, number: int) -> str:
    return f"answer/{rank}/{number}"


@contextlib.contextmanager
def _answering(store: Store, home: ObjectHost) -> Iterator[None]:
    """Answer the other ranks' questions in a thread of its own while the context lasts."""
    closed = threading.Event()

    def answer() -> None:
        while not closed.wait(_POLL):
            while store.queue_len(_QUESTIONS) > 0:
                _answer_one(store, home, store.queue_pop(_QUESTIONS))

    thread = threading.Thread(target=answer, name="helios-trial", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


def _answer_one(store: Store, home: ObjectHost, question: bytes) -> None:
    try:
        asked = decode_message(question, _QUESTIONS)
        match asked:
            case [int(rank), int(count), int(number), str(name), tuple(arguments), dict(options)]:
                pass
            case _:
                raise foreign_content(_QUESTIONS, question)
    except StoreContentError as error:
        get_root_logger().error("a question was passed over: %s", error)
        return
    try:
        answer = encode_message([True, home.call(number, name, arguments, options)], name)
    except Exception as error:  # noqa: BLE001 - it is the asker's.
        answer = encode_message([False, list(describe_error(error))])
    store.set(_answer(rank, count), answer)
