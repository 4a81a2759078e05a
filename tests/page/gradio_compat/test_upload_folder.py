"""The folder of uploads, and how they are deleted."""

import threading
from pathlib import Path

import gradio as gr
import pytest

from components.gradio_compat.upload_folder import delete_uploads, is_uploaded, upload_folder


def upload(client) -> Path:
    (path,) = client.http.post(f"{client.api}/upload", files={"files": ("a.txt", b"text")}).json()
    return Path(path)


@pytest.mark.slow
def test_plain_gradio_leaves_uploads_behind_when_it_closes_during_a_call(launch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work() -> float:
        begun.set()
        may_end.wait(60)
        return 1.0

    with gr.Blocks(delete_cache=(1000, 1000)) as page:
        gr.api(work, api_name="work")
    client = launch(page)
    path = upload(client)
    calling = threading.Thread(target=lambda: client.ask("work"), daemon=True)
    calling.start()
    assert begun.wait(30)
    closing = threading.Thread(target=lambda: page.close(verbose=False))
    closing.start()
    closing.join(1.0)
    try:
        assert closing.is_alive()
        assert path.exists()
        delete_uploads(page)
        assert not path.exists()
    finally:
        may_end.set()
        closing.join()


def test_plain_gradio_copies_what_lies_elsewhere_before_it_serves_it(launch, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with gr.Blocks() as page:
        name, file = gr.Textbox(), gr.File()
        gr.on([name.change], lambda path: path, name, file, api_name="serve")
    client = launch(page)
    inside = upload_folder() / "downloads-1" / "b.txt"
    inside.parent.mkdir(parents=True)
    for path in (tmp_path / "a.txt", inside):
        path.write_text("text")
        kind, (served,) = client.ask("serve", str(path))
        assert kind == "complete"
        assert (served["path"] == str(path)) == (path == inside)


def test_a_path_is_uploaded_if_it_lies_in_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    assert is_uploaded(str(tmp_path / "uploads" / "1" / "a.txt"))
    assert not is_uploaded(str(tmp_path / "uploads" / ".." / "a.txt"))
    assert not is_uploaded("/etc/hostname")
