"""The page in a real browser, on real servers, by mouse and by keyboard."""

from __future__ import annotations

import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from examples.cluster import wait_until

for package in ("selenium", "psutil", "rich"):
    pytest.importorskip(package)

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from examples.faults import Faults  # noqa: E402
from examples.tour_stage import Guestbook  # noqa: E402
from examples.tour_steps import SETTINGS  # noqa: E402
from tests.browsing import Page, browser_fixture  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

    from examples.cluster import Cluster

browser = browser_fixture

pytestmark = pytest.mark.postgres

PRESS = """
arguments[0].click()
return document.getElementById('told').textContent
"""

# Sends a form that is too old, before the next answer can make it a new one.
OLD_FORM = """
const button = document.querySelector('[aria-label="Drain slave_2"]')
button.form.elements.replicated_token.value = 'old'
button.click()
"""

# Lets each further answer be one of another worker, with other figures.
FOREIGN = """
const main = document.querySelector('main').cloneNode(true)
main.dataset.process = 'another 1'
main.querySelector('.summary').textContent = 'Another worker says this.'
for (const figure of main.querySelectorAll('td[data-own] .figure'))
  figure.textContent = 'another'
window.fetch = async () => new Response(main.outerHTML)
"""


@contextmanager
def opened(cluster: Cluster, browser: Chrome) -> Iterator[Page]:
    """Give the page of a guestbook that has been read once."""
    cluster.primary.execute("drop table if exists entry")  # another test's
    with Guestbook(cluster, SETTINGS, faults=Faults(cluster)) as guestbook:
        urllib.request.urlopen(guestbook.url).close()
        yield Page(browser, f"{guestbook.url}replicated/")
        browser.get("about:blank")
    cluster.primary.execute("drop table entry")


def test_page(healthy_cluster: Cluster, browser: Chrome) -> None:
    """Buttons do what they say, and nothing on the page is refused by its policy."""
    with opened(healthy_cluster, browser) as page:
        page.wait(".summary", "3 of 3 replicas serve reads.")
        # By mouse: the demo's own button, and a real server.
        page.button("Kill standby_1").click()
        page.wait("#told", "standby_1 is killed.")
        page.wait(".summary", "slave_1 (out")
        assert not page.button("Kill standby_1").is_enabled()
        # What was told before is gone at once, though a server takes its time.
        assert browser.execute_script(PRESS, page.button("Restore standby_1")) == ""
        page.wait("#told", "standby_1 is running.")
        page.wait(".summary", "3 of 3 replicas serve reads.")
        for fault, state in (("Freeze", "frozen"), ("Lag", "held back")):
            page.button(f"{fault} standby_3").click()
            page.wait("#told", f"standby_3 is {state}.")
            page.wait(".actions", f"standby_3 is {state}")
            page.button("Restore standby_3").click()
            page.wait("#told", "standby_3 is running.")
            page.wait(".actions", "standby_3 is running")
        page.wait(".summary", "3 of 3 replicas serve reads.")
        # By keyboard: the focus stays where it is, on what is another button now.
        page.button("Drain slave_2").send_keys(Keys.ENTER)
        page.wait("#told", "slave_2 is drained: it gets no new reads.")
        page.wait(".summary", "slave_2 (drained)")
        assert page.focused() == "Restore slave_2"
        browser.switch_to.active_element.send_keys(Keys.SPACE)
        page.wait(".summary", "3 of 3 replicas serve reads.")
        assert page.focused() == "Drain slave_2"
        # What cannot be done is said where a screen reader hears it at once.
        browser.execute_script(OLD_FORM)
        page.wait("[role=alert]", "Nothing was done: the form is too old")
        log: Any = browser.get_log("browser")  # type: ignore[no-untyped-call]  # its own
        assert [one for one in log if "403" not in one["message"]] == []


def test_narrow(healthy_cluster: Cluster, browser: Chrome) -> None:
    """On a phone nothing is cut off, and the page can be kept from moving."""
    with opened(healthy_cluster, browser) as page:
        size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        width = "return document.documentElement.scrollWidth"
        assert browser.execute_script(width) == 390
        pause = browser.find_element(By.ID, "pause")
        pause.click()
        assert pause.get_attribute("aria-pressed") == "true"
        shown = page.text("#age")
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        pause.click()
        page.wait("#age", "as of ")
        wait_until(lambda: page.text("#age") != shown, "newer figures")
        # What is of one worker alone stays that of the one that is shown.
        browser.execute_script(FOREIGN)
        page.wait(".summary", "Another worker says this.")
        assert "used" in page.text('td[data-label="Connections"] .figure')
