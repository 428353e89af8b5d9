"""``flask replicated drain``, ``restore``, ``weight``, ``off`` and ``on``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from balancers.errors import UnknownMemberError, WeightsUnreadError, error_text
from flask_replicated.errors.redaction import printable
from flask_replicated.settings.validators import MAX_WEIGHT, YEAR

from .accounts import accounts_in
from .current import current_control, current_routes, refuse_unregistered, with_app
from .fleet_status import no_workers_note
from .place import CLEAR, SWITCH, OrderKey, new_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from .accounts import Account
    from .control import Control
    from .place import ControlPlace, Order

__all__ = ["drain", "forget_reports", "off", "on", "restore", "weight"]

_NO_PLACE = (
    "There is no control place that would take an order to the workers. Set "
    "REPLICATED_CONTROL to the absolute path of a directory, or to a URL of Redis, for "
    "the workers and for this command."
)


def _seconds(_context: Any, _option: Any, typed: str | None) -> float | None:
    if typed is None:
        return None
    try:
        seconds = float(typed)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= YEAR:
        text = "must be a number of seconds, above 0 and at most a year, such as 900."
        raise click.BadParameter(printable(f"{typed!r} {text}"))
    return seconds


_of_bind = click.option(
    "--bind",
    metavar="KEY",
    help="The bind whose replica it is; by default the default bind.",
)


@click.command()
@click.argument("name")
@click.option(
    "--for",
    "seconds",
    callback=_seconds,
    metavar="SECONDS",
    help="Restore it afterwards; by default it stays drained.",
)
@_of_bind
@with_app
def drain(name: str, seconds: float | None, bind: str | None) -> None:
    """Take a replica out of rotation in all workers."""
    _give_about(OrderKey("drain", bind or None, name), new_order(True, seconds))
    lasts = "until it is restored" if seconds is None else f"for {seconds:g} s"
    _say(f"{name!r} is drained {lasts}")


@click.command()
@click.argument("name")
@_of_bind
@with_app
def restore(name: str, bind: str | None) -> None:
    """Put a drained replica back into rotation in all workers."""
    _give_about(OrderKey("drain", bind or None, name), new_order(False))
    _say(f"{name!r} is restored")


@click.command()
@click.argument("name")
@click.argument("share", metavar="N", type=click.IntRange(0, MAX_WEIGHT))
@_of_bind
@with_app
def weight(name: str, share: int, bind: str | None) -> None:
    """Give a replica another weight in all workers; 0 takes no traffic."""
    _control()
    _refuse_unread(bind or None, {name: share})
    _give_about(OrderKey("weight", bind or None, name), new_order(share))
    _say(f"{name!r} weighs {share}")


@click.command()
@with_app
def off() -> None:
    """Send all reads to the primary, as AUTO_READ_ON_SLAVE = False does."""
    _give(SWITCH, new_order(False))
    _say("Reads go to the primary")


@click.command()
@with_app
def on() -> None:
    """Let reads go to replicas again, as far as the settings say so."""
    _give(SWITCH, new_order(True))
    _say("Reads go to replicas")


def forget_reports() -> None:
    """Let all workers forget what they have observed, and the place as well.

    Raises:
        click.ClickException: There is no place, or it cannot be used.
    """
    _use(lambda place: place.put_order(CLEAR, new_order(True)))
    # Not before: a worker would tell it again, and end.
    _use(lambda place: place.clear_reports())
    _say("What was observed is forgotten")


def _control() -> Control:
    refuse_unregistered()
    control = current_control()
    if control is None:
        raise click.ClickException(_NO_PLACE)
    return control


def _give(key: OrderKey, order: Order) -> None:
    _use(lambda place: place.put_order(key, order))


def _use(do: Callable[[ControlPlace], None]) -> None:
    try:
        do(_control().place)
    except click.ClickException:
        raise
    except Exception as error:
        raise click.ClickException(
            f"The control place cannot be used: {error_text(error)}"
        ) from error


def _give_about(key: OrderKey, order: Order) -> None:
    """Give an order about a replica that this process or a worker knows."""
    _control()
    known = _names(key.bind)
    if key.replica not in known:
        place = "the default bind" if key.bind is None else f"the bind {key.bind!r}"
        there = f"it has {', '.join(sorted(known)) or 'none'}"
        owner = next((b for b in current_routes() if key.replica in _names(b)), None)
        if owner is not None:
            there = f"it is one of another bind: --bind {owner}"
        elif not known:
            binds = sorted(name or "(default)" for name in current_routes())
            there += f", and these binds have some: {', '.join(binds) or 'none'}"
        raise click.BadParameter(
            printable(f"{place} has no replica {key.replica!r}; {there}.")
        )
    _give(key, order)


def _refuse_unread(bind: str | None, weights: dict[str, int]) -> None:
    """Refuse weights that the workers' balancer, which is this process's, ignores."""
    routed = current_routes().get(bind)
    try:
        if routed is not None:
            routed.replicas.replica_pool.reweight(weights)
    except WeightsUnreadError as error:
        raise click.ClickException(f"An order would change nothing: {error}") from error
    except UnknownMemberError:
        pass  # perhaps a worker knows it


def _names(bind: str | None) -> set[str]:
    """Return the replicas that this process or a worker knows."""
    routed = current_routes().get(bind)
    members = () if routed is None else routed.replicas.replica_pool.members
    names = {member.name for member in members}
    for account in _accounts():
        names |= {one["name"] for one in account.binds.get(bind or "", ())}
    return names


def _accounts() -> list[Account]:
    try:
        return accounts_in(_control().place)
    except Exception:  # noqa: BLE001 - the order itself says what is wrong
        return []


def _say(what: str) -> None:
    click.echo(printable(f"{what}. Workers obey within {_control().look:g} s."))
    if not _accounts():
        click.echo(printable(no_workers_note()), err=True)
