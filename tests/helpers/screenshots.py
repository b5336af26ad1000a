"""Pictures of the reading list for the documents: run the demonstration, open its pages, draw them to docs/.

Run it as ``python -m tests.helpers.screenshots``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

_DOCS = Path(__file__).parents[2] / "docs"
_CHROMIUM = "/usr/bin/chromium"
_SIZE = {"width": 1280, "height": 760}
_COLOURS = 128


def main() -> None:
    """Draw the list and a study."""
    with _demo() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": _SIZE["width"], "height": _SIZE["height"]})
        page.goto(address)
        _save(page, "reading-list.png")
        page.get_by_role("link", name="Positive").click()
        page.wait_for_url("**decision=positive**")
        page.locator("a.open").first.click()
        page.locator("#viewer[data-shown]").wait_for()
        _save(page, "study.png")
        browser.close()


@contextmanager
def _demo() -> Iterator[str]:
    """Run the demonstration until its pages are open; yield their address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pacs_node", "demo", "--web", "--into", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
            assert demo.stdout is not None
            said = (re.search(r"Open\s+(http://\S+)", line) for line in demo.stdout)
            address = next((found[1] for found in said if found), None)
            assert address, "the demonstration ended"
            try:
                yield address
            finally:
                demo.terminate()


def _save(page: Page, name: str) -> None:
    drawn = Image.open(BytesIO(page.screenshot())).convert("RGB")
    drawn.quantize(_COLOURS, dither=Image.Dither.NONE).save(_DOCS / name, optimize=True)


if __name__ == "__main__":
    main()
