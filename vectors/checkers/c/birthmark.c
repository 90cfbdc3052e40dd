#include "birthmark.h"

#include <limits.h>
#include <openssl/hmac.h>
#include <openssl/x509v3.h>
#include <string.h>

/* --- keys and camera tokens */

static bool hmac(const unsigned char *key, size_t key_size, const unsigned char *message, size_t size,
                 unsigned char out[32])
{
    unsigned int written = 0;
    return HMAC(EVP_sha256(), key, (int)key_size, message, size, out, &written) && written == 32;
}

bool bm_derive_key(const unsigned char master_key[BM_KEY], uint32_t key_index,
                   const unsigned char *salt, size_t salt_size,
                   const unsigned char *suffix, size_t suffix_size, unsigned char key[BM_KEY])
{
    unsigned char pseudorandom_key[32], info[4 + 64 + 1];
    if (suffix_size > 64)
        return false;
    for (int i = 0; i < 4; i++)
        info[i] = (unsigned char)(key_index >> (24 - 8 * i));
    if (suffix_size > 0)
        memcpy(info + 4, suffix, suffix_size);
    info[4 + suffix_size] = 1; /* the first block is all of it: 32 bytes */
    bool ok = hmac(salt, salt_size, master_key, BM_KEY, pseudorandom_key) &&
              hmac(pseudorandom_key, 32, info, 4 + suffix_size + 1, key);
    OPENSSL_cleanse(pseudorandom_key, sizeof pseudorandom_key);
    return ok;
}

static bool normative_key(const unsigned char *master_key, int64_t key_index, unsigned char *key)
{
    static const unsigned char salt[] = "Birthmark";
    return key_index >= 0 && key_index <= UINT32_MAX &&
           bm_derive_key(master_key, (uint32_t)key_index, salt, sizeof salt - 1, NULL, 0, key);
}

bool bm_seal(const unsigned char nuc_hash[BM_NUC_HASH], const unsigned char master_key[BM_KEY],
             bm_token *token)
{
    unsigned char key[BM_KEY];
    int size = 0, rest = 0;
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    bool ok = cipher && normative_key(master_key, token->key_index, key) &&
              EVP_EncryptInit_ex(cipher, EVP_aes_256_gcm(), NULL, key, token->nonce) &&
              EVP_EncryptUpdate(cipher, token->sealed, &size, nuc_hash, BM_NUC_HASH) &&
              EVP_EncryptFinal_ex(cipher, token->sealed + size, &rest) &&
              EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_GET_TAG, BM_TAG, token->sealed + BM_NUC_HASH);
    EVP_CIPHER_CTX_free(cipher);
    OPENSSL_cleanse(key, sizeof key);
    return ok;
}

bool bm_open(const bm_token *token, const unsigned char master_key[BM_KEY], int64_t keys_per_table,
             unsigned char nuc_hash[BM_NUC_HASH])
{
    unsigned char key[BM_KEY], tag[BM_TAG];
    int size = 0, rest = 0;
    if (token->key_index >= keys_per_table || !normative_key(master_key, token->key_index, key))
        return false;
    memcpy(tag, token->sealed + BM_NUC_HASH, BM_TAG);
    EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
    bool ok = cipher && EVP_DecryptInit_ex(cipher, EVP_aes_256_gcm(), NULL, key, token->nonce) &&
              EVP_DecryptUpdate(cipher, nuc_hash, &size, token->sealed, BM_NUC_HASH) &&
              EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_SET_TAG, BM_TAG, tag) &&
              EVP_DecryptFinal_ex(cipher, nuc_hash + size, &rest) > 0;
    EVP_CIPHER_CTX_free(cipher);
    OPENSSL_cleanse(key, sizeof key);
    if (!ok)
        OPENSSL_cleanse(nuc_hash, BM_NUC_HASH);
    return ok;
}

/* --- certificates */

static const EVP_MD *hash_of(EVP_PKEY *key, bool *known)
{
    char curve[32] = "";
    int bits = EVP_PKEY_get_bits(key);
    *known = true;
    switch (EVP_PKEY_get_base_id(key)) {
    case EVP_PKEY_ED25519:
        return NULL;
    case EVP_PKEY_RSA:
        *known = bits >= 2048 && bits <= 4096;
        return EVP_sha256();
    case EVP_PKEY_EC:
        if (EVP_PKEY_get_group_name(key, curve, sizeof curve, NULL)) {
            if (!strcmp(curve, "prime256v1"))
                return EVP_sha256();
            if (!strcmp(curve, "secp384r1"))
                return EVP_sha384();
        }
    }
    *known = false;
    return NULL;
}

static int hex_digit(char letter)
{
    const char *digits = "0123456789ABCDEF";
    const char *found = letter ? strchr(digits, letter >= 'a' ? letter - 32 : letter) : NULL;
    return found ? (int)(found - digits) : -1;
}

/* Copy what follows the prefix, with its percent-encoding undone. */
static bool device_serial_of(const char *uri, size_t size, char serial[BM_SERIAL])
{
    static const char prefix[] = "urn:birthmark:device:";
    size_t at = sizeof prefix - 1, out = 0;
    if (size <= at || memcmp(uri, prefix, at))
        return false;
    while (at < size && out + 1 < BM_SERIAL) {
        int high, low;
        if (uri[at] == '%' && at + 2 < size && (high = hex_digit(uri[at + 1])) >= 0 &&
            (low = hex_digit(uri[at + 2])) >= 0) {
            serial[out++] = (char)(16 * high + low);
            at += 3;
        } else {
            serial[out++] = uri[at++];
        }
    }
    serial[out] = '\0';
    return at == size;
}

static bool name_of(X509 *leaf, char serial[BM_SERIAL])
{
    bool found = false;
    GENERAL_NAMES *names = X509_get_ext_d2i(leaf, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; !found && i < sk_GENERAL_NAME_num(names); i++) {
        int type;
        ASN1_STRING *uri = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &type);
        found = type == GEN_URI && device_serial_of((const char *)ASN1_STRING_get0_data(uri),
                                                    (size_t)ASN1_STRING_length(uri), serial);
    }
    GENERAL_NAMES_free(names);
    return found;
}

bool bm_verify_chain(STACK_OF(X509) *chain, X509 *root, time_t now, char serial[BM_SERIAL])
{
    X509 *leaf = sk_X509_value(chain, 0);
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    bool ok = leaf && store && context && X509_STORE_add_cert(store, root) &&
              X509_STORE_CTX_init(context, store, leaf, chain) &&
              X509_STORE_CTX_set_purpose(context, X509_PURPOSE_SSL_CLIENT);
    if (ok) {
        X509_VERIFY_PARAM *parameters = X509_STORE_CTX_get0_param(context);
        X509_VERIFY_PARAM_set_time(parameters, now);
        X509_VERIFY_PARAM_set_flags(parameters, X509_V_FLAG_X509_STRICT);
        ok = X509_verify_cert(context) == 1;
    }
    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
    if (!ok)
        return false;
    /* Where an extension is missing, OpenSSL takes all for allowed: it must be there. */
    bool known;
    hash_of(X509_get0_pubkey(leaf), &known);
    return known && !(X509_get_extension_flags(leaf) & EXFLAG_CA) &&
           (X509_get_extension_flags(leaf) & EXFLAG_KUSAGE) &&
           (X509_get_key_usage(leaf) & KU_DIGITAL_SIGNATURE) &&
           (X509_get_extension_flags(leaf) & EXFLAG_XKUSAGE) &&
           (X509_get_extended_key_usage(leaf) & XKU_SSL_CLIENT) && name_of(leaf, serial);
}

/* --- bundles */

bool bm_verify_signature(EVP_PKEY *key, const unsigned char *message, size_t message_size,
                         const unsigned char *signature, size_t signature_size)
{
    bool known;
    const EVP_MD *hash = hash_of(key, &known);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool ok = known && context && EVP_DigestVerifyInit(context, NULL, hash, NULL, key) == 1 &&
              EVP_DigestVerify(context, signature, signature_size, message, message_size) == 1;
    EVP_MD_CTX_free(context);
    return ok;
}

/* --- verdicts */

const char *bm_judge(int64_t tables, int64_t keys_per_table, int64_t table_id, int64_t key_index,
                     bool opened, const bm_device *device)
{
    bool assigned = false;
    if (table_id < 0 || table_id >= tables)
        return "unknown_table";
    if (key_index < 0 || key_index >= keys_per_table)
        return "unknown_key_index";
    if (!opened)
        return "not_opened";
    if (!device)
        return "unknown_device";
    for (size_t i = 0; i < device->table_count; i++)
        assigned |= device->tables[i] == table_id;
    if (!assigned)
        return "table_not_assigned";
    if (!strcmp(device->status, "active"))
        return "genuine";
    return strcmp(device->status, "revoked") ? "device_suspended" : "device_revoked";
}
