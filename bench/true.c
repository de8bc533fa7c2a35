/* true.c: a static program that ends at once, so that a benchmark measures the runtime and not a
 * payload. Built with -nostdlib -static: no loader, no libc start-up. */
__attribute__((noreturn)) void _start(void) {
#if defined(__x86_64__)
    __asm__ volatile("mov $60, %eax\n\txor %edi, %edi\n\tsyscall");
#elif defined(__aarch64__)
    __asm__ volatile("mov x8, #93\n\tmov x0, #0\n\tsvc #0");
#else
#error "x86_64 and aarch64 only"
#endif
    __builtin_unreachable();
}
