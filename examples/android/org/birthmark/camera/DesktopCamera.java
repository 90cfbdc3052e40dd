package org.birthmark.camera;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.Signature;
import java.security.spec.ECGenParameterSpec;
import java.time.DateTimeException;
import java.time.Duration;
import java.time.Instant;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.UUID;
import javax.crypto.KeyAgreement;

/**
 * The app without a phone: CameraCore with keys in memory, to try it on a desktop computer.
 *
 * <p>java org.birthmark.camera.DesktopCamera http://127.0.0.1:8000 SERIAL picture.jpg
 *
 * <p>This provisions a camera and writes the bundle of a picture to standard output.
 */
public final class DesktopCamera {
    private static final int ATTEMPTS = 5;
    private static final long LONGEST_WAIT_MS = 60_000;

    private DesktopCamera() {}

    public static void main(String[] arguments) throws Exception {
        KeyPair signing = newKey();
        KeyPair agreement = newKey();
        CameraCore.SigningKey signer = message -> {
            Signature signature = Signature.getInstance("SHA256withECDSA");
            signature.initSign(signing.getPrivate());
            signature.update(message);
            return signature.sign();
        };
        CameraCore.AgreementKey agreed = other -> {
            KeyAgreement agreeing = KeyAgreement.getInstance("ECDH");
            agreeing.init(agreement.getPrivate());
            agreeing.doPhase(other, true);
            return agreeing.generateSecret();
        };
        String request = CameraCore.provisioningRequest(
                arguments[1], "Android", signing.getPublic(), signer, agreement.getPublic());
        String answer = provision(arguments[0], request, UUID.randomUUID().toString());
        CameraCore.Provisioned camera =
                CameraCore.provisioned(arguments[1], answer, signing.getPublic(), agreed);
        byte[] picture = Files.readAllBytes(Path.of(arguments[2]));
        System.out.println(CameraCore.capture(camera, picture, signer, now()));
    }

    /** Sends the request, and repeats the same request after no response, a 429, or a 502 to 504. */
    private static String provision(String url, String request, String idempotencyKey)
            throws IOException, InterruptedException {
        for (int attempt = 1; ; attempt++) {
            String trouble;
            long wait = 200L << attempt;
            try {
                URI place = URI.create(url + "/api/v1/devices/provision");
                HttpURLConnection http = (HttpURLConnection) place.toURL().openConnection();
                http.setConnectTimeout(5_000);
                http.setReadTimeout(20_000);
                http.setInstanceFollowRedirects(false);
                http.setRequestProperty("Content-Type", "application/json");
                http.setRequestProperty("Idempotency-Key", idempotencyKey);
                http.setDoOutput(true);
                try (OutputStream body = http.getOutputStream()) {
                    body.write(request.getBytes(StandardCharsets.UTF_8));
                }
                int status = http.getResponseCode();
                try (InputStream body = status == 200 ? http.getInputStream() : http.getErrorStream()) {
                    String said = body == null ? "" : new String(body.readAllBytes(), StandardCharsets.UTF_8);
                    if (status == 200) return said;
                    trouble = status + " " + said;
                    if (status != 429 && (status < 502 || status > 504)) throw new IllegalStateException(trouble);
                    wait = Math.max(wait, retryAfter(http.getHeaderField("Retry-After")));
                }
            } catch (IOException error) {
                trouble = error.toString();
            }
            if (attempt == ATTEMPTS || wait > LONGEST_WAIT_MS) throw new IOException(trouble);
            System.err.println("again: " + trouble);
            Thread.sleep(wait);
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

    private static KeyPair newKey() throws GeneralSecurityException {
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC");
        generator.initialize(new ECGenParameterSpec("secp256r1"));
        return generator.generateKeyPair();
    }
}
