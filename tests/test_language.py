"""The field's words: no definition, parameter, attribute or local has a name of the old private language."""

import ast
import functools
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): path
    for package in ("autoencoders", "samplers", "ldm", "tools")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# One row a row of the design's table: the words to use, the names that are gone, and the folders that this holds for.
ROWS = [
    ("conditioned on, BlockContext, context_kv", {"told", "Told", "heard", "untold"}, ""),
    (
        "discriminator, adversary, AdversarialTrainer",
        {"second_player", "Opponent", "SecondPlayer", "opponent", "player"},
        "",
    ),
    ("variants; distribution", {"kin", "law", "laws"}, ""),
    ("position; codebook, indices", {"place", "places"}, ""),
    ("codebooks", {"parts"}, "autoencoders/bottlenecks"),
    ("FeatureCache, CachedConditioning, LayerPerturbation", {"Deep", "Prepared", "Edits", "deep", "edits"}, ""),
    ("ScaledDifferenceGuidance, renoise_eps, x_base, score_shift", {"Against", "renoise", "anchor"}, ""),
    ("score_shift", {"shift"}, "samplers/level.py"),
    ("first_order_only, exp_neg_h, lincomb, ddim_step", {"leaps", "mix", "advance"}, ""),
    ("exp_neg_h, NoisePath", {"decay", "Path"}, "samplers"),
    ("precondition, target, c_noise", {"shown", "wanted", "own_t"}, ""),
    ("GuidingModel, LoadedClassifier, EnergyContext", {"Weak", "Guide", "Surroundings", "surroundings"}, ""),
    ("SampleStats, sample_and_extract, compute_metrics", {"Seen", "seen", "look", "measured"}, ""),
    ("MetricValue, class_probs, real-data baseline", {"Figure", "opinion", "opinions", "floor", "Floor"}, "ldm"),
    (
        "EvalCondition, expected_attributes, Evaluators, feature_cache",
        {"Drawn", "asked", "Instruments", "instruments"},
        "",
    ),
    ("PeriodicEvaluator, BatchShard, is_main", {"Watch", "watch", "Share", "leads", "from_first"}, ""),
    ("validate_sampler, dry run, fingerprint, metadata", {"rehearse", "rehearsal", "Rehearsal", "facts"}, ""),
    (
        "ComparisonRunner, run, sample row, active",
        {"Bench", "bench", "Cell", "cell", "cells", "going", "strip", "strips"},
        "",
    ),
    ("image, bits_per_pixel, receptive field, to_float64", {"picture", "pictures", "rate", "reach", "wide"}, ""),
    ("recalibrate_batch_norm, set_step, sample_prior", {"settle", "at_step", "draw", "drawn"}, ""),
    ("a name for what it holds", {"found", "each", "kept"}, ""),
]
# Names that a file on disk, a YAML key or a flag has: the field of a dataclass that is read from it.
ON_DISK = {
    "autoencoders/priors/pixelcnn.py": {"mix"},  # a layer, named so in weight files
    "ldm/cli/evaluate_autoencoder.py": {"pictures"},  # --pictures
    "ldm/comparison/records.py": {"cells", "floor"},  # keys of comparison.json
    "ldm/evaluation/baseline.py": {"facts"},  # of floor.json
    "ldm/evaluation/config.py": {"floor"},  # --floor
    "ldm/evaluation/records.py": {"floor"},  # of the results of an evaluation
    "ldm/reports/history.py": {"facts"},  # of run.json and best.json
    "ldm/training/checkpoint.py": {"watch"},  # of state.json
}


@functools.cache
def names(path):
    """Definitions, parameters, fields, attributes of self, and locals."""
    return list(_names(path))


def _names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


@pytest.mark.parametrize(("instead", "gone", "folder"), ROWS, ids=[row[0] for row in ROWS])
def test_no_name_of_the_old_language_is_left(instead, gone, folder):
    left = [
        f"{file}:{line}: {name}"
        for file, path in SOURCES.items()
        if file.startswith(folder)
        for name, line in names(path)
        if name.lstrip("_") in gone - ON_DISK.get(file, set())
    ]
    assert not left, f"write {instead}:\n" + "\n".join(left)


PROSE = re.compile(
    r"\b(told|untold|heard|hears?|kin|laws?|opinions?|second player|surroundings|mend(s|ed)?|listens?)\b", re.I
)


def prose(path):
    """The text of a page, or the docstrings, comments and messages of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
            yield token.string


def test_prose_uses_the_fields_words():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    left = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in [*SOURCES.values(), *pages]
        for text in prose(path)
        for match in PROSE.finditer(text)
    ]
    assert not left, "\n".join(left)
