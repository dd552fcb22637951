/* CRC-32C (RFC 3720, appendix B.4): by the CPU's own instruction (SSE4.2), or bit by bit where it has none. */
#include "sys.h"

enum { POLYNOMIAL = 0x82F63B78 }; /* of the least significant bit first */

static u64 word(u64 crc, u64 value)
{
    asm("crc32q %1, %0" : "+r"(crc) : "r"(value));
    return crc;
}

static u64 byte(u64 crc, u8 value)
{
    asm("crc32b %1, %0" : "+r"(crc) : "r"(value));
    return crc;
}

/* `crc`: of what comes before, or 0. `instruction`: whether the CPU has it. */
u32 crc32c(u32 crc, const u8 *at, u64 n, u32 instruction)
{
    u64 sum = (u32)~crc;

    if (instruction) {
        for (; n >= 8; n -= 8, at += 8)
            sum = word(sum, *(const u64 *)at);
        for (; n; n--)
            sum = byte(sum, *at++);
    } else {
        for (; n; n--) {
            sum ^= *at++;
            for (int bit = 0; bit < 8; bit++)
                sum = sum >> 1 ^ (sum & 1 ? (u32)POLYNOMIAL : 0);
        }
    }
    return ~(u32)sum;
}
