"""A PostgreSQL server of the tests' own: made in a temporary folder, reached through a socket there, gone at the end."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Final

import psycopg

# What a test need not wait for. The server survives being killed all the same: only a loss of power would harm it.
_SETTINGS: Final = (
    "fsync = off",
    "listen_addresses = ''",
    "max_connections = 40",
    "shared_buffers = 16MB",
    "deadlock_timeout = 200ms",
)


def find_binaries() -> Path | None:
    """Return the folder of `initdb` and its like, or `None`: Debian keeps them off the PATH."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).parent
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@dataclasses.dataclass(frozen=True)
class Server:
    """A server and where it is.

    Attributes:
        binaries: the folder of its programs.
        folder: where its data, socket and log are; the path must be short, because the socket's may have 107 letters.
    """

    binaries: Path
    folder: Path

    def create(self) -> None:
        """Make the server's data, owned by somebody who is not root: PostgreSQL refuses root."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._run("initdb", "--username=helios", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        settings = (*_SETTINGS, f"unix_socket_directories = '{self.folder}'")
        with (self.folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\n".join(settings) + "\n")

    def start(self) -> None:
        """Start the server, and return when it answers."""
        self._run("pg_ctl", "--wait", "--timeout=60", f"--log={self.folder / 'log'}", "start")

    def stop(self) -> None:
        """Stop the server without waiting for its clients; what they have not committed is lost."""
        self._run("pg_ctl", "--wait", "--timeout=60", "--mode=immediate", "stop")

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://helios@/{database}?host={self.folder}"

    def create_database(self, name: str) -> str:
        """Make a database.

        Returns:
            Its URL.
        """
        self.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Delete a database, whoever uses it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run one statement that concerns the whole server."""
        with psycopg.connect(host=str(self.folder), user="helios", dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.binaries / program), f"--pgdata={self.folder / 'data'}", *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
        # Not through pipes: the server would inherit them, and whoever reads them wait for its end.
        with (self.folder / "tools.log").open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=log, cwd=self.folder, timeout=120, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{(self.folder / 'tools.log').read_text(encoding='utf-8')}")
