"""Binds that look like a misnamed replica or primary, and stay ordinary binds."""

from __future__ import annotations

import difflib
import logging
import re
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from flask_replicated.system.patterns import pattern

from .binds import PRIMARY_NAMES, REPLICA_NAME, same_database

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from .binds import BindOwner

__all__ = [
    "RULE",
    "MisnamedBind",
    "log_misnamed_binds",
    "misnamed_binds",
    "primary_hint",
    "unused_binds",
]

logger = logging.getLogger("flask_replicated")

# Certainly meant as a replica.
_LOOKS_LIKE = pattern(r"(?:slave|replica)s?[-_ ]?\w{0,3}", re.IGNORECASE)
# Contains one of the words, with a number or with words that say no more.
_CONTAINS = pattern(
    r"[a-z]+(?:slave|replica)s?[-_. ]?\d*"
    r"|(?:[a-z0-9]*[-_. ])*(?:slave|replica)(?:(?=\D*\d)(?:[-_. ]+[a-z0-9]+)+"
    r"|(?:[-_. ]+(?:[a-z]{1,2}|reads?|readers?|readonly|only))+)",
    re.IGNORECASE,
)
_NUMBERED = pattern(r"(?P<word>[a-z]+)[-_. ]*(?P<number>\d*)", re.IGNORECASE)
_A_WORD = "save"  # one letter short of 'slave'
# Other words for a replica.
_OTHER_WORDS = pattern(
    r"(?:db[-_])?(?:hot[-_]?)?(?:standby|reads?|readers?|read[-_]?only|ro|follower"
    r"|secondary|mirror)(?:[-_]?db)?[-_. ]?\d*",
    re.IGNORECASE,
)
# Of these, the ones that may also name a database of its own.
_AMBIGUOUS = ("secondary", "mirror")
RULE = (
    "Replicas are called 'slave', 'slave_1', 'slave_2' ... or 'replica_1', "
    "'replica_2' ..., and 'x_slave_1' copies a bind 'x' that is there."
)
"""What replicas are called."""


class MisnamedBind(NamedTuple):
    """A bind that may be meant as a replica, but does not have a replica's name.

    Attributes:
        name: Its name.
        owner: The bind that it would copy; None is the default one.
        meant: The name that it should have, if that is clear and free.
        sure: Whether its name can only be meant as a replica's.
        other: Whether its name is another word for a replica.
    """

    name: str
    owner: str | None = None
    meant: str | None = None
    sure: bool = False
    other: bool = False


def misnamed_binds(names: Collection[object]) -> Iterator[MisnamedBind]:
    """Return the binds that may be meant as replicas, by their names alone.

    Args:
        names: The names of all binds.
    """
    texts = [name for name in names if isinstance(name, str)]
    owners = [name for name in texts if not REPLICA_NAME.fullmatch(name)]
    for name in texts:
        found = _without_owner(name, owners) or _slip(name, owners)
        if found is not None:
            yield found._replace(meant=None) if found.meant in texts else found


def _without_owner(name: str, owners: Collection[str]) -> MisnamedBind | None:
    """Return a bind that is named as a replica of a bind that does not exist."""
    match = REPLICA_NAME.fullmatch(name)
    owner = match["owner"] if match else None
    if owner is None or owner in owners or owner in PRIMARY_NAMES:
        return None
    close = difflib.get_close_matches(owner, owners, n=1, cutoff=0.8)
    meant = f"{close[0]}{name[len(owner) :]}" if close else None
    return MisnamedBind(name, meant=meant, sure=True)


def _slip(name: str, owners: Collection[str]) -> MisnamedBind | None:
    """Return a bind whose name nearly is a replica's, or another word for one."""
    if REPLICA_NAME.fullmatch(name):
        return None
    owner, rest = _split(name, owners)
    meant = _nearest(rest, "slave", "replica")
    if meant is not None and owner is not None:
        meant = f"{owner}_{meant}"
    sure = _LOOKS_LIKE.fullmatch(rest) is not None
    if meant is not None or sure or _CONTAINS.fullmatch(rest):
        return MisnamedBind(name, owner, meant, sure=sure)
    other = _OTHER_WORDS.fullmatch(rest) is not None
    return MisnamedBind(name, owner, other=True) if other else None


def _split(name: str, owners: Collection[str]) -> tuple[str | None, str]:
    """Return the bind that a name begins with, or None, and the rest of the name."""
    for owner in sorted(owners, key=len, reverse=True):
        rest = name.removeprefix(owner)
        if rest[:1] in {"_", "-", "."} and rest != name:
            return owner, rest[1:]
        if rest != name and _LOOKS_LIKE.fullmatch(rest):  # only the "_" is missing
            return owner, rest
    return None, name.lstrip("-_. ")


def _nearest(name: str, *words: str) -> str | None:
    """Return which of *words* a name has one typo in, with its number.

    A missing, an additional or two swapped letters are a typo. A replaced letter often
    makes another word ('slate'), and so does another first letter ('faster'): these
    are typos only in a name with a number.
    """
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return None
    given, number = match["word"].lower(), match["number"]
    for word in words:
        pairs = zip(given, word, strict=False)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        a, b = given[same:], word[same:]
        moved = a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
        alone = moved and same > 0 and given != _A_WORD
        if a == b or alone or (number and (moved or a[1:] == b[1:])):
            return f"{word}_{number}" if number else word
    return None


def primary_hint(owner: BindOwner) -> str:
    """Return a hint at a bind whose name nearly is the primary's, or an empty string.

    A bind of another database than the primary's is an ordinary one.
    """
    default = owner.engines.get(owner.default)
    for name, engine in owner.engines.items():
        near = _nearest(name, *PRIMARY_NAMES) if isinstance(name, str) else None
        meant = near.partition("_")[0] if near else None
        if meant and (default is None or same_database(default, engine)):
            return (
                f"{owner.setting}[{name!r}] is not taken for the primary and stays "
                f"an ordinary bind. Did you mean {meant!r}?"
            )
    return ""


def unused_binds(
    owners: Iterable[BindOwner], *, served: bool
) -> list[tuple[str, str, str | None]]:
    """Return the binds that may be meant as replicas but are not used as such.

    Args:
        owners: What owns the engines of an application.
        served: Whether it has replicas.

    Returns:
        Of each the key, the setting that names it in Python syntax, and the name that
        it should have, if that is clear.
    """
    found = [(owner, one) for owner in owners for one in misnamed_binds(owner.engines)]
    return [
        (one.name, f"{owner.setting}[{one.name!r}]", one.meant)
        for owner, one in found
        if not (served and one.other) and (one.sure or _may_be_meant(owner, one))
    ]


def log_misnamed_binds(app: str, owners: Iterable[BindOwner], *, served: bool) -> None:
    """Log which binds may be meant as replicas but are not used as such.

    To have no replicas is normal, as on a developer's machine, and logged at INFO; to
    have some that are misnamed is a warning.

    Args:
        app: The application's name.
        owners: What owns its engines.
        served: Whether there are replicas.
    """
    shown = [
        f"{setting}{'' if meant is None else f' (did you mean {meant!r}?)'}"
        for _, setting, meant in unused_binds(owners, served=served)
    ]
    if served:
        for bind in shown:
            logger.warning(
                "%s is not taken for a replica: it stays an ordinary bind. %s",
                bind,
                RULE,
            )
        return
    settings = " and ".join(owner.setting for owner in owners)
    none = f"{app}: {settings} has no 'slave_1': every statement goes to the primary."
    if shown:
        listed = ", ".join(shown)
        several = len(shown) > 1
        stays = "they stay ordinary binds" if several else "it stays an ordinary bind"
        logger.warning(
            "%s Not taken for a replica: %s; %s. %s", none, listed, stays, RULE
        )
    else:
        logger.info("%s", none)


def _may_be_meant(owner: BindOwner, one: MisnamedBind) -> bool:
    """Whether a bind that nearly has a replica's name may be one.

    The names of the databases do not decide: behind a connection pooler each server is
    a database of another name, and some URLs have none.
    """
    if owner.owns_tables(one.name):
        return False
    key = owner.default if one.owner is None else one.owner
    if key not in owner.engines:
        return True
    primary, engine = owner.primary_bind(one.owner), owner.engines[one.name]
    if one.name.lower().endswith(_AMBIGUOUS):
        return primary.resembles(engine)
    return primary.has_dialect_of(engine)
