"""
The chat example as people use it: two pages in headless Chromium, against a server process of its own.

Chromium and its driver are the system's (Debian's ``chromium`` and ``chromium-driver``); nothing is downloaded.
"""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

REPOSITORY = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
DEADLINE = 20  # seconds, for anything that a page or a process is waited for

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)"),
    pytest.mark.skipif(
        CHROMEDRIVER is None, reason="chromedriver is not installed (Debian: apt install chromium-driver)"
    ),
]


@pytest.fixture
def chat_url() -> Iterator[str]:
    """Where the chat example is served until the test ends; then SIGTERM must end the server with 0."""
    command = [sys.executable, "-m", "trio_ws_server", "--port", "0", "examples.chat:app"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            first_line = server.stderr.readline()
            listening = re.search(r"Listening on (http://127\.0\.0\.1:\d+) \(Trio ", first_line)
            assert listening, f"instead of its address, the server printed {first_line!r}"
            yield listening[1]
            server.send_signal(signal.SIGTERM)
            status = server.wait(DEADLINE)
            log = server.stderr.read()
            assert status == 0, log
            assert "Traceback" not in log
        finally:
            server.kill()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """Headless Chromium with an empty profile, one tab open."""
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
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


def join(browser: Chrome, url: str, name: str) -> None:
    """Load the chat page into the current tab, and join the room that the URL names."""
    browser.get(url)
    browser.find_element(By.ID, "name").send_keys(name, Keys.ENTER)
    state = browser.find_element(By.ID, "state")
    wait_until(browser, lambda _: state.get_attribute("data-state") == "open", f"{name} is connected")


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
