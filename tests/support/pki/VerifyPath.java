import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.security.cert.CertPathValidator;
import java.security.cert.CertPathValidatorException;
import java.security.cert.CertificateException;
import java.security.cert.CertificateFactory;
import java.security.cert.PKIXParameters;
import java.security.cert.TrustAnchor;
import java.security.cert.X509CertSelector;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/**
 * Verifies many certification paths with Java's PKIX validator in one process.
 *
 * <p>Each line of standard input names PEM files, separated by tabs: the trusted root, the leaf, and
 * the intermediates from the leaf upwards. For each line it prints "OK" or the validator's message.
 */
public final class VerifyPath {
    private static final String CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";

    private final CertificateFactory certificates;
    private final CertPathValidator validator;

    private VerifyPath() throws Exception {
        certificates = CertificateFactory.getInstance("X.509");
        validator = CertPathValidator.getInstance("PKIX");
    }

    public static void main(String[] arguments) throws Exception {
        VerifyPath verifyPath = new VerifyPath();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            System.out.println(verifyPath.judge(line.split("\t")));
        }
    }

    private String judge(String[] files) throws Exception {
        try {
            X509Certificate root = read(files[0]);
            List<X509Certificate> path = new ArrayList<>();
            for (int i = 1; i < files.length; i++) {
                path.add(read(files[i]));
            }
            PKIXParameters parameters = new PKIXParameters(Set.of(new TrustAnchor(root, null)));
            parameters.setRevocationEnabled(false);
            parameters.setTargetCertConstraints(clientThatSigns());
            validator.validate(certificates.generateCertPath(path), parameters);
            return "OK";
        } catch (CertPathValidatorException | CertificateException refusal) {
            return ("refused: " + refusal.getMessage()).replace('\n', ' ');
        }
    }

    private static X509CertSelector clientThatSigns() throws Exception {
        X509CertSelector selector = new X509CertSelector();
        selector.setExtendedKeyUsage(Set.of(CLIENT_AUTH));
        selector.setKeyUsage(new boolean[] {true});
        return selector;
    }

    private X509Certificate read(String file) throws Exception {
        try (InputStream stream = new FileInputStream(file)) {
            return (X509Certificate) certificates.generateCertificate(stream);
        }
    }
}
