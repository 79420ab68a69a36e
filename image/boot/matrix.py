"""A small Matrix client, for scenarios that ask whether what was said before is still there."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import ssl
import urllib.parse
from collections.abc import Mapping

from .machine import Boot, BootError

PASSWORD = "correct horse battery staple"  # noqa: S105
TIMEOUT_S = 30.0
BYTES_MAX = 1 << 20

Json = Mapping[str, object]


class Person:
    """Somebody with an account at a box, whichever of its boots answers."""

    def __init__(self, boot: Boot, name: str) -> None:
        self.name = name
        self.boot = boot
        self._token = ""
        self._numbers = itertools.count()

    def activate(self, code: str) -> None:
        """Takes an account over with the activation code from the roster, on the page for that, and logs in."""
        form = urllib.parse.urlencode({"code": code, "password": PASSWORD, "repeated": PASSWORD})
        status, page = self._request("POST", "/activate", form, {"Content-Type": "application/x-www-form-urlencoded"})
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
        status, answer = self._request(method, path, json.dumps(body) if body is not None else None, headers)
        if status != 200:
            raise BootError(f"{method} {path}: {status} {answer.decode()}")
        found: dict[str, object] = json.loads(answer)
        return found

    def _request(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", self.boot.port, timeout=TIMEOUT_S, context=context)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read(BYTES_MAX)
