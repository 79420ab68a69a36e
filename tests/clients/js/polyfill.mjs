// What matrix-js-sdk expects of a newer Node.js than Debian 12 has. Must be imported before the SDK.

import { webcrypto } from "node:crypto";

globalThis.crypto ??= webcrypto;

Promise.withResolvers ??= function () {
    let resolve, reject;
    const promise = new this((yes, no) => ([resolve, reject] = [yes, no]));
    return { promise, resolve, reject };
};

// Standard output carries answers to the test and nothing else.
console.log = console.info = console.debug = console.warn = console.error;
