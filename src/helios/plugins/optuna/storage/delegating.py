"""`DelegatingStorage`, a storage that passes its calls on to another one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

from optuna.storages import BaseStorage, RDBStorage

from helios.plugins.optuna.optuna_internals import backend_of

if TYPE_CHECKING:
    from collections.abc import Callable

_Method = TypeVar("_Method", bound="Callable[..., Any]")


def _delegate(method: _Method) -> _Method:
    name = method.__name__

    # Optuna marks its methods as abstract in their `__dict__`, which is not copied.
    @functools.wraps(method, updated=())
    def call(self: DelegatingStorage, *args: Any, **kwargs: Any) -> Any:
        return self.call(name, *args, **kwargs)

    return cast("_Method", call)


class DelegatingStorage(BaseStorage):
    """A storage that passes every call on to another one. A subclass overrides `call` to change all of them.

    Args:
        wrapped: the other storage.
    """

    def __init__(self, wrapped: BaseStorage) -> None:
        self.wrapped = wrapped

    def __reduce__(self) -> tuple[type[DelegatingStorage], tuple[BaseStorage]]:
        return type(self), (self.wrapped,)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the other storage by its name."""
        return getattr(self.wrapped, name)(*args, **kwargs)

    create_new_study = _delegate(BaseStorage.create_new_study)
    delete_study = _delegate(BaseStorage.delete_study)
    set_study_user_attr = _delegate(BaseStorage.set_study_user_attr)
    set_study_system_attr = _delegate(BaseStorage.set_study_system_attr)
    get_study_id_from_name = _delegate(BaseStorage.get_study_id_from_name)
    get_study_name_from_id = _delegate(BaseStorage.get_study_name_from_id)
    get_study_directions = _delegate(BaseStorage.get_study_directions)
    get_study_user_attrs = _delegate(BaseStorage.get_study_user_attrs)
    get_study_system_attrs = _delegate(BaseStorage.get_study_system_attrs)
    get_all_studies = _delegate(BaseStorage.get_all_studies)
    create_new_trial = _delegate(BaseStorage.create_new_trial)
    set_trial_param = _delegate(BaseStorage.set_trial_param)
    set_trial_state_values = _delegate(BaseStorage.set_trial_state_values)
    set_trial_intermediate_value = _delegate(BaseStorage.set_trial_intermediate_value)
    set_trial_user_attr = _delegate(BaseStorage.set_trial_user_attr)
    set_trial_system_attr = _delegate(BaseStorage.set_trial_system_attr)
    get_trial_id_from_study_id_trial_number = _delegate(BaseStorage.get_trial_id_from_study_id_trial_number)
    get_trial_number_from_id = _delegate(BaseStorage.get_trial_number_from_id)
    get_trial_param = _delegate(BaseStorage.get_trial_param)
    get_trial_params = _delegate(BaseStorage.get_trial_params)
    get_trial_user_attrs = _delegate(BaseStorage.get_trial_user_attrs)
    get_trial_system_attrs = _delegate(BaseStorage.get_trial_system_attrs)
    get_trial = _delegate(BaseStorage.get_trial)
    get_all_trials = _delegate(BaseStorage.get_all_trials)
    get_n_trials = _delegate(BaseStorage.get_n_trials)
    get_best_trial = _delegate(BaseStorage.get_best_trial)
    remove_session = _delegate(BaseStorage.remove_session)
    check_trial_is_updatable = _delegate(BaseStorage.check_trial_is_updatable)


def innermost_backend(storage: BaseStorage) -> object:
    """Return what a storage keeps its data in, below all storages that wrap it; see `backend_of`."""
    while isinstance(storage, DelegatingStorage):
        storage = storage.wrapped
    return backend_of(storage)


def database_of(storage: BaseStorage) -> RDBStorage | None:
    """Return the storage in a relational database below a storage, or `None` if it keeps its data elsewhere."""
    backend = innermost_backend(storage)
    return backend if isinstance(backend, RDBStorage) else None
