"""URLs of databases: read, and shown without what may be a password in them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sql
from optuna.storages._rdb import models

from helios.errors import ConfigurationError

_RULE: Final = (
    "storage is no storage URL (it is not shown, as it may hold a password): pass one that SQLAlchemy knows, such as "
    "'sqlite:///study.db' or 'postgresql://user@host/database', with @, /, : and % in a password written as %40, %2F, "
    "%3A and %25"
)


def parse_url(storage: str) -> sql.URL:
    """Return the parts of a storage URL.

    Raises:
        ConfigurationError: if the string is no storage URL. It is not repeated: it may hold a password.
    """
    url = _parse(storage)
    # Not raised while another error is handled: that one may quote the string, and would be printed with this one.
    if url is None:
        raise ConfigurationError(_RULE)
    if url.get_backend_name() == "sqlite" and (url.username or url.password or url.host or url.port):
        # SQLAlchemy refuses it as well, but prints the password.
        raise ConfigurationError(
            "storage is a SQLite URL with a user or a host, which SQLite has not: write sqlite:/// and the path of the "
            "file, as in 'sqlite:///study.db' or 'sqlite:////folder/study.db'"
        )
    return url


def _parse(storage: str) -> sql.URL | None:
    try:
        url = sql.make_url(storage.format(SCHEMA_VERSION=models.SCHEMA_VERSION))
        url.get_dialect()
    except (sql.exc.ArgumentError, LookupError, ValueError):
        return None
    if url.get_backend_name() == "sqlite":
        return url
    # A password with an @ or a / in it ends early, and drivers print what is taken for the host then.
    rest = storage.partition("@")[2] if url.username is not None else storage
    is_torn = "@" in rest.partition("?")[0] or (url.username is None and ":" in (url.database or ""))
    return None if is_torn else url


def show_url(url: sql.URL) -> str:
    """Return a URL for people: without the password, and without the part after the "?", which may hold one as well."""
    if url.get_backend_name() == "sqlite":
        return repr(f"{url.drivername}:///{url.database or ''}")
    # Where there is no user, what is taken for the port may be a password: "user:1234" in place of "user:1234@host".
    port = None if url.username is None else url.port
    shown = sql.URL.create(url.drivername, url.username, url.password, url.host, port, url.database)
    return repr(shown.render_as_string(hide_password=True))
