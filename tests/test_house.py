"""The walls of the house: which package may import which, and what the shipped settings say."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): path
    for package in ("autoencoders", "samplers", "ldm")
    for path in sorted((ROOT / package).rglob("*.py"))
}
OURS = ("autoencoders", "samplers", "ldm")
LONG_FOR_A_REASON = {
    "ldm/nn.py": "the blocks that U-Net and classifier share, in the order of their use",
}
# Of ldm, lowest first. A module imports its own floor or a lower one; what is named here imports nothing above it.
FLOORS = [
    {
        "errors",
        "files",
        "progress",
        "device",
        "compilation",
        "processes",
        "peak_memory",
        "images",
        "weights",
        "sampling",
        "process",
        "perturbation",
        "start",
    },
    {"nn", "layers", "prepared", "unet_config", "unet", "conditioning", "classifier", "data"},
    {"denoiser", "model_folder", "energies", "weak"},
    {"branches"},
    {"pipeline", "editing", "direct", "code_prior"},
    {"evaluation", "config"},
    {"reports"},
    {"training", "comparison"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imports(path):
    """The dotted names of all that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "ldm")


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("samplers", {"samplers", "torch"}), ("autoencoders", {"autoencoders", "torch", "einops", "safetensors"})],
)
def test_the_libraries_import_nothing_of_the_system(package, allowed):
    for name, path in SOURCES.items():
        if name.startswith(f"{package}/"):
            found = {module.split(".")[0] for module in imports(path)}
            assert found <= allowed | sys.stdlib_module_names, name


def floor_of(module):
    part = module.split(".")[1] if "." in module else None
    return FLOOR_OF.get(part)


def test_imports_within_the_system_run_one_way():
    for name, path in SOURCES.items():
        if not name.startswith("ldm/") or name == "ldm/__init__.py":
            continue
        own = floor_of(name[: -len(".py")].replace("/", "."))
        assert own is not None, f"{name}: give it a floor in this test"
        for module in imports(path):
            if module.split(".")[0] == "ldm" and floor_of(module) is not None:
                assert floor_of(module) <= own, f"{name} imports {module}"


MEASURES = {"during", "records", "features", "frechet", "image_quality", "perceptual", "small_network", "train_network"}


def test_training_knows_of_evaluation_only_how_good_images_are():
    for name, path in SOURCES.items():
        if name.startswith("ldm/training/"):
            found = {module for module in imports(path) if module.startswith(("ldm.evaluation", "ldm.comparison"))}
            assert found <= {f"ldm.evaluation.{measure}" for measure in MEASURES}, name


def test_the_text_of_settings_is_parsed_in_one_place():
    for name, path in SOURCES.items():
        if not name.startswith("ldm/cli/") and name != "ldm/config.py":
            assert not {"tyro", "omegaconf", "argparse"} & {module.split(".")[0] for module in imports(path)}, name


def test_no_file_grows_beyond_a_sitting():
    long = {name for name, path in SOURCES.items() if len(path.read_text(encoding="utf-8").splitlines()) > 300}
    assert long <= LONG_FOR_A_REASON.keys()


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_only_the_command_line_prints_and_no_file_names_a_device():
    for name, path in SOURCES.items():
        found = set(calls(path))
        assert "cuda" not in found, f"{name}: .cuda()"
        assert "print" not in found or name.startswith("ldm/cli/"), f"{name}: print()"


@pytest.mark.parametrize("word", ["import pickle", "torch.load(", "yaml.load(", "shell=True", "trust_remote_code=True"])
def test_nothing_runs_code_out_of_data(word):
    assert not [name for name, path in SOURCES.items() if word in path.read_text(encoding="utf-8")]


def schema_of(name):
    from ldm.cli.compare import CompareRun
    from ldm.training.autoencoder import AutoencoderRun
    from ldm.training.classifier import ClassifierRun
    from ldm.training.diffusion import DiffusionRun
    from ldm.training.gan import GanRun
    from ldm.training.prior import PriorRun

    kinds = {"autoencoder": AutoencoderRun, "diffusion": DiffusionRun, "classifier": ClassifierRun}
    kinds |= {"gan": GanRun, "prior": PriorRun, "compare": CompareRun}
    return kinds[name.rsplit("/", 1)[1].split("-")[0]]


SHIPPED = sorted(str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_settings_are_found_by_name_and_fit_their_schema(name):
    from ldm.config import config_names, find_config, read_settings

    assert name in config_names()
    settings = read_settings(schema_of(name), find_config(name))
    if schema_of(name).__name__ == "CompareRun":
        assert settings.output_dir == settings.model == "", "what to compare and where to write is the user's choice"
        return
    assert settings.training.train_batch_size % settings.training.gradient_accumulation_steps == 0
    assert settings.training.output_dir == "", "where to write is the user's choice"


def test_every_family_of_settings_is_whole():
    families = {name.rsplit("/", 1)[0] for name in SHIPPED}
    for family in families:
        kinds = {name.rsplit("/", 1)[1].split("-")[0] for name in SHIPPED if name.startswith(f"{family}/")}
        assert kinds >= {"autoencoder", "diffusion", "classifier"}, family


@pytest.mark.slow
def test_a_wheel_holds_the_settings(tmp_path):
    import subprocess
    import zipfile

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"ldm/configs/{name}.yaml" for name in SHIPPED} <= names
    assert {"ldm/cli/main.py", "samplers/registry.py", "autoencoders/autoencoder.py"} <= names
    assert not any(name.startswith("tests/") for name in names)
