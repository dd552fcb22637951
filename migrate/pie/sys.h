/* System calls and the few primitives that a program without libc needs. */
#pragma once
#include "program.h"
#include <asm/unistd.h>
#include <linux/errno.h>

static inline s64 sys(u64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
    register u64 r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
    s64 ret;
    asm volatile("syscall"
                 : "=a"(ret)
                 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                 : "rcx", "r11", "memory");
    return ret;
}
/* The system call of 32-bit code: other numbers, and pointers of 32 bits. Kernels clear or keep r8 to r11. */
static inline s64 sys32(u64 nr, u64 a, u64 b, u64 c, u64 d)
{
    s64 ret;
    asm volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d) : "r8", "r9", "r10", "r11", "memory");
    return ret;
}
#define sys3(nr, a, b, c) sys(nr, (u64)(a), (u64)(b), (u64)(c), 0, 0, 0)

static inline void copy(void *to, const void *from, u64 n)
{
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}
