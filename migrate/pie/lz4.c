/* The LZ4 block format (lz4_Block_format.md): sequences of literals and matches. Input is not trusted. */
#include "sys.h"

static u64 length(const u8 **in, const u8 *end, u64 n)
{
    u8 more;

    if (n == 15)
        do {
            if (*in == end)
                return ~0UL;
            more = *(*in)++;
            n += more;
        } while (more == 255);
    return n;
}

/* Bytes written, or -EBADMSG. */
s64 lz4_decode(const u8 *in, u64 in_size, u8 *out, u64 out_size)
{
    const u8 *in_end = in + in_size;
    u8 *at = out, *out_end = out + out_size;

    while (in < in_end) {
        u8 token = *in++;
        u64 literals = length(&in, in_end, token >> 4), match, distance;

        if (literals > (u64)(in_end - in) || literals > (u64)(out_end - at))
            return -EBADMSG;
        copy(at, in, literals);
        at += literals;
        in += literals;
        if (in == in_end)
            return at - out; /* the last sequence has no match */
        if (in_end - in < 2)
            return -EBADMSG;
        distance = in[0] | in[1] << 8;
        in += 2;
        match = length(&in, in_end, token & 15);
        if (match == ~0UL || !distance || distance > (u64)(at - out) || (match += 4) > (u64)(out_end - at))
            return -EBADMSG;
        if (distance >= 8) { /* eight bytes at a time never overtake themselves */
            for (; match >= 8; match -= 8, at += 8)
                *(u64 *)at = *(const u64 *)(at - distance);
        }
        for (; match; match--, at++)
            *at = at[-(s64)distance];
    }
    return -EBADMSG;
}
