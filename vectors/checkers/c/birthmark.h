/* The Birthmark protocol in C, against OpenSSL 3, on POSIX. Copy birthmark.* and json.*.
 *
 * What returns bool says whether it was accepted; nothing else is to be used of what was refused. */

#ifndef BIRTHMARK_H
#define BIRTHMARK_H

#include "json.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { BM_KEY = 32, BM_NUC_HASH = 32, BM_NONCE = 12, BM_TAG = 16, BM_SEALED = 48, BM_SERIAL = 257,
       BM_URN = 800, BM_SIGNATURE = 512 };

typedef struct {
    unsigned char sealed[BM_SEALED]; /* ciphertext, then tag */
    unsigned char nonce[BM_NONCE];
    int64_t table_id, key_index;
} bm_token;

/* HKDF-SHA256, 32 bytes long (RFC 5869). The normative salt is "Birthmark", without a suffix. */
bool bm_derive_key(const unsigned char master_key[BM_KEY], uint32_t key_index,
                   const unsigned char *salt, size_t salt_size,
                   const unsigned char *suffix, size_t suffix_size, unsigned char key[BM_KEY]);

/* Make a camera token. table_id, key_index and nonce are set; the nonce is 12 fresh random bytes. */
bool bm_seal(const unsigned char nuc_hash[BM_NUC_HASH], const unsigned char master_key[BM_KEY],
             bm_token *token);

/* Get the NUC hash out of a camera token. */
bool bm_open(const bm_token *token, const unsigned char master_key[BM_KEY], int64_t keys_per_table,
             unsigned char nuc_hash[BM_NUC_HASH]);

/* Read a certificate in PEM; NULL where it is none. */
X509 *bm_certificate(const char *pem);

/* Verify a chain (device first) to the pinned root, and get the device serial. */
bool bm_verify_chain(STACK_OF(X509) *chain, X509 *root, time_t now, char serial[BM_SERIAL]);

/* Verify a device's signature. The kind of the key alone decides how it signs. */
bool bm_verify_signature(EVP_PKEY *key, const unsigned char *message, size_t message_size,
                         const unsigned char *signature, size_t signature_size);

/* Sign as a device, into room for BM_SIGNATURE bytes; 0 where no device has such a key. */
size_t bm_sign(EVP_PKEY *key, const unsigned char *message, size_t message_size, unsigned char *signature);

/* Write the URN of a device serial: UTF-8, percent-encoded (RFC 3986, section 2.1). */
void bm_device_urn(const char *serial, char urn[BM_URN]);

/* What the device signs, in memory: a prefix, and canonical JSON (RFC 8785) of all but the signature. */
BIO *bm_signed_bytes(const json *bundle);

/* The DER of something. */
typedef struct {
    const unsigned char *bytes;
    size_t size;
} bm_der;

/* What the device signs to renew its certificate, in memory. The recipient key may be NULL. */
BIO *bm_renewal_bytes(bm_der certificate, bm_der csr, const bm_der *recipient_key,
                      const char *requested_at, bool supersede);

/* Verify a whole bundle: form, time, certificates, signature. Get the device serial. */
bool bm_verify_bundle(const char *text, X509 *root, time_t now, char serial[BM_SERIAL]);

typedef struct {
    const char *status; /* "active", "suspended", "revoked" or "retired" */
    const int64_t *tables;
    size_t table_count;
} bm_device;

/* Why a well-formed token gets its verdict: it is PASS for "genuine" alone. */
const char *bm_judge(int64_t tables, int64_t keys_per_table, int64_t table_id, int64_t key_index,
                     bool opened, const bm_device *device);

#endif
