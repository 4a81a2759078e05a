"""Taking the result home: the sliced checkpoint as a zip, its plan, and the words that make both again elsewhere."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.i18n.language import lazy_gettext
from components.jobs.job import Job
from components.jobs.places import Places
from components.jobs.status import Status
from components.state.request import DENSE, Request
from components.state.session import Session
from components.ui.downloads import Downloads
from intraslice import checkpoints
from intraslice.checkpoints.to_gguf import require_deci, write_gguf
from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.evaluation.generation import generate_text
from intraslice.pretrained.sources import DEFAULT
from intraslice.reporting import Recipe, measured, record

WRITERS = Places(2, lazy_gettext("Waiting for other exports to finish"))


class Export(NamedTuple):
    """A file to take home, and what is to be said of it."""

    path: Path
    words: str = ""


def command_words(wanted: Recipe, device: str, command: str = "evaluate", *more: str) -> list[str]:
    """The arguments of `python -m intraslice` that make the page's model and numbers."""
    slicing, calibration, evaluation = wanted.slicing, wanted.calibration, wanted.evaluation
    words = [command, "--model", wanted.model, "--sparsity", _number(slicing.sparsity)]
    words += ["--estimator", slicing.estimator]
    words += [] if slicing.bias is None else ["--bias", _number(slicing.bias)]
    words += ["--cap", _number(slicing.cap), "--order", slicing.order]
    words += ["--iterative"] if slicing.iterative else []
    words += [] if slicing.shapes == "free" else ["--shapes", slicing.shapes]
    words += [] if slicing.recovery == NO_RECOVERY else ["--recover", slicing.recovery]
    for layer, module, ratio in slicing.locked:
        words += ["--lock", str(layer), module, _number(100 * ratio)]
    words += ["--calibration", calibration.text, "--eval", evaluation.text]
    words += ["--sequences", str(calibration.sequences), "--length", str(calibration.length)]
    words += ["--seed", str(calibration.seed), "--eval-tokens", str(evaluation.tokens)]
    return [*words, "--device", device, "--dtype", wanted.dtype, *more]


def command_lines(session: Session, request: Request, prompt: str) -> str:
    """The page's numbers, its checkpoint and its answer (greedy), as three lines for a shell."""
    recipe, device = request.recipe(session.evaluation_tokens), session.device
    lines = [
        command_words(recipe, device),
        command_words(recipe, device, "slice", "--out", checkpoint_name(request)),
        command_words(recipe, device, "generate", "--prompt", prompt),
    ]
    return "\n".join(shlex.join(["python", "-m", "intraslice", *words]) for words in lines)


def checkpoint_name(request: Request) -> str:
    """The folder in the zip: SmolLM2-135M-Instruct-sliced-30"""
    return f"{model_label(request.calibration.model)}-sliced-{request.settings.sparsity:g}"


def model_label(model: str) -> str:
    """The model's own name, without whose it is or where it lies."""
    return "SmolLM2-135M-Instruct" if model == DEFAULT else Path(model).name


def snippet(request: Request, prompt: str) -> str:
    """Three lines of Python that open the unpacked zip and let it answer."""
    return (
        "import intraslice\n"
        f'model, tokenizer, made = intraslice.load("{checkpoint_name(request)}")\n'
        f"print(*intraslice.generate_text(model, tokenizer, {prompt!r}), sep='')"
    )


def plan_record(session: Session, request: Request) -> dict[str, Any]:
    """What `python -m intraslice slice` keeps of how a model was made. Raises UserError before the calibration."""
    loaded = session.calibrated(request).loaded
    return record(request.recipe(session.evaluation_tokens), loaded, session.slice_plan(request))


def evaluation(job: Job, session: Session, request: Request) -> dict[str, Any]:
    """What `python -m intraslice evaluate --json` says of the page's model, times and memory left out."""
    calibrated = session.calibrations.calibrate(job, request.calibration)
    dense = sliced = session.readings.losses(job, request.slice_key(DENSE), calibrated)
    if request.slicing.sparsity:
        sliced = session.readings.losses(job, request.slice_key("intraslice"), calibrated)
    return plan_record(session, request) | measured(dense, sliced)


def answers(
    job: Job, session: Session, request: Request, prompt: str, tokens: int, temperature: float, seed: int
) -> dict[str, str]:
    """The dense and the sliced model's whole answers. Raises UserError for numbers out of range or an empty prompt."""
    if not prompt.strip():
        raise UserError(lazy_gettext("The prompt is empty. Enter some text."))
    sliced = session.slice(job, request)
    loaded = session.calibrated(request).loaded
    texts = {"dense": "", "sliced": ""}
    for name, model in (("dense", loaded.model), ("sliced", sliced)):
        status = Status(lazy_gettext("Answering, dense") if name == "dense" else lazy_gettext("Answering, sliced"))
        pause = job.checkpoint
        for piece in generate_text(model, loaded.tokenizer, prompt, tokens, temperature, seed, pause=pause):
            texts[name] += piece
            job.emit(status)
    return texts


def write_plan(session: Session, request: Request, path: Path) -> None:
    """The plan as JSON. Raises UserError before the calibration is there."""
    path.write_text(json.dumps(plan_record(session, request), indent=1), encoding="utf-8")


def write_checkpoint(job: Job, session: Session, request: Request, downloads: Downloads) -> Export:
    """Slice, or find the slice in memory, and zip its folder. Raises UserError where nothing is sliced, or no room."""
    model, tokenizer, made = _sliced(job, session, request)
    name, size = checkpoint_name(request), sum(tensor.nbytes for tensor in model.state_dict().values())
    job.emit(Status(lazy_gettext("Writing {size:.0f} MB", size=size / 1e6)))

    def write(path: Path) -> None:
        free = shutil.disk_usage(path.parent).free
        if free < 2.2 * size:  # the folder, and the zip of it
            raise UserError(
                lazy_gettext(
                    "The file needs {needed:.0f} MB of disk, {free:.0f} MB are free. Choose a smaller model.",
                    free=free / 1e6,
                    needed=2.2 * size / 1e6,
                )
            )
        with tempfile.TemporaryDirectory(dir=path.parent) as home:
            folder = Path(home) / name
            checkpoints.save(model, tokenizer, folder, made)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # weights do not compress
                for file in sorted(folder.iterdir()):
                    archive.write(file, f"{name}/{file.name}")

    with WRITERS.taken(job):
        return Export(downloads.put(f"{name}.zip", write, int(2.2 * size)))


def write_gguf_file(job: Job, session: Session, request: Request, downloads: Downloads) -> Export:
    """Slice, or find the slice in memory, and write it for llama.cpp; its words say how much of the file is padding.

    Raises UserError where that cannot be.
    """
    model, tokenizer, made = _sliced(job, session, request)
    require_deci(model, tokenizer)
    job.emit(Status(lazy_gettext("Writing for llama.cpp, float16")))

    padding = 0

    def write(path: Path) -> None:
        nonlocal padding
        padding = write_gguf(model, tokenizer, path, made=made, progress=False).padding_bytes

    size = sum(2 * parameter.numel() for parameter in model.parameters())
    with WRITERS.taken(job):
        path = downloads.put(f"{checkpoint_name(request)}.gguf", write, size)
    return Export(path, _padded(padding))


def _sliced(
    job: Job, session: Session, request: Request
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The sliced model, its tokenizer, and how it was made."""
    if request.slicing.sparsity == 0:
        raise UserError(
            lazy_gettext("At 0 % nothing is removed, so there is no sliced model to save. Move the slider first.")
        )
    model = session.slice(job, request)
    return model, session.calibrated(request).loaded.tokenizer, plan_record(session, request)


def _padded(count: int) -> str:
    """How many bytes are zeros that make up for what llama.cpp's shapes have no place for."""
    return lazy_gettext("{size:.3g} MB are padding", size=count / 1e6) if count else lazy_gettext("nothing is padded")


def _number(value: float) -> str:
    return f"{value:.12g}"
