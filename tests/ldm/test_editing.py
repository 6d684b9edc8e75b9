"""Pictures as the beginning of sampling: limits in which the answer is known, through the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.shapes import ShapesData
from ldm.evaluation.metrics.image_quality import psnr
from ldm.runtime.errors import UserError
from ldm.runtime.images import save_png, to_pil
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.editing import image_to_image, invert
from ldm.sampling.energies import parse_energies
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.source_image import read_image, read_mask
from ldm.sampling.start import PathNoise
from samplers import SampleNoise, interpolate

FAST = SamplingConfig(num_inference_steps=8, guidance_scale=1.0)
PROMPT = "a large red circle"


@pytest.fixture(scope="module")
def text(models):
    return Pipeline.load(models.text)


@pytest.fixture(scope="module")
def image():
    return ShapesData("validation", 16, size=(64, 32))[3].image  # (3, 16, 16)


@pytest.fixture
def files(tmp_path, image):
    """A picture and a mask that is white on its right half."""
    save_png(to_pil(image), tmp_path / "picture.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def sample_images(pipeline, requests, sampling=FAST, **options):
    requests = [requests] if isinstance(requests, Request) else requests
    return torch.cat(list(pipeline.generate(requests, sampling, **options)))


def pixels(path):
    with Image.open(path) as image:
        return np.array(image).astype(int)


def settings_in(path):
    with Image.open(path) as image:
        return json.loads(image.text["ldm"])


def test_strength_1_is_pure_noise_and_little_strength_is_the_picture(text, image):
    whole = image_to_image(text, image, FAST, 1.0)
    assert torch.equal(sample_images(text, Request(PROMPT), start=whole.start), sample_images(text, Request(PROMPT)))
    fine = replace(FAST, num_inference_steps=500)
    plain, distances = text.decode(text.encode(image[None])), []
    for strength in (0.002, 0.2, 0.8):
        edit = image_to_image(text, image, fine, strength)
        assert edit.start.steps == round(500 * strength)
        images = sample_images(text, Request(PROMPT), fine, start=edit.start)
        assert text.evaluations == edit.start.steps
        distances.append((images - plain).abs().mean().item())
    assert distances[0] < 0.05 and distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "heun"])
def test_an_edit_depends_on_its_seed_and_number_alone(text, image, sampler):
    sampling = replace(FAST, sampler=sampler, guidance_scale=2.0)
    start = image_to_image(text, image, sampling, 0.5).start
    requests = [Request(PROMPT)] * 4
    whole = sample_images(text, requests, sampling, seed=2, batch_size=4, start=start)
    ones = sample_images(text, requests[:2], sampling, seed=2, batch_size=1, first_index=2, start=start)
    assert (whole[2:] - ones).abs().max() < 1e-4
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_the_first_level_of_an_edit_is_the_forward_process(text, image):
    start, n = image_to_image(text, image, FAST, 0.5).start, 4000
    level = start.levels(text.resolve(FAST).levels)[0]
    x = start.begin(SampleNoise(0, range(n)).initial(start.latents.shape), level)
    assert (x.mean(0) - level.alpha * start.latents).abs().max() < 5 * level.sigma / n**0.5
    assert x.std(0).mean().item() == pytest.approx(level.sigma, rel=0.01)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_inpainting_keeps_the_known_latents_under_every_kind_of_sampler(text, image, sampler):
    mask = torch.zeros(1, 16, 16)
    mask[:, 3:10, 5:9] = 1
    sampling = replace(FAST, sampler=sampler, guidance_scale=2.0)
    edit, last = image_to_image(text, image, sampling, 1.0, mask=mask), []
    images = edit.finish(sample_images(text, [Request(PROMPT)] * 3, sampling, start=edit.start, on_step=last.append))
    # 2 x 2 pixels a latent: rows 1 to 4, columns 2 to 4 are touched
    repaint = torch.zeros(1, 8, 8)
    repaint[:, 1:5, 2:5] = 1
    assert torch.equal(edit.start.repaint, repaint)
    known = (1 - repaint).bool().expand_as(edit.start.latents)
    assert (last[-1].x - edit.start.latents)[:, known].abs().max() < 1e-5
    plain = text.decode(text.encode(image[None]))
    outside = (mask == 0).expand_as(image)
    assert torch.equal(images[:, outside], plain[:, outside].expand(3, -1))
    assert (images[0] - images[1])[:, mask[0] > 0].abs().max() > 1e-3
    exact = image_to_image(text, image, sampling, 1.0, mask=mask, unmasked="original").finish(images)
    assert torch.equal(exact[:, outside], image[outside].expand(3, -1))


def test_inversion_leads_back(text, image):
    inversions = [
        invert(text, image, Request(PROMPT), replace(FAST, num_inference_steps=50), iterations=n) for n in (1, 6)
    ]
    rough, fine = (float(psnr(i.reconstruction[None], i.plain[None])) for i in inversions)
    assert fine > 25 and fine > rough
    sampling = replace(FAST, num_inference_steps=50)
    again = sample_images(text, Request(PROMPT), sampling, start=inversions[1].start)
    assert (again - inversions[1].reconstruction).abs().max() < 1e-5
    other = sample_images(
        text, Request("a small blue star"), replace(sampling, guidance_scale=9.0), start=inversions[1].start
    )
    assert (other - again).abs().max() > 1e-2


def test_the_noise_of_a_path_is_unit_noise_and_ends_in_that_of_both_seeds():
    weights = [0, 0.3, 1]
    noise = PathNoise([(SampleNoise(1, [4]), SampleNoise(2, [4]))] * 3, weights)
    x = noise.initial((30000,))
    a, b = SampleNoise(1, [4]).initial((30000,))[0], SampleNoise(2, [4]).initial((30000,))[0]
    assert torch.equal(x[0], a) and torch.equal(x[2], b)
    assert torch.equal(x[1], interpolate(a, b, 0.3)) and x[1].std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_path_ends_in_the_plain_samples_bit_for_bit(text, sampler):
    sampling, other = replace(FAST, sampler=sampler), "a small blue star on a grey background"
    points = [
        Request(PROMPT, toward=weight, toward_prompt=other, toward_seed=7) for weight in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    path = sample_images(text, points, sampling, seed=3, first_index=2, batch_size=1)
    assert torch.equal(path[:1], sample_images(text, Request(PROMPT), sampling, seed=3, first_index=2))
    assert torch.equal(path[-1:], sample_images(text, Request(other), sampling, seed=7, first_index=2))
    whole = sample_images(text, points, sampling, seed=3, first_index=2, batch_size=5)
    assert (whole - path).abs().max() < 1e-4
    steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
    assert (steps > 0).all() and (steps < (path[-1] - path[0]).norm() + 1e-3).all()


SHORT = ["--num-inference-steps", 8, "--device", "cpu", "--prompt", PROMPT]


@pytest.mark.parametrize(
    "flags",
    [
        ["--init-image", "picture.png", "--strength", 0.5],
        ["--init-image", "picture.png", "--mask", "mask.png", "--unmasked", "original"],
        ["--invert", "picture.png", "--prompt", "a small blue star", "--guidance-scale", 2],
        ["--interpolate-seed", 7, "--interpolate-prompt", "a star", "--num-images", 3],
    ],
    ids=["init-image", "mask", "invert", "interpolate"],
)
def test_a_picture_of_each_edit_is_made_again_from_itself(models, ldm, files, monkeypatch, flags):
    monkeypatch.chdir(files)
    count = ["--num-images", 2] if "--num-images" not in flags else []
    outcome = ldm("sample", models.text, *SHORT, *flags, *count, "--batch-size", 1, "--output-dir", "out")
    assert outcome.code == 0, outcome.err
    own = settings_in("out/000001.png")
    assert str(files) not in json.dumps(own.get("edit", {})), (
        "a file is identified by its name and content, not its folder"
    )
    given = [f for flag in ("--init-image", "--mask", "--invert") if flag in flags
             for f in (flag, flags[flags.index(flag) + 1])]  # fmt: skip
    again = ldm("sample", models.text, "--recreate", "out/000001.png", *given, "--device", "cpu", "--output-dir", "b")
    assert again.code == 0, again.err
    assert np.abs(pixels("b/000000.png") - pixels("out/000001.png")).max() <= 1
    assert settings_in("b/000000.png") == own
    if "--mask" in flags:
        assert (pixels("out/000001.png") == pixels("picture.png"))[:, :8].all()
    if "--invert" in flags:
        assert "dB PSNR of the plain reconstruction" in outcome.out and (files / "out" / "reconstruction.png").is_file()


def test_pictures_of_any_size_and_direction_are_cut_to_the_models(tmp_path, image):
    wide = torch.cat([image, image.flip(-1), image], 2)  # 16 x 48, its centre the mirrored picture
    save_png(to_pil(wide), tmp_path / "wide.png")
    source = read_image(tmp_path / "wide.png", 16)
    assert source.size == (48, 16) and (source.pixels - image.flip(-1)).abs().max() <= 1 / 127
    turned = Image.open(tmp_path / "wide.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it by 90 degrees clockwise", which undoes this
    turned.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "turned.png", 16).pixels, source.pixels)
    white = Image.new("RGB", (48, 16))
    white.paste((255, 255, 255), (16, 0, 24, 16))  # the left half of the middle square
    white.save(tmp_path / "mask.png")
    mask, _ = read_mask(tmp_path / "mask.png", source)
    assert mask.shape == (1, 16, 16) and (mask[..., :8] == 1).all() and (mask[..., 8:] == 0).all()
    with pytest.raises(UserError, match="one size"):
        read_mask(tmp_path / "mask.png", replace(source, size=(16, 16)))


def test_a_transparent_mask_keeps_what_is_transparent(files, text):
    """Painting programs erase to transparency and leave white under it; both kinds of inpainting take only what is
    white and opaque."""
    source, opaque = read_image(files / "picture.png", 16), Image.open(files / "mask.png")
    expected, _ = read_mask(files / "mask.png", source)
    layer = Image.new("RGBA", (16, 16), "white")
    layer.putalpha(opaque)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    energies = {}
    for name, mask in (("opaque", opaque), ("layer", layer), ("grey", layer.convert("LA"))):
        mask.save(files / f"{name}.png")
        assert torch.equal(read_mask(files / f"{name}.png", source)[0], expected), name
        energy = f"inpainting('{files}/picture.png', '{files}/{name}.png')"
        energies[name] = parse_energies([energy], text.networks)["energy"].function(images)
    assert torch.equal(energies["layer"], energies["opaque"]) and torch.equal(energies["grey"], energies["opaque"])
    layer.putalpha(0)
    layer.save(files / "clear.png")
    with pytest.raises(UserError, match="nothing is white and opaque"):
        read_mask(files / "clear.png", source)


def test_twelve_bits_in_a_file_of_sixteen_are_named(files, caplog):
    Image.fromarray(np.full((16, 16), 4095, dtype=np.uint16)).save(files / "deep.png")
    read_image(files / "deep.png", 16)
    assert "deep.png: uses 12 of its 16 bits, so it is dark; scale it to 65535" in caplog.text


def test_refused_in_one_line_before_any_work(models, refused, files):
    picture, mask = files / "picture.png", files / "mask.png"
    black = files / "black.png"
    Image.new("L", (16, 16)).save(black)
    (files / "no.png").write_text("not a picture")
    made = {
        ("--init-image", files / "nowhere.png"): ["--init-image", "no such file"],
        ("--init-image", files / "no.png"): ["--init-image", "not an image"],
        ("--init-image", picture, "--strength", 0): ["--strength", "above 0 and up to 1"],
        ("--init-image", picture, "--strength", "nan"): ["--strength", "nan"],
        ("--strength", 0.5): ["--init-image"],
        ("--mask", mask): ["--mask", "--init-image"],
        ("--init-image", picture, "--mask", black): ["nothing is white"],
        ("--init-image", picture, "--invert", picture): ["give one of them"],
        ("--source-prompt", "a"): ["--source-prompt", "--invert"],
        ("--invert", picture, "--inversion-iterations", 0): ["--inversion-iterations", "1 to 100"],
        ("--invert", picture, "--interpolate-seed", 1): ["--invert", "own noise"],
        ("--interpolate-seed", 1, "--num-images", 1): ["2 points or more"],
        ("--interpolate-prompt", "a", "--prompt", "b", "--prompt", "c"): ["one --prompt"],
    }
    for flags, words in made.items():
        refused(["sample", models.text, "--device", "cpu", *flags, "--output-dir", files / "out"], *words)
    flags = ["--device", "cpu", "--output-dir", files / "out"]
    refused(["sample", models.unconditional, *flags, "--interpolate-prompt", "a"], "not trained on text")
    refused(["sample", models.classes, *flags, "--interpolate-seed", "1"], "--class-label")
    refused(["sample", models.no_dropout, *flags, "--invert", picture], "no null class", "--source-class")


def test_a_mask_that_leaves_no_latent_is_told(models, ldm, files):
    speckled = np.zeros((16, 16), dtype=np.uint8)
    speckled[::2, ::2] = 255  # one pixel of each latent's 2 x 2
    Image.fromarray(speckled).save(files / "speckled.png")
    flags = ["--init-image", files / "picture.png", "--num-images", 1, "--num-inference-steps", 2, "--device", "cpu"]
    for mask, has_note in (("speckled.png", True), ("mask.png", False)):
        outcome = ldm("sample", models.text, *flags, "--mask", files / mask, "--output-dir", files / mask[:-4])
        assert outcome.code == 0 and ("touches every latent" in outcome.out) == has_note


def test_a_picture_is_not_made_again_from_another_one(models, ldm, refused, files):
    flags = ["--init-image", files / "picture.png", "--num-images", 1, "--output-dir", files / "out"]
    assert ldm("sample", models.text, *SHORT, *flags).code == 0
    again = ["sample", models.text, "--recreate", files / "out" / "000000.png", "--device", "cpu"]
    refused([*again, "--output-dir", files / "b"], "picture.png", "--init-image")
    hostile = settings_in(files / "out" / "000000.png")
    for part, key, value in (("request", "toward", 7.0), ("edit", "strength", -1), ("edit", "image", ["a"])):
        changed = {**hostile, part: {**hostile[part], key: value}}
        save_png(Image.open(files / "picture.png"), files / "hostile.png", {"ldm": json.dumps(changed)})
        given = ["--init-image", files / "picture.png", "--device", "cpu", "--output-dir", files / "b"]
        refused(["sample", models.text, "--recreate", files / "hostile.png", *given])
    other = ["--init-image", files / "mask.png"]
    refused([*again, *other, "--output-dir", files / "b"], "SHA-256")
