"""A reader at work in a real browser."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from classifier.heat_map import HeatMap
from tests.conftest import uid
from tests.helpers import rows
from tests.web.conftest import Site

SHOTS = os.environ.get("PACS_NODE_TEST_SCREENSHOTS")  # a folder: what the reader saw


def shot(page: Page, name: str) -> None:
    if SHOTS:
        for width in (1280, 800):
            page.set_viewport_size({"width": width, "height": 800})
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}.png")
        page.set_viewport_size({"width": 1280, "height": 800})


def heat_map(cells: dict[tuple[int, int], float]) -> bytes:
    """Return a stored map of 5 x 5 cells, 0 but for `cells`."""
    values = np.zeros((5, 5), np.float32)
    for place, value in cells.items():
        values[place] = value
    return HeatMap.of(values, -0.5).to_bytes()


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
    reader.wait_for_load_state()  # the script that knows the keys runs last
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


def _red_share(page: Page) -> float:
    """Return the share of the shown pixels that are clearly red."""
    return float(
        page.evaluate(
            """() => { const c = document.getElementById("image");
            const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
            let red = 0;
            for (let at = 0; at < data.length; at += 4) red += data[at] > data[at + 2] + 30;
            return red / (data.length / 4); }"""
        )
    )


def test_the_map_is_shown_where_the_answer_is_positive_and_switched_off_by_a_key(
    site: Site, reader: Page
) -> None:
    site.add()
    site.scored(heat_map=heat_map({(1, 1): 8.0, (3, 3): -6.0}))
    reader.goto("/")
    reader.locator("a.open").click()
    reader.locator("#viewer[data-shown]").wait_for()
    expect(reader.get_by_role("button", name="Heat map")).to_have_attribute("aria-pressed", "true")
    expect(reader.locator("#scale-high")).to_have_text("+8.0")
    expect(reader.get_by_text("not where disease is")).to_be_visible()
    shot(reader, "map")
    shown = _red_share(reader)
    assert 0.01 < shown < 0.3
    reader.locator("#opacity").fill("100")
    assert _red_share(reader) > shown
    reader.keyboard.press("m")
    assert _red_share(reader) == 0


def test_the_map_lies_where_its_cells_are(site: Site, reader: Page) -> None:
    site.add()
    site.scored(heat_map=heat_map({(0, 4): 9.0}))
    reader.goto("/")
    reader.locator("a.open").click()
    reader.locator("#viewer[data-shown]").wait_for()
    where = reader.evaluate(
        """() => { const c = document.getElementById("image"), side = Math.min(c.width, c.height);
        const place = [(c.width - side) / 2, (c.height - side) / 2, side, side];
        const { data } = c.getContext("2d").getImageData(...place);
        let best = [-1, 0, 0];
        for (let at = 0; at < data.length; at += 4) {
          const red = data[at] - data[at + 2], pixel = at / 4;
          if (red > best[0]) best = [red, (pixel % side) / side, Math.floor(pixel / side) / side];
        }
        return best.slice(1); }"""
    )
    assert 0.8 < where[0] <= 1
    assert 0 <= where[1] < 0.2


@pytest.mark.parametrize(("decision", "pressed"), [("negative", "false"), ("undetermined", "true")])
def test_a_negative_image_shows_its_map_only_when_asked(
    site: Site, reader: Page, decision: str, pressed: str
) -> None:
    site.add()
    site.scored(probability=0.1, decision=decision, heat_map=heat_map({(2, 2): 5.0}))
    reader.goto("/")
    reader.locator("a.open").click()
    reader.locator("#viewer[data-shown]").wait_for()
    expect(reader.get_by_role("button", name="Heat map")).to_have_attribute("aria-pressed", pressed)
    assert (_red_share(reader) > 0) is (pressed == "true")
    reader.keyboard.press("m")
    assert (_red_share(reader) > 0) is (pressed == "false")


def test_an_earlier_study_is_shown_beside(site: Site, reader: Page) -> None:
    same: dict[str, Any] = {"patient_id": "PID", "patient_name": "Moon^Ada"}
    site.add("old", **same, study_date="20240101")
    site.scored("old", probability=0.1, decision="negative")
    site.add("new", **same)
    site.scored("new")
    site.add("other", patient_id="PID", patient_name="Sun^Ben")
    reader.goto(f"/studies/{uid('new', 'study')}")
    reader.locator("#viewer[data-shown]").wait_for()
    assert reader.locator(".priors li").count() == 1
    reader.keyboard.press("b")
    reader.locator("#beside[data-shown]").wait_for()
    expect(reader.locator("#beside .caption")).to_have_text("2024-01-01")
    shot(reader, "beside")
    reader.keyboard.press("b")
    expect(reader.locator("#beside")).to_be_hidden()
