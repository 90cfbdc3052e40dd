/* `check check <vectors>`, or `check seal` / `check open` with JSON on standard input. */

#define _GNU_SOURCE /* timegm, strptime */

#include "birthmark.h"
#include "json.h"

#include <openssl/bn.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Hex of a given size, in either case. */
static bool from_hex(const char *text, unsigned char *out, size_t size)
{
    size_t written = 0;
    return strlen(text) == 2 * size && strspn(text, "0123456789abcdefABCDEF") == 2 * size &&
           (size == 0 || (OPENSSL_hexstr2buf_ex(out, size, &written, text, '\0') && written == size));
}

static bool equals_hex(const unsigned char *bytes, size_t size, const char *text)
{
    unsigned char expected[64];
    return size <= sizeof expected && from_hex(text, expected, size) && !memcmp(bytes, expected, size);
}

static bool read_token(const json *fields, bm_token *token)
{
    token->table_id = json_number(fields, "table_id");
    token->key_index = json_number(fields, "key_index");
    return json_get(fields, "key_index")->type == JSON_NUMBER &&
           from_hex(json_text(fields, "encrypted_nuc_hash"), token->sealed, BM_SEALED) &&
           from_hex(json_text(fields, "nonce"), token->nonce, BM_NONCE);
}

/* --- each says whether the test's subject was refused, or whether what came out is what the test says */

typedef enum { REFUSED, AGREES, DIFFERS } outcome;

static outcome compared(bool same)
{
    return same ? AGREES : DIFFERS;
}

static outcome key_derivation(const json *group, const json *test)
{
    unsigned char master_key[BM_KEY], key[BM_KEY], salt[64], suffix[64];
    const char *salt_text = json_text(group, "salt"), *suffix_text = json_text(group, "infoSuffix");
    size_t salt_size = strlen(salt_text) / 2, suffix_size = strlen(suffix_text) / 2;
    if (salt_size > sizeof salt || suffix_size > sizeof suffix ||
        !from_hex(salt_text, salt, salt_size) || !from_hex(suffix_text, suffix, suffix_size) ||
        !from_hex(json_text(test, "masterKey"), master_key, BM_KEY) ||
        !bm_derive_key(master_key, (uint32_t)json_number(test, "keyIndex"), salt, salt_size, suffix,
                       suffix_size, key))
        return REFUSED;
    return compared(equals_hex(key, BM_KEY, json_text(test, "derivedKey")));
}

static outcome camera_token(const json *group, const json *test)
{
    unsigned char master_key[BM_KEY], nuc_hash[BM_NUC_HASH];
    bm_token token, again;
    if (!read_token(json_get(test, "cameraToken"), &token) ||
        !from_hex(json_text(test, "masterKey"), master_key, BM_KEY) ||
        !bm_open(&token, master_key, json_number(group, "keysPerTable"), nuc_hash))
        return REFUSED;
    bool same = equals_hex(nuc_hash, BM_NUC_HASH, json_text(test, "nucHash"));
    if (strcmp(json_text(test, "result"), "valid"))
        return compared(same);
    again = token;
    memset(again.sealed, 0, sizeof again.sealed);
    return compared(same && bm_seal(nuc_hash, master_key, &again) &&
                    !memcmp(again.sealed, token.sealed, BM_SEALED));
}

static bool moment(const json *fields, time_t *out)
{
    struct tm read = {0};
    bool ok = strptime(json_text(fields, "now"), "%Y-%m-%dT%H:%M:%SZ", &read);
    *out = timegm(&read);
    return ok;
}

static outcome certificate_chain(const json *group, const json *test)
{
    char serial[BM_SERIAL] = "";
    time_t now;
    STACK_OF(X509) *chain = sk_X509_new_null();
    X509 *root = bm_certificate(json_text(group, "root"));
    bool ok = root && moment(test, &now);
    for (const json *each = json_get(test, "chain")->first; ok && each; each = each->next) {
        X509 *member = bm_certificate(each->text);
        ok = member && sk_X509_push(chain, member);
    }
    ok = ok && bm_verify_chain(chain, root, now, serial);
    sk_X509_pop_free(chain, X509_free);
    X509_free(root);
    char urn[BM_URN];
    bm_device_urn(serial, urn);
    return ok ? compared(!strcmp(serial, json_text(test, "deviceSerial")) &&
                         !strcmp(urn, json_text(test, "deviceUrn")))
              : REFUSED;
}

static outcome whole_bundle(const json *group, const json *test)
{
    char serial[BM_SERIAL] = "";
    time_t now;
    X509 *root = bm_certificate(json_text(group, "root"));
    bool ok = root && moment(group, &now) &&
              bm_verify_bundle(json_text(test, "bundle"), root, now, serial);
    X509_free(root);
    return ok ? compared(!strcmp(serial, json_text(test, "deviceSerial"))) : REFUSED;
}

/* The first prime at or above the number of a label. */
static BIGNUM *prime(const char *label, int number)
{
    unsigned char blocks[128];
    char text[128];
    for (int block = 0; block < 4; block++) {
        int size = snprintf(text, sizeof text, "%s, prime %d, block %d", label, number, block);
        EVP_Digest(text, (size_t)size, blocks + 32 * block, NULL, EVP_sha256(), NULL);
    }
    BIGNUM *candidate = BN_bin2bn(blocks, sizeof blocks, NULL);
    BN_CTX *context = BN_CTX_new();
    BN_set_bit(candidate, 1023);
    BN_set_bit(candidate, 1022);
    BN_set_bit(candidate, 0);
    while (BN_check_prime(candidate, context, NULL) == 0)
        BN_add_word(candidate, 2);
    BN_CTX_free(context);
    return candidate;
}

static EVP_PKEY *from_parameters(const char *kind, OSSL_PARAM_BLD *builder)
{
    EVP_PKEY *key = NULL;
    OSSL_PARAM *parameters = OSSL_PARAM_BLD_to_param(builder);
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, kind, NULL);
    if (EVP_PKEY_fromdata_init(context) != 1 ||
        EVP_PKEY_fromdata(context, &key, EVP_PKEY_KEYPAIR, parameters) != 1)
        key = NULL;
    EVP_PKEY_CTX_free(context);
    OSSL_PARAM_free(parameters);
    OSSL_PARAM_BLD_free(builder);
    return key;
}

static EVP_PKEY *rsa_key(const char *label)
{
    BIGNUM *p = prime(label, 1), *q = prime(label, 2), *n = BN_new(), *e = BN_new(), *phi = BN_new();
    BN_CTX *context = BN_CTX_new();
    BN_mul(n, p, q, context);
    BN_set_word(e, 65537);
    BN_sub_word(p, 1);
    BN_sub_word(q, 1);
    BN_mul(phi, p, q, context);
    BIGNUM *d = BN_mod_inverse(NULL, e, phi, context);
    OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    OSSL_PARAM_BLD_push_BN(builder, "n", n);
    OSSL_PARAM_BLD_push_BN(builder, "e", e);
    OSSL_PARAM_BLD_push_BN(builder, "d", d);
    EVP_PKEY *key = from_parameters("RSA", builder);
    BIGNUM *numbers[] = {p, q, n, e, phi, d};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        BN_free(numbers[i]);
    BN_CTX_free(context);
    return key;
}

/* The test key that a label stands for (docs/vectors.md): everybody can make it. */
static EVP_PKEY *test_key(const char *label, const char *kind)
{
    bool longer = !strcmp(kind, "EC P-384");
    unsigned char secret[48];
    unsigned int size = 0;
    if (!strcmp(kind, "RSA 2048"))
        return rsa_key(label);
    EVP_Digest(label, strlen(label), secret, &size, longer ? EVP_sha384() : EVP_sha256(), NULL);
    if (!strcmp(kind, "Ed25519"))
        return EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, size);
    OSSL_PARAM_BLD *builder = OSSL_PARAM_BLD_new();
    BIGNUM *scalar = BN_bin2bn(secret, (int)size, NULL);
    OSSL_PARAM_BLD_push_utf8_string(builder, "group", longer ? "P-384" : "P-256", 0);
    OSSL_PARAM_BLD_push_BN(builder, "priv", scalar);
    EVP_PKEY *key = from_parameters("EC", builder);
    BN_free(scalar);
    return key;
}

/* Whether what the key of the label signs fits the public key; RSA and Ed25519 sign in one way alone. */
static bool signs_alike(const json *group, EVP_PKEY *public, const unsigned char *message, size_t size,
                        const unsigned char *expected, size_t expected_size)
{
    unsigned char signature[BM_SIGNATURE];
    const char *kind = json_text(group, "keyKind");
    EVP_PKEY *key = test_key(json_text(group, "deviceLabel"), kind);
    size_t written = key ? bm_sign(key, message, size, signature) : 0;
    EVP_PKEY_free(key);
    return written > 0 && bm_verify_signature(public, message, size, signature, written) &&
           (!strncmp(kind, "EC ", 3) ||
            (written == expected_size && !memcmp(signature, expected, expected_size)));
}

/* Frees the bytes that were made to be signed. */
static outcome judge_signature(const json *group, const json *test, BIO *signed_bytes)
{
    long expected_size = 0, signature_size = 0;
    char *message = NULL;
    long message_size = signed_bytes ? BIO_get_mem_data(signed_bytes, &message) : 0;
    BIO *memory = BIO_new_mem_buf(json_text(group, "publicKey"), -1);
    EVP_PKEY *key = PEM_read_bio_PUBKEY(memory, NULL, NULL, NULL);
    unsigned char *expected = OPENSSL_hexstr2buf(json_text(test, "signedBytes"), &expected_size);
    unsigned char *signature = OPENSSL_hexstr2buf(json_text(test, "signature"), &signature_size);
    bool same = message && expected && message_size == expected_size &&
                !memcmp(message, expected, (size_t)expected_size);
    bool ok = same && key && signature &&
              bm_verify_signature(key, expected, (size_t)expected_size, signature, (size_t)signature_size);
    same = same && (!ok || signs_alike(group, key, expected, (size_t)expected_size, signature,
                                       (size_t)signature_size));
    OPENSSL_free(expected);
    OPENSSL_free(signature);
    EVP_PKEY_free(key);
    BIO_free(memory);
    BIO_free(signed_bytes);
    if (!same)
        return DIFFERS;
    return ok ? AGREES : REFUSED;
}

static outcome bundle_signature(const json *group, const json *test)
{
    if (!strcmp(json_text(group, "type"), "Bundle"))
        return whole_bundle(group, test);
    json *bundle = json_parse(json_text(test, "bundle"));
    outcome judged = judge_signature(group, test, bundle ? bm_signed_bytes(bundle) : NULL);
    json_free(bundle);
    return judged;
}

static bm_der der_of(const json *test, const char *name)
{
    long size = 0;
    unsigned char *bytes = OPENSSL_hexstr2buf(json_text(test, name), &size);
    return (bm_der){bytes, (size_t)size};
}

static outcome renewal_proof(const json *group, const json *test)
{
    bool sealed = json_get(test, "recipientKey")->type == JSON_STRING;
    bm_der certificate = der_of(test, "certificate"), csr = der_of(test, "csr");
    bm_der recipient_key = sealed ? der_of(test, "recipientKey") : (bm_der){NULL, 0};
    BIO *message = bm_renewal_bytes(certificate, csr, sealed ? &recipient_key : NULL,
                                    json_text(test, "requestedAt"), json_number(test, "supersede") != 0);
    OPENSSL_free((void *)certificate.bytes);
    OPENSSL_free((void *)csr.bytes);
    OPENSSL_free((void *)recipient_key.bytes);
    return judge_signature(group, test, message);
}

static outcome verdict(const json *group, const json *test)
{
    int64_t tables[8];
    const json *known = json_get(test, "device");
    bm_device device = {json_text(known, "status"), tables, 0};
    for (const json *each = json_get(known, "tableAssignments")->first;
         each && device.table_count < sizeof tables / sizeof *tables; each = each->next)
        tables[device.table_count++] = each->number;
    const char *reason = bm_judge(json_number(group, "tables"), json_number(group, "keysPerTable"),
                                  json_number(test, "tableId"), json_number(test, "keyIndex"),
                                  json_number(test, "opened") != 0,
                                  known->type == JSON_OBJECT ? &device : NULL);
    if (strcmp(reason, json_text(test, "reason")))
        return DIFFERS;
    return strcmp(reason, "genuine") ? REFUSED : AGREES; /* FAIL, and for that reason */
}

static const struct {
    const char *name;
    outcome (*judge)(const json *group, const json *test);
} files[] = {
    {"key_derivation", key_derivation},     {"camera_token", camera_token},
    {"certificate_chain", certificate_chain}, {"bundle_signature", bundle_signature},
    {"renewal_proof", renewal_proof},         {"verdict", verdict},
};

/* --- */

static json *read_json(FILE *file)
{
    size_t size = 0, room = 1 << 16;
    char *text = malloc(room);
    while (text && file) {
        size += fread(text + size, 1, room - size - 1, file);
        if (size < room - 1)
            break;
        text = realloc(text, room *= 2);
    }
    if (!text || !file)
        return NULL;
    text[size] = '\0';
    json *read = json_parse(text);
    free(text);
    return read;
}

static int check(const char *directory)
{
    int wrong = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[4096];
        int ran = 0;
        snprintf(path, sizeof path, "%s/%s_test.json", directory, files[i].name);
        FILE *file = fopen(path, "r");
        json *document = read_json(file);
        if (!document) {
            printf("%s cannot be read\n", path);
            return 1;
        }
        fclose(file);
        for (const json *group = json_get(document, "testGroups")->first; group; group = group->next) {
            for (const json *test = json_get(group, "tests")->first; test; test = test->next) {
                const char *result = json_text(test, "result");
                outcome was = files[i].judge(group, test);
                ran++;
                if (strcmp(result, was == REFUSED ? "valid" : "invalid") == 0 || was == DIFFERS) {
                    printf("%s %d: %s: %s\n", files[i].name, (int)json_number(test, "tcId"),
                           json_text(test, "comment"), result);
                    wrong++;
                }
            }
        }
        printf("%s: %d tests\n", files[i].name, ran);
        json_free(document);
    }
    return wrong > 0;
}

static void print_hex(const unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        printf("%02x", bytes[i]);
}

static int seal(const json *given)
{
    unsigned char nuc_hash[BM_NUC_HASH], master_key[BM_KEY];
    bm_token token = {.table_id = json_number(given, "table_id"),
                      .key_index = json_number(given, "key_index")};
    if (!from_hex(json_text(given, "nuc_hash"), nuc_hash, BM_NUC_HASH) ||
        !from_hex(json_text(given, "master_key"), master_key, BM_KEY) ||
        RAND_bytes(token.nonce, BM_NONCE) != 1 || !bm_seal(nuc_hash, master_key, &token))
        return 1;
    printf("{\"encrypted_nuc_hash\":\"");
    print_hex(token.sealed, BM_SEALED);
    printf("\",\"table_id\":%lld,\"key_index\":%lld,\"nonce\":\"", (long long)token.table_id,
           (long long)token.key_index);
    print_hex(token.nonce, BM_NONCE);
    printf("\"}\n");
    return 0;
}

static int open_token(const json *given)
{
    unsigned char nuc_hash[BM_NUC_HASH], master_key[BM_KEY];
    bm_token token;
    if (!read_token(json_get(given, "camera_token"), &token) ||
        !from_hex(json_text(given, "master_key"), master_key, BM_KEY) ||
        !bm_open(&token, master_key, 1000, nuc_hash))
        return 1;
    print_hex(nuc_hash, BM_NUC_HASH);
    printf("\n");
    return 0;
}

int main(int count, char **arguments)
{
    if (count == 3 && !strcmp(arguments[1], "check"))
        return check(arguments[2]);
    json *given = count == 2 ? read_json(stdin) : NULL;
    if (!given) {
        fprintf(stderr, "check check <vectors>, or check seal / open with JSON on standard input\n");
        return 2;
    }
    int code = strcmp(arguments[1], "seal") ? open_token(given) : seal(given);
    json_free(given);
    return code;
}
