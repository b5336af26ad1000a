"""A reader at work in a real browser."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.helpers import rows
from tests.web.conftest import Site

SHOTS = os.environ.get("PACS_NODE_TEST_SCREENSHOTS")  # a folder: what the reader saw


def shot(page: Page, name: str) -> None:
    if SHOTS:
        for width in (1280, 800):
            page.set_viewport_size({"width": width, "height": 800})
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png")
        page.set_viewport_size({"width": 1280, "height": 800})


def _hospital(site: Site) -> None:
    first = site.add("one", patient_name="Moon^Ada", received_at=rows.NOW)
    rows.report(site.database, {first: site.scored("one", probability=0.905)}, "one")
    site.add("two", patient_name="Sun^Ben", calling_ae_title="CR2")
    site.scored("two", probability=0.024, decision="negative", novelty=0.61, age=3.5)
    site.add("three", patient_name="Star^Cy", calling_ae_title="CR2")
    site.scored("three", probability=None, decision="not_scored", reason="NO_VIEW", view=None)
    site.add("four", patient_name="Cloud^Dee")
    site.scored("four", probability=0.3, decision="undetermined", reason="OTHER_AGE", age=67)
    site.add("five", patient_name="Rain^Eve")


def test_a_reader_filters_opens_windows_and_gives_a_verdict(site: Site, reader: Page) -> None:
    _hospital(site)
    reader.goto("/")
    expect(reader.locator("tbody tr")).to_have_count(5)
    expect(reader.locator("tbody tr").first).to_contain_text("Rain, Eve")
    shot(reader, "list")
    reader.get_by_role("link", name="Positive").click()
    reader.wait_for_url("**decision=positive**")  # and for its scripts, which listen to keys
    expect(reader.locator("tbody tr")).to_have_count(1)
    reader.keyboard.press("ArrowDown")
    reader.keyboard.press("Enter")
    expect(reader.get_by_text("Pneumonia: suspected")).to_be_visible()
    reader.locator("#viewer[data-shown]").wait_for()
    before = _middle(reader)
    reader.keyboard.press("i")
    assert abs(_middle(reader) + before - 255) <= 1
    reader.keyboard.press("i")
    _drag(reader, 0, 60)
    assert _middle(reader) < before
    reader.keyboard.press("1")
    shot(reader, "study")
    reader.get_by_label("Comment").fill("right lower lobe")
    reader.get_by_role("button", name="Agree").click()
    expect(reader.locator(".given")).to_contain_text("agrees")
    (given,) = site.verdicts_of("one")
    assert (given.label, given.comment) == ("agree", "right lower lobe")
    reader.goto("/")
    expect(reader.locator("tbody tr").last).to_contain_text("agrees")


def test_the_image_is_what_the_decoder_sees_and_not_a_blank(site: Site, reader: Page) -> None:
    site.add()
    reader.goto("/")
    reader.locator("a.open").click()
    reader.locator("#viewer[data-shown]").wait_for()
    lungs, rim = _middle(reader, 0.3), _middle(reader, 0.02)
    assert 20 < lungs < rim - 40, "dark lungs on a bright ground, as drawn"


def test_an_image_that_cannot_be_decoded_is_said_in_words(site: Site, reader: Page) -> None:
    site.add()
    for file in site.spool.objects.rglob("*.dcm"):
        file.write_bytes(file.read_bytes()[:4000])
    reader.goto("/")
    reader.locator("a.open").click()
    expect(reader.locator("#message")).to_contain_text("Image cannot be read")


def _middle(page: Page, across: float = 0.5) -> int:
    """Return the grey value shown in the middle row, at a share of the width of the image."""
    return int(
        page.evaluate(
            """across => { const c = document.getElementById("image");
            const x = c.width / 2 + (across - 0.5) * Math.min(c.width, c.height);
            return c.getContext("2d").getImageData(x, c.height / 2, 1, 1).data[0]; }""",
            across,
        )
    )


def _drag(page: Page, right: int, down: int) -> None:
    box = page.locator("#image").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y + down, steps=4)
    page.mouse.up()
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
