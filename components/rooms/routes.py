"""The routes of the rooms: JSON in, JSON out, and refusals as `{"error": sentence}` in the client's language.

Secrets are in headers, since addresses are logged: `X-Room-Lead` of whoever leads a room, `X-Room-Student` of a
student. Clients ask for the state again and again, with the version that they have; where nothing has changed the
answer is 204, from memory and without a thread. What reads or writes the store runs in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import segno
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import limits
from ..gradio_compat.http.addresses import site_of
from ..i18n.language import lazy_gettext, translate
from . import table
from .rooms import Refused, Rooms, is_lead, is_student, normalised
from .store import StoreError

HOME = "rooms"  # below the page's address
LEAD, STUDENT = "x-room-lead", "x-room-student"
NEVER_STORED = {"cache-control": "no-store"}

Handler = Callable[[Request, dict[str, Any]], dict[str, Any] | Response]


def routes(rooms: Rooms) -> Sequence[Route]:
    """All routes of the rooms."""

    def create(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        room, secret = rooms.create(site_of(request))
        return {"code": room.code, "lead": secret, "expires": room.expires}

    def join(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        room = rooms.join(_code(request), _header(request, STUDENT), site_of(request))
        return {"code": room.code, "step": room.step, "expires": room.expires}

    def answer(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        rooms.answer(_code(request), _header(request, STUDENT), body)
        return {"counted": body["id"]}

    def go_to(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return rooms.go_to(_code(request), _header(request, LEAD), body.get("step")).seen_by_lead()

    def reveal(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        secret, step, truth = _header(request, LEAD), body.get("step"), body.get("truth")
        return rooms.reveal(_code(request), secret, step, truth).seen_by_lead()

    def remove(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return rooms.remove_without_answers(_code(request), _header(request, LEAD)).seen_by_lead()

    def delete(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        rooms.delete(_code(request), _header(request, LEAD))
        return {"deleted": True}

    def qr_code(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        rooms.led_room(_code(request), _header(request, LEAD))
        link = body.get("link")
        if not isinstance(link, str) or len(link) > limits.QR_LINK or not link.startswith(("https://", "http://")):
            raise Refused(
                400,
                lazy_gettext(
                    "A QR code can hold a link (http or https) of at most {limit:,} characters.", limit=limits.QR_LINK
                ),
            )
        try:
            image = segno.make_qr(link, error="m").svg_inline(border=4, dark="#000", light="#fff", omitsize=True)
        except ValueError as error:  # of characters that need more bits
            raise Refused(
                400,
                lazy_gettext(
                    "This link does not fit into a QR code: some of its characters, such as emoji, take up too much "
                    "space there. Shorten the link, or use only ASCII characters."
                ),
            ) from error
        return {"svg": image}

    def student_state(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        room, student = rooms.student_room(_code(request), _header(request, STUDENT))
        return room.seen_by_student(student)

    def lead_state(request: Request, body: dict[str, Any]) -> dict[str, Any]:
        return rooms.led_room(_code(request), _header(request, LEAD)).seen_by_lead()

    def answers(request: Request, body: dict[str, Any]) -> Response:
        text = table.as_csv(rooms.led_room(_code(request), _header(request, LEAD)))
        headers = {"content-disposition": 'attachment; filename="class.csv"', **NEVER_STORED}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    async def state(request: Request) -> Response:
        """The state for a student, or for whoever leads the room; 204 where it has the version `since`."""
        secret, since = _header(request, LEAD), request.query_params.get("since")
        room = rooms.find(normalised(_code(request)), in_memory=True) if since else None
        if room is not None and since == room.version(bool(secret)):
            takes_part = is_lead(room, secret) if secret else is_student(room, _header(request, STUDENT))
            if takes_part:
                return Response(status_code=204, headers=NEVER_STORED)
        return await _answered(lead_state if secret else student_state, request)

    room = f"/{HOME}/{{code}}"
    posts = {f"/{HOME}": create, f"{room}/join": join, f"{room}/answer": answer, f"{room}/step": go_to}
    posts |= {f"{room}/reveal": reveal, f"{room}/remove": remove, f"{room}/delete": delete, f"{room}/qr": qr_code}
    return [
        *(Route(path, partial(_answered, handler), methods=["POST"]) for path, handler in posts.items()),
        Route(f"{room}/state", state),
        Route(f"{room}/answers.csv", partial(_answered, answers)),
    ]


def _code(request: Request) -> str:
    return str(request.path_params["code"])


def _header(request: Request, name: str) -> str:
    return request.headers.get(name, "")[:100]


async def _answered(handler: Handler, request: Request) -> Response:
    """The handler's answer, from a thread; refusals become errors with a sentence."""
    try:
        if is_foreign(request):
            raise Refused(
                403,
                lazy_gettext("Requests from other sites are not allowed. Open the class on this server's own page."),
            )
        body = await _body(request) if request.method == "POST" else {}
        answer = await run_in_threadpool(handler, request, body)
    except Refused as refusal:
        headers = NEVER_STORED | ({"retry-after": str(refusal.wait)} if refusal.wait else {})
        return JSONResponse({"error": translate(refusal.args[0])}, refusal.status, headers)
    except StoreError as error:
        return JSONResponse({"error": translate(error.args[0])}, 503, NEVER_STORED | {"retry-after": "10"})
    return answer if isinstance(answer, Response) else JSONResponse(answer, headers=NEVER_STORED)


def is_foreign(request: Request) -> bool:
    """Whether a page of another site sends the request.

    A current browser says so in `Sec-Fetch-Site`, over HTTPS and to localhost; otherwise `Origin` is compared with the
    host of the request, as the client or the first proxy has named it.
    """
    if site := request.headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    if (origin := request.headers.get("origin")) is None:
        return False
    hosts = {request.headers.get(name, "").strip().lower() for name in ("host", "x-forwarded-host")}
    return urlsplit(origin).netloc.lower() not in hosts - {""}


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, lazy_gettext("The request must be JSON."))
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limits.MAX_ROOM_REQUEST:
            raise Refused(
                413,
                lazy_gettext(
                    "The request exceeds the maximum allowed size of {limit:,} bytes. Send less at once.",
                    limit=limits.MAX_ROOM_REQUEST,
                ),
            )
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Refused(400, lazy_gettext("The request must be a JSON object."))
    return body
