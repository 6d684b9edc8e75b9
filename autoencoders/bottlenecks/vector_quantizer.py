"""Vector quantisation (van den Oord et al. 2017, arXiv:1711.00937), codebook by gradient or by running means."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from autoencoders.bottlenecks.base import BottleneckOutput, Encoding, Quantizer
from autoencoders.distributed import several_processes, sum_over_processes

_LAPLACE_EPS = 1e-5
_MAX_DISTANCES = 2**24  # entries of a distance matrix held at a time: 64 MiB in float32


def straight_through(z_e: Tensor, z_q: Tensor) -> Tensor:
    """The value of z_q with the gradient of z_e."""
    return z_e + (z_q - z_e).detach()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the code frequencies: from 1 (one code in use) to K (all alike)."""
    p = counts / counts.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum())


def code_use(indices: Tensor, num_codes: int, *, everywhere: bool) -> dict[str, Tensor]:
    """Metrics of a batch of indices of any shape: their perplexity, and how many different ones there are.

    `everywhere`: over the batches of all processes, a collective operation.
    """
    counts = torch.bincount(indices.flatten(), minlength=num_codes)
    if everywhere:
        (counts,) = sum_over_processes([counts[:, None]])
    return {"perplexity": perplexity(counts.float()), "used_codes": (counts > 0).sum()}


class VectorQuantizer(Quantizer):
    """Replaces each latent vector by the nearest of K codes.

    The latents are the vectors *before* quantisation; `decode` quantises. In training mode, `forward` changes state in
    place: the running sums (and codes) of an EMA codebook, and the codes that it revives. With several processes all
    of that is computed over the batches of all of them, which must be equally large, so that every process holds
    the same codebook.
    """

    cluster_size: Tensor
    code_sum: Tensor
    unused_steps: Tensor

    def __init__(
        self,
        num_codes: int,
        channels: int,
        codebook: Literal["gradient", "ema"] = "ema",
        codebook_decay: float = 0.99,
        beta: float = 0.25,
        beta_on: Literal["encoder", "codebook"] = "encoder",
        revive_after: int = 0,
    ) -> None:
        super().__init__()
        self.ema = codebook == "ema"
        self.codebook_decay = codebook_decay
        self.codebook_weight, self.commitment_weight = (1.0, beta) if beta_on == "encoder" else (beta, 1.0)
        self.revive_after = revive_after
        self.embedding = nn.Embedding(num_codes, channels)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)
        self.embedding.weight.requires_grad_(not self.ema)
        if self.ema:
            # Sizes of one, not zero: with zero the first update would divide the codes by almost nothing.
            self.register_buffer("cluster_size", torch.ones(num_codes))
            self.register_buffer("code_sum", self.embedding.weight.detach().clone())
            self.register_load_state_dict_post_hook(_restart_sums)
        if revive_after:
            self.register_buffer("unused_steps", torch.zeros(num_codes, dtype=torch.int64))

    def codebook(self) -> Tensor:
        """The vectors (K, C) as they are compared and looked up."""
        return self.embedding.weight

    def vectors(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) as they are compared with the codebook, in its type."""
        return features.to(self.embedding.weight.dtype)

    def encode(self, features: Tensor) -> Encoding:
        return Encoding(self.vectors(features).to(features.dtype))

    def indices(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> the indices (B, h, w) of their nearest codes."""
        vectors = latents.permute(0, 2, 3, 1)  # (B, h, w, C)
        return self.nearest(vectors.flatten(0, 2)).view(vectors.shape[:3])

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, h, w) -> vectors (B, C, h, w)."""
        return F.embedding(indices, self.codebook()).permute(0, 3, 1, 2)

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Vectors (N, C) -> the indices (N,) of their nearest codes, by argmin_k |e_k|^2 - 2 z . e_k."""
        codebook = self.codebook()  # (K, C)
        with torch.autocast(vectors.device.type, enabled=False):
            offset = codebook.square().sum(1)
            rows = max(1, _MAX_DISTANCES // len(codebook))
            chunks = vectors.to(codebook.dtype).split(rows)
            indices = [torch.addmm(offset, chunk, codebook.T, alpha=-2.0).argmin(1) for chunk in chunks]
        return indices[0] if len(indices) == 1 else torch.cat(indices)

    @torch.no_grad()
    def initialise(self, features: Tensor, generator: torch.Generator) -> None:
        """Set the codebook to K different vectors of features (B, C, h, w), drawn by `generator`.

        `ValueError` where there are fewer vectors than codes.
        """
        vectors, codebook = self.vectors(features).permute(0, 2, 3, 1).flatten(0, 2), self.embedding.weight.data
        if len(vectors) < len(codebook):
            raise ValueError(f"num_codes {len(codebook)}: larger than the sample for the codebook, {len(vectors)}")
        chosen = torch.randperm(len(vectors), generator=generator, device=generator.device)[: len(codebook)]
        codebook.copy_(vectors[chosen.to(vectors.device)])
        if self.ema:
            self.cluster_size.fill_(1.0)
            self.code_sum.copy_(codebook)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> BottleneckOutput:
        z_e = self.vectors(features)
        index = self.indices(z_e)
        z_q = self.lookup(index)
        # Equation 3 of the paper. Means over all elements, and beta on the second term.
        losses = {"commitment": self.commitment_weight * F.mse_loss(z_e, z_q.detach())}
        if not self.ema:
            losses["codebook"] = self.codebook_weight * F.mse_loss(z_q, z_e.detach())
        with torch.no_grad():
            counts = self._update(z_e, index, generator) if self.training else self._counts(index)
            metrics = {"perplexity": perplexity(counts), "used_codes": (counts > 0).sum()}
        return BottleneckOutput(straight_through(z_e, z_q), losses, metrics)

    def _counts(self, index: Tensor) -> Tensor:
        weight, flat = self.embedding.weight, index.flatten()
        return weight.new_zeros(len(weight)).index_add_(0, flat, torch.ones_like(flat, dtype=weight.dtype))

    def _update(self, z_e: Tensor, index: Tensor, generator: torch.Generator | None) -> Tensor:
        """Move an EMA codebook, revive dead codes; returns the members of each code in this step: (K,)."""
        weight = self.embedding.weight.data  # (K, C)
        vectors = z_e.detach().permute(0, 2, 3, 1).flatten(0, 2)  # (N, C)
        statistics = [self._counts(index)[:, None]]  # what is to be summed over the processes, (K, *) each
        if self.ema:
            statistics.append(torch.zeros_like(weight).index_add_(0, index.flatten(), vectors))
        if self.revive_after:
            if generator is None:
                raise ValueError("reviving dead codes in training needs a generator")
            statistics.append(_candidates(vectors, len(weight), generator))
        counts, *sums = sum_over_processes(statistics)
        counts = counts.squeeze(1)
        if self.ema:
            self._move(counts, sums[0])
        if self.revive_after:
            self._revive(counts, sums[-1])
        return counts

    def _move(self, counts: Tensor, sums: Tensor) -> None:
        """Appendix A.1 of the paper, with Laplace smoothing of the cluster sizes."""
        self.cluster_size.lerp_(counts, 1 - self.codebook_decay)
        self.code_sum.lerp_(sums, 1 - self.codebook_decay)
        total = self.cluster_size.sum()
        size = (self.cluster_size + _LAPLACE_EPS) / (total + len(counts) * _LAPLACE_EPS) * total
        self.embedding.weight.data.copy_(self.code_sum / size[:, None])

    def _revive(self, counts: Tensor, candidates: Tensor) -> None:
        """Put each code without a member for `revive_after` steps on its candidate; no branch, so no device sync."""
        self.unused_steps.add_(1).mul_(counts == 0)
        dead = self.unused_steps >= self.revive_after
        weight = self.embedding.weight.data
        weight.copy_(torch.where(dead[:, None], candidates, weight))
        if self.ema:
            self.cluster_size.masked_fill_(dead, 1.0)
            self.code_sum.copy_(torch.where(dead[:, None], candidates, self.code_sum))
        self.unused_steps.masked_fill_(dead, 0)


def _restart_sums(quantizer: nn.Module, keys: Any) -> None:
    """After loading bare codes, without the running sums of a checkpoint, let the sums agree with the codes."""
    assert isinstance(quantizer, VectorQuantizer)
    if any(key.endswith("code_sum") for key in keys.missing_keys):
        quantizer.cluster_size.fill_(1.0)
        quantizer.code_sum.copy_(quantizer.embedding.weight.detach())


def _candidates(vectors: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """`num` vectors (num, C) at random from the (N, C) of every process, each distinct while there are enough.

    The choice is that of the first process's generator. A process fills in its own vectors, with zeros elsewhere:
    the sum over processes is the choice from all, the same as one process would make from the joint batch.
    """
    own = len(vectors)
    parallel = several_processes()
    processes, rank = (distributed.get_world_size(), distributed.get_rank()) if parallel else (1, 0)
    order = torch.randperm(own * processes, generator=generator, device=generator.device).to(vectors.device)
    choice = order[torch.arange(num, device=vectors.device) % len(order)]
    if parallel:
        distributed.broadcast(choice, src=0)
    local = choice - rank * own
    mine = (local >= 0) & (local < own)
    return torch.where(mine[:, None], vectors[local.clamp(0, own - 1)], 0.0)
