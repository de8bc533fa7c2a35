/* freestanding.h: the few things of a C library that monitor, init and hello need. */
#ifndef PYCONTAIN_FREESTANDING_H
#define PYCONTAIN_FREESTANDING_H

#include <stddef.h>
#include <stdint.h>

/* gcc emits calls to these four even with -ffreestanding. */
void *memcpy(void *restrict dst, const void *restrict src, size_t bytes);
void *memmove(void *dst, const void *src, size_t bytes);
void *memset(void *dst, int value, size_t bytes);
int memcmp(const void *a, const void *b, size_t bytes);
size_t strlen(const char *s);

/* What each program defines; start.c calls it, and exits with what it returns. */
int pyc_main(int argc, char **argv, char **envp);
_Noreturn void pyc_start(long *stack);

/* Text without printf: each writes at `at` (no NUL) and returns the end of what it wrote. */
char *pyc_put_text(char *at, const char *text);
char *pyc_put_decimal(char *at, uint64_t value, unsigned min_digits);

/* The decimal number at the start of `text`; 0 if there is none. Saturates. */
uint64_t pyc_decimal(const char *text);

#endif
