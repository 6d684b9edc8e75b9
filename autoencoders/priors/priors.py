"""The priors of all levels of an autoencoder's codes, as one module and one storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoencoders import storage
from autoencoders.priors.base import CodePrior, PriorCondition
from autoencoders.priors.config import CodeSampling, PriorConfig, PriorShape, config_of
from autoencoders.priors.pixelcnn import PixelCNN
from autoencoders.priors.sampling import sample_codes
from autoencoders.priors.transformer import Transformer

KINDS: dict[str, type[CodePrior]] = {"pixelcnn": PixelCNN, "transformer": Transformer}
_CLASS_NAME = "CodePriors"


class CodePriors(nn.Module):
    """p(codes of all levels) = prod_l p(level l | levels coarser than l, condition); one network a level.

    As in VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446, section 3.2). Parameters in `levels`, coarse to fine.
    """

    def __init__(self, config: PriorConfig, shape: PriorShape, *, seed: int = 0) -> None:
        """Weights drawn from `seed`; the global random state stays as it was."""
        super().__init__()
        self.config, self.shape = config, shape
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.levels = nn.ModuleList(KINDS[config.kind](config, shape, level) for level in range(len(shape.levels)))

    def priors(self) -> Iterator[CodePrior]:
        """Those of the levels, coarse to fine."""
        return (cast(CodePrior, level) for level in self.levels)

    def forward(
        self, codes: Sequence[Tensor], condition: PriorCondition, read: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """-log p in nats of the codes of each level: (B, N_l) each, for maps (B, h_l, w_l), coarse to fine.

        `read` are the inputs of the networks in place of the true maps: masked tokens, in training. The condition on
        coarser levels is the true one.
        """
        if len(codes) != len(self.levels):
            raise ValueError(f"codes: expected {len(self.levels)} levels, got {len(codes)}")
        inputs = codes if read is None else read
        return tuple(
            prior.nll(codes[level], replace(condition, coarser=tuple(codes[:level])), read=inputs[level])
            for level, prior in enumerate(self.priors())
        )

    def sample(
        self,
        condition: PriorCondition,
        generators: Sequence[torch.Generator],
        sampling: CodeSampling | None = None,
        *,
        null: PriorCondition | None = None,
        guidance_scale: float = 1.0,
    ) -> tuple[Tensor, ...]:
        """Draw codes, level by level: one map (B, h_l, w_l) each; see `sample_codes`.

        Both branches of guidance are conditioned on the same coarser codes, those that were drawn.
        """
        levels: tuple[Tensor, ...] = ()
        for prior in self.priors():
            codes = sample_codes(
                prior,
                replace(condition, coarser=levels),
                generators,
                sampling,
                null=None if null is None else replace(null, coarser=levels),
                guidance_scale=guidance_scale,
            )
            levels = (*levels, codes)
        return levels

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors into a folder."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        storage.write(path, self.entries(), tensors)

    def entries(self) -> dict[str, Any]:
        """What config.json holds."""
        shape = self.shape
        return {
            "_class_name": _CLASS_NAME,
            "settings": asdict(self.config),
            "levels": [level.entries() for level in shape.levels],
            "num_classes": shape.num_classes,
            "context_dim": shape.context_dim,
        }

    @classmethod
    def from_pretrained(cls, path: str | Path) -> CodePriors:
        """Read a folder that `save_pretrained` wrote, in evaluation mode; `ValueError` in one line for another."""
        file = Path(path) / storage.CONFIG_NAME
        entries = storage.read_json(file)
        if entries.get("_class_name") != _CLASS_NAME:
            raise ValueError(f"{file}: expected the settings of {_CLASS_NAME}, got {entries.get('_class_name')!r:.80}")
        try:
            config, shape = config_of(entries)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        with torch.device("meta"):  # names and shapes are compared before memory is taken
            expected = cls(config, shape).state_dict()
        tensors = storage.read_tensors(path, expected)
        model = cls(config, shape)
        model.load_state_dict(tensors)
        return model.eval()
