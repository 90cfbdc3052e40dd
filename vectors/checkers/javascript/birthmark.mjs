// The Birthmark protocol in JavaScript, for Node 18 or later, without packages. Copy this file.
//
// What is refused throws. Node alone cannot verify certification paths (its checkIssued accepts
// issuers that are no CA): use a library for those.

import { checkPrimeSync, constants, createDecipheriv, createCipheriv, createECDH, createHash, createPrivateKey,
  createPublicKey, diffieHellman, hkdfSync, privateDecrypt, sign as signWith, verify } from "node:crypto";

export class Refused extends Error {}

// --- keys and camera tokens

/** HKDF-SHA256, 32 bytes long (RFC 5869). */
export function deriveKey(masterKey, keyIndex, salt = "Birthmark", infoSuffix = Buffer.alloc(0)) {
  const info = Buffer.alloc(4);
  info.writeUInt32BE(keyIndex);
  return Buffer.from(hkdfSync("sha256", masterKey, salt, Buffer.concat([info, infoSuffix]), 32));
}

/** Make a camera token. The nonce is 12 fresh random bytes, never used twice. */
export function seal(nucHash, masterKey, tableId, keyIndex, nonce) {
  const cipher = createCipheriv("aes-256-gcm", deriveKey(masterKey, keyIndex), nonce);
  const sealed = Buffer.concat([cipher.update(nucHash), cipher.final(), cipher.getAuthTag()]);
  return {
    encrypted_nuc_hash: sealed.toString("hex"),
    table_id: tableId,
    key_index: keyIndex,
    nonce: nonce.toString("hex"),
  };
}

/** Return the NUC hash inside a camera token. */
export function openToken(token, masterKey, keysPerTable = 1000) {
  const sealed = fromHex(token.encrypted_nuc_hash, 48);
  const nonce = fromHex(token.nonce, 12);
  const index = token.key_index;
  if (!Number.isInteger(index) || index < 0 || index >= keysPerTable) throw new Refused("no such key");
  return openGcm(deriveKey(masterKey, index), nonce, sealed.subarray(0, 32), sealed.subarray(32));
}

function openGcm(key, nonce, text, tag, aad = Buffer.alloc(0)) {
  // Without authTagLength Node would take shorter tags.
  const decipher = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 });
  try {
    decipher.setAAD(aad).setAuthTag(tag);
    return Buffer.concat([decipher.update(text), decipher.final()]);
  } catch {
    throw new Refused("it does not open");
  }
}

function fromHex(text, size) {
  if (typeof text !== "string" || text.length !== 2 * size || !/^[0-9a-f]*$/i.test(text)) {
    throw new Refused(`not ${size} bytes in hex`);
  }
  return Buffer.from(text, "hex");
}

// --- secrets that come sealed: compact JWE, ECDH-ES+A256KW or RSA-OAEP-256, and A256GCM

/** Return what is sealed (RFC 7516, section 5.2; RFC 7518, sections 4.3 and 4.6), read strictly. */
export function openSecrets(jwe, privateKey) {
  const parts = jwe.split(".");
  if (parts.length !== 5) throw new Refused("not compact JWE");
  const [head, wrapped, nonce, text, tag] = parts.map(fromBase64url);
  const rsa = privateKey.asymmetricKeyType === "rsa"; // the kind of the key alone decides
  const { alg, enc, epk, cty = "json", ...more } = parseJson(head);
  if (alg !== (rsa ? "RSA-OAEP-256" : "ECDH-ES+A256KW") || enc !== "A256GCM" || cty !== "json"
      || Object.keys(more).length > 0 || (epk === undefined) !== rsa
      || wrapped.length !== (rsa ? privateKey.asymmetricKeyDetails.modulusLength / 8 : 40)
      || nonce.length !== 12 || tag.length !== 16) {
    throw new Refused("no such way of sealing"); // no zip, no crit, no party information
  }
  const contentKey = rsa ? decryptKey(privateKey, wrapped) : unwrap(concatKdf(agree(privateKey, epk), alg), wrapped);
  return parseJson(openGcm(contentKey, nonce, text, tag, Buffer.from(parts[0])));
}

function agree(privateKey, epk) {
  const { namedCurve: curve } = privateKey.asymmetricKeyDetails;
  const [kty, crv, size] = { prime256v1: ["EC", "P-256", 32], secp384r1: ["EC", "P-384", 48] }[curve]
    ?? ["OKP", "X25519", 32];
  const { kty: kind, crv: named, ...coordinates } = epk ?? {};
  const sizes = Object.values(coordinates).map((each) => fromBase64url(String(each)).length);
  if (kind !== kty || named !== crv || !sizes.every((each) => each === size)
      || Object.keys(coordinates).sort().join() !== (kty === "EC" ? "x,y" : "x")) {
    throw new Refused("no such point");
  }
  try {
    return diffieHellman({ privateKey, publicKey: createPublicKey({ key: epk, format: "jwk" }) });
  } catch {
    throw new Refused("no such point");
  }
}

function concatKdf(shared, algorithm) { // one round is enough for 32 bytes
  const round = Buffer.from([0, 0, 0, 1]);
  const bits = Buffer.from([0, 0, 1, 0]);
  const length = Buffer.from([0, 0, 0, algorithm.length]);
  const other = Buffer.concat([length, Buffer.from(algorithm), Buffer.alloc(8), bits]);
  return createHash("sha256").update(round).update(shared).update(other).digest();
}

function unwrap(wrapping, wrapped) {
  try { // RFC 3394
    const cipher = createDecipheriv("id-aes256-wrap", wrapping, Buffer.alloc(8, 0xa6));
    return Buffer.concat([cipher.update(wrapped), cipher.final()]);
  } catch {
    throw new Refused("it does not open");
  }
}

function decryptKey(key, wrapped) {
  try { // oaepHash is that of MGF1, too
    const opened = privateDecrypt({ key, oaepHash: "sha256", padding: constants.RSA_PKCS1_OAEP_PADDING }, wrapped);
    if (opened.length === 32) return opened;
  } catch {
    // as if it were another length
  }
  throw new Refused("it does not open");
}

function fromBase64url(text) {
  const decoded = Buffer.from(text, "base64url"); // which takes anything
  if (decoded.toString("base64url") !== text) throw new Refused("not base64url");
  return decoded;
}

/** An object that all read alike. JSON.parse takes names that stand twice, lone surrogates and -0. */
function parseJson(bytes) {
  try { // a byte order mark stays in the text, and is no JSON
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    let names = -1; // the whole is visited by a name as well
    const value = JSON.parse(text, function visit(name, each) {
      if (!Array.isArray(this)) names += 1;
      if (Object.is(each, -0) || [name, each].some((text) => loneSurrogate.test(text))) throw new Refused("half a pair");
      return each;
    });
    const written = text.match(/"(?:[^"\\]|\\.)*"\s*:?/g) ?? [];
    const all = written.filter((part) => part.endsWith(":")).length;
    if (all === names && value !== null && typeof value === "object" && !Array.isArray(value)) return value;
  } catch {
    // as if it were another form
  }
  throw new Refused("no JSON object of one meaning");
}

const loneSurrogate = /\p{Surrogate}/u; // which finds no half of a pair

// --- bundles

/** Return what the device signs: a prefix, and canonical JSON (RFC 8785) of all but the signature. */
export function signedBytes({ signature, ...content }) {
  return Buffer.from(`birthmark-bundle-v1\0${canonical(content)}`);
}

/** The bytes that a device signs to renew its certificate. The first three are DER, or null. */
export function renewalBytes(certificate, csr, recipientKey, requestedAt, supersede) {
  const digest = (der) => der && createHash("sha256").update(der).digest("hex");
  const proof = {
    certificate_sha256: digest(certificate),
    csr_sha256: digest(csr),
    recipient_key_sha256: digest(recipientKey),
    requested_at: requestedAt,
    supersede,
  };
  return Buffer.from(`birthmark-renew-v1\0${canonical(proof)}`);
}

function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const fields = Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`);
  return `{${fields.join(",")}}`;
}

/** The kind of the key alone decides how it signs. */
function hashOf(key) {
  const curve = key.asymmetricKeyDetails?.namedCurve;
  const hash = { ed25519: null, rsa: "sha256" }[key.asymmetricKeyType]
    ?? { prime256v1: "sha256", secp384r1: "sha384" }[curve] ?? null;
  if (hash === null && key.asymmetricKeyType !== "ed25519") throw new Refused("no device has such a key");
  return hash;
}

/** Sign as a device. */
export function sign(message, privateKey) {
  return signWith(hashOf(privateKey), message, privateKey);
}

export function verifySignature(signature, message, key) {
  if (!verify(hashOf(key), message, key, signature)) throw new Refused("the signature does not fit");
}

// --- verdicts

/** Return why a well-formed token gets its verdict: it is PASS for "genuine" alone. */
export function judge(tables, keysPerTable, { tableId, keyIndex, opened, device }) {
  if (tableId < 0 || tableId >= tables) return "unknown_table";
  if (keyIndex < 0 || keyIndex >= keysPerTable) return "unknown_key_index";
  if (!opened) return "not_opened";
  if (device === null) return "unknown_device";
  if (!device.tableAssignments.includes(tableId)) return "table_not_assigned";
  return device.status === "active" ? "genuine" : `device_${device.status}`;
}

// --- test keys: docs/vectors.md

/** Make the test key that a label stands for. For tests alone: everybody can. */
export function testKey(label, kind) {
  if (kind === "RSA 2048") return rsaKey(label);
  const secret = createHash(kind.endsWith("P-384") ? "sha384" : "sha256").update(label).digest();
  const oid = { X25519: "6e", Ed25519: "70" }[kind];
  if (oid !== undefined) {
    const der = Buffer.concat([Buffer.from(`302e020100300506032b65${oid}04220420`, "hex"), secret]);
    return createPrivateKey({ key: der, format: "der", type: "pkcs8" });
  }
  const crv = kind.endsWith("P-384") ? "P-384" : "P-256";
  const pair = createECDH(crv === "P-384" ? "secp384r1" : "prime256v1");
  pair.setPrivateKey(secret);
  const point = pair.getPublicKey().subarray(1);
  const [d, x, y] = [secret, point.subarray(0, secret.length), point.subarray(secret.length)]
    .map((each) => each.toString("base64url"));
  return createPrivateKey({ key: { kty: "EC", crv, d, x, y }, format: "jwk" });
}

const rsaKeys = new Map(); // to find the primes takes a second

function rsaKey(label) {
  if (rsaKeys.has(label)) return rsaKeys.get(label);
  const [e, p, q] = [65537n, prime(`${label}, prime 1`), prime(`${label}, prime 2`)];
  const d = inverse(e, (p - 1n) * (q - 1n));
  const numbers = { n: p * q, e, d, p, q, dp: d % (p - 1n), dq: d % (q - 1n), qi: inverse(q, p) };
  const key = { kty: "RSA" };
  for (const [name, number] of Object.entries(numbers)) key[name] = bytesOf(number).toString("base64url");
  rsaKeys.set(label, createPrivateKey({ key, format: "jwk" }));
  return rsaKeys.get(label);
}

/** The first prime at or above the number of a label. */
function prime(label) {
  const blocks = [0, 1, 2, 3].map((block) => createHash("sha256").update(`${label}, block ${block}`).digest("hex"));
  let candidate = BigInt(`0x${blocks.join("")}`) | (3n << 1022n) | 1n;
  while (!checkPrimeSync(candidate)) candidate += 2n;
  return candidate;
}

/** Of two numbers without a common factor: Euclid's algorithm. */
function inverse(number, modulus) {
  let [a, b, x, y] = [number % modulus, modulus, 1n, 0n];
  while (a > 1n) [a, b, x, y] = [b % a, a, y - (b / a) * x, x];
  return ((x % modulus) + modulus) % modulus;
}

function bytesOf(number) {
  const hex = number.toString(16);
  return Buffer.from(hex.padStart(hex.length + (hex.length % 2), "0"), "hex");
}
