// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) and userfaultfd: what becomes of faults, of write protection and of
 * poison where a mapping went and where it was, who waits for a monitor, and what one
 * does that collects garbage. Which events a call sends, and what stays registered, is
 * part of the model that mremap_test compares with.
 *
 * A monitor that asks for UFFD_FEATURE_EVENT_REMAP is told where a mapping
 * went: that stays registered, and what was write-protected stays so. For any
 * other monitor the mapping is lost, and nothing of userfaultfd may be left in
 * it: whoever ran into that would wait for an answer that never comes.
 *
 * Tests whose name ends in _mended fail on stock 6.12, whose bug they catch;
 * MREMAP_EXPECT=base skips them. Those in _fixed are of other calls that share the
 * bug, and only run with MREMAP_EXPECT=fixed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define SRC	(WINDOW + 4 * GB)
#define DST	(WINDOW + 8 * GB)
#define THIRD	(WINDOW + 12 * GB)

#define REMAP	UFFD_FEATURE_EVENT_REMAP
#define UNMAP	UFFD_FEATURE_EVENT_UNMAP

#define STOCK_BUG	"a bug of stock 6.12 that this catches"
#define OTHERS_BUG	"a bug of other calls (MREMAP_EXPECT=fixed)"

/* ---- userfaultfd ---- */

#define MISSING		UFFDIO_REGISTER_MODE_MISSING
#define WP		UFFDIO_REGISTER_MODE_WP
#define MINOR		UFFDIO_REGISTER_MODE_MINOR

/* Write protection where there is no page of anonymous memory. */
#define WITH_MARKERS							\
	(UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED |	\
	 UFFD_FEATURE_WP_ASYNC)

/* Why a userfaultfd with these features cannot be had. */
static const char *lacks_features(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return "needs userfaultfd (CONFIG_USERFAULTFD)";
	close(fd);
	features &= ~api.features;
	if (features & WITH_MARKERS)
		return "needs CONFIG_PTE_MARKER_UFFD_WP";
	return complain("needs userfaultfd with features %#llx", (unsigned long long)features);
}

/* These return 0 or the errno. Most requests are laid out alike. */
static int work_on(int fd, unsigned long request, unsigned long addr, size_t len, uint64_t mode)
{
	struct uffdio_register arg = { .range = { addr, len }, .mode = mode };

	return ioctl(fd, request, &arg) ? errno : 0;
}

static int register_range(int fd, unsigned long addr, size_t len, uint64_t mode)
{
	return work_on(fd, UFFDIO_REGISTER, addr, len, mode);
}

static int unregister_range(int fd, unsigned long addr, size_t len)
{
	return work_on(fd, UFFDIO_UNREGISTER, addr, len, 0);
}

static int protect(int fd, unsigned long addr, size_t len)
{
	return work_on(fd, UFFDIO_WRITEPROTECT, addr, len, UFFDIO_WRITEPROTECT_MODE_WP);
}

static int poison(int fd, unsigned long addr, size_t len)
{
	return work_on(fd, UFFDIO_POISON, addr, len, 0);
}

/* With UFFDIO_COPY or UFFDIO_MOVE, which are laid out alike, too. */
static int fill(int fd, unsigned long request, unsigned long addr, size_t len, unsigned long from)
{
	struct uffdio_copy copy = { .dst = addr, .src = from, .len = len };

	return ioctl(fd, request, &copy) ? errno : 0;
}

/* ---- the monitor ---- */

/* What missing pages are filled with: FILLED, FILLED + 1, ... */
#define FILLED	5000

static uint64_t filling[2 * MB / sizeof(uint64_t)];

/* Whoever cannot be answered now shall ask again. */
static void answer_fault(struct monitor *monitor, const struct uffd_msg *msg)
{
	const size_t len = monitor->page;
	const unsigned long addr = msg->arg.pagefault.address & -len;
	int err;

	if (msg->event != UFFD_EVENT_PAGEFAULT)
		return;
	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
		err = work_on(monitor->fd, UFFDIO_WRITEPROTECT, addr, len, 0);
	else if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR)
		err = work_on(monitor->fd, UFFDIO_CONTINUE, addr, len, 0);
	else
		err = fill(monitor->fd, UFFDIO_COPY, addr, len, (unsigned long)filling);
	if (err)
		work_on(monitor->fd, UFFDIO_WAKE, addr, len, 0);
}

/* A monitor that answers like this, or as it is set up to; or why it cannot be had. */
static const char *lacks_monitor(struct monitor *monitor, uint64_t features)
{
	monitor->answer = monitor->answer ?: answer_fault;
	stamp_range((unsigned long)filling, sizeof(filling), FILLED);
	return start_monitor(monitor, features) ? NULL : lacks_features(features);
}

#define NEED_MONITOR(monitor, features)	NEED_OK(lacks_monitor(monitor, features))

/*
 * A page that nobody has touched is the monitor's to fill where it is
 * registered, and empty elsewhere.
 */
static const char *check_fill(struct monitor *monitor, unsigned long addr, bool registered)
{
	if (!registered)
		return check_zero(addr, psize());
	want_fault(monitor, addr, 0);
	return check_stamp(addr, FILLED);
}

/* ---- what can be seen of a mapping ---- */

#define NOT_REGISTERED	""

/* How the mapping that starts at addr is registered. */
static const char *registration(unsigned long addr)
{
	const char *const modes[] = { "um", "uw", "ui" };
	static char found[16];
	struct vma vma;

	if (!find_vma(addr, &vma) || vma.start != addr)
		return "not mapped";
	found[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		if (!has_vmflag(addr, modes[i]))
			continue;
		if (found[0])
			strcat(found, " ");
		strcat(found, modes[i]);
	}
	return found;
}

static const char *check_registration(unsigned long addr, const char *modes)
{
	const char *found = registration(addr);

	return strcmp(found, modes) ?
		complain("%#lx: registered for '%s', not '%s'", addr, found, modes) : NULL;
}

static size_t count_protected(unsigned long addr, size_t len)
{
	return count_pagemap(addr, len, PM_UFFD_WP);
}

/* The kind of memory is then decided by the test alone. */
static void no_huge_pages(void)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

/* SIGBUS is how a page tells that it is poisoned, or missing if one asked for that. */
static sigjmp_buf bus_env;
static void *volatile bus_addr;

static void catch_bus(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	bus_addr = info->si_addr;
	siglongjmp(bus_env, 1);
}

/* Whether reading there raises SIGBUS, for this very page. */
static bool raises_bus(unsigned long addr, size_t page)
{
	struct sigaction action = { .sa_sigaction = catch_bus, .sa_flags = SA_SIGINFO };

	bus_addr = NULL;
	sigaction(SIGBUS, &action, NULL);
	if (!sigsetjmp(bus_env, 1)) {
		*(volatile char *)at(addr);
		return false;
	}
	return ((unsigned long)bus_addr & -page) == (addr & -page);
}

/* ---- what is known of pages, kinds of memory, and ways to move them ---- */

enum size {
	SMALL,
	HUGE,
	HUGETLB,
};

enum pageout {
	NOT_PAGED_OUT,
	BEFORE,		/* it is marked */
	AFTER,
};

/* Of what is looked at, after a move. */
enum fate {
	KEPT,		/* moved, and followed by its monitor; or did not move */
	LOST,		/* moved, and is no longer registered */
	LEFT,		/* its pages have moved, but it is still mapped */
};

/*
 * The source consists of units, of which every other one is marked: protected,
 * poisoned, or not mapped. Where it starts in a page table, and whether the
 * destination starts at the same place of one, decides what moves: pages or tables.
 */
FIXTURE(moves)
{
	struct monitor monitor;
	const FIXTURE_VARIANT(moves) *kind;
	unsigned long src;
	unsigned long dst;
	size_t unit;
	size_t len;
	int fd;
};

#define SELF	FIXTURE_DATA(moves) *self

enum touched {
	ALL_UNITS,
	UNMARKED_UNITS,
	EVERY_FOURTH,
	HALF,		/* both of marked and unmarked ones, if they are small */
};

/* Something that is known of pages, how it gets there and how it is seen. */
struct state {
	uint64_t features;
	uint64_t mode;
	const char *registered;		/* so, in VmFlags */
	enum touched touched;
	int (*mark)(int fd, unsigned long addr, size_t len);
	/* Once all units are marked. */
	const char *(*begin)(FIXTURE_DATA(moves) *self);
	/* All of [start, end) of the source is at addr now. */
	const char *(*check)(FIXTURE_DATA(moves) *self, unsigned long addr,
			     size_t start, size_t end, enum fate fate);
};

FIXTURE_VARIANT(moves)
{
	const struct state *state;
	enum size size;
	int flags;		/* of mmap() */
	bool file;		/* a memfd */
	size_t head;		/* pages from a table's start to the source */
	size_t shift;		/* pages that the destination is off */
	size_t cut;		/* pages that a part starts behind a unit */
	bool untouched;
	enum pageout pageout;
};

static bool is_anon(SELF)
{
	return self->kind->flags & MAP_PRIVATE && !self->kind->file &&
	       self->kind->size != HUGETLB;
}

static size_t unit_of(SELF, size_t page)
{
	return bytes(page) / self->unit;
}

static bool is_marked(SELF, size_t page)
{
	return unit_of(self, page) % 2 == 0;
}

static bool is_touched(SELF, size_t page)
{
	const size_t unit = unit_of(self, page);

	switch (self->kind->state->touched) {
	case UNMARKED_UNITS:
		return unit % 2;
	case EVERY_FOURTH:
		return unit % 4 == 1;
	case HALF:
		return self->kind->size != SMALL || unit % 4 < 2;
	default:
		return !self->kind->untouched;
	}
}

/* Not every kernel can protect what is no anonymous memory, or not there. */
static uint64_t wp_features(bool anon, bool untouched)
{
	return UFFD_FEATURE_PAGEFAULT_FLAG_WP |
	       (anon ? 0 : UFFD_FEATURE_WP_HUGETLBFS_SHMEM) |
	       (untouched ? UFFD_FEATURE_WP_UNPOPULATED : 0);
}

/* Why this machine cannot have this kind of memory. */
static const char *lacks_memory(const FIXTURE_VARIANT(moves) *kind)
{
	if (kind->size == HUGETLB &&
	    meminfo_kb("HugePages_Free") - meminfo_kb("HugePages_Rsvd") < 8)
		return "needs 8 free huge pages (vm.nr_hugepages)";
	if (kind->size == HUGETLB && default_huge_page_size() > sizeof(filling))
		return "needs smaller huge pages";
	if (kind->pageout && meminfo_kb("SwapFree") <= 0)
		return "needs swap space";
	return NULL;
}

/* The file as it is, whatever the page tables of the source have for it. */
static const char *check_file(SELF)
{
	const char *why;

	if (map_at(THIRD, self->len, PROT_READ, MAP_SHARED, self->fd, 0) != THIRD)
		return "cannot map the file";
	why = check_stamps(THIRD, self->len, 1);
	munmap(at(THIRD), self->len);
	return why;
}

static void fill_file(META, SELF)
{
	ASSERT_EQ(THIRD, map_at(THIRD, self->len, PROT_READ | PROT_WRITE,
				MAP_SHARED, self->fd, 0));
	stamp_range(THIRD, self->len, 1);
	munmap(at(THIRD), self->len);
}

static void map_memory(META, SELF)
{
	const bool hugetlb = self->kind->size == HUGETLB;
	int flags = self->kind->flags;

	self->fd = -1;
	if (self->kind->file) {
		self->fd = memfd_create("moves", hugetlb ? MFD_HUGETLB : 0);
		ASSERT_EQ(0, ftruncate(self->fd, self->len));
	} else {
		flags |= MAP_ANONYMOUS | (hugetlb ? MAP_HUGETLB : 0);
	}
	if (self->kind->size != HUGE && self->kind->file && !self->kind->untouched)
		fill_file(_metadata, self);
	ASSERT_EQ(self->src, map_at(self->src, self->len, PROT_READ | PROT_WRITE,
				    flags, self->fd, 0));
	if (self->kind->size == HUGE)
		madvise(at(self->src), self->len, MADV_HUGEPAGE);
}

/* Of a private mapping of a file every third page is a copy of its own. */
static void touch_memory(META, SELF)
{
	const bool partly = self->kind->file && self->kind->flags & MAP_PRIVATE;

	for (size_t page = 0; page < self->len / psize(); page++) {
		const unsigned long addr = self->src + bytes(page);

		if (!is_touched(self, page))
			continue;
		if (partly && page % 3)
			ASSERT_OK(check_stamp(addr, 1 + page));
		else
			stamp(addr, 1 + page);
	}
}

FIXTURE_SETUP(moves)
{
	const bool huge = variant->size == HUGE;

	NEED_OK(lacks_memory(variant));
	self->kind = variant;
	self->unit = huge ? pmd_span() : bytes(16);
	if (variant->size == HUGETLB) {
		self->unit = default_huge_page_size();
		self->monitor.page = self->unit;
	}
	self->len = variant->size == SMALL ? 2 * pmd_span() : 4 * self->unit;
	self->src = SRC + bytes(variant->head);
	self->dst = DST + bytes(variant->head + variant->shift);
	if (!huge)
		no_huge_pages();
	map_memory(_metadata, self);
	touch_memory(_metadata, self);
	/* Whatever is set for shared memory. */
	if (huge && variant->file)
		madvise(at(self->src), self->len, MADV_COLLAPSE);
	NEED(!huge || smaps_kb(self->src, variant->file ? "ShmemPmdMapped" : "AnonHugePages") > 0,
	     "needs transparent huge pages");
}

FIXTURE_TEARDOWN(moves) { }

/* ---- write protection ---- */

static const char *check_protection(SELF, unsigned long addr, size_t start, size_t end, bool kept)
{
	static uint64_t bits[1 << 16];
	const size_t first = start / psize(), nr = (end - start) / psize();

	pagemap_bits(addr, nr, bits);
	for (size_t i = 0; i < nr; i++) {
		const bool wanted = kept && is_marked(self, first + i);

		if (!!(bits[i] & PM_UFFD_WP) != wanted)
			return complain("page %zu at %#lx: pagemap %#llx, is%s to be protected",
					first + i, addr + bytes(i), (unsigned long long)bits[i],
					wanted ? "" : " not");
	}
	return NULL;
}

static const char *begin_wp(SELF)
{
	return check_protection(self, self->src, 0, self->len, true);
}

/* What is left of shared memory has been written to at the new place. */
static const char *check_contents(SELF, unsigned long addr, size_t start, size_t end,
				  enum fate fate)
{
	if (fate == LEFT && self->kind->flags & MAP_SHARED)
		return NULL;
	if (self->kind->untouched || (fate == LEFT && is_anon(self)))
		return check_zero(addr, end - start);
	return check_stamps(addr, end - start, 1 + start / psize());
}

/*
 * What is protected calls the monitor at the first write, and nothing else
 * does.
 */
static const char *write_kept(SELF, unsigned long addr, size_t start, size_t end)
{
	const size_t pages[] = {
		start / psize(), (start + self->unit) / psize(),
		end / psize() - 2, end / psize() - 1,
	};
	const char *why = NULL;
	size_t last = -1;

	for (size_t i = 0; !why && i < ARRAY_SIZE(pages); i++) {
		const unsigned long where = addr - start + bytes(pages[i]);
		const size_t answered = bytes(pages[i]) / self->monitor.page;

		if (bytes(pages[i]) >= end)
			continue;
		if (is_marked(self, pages[i]) && answered != last)
			want_fault(&self->monitor, where, UFFD_PAGEFAULT_FLAG_WP);
		last = answered;
		stamp(where, 7000 + i);
		why = check_stamp(where, 7000 + i);
		if (count_protected(where, psize()))
			return complain("%#lx is protected", where);
	}
	return why ?: check_events(&self->monitor);
}

/* Nobody is called, whatever is written. */
static const char *write_freely(SELF, unsigned long addr, size_t len)
{
	const char *why;

	stamp_range(addr, len, 7000);
	why = check_stamps(addr, len, 7000);
	if (count_protected(addr, len))
		return "protected after all was written to";
	return why ?: check_events(&self->monitor);
}

/* Nor if it is the kernel that writes. */
static const char *write_by_kernel(unsigned long addr)
{
	const int mem = open("/proc/self/mem", O_WRONLY);
	const ssize_t nr = pwrite(mem, &addr, sizeof(addr), addr);

	close(mem);
	return nr == sizeof(addr) && *(unsigned long *)at(addr) == addr ?
		NULL : "the kernel cannot write";
}

/*
 * The second half is written to only after a new registration, with which nothing
 * may come up again. That protects what it is told to, as the first would.
 */
static const char *write_lost(SELF, unsigned long addr, size_t len)
{
	const int fd = self->monitor.fd;
	const size_t half = len / 2;
	const char *why = write_by_kernel(addr) ?: write_freely(self, addr, half);

	if (why || mprotect(at(addr), len, PROT_READ) ||
	    mprotect(at(addr), len, PROT_READ | PROT_WRITE) ||
	    register_range(fd, addr, len, WP))
		return why ?: "cannot be registered again";
	if (count_protected(addr, len))
		return "protected by a new registration";
	why = write_freely(self, addr + half, len - half);
	if (protect(fd, addr, self->unit) || count_protected(addr, len) != self->unit / psize())
		return "cannot be protected again";
	want_fault(&self->monitor, addr, UFFD_PAGEFAULT_FLAG_WP);
	stamp(addr, 1);
	return why ?: check_events(&self->monitor);
}

static const char *check_wp(SELF, unsigned long addr, size_t start, size_t end, enum fate fate)
{
	const char *why = check_protection(self, addr, start, end, fate == KEPT);

	why = why ?: check_contents(self, addr, start, end, fate);
	/* Pages that come in for being read stay protected. */
	why = why ?: check_protection(self, addr, start, end, fate == KEPT);
	why = why ?: check_events(&self->monitor);
	if (why || fate == LEFT)
		return why ?: write_freely(self, addr, end - start);
	return fate == KEPT ? write_kept(self, addr, start, end) :
			      write_lost(self, addr, end - start);
}

static const struct state protected = {
	.mode = WP, .registered = "uw", .touched = ALL_UNITS, .mark = protect,
	.begin = begin_wp, .check = check_wp,
};

/* ---- asynchronous write protection ---- */

#define PROTECT	(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC)

enum written {
	NONE,
	UNMARKED,	/* units */
	MORE,		/* and every fourth one */
	ALL,
};

static bool counts_as_written(SELF, size_t page, enum written written)
{
	return written == ALL || (written >= UNMARKED && !is_marked(self, page)) ||
	       (written == MORE && unit_of(self, page) % 4 == 0);
}

/*
 * Which of these pages have been written to since they were protected. With
 * PROTECT they are protected again. Returns 0 or the errno.
 */
static int scan_written(unsigned long addr, size_t pages, uint64_t flags, bool *written)
{
	static struct page_region regions[1 << 12];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = flags,
		.start = addr,
		.end = addr + bytes(pages),
		.vec = (uintptr_t)regions,
		.vec_len = ARRAY_SIZE(regions),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	const int fd = open("/proc/self/pagemap", O_RDONLY);
	const int nr = ioctl(fd, PAGEMAP_SCAN, &arg);
	const int err = nr < 0 ? errno : 0;

	close(fd);
	memset(written, 0, pages);
	for (int i = 0; i < nr; i++)
		for (uint64_t page = regions[i].start; page < regions[i].end;
		     page += psize())
			written[(page - addr) / psize()] = true;
	return err;
}

static bool page_written[1 << 12];

static const char *check_written(SELF, unsigned long addr, size_t start, size_t end,
				 uint64_t flags, enum written wanted)
{
	const size_t first = start / psize(), pages = (end - start) / psize();
	int err;

	if (pages > ARRAY_SIZE(page_written))
		return "needs smaller huge pages";
	err = scan_written(addr, pages, flags, page_written);
	if (err)
		return complain("PAGEMAP_SCAN: %s", strerror(err));
	for (size_t i = 0; i < pages; i++)
		if (page_written[i] != counts_as_written(self, first + i, wanted))
			return complain("page %zu at %#lx is told to be %swritten to",
					first + i, addr + bytes(i),
					page_written[i] ? "" : "not ");
	return NULL;
}

/* Writes to every step-th unit from that one on. */
static void write_units(SELF, unsigned long addr, size_t start, size_t end,
			size_t from, size_t step)
{
	for (size_t page = start / psize(); page < end / psize(); page++)
		if (unit_of(self, page) % step == from)
			*(volatile uint64_t *)at(addr - start + bytes(page) + 24) = page;
}

/* A scan that protects, from a state where so much has been written to. */
static const char *scan_anew(SELF, unsigned long addr, size_t start, size_t end,
			     enum written written)
{
	const char *why = check_written(self, addr, start, end, PROTECT, written);

	why = why ?: check_written(self, addr, start, end, 0, NONE);
	write_units(self, addr, start, end, 1, 2);
	return why ?: check_written(self, addr, start, end, 0, UNMARKED);
}

static const char *begin_async(SELF)
{
	return scan_anew(self, self->src, 0, self->len, ALL);
}

/*
 * The next scan tells all writes since the last one, be they before the move. What
 * was left behind counts as written to: it is not what it was. And after a new
 * registration, nothing is protected.
 */
static const char *check_async(SELF, unsigned long addr, size_t start, size_t end, enum fate fate)
{
	const size_t len = end - start;
	const char *why;

	if (fate == KEPT) {
		why = check_written(self, addr, start, end, 0, UNMARKED);
		write_units(self, addr, start, end, 0, 4);
		return why ?: scan_anew(self, addr, start, end, MORE);
	}
	if (count_protected(addr, len))
		return "something is protected";
	if (fate == LOST && scan_written(addr, len / psize(), PROTECT, page_written) != EPERM)
		return "a scan protects what is not registered";
	if (fate == LOST) {
		/* Stock 7.x tells of registered pages only. */
		why = expect_base_7() ? NULL : check_written(self, addr, start, end, 0, ALL);
		if (why || register_range(self->monitor.fd, addr, len, WP) ||
		    count_protected(addr, len))
			return why ?: "protected by a new registration";
	}
	return scan_anew(self, addr, start, end, ALL);
}

static const struct state scanned = {
	.features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
		    UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.mode = WP, .registered = "uw", .touched = HALF,
	.begin = begin_async, .check = check_async,
};

/* ---- pages that are missing, not in the page tables, or poisoned ---- */

/*
 * One page, and whether its monitor is asked for it, or whoever reads it gets a signal.
 * Of a file all pages are there, which concerns only a monitor that maps them itself.
 */
static const char *check_page(SELF, unsigned long addr, size_t page, enum fate fate)
{
	const struct state *state = self->kind->state;
	const bool mapped = fate != LEFT && is_touched(self, page);
	const bool poisoned = state->mark == poison && fate != LEFT && is_marked(self, page);
	const bool absent = !mapped && !poisoned && fate != LOST &&
		(state->mode == MINOR || !self->kind->file);
	const bool signal = absent && state->features & UFFD_FEATURE_SIGBUS;

	if (absent && !signal)
		want_fault(&self->monitor, addr, state->mode == MINOR ?
			   UFFD_PAGEFAULT_FLAG_MINOR : 0);
	if (raises_bus(addr, self->monitor.page) != (poisoned || signal))
		return complain("page %zu at %#lx is to raise %s", page, addr,
				poisoned || signal ? "SIGBUS" : "no signal");
	if (poisoned)
		return NULL;
	if (signal && fill(self->monitor.fd, UFFDIO_COPY, addr, psize(), (unsigned long)filling))
		return "cannot be filled";
	if (mapped || self->kind->file)
		return check_stamp(addr, 1 + page);
	return absent ? check_stamp(addr, FILLED) : check_zero(addr, psize());
}

/* The first and the last one of each unit; a page of hugetlb is a unit. */
static const char *check_pages(SELF, unsigned long addr, size_t start, size_t end, enum fate fate)
{
	const size_t first = start / psize(), unit = self->unit / psize();
	const char *why = NULL;

	for (size_t page = first; !why && page < end / psize(); page++)
		if (page % unit == 0 || (self->kind->size == SMALL && page % unit == unit - 1))
			why = check_page(self, addr + bytes(page - first), page, fate);
	/* Poison is in the page tables, not in the memory. */
	if (!why && self->kind->file)
		why = check_file(self);
	return why;
}

static const struct state missing = {
	.mode = MISSING | WP, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
					  UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.registered = "um uw", .touched = UNMARKED_UNITS, .check = check_pages,
};

/* A missing page is a signal for whoever comes to it. */
static const struct state signals = {
	.mode = MISSING, .features = UFFD_FEATURE_SIGBUS,
	.registered = "um", .touched = UNMARKED_UNITS, .check = check_pages,
};

/* Pages in the file belong to the monitor until it puts them in the page tables. */
static const struct state minor = {
	.mode = MINOR, .features = UFFD_FEATURE_MINOR_SHMEM |
				   UFFD_FEATURE_MINOR_HUGETLBFS,
	.registered = "ui", .touched = UNMARKED_UNITS, .check = check_pages,
};

static const struct state poisoned = {
	.mode = MISSING, .features = UFFD_FEATURE_POISON, .registered = "um",
	.touched = EVERY_FOURTH, .mark = poison, .check = check_pages,
};

/* ---- the moves ---- */

/* A page that somebody else looks at stays for that moment. */
static bool page_out(SELF)
{
	for (int try = 0; try < 20; try++) {
		madvise(at(self->src), self->len, MADV_PAGEOUT);
		if (!count_pagemap(self->src, self->len, PM_PRESENT))
			return true;
	}
	return false;
}

/* Marks every other unit, and pages out all of it. */
static const char *mark_units(SELF)
{
	const FIXTURE_VARIANT(moves) *kind = self->kind;
	const int fd = self->monitor.fd;
	int err;

	if (kind->pageout == BEFORE && !page_out(self))
		return "needs pages that can be swapped out";
	err = register_range(fd, self->src, self->len, kind->state->mode);
	for (size_t done = 0; kind->state->mark && !err && done < self->len;
	     done += 2 * self->unit)
		err = kind->state->mark(fd, self->src + done, self->unit);
	if (err)
		return complain("cannot be registered and marked: %s", strerror(err));
	if (kind->pageout == AFTER && !page_out(self))
		return "needs pages that can be swapped out";
	return kind->state->begin ? kind->state->begin(self) : NULL;
}

static bool begin(META, SELF, uint64_t events)
{
	const FIXTURE_VARIANT(moves) *kind = self->kind;
	uint64_t features = kind->state->features | events;
	const char *why;

	if (kind->state == &protected)
		features |= wp_features(is_anon(self), kind->untouched);
	why = lacks_monitor(&self->monitor, features) ?: mark_units(self);
	if (why && !strncmp(why, "needs ", 6))
		SKIP(return false, "%s", why);
	ASSERT_OK(why);
	return true;
}

/* What [start, end) of the source, which is at addr now, is known to be. */
static const char *check(SELF, unsigned long addr, size_t start, size_t end, enum fate fate)
{
	const struct state *state = self->kind->state;
	const char *why = check_registration(addr, fate == LOST ? NOT_REGISTERED :
					     state->registered);

	return why ?: state->check(self, addr, start, end, fate) ?: check_events(&self->monitor);
}

static enum fate moved(SELF)
{
	return self->monitor.features & REMAP ? KEPT : LOST;
}

/* Huge pages that moved as such are still huge. */
static const char *check_huge(SELF)
{
	const FIXTURE_VARIANT(moves) *kind = self->kind;

	if (kind->state != &protected || kind->size != HUGE ||
	    kind->file || kind->pageout || kind->shift)
		return NULL;
	return smaps_kb(self->dst, "AnonHugePages") == (long)(self->len / KB) ?
		NULL : "huge pages have been split";
}

/* What is mapped at the old place later is as good as new. */
static const char *check_old_place(SELF)
{
	const char *why = check_unmapped(self->src, self->len);
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;

	if (self->kind->size == HUGETLB)
		flags |= MAP_HUGETLB | MAP_NORESERVE;
	if (map_at(self->src, self->len, PROT_READ | PROT_WRITE, flags, -1, 0) != self->src)
		return why ?: "cannot map the old place";
	return why ?: check_zero(self->src, self->len) ?:
	       check_protection(self, self->src, 0, self->len, false);
}

/* Once with a monitor that is told, once with one that is not. */
#define MOVE_TEST(name)							\
	TEST_F(moves, name##_followed)					\
	{								\
		name(_metadata, self, REMAP | UNMAP);			\
	}								\
									\
	TEST_F(moves, name##_lost)					\
	{								\
		name(_metadata, self, 0);				\
	}

static void want_move(SELF, unsigned long from, unsigned long to, size_t len)
{
	want_remap(&self->monitor, from, to, len);
	want_unmap(&self->monitor, from, len);
}

static void whole(META, SELF, uint64_t events)
{
	if (!begin(_metadata, self, events))
		return;
	ASSERT_EQ(self->dst, move_to(self->src, self->len, self->len, self->dst));
	want_move(self, self->src, self->dst, self->len);
	EXPECT_OK(check_huge(self));
	EXPECT_OK(check(self, self->dst, 0, self->len, moved(self)));
	EXPECT_OK(check_old_place(self));
}

MOVE_TEST(whole)

/* Two quarters in the middle move; those at the ends keep all they have. */
static void part(META, SELF, uint64_t events)
{
	const size_t start = self->len / 4 + bytes(self->kind->cut);
	const size_t end = start + self->len / 2;
	const unsigned long to = self->dst + start;

	if (!begin(_metadata, self, events))
		return;
	ASSERT_EQ(to, move_to(self->src + start, end - start, end - start, to));
	want_move(self, self->src + start, to, end - start);
	EXPECT_OK(check(self, to, start, end, moved(self)));
	EXPECT_OK(check(self, self->src, 0, start, KEPT));
	EXPECT_OK(check(self, self->src + end, end, self->len, KEPT));
}

MOVE_TEST(part)

static void back_and_forth(META, SELF, uint64_t events)
{
	if (!begin(_metadata, self, events))
		return;
	for (int i = 0; i < 6; i++) {
		const unsigned long from = i % 2 ? self->dst : self->src;
		const unsigned long to = i % 2 ? self->src : self->dst;

		ASSERT_EQ(to, move_to(from, self->len, self->len, to));
		want_move(self, from, to, self->len);
	}
	EXPECT_OK(check(self, self->src, 0, self->len, moved(self)));
}

MOVE_TEST(back_and_forth)

/*
 * As collectors do: faults at the old place are delivered with or without the
 * event. hugetlb cannot leave an empty mapping behind: all stays as it is.
 */
static void dontunmap(META, SELF, uint64_t events)
{
	unsigned long to;

	if (!begin(_metadata, self, events))
		return;
	to = do_mremap(self->src, self->len, self->len, FIXED | DONTUNMAP, self->dst);
	if (self->kind->size == HUGETLB) {
		EXPECT_EQ(EINVAL, error_of(to));
		EXPECT_OK(check_unmapped(self->dst, self->len));
		EXPECT_OK(check(self, self->src, 0, self->len, KEPT));
		return;
	}
	ASSERT_EQ(self->dst, to);
	want_remap(&self->monitor, self->src, self->dst, self->len);
	EXPECT_OK(check(self, self->dst, 0, self->len, moved(self)));
	EXPECT_OK(check(self, self->src, 0, self->len, LEFT));
}

MOVE_TEST(dontunmap)

#define MOVES(name, ...)						\
	FIXTURE_VARIANT_ADD(moves, name) { __VA_ARGS__ }

/* Pages that move one by one, and the same with tables that move whole. */
#define MOVES_OF_BOTH(name, ...)					\
	MOVES(name##_pages, __VA_ARGS__, .shift = 5, .cut = 3);		\
	MOVES(name##_tables, __VA_ARGS__, .cut = 3)

#define ANON		.flags = MAP_PRIVATE
#define SHARED_ANON	.flags = MAP_SHARED
#define HUGE_ANON	.flags = MAP_PRIVATE, .size = HUGE
#define SHMEM		.flags = MAP_SHARED, .file = true
#define PRIVATE_FILE	.flags = MAP_PRIVATE, .file = true
#define PRIVATE_HUGETLB	.flags = MAP_PRIVATE | MAP_NORESERVE, .size = HUGETLB
#define SHARED_HUGETLB	.flags = MAP_SHARED | MAP_NORESERVE, .size = HUGETLB

MOVES_OF_BOTH(wp, &protected, ANON);
MOVES(wp_head, &protected, ANON, .cut = 3, .head = 300);
MOVES(wp_of_swapped, &protected, ANON, .shift = 5, .cut = 3, .pageout = BEFORE);
MOVES_OF_BOTH(wp_then_swapped, &protected, ANON, .pageout = AFTER);
MOVES_OF_BOTH(wp_untouched, &protected, ANON, .untouched = true);
MOVES(wp_huge, &protected, HUGE_ANON);
MOVES(wp_huge_cut, &protected, HUGE_ANON, .cut = 9);
MOVES(wp_huge_split, &protected, HUGE_ANON, .shift = 5);
MOVES(wp_huge_swapped, &protected, HUGE_ANON, .pageout = AFTER);
MOVES_OF_BOTH(wp_shared_anon, &protected, SHARED_ANON);
MOVES_OF_BOTH(wp_shmem, &protected, SHMEM);
MOVES_OF_BOTH(wp_shmem_untouched, &protected, SHMEM, .untouched = true);
MOVES_OF_BOTH(wp_shmem_swapped, &protected, SHMEM, .pageout = AFTER);
MOVES(wp_shmem_huge, &protected, SHMEM, .size = HUGE);
MOVES(wp_shmem_huge_split, &protected, SHMEM, .size = HUGE, .shift = 5);
MOVES_OF_BOTH(wp_private_file, &protected, PRIVATE_FILE);
MOVES(wp_hugetlb_private, &protected, .flags = MAP_PRIVATE, .size = HUGETLB);
MOVES(wp_hugetlb_shared, &protected, .flags = MAP_SHARED, .size = HUGETLB);
MOVES(wp_hugetlb_private_untouched, &protected, PRIVATE_HUGETLB, .untouched = true);
MOVES(wp_hugetlb_shared_untouched, &protected, SHARED_HUGETLB, .untouched = true);

MOVES_OF_BOTH(async, &scanned, ANON);
MOVES(async_huge, &scanned, HUGE_ANON);
MOVES(async_huge_split, &scanned, HUGE_ANON, .shift = 5);
MOVES_OF_BOTH(async_shmem, &scanned, SHARED_ANON);
MOVES(async_hugetlb, &scanned, .flags = MAP_SHARED, .size = HUGETLB);

MOVES_OF_BOTH(missing, &missing, ANON);
MOVES(missing_head, &missing, ANON, .cut = 3, .head = 300);
MOVES(missing_hugetlb, &missing, PRIVATE_HUGETLB);

MOVES_OF_BOTH(signals, &signals, ANON);

MOVES_OF_BOTH(minor, &minor, SHMEM);
MOVES(minor_hugetlb, &minor, SHMEM, .size = HUGETLB);

MOVES_OF_BOTH(poison, &poisoned, ANON);
MOVES_OF_BOTH(poison_shmem, &poisoned, SHMEM);
MOVES(poison_hugetlb, &poisoned, PRIVATE_HUGETLB);

#undef SELF

/* With nobody to ask for registrations, a protected page is just a page. */
TEST(monitor_is_gone)
{
	struct monitor monitor = {};

	NEED_MONITOR(&monitor, UFFD_FEATURE_PAGEFAULT_FLAG_WP | REMAP);
	no_huge_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(64)));
	stamp_range(SRC, bytes(32), 1);
	ASSERT_EQ(0, register_range(monitor.fd, SRC, bytes(64), WP));
	ASSERT_EQ(0, protect(monitor.fd, SRC, bytes(64)));
	ASSERT_TRUE(stop_monitor(&monitor));
	ASSERT_EQ(DST, move_to(SRC, bytes(64), bytes(64), DST));
	EXPECT_OK(check_registration(DST, NOT_REGISTERED));
	EXPECT_EQ(0UL, count_protected(DST, bytes(64)));
	EXPECT_OK(check_stamps(DST, bytes(32), 1));
	EXPECT_OK(check_zero(DST + bytes(32), bytes(32)));
	stamp_range(DST, bytes(64), 2);
}

/* ---- locked mappings that grow ---- */

FIXTURE(locked)
{
	struct monitor monitor;
};

FIXTURE_VARIANT(locked)
{
	uint64_t features;
};

FIXTURE_VARIANT_ADD(locked, no_events) { 0 };
FIXTURE_VARIANT_ADD(locked, remap) { REMAP };
FIXTURE_VARIANT_ADD(locked, unmap) { UNMAP };
FIXTURE_VARIANT_ADD(locked, remap_unmap) { REMAP | UNMAP };

FIXTURE_SETUP(locked)
{
	NEED_MONITOR(&self->monitor, variant->features);
	no_huge_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(4)));
	stamp_range(SRC, bytes(4), 1);
	ASSERT_EQ(0, mlock(at(SRC), bytes(4)));
	ASSERT_EQ(0, register_range(self->monitor.fd, SRC, bytes(4), MISSING));
}

FIXTURE_TEARDOWN(locked) { }

/* What a locked mapping grows by is faulted in: by the monitor, if it is registered. */
static const char *check_growth(struct monitor *monitor, unsigned long addr, bool registered)
{
	const unsigned long added = addr + bytes(4);

	if (!is_present(added) || !is_present(added + psize()))
		return "what it has grown by is not faulted in";
	return check_stamps(addr, bytes(4), 1) ?: check_fill(monitor, added, registered) ?:
	       check_fill(monitor, added + psize(), registered) ?: check_events(monitor);
}

TEST_F(locked, growth_in_place)
{
	ASSERT_EQ(SRC, do_mremap(SRC, bytes(4), bytes(6), 0, 0));
	EXPECT_OK(check_growth(&self->monitor, SRC, true));
}

/*
 * The monitor may not fill anything in before it knows of the move, so it has
 * to be told first. Stock waits for the page, then tells.
 */
TEST_F(locked, growth_by_moving_mended)
{
	const bool followed = variant->features & REMAP;

	NEED(!followed || !expect_base(), STOCK_BUG);
	ASSERT_EQ(DST, move_to(SRC, bytes(4), bytes(6), DST));
	want_remap(&self->monitor, SRC, DST, bytes(4));
	want_unmap(&self->monitor, SRC, bytes(4));
	EXPECT_OK(check_growth(&self->monitor, DST, followed));
}

/* ---- calls that unmap, and fail ---- */

/* What is sealed keeps all of the end mapped, so there is nothing to tell. */
TEST(refused_for_a_seal_mended)
{
	struct monitor monitor = {};

	SKIP_STOCK(STOCK_BUG);
	NEED_MONITOR(&monitor, REMAP | UNMAP);
	no_huge_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(4)));
	stamp_range(SRC, bytes(4), 1);
	ASSERT_EQ(0, register_range(monitor.fd, SRC + bytes(2), psize(), MISSING));
	NEED(!seal(SRC + bytes(3), psize()), "needs mseal(2)");
	save_state();
	EXPECT_EQ(EPERM, error_of(do_mremap(SRC, bytes(4), bytes(2), 0, 0)));
	EXPECT_OK(check_state());
	EXPECT_OK(check_events(&monitor));
	EXPECT_OK(check_registration(SRC + bytes(2), "um"));
	EXPECT_OK(check_stamps(SRC, bytes(4), 1));
}

/* The same of other calls. */
FIXTURE(unmapping)
{
	struct monitor monitor;
	unsigned long start;	/* of two pages; only the first one is registered */
};

FIXTURE_VARIANT(unmapping)
{
	bool (*unmap)(unsigned long start, size_t len);
};

static bool by_munmap(unsigned long start, size_t len)
{
	return !munmap(at(start), len);
}

static bool by_mmap(unsigned long start, size_t len)
{
	return mmap(at(start), len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		    -1, 0) != MAP_FAILED;
}

/* The C library takes every end above the one it asked for as a success. */
static bool by_brk(unsigned long start, size_t len)
{
	return syscall(__NR_brk, start) != (long)(start + len);
}

FIXTURE_VARIANT_ADD(unmapping, munmap) { by_munmap };
FIXTURE_VARIANT_ADD(unmapping, mmap) { by_mmap };
FIXTURE_VARIANT_ADD(unmapping, brk) { by_brk };

/* At the top of the heap, for brk(). */
static unsigned long grow_heap(void)
{
	const unsigned long top = (unsigned long)sbrk(0);
	const unsigned long start = -(-top & -(unsigned long)psize());

	return sbrk(start - top + bytes(2)) == at(top) ? start : 0;
}

FIXTURE_SETUP(unmapping)
{
	NEED(expect_fixed(), OTHERS_BUG);
	NEED_MONITOR(&self->monitor, UNMAP);
	no_huge_pages();
	self->start = variant->unmap == by_brk ? grow_heap() : map_anon(SRC, bytes(2));
	ASSERT_NE(0UL, self->start);
	ASSERT_EQ(0, register_range(self->monitor.fd, self->start, psize(), MISSING));
}

FIXTURE_TEARDOWN(unmapping) { }

/* Both pages stay mapped, and the monitor can go on. */
TEST_F(unmapping, refused_for_a_seal_fixed)
{
	const unsigned long start = self->start;

	NEED(!seal(start + psize(), psize()), "needs mseal(2)");
	save_state();
	EXPECT_FALSE(variant->unmap(start, bytes(2)));
	EXPECT_OK(check_state());
	EXPECT_OK(check_events(&self->monitor));
	EXPECT_OK(check_registration(start, "um"));
	EXPECT_EQ(0, fill(self->monitor.fd, UFFDIO_COPY, start, psize(), (unsigned long)filling));
}

/* What takes more than the limit does not replace what is there. */
TEST(too_much_to_replace_fixed)
{
	struct monitor monitor = {};
	struct rlimit size;
	struct counters now;

	NEED(expect_fixed(), OTHERS_BUG);
	NEED_MONITOR(&monitor, UNMAP);
	ASSERT_EQ(SRC, map_anon(SRC, bytes(32)));
	ASSERT_EQ(0, register_range(monitor.fd, SRC, bytes(32), MISSING));
	read_counters(&now);
	size = (struct rlimit) { now.size * KB, now.size * KB };
	save_state();
	ASSERT_EQ(0, setrlimit(RLIMIT_AS, &size));
	EXPECT_FALSE(by_mmap(SRC, bytes(64)));
	EXPECT_OK(check_state());
	EXPECT_OK(check_events(&monitor));
	EXPECT_OK(check_registration(SRC, "um"));
}

/* ---- tables of hugetlb ---- */

/*
 * hugetlb looks for tables to share where a gigabyte of a file is mapped at a
 * multiple of that. The moved poison must not get lost there, nor get into the
 * table of another mapping.
 */
TEST(poison_moves_where_tables_may_be_shared_mended)
{
	const size_t unit = default_huge_page_size(), len = pud_span();
	const unsigned long src = SRC + unit;
	struct monitor monitor = { .page = unit };
	int fd = memfd_create("poison", MFD_HUGETLB);

	SKIP_STOCK(STOCK_BUG);
	NEED(meminfo_kb("HugePages_Free") >= 2, "needs 2 free huge pages (vm.nr_hugepages)");
	NEED_MONITOR(&monitor, UFFD_FEATURE_POISON);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_EQ(THIRD, map_at(THIRD, len, PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_NORESERVE, fd, 0));
	stamp(THIRD, 1);
	ASSERT_EQ(src, map_at(src, len, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_NORESERVE, fd, 0));
	ASSERT_EQ(0, register_range(monitor.fd, src, len, MISSING));
	/* Only mappings of the same kind share tables. */
	ASSERT_EQ(0, register_range(monitor.fd, THIRD, len, MISSING));
	ASSERT_EQ(0, poison(monitor.fd, src + unit, unit));
	ASSERT_EQ(DST, move_to(src, len, len, DST));
	/* Who reads what is missing would wait for the monitor. */
	ASSERT_EQ(0, unregister_range(monitor.fd, THIRD, len));
	EXPECT_TRUE(raises_bus(DST + unit, unit));
	EXPECT_FALSE(raises_bus(THIRD + unit, unit));
	EXPECT_OK(check_stamp(DST, 1));
	EXPECT_OK(check_stamp(THIRD, 1));
	close(fd);
}

/* ---- mremap() waits for its monitor ---- */

struct mover {
	unsigned long addr;
	unsigned long to;
	size_t len;
	volatile pid_t tid;
	volatile bool back;
	unsigned long ret;
};

static void *run_mover(void *arg)
{
	struct mover *mover = arg;

	mover->tid = gettid();
	mover->ret = move_to(mover->addr, mover->len, mover->len, mover->to);
	mover->back = true;
	return NULL;
}

static bool has_message(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 0) == 1 && pfd.revents & POLLIN;
}

/*
 * Until there is an event to read and its sender has gone to sleep over it.
 * There is no hurry: whoever does not wait will be back at some time.
 */
static bool waits_for_reader(int fd, volatile pid_t *tid)
{
	for (int i = 0; i < 1000000; i++) {
		if (*tid && has_message(fd) && is_asleep(*tid))
			return true;
		sched_yield();
	}
	return false;
}

FIXTURE(waiting)
{
	int fd;
	struct mover mover;
	pthread_t thread;
};

/* Three events: nobody reads them unless a test does. */
FIXTURE_SETUP(waiting)
{
	const uint64_t features = REMAP | UNMAP | UFFD_FEATURE_PAGEFAULT_FLAG_WP;

	self->fd = open_uffd(features);
	NEED_OK(self->fd < 0 ? lacks_features(features) : NULL);
	no_huge_pages();
	self->mover = (struct mover) { .addr = SRC, .to = DST, .len = bytes(32) };
	ASSERT_EQ(SRC, map_anon(SRC, bytes(32)));
	ASSERT_EQ(DST, map_anon(DST, bytes(32)));
	stamp_range(SRC, bytes(32), 1);
	ASSERT_EQ(0, register_range(self->fd, SRC, bytes(32), MISSING | WP));
	ASSERT_EQ(0, register_range(self->fd, DST, bytes(32), MISSING));
	ASSERT_EQ(0, pthread_create(&self->thread, NULL, run_mover, &self->mover));
}

FIXTURE_TEARDOWN(waiting) { }

/*
 * By the first event, all is done already, and nothing is locked. Until the
 * last one has been read, the monitor must not work on what it takes for the
 * old state of affairs.
 */
TEST_F(waiting, until_the_last_event_is_read)
{
	const uint8_t events[] = { UFFD_EVENT_UNMAP, UFFD_EVENT_REMAP, UFFD_EVENT_UNMAP };
	struct uffd_msg msg;

	for (size_t i = 0; i < ARRAY_SIZE(events); i++) {
		ASSERT_TRUE(waits_for_reader(self->fd, &self->mover.tid));
		EXPECT_FALSE(self->mover.back);
		EXPECT_OK(check_unmapped(SRC, bytes(32)));
		EXPECT_STREQ("um uw", registration(DST));
		EXPECT_OK(check_stamps(DST, bytes(32), 1));
		EXPECT_EQ(EAGAIN, protect(self->fd, DST, bytes(32)));
		EXPECT_EQ(EAGAIN, work_on(self->fd, UFFDIO_ZEROPAGE, DST, psize(), 0));
		ASSERT_EQ((ssize_t)sizeof(msg), read(self->fd, &msg, sizeof(msg)));
		EXPECT_EQ(events[i], msg.event);
	}
	ASSERT_EQ(0, pthread_join(self->thread, NULL));
	EXPECT_EQ(DST, self->mover.ret);
	EXPECT_FALSE(has_message(self->fd));
	EXPECT_EQ(0, protect(self->fd, DST, bytes(32)));
	EXPECT_EQ(32UL, count_protected(DST, bytes(32)));
}

/* A monitor that goes away lets everybody go on, without a registration. */
TEST_F(waiting, until_the_monitor_is_gone)
{
	ASSERT_TRUE(waits_for_reader(self->fd, &self->mover.tid));
	EXPECT_FALSE(self->mover.back);
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(0, pthread_join(self->thread, NULL));
	EXPECT_EQ(DST, self->mover.ret);
	EXPECT_STREQ(NOT_REGISTERED, registration(DST));
	EXPECT_OK(check_stamps(DST, bytes(32), 1));
}

/* Another call of another thread does not wait along. */
TEST_F(waiting, alone)
{
	ASSERT_TRUE(waits_for_reader(self->fd, &self->mover.tid));
	ASSERT_EQ(THIRD, map_anon(THIRD, bytes(8)));
	stamp_range(THIRD, bytes(8), 50);
	ASSERT_EQ(THIRD + bytes(64), move_to(THIRD, bytes(8), bytes(8), THIRD + bytes(64)));
	EXPECT_OK(check_stamps(THIRD + bytes(64), bytes(8), 50));
	EXPECT_FALSE(self->mover.back);
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(0, pthread_join(self->thread, NULL));
}

/* Whoever is killed while waiting is gone, whatever is left to be told. */
TEST(killed_while_waiting)
{
	struct mover *mover = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bool waits = false;
	pid_t child;
	int status;

	NEED_OK(open_uffd(REMAP | UNMAP) < 0 ? lacks_features(REMAP | UNMAP) : NULL);
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		const int fd = open_uffd(REMAP | UNMAP);

		*mover = (struct mover) { .addr = SRC, .to = DST, .len = bytes(4) };
		map_anon(SRC, bytes(4));
		if (!register_range(fd, SRC, bytes(4), MISSING))
			run_mover(mover);
		_exit(1);
	}
	for (int i = 0; !waits && i < 1000000; i++) {
		waits = mover->tid && is_asleep(mover->tid);
		sched_yield();
	}
	EXPECT_TRUE(waits);
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_FALSE(mover->back);
}

/* ---- what a call keeps while it waits ---- */

#define MAX_MAP_COUNT	"/proc/sys/vm/max_map_count"
#define FAIL_PAGES	"/sys/kernel/debug/fail_page_alloc/"
#define MANY		600UL

FIXTURE(keeping)
{
	int fd;
	struct mover mover;
	volatile bool go;
};

FIXTURE_SETUP(keeping)
{
	NEED_OK(prepare_fail_nth());
	self->fd = open_uffd(UNMAP);
	NEED_OK(self->fd < 0 ? lacks_features(UNMAP) : NULL);
	NEED(read_long(MAX_MAP_COUNT) >= 3 * (long)MANY || change_setting(MAX_MAP_COUNT, "3000"),
	     "needs leave to set vm.max_map_count");
	/* Only what a task asks for in one block of more than a page. */
	change_setting(FAIL_PAGES "min-order", "1");
	change_setting(FAIL_PAGES "task-filter", "Y");
	change_setting(FAIL_PAGES "times", "-1");
	change_setting(FAIL_PAGES "probability", "100");
	no_huge_pages();
}

FIXTURE_TEARDOWN(keeping)
{
	put_settings_back();
}

/* Its arrays come from vmalloc(), which can be looked at. */
static void *move_without_blocks(void *arg)
{
	FIXTURE_DATA(keeping) *self = arg;

	while (!self->go)
		sched_yield();
	write_setting("/proc/thread-self/make-it-fail", "1");
	run_mover(&self->mover);
	write_setting("/proc/thread-self/make-it-fail", "0");
	return NULL;
}

/* The monitor may never answer, and other threads can wait for it as well. */
TEST_F_TIMEOUT(keeping, no_memory_for_each_mapping_mended, 120)
{
	const size_t len = bytes(2 * MANY);
	pthread_t thread;
	long before, after;

	SKIP_STOCK(STOCK_BUG);
	for (unsigned long nr = 0; nr < MANY; nr++)
		ASSERT_EQ(SRC + bytes(2 * nr), map_anon(SRC + bytes(2 * nr), psize()));
	stamp(SRC, 1);
	stamp(SRC + len - bytes(2), 2);
	ASSERT_EQ(DST, map_anon(DST, psize()));
	ASSERT_EQ(0, register_range(self->fd, DST, psize(), MISSING));
	self->mover = (struct mover) { .addr = SRC, .to = DST, .len = len };
	ASSERT_EQ(0, pthread_create(&thread, NULL, move_without_blocks, self));
	before = meminfo_kb("VmallocUsed");
	self->go = true;
	ASSERT_TRUE(waits_for_reader(self->fd, &self->mover.tid));
	after = meminfo_kb("VmallocUsed");
	EXPECT_FALSE(self->mover.back);
	EXPECT_GT(before + (long)(MANY * 100 / KB), after)
		TH_LOG("%ld kB", after - before);
	EXPECT_OK(check_stamp(DST, 1));
	EXPECT_OK(check_stamp(DST + len - bytes(2), 2));
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(DST, self->mover.ret);
}

/* ---- garbage collectors ---- */

/*
 * A collector stops all threads, moves the heap's pages to a place of its own with
 * MREMAP_DONTUNMAP, registers what is left, and lets the threads go on. Whatever object
 * one of them comes to first has to be brought up to date before, and back to the heap.
 * Here an object is a page, and its second word becomes the number of the cycle.
 */
#define HEAP		SRC
#define FROM_SPACE	DST
#define VIEW		THIRD
#define OBJECTS		512UL
#define HEAP_LEN	bytes(OBJECTS)
#define MUTATORS	3UL
#define CYCLES		6

static struct {
	struct monitor monitor;
	unsigned long objects;	/* where the collector finds them */
	unsigned int cycle;
	pthread_barrier_t barrier;
} collector;

/* Somebody else may have been quicker. If it fails otherwise, nobody is to wait any more. */
static void resolve(struct monitor *monitor, const struct uffd_msg *msg)
{
	const unsigned long addr = msg->arg.pagefault.address & -(unsigned long)psize();
	const unsigned long from = addr - HEAP + collector.objects;
	int err;

	((uint64_t *)at(from))[1] = collector.cycle;
	err = collector.objects == VIEW ?
		work_on(monitor->fd, UFFDIO_CONTINUE, addr, psize(), 0) :
		fill(monitor->fd, UFFDIO_MOVE, addr, psize(), from);
	if (err == EEXIST)
		work_on(monitor->fd, UFFDIO_WAKE, addr, psize(), 0);
	else if (err)
		unregister_range(monitor->fd, HEAP, HEAP_LEN);
}

/* Returns how often an object was not up to date. */
static void *run_mutator(void *first)
{
	uintptr_t wrong = 0;

	for (unsigned int cycle = 1; cycle <= CYCLES; cycle++) {
		pthread_barrier_wait(&collector.barrier);
		for (size_t i = 0; i < OBJECTS; i++) {
			const size_t object = ((size_t)first + i * 37) % OBJECTS;
			volatile uint64_t *words = at(HEAP + bytes(object));

			__atomic_add_fetch(words, 1, __ATOMIC_SEQ_CST);
			wrong += words[1] != cycle;
		}
		pthread_barrier_wait(&collector.barrier);
	}
	return (void *)wrong;
}

FIXTURE(collector) { };

/* Pages move back; or, of a file, are mapped again, and worked on in another view of it. */
FIXTURE_VARIANT(collector)
{
	uint64_t feature;
	uint64_t mode;
	unsigned long objects;
};

FIXTURE_VARIANT_ADD(collector, move_late) { UFFD_FEATURE_MOVE, MISSING, FROM_SPACE };
FIXTURE_VARIANT_ADD(collector, minor_late) { UFFD_FEATURE_MINOR_SHMEM, MINOR, VIEW };

FIXTURE_SETUP(collector)
{
	const int file = memfd_create("heap", 0);
	const int flags = variant->mode == MINOR ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;

	collector.objects = variant->objects;
	collector.monitor.answer = resolve;
	NEED_MONITOR(&collector.monitor, variant->feature);
	no_huge_pages();
	ASSERT_EQ(0, ftruncate(file, HEAP_LEN));
	ASSERT_EQ(HEAP, map_at(HEAP, HEAP_LEN, PROT_READ | PROT_WRITE, flags, file, 0));
	ASSERT_EQ(VIEW, map_at(VIEW, HEAP_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
	memset(at(HEAP), 0, HEAP_LEN);
	pthread_barrier_init(&collector.barrier, NULL, MUTATORS + 1);
}

FIXTURE_TEARDOWN(collector) { }

TEST_F_TIMEOUT(collector, cycles, 120)
{
	const int fd = collector.monitor.fd;
	pthread_t mutators[MUTATORS];
	void *wrong;

	for (size_t i = 0; i < MUTATORS; i++)
		ASSERT_EQ(0, pthread_create(&mutators[i], NULL, run_mutator, (void *)i));
	for (collector.cycle = 1; collector.cycle <= CYCLES; collector.cycle++) {
		ASSERT_EQ(FROM_SPACE, do_mremap(HEAP, HEAP_LEN, HEAP_LEN, FIXED | DONTUNMAP,
						FROM_SPACE));
		ASSERT_EQ(0, register_range(fd, HEAP, HEAP_LEN, variant->mode));
		pthread_barrier_wait(&collector.barrier);	/* The threads go on, */
		pthread_barrier_wait(&collector.barrier);	/* and stop. */
		/* The monitor may not be done with who came second to an object. */
		ASSERT_TRUE(ask_monitor(&collector.monitor, 'p'));
		ASSERT_EQ(0, unregister_range(fd, HEAP, HEAP_LEN));
	}
	for (size_t i = 0; i < MUTATORS; i++) {
		ASSERT_EQ(0, pthread_join(mutators[i], &wrong));
		EXPECT_EQ(NULL, wrong);
	}
	for (size_t i = 0; i < OBJECTS; i++)
		EXPECT_EQ(CYCLES * MUTATORS, *(uint64_t *)at(HEAP + bytes(i)));
}

TEST_HARNESS_MAIN
