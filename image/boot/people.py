"""A person at a real Matrix client: one process of `tests/clients/nio_client.py`, which takes commands. Its README has them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from build.__main__ import REPOSITORY

from .machine import BootError
from .matrix import PASSWORD, activation

PYTHON = REPOSITORY / "tests/.venv/bin/python"
CLIENT = REPOSITORY / "tests/clients/nio_client.py"
# How long a person waits for what must come: a box under emulation hashes passwords for a while.
PATIENCE_S = 240.0


class Person:
    """matrix-nio in the hands of somebody. It trusts one CA and no other; a context manager, whose end ends the client."""

    def __init__(self, name: str, server: str, authority: Path) -> None:
        if not PYTHON.exists():
            raise BootError("matrix-nio is not installed: run `.ci/need nio`")
        self.name = name
        self._server = server
        self._authority = authority
        self._asked = 0
        self._answers: queue.Queue[dict[str, object]] = queue.Queue()
        self._diary = authority.with_name(f"{name}.log").open("wb")
        environment = {**os.environ, "SALLYPORT_CA": str(authority)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._diary}
        self._client = subprocess.Popen([PYTHON, CLIENT], env=environment, **pipes)  # type: ignore[call-overload]
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Person:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._client.stdin.close()
        self._client.kill()
        self._client.wait()
        self._diary.close()

    def activate(self, code: str) -> None:
        """Makes the account its own on the box's page, with the code on the slip, and signs in with the client."""
        form = activation(code).encode()
        trust = ssl.create_default_context(cafile=self._authority)
        try:
            with urllib.request.urlopen(f"{self._server}/activate", form, timeout=PATIENCE_S, context=trust) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            raise BootError(f"{self.name} cannot activate the account: {error.code} {error.read(1 << 16)!r}") from None
        self.call("login", server=self._server, user=self.name, password=PASSWORD)

    def create_room(self, name: str, guest: str) -> str:
        """Makes an encrypted room and invites somebody."""
        return str(self.call("create_room", name=name, encrypted=True, invite=[guest])["room"])

    def join(self, room: str) -> None:
        """Waits for the invitation, and accepts it."""
        self.wait("await_invite", room=room)
        self.call("join", room=room)

    def say(self, room: str, body: str) -> None:
        """Writes something, encrypted."""
        self.call("send", room=room, body=body)

    def hear(self, room: str, body: str, sender: str) -> None:
        """Waits until somebody's words can be read, and sees that they came encrypted."""
        heard = self.wait("await_message", room=room, body=body, sender=sender)
        if heard["encrypted"] is not True:
            raise BootError(f"{self.name}: {body!r} came in clear")

    def wait(self, command: str, **arguments: object) -> dict[str, object]:
        """Gives a command that waits for something."""
        return self.call(command, wait_ms=int(PATIENCE_S * 1000), **arguments)

    def call(self, command: str, **arguments: object) -> dict[str, object]:
        """Gives a command and waits for what it answers."""
        self._asked += 1
        line = json.dumps({"id": self._asked, "do": command, **arguments})
        self._client.stdin.write(line.encode() + b"\n")
        self._client.stdin.flush()
        try:
            answer = self._answers.get(timeout=PATIENCE_S + 60)
        except queue.Empty:
            raise BootError(f"{self.name}'s client is stuck in {command}; see {self._diary.name}") from None
        if "ok" not in answer:
            raise BootError(f"{self.name}'s client: {answer.get('error')}; see {self._diary.name}")
        came = answer["ok"]
        assert isinstance(came, dict)
        return came

    def _listen(self) -> None:
        for line in self._client.stdout:
            self._answers.put(json.loads(line))
        self._answers.put({"error": "it ended"})
