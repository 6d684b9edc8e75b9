"""The setting `compile`: networks under torch.compile, with a `UserError` where that cannot work."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Literal

from ldm.runtime.errors import UserError
from ldm.runtime.text import one_line

if TYPE_CHECKING:  # the names of the modes are settings, which are parsed without torch
    import torch
    from torch import nn

Mode = Literal["none", "default", "reduce-overhead"]

_SHAPES = 64  # input shapes of a network, each compiled once; torch's default limit is 8
_modes: weakref.WeakKeyDictionary[nn.Module, Mode] = weakref.WeakKeyDictionary()


def check_compiler(mode: Mode, device: torch.device) -> None:
    """`UserError` where this machine cannot compile for the device in this mode."""
    problem, remedy = "", "use `compile` none"
    if mode == "reduce-overhead" and device.type != "cuda":
        problem, remedy = f"CUDA graphs need a CUDA device, this is {device.type}", "use `compile` default"
    elif mode != "none" and device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, OSError):
            problem, remedy = "no C++ compiler here", "install g++, or use `compile` none"
    elif mode != "none" and device.type == "cuda":
        from torch.utils._triton import has_triton

        problem = "" if has_triton() else "no working Triton for this GPU"
    if problem:
        raise UserError(problem, remedy=remedy, setting="compile", value=mode)


def compile_network(network: nn.Module, mode: Mode) -> None:
    """Compile the calls of `network`, or undo that ("none"); its weights and their names do not change.

    The results are those of the uncompiled network to the rounding of its dtype. A network that cannot be compiled as
    one graph is a `UserError` at the first call; it never falls back to eager mode in silence.
    """
    import torch

    if _modes.get(network, "none") == mode:
        return
    _modes[network] = mode
    if mode == "none":
        network._compiled_call_impl = None
        return
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _SHAPES)
    options = {"fallback_random": True, "triton.cudagraphs": mode == "reduce-overhead"}  # dropout as in eager mode
    network.compile(fullgraph=True, dynamic=False, options=options)
    compiled: Any = network._compiled_call_impl

    def call(*inputs: Any, **named: Any) -> Any:
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # the outputs of earlier calls may now be overwritten
        try:
            result = compiled(*inputs, **named)
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            problem = f"this network cannot be compiled ({one_line(error)})"
            raise UserError(problem, remedy="use `compile` none", setting="compile", value=mode) from None
        is_reused = mode == "reduce-overhead" and isinstance(result, torch.Tensor) and not result.requires_grad
        return result.clone() if is_reused else result  # a sampler needs it after the next call

    network._compiled_call_impl = call  # type: ignore[assignment]
