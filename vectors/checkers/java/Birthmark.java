import java.io.ByteArrayInputStream;
import java.math.BigInteger;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.Key;
import java.security.KeyFactory;
import java.security.MessageDigest;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.Signature;
import java.security.cert.CertPath;
import java.security.cert.CertPathValidator;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXParameters;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.interfaces.ECKey;
import java.security.interfaces.ECPrivateKey;
import java.security.interfaces.RSAKey;
import java.security.spec.ECPoint;
import java.security.spec.ECPublicKeySpec;
import java.security.spec.MGF1ParameterSpec;
import java.security.spec.X509EncodedKeySpec;
import java.time.DateTimeException;
import java.time.Instant;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collection;
import java.util.Date;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import javax.crypto.Cipher;
import javax.crypto.KeyAgreement;
import javax.crypto.Mac;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.OAEPParameterSpec;
import javax.crypto.spec.PSource;
import javax.crypto.spec.SecretKeySpec;

/**
 * The Birthmark protocol in Java, for JDK 17 or later, without libraries. Copy this file and Json.java.
 *
 * <p>What is refused is a GeneralSecurityException or an IllegalArgumentException.
 */
final class Birthmark {
    static final byte[] SALT = "Birthmark".getBytes(StandardCharsets.US_ASCII);
    private static final String DEVICE = "urn:birthmark:device:";
    private static final String CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
    private static final int URI = 6;

    private static final String SEALING = "ECDH-ES+A256KW";
    private static final Set<String> HEADER = Set.of("alg", "enc", "epk", "cty");
    private static final Set<String> SECRETS =
            Set.of("device_serial", "certificate_sha256", "nuc_hash", "table_keys");
    private static final Set<String> FIELDS = Set.of(
            "version", "image_hash", "camera_token", "device_certificate_chain", "captured_at", "signature");
    private static final Set<String> TOKEN_FIELDS =
            Set.of("encrypted_nuc_hash", "table_id", "key_index", "nonce");

    private Birthmark() {}

    /** A camera token. */
    record CameraToken(String encryptedNucHash, long tableId, long keyIndex, String nonce) {}

    // --- keys and camera tokens

    /** HKDF-SHA256, 32 bytes long (RFC 5869). */
    static byte[] deriveKey(byte[] masterKey, long keyIndex, byte[] salt, byte[] infoSuffix)
            throws GeneralSecurityException {
        // A missing salt is 32 zeros (section 2.2); Java takes no empty key.
        byte[] pseudorandomKey = hmac(salt.length == 0 ? new byte[32] : salt, masterKey);
        ByteBuffer info = ByteBuffer.allocate(4 + infoSuffix.length + 1);
        info.putInt((int) keyIndex).put(infoSuffix).put((byte) 1);
        return hmac(pseudorandomKey, info.array());
    }

    private static byte[] hmac(byte[] key, byte[] message) throws GeneralSecurityException {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(message);
    }

    /** Makes a camera token. The nonce is 12 fresh random bytes, never used twice. */
    static CameraToken seal(byte[] nucHash, byte[] masterKey, long tableId, long keyIndex, byte[] nonce)
            throws GeneralSecurityException {
        byte[] sealed = gcm(Cipher.ENCRYPT_MODE, masterKey, keyIndex, nonce).doFinal(nucHash);
        HexFormat hex = HexFormat.of();
        return new CameraToken(hex.formatHex(sealed), tableId, keyIndex, hex.formatHex(nonce));
    }

    /** Returns the NUC hash inside a camera token. */
    static byte[] open(CameraToken token, byte[] masterKey, long keysPerTable)
            throws GeneralSecurityException {
        byte[] sealed = fromHex(token.encryptedNucHash(), 48);
        byte[] nonce = fromHex(token.nonce(), 12);
        if (token.keyIndex() < 0 || token.keyIndex() >= keysPerTable) {
            throw new IllegalArgumentException("no such key");
        }
        return gcm(Cipher.DECRYPT_MODE, masterKey, token.keyIndex(), nonce).doFinal(sealed);
    }

    private static Cipher gcm(int mode, byte[] masterKey, long keyIndex, byte[] nonce)
            throws GeneralSecurityException {
        Cipher cipher = Cipher.getInstance("AES/GCM/NoPadding");
        byte[] key = deriveKey(masterKey, keyIndex, SALT, new byte[0]);
        cipher.init(mode, new SecretKeySpec(key, "AES"), new GCMParameterSpec(128, nonce));
        return cipher;
    }

    static byte[] fromHex(String text, int size) {
        if (text.length() != 2 * size) {
            throw new IllegalArgumentException("not " + size + " bytes in hex");
        }
        return HexFormat.of().parseHex(text);
    }

    // --- secrets that come sealed: compact JWE, ECDH-ES+A256KW or RSA-OAEP-256, and A256GCM

    /** Returns what is sealed (RFC 7516, section 5.2; RFC 7518, sections 4.3 and 4.6), read strictly. */
    static Map<String, Object> openSecrets(String jwe, PrivateKey key) throws GeneralSecurityException {
        String[] parts = jwe.split("\\.", -1);
        if (parts.length != 5) {
            throw new IllegalArgumentException("not compact JWE");
        }
        Map<String, Object> header = fields(Json.parse(fromBase64url(parts[0])));
        byte[] wrapped = fromBase64url(parts[1]);
        byte[] nonce = fromBase64url(parts[2]);
        byte[] tag = fromBase64url(parts[4]);
        RSAKey rsa = key instanceof RSAKey known ? known : null; // the kind of the key alone decides
        if (!(rsa != null ? "RSA-OAEP-256" : SEALING).equals(header.get("alg"))
                || !"A256GCM".equals(header.get("enc"))
                || !"json".equals(header.getOrDefault("cty", "json"))
                || !HEADER.containsAll(header.keySet()) // no zip, no crit, no party information
                || header.containsKey("epk") != (rsa == null)
                || wrapped.length != (rsa != null ? rsa.getModulus().bitLength() / 8 : 40)
                || nonce.length != 12 || tag.length != 16) {
            throw new IllegalArgumentException("no such way of sealing");
        }
        Key contentKey = rsa != null ? decryptKey(key, wrapped) : unwrapKey(key, header, wrapped);
        Cipher cipher = Cipher.getInstance("AES/GCM/NoPadding");
        cipher.init(Cipher.DECRYPT_MODE, contentKey, new GCMParameterSpec(128, nonce));
        cipher.updateAAD(parts[0].getBytes(StandardCharsets.US_ASCII));
        cipher.update(fromBase64url(parts[3])); // the JDK gives nothing out before the tag is right
        return fields(Json.parse(cipher.doFinal(tag)));
    }

    private static Key decryptKey(PrivateKey key, byte[] encrypted) throws GeneralSecurityException {
        Cipher cipher = Cipher.getInstance("RSA/ECB/OAEPWithSHA-256AndMGF1Padding");
        // Unless told, Java has SHA-1 in MGF1.
        cipher.init(Cipher.DECRYPT_MODE, key, new OAEPParameterSpec(
                "SHA-256", "MGF1", MGF1ParameterSpec.SHA256, PSource.PSpecified.DEFAULT));
        byte[] contentKey = cipher.doFinal(encrypted);
        if (contentKey.length != 32) {
            throw new IllegalArgumentException("no such length");
        }
        return new SecretKeySpec(contentKey, "AES");
    }

    private static Key unwrapKey(PrivateKey key, Map<String, Object> header, byte[] wrapped)
            throws GeneralSecurityException {
        byte[] wrapping = concatKdf(agree(key, fields(header.get("epk"))));
        Cipher unwrapper = Cipher.getInstance("AESWrap"); // RFC 3394
        unwrapper.init(Cipher.UNWRAP_MODE, new SecretKeySpec(wrapping, "AES"));
        return unwrapper.unwrap(wrapped, "AES", Cipher.SECRET_KEY);
    }

    private static byte[] agree(PrivateKey key, Map<String, Object> epk) throws GeneralSecurityException {
        boolean montgomery = !(key instanceof ECPrivateKey);
        int bits = montgomery ? 255 : ((ECPrivateKey) key).getParams().getOrder().bitLength();
        if (!epk.keySet().equals(montgomery ? Set.of("kty", "crv", "x") : Set.of("kty", "crv", "x", "y"))
                || !(montgomery ? "OKP" : "EC").equals(epk.get("kty"))
                || !(montgomery ? "X25519" : "P-" + bits).equals(epk.get("crv"))
                || fromBase64url(text(epk, "x")).length != (bits + 7) / 8
                || !montgomery && fromBase64url(text(epk, "y")).length != (bits + 7) / 8) {
            throw new IllegalArgumentException("no such point");
        }
        KeyAgreement agreement = KeyAgreement.getInstance(montgomery ? "X25519" : "ECDH");
        agreement.init(key);
        byte[] x = fromBase64url(text(epk, "x"));
        PublicKey point;
        if (montgomery) {
            byte[] der = HexFormat.of().parseHex("302a300506032b656e032100" + HexFormat.of().formatHex(x));
            point = KeyFactory.getInstance("X25519").generatePublic(new X509EncodedKeySpec(der));
        } else {
            ECPoint w = new ECPoint(new BigInteger(1, x), new BigInteger(1, fromBase64url(text(epk, "y"))));
            ECPublicKeySpec spec = new ECPublicKeySpec(w, ((ECPrivateKey) key).getParams());
            point = KeyFactory.getInstance("EC").generatePublic(spec);
        }
        agreement.doPhase(point, true); // refuses what is not on the curve
        return agreement.generateSecret();
    }

    private static byte[] concatKdf(byte[] shared) throws GeneralSecurityException {
        // One round is enough for 32 bytes. No party is named; 256 is the size of the key in bits.
        ByteBuffer message = ByteBuffer.allocate(4 + shared.length + 4 + SEALING.length() + 8 + 4);
        message.putInt(1).put(shared).putInt(SEALING.length());
        message.put(SEALING.getBytes(StandardCharsets.US_ASCII)).putLong(0).putInt(256);
        return MessageDigest.getInstance("SHA-256").digest(message.array());
    }

    private static byte[] fromBase64url(String text) {
        byte[] decoded = Base64.getUrlDecoder().decode(text); // which takes padding, and loose bits
        if (!Base64.getUrlEncoder().withoutPadding().encodeToString(decoded).equals(text)) {
            throw new IllegalArgumentException("not base64url");
        }
        return decoded;
    }

    /** What a device asked for, and what it trusts. */
    record Asked(String deviceSerial, PublicKey deviceKey, PrivateKey recipientKey, String root) {}

    /** Returns the secrets in an answer to provisioning, if all of it is for this device. */
    static Map<String, Object> openResponse(Map<String, Object> response, Asked asked, Instant now)
            throws GeneralSecurityException {
        List<String> chain = new ArrayList<>(List.of(text(response, "device_certificate")));
        chain.addAll(texts(response.get("certificate_chain")));
        if (chain.size() != 3
                || !verifyChain(chain.subList(0, 2), asked.root(), now).equals(asked.deviceSerial())
                || !certificate(chain.get(0)).getPublicKey().equals(asked.deviceKey())
                || !certificate(chain.get(2)).equals(certificate(asked.root()))) {
            throw new GeneralSecurityException("the certificates are another's");
        }
        Map<String, Object> secrets = openSecrets(text(response, "sealed_secrets"), asked.recipientKey());
        byte[] digest = MessageDigest.getInstance("SHA-256").digest(certificate(chain.get(0)).getEncoded());
        if (!secrets.keySet().equals(SECRETS)
                || !asked.deviceSerial().equals(secrets.get("device_serial"))
                || !HexFormat.of().formatHex(digest).equals(secrets.get("certificate_sha256"))) {
            throw new IllegalArgumentException("the secrets of another certificate");
        }
        Map<String, Object> keys = fields(secrets.get("table_keys"));
        List<?> tables = items(response.get("table_assignments"));
        Set<String> names = tables.stream().map(String::valueOf).collect(Collectors.toSet());
        if (tables.size() != 3 || keys.size() != 3 || !names.equals(keys.keySet())) {
            throw new IllegalArgumentException("not the keys of its three tables");
        }
        fromHex(text(secrets, "nuc_hash"), 32);
        for (String table : keys.keySet()) {
            fromHex(text(keys, table), 32);
        }
        return secrets;
    }

    // --- certificates

    /** Returns the device serial of a chain (device first) that leads to the pinned root. */
    static String verifyChain(List<String> chain, String root, Instant now)
            throws GeneralSecurityException {
        List<X509Certificate> path = new ArrayList<>();
        for (String pem : chain) {
            path.add(certificate(pem));
        }
        return verifyPath(path, root, now);
    }

    private static String verifyPath(List<X509Certificate> chain, String root, Instant now)
            throws GeneralSecurityException {
        X509Certificate pinned = certificate(root);
        List<X509Certificate> path = new ArrayList<>(chain);
        path.removeIf(pinned::equals); // a root that is sent along proves nothing
        PKIXParameters parameters = new PKIXParameters(Set.of(new TrustAnchor(pinned, null)));
        parameters.setRevocationEnabled(false); // ask the CRL apart
        parameters.setDate(Date.from(now));
        CertPath certPath = CertificateFactory.getInstance("X.509").generateCertPath(path);
        CertPathValidator.getInstance("PKIX").validate(certPath, parameters);
        return deviceSerial(path.get(0));
    }

    private static String deviceSerial(X509Certificate leaf) throws GeneralSecurityException {
        boolean[] usage = leaf.getKeyUsage();
        List<String> purposes = leaf.getExtendedKeyUsage();
        Collection<List<?>> names = leaf.getSubjectAlternativeNames();
        if (leaf.getBasicConstraints() != -1 || usage == null || !usage[0]
                || purposes == null || !purposes.contains(CLIENT_AUTH) || names == null) {
            throw new GeneralSecurityException("not a device's certificate");
        }
        signatureAlgorithm(leaf.getPublicKey());
        List<String> urns = names.stream()
                .filter(name -> name.get(0).equals(URI) && name.get(1).toString().startsWith(DEVICE))
                .map(name -> name.get(1).toString()).toList();
        if (urns.size() == 1) {
            String serial = URLDecoder.decode(urns.get(0).substring(DEVICE.length()), StandardCharsets.UTF_8);
            if (!serial.isEmpty() && deviceUrn(serial).equals(urns.get(0))) {
                return serial;
            }
        }
        throw new GeneralSecurityException("it names no device, or not in its one spelling");
    }

    /** Returns the URN of a device serial: UTF-8, percent-encoded. URLEncoder is for forms. */
    static String deviceUrn(String serial) {
        return DEVICE + URLEncoder.encode(serial, StandardCharsets.UTF_8)
                .replace("+", "%20").replace("*", "%2A").replace("%7E", "~");
    }

    private static X509Certificate certificate(String pem) throws GeneralSecurityException {
        return certificate(pem.getBytes(StandardCharsets.US_ASCII));
    }

    /** Of DER or PEM; what follows it is ignored. */
    private static X509Certificate certificate(byte[] bytes) throws GeneralSecurityException {
        return (X509Certificate) CertificateFactory.getInstance("X.509")
                .generateCertificate(new ByteArrayInputStream(bytes));
    }

    // --- bundles

    /** Returns what the device signs: a prefix, and canonical JSON of all but the signature. */
    static byte[] signedBytes(Map<String, Object> bundle) {
        Map<String, Object> content = new HashMap<>(bundle);
        content.remove("signature");
        return ("birthmark-bundle-v1\0" + Json.canonical(content)).getBytes(StandardCharsets.UTF_8);
    }

    /** Returns what a device signs to renew its certificate. The DER of the recipient key may be null. */
    static byte[] renewalBytes(
            byte[] certificate, byte[] csr, byte[] recipientKey, String requestedAt, boolean supersede)
            throws GeneralSecurityException {
        Map<String, Object> proof = new HashMap<>();
        proof.put("certificate_sha256", sha256(certificate));
        proof.put("csr_sha256", sha256(csr));
        proof.put("recipient_key_sha256", recipientKey == null ? null : sha256(recipientKey));
        proof.put("requested_at", requestedAt);
        proof.put("supersede", supersede);
        return ("birthmark-renew-v1\0" + Json.canonical(proof)).getBytes(StandardCharsets.UTF_8);
    }

    private static String sha256(byte[] content) throws GeneralSecurityException {
        return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(content));
    }

    /** Returns the device serial of a bundle that holds: form, time, certificates, signature. */
    static String verifyBundle(String text, String root, Instant now) throws GeneralSecurityException {
        if (text.getBytes(StandardCharsets.UTF_8).length > 32_768) {
            throw new IllegalArgumentException("a bundle has at most 32,768 bytes");
        }
        Map<String, Object> bundle = fields(Json.parse(text));
        Map<String, Object> token = fields(bundle.get("camera_token"));
        List<String> chain = texts(bundle.get("device_certificate_chain"));
        if (!bundle.keySet().equals(FIELDS) || !Long.valueOf(1).equals(bundle.get("version"))
                || !token.keySet().equals(TOKEN_FIELDS)
                || !(token.get("table_id") instanceof Long table && table >= 0)
                || !(token.get("key_index") instanceof Long index && index >= 0)
                || !lowerHex(text(bundle, "image_hash"), 32)
                || !lowerHex(text(token, "encrypted_nuc_hash"), 48) || !lowerHex(text(token, "nonce"), 12)
                || chain.size() != 2) {
            throw new IllegalArgumentException("not a bundle");
        }
        List<X509Certificate> path = new ArrayList<>();
        for (String each : chain) {
            byte[] der = fromBase64(each);
            path.add(certificate(der));
            if (!Arrays.equals(path.get(path.size() - 1).getEncoded(), der)) {
                throw new IllegalArgumentException("not one certificate in DER");
            }
        }
        byte[] signature = fromBase64(text(bundle, "signature"));
        Instant captured = moment(text(bundle, "captured_at"));
        if (captured.isAfter(now.plusSeconds(3_600))) {
            throw new IllegalArgumentException("captured in the future");
        }
        String serial = verifyPath(path, root, now);
        verifyPath(path, root, captured.isBefore(now) ? captured : now);
        PublicKey key = path.get(0).getPublicKey();
        if (!verifySignature(signature, signedBytes(bundle), key)) {
            throw new GeneralSecurityException("the signature does not fit");
        }
        return serial;
    }

    private static byte[] fromBase64(String text) {
        byte[] decoded = Base64.getDecoder().decode(text); // which takes no padding, and loose bits
        if (!Base64.getEncoder().encodeToString(decoded).equals(text)) {
            throw new IllegalArgumentException("not in its one spelling");
        }
        return decoded;
    }

    private static Instant moment(String text) {
        if (!text.matches("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}Z")) {
            throw new IllegalArgumentException("not a time in its one spelling");
        }
        try {
            return LocalDateTime.parse(text.substring(0, text.length() - 1)).toInstant(ZoneOffset.UTC);
        } catch (DateTimeException noSuchDay) {
            throw new IllegalArgumentException(noSuchDay);
        }
    }

    private static boolean lowerHex(String text, int size) {
        return text.matches("[0-9a-f]{" + 2 * size + "}");
    }

    /** The kind of the key alone decides how it signs. */
    static boolean verifySignature(byte[] signature, byte[] message, PublicKey key)
            throws GeneralSecurityException {
        String algorithm = signatureAlgorithm(key);
        if (algorithm.equals("Ed25519") && signature.length != 64) {
            return false; // the JDK takes zeros at its end
        }
        Signature verifier = Signature.getInstance(algorithm);
        verifier.initVerify(key);
        verifier.update(message);
        return verifier.verify(signature);
    }

    /** Signs as a device. */
    static byte[] sign(byte[] message, PrivateKey key) throws GeneralSecurityException {
        Signature signer = Signature.getInstance(signatureAlgorithm(key));
        signer.initSign(key);
        signer.update(message);
        return signer.sign();
    }

    private static String signatureAlgorithm(Key key) throws GeneralSecurityException {
        if (key instanceof ECKey ec) {
            BigInteger order = ec.getParams().getOrder();
            if (order.bitLength() == 256 || order.bitLength() == 384) {
                return order.bitLength() == 256 ? "SHA256withECDSA" : "SHA384withECDSA";
            }
        } else if (key instanceof RSAKey rsa) {
            int bits = rsa.getModulus().bitLength();
            if (bits >= 2048 && bits <= 4096) {
                return "SHA256withRSA";
            }
        } else if (Arrays.asList("EdDSA", "Ed25519").contains(key.getAlgorithm())) {
            return "Ed25519";
        }
        throw new GeneralSecurityException("no device has such a key");
    }

    // --- verdicts

    /** What the authority knows of a device. */
    record Device(String status, List<Long> tableAssignments) {}

    /** Returns why a well-formed token gets its verdict: it is PASS for "genuine" alone. */
    static String judge(
            long tables, long keysPerTable, long tableId, long keyIndex, boolean opened, Device device) {
        if (tableId < 0 || tableId >= tables) {
            return "unknown_table";
        }
        if (keyIndex < 0 || keyIndex >= keysPerTable) {
            return "unknown_key_index";
        }
        if (!opened) {
            return "not_opened";
        }
        if (device == null) {
            return "unknown_device";
        }
        if (!device.tableAssignments().contains(tableId)) {
            return "table_not_assigned";
        }
        return device.status().equals("active") ? "genuine" : "device_" + device.status();
    }

    // --- JSON that others wrote

    @SuppressWarnings("unchecked")
    private static Map<String, Object> fields(Object value) {
        if (value instanceof Map) {
            return (Map<String, Object>) value; // as Json reads them
        }
        throw new IllegalArgumentException("not an object");
    }

    private static List<?> items(Object value) {
        if (value instanceof List<?> items) {
            return items;
        }
        throw new IllegalArgumentException("not an array");
    }

    private static List<String> texts(Object value) {
        if (!items(value).stream().allMatch(String.class::isInstance)) {
            throw new IllegalArgumentException("not texts");
        }
        return items(value).stream().map(String.class::cast).toList();
    }

    private static String text(Map<String, Object> fields, String name) {
        if (fields.get(name) instanceof String text) {
            return text;
        }
        throw new IllegalArgumentException("no text: " + name);
    }
}
