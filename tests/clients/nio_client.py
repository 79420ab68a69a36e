"""matrix-nio as a program that a test drives; README.md beside this file has the commands."""

import asyncio
import base64
import io
import json
import os
import ssl
import sys
import tempfile
import traceback

import aiohttp
import nio
from nio.crypto import decrypt_attachment

SYNC_TIMEOUT_MS = 10_000
# Until what the client itself did comes back with a sync.
ECHO_MS = 60_000
PLAIN_TEXT = (nio.RoomMessageText, nio.RoomMessageNotice)
FILES = (nio.RoomEncryptedFile, nio.RoomEncryptedImage, nio.RoomMessageFile, nio.RoomMessageImage)


class Refused(Exception):
    """The server or the client said no; the message goes back to the test."""


def tls():
    authority = os.environ.get("SALLYPORT_CA")
    return ssl.create_default_context(cafile=authority) if authority else None


def accepted(response):
    """The response, or the error in it as an exception."""
    if isinstance(response, nio.ErrorResponse):
        raise Refused(f"{type(response).__name__}: {response.status_code} {response.message}")
    return response


class Session:
    """One logged-in device."""

    def __init__(self, store):
        self.store = store
        self.client = None
        self.messages = []
        self.files = []
        self.sealed = []  # encrypted events whose key has not come yet
        self.verification = None
        self.failure = None
        self.changed = asyncio.Condition()
        self.loop = None

    async def until(self, question, wait_ms, what):
        """Waits until `question()` answers something other than None."""
        async with self.changed:
            answer = question()
            deadline = asyncio.get_running_loop().time() + wait_ms / 1000
            while answer is None:
                if self.failure:
                    raise Refused(self.failure)
                left = deadline - asyncio.get_running_loop().time()
                try:
                    await asyncio.wait_for(self.changed.wait(), max(left, 0))
                except asyncio.TimeoutError:
                    raise Refused(f"waited {wait_ms} ms for {what}; {self.seen()}") from None
                answer = question()
            return answer

    def seen(self):
        rooms = {room: [m["body"] for m in self.messages if m["room"] == room] for room in self.client.rooms}
        return f"rooms and messages {rooms}, invites {list(self.client.invited_rooms)}, {len(self.sealed)} sealed"

    # Becoming somebody

    async def register(self, server, user, password, token=None):
        async with aiohttp.ClientSession() as http:
            url = f"{server}/_matrix/client/v3/register"
            body = {"username": user, "password": password, "initial_device_display_name": "nio"}
            while True:
                async with http.post(url, json=body, ssl=tls() or True) as response:
                    answer = await response.json()
                if response.status == 200:
                    break
                if response.status != 401 or "flows" not in answer:
                    raise Refused(f"register: {response.status} {answer}")
                body["auth"] = self.next_stage(answer, token, body.get("auth"))
        self.open(server, user)
        self.client.restore_login(answer["user_id"], answer["device_id"], answer["access_token"])
        return await self.start()

    @staticmethod
    def next_stage(answer, token, before):
        """The next stage of the registration that we can do."""
        done = answer.get("completed", [])
        if before and answer.get("errcode"):
            raise Refused(f"register: {answer}")
        for flow in answer["flows"]:
            left = [stage for stage in flow["stages"] if stage not in done]
            if token and left[:1] == ["m.login.registration_token"]:
                return {"type": left[0], "token": token, "session": answer["session"]}
            if left[:1] == ["m.login.dummy"]:
                return {"type": left[0], "session": answer["session"]}
        raise Refused(f"register: no way through {answer['flows']}")

    async def login(self, server, user, password, device=None):
        self.open(server, user, device)
        accepted(await self.client.login(password, device_name="nio"))
        return await self.start()

    def open(self, server, user, device=None):
        config = nio.AsyncClientConfig(encryption_enabled=True, max_timeouts=3, max_limit_exceeded=5)
        self.client = nio.AsyncClient(
            server, user, device_id=device or "", store_path=self.store, config=config, ssl=tls()
        )
        self.client.add_event_callback(self.on_event, (nio.RoomMessage, nio.MegolmEvent))
        self.client.add_to_device_callback(self.on_verification, (nio.KeyVerificationEvent,))

    async def start(self):
        accepted(await self.client.sync(timeout=0, full_state=True))
        await self.housekeeping()
        self.loop = asyncio.create_task(self.keep_syncing())
        return {"user": self.client.user_id, "device": self.client.device_id}

    async def keep_syncing(self):
        """What `sync_forever` does, one step after the other, so that nothing waits for the next long poll."""
        try:
            while True:
                accepted(await self.client.sync(timeout=SYNC_TIMEOUT_MS))
                await self.housekeeping()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the test learns of it at its next wait
            traceback.print_exc()
            self.failure = f"sync stopped: {error!r}"
            await self.notify()

    async def housekeeping(self):
        client = self.client
        if client.should_upload_keys:
            accepted(await client.keys_upload())
        if client.should_query_keys:
            accepted(await client.keys_query())
        if client.should_claim_keys:
            accepted(await client.keys_claim(client.get_users_for_key_claiming()))
        for response in await client.send_to_device_messages():
            accepted(response)
        self.unseal()
        await self.notify()

    async def notify(self):
        async with self.changed:
            self.changed.notify_all()

    # What arrives

    async def on_event(self, room, event):
        self.note(room.room_id, event)

    def note(self, room, event):
        if any(known["event"] == event.event_id for known in self.messages + self.files):
            return
        common = {"room": room, "event": event.event_id, "sender": event.sender, "encrypted": event.decrypted}
        if isinstance(event, nio.MegolmEvent):
            if all(event.event_id != waiting.event_id for _, waiting in self.sealed):
                self.sealed.append((room, event))
        elif isinstance(event, PLAIN_TEXT):
            self.messages.append(common | {"body": event.body})
        elif isinstance(event, FILES):
            self.files.append(common | {"name": event.body, "content": event.source["content"]})

    def unseal(self):
        """Tries again what could not be read when it came: a key may arrive after its message."""
        waiting, self.sealed = self.sealed, []
        for room, event in waiting:
            try:
                self.note(room, self.client.decrypt_event(event))
            except nio.EncryptionError:
                self.sealed.append((room, event))

    async def on_verification(self, event):
        if isinstance(event, nio.KeyVerificationStart):
            self.verification = event.transaction_id
        elif isinstance(event, nio.KeyVerificationCancel):
            self.failure = f"the other side cancelled: {event.reason}"

    # Rooms

    async def create_room(self, name, encrypted, invite=(), version=None):
        state = []
        if encrypted:
            state.append(nio.EnableEncryptionBuilder().as_dict())
        response = await self.client.room_create(
            name=name, initial_state=state, invite=list(invite), preset=nio.RoomPreset.private_chat, room_version=version
        )
        room = accepted(response).room_id
        await self.until(lambda: self.client.rooms.get(room), ECHO_MS, f"the room {room}")
        for user in invite:
            await self.await_member(room, user, "invite", ECHO_MS)
        return {"room": room}

    async def invite(self, room, user):
        """Invites, and waits until the client knows: nio encrypts to the members that it has seen."""
        accepted(await self.client.room_invite(room, user))
        await self.await_member(room, user, "invite", ECHO_MS)

    async def await_invite(self, wait_ms, room=None):
        def invited():
            for here, invite in self.client.invited_rooms.items():
                if room in (None, here) and invite.inviter:
                    return {"room": here, "inviter": invite.inviter}
            return None

        return await self.until(invited, wait_ms, "an invite")

    async def join(self, room):
        accepted(await self.client.join(room))
        await self.until(lambda: self.client.rooms.get(room), ECHO_MS, f"the room {room}")

    async def await_member(self, room, user, membership, wait_ms):
        def is_so():
            here = self.client.rooms.get(room)
            member = here and here.users.get(user)
            found = "leave" if not member else "invite" if member.invited else "join"
            return {} if found == membership else None

        return await self.until(is_so, wait_ms, f"{user} to be {membership} in {room}")

    async def await_device(self, user, wait_ms, device=None):
        def known():
            devices = [one.id for one in self.client.device_store.active_user_devices(user)]
            return {"devices": devices} if (device in devices if device else devices) else None

        return await self.until(known, wait_ms, f"a device of {user}")

    # Messages and files

    async def send(self, room, body):
        content = {"msgtype": "m.text", "body": body}
        return await self.send_content(room, content)

    async def send_content(self, room, content):
        response = await self.client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
        return {"event": accepted(response).event_id}

    async def read_back(self, room):
        # Before what the sync brought; if it brought nothing of the room, before now.
        start = getattr(self.client.rooms[room], "prev_batch", None) or self.client.next_batch
        response = accepted(await self.client.room_messages(room, start, limit=100))
        for event in reversed(response.chunk):
            self.note(room, event)
        self.unseal()
        await self.notify()
        return {"events": len(response.chunk)}

    async def await_message(self, room, body, wait_ms, sender=None):
        def arrived():
            for message in self.messages:
                if message["room"] == room and message["body"] == body and sender in (None, message["sender"]):
                    return {key: message[key] for key in ("event", "sender", "encrypted")}
            return None

        return await self.until(arrived, wait_ms, f"{body!r} in {room}")

    async def send_file(self, room, name, type, data):  # noqa: A002, the command's word
        content = base64.b64decode(data)
        response, keys = await self.client.upload(
            io.BytesIO(content), content_type=type, filename=name, encrypt=True, filesize=len(content)
        )
        return await self.send_content(
            room,
            {
                "msgtype": "m.file",
                "body": name,
                "info": {"size": len(content), "mimetype": type},
                "file": keys | {"url": accepted(response).content_uri},
            },
        )

    async def await_file(self, room, name, wait_ms):
        def arrived():
            return next((f for f in self.files if f["room"] == room and f["name"] == name), None)

        found = await self.until(arrived, wait_ms, f"the file {name!r} in {room}")
        file = found["content"]["file"]
        sealed = accepted(await self.client.download(file["url"])).body
        data = decrypt_attachment(sealed, file["key"]["k"], file["hashes"]["sha256"], file["iv"])
        return {"data": base64.b64encode(data).decode(), "type": found["content"]["info"]["mimetype"]}

    # Comparing codes

    async def verify_start(self, user, device):
        here = self.client.device_store[user][device]
        accepted(await self.client.start_key_verification(here))
        self.verification = next(iter(self.client.key_verifications))

    async def verify_accept(self, wait_ms):
        transaction = await self.until(lambda: self.verification, wait_ms, "a verification")
        accepted(await self.client.accept_key_verification(transaction))

    async def verify_code(self, wait_ms):
        sas = self.client.key_verifications[self.verification]

        def agreed():
            return sas if sas.established_sas else None

        await self.until(agreed, wait_ms, "the other side's key")
        return {"decimals": list(sas.get_decimals())}

    async def verify_confirm(self, wait_ms):
        sas = self.client.key_verifications[self.verification]
        accepted(await self.client.confirm_short_auth_string(self.verification))
        await self.until(lambda: sas.verified or None, wait_ms, "the other side's confirmation")

    async def is_verified(self, user, device):
        return {"verified": self.client.device_store[user][device].verified}

    async def pause(self):
        """The device is closed: nothing is fetched, and what was read is forgotten. Its keys stay."""
        await self.stop()
        self.messages.clear()
        self.files.clear()

    async def resume(self):
        """The device is opened again."""
        self.failure = None
        for room in self.client.rooms.values():
            room.prev_batch = None
        return await self.start()

    async def logout(self):
        await self.stop()
        accepted(await self.client.logout())

    async def stop(self):
        if self.loop:
            self.loop.cancel()
            await asyncio.gather(self.loop, return_exceptions=True)
            self.loop = None

    async def close(self):
        await self.stop()
        if self.client:
            await self.client.close()


COMMANDS = {
    name
    for name in """register login create_room invite await_invite join await_member await_device send read_back await_message
    send_file await_file verify_start verify_accept verify_code verify_confirm is_verified pause resume logout""".split()
}


async def answer(session, line):
    command = json.loads(line)
    number, name = command.pop("id"), command.pop("do")
    try:
        if name not in COMMANDS:
            raise Refused(f"matrix-nio has no command {name!r}")
        reply = {"id": number, "ok": await getattr(session, name)(**command) or {}}
    except Exception as error:  # every failure is the test's to judge
        traceback.print_exc()
        reply = {"id": number, "error": f"{name}: {error}" if isinstance(error, Refused) else f"{name}: {error!r}"}
    print(json.dumps(reply), flush=True)


async def main():
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    with tempfile.TemporaryDirectory(prefix="nio-") as store:
        session = Session(store)
        running = set()
        while line := await reader.readline():
            task = asyncio.create_task(answer(session, line))
            running.add(task)
            task.add_done_callback(running.discard)
        await session.close()


asyncio.run(main())
