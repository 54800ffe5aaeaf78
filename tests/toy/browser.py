"""A headless Chromium, driven over the DevTools protocol with the standard library alone.

The browser reads commands from its file descriptor 3 and writes answers and events to 4, each a
JSON object that a zero byte ends.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Nothing but the page under test: no sandbox (tests run as root), no services, no name resolved.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
# Puts the two pipes where Chromium looks for them.
LAUNCH = "import os, sys; os.dup2({0}, 3); os.dup2({1}, 4); os.execvp(sys.argv[1], sys.argv[1:])"
PATIENCE = 30.0  # seconds for any one answer
REQUIRE, AXE = "STEPDISTILL_REQUIRE_CHROMIUM", "STEPDISTILL_AXE"
# What axe-core finds that keeps people from reading: one line for each element.
VIOLATIONS = """axe.run(document, {resultTypes: ["violations"]}).then(found => found.violations
  .filter(rule => ["serious", "critical"].includes(rule.impact))
  .flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.target} ${node.failureSummary}`)))"""


def find() -> str | None:
    """The path of an installed Chromium, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def chromium() -> str:
    """The browser's path. Fails or skips the test where there is none."""
    path = find()
    if path is None and os.environ.get(REQUIRE):
        pytest.fail(f"{REQUIRE} is set, but there is no Chromium on the path")
    if path is None:
        pytest.skip(f"no Chromium on the path (Debian: apt-get install chromium; {REQUIRE} unset)")
    return path


def axe() -> str:
    """The source of axe-core (npm). Skips the test where AXE names no file, as `.ci/run` does."""
    path = os.environ.get(AXE)
    if path is None:
        pytest.skip(f"{AXE} names no axe.min.js (npm install axe-core)")
    return Path(path).read_text(encoding="utf-8")


class Browser:
    """A running Chromium with one page; a context manager."""

    def __init__(self, path: str) -> None:
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        (its_input, self.input), (self.output, its_output) = map(_high, (os.pipe(), os.pipe()))
        launch = [sys.executable, "-c", LAUNCH.format(its_input, its_output), path, *FLAGS]
        self.process = subprocess.Popen(
            [*launch, f"--user-data-dir={self.profile.name}"],
            pass_fds=(its_input, its_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_input)
        os.close(its_output)
        self.buffer, self.number, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        page = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.input)  # which Chromium takes as the order to end
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            os.close(self.output)
        self.profile.cleanup()

    def send(self, method: str, **parameters: object) -> dict[str, Any]:
        """The answer to a command; events that arrive first are kept in `events`."""
        self.number += 1
        command: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.input, json.dumps(command).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def wait(self, method: str) -> None:
        """Read events until `method` is among them."""
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._read())

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Load a file in a window of `width` CSS pixels; `events` then holds only its own."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        for url in ("about:blank", page.as_uri()):
            self.events.clear()
            self.send("Page.navigate", url=url)
            self.wait("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise it makes, comes to."""
        answer = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def violations(self, axe: str) -> list[str]:
        """What axe-core, its source, finds serious or critical in the page that is open."""
        self.value(f"{axe}; 0")
        return self.value(VIOLATIONS)

    def press(self, key: str, code: int) -> None:
        """Press and release a key that has no text, such as ("ArrowRight", 39)."""
        for kind in ("rawKeyDown", "keyUp"):
            pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type=kind, **pressed)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press one finger down, move and lift it, in CSS pixels of the window."""
        points = [{"x": x, "y": y} for x, y in (start, end)]
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=points[:1])
        self.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=points[1:])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def screenshot(self, clip: dict[str, float] | None = None) -> bytes:
        """A PNG of the whole page, or of a part: x, y, width, height in CSS pixels, and scale."""
        part = {"clip": clip} if clip else {}
        made = self.send("Page.captureScreenshot", captureBeyondViewport=True, **part)
        return base64.b64decode(made["data"])

    def _read(self) -> dict[str, Any]:
        """The next message. Raises TimeoutError where none comes, ConnectionError at the end."""
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.output], [], [], left)[0]:
                raise TimeoutError(f"Chromium said nothing for {PATIENCE:g} seconds")
            part = os.read(self.output, 1 << 20)
            if not part:
                raise ConnectionError("Chromium ended")
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)


def _high(pipe: tuple[int, int]) -> list[int]:
    """The pipe moved clear of the descriptors 3 and 4."""
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipe]
    for end in pipe:
        os.close(end)
    return moved
