"""A page that a headless Chromium has open: keys are pressed, themes chosen, and what the page is then is asked for.

Chromium's own protocol over pipes (--remote-debugging-pipe): file descriptors 3 and 4, messages that end with a zero
byte.
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

_KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowDown": 40}


class BrowserPage:
    """See `opened`."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, os.fdopen(receive, "rb", 0)
        self._number, self._rest, self._session = 0, b"", ""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What Chromium answers. AssertionError where it refuses."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        asked |= {"sessionId": self._session} if self._session else {}
        os.write(self._send, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = self._receive.read(1 << 16)
            assert more, "chromium has gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Page.navigate", url=page.as_uri())
        while self.of("document.readyState") != "complete" or self.of("location.href") != page.as_uri():
            pass
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def of(self, expression: str) -> Any:
        """The value of an expression, by the browser itself; the page holds no script."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def press(self, key: str) -> None:
        about: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def theme(self, name: str) -> None:
        """light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def picture(self) -> Image.Image:
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return Image.open(io.BytesIO(data)).convert("RGB")


@contextmanager
def opened(command: list[str], page: Path) -> Iterator[BrowserPage]:
    """The page in a Chromium of its own, 1200 pixels wide. command: what starts it, headless."""
    theirs, send = os.pipe()
    receive, answers = os.pipe()

    def wire() -> None:  # in the child, before Chromium: copies first, since the numbers may be 3 and 4 themselves
        asked, said = os.dup(theirs), os.dup(answers)
        high = [os.dup2(asked, 40), os.dup2(said, 41)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [*command, "--remote-debugging-pipe", "--window-size=1200,1600"], close_fds=False, preexec_fn=wire,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    os.close(answers)
    made = BrowserPage(send, receive)
    try:
        made.open(page)
        yield made
    finally:
        os.close(send)
        process.terminate()
        process.wait(60)
