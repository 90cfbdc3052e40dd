import java.io.ByteArrayInputStream;
import java.math.BigInteger;
import java.net.URLDecoder;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.PublicKey;
import java.security.Signature;
import java.security.cert.CertPath;
import java.security.cert.CertPathValidator;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXParameters;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.security.interfaces.ECPublicKey;
import java.security.interfaces.RSAPublicKey;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Date;
import java.util.HexFormat;
import java.util.List;
import java.util.Set;
import javax.crypto.Cipher;
import javax.crypto.Mac;
import javax.crypto.spec.GCMParameterSpec;
import javax.crypto.spec.SecretKeySpec;

/**
 * The Birthmark protocol in Java, for JDK 17 or later, without libraries. Copy this file.
 *
 * <p>What is refused is a GeneralSecurityException or an IllegalArgumentException.
 */
final class Birthmark {
    static final byte[] SALT = "Birthmark".getBytes(StandardCharsets.US_ASCII);
    private static final String DEVICE = "urn:birthmark:device:";
    private static final String CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
    private static final int URI = 6;

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

    // --- certificates

    /** Returns the device serial of a chain (device first) that leads to the pinned root. */
    static String verifyChain(List<String> chain, String root, Instant now)
            throws GeneralSecurityException {
        List<X509Certificate> path = new ArrayList<>();
        for (String pem : chain) {
            path.add(certificate(pem));
        }
        X509Certificate pinned = certificate(root);
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
        for (List<?> name : names) {
            if (name.get(0).equals(URI) && name.get(1).toString().startsWith(DEVICE)) {
                String serial = name.get(1).toString().substring(DEVICE.length());
                // URLDecoder is for forms, where a plus is a space.
                return URLDecoder.decode(serial.replace("+", "%2B"), StandardCharsets.UTF_8);
            }
        }
        throw new GeneralSecurityException("it names no device");
    }

    private static X509Certificate certificate(String pem) throws GeneralSecurityException {
        byte[] bytes = pem.getBytes(StandardCharsets.US_ASCII);
        return (X509Certificate) CertificateFactory.getInstance("X.509")
                .generateCertificate(new ByteArrayInputStream(bytes));
    }

    // --- bundles

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

    private static String signatureAlgorithm(PublicKey key) throws GeneralSecurityException {
        if (key instanceof ECPublicKey ec) {
            BigInteger order = ec.getParams().getOrder();
            if (order.bitLength() == 256 || order.bitLength() == 384) {
                return order.bitLength() == 256 ? "SHA256withECDSA" : "SHA384withECDSA";
            }
        } else if (key instanceof RSAPublicKey rsa) {
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
}
