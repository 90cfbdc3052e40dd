// A camera in Node, without packages: provision with sealed secrets, make a token, sign a bundle.
//
//     node camera.mjs https://sma.example.org root.crt camera-0001 picture.jpg > bundle.json
//
// ENROLMENT_KEY has the access key, where one is needed. Keys are in memory, so this is a program to
// learn from: a real camera stores keys, request and Idempotency-Key before it sends the request, and
// sends the same bytes again if no answer arrives. docs/protocol.md explains each step.
import assert from "node:assert";
import crypto from "node:crypto";
import fs from "node:fs";

const [url, rootFile, serial, picture] = process.argv.slice(2);
const KEYS_PER_TABLE = 1000; // the operator says how many; 100 for a prototype

const sha256 = (bytes) => crypto.createHash("sha256").update(bytes).digest();
const u32 = (number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(number);
  return bytes;
};

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
function makeCsr(signing, recipientSpki) {
  const urn = `urn:birthmark:recipient-key:sha-256:${sha256(recipientSpki).toString("hex")}`;
  const subjectAltName = sequence(oid("551d11"), der(0x04, sequence(der(0x86, Buffer.from(urn)))));
  const extensionRequest = sequence(oid("2a864886f70d01090e"), set(sequence(subjectAltName)));
  const commonName = sequence(set(sequence(oid("550403"), der(0x0c, Buffer.from(serial)))));
  const info = sequence(
    der(0x02, Buffer.from([0])),
    commonName,
    signing.publicKey.export({ type: "spki", format: "der" }),
    der(0xa0, extensionRequest),
  );
  const signature = crypto.sign("sha256", info, signing.privateKey); // DER, as the authority wants it
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

async function provision(signing, recipient) {
  const spki = recipient.publicKey.export({ type: "spki", format: "der" });
  const response = await fetch(`${url}/api/v1/devices/provision`, {
    method: "POST",
    redirect: "error",
    headers: {
      "Content-Type": "application/json",
      "Idempotency-Key": crypto.randomBytes(16).toString("hex"),
      ...(process.env.ENROLMENT_KEY && { Authorization: `Bearer ${process.env.ENROLMENT_KEY}` }),
    },
    body: JSON.stringify({
      device_serial: serial,
      device_family: "Node",
      csr: makeCsr(signing, spki),
      key_encryption_public_key: recipient.publicKey.export({ type: "spki", format: "pem" }),
    }),
  });
  const answer = await response.json();
  if (response.status !== 200) throw new Error(`${response.status}: ${answer.detail}`);
  return answer;
}

// The certificate is for this key and leads to the pinned root; the secrets are for this certificate.
function check(answer, secrets, signing) {
  const [device, intermediate] = [answer.device_certificate, answer.certificate_chain[0]].map(
    (pem) => new crypto.X509Certificate(pem),
  );
  const root = new crypto.X509Certificate(fs.readFileSync(rootFile));
  assert(device.publicKey.equals(signing.publicKey), "the certificate is for another key");
  assert(device.verify(intermediate.publicKey) && intermediate.verify(root.publicKey), "another root");
  assert.strictEqual(secrets.device_serial, serial);
  assert.strictEqual(secrets.certificate_sha256, sha256(device.raw).toString("hex"));
  assert.deepStrictEqual(Object.keys(secrets.table_keys).map(Number), answer.table_assignments);
  return [device, intermediate];
}

function makeToken(secrets, tables) {
  const table = tables[crypto.randomInt(tables.length)];
  const index = crypto.randomInt(KEYS_PER_TABLE);
  const masterKey = Buffer.from(secrets.table_keys[table], "hex");
  const key = Buffer.from(crypto.hkdfSync("sha256", masterKey, "Birthmark", u32(index), 32));
  const nonce = crypto.randomBytes(12); // never twice under one key
  const gcm = crypto.createCipheriv("aes-256-gcm", key, nonce, { authTagLength: 16 });
  const sealed = [gcm.update(Buffer.from(secrets.nuc_hash, "hex")), gcm.final(), gcm.getAuthTag()];
  return {
    encrypted_nuc_hash: Buffer.concat(sealed).toString("hex"),
    key_index: index,
    nonce: nonce.toString("hex"),
    table_id: table,
  };
}

const [signing, recipient] = [0, 1].map(() => crypto.generateKeyPairSync("ec", { namedCurve: "P-256" }));
const answer = await provision(signing, recipient);
const secrets = openSecrets(answer.sealed_secrets, recipient.privateKey);
const chain = check(answer, secrets, signing);
// Names in alphabetical order at each level: JSON.stringify then writes canonical JSON (RFC 8785).
const unsigned = {
  camera_token: makeToken(secrets, answer.table_assignments),
  captured_at: new Date().toISOString().replace("Z", "000Z"), // six digits of a second
  device_certificate_chain: chain.map((certificate) => certificate.raw.toString("base64")),
  image_hash: sha256(fs.readFileSync(picture)).toString("hex"),
  version: 1,
};
const signed = Buffer.from(`birthmark-bundle-v1\0${JSON.stringify(unsigned)}`, "ascii");
const signature = crypto.sign("sha256", signed, signing.privateKey).toString("base64");
console.log(JSON.stringify({ ...unsigned, signature }));
