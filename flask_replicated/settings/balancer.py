"""``REPLICATED_BALANCER``: from what somebody has written to a balancer that works."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from balancers.errors import UnknownBalancerError, error_text
from balancers.strategies import BALANCERS, resolve_balancer
from flask_replicated.errors import ConfigurationError
from flask_replicated.redaction import safe

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancers import Member, Pick

__all__ = ["read_balancer"]

KEY = "REPLICATED_BALANCER"


def read_balancer(value: object) -> Callable[..., Any]:
    """Return the balancer that a setting stands for.

    One that is not of the package ``balancers`` is tried when the first pool is made.

    Raises:
        ConfigurationError: It stands for none.
    """
    try:
        balancer: Callable[..., Any] = resolve_balancer(value)
    except UnknownBalancerError as error:
        why = error.reason
    except Exception as error:  # noqa: BLE001 - a module or class of the user's own
        why = error_text(error)
    else:
        if type(balancer) in BALANCERS.values():
            return balancer
        _refuse_unless_takes(balancer, 1, value, "it must take the live members")
        return _CheckedBalancer(balancer, value)
    close = difflib.get_close_matches(str(value), BALANCERS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close and isinstance(value, str) else ""
    # What cannot be shown has parts in the reason that cannot be recognised.
    hidden = isinstance(value, str) and safe(value) != value
    raise _refusal(value, "" if hidden else why, hint)


class _CheckedBalancer:
    """A user's balancer, which says at its first call what is wrong with it.

    Later, with requests running, the pool has its own ways: it logs what goes wrong,
    and the live members take turns.
    """

    def __init__(self, balancer: Callable[..., Any], value: object) -> None:
        self._balancer = balancer
        self._value = value
        self._checked = False

    def __repr__(self) -> str:
        return f"REPLICATED_BALANCER = {safe(self._balancer)!r}"

    def __call__(self, members: tuple[Member[Any], ...]) -> Pick[Any]:
        if not self._checked:
            self._check(members)
            self._checked = True
        pick: Pick[Any] = self._balancer(members)
        return pick

    def _check(self, members: tuple[Member[Any], ...]) -> None:
        """Use up a pick function that nobody else has, so that no turn is missed.

        Raises:
            ConfigurationError: There is none, or it picks what is no member.
        """
        try:
            pick = self._balancer(members)
        except Exception as error:
            raise _refusal(self._value, error_text(error)) from error
        if not callable(pick):
            _discard(pick)
            raise _refusal(
                self._value, f"it returned {safe(pick)!r}, not a pick function"
            )
        _refuse_unless_takes(pick, 0, self._value, "its pick function takes nothing")
        try:
            picked: object = pick()
        except Exception:  # noqa: BLE001 - it may need what only a request has
            return
        if not any(picked is member for member in members):
            _discard(picked)
            raise _refusal(
                self._value, f"it picked {safe(picked)!r}, not one of the members"
            )


def _refuse_unless_takes(
    function: Callable[..., Any], count: int, value: object, why: str
) -> None:
    try:
        inspect.signature(function).bind(*[()] * count)
    except TypeError as error:
        raise _refusal(value, f"{why}: {error}") from error
    except ValueError:
        pass  # a built-in that does not tell


def _discard(value: object) -> None:
    """Close what an async function returns, or Python warns that nobody awaits it."""
    if inspect.iscoroutine(value):
        value.close()


def _refusal(value: object, why: str, hint: str = "") -> ConfigurationError:
    told = f" ({why})" if why else ""
    return ConfigurationError(
        KEY,
        value,
        f"{hint}It must be {', '.join(map(repr, BALANCERS))}, a dotted path, a class "
        "or a callable, which takes the live members and returns a function without "
        f"arguments that returns one of them{told}.",
    )
