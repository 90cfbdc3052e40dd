import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.security.cert.CertPathValidator;
import java.security.cert.CertPathValidatorException;
import java.security.cert.CertificateFactory;
import java.security.cert.CertificateRevokedException;
import java.security.cert.PKIXParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;

/**
 * Asks OCSP about the leaves of many certification paths with Java's PKIXRevocationChecker.
 *
 * <p>Each line of standard input names three PEM files and the URL of the responder, separated by
 * tabs: the trusted root, the leaf, its issuer, the URL. For each line it prints "good", "revoked: "
 * and the reason, or "refused: " and the validator's message.
 */
public final class CheckRevocation {
    private CheckRevocation() {}

    public static void main(String[] arguments) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            System.out.println(judge(line.split("\t")));
        }
    }

    private static String judge(String[] files) throws Exception {
        CertPathValidator validator = CertPathValidator.getInstance("PKIX");
        PKIXRevocationChecker checker = (PKIXRevocationChecker) validator.getRevocationChecker();
        checker.setOcspResponder(URI.create(files[3]));
        checker.setOptions(
                EnumSet.of(
                        PKIXRevocationChecker.Option.ONLY_END_ENTITY,
                        PKIXRevocationChecker.Option.NO_FALLBACK));
        PKIXParameters parameters =
                new PKIXParameters(Set.of(new TrustAnchor(read(files[0]), null)));
        parameters.addCertPathChecker(checker);
        try {
            CertificateFactory factory = CertificateFactory.getInstance("X.509");
            validator.validate(
                    factory.generateCertPath(List.of(read(files[1]), read(files[2]))), parameters);
            return "good";
        } catch (CertPathValidatorException refusal) {
            if (refusal.getCause() instanceof CertificateRevokedException) {
                CertificateRevokedException revoked =
                        (CertificateRevokedException) refusal.getCause();
                return "revoked: " + revoked.getRevocationReason();
            }
            return ("refused: " + refusal.getMessage()).replace('\n', ' ');
        }
    }

    private static X509Certificate read(String file) throws Exception {
        try (InputStream stream = new FileInputStream(file)) {
            return (X509Certificate)
                    CertificateFactory.getInstance("X.509").generateCertificate(stream);
        }
    }
}
