"""`ldm evaluate MODEL` or `ldm evaluate --real A --fake B`; of an autoencoder see evaluate_autoencoder."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import tyro

from ldm.cli import evaluate_autoencoder
from ldm.cli.data_report import show_data
from ldm.cli.model_options import ModelOptions
from ldm.cli.parsing import check_file, check_model_folder, parse
from ldm.cli.sample_settings import check_supported
from ldm.cli.show_figures import show
from ldm.data.config import DataConfig
from ldm.evaluation.config import EvaluationConfig, LikelihoodConfig
from ldm.evaluation.records import EvaluationResult
from ldm.runtime.device import check_device, resolve_device
from ldm.runtime.distributed import SINGLE_PROCESS, Processes, torchrun_processes
from ldm.runtime.errors import UserError
from ldm.runtime.files import atomic_write_json, cache_folder, fingerprint
from ldm.runtime.locks import FolderLock
from ldm.runtime.stopping import GOES_ON, kept_when_stopped
from ldm.sampling.config import SamplingConfig, check_names

if TYPE_CHECKING:  # wrong flags are refused before torch is imported
    import torch

    from ldm.data.dataset import ImageData
    from ldm.evaluation.sample_stats import StatsStore
    from ldm.sampling.code_prior import CodePriorModel
    from ldm.sampling.pipeline import Pipeline

    Loaded: TypeAlias = tuple[Pipeline | CodePriorModel, ImageData, ImageData, ImageData | None]

Settings = TypeVar("Settings")
_MODEL_PARTS = ("model_index.json", "config.json", "run.json", "unet", "vae", "prior", "generator")


@dataclass(frozen=True)
class EvaluateRun(ModelOptions):
    """Distances (and a judge's accuracies) of a model's samples from its data, of a folder of images from a data set
    (FOLDER --data ...) or from another folder; and the likelihood of its data (--metrics bits_per_dim). An autoencoder
    has other measures: `ldm evaluate RUN --help` with the folder of one shows them. `ldm evaluate reference DATA` makes
    a reference file."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ""
    """Model folder, or a folder of generated images to compare with --data, as the samples of a model are; none with
    --fake."""
    real: str = ""
    """Folder of real images."""
    fake: str = ""
    """Folder of generated images, to compare with --real, --reference or --data."""
    resize: int | None = None
    """Resize the images of folders to this side; without it, images of different sizes are refused."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    likelihood: LikelihoodConfig = field(default_factory=LikelihoodConfig)
    dataset: DataConfig = field(default_factory=DataConfig)
    split: str = "validation"
    """Which images of the data are the reference: train or validation."""
    output: str = ""
    """A JSON file for figures and manifest."""


def run(arguments: list[str]) -> None:
    """Evaluate and print the figures with what they hold for; under torchrun on all its processes."""
    with torchrun_processes() as processes:
        if arguments[:1] == ["reference"]:
            from ldm.cli import evaluate_reference

            return processes.run_on_main_and_broadcast(lambda: evaluate_reference.run(arguments[1:]))
        if evaluate_autoencoder.autoencoder_among(arguments):
            return processes.run_on_main_and_broadcast(lambda: evaluate_autoencoder.run(arguments))
        settings, device = processes.run_on_all(lambda: _settings(arguments))
        from ldm.sampling.code_prior import holds_prior

        if settings.fake:
            result = processes.run_on_main_and_broadcast(lambda: _folder(settings, device))
            _publish(settings, result, processes)
        elif holds_prior(settings.model):  # whose codes are drawn by one process
            processes.run_on_main_and_broadcast(lambda: _model(settings, device))
        else:
            _model(settings, processes.device(device), processes)


def _publish(settings: EvaluateRun, result: EvaluationResult, processes: Processes) -> None:
    if not processes.is_main:
        return
    show(result)
    sheet = _contact_sheet(settings)
    if sheet is not None and sheet.is_file():
        print(f"wrote {sheet}: samples and the training images nearest to them")
    if settings.output:
        atomic_write_json(settings.output, result.to_json())


def _settings(arguments: list[str]) -> tuple[EvaluateRun, torch.device]:
    settings = parse(EvaluateRun, arguments, "evaluate", EvaluateRun(dataset=DataConfig(data="")))
    if _holds_images(settings.model) and not settings.fake:
        settings = replace(settings, model="", fake=settings.model)
    folders = bool(settings.real or settings.fake)
    if folders == bool(settings.model):
        raise UserError("give either a model folder, or --real FOLDER and --fake FOLDER")
    if folders:
        _check_folders(settings)
    else:
        settings = parse_for_model(EvaluateRun, arguments, "evaluate")
    if settings.resize is not None and (not folders or not 1 <= settings.resize <= 4096):
        what = f"expected 1 to 4096 pixels, got {settings.resize}" if folders else "is for folders; leave it out"
        raise UserError(f"--resize: {what}")
    check_file(settings.output, "figures.json")
    check_names(settings.sampling)
    check_device(settings.device)
    from ldm.sampling.checks import check_used
    from ldm.sampling.code_prior import holds_prior

    if not holds_prior(settings.model):
        check_used(settings.sampling)
    return settings, resolve_device(settings.device)


def _holds_images(folder: str) -> bool:
    """Whether a folder is one of images, not of a model."""
    from ldm.data.decode import PLAIN_ENDINGS

    root = Path(folder)
    if not folder or not root.is_dir() or any((root / part).exists() for part in _MODEL_PARTS):
        return False
    return any(path.suffix.lower() in PLAIN_ENDINGS for path in root.rglob("*"))


def _check_folders(settings: EvaluateRun) -> None:
    """`UserError` unless a folder of generated images is compared with one thing."""
    if not settings.fake:
        raise UserError("--fake is missing: two folders are compared")
    given = {"--real": settings.real, "--reference": settings.evaluation.reference, "--data": settings.dataset.data}
    names = [name for name, value in given.items() if value]
    if not names:
        problem = f"{settings.fake}: nothing to compare these images with, --real is missing"
        raise UserError(problem, remedy="give --data (as for the model), --real FOLDER, or a --reference FILE")
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)}: give one of them")


def _folder(settings: EvaluateRun, device: torch.device) -> EvaluationResult:
    """Of a folder of generated images, against another, a reference file or a data set."""
    from ldm.data.open import open_data, other_split
    from ldm.evaluation.folders import evaluate_folders

    dataset, split = settings.dataset, settings.split
    real: str | ImageData | None = settings.real or None
    train = other = None
    if dataset.data:
        real, train, other = open_data(dataset, split), open_data(dataset, "train"), other_split(dataset, split)
    return evaluate_folders(
        real,
        settings.fake,
        settings.evaluation,
        device=device,
        resize=settings.resize,
        on_read=show_data,
        max_bad_images=dataset.max_bad_images,
        train_data=train,
        other_data=other,
    )


def _model(settings: EvaluateRun, device: torch.device, processes: Processes = SINGLE_PROCESS) -> None:
    """Evaluate and publish; what is finished meanwhile is kept in the user's cache folder until then."""
    from ldm.evaluation.sample_stats import StatsStore, remove_abandoned

    loaded = processes.run_on_all(lambda: _load(settings, device))
    key = processes.run_on_main_and_broadcast(lambda: _key(settings, loaded, device))
    stores = cache_folder() / "evaluations"
    store = StatsStore(stores / key[:32])

    def stopped() -> str:
        count = store.count()
        return f"stopped after {count} of {settings.evaluation.num_images} samples; {GOES_ON}" if count else "stopped"

    def lock() -> bool:
        """Whether the folder can be locked: it is that of this very evaluation."""
        remove_abandoned(stores)
        try:
            held.enter_context(FolderLock(store.folder, work="making the same evaluation", setting=""))
        except OSError:
            return False  # and the store will say that it cannot be written
        return True

    with ExitStack() as held, kept_when_stopped(stopped):
        processes.run_on_main_and_broadcast(lock)
        _publish(settings, _evaluate(settings, loaded, store, processes), processes)
        if processes.is_main:
            store.remove()


def _key(settings: EvaluateRun, loaded: Loaded, device: torch.device) -> str:
    """The fingerprint of all that samples and metrics depend on."""
    from ldm.sampling.identity import identity_of

    model, reference, train, other = loaded
    data = [(split.fingerprint, split.split) for split in (reference, train, other) if split is not None]
    parts = (model.with_defaults(settings.sampling), settings.evaluation, settings.likelihood, settings.dataset)
    weights = identity_of(model, settings.model, settings.weak)
    return fingerprint([weights, data, settings.split, device.type, *(asdict(part) for part in parts)])


def _load(settings: EvaluateRun, device: torch.device) -> Loaded:
    """The model, the reference, the training images, and the other split."""
    from ldm.data.open import open_data, other_split
    from ldm.sampling.code_prior import SUPPORTED_SETTINGS, CodePriorModel, holds_prior
    from ldm.sampling.pipeline import Pipeline

    model: Pipeline | CodePriorModel
    if holds_prior(settings.model):
        if settings.classifier or settings.weak:
            raise UserError("--classifier, --weak: this model draws without diffusion; leave them out")
        check_supported(settings.sampling, SUPPORTED_SETTINGS)
        model = CodePriorModel.load(settings.model, device, ignore_manifest=settings.ignore_manifest)
    else:
        model = Pipeline.load(settings.model, **settings.loading(device))
    reference, train = open_data(settings.dataset, settings.split), open_data(settings.dataset, "train")
    check_size(model, reference.image_size)
    return model, reference, train, other_split(settings.dataset, settings.split)


def _evaluate(settings: EvaluateRun, loaded: Loaded, store: StatsStore, processes: Processes) -> EvaluationResult:
    from ldm.evaluation.evaluate import evaluate_model
    from ldm.sampling.pipeline import Pipeline

    model, reference, train, other = loaded
    show_data(reference.report)
    if isinstance(model, Pipeline) and not settings.evaluation.without_samples:
        taken = model.defaults.taken(settings.sampling, model.with_defaults(settings.sampling))
        if taken and processes.is_main:
            print(f"defaults: {taken}", flush=True)
    return evaluate_model(
        model,
        reference,
        settings.sampling,
        settings.evaluation,
        train_data=train,
        other_data=other,
        likelihood=settings.likelihood,
        contact_sheet=_contact_sheet(settings),
        store=store,
        processes=processes,
    )


def _contact_sheet(settings: EvaluateRun) -> Path | None:
    """Where memorisation writes its contact sheet: beside --output."""
    if not settings.output or "training_split" not in settings.evaluation.needs:
        return None
    output = Path(settings.output)
    return output.with_name(f"{output.stem}-memorisation.png")


def parse_for_model(schema: type[Settings], arguments: list[str], command: str) -> Settings:
    """Settings whose data are by default those that the model, if it is a run folder, was trained on."""
    settings = parse(schema, arguments, command)
    model = settings.model  # type: ignore[attr-defined]
    if not model:
        return settings
    check_model_folder(model)
    from ldm.training.tasks.published import dataset_of

    dataset = dataset_of(model)
    return settings if dataset is None else parse(schema, arguments, command, schema(dataset=dataset))  # type: ignore[call-arg]


def check_size(pipeline: Pipeline | CodePriorModel, image_size: int) -> None:
    """Refuse a reference of another size than the model's images."""
    if pipeline.image_size != image_size:
        raise UserError(f"--image-size {image_size}: this model makes images of {pipeline.image_size} pixels; use that")
