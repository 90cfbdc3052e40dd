"""Keys: which public keys are accepted and why not, and the private keys of CAs. PURE."""
