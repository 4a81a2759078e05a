"""Bounds for the size of requests. `test_untrusted_clients.py` asks a hosted page."""

import gradio as gr
import pytest
from starlette.middleware import Middleware

from components.gradio_compat.http.request_size import ENVELOPE, MAX_FILES, BoundedRequests, Delimiters
from components.jobs import limits


@pytest.fixture(scope="module", params=["plain", "ours"])
def client(request, launch_once):

    def work(value: float) -> float:
        return value

    with gr.Blocks() as page:
        gr.api(work, api_name="work")
    middleware = [Middleware(BoundedRequests)] if request.param == "ours" else []
    client = launch_once(page, app_kwargs={"middleware": middleware}, max_file_size=2**16)
    client.is_plain = request.param == "plain"
    return client


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


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 100])
def test_delimiters_are_counted_in_pieces_of_any_size(size) -> None:
    body = b"--ab\r\n\r\n---ab\r\n--a--ab\r\n--b--ab--"
    delimiters, counts = Delimiters('multipart/form-data; boundary="ab"'), [0]
    for start in range(0, len(body), size):
        counts.append(delimiters.count(body[start : start + size]))
    assert counts[-1] == body.count(b"--ab") == 4
    assert counts == sorted(counts)


def test_plain_gradio_fails_at_a_part_that_is_no_file_and_ours_says_so(client) -> None:
    answer = client.http.post(f"{client.api}/upload", files={"files": (None, b"text")})
    if client.is_plain:
        assert answer.status_code == 500
    else:
        assert (answer.status_code, "is not a file" in answer.text) == (400, True)
