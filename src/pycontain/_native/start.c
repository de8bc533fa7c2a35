/* start.c: the entry point of the programs without libc. The kernel leaves argc, argv, NULL, envp,
 * NULL on the stack (System V ABI, "Process Initialization"). */
#include "freestanding.h"
#include "sys.h"

#if defined(__x86_64__)
__asm__(".text\n"
        ".globl _start\n"
        ".type _start,@function\n"
        "_start:\n"
        "    xorl %ebp, %ebp\n"
        "    movq %rsp, %rdi\n"
        "    andq $-16, %rsp\n"
        "    call pyc_start\n"
        "    hlt\n");
#elif defined(__aarch64__)
__asm__(".text\n"
        ".globl _start\n"
        ".type _start,%function\n"
        "_start:\n"
        "    mov x29, #0\n"
        "    mov x30, #0\n"
        "    mov x0, sp\n"
        "    bl pyc_start\n"
        "    brk #0\n");
#endif

_Noreturn void pyc_start(long *stack) {
    int argc = (int)stack[0];
    char **argv = (char **)(stack + 1);
    int code = pyc_main(argc, argv, argv + argc + 1);
    for (;;)
        PYC_SYS1(__NR_exit_group, code);
}
