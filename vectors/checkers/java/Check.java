import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.AlgorithmParameters;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.MessageDigest;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.SecureRandom;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.ECParameterSpec;
import java.security.spec.ECPrivateKeySpec;
import java.security.spec.RSAPrivateCrtKeySpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.time.Instant;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** {@code java Check check <vectors>}, or {@code seal} / {@code open} with JSON on standard input. */
public final class Check {
    private static final HexFormat HEX = HexFormat.of();

    /** Says whether what came out is what the test says; a refusal is an exception. */
    private interface Run {
        boolean agrees(Map<String, Object> group, Map<String, Object> test)
                throws GeneralSecurityException;
    }

    private static final Map<String, Run> FILES = new LinkedHashMap<>();

    static {
        FILES.put("key_derivation", Check::keyDerivation);
        FILES.put("camera_token", Check::cameraToken);
        FILES.put("provisioning_response", Check::provisioningResponse);
        FILES.put("certificate_chain", Check::certificateChain);
        FILES.put("bundle_signature", Check::bundleSignature);
        FILES.put("renewal_proof", Check::renewalProof);
        FILES.put("verdict", Check::verdict);
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("check")) {
            System.exit(check(Path.of(arguments[1])) == 0 ? 0 : 1);
        }
        Map<String, Object> given = object(Json.parse(new String(System.in.readAllBytes(), StandardCharsets.UTF_8)));
        byte[] masterKey = bytes(given, "master_key");
        if (arguments[0].equals("seal")) {
            byte[] nonce = new byte[12];
            new SecureRandom().nextBytes(nonce);
            Birthmark.CameraToken token = Birthmark.seal(
                    bytes(given, "nuc_hash"), masterKey, number(given, "table_id"), number(given, "key_index"), nonce);
            System.out.printf(
                    "{\"encrypted_nuc_hash\":\"%s\",\"table_id\":%d,\"key_index\":%d,\"nonce\":\"%s\"}%n",
                    token.encryptedNucHash(), token.tableId(), token.keyIndex(), token.nonce());
        } else {
            Birthmark.CameraToken token = token(object(given.get("camera_token")));
            System.out.println(HEX.formatHex(Birthmark.open(token, masterKey, 1_000)));
        }
    }

    private static int check(Path vectors) throws Exception {
        int wrong = 0;
        for (Map.Entry<String, Run> file : FILES.entrySet()) {
            String text = Files.readString(vectors.resolve(file.getKey() + "_test.json"));
            int ran = 0;
            for (Object group : list(object(Json.parse(text)).get("testGroups"))) {
                for (Object each : list(object(group).get("tests"))) {
                    Map<String, Object> test = object(each);
                    ran++;
                    if (!right(file.getValue(), object(group), test)) {
                        wrong++;
                        System.out.printf("%s %s: %s: %s%n",
                                file.getKey(), test.get("tcId"), test.get("comment"), test.get("result"));
                    }
                }
            }
            System.out.printf("%s: %d tests%n", file.getKey(), ran);
        }
        return wrong;
    }

    /** To accept something else is no refusal. */
    private static boolean right(Run run, Map<String, Object> group, Map<String, Object> test) {
        try {
            return run.agrees(group, test) && !"invalid".equals(test.get("result"));
        } catch (GeneralSecurityException | IllegalArgumentException refusal) {
            return !"valid".equals(test.get("result"));
        }
    }

    private static boolean keyDerivation(Map<String, Object> group, Map<String, Object> test)
            throws GeneralSecurityException {
        byte[] key = Birthmark.deriveKey(
                bytes(test, "masterKey"), number(test, "keyIndex"), bytes(group, "salt"), bytes(group, "infoSuffix"));
        return HEX.formatHex(key).equals(test.get("derivedKey"));
    }

    private static boolean cameraToken(Map<String, Object> group, Map<String, Object> test)
            throws GeneralSecurityException {
        Birthmark.CameraToken token = token(object(test.get("cameraToken")));
        byte[] masterKey = bytes(test, "masterKey");
        byte[] nucHash = Birthmark.open(token, masterKey, number(group, "keysPerTable"));
        boolean same = HEX.formatHex(nucHash).equals(test.get("nucHash"));
        if (!"valid".equals(test.get("result"))) {
            return same;
        }
        Birthmark.CameraToken again = Birthmark.seal(
                nucHash, masterKey, token.tableId(), token.keyIndex(), HEX.parseHex(token.nonce()));
        return same && again.encryptedNucHash().equalsIgnoreCase(token.encryptedNucHash());
    }

    private static boolean provisioningResponse(Map<String, Object> group, Map<String, Object> test)
            throws GeneralSecurityException {
        PrivateKey key = testKey(group.get("recipientLabel").toString(), group.get("recipientKind").toString());
        Map<String, Object> opened;
        if (group.get("type").equals("Response")) {
            Birthmark.Asked asked = new Birthmark.Asked(
                    group.get("deviceSerial").toString(),
                    publicKey(group.get("devicePublicKey").toString(), "EC P-256"),
                    key,
                    group.get("root").toString());
            Instant now = Instant.parse(group.get("now").toString());
            opened = Birthmark.openResponse(object(test.get("response")), asked, now);
        } else {
            opened = Birthmark.openSecrets(test.get("sealedSecrets").toString(), key);
        }
        return opened.equals(test.get("secrets"));
    }

    /** The test key that a label stands for (docs/vectors.md): everybody can make it. */
    private static PrivateKey testKey(String label, String kind) throws GeneralSecurityException {
        if (kind.equals("RSA 2048")) {
            if (!RSA_KEYS.containsKey(label)) {
                RSA_KEYS.put(label, rsaKey(label));
            }
            return RSA_KEYS.get(label);
        }
        byte[] secret = digest(kind.endsWith("P-384") ? "SHA-384" : "SHA-256", label);
        if (kind.equals("X25519") || kind.equals("Ed25519")) {
            String oid = kind.equals("X25519") ? "6e" : "70";
            byte[] der = HEX.parseHex("302e020100300506032b65" + oid + "04220420" + HEX.formatHex(secret));
            return KeyFactory.getInstance(kind).generatePrivate(new PKCS8EncodedKeySpec(der));
        }
        AlgorithmParameters parameters = AlgorithmParameters.getInstance("EC");
        parameters.init(new ECGenParameterSpec(kind.endsWith("P-384") ? "secp384r1" : "secp256r1"));
        ECParameterSpec domain = parameters.getParameterSpec(ECParameterSpec.class);
        ECPrivateKeySpec scalar = new ECPrivateKeySpec(new BigInteger(1, secret), domain);
        return KeyFactory.getInstance("EC").generatePrivate(scalar);
    }

    private static final Map<String, PrivateKey> RSA_KEYS = new HashMap<>(); // to find primes takes a second

    private static PrivateKey rsaKey(String label) throws GeneralSecurityException {
        BigInteger one = BigInteger.ONE;
        BigInteger e = BigInteger.valueOf(65_537);
        BigInteger p = prime(label + ", prime 1");
        BigInteger q = prime(label + ", prime 2");
        BigInteger d = e.modInverse(p.subtract(one).multiply(q.subtract(one)));
        return KeyFactory.getInstance("RSA").generatePrivate(new RSAPrivateCrtKeySpec(
                p.multiply(q), e, d, p, q, d.mod(p.subtract(one)), d.mod(q.subtract(one)), q.modInverse(p)));
    }

    /** The first prime at or above the number of a label. */
    private static BigInteger prime(String label) throws GeneralSecurityException {
        StringBuilder blocks = new StringBuilder();
        for (int block = 0; block < 4; block++) {
            blocks.append(HEX.formatHex(digest("SHA-256", label + ", block " + block)));
        }
        BigInteger first = new BigInteger(blocks.toString(), 16).setBit(1_023).setBit(1_022).setBit(0);
        return first.subtract(BigInteger.ONE).nextProbablePrime();
    }

    private static byte[] digest(String algorithm, String label) throws GeneralSecurityException {
        return MessageDigest.getInstance(algorithm).digest(label.getBytes(StandardCharsets.US_ASCII));
    }

    private static boolean certificateChain(Map<String, Object> group, Map<String, Object> test)
            throws GeneralSecurityException {
        List<String> chain = list(test.get("chain")).stream().map(Object::toString).toList();
        Instant now = Instant.parse(test.get("now").toString());
        String serial = Birthmark.verifyChain(chain, group.get("root").toString(), now);
        return serial.equals(test.get("deviceSerial"))
                && Birthmark.deviceUrn(serial).equals(test.get("deviceUrn"));
    }

    private static boolean bundleSignature(Map<String, Object> group, Map<String, Object> test)
            throws GeneralSecurityException {
        String bundle = test.get("bundle").toString();
        if (group.get("type").equals("Bundle")) {
            Instant now = Instant.parse(group.get("now").toString());
            return Birthmark.verifyBundle(bundle, group.get("root").toString(), now)
                    .equals(test.get("deviceSerial"));
        }
        return signsAlike(group, test, Birthmark.signedBytes(object(Json.parse(bundle))));
    }

    private static boolean renewalProof(Map<String, Object> group, Map<String, Object> test)
            throws GeneralSecurityException {
        byte[] recipientKey = test.get("recipientKey") == null ? null : bytes(test, "recipientKey");
        return signsAlike(group, test, Birthmark.renewalBytes(
                bytes(test, "certificate"), bytes(test, "csr"), recipientKey,
                test.get("requestedAt").toString(), (Boolean) test.get("supersede")));
    }

    private static boolean signsAlike(Map<String, Object> group, Map<String, Object> test, byte[] message)
            throws GeneralSecurityException {
        if (!HEX.formatHex(message).equals(test.get("signedBytes"))) {
            return false;
        }
        String kind = group.get("keyKind").toString();
        PublicKey key = publicKey(group.get("publicKey").toString(), kind);
        if (!Birthmark.verifySignature(bytes(test, "signature"), message, key)) {
            throw new GeneralSecurityException("the signature does not fit");
        }
        byte[] signature = Birthmark.sign(message, testKey(group.get("deviceLabel").toString(), kind));
        return Birthmark.verifySignature(signature, message, key)
                && (kind.startsWith("EC ") || Arrays.equals(signature, bytes(test, "signature")));
    }

    private static PublicKey publicKey(String pem, String kind) throws GeneralSecurityException {
        String algorithm = kind.startsWith("EC ") ? "EC" : kind.startsWith("RSA ") ? "RSA" : kind;
        byte[] der = Base64.getMimeDecoder().decode(pem.replaceAll("-----[A-Z ]+-----", ""));
        return KeyFactory.getInstance(algorithm).generatePublic(new X509EncodedKeySpec(der));
    }

    private static boolean verdict(Map<String, Object> group, Map<String, Object> test)
            throws GeneralSecurityException {
        Birthmark.Device device = null;
        if (test.get("device") != null) {
            Map<String, Object> known = object(test.get("device"));
            List<Long> tables = list(known.get("tableAssignments")).stream().map(Long.class::cast).toList();
            device = new Birthmark.Device(known.get("status").toString(), tables);
        }
        String reason = Birthmark.judge(
                number(group, "tables"), number(group, "keysPerTable"),
                number(test, "tableId"), number(test, "keyIndex"), (Boolean) test.get("opened"), device);
        boolean same = reason.equals(test.get("reason"));
        if (same && !reason.equals("genuine")) {
            throw new GeneralSecurityException(reason); // FAIL, and for that reason
        }
        return same;
    }

    private static Birthmark.CameraToken token(Map<String, Object> fields) {
        return new Birthmark.CameraToken(
                fields.get("encrypted_nuc_hash").toString(),
                number(fields, "table_id"),
                number(fields, "key_index"),
                fields.get("nonce").toString());
    }

    private static byte[] bytes(Map<String, Object> fields, String name) {
        return HEX.parseHex(fields.get(name).toString());
    }

    private static long number(Map<String, Object> fields, String name) {
        return (Long) fields.get(name);
    }

    @SuppressWarnings("unchecked")
    private static Map<String, Object> object(Object value) {
        return (Map<String, Object>) value;
    }

    @SuppressWarnings("unchecked")
    private static List<Object> list(Object value) {
        return (List<Object>) value;
    }
}
