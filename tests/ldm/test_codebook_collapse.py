"""A codebook that collapses is no secret: the console, `ldm info` and the report say so, with what helps."""

import json

import torch

from ldm.evaluation.metrics.latent_measures import code_statistics
from ldm.training.tasks.codebook_use import has_collapsed

VQ = ("--bottleneck", "vq", "--num-codes", 64, "--validation-steps", 4)


def statistics(counts, size, positions=100):
    codes = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return code_statistics(codes.view(-1, positions), size)


def test_the_threshold_is_the_documented_one():
    even = [100] * 4
    assert has_collapsed(statistics([400], 64)), "one code"
    assert has_collapsed(statistics(even, 64)) and not has_collapsed(statistics(even, 61)), "4 < 1 + 0.05 * 63 = 4.15"
    assert not has_collapsed(statistics([2, 2], 10**6, 4)), "of 4 positions a million codes are not to be expected"
    assert has_collapsed(statistics([399, 1], 2)) and not has_collapsed(statistics([360, 40], 2))


def validations(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry["validation"] for entry in entries if "validation" in entry]


def test_a_training_that_collapses_says_so_once_and_at_its_end(ldm, models, tmp_path, caplog):
    run = tmp_path / "run"
    assert ldm(*models.command("autoencoder", run, *VQ, steps=12)).code == 0
    said = [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]
    assert len(said) == 2 and said[0].startswith(("step 4:", "step 8:")) and said[1].startswith("step 12:")
    (row,) = validations(run)[-1]["codebooks"]
    use = f"held-out images take {row['used']} of its 64 codes, perplexity {row['perplexity']:.1f} (below 5%)"
    assert use in said[-1] and "`revive_after` 100" in said[-1] and row["perplexity"] < 4.15
    info = ldm("info", run).out
    assert f"warning: the codebook has collapsed: {use}" in info and "--codebook-init data" in info
    assert ldm("report", run, "--output", tmp_path / "report.html").code == 0
    assert f"Warning: the codebook has collapsed: {use}" in (tmp_path / "report.html").read_text()


def test_a_healthy_training_says_nothing(ldm, models, tmp_path, caplog):
    run = tmp_path / "run"
    assert ldm(*models.command("autoencoder", run, *VQ, "--codebook-init", "data", steps=4)).code == 0
    assert "collapsed" not in caplog.text and "notes" not in validations(run)[-1]
    assert validations(run)[-1]["codebooks"][0]["used"] > 4
    assert "warning" not in ldm("info", run).out
