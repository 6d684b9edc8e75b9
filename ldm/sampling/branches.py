"""The branches of a model's networks that a plan may need, made for the conditions of one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoencoders import Autoencoder
from ldm.conditioning.condition import Condition
from ldm.conditioning.conditioner import Conditioner
from ldm.runtime.compilation import compile_network
from ldm.sampling.config import Request
from ldm.sampling.denoiser import Branch, ClassifierBranch, Denoiser
from ldm.sampling.networks import Networks
from ldm.sampling.plan import SamplingPlan
from samplers import Evaluate, with_energy


def build_denoiser(
    networks: Networks, requests: Sequence[Request], plan: SamplingPlan, autocast: torch.dtype | None = None
) -> Denoiser:
    """The branches that the plan may need, under the conditions of the requests."""
    conditioner, unet, guiding_model, needed = networks.conditioner, networks.unet, networks.guiding_model, plan.needed
    null = conditioner.null(len(requests), networks.device)
    conditional = null if plan.base_is_null else _condition(conditioner, requests)
    branches: dict[str, Branch | ClassifierBranch] = {"cond": Branch(unet, conditional)}
    if "uncond" in needed or networks.condition_dropout:  # plug-ins may lack it in `needs`
        negative = any(r.negative_prompt is not None or r.negative_class is not None for r in requests)
        branches["uncond"] = Branch(unet, _negative_condition(conditioner, requests) if negative else null)
    for name, perturbation in plan.perturbations.items():
        branches[name] = Branch(unet, conditional, perturbation)
    if "weak" in needed and guiding_model is not None:
        condition = guiding_model.condition(requests, networks.class_names, null=plan.base_is_null)
        branches["weak"] = Branch(guiding_model.unet, condition, process=guiding_model.process)
    for name, classifier in networks.classifiers.items():
        if name in needed:
            labels = torch.tensor([request.class_label for request in requests], device=networks.device)
            branches[name] = ClassifierBranch(classifier.network, labels, classifier.schedule)
    for network in {unet, *([guiding_model.unet] if guiding_model else [])}:
        compile_network(network, plan.config.compile)
    return Denoiser(branches, networks.process, autocast, plan.config.feature_cache)


def with_energies(denoiser: Denoiser, plan: SamplingPlan, autoencoder: Autoencoder) -> Evaluate:
    """The denoiser with the energies as further branches."""
    evaluate: Evaluate = denoiser
    for name, energy in plan.energies.items():
        function = energy.of_latents(autoencoder)
        evaluate = with_energy(
            evaluate,
            function,
            name=name,
            of=energy.of,
            jacobian=energy.jacobian,
            normalize=energy.normalize,
            minimum=energy.minimum,
        )
    return evaluate


def _encode(conditioner: Conditioner, labels: list[int | None], texts: list[str]) -> Condition:
    return conditioner.encode(labels if conditioner.num_classes else None, texts if conditioner.has_text else None)


def _negative_condition(conditioner: Conditioner, requests: Sequence[Request]) -> Condition:
    labels = [request.negative_class for request in requests]
    return _encode(conditioner, labels, [request.negative_prompt or "" for request in requests])


def _condition(conditioner: Conditioner, requests: Sequence[Request]) -> Condition:
    """The conditions of the requests; on a path the text's states are interpolated linearly."""
    labels = [request.class_label for request in requests]
    condition = _encode(conditioner, labels, [request.prompt for request in requests])
    if condition.context is None or all(request.toward_prompt is None for request in requests):
        return condition
    ends = [request.prompt if request.toward_prompt is None else request.toward_prompt for request in requests]
    w = condition.context.new_tensor([request.toward or 0.0 for request in requests])[:, None, None]  # (B, 1, 1)
    other = _encode(conditioner, labels, ends).context
    assert other is not None  # as in `condition`
    return Condition(condition.class_labels, (1 - w) * condition.context + w * other)  # (B, L, D); exact at both ends
