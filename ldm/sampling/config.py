"""What to sample, and how."""

from dataclasses import dataclass
from typing import Literal

from ldm.runtime.compilation import Mode
from ldm.runtime.errors import UserError, user_errors
from ldm.runtime.values import check_values
from samplers import Guidance, Spacing, guidance_text, parse_guidance, parse_sampler

INDEX = "model_index.json"  # of a model folder
OURS = "_conditioning"  # the entry of it that marks a folder of ours, which must have a conditioning.json
MAX_ITERATIONS = 100  # of the fixed point of an inversion; 10 leave nothing but rounding
Unmasked = Literal["reconstruction", "original"]  # where pixels that inpainting keeps come from
WITHOUT_DIFFUSION = "this model draws without diffusion"
INSTEAD = "leave it out, or give the output folder of `ldm train diffusion`"


@dataclass(frozen=True)
class Request:
    """The conditions of one sample. `class_label` is also what a classifier guides towards.

    With `toward` in [0, 1] the sample is a point on a path: from this prompt to `toward_prompt`, linear in the text's
    states, and from its own noise to that of `toward_seed`, on the great circle; what is None stays as it is.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    class_label: int | None = None
    negative_class: int | None = None
    toward: float | None = None
    toward_prompt: str | None = None
    toward_seed: int | None = None


@dataclass(frozen=True)
class SamplingConfig:
    """How samples are drawn. What is None is the model's default, see `ldm.sampling.defaults`."""

    sampler: str | None = None
    """A registered sampler, with options if any: ddpm, "ddim(eta=0.5)", dpmpp_2m; see `ldm list samplers`. Unset: that
    of the model, ddim unless `ldm compare --save-default` chose another."""
    num_inference_steps: int | None = None
    """Network steps. Unset: those of the model, 50 unless `ldm compare --save-default` chose others."""
    spacing: Spacing = "trailing"
    """Which times are visited: by time (leading, trailing, linspace, quadratic, beta) or by noise (the others)."""
    compile: Mode = "none"
    """Compile the U-Net by torch.compile: slow to start, then faster. reduce-overhead adds CUDA graphs."""
    feature_cache: int = 1
    """LOSSY where above 1: only every Nth step runs the whole U-Net, the others its highest resolution alone on the
    features that came up from below then (DeepCache). 1 is exact."""
    guidance_scale: float | None = None
    """Classifier-free guidance: uncond + scale * (cond - uncond). 1 is the conditional model, 0 the unconditional.
    Unset: that of the model, 3 if it was trained with condition dropout, else 1 (Stable Diffusion: 7.5), unless `ldm
    compare --save-default` chose another; 1 where `classifier_scale` or `guidance` is given."""
    guidance_interval: tuple[float, float] | None = None
    """Noise ratios sigma / alpha between which classifier-free guidance acts; elsewhere it costs nothing."""
    classifier_scale: float = 0.0
    """Classifier guidance: times grad log p(y | x_t) of the noisy classifier. 0 is off."""
    classifier_interval: tuple[float, float] | None = (0.0, 20.0)
    """Noise ratios sigma / alpha between which gradients (`classifier_scale`, and the classifiers and energies of
    `guidance` that name no interval) act. Far above, x_t holds nothing of the class: the true gradient vanishes with
    alpha, a network's does not, and the step divides it by alpha. None: everywhere."""
    guidance: tuple[str, ...] = ()
    """Further guidances, such as "cfg(7.5, interval=[0.3, 5])"; see `ldm list guidances`. Python also takes objects,
    such as `ClassifierFree(7.5)`."""
    energy: tuple[str, ...] = ()
    """What "energy(1)" guides down: "colour([0.8, -0.6, -0.6])", "inpainting('image.png', 'mask.png')" (white is drawn
    anew), "similarity('reference.png')". The first is the branch energy, the next energy2, ..., or the given name;
    of='x' takes the noisy latents for the denoised ones, jacobian=False leaves the network's derivative out,
    normalize=False takes the gradient as long as it is, with scales of its own."""
    perturbed_layers: tuple[str, ...] = ()
    """Where pag and seg perturb the self-attention, such as mid_block or down_blocks.1.attentions.0. Default: in the
    middle, else at the lowest resolution that has any."""
    blur_sigma: float | None = None
    """How far seg blurs the queries, in tokens; unset: infinitely."""
    skipped_layers: tuple[str, ...] = ()
    """Which layers slg leaves out, such as mid_block.resnets.1. Default: the attention of the middle."""
    temperature: float | None = None
    """Of a prior over codes: logits are divided by it; below 1 the likely codes are taken more often. Unset: 1."""
    top_k: int | None = None
    """Of a prior over codes: only the k likeliest codes are drawn; unset: all."""
    top_p: float | None = None
    """Of a prior over codes: only the likeliest, as many as together have this probability; unset: all."""

    def __post_init__(self) -> None:
        given = [self.guidance] if isinstance(self.guidance, str | Guidance) else self.guidance
        if isinstance(given, tuple | list):  # guidances may be objects, which are stored as their text
            with user_errors(setting="guidance"):
                texts = tuple(guidance_text(item) if isinstance(item, Guidance) else item for item in given)
            object.__setattr__(self, "guidance", texts)
        check_values(self)


@dataclass(frozen=True)
class ResolvedSampling(SamplingConfig):
    """Settings without a None that is the model's default. As they stand, they are the model itself, unguided."""

    sampler: str = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 1.0


def caveats(sampling: SamplingConfig) -> tuple[str, ...]:
    """What in these settings makes samples differ from the model's exact ones, for manifests and notes."""
    if sampling.feature_cache == 1:
        return ()
    return (f"lossy: `feature_cache` {sampling.feature_cache} runs the whole U-Net at every such step only",)


def check_names(sampling: SamplingConfig) -> None:
    """`UserError` for a sampler or guidance that there is not, or whose options are wrong: before a model is loaded."""
    with user_errors(setting="sampler", value=sampling.sampler):
        if sampling.sampler is not None:
            parse_sampler(sampling.sampler)
    with user_errors():
        for text in sampling.guidance:
            parse_guidance(text)


def check_strength(strength: float) -> None:
    """`UserError` unless 0 < strength <= 1."""
    if not 0 < strength <= 1:
        raise UserError(f"expected above 0 and up to 1 (from pure noise), got {strength}", setting="strength")
