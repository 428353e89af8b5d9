"""The tests' own servers do each other no harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.mariadb.conftest import Servers

pytestmark = pytest.mark.mariadb


def test_temporary_files(servers: Servers) -> None:
    """No two share a folder for them: one that starts removes what it finds there."""
    found = [server.execute("SELECT @@tmpdir, @@datadir") for server in servers]
    folders = {tmpdir for ((tmpdir, _),) in found}
    assert len(folders) == len(servers)
    assert all(f"{datadir.rstrip('/')}.tmp" == tmpdir for ((tmpdir, datadir),) in found)
