/* jailed: its root directory is another, and so is its working directory below it. Statically linked. */
#include "victim.h"

int main(void)
{
	char cwd[64], text[8] = "";
	int fd;

	check(!chdir(getenv("VICTIM_DIR")) && !mkdir("jail", 0755) && !mkdir("jail/cell", 0755));
	check((fd = open("jail/cell/inside", O_RDWR | O_CREAT, 0600)) >= 0 && write(fd, "inside", 6) == 6);
	check(!chroot("jail") && !chdir("/cell") && lseek(fd, 2, SEEK_SET) == 2);
	ready();
	/* what tells it is out of its sight: it is to put a file here */
	while (access("/go", F_OK))
		usleep(1000);
	check(getcwd(cwd, sizeof(cwd)) && !strcmp(cwd, "/cell"), "%s", cwd);
	check(read(fd, text, 7) == 4 && !strcmp(text, "side") && !access("inside", F_OK) && !access("/cell/inside", F_OK));
	check(access("/bin", F_OK) == -1 && access("../../../tmp", F_OK) == -1);
	pass();
}
