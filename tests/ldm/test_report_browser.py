"""Both reports in a headless Chromium: they work by mouse and keyboard, ask the network for nothing and fit a phone."""

import json
import os
import shutil

import pytest
import torch

from ldm.comparison import Cell, Comparison, judge_cells
from ldm.comparison.picture import save_strip
from ldm.comparison.report import render
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.reports.run import render_run
from ldm.runtime.images import save_grid

pytestmark = pytest.mark.slow
EVIL = "<script>alert(1)</script>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on the PATH, nor named by the variable CHROMIUM")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def cell(method, scale, fid, accuracy):
    label = method if scale is None else f"{method} {scale:g}"
    figures = (
        MetricValue("fid", "FD[trained-cnn:shapes:0123abcd]", fid, interval=(fid - 0.3, fid + 0.3), halves=(fid,) * 8),
        MetricValue("recall", "recall[trained-cnn:shapes:0123abcd]", 0.5, higher_is_better=True),
        MetricValue("accuracy/shape", "accuracy[shape]", accuracy, 0.01, higher_is_better=True),
    )
    result = EvaluationResult(figures, {}, evaluations_per_image=50.0, seconds_per_image=0.5)
    return Cell(label, method, scale, None, "ddim", 25, 10**7, result)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A page of seven cells, with names of classes, prompts and methods that mean ill."""
    root = tmp_path_factory.mktemp("comparison")
    cells = [cell("none", None, 9.0, 0.5), *(cell("cfg", scale, 12 / scale, 0.6) for scale in (1.5, 3.0, 7.5, 10.0))]
    cells += [cell("limited-interval cfg + classifier + rescale", 2.0, 10.5, 0.9), cell(EVIL, None, 30.0, 0.1)]
    strips = [root / f"{number}.png" for number in range(len(cells))]
    for number, strip in enumerate(strips):
        save_strip(torch.full((4, 3, 32, 32), number / 8), strip)
    manifest = {"num_images": 40, "num_reference": 60, "data": EVIL, "split": "validation", "rows": 4, "seed": 0}
    manifest |= {"conditions": "as drawn", "extractor": "trained-cnn:shapes:0123abcd", "preprocessing": "none"}
    found = Comparison(tuple(cells), {"classifier": EVIL}, manifest, (EVIL,))
    page = root / "report.html"
    command = f"ldm compare {'/a/folder/of/a/name/without/a/space' * 5} --data {EVIL}"
    text = render(found, judge_cells(found.cells), strips, conditions=[EVIL, "b"], command=command, model=EVIL)
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A page of a run folder as a diffusion training with --eval-every leaves it."""
    root = tmp_path_factory.mktemp("training") / "run"
    (root / "best").mkdir(parents=True)
    told = [f"ldm train diffusion --data {EVIL} --output-dir {'/a/folder/of/a/name/without/a/space' * 5}"]
    (root / "run.json").write_text(json.dumps({"kind": "diffusion", "facts": {}, "commands": told}))
    (root / "config.yaml").write_text(f"dataset:\n  data: {EVIL}\n")
    name = "FD[trained-cnn:shapes:0123abcd]"
    (root / "best" / "best.json").write_text(json.dumps({"measure": name, "value": 4.0, "step": 20}))
    entries = [
        {"step": step, "loss": 2.0 / step, "learning_rate": 1e-3, "gradient_norm": 0.1, EVIL: 0.5}
        for step in range(1, 31)
    ]
    for step in (10, 20, 30):
        by_noise = [{"t": 100.0 * place, "noise_ratio": 0.1, "loss": 1 / (place + step)} for place in range(10)]
        held = {"validation_loss": 1 / step, "validation_loss_by_noise": by_noise, EVIL: 1.0}
        entries.append({"step": step, "validation": {**held, "validation_loss_by_noise_quarter": [4, 3, 2, 1]}})
        entries.append({"step": step, "evaluation": {name: abs(step - 20) + 4.0, "accuracy[shape]": 0.5, EVIL: 0.5}})
        save_grid(torch.full((16, 3, 32, 32), step / 40), root / "samples" / f"step-{step:06d}.png")
    (root / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    page = root / "report.html"
    page.write_text(render_run(root), encoding="utf-8")
    return page


class Opened:
    """A page in a window, with all that it complained of and asked for."""

    def __init__(self, browser, path, width, scheme):
        self.troubles = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.troubles.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._asked(request.url, path.as_uri()))
        self.page.goto(path.as_uri())

    def _asked(self, url, own):
        if url != own and not url.startswith("data:"):
            self.troubles.append(f"request: {url}")

    def widths(self):
        return self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")


@pytest.fixture
def opened(browser):
    windows = []

    def open_page(path, width=1400, scheme="light"):
        windows.append(Opened(browser, path, width, scheme))
        return windows[-1]

    yield open_page
    for window in windows:
        window.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("report", ["comparison", "training"])
def test_it_fits_the_window_and_is_silent(report, width, scheme, opened, request):
    window = opened(request.getfixturevalue(report), width, scheme)
    page = window.page
    page.locator("details").evaluate_all("all => all.forEach(each => { each.open = true; })")
    content, view = window.widths()
    assert content <= view == width
    assert page.locator("script").count() == 1 and EVIL in page.inner_text("body"), "shown as text"
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    brightness = [sum(map(int, colour.strip("rgb()").split(",")[:3])) / 765 for colour in (ink, paper)]
    assert (brightness[0] > 0.8 and brightness[1] < 0.2) == (scheme == "dark")
    assert abs(brightness[0] - brightness[1]) > 0.7
    broken = "all => all.filter(image => !image.hidden && !(image.complete && image.naturalWidth)).length"
    assert page.locator("img").evaluate_all(broken) == 0
    assert page.locator("img:not([alt]), svg:not([aria-label])").count() == 0
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{report}-{width}-{scheme}.png", full_page=True)
    assert window.troubles == []


def column(page, number):
    return page.locator(f"tbody tr td:nth-child({number})").evaluate_all("all => all.map(each => each.dataset.value)")


def test_the_table_sorts_by_click_and_by_key(comparison, opened):
    window = opened(comparison)
    page = window.page
    before = [float(each) for each in column(page, 2)]
    assert before != sorted(before)
    page.click("th:nth-child(2) button")
    assert [float(each) for each in column(page, 2)] == sorted(before)
    assert page.get_attribute("th:nth-child(2)", "aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert [float(each) for each in column(page, 2)] == sorted(before, reverse=True)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "method"
    page.keyboard.press("Space")
    scales = [f"cfg {scale:g}" for scale in (1.5, 3, 7.5, 10)]  # by number, not by letter
    assert column(page, 1) == [EVIL, *scales, "limited-interval cfg + classifier + rescale 2", "none"]
    assert page.get_attribute("th:nth-child(1)", "aria-sort") == "ascending"
    assert page.get_attribute("th:nth-child(2)", "aria-sort") is None
    assert window.troubles == []


@pytest.mark.parametrize(("report", "box", "count"), [("comparison", ".column", 4), ("training", ".time", 3)])
def test_the_slider_moves_the_pictures(report, box, count, opened, request):
    window = opened(request.getfixturevalue(report), 390)
    page = window.page
    holder = page.locator(box).filter(has=page.locator("input")).first
    slider, pictures = holder.locator("input"), holder.locator("img")
    labels = json.loads(holder.get_attribute("data-labels"))
    assert pictures.count() == len(labels) == count

    def shown():
        visible = [place for place in range(count) if pictures.nth(place).is_visible()]
        assert len(visible) == 1 and holder.locator("output").inner_text() == labels[visible[0]]
        return visible[0]

    slider.focus()
    page.keyboard.press("Home")
    assert shown() == 0
    page.keyboard.press("ArrowRight")
    assert shown() == 1 and slider.get_attribute("aria-valuetext") == labels[1]
    page.keyboard.press("End")
    assert shown() == count - 1
    area = slider.bounding_box()
    page.mouse.click(area["x"] + 3, area["y"] + area["height"] / 2)
    assert shown() == 0
    assert window.troubles == []
