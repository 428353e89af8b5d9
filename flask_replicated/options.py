"""What a statement or a model says about itself.

``execution_options(replicated='master')`` or ``'slave'`` on a statement, and
``__replicated__ = 'master'`` on a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Select
from sqlalchemy.orm import UserDefinedOption
from sqlalchemy.sql.cache_key import HasCacheKey
from sqlalchemy.sql.visitors import InternalTraversal

from .errors import ConfigurationError
from .routing import MARK, ROLES, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["carrying", "reads_primary", "wanted_role"]

_OPTION = "replicated"


class _Carried(HasCacheKey, UserDefinedOption):
    """A statement's role, which the objects it loads keep for their own loads.

    It is part of the statement's cache key: what is loaded along with the objects
    is compiled once, options included.
    """

    propagate_to_loaders = True
    _cache_key_traversal = [("payload", InternalTraversal.dp_plain_obj)]  # noqa: RUF012 - SQLAlchemy's own form


def _role(key: str, value: object) -> Role:
    try:
        return ROLES[str(value)]
    except KeyError:
        raise ConfigurationError(key, value, "must be 'master' or 'slave'.") from None


def wanted_role(statement: Any, options: Mapping[str, Any] | None) -> Role | None:
    """Return what the options of a statement ask for, or None.

    Options given to ``execute()`` are stronger than the statement's own, and
    those are stronger than what a loaded object carries to its relationships.

    Raises:
        ConfigurationError: The option is no name of a role.
    """
    value = options.get(_OPTION) if options else None
    if value is None:
        own = getattr(statement, "_execution_options", None)
        value = own.get(_OPTION) if own else None
    if value is not None:
        return _role(f"execution_options[{_OPTION!r}]", value)
    for option in getattr(statement, "_with_options", ()):
        if type(option) is _Carried:
            return option.payload
    return None


def carrying(statement: Any, role: Role) -> Any:
    """Return the statement with its role passed on to relationship loads."""
    if isinstance(statement, Select):
        return statement.options(_Carried(role))
    return statement


def reads_primary(mapper: Any) -> bool:
    """Whether a mapped class must never be read stale.

    Raises:
        ConfigurationError: ``__replicated__`` is anything but ``'master'``.
    """
    model = getattr(mapper, "class_", mapper)
    value = getattr(model, MARK, None)
    if value is None:
        return False
    if ROLES.get(value) is not Role.PRIMARY:
        raise ConfigurationError(
            f"{model.__name__}.{MARK}", value, "a model may only say 'master'."
        )
    return True
