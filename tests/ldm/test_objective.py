"""Noise levels, weights and noise of the diffusion training against scipy's distributions and the papers' claims."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ldm.runtime.errors import UserError
from ldm.training.config import TrainingConfig
from ldm.training.optimizers import scheduled_rate
from ldm.training.randomness import BatchShard, StepRandom
from ldm.training.tasks.latents import make_process
from ldm.training.tasks.objective import Objective
from ldm.training.tasks.settings import DiffusionConfig, ObjectiveConfig
from samplers import TARGETS, targets_on

CPU = torch.device("cpu")
BATCH = 20_000
FLOW = make_process(DiffusionConfig(beta_schedule="flow"))
EDM = make_process(DiffusionConfig(beta_schedule="edm"))
VP = make_process(DiffusionConfig())


def draws(batch=BATCH, step=0):
    return StepRandom(0, step, 0, BatchShard(batch), CPU)


def log_ratio(process, times):
    alpha, sigma = process.schedule.at(times.double())
    return (sigma.log() - alpha.log()).numpy()


@pytest.mark.parametrize(
    ("process", "mean", "std"), [(FLOW, 0.0, 1.0), (EDM, -1.2 + math.log(2), 1.2), (VP, -0.4, 0.6)]
)
@pytest.mark.parametrize("stratified", [False, True])
def test_log_normal_times_have_the_normal_distribution_of_scipy(process, mean, std, stratified):
    own = {"time_mean": mean, "time_std": std} if process is VP else {}
    config = ObjectiveConfig(time_sampling="log_normal", stratified_times=stratified, **own)
    times = Objective(config, process, None).times(draws())
    assert times.dtype == torch.float32
    found = stats.kstest(log_ratio(process, times), stats.norm(mean, std).cdf)
    if stratified:  # from one random start the whole batch lies on a grid of quantiles
        assert found.statistic < 1e-3
    else:
        assert found.pvalue > 0.01 and found.statistic > 1e-3
    wrong = stats.kstest(log_ratio(process, times), stats.norm(mean + 0.05, std).cdf)
    assert wrong.pvalue < 1e-3, "the test has the power to see a shift of 0.05"


@pytest.mark.parametrize("process", [VP, FLOW])
def test_uniform_times_are_whole_and_uniform_and_stratified_ones_cover_every_stretch(process):
    count = process.schedule.num_train_timesteps
    plain = Objective(ObjectiveConfig(), process, None).times(draws())
    small = Objective(ObjectiveConfig(stratified_times=True), process, None)
    assert torch.equal(plain, draws().integers("time", count).float()), "the defaults draw what they always drew"
    for times in (plain, small.times(draws())):
        assert torch.equal(times, times.round()) and times.min() >= 0 and times.max() <= count - 1
        observed = np.bincount((times.numpy() // 100).astype(int), minlength=10)
        assert stats.chisquare(observed).pvalue > 0.01
    for step in range(20):  # a batch of 10 has exactly one time in each tenth, shifted by its start
        times = small.times(draws(10, step)).sort().values
        assert ((times.diff() - 100).abs() <= 1).all()
    starts = [float(small.times(draws(1, step))) / count for step in range(400)]
    assert stats.kstest(starts, "uniform").pvalue > 0.01, "each time by itself is uniform"


def test_stratified_numbers_meet_their_example_however_the_batch_is_shared():
    whole = draws(8).stratified("time")
    for accumulation, processes in ((4, 1), (1, 4), (2, 2)):
        shares = [BatchShard(8, accumulation, rank, processes) for rank in range(processes)]
        parts = [StepRandom(0, 0, micro, s, CPU).stratified("time") for micro in range(accumulation) for s in shares]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("process", [VP, FLOW, EDM])
def test_times_of_a_log_snr_are_the_inverse_of_the_schedule(process):
    times = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 998
    alpha, sigma = process.schedule.at(times)
    torch.testing.assert_close(process.schedule.times_of((alpha / sigma).log()), times, rtol=1e-9, atol=1e-8)
    ends = process.schedule.times_of(torch.tensor([50.0, -50.0]))
    assert ends.tolist() == [0.0, 999.0]


@pytest.mark.parametrize("name", TARGETS)
def test_p2_costs_the_same_estimate_the_same_whatever_is_predicted(name):
    """The weighted error of every target is (k + SNR)^-gamma times the squared error of the implied eps."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, wrong = (torch.randn(64, dtype=torch.float64, generator=generator) for _ in range(3))
    sigma = torch.linspace(0.02, 0.98, 64, dtype=torch.float64)
    alpha = (1 - sigma**2).sqrt() if name != "flow_prediction" else 1 - sigma
    implied_eps = (alpha * x0 + sigma * eps - alpha * wrong) / sigma
    target = TARGETS[name]()
    error = (target.target(wrong, implied_eps, alpha, sigma) - target.target(x0, eps, alpha, sigma)) ** 2
    snr = (alpha / sigma) ** 2
    for gamma, k in ((0.0, 1.0), (1.0, 1.0), (0.5, 2.0)):
        expected = (implied_eps - eps) ** 2 / (k + snr) ** gamma
        torch.testing.assert_close(target.p2_weight(alpha, sigma, gamma, k) * error, expected, rtol=1e-9, atol=0)
    assert torch.isfinite(target.p2_weight(torch.tensor(0.0), torch.tensor(1.0))), "pure noise"


@pytest.mark.parametrize("schedule", ["linear", "cosine", "flow", "edm"])
def test_a_schedule_takes_the_targets_of_its_family(schedule):
    allowed = targets_on(make_process(DiffusionConfig(schedule)).schedule.family)
    for name in TARGETS:
        if name in allowed:
            assert make_process(DiffusionConfig(schedule, prediction_type=name)).prediction.name == name
        else:
            with pytest.raises(UserError, match="`prediction_type`"):
                DiffusionConfig(schedule, prediction_type=name)


def test_offset_noise_and_perturbation_have_the_variance_of_their_sums():
    config = ObjectiveConfig(offset_noise=0.5, input_perturbation=0.1)
    eps, perturbed = Objective(config, VP, None).noise((2, 4, 4), draws(4000))
    assert abs(float(eps.var()) - 1.25) < 0.03, "1 + 0.5^2"
    means = eps.mean((2, 3))  # of 16 numbers: 0.5^2 + 1 / 16
    assert abs(float(means.var()) - 0.3125) < 0.02
    assert abs(float((perturbed - eps).std()) - 0.1) < 1e-3
    assert abs(float(torch.corrcoef(torch.stack([means[:, 0], means[:, 1]]))[0, 1])) < 0.05, "each channel its own"
    plain, same = Objective(ObjectiveConfig(), VP, None).noise((2, 4, 4), draws(4))
    assert same is plain and torch.equal(plain, draws(4).normal("eps", (2, 4, 4)))


def test_the_rate_of_edm2_halves_when_the_steps_quadruple():
    edm2 = {"lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 10, "lr_reference_steps": 100}
    config = TrainingConfig(learning_rate=3.0, **edm2)
    rates = [scheduled_rate(step, config) for step in (4, 50, 100, 400, 1600, 10**6 + 5)]
    np.testing.assert_allclose(rates[:5], [1.5, 3.0, 3.0, 1.5, 0.75])
    assert rates[5] == pytest.approx(0.03, rel=1e-5), "it does not end"
    fingerprint = TrainingConfig(lr_scheduler="inverse_sqrt", max_train_steps=7).fingerprint()
    assert "max_train_steps" not in fingerprint and fingerprint["lr_reference_steps"] == 1000
    assert "lr_reference_steps" not in TrainingConfig().fingerprint(), "runs from before it go on"


def test_defaults_leave_no_fact_and_contradictions_are_refused():
    assert ObjectiveConfig().fingerprint() == {} and ObjectiveConfig(p2_gamma=1.0).fingerprint() == {"p2_gamma": 1.0}
    with pytest.raises(UserError, match="give one"):
        Objective(ObjectiveConfig(p2_gamma=1.0), VP, 5.0)
    with pytest.raises(UserError, match="add `time_sampling` log_normal"):
        Objective(ObjectiveConfig(time_mean=0.0), VP, None)
    Objective(ObjectiveConfig(time_mean=0.0), EDM, None)
    with pytest.raises(UserError, match="`offset_noise`: expected 0 or more"):
        ObjectiveConfig(offset_noise=-1)


def test_every_setting_trains_and_resumes_from_yaml_and_flags(ldm, models, tmp_path, refused, capfd):
    (tmp_path / "own.yaml").write_text(
        "objective: {time_sampling: log_normal, stratified_times: true, p2_gamma: 1.0, offset_noise: 0.1}\n"
        "training: {lr_scheduler: inverse_sqrt, lr_reference_steps: 2, lr_warmup_steps: 2}\n"
    )
    flags = ("--config", tmp_path / "own.yaml", "--text-encoder", "None", "--input-perturbation", 0.1)
    assert ldm(*models.command("diffusion", tmp_path / "run", *flags, steps=2)).code == 0
    assert ldm(*models.command("diffusion", tmp_path / "run", *flags, steps=4)).code == 0
    refused(models.command("diffusion", tmp_path / "run", *flags, "--p2-gamma", 0.5, steps=4), "objective.p2_gamma")
    refused(models.command("diffusion", tmp_path / "new", *flags, "--snr-gamma", 5), "--p2-gamma", "give one")
    with pytest.raises(SystemExit):
        ldm("train", "diffusion", "--help")
    printed = capfd.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in printed for name in (*vars(ObjectiveConfig()), "lr_reference_steps"))
