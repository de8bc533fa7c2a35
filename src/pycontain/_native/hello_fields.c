/* hello_fields.c: sections of fields, written as aligned text or as JSON. */
#include "hello.h"

#define KEY_COLUMNS 18
#define WIDTH 92

static int json, first_section, first_field, first_item;
static size_t column; /* of the list that is being written as text */

static void quoted(const char *text) {
    static const char hex[] = "0123456789abcdef";
    char one[2] = {0, 0}, code[7] = "\\u00xx";
    say("\"");
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        one[0] = *text;
        if (c == '"' || c == '\\') {
            say("\\");
            say(one);
        } else if (c < 32 || c >= 127) { /* names may hold any byte; as Latin-1 it stays JSON */
            code[4] = hex[c >> 4];
            code[5] = hex[c & 15];
            say(code);
        } else {
            say(one);
        }
    }
    say("\"");
}

void section(const char *name) {
    if (json) {
        say(first_section ? "{\n " : "},\n ");
        quoted(name);
        say(": {");
    } else {
        say("\n");
        say(name);
        say("\n");
    }
    first_section = 0;
    first_field = 1;
}

void pad(size_t from, size_t to) {
    do
        say(" ");
    while (++from < to);
}

/* In JSON, words of a key are joined with "_". */
static void key(const char *name) {
    char joined[32], *to = joined;
    if (!json) {
        say("  ");
        say(name);
        pad(strlen(name) + 2, KEY_COLUMNS);
    } else {
        say(first_field ? "" : ", ");
        for (; *name != '\0' && to < joined + sizeof joined - 1; name++)
            *to++ = *name == ' ' ? '_' : *name;
        *to = '\0';
        quoted(joined);
        say(": ");
    }
    first_field = 0;
}

static void end_field(void) {
    if (!json)
        say("\n");
}

void text(const char *name, const char *value) {
    key(name);
    if (json && value == NULL)
        say("null");
    else if (json)
        quoted(value);
    else
        say(value == NULL ? "unknown" : value);
    end_field();
}

void number(const char *name, uint64_t value) {
    key(name);
    say_number(value);
    end_field();
}

void truth(const char *name, int value) {
    key(name);
    if (json)
        say(value ? "true" : "false");
    else
        say(value ? "yes" : "no");
    end_field();
}

void begin_list(const char *name) {
    key(name);
    if (json)
        say("[");
    first_item = 1;
    column = KEY_COLUMNS;
}

void next_item(size_t length) {
    if (json && !first_item)
        say(", ");
    if (!json && !first_item && column + length >= WIDTH) {
        say("\n");
        pad(0, KEY_COLUMNS);
        column = KEY_COLUMNS;
    } else if (!json && !first_item) {
        say(" ");
    }
    column += length + 1;
    first_item = 0;
}

void item(const char *value) {
    next_item(strlen(value));
    if (json)
        quoted(value);
    else
        say(value);
}

void end_list(const char *empty) {
    if (json)
        say("]");
    else if (first_item)
        say(empty);
    end_field();
}

void begin_item(void) {
    next_item(0);
    say("{");
    first_field = 1;
}

void begin_report(int as_json) {
    json = as_json;
    first_section = 1;
}

void end_report(void) {
    if (json)
        say("}\n}\n");
    say_flush();
}
