"""What an application may react to: a page for the one on call, a line in a chat.

Connect a receiver as to Flask's own signals::

    from flask_replicated.signals import replica_out

    @replica_out.connect_via(app)
    def page_somebody(app, bind, replica, cause, **extra):
        ...

Each is sent once for each change *in each process*: three workers send three. The
sender is the application, and a new context of it is pushed, so ``db.session`` is
another one than the request's. What a receiver reads and writes goes to the primary,
and pins no client. It is called in the thread that has noticed, which may be a
request's, so it should hand slow work over. What it raises is logged and goes no
further. Every signal has these keywords, and receivers should take ``**extra`` for
others to come:

``bind``
    The key of the bind that the replica copies; None is the default one.
``replica``
    The replica's name; None where no single one is meant.
``cause``
    Why, in one word; None where there is nothing to say. For outages it is what the
    snapshot of a replica has as its ``reason``.
"""

from __future__ import annotations

from blinker import Namespace

__all__ = [
    "all_replicas_out",
    "pinned",
    "replica_added",
    "replica_back",
    "replica_out",
    "replica_removed",
    "replicas_serve_again",
    "write_refused",
]

_signals = Namespace()

replica_out = _signals.signal(
    "replica_out",
    doc="""A replica does not serve any more.

    Fires when its circuit breaker opens, or a look at it in the background finds it
    silent, behind, or in the wrong role; once for an outage, whatever else is found
    to be wrong meanwhile. Not for a single failure below
    ``REPLICATED_BREAKER_THRESHOLD``, not for a busy replica that is paused for a
    moment, not for ``drain()`` or weight 0, and not where every node is a bind and
    one of them is the primary at the moment.
    """,
)

replica_back = _signals.signal(
    "replica_back",
    doc="""A replica serves again.

    Fires when an outage is over that ``replica_out`` has told of, with the cause of
    that. Not for ``restore()``, and not at start. If it was drained meanwhile it
    fires, though the replica stays out of rotation.
    """,
)

replica_added = _signals.signal(
    "replica_added",
    doc="""A replica was added, by ``add()`` or because DNS names it.

    Not for those of the configuration.
    """,
)

replica_removed = _signals.signal(
    "replica_removed",
    doc="""A replica was removed, by ``remove()`` or because DNS names it no more.

    Not for one that is out or drained.
    """,
)

all_replicas_out = _signals.signal(
    "all_replicas_out",
    doc="""No replica of a bind serves any more, and at least one of them is out.

    Fires after the ``replica_out`` of the last one. ``cause`` has all causes,
    separated by commas. Not where all were drained, and not while some are only
    paused because they are busy.
    """,
)

replicas_serve_again = _signals.signal(
    "replicas_serve_again",
    doc="""A replica is in rotation again, after ``all_replicas_out``.

    Not for further ones that come back later.
    """,
)

write_refused = _signals.signal(
    "write_refused",
    doc="""A write was kept from a replica.

    Fires before the error is raised that says so, also where the write then runs on
    the primary. ``cause`` is what has refused it: ``'block'`` (``using_slave()``),
    ``'option'`` (of the statement), ``'connection'`` (to a replica), or
    ``'server'``. Not for writes that go to the primary by themselves, as nearly all
    do. It has one more keyword, ``endpoint``: that of the request, or None outside
    one.
    """,
)

pinned = _signals.signal(
    "pinned",
    doc="""A request has committed a write that pins its client.

    Fires after the commit, once for each bind that was written, in the request's
    thread. It has one more keyword, ``kind``: ``'position'`` or ``'time'``. Not for
    housekeeping (``REPLICATED_UNPINNED``), not for ``using_master(pin=False)``, not
    with the guarantee ``'none'``, not outside a request, and not for a commit that a
    receiver of these signals makes itself.
    """,
)
