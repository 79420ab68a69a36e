"""A small Matrix client, for scenarios that ask whether what was said before is still there."""

from __future__ import annotations

import itertools
import json
import urllib.parse
from collections.abc import Mapping

from .machine import Boot, BootError

PASSWORD = "correct horse battery staple"  # noqa: S105
TIMEOUT_S = 30.0

Json = Mapping[str, object]


def activation(code: str) -> str:
    """The form with which somebody makes an account their own."""
    return urllib.parse.urlencode({"code": code, "password": PASSWORD, "repeated": PASSWORD})


class Person:
    """Somebody with an account at a box, whichever of its boots answers."""

    def __init__(self, boot: Boot, name: str) -> None:
        self.name = name
        self.boot = boot
        self._token = ""
        self._numbers = itertools.count()

    def activate(self, code: str) -> None:
        """Takes an account over with the activation code from the roster, on the page for that, and logs in."""
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        status, page = self.boot.ask("POST", "/activate", activation(code), form, timeout_s=TIMEOUT_S)
        if status != 200:
            raise BootError(f"the code does not count: {status} {page.decode()}")
        self.login()

    def login(self) -> None:
        """Logs in with the password."""
        user = {"type": "m.id.user", "user": self.name}
        wish = {"type": "m.login.password", "identifier": user, "password": PASSWORD}
        self._token = str(self._ask("POST", "/_matrix/client/v3/login", wish)["access_token"])

    def create_room(self) -> str:
        """Creates a room; returns its id."""
        return str(self._ask("POST", "/_matrix/client/v3/createRoom", {"name": "Room"})["room_id"])

    def invite(self, room: str, user: str) -> None:
        """Invites somebody into a room."""
        self._ask("POST", f"/_matrix/client/v3/rooms/{urllib.parse.quote(room)}/invite", {"user_id": user})

    def join(self, room: str) -> None:
        """Accepts an invitation."""
        self._ask("POST", f"/_matrix/client/v3/join/{urllib.parse.quote(room)}", {})

    def say(self, room: str, text: str) -> None:
        """Says something, and returns once the box acknowledged it."""
        place = f"/_matrix/client/v3/rooms/{urllib.parse.quote(room)}/send/m.room.message/{next(self._numbers)}-{text.replace(' ', '-')}"
        self._ask("PUT", place, {"msgtype": "m.text", "body": text})

    def said(self, room: str) -> list[str]:
        """What was said in a room, oldest first."""
        texts: list[str] = []
        start = ""
        while True:
            place = f"/_matrix/client/v3/rooms/{urllib.parse.quote(room)}/messages?dir=f&limit=100{start}"
            answer = self._ask("GET", place)
            chunk = answer["chunk"]
            assert isinstance(chunk, list)
            texts += [event["content"]["body"] for event in chunk if event["type"] == "m.room.message"]
            if "end" not in answer:
                return texts
            start = f"&from={urllib.parse.quote(str(answer['end']))}"

    def _ask(self, method: str, path: str, body: Json | None = None) -> dict[str, object]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        text = json.dumps(body) if body is not None else None
        status, answer = self.boot.ask(method, path, text, headers, timeout_s=TIMEOUT_S)
        if status != 200:
            raise BootError(f"{method} {path}: {status} {answer.decode()}")
        found: dict[str, object] = json.loads(answer)
        return found
