// SPDX-License-Identifier: GPL-2.0
/*
 * PID 1 of the arm64 guest: sets the kernel up as lab/test_setup.sh does, runs
 * the programs of its command line one after the other, each with a port of its
 * own for what it prints, and switches the machine off. With "@64k" behind its
 * name a program gets folios of 64 KB, whose entries arm64 makes contiguous.
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
static void make_swap(const char *path, unsigned int pages)
{
	static unsigned int head[1024] = { [256] = 1 };
	const int fd = open(path, O_WRONLY);

	head[257] = pages - 1;
	memcpy((char *)head + sizeof(head) - 10, "SWAPSPACE2", 10);
	if (fd < 0 || write(fd, head, sizeof(head)) != sizeof(head) ||
	    close(fd) || swapon(path, 0))
		fprintf(stderr, "init: %s: %s\n", path, strerror(errno));
}

static void set_up(void)
{
	static const char thp[] = "/sys/kernel/mm/transparent_hugepage";
	char path[100];

	mount_at("devtmpfs", "/dev");
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	mount_at("debugfs", "/sys/kernel/debug");
	mount_at("tracefs", "/sys/kernel/tracing");
	mount_at("ramfs", "/tmp");
	put("/proc/sys/vm/nr_hugepages", "16");
	put("/proc/sys/vm/max_map_count", "200");
	snprintf(path, sizeof(path), "%s/enabled", thp);
	put(path, "madvise");
	snprintf(path, sizeof(path), "%s/defrag", thp);
	put(path, "madvise");
	snprintf(path, sizeof(path), "%s/khugepaged/scan_sleep_millisecs", thp);
	put(path, "1000000");
	put("/sys/block/zram0/disksize", "256M");
	make_swap("/dev/zram0", 65536);
}

static void run(char *program, int port)
{
	char *size = strchr(program, '@');
	char path[100];
	int status, fd;
	pid_t child;

	if (size)
		*size = '\0';
	put("/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled",
	    size ? "always" : "never");
	child = fork();
	if (!child) {
		snprintf(path, sizeof(path), "/dev/vport0p%d", port);
		fd = open(path, O_WRONLY);
		if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
			_exit(127);
		snprintf(path, sizeof(path), "/bin/%s", program);
		execl(path, program, NULL);
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
