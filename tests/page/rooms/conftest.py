"""A class with a room in a folder of its own, as its clients see it."""

import secrets
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from components.rooms.rooms import Rooms
from components.rooms.routes import routes
from components.server.middleware import in_language

CAMPUS = "192.0.2.1"


class Class:
    """A class as its clients see it."""

    def __init__(self, folder: Path, address: str = CAMPUS) -> None:
        self.folder, self.rooms = folder, Rooms(folder)
        self.http = self.client(address)
        started = self.http.post("/rooms", json={}).json()
        self.code, self.secret = started["code"], started["lead"]

    def client(self, address: str = CAMPUS, rooms: Rooms | None = None) -> TestClient:
        """A client with a network address, of this class's server or of another one."""
        app = Starlette(routes=list(routes(rooms or self.rooms)), middleware=[Middleware(in_language)])
        return TestClient(app, client=(address, 50_000))

    def lead(self, action: str, secret: str | None = None, **body: object) -> httpx.Response:
        headers = {"x-room-lead": self.secret if secret is None else secret}
        if action in ("state", "answers.csv"):
            return self.http.get(f"/rooms/{self.code}/{action}", headers=headers, params=body)
        return self.http.post(f"/rooms/{self.code}/{action}", headers=headers, json=body)

    def ask_to_join(self, student: str, client: TestClient | None = None, code: str = "") -> httpx.Response:
        path = f"/rooms/{code or self.code}/join"
        return (client or self.http).post(path, headers={"x-room-student": student}, json={})

    def join(self, student: str | None = None, client: TestClient | None = None) -> str:
        answer = self.ask_to_join(student := student or secrets.token_hex(16), client)
        assert answer.status_code == 200, answer.text
        return student

    def answer(self, student: str, value: object, step: int = 1, id: str = "", **params: str) -> httpx.Response:
        body = {"id": id or secrets.token_hex(8), "step": step, "value": value}
        path, headers = f"/rooms/{self.code}/answer", {"x-room-student": student}
        return self.http.post(path, headers=headers, json=body, params=params)

    def state(self, student: str, **params: str) -> httpx.Response:
        return self.http.get(f"/rooms/{self.code}/state", headers={"x-room-student": student}, params=params)

    def counts(self, step: int = 1) -> list[int]:
        return self.lead("state").json()["answers"][str(step)]["counts"]


@pytest.fixture
def klass(tmp_path):
    made = Class(tmp_path / "rooms")
    yield made
    made.rooms.close()


@pytest.fixture
def start_class():
    """Starts a class in a folder."""
    return Class
