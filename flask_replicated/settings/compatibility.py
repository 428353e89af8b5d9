"""Whether an engine can be a replica of a primary, by what is known before connects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import NoSuchModuleError

from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import safe

from .row_settings import differing_settings
from .sqlite_files import in_private_memory

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.engine import Dialect

__all__ = ["PrimaryBind", "family"]

logger = logging.getLogger("flask_replicated")

_SHARED = "sqlite:///file:shop?mode=memory&cache=shared&uri=true"


class PrimaryBind(NamedTuple):
    """A primary's engine, with which replicas must be compatible.

    Attributes:
        engine: The engine.
        setting: The setting that names it.
        without: The settings that leave out an unwanted replica, for errors.
    """

    engine: Engine
    setting: str
    without: str

    def require_compatible(self, key: str, replica: Engine) -> None:
        """Refuse an engine that cannot lead to a copy of the primary's database.

        Of one that reads other rows by its own settings a WARNING is logged.

        Args:
            key: The setting that names the replica.
            replica: The replica's engine.

        Raises:
            ConfigurationError: The dialects differ, or one of the two is an in-memory
                database that only its own engine can see.
        """
        self._require_dialect(key, replica.url, type(replica.dialect))
        if replica.pool is self.engine.pool:
            return
        self._warn_of_other_rows(key, replica)
        if in_private_memory(replica):
            what = "is a memory database, empty and no copy of the primary's"
        elif in_private_memory(self.engine):
            what = f"cannot be a copy of {self._shown()} a memory database"
        else:
            return
        raise ConfigurationError(
            key,
            replica.url,
            f"{what}. In tests leave it out ({self.without}), or name the same file "
            f"for both, or the same shared cache for both: {_SHARED!r}.",
        )

    def require_same_dialect(self, key: str, url: URL) -> None:
        """Refuse the URL of replicas that DNS names, if its dialect is another one.

        Args:
            key: The setting that has the URL.
            url: The URL.

        Raises:
            ConfigurationError: The dialects differ, or it is not installed.
        """
        try:
            dialect = url.get_dialect()
        except (NoSuchModuleError, ImportError) as error:
            raise ConfigurationError(
                key, url, f"its driver is not known or not installed ({error})."
            ) from None
        self._require_dialect(key, url, dialect)

    def resembles(self, engine: Engine) -> bool:
        """Whether an engine's URL has the name of the primary's database.

        A copy of a database has the same name, unless it is a file or a connection
        pooler has an alias for it.
        """
        names = engine.url.database, self.engine.url.database
        alike = engine.dialect.name == "sqlite" or names[0] == names[1]
        return alike and self.has_dialect_of(engine)

    def has_dialect_of(self, engine: Engine) -> bool:
        """Whether an engine's database is of the primary's kind."""
        return family(type(engine.dialect)) == family(type(self.engine.dialect))

    def _require_dialect(self, key: str, url: URL, dialect: type[Dialect]) -> None:
        theirs, ours = family(dialect), family(type(self.engine.dialect))
        if theirs != ours:
            raise ConfigurationError(
                key,
                url,
                f"a {theirs} database cannot be a replica of {self._shown()} a {ours} "
                "database. A test configuration that inherits replicas leaves them "
                f"out: {self.without}.",
            )
        driver = self.engine.dialect.driver
        if dialect.driver != driver:
            logger.warning(
                "%s has the driver %r, and %s has %r: what they return and raise "
                "differs. Name one driver for all servers of a bind.",
                key,
                dialect.driver,
                self.setting,
                driver,
            )

    def _warn_of_other_rows(self, key: str, replica: Engine) -> None:
        names = differing_settings(self.engine, replica)
        if not names:
            return
        hint = ""
        if self.setting == "SQLALCHEMY_DATABASE_URI":
            hint = " SQLALCHEMY_ENGINE_OPTIONS is the primary's alone."
        logger.warning(
            "%s is not set alike for %s and %s, so a read may return other rows on a "
            "replica. Give both the same.%s",
            " and ".join(names),
            self.setting,
            key,
            hint,
        )

    def _shown(self) -> str:
        return f"the primary, {self.setting} = {safe(self.engine.url)!r},"


def family(dialect: type[Dialect]) -> str:
    """Return the family of databases that a dialect is for.

    MySQL and MariaDB are one family. Dialects that inherit from PostgreSQL's belong to
    its family: one server may have URLs of both kinds (``postgresql://`` and
    ``timescaledb://``).
    """
    for base in dialect.__mro__:
        package, _, name = base.__module__.partition("sqlalchemy.dialects.")
        if not package and name:
            return name.partition(".")[0]
    return dialect.name
