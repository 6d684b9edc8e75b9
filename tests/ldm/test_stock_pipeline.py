"""A folder of our parts is a `StableDiffusionPipeline`, and gives there what our own parts give."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from ldm.conditioning.condition import Condition
from ldm.conditioning.conditioner import Conditioner
from ldm.conditioning.config import ConditioningConfig
from ldm.models.unet import UNet, UNetConfig

CAPTIONS = ["a red circle", "a large blue square", "green star"]
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}


@pytest.mark.filterwarnings("ignore")
def test_a_model_folder_runs_in_a_stock_pipeline(tmp_path):
    torch.manual_seed(0)
    config = ConditioningConfig(text_width=16, text_layers=1, text_heads=2, vocab_size=560)
    conditioner = Conditioner.build(config, (), CAPTIONS).eval()
    unet = UNet(
        UNetConfig(
            sample_size=8,
            block_out_channels=(16, 32),
            attention=(False, True),
            norm_num_groups=8,
            layers_per_block=1,
            cross_attention_dim=conditioner.context_dim,
        )
    ).eval()
    for parameter in unet.parameters():  # zero initialisation would hide every difference
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    conditioner.save_pretrained(tmp_path)
    unet.save_pretrained(tmp_path / "unet")
    vae = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=1.0)  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)  # a stock pipeline insists on both
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))

    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    prompts, negatives = ["a large RED star", "blue circle"], ["", "green"]
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        prompts,
        negative_prompt=negatives,
        latents=noise.clone(),
        num_inference_steps=2,
        guidance_scale=7.5,
        height=16,
        width=16,
        output_type="latent",
    ).images

    with torch.no_grad():
        condition = Condition.cat([conditioner.encode(None, negatives), conditioner.encode(None, prompts)])
        x = noise
        scheduler.set_timesteps(2)
        for t in scheduler.timesteps:
            uncond, cond = unet(x.repeat(2, 1, 1, 1), t.float(), context=condition.context).chunk(2)
            x = scheduler.step(uncond + 7.5 * (cond - uncond), t, x).prev_sample
    torch.testing.assert_close(theirs, x, rtol=0, atol=1e-4)
    assert (theirs[0] - theirs[1]).abs().max() > 0.1
    assert pipeline.tokenizer.model_max_length == conditioner.text.max_tokens
