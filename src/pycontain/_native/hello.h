/* hello.h: what the parts of /hello share: text output, and the report. */
#ifndef PYCONTAIN_HELLO_H
#define PYCONTAIN_HELLO_H

#include "freestanding.h"
#include "sys.h"

/* Buffered standard output; say_flush before anything that may not return. */
void say(const char *text);
void say_number(uint64_t value);
void say_flush(void);

/* hello_fields.c: a report is sections of fields; a field is a text (NULL: unknown), a number, a
 * truth or a list. Names are words; JSON joins them with "_". */
void begin_report(int as_json);
void section(const char *name);
void text(const char *name, const char *value);
void number(const char *name, uint64_t value);
void truth(const char *name, int value);
void begin_list(const char *name);
void next_item(size_t length); /* the caller says it: a number */
void begin_item(void);         /* JSON only, an object: fields, then "}" */
void item(const char *value);
void end_list(const char *empty);
void pad(size_t from, size_t to);
void end_report(void);

/* Says what this process can see, as aligned text or as one JSON object. */
void report(int as_json);

#endif
