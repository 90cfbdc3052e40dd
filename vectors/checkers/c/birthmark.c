#define _GNU_SOURCE /* timegm, strptime */

#include "birthmark.h"

#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <regex.h>
#include <stdio.h>
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
    const char *found = letter ? strchr(digits, letter) : NULL;
    return found ? (int)(found - digits) : -1;
}

static const char device[] = "urn:birthmark:device:";

void bm_device_urn(const char *serial, char urn[BM_URN])
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    char *out = urn + snprintf(urn, BM_URN, "%s", device);
    for (; *serial && urn + BM_URN - out > 3; serial++)
        out += snprintf(out, 4, strchr(plain, *serial) ? "%c" : "%%%02X", (unsigned char)*serial);
}

static bool is_utf8(const char *text)
{
    return ASN1_mbstring_copy(NULL, (const unsigned char *)text, -1, MBSTRING_UTF8, B_ASN1_UTF8STRING) > 0;
}

/* Copy what follows the prefix, with its percent-encoding undone. It has one spelling. */
static bool device_serial_of(const char *uri, size_t size, char serial[BM_SERIAL])
{
    char again[BM_URN];
    size_t at = sizeof device - 1, out = 0;
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
    bm_device_urn(serial, again);
    return *serial && is_utf8(serial) && strlen(again) == size && !memcmp(again, uri, size);
}

/* Exactly one device URN. */
static bool name_of(X509 *leaf, char serial[BM_SERIAL])
{
    int urns = 0;
    bool spelt = false;
    GENERAL_NAMES *names = X509_get_ext_d2i(leaf, NID_subject_alt_name, NULL, NULL);
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        int type;
        ASN1_STRING *name = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names, i), &type);
        const char *uri = type == GEN_URI ? (const char *)ASN1_STRING_get0_data(name) : "";
        if (!strncmp(uri, device, sizeof device - 1)) {
            urns++;
            spelt = device_serial_of(uri, (size_t)ASN1_STRING_length(name), serial);
        }
    }
    GENERAL_NAMES_free(names);
    return urns == 1 && spelt;
}

X509 *bm_certificate(const char *pem)
{
    BIO *memory = BIO_new_mem_buf(pem, -1);
    X509 *read = PEM_read_bio_X509(memory, NULL, NULL, NULL);
    BIO_free(memory);
    return read;
}

/* OpenSSL looks for any path: it must be the one that was sent, with a root at its end or without. */
static bool is_the_path(X509_STORE_CTX *context, STACK_OF(X509) *chain, X509 *root)
{
    STACK_OF(X509) *found = X509_STORE_CTX_get0_chain(context);
    int sent = sk_X509_num(chain), length = sk_X509_num(found);
    if (sent > 1 && !X509_cmp(sk_X509_value(chain, sent - 1), root))
        sent--;
    bool same = length == sent + 1 && !X509_cmp(sk_X509_value(found, sent), root);
    for (int i = 0; same && i < sent; i++)
        same = !X509_cmp(sk_X509_value(found, i), sk_X509_value(chain, i));
    return same;
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
        ok = X509_verify_cert(context) == 1 && is_the_path(context, chain, root);
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

size_t bm_sign(EVP_PKEY *key, const unsigned char *message, size_t message_size, unsigned char *signature)
{
    bool known;
    size_t size = BM_SIGNATURE;
    const EVP_MD *hash = hash_of(key, &known);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool ok = known && context && EVP_DigestSignInit(context, NULL, hash, NULL, key) == 1 &&
              EVP_DigestSign(context, signature, &size, message, message_size) == 1;
    EVP_MD_CTX_free(context);
    return ok ? size : 0;
}

static void write_text(BIO *out, const char *text)
{
    static const char plain[] = "\n\r\t\b\f\"\\", names[] = "nrtbf\"\\";
    BIO_puts(out, "\"");
    for (; *text; text++) {
        const char *known = strchr(plain, *text);
        if (known)
            BIO_printf(out, "\\%c", names[known - plain]);
        else if ((unsigned char)*text < ' ')
            BIO_printf(out, "\\u%04x", (unsigned int)*text);
        else
            BIO_write(out, text, 1);
    }
    BIO_puts(out, "\"");
}

/* RFC 8785, for names in ASCII. One name is left out. */
static void write_canonical(BIO *out, const json *value, const char *left_out)
{
    const char *before = NULL, *separator = "";
    switch (value->type) {
    case JSON_NULL:
        BIO_puts(out, "null");
        break;
    case JSON_BOOLEAN:
        BIO_puts(out, value->number ? "true" : "false");
        break;
    case JSON_NUMBER:
        BIO_printf(out, "%lld", (long long)value->number);
        break;
    case JSON_STRING:
        write_text(out, value->text);
        break;
    case JSON_ARRAY:
        BIO_puts(out, "[");
        for (const json *each = value->first; each; each = each->next, separator = ",") {
            BIO_puts(out, separator);
            write_canonical(out, each, "");
        }
        BIO_puts(out, "]");
        break;
    case JSON_OBJECT:
        BIO_puts(out, "{");
        for (const json *next = value->first; next; ) {
            next = NULL; /* the first name after the one before */
            for (const json *each = value->first; each; each = each->next)
                if (strcmp(each->name, left_out) && (!before || strcmp(each->name, before) > 0) &&
                    (!next || strcmp(each->name, next->name) < 0))
                    next = each;
            if (next) {
                BIO_puts(out, separator);
                write_text(out, next->name);
                BIO_puts(out, ":");
                write_canonical(out, next, "");
                before = next->name;
                separator = ",";
            }
        }
        BIO_puts(out, "}");
    }
}

BIO *bm_signed_bytes(const json *bundle)
{
    static const char prefix[] = "birthmark-bundle-v1"; /* the zero at its end is of it */
    BIO *out = BIO_new(BIO_s_mem());
    if (out) {
        BIO_write(out, prefix, sizeof prefix);
        write_canonical(out, bundle, "signature");
    }
    return out;
}

static void write_digest(BIO *out, const char *name, const bm_der *der)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    BIO_printf(out, "\"%s\":", name);
    if (!der || !EVP_Digest(der->bytes, der->size, digest, &size, EVP_sha256(), NULL)) {
        BIO_puts(out, "null");
        return;
    }
    BIO_puts(out, "\"");
    for (unsigned each = 0; each < size; each++)
        BIO_printf(out, "%02x", digest[each]);
    BIO_puts(out, "\"");
}

BIO *bm_renewal_bytes(bm_der certificate, bm_der csr, const bm_der *recipient_key,
                      const char *requested_at, bool supersede)
{
    static const char prefix[] = "birthmark-renew-v1"; /* the zero at its end is of it */
    BIO *out = BIO_new(BIO_s_mem());
    if (out) {
        BIO_write(out, prefix, sizeof prefix);
        BIO_puts(out, "{");
        write_digest(out, "certificate_sha256", &certificate);
        BIO_puts(out, ",");
        write_digest(out, "csr_sha256", &csr);
        BIO_puts(out, ",");
        write_digest(out, "recipient_key_sha256", recipient_key);
        BIO_printf(out, ",\"requested_at\":\"%s\",\"supersede\":%s}", requested_at,
                   supersede ? "true" : "false");
    }
    return out;
}

static bool matches(const json *text, const char *pattern)
{
    regex_t compiled;
    if (text->type != JSON_STRING || regcomp(&compiled, pattern, REG_EXTENDED | REG_NOSUB))
        return false;
    bool match = regexec(&compiled, text->text, 0, NULL, 0) == 0;
    regfree(&compiled);
    return match;
}

static bool is_index(const json *value)
{
    return value->type == JSON_NUMBER && value->number >= 0;
}

static size_t count(const json *value)
{
    size_t members = 0;
    for (const json *each = value->first; each; each = each->next)
        members++;
    return members;
}

#define BASE64 "^[A-Za-z0-9+/]+={0,2}$" /* in POSIX, $ is the end of the text alone */

/* Exactly these fields, each in its one spelling. */
static bool is_bundle(const json *bundle)
{
    const json *token = json_get(bundle, "camera_token");
    const json *chain = json_get(bundle, "device_certificate_chain");
    if (bundle->type != JSON_OBJECT || count(bundle) != 6 || token->type != JSON_OBJECT ||
        count(token) != 4 || chain->type != JSON_ARRAY || count(chain) != 2)
        return false;
    for (const json *each = chain->first; each; each = each->next)
        if (!matches(each, BASE64))
            return false;
    const json *version = json_get(bundle, "version");
    return version->type == JSON_NUMBER && version->number == 1 &&
           is_index(json_get(token, "table_id")) && is_index(json_get(token, "key_index")) &&
           matches(json_get(token, "encrypted_nuc_hash"), "^[0-9a-f]{96}$") &&
           matches(json_get(token, "nonce"), "^[0-9a-f]{24}$") &&
           matches(json_get(bundle, "image_hash"), "^[0-9a-f]{64}$") &&
           matches(json_get(bundle, "captured_at"),
                   "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{6}Z$") &&
           matches(json_get(bundle, "signature"), BASE64);
}

/* The second of a time, rounded down; -1 for no such day. */
static time_t second_of(const char *text)
{
    struct tm read = {0}, again;
    char back[32];
    if (!strptime(text, "%Y-%m-%dT%H:%M:%S", &read))
        return -1;
    time_t second = timegm(&read);
    if (!gmtime_r(&second, &again) || !strftime(back, sizeof back, "%Y-%m-%dT%H:%M:%S", &again))
        return -1;
    return strncmp(back, text, strlen(back)) ? -1 : second;
}

/* The bytes of base64 in its one spelling; their number, or 0. */
static size_t from_base64(const char *text, unsigned char *out, size_t room)
{
    unsigned char again[8193];
    size_t size = strlen(text), bytes = size / 4 * 3;
    if (size % 4 || bytes > room || size >= sizeof again ||
        EVP_DecodeBlock(out, (const unsigned char *)text, (int)size) < 0)
        return 0;
    const char *padding = strchr(text, '='); /* the pattern lets two be there at most */
    bytes -= padding ? strlen(padding) : 0;
    EVP_EncodeBlock(again, out, (int)bytes);
    return strcmp((const char *)again, text) ? 0 : bytes;
}

/* A certificate in DER, and nothing after it. */
static X509 *from_der(const char *base64)
{
    unsigned char der[6144];
    const unsigned char *at = der;
    size_t size = from_base64(base64, der, sizeof der);
    X509 *read = size ? d2i_X509(NULL, &at, (long)size) : NULL;
    if (read && at != der + size) {
        X509_free(read);
        return NULL;
    }
    return read;
}

static bool holds(const json *bundle, X509 *root, time_t now, char serial[BM_SERIAL])
{
    unsigned char signature[1024];
    char *message = NULL;
    time_t captured = second_of(json_text(bundle, "captured_at"));
    size_t size = from_base64(json_text(bundle, "signature"), signature, sizeof signature);
    if (captured < 0 || captured > now + 3600 || size == 0)
        return false;
    STACK_OF(X509) *chain = sk_X509_new_null();
    for (const json *each = json_get(bundle, "device_certificate_chain")->first; each; each = each->next) {
        X509 *certificate = from_der(each->text);
        if (certificate)
            sk_X509_push(chain, certificate);
    }
    BIO *signed_bytes = bm_signed_bytes(bundle);
    long written = signed_bytes ? BIO_get_mem_data(signed_bytes, &message) : 0;
    bool ok = sk_X509_num(chain) == 2 && written > 0 && bm_verify_chain(chain, root, now, serial) &&
              bm_verify_chain(chain, root, captured < now ? captured : now, serial) &&
              bm_verify_signature(X509_get0_pubkey(sk_X509_value(chain, 0)),
                                  (const unsigned char *)message, (size_t)written, signature, size);
    BIO_free(signed_bytes);
    sk_X509_pop_free(chain, X509_free);
    return ok;
}

bool bm_verify_bundle(const char *text, X509 *root, time_t now, char serial[BM_SERIAL])
{
    json *bundle = strlen(text) <= 32768 ? json_parse(text) : NULL;
    bool ok = bundle && is_bundle(bundle) && holds(bundle, root, now, serial);
    json_free(bundle);
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
    if (!strcmp(device->status, "retired"))
        return "device_retired";
    return strcmp(device->status, "revoked") ? "device_suspended" : "device_revoked";
}
