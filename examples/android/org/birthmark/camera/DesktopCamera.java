package org.birthmark.camera;

import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.time.DateTimeException;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Base64;
import java.util.Properties;
import java.util.UUID;
import javax.crypto.KeyAgreement;

/**
 * The app without a phone: CameraCore with keys in a file or in memory, to try it on a desktop computer.
 *
 * <p>java org.birthmark.camera.DesktopCamera http://127.0.0.1:8000 SERIAL picture.jpg [STATE]
 *
 * <p>This provisions a camera, renews its certificate when it is time, and writes the bundle of a picture
 * to standard output. Without the file STATE the camera is a new one each time. The file is on disk before
 * each request, so a camera that is killed repeats the request when it starts again. It is readable by its
 * owner only; a real camera encrypts it.
 */
public final class DesktopCamera {
    private static final int ATTEMPTS = 5;
    private static final long LONGEST_WAIT_MS = 60_000;
    private static final long DAY_MS = 86_400_000;
    private static final long ASK_MS = DAY_MS / 4;

    private final String url;
    private final String serial;
    private final Path file;
    private Properties state = new Properties();

    private DesktopCamera(String url, String serial, Path file) throws IOException {
        this.url = url;
        this.serial = serial;
        this.file = file;
        if (file != null && Files.exists(file)) {
            try (InputStream stored = Files.newInputStream(file)) {
                state.load(stored);
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        Path file = arguments.length > 3 ? Path.of(arguments[3]) : null;
        DesktopCamera camera = new DesktopCamera(arguments[0], arguments[1], file);
        if (!camera.state.containsKey("answer")) camera.provision();
        // A camera that stays on calls it every quarter of an hour, and captures meanwhile.
        if (file != null) camera.renewIfDue();
        byte[] picture = Files.readAllBytes(Path.of(arguments[2]));
        KeyPair signing = camera.key("signing");
        System.out.println(CameraCore.capture(camera.provisioned(), picture, signer(signing), now()));
    }

    // --- provisioning

    private void provision() throws Exception {
        if (!state.containsKey("request")) {
            Properties next = new Properties();
            KeyPair signing = newKey(next, "signing");
            KeyPair recipient = newKey(next, "recipient");
            next.setProperty("idempotency-key", UUID.randomUUID().toString());
            next.setProperty("request", CameraCore.provisioningRequest(
                    serial, "Android", signing.getPublic(), signer(signing), recipient.getPublic()));
            save(next);
        }
        Properties next = copied();
        next.setProperty("answer", answered(state.getProperty("request")));
        next.setProperty("share", String.valueOf(Math.random()));
        next.remove("request");
        state = next;
        provisioned(); // throws before anything is stored if the response is not for this camera
        save(next);
    }

    /** Sends the request, and repeats the same request after no response, a 429, or a 502 to 504. */
    private String answered(String request) throws IOException, InterruptedException {
        for (int attempt = 1; ; attempt++) {
            String trouble;
            long wait = 200L << attempt;
            try {
                Answer answer = ask("/api/v1/devices/provision", request);
                if (answer.status == 200) return answer.said;
                trouble = answer.toString();
                if (answer.status != 429 && (answer.status < 502 || answer.status > 504)) {
                    throw new IllegalStateException(trouble);
                }
                wait = Math.max(wait, answer.retryAfter);
            } catch (IOException error) {
                trouble = error.toString();
            }
            if (attempt == ATTEMPTS || wait > LONGEST_WAIT_MS) throw new IOException(trouble);
            System.err.println("again: " + trouble);
            Thread.sleep(wait);
        }
    }

    // --- renewal

    /**
     * Renews the certificate if it is time. New keys and CSR are on disk before they are sent, and the
     * same CSR gets the same certificate again: neither a crash nor a lost response strands the camera.
     */
    private void renewIfDue() throws Exception {
        long left = Long.parseLong(state.getProperty("ask-at", "0")) - System.currentTimeMillis();
        if (left > 0 && left <= DAY_MS) return; // a longer pause comes from a clock that was ahead
        CameraCore.Provisioned camera = provisioned();
        if (!state.containsKey("next.csr")) {
            String window = null;
            long pause = ASK_MS;
            try {
                Answer answer = ask(CameraCore.renewalPath(camera), null);
                if (answer.status == 200) window = answer.said;
                if (answer.retryAfter > 0) pause = Math.min(answer.retryAfter, DAY_MS);
            } catch (IOException away) {
                System.err.println("no renewal window: " + away);
            }
            double share = Double.parseDouble(state.getProperty("share"));
            long due = CameraCore.renewalTime(camera, window, share) - System.currentTimeMillis();
            if (due > 0) {
                save(later(Math.min(due, pause)));
                return;
            }
            Properties next = copied();
            KeyPair signing = newKey(next, "next.signing");
            KeyPair recipient = newKey(next, "next.recipient");
            next.setProperty("next.csr", CameraCore.renewalCsr(
                    serial, signing.getPublic(), signer(signing), recipient.getPublic()));
            save(next);
        }
        int failures = Integer.parseInt(state.getProperty("failures", "0"));
        String trouble;
        long retryAfter = 0;
        boolean refused = false;
        try {
            Answer answer = ask("/api/v1/devices/renew", CameraCore.renewalRequest(
                    camera, state.getProperty("next.csr"), key("next.recipient").getPublic(),
                    signer(key("signing")), now()));
            if (answer.status == 200) {
                replace(camera, answer.said);
                return;
            }
            // 403 renewal-time-refused: set the clock. 403 renewal-refused: ask the operator to re-enrol.
            trouble = answer.toString();
            retryAfter = answer.retryAfter;
            refused = answer.status == 409 || answer.status == 422; // this CSR will never be accepted
        } catch (IOException | GeneralSecurityException error) {
            trouble = error.toString();
        }
        System.err.println("not renewed yet: " + trouble);
        Properties next = later(CameraCore.renewalPause(failures, retryAfter));
        next.setProperty("failures", String.valueOf(failures + 1));
        if (refused) next.remove("next.csr");
        save(next);
    }

    /** Puts the new certificate and keys in place of the old ones, in one step. */
    private void replace(CameraCore.Provisioned before, String answer)
            throws IOException, GeneralSecurityException {
        CameraCore.renewed(
                serial, answer, key("next.signing").getPublic(), agreed("next.recipient"), before.nucHash);
        Properties next = later(ASK_MS);
        for (String name : new String[] {"signing", "recipient"}) {
            next.setProperty(name, (String) next.remove("next." + name));
        }
        next.setProperty("nuc-hash", Base64.getEncoder().encodeToString(before.nucHash));
        next.setProperty("answer", answer);
        next.setProperty("share", String.valueOf(Math.random()));
        next.remove("next.csr");
        next.remove("failures");
        save(next);
    }

    // --- state

    private CameraCore.Provisioned provisioned() throws GeneralSecurityException {
        String answer = state.getProperty("answer");
        PublicKey signing = key("signing").getPublic();
        String known = state.getProperty("nuc-hash");
        if (known == null) return CameraCore.provisioned(serial, answer, signing, agreed("recipient"));
        byte[] nucHash = Base64.getDecoder().decode(known);
        return CameraCore.renewed(serial, answer, signing, agreed("recipient"), nucHash);
    }

    private Properties copied() {
        Properties copy = new Properties();
        copy.putAll(state);
        return copy;
    }

    private Properties later(long pause) {
        Properties next = copied();
        next.setProperty("ask-at", String.valueOf(System.currentTimeMillis() + pause));
        return next;
    }

    /** Replaces the state. On disk the file is replaced as a whole: the old one or the new one is left. */
    private void save(Properties next) throws IOException {
        if (file != null) {
            Path partial = file.resolveSibling(file.getFileName() + ".partial");
            Files.deleteIfExists(partial);
            Files.createFile(partial, PosixFilePermissions.asFileAttribute(
                    PosixFilePermissions.fromString("rw-------")));
            try (FileOutputStream stream = new FileOutputStream(partial.toFile())) {
                next.store(stream, null);
                stream.getFD().sync();
            }
            Files.move(partial, file, StandardCopyOption.ATOMIC_MOVE);
            try (FileChannel directory = FileChannel.open(file.toAbsolutePath().getParent())) {
                directory.force(true);
            }
        }
        state = next;
    }

    private static KeyPair newKey(Properties next, String name) throws GeneralSecurityException {
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC");
        generator.initialize(new ECGenParameterSpec("secp256r1"));
        KeyPair pair = generator.generateKeyPair();
        Base64.Encoder text = Base64.getEncoder();
        next.setProperty(name, text.encodeToString(pair.getPrivate().getEncoded())
                + " " + text.encodeToString(pair.getPublic().getEncoded()));
        return pair;
    }

    private KeyPair key(String name) throws GeneralSecurityException {
        String[] halves = state.getProperty(name).split(" ");
        KeyFactory factory = KeyFactory.getInstance("EC");
        return new KeyPair(
                factory.generatePublic(new X509EncodedKeySpec(Base64.getDecoder().decode(halves[1]))),
                factory.generatePrivate(new PKCS8EncodedKeySpec(Base64.getDecoder().decode(halves[0]))));
    }

    private static CameraCore.SigningKey signer(KeyPair pair) {
        return message -> {
            Signature signature = Signature.getInstance("SHA256withECDSA");
            signature.initSign(pair.getPrivate());
            signature.update(message);
            return signature.sign();
        };
    }

    private CameraCore.AgreementKey agreed(String name) {
        return other -> {
            KeyAgreement agreeing = KeyAgreement.getInstance("ECDH");
            agreeing.init(key(name).getPrivate());
            agreeing.doPhase(other, true);
            return agreeing.generateSecret();
        };
    }

    // --- HTTP

    private static final class Answer {
        final int status;
        final String said;
        final long retryAfter;

        Answer(int status, String said, long retryAfter) {
            this.status = status;
            this.said = said;
            this.retryAfter = retryAfter;
        }

        @Override
        public String toString() {
            return status + " " + said;
        }
    }

    /** Sends a request once: a POST if it has a body, else a GET. */
    private Answer ask(String path, String request) throws IOException {
        HttpURLConnection http = (HttpURLConnection) URI.create(url + path).toURL().openConnection();
        http.setConnectTimeout(5_000);
        http.setReadTimeout(20_000);
        http.setInstanceFollowRedirects(false);
        if (request != null) {
            http.setRequestProperty("Content-Type", "application/json");
            String idempotencyKey = state.getProperty("idempotency-key");
            if (state.containsKey("request")) http.setRequestProperty("Idempotency-Key", idempotencyKey);
            http.setDoOutput(true);
            try (OutputStream body = http.getOutputStream()) {
                body.write(request.getBytes(StandardCharsets.UTF_8));
            }
        }
        int status = http.getResponseCode();
        try (InputStream body = status == 200 ? http.getInputStream() : http.getErrorStream()) {
            String said = body == null ? "" : new String(body.readAllBytes(), StandardCharsets.UTF_8);
            return new Answer(status, said, retryAfter(http.getHeaderField("Retry-After")));
        }
    }

    /** Returns Retry-After in ms: seconds or a date (RFC 9110, section 10.2.3). Invalid values are 0. */
    private static long retryAfter(String value) {
        if (value == null) return 0;
        if (value.matches("[0-9]{1,9}")) return 1_000L * Integer.parseInt(value);
        try {
            Instant time = Instant.from(DateTimeFormatter.RFC_1123_DATE_TIME.parse(value));
            return Math.max(0, Duration.between(Instant.now(), time).toMillis());
        } catch (DateTimeException nonsense) {
            return 0;
        }
    }

    private static String now() {
        return DateTimeFormatter.ofPattern("yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'")
                .withZone(ZoneOffset.UTC)
                .format(Instant.now());
    }
}
