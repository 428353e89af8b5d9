"""What the page's buttons do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from balancers.errors import BalancerError, UnknownMemberError, error_text
from flask_replicated.operations.control import change_replica
from flask_replicated.operations.current import current_control
from flask_replicated.operations.place import SWITCH, OrderKey, new_order
from flask_replicated.routing.state import current_app_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask_replicated.operations.control import Control
    from flask_replicated.routing.state import AppState

__all__ = ["OrderError", "obey"]

logger = logging.getLogger("flask_replicated")

_DONE = {
    ("drain", 1): "{name} is drained: it gets no new reads.",
    ("drain", 0): "{name} is restored.",
    ("switch", 0): "All reads go to the primary now.",
    ("switch", 1): "Reads go to replicas again.",
}
_WORDS = {"drain": 1, "restore": 0, "off": 0, "on": 1}
_DIGITS = 6


class OrderError(ValueError):
    """An order that cannot be obeyed; its text says why."""


def obey(form: Mapping[str, str]) -> str:
    """Do what a form orders of the current application, and say what was done.

    With a control place it is ordered for all workers, else done in this process.

    Args:
        form: ``order`` (``drain``, ``restore``, ``weight``, ``off`` or ``on``), and
            what it is about: ``bind`` (empty for the default one), ``replica``, and
            ``weight``.

    Raises:
        OrderError: It is about nothing that is there, or nothing that can be done.
    """
    state, control = current_app_state(), current_control()
    key, value = _read(form)
    if state is None or not (key == SWITCH or key.bind in state.routes):
        raise OrderError("This bind has no replicas.")
    try:
        _carry_out(state, key, value)
        if control is not None:
            _order(control, key, value)
    except UnknownMemberError as error:
        raise OrderError(f"There is no replica {key.replica!r} any more.") from error
    except BalancerError as error:  # the balancer reads no weights
        raise OrderError(f"{error}") from error
    done = _DONE.get((key.kind, value), "{name} has the weight {value} now.")
    text = done.format(name=key.replica, value=value)
    logger.warning("ordered by the page: %s", text)
    within = (
        "" if control is None else f" Other workers obey within {control.look:g} s."
    )
    return f"{text}{within}"


def _read(form: Mapping[str, str]) -> tuple[OrderKey, int]:
    """Return what a form is about, and what is to be.

    Raises:
        OrderError: It says nothing that is known.
    """
    order, bind = form.get("order", ""), form.get("bind") or None
    name = form.get("replica", "")
    if order in {"off", "on"}:
        return SWITCH, _WORDS[order]
    if order in {"drain", "restore"}:
        return OrderKey("drain", bind, name), _WORDS[order]
    if order != "weight":
        raise OrderError("The page knows no such order.")
    weight = form.get("weight", "").strip()
    plain = weight.isascii() and weight.isdigit() and len(weight) <= _DIGITS
    if not plain:
        raise OrderError("A weight is a whole number from 0 up, such as 3.")
    return OrderKey("weight", bind, name), int(weight)


def _carry_out(state: AppState, key: OrderKey, value: int) -> None:
    if key == SWITCH:
        if value and not state.settings.read_on_replica:
            raise OrderError("AUTO_READ_ON_SLAVE = False is in the configuration.")
        state.decider.switch(on=bool(value))
    else:
        change_replica(state, key, value)


def _order(control: Control, key: OrderKey, value: int) -> None:
    """Give the order to all workers, and show at once that this one has obeyed.

    Raises:
        OrderError: The control place does not take it.
    """
    try:
        control.place.put_order(key, new_order(value))
    except Exception as error:
        raise OrderError(
            "This process has obeyed, and no other will: the control place cannot be "
            f"used: {error_text(error)}"
        ) from error
    control.look_now()
