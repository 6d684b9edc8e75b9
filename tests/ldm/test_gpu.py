"""On a GPU everything runs on it, and what comes out is what the CPU gives, up to its precision."""

import json

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "classifier"])
def test_a_training_on_the_gpu(models, ldm, tmp_path, kind):
    flags = ("--device", "cuda", "--latents", tmp_path / "latents") if kind != "autoencoder" else ("--device", "cuda")
    torch.cuda.reset_peak_memory_stats()
    assert ldm(*models.command(kind, tmp_path / "gpu", *flags, "--mixed-precision", "no", steps=8)).code == 0
    assert torch.cuda.max_memory_allocated() > 0
    assert ldm(*models.command(kind, tmp_path / "cpu", *flags, "--device", "cpu", steps=8)).code == 0
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").open() if "loss" in json.loads(line)]
        for run in ("gpu", "cpu")
    ]
    assert len(losses[0]) == len(losses[1]) == 8
    # Noise is drawn on the device, so the numbers differ: the loss of the first step is of the same size.
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.5)


def test_bf16_is_the_default_of_a_training(models, ldm, tmp_path):
    if not torch.cuda.is_bf16_supported():
        pytest.skip("this device has no bf16")
    from ldm.training.config import TrainingConfig
    from ldm.training.processes import make_accelerator

    assert make_accelerator(TrainingConfig(device="cuda"), torch.device("cuda")).mixed_precision == "bf16"
    flags = ("--device", "cuda", "--latents", tmp_path / "latents")
    assert ldm(*models.command("diffusion", tmp_path / "run", *flags)).code == 0


def test_samples_are_those_of_the_cpu(models):
    from ldm.sampling.config import Request, SamplingConfig
    from ldm.sampling.pipeline import Pipeline

    requests = [Request("a large red circle", "blue", class_label=number % 6) for number in range(4)]
    pictures = []
    for device in ("cpu", "cuda"):
        pipeline = Pipeline.load(models.text, classifier=models.classifier, device=device)
        pipeline.autocast = None
        tf32 = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            for sampler in ("ddim", "ddpm"):
                sampling = SamplingConfig(sampler, 8, guidance_scale=3.0, classifier_scale=1.0)
                drawn = torch.cat(list(pipeline.generate(requests, sampling, seed=1)))
                assert drawn.device.type == device
                pictures.append(drawn.cpu())
        finally:
            torch.backends.cudnn.allow_tf32 = tf32
    for cpu, gpu in zip(pictures[:2], pictures[2:], strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=0, atol=5e-3)


def test_bf16_samples_look_the_same(models):
    from ldm.sampling.config import Request, SamplingConfig
    from ldm.sampling.pipeline import Pipeline

    sampling = SamplingConfig(num_inference_steps=8, guidance_scale=1.0)
    cpu, gpu = (
        next(Pipeline.load(models.text, device=device).generate([Request("a star")] * 4, sampling)).cpu()
        for device in ("cpu", "cuda")
    )
    assert (cpu - gpu).abs().mean() < 0.05


def test_evaluation_on_the_gpu(models, ldm, tmp_path):
    small = ["--num-images", 8, "--num-inference-steps", 2, "--no-judge", "--extractor", "trained"]
    found = ldm("evaluate", models.text, *small, "--device", "cuda", "--output", tmp_path / "figures.json")
    assert found.code == 0 and "FD[" in found.out


def test_latents_on_the_gpu_in_memory_and_on_disk_train_alike(models, ldm, tmp_path):
    first = {}
    for place in ("cuda", "auto", "cpu", "disk"):
        flags = ("--device", "cuda", "--latents", tmp_path / "latents", "--cache-device", place)
        assert ldm(*models.command("diffusion", tmp_path / place, *flags, "--mixed-precision", "no", steps=1)).code == 0
        first[place] = json.loads((tmp_path / place / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert len(set(first.values())) == 1, first


def test_a_dry_run_tells_what_the_gpu_held(models, ldm, tmp_path):
    found = ldm(*models.command("diffusion", tmp_path / "run", "--device", "cuda"), "--dry-run")
    assert found.code == 0 and "the GPU held at most" in found.out and not (tmp_path / "run").exists()
