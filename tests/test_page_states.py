"""The page in each of its states, as a browser and an accessibility checker see it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

for package in ("selenium", "axe_core_python"):
    pytest.importorskip(package)

from flask_replicated import FlaskReplicated  # noqa: E402
from flask_replicated.operations.control import CONTROL  # noqa: E402
from tests.browsing import Page, browser_fixture, served  # noqa: E402
from tests.support import Build, Site, break_file, build_fixture  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from selenium.webdriver import Chrome

browser = browser_fixture
build = build_fixture

AXE = files("axe_core_python").joinpath("axe.min.js")
CHECK = """
const done = arguments[arguments.length - 1]
axe.run({resultTypes: ['violations']}).then(
  found => done(found.violations.map(one =>
    `${one.impact} ${one.id}: ${one.nodes[0].html.slice(0, 200)}`)),
  error => done([`${error}`]))
"""
CUT_OFF = """
const page = document.documentElement
return page.scrollWidth - page.clientWidth
"""
VIEWS = (("light", 1280), ("dark", 390), ("dark", 1280), ("light", 390))
MANY, WORKERS = 200, 8


def paged(build: Build, replicas: Any = ("slave_1", "slave_2"), **config: Any) -> Site:
    """Return a site with the page, which nobody looks at in the background."""
    extension = FlaskReplicated()
    config = {"REPLICATED_PROBE_INTERVAL": 0, **config}
    site = build(replicas, extension=extension, **config)
    site.app.register_blueprint(extension.page(lambda: True))
    return site


def healthy(build: Build, folder: Path) -> Site:
    """Return a site whose replicas serve."""
    site = paged(build, REPLICATED_BALANCER="weighted")
    site.count(4)
    site.client().get("/write")
    return site


def out(build: Build, folder: Path) -> Site:
    """Return a site with a replica that is out."""
    site = paged(build)
    break_file(folder, "slave_2")
    site.count(4)
    return site


def drained(build: Build, folder: Path) -> Site:
    """Return a site with a replica that is drained."""
    site = healthy(build, folder)
    with site.app.app_context():
        site.app.extensions["replicated"].pool().drain("slave_1")
    return site


def off(build: Build, folder: Path) -> Site:
    """Return a site with the replicas switched off, in a control place."""
    site = paged(build, REPLICATED_CONTROL=str(folder / "control"))
    result = site.app.test_cli_runner().invoke(args=["replicated", "off"])
    assert result.exit_code == 0, result.output
    site.count(2)
    return site


def empty(build: Build, folder: Path) -> Site:
    """Return a site without replicas."""
    return paged(build, ())


def observed(build: Build, folder: Path) -> Site:
    """Return a site without replicas whose reads and writes are observed."""
    site = paged(build, (), REPLICATED_MODE="observe")

    def seen() -> str:
        site.who()
        site.db.session.execute(update(site.entry).values(text="seen"))
        site.db.session.commit()
        return site.who()

    site.app.add_url_rule("/topic", "forum.view_topic_of_a_forum", seen)
    for number in range(20):
        site.app.add_url_rule(f"/{number}", f"blueprint.endpoint_{number}", site.who)
    for number in range(20):
        site.get(f"/{number}")
        assert site.client().post("/").status_code == 200
        client = site.client()
        client.get("/topic")
        client.get("/")
    return site


def unread(build: Build, folder: Path) -> Site:
    """Return a site that is observed, and was not read yet."""
    return paged(build, ["slave_1"], REPLICATED_MODE="observe")


def many(build: Build, folder: Path) -> Site:
    """Return a site with many replicas and workers."""
    names = [f"slave_{number}" for number in range(1, MANY + 1)]
    site = paged(build, names, REPLICATED_CONTROL=str(folder / "control"))
    site.count(MANY)
    control = site.app.extensions[CONTROL]
    control.look_now()
    (text,) = control.place.accounts()
    for number in range(1, WORKERS):
        told = json.dumps({**json.loads(text), "pid": number, "host": f"web-{number}"})
        control.place.publish(f"web-{number}", told, 3600.0)
    return site


STATES: dict[Callable[[Build, Path], Site], str] = {
    healthy: "2 of 2 replicas serve reads.",
    out: "1 of 2 replicas serve reads; not slave_2 (out, down).",
    drained: "1 of 2 replicas serve reads; not slave_1 (drained).",
    off: "Replicas are switched off, and the primary serves; 2 of 2 replicas are well.",
    empty: "No replica is configured: the primary serves every read.",
    observed: "REPLICATED_MODE is 'observe', and the primary serves every read; no "
    "replica is configured.",
    unread: "REPLICATED_MODE is 'observe', and the primary serves every read; 1 of 1 "
    "replicas are well.",
    many: f"{MANY} of {MANY} replicas serve reads.",
}


def look(browser: Chrome, theme: str, width: int) -> None:
    """Let the browser prefer a theme, and have a width in pixels."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1}
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {**size, "mobile": width < 500}
    )


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_accessible(
    build: Build,
    browser: Chrome,
    tmp_path: Path,
    state: Callable[[Build, Path], Site],
) -> None:
    """In each state the page can be read by all, and nothing is cut off on a phone."""
    site = state(build, tmp_path)
    try:
        with served(site.app) as url:
            # A page with so many rows is the same to the checker in each look.
            for theme, width in VIEWS if state is not many else VIEWS[:2]:
                look(browser, theme, width)
                page = Page(browser, f"{url}/replicated/")
                browser.find_element("id", "pause").click()
                assert page.text(".summary") == STATES[state]
                assert browser.execute_script(CUT_OFF) == 0
                browser.execute_script(AXE.read_text())
                assert browser.execute_async_script(CHECK) == [], (theme, width)
            browser.get("about:blank")
            log: Any = browser.get_log("browser")  # type: ignore[no-untyped-call]  # its own
            assert log == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        control = site.app.extensions.get(CONTROL)
        if control is not None:
            control.end()


def test_what_was_observed(build: Build, browser: Chrome, tmp_path: Path) -> None:
    """What replicas would serve comes first, and a phone shows no cell without text."""
    site = observed(build, tmp_path)
    with served(site.app) as url:
        try:
            look(browser, "light", 390)
            page = Page(browser, f"{url}/replicated/")
            section = browser.find_element("css selector", "main section")
            assert section.text.startswith("What replicas would serve\n")
            assert "Replicas would have served 40 % of 100 reads." in section.text
            assert "using_master(pin=False)" in page.text(".advice")
            cells = section.find_elements("css selector", "td")
            shown = [one.is_displayed() for one in cells]
            assert shown == [bool(one.get_attribute("textContent")) for one in cells]
            assert not browser.find_element("id", "only-label").is_displayed()
            assert "Send all reads" not in page.text("main")
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.get("about:blank")
