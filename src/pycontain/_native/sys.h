/* sys.h: raw system calls for the freestanding programs (monitor, init, hello) and for the child.
 *
 * Why raw: after clone3 libc's bookkeeping describes the parent, not us (its setuid() hung in 21 of
 * 66 raw clones made by a threaded program), and a program without libc maps a few dozen KiB.
 * Every call returns a value >= 0 or -errno, as the kernel does.
 */
#ifndef PYCONTAIN_SYS_H
#define PYCONTAIN_SYS_H

#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
static inline long pyc_sys6(long n, long a, long b, long c, long d, long e, long f) {
    long ret;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}
#elif defined(__aarch64__)
static inline long pyc_sys6(long n, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
}
#else
#error "pycontain: x86_64 and aarch64 only"
#endif

#define PYC_A_(x) ((long)(x))
#define PYC_SYS0(n) pyc_sys6((n), 0, 0, 0, 0, 0, 0)
#define PYC_SYS1(n, a) pyc_sys6((n), PYC_A_(a), 0, 0, 0, 0, 0)
#define PYC_SYS2(n, a, b) pyc_sys6((n), PYC_A_(a), PYC_A_(b), 0, 0, 0, 0)
#define PYC_SYS3(n, a, b, c) pyc_sys6((n), PYC_A_(a), PYC_A_(b), PYC_A_(c), 0, 0, 0)
#define PYC_SYS4(n, a, b, c, d) pyc_sys6((n), PYC_A_(a), PYC_A_(b), PYC_A_(c), PYC_A_(d), 0, 0)
#define PYC_SYS5(n, a, b, c, d, e) \
    pyc_sys6((n), PYC_A_(a), PYC_A_(b), PYC_A_(c), PYC_A_(d), PYC_A_(e), 0)
#define PYC_SYS6(n, a, b, c, d, e, f) \
    pyc_sys6((n), PYC_A_(a), PYC_A_(b), PYC_A_(c), PYC_A_(d), PYC_A_(e), PYC_A_(f))

static inline size_t pyc_strlen(const char *s) {
    size_t n = 0;
    while (s[n] != '\0')
        n++;
    return n;
}

#endif
