"""Saturation, contrast, clipped values, sharpness; and what a comparison says of runs that look unreal or unguided."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import laplace

from ldm.comparison.effects import effect_notes, with_differences, with_targets
from ldm.comparison.ranking import rank_runs
from ldm.comparison.records import Run
from ldm.evaluation.features.appearance import MEASURES, Appearance
from ldm.evaluation.records import EvaluationResult, MetricValue
from ldm.runtime.images import to_pil


def measures(images):
    return dict(zip(MEASURES, Appearance()(images).T, strict=True))


def test_measures_are_those_of_other_libraries():
    torch.manual_seed(0)
    images = 1.5 * torch.rand(3, 3, 9, 11) * 2 - 1.5  # some of it beyond [-1, 1]
    found = measures(images)
    for row, image in enumerate(images):
        rgb = np.asarray(to_pil(image), dtype=np.float64) / 255  # (H, W, 3)
        hsv = np.array([[colorsys.rgb_to_hsv(*pixel) for pixel in line] for line in rgb])
        luma = rgb @ np.array([0.299, 0.587, 0.114])
        expected = hsv[..., 1].mean(), luma.std(), ((rgb == 0) | (rgb == 1)).mean(), laplace(luma)[1:-1, 1:-1].std()
        assert [float(found[name][row]) for name in MEASURES] == pytest.approx(expected, abs=1e-5)


def test_burnt_and_blurred_images_differ_from_real_ones(shapes):
    real = torch.stack([shapes[index].image for index in range(64)])
    plain, burnt = measures(real), measures((3 * real).clamp(-1, 1))
    assert burnt["clipped"].mean() > plain["clipped"].mean() + 0.2
    assert burnt["contrast"].mean() > 1.2 * plain["contrast"].mean()
    blurred = measures(torch.nn.functional.avg_pool2d(real, 5, 1, 2, count_include_pad=False))
    assert blurred["sharpness"].mean() < 0.6 * plain["sharpness"].mean()


def run(label, fid, sharpness, method="cfg"):
    looks = MetricValue("sharpness", "sharpness", sharpness, 0.001, interval=(sharpness - 0.01, sharpness + 0.01),
                        halves=(sharpness,) * 3, directed=False)  # fmt: skip
    figures = (MetricValue("fid", "FD[x]", fid, halves=(fid, fid + 0.1, fid)), looks)
    return Run(label, method, None, None, "ddim", 25, None, EvaluationResult(figures, {}))


def test_a_run_as_without_guidance_cannot_win_and_an_unreal_one_is_named(tmp_path):
    """ "pag" differs from "none" in one value of 768 by one step, and has the lowest distance."""
    runs = [run("none", 5.0, 0.2, "none"), run("pag(3)", 4.9, 0.2), run("cfg 3", 5.5, 0.21), run("cfg 9", 6.0, 0.4)]
    images = np.full((4, 16, 16, 3), 100, dtype=np.uint8)
    images[1, 0, 0, 0] = 101
    images[2:] += 10
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    real = (MetricValue("sharpness", "sharpness", 0.19),)
    done = with_differences(with_targets(runs, real), paths)
    assert [r.as_none for r in done] == [False, True, False, False] and done[0].difference is None
    assert rank_runs(runs).best.label == "pag(3)" and rank_runs(done).best.label == "none"
    same, unreal = effect_notes(done)
    assert "cannot win: pag(3)" in same and unreal.endswith("cfg 9 (sharpness x 2.1)")
    by_look = [value.result["sharpness"].loss() for value in done]
    assert by_look == pytest.approx([0.01, 0.01, 0.02, 0.21])
    assert Run.from_json(done[1].to_json()) == done[1]
    stored = done[1].to_json()
    del stored["difference"]  # as comparisons from before it
    assert Run.from_json(stored).difference is None
