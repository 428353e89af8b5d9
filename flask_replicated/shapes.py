"""What looks like an engine, over a real one."""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import Engine

__all__ = ["Alias", "EngineShape"]


def _of_the_real_engine(name: str) -> Any:
    def get(self: EngineShape) -> Any:
        return getattr(self.real, name)

    def put(self: EngineShape, value: Any) -> None:
        setattr(self.real, name, value)

    return property(get, put)


class EngineShape(Engine):
    """Something that connects like an engine, over a real one.

    Whatever an engine keeps is the real engine's, so a listener that is added here
    hears that engine's connections, and an option that is set here holds for them.
    """

    def __init__(self, real: Engine) -> None:
        # Not Engine's own: there is nothing to keep.
        self.real = real

    # dispose() gives an engine another pool, so each is looked up each time.
    pool = _of_the_real_engine("pool")
    dialect = _of_the_real_engine("dialect")
    url = _of_the_real_engine("url")
    hide_parameters = _of_the_real_engine("hide_parameters")
    dispatch = _of_the_real_engine("dispatch")
    echo = _of_the_real_engine("echo")
    logger = _of_the_real_engine("logger")
    logging_name = _of_the_real_engine("logging_name")
    _echo = _of_the_real_engine("_echo")
    _has_events = _of_the_real_engine("_has_events")
    _execution_options = _of_the_real_engine("_execution_options")
    _compiled_cache = _of_the_real_engine("_compiled_cache")

    def dispose(self, close: bool = True) -> None:
        """Dispose of the real engine's connection pool."""
        self.real.dispose(close)


class Alias(EngineShape):
    """A real engine under the name of the shape that a caller holds.

    A plain Session keeps its connections by their engines, and looks for them
    by its bind. For its dictionary the two are equal; everything else is real.
    """

    def __init__(self, real: Engine, shape: Engine) -> None:
        self._shape = weakref.ref(shape)
        self._hash = hash(shape)
        super().__init__(real)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._shape()

    def __hash__(self) -> int:
        return self._hash
