// A camera in Node, without packages: provision with sealed secrets, renew the certificate when it is
// time, make a token, sign a bundle.
//
//     node camera.mjs https://sma.example.org root.crt camera-0001 picture.jpg > bundle.json
//
// ENROLMENT_KEY has the access key, where one is needed. The state is in camera-0001.json, readable by
// its owner only: a real camera encrypts it. It is on disk before each request, so a camera that is
// killed repeats the request when it starts again. docs/protocol.md explains each step.
import assert from "node:assert";
import crypto from "node:crypto";
import fs from "node:fs";

const [url, rootFile, serial, picture] = process.argv.slice(2);
const KEYS_PER_TABLE = 1000; // the operator says how many; 100 for a prototype
const STATE = `${encodeURIComponent(serial)}.json`;

const sha256 = (bytes) => crypto.createHash("sha256").update(bytes).digest();
const u32 = (number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(number);
  return bytes;
};

// The state file is replaced as a whole: a crash leaves the old one or the new one.
function save(state) {
  const file = fs.openSync(`${STATE}.partial`, "w", 0o600);
  fs.writeSync(file, JSON.stringify(state));
  fs.fsyncSync(file);
  fs.closeSync(file);
  fs.renameSync(`${STATE}.partial`, STATE);
  const directory = fs.openSync(".", "r");
  fs.fsyncSync(directory);
  fs.closeSync(directory);
  return state;
}

const newKey = () =>
  crypto.generateKeyPairSync("ec", {
    namedCurve: "P-256",
    publicKeyEncoding: { type: "spki", format: "pem" },
    privateKeyEncoding: { type: "pkcs8", format: "pem" },
  }).privateKey;
const publicOf = (privatePem, format = "der") => crypto.createPublicKey(privatePem).export({ type: "spki", format });

// DER (X.690), as far as a CSR needs it: lengths below 65,536 bytes.
const der = (tag, ...parts) => {
  const body = Buffer.concat(parts);
  const { length } = body;
  const head = length < 128 ? [tag, length] : length < 256 ? [tag, 0x81, length] : [tag, 0x82, length >> 8, length & 255];
  return Buffer.concat([Buffer.from(head), body]);
};
const sequence = (...parts) => der(0x30, ...parts);
const set = (...parts) => der(0x31, ...parts);
const oid = (hex) => der(0x06, Buffer.from(hex, "hex"));

// PKCS#10 (RFC 2986) that names the recipient key in a requested subjectAltName.
function makeCsr(signing, recipient) {
  const urn = `urn:birthmark:recipient-key:sha-256:${sha256(publicOf(recipient)).toString("hex")}`;
  const subjectAltName = sequence(oid("551d11"), der(0x04, sequence(der(0x86, Buffer.from(urn)))));
  const extensionRequest = sequence(oid("2a864886f70d01090e"), set(sequence(subjectAltName)));
  const commonName = sequence(set(sequence(oid("550403"), der(0x0c, Buffer.from(serial)))));
  const info = sequence(
    der(0x02, Buffer.from([0])),
    commonName,
    publicOf(signing),
    der(0xa0, extensionRequest),
  );
  const signature = crypto.sign("sha256", info, signing); // DER, as the authority wants it
  const csr = sequence(info, sequence(oid("2a8648ce3d040302")), der(0x03, Buffer.from([0]), signature));
  const lines = csr.toString("base64").match(/.{1,64}/g).join("\n");
  return `-----BEGIN CERTIFICATE REQUEST-----\n${lines}\n-----END CERTIFICATE REQUEST-----\n`;
}

// Compact JWE: ECDH-ES+A256KW on P-256 with A256GCM (RFC 7516, RFC 7518 section 4.6).
function openSecrets(jwe, privateKey) {
  const parts = jwe.split(".");
  const [head, wrapped, nonce, ciphertext, tag] = parts.map((part) => Buffer.from(part, "base64url"));
  assert(parts.length === 5 && wrapped.length === 40 && nonce.length === 12 && tag.length === 16);
  const { epk, cty = "json", ...algorithms } = JSON.parse(head);
  assert.deepStrictEqual([algorithms, cty], [{ alg: "ECDH-ES+A256KW", enc: "A256GCM" }, "json"]);
  assert.deepStrictEqual(Object.keys(epk).sort(), ["crv", "kty", "x", "y"]);
  assert(epk.crv === "P-256" && epk.kty === "EC");
  const shared = crypto.diffieHellman({ privateKey, publicKey: crypto.createPublicKey({ key: epk, format: "jwk" }) });
  const algorithm = Buffer.from("ECDH-ES+A256KW");
  const otherInfo = Buffer.concat([u32(algorithm.length), algorithm, u32(0), u32(0), u32(256)]);
  const wrapping = sha256(Buffer.concat([u32(1), shared, otherInfo])); // Concat KDF, one round
  const unwrap = crypto.createDecipheriv("id-aes256-wrap", wrapping, Buffer.alloc(8, 0xa6)); // RFC 3394
  const key = Buffer.concat([unwrap.update(wrapped), unwrap.final()]);
  const gcm = crypto.createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 });
  gcm.setAAD(Buffer.from(parts[0], "ascii")).setAuthTag(tag);
  return JSON.parse(Buffer.concat([gcm.update(ciphertext), gcm.final()]));
}

// Returns the status, the JSON and the Retry-After in seconds. Throws if there is no response.
async function ask(path, body, headers = {}) {
  const response = await fetch(url + path, {
    method: body ? "POST" : "GET",
    redirect: "error",
    signal: AbortSignal.timeout(60_000),
    headers: { "Content-Type": "application/json", ...headers },
    body,
  });
  return [response.status, await response.json(), Number(response.headers.get("Retry-After")) || 0];
}

// Returns the new state. The request is on disk before it is sent: its repetition, with the same
// Idempotency-Key, gets the same response for 24 hours.
async function provision(state) {
  if (!state.request) {
    const [signing, recipient] = [newKey(), newKey()];
    const request = JSON.stringify({
      device_serial: serial,
      device_family: "Node",
      csr: makeCsr(signing, recipient),
      key_encryption_public_key: publicOf(recipient, "pem"),
    });
    state = save({ signing, recipient, request, idempotencyKey: crypto.randomBytes(16).toString("hex") });
  }
  const [status, answer] = await ask("/api/v1/devices/provision", state.request, {
    "Idempotency-Key": state.idempotencyKey,
    ...(process.env.ENROLMENT_KEY && { Authorization: `Bearer ${process.env.ENROLMENT_KEY}` }),
  });
  if (status !== 200) throw new Error(`${status}: ${answer.detail}`);
  const { nuc_hash, ...received } = check(answer, state.signing, state.recipient);
  return save({ ...received, signing: state.signing, nuc_hash });
}

// Returns what a response brings, if it is for this key, under the pinned root, with its own secrets.
function check(answer, signing, recipient) {
  const secrets = openSecrets(answer.sealed_secrets, crypto.createPrivateKey(recipient));
  const [device, intermediate] = [answer.device_certificate, answer.certificate_chain[0]].map(
    (pem) => new crypto.X509Certificate(pem),
  );
  const root = new crypto.X509Certificate(fs.readFileSync(rootFile));
  assert(device.publicKey.equals(crypto.createPublicKey(signing)), "the certificate is for another key");
  assert(device.verify(intermediate.publicKey) && intermediate.verify(root.publicKey), "another root");
  assert.strictEqual(secrets.device_serial, serial);
  assert.strictEqual(secrets.certificate_sha256, sha256(device.raw).toString("hex"));
  assert.deepStrictEqual(Object.keys(secrets.table_keys).map(Number), answer.table_assignments);
  return {
    chain: [answer.device_certificate, answer.certificate_chain[0]],
    table_keys: secrets.table_keys,
    nuc_hash: secrets.nuc_hash, // only at provisioning
    share: Math.random(), // of the renewal window: drawn once for each certificate
    askAt: 0,
  };
}

// The id of RFC 9773, section 4.1: issuer's key identifier and serial number, in base64url.
function renewalId(certificate) {
  const at = certificate.raw.indexOf(Buffer.from("0603551d23", "hex")) + 5; // authorityKeyIdentifier
  assert(certificate.raw[at] === 0x04 && certificate.raw[at + 4] === 0x80);
  const issuer = certificate.raw.subarray(at + 6, at + 6 + certificate.raw[at + 5]);
  const octets = Buffer.from(certificate.serialNumber, "hex");
  const number = octets[0] < 128 ? octets : Buffer.concat([Buffer.alloc(1), octets]);
  return `${issuer.toString("base64url")}.${number.toString("base64url")}`;
}

// Returns the time of the renewal and of the next question, in ms: see RFC 9773, section 4.2.
async function renewalTimes(certificate, share) {
  const [begins, ends] = [certificate.validFrom, certificate.validTo].map(Date.parse);
  const after = (part) => begins + (ends - begins) * part;
  let [start, end] = [after(2 / 3), after(5 / 6)];
  let wait = 21_600;
  const path = `/api/v1/devices/renewal-info/${renewalId(certificate)}`;
  const [status, answer, retryAfter] = await ask(path).catch(() => []);
  if (status === 200) {
    const given = [answer.suggestedWindow?.start, answer.suggestedWindow?.end].map(Date.parse);
    if (given[0] < given[1]) [start, end] = given;
    wait = Math.min(Math.max(retryAfter || wait, 60), 86_400);
  }
  return [Math.min(start + (end - start) * share, after(11 / 12)), Date.now() + wait * 1000];
}

// Signs the request with the key of the certificate that it presents: docs/protocol.md.
function renewalRequest(state) {
  const { csr, recipient } = state.renewal;
  const pemBody = (pem) => Buffer.from(pem.replace(/-----[A-Z ]+-----/g, ""), "base64");
  const requested_at = new Date().toISOString().replace("Z", "000Z");
  // Names in alphabetical order: JSON.stringify then writes canonical JSON (RFC 8785).
  const proof = JSON.stringify({
    certificate_sha256: sha256(pemBody(state.chain[0])).toString("hex"),
    csr_sha256: sha256(pemBody(csr)).toString("hex"),
    recipient_key_sha256: sha256(publicOf(recipient)).toString("hex"),
    requested_at,
    supersede: false,
  });
  const signature = crypto.sign("sha256", Buffer.from(`birthmark-renew-v1\0${proof}`, "ascii"), state.signing);
  return JSON.stringify({
    device_certificate: state.chain[0],
    csr,
    key_encryption_public_key: publicOf(recipient, "pem"),
    // true revokes the old certificate. Repeat the request with it when the new one is in use, and store the table
    // keys of the response: they are new if the tables were rotated meanwhile.
    supersede: false,
    requested_at,
    signature: signature.toString("base64"),
  });
}

// Renews if it is time, and returns the state for the next picture. The old certificate stays valid.
// New keys and CSR are on disk before they are sent. The same CSR gets the same certificate again, so
// neither a crash nor a lost response strands the camera.
async function renewIfDue(state) {
  const later = (seconds) => save({ ...state, askAt: Date.now() + seconds * 1000 });
  const tooFar = state.askAt > Date.now() + 86_400_000; // the clock was ahead
  if (Date.now() < state.askAt && !tooFar) return state;
  if (!state.renewal) {
    const [renewAt, askAt] = await renewalTimes(new crypto.X509Certificate(state.chain[0]), state.share);
    if (Date.now() < renewAt) return save({ ...state, askAt: Math.min(renewAt, askAt) });
    const [signing, recipient] = [newKey(), newKey()];
    state = save({ ...state, failures: 0, renewal: { signing, recipient, csr: makeCsr(signing, recipient) } });
  }
  state.failures = (state.failures ?? 0) + 1;
  const pause = Math.min(30 * 2 ** state.failures, 86_400) * (0.5 + 0.5 * Math.random());
  let answered;
  try {
    answered = await ask("/api/v1/devices/renew", renewalRequest(state));
  } catch (error) {
    console.error(`The certificate is not renewed yet: ${error.message}`);
    return later(pause);
  }
  const [status, answer, retryAfter] = answered;
  if (status !== 200) {
    // 403 renewal-time-refused: set the clock. 403 renewal-refused: the operator can re-enrol the device.
    console.error(`The certificate is not renewed yet: ${status} ${answer.detail}`);
    if (status === 409 || status === 422) delete state.renewal; // this CSR will never be accepted
    return later(Math.min(Math.max(pause, retryAfter), 86_400));
  }
  try {
    const { nuc_hash, ...received } = check(answer, state.renewal.signing, state.renewal.recipient);
    // At once: no bundle mixes the old certificate with the new key.
    const { signing } = state.renewal;
    return save({ ...received, signing, nuc_hash: state.nuc_hash, askAt: Date.now() + 21_600_000 });
  } catch (error) {
    console.error(`The response is for another camera: ${error.message}`);
    return later(pause);
  }
}

function makeToken(state) {
  const tables = Object.keys(state.table_keys);
  const table = tables[crypto.randomInt(tables.length)];
  const index = crypto.randomInt(KEYS_PER_TABLE);
  const masterKey = Buffer.from(state.table_keys[table], "hex");
  const key = Buffer.from(crypto.hkdfSync("sha256", masterKey, "Birthmark", u32(index), 32));
  const nonce = crypto.randomBytes(12); // never twice under one key
  const gcm = crypto.createCipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 });
  const sealed = [gcm.update(Buffer.from(state.nuc_hash, "hex")), gcm.final(), gcm.getAuthTag()];
  return {
    encrypted_nuc_hash: Buffer.concat(sealed).toString("hex"),
    key_index: index,
    nonce: nonce.toString("hex"),
    table_id: Number(table),
  };
}

function capture(state) {
  // Names in alphabetical order at each level: JSON.stringify then writes canonical JSON (RFC 8785).
  const unsigned = {
    camera_token: makeToken(state),
    captured_at: new Date().toISOString().replace("Z", "000Z"), // six digits of a second
    device_certificate_chain: state.chain.map((pem) => new crypto.X509Certificate(pem).raw.toString("base64")),
    image_hash: sha256(fs.readFileSync(picture)).toString("hex"),
    version: 1,
  };
  const signed = Buffer.from(`birthmark-bundle-v1\0${JSON.stringify(unsigned)}`, "ascii");
  return JSON.stringify({ ...unsigned, signature: crypto.sign("sha256", signed, state.signing).toString("base64") });
}

let state = fs.existsSync(STATE) ? JSON.parse(fs.readFileSync(STATE)) : {};
if (!state.chain) state = await provision(state);
// A camera that stays on calls renewIfDue every quarter of an hour, and captures meanwhile.
state = await renewIfDue(state);
console.log(capture(state));
