"""
The chat example as people use it: two pages in headless Chromium, against a server process of its own.

Chromium and its driver are the system's (Debian's ``chromium`` and ``chromium-driver``); nothing is downloaded.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import trustme
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.helpers import DEADLINE, REPOSITORY, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)"),
    pytest.mark.skipif(
        CHROMEDRIVER is None, reason="chromedriver is not installed (Debian: apt install chromium-driver)"
    ),
]


@pytest.fixture
def chat_url() -> Iterator[str]:
    """Where the chat example is served until the test ends; then SIGTERM must end the server with 0."""
    with running("examples.chat:app", cwd=REPOSITORY) as server:
        yield server.url
        assert server.stop() == 0, server.log
        assert "Traceback" not in server.log


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """Headless Chromium with an empty profile, one tab open."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.accept_insecure_certs = True  # of an authority that is made for the test
    for flag in (
        "--headless",
        "--no-sandbox",  # which it cannot do without as root
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(flag)
    with Chrome(options, ChromeService(CHROMEDRIVER)) as browser:
        yield browser


def wait_until(browser: Chrome, condition: Callable[[Chrome], bool], what: str) -> None:
    try:
        WebDriverWait(browser, DEADLINE, poll_frequency=0.05).until(condition)
    except TimeoutException:
        page = browser.find_element(By.TAG_NAME, "body").text
        pytest.fail(f"not within {DEADLINE} s: {what}; the page shows:\n{page}")


def expect_state(browser: Chrome, name: str) -> None:
    """Wait until the current tab's connection is in that state."""
    state = browser.find_element(By.ID, "state")
    wait_until(browser, lambda _: state.get_attribute("data-state") == name, f"the connection is {name}")


def join(browser: Chrome, url: str, name: str) -> None:
    """Load the chat page into the current tab, and join the room that the URL names."""
    browser.get(url)
    browser.find_element(By.ID, "name").send_keys(name, Keys.ENTER)
    expect_state(browser, "open")


def expect_line(browser: Chrome, line: str) -> None:
    """Wait until the current tab's message list shows `line`."""
    log = browser.find_element(By.ID, "log")
    wait_until(browser, lambda _: line in log.text.splitlines(), f"{line!r} is among the messages")


def test_two_pages_chat_and_see_each_other_come_and_go(browser: Chrome, chat_url: str) -> None:
    ann_tab = browser.current_window_handle
    join(browser, f"{chat_url}/#tea room", "Ann")
    browser.switch_to.new_window("tab")
    bob_tab = browser.current_window_handle
    join(browser, f"{chat_url}/#tea room", "Bob")

    browser.find_element(By.ID, "text").send_keys("Hello, <b>Ann</b> ☕", Keys.ENTER)
    expect_line(browser, "Bob Hello, <b>Ann</b> ☕")

    browser.switch_to.window(ann_tab)
    expect_line(browser, "Bob joined")
    expect_line(browser, "Bob Hello, <b>Ann</b> ☕")
    browser.find_element(By.ID, "text").send_keys("Hello, Bob", Keys.ENTER)

    browser.switch_to.window(bob_tab)
    expect_line(browser, "Ann Hello, Bob")
    browser.close()

    browser.switch_to.window(ann_tab)
    expect_line(browser, "Bob left")


def test_pages_chat_over_tls(browser: Chrome, tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    with running("--ssl-certfile", str(pem), "examples.chat:app", cwd=REPOSITORY) as server:
        join(browser, f"{server.url}/#tea", "Ann")
        browser.find_element(By.ID, "text").send_keys("Nobody listens", Keys.ENTER)
        expect_line(browser, "Ann Nobody listens")
        assert server.stop() == 0, server.log
        expect_state(browser, "waiting")


def test_rooms_are_apart(browser: Chrome, chat_url: str) -> None:
    ann_tab = browser.current_window_handle
    join(browser, f"{chat_url}/#one", "Ann")
    browser.switch_to.new_window("tab")
    join(browser, f"{chat_url}/#two", "Bob")
    browser.find_element(By.ID, "text").send_keys("Nobody here?", Keys.ENTER)
    expect_line(browser, "Bob Nobody here?")

    browser.switch_to.window(ann_tab)
    browser.find_element(By.ID, "text").send_keys("Nor here?", Keys.ENTER)
    expect_line(browser, "Ann Nor here?")
    assert "Bob" not in browser.find_element(By.ID, "log").text


def test_a_page_comes_back_to_its_room_after_the_server_was_restarted(browser: Chrome) -> None:
    with running("examples.chat:app", cwd=REPOSITORY) as server:
        port = server.address[1]
        join(browser, f"{server.url}/#tea", "Ann")
        assert server.stop() == 0
        expect_state(browser, "waiting")
    with running("--port", str(port), "examples.chat:app", cwd=REPOSITORY):
        expect_state(browser, "open")
        browser.find_element(By.ID, "text").send_keys("Back again", Keys.ENTER)
        expect_line(browser, "Ann Back again")
