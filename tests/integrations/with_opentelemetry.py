"""OpenTelemetry has one span for each statement, whichever server was asked.

Run with ``0`` it is instrumented globally, with ``1`` by engine, and with ``2`` so that
each statement carries a comment, too.
"""

from __future__ import annotations

import sys
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import event, select

from examples.cluster import wait_until
from tests.integrations.shop import Shop

PROBES = 3
READS = 4
COMMENTS = 2


def add_comments(shop: Shop) -> None:
    """Let the primary's engine add comments to its statements."""
    with shop.app.app_context():
        SQLAlchemyInstrumentor().instrument(
            engine=shop.db.engine, enable_commenter=True, skip_dep_check=True
        )


def read(shop: Shop, guest: Any) -> None:
    """Read in several transactions."""
    for _ in range(READS):
        shop.db.session.scalars(select(guest.name)).all()
        shop.db.session.rollback()


def main(block: int) -> None:
    """Read, write and probe the replicas, and count the spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)

    def spans(begin: str) -> int:
        return sum(one.name.startswith(begin) for one in exporter.get_finished_spans())

    with Shop("OpenTelemetry", REPLICATED_PROBE_INTERVAL=0.05) as shop:
        guest = shop.make_guest()
        if block == 0:
            shop.run(0)
        shop.start()
        if block == 1:
            shop.run(1)
        if block == COMMENTS:
            add_comments(shop)
        sent: list[str] = []

        def hear(_cursor: object, statement: str, *_: object) -> None:
            sent.append(statement)

        probes: list[object] = []

        def note(*connect: object) -> None:
            probes.append(connect)

        with shop.app.app_context():
            event.listen(shop.db.engines["slave_1"], "do_connect", note)
            event.listen(shop.db.engine, "do_execute", hear)
        exporter.clear()
        with shop.app.test_request_context("/"):
            with shop.counted() as served:
                read(shop, guest)
            assert served == {"replica": READS}, served
        assert spans("SELECT") == spans("connect") == len(sent) == READS
        commented = [one for one in sent if "traceparent=" in one]
        assert len(set(commented)) == (READS if block == COMMENTS else 0)
        with shop.app.test_request_context("/", method="POST"):
            shop.db.session.add(guest(name="Cy"))
            shop.db.session.commit()
        assert spans("INSERT") == 1
        seen = len(exporter.get_finished_spans())
        wait_until(lambda: len(probes) >= PROBES, "probes in the background")
        assert len(exporter.get_finished_spans()) == seen


if __name__ == "__main__":
    main(int(sys.argv[1]))
