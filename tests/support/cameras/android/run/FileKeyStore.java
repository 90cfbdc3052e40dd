package run;

import android.security.keystore.KeyGenParameterSpec;
import android.security.keystore.KeyProperties;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.GeneralSecurityException;
import java.security.InvalidKeyException;
import java.security.Key;
import java.security.KeyFactory;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyPairGeneratorSpi;
import java.security.KeyStoreSpi;
import java.security.PrivateKey;
import java.security.Provider;
import java.security.PublicKey;
import java.security.SecureRandom;
import java.security.cert.Certificate;
import java.security.spec.AlgorithmParameterSpec;
import java.security.spec.ECGenParameterSpec;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.util.Base64;
import java.util.Collections;
import java.util.Date;
import java.util.Enumeration;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import javax.crypto.KeyAgreement;
import javax.crypto.KeyAgreementSpi;
import javax.crypto.KeyGenerator;
import javax.crypto.KeyGeneratorSpi;
import javax.crypto.SecretKey;
import javax.crypto.spec.SecretKeySpec;

/** An AndroidKeyStore with its keys in files: one for each alias, in the directory `keys`. */
public final class FileKeyStore extends Provider {
    private static final long serialVersionUID = 1;

    public FileKeyStore() {
        super("AndroidKeyStore", "1", "keys in files");
        put("KeyStore.AndroidKeyStore", Store.class.getName());
        put("KeyPairGenerator.EC", Pairs.class.getName());
        put("KeyGenerator.AES", Secrets.class.getName());
        put("KeyAgreement.ECDH", Agreement.class.getName());
    }

    private static Path file(String alias) {
        return Path.of(System.getProperty("keys"), alias);
    }

    private static void store(String alias, int purposes, byte[] key, byte[] publicKey) {
        Base64.Encoder text = Base64.getEncoder();
        String line = purposes + " " + text.encodeToString(key) + " " + text.encodeToString(publicKey);
        Path partial = file("." + alias);
        try {
            Files.writeString(partial, line);
            Files.move(partial, file(alias), StandardCopyOption.ATOMIC_MOVE);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    private static String[] load(String alias) {
        try {
            return Files.readString(file(alias)).split(" ");
        } catch (IOException missing) {
            return null;
        }
    }

    public static final class Store extends KeyStoreSpi {
        @Override
        public Key engineGetKey(String alias, char[] password) {
            String[] parts = load(alias);
            if (parts == null) return null;
            byte[] key = Base64.getDecoder().decode(parts[1]);
            try {
                if (parts.length < 3) return new SecretKeySpec(key, "AES");
                return KeyFactory.getInstance("EC").generatePrivate(new PKCS8EncodedKeySpec(key));
            } catch (GeneralSecurityException error) {
                throw new IllegalStateException(error);
            }
        }

        @Override
        public Certificate engineGetCertificate(String alias) {
            byte[] encoded = Base64.getDecoder().decode(load(alias)[2]);
            try {
                PublicKey key = KeyFactory.getInstance("EC").generatePublic(new X509EncodedKeySpec(encoded));
                return new Certificate("none") {
                    private static final long serialVersionUID = 1;

                    @Override
                    public byte[] getEncoded() {
                        return encoded;
                    }

                    @Override
                    public void verify(PublicKey issuer) {}

                    @Override
                    public void verify(PublicKey issuer, String provider) {}

                    @Override
                    public String toString() {
                        return alias;
                    }

                    @Override
                    public PublicKey getPublicKey() {
                        return key;
                    }
                };
            } catch (GeneralSecurityException error) {
                throw new IllegalStateException(error);
            }
        }

        @Override
        public void engineDeleteEntry(String alias) {
            file(alias).toFile().delete();
        }

        @Override
        public Enumeration<String> engineAliases() {
            try (Stream<Path> files = Files.list(file("x").getParent())) {
                List<String> names = files.map(each -> each.getFileName().toString())
                        .filter(name -> !name.startsWith(".")).collect(Collectors.toList());
                return Collections.enumeration(names);
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }

        @Override
        public boolean engineContainsAlias(String alias) {
            return Files.exists(file(alias));
        }

        @Override
        public void engineLoad(InputStream stream, char[] password) {}

        @Override
        public Certificate[] engineGetCertificateChain(String alias) {
            throw new UnsupportedOperationException();
        }

        @Override
        public Date engineGetCreationDate(String alias) {
            throw new UnsupportedOperationException();
        }

        @Override
        public void engineSetKeyEntry(String alias, Key key, char[] password, Certificate[] chain) {
            throw new UnsupportedOperationException();
        }

        @Override
        public void engineSetKeyEntry(String alias, byte[] key, Certificate[] chain) {
            throw new UnsupportedOperationException();
        }

        @Override
        public void engineSetCertificateEntry(String alias, Certificate certificate) {
            throw new UnsupportedOperationException();
        }

        @Override
        public int engineSize() {
            return Collections.list(engineAliases()).size();
        }

        @Override
        public boolean engineIsKeyEntry(String alias) {
            return engineContainsAlias(alias);
        }

        @Override
        public boolean engineIsCertificateEntry(String alias) {
            return false;
        }

        @Override
        public String engineGetCertificateAlias(Certificate certificate) {
            return null;
        }

        @Override
        public void engineStore(OutputStream stream, char[] password) {}
    }

    public static final class Pairs extends KeyPairGeneratorSpi {
        private KeyGenParameterSpec spec;

        @Override
        public void initialize(AlgorithmParameterSpec given, SecureRandom random) {
            spec = (KeyGenParameterSpec) given;
        }

        @Override
        public void initialize(int size, SecureRandom random) {
            throw new UnsupportedOperationException();
        }

        @Override
        public KeyPair generateKeyPair() {
            try {
                KeyPairGenerator generator = KeyPairGenerator.getInstance("EC", "SunEC");
                generator.initialize(new ECGenParameterSpec("secp256r1"));
                KeyPair pair = generator.generateKeyPair();
                store(
                        spec.getKeystoreAlias(),
                        spec.getPurposes(),
                        pair.getPrivate().getEncoded(),
                        pair.getPublic().getEncoded());
                return pair;
            } catch (GeneralSecurityException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    public static final class Secrets extends KeyGeneratorSpi {
        private KeyGenParameterSpec spec;

        @Override
        protected void engineInit(AlgorithmParameterSpec given, SecureRandom random) {
            spec = (KeyGenParameterSpec) given;
        }

        @Override
        protected void engineInit(SecureRandom random) {
            throw new UnsupportedOperationException();
        }

        @Override
        protected void engineInit(int size, SecureRandom random) {
            throw new UnsupportedOperationException();
        }

        @Override
        protected SecretKey engineGenerateKey() {
            try {
                KeyGenerator generator = KeyGenerator.getInstance("AES", "SunJCE");
                generator.init(256);
                SecretKey key = generator.generateKey();
                store(spec.getKeystoreAlias(), spec.getPurposes(), key.getEncoded(), new byte[0]);
                return key;
            } catch (GeneralSecurityException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    /** ECDH, only with a key that was made for it: as on a phone. */
    public static final class Agreement extends KeyAgreementSpi {
        private KeyAgreement agreeing;

        @Override
        protected void engineInit(Key key, SecureRandom random) throws InvalidKeyException {
            try (Stream<Path> files = Files.list(file("x").getParent())) {
                String mine = Base64.getEncoder().encodeToString(((PrivateKey) key).getEncoded());
                boolean made = files.map(each -> load(each.getFileName().toString()))
                        .anyMatch(each -> each[1].equals(mine)
                                && each[0].equals(String.valueOf(KeyProperties.PURPOSE_AGREE_KEY)));
                if (!made) throw new InvalidKeyException("a key for another purpose");
                agreeing = KeyAgreement.getInstance("ECDH", "SunEC");
                agreeing.init(key);
            } catch (IOException | GeneralSecurityException error) {
                throw new InvalidKeyException(error);
            }
        }

        @Override
        protected void engineInit(Key key, AlgorithmParameterSpec spec, SecureRandom random)
                throws InvalidKeyException {
            engineInit(key, random);
        }

        @Override
        protected Key engineDoPhase(Key key, boolean last) throws InvalidKeyException {
            return agreeing.doPhase(key, last);
        }

        @Override
        protected byte[] engineGenerateSecret() {
            return agreeing.generateSecret();
        }

        @Override
        protected int engineGenerateSecret(byte[] secret, int offset) {
            throw new UnsupportedOperationException();
        }

        @Override
        protected SecretKey engineGenerateSecret(String algorithm) {
            throw new UnsupportedOperationException();
        }
    }
}
