"""Chromium, headless: what a page looks like, and what it is once a browser has read it."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image

from tests.support.browser_page import BrowserPage, opened


class Browser:
    """Of one test; its profile and pictures lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not found:
            if os.environ.get("CI") == "true":
                pytest.fail("no chromium here: CI needs it", pytrace=False)
            pytest.skip("no chromium here: the page is not looked at in a browser")
        self._folder = folder
        self._command = [found, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        self._command.append("--enable-logging=stderr")
        self.console: list[str] = []
        """What the console got of the last page: errors, and what its policy has kept from being loaded."""

    def picture(self, page: Path, height: int = 2400, *, dark: bool = False) -> Image.Image:
        """The page, 1200 pixels wide; `dark`: as those see it who prefer that."""
        shot = self._folder / "shot.png"
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        said = self._run(scheme, f"--window-size=1200,{height}", f"--screenshot={shot}", page.as_uri()).stderr
        assert shot.exists(), said
        return Image.open(shot).convert("RGB")

    def opened(self, page: Path) -> AbstractContextManager[BrowserPage]:
        """The page, for keys and themes."""
        return opened(self._command, page)

    def dom(self, page: Path) -> str:
        """The page as it is when its scripts, if there were any, have run."""
        return self._run("--dump-dom", page.as_uri()).stdout

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=240, check=False)
        self.console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return done
