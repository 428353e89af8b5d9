"""The five steps of the tour: each says what it will show, shows it, and checks it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from examples.cluster import wait_until
from examples.tour_stage import Check, Guestbook, Load, Visitor, bar, grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from examples.cluster import Cluster
    from examples.tour_stage import Page, Screen

__all__ = ["SETTINGS", "Stage", "play"]

WEIGHTS: Final = {"slave_1": 5, "slave_2": 3, "slave_3": 1}
SETTINGS: Final[dict[str, object]] = {
    # A standby that is out is tried again every two seconds at the latest.
    "REPLICATED_BREAKER_MAX_RESET": 2,
    # What the page's buttons do to a standby should be seen soon.
    "REPLICATED_PROBE_INTERVAL": 2,
    "REPLICATED_MAX_LAG": 5,
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
        ann.write("Ann", "Hello from the primary!")
        stored = stage.cluster.primary.execute("select author from entry")
        place = "primary" if stored == [("Ann",)] else "nowhere"
        hers = ann.read()
        others = [ben.read() for _ in range(3)]
        _show_reads(stage, place, hers, others)
        first = stage.cluster.standbys[0]
        first.resume_replay()
        first.wait_replayed(stage.cluster.primary.position())
        served = _read_from_first(stage, ann)
    finally:
        for standby in stage.cluster.standbys:
            standby.resume_replay()
    stage.cluster.wait_replicated()
    yield Check.same("a write goes to", "primary", place)
    yield Check.same("its author reads", "primary, with the entry", _describe(hers))
    seen = ", ".join(sorted({_describe(page) for page in others}))
    yield Check.same("meanwhile others read", "replica, without the entry", seen)
    found = ", ".join(sorted({f"{it.server}, {_sees(it)}" for it in served}))
    yield Check.same("then its author reads", f"{stage.standbys[0]}, yes", found)


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


def _read_from_first(stage: Stage, ann: Visitor) -> list[Page]:
    """Let Ann read on while only the first standby shows her entry."""
    stage.screen.say(
        f"Now {stage.standbys[0]} may catch up; the others are still held back. A "
        "cookie says how far the primary's log had got when Ann wrote, and a standby "
        "that shows as much serves her from now on."
    )
    pages = [ann.read() for _ in range(3)]
    table = grid("who", "does", "served by", "sees the entry")
    for page in pages:
        table.add_row("Ann", "reads", page.server, _sees(page))
    stage.screen.show(table)
    return pages


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
    with Guestbook(stage.cluster, settings) as guestbook:
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
    total, failed = load.total(), load.failed
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
        "in the background, every two seconds, or a read that tries the lost server, "
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
