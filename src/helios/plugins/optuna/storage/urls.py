"""Storage URLs: parsed, and shown without anything that may be a password."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sql

from helios.errors import ConfigurationError
from helios.plugins.optuna.optuna_internals import fill_url_template

_RULE: Final = (
    "storage is no storage URL (it is not shown, as it may hold a password): pass one that SQLAlchemy knows, such as "
    "'sqlite:///study.db' or 'postgresql://user@host/database', with @, /, : and % in a password written as %40, %2F, "
    "%3A and %25"
)


def parse_url(storage: str) -> sql.URL:
    """Return the parts of a storage URL.

    Raises:
        ConfigurationError: if the string is not a storage URL. The message does not show it: it may hold a password.
    """
    url = _parse(storage)
    # Raised outside of the `except` block of `_parse`: the traceback would show that error, which may quote the string.
    if url is None:
        raise ConfigurationError(_RULE)
    if url.get_backend_name() == "sqlite" and (url.username or url.password or url.host or url.port):
        # SQLAlchemy raises an error as well, but shows the password.
        raise ConfigurationError(
            "storage is a SQLite URL with a user or a host, and SQLite has neither: write sqlite:/// and the path of "
            "the file, as in 'sqlite:///study.db' or 'sqlite:////folder/study.db'"
        )
    return url


def _parse(storage: str) -> sql.URL | None:
    try:
        url = sql.make_url(fill_url_template(storage))
        url.get_dialect()
    except (sql.exc.ArgumentError, LookupError, ValueError):
        return None
    if url.get_backend_name() == "sqlite":
        return url
    # A password that contains @ or / is split there, and drivers print its second part as the host.
    rest = storage.partition("@")[2] if url.username is not None else storage
    is_split = "@" in rest.partition("?")[0] or (url.username is None and ":" in (url.database or ""))
    return None if is_split else url


def show_url(url: sql.URL) -> str:
    """Return a URL for messages, without the password and without the query, which may hold one as well."""
    if url.get_backend_name() == "sqlite":
        return repr(f"{url.drivername}:///{url.database or ''}")
    # Without a user, the port may be a password: "user:1234" written in place of "user:1234@host".
    port = None if url.username is None else url.port
    shown = sql.URL.create(url.drivername, url.username, url.password, url.host, port, url.database)
    return repr(shown.render_as_string(hide_password=True))
