"""Priors over codes: who depends on whom, the law of what is drawn, and what is learned of a source that is known."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from autoencoders.priors import (
    CodeGrid,
    CodePriors,
    CodeSampling,
    PriorCondition,
    PriorConfig,
    PriorShape,
    guided,
    mask_codes,
    probabilities,
    sample_codes,
    sample_indices,
)

TINY = {
    "pixelcnn": PriorConfig("pixelcnn", width=8, layers=3, kernel_size=3),
    "transformer": PriorConfig("transformer", width=16, layers=2, heads=2),
}
KINDS = sorted(TINY)
TWO = PriorShape((CodeGrid(5, 2, 2), CodeGrid(7, 4, 4)), num_classes=3, context_dim=6)
PARTS = PriorShape((CodeGrid(6, 3, 6, codebooks=2),))
TALL = PriorShape((CodeGrid(4, 9, 2),))


def generators(count, seed=0):
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(count)]


def made(kind, shape, seed=0, **settings):
    """A prior in float64 whose weights are far from zero everywhere."""
    priors = CodePriors(replace(TINY[kind], **settings), shape, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in priors.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return priors


def condition_of(shape, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(shape.num_classes + 1, (batch,), generator=generator) if shape.num_classes else None
    if shape.context_dim is None:
        return PriorCondition(labels)
    context = torch.randn(batch, 3, shape.context_dim, generator=generator, dtype=torch.float64)
    return PriorCondition(labels, context)


def codes_of(shape, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(g.num_codes, (batch, g.height, g.width), generator=generator) for g in shape.levels]


class Watched(torch.nn.Module):
    """An embedding whose output is a leaf, so that the gradient by what was read is seen."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, codes, first=0):
        self.read = self.inner(codes, first).detach().requires_grad_()
        return self.read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [TWO, PARTS], ids=["two levels", "two codebooks"])
def test_the_jacobian_is_strictly_causal_and_full_below_the_diagonal(kind, shape):
    priors = made(kind, shape)
    maps, condition = codes_of(shape, 1), condition_of(shape, 1)
    for level, prior in enumerate(priors.priors()):
        prior.embed = Watched(prior.embed)
        above = [Watched(each.embed) for each in prior.surroundings.above]
        for each, watched in zip(prior.surroundings.above, above, strict=True):
            each.embed = watched
        logits = prior(maps[level], replace(condition, coarser=tuple(maps[:level])))  # (1, N, K)
        rows = []
        for n in range(prior.grid.length):
            leaves = [prior.embed.read, *(each.read for each in above)]
            by, *by_above = torch.autograd.grad(logits[0, n].square().sum(), leaves, retain_graph=True)
            rows.append(by[0].flatten(0, 1).abs().sum(-1))  # (N,)
            assert all((each[0].abs().sum(-1) > 0).any() for each in by_above)
        jacobian = torch.stack(rows)
        assert (jacobian.triu() == 0).all()  # exactly: the code itself, and all that come after it
        before = torch.ones_like(jacobian).tril(-1).bool()
        if kind == "transformer":
            assert (jacobian[before] > 0).all()
        else:  # no blind spot: within the reach of the kernels, all above and all to the left in the row
            height, width = prior.grid.height, prior.grid.width
            for n, m in itertools.product(range(height * width), repeat=2):
                down, right = n // width - m // width, n % width - m % width
                seen = (down == 0 and 1 <= right <= 4) or (1 <= down <= 3 and -3 <= right <= 3)
                assert not seen or jacobian[n, m] > 0, (n, m)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [TWO, PARTS, TALL], ids=["two levels", "two codebooks", "tall"])
def test_code_by_code_gives_the_logits_of_the_whole(kind, shape):
    """The transformer's cache of keys and values, and the PixelCNN's few rows (5 of 9), in float64 and in float32."""
    priors, maps, condition = made(kind, shape), codes_of(shape, 3), condition_of(shape, 3)
    if condition.context is not None:
        condition = replace(condition, context_mask=torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool())
    for level, prior in enumerate(priors.priors()):
        told = replace(condition, coarser=tuple(maps[:level]))
        whole = prior(maps[level], told)
        decode = prior.decoder(told, 3)
        steps = torch.stack([decode(maps[level], n) for n in range(prior.grid.length)], 1)
        assert (steps - whole).abs().max() < 1e-12 * whole.abs().max()
        single = prior.float()
        told = replace(told, context=None if told.context is None else told.context.float())
        decode = single.decoder(told, 3)
        steps = torch.stack([decode(maps[level], n) for n in range(prior.grid.length)], 1)
        assert (steps - whole).abs().max() < 1e-5 * max(1, whole.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_classes_text_and_its_mask_are_heard(kind):
    priors, maps = made(kind, TWO), codes_of(TWO)
    first = condition_of(TWO)
    base = [part.detach() for part in priors(maps, first)]
    changed = first.context.clone()
    changed[:, 2] += 1
    for other in (replace(first, class_labels=(first.class_labels + 1) % 4), replace(first, context=changed)):
        assert all((a - b).abs().amax() > 1e-3 for a, b in zip(base, priors(maps, other), strict=True))
    mask = torch.tensor([[True, True, False]] * 2)
    a = priors(maps, replace(first, context_mask=mask))
    b = priors(maps, replace(first, context=changed, context_mask=mask))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))  # what does not count changes nothing
    assert all((x - y).abs().amax() > 1e-6 for x, y in zip(a, base, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_has_the_law_of_the_chain_rule(kind):
    """All 3^4 maps of 2 x 2 codes: their probabilities from `forward` sum to one, and samples follow them."""
    shape = PriorShape((CodeGrid(3, 2, 2),), num_classes=2)
    priors = made(kind, shape, seed=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, 2, 2)  # (81, 2, 2)
    labels = torch.full((len(every),), 1)
    (nll,) = priors([every], PriorCondition(labels))
    law = nll.sum(1).neg().exp()
    assert law.sum().item() == pytest.approx(1, abs=1e-12)
    count = 6000
    (drawn,) = priors.sample(PriorCondition(torch.ones(count, dtype=torch.int64)), generators(count))
    place = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
    seen = torch.bincount(place, minlength=81)
    rare = law * count < 5
    observed = [*seen[~rare].tolist(), seen[rare].sum().item()]
    expected = [*(law * count)[~rare].tolist(), (law * count)[rare].sum().item()]
    keep = [i for i, value in enumerate(expected) if value > 0]
    observed, expected = [observed[i] for i in keep], [expected[i] for i in keep]
    assert len(expected) > 10 and max(expected) > 3 * min(expected)  # a law with something to get wrong
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_sample_i_is_the_same_in_any_batch_and_guidance_is_exact_at_0_and_1(kind):
    priors, batch = made(kind, TWO), 4
    told = condition_of(TWO, batch)
    null = PriorCondition(torch.full((batch,), 3), torch.zeros_like(told.context))
    together = priors.sample(told, generators(batch))
    for i in range(batch):
        one = PriorCondition(told.class_labels[i : i + 1], told.context[i : i + 1])
        alone = priors.sample(one, generators(batch)[i : i + 1])
        assert all(torch.equal(a[0], t[i]) for a, t in zip(alone, together, strict=True))
    as_told = priors.sample(told, generators(batch), null=null, guidance_scale=1.0)
    assert all(torch.equal(a, b) for a, b in zip(together, as_told, strict=True))
    free = priors.sample(told, generators(batch), null=null, guidance_scale=0.0)
    assert all(torch.equal(a, b) for a, b in zip(free, priors.sample(null, generators(batch)), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(free, together, strict=True))


def test_guidance_sharpens_towards_the_condition():
    """p_w is proportional to p(c | y)^w p(c)^(1 - w): checked by hand on three codes."""
    conditional, free = torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[0.2, 0.3, 0.5]]).double()
    found = guided(conditional.log(), free.log() + 7, 3.0).softmax(-1)  # a constant on one branch does not matter
    expected = torch.tensor([[0.125 / 0.04, 0.027 / 0.09, 0.008 / 0.25]]).double()
    assert torch.allclose(found, expected / expected.sum(), atol=1e-14)


def test_temperature_top_k_and_top_p_by_enumeration():
    rows = [[0.1, 0.4, 0.05, 0.25, 0.2], [0.3, 0.3, 0.3, 0.05, 0.05]]
    law = torch.tensor(rows, dtype=torch.float64)
    logits = law.log() + 3

    def of(**settings):
        return probabilities(logits, CodeSampling(**settings)).numpy()

    def is_close(found, expected):
        assert abs(found - np.array(expected)).max() < 1e-14

    is_close(of(), law.tolist())
    squared = law.square() / law.square().sum(1, keepdim=True)
    is_close(of(temperature=0.5), squared.tolist())
    is_close(of(top_k=2), [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], [0.5, 0.5, 0, 0, 0]])  # of equals, the first
    is_close(of(top_k=9), law.tolist())
    is_close(of(top_p=0.64), [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], [1 / 3, 1 / 3, 1 / 3, 0, 0]])
    is_close(of(top_p=0.66), [[0, 0.4 / 0.85, 0, 0.25 / 0.85, 0.2 / 0.85], [1 / 3, 1 / 3, 1 / 3, 0, 0]])
    is_close(of(top_p=1e-9), [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    is_close(of(top_k=3, top_p=0.75)[:1], [[0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]])  # 0.65 / 0.85 > 0.75: k first
    count = 20000
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = probabilities(logits[:1], CodeSampling(temperature=2.0, top_k=3))
    drawn = sample_indices(kept.expand(count, -1), uniform)
    rooted = law[0, [1, 3, 4]].sqrt() / law[0, [1, 3, 4]].sqrt().sum()
    seen = torch.bincount(drawn, minlength=5)
    assert seen[0] == 0 and seen[2] == 0
    assert stats.chisquare(seen[[1, 3, 4]].numpy(), (count * rooted).numpy()).pvalue > 1e-3
    ends = sample_indices(kept.expand(2, -1), torch.tensor([0.0, 1 - 2**-53]).double())
    assert ends.tolist() == [1, 4]  # never a code of probability 0, at neither end


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_sampling_settings_are_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CodeSampling(**settings)


def test_token_masking_replaces_so_many_by_uniform_codes():
    codes = torch.full((400, 8, 8), 2)
    uniform = torch.rand((400, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    masked = mask_codes(codes, 0.3, 5, uniform)
    total = codes.numel()
    seen = torch.bincount(masked.flatten(), minlength=5).double()
    expected = (
        torch.tensor([0.06, 0.06, 0.76, 0.06, 0.06], dtype=torch.float64) * total
    )  # one in five is drawn as it was
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3
    by_place = (masked != 2).double().mean(0) / 0.24  # every place alike
    assert (by_place - 1).abs().max() < 5 * math.sqrt(0.76 / 0.24 / 400)
    assert torch.equal(mask_codes(codes, 0.0, 5, uniform), codes)


def chain(batch, generator):
    """A source of known entropy: 4 x 4 codes of 4, the class, one of 4, being the first.

    Each next is the one to its left, or at the start of a row the one above, + a step: 0 with probability 0.7, else 1,
    2 or 3 alike. Gives codes, classes, and the bits of all codes but the first, a sample.
    """
    labels = torch.randint(4, (batch,), generator=generator)
    steps = torch.multinomial(torch.tensor([0.7, 0.1, 0.1, 0.1]), batch * 15, True, generator=generator)
    steps = steps.view(batch, 15)
    bits = -torch.where(steps == 0, 0.7, 0.1).log2().sum(1).mean().item()
    steps = torch.cat([labels[:, None], steps], 1).view(batch, 4, 4)
    return torch.cat([steps[:, :, :1].cumsum(1), steps[:, :, 1:]], 2).cumsum(2) % 4, labels, bits


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_source_is_learned_to_its_entropy(kind):
    """Told the class, the first code costs nothing, and 2 bits else; all others cost H(0.7, 0.1, 0.1, 0.1)."""
    shape = PriorShape((CodeGrid(4, 4, 4),), num_classes=4)
    priors = CodePriors(replace(TINY[kind], width=32, layers=2), shape).train()
    optimizer = torch.optim.AdamW(priors.parameters())
    generator = torch.Generator().manual_seed(0)
    steps = 170
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 8e-3 * (1 - step / steps)
        codes, labels, _ = chain(48, generator)
        dropped = torch.rand(48, generator=generator) < 0.3
        (nll,) = priors([codes], PriorCondition(labels.masked_fill(dropped, 4)))
        nll.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    priors.eval()
    codes, labels, others = chain(1000, generator)
    with torch.no_grad():
        told, untold = (
            priors([codes], PriorCondition(each))[0].mean().item() / math.log(2)
            for each in (labels, torch.full_like(labels, 4))
        )
    law = 15 * stats.entropy([0.7, 0.1, 0.1, 0.1], base=2)
    assert others == pytest.approx(
        law, abs=5 * 15 * 1.3 / math.sqrt(15000)
    )  # of these codes; 1.3 bits is the deviation
    assert -0.01 < told - others / 16 < 0.05  # nothing is better than the law of the source
    assert -0.01 < untold - (2 + others) / 16 < 0.05
    assert told < untold < math.log2(4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_same_prior_again_and_a_strange_one_is_refused(kind, tmp_path):
    state = torch.get_rng_state()
    priors = CodePriors(TINY[kind], TWO).eval()
    assert torch.equal(state, torch.get_rng_state())
    priors.save_pretrained(tmp_path / "prior")
    again = CodePriors.from_pretrained(tmp_path / "prior")
    assert again.entries() == priors.entries() and not again.training
    assert all(torch.equal(a, b) for a, b in zip(priors.parameters(), again.parameters(), strict=True))
    path = tmp_path / "prior" / "config.json"
    entries = json.loads(path.read_text())
    for change, words in [
        ({"_class_name": "UNet2DConditionModel"}, "CodePriors"),
        ({"settings": {**entries["settings"], "kind": "os.system"}}, "kind"),
        ({"settings": {**entries["settings"], "width": 10**9}}, "width"),
        ({"settings": {**entries["settings"], "layers": True}}, "layers"),
        ({"settings": {**entries["settings"], "strange": 1}}, "settings"),
        ({"levels": [{"num_codes": 10**12, "height": 2, "width": 2}]}, "num_codes"),
        ({"levels": [{"num_codes": 4, "height": 10**6, "width": 10**6}]}, "height"),
        ({"levels": entries["levels"][::-1]}, "levels"),
        ({"levels": "many"}, "levels"),
        ({"num_classes": -1}, "num_classes"),
        ({"context_dim": 2.5}, "context_dim"),
        ({"more": 1}, "more"),
        ({"settings": {**entries["settings"], "width": 4096}}, "expected shape"),  # compared before it is made
    ]:
        path.write_text(json.dumps({**entries, **change}))
        with pytest.raises(ValueError, match=words) as found:
            CodePriors.from_pretrained(tmp_path / "prior")
        assert "\n" not in str(found.value) and str(tmp_path) in str(found.value)
    path.write_text(json.dumps(entries))
    weights = tmp_path / "prior" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * math.nan}, weights)
    with pytest.raises(ValueError, match="finite"):
        CodePriors.from_pretrained(tmp_path / "prior")


def test_what_does_not_fit_is_refused_before_the_network_runs():
    priors = made("transformer", TWO)
    prior, maps, told = next(priors.priors()), codes_of(TWO), condition_of(TWO)
    for codes, condition, word in [
        (maps[1], told, "codes"),
        (maps[0].float(), told, "codes"),
        (maps[0], replace(told, class_labels=None), "class_labels"),
        (maps[0], replace(told, context=None), "context"),
        (maps[0], replace(told, context_mask=torch.ones(2, 5).bool()), "context_mask"),
        (maps[0], replace(told, coarser=(maps[0],)), "coarser"),
    ]:
        with pytest.raises(ValueError, match=word):
            prior(codes, condition)
    with pytest.raises(ValueError, match="levels"):
        priors(maps[:1], told)
    with pytest.raises(ValueError, match="null"):
        sample_codes(prior, told, generators(2), guidance_scale=2.0)
    with pytest.raises(ValueError, match="training"):
        sample_codes(prior.train(), told, generators(2))
    for settings in (
        {"kernel_size": 4},
        {"kind": "transformer", "heads": 3},
        {"dropout": 1.0},
        {"token_masking": -0.1},
    ):
        with pytest.raises(ValueError, match=list(settings)[-1]):
            PriorConfig(**settings)
