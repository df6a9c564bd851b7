"""Optuna's own contract of a storage, held by one that waits for its database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage
from optuna.testing.pytest_storages import StorageTestCase

from helios.plugins.optuna.storage.retry import PatientStorage, be_patient

if TYPE_CHECKING:
    from pathlib import Path


class TestPatientStorage(StorageTestCase):
    """Patience changes nothing of what Optuna expects of a storage."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> BaseStorage:
        """Return a storage that `be_patient` has changed, empty."""
        storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
        study = optuna.create_study(storage=storage)
        be_patient(study)
        optuna.delete_study(study_name=study.study_name, storage=storage)
        assert isinstance(storage, PatientStorage)
        return storage
