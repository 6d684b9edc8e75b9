"""Two players: optima, penalties and weights in closed form, and discriminators that do what they say."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from autoencoders import (
    AdversarialConfig,
    Autoencoder,
    AutoencoderConfig,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    make_discriminator,
)
from autoencoders.losses import adaptive_weight
from autoencoders.losses.adversarial import (
    clip_weights,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    learning_loss,
    r1_penalty,
)
from autoencoders.losses.discriminator import batch_deviation

P, G = np.array([50, 30, 15, 5]) / 100, np.array([10, 20, 30, 40]) / 100  # two laws on four points


def at_optimum(objective):
    """Logits of the best discriminator between the two laws, one a point, and its loss: by minimisation alone."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    real, fake = (torch.arange(4).repeat_interleave(torch.tensor(law * 100).round().long()) for law in (P, G))
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def loss():
        optimiser.zero_grad()
        value = discriminator_loss(objective, logits[real], logits[fake])
        value.backward()
        return value

    optimiser.step(loss)
    return logits.detach().numpy(), float(loss().detach())


@pytest.mark.parametrize("objective", ["minimax", "non_saturating"])
def test_the_best_discriminator_is_p_over_p_plus_g(objective):
    logits, loss = at_optimum(objective)
    assert np.allclose(1 / (1 + np.exp(-logits)), P / (P + G), atol=1e-5)
    # Goodfellow et al. 2014, theorem 1: -loss = 2 JSD - 2 log 2
    assert -loss == pytest.approx(2 * jensenshannon(P, G) ** 2 - 2 * np.log(2), abs=1e-10)


def test_the_other_optima():
    logits, loss = at_optimum("lsgan")
    assert np.allclose(logits, P / (P + G), atol=1e-8)
    assert loss == pytest.approx(0.5 * (P * G / (P + G)).sum(), abs=1e-12)
    counts = [torch.tensor(law * 100).round().long() for law in (P, G)]
    tried = [
        torch.tensor(np.sign(P - G)),
        *torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double() * 2,
    ]
    best, *others = [discriminator_loss("hinge", *(t.repeat_interleave(count) for count in counts)) for t in tried]
    assert float(best) == pytest.approx(2 - np.abs(P - G).sum(), abs=1e-12)  # Lim and Ye 2017: 2 - 2 total variation
    assert min(others) > best


def test_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    hand = {
        "minimax": (np.log1p(np.exp([-2, -0.5])).mean() + np.log1p(np.exp([-3, 0.5])).mean(),
                    -np.log1p(np.exp([-3, 0.5])).mean()),
        "non_saturating": (np.log1p(np.exp([-2, -0.5])).mean() + np.log1p(np.exp([-3, 0.5])).mean(),
                           np.log1p(np.exp([3, -0.5])).mean()),
        "hinge": ((0 + 0.5) / 2 + (0 + 1.5) / 2, 1.25),
        "lsgan": ((1 + 0.25) / 4 + (9 + 0.25) / 4, (16 + 0.25) / 4),
        "wgan": (-1.25 - 1.25, 1.25),
        "wgan_gp": (-1.25 - 1.25, 1.25),
    }  # fmt: skip
    for objective, (theirs, ours) in hand.items():
        assert float(discriminator_loss(objective, real, fake)) == pytest.approx(theirs, rel=1e-6)
        assert float(generator_loss(objective, fake)) == pytest.approx(ours, rel=1e-6)


def test_penalties_of_critics_whose_slope_is_known():
    draws = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=draws) for _ in range(2))
    w = torch.randn(3 * 16, dtype=torch.float64, generator=draws, requires_grad=True)
    share = torch.rand(5, generator=draws)

    def linear(x):
        return (x.flatten(1) @ w + 7)[:, None]

    length = w.detach().norm()
    penalty = gradient_penalty(linear, real, fake, share)
    assert float(penalty.detach()) == pytest.approx(float((length - 1) ** 2), rel=1e-12)
    (slope,) = torch.autograd.grad(penalty, w)  # it can be learned from: 2 (|w| - 1) w / |w|
    assert torch.allclose(slope, 2 * (length - 1) * w.detach() / length)
    assert float(r1_penalty(linear, real).detach()) == pytest.approx(float(length**2 / 2), rel=1e-12)
    bowl = real.flatten(1).square().sum(1).mean()  # the slope of |x|^2 is 2 x
    assert float(r1_penalty(lambda x: x.flatten(1).square().sum(1), real)) == pytest.approx(float(2 * bowl), rel=1e-12)
    # where between the two: for |x|^2 / 2 the slope is the point itself
    point = fake + (real - fake) * share.double().view(5, 1, 1, 1)
    expected = ((point.flatten(1).norm(dim=1) - 1) ** 2).mean()
    found = gradient_penalty(lambda x: 0.5 * x.flatten(1).square().sum(1), real, fake, share)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_r1_is_lazy_and_keeps_its_weight():
    config = DiscriminatorConfig(r1_weight=3.0, r1_every=4)
    x, share = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(4)

    def critic(images):
        return images.flatten(1).square().sum(1)

    losses = [float(learning_loss(config, critic, x, -x, share, step)[0]) for step in range(8)]
    plain = losses[1]
    assert losses[2:4] == losses[5:] [:2] == [plain, plain]  # fmt: skip
    expected = 3.0 * 4 * 2 * float(x.flatten(1).square().sum(1).mean())
    assert losses[0] - plain == pytest.approx(expected, rel=1e-5) and losses[4] == losses[0]


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer():
    draws = torch.Generator().manual_seed(2)
    h, x, a = (torch.randn(*size, generator=draws, dtype=torch.float64) for size in ((6, 3), (6, 2), (2,)))
    layer = torch.randn(2, 3, generator=draws, dtype=torch.float64, requires_grad=True)
    made = h @ layer.T  # (6, 2)
    reconstruction, adversarial = (made - x).square().mean(), -(made @ a).mean() * 1e-3
    found = adaptive_weight(reconstruction, adversarial, layer, 1e4)
    # by hand: d/dW mean (W h - x)^2 = 2 / 12 sum (W h - x) h^T;  d/dW -mean a W h = -a mean(h)^T
    rec = np.linalg.norm(2 / 12 * (made.detach() - x).numpy().T @ h.numpy())
    gan = 1e-3 * np.linalg.norm(np.outer(a.numpy(), h.numpy().mean(0)))
    assert float(found) == pytest.approx(rec / (gan + 1e-4), rel=1e-6)
    assert float(adaptive_weight(reconstruction, adversarial, layer, 2.5)) == 2.5
    assert layer.grad is None and not found.requires_grad
    (reconstruction + found * adversarial).backward()  # the graphs are still there
    assert layer.grad is not None


@pytest.mark.parametrize(
    "settings",
    [{"bottleneck": "kl"}, {"bottleneck": "vqvae2"}, {"bottleneck": "nvae"}, {"bottleneck": "none", "coder": "vit"}],
)
def test_the_last_layer_is_the_one_after_which_nothing_bends(settings):
    config = AutoencoderConfig(block_out_channels=(8, 8, 8), norm_num_groups=4, attention=False, **settings)
    model = Autoencoder(config).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kernel, made = model.last_layer, []
    with torch.no_grad():
        start = kernel.clone()
        for scale in (0, 1, 2):
            kernel.copy_(scale * start)
            made.append(model(images, generator=torch.Generator().manual_seed(1)).reconstruction)
    assert float((made[1] - made[0]).abs().max()) > 1e-3  # it is heard
    torch.testing.assert_close(made[2] - made[1], made[1] - made[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["patch", "residual"])
def test_spectral_norm_makes_the_largest_singular_value_one(kind):
    config = DiscriminatorConfig(discriminator=kind, discriminator_width=4, discriminator_layers=2, spectral_norm=True)
    network = make_discriminator(config, 32).train()
    x = torch.zeros(2, 3, 32, 32)
    for _ in range(60):  # a power iteration a pass
        network(x)
    layers = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    for layer in layers:
        sigma = torch.linalg.svdvals(layer.weight.detach().double().flatten(1))[0]
        assert float(sigma) == pytest.approx(1, abs=2e-3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()(x)
    assert len(layers) >= 4 and all(before[name].equal(value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["patch", "residual"])
@pytest.mark.parametrize("size", [16, 48])
def test_discriminators(kind, size):
    config = DiscriminatorConfig(discriminator=kind, discriminator_width=4, discriminator_layers=2)
    state = torch.get_rng_state()
    network, again = (make_discriminator(config, size, seed=3) for _ in range(2))
    assert state.equal(torch.get_rng_state())
    x = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    logits = network(x)
    assert logits.shape == ((4, 1, size // 4 - 2, size // 4 - 2) if kind == "patch" else (4, 1))
    assert logits.equal(again(x)) and logits.std() > 1e-3
    if kind == "patch":  # an image's logits are its own
        assert torch.allclose(network(x[:1]), logits[:1], atol=1e-5)
    clip_weights(network, 0.01)
    assert max(float(weight.abs().max()) for weight in network.parameters()) <= 0.01


def test_images_that_differ_are_told_so():
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = batch_deviation(x)
    for group in (slice(0, 4), slice(4, 8)):
        expected = np.sqrt(x[group].numpy().var(0) + 1e-8).mean()
        assert found.shape == (8, 1, 2, 2) and np.allclose(found[group], expected, atol=1e-6)
    assert float(batch_deviation(x[:1].expand(6, -1, -1, -1)).max()) < 2e-4  # all the same


@pytest.mark.parametrize("normalization", ["batch", "group"])
@pytest.mark.parametrize("layers", [0, 2])
def test_a_new_generator_hears_the_noise(normalization, layers):
    config = GeneratorConfig(8, 4, (8, 16, 16, 16), layers, normalization, norm_num_groups=4)
    model = Generator(config, seed=1).eval()
    pictures = model(torch.randn(16, *model.noise_shape, generator=torch.Generator().manual_seed(0)))
    assert pictures.shape == (16, 3, 32, 32)
    assert float(pictures.detach().std(0).mean()) > 0.2  # of at most 1: different noise, different pictures


def test_settled_statistics_are_means_over_the_noise(tmp_path):
    model = Generator(GeneratorConfig(4, 2, (8, 8), 1, attention=True), seed=2)
    draws = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 64, *model.noise_shape, generator=draws)
    wanted = model.train()(a).detach()
    model.recalibrate_batch_norm([a])
    assert model.training and any(weight.requires_grad for weight in model.parameters())
    first = model.eval().decoder.conv_norm_out
    same = torch.allclose(model(a), wanted, atol=0.05)  # torch keeps n / (n - 1) times the variance of a batch
    assert same and float(wanted.std(0).mean()) > 0.2
    mean_a = first.running_mean.clone()
    model.recalibrate_batch_norm([b])
    mean_b = first.running_mean.clone()
    model.recalibrate_batch_norm([a, b])
    assert torch.allclose(first.running_mean, (mean_a + mean_b) / 2, atol=1e-6)
    assert not torch.allclose(mean_a, mean_b, atol=1e-4) and not model.training
    alone = torch.cat([model(a[:1]), model(a[1:])])
    assert torch.allclose(alone, model(a), atol=1e-5), "a picture depends on those beside it"
    model.save_pretrained(tmp_path / "generator")
    assert Generator.from_pretrained(tmp_path / "generator")(a).equal(model(a))


def test_when_the_discriminator_learns_and_is_heard():
    config = AdversarialConfig(0.8, discriminator_start=10, discriminator_warmup=4, adversarial_ramp=4)
    assert [config.learns_at(step) for step in (5, 6, 100)] == [False, True, True]
    assert [config.weight_at(step) for step in (9, 10, 11, 13, 99)] == pytest.approx([0, 0.2, 0.4, 0.8, 0.8])


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"objective": "hings"}, "objective"),
        ({"discriminator": "unet"}, "discriminator"),
        ({"weight_clip": 0}, "weight_clip"),
        ({"r1_every": 0}, "r1_every"),
        ({"discriminator_beta2": 1.0}, "discriminator_beta2"),
        ({"discriminator_width": 2**20}, "discriminator_width"),
    ],
)
def test_settings_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        DiscriminatorConfig(**settings)
