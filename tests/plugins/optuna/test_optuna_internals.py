"""The undocumented names of Optuna that Helios reads: one test for each function in `optuna_internals.py`.

A failure here means that the installed Optuna has renamed or removed a name. Look up the new name in Optuna's source,
in the module that the function imports, or in the class of its argument. If the supported releases have both names,
read the new one where it exists; if the feature is gone, change the callers of the function.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.samplers import NSGAIISampler, PartialFixedSampler, QMCSampler, RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from helios.plugins.optuna import optuna_internals
from helios.plugins.optuna.storage.delegating import DelegatingStorage
from tests.house import find_private_names

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def test_storage_of_a_study() -> None:
    """The storage of a study is read, replaced, and used by the trials that are created then."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    assert optuna_internals.storage_of(study) is storage
    other = DelegatingStorage(storage)
    optuna_internals.set_storage(study, other)
    assert study.ask().storage is other
    assert len(study.trials) == 1


def test_id_of_a_trial(tmp_path: Path) -> None:
    """A running and a frozen trial have the id that their storage knows them by; it differs from the number."""
    storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    optuna.create_study(storage=storage).ask()
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    assert optuna_internals.trial_id_of(trial) == optuna_internals.trial_id_of(study.trials[0]) == 2
    assert storage.get_trial(2).number == trial.number == 0


def test_cached_trials_of_a_thread() -> None:
    """The trials that samplers see are the calling thread's, are what was set, and are renewed with the next trial."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    trial = study.ask()
    assert optuna_internals.cached_trials(study) is None
    trial.suggest_float("x", 0, 1)
    seen = optuna_internals.cached_trials(study)
    assert seen is not None
    assert [trial.number for trial in seen][:2] == [0, 1]
    elsewhere: list[Any] = []
    thread = threading.Thread(target=lambda: elsewhere.append(optuna_internals.cached_trials(study)))
    thread.start()
    thread.join()
    assert elsewhere == [None]
    optuna_internals.set_cached_trials(study, seen[:1])
    assert optuna_internals.cached_trials(study) == seen[:1]
    study.ask()
    assert optuna_internals.cached_trials(study) is None


def test_backends_of_storages(tmp_path: Path) -> None:
    """Below the cache of a database is the database, in a journal its file; a storage in memory has no backend."""
    database = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    cache = optuna_internals.storage_of(optuna.create_study(storage=database))
    assert cache is not database
    assert optuna_internals.backend_of(cache) is optuna_internals.backend_of(database) is database
    file = JournalFileBackend(str(tmp_path / "study.log"))
    assert optuna_internals.backend_of(JournalStorage(file)) is file
    assert optuna_internals.journal_path(file) == str(tmp_path / "study.log")
    memory = InMemoryStorage()
    assert optuna_internals.backend_of(memory) is memory


def test_waiting_trials_in_memory() -> None:
    """A trial that waits again after later ones have run is found, but only after the call."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage)
    trials = [study.ask() for _ in range(3)]
    study.enqueue_trial({})
    assert study.ask().number == 3
    storage.set_trial_state_values(optuna_internals.trial_id_of(trials[1]), TrialState.WAITING)
    assert storage.get_all_trials(0, states=(TrialState.WAITING,)) == []
    optuna_internals.find_all_waiting_trials(storage, 0)
    assert study.ask().number == 1


def test_heartbeats(tmp_path: Path) -> None:
    """A class with the methods for heartbeats, once registered, is a heartbeat storage to Optuna; none is stale."""
    from optuna.storages._heartbeat import is_heartbeat_enabled  # noqa: PLC0415 - what Optuna itself asks.

    class Beating(DelegatingStorage):
        def get_heartbeat_interval(self) -> int:
            return 60

    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        database = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}", heartbeat_interval=60)
    storage: BaseStorage = Beating(database)
    assert not is_heartbeat_enabled(storage)
    optuna_internals.register_heartbeats(Beating)
    assert is_heartbeat_enabled(storage)
    assert optuna_internals.find_stale_trial_ids(database, 1) == []
    assert database.heartbeat_interval == 60
    assert database.grace_period is None


def test_tables(tmp_path: Path) -> None:
    """Optuna's tables are known, and each that names a study or a trial is in the lists that a backup copies."""
    database = RDBStorage(optuna_internals.fill_url_template(f"sqlite:///{tmp_path / 'study-v{SCHEMA_VERSION}.db'}"))
    assert (tmp_path / "study-v12.db").exists()
    tables = optuna_internals.tables()
    known = {table.name: table for table in tables.studies.metadata.tables.values()}
    with database.engine.connect() as connection:
        names = set(database.engine.dialect.get_table_names(connection))
    assert set(known) <= names
    of_study = {name for name, table in known.items() if "study_id" in table.c} - {"studies", "trials"}
    assert {table.name for table in tables.of_study} == of_study
    of_trial = {name for name, table in known.items() if "trial_id" in table.c} - {"trials", "trial_heartbeats"}
    assert {table.name for table in tables.of_trial} == of_trial
    assert (tables.values.name, tables.system_attrs.name) == ("trial_values", "trial_system_attributes")
    assert (tables.trials.name, tables.heartbeats.name) == ("trials", "trial_heartbeats")


def test_parts_of_samplers() -> None:
    """The inner sampler, a point of a sequence, the key of a generation and missing seeds are found."""
    inner = RandomSampler()
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        fixed = PartialFixedSampler({"x": 1.0}, inner)
    assert optuna_internals.base_sampler_of(fixed) is inner
    assert [name for name, part in vars(inner).items() if optuna_internals.is_unseeded(part)] == ["_rng"]
    assert not any(map(optuna_internals.is_unseeded, vars(RandomSampler(seed=1)).values()))

    space: dict[str, BaseDistribution] = {"x": optuna.distributions.FloatDistribution(0, 1)}
    drawn = []
    for sample_id in (0, 3, 3):
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            sequence = QMCSampler(qmc_type="halton", scramble=False)
        optuna_internals.set_sample_id(sequence, sample_id)
        study = optuna.create_study(sampler=sequence)
        frozen = optuna_internals.storage_of(study).get_trial(optuna_internals.trial_id_of(study.ask()))
        drawn.append(sequence.sample_relative(study, frozen, space)["x"])
    assert drawn == [0.0, 0.75, 0.75]

    genetic = NSGAIISampler(seed=1)
    study = optuna.create_study(sampler=genetic)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[0].system_attrs[optuna_internals.generation_key(genetic)] == 0


def test_private_names_are_read_here_only() -> None:
    """No other file of the bridge reads a private name of Optuna; `_fields` and the like would be other libraries'."""
    found = {file: names for file, names in find_private_names().items() if file.startswith("plugins/optuna")}
    assert set(found) == {"plugins/optuna/optuna_internals.py"}


def test_nothing_private_is_imported_early() -> None:
    """Private modules of Optuna are imported inside of functions, so that importing the bridge needs none of them."""
    source = Path(optuna_internals.__file__).read_text(encoding="utf-8")
    modules = [node.module or "" for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if "._" in module]


def test_a_renamed_name_breaks_the_call_only() -> None:
    """With another name for Optuna's internals, the bridge is imported, and the call that needs them fails."""
    code = (
        "import sys, types, optuna\n"
        "sys.modules['optuna.storages._rdb.models'] = sys.modules['optuna.samplers._lazy_random_state'] = None\n"
        "sys.modules['optuna.storages._heartbeat'] = None\n"
        "del optuna.Study.__init__  # As after a rename of what it sets.\n"
        "import helios.plugins.optuna\n"
        "from helios.plugins.optuna.optuna_internals import tables\n"
        "try:\n    tables()\nexcept ImportError:\n    print('refused')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "refused\n"), result.stderr
