/* The restorer's message loop: programs to run and pages to place, over a stream socket.
 *
 * Contents of pages do not pass through the agent: their number comes on the control socket, and they are read from
 * the data descriptor (the SSH session's own) straight to where they belong. */
#include "sys.h"

enum { SCRATCH = 4 << 20, META_MAX = 1 << 20, BUFFER = 40 << 20 };

static void die(int status) __attribute__((noreturn));
static void die(int status)
{
    for (;;)
        sys3(__NR_exit_group, status, 0, 0);
}

/* 0, or -errno; -EPIPE at the end of the stream */
static s64 read_all(int fd, u8 *to, u64 n)
{
    while (n) {
        s64 got = sys3(__NR_read, fd, to, n);

        if (got == -EINTR)
            continue;
        if (got <= 0)
            return got ? got : -EPIPE;
        to += got;
        n -= got;
    }
    return 0;
}

static void write_all(int fd, const void *from, u64 n)
{
    const u8 *at = from;

    while (n) {
        s64 put = sys3(__NR_write, fd, at, n);

        if (put == -EINTR)
            continue;
        if (put <= 0)
            die(2);
        at += put;
        n -= put;
    }
}

/* Reads and forgets what is left of a frame that could not be placed, so that the stream stays in step. */
static s64 drain(int fd, u8 *scratch, u64 n)
{
    while (n) {
        u64 part = n < SCRATCH / 2 ? n : SCRATCH / 2;
        s64 error = read_all(fd, scratch, part);

        if (error)
            return error;
        n -= part;
    }
    return 0;
}

/* Places one page frame. `meta`: u32 frame flags, u32 number of runs, the runs. */
static struct answer place(int data, const u8 *meta, u32 meta_len, u64 blob_len, u8 *scratch)
{
    struct answer answer = {-1, 0, 0};
    const u32 *head = (const u32 *)meta;
    const struct run *runs = (const struct run *)(meta + 8);
    u8 *plain = scratch + SCRATCH / 2;
    u64 left = blob_len;

    if (meta_len < 8 || meta_len != 8 + (u64)head[1] * sizeof(*runs)) {
        answer = (struct answer){0, 0, -EBADMSG};
        goto out;
    }
    if (head[0] & LZ4) {
        s64 size;

        if (blob_len > SCRATCH / 2) {
            answer = (struct answer){0, 0, -EMSGSIZE};
            goto out;
        }
        if ((answer.result = read_all(data, scratch, blob_len))) {
            answer.failed = 0;
            return answer;
        }
        left = 0;
        size = lz4_decode(scratch, blob_len, plain, SCRATCH / 2);
        if (size < 0) {
            answer = (struct answer){0, 0, size};
            return answer;
        }
        blob_len = size;
    }
    for (u32 i = 0; i < head[1]; i++) {
        u64 size = (u64)runs[i].pages << 12;
        s64 error = 0;

        if (runs[i].flags == DROP)
            error = sys3(__NR_madvise, runs[i].address, size, 4);
        else if (runs[i].flags == PUNCH)
            error = sys3(__NR_madvise, runs[i].address, size, 9);
        else if (runs[i].flags != CONTENTS || size > blob_len)
            error = -EBADMSG;
        else if (head[0] & LZ4) {
            copy((void *)runs[i].address, plain, size);
            plain += size;
            blob_len -= size;
        } else {
            error = read_all(data, (u8 *)runs[i].address, size);
            blob_len -= size;
            left = blob_len;
        }
        if (error) {
            answer = (struct answer){i, 0, error};
            break;
        }
    }
    if (answer.failed < 0 && blob_len)
        answer = (struct answer){head[1], 0, -EBADMSG};
out:
    /* A read that failed half-way leaves the stream out of step: the agent ends such a migration. */
    if (left && answer.result != -EPIPE && answer.result != -EFAULT)
        drain(data, scratch, left);
    return answer;
}

/* Programs back to back, until one fails. */
static struct answer run_all(u8 *at, u64 left)
{
    struct answer answer = {-1, 0, 0};

    for (;;) {
        struct program *program = (struct program *)at;

        if (left < sizeof(*program) || program->size < sizeof(*program) || program->size > left)
            die(3);
        if (run(program, 0) >= 0) {
            answer.failed = program->failed;
            answer.result = program->failed_result;
            return answer;
        }
        at += program->size;
        left -= program->size;
        if (!left)
            return answer;
        answer.program++;
    }
}

/* `buffer`: SCRATCH bytes for page frames, then room for a program. Never returns; ends with its agent. */
void serve(int control, int data, u8 *buffer, u64 size)
{
    u8 *scratch = buffer, *room = buffer + SCRATCH;
    struct message message;
    struct answer answer;

    size -= SCRATCH;
    for (;;) {
        if (read_all(control, (u8 *)&message, sizeof(message)))
            die(0);
        switch (message.type) {
        case RUN:
        case RUN_RETURN:
            if (message.blob_len > size)
                die(3);
            if (read_all(control, room, message.blob_len))
                die(0);
            answer = run_all(room, message.blob_len);
            write_all(control, &answer, sizeof(answer));
            if (message.type == RUN_RETURN)
                write_all(control, room, message.blob_len);
            break;
        case PAGES:
            if (message.meta_len > META_MAX)
                die(3);
            if (read_all(control, room, message.meta_len))
                die(0);
            answer = place(data, room, message.meta_len, message.blob_len, scratch);
            write_all(control, &answer, sizeof(answer));
            break;
        case EXIT:
            die(0);
        default:
            die(3);
        }
    }
}

/* The ELF entry: the agent left the control socket at 3 and its own standard input at 0. */
void start(void) __attribute__((noreturn));
void start(void)
{
    s64 buffer = sys(__NR_mmap, 0, BUFFER, 3, 0x4022 /* PRIVATE|ANONYMOUS|NORESERVE */, -1, 0);

    if (buffer < 0 && buffer >= -MAX_ERRNO)
        die(4);
    serve(3, 0, (u8 *)buffer, BUFFER);
}
