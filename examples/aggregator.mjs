// An aggregation server's heart in one file, for Node 20 or later, with no packages.
//
//     node aggregator.mjs https://sma.example.org root.crt < bundles.jsonl
//
// reads a bundle a line, and writes a line for each: image hash, verdict, device or reason. The access
// key is in the environment, AUTHORITY_KEY. A bundle that has no verdict yet is KEPT: ask again later.
//
// Node reads no revocation lists. The tokens of revoked devices FAIL, but a bundle that is KEPT may be
// of one: whoever accepts bundles without a verdict has to check the list by other means.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { X509Certificate, verify } from "node:crypto";

const PREFIX = Buffer.from("birthmark-bundle-v1\0", "ascii");
const GRACE_MS = 30 * 24 * 3600 * 1000; // how long a camera may have been without a network
const SKEW_MS = 5 * 60 * 1000;
const CLIENT_AUTHENTICATION = "1.3.6.1.5.5.7.3.2";
const URN = "urn:birthmark:device:";
const ATTEMPTS = 4;
const TIMEOUT_MS = 5_000;
const LONGEST_WAIT_MS = 5_000;

class Rejected extends Error {}

function demand(holds, sentence) {
  if (!holds) throw new Rejected(sentence);
}

// --- 1. Is it whole, and signed by a device that the pinned root vouches for?

function hasExactly(value, names) {
  return (
    value !== null &&
    typeof value === "object" &&
    !Array.isArray(value) &&
    Object.keys(value).sort().join() === [...names].sort().join()
  );
}

const isHex = (value, bytes) =>
  typeof value === "string" && value.length === 2 * bytes && /^[0-9a-f]*$/.test(value);
const isIndex = (value) => Number.isSafeInteger(value) && value >= 0 && value < 2 ** 31;

function parseBundle(line) {
  demand(Buffer.byteLength(line) <= 32_768, "It is too large.");
  let bundle;
  try {
    bundle = JSON.parse(line);
  } catch {
    throw new Rejected("It is not JSON.");
  }
  const names = ["version", "image_hash", "camera_token", "device_certificate_chain", "captured_at"];
  demand(hasExactly(bundle, [...names, "signature"]), "It has not the fields of a bundle.");
  demand(bundle.version === 1, "It is of another version.");
  demand(isHex(bundle.image_hash, 32), "image_hash is 64 hex digits.");
  const token = bundle.camera_token;
  demand(
    hasExactly(token, ["encrypted_nuc_hash", "table_id", "key_index", "nonce"]) &&
      isHex(token.encrypted_nuc_hash, 48) &&
      isHex(token.nonce, 12) &&
      isIndex(token.table_id) &&
      isIndex(token.key_index),
    "The camera token is malformed.",
  );
  const chain = bundle.device_certificate_chain;
  demand(
    Array.isArray(chain) && chain.length === 2 && chain.every((each) => typeof each === "string"),
    "The chain is the device's certificate and the intermediate's.",
  );
  demand(
    typeof bundle.captured_at === "string" &&
      /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/.test(bundle.captured_at) &&
      !Number.isNaN(Date.parse(bundle.captured_at)),
    "captured_at is no time.",
  );
  const signature = Buffer.from(String(bundle.signature), "base64");
  demand(
    signature.length > 0 && signature.toString("base64") === bundle.signature,
    "signature is base64.",
  );
  return { ...bundle, signature };
}

// RFC 8785 for what a bundle holds: ASCII names and texts, and small integers.
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value)
    .sort()
    .map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${members.join(",")}}`;
}

function certificate(pem) {
  try {
    return new X509Certificate(pem);
  } catch {
    throw new Rejected("A certificate cannot be read.");
  }
}

const isValid = (each, at) => Date.parse(each.validFrom) <= at && at <= Date.parse(each.validTo);

function verifyBundle(line, root, now) {
  const { signature, ...content } = parseBundle(line);
  const [leaf, intermediate] = content.device_certificate_chain.map(certificate);
  for (const [lower, upper] of [
    [leaf, intermediate],
    [intermediate, root],
  ]) {
    demand(upper.ca && lower.checkIssued(upper), "The chain does not lead to the pinned root.");
    demand(lower.verify(upper.publicKey), "A signature in the chain is wrong.");
  }
  demand(!leaf.ca, "A CA is no device.");
  demand((leaf.keyUsage ?? []).includes(CLIENT_AUTHENTICATION), "It is no device's certificate.");
  const captured = Date.parse(content.captured_at);
  demand(captured <= now + SKEW_MS, "It was captured in the future.");
  for (const each of [leaf, intermediate, root]) {
    demand(isValid(each, captured), "A certificate was not valid when the picture was captured.");
    demand(
      isValid(each, now) || isValid(each, now - GRACE_MS),
      "A certificate has been expired for too long.",
    );
  }
  const signed = Buffer.concat([PREFIX, Buffer.from(canonical(content), "ascii")]);
  demand(verify(digestFor(leaf.publicKey), signed, leaf.publicKey, signature), "Wrong signature.");
  return { ...content, deviceSerial: serialOf(leaf) };
}

// The kind of key decides how it signs: docs/aggregator.md.
function digestFor(key) {
  const kind = key.asymmetricKeyType;
  if (kind === "ed25519") return null;
  if (kind === "rsa") return "sha256";
  const curve = key.asymmetricKeyDetails?.namedCurve;
  demand(kind === "ec" && ["prime256v1", "secp384r1"].includes(curve), "No key of a device's.");
  return curve === "prime256v1" ? "sha256" : "sha384";
}

function serialOf(leaf) {
  const urns = (leaf.subjectAltName ?? "")
    .split(", ")
    .filter((each) => each.startsWith(`URI:${URN}`));
  demand(urns.length === 1, "The certificate names no device.");
  return decodeURIComponent(urns[0].slice(`URI:${URN}`.length));
}

// --- 2. Is its camera token genuine? PASS, FAIL, or null: there is no verdict, and it is no FAIL.

async function ask(url, token) {
  for (let attempt = 1; attempt <= ATTEMPTS; attempt += 1) {
    let wait = 200 * 2 ** attempt * Math.random();
    try {
      const answer = await fetch(`${url}/api/v1/validate/nuc/batch`, {
        method: "POST",
        redirect: "error",
        signal: AbortSignal.timeout(TIMEOUT_MS),
        headers: {
          "Content-Type": "application/json",
          ...(process.env.AUTHORITY_KEY && {
            Authorization: `Bearer ${process.env.AUTHORITY_KEY}`,
          }),
        },
        body: JSON.stringify({ tokens: [token] }),
      });
      const isJson = answer.headers.get("content-type")?.startsWith("application/json");
      if (answer.status === 200 && isJson) {
        const results = (await answer.json())?.results;
        const result = Array.isArray(results) && results.length === 1 ? results[0] : {};
        if (result.validation_result === "PASS" || result.validation_result === "FAIL") return result;
        return null;
      }
      await answer.body?.cancel();
      process.stderr.write(`${answer.status} request ${answer.headers.get("x-request-id")}\n`);
      if (answer.status !== 429 && answer.status !== 503) return null;
      wait = Math.max(wait, 1000 * Number(answer.headers.get("retry-after") ?? 0));
    } catch (error) {
      process.stderr.write(`no answer: ${error.cause?.code ?? error.name}\n`);
      if (error.name === "TimeoutError") return null;
    }
    if (wait > LONGEST_WAIT_MS) return null;
    if (attempt < ATTEMPTS) await sleep(wait);
  }
  return null;
}

const tell = (...fields) => process.stdout.write(`${fields.join("\t")}\n`);

const [url, rootFile] = process.argv.slice(2);
const root = new X509Certificate(readFileSync(rootFile));
for await (const line of createInterface({ input: process.stdin })) {
  let bundle;
  try {
    bundle = verifyBundle(line, root, Date.now());
  } catch (error) {
    if (!(error instanceof Rejected)) throw error;
    tell("?".repeat(64), "REJECTED", error.message);
    continue;
  }
  const { image_hash: imageHash, camera_token: token, deviceSerial } = bundle;
  const result = await ask(url, token);
  if (result === null) {
    tell(imageHash, "KEPT", deviceSerial);
  } else if (result.validation_result === "PASS" && (result.device_serial ?? deviceSerial) === deviceSerial) {
    tell(imageHash, "PASS", `${deviceSerial} (${result.device_family ?? "?"})`);
  } else {
    tell(imageHash, "FAIL", deviceSerial); // also where another device's token passed
  }
}
