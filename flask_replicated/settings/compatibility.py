"""Whether a bind can be a replica at all: what engines tell before any connect."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import NoSuchModuleError

from flask_replicated.errors import ConfigurationError
from flask_replicated.redaction import safe

from .sqlite_files import in_private_memory

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine
    from sqlalchemy.engine import Dialect

__all__ = ["PrimaryBind"]

logger = logging.getLogger("flask_replicated")

_SHARED = "sqlite:///file:shop?mode=memory&cache=shared&uri=true"


class PrimaryBind(NamedTuple):
    """The primary's engine, to which its replicas are compared.

    Attributes:
        engine: The engine.
        setting: The setting that names it.
        without: How to do without such a replica.
    """

    engine: Engine
    setting: str
    without: str

    def require_compatible(self, key: str, replica: Engine) -> None:
        """Refuse an engine that cannot lead to a copy of the primary's database.

        Args:
            key: The setting that names it.
            replica: The engine.

        Raises:
            ConfigurationError: It has another dialect, or one of the two is a
                database in memory that only its own engine can see.
        """
        self._require_dialect(key, replica.url, type(replica.dialect))
        if replica.pool is self.engine.pool:
            return
        if in_private_memory(replica):
            what = "is a memory database, empty and no copy of the primary's"
        elif in_private_memory(self.engine):
            what = f"cannot be a copy of {self._shown()}, a memory database"
        else:
            return
        raise ConfigurationError(
            key,
            replica.url,
            f"{what}. In tests leave it out ({self.without}), or name the same file "
            f"for both, or the same shared cache for both: {_SHARED!r}.",
        )

    def require_same_dialect(self, key: str, url: URL) -> None:
        """Refuse a URL that stands for replicas which DNS will name.

        Raises:
            ConfigurationError: Its dialect is another one, or not installed.
        """
        try:
            dialect = url.get_dialect()
        except (NoSuchModuleError, ImportError) as error:
            raise ConfigurationError(
                key, url, f"its driver is not known or not installed ({error})."
            ) from None
        self._require_dialect(key, url, dialect)

    def resembles(self, engine: Engine) -> bool:
        """Whether an engine's URL may be that of a replica, as far as it tells.

        A copy has the name of what it is a copy of, unless it is a file.
        """
        dialect = self.engine.dialect
        if _family(type(engine.dialect)) != _family(type(dialect)):
            return False
        names = engine.url.database, self.engine.url.database
        return dialect.name == "sqlite" or names[0] == names[1]

    def _require_dialect(self, key: str, url: URL, dialect: type[Dialect]) -> None:
        theirs, ours = _family(dialect), _family(type(self.engine.dialect))
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

    def _shown(self) -> str:
        return f"the primary, {self.setting} = {safe(self.engine.url)!r},"


def _family(dialect: type[Dialect]) -> str:
    """Return which databases a dialect is for, by SQLAlchemy's own names.

    MySQL and MariaDB are one. So are with PostgreSQL the dialects that are derived from
    its: they speak its protocol, and one server may have URLs of both kinds
    (``postgresql://`` and ``timescaledb://``).
    """
    for base in dialect.__mro__:
        package, _, name = base.__module__.partition("sqlalchemy.dialects.")
        if not package and name:
            return name.partition(".")[0]
    return dialect.name
