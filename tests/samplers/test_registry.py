"""Names, options, and the text form of both."""

import subprocess
import sys

import pytest
import torch

from samplers import (
    ClassifierFree,
    DiscreteSchedule,
    Guidance,
    Level,
    Prediction,
    ddim,
    ddpm,
    get_guidance,
    get_sampler,
    guidances,
    guide,
    make_levels,
    parse_call,
    parse_guidance,
    parse_sampler,
    registry,
    samplers,
)

LEVELS = make_levels(DiscreteSchedule(), 3)


def test_every_entry_says_what_it_is():
    for name, info in samplers().items():
        assert info.name == name and info.source and info.order >= 1 and info.evaluations >= 1
        assert "noise" not in info.options
    for name, info in guidances().items():
        assert info.name == name and info.source
    assert samplers()["ddim"].options == {"eta": 0.0}
    assert get_sampler("dpmpp_2m").order == 2 and not get_sampler("ddpm").deterministic


def test_parse_call():
    assert parse_call("cfg(7.5, interval=[0.3, 5])") == ("cfg", (7.5,), {"interval": [0.3, 5]})
    assert parse_call(" ddim ") == ("ddim", (), {})
    assert parse_call("f(-1, 'a', None, x=(1, 2))") == ("f", (-1, "a", None), {"x": (1, 2)})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7.5",
        "cfg(",
        "cfg(__import__('os'))",
        "os.system('x')",
        "cfg(x)",
        "cfg(*[1])",
        "cfg(**{})",
        "a;b",
        "(" * 999,
        "f(" + "9" * 2000,
        "cfg(" + "[" * 400 + "]" * 400 + ")",
        "f(lambda: 1)",
        "cfg(7.5)(2)",
        "f(\x00)",
    ],
)
def test_only_literals_are_read(text):
    with pytest.raises(ValueError, match="expected a name or a call of literals") as error:
        parse_call(text)
    assert "\n" not in str(error.value)


def test_parse_guidance_and_sampler():
    assert parse_guidance("cfg(7.5, interval=[0.3, None])") == ClassifierFree(7.5, interval=[0.3, None])
    assert parse_sampler("ddim(eta=0.5)") == parse_sampler("ddim(0.5)") == ("ddim", {"eta": 0.5})
    assert parse_sampler("dpmpp_2m") == ("dpmpp_2m", {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_sampler("dimm"), "no sampler 'dimm'; known are .*did you mean \"ddim\""),
        (lambda: get_guidance("cgf"), 'known are .*did you mean "cfg"'),
        (lambda: parse_guidance("cfg"), r"cfg needs scale, for example cfg\(2.0\)"),
        (lambda: parse_guidance("cfg(2, scale=3)"), "two values for 'scale'"),
        (lambda: parse_guidance("cfg(2, intervall=[1, 2])"), 'did you mean "interval"'),
        (lambda: parse_guidance("cfg(1, 'uncond', None, 'linear', 4)"), "takes 4 options; got 5"),
        (lambda: parse_sampler("ddim(eta=-1)"), "ddim: eta must be a finite number, not negative; got -1"),
        (lambda: parse_sampler("ddpm('learnt')"), "variance must be one of"),
        (lambda: ddim(None, torch.zeros(1, 1), LEVELS, eta=float("nan")), "not negative; got nan"),
        (lambda: ddim(None, torch.zeros(1, 1), LEVELS, eta=1.0), "pass noise"),
        (lambda: ddim(None, torch.zeros(1, 1), LEVELS, etta=1.0), "no option 'etta'.*did you mean \"eta\""),
        (lambda: ddpm(None, torch.zeros(1, 1), LEVELS), "pass noise"),
        (lambda: ddim(None, torch.zeros(1, 1), LEVELS[:1]), "at least one step"),
        (lambda: ddim(None, torch.zeros(1, 1), LEVELS[::-1]), "noise must fall"),
        (lambda: ddim(None, torch.zeros(1, 1), [*LEVELS, LEVELS[-1]]), "noise must fall"),
        (lambda: ddim(None, torch.zeros(1, 1), [Level(0.0, float("nan"), 1.0), LEVELS[-1]]), "must be finite"),
    ],
)
def test_refused_before_the_first_step(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_duplicate_name_is_an_error():
    with pytest.raises(ValueError, match="'ddim' is registered twice"):

        @registry.sampler("ddim", order=1, source="here")
        def other(denoise, x, levels, *, noise):
            yield None


def test_names_options_and_help_need_no_torch():
    code = """if True:
        import inspect, sys
        from samplers import Spacing, guidances, parse_guidance, parse_sampler, samplers, targets_on
        assert all(inspect.getdoc(info.function) for info in [*samplers().values(), *guidances().values()])
        assert parse_guidance("apg(2)").needs == ("uncond",) and parse_sampler("ddim(1)") and targets_on("flow")
        assert "torch" not in sys.modules
        import samplers
        assert samplers.SampleNoise(0, [0]).initial((2,)).shape == (1, 2) and callable(samplers.guidance)
        """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_guidance_derives_from_the_base_class():
    class Plain(Guidance):
        pass

    assert (Plain.stage, Plain().needs, Plain().branches(LEVELS[0])) == (0, (), ())
    denoise = guide(lambda x, level, branches: {"cond": Prediction(x, level, x)}, [Plain()])
    assert denoise(torch.ones(1), LEVELS[0]).x0 == 1
    with pytest.raises(ValueError, match=r"derive its class from samplers\.Guidance"):
        guide(lambda x, level, branches: {}, [object()])
    with pytest.raises(ValueError, match=r"'duck': type must derive from samplers\.Guidance"):
        registry.guidance("duck", source="here")(type("type", (), {}))


class _Point:
    def __init__(self, name, load):
        self.name, self.value, self.load, self.dist = name, f"plugin:{name}", load, None


def test_plug_ins_bring_their_own(monkeypatch, toy, start):
    def load():
        @registry.sampler("mine", order=1, source="a plug-in")
        def mine(denoise, x, levels, *, noise=None, strength: float = 1.0):
            yield from ddim(denoise, strength * x, levels, noise=noise)

    monkeypatch.setattr(registry, "_samplers", dict(registry._samplers))
    monkeypatch.setattr(registry, "_plugged", set())
    monkeypatch.setattr(
        registry.importlib.metadata, "entry_points", lambda group: [_Point("mine", load)] * (group == "ldm.samplers")
    )
    assert parse_sampler("mine(strength=0.5)") == ("mine", {"strength": 0.5})
    assert [step.index for step in get_sampler("mine").function(toy(), start, LEVELS)] == [0, 1, 2]

    monkeypatch.setattr(registry, "_plugged", set())
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [_Point("lost", lambda: None)])
    with pytest.raises(ValueError, match="registers no sampler named 'lost'"):
        samplers()
