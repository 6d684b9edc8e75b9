"""What a network may be trained to output, and the way from that output to x0. x = alpha * x0 + sigma * eps."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Target = Literal["epsilon", "v_prediction", "sample", "flow_prediction", "edm"]
Coefficient = float | Tensor  # a float, or a tensor that broadcasts against the data


def check_target(kind: str) -> None:
    if kind not in get_args(Target):
        raise ValueError(f"the prediction target must be one of {', '.join(get_args(Target))}; got {kind!r}")


def training_target(
    kind: Target, x0: Tensor, eps: Tensor, alpha: Coefficient, sigma: Coefficient, sigma_data: float = 0.5
) -> Tensor:
    """The tensor that the network's output is compared with."""
    check_target(kind)
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        return alpha * eps - sigma * x0  # Salimans & Ho 2022, appendix D
    if kind == "flow_prediction":
        return eps - x0  # Liu et al. 2022, eq. 1, with time towards noise
    y, (skip, out, _) = x0 + sigma / alpha * eps, edm_scales(alpha, sigma, sigma_data)
    return (x0 - skip * y) / out


def x0_from_output(
    kind: Target, output: Tensor, x: Tensor, alpha: Coefficient, sigma: Coefficient, sigma_data: float = 0.5
) -> Tensor:
    """The denoised estimate that the network's output means; v assumes alpha^2 + sigma^2 = 1."""
    check_target(kind)
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return alpha * x - sigma * output
    if kind == "flow_prediction":
        return (x - sigma * output) / (alpha + sigma)
    if isinstance(alpha, float) and alpha == 0:
        raise ValueError(
            f"{kind} says nothing of x0 at alpha = 0 (pure noise): train v_prediction, sample or flow_prediction"
        )
    if kind == "epsilon":
        return (x - sigma * output) / alpha
    skip, out, _ = edm_scales(alpha, sigma, sigma_data)
    return skip * (x / alpha) + out * output


def edm_scales(
    alpha: Coefficient, sigma: Coefficient, sigma_data: float = 0.5
) -> tuple[Coefficient, Coefficient, Coefficient]:
    """c_skip, c_out and c_in of x / alpha (Karras et al. 2022, Table 1). An `edm` network is shown c_in * x / alpha."""
    r = sigma / alpha
    norm = (r * r + sigma_data**2) ** 0.5
    return sigma_data**2 / norm**2, r * sigma_data / norm, 1 / norm


def min_snr_weight(kind: Target, alpha: Tensor, sigma: Tensor, gamma: float = 5.0, sigma_data: float = 0.5) -> Tensor:
    """The weight of the squared error of `kind` that weighs that of x0 by min(SNR, gamma) (Hang et al. 2023, eq. 7).

    In units of that in x0, the squared error is SNR in eps, SNR + 1 in v, (1 + SNR^(1/2))^2 in flow, c_out^-2 in edm.
    """
    check_target(kind)
    if not gamma > 0:
        raise ValueError(f"gamma must be positive; got {gamma}")
    signal, noise = torch.as_tensor(alpha) ** 2, torch.as_tensor(sigma) ** 2
    clipped = torch.minimum(signal, gamma * noise)  # min(SNR, gamma) sigma^2
    if kind == "epsilon":
        return (gamma * noise / signal).clamp(max=1)
    if kind == "v_prediction":
        return clipped / (signal + noise)
    if kind == "flow_prediction":
        return clipped / (alpha + sigma) ** 2
    if kind == "edm":
        return clipped * sigma_data**2 / (noise + signal * sigma_data**2)
    return (signal / noise).clamp(max=gamma)


def p2_weight(
    kind: Target, alpha: Tensor, sigma: Tensor, gamma: float = 1.0, k: float = 1.0, sigma_data: float = 0.5
) -> Tensor:
    """The weight of the squared error of `kind` that weighs that of eps by (k + SNR)^-gamma (Choi et al. 2022, eq. 8).

    So the same estimate of x0 costs the same whatever the network predicts.
    """
    check_target(kind)
    if not (gamma >= 0 and k > 0):
        raise ValueError(f"gamma must be 0 or more and k positive; got {gamma} and {k}")
    signal, noise = torch.as_tensor(alpha) ** 2, torch.as_tensor(sigma) ** 2
    of_eps = (noise / (k * noise + signal)) ** gamma
    if kind == "epsilon":
        return of_eps
    if kind == "v_prediction":
        return of_eps * signal / (signal + noise)
    if kind == "flow_prediction":
        return of_eps * signal / (alpha + sigma) ** 2
    if kind == "edm":
        return of_eps * signal * sigma_data**2 / (noise + signal * sigma_data**2)
    return of_eps * signal / noise
