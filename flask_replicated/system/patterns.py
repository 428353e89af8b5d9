"""Regular expressions that are compiled at their first use.

To compile those of this package takes longer than to load its code, and a process needs
few of them.
"""

from __future__ import annotations

import re
from typing import Any, cast

__all__ = ["pattern"]


class _Uncompiled:
    """Has what a compiled pattern has, from the first use on as its own attributes.

    Args:
        text: The expression.
        flags: Those of :func:`re.compile`.
    """

    def __init__(self, text: str, flags: int) -> None:
        self._text = text
        self._flags = flags

    def __getattr__(self, name: str) -> Any:
        # Two threads may both compile it, to the same.
        found = getattr(re.compile(self._text, self._flags), name)
        vars(self)[name] = found
        return found


def pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """Return a regular expression, like :func:`re.compile`.

    An error in it shows at its first use.
    """
    return cast("re.Pattern[str]", _Uncompiled(text, flags))
