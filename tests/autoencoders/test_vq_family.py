"""Cosine, product and residual quantisation, codes from data, and weights with beta on the codebook term."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from autoencoders import Autoencoder, AutoencoderConfig
from autoencoders.bottlenecks.vq_family import CosineQuantizer, ProductQuantizer, ResidualQuantizer

CHANNELS = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def latents(batch=4, size=6, seed=0):
    return torch.randn(batch, CHANNELS, size, size, dtype=torch.float64, generator=generator(seed))


FAMILY = {
    "cosine": lambda **options: CosineQuantizer(16, CHANNELS, **{"codebook": "gradient", **options}),
    "product": lambda **options: ProductQuantizer(3, 16, CHANNELS, **{"codebook": "gradient", **options}),
    "residual": lambda **options: ResidualQuantizer(3, 16, CHANNELS, **{"codebook": "gradient", **options}),
}


def made(name, **options):
    model = FAMILY[name](**options).double()
    model.initialise(latents(), generator(1))
    return model


@pytest.mark.parametrize("name", FAMILY)
def test_codes_round_trip(name):
    model, z = made(name), latents(seed=2)
    indices = model.indices(z)
    assert indices.shape == ((4, 6, 6) if name == "cosine" else (4, 3, 6, 6))
    quantised = model.lookup(indices)
    assert quantised.shape == z.shape
    torch.testing.assert_close(model.decode(z), quantised)
    if name != "residual":  # there, greedy stages may come upon another sum
        assert torch.equal(model.indices(quantised), indices)
    torch.testing.assert_close(model(z, None).latents, quantised)


@pytest.mark.parametrize("name", FAMILY)
def test_gradient_passes_straight_through_and_each_term_moves_its_own_side(name):
    model, z = made(name), latents(seed=2).requires_grad_()
    output, upstream = model(z, None), latents(seed=3)
    expected = upstream
    if name == "cosine":  # straight through to the point on the sphere, and from there to the features
        expected = torch.autograd.grad(F.normalize(z, dim=1), z, upstream)[0]
    torch.testing.assert_close(torch.autograd.grad(output.latents, z, upstream, retain_graph=True)[0], expected)
    codes = list(model.parameters())
    both = [z, *codes]
    of_codebook = torch.autograd.grad(output.losses["codebook"], both, allow_unused=True, retain_graph=True)
    of_commitment = torch.autograd.grad(output.losses["commitment"], both, allow_unused=True)
    assert of_codebook[0] is None and all(each.abs().sum() > 0 for each in of_codebook[1:])
    assert of_commitment[0].abs().sum() > 0 and all(each is None for each in of_commitment[1:])


@pytest.mark.parametrize("name", FAMILY)
def test_perplexity_counts_codes(name):
    model = made(name).eval()
    metrics = model(latents(batch=16), None).metrics
    assert 1 < metrics["perplexity"] <= metrics["used_codes"] <= 16
    same = torch.ones(2, CHANNELS, 3, 3, dtype=torch.float64)
    assert model(same, None).metrics["perplexity"].item() == pytest.approx(1)


def test_cosine_looks_at_directions_alone():
    model, z = made("cosine"), latents(seed=2)
    cosines = torch.einsum("bchw,kc->bhwk", F.normalize(z, dim=1), F.normalize(model.embedding.weight, dim=1))
    assert torch.equal(model.indices(z), cosines.argmax(-1))
    assert torch.equal(model.indices(7 * z), model.indices(z))
    norms = torch.ones(4, 6, 6, dtype=torch.float64)
    for vectors in (model.encode(z).mean, model.decode(z)):
        torch.testing.assert_close(vectors.norm(dim=1), norms)
    commitment = model(z, None).losses["commitment"]
    torch.testing.assert_close(commitment, 0.25 * (2 - 2 * cosines.amax(-1)).mean() / CHANNELS)


def test_product_is_a_quantiser_for_each_group():
    model, z = made("product"), latents(seed=2)
    for place, (group, quantiser) in enumerate(zip(z.split(2, 1), model.quantizers(), strict=True)):
        torch.testing.assert_close(model.decode(z)[:, 2 * place : 2 * place + 2], quantiser.decode(group))
    apart = [q(group, None).losses["codebook"] for q, group in zip(model.quantizers(), z.split(2, 1), strict=True)]
    expected = torch.stack(apart).mean()
    torch.testing.assert_close(model(z, None).losses["codebook"], expected)
    torch.testing.assert_close(expected, F.mse_loss(model.decode(z), z))  # a mean over all elements


def test_residual_error_falls_with_each_stage():
    model, z = made("residual", codebook="ema", codebook_decay=0.8).train(), latents(batch=8)
    for _ in range(60):
        model(z, generator(4))
    model.eval()
    for data in (z, latents(batch=8, seed=9)):  # held out, too
        stages = zip(model.quantizers(), model.indices(data).unbind(1), strict=True)
        codes = [stage.lookup(index) for stage, index in stages]
        errors = [data.square().mean().item()]
        errors += [(data - sum(codes[: stage + 1])).square().mean().item() for stage in range(3)]
        assert errors == sorted(errors, reverse=True) and errors[3] < 0.6 * errors[1]
        torch.testing.assert_close(sum(codes), model.decode(data))
        commitment = model(data, None).losses["commitment"].item()
        assert commitment == pytest.approx(0.25 * sum(errors[1:]), rel=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_revival_brings_dead_codes_into_use(name):
    model, z = FAMILY[name](codebook="ema", codebook_decay=0.9, revive_after=3).double().train(), latents(batch=16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(5.0, 6.0, generator=generator())
    draws = generator(4)
    for _ in range(60):
        output = model(z, draws)
    assert output.metrics["used_codes"] > 0.9 * 16


@pytest.mark.parametrize("name", FAMILY)
def test_codes_from_data_are_vectors_of_the_sample(name):
    model = made(name)
    first = model if name == "cosine" else model.quantizers()[0]
    own = first.vectors(latents()[:, : first.embedding.weight.shape[1]]).permute(0, 2, 3, 1).flatten(0, 2)
    assert (first.embedding.weight[:, None] == own).all(-1).any(1).all()
    assert len(first.embedding.weight.unique(dim=0)) == 16
    with pytest.raises(ValueError, match=r"num_codes 16: larger than the sample .* codebook, 9") as refusal:
        model.initialise(latents(batch=1, size=3), generator())
    assert "\n" not in str(refusal.value)


def test_refusals():
    with pytest.raises(ValueError, match="divisor of 6 channels"):
        ProductQuantizer(4, 16, CHANNELS)
    with pytest.raises(ValueError, match="num_quantizers: expected a divisor of 6 channels, got 4"):
        AutoencoderConfig(bottleneck="product_vq", latent_channels=6)
    with pytest.raises(ValueError, match=r"indices: expected \(B, 3, h, w\), got \(1, 6, 6\)"):
        made("product").lookup(torch.zeros(1, 6, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="has no codebook"):
        Autoencoder(AutoencoderConfig()).initialise_codebook([], generator())


def test_old_weights_load_with_beta_on_the_codebook_term(tmp_path):
    """Rombach's and Esser's code: beta * ||sg(z_e) - e||^2 + ||z_e - sg(e)||^2; the paper's equation 3 has it the other
    way. The sum is the same number: the gradients differ, by 1 / beta and beta."""
    config = AutoencoderConfig("vq", block_out_channels=(8, 16), norm_num_groups=4, num_codes=32, codebook="gradient")
    Autoencoder(config).save_pretrained(tmp_path)
    ours = Autoencoder.from_pretrained(tmp_path)
    old = Autoencoder.from_pretrained(tmp_path, commitment_on="codebook")
    assert old.config == replace(ours.config, commitment_on="codebook")
    images = torch.rand(2, 3, 16, 16, generator=generator()) * 2 - 1
    first, second = ours(images), old(images)
    assert torch.equal(first.reconstruction, second.reconstruction)
    squared = F.mse_loss(ours.encode(images).mean, ours.quantize.decode(ours.encode(images).mean)).item()
    found = [{name: value.item() for name, value in output.losses.items()} for output in (first, second)]
    assert found[0] == pytest.approx({"codebook": squared, "commitment": 0.25 * squared}, rel=1e-4)
    assert found[1] == pytest.approx({"codebook": 0.25 * squared, "commitment": squared}, rel=1e-4)
    gradients = []
    for model, output in ((ours, first), (old, second)):
        sides = [model.quantize.embedding.weight, model.encoder.conv_out.weight]
        gradients.append(torch.autograd.grad(sum(output.losses.values()), sides))
    torch.testing.assert_close(gradients[1][0], 0.25 * gradients[0][0])
    torch.testing.assert_close(gradients[1][1], 4 * gradients[0][1])
    Autoencoder(AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4)).save_pretrained(tmp_path / "kl")
    with pytest.raises(ValueError, match="belongs to a codebook"):
        Autoencoder.from_pretrained(tmp_path / "kl", commitment_on="codebook")
