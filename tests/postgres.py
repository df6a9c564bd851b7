"""A PostgreSQL server of the tests' own, in a temporary folder, reached through a socket there."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
import signal
import subprocess
import time
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
    if shutil.which("setpriv") is None:  # Starts the server as another user, and lets it die with the tests.
        return None
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).parent
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@dataclasses.dataclass
class Server:
    """A server and where it is.

    Attributes:
        binaries: the folder of its programs.
        folder: where its data, socket and log are; the path must be short, because the socket's may have 107 letters.
    """

    binaries: Path
    folder: Path
    _process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        """Make the server's data, owned by somebody who is not root: PostgreSQL refuses root."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        options = ("--username=helios", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync")
        command = self._as_user("--no-new-privs", "initdb", *options)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, timeout=120)
        settings = (*_SETTINGS, f"unix_socket_directories = '{self.folder}'")
        with (self.folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\n".join(settings) + "\n")

    def start(self) -> None:
        """Start the server, and return when it answers. It goes down with the process that has started it."""
        with (self.folder / "log").open("ab") as log:
            command = self._as_user("--pdeathsig=QUIT", "postgres")
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        for _ in range(600):
            try:
                return self.execute("SELECT 1")
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL does not answer:\n{(self.folder / 'log').read_text(encoding='utf-8')}")

    def stop(self) -> None:
        """Stop the server without waiting for its clients; what they have not committed is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

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

    def _as_user(self, option: str, program: str, *arguments: str) -> list[str]:
        """Return the command that runs one of the server's programs, by somebody who is not root."""
        command = [str(self.binaries / program), "-D", str(self.folder / "data"), *arguments]
        user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        return ["setpriv", option, *user, *command]
