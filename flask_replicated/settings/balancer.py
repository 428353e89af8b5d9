"""``REPLICATED_BALANCER``: which balancer it names, and whether that one works."""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING, Any

from balancers.errors import UnknownBalancerError, error_text
from balancers.feedback import is_feedback
from balancers.strategies import BALANCERS, is_shipped, resolve_balancer
from flask_replicated.errors import ConfigurationError
from flask_replicated.errors.redaction import safe

from .validators import close_coroutine, misfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from balancers import Member, Pick

__all__ = ["read_balancer"]

_KEY = "REPLICATED_BALANCER"


def read_balancer(value: object) -> Callable[..., Any]:
    """Return the balancer that the setting's value is or names.

    One that is not of the package ``balancers`` is checked when the first pool is made.

    Raises:
        ConfigurationError: It neither is nor names one.
    """
    try:
        balancer: Callable[..., Any] = resolve_balancer(value)
    except UnknownBalancerError as error:
        why = error.reason
    except Exception as error:  # noqa: BLE001 - a custom module or class may raise anything
        why = error_text(error)
    else:
        if is_shipped(balancer):
            return balancer
        _refuse_unless_takes(balancer, 1, value, "it must take the live members")
        return _CheckedBalancer(balancer, value)
    close = difflib.get_close_matches(str(value), BALANCERS, n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}? " if close and isinstance(value, str) else ""
    # The reason would show parts of a value that has a password.
    hidden = isinstance(value, str) and safe(value) != value
    *names, last = map(repr, BALANCERS)
    raise ConfigurationError(
        _KEY,
        value,
        f"{'' if hidden else f'{why}. '}{hint}Use {', '.join(names)} or {last}, or the "
        "dotted path of your own (a callable; see docs/balancers.md).",
    )


class _CheckedBalancer:
    """A custom balancer whose first call checks it.

    Its errors after that are the pool's to handle: it logs them, and the live members
    take turns.
    """

    def __init__(self, balancer: Callable[..., Any], value: object) -> None:
        self._balancer = balancer
        self._value = value
        self._checked = False

    def __repr__(self) -> str:
        return f"REPLICATED_BALANCER = {safe(self._balancer)!r}"

    def __getattr__(self, name: str) -> Any:
        # What a balancer may have besides: feedback(), prefer(), reads_weights.
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._balancer, name)
        if name == "feedback" and callable(found) and not self._checked:
            return partial(self._ask, found)
        return found

    def _ask(self, feedback: Callable[..., Any], member: Member[Any]) -> Any:
        """Return what is to be told of a member's use.

        Raises:
            ConfigurationError: The balancer raises, or nothing can be told to it.
        """
        try:
            found = feedback(member)
        except Exception as error:
            why = f"its feedback() failed: {error_text(error)}"
            raise _refusal(self._value, why) from error
        if found is not None and not is_feedback(found):
            close_coroutine(found)
            why = f"its feedback() returned {safe(found)!r}, not a Feedback or None"
            raise _refusal(self._value, why)
        return found

    def __call__(self, members: tuple[Member[Any], ...]) -> Pick[Any]:
        if self._checked:
            pick: Pick[Any] = self._balancer(members)
            return pick
        # With a pick function of its own, so that the check takes no turn.
        self._check(self._make_pick(members), members)
        pick = self._make_pick(members)
        self._checked = True
        return pick

    def _make_pick(self, members: tuple[Member[Any], ...]) -> Pick[Any]:
        """Return the balancer's pick function.

        Raises:
            ConfigurationError: It raises, or returns none.
        """
        try:
            pick: Any = self._balancer(members)
        except Exception as error:
            raise _refusal(self._value, error_text(error)) from error
        if not callable(pick):
            close_coroutine(pick)
            raise _refusal(
                self._value, f"it returned {safe(pick)!r}, not a pick function"
            )
        made: Pick[Any] = pick
        return made

    def _check(self, pick: Pick[Any], members: tuple[Member[Any], ...]) -> None:
        """Pick once.

        Raises:
            ConfigurationError: The function picks what is no member.
        """
        _refuse_unless_takes(pick, 0, self._value, "its pick function takes nothing")
        try:
            picked: object = pick()
        except Exception:  # noqa: BLE001 - it may need what only a request has
            return
        if not any(picked is member for member in members):
            close_coroutine(picked)
            raise _refusal(
                self._value, f"it picked {safe(picked)!r}, not one of the members"
            )


def _refuse_unless_takes(
    function: Callable[..., Any], count: int, value: object, why: str
) -> None:
    error = misfit(function, *[()] * count)
    if error is not None:
        raise _refusal(value, f"{why}: {error}") from error


def _refusal(value: object, why: str) -> ConfigurationError:
    return ConfigurationError(
        _KEY,
        value,
        f"It must be {', '.join(map(repr, BALANCERS))}, a dotted path, a class "
        "or a callable, which takes the live members and returns a function without "
        f"arguments that returns one of them ({why}).",
    )
