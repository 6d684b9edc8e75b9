"""A model folder as one object: what guidance means, what a sample depends on, and diffusers as the judge."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import ldm
from ldm.conditioning.condition import Condition
from ldm.data.shapes import ShapesData
from ldm.evaluation.manifest import weights_of
from ldm.models.classifier import ClassifierConfig, NoisyClassifier
from ldm.runtime.errors import UserError
from ldm.sampling import plan
from ldm.sampling.config import Request, SamplingConfig
from ldm.sampling.denoiser import Branch, ClassifierBranch, Denoiser
from ldm.sampling.forward_process import Process
from ldm.sampling.pipeline import Pipeline
from samplers import DiscreteSchedule, EpsilonTarget, SampleNoise, SampleTarget

PROMPT = "a large red circle on a blue background"
FAST = SamplingConfig(num_inference_steps=6, guidance_scale=1.0)


def sample_images(pipeline, requests, sampling=FAST, **options):
    requests = [requests] if isinstance(requests, Request) else requests
    return torch.cat(list(pipeline.generate(requests, sampling, **options)))


def difference(a, b):
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def text(models):
    return Pipeline.load(models.text, classifier=models.classifier)


@pytest.fixture(scope="module")
def classes(models):
    return Pipeline.load(models.classes, classifier=models.classifier)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "ddim(eta=0.5)", "dpmpp_2m"])
def test_a_picture_depends_on_its_seed_and_number_alone(text, sampler):
    prompts = [PROMPT, "a star", "", "a small ring"]
    requests = [Request(prompts[i % 4], "red", class_label=i % 6) for i in range(64)]
    sampling = replace(FAST, sampler=sampler, guidance_scale=3.0, classifier_scale=1.0)
    whole = sample_images(text, requests, sampling, seed=5, batch_size=64)
    assert whole.shape == (64, 3, 16, 16) and whole.abs().max() <= 1
    fives = sample_images(text, requests[:10], sampling, seed=5, batch_size=5)
    ones = sample_images(text, requests[:5], sampling, seed=5, batch_size=1)
    assert difference(fives, whole[:10]) < 1e-4 and difference(ones, whole[:5]) < 1e-4
    last = sample_images(text, requests[60:], sampling, seed=5, first_index=60)
    assert difference(last, whole[60:]) < 1e-4
    assert difference(sample_images(text, requests[:1], sampling, seed=6), whole[:1]) > 0.05
    assert difference(whole[0], whole[4]) > 0.05, "same request, another number"


def test_generating_leaves_global_randomness_alone(text):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample_images(text, Request(PROMPT), replace(FAST, sampler="ddpm"))
    assert torch.equal(torch.get_rng_state(), before)


def test_scale_1_is_no_guidance_and_scale_0_the_null_condition_bit_for_bit(text, classes):
    for pipeline, request, null in ((text, Request(PROMPT), Request()), (classes, Request(class_label=2), Request())):
        free = sample_images(pipeline, request)
        assert pipeline.evaluations == 6
        explicit = replace(FAST, guidance=("cfg(1)",))
        assert torch.equal(sample_images(pipeline, request, explicit), free) and pipeline.evaluations == 6
        zero = sample_images(pipeline, request, replace(FAST, guidance_scale=0.0))
        assert pipeline.evaluations == 6
        assert torch.equal(zero, sample_images(pipeline, null))
        assert difference(zero, free) > 1e-3  # what 30 training steps give depends on the machine's arithmetic


def test_a_negative_like_the_positive_is_the_conditional_model(text, classes):
    for pipeline, request in (
        (text, Request(PROMPT, negative_prompt=PROMPT)),
        (classes, Request(class_label=2, negative_class=2)),
    ):
        plain = sample_images(pipeline, replace(request, negative_prompt=None, negative_class=None))
        assert difference(sample_images(pipeline, request, replace(FAST, guidance_scale=7.5)), plain) < 1e-5


def test_a_negative_takes_the_place_of_the_null_condition(text, classes):
    guided = replace(FAST, guidance_scale=4.0)
    assert torch.equal(sample_images(text, Request(PROMPT, ""), guided), sample_images(text, Request(PROMPT), guided))
    assert (
        difference(sample_images(text, Request(PROMPT, "red"), guided), sample_images(text, Request(PROMPT), guided))
        > 1e-3
    )
    away = sample_images(classes, Request(class_label=1, negative_class=4), guided)
    assert difference(away, sample_images(classes, Request(class_label=1), guided)) > 1e-3
    mixed = sample_images(classes, [Request(class_label=1, negative_class=4), Request(class_label=1)], guided)
    assert difference(mixed[:1], away) < 1e-5, "each sample has its own negative"


def test_one_generation_parses_its_settings_once(text, monkeypatch):
    calls = Counter()

    def count(name):
        function = getattr(plan, name)

        def counting(*arguments):
            calls[name] += 1
            return function(*arguments)

        monkeypatch.setattr(plan, name, counting)

    for name in ("parse_guidance", "parse_sampler", "validate_sampler", "make_levels", "all_energies"):
        count(name)
    sampling, requests = replace(FAST, guidance=("cfg(3)",)), [Request(PROMPT)] * 4
    images = sample_images(text, requests, sampling, batch_size=1)
    assert len(calls) == 5 and set(calls.values()) == {1}
    resolved = text.resolve(sampling)
    calls.clear()
    text.check(requests, resolved)
    assert torch.equal(sample_images(text, requests, resolved, batch_size=1), images) and not calls
    with pytest.raises(ValueError, match="a plan has its energies already"):
        text.generate(requests, resolved, energies={"dark": lambda images: images.mean((1, 2, 3))})


def test_cost_is_counted_in_samples_times_branches(text):
    levels = text.resolve(FAST).levels
    low, high = levels[4].noise_ratio, levels[2].noise_ratio
    requests = [Request(PROMPT, class_label=0)] * 3

    def cost(**changes):
        sample_images(text, requests, replace(FAST, **changes), batch_size=2)
        return text.evaluations

    changes = {"classifier_scale": 1.0}
    assert cost(**changes) == 2 * 18
    assert cost(**changes, guidance_scale=3.0) == 3 * 18
    assert cost(**changes, guidance_scale=3.0, guidance_interval=(low, high)) == 2 * 18 + 3 * 3
    assert cost(**changes, guidance_scale=0.0) == 2 * 18
    assert cost(**changes, guidance_scale=0.0, guidance_interval=(low, high)) == 2 * 18 + 3 * 3


def test_an_interval_is_guidance_inside_and_none_outside(text):
    levels = text.resolve(FAST).levels
    guided = replace(FAST, guidance_scale=5.0)
    everywhere = replace(guided, guidance_interval=(0.0, 1e9))
    assert torch.equal(sample_images(text, Request(PROMPT), everywhere), sample_images(text, Request(PROMPT), guided))
    nowhere = replace(guided, guidance_interval=(levels[0].noise_ratio * 2, 1e9))
    assert torch.equal(sample_images(text, Request(PROMPT), nowhere), sample_images(text, Request(PROMPT)))
    for scale in (0.0, 5.0):
        early = replace(FAST, guidance_scale=scale, guidance_interval=(levels[1].noise_ratio * 0.99, 1e9))
        images = [sample_images(text, Request(PROMPT), replace(early, guidance_scale=s)) for s in (scale, 1.0)]
        assert difference(*images) > 1e-3


def test_guidance_as_text_is_the_same_as_by_flags(text):
    flags = replace(FAST, guidance_scale=3.0, guidance_interval=(0.5, 8.0), classifier_scale=2.0)
    words = replace(FAST, guidance=("classifier(2)", "cfg(3, interval=[0.5, 8])"))
    request = Request(PROMPT, class_label=3)
    assert difference(sample_images(text, request, flags), sample_images(text, request, words)) < 1e-6


def test_guided_x0_is_the_formula(text):
    """uncond + w (cond - uncond), from two calls of the network by hand."""
    sampling, steps = SamplingConfig(num_inference_steps=1, guidance_scale=3.0), []
    list(text.generate([Request(PROMPT)], sampling, on_step=steps.append))
    noise, level = SampleNoise(0, [0]).initial((4, 8, 8)), text.networks.process.schedule.level(999)

    def x0(words):
        with torch.no_grad():
            context = text.networks.conditioner.encode(None, [words]).context
            eps = text.networks.unet(noise, torch.tensor([999.0]), context=context)
        return (noise - level.sigma * eps) / level.alpha

    cond, uncond = x0(PROMPT), x0("")
    torch.testing.assert_close(steps[0].denoised, uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-4)
    assert difference(cond, uncond) > 0.1


def test_the_classifier_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    config = ClassifierConfig(
        sample_size=4, in_channels=2, num_classes=3, block_out_channels=(8, 8), attention=(False, True),
        attention_head_dim=4, norm_num_groups=2, layers_per_block=1,
    )  # fmt: skip
    network = NoisyClassifier(config).double().eval()
    for parameter in network.parameters():  # zero initialisation would hide every difference
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    level, labels = DiscreteSchedule().level(400), torch.tensor([2, 0])
    denoiser = Denoiser({"classifier": ClassifierBranch(network, labels)}, Process(DiscreteSchedule(), EpsilonTarget()))
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        gradient = denoiser(x, level, ("classifier",))["classifier"].score_shift

    def log_p(x):
        with torch.no_grad():
            log_p = network(x, torch.full((2,), 400.0, dtype=torch.float64)).log_softmax(-1)
        return log_p[torch.arange(2), labels]

    for index in np.ndindex(2, 4, 4):
        nudge = torch.zeros_like(x)
        nudge[(slice(None), *index)] = 1e-5
        numeric = (log_p(x + nudge) - log_p(x - nudge)) / 2e-5
        torch.testing.assert_close(gradient[(slice(None), *index)], numeric, rtol=1e-5, atol=1e-7)
    assert gradient.abs().max() > 1e-3 and denoiser.evaluations == 2


def test_branches_of_one_network_are_one_call():
    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, x, t, class_labels=None, context=None):
            self.calls += 1
            return x * class_labels.view(-1, 1, 1, 1)

    network, level, x = Counting(), DiscreteSchedule().level(10), torch.ones(2, 1, 1, 1)
    branches = {
        name: Branch(network, Condition(torch.tensor(labels), None))
        for name, labels in (("cond", [1, 2]), ("uncond", [3, 4]))
    }
    predictions = Denoiser(branches, Process(DiscreteSchedule(), SampleTarget()))(x, level, ("uncond", "cond"))
    assert network.calls == 1
    assert predictions["cond"].x0.flatten().tolist() == [1, 2] and predictions["uncond"].x0.flatten().tolist() == [3, 4]
    with pytest.raises(ValueError, match="no branch 'weak'"):
        Denoiser(branches, Process(DiscreteSchedule(), SampleTarget()))(x, level, ("weak",))


# diffusers


def stock(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_pictures(pipeline, request, steps, scale, noise):
    images = pipeline(
        request.prompt, negative_prompt=request.negative_prompt, latents=noise, num_inference_steps=steps,
        guidance_scale=scale, height=16, width=16, output_type="np",
    ).images  # fmt: skip
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [10, 25, 50])
def test_a_text_model_gives_the_same_picture_in_a_stock_pipeline(models, text, steps):
    """Numbers of steps that divide 1000: at others diffusers' DDIM steps to t - 1000 // n, not to its next time."""
    theirs = stock(models.text)
    assert isinstance(theirs.scheduler, DDIMScheduler), "as the folder says"
    noise = SampleNoise(3, [0]).initial((4, 8, 8))
    for request in (Request(PROMPT, negative_prompt="green"), Request("a star")):
        ours = sample_images(text, request, SamplingConfig(num_inference_steps=steps, guidance_scale=7.5), seed=3)
        assert difference(ours, stock_pictures(theirs, request, steps, 7.5, noise.clone())) < 1e-3
    assert difference(ours, sample_images(text, Request(PROMPT), seed=3)) > 0.01


@pytest.fixture(scope="module")
def foreign(models, tmp_path_factory):
    """A folder in the shape of Stable Diffusion, made and saved by diffusers alone."""
    torch.manual_seed(1)
    mine = stock(models.text)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.18215, latent_channels=4, sample_size=16,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1,
        timestep_spacing="trailing", prediction_type="v_prediction",
    )  # fmt: skip
    theirs = StableDiffusionPipeline(
        vae, mine.text_encoder, mine.tokenizer, unet, scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("foreign") / "model"
    theirs.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_diffusers_gives_the_same_picture_here(foreign, tmp_path):
    assert not (foreign / "conditioning.json").exists()
    theirs, noise = stock(foreign), SampleNoise(0, [0]).initial((4, 8, 8))
    request, sampling = Request(PROMPT, "blue"), SamplingConfig(num_inference_steps=10, guidance_scale=7.5)
    expected = stock_pictures(theirs, request, 10, 7.5, noise)
    assert expected.std() > 0.01
    ours = Pipeline.load(foreign)
    assert difference(sample_images(ours, request, sampling), expected) < 1e-3
    ours.save(tmp_path / "copy")
    assert torch.equal(
        sample_images(Pipeline.load(tmp_path / "copy"), request, sampling), sample_images(ours, request, sampling)
    )


# folders


def test_a_saved_pipeline_is_the_same_model_in_one_folder(text, classes, tmp_path):
    for pipeline, request in ((text, Request(PROMPT, "red", class_label=2)), (classes, Request(class_label=2))):
        sampling = replace(FAST, guidance_scale=3.0, classifier_scale=1.0)
        folder = tmp_path / request.prompt
        pipeline.save(folder / "model")
        loaded = ldm.Pipeline.load(folder / "model")
        assert loaded.networks.classifiers and loaded.class_names == pipeline.class_names
        assert loaded.networks.condition_dropout == pipeline.networks.condition_dropout == 0.1
        assert weights_of(folder / "model") == weights_of(pipeline.folder) == "EMA of decay 0.999"
        assert torch.equal(sample_images(loaded, request, sampling), sample_images(pipeline, request, sampling))


def test_latents_of_the_training_images_are_calibrated(text):
    data = ShapesData("train", 16, (64, 32))
    images = torch.stack([data[index].image for index in range(64)])
    latents = text.encode(images)  # (64, 4, 8, 8)
    assert latents.shape == (64, 4, 8, 8)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    with torch.no_grad():
        std = text.networks.autoencoder.encode(images).std
    variance = latents.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))  # of latents drawn as in training
    torch.testing.assert_close(variance, torch.ones(4), rtol=0, atol=1e-3)
    assert torch.equal(text.decode(latents), text.networks.autoencoder.decode(latents).clamp(-1, 1))


@pytest.fixture
def saved(text, tmp_path):
    text.save(tmp_path / "model")
    return tmp_path / "model"


def test_each_file_of_a_model_folder_is_missed_or_not_needed(saved, text):
    """Without any one file the folder is refused, or gives the very same picture."""
    request, sampling = Request(PROMPT, "red", class_label=2), replace(FAST, guidance_scale=3.0, classifier_scale=1.0)
    expected = sample_images(text, request, sampling)
    needed = set()
    for path in sorted(path for path in saved.rglob("*") if path.is_file()):
        aside = path.with_name(path.name + ".aside")
        path.rename(aside)
        try:
            assert torch.equal(sample_images(Pipeline.load(saved), request, sampling), expected), path
        except UserError as error:
            needed.add(str(path.relative_to(saved)))
            assert str(saved) in str(error), "says where"
        aside.rename(path)
    weights = "diffusion_pytorch_model.safetensors"
    parts = {f"{part}/{file}" for part in ("vae", "unet", "classifier") for file in ("config.json", weights)}
    others = {"model_index.json", "conditioning.json", "scheduler/scheduler_config.json", "classifier/facts.json"}
    assert needed >= parts | others | {"text_encoder/config.json", "text_encoder/model.safetensors"}


SPOILED = [
    "vae/config.json", "unet/config.json", "scheduler/scheduler_config.json", "conditioning.json", "model_index.json",
    "classifier/config.json", "classifier/facts.json", "text_encoder/config.json",
]  # fmt: skip


def test_a_spoiled_file_is_a_users_error(saved):
    for part in SPOILED:
        before = (saved / part).read_text()
        for content in ("", "[]", "{}", "7", '{"_class_name": "os.system"}', "\x00", "[" * 100_000):
            (saved / part).write_text(content)
            try:
                Pipeline.load(saved)
            except UserError as error:
                assert str(error).strip()
            else:
                assert part in ("model_index.json", "scheduler/scheduler_config.json"), "these have defaults"
        (saved / part).write_text(before)
    Pipeline.load(saved)


def test_a_classifier_of_other_classes_or_sizes_is_noticed(saved):
    metadata = json.loads((saved / "classifier" / "facts.json").read_text())
    names = metadata["class_names"]
    (saved / "classifier" / "facts.json").write_text(json.dumps(metadata | {"class_names": names[::-1]}))
    with pytest.raises(UserError, match=r"its classes, cross, ring, .* are not this model's, circle, square"):
        Pipeline.load(saved)
    (saved / "classifier" / "facts.json").write_text(json.dumps(metadata))
    shutil.rmtree(saved / "classifier")
    NoisyClassifier(
        ClassifierConfig(16, 4, 6, (8, 16), 1, (False, True), attention_head_dim=8, norm_num_groups=4)
    ).save_pretrained(saved / "classifier")
    (saved / "classifier" / "facts.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="takes latents of 16 x 16, the U-Net's are 8 x 8"):
        Pipeline.load(saved)


def test_what_a_model_cannot_do_is_refused_before_work(models, text, classes):
    plain, free = Pipeline.load(models.unconditional), Pipeline.load(models.no_dropout)
    cases = [
        (text, Request(PROMPT), {"guidance": ("autoguidance(2)",)}, "no network for the branch 'weak'"),
        (text, Request(PROMPT), {"guidance": ("cfgg(2)",)}, 'did you mean "cfg"'),
        (text, Request(PROMPT), {"sampler": "ddmi"}, "known are .*ddim"),
        (text, Request(PROMPT), {"sampler": "ddim(eta=-1)"}, "eta"),
        (text, Request(PROMPT), {"guidance_scale": -1.0}, "not negative"),
        (text, Request(PROMPT), {"guidance_scale": float("nan")}, "finite"),
        (text, Request(PROMPT), {"guidance_scale": 2.0, "guidance_interval": (5.0, 1.0)}, "low < high"),
        (text, Request(PROMPT), {"num_inference_steps": 0}, "num_inference_steps"),
        (text, Request(PROMPT), {"num_inference_steps": 1001}, "1000"),
        (text, Request(PROMPT), {"spacing": "even"}, "spacing"),
        (text, Request(PROMPT), {"classifier_scale": 1.0}, "give `class_label`"),
        (text, Request(PROMPT, class_label=9), {"classifier_scale": 1.0}, "unknown class 9"),
        (text, Request(PROMPT, negative_prompt="red"), {}, "guidance_scale"),
        (text, Request(PROMPT, class_label=1), {}, "classifier_scale"),
        (classes, Request(PROMPT), {}, "not trained on text"),
        (classes, Request(class_label=1, negative_prompt="red"), {"guidance_scale": 2.0}, "not trained on text"),
        (free, Request(class_label=1), {"guidance_scale": 0.0}, "without condition dropout"),
        (free, Request(class_label=1), {"guidance": ("cfg(3)",)}, "without condition dropout"),
        (plain, Request(), {"guidance_scale": 7.5}, "unconditional"),
        (plain, Request(class_label=1), {}, "classes"),
        (plain, Request(class_label=1), {"classifier_scale": 1.0}, "no classifier"),
    ]
    for pipeline, request, changes, words in cases:
        with pytest.raises(UserError, match=words):
            pipeline.generate([request], replace(FAST, **changes))
    with pytest.raises(UserError, match="nothing to sample"):
        text.generate([], FAST)
    assert sample_images(plain, [Request()] * 2).shape == (2, 3, 16, 16)
    assert sample_images(free, Request(class_label=1)).shape == (1, 3, 16, 16)
