"""The routes of the classes: JSON in, JSON out, and refusals as `{"error": sentence}` in the client's language.

Secrets are in headers, since addresses are logged: `X-Room-Lead` of the presenter, `X-Room-Student` of a student.
Clients ask for the state again and again, with the version that they have; where nothing has changed the answer is 204.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from threading import RLock
from typing import Any
from urllib.parse import urlsplit

import segno
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import limits
from ..gradio_compat.callers import site_of
from ..i18n.language import gettext, long_text, translate
from .questions import Value, questions
from .rooms import Room, Rooms
from .store import Refused

HOME = "rooms"  # below the page's address
LEAD, STUDENT = "x-room-lead", "x-room-student"
NEVER_STORED = {"cache-control": "no-store"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute

Body = dict[str, Any]
Handler = Callable[[Request, Body], Body | Response | None]


def routes(rooms: Rooms) -> Sequence[Route]:
    """All routes of the classes."""

    def create(request: Request, _: Body) -> Body:
        room, secret = rooms.create(site_of(request))
        return {"code": room.code, "lead": secret, "expires": room.expires}

    def join(request: Request, _: Body) -> Body:
        room = rooms.join(_code(request), _header(request, STUDENT), site_of(request))
        return {"code": room.code, "step": room.step, "expires": room.expires}

    def answer(request: Request, body: Body) -> Body:
        rooms.answer(_code(request), _header(request, STUDENT), body)
        return {"counted": body["id"]}

    def changed_by(change: Callable[..., None], *names: str) -> Handler:
        """A handler that lets the presenter change the class by values of the body, and answers with its state."""

        def handler(request: Request, body: Body) -> Body | None:
            code, secret = _code(request), _header(request, LEAD)
            change(code, secret, *map(body.get, names))
            return rooms.seen_by_lead(code, secret)

        return handler

    def delete(request: Request, _: Body) -> Body:
        rooms.delete(_code(request), _header(request, LEAD))
        return {"deleted": True}

    def qr_code(request: Request, body: Body) -> Body:
        rooms.led_room(_code(request), _header(request, LEAD))
        return {"svg": _qr_code(body.get("link"))}

    def state(request: Request, _: Body) -> Body | None:
        code, since = _code(request), request.query_params.get("since", "")
        if secret := _header(request, LEAD):
            return rooms.seen_by_lead(code, secret, since)
        return rooms.seen_by_student(code, _header(request, STUDENT), since)

    def answers(request: Request, _: Body) -> Response:
        text = _as_csv(*rooms.predictions(_code(request), _header(request, LEAD)))
        headers = {"content-disposition": 'attachment; filename="class.csv"', **NEVER_STORED}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    room = f"/{HOME}/{{code}}"
    posts: dict[str, Handler] = {
        f"/{HOME}": create,
        f"{room}/join": join,
        f"{room}/answer": answer,
        f"{room}/step": changed_by(rooms.go_to, "step"),
        f"{room}/reveal": changed_by(rooms.reveal, "step", "truth"),
        f"{room}/remove": changed_by(rooms.remove_without_answers),
        f"{room}/delete": delete,
        f"{room}/qr": qr_code,
    }
    return [
        *(Route(path, partial(_answered, handler), methods=["POST"]) for path, handler in posts.items()),
        Route(f"{room}/state", partial(_answered, state, lock=rooms.lock)),
        Route(f"{room}/answers.csv", partial(_answered, answers)),
    ]


def _code(request: Request) -> str:
    return str(request.path_params["code"])


def _header(request: Request, name: str) -> str:
    return request.headers.get(name, "")[:100]


def _qr_code(link: Any) -> str:
    """A link as an SVG image. Raises Refused."""
    if not isinstance(link, str) or len(link) > limits.QR_LINK or not link.startswith(("https://", "http://")):
        words = "A QR code can hold a link (http or https) of at most {limit:,} characters."
        raise Refused(words, 400, limit=limits.QR_LINK)
    try:
        return segno.make_qr(link, error="m").svg_inline(border=4, dark="#000", light="#fff", omitsize=True)
    except ValueError as error:  # of characters that need more bits
        raise Refused(
            "This link does not fit into a QR code: some of its characters, such as emoji, take up too much space "
            "there. Shorten the link, or use only ASCII characters.",
            400,
        ) from error


async def _answered(handler: Handler, request: Request, lock: "RLock | None" = None) -> Response:
    """The handler's answer; refusals become errors with a sentence.

    It comes from a thread, but where it needs nothing but a `lock` that is free: a class asks for its state thirty
    times a second, and a change of threads would take longer than the answer, from all other requests.
    """
    try:
        if is_foreign(request):
            raise Refused("Requests from other sites are not allowed. Open the class on this server's own page.", 403)
        body = await _body(request) if request.method == "POST" else {}
        if lock is not None and lock.acquire(blocking=False):
            try:
                answer = handler(request, body)
            finally:
                lock.release()
        else:
            answer = await run_in_threadpool(handler, request, body)
    except Refused as refusal:
        headers = NEVER_STORED | ({"retry-after": str(refusal.wait)} if refusal.wait else {})
        return JSONResponse({"error": translate(refusal.args[0])}, refusal.status, headers)
    if answer is None:
        return Response(status_code=204, headers=NEVER_STORED)
    return answer if isinstance(answer, Response) else JSONResponse(answer, headers=NEVER_STORED)


def is_foreign(request: Request) -> bool:
    """Whether a page of another site sends the request, by `Origin` and the host as the client or a proxy names it."""
    if site := request.headers.get("sec-fetch-site"):  # of current browsers, over HTTPS and to localhost
        return site not in ("same-origin", "none")
    if (origin := request.headers.get("origin")) is None:
        return False
    hosts = {request.headers.get(name, "").strip().lower() for name in ("host", "x-forwarded-host")}
    return urlsplit(origin).netloc.lower() not in hosts - {""}


async def _body(request: Request) -> Body:
    """The JSON object of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("The request must be JSON.", 415)
    if len(content := await request.body()) > limits.MAX_ROOM_REQUEST:
        words = "The request exceeds the maximum allowed size of {limit:,} bytes. Send less at once."
        raise Refused(words, 413, limit=limits.MAX_ROOM_REQUEST)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused("The request must be a JSON object.", 400)
    return body


def _as_csv(room: Room, predictions: list[tuple[int, int, Value]]) -> str:
    """A row per question and student (CSV), in the current language; numbers as programs write them."""
    steps = json.loads(long_text("lesson.json"))["steps"]
    file = io.StringIO()
    writer = csv.writer(file)
    header = (gettext("student"), gettext("question"), gettext("title"), gettext("prediction"), gettext("measured"))
    writer.writerow(map(_cell, header))
    for number, student, value in predictions:
        content, truth = steps[number - 1], room.revealed.get(number)
        cells = (student, number, content["title"], _as_text(number, content, value), _as_text(number, content, truth))
        writer.writerow(map(_cell, cells))
    return "\ufeff" + file.getvalue()  # the mark by which spreadsheets recognise UTF-8


def _as_text(number: int, content: dict[str, Any], value: Value | None) -> str | float:
    """A value of a question as a cell: a number, the text of a choice, or numbers with blanks between them."""
    if isinstance(value, list):
        return " ".join(f"{entry:g}" for entry in value)
    if value is None or not questions()[number].is_choice:
        return "" if value is None else value
    models = [gettext("Dense model"), gettext("IntraSlice"), gettext("Cross-module")]
    return (content["control"].get("choices") or models)[int(value)]


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
