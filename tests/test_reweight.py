"""Weights that change while the application runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flask_replicated import ConfigurationError, FlaskReplicated
from tests.support import Build, Site, build_fixture, make_file, sqlite_url

if TYPE_CHECKING:
    from pathlib import Path

build = build_fixture


def reweight(site: Site, weights: Any, bind_key: str | None = None) -> None:
    """Change weights."""
    extension: FlaskReplicated = site.app.extensions["replicated"]
    with site.app.app_context():
        extension.reweight(weights, bind_key=bind_key)


def test_is_a_patch(build: Build) -> None:
    """The others keep theirs, and the rotation follows at once."""
    site = build(REPLICATED_WEIGHTS={"slave_2": 2})
    reweight(site, {"slave_1": 3})
    assert site.count(12) == {"slave_1": 6, "slave_2": 4, "slave_3": 2}
    reweight(site, {"slave_1": 0, "slave_2": 1})
    assert site.count(12) == {"slave_2": 6, "slave_3": 6}
    reweight(site, {})
    reweight(site, {"slave_1": 1})
    assert site.count(12) == dict.fromkeys(("slave_1", "slave_2", "slave_3"), 4)


def test_all_of_them_zero(build: Build) -> None:
    """Then the primary serves, until one weighs something again."""
    site = build(REPLICATED_BALANCER="weighted")
    reweight(site, {"slave_1": 0, "slave_2": 0, "slave_3": 0})
    assert site.count(2) == {"master": 2}
    reweight(site, {"slave_3": 7})
    assert site.count(2) == {"slave_3": 2}


def test_of_another_bind(build: Build, tmp_path: Path) -> None:
    """Each bind has replicas of its own."""
    names = ("figures", "figures_slave_1")
    binds = {name: sqlite_url(make_file(tmp_path, name)) for name in names}
    site = build(binds=binds, REPLICATED_BALANCER="weighted")
    reweight(site, {"figures_slave_1": 3}, bind_key="figures")
    with site.app.app_context():
        pool = site.app.extensions["replicated"].pool("figures")
    assert pool.member("figures_slave_1").weight == 3
    with pytest.raises(ConfigurationError, match="this bind has 'slave_1'"):
        reweight(site, {"figures_slave_1": 3})
    with pytest.raises(ConfigurationError, match="bind_key"):
        reweight(site, {"slave_1": 3}, bind_key="none")


@pytest.mark.parametrize(
    ("weights", "key", "remedy"),
    [
        ({"slave_1": 2, "slave_9": 3}, "weights['slave_9']", "'slave_3'"),
        ({"slave_1": 2, "slave_2": -1}, "weights['slave_2']", "whole number"),
        ({"slave_1": 2, "slave_2": 0.5}, "weights['slave_2']", "whole number"),
        ({"slave_1": 2, "slave_2": 10**16}, "weights['slave_2']", "at most"),
        ([("slave_1", 2)], "weights", "{'slave_1': 3}"),
    ],
)
def test_what_cannot_be(build: Build, weights: Any, key: str, remedy: str) -> None:
    """An error names the key and the remedy, and nothing is changed."""
    site = build(REPLICATED_BALANCER="weighted")
    with pytest.raises(ConfigurationError) as caught:
        reweight(site, weights)
    assert caught.value.key == key
    assert remedy in caught.value.remedy
    assert site.count(6) == dict.fromkeys(("slave_1", "slave_2", "slave_3"), 2)


class Alone:
    """A balancer of one's own that says that it reads no weights."""

    reads_weights = False

    def __call__(self, members: Any) -> Any:
        """Pick the first."""
        return lambda: members[0]


@pytest.mark.parametrize("balancer", ["round_robin", "first", Alone])
def test_where_none_are_read(build: Build, balancer: Any) -> None:
    """A balancer that reads no weights makes it an error."""
    site = build(REPLICATED_BALANCER=balancer)
    with pytest.raises(ConfigurationError, match="reads no weights") as caught:
        reweight(site, {"slave_1": 3})
    assert "'weighted'" in caught.value.remedy


def test_needs_a_context(build: Build) -> None:
    """Without an application there is nothing to change."""
    extension = build().app.extensions["replicated"]
    with pytest.raises(RuntimeError, match=r"reweight\(\) needs"):
        extension.reweight({"slave_1": 2})
