"""python -m tools.bench [--rows NAME ...] [--quick] [--check] [--json FILE] [--device cpu|cuda]"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from ldm.runtime.device import resolve_device
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.text import replace_settings, suggest
from tools.bench import data_rows, gpu_rows, sampling_rows, training_rows, unet_rows  # noqa: F401  (they register themselves)
from tools.bench.counts import counts, flops, peak_bytes
from tools.bench.limits import Ceilings, measure
from tools.bench.report import EXPECTED, HEAD, Result, expected_counts, line, machine
from tools.bench.row import Benchmark, Pair, Row, row
from tools.bench.timing import Paired, clock, paired

_REPEATS, _QUICK_REPEATS = 21, 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m tools.bench", description=f"Rows: {', '.join(row.rows)}.", allow_abbrev=False)
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="only these; default: all")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: events time it, compiled peers are added")
    parser.add_argument("--threads", type=int, help="of a CPU; default: torch's own choice")
    parser.add_argument("--repeats", type=int, help=f"pairs of measurements a row; default {_REPEATS}")
    parser.add_argument("--compiled", action="store_true", help="on a CPU too, compare compiled sides as well")
    parser.add_argument("--quick", action="store_true", help="a few short repetitions: does everything run?")
    parser.add_argument("--check", action="store_true", help="exit 1 where a floor is missed or a count has risen")
    parser.add_argument("--json", metavar="FILE", help="write the results to a file")
    parser.add_argument("--record-counts", action="store_true", help=f"write the counts to {EXPECTED.name}")
    settings = parser.parse_args(arguments)
    for name in settings.rows:
        if name not in row.rows:
            raise UserError("no such row", setting="rows", value=name, remedy=suggest(name, row.rows))
    for name in ("threads", "repeats"):
        if getattr(settings, name) is not None and getattr(settings, name) < 1:
            raise UserError(f"must be 1 or more, got {getattr(settings, name)}", setting=name)
    if settings.json and not Path(settings.json).absolute().parent.is_dir():
        raise UserError("no such folder", setting="json", value=settings.json)
    return settings


def main(arguments: Sequence[str]) -> int:
    """Run the rows and print them; 1 where `--check` fails, 2 for a wrong flag."""
    try:
        settings = _parse(arguments)
        device = resolve_device(settings.device)
    except UserError as error:
        print(f"bench: {replace_settings(str(error), lambda name: f'--{name}')}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    ceilings = measure(device, quick=settings.quick)
    details = machine(device, ceilings)
    print(
        "; ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in details.items()
        )
    )
    print(HEAD)
    results = []
    here = [name for name, candidate in row.rows.items() if device.type in candidate.devices]
    for name in settings.rows or here:
        chosen = row.rows[name]
        compiles = chosen.compiles and (device.type == "cuda" or settings.compiled)
        for mode in ["eager", *(["reduce-overhead" if device.type == "cuda" else "default"] if compiles else [])]:
            results.append(_result(chosen, device, mode, settings, ceilings))
            print(line(results[-1]), flush=True)
    if settings.record_counts:
        _record(results, device)
    expected = expected_counts(device.type)
    failures = [failure for result in results for failure in result.failures(expected)]
    if settings.json:
        content: dict[str, Any] = {"machine": details, "quick": settings.quick, "failures": failures}
        atomic_write_json(settings.json, content | {"rows": [asdict(result) for result in results]})
    for failure in failures:
        print(f"{'FAILED' if settings.check else 'note'}: {failure}")
    return 1 if failures and settings.check else 0


def _result(chosen: Row, device: torch.device, mode: str, settings: argparse.Namespace, ceilings: Ceilings) -> Result:
    repeats = settings.repeats or (_QUICK_REPEATS if settings.quick else _REPEATS)
    with Benchmark(device, mode) as benchmark:
        pair = chosen.build(benchmark)
        with _precise(mode):
            difference = pair.difference()
        counted: dict[str, int] = {}
        arithmetic = pair.flops
        if mode == "eager":
            pair.ours()
            counted = counts(pair.ours)
            arithmetic = flops(pair.ours) if arithmetic is None else arithmetic
        if chosen.memory:
            times = _memory(pair, device, repeats)
        else:
            times = paired(pair.ours, pair.theirs, clock(device, host=chosen.host), repeats, quick=settings.quick)
    timed = not chosen.memory and mode == "eager"
    promised = (chosen.goal, chosen.floor or chosen.goal) if device.type == "cpu" and mode == "eager" else (None, None)
    return Result(
        chosen.name,
        chosen.title,
        mode,
        "bytes" if chosen.memory else "ms",
        times.summary(),
        *promised,
        difference,
        pair.tolerance * (1 if device.type == "cpu" else 10 if mode == "eager" else 200),
        ceilings.limit_ms(arithmetic or 0.0, pair.bytes, half=chosen.half) if timed else None,
        counted.get("operations"),
        counted.get("synchronisations"),
        len(times.ours),
    )


@contextmanager
def _precise(mode: str) -> Iterator[None]:
    """No TensorFloat-32 while results are compared; compiled ones, that would be compiled anew, keep it."""
    if mode != "eager":
        yield
        return
    before, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    convolutions, cudnn.allow_tf32 = cudnn.allow_tf32, False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32 = convolutions


def _memory(pair: Pair, device: torch.device, repeats: int) -> Paired:
    peaks: tuple[list[float], list[float]] = ([], [])
    for _ in range(min(repeats, 3)):
        for side, function in enumerate((pair.ours, pair.theirs)):
            function()  # what stays for good is there already
            peaks[side].append(peak_bytes(function, device))
    return Paired(*peaks)


def _record(results: Sequence[Result], device: torch.device) -> None:
    known = read_json(EXPECTED) if EXPECTED.is_file() else {}
    of_device = known.setdefault(device.type, {})
    for result in results:
        if result.operations is not None:
            of_device[result.row] = {
                "operations": result.operations,
                "synchronisations": result.synchronisations,
            }
    atomic_write_json(EXPECTED, known)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
