"""`TrialMonitor`, which watches the trials of other processes while `run_study` waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from optuna.trial import TrialState

from helios.core.logging import get_root_logger
from helios.plugins.optuna.optuna_internals import storage_of, trial_id_of
from helios.plugins.optuna.storage.heartbeat import HEARTBEAT_INTERVAL, STALE_AFTER, supports_heartbeats
from helios.plugins.optuna.storage.owners import describe_owner, is_alive, owner_of
from helios.plugins.optuna.storage.rdb import find_heartbeat_ages
from helios.plugins.optuna.storage.retry import retry
from helios.plugins.optuna.storage.wait_timer import WaitTimer
from helios.ranks.processes import is_stopped

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_LATE_AFTER: Final = 2.5 * HEARTBEAT_INTERVAL  # Seconds without a heartbeat after which a warning is logged.


class TrialMonitor:
    """Watches the trials that other processes run, and warns of those whose process may be gone.

    Args:
        study: the study.
        give_up_after: the longest time in seconds that such a trial may show no progress; `None` for no limit.
    """

    def __init__(self, study: optuna.Study, give_up_after: float | None) -> None:
        get_root_logger().info("all remaining trials are run by other processes: waiting for them")
        self._study = study
        self._limit = give_up_after
        self._timer = WaitTimer(give_up_after)
        self._progress: dict[int, tuple[int, int]] = {}

    def check(self) -> None:
        """Check the running trials; to be called repeatedly during the wait.

        Raises:
            StudyTimeoutError: if all trials whose process may be gone have shown no progress for too long.
        """
        suspects = self._find_suspects()
        if not suspects:
            self._timer = WaitTimer(self._limit)
            return
        progress = {trial.number: (len(trial.params), len(trial.intermediate_values)) for trial, _ in suspects}
        if any(progress[number] != before for number, before in self._progress.items() if number in progress):
            self._timer.restart()
        self._progress = progress
        self._timer.check(lambda: "; ".join(f"trial {trial.number} is run by {text}" for trial, text in suspects))

    def _find_suspects(self) -> list[tuple[FrozenTrial, str]]:
        """Return the trials whose process may be gone, each with a text that names the process and the remedy."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # A trial without an owner is being started, or `requeue_orphans` requeues it.
        owned = [(trial, owner) for trial in trials if (owner := owner_of(trial)) is not None]
        visible = {trial.number: is_alive(owner) is not None for trial, owner in owned}
        ages = {} if all(visible.values()) else self._find_heartbeat_ages()
        suspects = []
        for trial, owner in owned:
            age = ages.get(trial_id_of(trial))
            if visible[trial.number]:
                if is_stopped(owner.pid):
                    text = f"{describe_owner(owner)}, and 'kill -KILL {owner.pid}' ends it: then its trial is run here"
                    suspects.append((trial, text))
            elif age is None:
                remedy = _find_remedy(storage_of(self._study), trial)
                suspects.append((trial, f"{owner}, which cannot be seen from here. {remedy}"))
            elif age > _LATE_AFTER:
                text = f"{owner}, whose last heartbeat is {age:.0f} s old: it is run here after {STALE_AFTER:g} s"
                suspects.append((trial, text))
        return suspects

    def _find_heartbeat_ages(self) -> dict[int, float]:
        storage = storage_of(self._study)
        study_id = storage.get_study_id_from_name(self._study.study_name)
        return retry(lambda: find_heartbeat_ages(storage, study_id))


def _find_remedy(storage: BaseStorage, trial: FrozenTrial) -> str:
    if supports_heartbeats(storage):
        return "If it is gone, call resume_study with TrialState.RUNNING among failed_states"
    return (
        f"If it is gone, study.tell({trial.number}, state=TrialState.FAIL) or a worker on that host lets the study"
        " continue"
    )
