"""What is sampled with where nothing is given: one rule everywhere, read from the model folder."""

import dataclasses
import json
import shutil

import pytest

from ldm.runtime.errors import UserError
from ldm.sampling.config import Request, ResolvedSampling, SamplingConfig
from ldm.sampling.defaults import FILE, SamplingDefaults, write_defaults
from ldm.sampling.pipeline import Pipeline

SAVED = SamplingDefaults("dpmpp_2m", 20, guidance=("cfg(3, interval=[0.3, 5])",), source=FILE)


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    """A folder of each kind of model."""
    root = tmp_path_factory.mktemp("kinds")
    for name in ("diffusers", "saved"):
        shutil.copytree(models.text, root / name)
    index = json.loads((root / "diffusers" / "model_index.json").read_text())
    del index["_conditioning"]
    (root / "diffusers" / "model_index.json").write_text(json.dumps(index))
    for file in ("conditioning.json", "model_manifest.json"):
        (root / "diffusers" / file).unlink()
    write_defaults(root / "saved", SAVED.complete(SamplingConfig()), "the best of 40")
    ours = {name: getattr(models, name) for name in ("text", "classes", "no_dropout", "unconditional")}
    return ours | {name: root / name for name in ("diffusers", "saved")}


KINDS = {  # the default scale and guidances, and whence
    "text": (3, (), "with condition dropout"),
    "classes": (3, (), "with condition dropout"),
    "no_dropout": (1, (), "without condition dropout"),
    "unconditional": (1, (), "without condition dropout"),
    "diffusers": (7.5, (), "the default of StableDiffusionPipeline"),
    "saved": (1, SAVED.guidance, "saved by ldm compare: the best of 40"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_of_a_kind_of_model_is_the_same_everywhere(kind, folders, ldm, tmp_path):
    scale, guidance, source = KINDS[kind]
    solver = ("dpmpp_2m", 20) if kind == "saved" else ("ddim", 50)
    pipeline = Pipeline.load(folders[kind])
    plan = pipeline.resolve()
    assert (plan.config.guidance_scale, plan.config.guidance) == (scale, guidance)
    assert (
        (plan.config.sampler, plan.config.num_inference_steps)
        == solver
        == (pipeline.defaults.sampler, len(plan.levels) - 1)
    )
    information = ldm("info", folders[kind]).out
    assert f"default sampling: {solver[0]}, {solver[1]} steps, guidance scale {scale}" in information
    assert source in information
    condition = {"unconditional": [], "classes": [], "no_dropout": []}.get(kind, ["--prompt", "a red circle"])
    flags = ["--num-images", 1, "--num-inference-steps", 2, "--device", "cpu", "--output-dir", tmp_path / "out"]
    outcome = ldm("sample", folders[kind], *condition, *flags)
    line = outcome.out.splitlines()[0]
    assert line.startswith(f"defaults: {solver[0]}, guidance scale {scale}") and source in line
    sampling = json.loads((tmp_path / "out" / "settings.json").read_text())["sampling"]
    assert (sampling["guidance_scale"], tuple(sampling["guidance"])) == (scale, guidance)
    assert (sampling["sampler"], sampling["num_inference_steps"]) == (solver[0], 2)


GIVEN = {  # what is given: guidance scale, classifier scale, guidances, what the line says
    "nothing": ({}, 1, 0, SAVED.guidance, "dpmpp_2m, 20 steps, guidance scale 1, cfg(3, interval=[0.3, 5])"),
    "scale": ({"guidance_scale": 7.5}, 7.5, 0, (), "dpmpp_2m, 20 steps"),
    "scale 1": ({"guidance_scale": 1.0}, 1, 0, (), "dpmpp_2m, 20 steps"),
    "classifier": ({"classifier_scale": 4.0}, 1, 4, (), "guidance scale 1 besides the guidance given"),
    "guidance": ({"guidance": ("pag(3)",)}, 1, 0, ("pag(3)",), "guidance scale 1 besides the guidance given"),
    "sampler": ({"sampler": "ddim"}, 1, 0, SAVED.guidance, "20 steps, guidance scale 1, cfg"),
    "all": ({"sampler": "ddim", "num_inference_steps": 5, "guidance_scale": 2.0}, 2, 0, (), ""),
}


@pytest.mark.parametrize("case", GIVEN)
def test_guidance_that_is_given_is_all_there_is(case):
    given, scale, classifier, guidance, line = GIVEN[case]
    config = SamplingConfig(**given)
    resolved = SAVED.complete(config)
    assert (resolved.guidance_scale, resolved.classifier_scale, resolved.guidance) == (scale, classifier, guidance)
    assert line in SAVED.taken(config, resolved) and bool(SAVED.taken(config, resolved)) == bool(line)
    assert SAVED.complete(resolved) == resolved, "settings are completed once"
    for name, value in given.items():
        assert getattr(resolved, name) == value


def test_without_a_condition_there_is_no_guidance_and_no_cost(models):
    text = Pipeline.load(models.text)
    steps = SamplingConfig(num_inference_steps=2)
    costs = {"": 2, "a red circle": 4}
    for prompt, cost in costs.items():
        next(text.generate([Request(prompt)], steps))
        assert text.evaluations == cost
    assert "no prompt or class" in text.defaults.taken(steps, text.with_defaults(steps, [Request()]))
    negative = text.with_defaults(steps, [Request(negative_prompt="red")])
    assert negative.guidance_scale == 3, "a negative prompt acts without a prompt"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "expected an object"),
        ('{"sampler": "ddin"}', "ddin"),
        ('{"guidance": ["cfgg(2)"]}', "cfgg"),
        ('{"guidance_scale": "3"}', "guidance_scale"),
        ('{"energy": ["similarity(\'x.png\')"]}', "energy"),
        ('{"num_inference_steps": 0}', "1 or more"),
    ],
)
def test_a_saved_default_that_is_none_is_refused(content, words, folders, tmp_path):
    (tmp_path / FILE).write_text(content)
    from ldm.sampling.defaults import read_defaults

    with pytest.raises(UserError, match=rf"{FILE}: .*{words}"):
        read_defaults(tmp_path)


def test_the_winner_of_a_comparison_becomes_the_default_and_the_comparison_goes_on(
    models, ldm, tmp_path, quick_networks
):
    model = tmp_path / "model"
    shutil.copytree(models.text, model)
    few = ["--num-images", 8, "--num-reference", 16, "--metrics", "fid", "--extractor", "trained", "--bootstrap", 0]
    what = [
        "compare",
        model,
        "--methods",
        "cfg(2, interval=[0.3, 5])",
        *few,
        "--device",
        "cpu",
        "--output-dir",
        tmp_path / "out",
    ]
    assert ldm(*what, "--samplers", "dpmpp_2m", "--steps", 3).code == 0
    assert not (model / FILE).exists(), "only --save-default saves"
    first = ldm(*what, "--samplers", "dpmpp_2m", "--steps", 3, "--save-default")
    assert first.code == 0 and f"saved as the model's default ({model / FILE})" in first.out
    defaults = Pipeline.load(model).defaults
    assert (defaults.sampler, defaults.num_inference_steps) == ("dpmpp_2m", 3)
    assert (defaults.guidance_scale, defaults.guidance) == (1, ("cfg(2, interval=[0.3, 5])",))
    assert "of 8 samples" in ldm("info", model).out
    # its own default is another now, and the comparison that chose it is the same still
    assert ldm(*what, "--samplers", "dpmpp_2m", "--steps", 3, "--save-default").code == 0
    copy = Pipeline.load(model)
    copy.save(tmp_path / "copy")
    assert Pipeline.load(tmp_path / "copy").defaults == defaults


def test_what_a_prompt_cannot_use_is_not_saved(models, ldm, tmp_path, quick_networks):
    model = tmp_path / "model"
    shutil.copytree(models.text, model)
    few = ["--num-images", 8, "--num-reference", 16, "--metrics", "fid", "--extractor", "trained", "--bootstrap", 0]
    few += ["--num-inference-steps", 2, "--save-default", "--device", "cpu", "--classifier", models.classifier]
    for method, why in (("classifier", "outside of the model folder"), ("unconditional", "leaves the conditions out")):
        found = ldm(
            "compare", model, "--methods", method, *few, "--classifier-scales", 1, "--output-dir", tmp_path / method
        )
        assert found.code == 0 and "no default was saved" in found.out and why in found.out
    assert not (model / FILE).exists()


def test_a_comparison_starts_unguided_and_from_the_sampler_that_its_folder_recorded(models, tmp_path):
    from ldm.comparison.compare import _base_sampling

    pipeline = Pipeline.load(models.text)
    base = _base_sampling(pipeline, SamplingConfig(), tmp_path)
    assert dataclasses.asdict(base) == dataclasses.asdict(ResolvedSampling()), "as before there were defaults"
    recorded = dataclasses.asdict(dataclasses.replace(base, sampler="heun"))
    (tmp_path / "plan.json").write_text(json.dumps({"sampling": recorded}))
    assert _base_sampling(pipeline, SamplingConfig(), tmp_path).sampler == "heun"
    assert _base_sampling(pipeline, SamplingConfig(sampler="ddim"), tmp_path).sampler == "ddim"


def test_evaluations_in_training_take_the_default_and_runs_from_before_it_keep_their_scale(
    models, ldm, tmp_path, quick_networks
):
    every = ["--eval-every", 3, "--eval-num-images", 4, "--eval-num-reference", 8, "--eval-metrics", "fid"]
    every += ["--eval-num-inference-steps", 2, "--eval-extractor", "trained"]
    run = tmp_path / "run"
    assert ldm(*models.command("diffusion", run, *every, steps=3)).code == 0
    config = run / "config.yaml"

    def scale(step):
        result = json.loads((run / "evaluations" / f"step-{step:06d}.json").read_text())["result"]
        return result["manifest"]["sampling"]["guidance_scale"]

    assert scale(3) == 3 and "eval_guidance_scale: null" in config.read_text()
    config.write_text(config.read_text().replace("eval_guidance_scale: null", "eval_guidance_scale: 1.0"))
    assert ldm(*models.command("diffusion", run, *every, steps=6)).code == 0
    assert scale(6) == 1, "a run of before"
