// `node check.mjs check <vectors>`, or `seal` / `open` with JSON on standard input.

import { createPublicKey, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import * as birthmark from "./birthmark.mjs";

const hex = (text) => Buffer.from(text, "hex");

// Each returns whether what came out is what the test says; a refusal throws.
const FILES = {
  key_derivation: (group, test) =>
    birthmark.deriveKey(hex(test.masterKey), test.keyIndex, hex(group.salt), hex(group.infoSuffix))
      .equals(hex(test.derivedKey)),
  camera_token: (group, { cameraToken: token, masterKey, nucHash, result }) => {
    const opened = birthmark.openToken(token, hex(masterKey), group.keysPerTable);
    if (result !== "valid") return opened.toString("hex") === nucHash;
    const again = birthmark.seal(opened, hex(masterKey), token.table_id, token.key_index, hex(token.nonce));
    return opened.toString("hex") === nucHash
      && again.encrypted_nuc_hash === token.encrypted_nuc_hash.toLowerCase();
  },
  provisioning_response: (group, test) => {
    if (group.type === "Response") return null; // it needs certification paths
    const key = birthmark.testKey(group.recipientLabel, group.recipientKind);
    const secrets = birthmark.openSecrets(test.sealedSecrets, key);
    return JSON.stringify(secrets) === JSON.stringify(test.secrets);
  },
  bundle_signature: (group, test) => {
    if (group.type === "Bundle") return null; // it needs certification paths
    return signsAlike(group, test, birthmark.signedBytes(JSON.parse(test.bundle)));
  },
  renewal_proof: (group, test) => {
    const recipientKey = test.recipientKey === null ? null : hex(test.recipientKey);
    const message = birthmark.renewalBytes(
      hex(test.certificate), hex(test.csr), recipientKey, test.requestedAt, test.supersede);
    return signsAlike(group, test, message);
  },
  verdict: (group, test) => {
    const reason = birthmark.judge(group.tables, group.keysPerTable, test);
    if (reason === test.reason && reason !== "genuine") throw new birthmark.Refused(reason);
    return reason === test.reason;
  },
};

function signsAlike(group, test, message) {
  if (!message.equals(hex(test.signedBytes))) return false;
  birthmark.verifySignature(hex(test.signature), message, createPublicKey(group.publicKey));
  const signature = birthmark.sign(message, birthmark.testKey(group.deviceLabel, group.keyKind));
  birthmark.verifySignature(signature, message, createPublicKey(group.publicKey));
  return group.keyKind.startsWith("EC ") || signature.equals(hex(test.signature));
}

function check(directory) {
  let wrong = 0;
  for (const [name, run] of Object.entries(FILES)) {
    const document = JSON.parse(readFileSync(`${directory}/${name}_test.json`, "utf8"));
    let ran = 0;
    for (const group of document.testGroups) {
      for (const test of group.tests) {
        let right;
        try { // to accept something else is no refusal
          const agrees = run(group, test);
          if (agrees === null) continue;
          right = agrees && test.result !== "invalid";
        } catch (error) {
          if (!(error instanceof birthmark.Refused)) throw error;
          right = test.result !== "valid";
        }
        ran += 1;
        if (right) continue;
        wrong += 1;
        console.log(`${name} ${test.tcId}: ${test.comment}: ${test.result}`);
      }
    }
    console.log(`${name}: ${ran} tests`);
  }
  return wrong;
}

const [command, directory] = process.argv.slice(2);
if (command === "check") {
  process.exitCode = check(directory) === 0 ? 0 : 1;
} else {
  const given = JSON.parse(readFileSync(0, "utf8"));
  const masterKey = hex(given.master_key);
  console.log(command === "seal"
    ? JSON.stringify(birthmark.seal(hex(given.nuc_hash), masterKey, given.table_id, given.key_index, randomBytes(12)))
    : birthmark.openToken(given.camera_token, masterKey).toString("hex"));
}
