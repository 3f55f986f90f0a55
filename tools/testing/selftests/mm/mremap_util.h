/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the mremap(2) selftests: the raw call, stamped pages, and what
 * /proc tells about a process before and after a call.
 *
 * Checks return NULL when all is well and otherwise a line that says what is
 * wrong; EXPECT_OK() and ASSERT_OK() hand that line to the harness. What reads
 * something that every kernel tells ends the test if it cannot.
 */
#ifndef MREMAP_UTIL_H
#define MREMAP_UTIL_H

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest.h"
#include "vm_util.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef MPOL_MF_MOVE_ALL
#define MPOL_MF_MOVE_ALL 4
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MREMAP_OVERLAP
#define MREMAP_OVERLAP 32
#endif

/* The flags as they can be used: each of them needs leave to move. */
#define FIXED		(MREMAP_MAYMOVE | MREMAP_FIXED)
#define DONTUNMAP	(MREMAP_MAYMOVE | MREMAP_DONTUNMAP)
#define OVERLAP		(FIXED | MREMAP_OVERLAP)

/*
 * Tests lay out their mappings here: far from everything the kernel places
 * by itself, and aligned to every page table level in use.
 */
#define WINDOW		(1UL << 44)
#define WINDOW_SIZE	(64UL << 30)

#define KB		1024UL
#define MB		(1024 * KB)
#define GB		(1024 * MB)

/* What a function needs to use the harness's macros. */
#define META	struct __test_metadata *_metadata

#define EXPECT_OK(check) do {						\
	const char *__why = (check);					\
	EXPECT_EQ(NULL, __why)						\
		TH_LOG("%s", __why);					\
} while (0)

#define ASSERT_OK(check) do {						\
	const char *__why = (check);					\
	ASSERT_EQ(NULL, __why)						\
		TH_LOG("%s", __why);					\
} while (0)

/* The same for a check that is made in a child, which prints the line. */
#define EXPECT_OK_IN_CHILD(check) do {					\
	const pid_t __child = fork();					\
	int __status = -1;						\
									\
	if (!__child) {							\
		const char *__why = (check);				\
									\
		if (__why)						\
			TH_LOG("child: %s", __why);			\
		_exit(!!__why);						\
	}								\
	EXPECT_EQ(__child, waitpid(__child, &__status, 0));		\
	EXPECT_EQ(0, __status);						\
} while (0)

/* Skips the test: without what it needs, after a check that complains, on stock. */
#define NEED(condition, why) do {					\
	if (!(condition))						\
		SKIP(return, why);					\
} while (0)

#define NEED_OK(check) do {						\
	const char *__why = (check);					\
	if (__why)							\
		SKIP(return, "%s", __why);				\
} while (0)

#define SKIP_STOCK(why)	NEED(!expect_base(), why)

/* A check's line. It stays until the next one, whose arguments it may be among. */
const char *complain(const char *format, ...) __printf(1, 2);

/* Addresses covered by one page table, and by one table of page tables. */
static inline size_t pmd_span(void)
{
	return psize() * (psize() / sizeof(uint64_t));
}

static inline size_t pud_span(void)
{
	return pmd_span() * (psize() / sizeof(uint64_t));
}

static inline size_t bytes(size_t pages)
{
	return pages * psize();
}

static inline void *at(unsigned long addr)
{
	return (void *)addr;
}

/* mremap(2) without libc in between: the new address, or -errno as such. */
unsigned long do_mremap(unsigned long addr, size_t old_len, size_t new_len,
			unsigned long flags, unsigned long new_addr);

/* What do_mremap() returned: 0, or the errno. */
static inline int error_of(unsigned long ret)
{
	return ret > -4096UL ? -(long)ret : 0;
}

/* A move to new_addr. */
static inline unsigned long move_to(unsigned long addr, size_t old_len,
				    size_t new_len, unsigned long new_addr)
{
	return do_mremap(addr, old_len, new_len, FIXED, new_addr);
}

int seal(unsigned long addr, size_t len);

/* A userfaultfd with these features that does not block, or -1. */
int open_uffd(uint64_t features);

/* Maps at exactly addr; the place must be free. */
unsigned long map_at(unsigned long addr, size_t len, int prot, int flags, int fd, off_t offset);
unsigned long map_anon(unsigned long addr, size_t len);

/*
 * Page contents: every page of a test has an id of its own. A stamp reaches
 * the first, the last and some inner words, which also differ from each other.
 */
void stamp(unsigned long addr, unsigned long id);
void stamp_range(unsigned long addr, size_t len, unsigned long id);
const char *check_stamp(unsigned long addr, unsigned long id);
const char *check_stamps(unsigned long addr, size_t len, unsigned long id);
const char *check_zero(unsigned long addr, size_t len);
const char *check_unmapped(unsigned long addr, size_t len);

/* A read-only page beside a mapping; being read-only it never merges. */
void guard_page(unsigned long addr);
const char *check_guard_page(unsigned long addr);

/* pagemap bits that a move must carry along. */
#define PM_MOVES	(PM_PRESENT | PM_SWAP | PM_FILE)

uint64_t pagemap_entry(unsigned long addr);

static inline bool is_present(unsigned long addr)
{
	return pagemap_entry(addr) & PM_PRESENT;
}

size_t count_pagemap(unsigned long addr, size_t len, uint64_t bits);
void pagemap_bits(unsigned long addr, size_t pages, uint64_t *out);

/*
 * Swaps out of the range so many pages, or as many as can be: their number. Pages
 * wait in a processor's own lists for a while, and only it can empty them.
 */
size_t swap_out(unsigned long addr, size_t len, size_t pages);
void stay_on_processor(int cpu);
void stay_on_this_processor(void);

/* One line of /proc/self/maps. */
struct vma {
	unsigned long start;
	unsigned long end;
	char perms[5];
	unsigned long offset;
	unsigned long inode;
};

/* The mappings that reach into [start, end); their number. */
int read_vmas(unsigned long start, unsigned long end, struct vma *vmas, int max);
bool find_vma(unsigned long addr, struct vma *vma);
const char *check_vmas(unsigned long start, unsigned long end, const struct vma *want, int nr);
int count_vmas(void);

/*
 * From /proc/self/smaps, of the mapping that starts at start, which must be one.
 * Where the kernel does not tell the field, that is -1.
 */
long smaps_kb(unsigned long start, const char *field);
bool has_vmflag(unsigned long start, const char *flag);

/* A mapping with its VmFlags: two letters each, a space on both sides. */
struct smap {
	struct vma vma;
	char flags[128];
};

/* As read_vmas(), in one reading of /proc/self/smaps. */
int read_smaps(unsigned long start, unsigned long end, struct smap *smaps, int max);

/* The counters of /proc/self/status, in kB. */
struct counters {
	long size;
	long peak;
	long rss;
	long rss_peak;
	long locked;
	long data;
	long page_tables;
	long rss_anon;
	long rss_file;
	long rss_shmem;
};

void read_counters(struct counters *out);
/* The same without what reading them needs itself. */
long page_tables_kb(void);
/* -1 if the kernel does not tell the field. */
long meminfo_kb(const char *field);
long committed_kb(void);

/*
 * Faults in all that is mapped, with copies of its own where it is private; but for
 * the parts of buffers that only thousands of mappings need.
 */
void make_all_present(void);

/*
 * Remembers, and compares with, all of the process that a refused call must
 * leave alone: the text of /proc/self/maps and the counters.
 */
void save_state(void);
const char *check_state(void);

/* Small files of /proc and /sys. */
bool write_setting(const char *path, const char *text);
bool read_setting(const char *path, char *out, size_t len);
long read_long(const char *path);
/* A counter of /proc/vmstat, 0 if it has no such one. */
long vm_counter(const char *name);

/* The same, for as long as a test lasts: put_settings_back() is its teardown's. */
bool change_setting(const char *path, const char *text);
void put_settings_back(void);

/*
 * Nobody may commit more than so many kB beyond what is committed now, until this is taken
 * back. That is also a teardown's: nothing else runs well under such a limit.
 */
#define NEEDS_OVERCOMMIT "needs leave to set vm.overcommit_memory, and not too much swap space"

bool limit_commits(long room);
void unlimit_commits(void);

#define DEBUGFS		"/sys/kernel/debug/"

/* Holds a move up at some points, each a file with microseconds. */
#define DELAY_DIR	DEBUGFS "mremap_delay_us/"
#define NEEDS_DELAYS	"needs CONFIG_DEBUG_MREMAP_DELAY (" DELAY_DIR ")"

/* Is this task in the kernel, where nothing but its waker can get it out? */
bool is_asleep(pid_t task);

/*
 * A file without a name that is written to a disk, in $MREMAP_DISK or the working
 * directory; and the same past the page cache.
 */
#define NEEDS_DISK	"needs a file system with O_DIRECT in $MREMAP_DISK"

bool open_on_disk(size_t len, int *fd, int *direct);

/* A control group of one's own, whose memory can be reclaimed from outside. */
#define CGROUPS		"/sys/fs/cgroup/"
#define OWN_CGROUP		CGROUPS "mremap/"
#define NEEDS_CGROUP	"needs memory.reclaim of control groups"

bool enter_group(void);
void leave_group(void);

/*
 * Fault injection: makes the nth allocation from here on fail. The first says
 * what is missing for it, the last whether it has come to that.
 */
#define FAIL_NTH	"/proc/thread-self/fail-nth"

const char *prepare_fail_nth(void);
bool arm_fail_nth(int fd, int nth);
bool disarm_fail_nth(int fd);

#define MESSAGES	256

/*
 * A thread that reads what a userfaultfd has to tell, writes it down, and may
 * answer it. mremap() waits until it has been read.
 */
struct monitor {
	int fd;
	uint64_t features;
	size_t page;		/* page size of what is registered */
	void (*answer)(struct monitor *monitor, const struct uffd_msg *msg);
	pthread_t thread;
	int ask[2];
	int reply[2];
	struct uffd_msg got[MESSAGES];
	int nr_got;
	struct uffd_msg want[MESSAGES];
	int nr_want;
};

bool start_monitor(struct monitor *monitor, uint64_t features);
bool stop_monitor(struct monitor *monitor);
/* Everything that was there to read when this is called has been read after. */
bool ask_monitor(struct monitor *monitor, char what);

/* What it has to be told next, if it has asked for such events. */
void want_remap(struct monitor *monitor, unsigned long from, unsigned long to, size_t len);
void want_unmap(struct monitor *monitor, unsigned long start, size_t len);
/* A fault is missing unless flags say that it is another kind of fault. */
void want_fault(struct monitor *monitor, unsigned long addr, uint64_t flags);
/* The messages are the wanted ones, in their order. Then starts a new list. */
const char *check_events(struct monitor *monitor);
/* Only the latter: how many there were, or -1 if nobody reads them. */
int forget_messages(struct monitor *monitor);

/* Random numbers, below a limit: the same after the same state, which is not 0. */
extern uint64_t random_state;
int pick(int limit);
bool one_in(int nr);

/* MREMAP_EXPECT=base: expect what stock does where this kernel differs. */
bool expect_base(void);
/* And that is 6.x, or 7.x: what they have in common is not said again. */
bool expect_base_6(void);
bool expect_base_7(void);
/* MREMAP_EXPECT=fixed: as ours, and other calls have none of these bugs, either. */
bool expect_fixed(void);
/* With MREMAP_BRIEF in the environment only every fifth of what is numbered so is done. */
bool is_left_out(unsigned int nr);

#endif
