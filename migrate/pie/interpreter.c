/* The interpreter: runs a program of system calls. It knows nothing about what they mean.
 *
 * Freestanding and position-independent; general registers only, so that a thread it is injected into keeps its
 * vector state. Several threads may run branches of one program at once: each writes only its own ops' results. */
#include "sys.h"

static u64 argument(const struct program *p, const struct op *op, int i)
{
    const u8 *base = (const u8 *)p;
    u64 value = op->args[i];

    switch (op->modes >> (4 * i) & 15) {
    case RESULT:
        return ((const struct op *)(base + p->ops_at))[value].result;
    case ADDRESS:
        return (u64)(base + p->data_at + value);
    case LOAD32:
        return (s64) * (const s32 *)(base + p->data_at + value);
    case LOAD64:
        return *(const u64 *)(base + p->data_at + value);
    }
    return value;
}

static s64 futex(u32 *word, int op, u32 value, const void *timeout)
{
    return sys(__NR_futex, (u64)word, op | 128 /* FUTEX_PRIVATE_FLAG */, value, (u64)timeout, 0, 0);
}

/* The branch that counts may fail instead and then wakes nobody: so look again now and then. */
static s64 wait_for(struct program *p, u32 *word, u32 value)
{
    const s64 timeout[2] = {0, 10000000};
    u32 now;

    while ((now = __atomic_load_n(word, __ATOMIC_ACQUIRE)) < value) {
        if (__atomic_load_n(&p->failed, __ATOMIC_ACQUIRE) >= 0)
            return -ECANCELED;
        futex(word, 0, now, timeout);
    }
    return now;
}

/* The child has a new stack and so cannot return from here: it calls `code` with the branch to run. */
static s64 clone3(u64 args, u64 size, struct program *p, u64 pc, u64 code)
{
    register struct program *r12 asm("r12") = p;
    register u64 r13 asm("r13") = pc, r14 asm("r14") = code;
    s64 ret;

    asm volatile("syscall\n\t"
                 "test %%rax, %%rax\n\t"
                 "jnz 1f\n\t"
                 "xor %%ebp, %%ebp\n\t"
                 "mov %%r12, %%rdi\n\t"
                 "mov %%r13, %%rsi\n\t"
                 "call *%%r14\n\t"
                 "ud2\n"
                 "1:"
                 : "=a"(ret)
                 : "a"(__NR_clone3), "D"(args), "S"(size), "r"(r12), "r"(r13), "r"(r14)
                 : "rcx", "r11", "memory");
    return ret;
}

static void last_answer(int control)
{
    const struct answer done = {-1, 0, 0};

    if (control < 0)
        return;
    sys3(__NR_write, control, &done, sizeof(done));
    sys3(__NR_close, control, 0, 0);
}

/* Who counts here looks at its program no more: the next one may be loaded in its place. Of many only the last one
 * wakes who waits for all. */
static void park(int control, u32 *counter, u32 all) __attribute__((noreturn));
static void park(int control, u32 *counter, u32 all)
{
    u32 never = 0;

    last_answer(control);
    if (counter && __atomic_add_fetch(counter, 1, __ATOMIC_RELEASE) == all)
        futex(counter, 1, 1 << 30, 0);
    for (;;)
        futex(&never, 0, 0, 0);
}

/* In a PID namespace of its own this is init, which reaps whatever the restoree leaves behind for as long as it lives. */
static void leave(int control, s64 pid) __attribute__((noreturn));
static void leave(int control, s64 pid)
{
    s32 status = 0, ending = 0;

    last_answer(control);
    while (pid) {
        s64 reaped = sys(__NR_wait4, -1, (u64)&status, 0, 0, 0, 0);

        if (reaped == pid) /* an init cannot be ended by a signal: as shells tell of it */
            ending = status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff;
        if (reaped == pid || reaped == -ECHILD)
            pid = 0;
    }
    for (;;)
        sys3(__NR_exit_group, ending, 0, 0);
}

static s64 amx(void)
{
    u8 config[64] = {1};

    config[16] = 64; /* bytes a row of tile 0 */
    config[48] = 16; /* its rows */
    asm volatile("ldtilecfg %0\n\ttilezero %%tmm0\n\ttilerelease" : : "m"(config));
    return 0;
}

static s64 step(struct program *p, struct op *op, const u64 *a)
{
    u32 *out;
    u64 low, high;

    switch (op->kind) {
    case SYSCALL:
        return sys(op->number, a[0], a[1], a[2], a[3], a[4], a[5]);
    case CALL32:
        return sys32(op->number, a[0], a[1], a[2], a[3]);
    case COPY:
        copy((void *)a[0], (const void *)a[1], a[2]);
        return 0;
    case CHECK:
        low = *(const u64 *)a[0];
        if ((low & a[1]) == a[2])
            return 0;
        return -EILSEQ;
    case CLONE:
        return clone3(a[0], a[1], p, a[2], a[3] ? a[3] : (u64)enter);
    case SERVE:
        serve(a[0], a[1], (u8 *)a[2], a[3]);
    case PARK:
        park(a[0], (u32 *)a[1], a[2]);
    case LEAVE:
        leave(a[0], a[1]);
    case WAIT:
        return wait_for(p, (u32 *)a[0], a[1]);
    case COUNT:
        __atomic_add_fetch((u32 *)a[0], 1, __ATOMIC_RELEASE);
        return futex((u32 *)a[0], 1, 1 << 30, 0);
    case SIGRETURN:
        asm volatile("mov %0, %%rsp\n\tmov $15, %%eax\n\tsyscall\n\tud2" : : "r"(a[0]) : "memory");
        __builtin_unreachable();
    case CPUID:
        out = (u32 *)a[2];
        asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"((u32)a[0]), "c"((u32)a[1]));
        return 0;
    case XGETBV:
        /* SDM vol. 1, 13.3: an invalid instruction where the kernel has not set CR4.OSXSAVE */
        low = 1;
        high = 0;
        asm volatile("cpuid" : "+a"(low), "+c"(high) : : "ebx", "edx");
        if (!(high >> 27 & 1))
            return 0;
        asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"((u32)a[0]));
        return high << 32 | (u32)low;
    case AMX:
        return amx();
    }
    return -ENOSYS;
}

static int fails(const struct op *op)
{
    int error = op->result < 0 && op->result >= -MAX_ERRNO;

    switch (op->check) {
    case CHECK_ANY:
        return 0;
    case CHECK_EXACT:
        return op->result != op->expect;
    case CHECK_OR_ERRNO:
        return error && op->result != -op->expect;
    }
    return error;
}

/* The first failure is the one that counts: others follow from it. */
static s32 fail(struct program *p, u32 pc, s64 result)
{
    s32 none = -1;

    if (__atomic_compare_exchange_n(&p->failed, &none, (s32)pc, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        p->failed_result = result;
    return pc;
}

/* Runs from op `pc` to the end of its branch; the index of the op that failed, or -1. */
s32 run(struct program *p, u32 pc)
{
    u8 *base = (u8 *)p, *data = base + p->data_at;
    struct op *ops = (struct op *)(base + p->ops_at);
    const struct relocation *relocations = (const struct relocation *)(base + p->relocations_at);
    u64 a[6];

    if (p->magic != MAGIC)
        return fail(p, 0, -ENOEXEC);
    if (!pc)
        for (u32 i = 0; i < p->relocations; i++)
            *(u64 *)(data + relocations[i].at) = (u64)(data + relocations[i].target);
    for (; pc < p->ops; pc++) {
        struct op *op = ops + pc;

        if (op->kind == END)
            return -1;
        for (int i = 0; i < 6; i++)
            a[i] = argument(p, op, i);
        op->result = step(p, op, a);
        if (fails(op))
            return fail(p, pc, op->result);
    }
    return fail(p, pc, -ERANGE);
}

/* Where a new thread or an injected one begins. */
void enter(struct program *p, u32 pc)
{
    s32 failed = run(p, pc);

    for (;;)
        sys3(__NR_exit, failed >= 0, 0, 0);
}
