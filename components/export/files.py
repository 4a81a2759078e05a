"""Exported files: the sliced checkpoint as a zip, its plan, and the commands and code that reproduce both."""

import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.checkpoints import format as checkpoints
from intraslice.checkpoints.to_gguf import GGUF_TYPES, GGUFType, write_gguf
from intraslice.core import checks
from intraslice.core.config import NO_RECOVERY, lock_words
from intraslice.core.errors import UserError
from intraslice.evaluation.generation import generate_text
from intraslice.pretrained.sources import DEFAULT
from intraslice.records import Recipe, evaluation_statistics, slice_record

from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import Request
from ..state.session import Session
from ..ui.downloads import WRITERS, Downloads
from .views import PROMPTS

GGUF_CHOICES = tuple(name for name in GGUF_TYPES if name != "f32")


class Export(NamedTuple):
    """An exported file, and a remark on it."""

    path: Path
    remark: str = ""


def command_arguments(recipe: Recipe, device: str, command: str = "evaluate", *options: str) -> list[str]:
    """The arguments of `python -m intraslice` that reproduce the page's model and numbers."""
    slicing, calibration, evaluation = recipe.slicing, recipe.calibration, recipe.evaluation
    arguments = [command, "--model", recipe.model, "--sparsity", _number(slicing.sparsity)]
    arguments += ["--estimator", slicing.estimator]
    arguments += [] if slicing.bias is None else ["--bias", _number(slicing.bias)]
    arguments += ["--cap", _number(slicing.cap), "--order", slicing.order]
    arguments += [] if slicing.shapes == "free" else ["--shapes", slicing.shapes]
    arguments += [] if slicing.recovery == NO_RECOVERY else ["--recover", slicing.recovery]
    for lock in slicing.locked:
        arguments += ["--lock", *lock_words(lock)]
    arguments += ["--calibration", calibration.text, "--eval", evaluation.text]
    arguments += ["--sequences", str(calibration.sequences), "--length", str(calibration.length)]
    arguments += ["--samples", str(calibration.samples)] if calibration.samples else []
    arguments += ["--seed", str(calibration.seed)]
    arguments += [] if command == "generate" else ["--eval-tokens", str(evaluation.tokens)]  # which it has no use for
    return [*arguments, "--device", device, "--dtype", recipe.dtype, *options]


def command_lines(session: Session, request: Request, prompt: str) -> str:
    """Three shell commands that reproduce the page's numbers, its checkpoint and a greedy answer."""
    recipe, device = request.recipe(session.evaluation_tokens), session.device
    commands = [
        command_arguments(recipe, device),
        command_arguments(recipe, device, "slice", "--out", checkpoint_name(request)),
        command_arguments(recipe, device, "generate", "--prompt", prompt),
    ]
    return "\n".join(shlex.join(["python", "-m", "intraslice", *arguments]) for arguments in commands)


def without_folders(recipe: Recipe) -> Recipe:
    """The recipe with local paths reduced to their names: the published file must not disclose folders."""
    names = recipe.model, recipe.calibration.text
    model, text = (Path(name).name if Path(name).exists() else name for name in names)
    calibration, evaluation = replace(recipe.calibration, text=text), replace(recipe.evaluation, text=text)
    return replace(recipe, model=model, calibration=calibration, evaluation=evaluation)


def command(
    recipe: Recipe, device: str, place: Sequence[str], percents: Sequence[float], prompts: Sequence[str]
) -> str:
    """The shell command for a page or a site, which the option `place` names; `percents` may be the default: empty."""
    options = [*place]
    options += ["--sparsities", *(f"{percent / 100:g}" for percent in percents)] if percents else []
    options += [] if tuple(prompts) == PROMPTS else ["--prompts", *prompts]
    return shlex.join(["python", "-m", "intraslice", *command_arguments(recipe, device, "publish", *options)])


def checkpoint_name(request: Request) -> str:
    """The name of the folder in the zip, such as SmolLM2-135M-Instruct-sliced-30."""
    return f"{model_label(request.calibration.model)}-sliced-{request.settings.sparsity:g}"


def model_label(model: str) -> str:
    """The model's name without its owner or folder."""
    return "SmolLM2-135M-Instruct" if model == DEFAULT else Path(model).name


def snippet(request: Request, prompt: str) -> str:
    """Three lines of Python that load the unpacked zip and generate an answer."""
    return (
        "import intraslice\n"
        f'model, tokenizer, record = intraslice.load("{checkpoint_name(request)}")\n'
        f"print(*intraslice.generate_text(model, tokenizer, {prompt!r}), sep='')"
    )


def plan_record(session: Session, request: Request) -> dict[str, Any]:
    """The record that `python -m intraslice slice` saves. Raises UserError if the model is not calibrated."""
    loaded = session.calibrated(request).loaded
    return slice_record(request.recipe(session.evaluation_tokens), loaded, session.slice_plan(request))


def evaluation(job: Job, session: Session, request: Request) -> dict[str, Any]:
    """The output of `python -m intraslice evaluate --json` for the page's model, without times and memory."""
    calibrated = session.calibrations.calibrate(job, request.calibration)
    dense, sliced = session.losses(job, request, calibrated)
    record = plan_record(session, request)
    return record | {"asked": record["requested"]} | evaluation_statistics(dense, sliced)  # as HTTP clients know it


def answers(
    job: Job, session: Session, request: Request, prompt: str, tokens: int, temperature: float, seed: int
) -> dict[str, str]:
    """The answers of the dense and the sliced model. Raises UserError for invalid numbers or an empty prompt."""
    checks.require_words("the prompt", prompt)
    loaded = session.calibrations.load(job, request.calibration)
    sliced = session.slice(job, request)
    texts = {"dense": "", "sliced": ""}
    for name, model in (("dense", loaded.model), ("sliced", sliced)):
        status = Status(lazy_gettext("Generating, dense") if name == "dense" else lazy_gettext("Generating, sliced"))
        pause = job.checkpoint
        for piece in generate_text(model, loaded.tokenizer, prompt, tokens, temperature, seed, pause=pause):
            texts[name] += piece
            job.emit(status)
    return texts


def write_checkpoint(job: Job, session: Session, request: Request, downloads: Downloads) -> Export:
    """Slice, or take the slice from memory, and zip its folder. Raises UserError at 0 % or if the disk is full."""

    def write(path: Path) -> None:
        free = shutil.disk_usage(path.parent).free
        if free < 2.2 * size:  # for the folder and its zip
            raise UserError(
                "The file needs {needed:.0f} MB of disk, but only {free:.0f} MB is free. Choose a smaller model.",
                free=free / 1e6,
                needed=2.2 * size / 1e6,
            )
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            folder = Path(temporary) / name
            checkpoints.save(model, tokenizer, folder, record)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # weights do not compress
                for file in sorted(folder.iterdir()):
                    archive.write(file, f"{name}/{file.name}")

    with _sliced(job, session, request) as (model, tokenizer, record):
        name, size = checkpoint_name(request), sum(tensor.nbytes for tensor in model.state_dict().values())
        job.emit(Status(lazy_gettext("Writing {size:.0f} MB", size=size / 1e6)))
        with job.waiting():
            return Export(downloads.put(f"{name}.zip", write, int(2.2 * size)))


def write_gguf_file(
    job: Job, session: Session, request: Request, downloads: Downloads, gguf_type: str = "f16"
) -> Export:
    """Slice if necessary, and write for llama.cpp; the remark has the padding. Raises UserError for a wrong type."""
    checks.one_of("GGUF type", gguf_type, GGUF_CHOICES)
    padding = 0

    def write(path: Path) -> None:
        nonlocal padding
        report = write_gguf(model, tokenizer, path, cast(GGUFType, gguf_type), record=record, progress=False)
        padding = report.padding_bytes

    with _sliced(job, session, request) as (model, tokenizer, record):
        job.emit(Status(lazy_gettext("Writing for llama.cpp, {type}", type=gguf_type)))
        size = sum(2 * parameter.numel() for parameter in model.parameters())
        name = checkpoint_name(request) if gguf_type == "f16" else f"{checkpoint_name(request)}-{gguf_type}"
        with job.waiting():
            path = downloads.put(f"{name}.gguf", write, size)
    remark = lazy_gettext("{size:.3g} MB of padding", size=padding / 1e6) if padding else lazy_gettext("no padding")
    return Export(path, remark)


@contextmanager
def _sliced(
    job: Job, session: Session, request: Request
) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]]:
    """A turn to write: the sliced model, its tokenizer, and its record. Who waits holds no model, to save memory."""
    if request.slicing.sparsity == 0:
        raise UserError("At 0% nothing is removed, so there is no sliced model to save. Move the slider first.")
    session.slice(job, request)  # in the cache, unless its memory is needed
    with WRITERS.held(job):
        calibrated = session.calibrations.calibrate(job, request.calibration)
        model, tokenizer = session.slice(job, request), calibrated.loaded.tokenizer
        record = plan_record(session, request)
        del calibrated  # writing takes a while, and needs no moments
        yield model, tokenizer, record


def _number(value: float) -> str:
    return f"{value:.12g}"
