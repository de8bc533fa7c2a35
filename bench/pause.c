/* pause.c: a static program that waits for ever: something to exec into, and to count by the
 * hundred. Its own memory is one page of text and one of stack. */
__attribute__((noreturn)) void _start(void) {
    for (;;) {
#if defined(__x86_64__)
        __asm__ volatile("mov $34, %%eax\n\tsyscall" ::: "rax", "rcx", "r11", "memory");
#elif defined(__aarch64__)
        __asm__ volatile("mov x8, #73\n\tmov x0, #0\n\tmov x1, #0\n\tmov x2, #0\n\tmov x3, #0\n\t"
                         "mov x4, #0\n\tsvc #0" ::: "x0", "x1", "x2", "x3", "x4", "x8", "memory");
#else
#error "x86_64 and aarch64 only"
#endif
    }
}
