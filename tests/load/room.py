"""What the clients of a class send: its presenter and its students."""

import time

import httpx

STUDENT_POLL = 1.5  # seconds, as in `assets/rooms/room.js`


class Class:
    """A class of a server, and its presenter."""

    def __init__(self, address: str) -> None:
        self.address = address
        made = httpx.post(f"{address}/rooms", json={}).json()
        self.code, self.secret = made["code"], made["lead"]

    def post(self, action: str, body: dict[str, object], **headers: str) -> httpx.Response:
        return httpx.post(f"{self.address}/rooms/{self.code}/{action}", json=body, headers=headers, timeout=20)

    def lead(self, action: str, **body: object) -> None:
        self.post(action, body, **{"x-room-lead": self.secret}).raise_for_status()


def insist(room: Class, action: str, body: dict[str, object], student: str) -> None:
    """Send until the server has acknowledged it. Raises httpx.HTTPStatusError where it is refused."""
    while True:
        try:
            answer = room.post(action, body, **{"x-room-student": student})
        except httpx.TransportError:
            time.sleep(0.5)
            continue
        answer.raise_for_status()
        return
