"""Debian's Chromium without a window, driven over its DevTools protocol: two pipes, no port, no library.

    with Browser.start() as browser:
        page = browser.open("file:///tmp/report.html", width=400, scheme="dark")
        assert page.evaluate("document.title") == "..."

``Page.messages`` holds what the console said and what was thrown; ``Page.requests`` every address that the page asked for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PROGRAM = {"chromium": "chromium"}
PATIENCE_S = 60.0
# Chromium reads commands from descriptor 3 and answers on 4. High numbers first: one of ours may be 3 or 4.
LAUNCHER = """
import os, sys
to, back = (os.dup2(int(word), at) for word, at in zip(sys.argv[1:3], (100, 101)))
os.dup2(to, 3), os.dup2(back, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(RuntimeError):
    """Chromium ended, did not answer in time, or refused a command."""


@dataclass
class Page:
    """One tab."""

    browser: Browser
    session: str
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; returns its result."""
        return self.browser.call(method, self.session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression. BrowserError where it throws."""
        said = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise BrowserError(f"{expression}: {said['exceptionDetails'].get('exception', {}).get('description')}")
        return said["result"].get("value")

    def pdf(self) -> bytes:
        """The page as it is printed, on A4."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)["data"])

    def screenshot(self) -> bytes:
        """What is seen, as a PNG file."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Close the tab."""
        self.browser.call("Target.closeTarget", targetId=self.call("Target.getTargetInfo")["targetInfo"]["targetId"])
        del self.browser.pages[self.session]


class Browser:
    """A running Chromium. Use ``start``."""

    def __init__(self, child: subprocess.Popen[bytes], to: int, back: int) -> None:
        self.pages: dict[str, Page] = {}
        self._child, self._to, self._back = child, to, back
        self._rest, self._number = b"", 0

    @staticmethod
    @contextlib.contextmanager
    def start() -> Iterator[Browser]:
        """Start it with a profile of its own, and end it with the block."""
        program = shutil.which("chromium")
        if program is None:
            raise BrowserError("no program chromium")
        command_out, to = os.pipe()
        back, answer_in = os.pipe()
        with tempfile.TemporaryDirectory(prefix="lh-browser-", ignore_cleanup_errors=True) as profile:
            # As root there is no sandbox; only our own pages are opened. The shared memory of containers is small.
            words = [program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"]
            words += ["--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
            words += ["--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}", "about:blank"]
            launcher = [sys.executable, "-S", "-c", LAUNCHER, str(command_out), str(answer_in), *words]
            child = subprocess.Popen(
                launcher,
                pass_fds=(command_out, answer_in),
                env={**os.environ, "HOME": profile},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os.close(command_out)
            os.close(answer_in)
            try:
                yield Browser(child, to, back)
            finally:
                # Without its pipe it ends, and its helpers with it.
                os.close(to)
                try:
                    child.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                os.close(back)

    def open(self, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light", phone: bool = False) -> Page:
        """Open a page in a tab and wait until it has loaded. ``scheme``: the colours that the user prefers, light or dark."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.messages.clear()
        page.requests.clear()
        page.loaded = False
        page.call("Page.navigate", url=url)
        self._read_until(lambda: page.loaded, f"{url} has loaded")
        # Two frames: everything that loading set in motion has been drawn, and its errors have been reported.
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return page

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """One command; returns its result. Events that come before the answer are kept."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self._to, data) :]
        except OSError as gone:
            raise BrowserError(f"{method}: Chromium has ended ({self._child.poll()})") from gone
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            answers.extend(m for m in self._fresh if m.get("id") == number)
            return bool(answers)

        self._read_until(answered, f"an answer to {method}")
        if "error" in answers[0]:
            raise BrowserError(f"{method}: {answers[0]['error']}")
        found: dict[str, Any] = answers[0]["result"]
        return found

    def _read_until(self, done: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self._fresh: list[dict[str, Any]] = []
        while not done():
            ready, _, _ = select.select([self._back], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._back, 1 << 20) if ready else b""
            if not data:
                how = f"Chromium ended ({self._child.poll()})" if ready else f"nothing for {PATIENCE_S:.0f} s"
                raise BrowserError(f"waiting for: {what}: {how}")
            *whole, self._rest = (self._rest + data).split(b"\0")
            self._fresh = [json.loads(message) for message in whole]
            for message in self._fresh:
                self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        page = self.pages.get(message.get("sessionId", ""))
        if page is None:
            return
        method, told = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            page.loaded = True
        elif method == "Network.requestWillBeSent":
            page.requests.append(str(told["request"]["url"]))
        elif method == "Log.entryAdded":
            page.messages.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif method == "Runtime.exceptionThrown":
            page.messages.append(f"exception: {told['exceptionDetails'].get('exception', {}).get('description')}")
        elif method == "Runtime.consoleAPICalled":
            page.messages.append(f"console.{told['type']}: {[a.get('value') for a in told['args']]}")
