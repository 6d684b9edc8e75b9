"""The results of the rows: one table, one JSON file, and what fails `--check`."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch

from ldm.runtime.files import read_json
from tools.bench.limits import Ceilings

EXPECTED = Path(__file__).with_name("expected.json")


@dataclass(frozen=True)
class Result:
    """One row, in one mode: milliseconds (or bytes, of memory) and paired ratios theirs / ours."""

    row: str
    title: str
    mode: str
    unit: str
    summary: dict[str, float]
    goal: float | None
    floor: float | None
    difference: float
    tolerance: float
    limit_ms: float | None
    operations: int | None
    synchronisations: int | None
    repeats: int

    def failures(self, expected: dict[str, Any]) -> list[str]:
        """Why this row fails the check; [] where it does not."""
        failures = []
        if not self.difference <= self.tolerance:  # false for NaN too
            failures.append(f"{self.row} ({self.mode}): results differ by {self.difference:.2g} > {self.tolerance:.2g}")
        if self.floor is not None and self.summary["ratio_p90"] < self.floor:
            failures.append(
                f"{self.row} ({self.mode}): ratio {self.summary['ratio']:.2f}, 90th percentile "
                f"{self.summary['ratio_p90']:.2f}, below its floor {self.floor}"
            )
        allowed = expected.get(self.row, {})
        for name in ("operations", "synchronisations"):
            counted = getattr(self, name)
            if counted is not None and name in allowed and counted > allowed[name]:
                failures.append(f"{self.row}: {counted} dispatched {name}, at most {allowed[name]} are expected")
        return failures


def expected_counts(device: str) -> dict[str, Any]:
    """The counts that no row may exceed, of this kind of device; {} where none were stored."""
    return read_json(EXPECTED).get(device, {})


def machine(device: torch.device, ceilings: Ceilings) -> dict[str, Any]:
    """What the figures hold for."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "accelerate": accelerate.__version__,
        "matmul_gflops": ceilings.matmul / 1e9,
        "convolution_gflops": ceilings.convolution / 1e9,
        "bf16_matmul_gflops": ceilings.half / 1e9,
        "copy_gbytes": ceilings.copy / 1e9,
    }


HEAD = (
    f"{'row':<21}{'mode':<9}{'ours':>11}{'theirs':>11}  {'ratio [p10, p90]':<22}{'goal':>6}"
    f"{'limit':>11}{'operations':>12}{'apart':>10}"
)


def _duration(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else f"{milliseconds / 1e3:.3g} s"


def line(result: Result) -> str:
    """One line of the table under `HEAD`."""
    summary, memory = result.summary, result.unit == "bytes"
    sides = [f"{summary[side] / 1e6:.1f} MB" if memory else _duration(summary[side]) for side in ("ours", "theirs")]
    spread = f"{summary['ratio']:.2f} [{summary['ratio_p10']:.2f}, {summary['ratio_p90']:.2f}]"
    goal = "-" if result.goal is None else f"{result.goal:g}" + ("*" if summary["ratio"] < result.goal else "")
    limit = "-" if result.limit_ms is None else _duration(result.limit_ms)
    counted = "-" if result.operations is None else f"{result.operations}+{result.synchronisations}s"
    return (
        f"{result.row:<21}{result.mode:<9.9}{sides[0]:>11}{sides[1]:>11}  {spread:<22}{goal:>6}"
        f"{limit:>11}{counted:>12}{result.difference:>10.1e}"
    )
