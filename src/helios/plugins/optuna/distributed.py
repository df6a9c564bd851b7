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
from helios.plugins.optuna.plugin import TrialInterrupted
from helios.plugins.optuna.shared_trial import SharedTrial
from helios.plugins.optuna.study_view import describe_study, view_study
from helios.plugins.optuna.trial import RemoteTrial
from helios.ranks.announcements import announce_failure, lost_store
from helios.ranks.failures import Failure, describe_error, make_error
from helios.ranks.messages import decode_message, encode_message, foreign_content
from helios.ranks.monitor import RankMonitor
from helios.ranks.object_host import ObjectHost, ask_by
from helios.ranks.stores import next_rendezvous_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helios.core.distributed import DistributedInfo
    from helios.ranks.stores import Store

    Objective = Callable[[optuna.Trial], Any]

_POLL: Final = 0.005  # Seconds between two checks for a request: a trial may make dozens of them.
_TRIAL_POLL: Final = 0.05  # Seconds between two checks for the next trial.
_REQUESTS: Final = "requests"


def lead_study(run: Callable[[Objective], optuna.Study], objective: Objective) -> optuna.Study:
    """Run a study on rank 0, and have the other ranks run its objective at the same time.

    Args:
        run: runs the study with an objective.
        objective: the objective of all ranks.
    """
    store, info, host, numbers = next_rendezvous_store(), get_dist_info(), ObjectHost(), itertools.count()
    with RankMonitor(store.clone(), info) as monitor, _serving(store.clone(), host):
        raise_if_rank_failed = monitor.watch_stop_requests(lambda: False, lambda: 0)

        def run_on_all_ranks(trial: optuna.Trial) -> Any:
            shared = SharedTrial(trial)
            number = next(numbers)
            _send(store, number, "trial", [host.number_of(shared), trial.number])
            try:
                result = objective(shared)
            except (optuna.TrialPruned, TrialInterrupted):
                _wait_for_ranks(store, number, info, raise_if_rank_failed)
                raise
            _wait_for_ranks(store, number, info, raise_if_rank_failed)
            return result

        try:
            study = run(run_on_all_ranks)
        except BaseException as error:
            _announce(store, error, rank=0)
            raise
        _send(store, next(numbers), "end", describe_study(study))
    return study


def follow_study(objective: Objective) -> optuna.Study:
    """Run the objective for each trial of a study that rank 0 runs.

    Returns:
        A read-only view of the finished study.

    Raises:
        RankFailedError: if rank 0 has failed, or the host of another rank is lost, between two trials.
    """
    store, info = next_rendezvous_store(), get_dist_info()
    with RankMonitor(store.clone(), info) as monitor, ask_by(_Client(store, info.rank).request):
        raise_if_rank_failed = monitor.watch_stop_requests(lambda: False, lambda: 0)
        number = 0
        while True:
            message = _receive(store, number, raise_if_rank_failed)
            if isinstance(message, optuna.Study):
                return message
            try:
                objective(cast("optuna.Trial", message))
            except (optuna.TrialPruned, TrialInterrupted):
                pass  # Rank 0 raises the same, and records it.
            except RankFailedError:
                raise  # All other ranks raise it as well.
            except BaseException as error:
                _announce(store, error, info.rank)  # Otherwise rank 0 would wait for this rank in the next trial.
                raise
            with _lost_store_errors():
                store.set(_done_key(number, info.rank), "")
            number += 1


def _announce(store: Store, error: BaseException, rank: int) -> None:
    """Tell the other ranks of an error that ends this one."""
    with contextlib.suppress(RuntimeError):  # Without the store, the other ranks cannot be reached.
        announce_failure(store, Failure.of(error, rank))


def _wait_for_ranks(store: Store, number: int, info: DistributedInfo, raise_if_rank_failed: Callable[[], bool]) -> None:
    """Wait until all ranks have finished a trial: until then they can read and change it."""
    keys = [_done_key(number, rank) for rank in range(1, info.world_size)]
    with _lost_store_errors():
        while not store.check(keys):
            raise_if_rank_failed()
            time.sleep(_POLL)
        for key in keys:
            store.delete_key(key)


def _done_key(number: int, rank: int) -> str:
    return f"done/{number}/{rank}"


def _message_key(number: int) -> str:
    return f"trial/{number}"


def _send(store: Store, number: int, kind: str, content: Any) -> None:
    store.set(_message_key(number), encode_message([kind, content]))


def _receive(store: Store, number: int, raise_if_rank_failed: Callable[[], bool]) -> RemoteTrial | optuna.Study:
    """Return the next trial, or a view of the study if it has ended."""
    # By polling: the wait may take days, and a blocking `get` would notice neither Ctrl-C nor the loss of a host.
    key = _message_key(number)
    with _lost_store_errors():
        while not store.check([key]):
            raise_if_rank_failed()
            time.sleep(_TRIAL_POLL)
        message = store.get(key)
        match decode_message(message, key):
            case ["trial", [int(host_id), int(trial_number)]]:
                return RemoteTrial(host_id, trial_number)
            case ["end", dict(described)]:
                try:
                    return view_study(described)
                except Exception as error:
                    raise foreign_content(key, message) from error
        raise foreign_content(key, message)


@contextlib.contextmanager
def _lost_store_errors() -> Iterator[None]:
    """Raise the error for a lost store in place of those of torch."""
    try:
        yield
    except RankFailedError:
        raise
    except RuntimeError as error:
        raise lost_store(error).to_error() from error


class _Client:
    """Sends requests to rank 0, one at a time."""

    def __init__(self, store: Store, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._sent = 0
        self._lock = threading.Lock()

    def request(self, host_id: int, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        with self._lock:
            for place, value in (*enumerate(arguments, start=1), *options.items()):
                encode_message(value, f"argument {place} of {name}")  # The error names the argument.
            request = encode_message([self._rank, self._sent, host_id, name, arguments, options])
            key = _result_key(self._rank, self._sent)
            self._sent += 1
            with _lost_store_errors():
                self._store.queue_push(_REQUESTS, request)
                result = self._store.get(key)
                self._store.delete_key(key)
                match decode_message(result, key):
                    case [True, content]:
                        return content
                    case [False, [str(kind), tuple(made_with), str(text)]]:
                        error = make_error(kind, made_with, [optuna.exceptions.OptunaError]) or TrainingError(text)
                    case _:
                        raise foreign_content(key, result)
            raise error


def _result_key(rank: int, number: int) -> str:
    return f"result/{rank}/{number}"


@contextlib.contextmanager
def _serving(store: Store, host: ObjectHost) -> Iterator[None]:
    """Serve the requests of the other ranks in a thread while the context lasts."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(_POLL):
            while store.queue_len(_REQUESTS) > 0:
                _serve(store, host, store.queue_pop(_REQUESTS))

    thread = threading.Thread(target=serve, name="helios-trial", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _serve(store: Store, host: ObjectHost, request: bytes) -> None:
    try:
        match decode_message(request, _REQUESTS):
            case [int(rank), int(count), int(host_id), str(name), tuple(arguments), dict(options)]:
                pass
            case _:
                raise foreign_content(_REQUESTS, request)
    except StoreContentError as error:
        get_root_logger().error("a request of another rank was ignored: %s", error)
        return
    try:
        result = encode_message([True, host.call(host_id, name, arguments, options)], name)
    except Exception as error:  # noqa: BLE001 - it is raised on the other rank.
        result = encode_message([False, list(describe_error(error))])
    store.set(_result_key(rank, count), result)
