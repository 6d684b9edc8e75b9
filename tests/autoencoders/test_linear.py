"""The linear autoencoder: its error is the sum of the eigenvalues left out, and no rescaling changes it."""

from __future__ import annotations

import pytest
import torch

from autoencoders import Autoencoder, AutoencoderConfig, fit_linear, measure_latents
from autoencoders.fitting import Covariance, patches_of


def images(count=40, size=16, seed=0):
    """Smooth pictures far from zero mean, so that the components matter and so does centring."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 4, size // 4, generator=draws)
    fine = torch.randn(count, 3, size, size, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return 0.4 + 0.2 * smooth + 0.02 * fine


def linear(latents, patch):
    return Autoencoder(AutoencoderConfig(bottleneck="linear", latent_channels=latents, patch_size=patch)).eval()


def error(model, x):
    """Squared error of a patch, summed over its numbers, mean over patches; in float64."""
    model = model.double()
    patches = x.shape[0] * (x.shape[2] // model.factor) * (x.shape[3] // model.factor)
    with torch.no_grad():
        return ((model(x.double()).reconstruction - x.double()).square().sum() / patches).item()


@pytest.mark.parametrize(("latents", "patch", "count"), [(1, 4, 20), (12, 4, 20), (40, 8, 40), (25, 16, 60)])
def test_squared_error_is_the_sum_of_the_discarded_eigenvalues(latents, patch, count):
    x, model = images(count), linear(latents, patch)
    values = fit_linear(model, x.split(7))
    assert values.shape == (3 * patch**2,) and (values.diff() <= 0).all()
    assert error(model, x) == pytest.approx(values[latents:].sum().item(), rel=1e-5)
    latent = model.encode(x.double()).mean
    assert latent.shape == (count, latents, 16 // patch, 16 // patch)
    variance = latent.var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance, values[:latents], rtol=1e-5, atol=1e-9)


def test_any_invertible_rescaling_is_as_good():
    x, model = images(), linear(12, 4)
    fit_linear(model, [x])
    best = error(model, x)
    with torch.no_grad():
        model.encoder.weight.mul_(2)
        model.encoder.bias.mul_(2)
        model.decoder.weight.div_(2)
    assert error(model, x) == pytest.approx(best, rel=1e-9)
    mixing = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.encoder.weight.copy_(torch.einsum("ij,jcpq->icpq", mixing, model.encoder.weight))
        model.encoder.bias.copy_(mixing @ model.encoder.bias)
        model.decoder.weight.copy_(torch.einsum("ji,jcpq->icpq", mixing.inverse(), model.decoder.weight))
    assert error(model, x) == pytest.approx(best, rel=1e-6)


def test_no_other_linear_map_is_better():
    x, model = images(), linear(6, 4)
    fit_linear(model, [x])
    best = error(model, x)
    draws = torch.Generator().manual_seed(2)
    for name, parameter in list(model.named_parameters()):
        kept = parameter.detach().clone()
        parameter.data += 1e-2 * torch.randn(kept.shape, generator=draws, dtype=kept.dtype)
        assert error(model, x) > best, name
        parameter.data.copy_(kept)


def test_streaming_gives_the_covariance_of_the_whole():
    vectors = patches_of(images(), 4) + 100
    streamed = Covariance(48)
    for part in vectors.split(33):
        streamed.add(part)
    mean, matrix = streamed.moments()
    torch.testing.assert_close(mean, vectors.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(matrix, vectors.double().T.cov(correction=0), rtol=1e-8, atol=1e-12)


def test_all_components_restore_the_image_and_the_folder_keeps_it(tmp_path):
    x, model = images(count=30, size=8), linear(48, 4)
    fit_linear(model, [x])
    model.calibrate(*measure_latents(model, [x]))
    torch.testing.assert_close(model.decode(model.encode(x).mean), x, rtol=0, atol=1e-4)
    torch.testing.assert_close(model.encode(x).mean.std((0, 2, 3), correction=0), torch.ones(48), rtol=1e-3, atol=0)
    model.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert loaded.fingerprint() == model.fingerprint() and loaded.factor == 4
    assert torch.equal(loaded.encode(x).mean, model.encode(x).mean)
    again = linear(48, 4)
    fit_linear(again, x.flip(0).split(8))
    torch.testing.assert_close(again.encoder.weight, model.encoder.weight, rtol=0, atol=1e-4)  # the sign is settled


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(49, 4), "a patch has 48 numbers, got 49"),
        (lambda: fit_linear(linear(4, 4), []), "at least one batch"),
        (lambda: fit_linear(linear(4, 16), [images(4)]), "latent_channels 4: expected fewer .* 4"),
        (lambda: fit_linear(linear(4, 4), [torch.zeros(2, 3, 10, 8)]), "divisible by 4, got"),
        (lambda: fit_linear(linear(9, 4), [images(1).expand(8, 3, 16, 16) * 0 + 0.5]), "vary in 0 directions only"),
        (lambda: fit_linear(Autoencoder(AutoencoderConfig()), [images(4)]), "expected linear, got kl"),
    ],
)
def test_refusals_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)
