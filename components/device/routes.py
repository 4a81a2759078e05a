"""The routes from which browsers download the WebAssembly files and the models that they run."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..i18n.language import gettext
from . import wllama
from .files import ModelFiles

HOME = "device"  # below the page's address
ENGINE = f"{HOME}/wllama-{wllama.VERSION}/"
MODELS = f"{HOME}/models/"


def routes(files: ModelFiles) -> Sequence[Route]:
    """The routes: each answers with a whole file or a range of it, and a strong ETag."""

    def engine(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in wllama.FILES or not (path := wllama.folder() / name).is_file():
            return _missing()
        media_type = "application/wasm" if path.suffix == ".wasm" else "text/javascript"
        return _answer(request, FileResponse(path, media_type=media_type), wllama.FILES[name][1])

    def model(request: Request) -> Response:
        if (found := files.find(request.path_params["name"])) is None:
            return _missing()
        path, file = found
        return _answer(request, FileResponse(path, media_type="application/octet-stream"), file.sha256)

    return [Route(f"/{ENGINE}{{name}}", engine), Route(f"/{MODELS}{{name}}", model)]


def _answer(request: Request, response: FileResponse, digest: str) -> Response:
    etag = f'"{digest[:32]}"'
    headers = {"etag": etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def _missing() -> Response:
    return PlainTextResponse(gettext("This file is not here any more. Prepare it again."), 404)
