package android.security.keystore;

import java.security.spec.AlgorithmParameterSpec;

public final class KeyGenParameterSpec implements AlgorithmParameterSpec {
    private final String alias;
    private final int purposes;

    private KeyGenParameterSpec(String alias, int purposes) {
        this.alias = alias;
        this.purposes = purposes;
    }

    public String getKeystoreAlias() {
        return alias;
    }

    public int getPurposes() {
        return purposes;
    }

    public static final class Builder {
        private final KeyGenParameterSpec made;

        public Builder(String keystoreAlias, int purposes) {
            made = new KeyGenParameterSpec(keystoreAlias, purposes);
        }

        public Builder setAlgorithmParameterSpec(AlgorithmParameterSpec spec) {
            return this;
        }

        public Builder setBlockModes(String... blockModes) {
            return this;
        }

        public Builder setDigests(String... digests) {
            return this;
        }

        public Builder setEncryptionPaddings(String... paddings) {
            return this;
        }

        public Builder setIsStrongBoxBacked(boolean isStrongBoxBacked) {
            return this;
        }

        public Builder setKeySize(int keySize) {
            return this;
        }

        public KeyGenParameterSpec build() {
            return made;
        }
    }
}
