"""The report as Chromium lays it out: on a telephone and on a desk, on light and on dark ground."""

import html
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from reported import RUN, Story, search

from workflows.report.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

WIDTHS = {"telephone": 390, "desk": 1280}

LOOK = """
<script>
const found = {};
for (const frame of document.querySelectorAll("iframe")) frame.addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement;
  found[frame.id] = {
    width: root.clientWidth,
    needed: root.scrollWidth,
    images: [...page.images].map(image => image.complete && image.naturalWidth > 0),
    wider: [...page.querySelectorAll("body *")]
      .filter(one => !one.closest(".wide") && one.scrollWidth > root.clientWidth)
      .map(one => one.tagName),
    ink: frame.contentWindow.getComputedStyle(page.body).color,
  };
  document.title = JSON.stringify(found);
});
for (const frame of document.querySelectorAll("iframe")) frame.srcdoc = PAGE;
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with a name that nothing breaks."""
    story = Story(tmp_path_factory.mktemp("story"))
    story.pretrained()
    story.task("tone", "classification", trials=search("accuracy", 9))
    story.task("places_of_a_name_that_nothing_breaks_and_that_goes_on", "token_classification")
    return render(*story.told, run=RUN)


def laid_out(page: str, folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """What the browser made of a page, by width."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed here")
    frames = [
        f'<iframe id="{name}" style="width: {width}px; height: 800px; border: 0"></iframe>'
        for name, width in WIDTHS.items()
    ]
    # A script's text ends at the first </script>, wherever it stands.
    told = json.dumps(page).replace("</", "<\\/")
    around = folder / "around.html"
    around.write_text("<!doctype html>" + "".join(frames) + LOOK.replace("PAGE", told))
    headless = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=20000",
    ]
    profile = f"--user-data-dir={folder / 'profile'}"
    answer = subprocess.run(
        [CHROMIUM, *headless, *options, profile, "--dump-dom", around.as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    title = re.search("<title>(.*?)</title>", answer.stdout)
    assert title is not None, answer.stderr
    found: dict[str, dict[str, Any]] = json.loads(html.unescape(title[1]))
    assert found.keys() == WIDTHS.keys()
    return found


def test_nothing_is_wider_than_the_screen_and_every_chart_is_seen(
    page: str, tmp_path: Path
) -> None:
    for name, seen in laid_out(page, tmp_path).items():
        assert seen["width"] == WIDTHS[name]
        assert seen["needed"] == seen["width"], (name, seen["wider"])
        assert len(seen["images"]) == page.count("<img")
        assert all(seen["images"])
        assert seen["ink"] == "rgb(0, 0, 0)"


def test_on_a_dark_screen_the_ink_is_light(page: str, tmp_path: Path) -> None:
    dark = "--blink-settings=preferredColorScheme=0"
    assert {seen["ink"] for seen in laid_out(page, tmp_path, dark).values()} == {
        "rgb(255, 255, 255)"
    }


def test_what_is_too_wide_is_noticed(page: str, tmp_path: Path) -> None:
    wide = page.replace("<main", '<p style="width: 700px">wide</p><main')
    seen = laid_out(wide, tmp_path)
    assert seen["telephone"]["needed"] > seen["telephone"]["width"]
    assert seen["desk"]["needed"] == seen["desk"]["width"]


def test_the_picture_shows_the_summary_and_a_task(page: str, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed here")
    make_picture = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "make_picture.py"))
    report = tmp_path / "report.html"
    report.write_text(page, encoding="utf-8")
    ink = {}
    for task in ("tone", "nosuch"):
        picture = tmp_path / f"{task}.png"
        make_picture["take"](report, task, picture)
        pixels = imread(picture)
        assert pixels.shape[:2] == (make_picture["HEIGHT"], make_picture["WIDTH"])
        ink[task] = (pixels[..., :3].min(axis=2) < 0.5).any(axis=1).sum()
    assert ink["tone"] > 2 * ink["nosuch"] > 0
