"""Built-in shapes: deterministic, inside the frame, told apart, and captioned truly."""

from __future__ import annotations

import itertools
import pickle
import time

import numpy as np
import pytest
import torch

from ldm.data.dataset import ImageData
from ldm.data.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, ShapesData, describe
from ldm.runtime.errors import UserError


def test_picture_depends_on_seed_split_and_index_alone() -> None:
    few, many = ShapesData("train", 32, (50, 10)), ShapesData("train", 32, (400, 10))
    assert np.array_equal(few.render_batch(range(50)), many.render_batch(range(400))[:50])
    assert [few.captions(i) for i in range(50)] == [many.captions(i) for i in range(50)]
    assert torch.equal(pickle.loads(pickle.dumps(many))[7].image, few[7].image)
    other = ShapesData("train", 32, (50, 10), seed=1)
    held_out = ShapesData("validation", 32, (50, 50))
    for different in (other, held_out):
        distance = few.render_batch(range(50))[:, None] - different.render_batch(range(50))[None]
        assert np.abs(distance).max(axis=(2, 3, 4)).min() > 0.05
        assert different.fingerprint != few.fingerprint


def test_obeys_the_protocol() -> None:
    data = ShapesData("validation", 24, (10, 40), seed=3)
    assert isinstance(data, ImageData) and len(data) == 40 and data.class_names == SHAPES
    example = data[5]
    assert example.image.shape == (3, 24, 24) and example.image.dtype == torch.float32
    assert example.image.abs().max() <= 1 and example.caption == data.captions(5)[0] and example.index == 5
    assert SHAPES[example.label] == data.attributes(5)["shape"]
    drawn = [data[5, seed] for seed in range(60)]
    assert {example.caption for example in drawn} == set(data.captions(5))
    assert all(torch.equal(example.image, data[5].image) for example in drawn)
    assert data[5, 9].caption == data[5, 9].caption
    with pytest.raises(IndexError):
        data[40]


@pytest.mark.parametrize("size", [16, 32, 100])
def test_picture_shows_what_the_attributes_say(size: int) -> None:
    data = ShapesData("train", size, (600, 1))
    images = (data.render_batch(range(600)) + 1) * 127.5  # (N, 3, H, W)
    area: dict[tuple[str, str], list[float]] = {}
    for index, image in enumerate(images):
        told = data.attributes(index)
        border = np.concatenate((image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]), axis=1)
        assert np.abs(border - np.array(BACKGROUNDS[told["background"]])[:, None]).max() < 0.01  # wholly inside
        from_colour = np.abs(image - np.array(COLOURS[told["colour"]])[:, None, None]).max(0)
        assert from_colour.min() < (0.01 if size >= 32 else 90)
        contrast = np.abs(np.subtract(COLOURS[told["colour"]], BACKGROUNDS[told["background"]])).max()
        cover = np.abs(image - border[:, :1, None]).max(0) / contrast  # share of each pixel
        area.setdefault((told["shape"], told["size"]), []).append(cover.mean())
    for shape in SHAPES:
        assert max(area[shape, "small"]) < min(area[shape, "large"])


def test_attributes_are_uniform_and_independent() -> None:
    data = ShapesData("train", 16, (20000, 1))
    seen = [tuple(data.attributes(i).values()) for i in range(20000)]
    expected = 20000 / (6 * 8 * 2 * 8)
    counts = np.array([seen.count(kind) for kind in itertools.product(SHAPES, COLOURS, SIZES, BACKGROUNDS)][:96])
    assert ((counts - expected) ** 2 / expected).sum() < 160  # chi-square, 95 degrees of freedom: p < 1e-4 above


def test_every_colour_stands_out_from_every_background() -> None:
    for front, back in itertools.product(COLOURS.values(), BACKGROUNDS.values()):
        assert np.linalg.norm(np.subtract(front, back)) > 75
    for palette in (COLOURS, BACKGROUNDS):
        for one, two in itertools.combinations(palette.values(), 2):
            assert np.linalg.norm(np.subtract(one, two)) > 60


def test_edges_are_antialiased() -> None:
    """A disc's total coverage is its area: pi r^2 to half a percent, as the picture is finely rendered or not."""
    data = ShapesData("train", 64, (2000, 1))
    circles = [i for i in range(2000) if data.label(i) == SHAPES.index("circle")][:20]
    for index, image in zip(circles, data.render_batch(circles), strict=True):
        told = data.attributes(index)
        back, front = np.array(BACKGROUNDS[told["background"]]), np.array(COLOURS[told["colour"]])
        channel = np.abs(front - back).argmax()
        cover = ((image[channel] + 1) * 127.5 - back[channel]) / (front - back)[channel]
        radius = data._radius[index]
        assert cover.sum() == pytest.approx(np.pi * radius**2, rel=5e-3)
        assert ((cover > 0.1) & (cover < 0.9)).sum() > 2 * radius  # soft edge


def test_captions_are_true_and_get_shorter() -> None:
    data = ShapesData("train", 16, (300, 1))
    for index in range(300):
        told, captions = data.attributes(index), data.captions(index)
        assert len(captions) == len(set(captions)) and max(captions, key=len) == captions[0]
        assert all(word in captions[0] for word in told.values()) and told["colour"] in captions
        for text in captions:
            body, _, behind = text.partition(" on ")
            for name, names in (("shape", SHAPES), ("colour", tuple(COLOURS)), ("size", SIZES)):
                assert [word for word in names if word in body.split()] in ([], [told[name]])
            assert not behind or behind.split()[1] == told["background"]
    assert describe("circle", "red", "large", "blue") == "a large red circle on a blue background"
    assert describe("star", "orange") == "an orange star" and describe(colour="red") == "red"
    assert describe("ring", size="small") == "a small ring" and describe() == ""


def test_refuses_what_it_cannot_draw() -> None:
    for arguments in ({"split": "test"}, {"image_size": 15}, {"size": (0, 1)}, {"seed": -1}):
        with pytest.raises(UserError, match="shapes"):
            ShapesData(**arguments)  # type: ignore[arg-type]


def test_fast_enough_to_render_in_the_training_loop() -> None:
    data = ShapesData("train", 32)
    data.render_batch(range(64))
    best = np.inf
    for _ in range(5):
        start = time.process_time()
        for index in range(200):
            data.render_batch([index])
        best = min(best, (time.process_time() - start) / 200)
    assert best < 4e-4  # 30 us where nothing else runs
