package org.birthmark.camera;

import java.io.ByteArrayInputStream;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.AlgorithmParameters;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.MessageDigest;
import java.security.PublicKey;
import java.security.SecureRandom;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.security.spec.ECFieldFp;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.ECParameterSpec;
import java.security.spec.ECPoint;
import java.security.spec.ECPublicKeySpec;
import java.text.ParseException;
import java.text.SimpleDateFormat;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collections;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TimeZone;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.crypto.Cipher;
import javax.crypto.Mac;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.SecretKeySpec;

/**
 * The computations of a camera: requests, secrets, camera tokens, bundles. It has no keys of its own
 * and imports no Android class, so it runs and is tested on any JVM. Java 8 language, Android 8.
 */
public final class CameraCore {
    /** A signing key, in memory or in hardware: ECDSA on P-256 with SHA-256, signature in DER. */
    public interface SigningKey {
        byte[] sign(byte[] message) throws GeneralSecurityException;
    }

    /** A key agreement key (ECDH on P-256), in memory or in hardware. */
    public interface AgreementKey {
        byte[] agree(PublicKey other) throws GeneralSecurityException;
    }

    /** The data that a camera keeps from the provisioning response. All of it is secret. */
    public static final class Provisioned {
        final List<String> chain;
        final byte[] nucHash;
        final Map<Integer, byte[]> tableKeys;

        Provisioned(List<String> chain, byte[] nucHash, Map<Integer, byte[]> tableKeys) {
            this.chain = chain;
            this.nucHash = nucHash;
            this.tableKeys = tableKeys;
        }
    }

    private static final byte[] PREFIX = "birthmark-bundle-v1\0".getBytes(StandardCharsets.US_ASCII);
    private static final byte[] RENEWAL_PREFIX =
            "birthmark-renew-v1\0".getBytes(StandardCharsets.US_ASCII);
    private static final long DAY_MS = 86_400_000;
    private static final byte[] SALT = "Birthmark".getBytes(StandardCharsets.US_ASCII);
    private static final String ALGORITHM = "ECDH-ES+A256KW";
    private static final SecureRandom RANDOM = new SecureRandom();
    private static final String DEVICE = "urn:birthmark:device:";
    private static final String RECIPIENT = "urn:birthmark:recipient-key:sha-256:";
    private static final Set<String> RENEWED_SECRETS =
            new TreeSet<>(Arrays.asList("device_serial", "certificate_sha256", "table_keys"));
    private static final Set<String> SECRETS = new TreeSet<>(
            Arrays.asList("device_serial", "certificate_sha256", "nuc_hash", "table_keys"));
    private static final String PAIR = "\"[A-Za-z0-9_]+\" ?: ?\"(?:[^\"\\\\]|\\\\.)*\"";
    // Object identifiers in DER: 2.5.4.3, 2.5.29.17 and 1.2.840.113549.1.9.14.
    private static final byte[] COMMON_NAME = {6, 3, 0x55, 4, 3};
    private static final byte[] ALTERNATIVE_NAME = {6, 3, 0x55, 0x1D, 0x11};
    private static final byte[] EXTENSION_REQUEST =
            {6, 9, 0x2A, (byte) 0x86, 0x48, (byte) 0x86, (byte) 0xF7, 0x0D, 1, 9, 14};

    private CameraCore() {}

    // --- provisioning

    /** Returns the request body. Keep it, with its Idempotency-Key, until the response is stored. */
    public static String provisioningRequest(
            String serial, String family, PublicKey signing, SigningKey key, PublicKey agreement)
            throws GeneralSecurityException {
        return "{\"device_serial\":" + quoted(serial)
                + ",\"device_family\":" + quoted(family)
                + ",\"csr\":" + quoted(pem("CERTIFICATE REQUEST", csr(serial, signing, key, agreement)))
                + ",\"key_encryption_public_key\":"
                + quoted(pem("PUBLIC KEY", agreement.getEncoded())) + "}";
    }

    /**
     * Reads the response to this camera's request, and opens its secrets with the recipient key.
     *
     * <p>An attacker on the way may have replaced any part of the response. So this method verifies
     * that the certificate is for this key and serial, and that the sealed secrets name this
     * certificate.
     */
    public static Provisioned provisioned(
            String serial, String answer, PublicKey signing, AgreementKey key)
            throws GeneralSecurityException {
        return read(serial, answer, signing, key, null);
    }

    /** As `provisioned`. A response to a renewal contains no NUC hash if `nucHash` is the camera's. */
    private static Provisioned read(
            String serial, String answer, PublicKey signing, AgreementKey key, byte[] nucHash)
            throws GeneralSecurityException {
        List<String> chain = new ArrayList<>();
        chain.add(unescaped(member(answer, "device_certificate")));
        X509Certificate certificate = certificate(chain.get(0));
        demand(
                Arrays.equals(certificate.getPublicKey().getEncoded(), signing.getEncoded()),
                "the certificate is for another key");
        demand(names(certificate, DEVICE + percentEncoded(serial)), "the certificate is for another serial");
        Matcher first = Pattern.compile("\"certificate_chain\" ?: ?\\[ ?\"([^\"]+)\"").matcher(answer);
        demand(first.find(), "the answer has no certificate chain");
        chain.add(unescaped(first.group(1)));
        String opened = openJwe(member(answer, "sealed_secrets"), key);
        String inner = inner(opened, "table_keys");
        Map<String, String> secrets = flat(opened.replace(inner, "\"\""));
        demand(secrets.keySet().equals(nucHash == null ? SECRETS : RENEWED_SECRETS), "these are not the secrets of a camera");
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(certificate.getEncoded());
        demand(
                quoted(serial).equals("\"" + secrets.get("device_serial") + "\"")
                        && hex(digest).equals(secrets.get("certificate_sha256")),
                "the secrets are for another certificate");
        Map<Integer, byte[]> tableKeys = new TreeMap<>();
        for (Map.Entry<String, String> entry : flat(inner).entrySet()) {
            demand(entry.getKey().matches("\\d{1,9}"), "a table has a number");
            tableKeys.put(Integer.valueOf(entry.getKey()), bytes(entry.getValue()));
        }
        Matcher tables = Pattern.compile("\"table_assignments\" ?: ?\\[([0-9, ]+)\\]").matcher(answer);
        demand(tables.find(), "the answer has no tables");
        String assigned = Arrays.toString(tableKeys.keySet().toArray()).replaceAll("[^0-9,]", "");
        demand(
                tableKeys.size() == 3 && assigned.equals(tables.group(1).replace(" ", "")),
                "the keys are those of other tables");
        byte[] known = nucHash == null ? bytes(secrets.get("nuc_hash")) : nucHash;
        return new Provisioned(chain, known, tableKeys);
    }

    /**
     * Returns a PKCS#10 request (RFC 2986), which proves that the camera has its private key. It
     * contains the SHA-256 of the recipient key, so that an attacker on the way cannot replace that key.
     */
    static byte[] csr(String serial, PublicKey publicKey, SigningKey key, PublicKey recipient)
            throws GeneralSecurityException {
        byte[] name = der(0x30, COMMON_NAME, der(0x0C, serial.getBytes(StandardCharsets.UTF_8)));
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(recipient.getEncoded());
        byte[] uri = der(0x86, ascii(RECIPIENT + hex(digest)));
        byte[] extension = der(0x30, ALTERNATIVE_NAME, der(4, der(0x30, uri)));
        byte[] attribute = der(0x30, EXTENSION_REQUEST, der(0x31, der(0x30, extension)));
        byte[] info = der(
                0x30,
                new byte[] {2, 1, 0},
                der(0x30, der(0x31, name)),
                publicKey.getEncoded(),
                der(0xA0, attribute));
        byte[] ecdsaWithSha256 = {6, 8, 0x2A, (byte) 0x86, 0x48, (byte) 0xCE, 0x3D, 4, 3, 2};
        byte[] signature = der(3, new byte[1], key.sign(info));
        return der(0x30, info, der(0x30, ecdsaWithSha256), signature);
    }

    // --- renewal

    /**
     * Returns the CSR of a renewal, for new keys. Store it before it is sent, and send it again until a
     * response is stored: the same CSR gets the same certificate.
     */
    public static String renewalCsr(
            String serial, PublicKey signing, SigningKey key, PublicKey agreement)
            throws GeneralSecurityException {
        return pem("CERTIFICATE REQUEST", csr(serial, signing, key, agreement));
    }

    /**
     * Returns the request body. `key` is the current one, of the certificate that the camera has, and
     * `agreement` the new recipient key, which the CSR names. The old certificate stays valid.
     */
    public static String renewalRequest(
            Provisioned camera, String csr, PublicKey agreement, SigningKey key, String requestedAt)
            throws GeneralSecurityException {
        String certificate = camera.chain.get(0);
        // The names are sorted and there is no white space, so this is canonical JSON (RFC 8785).
        String proof = "{\"certificate_sha256\":\"" + sha256(decoded(certificate))
                + "\",\"csr_sha256\":\"" + sha256(decoded(csr))
                + "\",\"recipient_key_sha256\":\"" + sha256(agreement.getEncoded())
                + "\",\"requested_at\":" + quoted(requestedAt) + ",\"supersede\":false}";
        byte[] signature = key.sign(joined(RENEWAL_PREFIX, ascii(proof)));
        return "{\"device_certificate\":" + quoted(certificate)
                + ",\"csr\":" + quoted(csr)
                + ",\"key_encryption_public_key\":"
                + quoted(pem("PUBLIC KEY", agreement.getEncoded()))
                + ",\"supersede\":false,\"requested_at\":" + quoted(requestedAt)
                + ",\"signature\":\"" + Base64.getEncoder().encodeToString(signature) + "\"}";
    }

    /**
     * Reads the response to a renewal, as `provisioned` does. The keys are the new ones, and the NUC
     * hash stays: the authority does not know it.
     */
    public static Provisioned renewed(
            String serial, String answer, PublicKey signing, AgreementKey key, byte[] nucHash)
            throws GeneralSecurityException {
        return read(serial, answer, signing, key, nucHash);
    }

    /** Returns the path of the renewal window: the id is that of RFC 9773, section 4.1. */
    public static String renewalPath(Provisioned camera) throws GeneralSecurityException {
        X509Certificate certificate = certificate(camera.chain.get(0));
        // DER: an OCTET STRING with a SEQUENCE with [0], the issuer's key identifier.
        byte[] identifier = certificate.getExtensionValue("2.5.29.35");
        demand(
                identifier != null && identifier.length >= 6 && identifier[4] == (byte) 0x80,
                "the certificate does not name its issuer's key");
        byte[] issuer = Arrays.copyOfRange(identifier, 6, 6 + identifier[5]);
        Base64.Encoder text = Base64.getUrlEncoder().withoutPadding();
        return "/api/v1/devices/renewal-info/" + text.encodeToString(issuer) + "."
                + text.encodeToString(certificate.getSerialNumber().toByteArray());
    }

    /**
     * Returns the time of the renewal in ms. `answer` is the window's response, or null if there is
     * none. `share` is a number from 0 to 1, drawn once for each certificate: it spreads a fleet.
     */
    public static long renewalTime(Provisioned camera, String answer, double share)
            throws GeneralSecurityException {
        X509Certificate certificate = certificate(camera.chain.get(0));
        long begins = certificate.getNotBefore().getTime();
        long validity = certificate.getNotAfter().getTime() - begins;
        long start = begins + validity / 3 * 2;
        long end = begins + validity / 6 * 5;
        try {
            long from = time(member(answer == null ? "" : answer, "start"));
            long to = time(member(answer == null ? "" : answer, "end"));
            if (from < to) {
                start = from;
                end = to;
            }
        } catch (GeneralSecurityException | ParseException none) {
            // The window of the validity stays: 2/3 to 5/6.
        }
        // No window may be so late that the certificate ends before.
        return Math.min(start + (long) ((end - start) * share), begins + validity / 12 * 11);
    }

    /** Returns the pause in ms after a failed renewal: it grows to a day, and half of it is random. */
    public static long renewalPause(int failures, long retryAfterMs) {
        long pause = Math.min(30_000L << Math.min(failures, 12), DAY_MS);
        long wait = pause / 2 + (long) (RANDOM.nextDouble() * pause / 2);
        return Math.min(Math.max(wait, retryAfterMs), DAY_MS);
    }

    // --- pictures

    /** Returns the key of an index: HKDF-SHA256 (RFC 5869) with one block. */
    public static byte[] derivedKey(byte[] masterKey, int keyIndex) throws GeneralSecurityException {
        byte[] info = ByteBuffer.allocate(5).putInt(keyIndex).put((byte) 1).array();
        return hmac(hmac(SALT, masterKey), info);
    }

    /**
     * Returns the number of keys per table. The response does not contain it, and a token with a key
     * index outside the table fails. Change this method if your authority has other sizes. A prototype
     * has only the tables 0 to 9, with 100 keys each. A camera of a full authority that happens to have
     * three of these tables uses only the first 100 keys of each.
     */
    static int keysPerTable(List<Integer> tables) {
        for (int table : tables) if (table > 9) return 1_000;
        return 100;
    }

    /** Returns a bundle of a picture: a camera token under a random key, signed by the camera. */
    public static String capture(
            Provisioned camera, byte[] picture, SigningKey key, String capturedAt)
            throws GeneralSecurityException {
        List<Integer> tables = new ArrayList<>(camera.tableKeys.keySet());
        int tableId = tables.get(RANDOM.nextInt(tables.size()));
        int keyIndex = RANDOM.nextInt(keysPerTable(tables));
        byte[] nonce = new byte[12];
        RANDOM.nextBytes(nonce); // 96 random bits: a nonce must never repeat under one key
        byte[] derived = derivedKey(camera.tableKeys.get(tableId), keyIndex);
        byte[] sealed = gcm(Cipher.ENCRYPT_MODE, derived, nonce, new byte[0], camera.nucHash);
        // The names are sorted and there is no white space, so this is canonical JSON (RFC 8785).
        String head = "{\"camera_token\":{\"encrypted_nuc_hash\":\"" + hex(sealed)
                + "\",\"key_index\":" + keyIndex + ",\"nonce\":\"" + hex(nonce)
                + "\",\"table_id\":" + tableId + "},\"captured_at\":" + quoted(capturedAt)
                + ",\"device_certificate_chain\":[" + quoted(base64(camera.chain.get(0))) + ","
                + quoted(base64(camera.chain.get(1))) + "],\"image_hash\":\""
                + hex(MessageDigest.getInstance("SHA-256").digest(picture)) + "\"";
        String tail = ",\"version\":1}";
        byte[] signature = key.sign(joined(PREFIX, ascii(head + tail)));
        return head + ",\"signature\":\"" + Base64.getEncoder().encodeToString(signature) + "\"" + tail;
    }

    // --- JWE: ECDH-ES+A256KW on P-256 with A256GCM (RFC 7516, RFC 7518)

    static String openJwe(String jwe, AgreementKey key) throws GeneralSecurityException {
        String[] parts = jwe.split("\\.", -1);
        demand(parts.length == 5, "this is no compact JWE");
        String text = new String(base64url(parts[0]), StandardCharsets.UTF_8);
        String inner = inner(text, "epk");
        Map<String, String> header = flat(text.replace(inner, "\"\""));
        Map<String, String> epk = flat(inner);
        demand(ALGORITHM.equals(header.remove("alg")), "another algorithm");
        demand("A256GCM".equals(header.remove("enc")), "another encryption");
        String content = header.remove("cty");
        demand(content == null || content.equals("json"), "another content");
        demand(header.keySet().equals(Collections.singleton("epk")), "it asks for more");
        demand("EC".equals(epk.get("kty")) && "P-256".equals(epk.get("crv")), "another curve");
        demand(epk.size() == 4 && epk.containsKey("x") && epk.containsKey("y"), "no point");
        demand(base64url(parts[4]).length == 16, "a tag has 16 bytes");
        byte[] shared = key.agree(point(epk.get("x"), epk.get("y")));
        // RFC 7518, section 4.6.2: one round, no party information, 256 bits.
        ByteBuffer info = ByteBuffer.allocate(4 + shared.length + 4 + ALGORITHM.length() + 12);
        info.putInt(1).put(shared).putInt(ALGORITHM.length()).put(ascii(ALGORITHM));
        info.putInt(0).putInt(0).putInt(256);
        byte[] wrapping = MessageDigest.getInstance("SHA-256").digest(info.array());
        byte[] contentKey = unwrapped(wrapping, base64url(parts[1]));
        byte[] sealed = joined(base64url(parts[3]), base64url(parts[4]));
        byte[] opened =
                gcm(Cipher.DECRYPT_MODE, contentKey, base64url(parts[2]), ascii(parts[0]), sealed);
        return new String(opened, StandardCharsets.UTF_8);
    }

    /** AES key unwrapping (RFC 3394, section 2.2.2). Not every Android version has it as a cipher. */
    static byte[] unwrapped(byte[] key, byte[] wrapped) throws GeneralSecurityException {
        demand(wrapped.length == 40, "a wrapped key has 40 bytes");
        @SuppressWarnings("InsecureCryptoUsage") // the RFC encrypts one block at a time
        Cipher aes = Cipher.getInstance("AES/ECB/NoPadding");
        aes.init(Cipher.DECRYPT_MODE, new SecretKeySpec(key, "AES"));
        byte[] r = wrapped.clone();
        for (int t = 24; t >= 1; t--) {
            int i = 8 * ((t - 1) % 4 + 1);
            byte[] block = ByteBuffer.allocate(16).put(r, 0, 8).put(r, i, 8).array();
            block[7] ^= (byte) t;
            byte[] out = aes.doFinal(block);
            System.arraycopy(out, 0, r, 0, 8);
            System.arraycopy(out, 8, r, i, 8);
        }
        byte difference = 0;
        for (int i = 0; i < 8; i++) difference |= (byte) (r[i] ^ (byte) 0xA6);
        demand(difference == 0, "the secrets are not for this camera");
        return ByteBuffer.allocate(32).put(r, 8, 32).array();
    }

    /**
     * Returns the sender's public key. A point that is not on the curve is refused: with such points an
     * attacker learns the camera's private key bit by bit (invalid-curve attack).
     */
    private static PublicKey point(String x, String y) throws GeneralSecurityException {
        AlgorithmParameters named = AlgorithmParameters.getInstance("EC");
        named.init(new ECGenParameterSpec("secp256r1"));
        ECParameterSpec spec = named.getParameterSpec(ECParameterSpec.class);
        BigInteger p = ((ECFieldFp) spec.getCurve().getField()).getP();
        demand(base64url(x).length == 32 && base64url(y).length == 32, "a coordinate has 32 bytes");
        BigInteger px = new BigInteger(1, base64url(x));
        BigInteger py = new BigInteger(1, base64url(y));
        BigInteger right =
                px.pow(3).add(spec.getCurve().getA().multiply(px)).add(spec.getCurve().getB()).mod(p);
        demand(px.compareTo(p) < 0 && py.compareTo(p) < 0, "no point");
        demand(py.pow(2).mod(p).equals(right), "not on the curve");
        ECPublicKeySpec key = new ECPublicKeySpec(new ECPoint(px, py), spec);
        return KeyFactory.getInstance("EC").generatePublic(key);
    }

    // --- small parts

    private static byte[] gcm(int mode, byte[] key, byte[] nonce, byte[] more, byte[] input)
            throws GeneralSecurityException {
        demand(nonce.length == 12, "a nonce has 12 bytes");
        Cipher cipher = Cipher.getInstance("AES/GCM/NoPadding");
        cipher.init(mode, new SecretKeySpec(key, "AES"), new GCMParameterSpec(128, nonce));
        cipher.updateAAD(more);
        return cipher.doFinal(input);
    }

    private static byte[] hmac(byte[] key, byte[] message) throws GeneralSecurityException {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(message);
    }

    /** Returns a text member of a JSON object. The authority's responses need no more of a parser. */
    static String member(String json, String name) throws GeneralSecurityException {
        Matcher found = Pattern.compile("\"" + name + "\" ?: ?\"([^\"]*)\"").matcher(json);
        demand(found.find(), "there is no " + name);
        return found.group(1);
    }

    /** Returns the object that is the member of this name. */
    private static String inner(String json, String name) throws GeneralSecurityException {
        Matcher found = Pattern.compile("\"" + name + "\" ?: ?(\\{[^{}]*\\})").matcher(json);
        demand(found.find(), "there is no " + name);
        return found.group(1);
    }

    /** Returns the members of an object of texts. Duplicate names are refused. Escapes stay as they are. */
    private static Map<String, String> flat(String json) throws GeneralSecurityException {
        demand(json.matches("\\{(" + PAIR + "(, ?" + PAIR + ")*)?\\}"), "it has another form");
        Map<String, String> members = new TreeMap<>();
        Matcher pair = Pattern.compile(PAIR).matcher(json);
        while (pair.find()) {
            String[] texts = pair.group().split("\" ?: ?\"", 2);
            String value = texts[1].substring(0, texts[1].length() - 1);
            demand(members.put(texts[0].substring(1), value) == null, "a name stands twice");
        }
        return members;
    }

    private static X509Certificate certificate(String pem) throws GeneralSecurityException {
        return (X509Certificate) CertificateFactory.getInstance("X.509")
                .generateCertificate(new ByteArrayInputStream(ascii(pem)));
    }

    /** Reads a UTC time such as 2027-05-01T00:00:00Z. A fraction of a second is left out. */
    private static long time(String text) throws ParseException {
        SimpleDateFormat format = new SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT);
        format.setTimeZone(TimeZone.getTimeZone("UTC"));
        return format.parse(text.replaceAll("\\.\\d+", "")).getTime();
    }

    private static String sha256(byte[] bytes) throws GeneralSecurityException {
        return hex(MessageDigest.getInstance("SHA-256").digest(bytes));
    }

    private static byte[] decoded(String pem) {
        return Base64.getDecoder().decode(base64(pem));
    }

    private static boolean names(X509Certificate certificate, String uri) throws GeneralSecurityException {
        if (certificate.getSubjectAlternativeNames() == null) return false;
        for (List<?> each : certificate.getSubjectAlternativeNames()) {
            if (each.get(0).equals(6) && each.get(1).equals(uri)) return true;
        }
        return false;
    }

    /** Percent-encodes the UTF-8 bytes of a text (RFC 3986, section 2.1). */
    private static String percentEncoded(String text) {
        StringBuilder out = new StringBuilder();
        for (byte each : text.getBytes(StandardCharsets.UTF_8)) {
            char c = (char) (each & 0xFF);
            boolean plain = c < 0x80 && (Character.isLetterOrDigit(c) || "-._~".indexOf(c) >= 0);
            out.append(plain ? String.valueOf(c) : String.format("%%%02X", (int) c));
        }
        return out.toString();
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '\n') out.append("\\n");
            else if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < 0x20 || c > 0x7E) out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        return out.append('"').toString();
    }

    private static String unescaped(String text) {
        return text.replace("\\n", "\n").replace("\\/", "/");
    }

    private static String pem(String what, byte[] der) {
        String lines = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(der);
        return "-----BEGIN " + what + "-----\n" + lines + "\n-----END " + what + "-----\n";
    }

    /** Returns a certificate as bundles contain it: base64 of its DER on one line, without PEM marks. */
    private static String base64(String pem) {
        return pem.replaceAll("-----[A-Z ]+-----", "").replaceAll("\\s", "");
    }

    private static byte[] der(int tag, byte[]... parts) {
        byte[] content = joined(parts);
        int length = content.length;
        byte[] head = length < 0x80
                ? new byte[] {(byte) tag, (byte) length}
                : length < 0x100
                        ? new byte[] {(byte) tag, (byte) 0x81, (byte) length}
                        : new byte[] {(byte) tag, (byte) 0x82, (byte) (length >> 8), (byte) length};
        return joined(head, content);
    }

    private static byte[] joined(byte[]... parts) {
        int length = 0;
        for (byte[] each : parts) length += each.length;
        ByteBuffer all = ByteBuffer.allocate(length);
        for (byte[] each : parts) all.put(each);
        return all.array();
    }

    private static byte[] ascii(String text) {
        return text.getBytes(StandardCharsets.US_ASCII);
    }

    private static byte[] base64url(String text) throws GeneralSecurityException {
        try {
            // The decoder accepts padding and unused bits, so the text is compared with its re-encoding.
            byte[] decoded = Base64.getUrlDecoder().decode(text);
            String again = Base64.getUrlEncoder().withoutPadding().encodeToString(decoded);
            demand(again.equals(text), "no base64url");
            return decoded;
        } catch (IllegalArgumentException damaged) {
            throw new GeneralSecurityException("no base64url", damaged);
        }
    }

    private static String hex(byte[] bytes) {
        StringBuilder out = new StringBuilder();
        for (byte each : bytes) out.append(String.format("%02x", each));
        return out.toString();
    }

    private static byte[] bytes(String hex) throws GeneralSecurityException {
        demand(hex.matches("[0-9a-f]{64}"), "a secret has 32 bytes in hex");
        byte[] out = new byte[hex.length() / 2];
        for (int i = 0; i < out.length; i++) {
            out[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        }
        return out;
    }

    private static void demand(boolean holds, String otherwise) throws GeneralSecurityException {
        if (!holds) throw new GeneralSecurityException(otherwise);
    }
}
