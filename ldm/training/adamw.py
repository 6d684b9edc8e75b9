"""torch's AdamW (Loshchilov and Hutter 2019), at ease with kernels that lie in channels_last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """The same update.

    On a CPU the fused step copies every tensor that is not contiguous, which takes longer than the update itself. Seen
    with the channels last, the tensors of such a kernel are contiguous: so they are handed over. It also walks through
    the memory of a weight and of its gradient side by side, whatever their layouts (torch 2.15); here they are alike.
    """

    def _init_group(self, group: dict[str, Any], params: list[Tensor], *others: list[Tensor]) -> bool:
        """`others`: gradients, both moments, the moments' maxima, and the steps, which are numbers."""
        has_complex = super()._init_group(group, params, *others)  # type: ignore[misc]
        if group["fused"] and params and params[0].device.type == "cpu":
            last = [_channels_last(parameter) for parameter in params]
            for tensors in (params, *others[:-1]):
                tensors[:] = [_seen_last(t) if cl else t for t, cl in zip(tensors, last, strict=False)]
            others[0][:] = [gradient.contiguous() for gradient in others[0]]  # themselves, where they are
        return has_complex


def _channels_last(parameter: Tensor) -> bool:
    return (
        parameter.ndim == 4
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last)
    )


def _seen_last(kernel: Tensor) -> Tensor:
    """(out, in, h, w) as (out, h, w, in), of the same memory."""
    return kernel.permute(0, 2, 3, 1)
