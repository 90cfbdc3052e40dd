#include "json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

/* Write a code point of the first plane as UTF-8. */
static char *utf8(char *out, unsigned long code)
{
    if (code < 0x80) {
        *out++ = (char)code;
    } else {
        if (code < 0x800) {
            *out++ = (char)(0xc0 | code >> 6);
        } else {
            *out++ = (char)(0xe0 | code >> 12);
            *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        }
        *out++ = (char)(0x80 | (code & 0x3f));
    }
    return out;
}

static const char *string(const char *at, char **out)
{
    size_t size = 0;
    if (*at++ != '"')
        return NULL;
    while (at[size] && at[size] != '"') /* an escape is never shorter than what it stands for */
        size += at[size] == '\\' && at[size + 1] ? 2 : 1;
    if (!at[size])
        return NULL;
    const char *end = at + size;
    char *write = *out = malloc(size + 1);
    if (!write)
        return NULL;
    while (at < end) {
        static const char names[] = "nrtbf\"\\/", values[] = "\n\r\t\b\f\"\\/";
        const char *known = strchr(names, at[1]);
        if ((unsigned char)*at < ' ') {
            return NULL;
        } else if (*at != '\\') {
            *write++ = *at++;
        } else if (at[1] == 'u' && end - at >= 6 && strspn(at + 2, "0123456789abcdefABCDEF") >= 4) {
            char digits[5] = {at[2], at[3], at[4], at[5], 0};
            unsigned long code = strtoul(digits, NULL, 16);
            if (code == 0 || (code >= 0xd800 && code < 0xe000))
                return NULL;
            write = utf8(write, code);
            at += 6;
        } else if (known) {
            *write++ = values[known - names];
            at += 2;
        } else {
            return NULL;
        }
    }
    *write = '\0';
    return end + 1;
}

static const char *value(const char *at, json *into, int depth);

static const char *members(const char *at, json *into, char end, int depth)
{
    json **place = &into->first;
    for (at = space(at + 1); *at != end; at = space(at)) {
        if (into->first && *at++ != ',')
            return NULL;
        json *member = *place = calloc(1, sizeof *member);
        if (!member)
            return NULL;
        place = &member->next;
        at = space(at);
        if (end == '}') {
            at = string(at, &member->name);
            if (!at || *(at = space(at)) != ':')
                return NULL;
            for (const json *other = into->first; other != member; other = other->next)
                if (!strcmp(other->name, member->name))
                    return NULL;
            at++;
        }
        if (!(at = value(at, member, depth + 1)))
            return NULL;
    }
    return at + 1;
}

static const char *value(const char *at, json *into, int depth)
{
    char *end;
    at = space(at);
    if (depth > 64)
        return NULL;
    if (*at == '{' || *at == '[') {
        into->type = *at == '{' ? JSON_OBJECT : JSON_ARRAY;
        return members(at, into, *at == '{' ? '}' : ']', depth);
    }
    if (*at == '"') {
        into->type = JSON_STRING;
        return string(at, &into->text);
    }
    if (!strncmp(at, "null", 4))
        return at + 4;
    if (!strncmp(at, "true", 4) || !strncmp(at, "false", 5)) {
        into->type = JSON_BOOLEAN;
        into->number = *at == 't';
        return at + (*at == 't' ? 4 : 5);
    }
    const char *digits = at + (*at == '-');
    size_t count = strspn(digits, "0123456789");
    if (count == 0 || (*digits == '0' && (count > 1 || *at == '-')))
        return NULL;
    errno = 0;
    into->type = JSON_NUMBER;
    into->number = strtoll(at, &end, 10);
    return errno ? NULL : end;
}

json *json_parse(const char *text)
{
    json *root = calloc(1, sizeof *root);
    const char *end = root ? value(text, root, 0) : NULL;
    if (!end || *space(end)) {
        json_free(root);
        return NULL;
    }
    return root;
}

void json_free(json *tree)
{
    while (tree) {
        json *next = tree->next;
        json_free(tree->first);
        free(tree->name);
        free(tree->text);
        free(tree);
        tree = next;
    }
}

const json *json_get(const json *object, const char *name)
{
    static const json nothing;
    for (const json *each = object->first; each; each = each->next)
        if (each->name && !strcmp(each->name, name))
            return each;
    return &nothing;
}

const char *json_text(const json *object, const char *name)
{
    const json *found = json_get(object, name);
    return found->type == JSON_STRING ? found->text : "";
}

int64_t json_number(const json *object, const char *name)
{
    return json_get(object, name)->number;
}
