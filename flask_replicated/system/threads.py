"""Background threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["start_thread"]


def start_thread(name: str, target: Callable[..., object], *args: object) -> bool:
    """Start a daemon thread.

    Args:
        name: What the thread does; the package's name is put before it.
        target: The function to run.
        args: Its arguments.

    Returns:
        False if none can be started: the process is out of threads, or the interpreter
        is shutting down.
    """
    # By the module's name: gevent may have replaced the class since the import.
    thread = threading.Thread(
        target=target, args=args, name=f"flask_replicated {name}", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
