"""A U-Net in sampling, most of which is computed at every Nth step only."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ldm.models.encoder import CachedConditioning
from ldm.models.perturbation import Perturbation
from ldm.models.unet import UNet


class FeatureCache:
    """A U-Net whose lower resolutions are computed at every `interval`th call, and whenever the conditioning changes.

    Ma et al. 2024, arXiv:2312.00858 (DeepCache), section 3.3: the other calls compute the highest resolution alone, and
    take the input of the last up block from the last whole call.
    """

    def __init__(self, unet: UNet, interval: int) -> None:
        self.unet, self.interval = unet, interval
        self._calls = 0  # since the conditioning changed
        self._conditioning: CachedConditioning | None = None
        self._features: Tensor | None = None  # (B, C, H, W), the input of the last up block

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        *,
        conditioning: CachedConditioning,
        perturbations: Sequence[tuple[Perturbation, Tensor]] = (),
    ) -> Tensor:
        """As `UNet.forward`."""
        unet = self.unet
        emb, context = unet.embed(x, t, perturbations=perturbations, conditioning=conditioning)
        if conditioning is not self._conditioning:
            self._conditioning, self._calls = conditioning, 0
        if self._calls % self.interval == 0:
            h, skips = unet.encode(x, emb, context)
            for block in unet.up_blocks[:-1]:
                h = block(h, skips, emb, context)
            self._features = h
        else:
            skips = [unet.conv_in(x)]
            skips += unet.down_blocks[0].layers(skips[-1], emb, context)  # type: ignore[operator]
        self._calls += 1
        return unet.output(unet.up_blocks[-1](self._features, skips, emb, context))
