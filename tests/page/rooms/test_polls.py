"""Clients of a class ask for its state again and again."""

from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.testclient import TestClient

from components.rooms.rooms import Rooms
from components.rooms.routes import routes


def test_a_poll_takes_a_thread_only_while_classes_are_being_changed(tmp_path, monkeypatch) -> None:
    rooms, in_thread = Rooms(tmp_path / "rooms"), Mock(side_effect=run_in_threadpool)
    monkeypatch.setattr("components.rooms.routes.run_in_threadpool", in_thread)
    room, secret = rooms.create("192.0.2.1")
    http = TestClient(Starlette(routes=list(routes(rooms))), headers={"x-room-lead": secret})
    assert http.get(f"/rooms/{room.code}/state").json()["students"] == 0
    in_thread.assert_not_called()
    with ThreadPoolExecutor(1) as changing:
        changing.submit(rooms.lock.acquire).result()
        waiting = changing.submit  # the change ends once the poll waits for it in a thread
        in_thread.side_effect = lambda *call: waiting(rooms.lock.release).result() or run_in_threadpool(*call)
        assert http.get(f"/rooms/{room.code}/state").json()["students"] == 0
    in_thread.assert_called_once()
    rooms.close()
