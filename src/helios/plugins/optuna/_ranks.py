"""A study under `torchrun`: rank 0 runs it, and every rank runs its objective."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Final, NoReturn

import optuna
from optuna.storages import InMemoryStorage

from helios.core.distributed import get_dist_info
from helios.core.failures import Failure
from helios.core.home import Home, way_home
from helios.core.lookout import Lookout, announce_failure, lost_store
from helios.core.stores import next_meeting
from helios.errors import RankFailedError, StudyViewError
from helios.plugins.optuna.plugin import TrialInterrupted
from helios.plugins.optuna.trial import share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helios.core.distributed import DistributedInfo
    from helios.core.stores import Store

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
    store, info, home, numbers = next_meeting(), get_dist_info(), Home(), itertools.count()
    with Lookout(store.clone(), info) as lookout, _answering(store.clone(), home):
        is_anybody_gone = lookout.attend(lambda: False, lambda: 0)

        def announced(trial: optuna.Trial) -> Any:
            share(trial)
            number = next(numbers)
            _tell(store, number, "trial", home.pack(trial))
            try:
                result = objective(trial)
            except (optuna.TrialPruned, TrialInterrupted):
                _wait_for_all(store, number, info, is_anybody_gone)
                raise
            _wait_for_all(store, number, info, is_anybody_gone)
            return result

        try:
            study = run(announced)
        except BaseException as error:
            _announce(store, error, rank=0)
            raise
        _tell(store, next(numbers), "end", _describe(study))
    return study


def follow(objective: Objective) -> optuna.Study:
    """Run the objective of a study that rank 0 runs, trial by trial.

    Returns:
        What the study is in the end, to be read.

    Raises:
        RankFailedError: if rank 0 has failed, or another rank's machine is gone, between two trials.
    """
    store, info = next_meeting(), get_dist_info()
    with Lookout(store.clone(), info) as lookout, way_home(_Asker(store, info.rank).ask):
        is_anybody_gone = lookout.attend(lambda: False, lambda: 0)
        number = 0
        while True:
            kind, content = _listen(store, number, is_anybody_gone)
            if kind == "end":
                return _view(content)
            try:
                objective(pickle.loads(content))  # noqa: S301 - by rank 0 of this study.
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


def _wait_for_all(store: Store, number: int, info: DistributedInfo, is_anybody_gone: Callable[[], bool]) -> None:
    """Wait until all ranks are through with a trial: until then it can be asked, and changed."""
    keys = [_done(number, rank) for rank in range(1, info.world_size)]
    with _in_reach():
        while not store.check(keys):
            is_anybody_gone()
            time.sleep(_POLL)
        for key in keys:
            store.delete_key(key)


def _done(number: int, rank: int) -> str:
    return f"done/{number}/{rank}"


def _tell(store: Store, number: int, kind: str, content: Any) -> None:
    store.set(f"news/{number}", pickle.dumps((kind, content)))


def _listen(store: Store, number: int, is_anybody_gone: Callable[[], bool]) -> tuple[str, Any]:
    # Not by waiting in `get`: it may take days, and Ctrl-C shall be heard meanwhile, and the loss of a machine.
    with _in_reach():
        while not store.check([f"news/{number}"]):
            is_anybody_gone()
            time.sleep(_PATIENT_POLL)
        told = store.get(f"news/{number}")
    news: tuple[str, Any] = pickle.loads(told)  # noqa: S301 - by rank 0 of this study.
    return news


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

    def ask(self, question: bytes) -> bytes:
        with self._turn, _in_reach():
            key = f"answer/{self._rank}/{self._asked}"
            self._asked += 1
            self._store.queue_push(_QUESTIONS, pickle.dumps((key, question)))
            answer = self._store.get(key)
            self._store.delete_key(key)
            return answer


@contextlib.contextmanager
def _answering(store: Store, home: Home) -> Iterator[None]:
    """Answer the other ranks' questions in a thread of its own while the context lasts."""
    closed = threading.Event()

    def answer() -> None:
        while not closed.wait(_POLL):
            while store.queue_len(_QUESTIONS) > 0:
                key, question = pickle.loads(store.queue_pop(_QUESTIONS))  # noqa: S301 - by a rank of this study.
                store.set(key, home.answer(question))

    thread = threading.Thread(target=answer, name="helios-trial", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


def _describe(study: optuna.Study) -> dict[str, Any]:
    return {
        "study_name": study.study_name,
        "directions": study.directions,
        "metric_names": study.metric_names,
        "user_attrs": study.user_attrs,
        "trials": study.get_trials(deepcopy=False),
    }


class _Sealed(InMemoryStorage):
    """A study that can be read, and nothing else."""

    def _refuse(self, *_arguments: Any, **_options: Any) -> NoReturn:
        raise StudyViewError(
            f"this is a view of a study that rank 0 holds, and this is rank {get_dist_info().rank}: change it there"
        )

    create_new_study = delete_study = create_new_trial = _refuse
    set_study_user_attr = set_study_system_attr = _refuse
    set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refuse
    set_trial_user_attr = set_trial_system_attr = _refuse


def _view(described: dict[str, Any]) -> optuna.Study:
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=described["study_name"], directions=described["directions"])
    for key, value in described["user_attrs"].items():
        study.set_user_attr(key, value)
    if described["metric_names"] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Rank 0's user was warned.
            study.set_metric_names(described["metric_names"])
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in described["trials"]:
        # Not through `study.add_trials`, which refuses what was enqueued outside of the range that it was suggested in.
        storage.create_new_trial(study_id, template_trial=trial)
    storage.__class__ = _Sealed
    return study
