// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the arm64 guest: sets the kernel up as lab/test_setup.sh does, runs
 * the programs of its command line one after the other, each with a port of its
 * own for what it prints, and switches the machine off. Behind a comma may come an
 * argument of the program. With "@cont" behind its name it gets folios whose entries
 * arm64 makes contiguous.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <unistd.h>

static void put(const char *path, const char *value)
{
	const int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		fprintf(stderr, "init: %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static void mount_at(const char *type, const char *path)
{
	mkdir(path, 0755);
	if (mount(type, path, type, 0, NULL))
		fprintf(stderr, "init: %s: %s\n", path, strerror(errno));
}

/* A swap area is a page with a signature at its end, and a few numbers. */
static void make_swap(const char *path, unsigned int size)
{
	static unsigned int head[65536 / sizeof(int)] = { [256] = 1 };
	const long page = sysconf(_SC_PAGESIZE);
	const int fd = open(path, O_WRONLY);

	head[257] = size / page - 1;
	memcpy((char *)head + page - 10, "SWAPSPACE2", 10);
	if (fd < 0 || write(fd, head, page) != page || close(fd) || swapon(path, 0))
		fprintf(stderr, "init: %s: %s\n", path, strerror(errno));
}

static void set_up(void)
{
	static const char thp[] = "/sys/kernel/mm/transparent_hugepage";
	const long page = sysconf(_SC_PAGESIZE);
	char path[100];

	mount_at("devtmpfs", "/dev");
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("debugfs", "/sys/kernel/debug");
	mount_at("tracefs", "/sys/kernel/tracing");
	mount_at("ramfs", "/tmp");
	/* Of 2, 32 or 512 MB. */
	put("/proc/sys/vm/nr_hugepages", page == 4096 ? "16" : page == 16384 ? "8" : "1");
	put("/proc/sys/vm/max_map_count", "200");
	snprintf(path, sizeof(path), "%s/enabled", thp);
	put(path, "madvise");
	snprintf(path, sizeof(path), "%s/defrag", thp);
	put(path, "madvise");
	snprintf(path, sizeof(path), "%s/khugepaged/scan_sleep_millisecs", thp);
	put(path, "1000000");
	if (!access("/sys/block/zram0", F_OK)) {
		put("/sys/block/zram0/disksize", "256M");
		make_swap("/dev/zram0", 256 << 20);
	}
}

static void run(char *program, int port)
{
	char *argument = strchr(program, ',');
	char *contiguous = strchr(program, '@');
	char path[100];
	int status, fd;
	pid_t child;

	if (argument)
		*argument++ = '\0';
	if (contiguous)
		*contiguous = '\0';
	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/transparent_hugepage/hugepages-%s/enabled",
		 sysconf(_SC_PAGESIZE) == 4096 ? "64kB" : "2048kB");
	if (!access(path, F_OK))
		put(path, contiguous ? "always" : "never");
	child = fork();
	if (!child) {
		snprintf(path, sizeof(path), "/dev/vport0p%d", port);
		fd = open(path, O_WRONLY);
		if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
			_exit(127);
		snprintf(path, sizeof(path), "/bin/%s", program);
		execl(path, program, argument, NULL);
		_exit(127);
	}
	waitpid(child, &status, 0);
	fprintf(stderr, "init: %s ended with %x\n", program, status);
}

int main(int argc, char **argv)
{
	set_up();
	if (chdir("/tmp"))
		perror("init");
	for (int i = 1; i < argc; i++)
		run(argv[i], i);
	fprintf(stderr, "init: done\n");
	sync();
	reboot(RB_POWER_OFF);
}
