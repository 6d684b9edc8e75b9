"""Both reports in a headless Chromium: they work by mouse and keyboard, load nothing and fit a phone."""

import json
import os
import shutil

import pytest
import torch

from ldm.comparison import Comparison, Run, rank_runs
from ldm.comparison.image_grid import save_sample_row
from ldm.comparison.report import render
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.reports.run import render_run
from ldm.runtime.images import save_grid

pytestmark = pytest.mark.slow
SCALES = (1.5, 3.0, 7.5, 10.0)
EVIL = "<script>alert(1)</script>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium on the PATH, nor named by the variable CHROMIUM")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def make_run(method, scale, fid, accuracy):
    label = method if scale is None else f"{method} {scale:g}"
    values = (
        MetricValue("fid", "FD[trained-cnn:shapes:0123abcd]", fid, interval=(fid - 0.3, fid + 0.3), halves=(fid,) * 8),
        MetricValue("recall", "recall[trained-cnn:shapes:0123abcd]", 0.5, higher_is_better=True),
        MetricValue("accuracy/shape", "accuracy[shape]", accuracy, 0.01, higher_is_better=True),
    )
    result = EvaluationResult(values, {}, evaluations_per_image=50.0, seconds_per_image=0.5)
    return Run(label, method, scale, None, "ddim", 25, 10**7, result)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A page of seven runs, with hostile names of classes, prompts and methods."""
    root = tmp_path_factory.mktemp("comparison")
    runs = [
        make_run("none", None, 9.0, 0.5),
        *(make_run("cfg", scale, 12 / scale, 0.6) for scale in SCALES),
    ]
    runs += [make_run("limited-interval cfg + classifier + rescale", 2.0, 10.5, 0.9), make_run(EVIL, None, 30.0, 0.1)]
    sample_rows = [root / f"{number}.png" for number in range(len(runs))]
    for number, sample_row in enumerate(sample_rows):
        save_sample_row(torch.full((4, 3, 32, 32), number / 8), sample_row)
    manifest = {"num_images": 40, "num_reference": 60, "data": EVIL, "split": "validation", "rows": 4, "seed": 0}
    manifest |= {"conditions": "as drawn", "extractor": "trained-cnn:shapes:0123abcd", "preprocessing": "none"}
    result = Comparison(tuple(runs), {"classifier": EVIL}, manifest, (EVIL,))
    page = root / "report.html"
    command = f"ldm compare {'/a/folder/of/a/name/without/a/space' * 5} --data {EVIL}"
    text = render(result, rank_runs(result.runs), sample_rows, conditions=[EVIL, "b"], command=command, model=EVIL)
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A page of a run folder as a diffusion training with --eval-every leaves it."""
    root = tmp_path_factory.mktemp("training") / "run"
    (root / "best").mkdir(parents=True)
    commands = [f"ldm train diffusion --data {EVIL} --output-dir {'/a/folder/of/a/name/without/a/space' * 5}"]
    (root / "run.json").write_text(json.dumps({"kind": "diffusion", "facts": {}, "commands": commands}))
    (root / "config.yaml").write_text(f"dataset:\n  data: {EVIL}\n")
    name = "FD[trained-cnn:shapes:0123abcd]"
    (root / "best" / "best.json").write_text(json.dumps({"measure": name, "value": 4.0, "step": 20}))
    entries = [
        {"step": step, "loss": 2.0 / step, "learning_rate": 1e-3, "gradient_norm": 0.1, EVIL: 0.5}
        for step in range(1, 31)
    ]
    for step in (10, 20, 30):
        by_noise = [{"t": 100.0 * k, "noise_ratio": 0.1, "loss": 1 / (k + step)} for k in range(10)]
        validation = {"validation_loss": 1 / step, "validation_loss_by_noise": by_noise, EVIL: 1.0}
        entries.append({"step": step, "validation": {**validation, "validation_loss_by_noise_quarter": [4, 3, 2, 1]}})
        entries.append({"step": step, "evaluation": {name: abs(step - 20) + 4.0, "accuracy[shape]": 0.5, EVIL: 0.5}})
        save_grid(torch.full((16, 3, 32, 32), step / 40), root / "samples" / f"step-{step:06d}.png")
    (root / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    page = root / "report.html"
    page.write_text(render_run(root), encoding="utf-8")
    return page


class Opened:
    """A page in a window, with its console messages, errors, dialogs and requests."""

    def __init__(self, browser, path, width, scheme):
        self.problems = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.problems.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._check_request(request.url, path.as_uri()))
        self.page.goto(path.as_uri())

    def _check_request(self, url, own):
        if url != own and not url.startswith("data:"):
            self.problems.append(f"request: {url}")

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
def test_it_fits_the_window_and_logs_nothing(report, width, scheme, opened, request):
    window = opened(request.getfixturevalue(report), width, scheme)
    page = window.page
    page.locator("details").evaluate_all("all => all.forEach(details => { details.open = true; })")
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
    assert window.problems == []


def column(page, number):
    return page.locator(f"tbody tr td:nth-child({number})").evaluate_all("all => all.map(cell => cell.dataset.value)")


def test_the_table_sorts_by_click_and_by_key(comparison, opened):
    window = opened(comparison)
    page = window.page
    before = [float(value) for value in column(page, 2)]
    assert before != sorted(before)
    page.click("th:nth-child(2) button")
    assert [float(value) for value in column(page, 2)] == sorted(before)
    assert page.get_attribute("th:nth-child(2)", "aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert [float(value) for value in column(page, 2)] == sorted(before, reverse=True)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "method"
    page.keyboard.press("Space")
    scales = [f"cfg {scale:g}" for scale in SCALES]  # by number, not by letter
    assert column(page, 1) == [EVIL, *scales, "limited-interval cfg + classifier + rescale 2", "none"]
    assert page.get_attribute("th:nth-child(1)", "aria-sort") == "ascending"
    assert page.get_attribute("th:nth-child(2)", "aria-sort") is None
    assert window.problems == []


@pytest.mark.parametrize(("report", "box", "count"), [("comparison", ".column", 4), ("training", ".time", 3)])
def test_the_slider_selects_the_images(report, box, count, opened, request):
    window = opened(request.getfixturevalue(report), 390)
    page = window.page
    holder = page.locator(box).filter(has=page.locator("input")).first
    slider, images = holder.locator("input"), holder.locator("img")
    labels = json.loads(holder.get_attribute("data-labels"))
    assert images.count() == len(labels) == count

    def visible_index():
        visible = [k for k in range(count) if images.nth(k).is_visible()]
        assert len(visible) == 1 and holder.locator("output").inner_text() == labels[visible[0]]
        return visible[0]

    slider.focus()
    page.keyboard.press("Home")
    assert visible_index() == 0
    page.keyboard.press("ArrowRight")
    assert visible_index() == 1 and slider.get_attribute("aria-valuetext") == labels[1]
    page.keyboard.press("End")
    assert visible_index() == count - 1
    area = slider.bounding_box()
    page.mouse.click(area["x"] + 3, area["y"] + area["height"] / 2)
    assert visible_index() == 0
    assert window.problems == []
