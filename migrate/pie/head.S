/* The entry points, at fixed offsets: see migrate/pie/__init__.py. */
    .section .text.head, "ax"
    .balign 8
    jmp start /* +0: the restorer's ELF entry; its stack is the kernel's, aligned to 16 */
    .balign 8
    jmp enter_aligned /* +8: enter(program, op), from a register set-up that may have any stack */
    .balign 8
    jmp run /* +16: run(program, op), an ordinary function */
    .balign 8
    syscall /* +24: one injected call */
    int3
    .balign 8
    jmp crc32c /* +32: crc32c(before, data, bytes, the CPU has the instruction), an ordinary function */
    .balign 8

enter_aligned:
    xor %ebp, %ebp
    and $-16, %rsp
    call enter
    ud2
    .section .note.GNU-stack, "", @progbits
