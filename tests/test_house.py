"""The walls of the house: which package may import which, and what the shipped settings say."""

import ast
import subprocess
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
# The folders of ldm, lowest first: a module imports its own folder and lower ones.
ROOMS = (
    "runtime",
    "data",
    "conditioning",
    "pretrained",
    "models",
    "sampling",
    "evaluation",
    "reports",
    "training",
    "comparison",
    "explorer",
    "cli",
)


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


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (len(parts) == 2 and (ROOT / "ldm" / parts[1]).is_dir()) else None


def test_no_file_of_the_system_lies_loose_and_every_folder_is_a_known_room():
    assert {path.name for path in (ROOT / "ldm").glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.name for path in (ROOT / "ldm").iterdir() if any(path.glob("**/*.py"))} <= set(ROOMS)


def test_imports_within_the_system_run_one_way():
    for name, path in SOURCES.items():
        if not name.startswith("ldm/") or name in ("ldm/__init__.py", "ldm/__main__.py"):
            continue
        own = ROOMS.index(name.split("/")[1])
        for module in imports(path):
            if module.startswith("ldm.") and (room := room_of(module)) is not None:
                assert ROOMS.index(room) <= own, f"{name} imports {module}"


def modules():
    return {name[: -len(".py")].replace("/", ".").removesuffix(".__init__"): path for name, path in SOURCES.items()}


def test_no_module_imports_itself_by_way_of_others_not_even_for_types():
    known = modules()
    graph = {
        name: {target for target in imports_in_full(path) if target in known and target != name}
        for name, path in known.items()
    }
    while leaves := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, f"a circle of imports among {', '.join(sorted(graph)[:6])}"


def imports_in_full(path):
    """The modules that a file imports: `from a import b` is a.b where that is a module, else a."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


def test_arguments_are_parsed_by_the_command_line_alone_and_files_of_settings_by_one_module():
    for name, path in SOURCES.items():
        libraries = {module.split(".")[0] for module in imports(path)}
        assert name.startswith("ldm/cli/") or not {"tyro", "argparse"} & libraries, name
        assert name == "ldm/runtime/settings.py" or not {"omegaconf", "yaml"} & libraries, name


def test_json_is_parsed_within_bounds_by_one_module():
    allowed = ("ldm/runtime/schema.py", "autoencoders/storage.py")
    for name, path in SOURCES.items():
        text = path.read_text(encoding="utf-8").replace("json.loads(json.dumps(", "")
        text = text.replace("json.loads(learner.to_str())", "")  # the tokenizer that was trained a moment ago
        text = text.replace("json.loads(stream.read(size))", "")  # the header that safetensors wrote a moment ago
        assert name in allowed or ("json.load(" not in text and "json.loads(" not in text), name


WITHOUT_TORCH = (  # so that `--help`, and the refusal of a wrong flag, do not wait for it
    *(name[: -len(".py")].replace("/", ".") for name in SOURCES if name.startswith("ldm/cli/")),
    "ldm.comparison.config",
    "ldm.conditioning.config",
    "ldm.data.config",
    "ldm.evaluation.autoencoder.config",
    "ldm.evaluation.config",
    "ldm.models.unet_config",
    "ldm.sampling.config",
    "ldm.training.config",
    "ldm.training.run_folder",
    "ldm.training.tasks.settings",
)


def test_settings_are_made_without_torch():
    code = "import sys; list(map(__import__, sys.argv[1:])); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, *WITHOUT_TORCH], cwd=ROOT).returncode == 0


def test_no_file_is_too_long_to_read_or_too_short_to_open():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert not [name for name, length in lengths.items() if length > 300]
    names = ("__init__.py", "__main__.py")
    assert not [name for name, length in lengths.items() if length < 25 and Path(name).name not in names]


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
    from ldm.training.tasks.settings import AutoencoderRun, ClassifierRun, DiffusionRun, GanRun, PriorRun

    kinds = {"autoencoder": AutoencoderRun, "diffusion": DiffusionRun, "classifier": ClassifierRun}
    kinds |= {"gan": GanRun, "prior": PriorRun, "compare": CompareRun}
    return kinds[name.rsplit("/", 1)[1].split("-")[0]]


SHIPPED = sorted(str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_settings_are_found_by_name_and_fit_their_schema(name):
    from ldm.runtime.settings import config_names, find_config, read_settings

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
    import zipfile

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"ldm/configs/{name}.yaml" for name in SHIPPED} <= names
    assert {"ldm/cli/main.py", "samplers/registry.py", "autoencoders/autoencoder.py"} <= names
    assert not any(name.startswith("tests/") for name in names)
