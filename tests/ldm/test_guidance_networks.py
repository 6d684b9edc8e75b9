"""Every guidance through a pipeline, and what its branches are: perturbed, weak, energies, several classifiers."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from ldm.comparison import ComparisonConfig
from ldm.comparison.compare import compare
from ldm.conditioning.condition import Condition
from ldm.data.shapes import ShapesData
from ldm.evaluation.config import EvaluationConfig
from ldm.evaluation.evaluators import Evaluators
from ldm.models.perturbation import Perturbation, blur_queries
from ldm.models.unet import UNet, UNetConfig
from ldm.runtime.errors import UserError
from ldm.runtime.images import to_pil
from ldm.sampling.branches import build_denoiser, with_energies
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.denoiser import Branch, ClassifierBranch, Denoiser
from ldm.sampling.energies import Energy
from ldm.sampling.forward_process import Process
from ldm.sampling.pipeline import Pipeline
from ldm.sampling.plan import parse_guidances
from samplers import (
    DiscreteSchedule,
    EDMSchedule,
    EDMTarget,
    EpsilonTarget,
    FlowSchedule,
    FlowTarget,
    Prediction,
    SampleTarget,
    VTarget,
    guidances,
    with_energy,
)

PROMPT = "a large red circle on a blue background"
FAST = SamplingConfig(num_inference_steps=4, guidance_scale=1.0)
RED = "colour([0.8, -0.6, -0.6])"
# name: settings under which it acts, at no strength, calls a step besides "cond"
GUIDED = {
    "cfg": ("cfg(3)", "cfg(1)", 1),
    "cfgpp": ("cfgpp(0.6)", None, 1),
    "classifier": ("classifier(2)", "classifier(0)", 1),
    "energy": ("energy(5)", "energy(0)", 0),
    "autoguidance": ("autoguidance(2)", "autoguidance(1)", 1),
    "pag": ("pag(3)", "pag(0)", 1),
    "seg": ("seg(20)", "seg(0)", 1),
    "slg": ("slg(3)", "slg(0)", 1),
    "apg": ("apg(3)", "apg(1)", 1),
    "cfg_zero": ("cfg_zero(3)", "cfg_zero(1)", 1),
    "tcfg": ("tcfg(3)", "tcfg(1)", 1),
    "fdg": ("fdg(3)", "fdg(1)", 1),
    "rescale": ("rescale(0.7)", "rescale(0)", 0),
    "threshold": ("threshold(0.5, limit=0.5)", "threshold(1, limit=1e9)", 0),
}


def sampled(pipeline, requests, sampling=FAST, **options):
    requests = [requests] if isinstance(requests, Request) else requests
    return torch.cat(list(pipeline.generate(requests, sampling, **options)))


def difference(a, b):
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def text(models):
    return Pipeline.load(models.text, classifier=models.classifier, weak=models.classes)


@pytest.mark.parametrize("name", sorted(guidances()))
def test_every_guidance_acts_and_at_no_strength_does_nothing(text, name):
    acting, idle, calls = GUIDED[name]
    base = replace(FAST, guidance=("cfg(4)",)) if name == "rescale" else FAST
    base = replace(base, energy=(RED,)) if name == "energy" else base
    requests = [Request(PROMPT, class_label=number) for number in (1, 4)]
    labelled = replace(base, guidance=(*base.guidance, "classifier(0)"))  # so that something uses the label
    plain = sampled(text, requests, labelled)
    before = text.evaluations
    guided = sampled(text, requests, replace(labelled, guidance=(*labelled.guidance, acting)))
    assert text.evaluations == before + calls * 2 * 4
    assert guided.isfinite().all() and difference(guided, plain) > 1e-4
    if idle is not None:
        same = sampled(text, requests, replace(labelled, guidance=(*labelled.guidance, idle)))
        assert text.evaluations == before and difference(same, plain) < 1e-6


# perturbed branches


def network(*, mid="attention", attention=(False, True)):
    """A U-Net with weights that hide nothing: none is zero."""
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), layers_per_block=1,
        attention=attention, attention_head_dim=8, norm_num_groups=4, mid=mid,
    )  # fmt: skip
    unet = UNet(config).double().eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return unet


def batch_mask(mask):
    return torch.tensor(mask)


def captured(unet, name, *inputs, **options):
    """The input and the output of a module during a call, and the call's result."""
    calls = []
    handle = unet.get_submodule(name).register_forward_hook(lambda _, inputs, output: calls.append((inputs, output)))
    try:
        result = unet(*inputs, **options)
    finally:
        handle.remove()
    return *calls[0], result


@pytest.mark.parametrize("shape", [(8, 8), (4, 12)])
@pytest.mark.parametrize("kind", ["identity", "blur"])
def test_perturbed_attention_is_the_formula(kind, shape):
    unet, sigma = network(), 0.9 if kind == "blur" else math.inf
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    x, t = torch.randn(3, 2, *shape, dtype=torch.float64), torch.tensor([5.0, 500.0, 900.0])
    change = Perturbation(kind, (name,), sigma)
    options = {"perturbations": [(change, batch_mask([False, True, False]))]}
    (tokens, *_), out, result = captured(unet, name, x, t, **options)
    layer, (h, w) = unet.get_submodule(name), (shape[0] // 2, shape[1] // 2)
    q, k, v = (part(tokens).view(3, h * w, layer.heads, -1) for part in (layer.to_q, layer.to_k, layer.to_v))
    if kind == "blur":  # each query is the mean of all, weighted by a Gaussian of their distance on the grid
        rows, columns = (
            place.flatten().double() for place in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        )
        distance = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
        weights = (-distance / (2 * sigma**2)).exp()
        q[1] = torch.einsum("nm,mad->nad", weights / weights.sum(1, keepdim=True), q[1])
    attention = (torch.einsum("bnad,bmad->banm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    if kind == "identity":
        attention[1] = torch.eye(h * w, dtype=torch.float64)
    expected = layer.to_out[0](torch.einsum("banm,bmad->bnad", attention, v).reshape(-1, 16))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    plain = unet(x, t)
    torch.testing.assert_close(result[[0, 2]], plain[[0, 2]], rtol=0, atol=1e-12)
    assert difference(result[1], plain[1]) > 1e-5


def test_an_infinite_blur_is_the_mean_query_and_a_small_one_nothing():
    q = torch.randn(2, 3, 24, 5)
    torch.testing.assert_close(blur_queries(q, math.inf, 4 / 6), q.mean(2, keepdim=True).expand_as(q))
    torch.testing.assert_close(blur_queries(q, 1e4, 4 / 6), q.mean(2, keepdim=True).expand_as(q), atol=1e-5, rtol=0)
    torch.testing.assert_close(blur_queries(q, 1e-2, 4 / 6), q)


@pytest.mark.parametrize("name", ["mid_block.resnets.1", "mid_block.attentions.0", "down_blocks.1.attentions.0"])
def test_a_skipped_layer_gives_what_it_was_given(name):
    unet, x = network(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    change = Perturbation("skip", unet.perturbable_layers("skip", [name]))
    found = unet(x, torch.tensor(300.0), perturbations=[(change, batch_mask([True, False]))])
    handle = unet.get_submodule(name).register_forward_hook(lambda _, inputs, output: inputs[0])
    without = unet(x, torch.tensor(300.0))
    handle.remove()
    torch.testing.assert_close(found[:1], without[:1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1:], unet(x, torch.tensor(300.0))[1:], rtol=0, atol=1e-12)


def test_branches_joined_in_one_call_are_those_called_apart():
    unet, calls = network(), []
    unet.register_forward_pre_hook(lambda *_: calls.append(1))
    x, level, nothing = (
        torch.randn(2, 2, 8, 8, dtype=torch.float64),
        DiscreteSchedule().level(400),
        Condition(None, None),
    )
    kinds = {"perturbed": "identity", "blurred": "blur", "skipped": "skip"}
    changes = {name: Perturbation(kind, unet.perturbable_layers(kind)) for name, kind in kinds.items()}
    branches = {"cond": Branch(unet, nothing)} | {n: Branch(unet, nothing, change) for n, change in changes.items()}
    denoiser = Denoiser(branches, Process(DiscreteSchedule(), VTarget()))
    together = denoiser(x, level, tuple(branches))
    assert len(calls) == 1 and denoiser.evaluations == 8
    for name in branches:
        apart = denoiser(x, level, (name,))[name]
        assert difference(together[name].x0, apart.x0) < 1e-10
        assert name == "cond" or difference(apart.x0, together["cond"].x0) > 1e-6


def test_layers_to_perturb_default_to_the_middle_and_are_known_by_name():
    assert network().perturbable_layers("identity") == ("mid_block.attentions.0.transformer_blocks.0.attn1",)
    assert network().perturbable_layers("skip") == ("mid_block.attentions.0",)
    assert network(mid="resnet").perturbable_layers("blur") == ("down_blocks.1.attentions.0",)
    assert network(mid="resnet", attention=(False, False)).perturbable_layers("skip") == ("mid_block.resnets.0",)
    assert len(network().perturbable_layers("identity", ["up_blocks.0", "mid_block"])) == 3
    with pytest.raises(UserError, match="no self-attention"):
        network(mid="none", attention=(False, False)).perturbable_layers("identity")
    with pytest.raises(UserError, match=r"`perturbed_layers` mid_blok: no such layer.*mid_block"):
        network().perturbable_layers("identity", ["mid_blok"])


# weak networks


@pytest.fixture(scope="module")
def snapshots(models, ldm_main):
    """A run that keeps two checkpoints."""
    folder = models.root / "snapshots"
    assert ldm_main(models.command("diffusion", folder, "--checkpointing-steps", 3, "--ema-decay", 0.5, steps=6)) == 0
    return folder


@pytest.fixture(scope="module")
def ldm_main():
    from ldm.cli.main import main

    return main


def test_a_snapshot_is_the_model_of_that_step(models, snapshots, ldm_main, tmp_path):
    assert ldm_main(models.command("diffusion", tmp_path / "early", "--ema-decay", 0.5, steps=3)) == 0
    weak = Pipeline.load(models.text, weak=snapshots / "checkpoint-3")
    averaged = load_file(snapshots / "checkpoint-3" / "ema.safetensors")
    for name, value in weak.networks.guiding_model.unet.state_dict().items():
        assert torch.equal(value, averaged[f"unet.{name}"])
    # autoguidance of scale 0 is the weak network alone
    found = sampled(weak, Request(PROMPT), replace(FAST, guidance=("autoguidance(0)",)))
    assert torch.equal(found, sampled(Pipeline.load(tmp_path / "early"), Request(PROMPT)))
    damaged = tmp_path / "run" / "checkpoint-3"
    shutil.copytree(snapshots, tmp_path / "run")
    (damaged / "ema.safetensors").write_bytes((damaged / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"`weak` .*checkpoint-3: damaged: ema.safetensors"):
        Pipeline.load(models.text, weak=damaged)


def test_a_weak_network_has_its_own_conditions_and_is_saved_with_the_model(text, models, tmp_path):
    request, sampling = Request(PROMPT, class_label=2), replace(FAST, guidance=("autoguidance(0)",))
    weak_alone = sampled(text, request, sampling)
    assert difference(weak_alone, sampled(Pipeline.load(models.classes), Request(class_label=2))) < 1e-6
    assert difference(weak_alone, sampled(text, replace(request, class_label=3), sampling)) > 1e-4
    weak = text.networks.guiding_model
    assert weak.condition([request], ["star", "ring", "circle"], null=False).class_labels.tolist() == [0], "by name"
    with pytest.raises(UserError, match="does not know the class 'dog', only circle"):
        weak.check([None, 0], ["dog"])
    text.save(tmp_path / "model")
    again = Pipeline.load(tmp_path / "model")
    assert torch.equal(sampled(again, request, sampling), weak_alone)
    for path in sorted(
        path for part in ("weak_unet", "weak_conditioning") for path in (tmp_path / "model" / part).rglob("*")
    ):
        if path.is_file():  # each is missed
            aside = path.rename(path.with_name("aside"))
            with pytest.raises(UserError, match=str(tmp_path)):
                Pipeline.load(tmp_path / "model")
            aside.rename(path)


def test_a_weak_network_on_another_schedule_meets_at_equal_log_snr():
    ours, theirs = Process(DiscreteSchedule("cosine"), SampleTarget()), Process(FlowSchedule(), FlowTarget())

    class Exact(torch.nn.Module):
        """Predicts the velocity under which x0 is 0.5."""

        def forward(self, x, t, class_labels=None, context=None):
            s = (t / 1000).view(-1, 1, 1, 1)
            return (x - 0.5) / s  # of x = (1 - s) x0 + s eps: eps - x0

    x0, eps = 0.5 * torch.ones(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    branch = Branch(Exact(), Condition(None, None), process=theirs)
    for time in (30, 500, 900):
        level = ours.schedule.level(time)
        x = level.alpha * x0 + level.sigma * eps
        found = Denoiser({"weak": branch}, ours)(x, level, ("weak",))["weak"].x0
        torch.testing.assert_close(found, x0, rtol=0, atol=1e-6)


# energies


def test_an_energys_gradient_is_that_of_finite_differences(text):
    """Through the decoder and the network, by `evaluate` of the pipeline's own branches."""
    plain = RED.replace(")", ", normalize=False)")
    networks, sampling = text.networks, replace(FAST, guidance=("energy(1)",), energy=(plain,))
    level, requests = networks.process.schedule.level(300), [Request(PROMPT)]
    plan = text.resolve(sampling)
    parts = (networks.autoencoder, networks.unet)
    for part in parts:
        part.double()
    try:
        denoiser = build_denoiser(networks, requests, plan)
        context = denoiser.branches["cond"].condition.context.double()
        denoiser.branches["cond"] = Branch(networks.unet, Condition(None, context))
        evaluate = with_energies(denoiser, plan, networks.autoencoder)
        torch.manual_seed(0)
        x, direction = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64).unbind()
        with torch.no_grad():
            score_shift = evaluate(x, level, ("cond", "energy"))["energy"].score_shift

            def energy(x):
                mean = networks.autoencoder.decode(denoiser(x, level, ("cond",))["cond"].x0).mean((0, 2, 3))
                return (mean - torch.tensor([0.8, -0.6, -0.6])).square().sum()

            slope = (energy(x + 1e-4 * direction) - energy(x - 1e-4 * direction)) / 2e-4
        torch.testing.assert_close(-(score_shift * direction).sum(), slope, rtol=1e-4, atol=1e-9)
        assert slope.abs() > 1e-6
    finally:
        for part in parts:
            part.float()


def test_energies_around_each_other_are_as_alone():
    calls = []

    def evaluate(x, level, names):
        calls.append(names)
        return {name: Prediction(x, level, torch.tanh(2 * x)) for name in names}

    def height(x0):
        return (x0**3).sum((1, 2, 3))

    def wave(x0):
        return x0.sin().sum((1, 2, 3))

    plain = {"normalize": False}
    kinds = {
        "a": (height, plain),
        "b": (wave, {}),
        "c": (wave, {"jacobian": False}),
        "d": (height, {"of": "x"} | plain),
    }
    level, x = DiscreteSchedule().level(200), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    every = evaluate
    for name, (function, options) in kinds.items():
        every = with_energy(every, function, name=name, **options)
    found = every(x, level, ("cond", "uncond", *kinds))
    assert calls == [("cond", "uncond")] and not any(p.x0.requires_grad for p in found.values())
    for name, (function, options) in kinds.items():
        alone = with_energy(evaluate, function, name=name, **options)(x, level, ("cond", name))[name]
        torch.testing.assert_close(found[name].score_shift, alone.score_shift, rtol=0, atol=1e-12)
    slope = -2 * (1 - torch.tanh(2 * x) ** 2) * 3 * torch.tanh(2 * x) ** 2  # by hand
    torch.testing.assert_close(found["a"].score_shift, slope, rtol=0, atol=1e-12)


def test_several_energies_add_up_in_one_evaluation(text, tmp_path):
    picture = tmp_path / "red.png"
    Image.new("RGB", (20, 16), (230, 40, 40)).save(picture)
    mask = Image.new("L", (16, 16), 255)
    mask.paste(0, (0, 0, 8, 16))  # the left half is kept
    mask.save(tmp_path / "mask.png")
    strong = replace(FAST, num_inference_steps=8)
    energies = (RED, f"inpainting({str(picture)!r}, {str(tmp_path / 'mask.png')!r}, name='left', jacobian=False)")
    guided = replace(strong, energy=energies, guidance=("energy(1)", "energy(1, name='left')"))
    images, plain = (sampled(text, [Request(PROMPT)] * 4, sampling) for sampling in (guided, strong))
    assert text.evaluations == 32 and images.isfinite().all()
    sampled(text, Request(PROMPT), guided)
    assert text.evaluations == 8, "no call of the network more"
    red = torch.tensor([0.8, -0.6, -0.6]).view(1, 3, 1, 1)
    assert (images.mean((2, 3), keepdim=True) - red).norm() < (plain.mean((2, 3), keepdim=True) - red).norm()
    alike = replace(strong, energy=(f"similarity({str(picture)!r}, of='x')",), guidance=("energy(5)",))
    assert difference(sampled(text, Request(PROMPT), alike), plain[:1]) > 1e-5
    darker = replace(strong, guidance=("energy(5, name='dark')",))
    mine = {"dark": Energy(lambda images: images.mean((1, 2, 3)))}
    assert sampled(text, Request(PROMPT), darker, energies=mine).mean() < plain[:1].mean() - 1e-4
    assert torch.equal(sampled(text, Request(PROMPT), darker, energies={"dark": mine["dark"].function}),
                       sampled(text, Request(PROMPT), darker, energies=mine))  # fmt: skip


def test_an_inpainting_energy_keeps_what_is_known_and_burns_nothing(models, tmp_path):
    """At that scale the gradient itself leaves the known part farther from the image than no guidance does."""
    model = Pipeline.load(models.unconditional)
    image = ShapesData("validation", 16, size=(1, 8))[2].image
    to_pil(image).save(tmp_path / "image.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))  # the right half is drawn anew
    mask.save(tmp_path / "mask.png")
    files = f"{str(tmp_path / 'image.png')!r}, {str(tmp_path / 'mask.png')!r}"
    steps = replace(FAST, num_inference_steps=25)

    def draw(**settings):
        images = sampled(model, [Request()] * 6, replace(steps, **settings))
        kept = (images - image)[..., :8].abs().mean()
        return kept.item(), (images[..., 8:].abs() > 1 - 1 / 255).float().mean().item()

    plain, burnt = draw()
    for energy in (f"inpainting({files})", f"inpainting({files}, jacobian=False)"):
        kept, clipped = draw(energy=(energy,), guidance=("energy(2)",))
        assert kept < 0.5 * plain and clipped < burnt + 0.1
    assert draw(energy=(f"inpainting({files}, normalize=False)",), guidance=("energy(2)",))[0] > plain


# classifiers


def test_a_classifier_of_another_time_grid_is_itself_on_its_own():
    class Bent(torch.nn.Module):
        def forward(self, x, t):
            return torch.stack([(x**2).mean((1, 2, 3)) * t / 100, x.sum((1, 2, 3))], 1)

    own, model = DiscreteSchedule("linear", 250), Process(EDMSchedule(), EDMTarget(1.0))
    labels, level = torch.tensor([0, 1]), own.level(87)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    at_home = ClassifierBranch(Bent(), labels)
    expected = Denoiser({"classifier": at_home}, Process(own, EpsilonTarget()))(x, level, ("classifier",))[
        "classifier"
    ].score_shift
    there = model.schedule.level_of(level.log_snr)
    away = ClassifierBranch(Bent(), labels, own)
    found = Denoiser({"classifier": away}, model)(x / level.alpha, there, ("classifier",))["classifier"].score_shift
    torch.testing.assert_close(found, level.alpha * expected, rtol=1e-6, atol=1e-9)  # by the chain rule


def test_several_classifiers_are_branches_of_their_own(models, tmp_path):
    both = Pipeline.load(models.text, classifier=[models.classifier, f"late={models.classifier}"])
    request = Request(PROMPT, class_label=1)
    twice = replace(FAST, guidance=("classifier(1)", "classifier(1, name='late')"))
    images = sampled(both, request, twice)
    assert both.evaluations == 12
    assert difference(images, sampled(both, request, replace(FAST, guidance=("classifier(2)",)))) < 1e-5
    both.save(tmp_path / "model")
    assert torch.equal(sampled(Pipeline.load(tmp_path / "model"), request, twice), images)


def test_a_classifier_of_another_schedule_serves(text, tmp_path):
    text.save(tmp_path / "model")
    path = tmp_path / "model" / "classifier" / "facts.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"schedule": DiscreteSchedule("cosine", 500).config()}))
    (tmp_path / "model" / "model_manifest.json").unlink()  # it is edited on purpose
    guided = replace(FAST, guidance=("classifier(2)",))
    other, request = Pipeline.load(tmp_path / "model"), Request(PROMPT, class_label=1)
    assert difference(sampled(other, request, guided), sampled(text, request, guided)) > 1e-6


# processes


def test_edm_and_flow_networks_have_the_inputs_and_targets_of_diffusers():
    x = torch.randn(2, 4, 8, 8)
    edm = EDMEulerScheduler(sigma_data=1.0)
    process = Process(EDMSchedule(), EDMTarget(1.0))
    assert Process.from_config(dict(edm.config) | {"_class_name": "EDMEulerScheduler"}).config() == process.config()
    for time in (0, 400, 999):
        level = process.schedule.level(time)
        shown, t = process.precondition(x, level.t, level.alpha, level.sigma)
        sigma = torch.tensor(level.sigma)
        torch.testing.assert_close(shown, edm.precondition_inputs(x, sigma))
        torch.testing.assert_close(torch.tensor(t), edm.precondition_noise(sigma))
        x0 = process.prediction.x0(shown.tanh(), x, level.alpha, level.sigma)
        torch.testing.assert_close(x0, edm.precondition_outputs(x, shown.tanh(), sigma))
    flow, process = FlowMatchEulerDiscreteScheduler(), Process(FlowSchedule(), FlowTarget())
    flow.set_timesteps(4)
    assert (
        Process.from_config(dict(flow.config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}).config()
        == process.config()
    )
    for t, s in zip(flow.timesteps, flow.sigmas, strict=False):
        level = process.schedule.level_of(math.log((1 - s.item()) / s.item())) if s < 1 else process.schedule.level(999)
        assert process.precondition(x, level.t, level.alpha, level.sigma)[1] == pytest.approx(t.item(), abs=1e-3)
        assert level.sigma == pytest.approx(s.item())


@pytest.mark.parametrize("family", ["edm", "flow"])
def test_edm_and_flow_models_are_trained_and_sampled(models, ldm_main, family, tmp_path):
    flags = ("--text-encoder", "None", "--beta-schedule", family, "--snr-gamma", 5)
    assert ldm_main(models.command("diffusion", tmp_path / "run", *flags, steps=40)) == 0
    found = Pipeline.load(tmp_path / "run", classifier=models.classifier, weak=models.classes)
    prediction = found.networks.process.prediction
    assert prediction == (EDMTarget(1.0) if family == "edm" else FlowTarget())
    images = sampled(found, [Request(class_label=1)] * 2, replace(FAST, guidance=("cfg(2)", "classifier(1)", "pag(1)")))
    assert images.isfinite().all() and images.std() > 0.05
    index = json.loads((tmp_path / "run" / "model_index.json").read_text())
    assert (
        index["scheduler"][1]
        == json.loads((tmp_path / "run/scheduler/scheduler_config.json").read_text())["_class_name"]
    )


# refusals


def test_what_cannot_be_is_refused_in_one_line(models, text, refused, tmp_path):
    def case(flags, *words, model=models.text):
        refused(["sample", model, "--device", "cpu", "--output-dir", tmp_path / "out", *flags], *words)

    def guided(what, *flags):
        return ["--guidance", what, *flags]

    case(guided("autoguidance(2)"), "'weak'", "--weak")
    case(guided("autoguidance(2)", "--weak", tmp_path / "none"), "--weak", "no such folder")
    case(
        guided("autoguidance(2)", "--weak", models.text / "checkpoint-7"), "no such checkpoint; there is checkpoint-60"
    )
    case(guided("autoguidance(2)", "--weak", models.other_classifier), "--weak", "model_index.json")
    alien = tmp_path / "alien"
    shutil.copytree(models.unconditional, alien)
    shutil.copytree(models.other_autoencoder / "vae", alien / "vae", dirs_exist_ok=True)
    case(guided("autoguidance(2)", "--weak", alien), "--weak", "latents of another autoencoder")
    case(guided("energy(2)"), "no classifier or energy 'energy'", "--energy")
    case(guided("energy(2)", "--energy", "color([1, 1, 1])"), 'did you mean "colour"?')
    case(guided("energy(2)", "--energy", "colour([1, 1])"), "[red, green, blue]")
    case(guided("energy(2)", "--energy", "similarity('nowhere.png')"), "nowhere.png: no such file")
    case(guided("energy(2)", "--energy", f"similarity('{models.text / 'run.json'}')"), "not an image")
    case(guided("energy(2)", "--energy", "colour(__import__('os'))"), "--energy", "literals")
    case(["--energy", RED], "nothing guides by 'energy'")
    case(guided("energy(2)", "--energy", RED, RED), "nothing guides by 'energy2'")
    case(guided("cfg(2, against='energy')", "--energy", RED), "gives a gradient")
    case(guided("pag(2)", "--perturbed-layers", "nowhere"), "--perturbed-layers nowhere", "known:")
    case(["--perturbed-layers", "mid_block"], "does nothing without")
    case(guided("seg(2)", "--blur-sigma", "-1"), "--blur-sigma")
    case(guided("classifier(1, name='late')", "--classifier", models.classifier), "'late'", "--classifier late=FOLDER")
    case(["--classifier", f"weak={models.classifier}"], "'weak' is not a free name")
    command = models.command("diffusion", tmp_path / "run", "--beta-schedule", "edm", "--prediction-type", "epsilon")
    refused(command, "--prediction-type epsilon", "must be edm")


def test_guidances_repeat_on_the_command_line_and_stand_in_yaml(models, ldm, tmp_path):
    settings = tmp_path / "guided.yaml"
    settings.write_text('sampling:\n  guidance: ["cfg(2)", "pag(1)"]\n  num_inference_steps: 3\n')
    shared = ["--prompt", PROMPT, "--num-images", 2, "--device", "cpu"]
    first = ldm("sample", models.text, "--config", settings, *shared, "--output-dir", tmp_path / "a")
    assert first.code == 0 and "18 network evaluations" in first.out, first.err
    flags = ["--guidance", "cfg(2)", "--num-inference-steps", 3, "--guidance=pag(1)"]
    second = ldm("sample", models.text, *flags, *shared, "--output-dir", tmp_path / "b")
    assert second.code == 0 and "18 network evaluations" in second.out, second.err
    assert (tmp_path / "a" / "000001.png").read_bytes() == (tmp_path / "b" / "000001.png").read_bytes()


def test_a_comparison_takes_any_guidance_as_a_method(models, tmp_path):
    pipeline = Pipeline.load(models.classes, weak=models.unconditional)
    methods = ("none", "pag(3)", "energy(5)", "autoguidance(2)", "autoguidance(3)", "pag(3) + rescale(0.7)")
    shared = {
        "output_dir": tmp_path, "evaluation": EvaluationConfig(num_images=4, num_reference=4),
        "sampling": replace(FAST, num_inference_steps=3, energy=(RED,)), "evaluators": Evaluators(None, None),
    }  # fmt: skip
    data = ShapesData("validation", 16, (64, 32))
    found = compare(pipeline, data, ComparisonConfig(methods, rows=2), **shared)
    assert [run.label for run in found] == list(methods)
    assert [run.result.evaluations_per_image for run in found] == [3, 6, 3, 6, 6, 6]
    strips = {path.name: path.read_bytes() for path in (tmp_path / "cells").glob("*.png")}
    assert len(set(strips.values())) == 6, [len({strips[a], strips[b]}) == 1 and (a, b) for a in strips for b in strips]
    with pytest.raises(UserError, match="nothing guides by 'energy'"):
        compare(pipeline, data, ComparisonConfig(("none", "pag(3)")), **shared | {"output_dir": tmp_path / "other"})
    with pytest.raises(UserError, match=r"`methods`: .*pag"):
        ComparisonConfig(("pag",))


def test_a_picture_made_again_reads_no_files_unasked(models, ldm, refused, tmp_path):
    picture = tmp_path / "red.png"
    Image.new("RGB", (16, 16), (230, 40, 40)).save(picture)
    energy = ["--energy", f"similarity({str(picture)!r})"]
    shared = ["--num-inference-steps", 2, "--device", "cpu"]
    guided = ["--guidance", "energy(3)", "--num-images", 1, "--prompt", PROMPT, *shared]
    assert ldm("sample", models.text, *guided, *energy, "--output-dir", tmp_path / "out").code == 0
    made = tmp_path / "out" / "000000.png"
    again = ["sample", models.text, "--recreate", made, *shared]
    refused([*again, "--output-dir", tmp_path / "again"], "--recreate", "read files", "similarity")
    assert ldm(*again, *energy, "--output-dir", tmp_path / "again").code == 0
    assert (tmp_path / "again" / "000000.png").read_bytes() == made.read_bytes()


def test_the_list_says_what_each_guidance_needs(ldm):
    rows = {line.split()[0]: line for line in ldm("list", "guidances").out.splitlines()}
    assert "weak (--weak)" in rows["autoguidance"] and "perturbed (self-attention)" in rows["pag"]
    assert "energy (--energy)" in rows["energy"] and "arXiv" in rows["seg"]


def test_gradients_keep_to_the_interval_of_the_settings_unless_they_name_their_own():
    texts = ("energy(3)", "classifier(2, interval=[0, 1])", "classifier(2, name='late')", "cfg(3)")
    found = parse_guidances(SamplingConfig(guidance=texts, classifier_interval=(0.5, 4.0)))
    assert [each.interval for each in found] == [(0.5, 4.0), [0, 1], (0.5, 4.0), None]
    assert parse_guidances(SamplingConfig(guidance=texts, classifier_interval=None))[0].interval is None
