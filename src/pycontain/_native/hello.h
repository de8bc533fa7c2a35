/* hello.h: what the two halves of /hello share: text output, and the report. */
#ifndef PYCONTAIN_HELLO_H
#define PYCONTAIN_HELLO_H

#include "freestanding.h"
#include "sys.h"

/* Buffered standard output; say_flush before anything that may not return. */
void say(const char *text);
void say_number(uint64_t value);
void say_flush(void);

/* Says what this process can see, as aligned text or as one JSON object. */
void report(int as_json);

#endif
