"""The folder of uploads, and the disk space of files."""

import gradio as gr

from components.gradio_compat.upload_folder import BYTES_PER_INODE, allocated_bytes, is_uploaded, upload_folder


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


def test_disk_space_is_allocated_blocks_and_at_least_an_inode_for_each_file(tmp_path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert allocated_bytes(folder) == BYTES_PER_INODE
    for name in range(20):
        (folder / str(name)).write_bytes(b"x")
    assert allocated_bytes(folder) == 21 * BYTES_PER_INODE
    (folder / "large").write_bytes(bytes(2**20))
    assert allocated_bytes(folder) >= 21 * BYTES_PER_INODE + 2**20
    (folder / "sparse").open("wb").truncate(2**30)
    assert allocated_bytes(folder) < 2**22
    assert allocated_bytes(tmp_path / "gone") == 0
