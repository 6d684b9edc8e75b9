"""Trackers: the entries of metrics.jsonl, and the previews, for TensorBoard and Weights & Biases as well."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from torch import Tensor

from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, read_json
from ldm.runtime.text import suggest

TRACKERS = ("tensorboard", "wandb")  # the names of accelerate, of the packages, and of our extras
EVENTS, IDENTITY = "logs", "wandb.json"


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """The trackers of these names; `UserError` for one that is unknown or not installed."""
    for name in names:
        if name not in (*TRACKERS, "none"):
            raise UserError(f"unknown tracker {name!r}", remedy=suggest(name, (*TRACKERS, "none")), setting="report_to")
    if "none" in names and len(names) > 1:
        raise UserError("stands alone", remedy="leave it out, or the others", setting="report_to", value="none")
    for name in names:
        if name != "none" and importlib.util.find_spec(name) is None:
            raise UserError(f"`report_to` {name}: not installed; pip install 'guided-latents[{name}]', or leave it out")
    return tuple(name for name in TRACKERS if name in names)


class Trackers:
    """The trackers of one run, through accelerate, on the main process.

    A step that a resumed run makes again is not logged twice: TensorBoard drops what came after the checkpoint (each
    start writes a file of its own in RUN/logs, and it reads them as one), and Weights & Biases, which drops nothing,
    gets the same run again (its id is in RUN/wandb.json) and nothing before `logged`, the last step that it had.
    """

    def __init__(
        self, names: Sequence[str], project: str, run: Path, metadata: Mapping[str, Any], step: int, logged: int
    ) -> None:
        self._trackers: list[GeneralTracker] = []
        self._logged = logged
        for name in check_trackers(names):
            if name == "tensorboard":
                tracker: GeneralTracker = TensorBoardTracker("", str(run / EVENTS), purge_step=step + 1)
                tracker.start()
            else:
                tracker = _weights_and_biases(project, run)
                tracker.store_init_configuration(dict(metadata))
            self._trackers.append(tracker)

    def log(self, step: int, what: str, values: Mapping[str, Any]) -> None:
        """Numbers of a step as `what/name`; those of a list or a table each under a name of its own."""
        numbers = dict(_numbers(what, values))
        for tracker in self._of(step):
            tracker.log(numbers, step=step)

    def log_image(self, step: int, image: Tensor) -> None:
        """An image of bytes (3, H, W)."""
        pixels = image.permute(1, 2, 0)[None].cpu().numpy()  # (1, H, W, 3)
        for tracker in self._of(step):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": pixels}, step=step, **layout)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Write what is not written yet."""
        for tracker in self._trackers:
            tracker.finish()

    def _of(self, step: int) -> list[GeneralTracker]:
        return [tracker for tracker in self._trackers if tracker.name != "wandb" or step >= self._logged]


def _weights_and_biases(project: str, run: Path) -> GeneralTracker:
    """The run of this folder, begun now or gone on with."""
    import wandb

    file = run / IDENTITY
    if not file.is_file():
        atomic_write_json(file, {"id": secrets.token_hex(8)})
    own = read_json(file, dict[str, str]).get("id", "")
    tracker = WandBTracker(project, id=own, resume="allow", dir=str(run), name=run.resolve().name)
    try:
        tracker.start()
    except wandb.errors.Error as error:
        first = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
        raise UserError(f"`report_to` wandb: {first}; run `wandb login`, or set WANDB_MODE=offline") from None
    return tracker


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Every number of nested values, under a path of names; rows of a table are named by their time."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(f"{name}/{key}", entry)
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value, 1):
            if isinstance(entry, Mapping) and "t" in entry:
                rest = {key: column for key, column in entry.items() if key not in ("t", "noise_ratio")}
                yield from _numbers(f"{name}/t={entry['t']:g}", rest)
            else:
                yield from _numbers(f"{name}/{number}", entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
