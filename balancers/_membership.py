"""What is left of a member that was removed."""

from __future__ import annotations

from .breaker import CircuitBreaker, Door, Permit

_NO_NEWS = Permit(-1, quiet=True)


class GoneBreaker(CircuitBreaker):
    """The breaker of a member that was removed: for ever open, deaf to reports.

    It takes the place of the member's own. So a report that was under way when the
    member was removed, or that comes later, changes nothing and is no error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._door = Door("open", _NO_NEWS, failures=1)

    @property
    def quiet(self) -> bool:
        """Always true: a success would teach it nothing."""
        return True

    def acquire(self) -> Permit | None:
        """Give no leave."""
        return None

    def failed(self, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def succeeded(self, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def rest(self, seconds: float, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def trip(self, seconds: float) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False

    def recover(self, permit: Permit | None = None) -> bool:  # noqa: ARG002 - deaf
        """Change nothing."""
        return False


GONE = GoneBreaker()
"""It keeps nothing, so one serves all."""
