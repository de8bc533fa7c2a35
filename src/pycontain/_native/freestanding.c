/* freestanding.c: memory and text primitives. Speed does not matter here except in memcpy, through
 * which the log lines go. */
#include "freestanding.h"

/* The barrier keeps gcc from recognising the loop and turning it into a call to itself. */
#define KEEP_LOOP() __asm__ volatile("" ::: "memory")

void *memcpy(void *restrict dst, const void *restrict src, size_t bytes) {
#if defined(__x86_64__)
    void *to = dst;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(src), "+c"(bytes) : : "memory");
#else
    uint8_t *to = dst;
    const uint8_t *from = src;
    for (size_t i = 0; i < bytes; i++) {
        to[i] = from[i];
        KEEP_LOOP();
    }
#endif
    return dst;
}

void *memmove(void *dst, const void *src, size_t bytes) {
    uint8_t *to = dst;
    const uint8_t *from = src;
    if ((uintptr_t)to <= (uintptr_t)from) {
        for (size_t i = 0; i < bytes; i++) {
            to[i] = from[i];
            KEEP_LOOP();
        }
    } else {
        for (size_t i = bytes; i > 0; i--) {
            to[i - 1] = from[i - 1];
            KEEP_LOOP();
        }
    }
    return dst;
}

void *memset(void *dst, int value, size_t bytes) {
    uint8_t *to = dst;
    for (size_t i = 0; i < bytes; i++) {
        to[i] = (uint8_t)value;
        KEEP_LOOP();
    }
    return dst;
}

int memcmp(const void *a, const void *b, size_t bytes) {
    const uint8_t *left = a, *right = b;
    for (size_t i = 0; i < bytes; i++)
        if (left[i] != right[i])
            return left[i] < right[i] ? -1 : 1;
    return 0;
}

size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n] != '\0') {
        n++;
        KEEP_LOOP();
    }
    return n;
}

char *pyc_put_text(char *at, const char *text) {
    while (*text != '\0')
        *at++ = *text++;
    return at;
}

char *pyc_put_decimal(char *at, uint64_t value, unsigned min_digits) {
    char digits[20];
    unsigned n = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    for (; min_digits > n; min_digits--)
        *at++ = '0';
    while (n > 0)
        *at++ = digits[--n];
    return at;
}

uint64_t pyc_decimal(const char *text) {
    uint64_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++) {
        if (value > (UINT64_MAX - 9) / 10)
            return UINT64_MAX;
        value = value * 10 + (uint64_t)(*text - '0');
    }
    return value;
}
