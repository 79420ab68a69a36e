// matrix-js-sdk with its Rust crypto as a program that a test drives; ../README.md has the commands.

import "./polyfill.mjs";
import { createInterface } from "node:readline";
import { Attachment, EncryptedAttachment } from "@matrix-org/matrix-sdk-crypto-wasm";
import * as sdk from "matrix-js-sdk";
import { decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/recovery-key.js";
import { CryptoEvent, VerificationPhase, VerifierEvent, VerificationRequestEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { logger } from "matrix-js-sdk/lib/logger.js";

logger.setLevel("error");

/** One logged-in device. */
class Session {
    client;
    secretStorageKey;
    request;
    verifying;
    codes = Promise.withResolvers();
    changes = 0;
    wakers = new Set();

    /** Tells every waiting command to look again. */
    changed = () => {
        this.changes += 1;
        const wakers = [...this.wakers];
        this.wakers.clear();
        for (const wake of wakers) wake();
    };

    /** Waits until `question()` answers something other than undefined. */
    async until(question, waitMs, what) {
        const deadline = Date.now() + waitMs;
        for (;;) {
            const before = this.changes;
            const answer = await question();
            if (answer !== undefined) return answer;
            if (this.changes !== before) continue;
            const { promise, resolve } = Promise.withResolvers();
            this.wakers.add(resolve);
            const timer = setTimeout(resolve, Math.max(deadline - Date.now(), 0), "late");
            const outcome = await promise;
            clearTimeout(timer);
            if (outcome === "late") throw new Error(`waited ${waitMs} ms for ${what}; ${this.seen()}`);
        }
    }

    seen() {
        const rooms = this.client.getRooms().map((room) => {
            const events = room.getLiveTimeline().getEvents();
            const shown = events.map((event) => event.getContent().body ?? (event.isDecryptionFailure() ? "(sealed)" : event.getType()));
            return `${room.roomId} (${room.getMyMembership()}): ${shown.join(", ")}`;
        });
        return `rooms: ${rooms.join("; ") || "none"}`;
    }

    // Becoming somebody

    async register({ server, user, password, token }) {
        const guest = sdk.createClient({ baseUrl: server });
        const body = { username: user, password, initial_device_display_name: "js-sdk" };
        for (;;) {
            try {
                return await this.start(server, await guest.registerRequest(body));
            } catch (error) {
                if (error.httpStatus !== 401 || !error.data?.flows || (body.auth && error.errcode)) throw error;
                body.auth = nextStage(error.data, token);
            }
        }
    }

    async login({ server, user, password, device }) {
        const guest = sdk.createClient({ baseUrl: server });
        const answer = await guest.loginRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user },
            password,
            device_id: device,
            initial_device_display_name: "js-sdk",
        });
        return this.start(server, answer);
    }

    async start(baseUrl, { user_id: userId, device_id: deviceId, access_token: accessToken, refresh_token: refreshToken }) {
        this.client = sdk.createClient({
            baseUrl,
            userId,
            deviceId,
            accessToken,
            refreshToken,
            timelineSupport: true,
            cryptoCallbacks: {
                getSecretStorageKey: async ({ keys }) => this.secretStorageKey && [Object.keys(keys)[0], this.secretStorageKey],
                cacheSecretStorageKey: (_id, _info, key) => (this.secretStorageKey = key),
            },
            verificationMethods: ["m.sas.v1"],
        });
        await this.client.initRustCrypto({ useIndexedDB: false });
        for (const event of [
            sdk.ClientEvent.Sync,
            sdk.RoomEvent.Timeline,
            sdk.RoomEvent.MyMembership,
            sdk.RoomStateEvent.Members,
            sdk.MatrixEventEvent.Decrypted,
            CryptoEvent.DevicesUpdated,
        ]) {
            this.client.on(event, this.changed);
        }
        this.client.on(CryptoEvent.VerificationRequestReceived, (request) => {
            this.request = request;
            this.changed();
        });
        await this.client.startClient({ initialSyncLimit: 30, lazyLoadMembers: true, pollTimeout: 10_000 });
        await this.until(() => (this.client.isInitialSyncComplete() ? true : undefined), 20_000, "the first sync");
        await this.keysUploaded();
        return { user: userId, device: deviceId };
    }

    /** The SDK uploads its keys at leisure after the first sync. Until then nobody can write to this device. */
    async keysUploaded() {
        const ask = (path, body) => this.client.http.authedRequest(sdk.Method.Post, path, undefined, body);
        const by = Date.now() + 20_000;
        for (;;) {
            const { one_time_key_counts: counts } = await ask("/keys/upload", {});
            if (counts?.signed_curve25519 > 0) return;
            if (Date.now() > by) throw new Error("waited 20000 ms for the keys to be uploaded");
            await new Promise((resolve) => setTimeout(resolve, 20));
        }
    }

    // Rooms

    async create_room({ name, encrypted, invite = [], version }) {
        const { room_id: room } = await this.client.createRoom({
            name,
            invite,
            preset: sdk.Preset.PrivateChat,
            room_version: version ?? undefined,
            initial_state: encrypted
                ? [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }]
                : [],
        });
        await this.inRoom(room);
        for (const user of invite) await this.await_member({ room, user, membership: "invite", wait_ms: 10_000 });
        return { room };
    }

    async inRoom(room) {
        await this.until(() => (this.client.getRoom(room)?.getMyMembership() === "join" ? true : undefined), 20_000, `the room ${room}`);
    }

    async invite({ room, user }) {
        await this.client.invite(room, user);
        await this.await_member({ room, user, membership: "invite", wait_ms: 10_000 });
    }

    await_invite({ room, wait_ms }) {
        const invited = () => {
            for (const here of this.client.getRooms()) {
                if (here.getMyMembership() !== "invite" || (room && room !== here.roomId)) continue;
                return { room: here.roomId, inviter: here.getDMInviter() ?? here.getMember(this.client.getUserId())?.events.member?.getSender() };
            }
        };
        return this.until(invited, wait_ms, "an invite");
    }

    async join({ room }) {
        await this.client.joinRoom(room);
        await this.inRoom(room);
    }

    await_member({ room, user, membership, wait_ms }) {
        const isSo = async () => {
            const here = this.client.getRoom(room);
            await here?.loadMembersIfNeeded();
            return (here?.getMember(user)?.membership ?? "leave") === membership ? {} : undefined;
        };
        return this.until(isSo, wait_ms, `${user} to be ${membership} in ${room}`);
    }

    await_device({ user, device, wait_ms }) {
        const known = async () => {
            const devices = [...((await this.client.getCrypto().getUserDeviceInfo([user], true)).get(user)?.keys() ?? [])];
            return (device ? devices.includes(device) : devices.length > 0) ? { devices } : undefined;
        };
        return this.until(known, wait_ms, `a device of ${user}`);
    }

    // Messages and files

    async send({ room, body }) {
        const { event_id: event } = await this.client.sendMessage(room, { msgtype: "m.text", body });
        return { event };
    }

    async read_back({ room }) {
        const here = this.client.getRoom(room);
        await this.client.scrollback(here, 100);
        this.changed();
        return { events: here.getLiveTimeline().getEvents().length };
    }

    messages(room) {
        const events = this.client.getRoom(room)?.getLiveTimeline().getEvents() ?? [];
        return events.filter((event) => event.getType() === "m.room.message" && !event.status);
    }

    await_message({ room, body, sender, wait_ms }) {
        const arrived = () => {
            const found = this.messages(room).find((e) => e.getContent().body === body && (!sender || e.getSender() === sender));
            return found && { event: found.getId(), sender: found.getSender(), encrypted: found.isEncrypted() };
        };
        return this.until(arrived, wait_ms, `"${body}" in ${room}`);
    }

    async send_file({ room, name, type, data }) {
        const content = Buffer.from(data, "base64");
        const sealed = Attachment.encrypt(content);
        const { content_uri: url } = await this.client.uploadContent(Buffer.from(sealed.encryptedData), {
            type: "application/octet-stream",
            includeFilename: false,
        });
        const { event_id: event } = await this.client.sendMessage(room, {
            msgtype: "m.file",
            body: name,
            info: { size: content.length, mimetype: type },
            file: { ...JSON.parse(sealed.mediaEncryptionInfo), url },
        });
        return { event };
    }

    async await_file({ room, name, wait_ms }) {
        const arrived = () => this.messages(room).find((e) => e.getContent().body === name && e.getContent().file)?.getContent();
        const { file, info } = await this.until(arrived, wait_ms, `the file "${name}" in ${room}`);
        const address = this.client.mxcUrlToHttp(file.url, undefined, undefined, undefined, false, true, true);
        const answer = await fetch(address, { headers: { Authorization: `Bearer ${this.client.getAccessToken()}` } });
        if (!answer.ok) throw new Error(`download: ${answer.status} ${await answer.text()}`);
        const { url, ...keys } = file;
        const sealed = new EncryptedAttachment(new Uint8Array(await answer.arrayBuffer()), JSON.stringify(keys));
        return { data: Buffer.from(Attachment.decrypt(sealed)).toString("base64"), type: info.mimetype };
    }

    // Trust

    async bootstrap({ password }) {
        const crypto = this.client.getCrypto();
        await crypto.bootstrapCrossSigning({
            authUploadDeviceSigningKeys: async (upload) => {
                try {
                    return await upload(null);
                } catch (error) {
                    if (error.httpStatus !== 401 || !error.data?.session) throw error;
                    const identifier = { type: "m.id.user", user: this.client.getUserId() };
                    return upload({ type: "m.login.password", identifier, password, session: error.data.session });
                }
            },
        });
        const { promise: backedUp, resolve } = Promise.withResolvers();
        this.client.on(CryptoEvent.KeyBackupSessionsRemaining, (left) => left === 0 && resolve());
        const key = await crypto.createRecoveryKeyFromPassphrase();
        this.secretStorageKey = key.privateKey;
        await crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => key, setupNewKeyBackup: true });
        if (!(await crypto.isCrossSigningReady())) throw new Error("cross-signing is not ready");
        if (!(await crypto.isSecretStorageReady())) throw new Error("secret storage is not ready");
        await within(backedUp, 20_000, "the backup of the room keys");
        return { recovery: key.encodedPrivateKey };
    }

    async restore({ recovery }) {
        const crypto = this.client.getCrypto();
        this.secretStorageKey = decodeRecoveryKey(recovery);
        // The private halves can only be imported beside the public ones.
        if (!(await crypto.userHasCrossSigningKeys(this.client.getUserId(), true))) throw new Error("no cross-signing keys");
        await crypto.bootstrapCrossSigning({});
        await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        await crypto.checkKeyBackupAndEnable();
        const { imported } = await crypto.restoreKeyBackup();
        return { imported };
    }

    async verify_start({ user, device }) {
        this.request = await this.client.getCrypto().requestDeviceVerification(user, device);
        await this.inPhase(VerificationPhase.Ready, 20_000);
        this.compare(await this.request.startVerification("m.sas.v1"));
    }

    async verify_accept({ wait_ms }) {
        await this.until(() => this.request, wait_ms, "a verification");
        await this.request.accept();
        await this.inPhase(VerificationPhase.Started, wait_ms);
        this.compare(this.request.verifier);
    }

    async inPhase(phase, waitMs) {
        this.request.on(VerificationRequestEvent.Change, this.changed);
        await this.until(() => (this.request.phase >= phase ? true : undefined), waitMs, `verification phase ${phase}`);
        if (this.request.phase === VerificationPhase.Cancelled) throw new Error(`cancelled: ${this.request.cancellationCode}`);
    }

    compare(verifier) {
        verifier.on(VerifierEvent.ShowSas, (sas) => this.codes.resolve(sas));
        this.verifying = verifier.verify();
        this.verifying.catch((error) => this.codes.reject(error));
        const shown = verifier.getShowSasCallbacks();
        if (shown) this.codes.resolve(shown);
    }

    async verify_code({ wait_ms }) {
        const { sas } = await within(this.codes.promise, wait_ms, "the code");
        return { decimals: sas.decimal };
    }

    async verify_confirm({ wait_ms }) {
        await (await this.codes.promise).confirm();
        await within(this.verifying, wait_ms, "the other side's confirmation");
    }

    async is_verified({ user, device }) {
        const status = await this.client.getCrypto().getDeviceVerificationStatus(user, device);
        return { verified: status?.isVerified() ?? false };
    }

    async logout() {
        await this.client.logout(true);
    }

    close() {
        this.client?.stopClient();
    }
}

const COMMANDS = new Set(
    `register login create_room invite await_invite join await_member await_device send read_back await_message send_file
    await_file bootstrap restore verify_start verify_accept verify_code verify_confirm is_verified logout`.split(/\s+/),
);

/** The next stage of the registration that we can do. */
function nextStage({ flows, completed = [], session }, token) {
    for (const { stages } of flows) {
        const stage = stages.find((one) => !completed.includes(one));
        if (stage === "m.login.registration_token" && token) return { type: stage, token, session };
        if (stage === "m.login.dummy") return { type: stage, session };
    }
    throw new Error(`register: no way through ${JSON.stringify(flows)}`);
}

/** What `promise` gives, or an error after `waitMs`. */
async function within(promise, waitMs, what) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`waited ${waitMs} ms for ${what}`)), waitMs);
    });
    try {
        return await Promise.race([promise, late]);
    } finally {
        clearTimeout(timer);
    }
}

const session = new Session();
const say = (reply) => process.stdout.write(`${JSON.stringify(reply)}\n`);

createInterface({ input: process.stdin, crlfDelay: Infinity })
    .on("line", async (line) => {
        const { id, do: name, ...rest } = JSON.parse(line);
        try {
            if (!COMMANDS.has(name)) throw new Error(`matrix-js-sdk has no command "${name}"`);
            say({ id, ok: (await session[name](rest)) ?? {} });
        } catch (error) {
            console.error(error);
            say({ id, error: `${name}: ${error.message ?? error}` });
        }
    })
    .on("close", () => {
        session.close();
        process.exit(0);
    });
