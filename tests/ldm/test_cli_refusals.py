"""A user's mistake: exit code 2, one line on stderr that says what would be right, and nothing made or changed."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

ESCAPE = "\x1b[31mred\x07"


def pictures(folder, count=6, names=("{}.png",), size=16):
    for number in range(count):
        path = folder / names[number % len(names)].format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def sample(model, output, *flags):
    short = ["--device", "cpu", "--num-inference-steps", "2", "--num-images", "1"]
    return ["sample", model, *short, *flags, "--output-dir", output]


# settings


def test_unknown_key_of_a_settings_file(models, refused, tmp_path):
    for text, words in {
        "training: {learning_rat: 1}": ["unknown key 'training.learning_rat'", 'did you mean "learning_rate"?'],
        "unett: {}": ["unknown key 'unett'", 'did you mean "unet"?'],
        "training: {learning_rate: fast}": ["training.learning_rate", "fast"],
        "training: {learning_rate: -1}": ["--learning-rate: expected above 0"],
        "training: [": ["not valid YAML", "line 2"],
        "training: ${oc.env:HOME}": ["interpolation"],
        "a: &a [1]\nb: *a": ["aliases"],
        "- 1": ["settings.yaml"],
        "unet: {block_out_channels: [8, x]}": ["Integer"],
        "!!python/object/apply:os.getcwd []": ["not valid YAML"],
        "\t": ["not valid YAML"],
    }.items():
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        refused(models.command("diffusion", tmp_path / "run", "--config", path), path, *words)
    path.write_bytes(b"\xff\xfe\x00")
    refused(models.command("diffusion", tmp_path / "run", "--config", path), "not a text file")


def test_settings_file_that_is_not_there(models, refused, tmp_path):
    words = ("neither a file nor a shipped name", 'did you mean "cifar10/diffusion"?')
    refused(models.command("diffusion", tmp_path / "run", "--config", "cifar10/difusion"), *words)
    refused(["train", "diffusion", "--config"], "--config needs a value")


def test_flags(models, refused, tmp_path):
    out = tmp_path / "out"
    refused(sample(models.text, out, "--guidence-scale", "3"), "--guidence-scale", "did you mean --guidance-scale?")
    refused(sample(models.text, out, "--seed", "x"), "seed", "'x'")
    refused(sample(models.text, out, "--num-images"), "--num-images")
    refused(sample(models.text, out, "extra"), "extra")
    refused(["train", "diffusion", "--beta-schedule", "linea"], "linea", "scaled_linear")


def test_commands(refused):
    refused(["smaple"], "unknown command 'smaple'", 'did you mean "sample"?')
    refused(["train", "autoencodr"], "cannot train 'autoencodr'", 'did you mean "autoencoder"?')
    refused(["list", "sampler"], "cannot list 'sampler'", 'did you mean "samplers"?')
    refused([ESCAPE], r"\x1b[31mred\x07")


@pytest.mark.parametrize(
    ("kind", "flags", "words"),
    [
        ("autoencoder", ["--learning-rate", -1], ["--learning-rate", "above 0"]),
        ("autoencoder", ["--learning-rate", "nan"], ["--learning-rate"]),
        ("autoencoder", ["--train-batch-size", 0], ["--train-batch-size", "above 0"]),
        ("autoencoder", ["--gradient-accumulation-steps", 5], ["--train-batch-size", "16", "not divisible", "5"]),
        ("autoencoder", ["--max-train-steps", 0], ["--max-train-steps"]),
        ("autoencoder", ["--fsdp"], ["--fsdp", "diffusion|classifier|prior", "train autoencoder"]),
        ("diffusion", ["--fsdp", "--optimizer", "muon"], ["--fsdp", "muon", "leave one of them out"]),
        ("autoencoder", ["--skip-non-finite", -1], ["--skip-non-finite", "0 or more"]),
        ("autoencoder", ["--dataloader-num-workers", 65], ["--dataloader-num-workers 65", "64 training images"]),
        ("autoencoder", ["--ema-decay", 1], ["--ema-decay", "[0, 1)"]),
        ("autoencoder", ["--image-size", 8], ["16 pixels"]),
        ("autoencoder", ["--image-size", 17], ["--image-size 17", "divisible"]),
        ("autoencoder", ["--block-out-channels", 8, 9], ["norm_num_groups"]),
        ("autoencoder", ["--bottleneck", "identity"], ["nothing to train"]),
        ("autoencoder", ["--in-channels", 1], ["3 channels"]),
        ("autoencoder", ["--validation-images", 0], ["--validation-images", "1 or more"]),
        ("autoencoder", ["--calibration-images", 0], ["--calibration-images"]),
        ("autoencoder", ["--mixed-precision", "fp16"], ["fp16", "CPU", "bf16"]),
        ("autoencoder", ["--device", "cuda:x"], ["--device", "auto, cuda, mps, cpu"]),
        ("autoencoder", ["--device", "tpu"], ["--device", "auto, cuda, mps, cpu"]),
        ("autoencoder", ["--resume-from-checkpoint", "checkpoint-7"], ["no such checkpoint"]),
        ("autoencoder", ["--shapes-train", 0], ["expected 1 or more"]),
        ("autoencoder", ["--flip"], ["--flip"]),
        ("diffusion", ["--autoencoder", "/nowhere"], ["--autoencoder /nowhere", "no such folder"]),
        ("diffusion", ["--autoencoder", ""], ["--autoencoder is missing"]),
        ("diffusion", ["--image-size", 17], ["--image-size 17", "divisible"]),
        ("diffusion", ["--block-out-channels", 8, 17], ["norm_num_groups"]),
        ("diffusion", ["--text-heads", 3], ["text_heads"]),
        ("diffusion", ["--num-train-timesteps", 1], ["--num-train-timesteps"]),
        ("diffusion", ["--beta-start", 0.5], ["--beta-start"]),
        ("diffusion", ["--condition-dropout", 1.5], ["condition_dropout"]),
        ("diffusion", ["--preview-images", -1], ["--preview-images"]),
        ("diffusion", ["--text-encoder", "./nowhere"], ["./nowhere", "no such folder"]),
        ("diffusion", ["--shapes-train", 32], ["stale", "images"]),
        ("diffusion", ["--shapes-seed", 1], ["stale", "images"]),
        ("classifier", ["--image-size", 17], ["--image-size 17", "divisible"]),
        ("classifier", ["--attention-head-dim", 7], ["attention_head_dim"]),
    ],
)
def test_numbers_and_names_of_a_training(models, refused, tmp_path, kind, flags, words):
    refused(models.command(kind, tmp_path / "run", *flags), *words)


def test_a_run_of_other_settings_is_not_taken_up(models, refused):
    """All that differs is listed with both values, whichever part of the settings it is in."""
    flags = ["--learning-rate", 0.5, "--block-out-channels", 8, 24, "--condition-dropout", 0.3]
    words = ["other settings", "training.learning_rate was 0.01, is 0.5", "unet.block_out_channels was [8, 16], is [8"]
    words += ["conditioning.condition_dropout was 0.1, is 0.3", "give another folder"]
    refused(models.command("diffusion", models.text, *flags, steps=60), *words)


def test_latents_of_another_autoencoder_are_stale(models, refused, tmp_path):
    flags = ("--autoencoder", models.other_autoencoder)
    refused(models.command("diffusion", tmp_path / "run", *flags), models.root / "latents", "stale", "autoencoder")
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "thesis.txt").write_text("my only copy")
    flags = ("--latents", tmp_path / "latents")
    refused(models.command("diffusion", tmp_path / "run", *flags), "holds something else", "thesis.txt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(models, refused, tmp_path):
    words = ("--device cuda: not available on this machine", "--device cpu")
    refused(models.command("autoencoder", tmp_path / "run", "--device", "cuda"), *words)
    refused([*sample(models.text, tmp_path / "out"), "--device", "cuda"], *words)


# data


def test_folders_of_images(models, refused, tmp_path):
    def command(folder, *flags):
        return models.command("autoencoder", tmp_path / "run", "--data", folder, *flags)

    refused(command(tmp_path / "nowhere"), "nowhere", "neither a folder nor a known name")
    refused(command("shapse"), 'did you mean "shapes"?')
    (tmp_path / "empty").mkdir()
    refused(command(tmp_path / "empty"), "empty", "no file", ".png")
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text("not an image")
    refused(command(tmp_path / "texts"), "texts", "3 files, none an image")
    refused(command("cifar10", "--data-root", tmp_path / "nowhere"), "cifar10", "--download")
    pictures(tmp_path / "one", 1)
    refused(command(tmp_path / "one"), "at least two")


def test_a_truncated_image_beyond_the_limit(models, ldm, refused, tmp_path):
    folder = pictures(tmp_path / "images", 24)
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    command = models.command("autoencoder", tmp_path / "run", "--data", folder, "--validation-fraction", 0.3)
    refused(command, "3.png", "1 ", "--max-bad-images")
    refused([*command, "--max-bad-images", "0"], "3.png")
    assert ldm(*command, "--max-bad-images", "1", "--max-train-steps", "1").code == 0


def test_names_from_files_are_inert(models, refused, tmp_path):
    folder = pictures(tmp_path / "images", 6)
    (folder / f"{ESCAPE}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13))
    message = refused(models.command("autoencoder", tmp_path / "run", "--data", folder), "red")
    assert "\x1b" not in message and "\x07" not in message
    model = tmp_path / "model"
    shutil.copytree(models.classes, model, ignore=shutil.ignore_patterns("checkpoint-*", "latents"))
    facts = json.loads((model / "conditioning.json").read_text())
    facts["class_names"][0] = ESCAPE
    (model / "conditioning.json").write_text(json.dumps(facts))
    (model / "model_manifest.json").unlink()  # it is edited on purpose
    message = refused(sample(model, tmp_path / "out", "--class-label", "dog"), "unknown class 'dog'")
    assert "\x1b" not in message and "\x07" not in message


def test_a_classifier_needs_classes(models, refused, tmp_path):
    folder = pictures(tmp_path / "images")
    command = models.command("classifier", tmp_path / "run", "--data", folder, "--latents", tmp_path / "latents")
    refused(command, "two classes or more")


# models


def test_what_a_model_cannot_do(models, refused, tmp_path):
    def case(model, flags, *words):
        refused(sample(model, tmp_path / "out", *flags), *words)

    classes, text = models.classes, models.text
    known = "circle, cross, ring, square, star, triangle"
    case(classes, ["--class-label", "sqare"], "unknown class 'sqare'", known, 'did you mean "square"?')
    case(classes, ["--class-label", "6"], "unknown class 6", "0 to 5")
    case(classes, ["--class-label", "-1"], "unknown class -1")
    case(classes, ["--negative-class", "dog", "--guidance-scale", "3"], "unknown class 'dog'", known)
    case(classes, ["--prompt", "a circle"], "--prompt", "not trained on text", "circle, square")
    case(classes, ["--negative-prompt", "red", "--guidance-scale", "3"], "--negative-prompt", "use --negative-class")
    case(classes, ["--negative-class", "star", "--guidance-scale", "1"], "--guidance-scale, which is off")
    case(classes, ["--sampler", "dpmp_2m"], "there is no sampler 'dpmp_2m'", "ddim, ddpm", 'did you mean "dpmpp_2m"?')
    case(classes, ["--sampler", "ddim(eta=2"], "--sampler")
    case(classes, ["--sampler", "__import__('os').getcwd()"], "--sampler", "expected a name or a call of literals")
    case(classes, ["--guidance", "cfgx(3)"], 'did you mean "cfg"?')
    case(classes, ["--spacing", "trialing"], "trialing", "leading", "trailing", "linspace", "karras")
    case(classes, ["--classifier-scale", "1"], "has no classifier", "--classifier")
    case(classes, ["--classifier", tmp_path / "nowhere"], "no classifier/config.json")
    case(classes, ["--num-inference-steps", "2000"], "2000 steps", "1000")
    words = ("--guidance-scale 3", "without condition dropout", "--condition-dropout 0.1")
    case(models.no_dropout, ["--guidance-scale", "3"], *words)
    case(models.no_dropout, ["--guidance", "cfg(3)"], "without condition dropout")
    case(models.unconditional, ["--guidance-scale", "3"], "unconditional")
    case(models.unconditional, ["--class-label", "circle"], "knows no classes")
    case(text, ["--class-label", "circle"], "--class-label", "add --classifier-scale or use --prompt")
    case(text, ["--negative-class", "circle", "--guidance-scale", "3"], "--negative-class", "use --negative-prompt")
    case(text, ["--negative-prompt", "red", "--guidance-scale", "1"], "--guidance-scale, which is off")
    case(text, ["--classifier", models.other_classifier], "latents of another autoencoder")
    case(text, ["--classifier", models.classifier, "--classifier-scale", "1"], "--class-label")
    os.mkfifo(tmp_path / "pipe")
    for flags, word in {
        ("--num-images", "0"): "--num-images: expected 1 or more",
        ("--batch-size", "0"): "--batch-size: expected 1 or more",
        ("--first-index", "-1"): "--first-index",
        ("--recreate", str(tmp_path / "x.png")): "no such file",
        ("--recreate", __file__): "not an image made by `ldm sample`",
        ("--recreate", tmp_path / "pipe"): "a pipe; expected a regular file",
        ("--recreate", "/dev/zero"): "a device; expected a regular file",
    }.items():
        case(text, flags, word)


PARTS = ["vae", "unet", "scheduler", "text_encoder", "tokenizer", "conditioning.json", "model_index.json"]


@pytest.mark.parametrize("part", PARTS)
def test_a_model_folder_with_a_missing_part(models, refused, tmp_path, part):
    model = tmp_path / "model"
    shutil.copytree(models.text, model, ignore=shutil.ignore_patterns("checkpoint-*", "latents", part))
    refused(sample(model, tmp_path / "out"), model, part)
    refused(["evaluate", model, "--device", "cpu"], model, part)
    refused(["compare", model, "--device", "cpu", "--output-dir", tmp_path / "out"], model, part)


def test_folders_that_are_no_model(models, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(sample(tmp_path / "nowhere", tmp_path / "out"), "nowhere: no such folder")
    refused(sample(tmp_path / "empty", tmp_path / "out"), "empty", "model_index.json")
    refused(sample(models.autoencoder, tmp_path / "out"), "without diffusion", "ldm train diffusion")
    refused(sample(models.text / "metrics.jsonl", tmp_path / "out"), "no such folder")
    refused(["sample", "--output-dir", tmp_path / "out"], "MODEL is missing")
    refused(models.command("diffusion", tmp_path / "run", "--autoencoder", tmp_path / "empty"), "vae/config.json")
    refused(models.command("diffusion", tmp_path / "run", "--autoencoder", models.text / "unet"), "--autoencoder")


def test_pictures_that_claim_to_be_ours(models, ldm, refused, tmp_path):
    """A picture may come from anybody: its settings are data of known kinds, or it is not one of ours."""
    from ldm.runtime.images import save_png

    assert ldm(*sample(models.text, tmp_path / "made")).code == 0
    with Image.open(tmp_path / "made" / "000000.png") as picture:
        own = json.loads(picture.text["ldm"])
    sampling, request = own["sampling"], own["request"]
    hostile = [
        {**own, "seed": "x"},
        {**own, "index": None},
        {**own, "request": {**request, "class_label": "x"}},
        {**own, "request": {**request, "prompt": 7}},
        {**own, "request": 7},
        {**own, "sampling": {**sampling, "guidance_scale": "much"}},
        {**own, "sampling": {**sampling, "guidance_interval": [1]}},
        {**own, "sampling": {**sampling, "system": "ls"}},
        {name: value for name, value in own.items() if name != "seed"},
        7,
    ]
    for number, facts in enumerate(hostile):
        path = tmp_path / f"{number}.png"
        save_png(Image.new("RGB", (16, 16)), path, {"ldm": json.dumps(facts)})
        refused(sample(models.text, tmp_path / "out", "--recreate", path), "not an image made by `ldm sample`")
    save_png(Image.new("RGB", (16, 16)), path, {"ldm": json.dumps({**own, "sampling": {**sampling, "sampler": "x"}})})
    refused(sample(models.text, tmp_path / "out", "--recreate", path), "no sampler 'x'")


# output folders


def test_an_output_folder_that_holds_something_else(models, refused, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("my only copy")
    encode = ["encode", "--autoencoder", models.autoencoder, "--image-size", "16", "--device", "cpu"]
    compare = ["compare", models.text, "--device", "cpu", "--num-images", "4"]
    for command in (
        *(models.command(kind, other) for kind in ("autoencoder", "diffusion", "classifier")),
        sample(models.text, other),
        sample(models.text, other, "--overwrite"),
        [*encode, "--output-dir", other],
    ):
        refused(command, other, "holds something else")
        refused([*command, "--output-dir", other / "thesis.txt"], "thesis.txt", "file")
    refused([*compare, "--output-dir", other], other)
    refused(models.command("autoencoder", models.text), "holds a run of `train diffusion`, not of `train autoencoder`")
    other = ("--seed", 9, "--learning-rate", 1, "--text-width", 24)
    words = ("text_width was 16, is 24", "training.learning_rate", "training.seed was 0, is 9")
    refused(models.command("diffusion", models.text, *other, steps=60), *words)


def test_the_current_folder_is_not_replaced(models, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(sample(models.text, "."), "current folder")


def test_earlier_samples_are_replaced_only_on_request(models, ldm, refused, tmp_path):
    command = sample(models.text, tmp_path / "out")
    assert ldm(*command).code == 0
    refused([*command, "--seed", "1"], "holds earlier samples of other settings (seed was 0, is 1)", "--overwrite")
    assert ldm(*command, "--overwrite", "--seed", "1").code == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["seed"] == 1


def test_evaluate(models, refused, tmp_path):
    folder = pictures(tmp_path / "images")
    refused(["evaluate"], "give either a model folder, or --real FOLDER and --fake FOLDER")
    refused(["evaluate", models.text, "--real", folder, "--fake", folder], "either")
    refused(["evaluate", "--real", folder], "--fake is missing")
    refused(["evaluate", "--real", folder, "--fake", tmp_path / "nowhere", "--device", "cpu"], "nowhere")
    refused(["evaluate", models.text, "--device", "cpu", "--image-size", "32"], "--image-size 32", "16 pixels")
    refused(["evaluate", models.text, "--device", "cpu", "--split", "test"], 'unknown split "test"')
    refused(["evaluate", models.text, "--device", "cpu", "--num-images", "1"], "--num-images")
    given = ["--classifier", models.classifier, "--num-images", "1"]
    refused(["evaluate", models.text, "--device", "cpu", *given], "--num-images: expected 4 or more")
    refused(["evaluate", models.text, "--device", "cpu", "--metrics", "fud"], "unknown metric 'fud'", '"fid"')
    refused(["evaluate", models.text, "--device", "cpu", "--output", tmp_path], "is a folder")
    refused(["evaluate", models.text, "--device", "cpu", "--classifier-scale", "1"], "has no classifier")
    refused(["evaluate", models.text, "--device", "cpu", "--extractor", "inceptoin"], "--extractor", "inceptoin")
    refused(["evaluate", models.text, "--device", "cpu", "--reference", tmp_path / "no.npz"], "no.npz: no such file")
    refused(["evaluate", models.text, "--device", "cpu", "--resize", 8], "--resize: is for folders")
    refused(["evaluate", "--fake", folder, "--device", "cpu"], "--real is missing", "--reference FILE")
    refused(["evaluate", "--real", folder, "--fake", folder, "--reference", "a.npz"], "give one of them")
    refused(["evaluate", "--real", folder, "--fake", folder, "--resize", 0], "--resize: expected 1 to 4096")
    (tmp_path / "empty").mkdir()
    refused(["evaluate", "--real", tmp_path / "empty", "--fake", folder, "--device", "cpu"], "empty: holds no file")
    one = pictures(tmp_path / "one", count=1)
    refused(["evaluate", "--real", folder, "--fake", one, "--device", "cpu"], "one: holds 1 image")
    larger = pictures(tmp_path / "larger", size=24)
    refused(["evaluate", "--real", folder, "--fake", larger, "--device", "cpu"], "24 x 24", "--resize PIXELS")
    broken = pictures(tmp_path / "broken")
    name = min(path.name for path in broken.iterdir())
    (broken / name).write_bytes((broken / name).read_bytes()[:40])
    evaluate = ["evaluate", "--real", folder, "--fake", broken, "--device", "cpu"]
    refused(evaluate, f"broken/{name}: ", "remove or replace it")


def test_a_reference_is_made_once_and_refused_for_others(models, ldm, refused, tmp_path):
    shapes = ["shapes", "--image-size", 16, "--shapes-train", 64, "--shapes-validation", 32, "--device", "cpu"]
    out = tmp_path / "reference.npz"
    refused(["evaluate", "reference", *shapes], "--output is missing")
    refused(["evaluate", "reference", *shapes, "--output", tmp_path / "a.json"], "a.json", ".npz")
    refused(["evaluate", "reference", "shopes", "--output", out], "shopes", '"shapes"')
    refused(["evaluate", "reference", *shapes, "--data", "cifar10", "--output", out], "name the data once")
    assert not out.exists()
    made = ldm("evaluate", "reference", *shapes, "--extractor", "trained", "--output", out)
    assert made.code == 0 and "32 images of shapes (validation, 16 pixels)" in made.out and out.is_file()
    few = ["--device", "cpu", "--num-images", 8, "--num-inference-steps", 2, "--no-judge", "--metrics", "fid"]
    found = ldm("evaluate", models.text, *few, "--reference", out)
    assert found.code == 0 and "reference: file reference.npz" in found.out and "floor: the same of 8" in found.out
    command = ["evaluate", models.text, *few, "--reference", out]
    refused([*command, "--split", "train"], "made of shapes (validation", "--allow-other-reference")
    refused([*command, "--shapes-seed", 3], "made of shapes (validation", "--allow-other-reference")
    assert ldm(*command, "--shapes-validation", 24, "--allow-other-reference").code == 0
    refused(["compare", *command[1:], "--shapes-seed", 3, "--output-dir", tmp_path / "out"], "--allow-other-reference")


def test_compare(models, refused, tmp_path):
    refused(["compare", models.text, "--device", "cpu", "--output-dir", tmp_path / "out", "--methods", "cfq"], '"cfg"')
    refused(
        ["compare", models.text, "--device", "cpu", "--output-dir", tmp_path / "out", "--methods", "classifier"],
        "no classifier",
    )
