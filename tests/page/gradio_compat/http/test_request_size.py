"""Bounds for the size of requests; `tests.load.attacks` asks a hosted page."""

from collections.abc import Iterator
from uuid import uuid4

import gradio as gr
import pytest
from gradio import route_utils
from starlette.middleware import Middleware

from components.gradio_compat.http.request_size import ENVELOPE, MAX_FILES, BoundedRequests, UploadParser
from components.gradio_compat.upload_folder import upload_folder
from components.jobs import limits


@pytest.fixture(scope="module", params=["plain", "ours"])
def client(request, launch_once):

    def work(value: float) -> float:
        return value

    with gr.Blocks() as page:
        gr.api(work, api_name="work")
    is_plain = request.param == "plain"
    middleware = [] if is_plain else [Middleware(BoundedRequests)]
    client = launch_once(page, app_kwargs={"middleware": middleware}, max_file_size=2**16)
    client.is_plain = is_plain
    with pytest.MonkeyPatch.context() as patch:
        if is_plain:
            patch.setattr(route_utils, "GradioMultiPartParser", UploadParser.__base__)
        yield client


def test_plain_gradio_reads_a_call_of_any_size_and_ours_refuses(client) -> None:
    content = b'{"data": [1.0], "unread": "' + b" " * limits.REQUEST.value + b'"}'
    answer = client.http.post(f"{client.api}/call/work", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == (200 if client.is_plain else 413)


def test_plain_gradio_bounds_each_file_of_an_upload_and_ours_their_sum(client, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_UPLOAD", str(2**16))
    half = bytes(2**15)
    for count, status in ((1, 200), (2 + ENVELOPE // len(half), 200 if client.is_plain else 413)):
        files = [("files", (f"{index}.txt", half)) for index in range(count)]
        assert client.http.post(f"{client.api}/upload", files=files).status_code == status
    one = [("files", ("large.txt", bytes(2**16 + 1)))]
    assert client.http.post(f"{client.api}/upload", files=one).status_code == 413


def test_plain_gradio_takes_any_number_of_files_and_ours_a_few(client) -> None:
    files = [("files", (f"{index}.txt", b"x")) for index in range(MAX_FILES + 1)]
    assert client.http.post(f"{client.api}/upload", files=files[1:]).status_code == 200
    answer = client.http.post(f"{client.api}/upload", files=files)
    assert answer.status_code == (200 if client.is_plain else 400)
    assert client.is_plain or answer.text == f"An upload may have at most {MAX_FILES} files. Upload fewer."


def part(boundary: str, name: str = "files", file: str = "; filename=a.txt") -> bytes:
    """A part that no upload has had: gradio stores equal files once."""
    return f"--{boundary}\r\nContent-Disposition: form-data; name={name}{file}\r\n\r\n{uuid4()}\r\n".encode()


def post(client, kind: str, body: bytes, query: str = "") -> tuple[int, int]:
    """The status of an upload whose body comes in chunks, without a length, and the inodes that it leaves behind."""

    def chunks() -> Iterator[bytes]:
        yield from (body[start : start + 1000] for start in range(0, len(body), 1000))

    folder = upload_folder()
    before = set(folder.rglob("*"))
    answer = client.http.post(f"{client.api}/upload{query}", content=chunks(), headers={"content-type": kind})
    return answer.status_code, len(set(folder.rglob("*")) - before)


BOUNDARIES = {  # by what gradio reads as the boundary
    "Multipart/form-data; boundary=capital": "capital",
    "multipart/FORM-DATA; Boundary=capitals": "capitals",
    "multipart/form-data; boundary=first; boundary=second": "second",
    'multipart/form-data; charset=x; boundary="in quotes"': "in quotes",
    "multipart/form-data; boundary=": "",
}


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_plain_gradio_takes_many_tiny_parts_and_ours_none_however_they_are_delimited(client, kind) -> None:
    boundary = BOUNDARIES[kind]
    status, inodes = post(client, kind, b"".join(part(boundary) for _ in range(100)) + f"--{boundary}--\r\n".encode())
    assert (status, inodes > MAX_FILES) == ((200, True) if client.is_plain else (400, False))
    assert post(client, kind, part(boundary) + f"--{boundary}--\r\n".encode())[0] == 200


def test_an_upload_whose_headers_do_not_fit_its_body_is_refused(client) -> None:
    for kind in (
        "multipart/form-data; boundary=other",  # than that of the body
        "multipart/form-data; boundary=a; boundary=other",
        "multipart/form-data",
        "text/plain; boundary=a",
        "multipart/mixed; boundary=a",
        *(() if client.is_plain else (f"multipart/form-data; boundary={'a' * 300}", "")),  # where gradio answers 500
    ):
        assert post(client, kind, part("a") + b"--a--\r\n") == (400, 0), kind


@pytest.mark.parametrize("query", ["", "?upload_id=mine"])
def test_plain_gradio_fails_at_a_part_that_is_no_file_and_ours_refuses_it(client, query) -> None:
    for name, file in (("files", ""), ("files", "; size=1"), ("text", "; filename=a.txt")):
        status, inodes = post(
            client, "multipart/form-data; boundary=a", part("a") + part("a", name, file) + b"--a--\r\n", query
        )
        if client.is_plain:
            assert inodes, (name, file)
        else:
            assert (status, inodes) == (400, 0), (name, file)


def test_what_is_no_upload_is_a_call_whatever_its_headers_say(client, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_REQUEST", "1000")
    answer = client.http.post(f"{client.api}/call/work", files=[("files", ("a.txt", bytes(2000)))])
    assert answer.status_code == (422 if client.is_plain else 413)
