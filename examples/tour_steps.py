"""The five steps of the tour: each says what it will show, shows it, and checks it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.text import Text

from examples.cluster import wait_until
from examples.tour_stage import Check, Guestbook, Load, Visitor, bar, grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from examples.cluster import Cluster
    from examples.tour_stage import Page, Screen

__all__ = ["SETTINGS", "Stage", "play"]

PIN_SECONDS: Final = 3
WEIGHTS: Final = {"slave_1": 5, "slave_2": 3, "slave_3": 1}
SETTINGS: Final[dict[str, object]] = {
    "REPLICATED_PIN_SECONDS": PIN_SECONDS,
    # A standby that is out is tried again every two seconds at the latest.
    "REPLICATED_BREAKER_MAX_RESET": 2,
}


@dataclass(frozen=True)
class Stage:
    """What every step works with.

    Attributes:
        screen: Where it is shown.
        cluster: The primary and its standbys, all running.
        guestbook: The application on them.
    """

    screen: Screen
    cluster: Cluster
    guestbook: Guestbook

    @property
    def standbys(self) -> list[str]:
        """The names of the standbys."""
        return [standby.name for standby in self.cluster.standbys]


def play(stage: Stage) -> Iterator[Check]:
    """Play all steps; yield what each has shown."""
    yield from take_turns(stage)
    yield from read_your_writes(stage)
    yield from weigh(stage)
    with Load(stage.guestbook) as load, stage.screen.board(load.draw):
        yield from lose_a_standby(stage, load)
        yield from get_it_back(stage, load)
    counts = _read_twelve(stage)
    yield Check.same("reads take turns again", "4 + 4 + 4", _sum(stage, counts))


# --- 1 ------------------------------------------------------------------------


def take_turns(stage: Stage) -> Iterator[Check]:
    """Show twelve reads and who served each."""
    stage.screen.title("1 of 5 - Reads take turns")
    stage.screen.say(
        "Twelve visitors open the page, and the three standbys should serve them in "
        "turn: that is how copies of a database take work off the original."
    )
    counts = _read_twelve(stage)
    yield Check.same("reads take turns", "4 + 4 + 4", _sum(stage, counts))


def _read_twelve(stage: Stage) -> Counter[str]:
    served = [Visitor(stage.guestbook).read().server for _ in range(12)]
    table = grid("read", *map(str, range(1, 13)), "total")
    for name in ["primary", *stage.standbys]:
        marks = ["#" if name == server else "." for server in served]
        table.add_row(name, *marks, str(served.count(name)))
    stage.screen.show(table)
    return Counter(served)


def _sum(stage: Stage, counts: Counter[str]) -> str:
    """Write down the reads of each standby, and any that went elsewhere."""
    text = " + ".join(str(counts[name]) for name in stage.standbys)
    others = sorted(counts.keys() - set(stage.standbys))
    return ", ".join([text, *(f"{name}: {counts[name]}" for name in others)])


# --- 2 ------------------------------------------------------------------------


def read_your_writes(stage: Stage) -> Iterator[Check]:
    """Show a write, what its author and others then read, and the end of the pin."""
    stage.screen.title("2 of 5 - You see what you have written")
    stage.screen.say(
        "Ann signs the guestbook, which only the primary can take, and must see her "
        "entry at once although copies are always a little late; to make that "
        "visible, all standbys are now held back on purpose."
    )
    ann, ben = Visitor(stage.guestbook), Visitor(stage.guestbook)
    for standby in stage.cluster.standbys:
        standby.pause_replay()
    try:
        written = time.monotonic()
        ann.write("Ann", "Hello from the primary!")
        stored = stage.cluster.primary.execute("select author from entry")
        place = "primary" if stored == [("Ann",)] else "nowhere"
        hers = ann.read()
        others = [ben.read() for _ in range(3)]
    finally:
        for standby in stage.cluster.standbys:
            standby.resume_replay()
    stage.cluster.wait_replicated()
    _show_reads(stage, place, hers, others)
    yield Check.same("a write goes to", "primary", place)
    yield Check.same("its author reads", "primary, with the entry", _describe(hers))
    seen = ", ".join(sorted({_describe(page) for page in others}))
    yield Check.same("meanwhile others read", "replica, without the entry", seen)
    yield from _outlast_pin(stage, ann, written)


def _show_reads(stage: Stage, place: str, hers: Page, others: Sequence[Page]) -> None:
    table = grid("who", "does", "served by", "sees the entry")
    table.add_row("Ann", "writes", place, "")
    table.add_row("Ann", "reads", hers.server, _sees(hers))
    for page in others:
        table.add_row("Ben", "reads", page.server, _sees(page))
    stage.screen.show(table)


def _sees(page: Page) -> str:
    return "yes" if "Hello from the primary!" in page.html else "not yet"


def _describe(page: Page) -> str:
    return f"{page.role}, {'with' if _sees(page) == 'yes' else 'without'} the entry"


def _outlast_pin(stage: Stage, ann: Visitor, written: float) -> Iterator[Check]:
    """Let Ann read on until a standby serves her."""
    stage.screen.say(
        "The standbys may catch up again. A cookie keeps Ann on the primary for "
        f"{PIN_SECONDS} seconds (REPLICATED_PIN_SECONDS), then the standbys serve "
        "her like everybody else."
    )

    def draw() -> RenderableType:
        left = max(0.0, written + PIN_SECONDS - time.monotonic())
        line = Text(f"  Ann reads from the primary, {left:.1f} s left")
        return Group(line, ProgressBar(PIN_SECONDS, left, width=40))

    deadline = written + PIN_SECONDS + 10
    with stage.screen.board(draw):
        while (page := ann.read()).role == "primary" and time.monotonic() < deadline:
            time.sleep(0.05)
    lasted = time.monotonic() - written
    stage.screen.note(f"{lasted:.1f} s after her write {page.server} serves Ann")
    right = PIN_SECONDS <= lasted < PIN_SECONDS + 5
    yield Check("the cookie holds for", f"{PIN_SECONDS} s", f"{lasted:.1f} s", right)
    yield Check.same(
        "then its author reads", "replica, with the entry", _describe(page)
    )


# --- 3 ------------------------------------------------------------------------


def weigh(stage: Stage) -> Iterator[Check]:
    """Show how weights share ninety reads out."""
    stage.screen.title("3 of 5 - Weights")
    stage.screen.say(
        "A second guestbook on the same servers is told that the standbys weigh 5, 3 "
        "and 1, as machines of different size would: ninety reads should be shared "
        "out in exactly these proportions."
    )
    settings = SETTINGS | {"REPLICATED_WEIGHTS": WEIGHTS}
    with Guestbook(stage.cluster, **settings) as guestbook:
        counts = Counter(Visitor(guestbook).read().server for _ in range(90))
    share = 90 // sum(WEIGHTS.values())
    table = grid("server", "weight", "expected", "observed", "")
    expected = []
    for name, weight in zip(stage.standbys, WEIGHTS.values(), strict=True):
        expected.append(str(share * weight))
        seen = str(counts[name])
        table.add_row(name, str(weight), expected[-1], seen, bar(counts[name] / 60))
    stage.screen.show(table)
    yield Check.same("weights 5/3/1", " + ".join(expected), _sum(stage, counts))


# --- 4 ------------------------------------------------------------------------


def lose_a_standby(stage: Stage, load: Load) -> Iterator[Check]:
    """Show that no visitor notices the end of a standby."""
    victim, survivors = stage.cluster.standbys[1], stage.standbys[::2]
    stage.screen.title("4 of 5 - A standby dies")
    stage.screen.say(
        f"{load.readers} readers open the page again and again while {victim.name} is "
        "killed with SIGKILL, as by a power cut: no visitor should see an error, and "
        "the other two should share its work evenly."
    )
    _go_on(stage, 1.5)
    stage.screen.note(f"{load.total()} reads answered; {victim.name} is killed now")
    killed = time.monotonic()
    victim.kill()
    wait_until(lambda: len(stage.guestbook.in_rotation()) == 2, "the pool to notice")
    noticed = time.monotonic() - killed
    stage.screen.note(f"{noticed:.2f} s later it is out of the rotation")
    yield Check("the pool notices", "within 2 s", f"{noticed:.2f} s", noticed < 2)
    yield _shared(stage, load, "the survivors share", survivors)
    yield _unnoticed(stage, load, "failed reads, so far")


def _go_on(stage: Stage, seconds: float) -> None:
    """Let the load go on; a terminal shows it meanwhile."""
    if not stage.screen.is_live:
        stage.screen.note(f"reading for {seconds:g} s ...")
    time.sleep(seconds)


def _shared(stage: Stage, load: Load, shown: str, names: list[str]) -> Check:
    """Let the load go on, and check that these servers share it."""
    before = load.served()
    _go_on(stage, 2.5)
    served = load.served() - before
    counts = [served[name] for name in names]
    shares = ", ".join(f"{name} {served[name]}" for name in sorted(served))
    stage.screen.note(f"since then: {shares}")
    # A reader may be under way at either end of the count.
    slack = 2 * load.readers
    even = max(counts) - min(counts) <= slack and sum(counts) + slack > served.total()
    return Check(shown, f"evenly, +/- {slack}", " + ".join(map(str, counts)), even)


def _unnoticed(stage: Stage, load: Load, shown: str) -> Check:
    """Check that no read has failed yet."""
    total, failed = load.total(), len(load.failures)
    stage.screen.note(f"{total} reads answered, {failed} failed")
    for failure in load.failures[:3]:
        stage.screen.note(f"failed: {failure}")
    return Check(shown, "0", f"{failed} beside {total} answered", not failed)


# --- 5 ------------------------------------------------------------------------


def get_it_back(stage: Stage, load: Load) -> Iterator[Check]:
    """Show that a standby that returns is used again."""
    standby = stage.cluster.standbys[1]
    stage.screen.title("5 of 5 - It returns")
    stage.screen.say(
        f"{standby.name} is started again, and nobody tells the application: the probe "
        "in the background, every five seconds, or a read that tries the lost server, "
        "finds it well and brings it back into the rotation."
    )
    stage.screen.note(f"starting {standby.name} ...")
    standby.start()
    started, before = time.monotonic(), load.served()[standby.name]
    stage.screen.note("it takes connections")
    wait_until(lambda: load.served()[standby.name] > before, "its return")
    returned = time.monotonic() - started
    stage.screen.note(f"{returned:.2f} s later it serves again")
    yield Check("it serves again", "within 10 s", f"{returned:.2f} s", returned < 10)
    yield _shared(stage, load, "all three share", stage.standbys)
    yield _unnoticed(stage, load, "failed reads, in all")
