/* A program as the interpreter sees it: the layout of migrate/engine/program/ (a test compares the two). */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef int s32;
typedef long s64;

enum { MAGIC = 0x676D, MAX_ERRNO = 4095 };

enum kind { SYSCALL, COPY, CHECK, CLONE, SERVE, PARK, WAIT, COUNT, SIGRETURN, CPUID, XGETBV, AMX, END, LEAVE, CALL32 };
enum mode { VALUE, RESULT, ADDRESS, LOAD32, LOAD64 };
enum check { CHECK_OK, CHECK_ANY, CHECK_EXACT, CHECK_OR_ERRNO };

struct op {
    u8 kind, check;
    u16 zero;
    u32 number;
    u32 modes; /* four bits an argument */
    u32 zero2;
    s64 expect;
    u64 args[6];
    s64 result;
};

struct relocation {
    u32 at, target; /* both offsets in the data */
};

struct program {
    u32 magic, ops, ops_at, data_at, relocations, relocations_at, size;
    s32 failed; /* index of the op that failed, or -1 */
    s64 failed_result;
};

/* The message loop of the restorer; see restorer.c. */
struct message {
    u32 type, meta_len;
    u64 blob_len;
};
enum message_type { RUN = 1, RUN_RETURN, PAGES, EXIT };

struct answer {
    s32 failed;
    u32 program; /* which of several: the last that was run */
    s64 result;
};

struct run {
    u64 address;
    u32 pages, flags;
};
enum run_flag { CONTENTS, DROP, PUNCH };
enum frame_flag { LZ4 = 1 };

s32 run(struct program *program, u32 pc);
void enter(struct program *program, u32 pc) __attribute__((noreturn));
void serve(int control, int data, u8 *buffer, u64 size) __attribute__((noreturn));
s64 lz4_decode(const u8 *in, u64 in_size, u8 *out, u64 out_size);
