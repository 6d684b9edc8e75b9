"""From a list of guidances and the evaluation of networks to the one function that a solver calls."""

from __future__ import annotations

from collections.abc import Sequence

from samplers.level import Denoise, Evaluate, Guidance, Level, NamedBranches, Prediction, Tensor


def guide(evaluate: Evaluate, guidances: Sequence[Guidance] = ()) -> Denoise:
    """The guided denoiser: one `evaluate(x, level, branches)` a call, with every branch that is needed at that level.

    "cond" always comes first, then the branches of the guidances, each once. Where `evaluate` has a known set of
    branches, a guidance that may need another one is refused here, before the first step.
    """
    for guidance in guidances:
        if not isinstance(guidance, Guidance):
            raise ValueError(f"{guidance!r} is not a guidance: derive its class from samplers.Guidance")
        absent = set(guidance.needs) - set(evaluate.branches) if isinstance(evaluate, NamedBranches) else ()
        if absent:
            raise ValueError(
                f'{guidance} needs the branch "{min(absent)}"; here there are {", ".join(sorted(evaluate.branches))}'
            )
    ordered = sorted((guidance.fresh() for guidance in guidances), key=lambda guidance: guidance.stage)

    def denoise(x: Tensor, level: Level) -> Prediction:
        names = dict.fromkeys(["cond", *(name for guidance in ordered for name in guidance.branches(level))])
        raw = evaluate(x, level, tuple(names))
        if missing := names.keys() - raw.keys():
            raise ValueError(f"evaluate left out {', '.join(sorted(missing))} of the branches {', '.join(names)}")
        prediction = raw["cond"]
        for guidance in ordered:
            prediction = guidance.apply(prediction, raw)
        return prediction

    return denoise
