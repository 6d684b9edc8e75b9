"""Averages of several lengths: the profile against direct integrals, reconstruction against what was tracked."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import integrate
from torch import nn

from ldm.evaluation.manifest import weights_of
from ldm.runtime.errors import UserError
from ldm.training.averages import (
    AveragesConfig,
    PowerAverages,
    coefficients,
    exponent,
    inner,
    reconstruct,
    snapshots,
)


class Folder:
    def __init__(self, path):
        self.path = path


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 12**-0.5])
def test_the_exponent_gives_a_profile_of_that_deviation(length):
    gamma = exponent(length)

    def moment(power):
        return integrate.quad(lambda tau: (gamma + 1) * tau ** (gamma + power), 0, 1, epsabs=1e-14, epsrel=1e-13)[0]

    assert moment(0) == pytest.approx(1, rel=1e-9)
    assert math.sqrt(moment(2) - moment(1) ** 2) == pytest.approx(length, rel=1e-6)
    assert gamma >= 0 and (length < 0.28 or gamma < 1e-6), "the longest is the plain mean"


def test_inner_products_are_the_integrals_of_the_profiles():
    rng = np.random.default_rng(0)
    for _ in range(10):
        (a, b), (p, q) = rng.uniform(1, 5, 2), rng.uniform(0, 20, 2)
        direct, _ = integrate.quad(
            lambda tau, a=a, b=b, p=p, q=q: (p + 1) * tau**p / a ** (p + 1) * (q + 1) * tau**q / b ** (q + 1),
            0, min(a, b), epsabs=0, epsrel=1e-12,
        )  # fmt: skip
        assert inner(a, p, b, q) == pytest.approx(direct, rel=1e-9) == inner(b, q, a, p)


def wandering(steps, seed=0):
    """Weights that go somewhere, as in a training, and the trained model that has them: yields (step, model)."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(6, 5).double()
    drift = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model.weight.zero_()
        for step in range(1, steps + 1):
            model.weight += drift / step + 0.1 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
            model.bias.fill_(step / steps)
            yield step, model


def test_the_average_weighs_each_step_by_its_share_of_the_profile():
    steps, length = 40, 0.1
    gamma, seen = exponent(length), []
    averages = None
    for step, model in wandering(steps):
        if averages is None:
            averages = PowerAverages(model, AveragesConfig(ema_lengths=(length,)))
        averages.update(model, step)
        seen.append(model.weight.detach().clone())
    shares = [integrate.quad(lambda tau: (gamma + 1) * tau**gamma, i / steps, (i + 1) / steps)[0] for i in range(steps)]
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    torch.testing.assert_close(averages.weights[length]["weight"], expected, rtol=1e-9, atol=1e-9)


def tracked(tmp_path, every, lengths=(0.05, 0.1), also=(), steps=600, precision="float32"):
    """A run's snapshots, and what was tracked directly of other lengths."""
    own = beside = None
    for step, model in wandering(steps):
        if own is None:
            config = AveragesConfig(lengths, ema_snapshot_steps=every, ema_snapshot_precision=precision)
            own, beside = PowerAverages(model, config), PowerAverages(model, AveragesConfig(tuple(also)))
        own.update(model, step)
        beside.update(model, step)
        own.snapshot(Folder(tmp_path), step, last=step == steps)
    return own.weights, beside.weights


def distance(found, expected):
    return float((found.weights["weight"].double() - expected["weight"]).norm() / expected["weight"].norm())


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-6), ("float16", 1e-3)])
def test_a_tracked_length_is_reconstructed_to_the_precision_of_the_numbers(tmp_path, precision, limit):
    own, _ = tracked(tmp_path, 50, precision=precision)
    assert [each.step for each in snapshots(tmp_path)] == list(range(50, 601, 50))
    for length in (0.05, 0.1):
        found = reconstruct(tmp_path, length)
        assert distance(found, own[length]) < limit and found.error < 1e-6 and found.step == 600


def test_another_length_is_approximated_the_better_the_more_snapshots_there_are(tmp_path):
    errors = {}
    for every in (200, 100, 25):
        _, beside = tracked(tmp_path / str(every), every, also=(0.07, 0.15))
        for length in (0.07, 0.15):
            found = reconstruct(tmp_path / str(every), length)
            errors[length, every] = distance(found, beside[length]), found.error
    for length in (0.07, 0.15):
        weights, profiles = zip(*(errors[length, every] for every in (200, 100, 25)), strict=True)
        assert profiles[0] > profiles[1] > profiles[2] and profiles[2] < 0.01
        assert weights[0] > 2 * weights[2] and weights[2] < 2e-3, weights
    _, beside = tracked(tmp_path / "wrong", 25, also=(0.07,))
    assert distance(reconstruct(tmp_path / "wrong", 0.05), beside[0.07]) > 2e-3, "the test can see a wrong length"


def test_an_earlier_step_is_reconstructed_from_what_was_known_then(tmp_path):
    tracked(tmp_path / "long", 50, steps=600)
    own, _ = tracked(tmp_path / "short", 50, steps=300)
    found = reconstruct(tmp_path / "long", 0.05, step=300)
    assert distance(found, own[0.05]) < 1e-6 and found.snapshots == 6


def test_the_factors_are_the_least_squares_of_sampled_profiles_divided_by_their_sum():
    """Against numpy on profiles written out on a fine grid; the division is that of EDM2's own code."""
    known, wanted = [(1.0, 5.0), (2.0, 5.0), (2.0, 20.0), (3.0, 9.0)], (3.0, 13.0)
    tau = (np.arange(200_000) + 0.5) / 200_000 * 3

    def sampled(t, gamma):
        return np.where(tau <= t, (gamma + 1) * (tau / t) ** gamma / t, 0)

    expected, *_ = np.linalg.lstsq(np.stack([sampled(*p) for p in known], 1), sampled(*wanted), rcond=None)
    assert abs(expected.sum() - 1) > 1e-3, "the test can see a sum that is not 1"
    expected = expected / expected.sum()
    found, error = coefficients(known, wanted)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    left = sampled(*wanted) - np.stack([sampled(*p) for p in known], 1) @ expected
    assert error == pytest.approx(np.linalg.norm(left) / np.linalg.norm(sampled(*wanted)), rel=1e-3)


@pytest.mark.parametrize("lengths", [(0.1,), (0.05, 0.2)])
def test_a_weight_that_stays_the_same_is_reconstructed_as_it_is(tmp_path, lengths):
    model = nn.Linear(4, 3)
    averages = PowerAverages(model, AveragesConfig(lengths, ema_snapshot_steps=10, ema_snapshot_precision="float32"))
    for step in range(1, 101):
        averages.update(model, step)
        averages.snapshot(Folder(tmp_path), step, last=step == 100)
    for length in (0.01, 0.03, 0.07, 0.15, 0.25, 12**-0.5):
        for name, value in reconstruct(tmp_path, length).weights.items():
            assert torch.equal(value, model.get_parameter(name)), length


FLAGS = (
    "--text-encoder", "None", "--ema-lengths", 0.05, 0.2, "--ema-snapshot-steps", 4,
    "--ema-snapshot-precision", "float32", "--checkpointing-steps", 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    from ldm.cli.main import main

    run = tmp_path_factory.mktemp("averages") / "run"
    assert main(models.command("diffusion", run, *FLAGS, steps=10)) == 0
    return run


def content(run):
    return {path.name: path.read_bytes() for path in [*run.glob("averages/*"), *run.glob("checkpoint-10/*.s*")]}


def test_a_resumed_run_has_the_same_averages_and_snapshots(ldm, models, trained, tmp_path):
    assert {"step-4.safetensors", "step-8.safetensors", "step-10.safetensors"} < content(trained).keys()
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoint-10")
    (copy / "averages" / "step-10.safetensors").write_bytes(b"of a run that was killed while writing")
    assert ldm(*models.command("diffusion", copy, *FLAGS, steps=10)).code == 2, "a broken snapshot is named"
    (copy / "averages" / "step-10.safetensors").unlink()
    assert ldm(*models.command("diffusion", copy, *FLAGS, steps=10)).code == 0
    assert content(copy) == content(trained)


def test_a_reconstructed_model_samples_and_serves_as_the_weak_network(ldm, models, trained, tmp_path):
    made = tmp_path / "model"
    run = ldm("ema", trained, "--length", 0.2, "--output-dir", made)
    assert run.code == 0 and "from 3 snapshots" in run.out and "profile error: 0.00%" in run.out and not run.err
    assert "averages: lengths 0.05, 0.2 after steps 4, 8, 10" in ldm("info", trained).out
    assert weights_of(made) == "EMA of relative length 0.2 after step 10, from snapshots"
    short = ldm("ema", trained, "--length", 0.005, "--output-dir", tmp_path / "short")
    assert short.code == 0 and "fit that length poorly" in short.err
    found = load_file(made / "unet" / "diffusion_pytorch_model.safetensors")
    tracked = load_file(trained / "checkpoint-10" / "averages.safetensors")
    published = load_file(trained / "unet" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == published.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, tracked[f"0.2/unet.{name}"], rtol=1e-5, atol=1e-6)
    assert any(not torch.allclose(found[name], published[name], atol=1e-4) for name in found)
    facts = json.loads((made / "reconstruction.json").read_text())
    assert facts["length"] == 0.2 and facts["step"] == 10

    guided = ("--guidance", "autoguidance(2)", "--weak")
    sample = ("sample", trained, "--class-label", "circle", "--num-images", 2, "--num-inference-steps", 3)
    for name, more in (("plain", ()), ("made", (*guided, made)), ("early", (*guided, trained / "checkpoint-9"))):
        run = ldm(*sample, "--device", "cpu", *more, "--output-dir", tmp_path / name)
        assert run.code == 0, run.err


def test_lengths_stand_in_yaml_as_well(ldm, models, trained, tmp_path):
    (tmp_path / "own.yaml").write_text("averages: {ema_lengths: [0.05, 0.2], ema_snapshot_steps: 2}\n")
    flags = ("--config", tmp_path / "own.yaml", "--text-encoder", "None")
    assert ldm(*models.command("diffusion", tmp_path / "run", *flags, steps=3)).code == 0
    assert [each.step for each in snapshots(tmp_path / "run")] == [2, 3]
    again = ("train", "diffusion", "--config", trained / "config.yaml", "--output-dir", trained)
    assert ldm(*again).code == 0, "a run's own settings resume it"


def test_what_cannot_be_reconstructed_is_refused(refused, ldm, models, trained, tmp_path):
    out = ("--output-dir", tmp_path / "new")
    refused(("ema", models.classes, *out), "no averages/", "--ema-lengths")
    refused(("ema", trained, "--length", 0.3, *out), "--length 0.3", "at most 0.289")
    refused(("ema", trained, "--step", 5, *out), "no snapshot", "4, 8, 10")
    refused(("ema", trained, "--output-dir", trained), "holds something")
    refused(models.command("diffusion", tmp_path / "a", "--ema-lengths", 0.1, 0.1), "given twice")
    refused(models.command("diffusion", trained, *FLAGS, "--ema-lengths", 0.1, steps=10), "averages.ema_lengths")
    save_file({"0.05/x": torch.ones(2)}, tmp_path / "a.safetensors")
    broken = tmp_path / "run"
    shutil.copytree(trained, broken)
    (broken / "averages" / "step-8.safetensors").write_bytes(b"")
    refused(("ema", broken, *out), "step-8.safetensors", "not a whole snapshot")


def test_lengths_without_a_profile_are_refused():
    for length in (0.0, -1.0, 0.29, float("nan")):
        with pytest.raises(UserError, match="`ema_lengths`"):
            AveragesConfig(ema_lengths=(length,))
    assert AveragesConfig().fingerprint() == {}
    assert AveragesConfig().within(120).ema_snapshot_steps == 3 and AveragesConfig().within(5).ema_snapshot_steps == 1
    with pytest.raises(UserError, match="`ema_snapshot_steps`"):
        AveragesConfig(ema_snapshot_steps=0)
