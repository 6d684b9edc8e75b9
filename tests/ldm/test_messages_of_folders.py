"""Refusals before work begins that speak of what the user gave: sizes, folders of others, messages in whole."""

import json

import pytest

from ldm.conditioning.text_encoder import _load_tokenizer, _refused
from ldm.runtime.errors import UserError
from ldm.runtime.text import one_line


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_a_size_that_the_network_cannot_halve_is_refused_before_the_latents_are_encoded(
    models, refused, tmp_path, kind
):
    latents = tmp_path / "latents"
    flags = ("--image-size", 18, "--latents", latents)
    words = ("--image-size 18", "latents of 9 x 9", "halved 1 time;", "take 16 or 20", "--block-out-channels")
    refused(models.command(kind, tmp_path / "run", *flags), *words)
    assert not latents.exists()


def test_a_folder_of_another_pipeline_says_what_it_is(refused, tmp_path):
    def folder(name, **parts):
        index = {"_class_name": name, **{part: ["diffusers", kind] for part, kind in parts.items()}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps(index))
        return tmp_path / name

    out = ("--output-dir", tmp_path / "out")
    pixels = folder("DDPMPipeline", unet="UNet2DModel", scheduler="DDPMScheduler")
    refused(["sample", pixels, *out], "a DDPMPipeline of scheduler, unet, without vae", "--autoencoder identity")
    transformer = folder("DiTPipeline", transformer="DiTTransformer2DModel", vae="AutoencoderKL")
    refused(["sample", transformer, *out], "a DiTPipeline of transformer, vae, without unet")
    refused(["evaluate", pixels], "without vae")


def test_messages_of_other_libraries_are_given_in_whole(tmp_path):
    with pytest.raises(UserError, match=r"one of: \(1\) a file \(2\) a slow tokenizer$"), _refused("here", "tokenizer"):
        raise ValueError("no tokenizer from one of: \n(1) a file\n(2) a slow tokenizer")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no vocabulary of a tokenizer in it; expected tokenizer\.json, vocab\.json"):
        _load_tokenizer(str(tmp_path), True)
    assert one_line(KeyError()) == "KeyError" and one_line("a b  c\n d") == "a b c d"
    assert one_line("word " * 100, 22) == "word word word word ..."
