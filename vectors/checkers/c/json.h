/* Reads JSON (RFC 8259) into a tree. It is strict, as bundles want it: no name twice, no number but
 * integers, no -0, no NUL in a text, and no character beyond the first plane by its escape. */

#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stdint.h>

typedef struct json {
    enum { JSON_NULL, JSON_BOOLEAN, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } type;
    char *name;  /* in an object */
    char *text;  /* of a string, in UTF-8 */
    int64_t number; /* or 0 and 1 */
    struct json *first, *next;
} json;

/* NULL where it is not JSON. Numbers are integers. */
json *json_parse(const char *text);
void json_free(json *value);

/* The field of an object; one that is missing is a null that belongs to nobody. */
const json *json_get(const json *object, const char *name);
const char *json_text(const json *object, const char *name); /* "" where there is none */
int64_t json_number(const json *object, const char *name);

#endif
