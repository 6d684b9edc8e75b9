"""The use of an autoencoder's codebooks on held-out images, and whether one of them has collapsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from autoencoders import Autoencoder
from ldm.evaluation.autoencoder.base import ReconstructionStats
from ldm.evaluation.metrics.latent_measures import CodeStatistics, code_statistics

COLLAPSED = 0.05  # of a codebook, as a share of all its codes: below it the rest is lost
_REMEDIES = {  # by the setting that a bottleneck has
    "revive_after": "`revive_after` 100 puts unused codes back on latents, `codebook_init` data starts them there",
    "entropy_weight": "raise `entropy_weight`",
    "temperature_end": "raise `temperature_end`, or anneal for longer by `temperature_steps`",
}


@torch.no_grad()
def codebook_use(model: Autoencoder, batches: Iterable[Tensor]) -> dict[str, Any]:
    """`codebooks`, a row each: its codes, how many of them are used, their perplexity; and `notes` on a collapse."""
    codes = [ReconstructionStats(model, images).codes for images in batches]
    books = [torch.cat(parts) for parts in zip(*codes, strict=True)]
    sizes = model.config.codebook_sizes
    a_level = len(books) // len(sizes)
    statistics = [code_statistics(book, sizes[number // a_level]) for number, book in enumerate(books)]
    rows = [{"codes": s.size, "used": s.used, "perplexity": s.perplexity} for s in statistics]
    collapsed = [number for number, s in enumerate(statistics) if has_collapsed(s)]
    options = model.config.options
    settings = {*options.shared, *(field.name for field in fields(options))}  # type: ignore[arg-type]
    return {"codebooks": rows, **({"notes": [_note(rows, collapsed, settings)]} if collapsed else {})}


def has_collapsed(statistics: CodeStatistics) -> bool:
    """Whether the perplexity is nearer to 1, one code, than `COLLAPSED` of what it could be.

    That is the number of codes, or of the positions that were encoded where those are fewer.
    """
    most = min(statistics.size, statistics.positions * len(statistics.surprise))
    return statistics.perplexity < 1 + COLLAPSED * (most - 1)


def _note(rows: Sequence[Mapping[str, Any]], collapsed: list[int], settings: set[str]) -> str:
    """One line for all collapsed codebooks, with what helps."""
    row, several = rows[collapsed[0]], len(rows) > 1
    name = f"codebook {collapsed[0] + 1} of {len(rows)}" if several else "the codebook"
    name += f" (and {len(collapsed) - 1} more)" if len(collapsed) > 1 else ""
    use = f"held-out images take {row['used']} of its {row['codes']} codes, perplexity {row['perplexity']:.1f}"
    remedies = [text for setting, text in _REMEDIES.items() if setting in settings]
    remedy = "; ".join([*remedies, "fewer codes, or `bottleneck` fsq, which learns no codebook"])
    return f"{name} has collapsed: {use} (below {COLLAPSED:.0%}): {remedy}"
