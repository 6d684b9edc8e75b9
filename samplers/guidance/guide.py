"""A list of guidances and the door to the networks, made into the one function that a solver calls."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from samplers.level import Denoise, Evaluate, Guidance, Level, Prediction


def guide(evaluate: Evaluate, guidances: Sequence[Guidance] = ()) -> Denoise:
    """The guided denoiser: one `evaluate(x, level, branches)` a call, with every branch that is needed at that level.

    "cond" always comes first, then what the guidances ask for, each once. Where `evaluate` has an attribute `branches`
    (the names it can serve), a guidance that may ask for another one is refused here, before the first step. A
    guidance with a memory has a method `fresh`, and is asked for a new one here.
    """
    known = getattr(evaluate, "branches", None)
    if known is not None:
        for guidance in guidances:
            for name in getattr(guidance, "needs", ()):
                if name not in known:
                    raise ValueError(f'{guidance} needs the branch "{name}"; here there are {", ".join(sorted(known))}')
    ordered: list[Guidance] = [guidance.fresh() if hasattr(guidance, "fresh") else guidance for guidance in guidances]
    ordered.sort(key=lambda guidance: guidance.stage)

    def denoise(x: Tensor, level: Level) -> Prediction:
        wanted = dict.fromkeys(["cond", *(name for guidance in ordered for name in guidance.branches(level))])
        raw = evaluate(x, level, tuple(wanted))
        missing = wanted.keys() - raw.keys()
        if missing:
            asked, absent = ", ".join(wanted), ", ".join(sorted(missing))
            raise ValueError(f"evaluate was asked for the branches {asked} and left out {absent}")
        prediction = raw["cond"]
        for guidance in ordered:
            prediction = guidance.apply(prediction, raw)
        return prediction

    return denoise
