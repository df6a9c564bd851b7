"""The processes whose trials a study waits for: which of them give no sign of life, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from optuna.trial import TrialState

from helios.core.logging import get_root_logger
from helios.plugins.optuna.storage import rdb as _rdb
from helios.plugins.optuna.storage.heartbeat import BEAT, SILENCE, has_heartbeats
from helios.plugins.optuna.storage.owners import describe_owner, is_alive, owner_of
from helios.plugins.optuna.storage.retry import keep_trying
from helios.plugins.optuna.storage.waiting import Wait
from helios.ranks.processes import is_stopped

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_QUIET: Final = 2.5 * BEAT  # Seconds without a heartbeat that are worth a warning.


class OtherProcesses:
    """Waits for the trials that other processes run: says so once, and warns of those that seem to be lost.

    Args:
        study: the study.
        give_up_after: for how many seconds those that seem to be lost may give no sign of life; `None` for no limit.
    """

    def __init__(self, study: optuna.Study, give_up_after: float | None) -> None:
        get_root_logger().info("every trial that is left is being run by another process: waiting for them")
        self._study = study
        self._limit = give_up_after
        self._wait = Wait(give_up_after)
        self._signs: dict[int, tuple[int, int]] = {}

    def look(self) -> None:
        """Look at the running trials; to be called again and again while nothing else can be done.

        Raises:
            StudyTimeoutError: if those that seem to be lost have given no sign of life for too long.
        """
        suspects = self._find_suspects()
        if not suspects:
            self._wait = Wait(self._limit)
            return
        signs = {trial.number: (len(trial.params), len(trial.intermediate_values)) for trial, _ in suspects}
        if any(signs[number] != before for number, before in self._signs.items() if number in signs):
            self._wait.start_again()  # A trial that moves has a process, wherever that is.
        self._signs = signs
        self._wait.look(lambda: "; ".join(f"trial {trial.number} is run by {text}" for trial, text in suspects))

    def _find_suspects(self) -> list[tuple[FrozenTrial, str]]:
        """Return the trials that nobody may be running, each with its process and what to do."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        storage: Any = self._study._storage  # noqa: SLF001 - Optuna has no public way to it.
        silences: dict[int, float] | None = None
        suspects = []
        for trial in trials:
            owner = owner_of(trial)
            if owner is None:
                continue  # It is being begun, or taken back at the next turn.
            if is_alive(owner) is not None:
                if is_stopped(owner.pid):
                    text = f"{describe_owner(owner)}, and 'kill -KILL {owner.pid}' ends it: its trial is taken up then"
                    suspects.append((trial, text))
                continue
            if silences is None:
                silences = keep_trying(lambda: _rdb.find_silences(storage, self._study._study_id))  # noqa: SLF001 - as above.
            silence = silences.get(trial._trial_id)  # noqa: SLF001 - as above.
            if silence is None:
                suspects.append((trial, f"{owner}, which cannot be seen from here. {_find_remedy(storage, trial)}"))
            elif silence > _QUIET:
                text = f"{owner}, last heard of {silence:.0f} s ago: the trial is taken up after {SILENCE:g} s"
                suspects.append((trial, text))
        return suspects


def _find_remedy(storage: Any, trial: FrozenTrial) -> str:
    if has_heartbeats(storage):
        return "If it is gone, call resume_study with TrialState.RUNNING among failed_states"
    return (
        f"If it is gone, study.tell({trial.number}, state=TrialState.FAIL) frees its slot, and so does a worker that is"
        " started on that host"
    )
