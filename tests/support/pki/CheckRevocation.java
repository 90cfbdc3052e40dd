import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.security.cert.CRL;
import java.security.cert.CertPathValidator;
import java.security.cert.CertPathValidatorException;
import java.security.cert.CertStore;
import java.security.cert.CertificateFactory;
import java.security.cert.CertificateRevokedException;
import java.security.cert.CollectionCertStoreParameters;
import java.security.cert.PKIXParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.PKIXRevocationChecker.Option;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;

/**
 * Asks about the revocation of many certificates with Java's PKIXRevocationChecker in one process.
 *
 * <p>Each line of standard input names files, separated by tabs: the trusted root, the leaf and its
 * issuer (PEM), and revocation lists (DER). In place of the lists stands the URL of an OCSP
 * responder. The lists must cover every certificate of the path; OCSP is asked about the leaf. There
 * is no fallback from one to the other. For each line it prints "good", "revoked: " and the reason,
 * or "refused: " and the validator's message.
 */
public final class CheckRevocation {
    private final CertificateFactory certificates;

    private CheckRevocation() throws Exception {
        certificates = CertificateFactory.getInstance("X.509");
    }

    public static void main(String[] arguments) throws Exception {
        CheckRevocation checkRevocation = new CheckRevocation();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            System.out.println(checkRevocation.judge(line.split("\t")));
        }
    }

    private String judge(String[] files) throws Exception {
        CertPathValidator validator = CertPathValidator.getInstance("PKIX");
        PKIXRevocationChecker checker = (PKIXRevocationChecker) validator.getRevocationChecker();
        PKIXParameters parameters =
                new PKIXParameters(Set.of(new TrustAnchor(read(files[0]), null)));
        if (files[3].startsWith("http")) {
            checker.setOcspResponder(URI.create(files[3]));
            checker.setOptions(EnumSet.of(Option.ONLY_END_ENTITY, Option.NO_FALLBACK));
        } else {
            checker.setOptions(EnumSet.of(Option.PREFER_CRLS, Option.NO_FALLBACK));
            parameters.addCertStore(
                    CertStore.getInstance(
                            "Collection", new CollectionCertStoreParameters(lists(files))));
        }
        parameters.addCertPathChecker(checker);
        try {
            validator.validate(
                    certificates.generateCertPath(List.of(read(files[1]), read(files[2]))),
                    parameters);
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

    private List<CRL> lists(String[] files) throws Exception {
        List<CRL> lists = new ArrayList<>();
        for (int i = 3; i < files.length; i++) {
            try (InputStream stream = new FileInputStream(files[i])) {
                lists.add(certificates.generateCRL(stream));
            }
        }
        return lists;
    }

    private X509Certificate read(String file) throws Exception {
        try (InputStream stream = new FileInputStream(file)) {
            return (X509Certificate) certificates.generateCertificate(stream);
        }
    }
}
