// The core of an aggregation server in one file, for Node 20 or later, without packages.
//
//     node aggregator.mjs https://sma.example.org root.crt < bundles.jsonl
//
// It reads one bundle from each line and writes a line for each: image hash, verdict, device or reason.
// The environment variable AUTHORITY_KEY has the access key. A bundle without a verdict is KEPT: validate
// it again later.
//
// Node cannot read revocation lists. Tokens of revoked devices FAIL, but the device of a KEPT bundle may
// be revoked. A server that accepts bundles without a verdict must check the list by other means.

import { X509Certificate, verify } from "node:crypto";
import { readFileSync, realpathSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const GRACE_MS = 30 * 24 * 3600 * 1000; // the longest time that a camera may be without a network
const SKEW_MS = 3600 * 1000; // the most that a camera's clock may be fast
const ATTEMPTS = 4;
const DEADLINE_MS = 10_000; // for all attempts at one bundle, and the waits between them
const LONGEST_HOLD_MS = 60_000; // limit for Retry-After; then a request shows if the 429 still holds
const LARGEST_ANSWER = 65_536;
const LARGEST_BUNDLE = 32_768;

class Rejected extends Error {}

function demand(holds, sentence) {
  if (!holds) throw new Rejected(sentence);
}

// --- 1. Parse the bundle.

const TIME = /^(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/; // RFC 3339

// JSON.parse accepts a duplicate name, 1.0 for 1, and half of a surrogate pair. Serialized again, such a
// text differs from the input, so it is refused: another parser could read it differently.
function parseStrictly(text) {
  const value = JSON.parse(text);
  const plain = (part) => (part.startsWith('"') ? JSON.stringify(JSON.parse(part).toWellFormed()) : "");
  const compact = text.replace(/"(?:[^"\\]|\\.)*"|\s+/g, plain);
  if (JSON.stringify(value) !== compact) throw new SyntaxError("This JSON has several meanings.");
  return value;
}

function hasExactly(value, ...names) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return false;
  return Object.keys(value).sort().join() === names.sort().join();
}

const isText = (value, form) => typeof value === "string" && form.test(value);
const isHex = (value, bytes) => isText(value, /^[0-9a-f]+$/) && value.length === 2 * bytes;
const isIndex = (value) => Number.isInteger(value) && value >= 0 && value < 2 ** 31;
// Node accepts many spellings of base64. Only the one that it writes itself is valid here.
const isBase64 = (value) => isText(value, /./) && Buffer.from(value, "base64").toString("base64") === value;
const isCertificate = (value) => isBase64(value) && value.length <= 8_192;
// Date reads February 30 as March 2, so the result is compared with the text.
const isTime = (value) => isText(value, TIME) && new Date(value).toJSON()?.slice(0, 19) === value.slice(0, 19);

function parseBundle(text) {
  demand(Buffer.byteLength(text) <= LARGEST_BUNDLE, "It is malformed: too large.");
  let bundle;
  try {
    bundle = parseStrictly(text);
  } catch {
    throw new Rejected("It is malformed: no JSON of one meaning.");
  }
  const names = ["image_hash", "camera_token", "device_certificate_chain", "captured_at"];
  demand(hasExactly(bundle, "version", ...names, "signature"), "It is malformed: other fields.");
  const { camera_token: token, device_certificate_chain: chain } = bundle;
  demand(bundle.version === 1, "It is malformed: another version.");
  demand(isHex(bundle.image_hash, 32), "It is malformed: image_hash.");
  demand(
    hasExactly(token, "encrypted_nuc_hash", "table_id", "key_index", "nonce") &&
      isHex(token.encrypted_nuc_hash, 48) &&
      isHex(token.nonce, 12) &&
      isIndex(token.table_id) &&
      isIndex(token.key_index),
    "It is malformed: camera_token.",
  );
  demand(Array.isArray(chain) && chain.length === 2, "It is malformed: device_certificate_chain.");
  demand(
    !chain.some((each) => isText(each, /-----BEGIN/)),
    "It is malformed: device_certificate_chain is base64 of the DER, not PEM.",
  );
  demand(
    chain.every(isCertificate),
    "It is malformed: device_certificate_chain is base64 with padding and without line breaks.",
  );
  const { captured_at: captured } = bundle;
  const sixDigits = isTime(captured) && captured.length === 27;
  demand(sixDigits, "It is malformed: captured_at.");
  demand(isBase64(bundle.signature), "It is malformed: signature.");
  return { ...bundle, signature: Buffer.from(bundle.signature, "base64") };
}

// --- 2. Verify the certificate chain up to the pinned root, and the signature.

const BASIC_CONSTRAINTS = "551d13"; // OIDs in hex
const KEY_USAGE = "551d0f";
const EXTENDED_KEY_USAGE = "551d25";
const ALTERNATIVE_NAME = "551d11";
const NAME_CONSTRAINTS = "551d1e";
const AUTHORITY_KEY_ID = "551d23";
const UNDERSTOOD = [BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE, ALTERNATIVE_NAME];
const SIGNED_SOUNDLY = /^(2a8648ce3d04030[234]|2a864886f70d01010[bcd])$/; // ECDSA or RSA, with SHA-2
const DIGITAL_SIGNATURE = 0x80;
const KEY_CERT_SIGN = 0x04;
const CLIENT_AUTHENTICATION = "1.3.6.1.5.5.7.3.2";
const ANY_PURPOSE = "2.5.29.37.0";
const URN = "urn:birthmark:device:";

/** Returns the consecutive DER values in these bytes, each with its tag and content. */
function der(bytes) {
  const values = [];
  for (let at = 0; at < bytes.length; ) {
    const long = bytes[at + 1] >= 0x80 ? bytes[at + 1] - 0x80 : 0;
    const start = at + 2 + long;
    const length = long ? bytes.readUIntBE(at + 2, long) : bytes[at + 1];
    values.push({ tag: bytes[at], content: bytes.subarray(start, start + length) });
    at = start + length;
  }
  return values;
}

/** Reads a certificate (DER or PEM), also the fields that Node omits or formats for people. */
function read(text) {
  try {
    const certificate = new X509Certificate(text);
    const whole = !Buffer.isBuffer(text) || text[0] !== 0x30 || certificate.raw.equals(text);
    if (!whole) throw new SyntaxError("There are bytes after the certificate.");
    const [signed, algorithm] = der(der(certificate.raw)[0].content);
    const list = der(signed.content).find(({ tag }) => tag === 0xa3);
    const extensions = new Map();
    for (const { content } of list ? der(der(list.content)[0].content) : []) {
      const parts = der(content); // OID, TRUE if it is critical, value
      const [value] = der(parts.at(-1).content);
      extensions.set(parts[0].content.toString("hex"), { critical: parts.length === 3, value });
    }
    const constraints = der(extensions.get(BASIC_CONSTRAINTS)?.value.content ?? Buffer.alloc(0));
    const pathLength = constraints.find(({ tag }) => tag === 2)?.content.readUIntBE(0, 1);
    const names = der(extensions.get(ALTERNATIVE_NAME)?.value.content ?? Buffer.alloc(0));
    return {
      certificate,
      publicKey: certificate.publicKey,
      algorithm: der(algorithm.content)[0].content.toString("hex"),
      from: Date.parse(certificate.validFrom),
      to: Date.parse(certificate.validTo),
      extensions: [...extensions.keys()],
      critical: [...extensions].filter(([, { critical }]) => critical).map(([oid]) => oid),
      isCa: constraints.some(({ tag, content }) => tag === 1 && content[0] === 0xff),
      pathLength: pathLength ?? Infinity,
      keyUsage: extensions.get(KEY_USAGE)?.value.content[1] ?? 0,
      purposes: certificate.keyUsage ?? [ANY_PURPOSE], // Node's keyUsage is the extended key usage
      uris: names.filter(({ tag }) => tag === 0x86).map(({ content }) => content.toString("latin1")),
    };
  } catch {
    throw new Rejected("A certificate cannot be read.");
  }
}

/**
 * Returns a name in the form that RFC 5280, section 7.1, compares. Case, string type, compatible
 * characters, runs of white space and invisible characters make no difference. Node's checkIssued
 * folds only ASCII.
 */
function folded(name) {
  const unescaped = (line) =>
    line.replace(/\\([0-9A-F]{2}|.)/g, (_, sign) =>
      sign.length === 2 ? String.fromCharCode(parseInt(sign, 16)) : sign,
    );
  const fold = (line) => {
    const [kind, ...value] = unescaped(line).split("=");
    const lower = value.join("=").normalize("NFKC").toUpperCase().toLowerCase();
    const text = lower.replace(/\p{Default_Ignorable_Code_Point}/gu, "").normalize("NFKC");
    return `${kind}=${text.trim().replace(/\s+/g, " ")}`;
  };
  return (name ?? "").split("\n").map(fold).join("\n");
}

/** Verifies the chain (DER or PEM) at all `times` (ms) and returns the serial of its device. */
export function verifyChain(chain, root, times) {
  const path = [...chain, root].map(read);
  path.slice(1).forEach((issuer, below) => {
    const { certificate, algorithm } = path[below];
    demand(
      issuer.isCa &&
        issuer.critical.includes(BASIC_CONSTRAINTS) &&
        issuer.keyUsage & KEY_CERT_SIGN &&
        issuer.purposes.some((each) => [ANY_PURPOSE, CLIENT_AUTHENTICATION].includes(each)) &&
        issuer.pathLength >= below,
      "The certificate chain has an issuer that is no CA.",
    );
    demand(isOfCa(issuer.publicKey), "The certificate chain has an issuer with a key that is no CA's.");
    demand(
      SIGNED_SOUNDLY.test(algorithm) &&
        folded(certificate.issuer) === folded(issuer.certificate.subject) &&
        certificate.verify(issuer.publicKey),
      "The certificate chain does not lead to the pinned root.",
    );
  });
  for (const { from, to, critical, extensions } of path) {
    demand(times.every((time) => from <= time && time <= to), "A certificate was not valid then.");
    demand(
      critical.every((oid) => UNDERSTOOD.includes(oid)) && !extensions.includes(NAME_CONSTRAINTS),
      "A certificate has unknown terms.",
    );
  }
  const [leaf] = path;
  demand(
    !leaf.isCa &&
      leaf.extensions.includes(AUTHORITY_KEY_ID) &&
      leaf.critical.includes(BASIC_CONSTRAINTS) &&
      leaf.critical.includes(KEY_USAGE) &&
      leaf.keyUsage & DIGITAL_SIGNATURE &&
      leaf.purposes.includes(CLIENT_AUTHENTICATION),
    "The certificate is no device's.",
  );
  digestFor(leaf.publicKey);
  const [urn, another] = leaf.uris.filter((uri) => uri.startsWith(URN));
  const serial = urn && !another && decoded(urn.slice(URN.length));
  demand(serial, "The certificate names no device."); // an empty serial is none either
  return serial;
}

/** Returns the percent-decoded text, or null. Only one spelling is valid, so that one URN names a device. */
function decoded(text) {
  const hex = (sign) => `%${sign.charCodeAt().toString(16).toUpperCase()}`;
  try {
    const plain = decodeURIComponent(text);
    return encodeURIComponent(plain).replace(/[!'()*]/g, hex) === text ? plain : null;
  } catch {
    return null;
  }
}

/** Returns whether a CA may have a key of this kind and size. */
function isOfCa(key) {
  const { namedCurve, modulusLength } = key.asymmetricKeyDetails ?? {};
  if (key.asymmetricKeyType === "rsa") return modulusLength >= 2048;
  return ["prime256v1", "secp384r1", "secp521r1"].includes(namedCurve);
}

// Returns the hash algorithm of a device key's signatures: docs/protocol.md. Ed25519 has none.
function digestFor(key) {
  const { namedCurve, modulusLength, publicExponent } = key.asymmetricKeyDetails ?? {};
  const rsa = modulusLength >= 2048 && modulusLength <= 4096 && publicExponent === 65537n;
  if (key.asymmetricKeyType === "ed25519") return null;
  if (key.asymmetricKeyType === "rsa" && rsa) return "sha256";
  if (key.asymmetricKeyType === "ec" && namedCurve === "prime256v1") return "sha256";
  if (key.asymmetricKeyType === "ec" && namedCurve === "secp384r1") return "sha384";
  throw new Rejected("The certificate has a key that is no device's.");
}

// Canonical JSON (RFC 8785) for the content of a bundle: ASCII names and texts, and small integers.
function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value)
    .sort()
    .map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${members.join(",")}}`;
}

/** Verifies a bundle and returns it with its device's serial. Times are milliseconds. Throws Rejected. */
export function verifyBundle(text, root, now, grace = GRACE_MS) {
  const { signature, ...content } = parseBundle(text);
  const chain = content.device_certificate_chain.map((each) => Buffer.from(each, "base64"));
  const captured = Date.parse(content.captured_at);
  demand(captured <= now + SKEW_MS, "It was captured in the future.");
  const ends = Math.min(...chain.map((each) => read(each).to));
  // A certificate that expired within the grace period is verified at the time of its expiry.
  const judged = Math.min(now, Math.max(ends, now - grace));
  const deviceSerial = verifyChain(chain, root, [Math.min(captured, now), judged]);
  const { publicKey } = read(chain[0]);
  const signed = Buffer.from(`birthmark-bundle-v1\0${canonical(content)}`, "ascii");
  demand(verify(digestFor(publicKey), signed, publicKey, signature), "The signature does not fit.");
  return { ...content, deviceSerial };
}

// --- 3. Validate the camera token. Return a verdict, or null without one, which is no FAIL.

let quietUntil = 0; // after a 429 all requests of this process wait until then (ms)

export async function ask(url, token, deadlineMs = DEADLINE_MS) {
  const end = performance.now() + deadlineMs;
  let wait = quietUntil - performance.now();
  for (let attempt = 1; attempt <= ATTEMPTS; attempt += 1) {
    if (performance.now() + wait >= end) {
      process.stderr.write(`no time: ${Math.ceil(wait / 1000)} s to wait before the next request\n`);
      return null;
    }
    if (wait > 0) await sleep(wait);
    wait = 100 * 2 ** attempt * Math.random(); // exponential backoff with full jitter
    try {
      const answer = await fetch(`${url.replace(/\/+$/, "")}/api/v1/validate/nuc/batch`, {
        method: "POST",
        redirect: "manual",
        signal: AbortSignal.timeout(Math.max(1, Math.ceil(end - performance.now()))),
        headers: {
          "Content-Type": "application/json",
          ...(process.env.AUTHORITY_KEY && { Authorization: `Bearer ${process.env.AUTHORITY_KEY}` }),
        },
        body: JSON.stringify({ tokens: [token] }),
      });
      if (answer.status === 200) return verdictOf(await bodyOf(answer));
      await answer.body?.cancel();
      process.stderr.write(`${answer.status} request ${answer.headers.get("x-request-id")}\n`);
      if (![429, 502, 503, 504].includes(answer.status)) return null;
      wait += retryAfterMs(answer.headers.get("retry-after"));
      if (answer.status === 429) quietUntil = performance.now() + wait;
    } catch (error) {
      process.stderr.write(`no answer: ${error.cause?.code ?? error.name}\n`);
    }
  }
  return null;
}

/** Returns Retry-After in ms: seconds or a date (RFC 9110, section 10.2.3). Invalid values count as 0. */
function retryAfterMs(value) {
  const date = value?.endsWith(" GMT") ? Date.parse(value) : NaN;
  const wait = /^\d{1,9}$/.test(value) ? 1000 * Number(value) : date - Date.now();
  return wait > 0 ? Math.min(wait, LONGEST_HOLD_MS) : 0;
}

async function bodyOf(answer) {
  if (!/^application\/json *(;|$)/i.test(answer.headers.get("content-type"))) return Buffer.alloc(0);
  const parts = [];
  let size = 0;
  for await (const part of answer.body ?? []) {
    parts.push(part);
    size += part.length;
    if (size > LARGEST_ANSWER) return Buffer.alloc(0);
  }
  return Buffer.concat(parts);
}

// Later versions of the authority may add members, with numbers of any form. So only duplicate names are
// refused: JSON.parse visits each name that it kept, and the text must not have more names than that.
function parseAnswer(body) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body);
  let names = -1; // JSON.parse also visits the root, under an empty name
  const value = JSON.parse(text, function visit(_, each) {
    if (typeof each === "string" && !each.isWellFormed()) throw new SyntaxError("Half of a surrogate pair.");
    if (!Array.isArray(this)) names += 1;
    return each;
  });
  const written = text.match(/"(?:[^"\\]|\\.)*"\s*:?/g) ?? [];
  const twice = written.filter((part) => part.endsWith(":")).length - names;
  if (twice) throw new SyntaxError("A name stands twice.");
  return value;
}

/** Returns the verdict of a response, or null unless it has exactly the form of a verdict. */
function verdictOf(body) {
  let results;
  try {
    ({ results } = parseAnswer(body));
  } catch {
    return null;
  }
  if (!Array.isArray(results) || results.length !== 1 || typeof results[0] !== "object") return null;
  const [result] = results;
  const { validation_result: verdict, manufacturer_id: by, timestamp } = result ?? {};
  if (result !== null && "error" in result) {
    const told = ["Unknown table ID", "Unknown key index"].includes(result.error);
    return told && verdict === "FAIL" && hasExactly(result, "validation_result", "error") ? result : null;
  }
  const device = [result?.device_serial ?? null, result?.device_family ?? null];
  const whole = isText(by, /[^]/) && isTime(timestamp);
  if (verdict === "FAIL" && whole && device.every((each) => each === null)) return result;
  const named = device.every((each) => each === null || typeof each === "string");
  return verdict === "PASS" && whole && named ? result : null;
}

// --- 4. Judge bundles, one from each line.

/** Returns image hash, verdict, and device or reason of a bundle. */
export async function judge(text, root, url, now = Date.now(), grace = GRACE_MS) {
  let bundle;
  try {
    bundle = verifyBundle(text, root, now, grace);
  } catch (error) {
    if (!(error instanceof Rejected)) console.error(error); // a defect must not stop the other bundles
    return ["?".repeat(64), "REJECTED", error.message];
  }
  const { image_hash: imageHash, deviceSerial } = bundle;
  const result = await ask(url, bundle.camera_token);
  if (result === null) return [imageHash, "KEPT", deviceSerial];
  const same = (result.device_serial ?? deviceSerial) === deviceSerial; // else another device's token
  if (result.validation_result !== "PASS" || !same) return [imageHash, "FAIL", deviceSerial];
  return [imageHash, "PASS", `${deviceSerial} (${result.device_family ?? "?"})`];
}

/** Yields each line. A line that is too long for a bundle is cut off, but stays too long. */
async function* lines(stream) {
  let last = "";
  for await (const part of stream.setEncoding("utf8")) {
    const some = (last + part).split("\n");
    last = some.pop().slice(0, LARGEST_BUNDLE + 1);
    yield* some;
  }
  if (last) yield last;
}

/** Returns an output line, with "?" for control characters, so that no text can fake another line. */
export function lineOf(told) {
  return `${told.map((each) => each.replace(/(?! )[\p{C}\p{Z}]/gu, "?")).join("\t")}\n`;
}

async function main(url, rootFile) {
  const { protocol, hostname } = new URL(url);
  if (protocol !== "https:" && !["127.0.0.1", "[::1]", "localhost"].includes(hostname)) {
    throw new Error("Without TLS anybody on the way could answer PASS: use https://");
  }
  const root = readFileSync(rootFile);
  for await (const line of lines(process.stdin)) {
    process.stdout.write(lineOf(await judge(line, root, url)));
  }
}

const [program, ...given] = process.argv.slice(1);
if (program && realpathSync(program) === fileURLToPath(import.meta.url)) await main(...given);
