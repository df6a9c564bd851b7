"""The names of Optuna that Helios needs and that Optuna does not document, all in this file.

No name is read when a module is imported: where a release of Optuna has renamed one, the function that reads it fails,
and `import helios.plugins.optuna` does not. `tests/plugins/optuna/test_optuna_internals.py` calls each function, and
says what to do when its name has changed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna
    import sqlalchemy as sql
    from optuna.samplers import BaseGASampler, BaseSampler, PartialFixedSampler, QMCSampler
    from optuna.storages import BaseStorage, InMemoryStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial

# ------------------------------------------------------------------------------------------------- studies and trials


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return the storage of a study; only a trial has a public attribute for it."""
    return study._storage  # noqa: SLF001 - see this file's docstring, here and below.


def set_storage(study: optuna.Study, storage: BaseStorage) -> None:
    """Replace the storage of a study by a storage that wraps it. The caller keeps its study object."""
    study._storage = storage  # noqa: SLF001


def trial_id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """Return the id that all methods of a storage take; users see the number, which counts within one study."""
    return trial._trial_id  # noqa: SLF001


def cached_trials(study: optuna.Study) -> list[FrozenTrial] | None:
    """Return the finished trials that samplers see in the calling thread; `None` until one has asked for them."""
    return study._thread_local.cached_all_trials  # noqa: SLF001


def set_cached_trials(study: optuna.Study, trials: list[FrozenTrial] | None) -> None:
    """Set what `cached_trials` returns in the calling thread."""
    study._thread_local.cached_all_trials = trials  # noqa: SLF001


# ------------------------------------------------------------------------------------------------------------ storages


def backend_of(storage: BaseStorage) -> object:
    """Return what a storage of Optuna keeps its data in: below a cache the database, below a journal its file.

    Other storages are returned themselves.
    """
    return getattr(storage, "_backend", storage)


def journal_path(backend: JournalFileBackend) -> str:
    """Return the path of a journal."""
    return backend._file_path  # noqa: SLF001


def find_all_waiting_trials(storage: InMemoryStorage, study_id: int) -> None:
    """Let a storage in memory find waiting trials with any number.

    It looks from the last one that it has found, because in Optuna a trial that runs never waits again.
    """
    storage._prev_waiting_trial_number[study_id] = 0  # noqa: SLF001


def register_heartbeats(kind: type[BaseStorage]) -> None:
    """Have Optuna send heartbeats through a class that has the methods for it: it checks for a base class."""
    from optuna.storages._heartbeat import BaseHeartbeat  # noqa: PLC0415

    BaseHeartbeat.register(kind)


def find_stale_trial_ids(storage: BaseStorage, study_id: int) -> list[int]:
    """Return the ids of the trials whose heartbeat is older than the storage's grace period."""
    ids: list[int] = storage._get_stale_trial_ids(study_id)  # type: ignore[attr-defined]  # noqa: SLF001 # of databases
    return ids


@dataclasses.dataclass(frozen=True)
class Tables:
    """Optuna's tables in a relational database, as SQLAlchemy knows them."""

    studies: sql.Table
    trials: sql.Table
    values: sql.Table
    heartbeats: sql.Table
    system_attrs: sql.Table
    of_study: tuple[sql.Table, ...]  # Those with a column for the study, trials excepted.
    of_trial: tuple[sql.Table, ...]  # Those with a column for the trial, heartbeats excepted.


@functools.cache
def tables() -> Tables:
    """Return Optuna's tables: it cannot change finished trials, nor several trials in one transaction."""
    from optuna.storages._rdb import models  # noqa: PLC0415

    values, system_attrs = models.TrialValueModel.__table__, models.TrialSystemAttributeModel.__table__
    return Tables(
        studies=models.StudyModel.__table__,
        trials=models.TrialModel.__table__,
        values=values,
        heartbeats=models.TrialHeartbeatModel.__table__,
        system_attrs=system_attrs,
        of_study=(
            models.StudyDirectionModel.__table__,
            models.StudyUserAttributeModel.__table__,
            models.StudySystemAttributeModel.__table__,
        ),
        of_trial=(
            models.TrialParamModel.__table__,
            values,
            models.TrialIntermediateValueModel.__table__,
            models.TrialUserAttributeModel.__table__,
            system_attrs,
        ),
    )


def fill_url_template(url: str) -> str:
    """Return a storage URL with the version of Optuna's tables in the place of `{SCHEMA_VERSION}`."""
    from optuna.storages._rdb import models  # noqa: PLC0415

    return url.format(SCHEMA_VERSION=models.SCHEMA_VERSION)


# ------------------------------------------------------------------------------------------------------------ samplers


def base_sampler_of(sampler: PartialFixedSampler) -> BaseSampler:
    """Return the sampler of the parameters that are not fixed."""
    return sampler._base_sampler  # noqa: SLF001


def set_sample_id(sampler: QMCSampler, sample_id: int) -> None:
    """Have a sampler return this point of its sequence, not the one after the last that the study has used."""
    find_sample_id: Callable[..., int] = lambda *_: sample_id  # noqa: E731
    sampler._find_sample_id = find_sample_id  # type: ignore[method-assign]  # noqa: SLF001


def generation_key(sampler: BaseGASampler) -> str:
    """Return the system attribute in which a genetic sampler keeps a trial's generation."""
    return sampler._get_generation_key()  # noqa: SLF001


def is_unseeded(part: Any) -> bool:
    """Return whether an attribute of a sampler is a random generator that would take its seed from the system."""
    from optuna.samplers._lazy_random_state import LazyRandomState  # noqa: PLC0415

    return isinstance(part, LazyRandomState) and part._rng is None  # noqa: SLF001
