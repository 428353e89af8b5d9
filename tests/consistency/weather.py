"""What happens to the replicas meanwhile: lag, lost connections, deaths."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

from tests.background import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.chaos.faults import Fault, Scene

    from .replication import Replication

__all__ = ["Weather"]


class Weather(Background):
    """Disturb each standby at random times, one thread for each.

    Args:
        standbys: Those to disturb.
        replication: How they are held back.
        scene: What a fault may touch.
        terminate: The fault that ends a standby's connections.
        seed: Decides what happens.
        lag: Seconds that a standby is held back at the most.

    Attributes:
        events: What has happened, by kind.
        errors: What went wrong with the servers themselves.
    """

    def __init__(
        self,
        standbys: Sequence[Any],
        replication: Replication,
        scene: Scene,
        terminate: Fault,
        *,
        seed: str,
        lag: float,
    ) -> None:
        self.events: list[str] = []
        self.errors: list[BaseException] = []
        self._standbys = standbys
        self._replication = replication
        self._scene = scene
        self._terminate = terminate
        self._lag = lag
        super().__init__()
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(standby, random.Random(f"{seed}-{standby.name}")),
                name=f"weather-{standby.name}",
            )
            for standby in standbys
        ]

    def _run(self, standby: Any, chance: random.Random) -> None:
        kinds: dict[str, Callable[[Any, random.Random], None]] = {
            "pause": self._pause,
            "delay": self._delay,
            "disconnect": self._disconnect,
            "kill": self._kill,
            "restart": self._restart,
        }
        try:
            while not self._over.wait(chance.uniform(0.0, self._lag)):
                (kind,) = chance.choices(list(kinds), (8, 8, 8, 1, 1))
                self.events.append(kind)
                kinds[kind](standby, chance)
        except Exception as error:  # noqa: BLE001 - the run tells it
            self.errors.append(error)

    def _pause(self, standby: Any, chance: random.Random) -> None:
        self._replication.pause(standby)
        self._over.wait(chance.uniform(0.0, self._lag))
        self._replication.resume(standby)

    def _delay(self, standby: Any, chance: random.Random) -> None:
        self._replication.delay(standby, chance.uniform(0.0, self._lag))
        self._over.wait(chance.uniform(self._lag, 2 * self._lag))
        self._replication.delay(standby, 0.0)

    def _disconnect(self, standby: Any, chance: random.Random) -> None:
        # Again and again: some request is between two looks.
        for _ in range(chance.randint(1, 5)):
            with self._terminate.strike(self._scene, standby):
                self._over.wait(0.1)

    def _kill(self, standby: Any, chance: random.Random) -> None:
        standby.kill()
        self._over.wait(chance.uniform(0.0, 1.0))
        standby.start()

    def _restart(self, standby: Any, _chance: random.Random) -> None:
        standby.restart()
