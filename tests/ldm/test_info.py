"""`ldm info`: what a folder holds."""

from ldm.sampling.pipeline import Pipeline


def test_runs_models_and_autoencoders(models, ldm):
    found = ldm("info", models.text)
    assert found.code == 0, found.err
    lines = dict(line.split(": ", 1) for line in found.out.splitlines())
    unet = Pipeline.load(models.text).networks.unet
    count = sum(parameter.numel() for parameter in unet.parameters())
    assert lines["unet"].startswith(f"{count:,} parameters, ") and "sample_size 8" in lines["unet"]
    assert lines["run"] == "ldm train diffusion" and lines["trained"] == "60 steps"
    assert lines["text"] == "yes; condition dropout: 0.1" and "vae" in lines and "checkpoint" in found.out
    autoencoder = ldm("info", models.autoencoder / "vae")
    assert autoencoder.code == 0 and autoencoder.out.startswith("AutoencoderKL: ")
    assert "held out: psnr" in ldm("info", models.autoencoder).out
    assert "classes: 6: circle" in ldm("info", models.classes).out


def test_what_holds_nothing_is_refused(models, refused, tmp_path):
    refused(["info", tmp_path], "holds no run, model or autoencoder")
    refused(["info", tmp_path / "nowhere"], "no such folder")
    refused(["info"], "FOLDER is missing")
