"""No password is visible in errors and their causes, logs, warnings, output and files."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import optuna
import psycopg
import pytest

from helios.errors import ConfigurationError, StudyStorageError
from helios.plugins.optuna import resume_study, run_study, write_report
from helios.plugins.optuna.storage.urls import parse_url, show_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.postgres import Server

MARK = "s3cr3t-mark"
PSYCOPG = "postgresql+psycopg"

NO_URLS = {
    "a word": MARK,
    "a password": f"postgresql://user:{MARK}",
    "one slash": f"sqlite:/{MARK}",
    "a port that is none": f"postgresql://user:{MARK}@host:port/db",
    "a slash in the user": f"{PSYCOPG}://us/er:{MARK}@127.0.0.1:1/db",
    "a slash and a question mark": f"{PSYCOPG}://us/er:{MARK}?x@127.0.0.1:1/db",
    "an at sign in the password": f"{PSYCOPG}://user:x@{MARK}@127.0.0.1:1/db",
    "braces in the password": f"{PSYCOPG}://user:{{{MARK}}}@127.0.0.1:1/db",
    "an unknown database": f"nosuch://user:{MARK}@host/db",
    "an unknown driver": f"mysql+nosuch://user:{MARK}@host/db",
    "a user of SQLite's": f"sqlite://user:{MARK}@/study.db",
}
REFUSED = {
    "nobody listens": f"{PSYCOPG}://user:{MARK}@127.0.0.1:1/db",
    "the password in the query": f"{PSYCOPG}://user@127.0.0.1:1/db?password={MARK}",
    "an option that is none": f"{PSYCOPG}://user@127.0.0.1:1/db?passwort={MARK}",
    "no driver": f"mysql://user:{MARK}@127.0.0.1:1/db",
}


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Log all messages of all loggers."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "sqlalchemy")
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    yield
    optuna.logging.disable_propagation()
    optuna.logging.set_verbosity(optuna.logging.INFO)


def tell(error: BaseException | None) -> str:
    """Return the content of an error and of all errors in its chain, also of suppressed ones."""
    if error is None:
        return ""
    own = [repr(error), str(error), repr(error.args), *traceback.format_exception(error)]
    return "\n".join([*own, tell(error.__cause__), tell(error.__context__)])


class Watch:
    """Calls functions, and collects everything that is visible of the call."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str], log: pytest.LogCaptureFixture) -> None:
        self._folder, self._capture, self._log = folder, capture, log

    def call(self, function: Callable[[], Any]) -> BaseException | None:
        """Call a function, check everything that is visible, and return the exception that it raises."""
        error: BaseException | None = None
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                function()
            except Exception as raised:  # noqa: BLE001 - whatever it is, it is looked at.
                error = raised
        shown = [
            tell(error),
            self._log.text,
            *self._capture.readouterr(),
            *(str(warning.message) for warning in warned),
        ]
        assert [text for text in shown if MARK in text] == []
        written = [path for path in self._folder.rglob("*") if path.is_file()]
        assert [path for path in written if MARK.encode() in path.read_bytes()] == []
        return error


@pytest.fixture
def watch(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Watch:
    return Watch(tmp_path, capsys, caplog)


def arguments(url: str, name: str = "s") -> dict[str, Any]:
    return {"storage": url, "study_name": name, "load_if_exists": True}


def objective(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def entries(url: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return every public function that takes a storage URL, or a function that creates a study from one."""
    return {
        "write_report": lambda: write_report(url, folder / "report.html"),
        "write_report of a study": lambda: write_report(url, folder / "report.html", study_name="s"),
        "resume_study": lambda: resume_study(arguments(url)),
        "run_study": lambda: run_study(lambda: resume_study(arguments(url)), objective, 1),
    }


@pytest.mark.parametrize("what", NO_URLS)
def test_an_invalid_url_is_not_shown(watch: Watch, tmp_path: Path, what: str) -> None:
    """A string that is not a storage URL is rejected with the rule, and no part of it is visible."""
    for name, entry in entries(NO_URLS[what], tmp_path).items():
        error = watch.call(entry)
        assert isinstance(error, ConfigurationError), name
        assert "sqlite:///" in str(error), name


@pytest.mark.parametrize("what", REFUSED)
def test_a_database_out_of_reach(watch: Watch, tmp_path: Path, what: str) -> None:
    """The error for a refused connection or a missing driver contains no password."""
    url = REFUSED[what]
    for entry in entries(url, tmp_path).values():
        assert watch.call(entry) is not None
    made = lambda: optuna.create_study(**arguments(url))  # noqa: E731 - as users write it.
    assert watch.call(lambda: run_study(made, objective, 1)) is not None


def lock_out(server: Server) -> str:
    """Make a PostgreSQL server require a user's password, and return a URL with a wrong one."""
    server.execute("DROP ROLE IF EXISTS locked")
    server.execute("CREATE ROLE locked LOGIN PASSWORD 'another'")
    rules = server.folder / "data" / "pg_hba.conf"
    rules.write_text("local all locked scram-sha-256\n" + rules.read_text(encoding="utf-8"), encoding="utf-8")
    server.execute("SELECT pg_reload_conf()")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            psycopg.connect(host=str(server.folder), user="locked", password="x", dbname="postgres").close()  # noqa: S106 - a wrong one.
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                break
        time.sleep(0.05)
    return f"{PSYCOPG}://locked:{MARK}@/postgres?host={server.folder}"


def test_a_wrong_password(watch: Watch, tmp_path: Path, postgres_server: Server) -> None:
    """The error contains PostgreSQL's "password authentication failed", and not the password."""
    url = lock_out(postgres_server)
    for name, entry in entries(url, tmp_path).items():
        error = watch.call(entry)
        assert isinstance(error, StudyStorageError), name
        assert "password authentication failed" in str(error), name


def test_studies_that_are_missing_or_ambiguous(watch: Watch, tmp_path: Path, postgres_url: str) -> None:
    """With a database that needs a password, neither errors nor successful calls show it."""
    url = postgres_url.replace("helios@", f"helios:{MARK}@")
    shown = f"'{PSYCOPG}://helios:***@/"
    report = entries(url, tmp_path)["write_report"]
    assert f"{shown}" in str(watch.call(report))
    for name in ("first", "second"):
        assert watch.call(lambda name=name: resume_study(arguments(url, name))) is None  # type: ignore[misc]  # Its type is that of name.
    for entry, told in (("write_report", "holds 2 studies"), ("write_report of a study", "holds no study 's'")):
        error = watch.call(entries(url, tmp_path)[entry])
        assert f"{shown}" in str(error)
        assert told in str(error)

    def fail(trial: optuna.Trial) -> float:
        raise ValueError(trial.suggest_float("x", 0, 1))

    made = lambda: optuna.create_study(**arguments(url, "first"))  # noqa: E731 - as users write it.
    assert isinstance(watch.call(lambda: run_study(made, fail, 1)), ValueError)
    assert watch.call(lambda: resume_study(arguments(url, "first"))) is None
    assert watch.call(lambda: run_study(made, objective, 1)) is None
    assert watch.call(lambda: write_report(url, tmp_path / "report.html", study_name="first")) is None
    assert (tmp_path / "report.html").stat().st_size > 0


def test_a_url_is_shown_without_what_may_be_a_password() -> None:
    """User, host and database are shown, but neither the password nor the query."""
    for url, shown in {
        f"{PSYCOPG}://user:{MARK}@host:5432/db?sslmode=x": f"{PSYCOPG}://user:***@host:5432/db",
        f"{PSYCOPG}://user:a%40{MARK}%2F@host/db": f"{PSYCOPG}://user:***@host/db",
        f"{PSYCOPG}://user:a/{MARK}@host/db": f"{PSYCOPG}://user:***@host/db",
        f"{PSYCOPG}://user@host/db?password={MARK}": f"{PSYCOPG}://user@host/db",
        "postgresql://user:1234": "postgresql://user",
        "sqlite:////folder/a@b:c.db": "sqlite:////folder/a@b:c.db",
        f"sqlite:///study.db?key={MARK}": "sqlite:///study.db",
    }.items():
        assert show_url(parse_url(url)) == repr(shown)


def test_the_search_finds_a_password(watch: Watch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The search finds a password in a suppressed error, a log, a warning, output and a file."""

    def hide() -> None:
        try:
            int(MARK)
        except ValueError:
            raise TypeError from None

    for show in (
        hide,
        lambda: logging.getLogger("optuna").debug(MARK),
        lambda: warnings.warn(MARK, stacklevel=1),
        lambda: print(MARK),  # noqa: T201 - it is what is looked for.
        lambda: (tmp_path / "file").write_text(f"<{MARK}>", encoding="utf-8"),
    ):
        with pytest.raises(AssertionError):
            watch.call(show)
        caplog.clear()
