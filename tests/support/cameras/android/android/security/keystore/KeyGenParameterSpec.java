package android.security.keystore;

import java.security.spec.AlgorithmParameterSpec;

public final class KeyGenParameterSpec implements AlgorithmParameterSpec {
    private KeyGenParameterSpec() {}

    public static final class Builder {
        public Builder(String keystoreAlias, int purposes) {}

        public native Builder setAlgorithmParameterSpec(AlgorithmParameterSpec spec);

        public native Builder setBlockModes(String... blockModes);

        public native Builder setDigests(String... digests);

        public native Builder setEncryptionPaddings(String... paddings);

        public native Builder setIsStrongBoxBacked(boolean isStrongBoxBacked);

        public native Builder setKeySize(int keySize);

        public native KeyGenParameterSpec build();
    }
}
