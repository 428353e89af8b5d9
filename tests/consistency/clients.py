"""Clients that read and write registers at random, and remember what they saw."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.background import Background

from .browser import Browser
from .history import Look, Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.workers import Gunicorn

    from .plan import Plan

__all__ = ["REGISTERS", "Clients"]

REGISTERS: Final = 8
"""How many there are, numbered from 0."""


@dataclass(frozen=True)
class _Lane:
    """One of the requests that a client may have under way at the same time."""

    client: int
    browser: Browser
    chance: random.Random
    operations: int


class Clients(Background):
    """Send requests from threads until a number of operations is done.

    Args:
        service: Who is asked.
        plan: How many clients, how often, and from which seed.

    Attributes:
        history: What was done so far, in the order of the answers.
    """

    def __init__(self, service: Gunicorn, plan: Plan) -> None:
        self.history: list[Operation] = []
        super().__init__()
        lanes = list(_lanes(service, plan))
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"load-{number}")
            for number, lane in enumerate(lanes)
        ]

    @property
    def is_done(self) -> bool:
        """Whether all operations are done."""
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, lane: _Lane) -> None:
        for _ in range(lane.operations):
            if self._over.wait(lane.chance.uniform(0.0, 0.03)):
                return
            if lane.chance.random() < _WRITES:
                self._write(lane)
            else:
                self._read(lane)

    def _write(self, lane: _Lane) -> None:
        register = lane.chance.randrange(REGISTERS)

        def understand(fields: dict[str, Any]) -> dict[str, Any]:
            return {"wrote": (register, fields["version"])}

        self._ask(lane, understand, "POST", f"/{register}")

    def _read(self, lane: _Lane) -> None:
        # Two looks, so that a server may be lost between them.
        again = lane.chance.random() < _AGAIN
        hold = {"hold": round(lane.chance.uniform(0.0, 0.1), 3)} if again else {}

        def understand(fields: dict[str, Any]) -> dict[str, Any]:
            looks = fields["looks"]
            return {
                "looks": tuple(
                    Look(look["server"], tuple(look["versions"])) for look in looks
                )
            }

        self._ask(lane, understand, "GET", "/", **hold)

    def _ask(
        self,
        lane: _Lane,
        understand: Callable[[dict[str, Any]], dict[str, Any]],
        method: str,
        path: str,
        **query: object,
    ) -> None:
        began = time.monotonic()
        try:
            status, fields, carried, stored = lane.browser.ask(method, path, **query)
        except Exception as error:  # noqa: BLE001 - a failed request, whatever it was
            fields = {"error": f"{type(error).__name__}: {error}"}
            status, carried, stored = 0, "", ""
        ended = time.monotonic()
        told: dict[str, Any] = {"error": f"{method}: {fields.get('error', status)}"}
        if status == 200:
            told = understand(fields)
        told.update(worker=fields.get("pid", 0), carried=carried, stored=stored)
        self.history.append(Operation(lane.client, began, ended, **told))


_WRITES: Final = 0.12
_AGAIN: Final = 0.2


def _lanes(service: Gunicorn, plan: Plan) -> list[_Lane]:
    """Return the lanes of all clients; every third client has several."""
    owners: list[tuple[int, Browser]] = []
    for client in range(plan.clients):
        browser = Browser(service, plan.store)
        count = plan.parallel if client % 3 == 2 else 1
        owners += [(client, browser)] * count
    each, more = divmod(plan.operations, len(owners))
    return [
        _Lane(
            client,
            browser,
            random.Random(f"{plan.seed}-{number}"),
            each + (number < more),
        )
        for number, (client, browser) in enumerate(owners)
    ]
