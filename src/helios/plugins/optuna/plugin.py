"""The plug-in that joins a run to an Optuna trial."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final

import optuna

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError, UnknownNameError
from helios.plugins.base import Plugin
from helios.plugins.optuna.storage.owners import mark_owner
from helios.plugins.optuna.storage.retrying import retry_storage
from helios.plugins.optuna.trial import intermediate_values, is_pruned_at, original_number
from helios.plugins.registry import PLUGIN_REGISTRY

if TYPE_CHECKING:
    from helios.plugins.optuna.space.space import SearchSpace

_SUGGESTIONS: Final = {
    "categorical": "suggest_categorical",
    "int": "suggest_int",
    "float": "suggest_float",
}


class TrialInterrupted(SystemExit):
    """A signal has asked the process to leave in the middle of a trial.

    Optuna passes it on and leaves the trial as it is, running, for the next process to take up. Unless it is caught,
    the process exits.
    """


@PLUGIN_REGISTRY.register
class OptunaPlugin(Plugin):
    """Reports a run's metric to a trial, and ends the run when the trial is pruned.

    The model calls `report_metrics` when its metrics are ready; the pruner is asked once after each report, so the cost
    of a training step does not depend on the study.

    When a run has several ranks, the trial stays in the process that called `fit` (under `torchrun`: in rank 0). In all
    others `trial` is a stand-in, which asks the trial there: every rank is suggested the same values.

    Args:
        trial: the trial; anything with Optuna's `suggest_*`, `report`, `should_prune` and `number`.
        metric_name: the key in `Model.metrics` of the value that the study optimizes.

    Raises:
        ArgumentTypeError: if the name is no string.
        ConfigurationError: if `torchrun` runs this process as one of several, and the trial is not rank 0's.
    """

    plugin_id: ClassVar[str] = "optuna"
    stop_is_final: ClassVar[bool] = False

    def __init__(self, trial: Any, metric_name: str) -> None:
        """Join a trial."""
        super().__init__(self.plugin_id)
        if not isinstance(metric_name, str):
            raise ArgumentTypeError(f"metric_name is {metric_name!r}: pass the key of the metric in Model.metrics")
        info = get_dist_info()
        if isinstance(trial, optuna.Trial) and info.rank > 0:
            raise ConfigurationError(
                f"trial {trial.number} was made on rank {info.rank} of {info.world_size}, but a study lives on rank 0: "
                "under torchrun, run it with helios.plugins.optuna.run_study, which gives every rank its trial"
            )
        self.unique_overrides.should_training_stop = True
        self._trial = trial
        self._metric_name = metric_name
        self._reports: dict[int, float] = {}
        self._known_steps: set[int] = set()
        self._is_pruned = False
        self._is_interrupted = False
        self._has_news = False

    @property
    def trial(self) -> Any:
        """The trial."""
        return self._trial

    @trial.setter
    def trial(self, trial: Any) -> None:
        self._trial = trial

    def configure_trainer(self, trainer: Any) -> None:
        """Register this plug-in, and pruning as control flow of training.

        From here on a database that is locked, or a server that restarts, is waited for, up to two minutes each time.
        """
        self._register_in_trainer(trainer)
        self._append_train_exceptions(optuna.TrialPruned, trainer)
        if isinstance(self._trial, optuna.Trial):
            retry_storage(self._trial.study, self._trial)
        mark_owner(self._trial)

    def configure_model(self, model: Any) -> None:
        """Give the model a folder of checkpoints for this trial: `_trial-<number>` is added to its save name.

        A retried trial has the number of the trial that it retries, and so continues from its last checkpoint.
        """
        suffix = f"_trial-{original_number(self._trial)}"
        if not model.save_name.endswith(suffix):
            model.save_name += suffix

    def setup(self) -> None:
        """Find out what the trial knows already."""
        self._known_steps = set(intermediate_values(self._trial))
        self._reports = {}
        self._is_pruned = self._is_interrupted = self._has_news = False

    def state_dict(self) -> dict[str, Any]:
        """Return what was reported, by step, and whether that has pruned the trial."""
        return {"reports": dict(self._reports), "is_pruned": self._is_pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Report what the trial does not know, and ask again whether it is pruned if it was.

        A retry has a trial of its own, which may lack the reports, and other neighbours, which may spare it.
        """
        if self.rank != 0:
            return  # Rank 0 reports, and tells the others what follows from it.
        try:
            reports = {int(step): float(value) for step, value in state_dict["reports"].items()}
            is_pruned = bool(state_dict["is_pruned"] and reports)
        except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointMismatchError(
                f"the state is not what OptunaPlugin.state_dict returned ({type(error).__name__}: {error}): pass that"
            ) from error
        self._reports = reports
        for step, value in self._reports.items():
            self._report(value, step)
        self._is_pruned = is_pruned and is_pruned_at(self._trial, max(self._reports))

    def suggest(self, type_name: str, name: str, **kwargs: Any) -> Any:
        """Suggest a parameter.

        Args:
            type_name: "categorical", "int" or "float".
            name: the parameter.
            **kwargs: passed on to the trial's `suggest_<kind>`.

        Raises:
            UnknownNameError: if `type_name` is another; the message lists the kinds.
            ArgumentTypeError: if the name is no string.
        """
        if not isinstance(type_name, str) or type_name not in _SUGGESTIONS:
            raise UnknownNameError(f"{type_name!r} is no kind of suggestion: there are {list(_SUGGESTIONS)}")
        if not isinstance(name, str):
            raise ArgumentTypeError(f"the parameter's name is {name!r}, a {type(name).__name__}: pass a string")
        return getattr(self._trial, _SUGGESTIONS[type_name])(name, **kwargs)

    def suggest_all(self, space: SearchSpace) -> dict[str, Any]:
        """Suggest every parameter of a search space that exists in this trial.

        Raises:
            ConfigurationError: if the study was begun with another space.
        """
        return space.suggest(self._trial)

    def report_metrics(self, validation_cycle: int) -> None:
        """Report the metric to the trial, and ask the pruner; nothing happens if the model has no such metric yet.

        Rank 0 alone reports its metric, and all ranks stop after the same step if that prunes the trial. Outside of the
        hooks of a validation or of an epoch's end, all ranks must call this.

        Args:
            validation_cycle: the step to report at.
        """
        self._has_news = True
        metrics = self.trainer.model.metrics
        if self.rank != 0 or self._metric_name not in metrics:
            return
        value = float(metrics[self._metric_name])
        if math.isnan(value):
            get_root_logger().warning(
                "metric %r is nan at validation %d of trial %d: it is reported as it is, and most pruners prune on it",
                self._metric_name,
                validation_cycle,
                self._trial.number,
            )
        # A run that was killed after a report, and resumed from before it, reports this step again. If it reported a
        # later step in the first life, it was not pruned here, so the pruner is not asked again.
        continued_before = any(step > validation_cycle for step in self._known_steps)
        self._report(value, validation_cycle)
        self._reports[validation_cycle] = value
        if not continued_before:
            self._is_pruned = is_pruned_at(self._trial, validation_cycle)

    register_metrics = report_metrics

    def _report(self, value: float, step: int) -> None:
        if step not in self._known_steps:
            self._trial.report(value, step)
            self._known_steps.add(step)

    def should_training_stop(self) -> bool:
        """Whether the trial is pruned."""
        return self._is_pruned

    def has_stop_news(self) -> bool:
        """Return whether a metric was reported since the last call; a subclass with its own reasons is always asked."""
        if type(self).should_training_stop is not OptunaPlugin.should_training_stop:
            return True
        has_news, self._has_news = self._has_news, False
        return has_news

    def rank0_result(self) -> Any:
        """Return the reports, whether the trial is pruned, and whether a signal has stopped training."""
        return self._reports, self._is_pruned, self._is_interrupted

    def receive_result(self, result: Any) -> None:
        """Take over what rank 0 has returned."""
        self._reports, self._is_pruned, self._is_interrupted = result

    def on_fit_end(self, *, interrupted: bool) -> None:
        """Raise `optuna.TrialPruned` out of `fit` if the trial is pruned and this is the only process."""
        self._is_interrupted = interrupted
        if self._is_pruned and not interrupted and not self.is_distributed:
            raise optuna.TrialPruned(self._describe_pruning())

    def _describe_pruning(self) -> str:
        return f"trial {self._trial.number} was pruned at validation {max(self._reports)}"

    def check_pruned(self) -> None:
        """Pass on to Optuna how training ended; to be called after `fit`.

        Raises:
            optuna.TrialPruned: if the trial was pruned.
            TrialInterrupted: if a signal has stopped `fit`. The trial is not over, and its metric not final.
        """
        if self._is_interrupted:
            raise TrialInterrupted(f"trial {self._trial.number} was interrupted: run the study again to continue it")
        if self._is_pruned:
            raise optuna.TrialPruned(self._describe_pruning())
