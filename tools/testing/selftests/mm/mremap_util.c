// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "../kselftest.h"
#include "mremap_util.h"

#ifndef __NR_mseal
#define __NR_mseal 462
#endif

/* Text is read in one piece: maps of some thousand mappings fit. */
#define TEXT_SIZE	(8 * MB)

/* Most tests need no more of the text than this: each reading of smaps walks over it. */
#define USUAL_TEXT	(MB / 2)
#define BUFFER(name)	static char name[TEXT_SIZE] __attribute__((aligned(USUAL_TEXT)))

BUFFER(text);
static char complaint[1024];

const char *complain(const char *format, ...)
{
	char line[sizeof(complaint)];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	return strcpy(complaint, line);
}

/*
 * What cannot be read must not pass for an answer: two of them would be equal.
 * This is the end of the test, also from within its threads and children.
 */
static __noreturn __printf(1, 2) void die(const char *format, ...)
{
	va_list args;

	fputs("# ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

unsigned long do_mremap(unsigned long addr, size_t old_len, size_t new_len,
			unsigned long flags, unsigned long new_addr)
{
	long ret = syscall(__NR_mremap, addr, old_len, new_len, flags, new_addr);

	return ret == -1 ? -errno : ret;
}

int open_uffd(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

int seal(unsigned long addr, size_t len)
{
	return syscall(__NR_mseal, addr, len, 0) ? -errno : 0;
}

unsigned long map_at(unsigned long addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	void *p = mmap(at(addr), len, prot, flags | MAP_FIXED_NOREPLACE, fd, offset);

	return (unsigned long)p;
}

unsigned long map_anon(unsigned long addr, size_t len)
{
	return map_at(addr, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Word offsets of a page that carry its stamp. */
static size_t stamp_word(unsigned int i)
{
	const size_t words = psize() / sizeof(uint64_t);
	const size_t where[] = { 0, 1, words / 3, words / 2 + 1, words - 1 };

	return where[i];
}

#define STAMP_WORDS	5

static uint64_t stamp_value(unsigned long id, unsigned int i)
{
	return (id + 1) * 0x9e3779b97f4a7c15ULL + i;
}

void stamp(unsigned long addr, unsigned long id)
{
	volatile uint64_t *page = at(addr);

	for (unsigned int i = 0; i < STAMP_WORDS; i++)
		page[stamp_word(i)] = stamp_value(id, i);
}

void stamp_range(unsigned long addr, size_t len, unsigned long id)
{
	for (size_t done = 0; done < len; done += psize())
		stamp(addr + done, id++);
}

static const char *check_words(unsigned long addr, unsigned long id, bool zero)
{
	const volatile uint64_t *page = at(addr);

	for (unsigned int i = 0; i < STAMP_WORDS; i++) {
		const uint64_t want = zero ? 0 : stamp_value(id, i);
		const uint64_t got = page[stamp_word(i)];

		if (got != want)
			return complain("page %#lx word %zu: %#llx, not %#llx",
					addr, stamp_word(i), (unsigned long long)got,
					(unsigned long long)want);
	}
	return NULL;
}

const char *check_stamp(unsigned long addr, unsigned long id)
{
	return check_words(addr, id, false);
}

const char *check_stamps(unsigned long addr, size_t len, unsigned long id)
{
	const char *why = NULL;

	for (size_t done = 0; !why && done < len; done += psize())
		why = check_stamp(addr + done, id++);
	return why;
}

const char *check_zero(unsigned long addr, size_t len)
{
	const char *why = NULL;

	for (size_t done = 0; !why && done < len; done += psize())
		why = check_words(addr + done, 0, true);
	return why;
}

const char *check_unmapped(unsigned long addr, size_t len)
{
	struct vma vma;

	if (read_vmas(addr, addr + len, &vma, 1) == 0)
		return NULL;
	return complain("%#lx-%#lx: still mapped there: %#lx-%#lx", addr,
			addr + len, vma.start, vma.end);
}

void guard_page(unsigned long addr)
{
	map_anon(addr, psize());
	stamp(addr, addr);
	mprotect(at(addr), psize(), PROT_READ);
}

const char *check_guard_page(unsigned long addr)
{
	const struct vma want = { addr, addr + psize(), "r--p", 0, 0 };
	const char *why = check_vmas(addr, addr + psize(), &want, 1);

	return why ?: check_stamp(addr, addr);
}

void pagemap_bits(unsigned long addr, size_t pages, uint64_t *out)
{
	const size_t len = pages * sizeof(*out);
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, out, len, addr / psize() * sizeof(*out)) != (ssize_t)len)
		die("cannot read the pagemap of %zu pages at %#lx", pages, addr);
	close(fd);
}

uint64_t pagemap_entry(unsigned long addr)
{
	uint64_t entry;

	pagemap_bits(addr, 1, &entry);
	return entry;
}

size_t count_pagemap(unsigned long addr, size_t len, uint64_t bits)
{
	uint64_t entries[512];
	size_t count = 0;

	for (size_t left = len / psize(), nr; left; left -= nr) {
		nr = left < ARRAY_SIZE(entries) ? left : ARRAY_SIZE(entries);
		pagemap_bits(addr, nr, entries);
		for (size_t i = 0; i < nr; i++)
			count += !!(entries[i] & bits);
		addr += bytes(nr);
	}
	return count;
}

void stay_on_processor(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

void stay_on_this_processor(void)
{
	stay_on_processor(sched_getcpu());
}

size_t swap_out(unsigned long addr, size_t len, size_t pages)
{
	size_t swapped = 0;

	/* Now and then a page is busy. */
	for (int try = 0; try < 20 && swapped < pages; try++) {
		madvise(at(addr), len, MADV_PAGEOUT);
		swapped = count_pagemap(addr, len, PM_SWAP);
	}
	return swapped;
}

/* Reads a whole /proc file into text[]. */
static void read_text(const char *path)
{
	int fd = open(path, O_RDONLY);
	size_t len = 0;
	ssize_t got;

	if (fd < 0)
		die("cannot open %s", path);
	while ((got = read(fd, text + len, sizeof(text) - 1 - len)) > 0)
		len += got;
	if (got || len == sizeof(text) - 1)
		die("cannot read all of %s", path);
	text[len] = '\0';
	close(fd);
}

/* By hand: sscanf() looks at all the text behind the line, too. */
static bool parse_vma(const char *line, struct vma *vma)
{
	char *next;

	vma->start = strtoul(line, &next, 16);
	if (*next != '-')
		return false;
	vma->end = strtoul(next + 1, &next, 16);
	snprintf(vma->perms, sizeof(vma->perms), "%.4s", next + 1);
	vma->offset = strtoul(next + 6, &next, 16);
	next = strchr(next + 1, ' ');	/* behind the device */
	vma->inode = next ? strtoul(next, NULL, 10) : 0;
	return next;
}

static char *next_line(char *line)
{
	line = strchr(line, '\n');
	return line ? line + 1 : NULL;
}

int read_vmas(unsigned long start, unsigned long end, struct vma *vmas, int max)
{
	struct vma vma;
	int nr = 0;

	read_text("/proc/self/maps");
	for (char *line = text; line && *line; line = next_line(line)) {
		if (!parse_vma(line, &vma))
			die("what mapping is that? %.100s", line);
		if (vma.start >= end)
			break;
		if (vma.end <= start)
			continue;
		if (nr < max)
			vmas[nr] = vma;
		nr++;
	}
	return nr;
}

bool find_vma(unsigned long addr, struct vma *vma)
{
	return read_vmas(addr, addr + 1, vma, 1) == 1;
}

static bool same_vma(const struct vma *a, const struct vma *b)
{
	return a->start == b->start && a->end == b->end &&
	       a->offset == b->offset && a->inode == b->inode &&
	       !strcmp(a->perms, b->perms);
}

const char *check_vmas(unsigned long start, unsigned long end, const struct vma *want, int nr)
{
	struct vma got[64];
	const int count = read_vmas(start, end, got, 64);

	for (int i = 0; i < nr && i < count; i++) {
		if (same_vma(&got[i], &want[i]))
			continue;
		return complain("mapping %d: %lx-%lx %s %lx %lu, not %lx-%lx %s %lx %lu",
				i, got[i].start, got[i].end, got[i].perms,
				got[i].offset, got[i].inode, want[i].start,
				want[i].end, want[i].perms, want[i].offset, want[i].inode);
	}
	if (count == nr)
		return NULL;
	return complain("%lx-%lx: %d mappings, not %d", start, end, count, nr);
}

int count_vmas(void)
{
	/* The gate page above the user addresses is no mapping of the mm. */
	return read_vmas(0, 1UL << 56, NULL, 0);
}

int read_smaps(unsigned long start, unsigned long end, struct smap *smaps, int max)
{
	struct vma vma = { 0 };
	int nr = 0;

	read_text("/proc/self/smaps");
	for (char *line = text; line && *line; line = next_line(line)) {
		if (parse_vma(line, &vma)) {
			if (vma.start >= end)
				break;
			if (vma.end <= start)
				continue;
			if (nr < max)
				smaps[nr] = (struct smap) { .vma = vma };
			nr++;
		} else if (vma.end > start && nr && nr <= max && !strncmp(line, "VmFlags:", 8)) {
			snprintf(smaps[nr - 1].flags, sizeof(smaps[nr - 1].flags), "%.*s",
				 (int)strcspn(line + 8, "\n"), line + 8);
		}
	}
	return nr;
}

/* The smaps lines of the mapping that starts at start, of which there is one. */
static char *find_smaps(unsigned long start)
{
	struct vma vma;

	read_text("/proc/self/smaps");
	for (char *line = text; line && *line; line = next_line(line))
		if (parse_vma(line, &vma) && vma.start == start)
			return next_line(line);
	die("no mapping starts at %#lx", start);
}

static char *find_field(char *line, const char *field)
{
	const size_t len = strlen(field);

	for (; line && *line; line = next_line(line))
		if (!strncmp(line, field, len) && line[len] == ':')
			return line + len + 1;
	return NULL;
}

/* -1 if this kernel does not tell. */
static long parse_kb(char *lines, const char *field)
{
	const char *value = find_field(lines, field);

	return value ? strtol(value, NULL, 10) : -1;
}

/* What every kernel tells. */
static long need_kb(const char *field)
{
	const long kb = parse_kb(text, field);

	if (kb < 0)
		die("there is no %s", field);
	return kb;
}

long smaps_kb(unsigned long start, const char *field)
{
	return parse_kb(find_smaps(start), field);
}

bool has_vmflag(unsigned long start, const char *flag)
{
	char *flags = find_field(find_smaps(start), "VmFlags");
	char word[8];

	if (!flags)
		die("%#lx has no VmFlags", start);
	flags[strcspn(flags, "\n")] = '\0';
	snprintf(word, sizeof(word), " %s ", flag);
	return strstr(flags, word);
}

void read_counters(struct counters *out)
{
	read_text("/proc/self/status");
	*out = (struct counters) {
		.size = need_kb("VmSize"),
		.peak = need_kb("VmPeak"),
		.rss = need_kb("VmRSS"),
		.rss_peak = need_kb("VmHWM"),
		.locked = need_kb("VmLck"),
		.data = need_kb("VmData"),
		.page_tables = need_kb("VmPTE"),
		.rss_anon = need_kb("RssAnon"),
		.rss_file = need_kb("RssFile"),
		.rss_shmem = need_kb("RssShmem"),
	};
}

long page_tables_kb(void)
{
	struct counters now;

	/* The first reading faults in what reading needs. */
	read_counters(&now);
	read_counters(&now);
	return now.page_tables;
}

long meminfo_kb(const char *field)
{
	read_text("/proc/meminfo");
	return parse_kb(text, field);
}

long committed_kb(void)
{
	read_text("/proc/meminfo");
	return need_kb("Committed_AS");
}

BUFFER(saved_maps);
static struct counters saved_counters;

/* A longer text must not show as a page more of the process's own. */
__attribute__((constructor)) static void touch_buffers(void)
{
	memset(text, 1, USUAL_TEXT);
	memset(saved_maps, 1, USUAL_TEXT);
}

static void protect_spare_text(int prot)
{
	mprotect(text + USUAL_TEXT, TEXT_SIZE - USUAL_TEXT, prot);
	mprotect(saved_maps + USUAL_TEXT, TEXT_SIZE - USUAL_TEXT, prot);
}

void make_all_present(void)
{
	protect_spare_text(PROT_NONE);
	mlockall(MCL_CURRENT);
	munlockall();
	protect_spare_text(PROT_READ | PROT_WRITE);
}

/*
 * The harness has a few shared pages, whose page tables a child does not get by fork().
 * If their span is not that of anything else, one more shows where they are used first.
 */
static void touch_pages_of_harness(void)
{
	struct vma vma;

	for (char *line = text; line && *line; line = next_line(line))
		if (parse_vma(line, &vma) && vma.start > 4 * WINDOW && !strcmp(vma.perms, "rw-s"))
			(void)*(volatile char *)vma.start;
}

void save_state(void)
{
	static pid_t warm;

	/* A process's first round faults in what reading itself needs. */
	for (int round = warm == getpid(); round < 2; round++) {
		warm = getpid();
		read_text("/proc/self/maps");
		touch_pages_of_harness();
		strcpy(saved_maps, text);
		read_counters(&saved_counters);
	}
}

static const char *check_maps_text(void)
{
	const char *before = saved_maps, *now = text;

	read_text("/proc/self/maps");
	while (*before && *before == *now) {
		before++;
		now++;
	}
	if (*before == *now)
		return NULL;
	while (now > text && now[-1] != '\n') {
		now--;
		before--;
	}
	return complain("mapping is \"%.*s\", was \"%.*s\"", (int)strcspn(now, "\n"), now,
			(int)strcspn(before, "\n"), before);
}

static const char *check_counters(void)
{
	const struct counters *was = &saved_counters;
	struct counters is;

	read_counters(&is);
	if (is.size != was->size)
		return complain("VmSize %ld, was %ld", is.size, was->size);
	if (is.locked != was->locked)
		return complain("VmLck %ld, was %ld", is.locked, was->locked);
	if (is.data != was->data)
		return complain("VmData %ld, was %ld", is.data, was->data);
	if (is.rss_anon != was->rss_anon)
		return complain("RssAnon %ld, was %ld", is.rss_anon, was->rss_anon);
	if (is.page_tables != was->page_tables)
		return complain("VmPTE %ld, was %ld", is.page_tables, was->page_tables);
	return NULL;
}

const char *check_state(void)
{
	return check_maps_text() ?: check_counters();
}

bool write_setting(const char *path, const char *contents)
{
	const ssize_t len = strlen(contents);
	int fd = open(path, O_WRONLY);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, contents, len) == len;
	close(fd);
	return done;
}

bool read_setting(const char *path, char *out, size_t len)
{
	int fd = open(path, O_RDONLY);
	ssize_t got;

	if (fd < 0)
		return false;
	got = read(fd, out, len - 1);
	close(fd);
	out[got > 0 ? got : 0] = '\0';
	return got >= 0;
}

long read_long(const char *path)
{
	char value[64];

	if (!read_setting(path, value, sizeof(value)))
		return -1;
	return strtol(value, NULL, 10);
}

long vm_counter(const char *name)
{
	FILE *file = fopen("/proc/vmstat", "r");
	char word[64];
	long value, found = 0;

	while (file && fscanf(file, "%63s %ld", word, &value) == 2)
		if (!strcmp(word, name))
			found = value;
	if (file)
		fclose(file);
	return found;
}

static struct {
	char path[128];
	char value[64];
} settings[16];

static int nr_settings;

/* Those that show several values have the one that holds in brackets. */
static void strip_value(char *value)
{
	char *start = strchr(value, '['), *end = strchr(value, ']');

	if (start && end) {
		*end = '\0';
		memmove(value, start + 1, end - start);
	}
}

bool change_setting(const char *path, const char *value)
{
	char *old = settings[nr_settings].value;

	if (!read_setting(path, old, sizeof(settings->value)) || !write_setting(path, value))
		return false;
	strip_value(old);
	strcpy(settings[nr_settings++].path, path);
	return true;
}

void put_settings_back(void)
{
	while (nr_settings--)
		write_setting(settings[nr_settings].path, settings[nr_settings].value);
	nr_settings = 0;
}

#define OVERCOMMIT	"/proc/sys/vm/overcommit_"

static struct {
	char memory[32];
	char kbytes[32];
	char ratio[32];
} overcommit;

bool limit_commits(long room)
{
	/* Swap space comes on top of the limit. */
	const long limit = committed_kb() + room - meminfo_kb("SwapTotal");
	char kbytes[32];

	read_setting(OVERCOMMIT "memory", overcommit.memory, sizeof(overcommit.memory));
	read_setting(OVERCOMMIT "kbytes", overcommit.kbytes, sizeof(overcommit.kbytes));
	read_setting(OVERCOMMIT "ratio", overcommit.ratio, sizeof(overcommit.ratio));
	snprintf(kbytes, sizeof(kbytes), "%ld", limit);
	if (limit > 0 && write_setting(OVERCOMMIT "kbytes", kbytes) &&
	    write_setting(OVERCOMMIT "memory", "2"))
		return true;
	unlimit_commits();
	return false;
}

void unlimit_commits(void)
{
	if (!*overcommit.memory)
		return;
	write_setting(OVERCOMMIT "memory", overcommit.memory);
	/* One of them is always 0, and set by that of the other. */
	if (strtol(overcommit.kbytes, NULL, 10))
		write_setting(OVERCOMMIT "kbytes", overcommit.kbytes);
	else
		write_setting(OVERCOMMIT "ratio", overcommit.ratio);
	*overcommit.memory = '\0';
}

#define RAMFS_MAGIC	0x858458f6
#define TMPFS_MAGIC	0x01021994

bool open_on_disk(size_t len, int *fd, int *direct)
{
	const char *dir = getenv("MREMAP_DISK") ?: ".";
	struct statfs fs;
	char path[256];

	snprintf(path, sizeof(path), "%s/mremap.%d", dir, getpid());
	*fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	if (*fd < 0)
		return false;
	*direct = open(path, O_RDWR | O_DIRECT);
	unlink(path);
	return !fstatfs(*fd, &fs) && (unsigned int)fs.f_type != RAMFS_MAGIC &&
	       fs.f_type != TMPFS_MAGIC && *direct >= 0 && !ftruncate(*fd, len);
}

static bool join_group(const char *procs)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getpid());
	return write_setting(procs, pid);
}

bool enter_group(void)
{
	write_setting(CGROUPS "cgroup.subtree_control", "+memory");
	mkdir(OWN_CGROUP, 0700);
	/* One that a test has left behind may have a limit. */
	write_setting(OWN_CGROUP "memory.max", "max");
	write_setting(OWN_CGROUP "memory.swap.max", "max");
	return !access(OWN_CGROUP "memory.reclaim", W_OK) &&
	       join_group(OWN_CGROUP "cgroup.procs");
}

void leave_group(void)
{
	join_group(CGROUPS "cgroup.procs");
	rmdir(OWN_CGROUP);
}

const char *prepare_fail_nth(void)
{
	const char *const knobs[][2] = {
		{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
		{ DEBUGFS "failslab/verbose", "0" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
		{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ DEBUGFS "fail_page_alloc/min-order", "0" },
		{ DEBUGFS "fail_page_alloc/verbose", "0" },
	};

	if (access(FAIL_NTH, W_OK))
		return "needs fault injection (" FAIL_NTH ")";
	if (access(DEBUGFS "failslab", F_OK))
		mount("debugfs", DEBUGFS, "debugfs", 0, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(knobs); i++)
		if (!write_setting(knobs[i][0], knobs[i][1]))
			return "needs failslab and fail_page_alloc in debugfs";
	return NULL;
}

bool arm_fail_nth(int fd, int nth)
{
	char number[16];
	const int len = snprintf(number, sizeof(number), "%d", nth);

	return pwrite(fd, number, len, 0) == len;
}

bool disarm_fail_nth(int fd)
{
	char left[16] = "";

	if (pread(fd, left, sizeof(left) - 1, 0) <= 0)
		return false;
	arm_fail_nth(fd, 0);
	return atoi(left) == 0;
}

static bool expect(const char *what)
{
	const char *given = getenv("MREMAP_EXPECT");

	return given && !strcmp(given, what);
}

bool expect_base(void)
{
	return expect("base");
}

bool expect_base_7(void)
{
	struct utsname is;

	return expect_base() && !uname(&is) && atoi(is.release) >= 7;
}

bool expect_base_6(void)
{
	return expect_base() && !expect_base_7();
}

bool expect_fixed(void)
{
	return expect("fixed");
}

bool is_left_out(unsigned int nr)
{
	return nr % 5 && getenv("MREMAP_BRIEF");
}

bool is_asleep(pid_t task)
{
	char path[64], stat[512];
	const char *state;

	snprintf(path, sizeof(path), "/proc/%d/stat", task);
	if (!read_setting(path, stat, sizeof(stat)))
		return false;
	state = strrchr(stat, ')');
	return state && state[2] == 'D';
}

/* ---- monitors ---- */

static void take_message(struct monitor *monitor)
{
	struct uffd_msg msg;

	if (read(monitor->fd, &msg, sizeof(msg)) != sizeof(msg))
		return;
	monitor->got[monitor->nr_got++ % MESSAGES] = msg;
	if (monitor->answer)
		monitor->answer(monitor, &msg);
}

static void *run_monitor(void *arg)
{
	struct monitor *monitor = arg;
	struct pollfd fds[] = {
		{ .fd = monitor->fd, .events = POLLIN },
		{ .fd = monitor->ask[0], .events = POLLIN },
	};
	char what = 0;

	while (what != 'q' && poll(fds, 2, -1) > 0) {
		if (fds[0].revents & POLLIN) {
			take_message(monitor);
		} else if (fds[1].revents) {
			if (read(monitor->ask[0], &what, 1) != 1 ||
			    write(monitor->reply[1], &what, 1) != 1)
				break;
		}
	}
	return NULL;
}

bool start_monitor(struct monitor *monitor, uint64_t features)
{
	monitor->features = features;
	monitor->page = monitor->page ?: psize();
	monitor->fd = open_uffd(features);
	return monitor->fd >= 0 && !pipe(monitor->ask) && !pipe(monitor->reply) &&
	       !pthread_create(&monitor->thread, NULL, run_monitor, monitor);
}

bool ask_monitor(struct monitor *monitor, char what)
{
	return write(monitor->ask[1], &what, 1) == 1 && read(monitor->reply[0], &what, 1) == 1;
}

bool stop_monitor(struct monitor *monitor)
{
	if (!ask_monitor(monitor, 'q') || pthread_join(monitor->thread, NULL))
		return false;
	for (int i = 0; i < 2; i++) {
		close(monitor->ask[i]);
		close(monitor->reply[i]);
	}
	return !close(monitor->fd);
}

static void want_message(struct monitor *monitor, struct uffd_msg msg)
{
	monitor->want[monitor->nr_want++ % MESSAGES] = msg;
}

void want_remap(struct monitor *monitor, unsigned long from, unsigned long to, size_t len)
{
	if (monitor->features & UFFD_FEATURE_EVENT_REMAP)
		want_message(monitor, (struct uffd_msg) {
			.event = UFFD_EVENT_REMAP,
			.arg.remap = { from, to, len },
		});
}

void want_unmap(struct monitor *monitor, unsigned long start, size_t len)
{
	if (monitor->features & UFFD_FEATURE_EVENT_UNMAP)
		want_message(monitor, (struct uffd_msg) {
			.event = UFFD_EVENT_UNMAP,
			.arg.remove = { start, start + len },
		});
}

void want_fault(struct monitor *monitor, unsigned long addr, uint64_t flags)
{
	want_message(monitor, (struct uffd_msg) {
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault = { .flags = flags, .address = addr },
	});
}

int forget_messages(struct monitor *monitor)
{
	const int nr = ask_monitor(monitor, 'p') ? monitor->nr_got : -1;

	monitor->nr_got = 0;
	monitor->nr_want = 0;
	return nr;
}

/* Leave only what a test can foresee. */
static void trim_message(struct uffd_msg *msg, size_t page)
{
	if (msg->event != UFFD_EVENT_PAGEFAULT)
		return;
	msg->arg.pagefault.address &= -page;
	msg->arg.pagefault.flags &= UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_MINOR;
}

static const char *check_message(struct monitor *monitor, int nr)
{
	struct uffd_msg *got = &monitor->got[nr];
	struct uffd_msg *want = &monitor->want[nr];

	trim_message(got, monitor->page);
	trim_message(want, monitor->page);
	if (!memcmp(got, want, sizeof(*got)))
		return NULL;
	return complain("event %d: %#x %#llx %#llx %#llx, not %#x %#llx %#llx %#llx",
			nr, got->event, got->arg.reserved.reserved1, got->arg.reserved.reserved2,
			got->arg.reserved.reserved3, want->event, want->arg.reserved.reserved1,
			want->arg.reserved.reserved2, want->arg.reserved.reserved3);
}

const char *check_events(struct monitor *monitor)
{
	const int nr_want = monitor->nr_want, nr = forget_messages(monitor);
	const char *why = NULL;

	if (nr < 0)
		return "the monitor is gone";
	for (int i = 0; !why && i < nr && i < nr_want && i < MESSAGES; i++)
		why = check_message(monitor, i);
	if (!why && nr != nr_want)
		why = complain("%d events, not %d; the first one too many: %#x", nr,
			       nr_want, nr > nr_want ?
			       monitor->got[nr_want % MESSAGES].event : 0);
	return why ?: nr > MESSAGES ? "more events than can be kept" : NULL;
}

uint64_t random_state = 1;

int pick(int limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 20) % limit;
}

bool one_in(int nr)
{
	return pick(nr) == 0;
}
