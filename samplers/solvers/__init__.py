"""Solvers: generators `solver(denoise, x, levels, *, noise, **options)` that yield one Step after another."""

from samplers.solvers.ddim import ddim, ddim_inversion
from samplers.solvers.ddpm import ddpm
from samplers.solvers.dpm_2 import dpm_2, dpm_2_ancestral
from samplers.solvers.dpm_multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from samplers.solvers.dpm_solver import dpm_solver, dpmpp_2s, dpmpp_2s_ancestral, dpmpp_sde
from samplers.solvers.euler import euler, euler_ancestral, heun
from samplers.solvers.multistep import deis, lms, plms
from samplers.solvers.rk45 import rk45
from samplers.solvers.unipc import unipc

__all__ = [
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "lms",
    "plms",
    "rk45",
    "unipc",
]
