/* Does to its own memory what it is told, a line at a time, and answers each line with a number:
 *   s NR A B C D E F   a system call: its result, or the negative errno
 *   f ADDRESS SIZE V   memset
 *   p ADDRESS          the byte there
 * It touches nothing else, so that between two lines its memory stands still. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>

int main(void)
{
	char line[512], *at;
	unsigned long long a[7];

	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		long long result = 0;
		memset(a, 0, sizeof a);
		at = line + 1;
		for (int i = 0; i < 7; i++)
			a[i] = strtoull(at, &at, 0);
		switch (line[0]) {
		case 's':
			result = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
			if (result == -1)
				result = -errno;
			break;
		case 'f':
			memset((void *)a[0], (int)a[2], a[1]);
			break;
		case 'p':
			result = *(volatile unsigned char *)a[0];
			break;
		default:
			return 1;
		}
		printf("%lld\n", result);
		fflush(stdout);
	}
	return 0;
}
