"""The noisy classifier p(y | x_t, t) whose gradient guides sampling (Dhariwal & Nichol 2021, section 4)."""

from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.attention import to_tokens
from ldm.models.classifier_config import ClassifierConfig
from ldm.models.encoder import Encoder
from ldm.models.weights import load_weights, read_config, save_network
from ldm.runtime.errors import UserError
from ldm.runtime.schema import convert
from ldm.runtime.text import suggest

__all__ = ["ClassifierConfig", "NoisyClassifier"]
_CLASS_NAME = "NoisyClassifier"


class AttentionPool(nn.Module):
    """(B, C, H, W) -> (B, K): the pixels' mean attends to itself and all pixels (CLIP's and ADM's pooling)."""

    def __init__(self, channels: int, pixels: int, heads: int, out_features: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.randn(pixels + 1, channels) / channels**0.5)
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(channels, 2 * channels)
        self.to_out = nn.Linear(channels, out_features)

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_tokens(x).view(len(x), -1, x.shape[1])  # (B, HW, C)
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), dim=1) + self.positions  # (B, 1 + HW, C)
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, 1 or 1 + HW, C / heads)
            for projected in (self.to_q(tokens[:, :1]), *self.to_kv(tokens).chunk(2, dim=-1))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).flatten(1))  # (B, K)


class NoisyClassifier(Encoder):
    """x_t (B, C, H, W) and t in [0, T-1], (B,) or () -> logits (B, K). The U-Net's encoder half, then pooling."""

    def __init__(self, config: ClassifierConfig) -> None:
        encoder = config.encoder()
        super().__init__(encoder)
        self.config = config
        width, side = config.block_out_channels[-1], config.sample_size // encoder.factor
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, width, encoder.norm_eps)
        self.pool = AttentionPool(width, side * side, width // config.attention_head_dim, config.num_classes)

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """The middle of the network, averaged over space: (B, D)."""
        return self._middle(x, t).mean((2, 3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        size = self.config.sample_size
        if x.shape[2:] != (size, size):
            raise UserError(f"classifier: expected x of height and width {size}, got {tuple(x.shape)}")
        return self.pool(F.silu(self.conv_norm_out(self._middle(x, t))))

    def _middle(self, x: Tensor, t: Tensor) -> Tensor:
        emb, context = self.embed(x, t)
        return self.encode(x, emb, context)[0]  # (B, C, H / factor, W / factor)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and the weights."""
        save_network(folder, _CLASS_NAME, asdict(self.config), self)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> "NoisyClassifier":
        """Read a folder that `save_pretrained` wrote."""
        keys = read_config(folder, _CLASS_NAME)
        names = [field.name for field in fields(ClassifierConfig)]
        for key in keys:
            if key not in names:
                raise UserError(f"{folder}: config.json: unknown key {key!r}", remedy=suggest(key, names))
        try:
            config = convert(keys, ClassifierConfig)
        except ValueError as error:
            raise UserError(f"{folder}/config.json: {error}") from None
        with torch.device("meta"):
            network = cls(config)
        load_weights(folder, network, dtype)
        return network.eval()
