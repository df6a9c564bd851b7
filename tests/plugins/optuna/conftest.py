"""Databases for studies."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

from tests.postgres import Server, find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def closed_connections() -> Iterator[None]:
    """Close all database connections that a test has opened: studies never close them, and drivers then warn."""
    opened = []

    def keep(connection: Any, _record: object) -> None:
        opened.append(connection)

    sqlalchemy.event.listen(sqlalchemy.Pool, "connect", keep)
    yield
    sqlalchemy.event.remove(sqlalchemy.Pool, "connect", keep)
    for connection in opened:
        connection.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """Run a PostgreSQL server for the tests of this process; each worker of pytest-xdist has its own."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs a PostgreSQL server, and there is none: initdb or setpriv is not installed")
    folder = Path(tempfile.mkdtemp(prefix="helios-pg-"))
    server = Server(binaries, folder)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """Return the URL of an empty PostgreSQL database."""
    name = f"study{next(_numbers)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Return the URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty database of each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
