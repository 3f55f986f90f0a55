// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2), soft-dirty tracking, and mappings that become one.
 *
 * A moved page reads as changed at its new address, whatever moved it: its own
 * entry, or a table at any level. A mapping made after the tracking began reads
 * as changed as a whole, and goes on doing so when it is merged. A mapping that
 * moves is merged with neighbours that fit, and then the pages of all of them
 * are found by fork, munmap and reclaim.
 *
 * Tests whose name ends in _mended fail on stock 6.12, which is wrong or does
 * not merge there; MREMAP_EXPECT=base skips them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 4 * GB)

#define SKIP_STOCK_BUG()						\
	if (expect_base())						\
		SKIP(return, "what stock 6.12 does not do")

#define NEED_SOFT_DIRTY()						\
	if (!softdirty_supported())					\
		SKIP(return, "needs CONFIG_MEM_SOFT_DIRTY")

static void use_small_pages(void)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

/* ---- soft-dirty, as both interfaces tell it ---- */

/* As many pages as one table of page tables maps, and some. */
#define MAX_PAGES	((1 << 18) + 1024)

#define CONTENTS	(PM_PRESENT | PM_SWAP)

static uint64_t entries[MAX_PAGES];
static bool scanned[MAX_PAGES];

static const char *read_entries(unsigned long addr, size_t pages)
{
	if (pages > MAX_PAGES)
		return "too many pages";
	for (size_t done = 0; done < pages; done += 4096)
		pagemap_bits(addr + bytes(done),
			     pages - done < 4096 ? pages - done : 4096,
			     entries + done);
	return NULL;
}

/* As count_pagemap(), for ranges that are too long for that. */
static size_t count_entries(unsigned long addr, size_t len, uint64_t bits)
{
	const size_t pages = len / psize();
	size_t count = 0;

	if (read_entries(addr, pages))
		return -1UL;
	for (size_t page = 0; page < pages; page++)
		count += !!(entries[page] & bits);
	return count;
}

/* Sets scanned[] for the pages that PAGEMAP_SCAN calls soft-dirty. */
static const char *scan_soft_dirty(unsigned long addr, size_t pages)
{
	struct page_region found[128];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = addr,
		.end = addr + bytes(pages),
		.vec = (unsigned long)found,
		.vec_len = ARRAY_SIZE(found),
		.category_mask = PAGE_IS_SOFT_DIRTY,
		.return_mask = PAGE_IS_SOFT_DIRTY,
	};
	const int fd = open("/proc/self/pagemap", O_RDONLY);
	int nr = 0;

	memset(scanned, 0, pages * sizeof(*scanned));
	while (arg.start < arg.end) {
		nr = ioctl(fd, PAGEMAP_SCAN, &arg);
		if (nr < 0)
			break;
		for (int i = 0; i < nr; i++)
			for (unsigned long page = found[i].start;
			     page < found[i].end; page += psize())
				scanned[(page - addr) / psize()] = true;
		arg.start = arg.walk_end;
	}
	close(fd);
	return nr < 0 ? complain("PAGEMAP_SCAN: %s", strerror(errno)) : NULL;
}

static const char *read_soft_dirty(unsigned long addr, size_t pages)
{
	const char *why = read_entries(addr, pages);

	return why ?: scan_soft_dirty(addr, pages);
}

/* What was read of one page: is it soft-dirty, and has it contents? */
static const char *check_entry(unsigned long addr, size_t page, bool dirty)
{
	const bool told = entries[page] & PM_SOFT_DIRTY;

	if (told == dirty && scanned[page] == dirty)
		return NULL;
	return complain("page %#lx is %s by pagemap and %s by PAGEMAP_SCAN, not %s",
			addr + bytes(page), told ? "dirty" : "clean",
			scanned[page] ? "dirty" : "clean", dirty ? "dirty" : "clean");
}

/* All pages of the range, with or without contents. */
static const char *check_marks(unsigned long addr, size_t pages, bool dirty)
{
	const char *why = read_soft_dirty(addr, pages);

	for (size_t page = 0; !why && page < pages; page++)
		why = check_entry(addr, page, dirty);
	return why;
}

/* ---- moved pages read as changed ---- */

enum backing {
	WRITTEN,	/* anonymous, written to */
	READ,		/* anonymous, only read: the zero page */
	HUGE,
	SHARED,
	SHARED_HUGE,
	FILE_PRIVATE,	/* every other page is a copy of the process's own */
};

FIXTURE(dirty)
{
	unsigned long src;
	unsigned long dst;
	size_t pages;
	size_t step;	/* every so many pages one is touched */
	int fd;
};

FIXTURE_VARIANT(dirty)
{
	enum backing backing;
	size_t from;	/* pages from a table's start to the source */
	size_t to;	/* the same for the destination */
	size_t tables;	/* length: so many tables */
	size_t pages;	/* and so many pages */
	size_t step;
	bool lost;	/* tables move: stock forgets about their pages */
};

FIXTURE_VARIANT_ADD(dirty, pages) {
	WRITTEN, 0, 3, 0, 40, 1, false };
FIXTURE_VARIANT_ADD(dirty, pages_of_tables) {
	WRITTEN, 7, 2, 2, 9, 3, false };
FIXTURE_VARIANT_ADD(dirty, zero_pages) {
	READ, 0, 3, 0, 40, 2, false };
FIXTURE_VARIANT_ADD(dirty, zero_pages_in_tables) {
	READ, 0, 0, 2, 0, 2, true };
FIXTURE_VARIANT_ADD(dirty, tables) {
	WRITTEN, 0, 0, 4, 0, 1, true };
FIXTURE_VARIANT_ADD(dirty, sparse_tables) {
	WRITTEN, 0, 0, 16, 0, 300, true };
FIXTURE_VARIANT_ADD(dirty, tables_and_tail) {
	WRITTEN, 0, 0, 2, 77, 1, true };
FIXTURE_VARIANT_ADD(dirty, head_and_tables) {
	WRITTEN, 300, 300, 2, 212, 1, true };
FIXTURE_VARIANT_ADD(dirty, head_and_tail) {
	WRITTEN, 300, 300, 2, 0, 1, true };
FIXTURE_VARIANT_ADD(dirty, head_only) {
	WRITTEN, 400, 400, 0, 112, 1, true };
FIXTURE_VARIANT_ADD(dirty, table_of_tables) {
	WRITTEN, 0, 0, 512, 0, 5000, true };
FIXTURE_VARIANT_ADD(dirty, huge) {
	HUGE, 0, 0, 3, 0, 1, false };
FIXTURE_VARIANT_ADD(dirty, huge_split) {
	HUGE, 0, 1, 2, 0, 1, false };
FIXTURE_VARIANT_ADD(dirty, huge_and_head) {
	HUGE, 300, 300, 2, 212, 1, true };
FIXTURE_VARIANT_ADD(dirty, shared) {
	SHARED, 0, 5, 1, 9, 1, false };
FIXTURE_VARIANT_ADD(dirty, shared_tables) {
	SHARED, 0, 0, 3, 0, 1, true };
FIXTURE_VARIANT_ADD(dirty, shared_huge) {
	SHARED_HUGE, 0, 0, 2, 0, 1, false };
FIXTURE_VARIANT_ADD(dirty, file_private) {
	FILE_PRIVATE, 0, 5, 1, 9, 1, false };
FIXTURE_VARIANT_ADD(dirty, file_private_tables) {
	FILE_PRIVATE, 0, 0, 3, 0, 1, true };

#define DIRTY_SELF	FIXTURE_DATA(dirty) *self
#define DIRTY_VARIANT	const FIXTURE_VARIANT(dirty) *variant

#define FILE_ID		0x100000
#define WRITTEN_ID	0x200000

static bool is_touched(DIRTY_SELF, size_t page)
{
	return page % self->step == 0 || page == self->pages - 1;
}

static bool is_written(DIRTY_VARIANT, size_t page)
{
	if (variant->backing == FILE_PRIVATE)
		return page % 2 == 0;
	return variant->backing != READ;
}

static void fill_file(META, DIRTY_SELF)
{
	const size_t len = bytes(self->pages);
	void *file;

	self->fd = memfd_create("mremap_merge", 0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, len));
	file = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, file);
	stamp_range((unsigned long)file, len, FILE_ID);
	munmap(file, len);
}

static unsigned long map_backing(DIRTY_SELF, DIRTY_VARIANT)
{
	const size_t len = bytes(self->pages);

	switch (variant->backing) {
	case SHARED:
	case SHARED_HUGE:
		return map_at(self->src, len, PROT_READ | PROT_WRITE,
			      MAP_SHARED, self->fd, 0);
	case FILE_PRIVATE:
		return map_at(self->src, len, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE, self->fd, 0);
	default:
		return map_at(self->src, len, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			      0);
	}
}

static void touch(DIRTY_SELF, DIRTY_VARIANT)
{
	for (size_t page = 0; page < self->pages; page++) {
		const unsigned long addr = self->src + bytes(page);

		if (!is_touched(self, page))
			continue;
		if (is_written(variant, page))
			stamp(addr, WRITTEN_ID + page);
		else
			(void)*(volatile char *)at(addr);
	}
}

FIXTURE_SETUP(dirty)
{
	const bool huge = variant->backing == HUGE ||
			  variant->backing == SHARED_HUGE;
	const char *huge_field = variant->backing == HUGE ? "AnonHugePages" :
							    "ShmemPmdMapped";

	NEED_SOFT_DIRTY();
	self->src = SRC + bytes(variant->from);
	self->dst = DST + bytes(variant->to);
	self->pages = variant->tables * pmd_span() / psize() + variant->pages;
	self->step = variant->step;
	if (!huge)
		use_small_pages();
	if (variant->backing >= SHARED)
		fill_file(_metadata, self);
	ASSERT_EQ(self->src, map_backing(self, variant));
	if (variant->backing == HUGE)
		madvise(at(self->src), bytes(self->pages), MADV_HUGEPAGE);
	touch(self, variant);
	if (variant->backing == SHARED_HUGE &&
	    madvise(at(self->src), bytes(self->pages), MADV_COLLAPSE))
		SKIP(return, "needs huge pages of shared memory");
	touch(self, variant);
	if (huge && smaps_kb(self->src, huge_field) <= 0)
		SKIP(return, "needs transparent huge pages");
}

FIXTURE_TEARDOWN(dirty)
{
}

static const char *check_contents(DIRTY_SELF, DIRTY_VARIANT,
				  unsigned long addr)
{
	const char *why = NULL;

	for (size_t page = 0; !why && page < self->pages; page++) {
		if (!is_touched(self, page))
			continue;
		if (is_written(variant, page))
			why = check_stamp(addr + bytes(page), WRITTEN_ID + page);
		else if (variant->backing == FILE_PRIVATE)
			why = check_stamp(addr + bytes(page), FILE_ID + page);
		else
			why = check_zero(addr + bytes(page), psize());
	}
	return why;
}

/*
 * Of the touched pages, those from first on, nr of them, are soft-dirty, and no
 * other. Pages never touched have no contents that anybody could save.
 */
static const char *check_dirty(DIRTY_SELF, unsigned long addr, size_t first,
			       size_t nr)
{
	const char *why = read_soft_dirty(addr, self->pages);

	for (size_t page = 0; !why && page < self->pages; page++) {
		const bool contents = entries[page] & CONTENTS;

		if (contents != is_touched(self, page))
			return complain("page %#lx has %s contents",
					addr + bytes(page), contents ? "" : "no");
		if (contents)
			why = check_entry(addr, page,
					  page >= first && page < first + nr);
	}
	return why;
}

static const char *check_all_dirty(DIRTY_SELF, unsigned long addr)
{
	return check_dirty(self, addr, 0, self->pages);
}

static const char *check_all_clean(DIRTY_SELF, unsigned long addr)
{
	return check_dirty(self, addr, 0, 0);
}

TEST_F_TIMEOUT(dirty, moved_pages_mended, 200)
{
	const size_t len = bytes(self->pages);

	if (variant->lost)
		SKIP_STOCK_BUG();
	clear_softdirty();
	ASSERT_OK(check_all_clean(self, self->src));
	ASSERT_EQ(self->dst, move_to(self->src, len, len, self->dst));
	EXPECT_OK(check_all_dirty(self, self->dst));
	EXPECT_OK(check_contents(self, variant, self->dst));
}

/* The pages leave, their mapping stays: it has nothing to show. */
TEST_F_TIMEOUT(dirty, dontunmap_mended, 200)
{
	const size_t len = bytes(self->pages);

	if (variant->lost)
		SKIP_STOCK_BUG();
	clear_softdirty();
	ASSERT_EQ(self->dst, do_mremap(self->src, len, len, FIXED | DONTUNMAP,
				       self->dst));
	EXPECT_OK(check_all_dirty(self, self->dst));
	EXPECT_EQ(0UL, count_entries(self->src, len, CONTENTS));
	EXPECT_OK(check_contents(self, variant, self->dst));
}

/* What a move grows by is not touched: contents are still told of the rest. */
TEST_F_TIMEOUT(dirty, growing_move_mended, 200)
{
	const size_t len = bytes(self->pages);

	if (variant->lost)
		SKIP_STOCK_BUG();
	clear_softdirty();
	ASSERT_EQ(self->dst, move_to(self->src, len, len + pmd_span(),
				     self->dst));
	EXPECT_OK(check_all_dirty(self, self->dst));
	EXPECT_EQ(0UL, count_entries(self->dst + len, pmd_span(), CONTENTS));
}

/* A huge page has one bit for all of it. */
static size_t pages_in_one(unsigned long addr)
{
	const bool huge = smaps_kb(addr, "AnonHugePages") > 0 ||
			  smaps_kb(addr, "ShmemPmdMapped") > 0;

	return huge && addr % pmd_span() == 0 ? pmd_span() / psize() : 1;
}

/*
 * The moved mapping is tracked like any other: it is clean after the next
 * clearing, then just what is written is dirty, also after it has moved back.
 */
TEST_F_TIMEOUT(dirty, next_cycle_mended, 200)
{
	const size_t len = bytes(self->pages);
	const unsigned long to[] = { self->dst, self->src, self->dst };
	unsigned long from = self->src;

	if (variant->lost)
		SKIP_STOCK_BUG();
	for (size_t i = 0; i < ARRAY_SIZE(to); from = to[i++]) {
		clear_softdirty();
		ASSERT_EQ(to[i], move_to(from, len, len, to[i]));
		EXPECT_OK(check_all_dirty(self, to[i]));
		clear_softdirty();
		EXPECT_FALSE(has_vmflag(to[i], "sd"));
		EXPECT_OK(check_all_clean(self, to[i]));
		if (variant->backing == READ)
			continue;
		stamp(to[i], WRITTEN_ID);
		EXPECT_OK(check_dirty(self, to[i], 0, pages_in_one(to[i])));
	}
	EXPECT_OK(check_contents(self, variant, from));
}

/* ---- swap entries are soft-dirty, too ---- */

FIXTURE(swapped)
{
	size_t pages;
};

FIXTURE_VARIANT(swapped)
{
	size_t offset;	/* of the destination, in pages */
};

FIXTURE_VARIANT_ADD(swapped, pages) { 5 };
FIXTURE_VARIANT_ADD(swapped, tables) { 0 };

/* Pages wait in a processor's own lists for a while; only it can empty them. */
static void stay_on_this_processor(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(sched_getcpu(), &set);
	sched_setaffinity(0, sizeof(set), &set);
}

#define NEED_SWAP()							\
	if (meminfo_kb("SwapFree") <= 0)				\
		SKIP(return, "needs swap space")

/*
 * Swaps the range out. Reclaim finds a page's mappings by the rmap alone, so
 * what it cannot swap out is not where the rmap says.
 */
static const char *check_reclaim(unsigned long addr, size_t len, size_t pages)
{
	size_t swapped = 0;

	for (int try = 0; try < 20 && swapped != pages; try++) {
		madvise(at(addr), len, MADV_PAGEOUT);
		swapped = count_entries(addr, len, PM_SWAP);
	}
	if (swapped == pages)
		return NULL;
	return complain("%#lx-%#lx: %zu pages swapped out, not %zu", addr,
			addr + len, swapped, pages);
}

FIXTURE_SETUP(swapped)
{
	NEED_SOFT_DIRTY();
	NEED_SWAP();
	stay_on_this_processor();
	use_small_pages();
	self->pages = 2 * pmd_span() / psize();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(self->pages)));
	stamp_range(SRC, bytes(self->pages), 1);
	ASSERT_OK(check_reclaim(SRC, bytes(self->pages), self->pages));
}

FIXTURE_TEARDOWN(swapped)
{
}

TEST_F(swapped, moved_entries_mended)
{
	const unsigned long dst = DST + bytes(variant->offset);
	const size_t len = bytes(self->pages);

	if (!variant->offset)
		SKIP_STOCK_BUG();
	clear_softdirty();
	ASSERT_OK(check_marks(SRC, self->pages, false));
	ASSERT_EQ(self->pages, count_entries(SRC, len, PM_SWAP));
	ASSERT_EQ(dst, move_to(SRC, len, len, dst));
	EXPECT_EQ(self->pages, count_entries(dst, len, PM_SWAP));
	EXPECT_OK(check_marks(dst, self->pages, true));
	/* Reading brings them in, and the mark stays. */
	EXPECT_OK(check_stamps(dst, len, 1));
	EXPECT_OK(check_marks(dst, self->pages, true));
	clear_softdirty();
	EXPECT_OK(check_marks(dst, self->pages, false));
}

/* ---- moved in between neighbours that have not changed ---- */

FIXTURE(beside)
{
	size_t side;	/* pages of each neighbour */
	size_t moved;
};

/* Of a neighbour, every so many pages one is touched. */
#define SIDE_STEP	16

FIXTURE_VARIANT(beside)
{
	size_t tables;	/* of each neighbour and, if small is 0, of the moved */
	size_t small;	/* pages that move */
	bool left;
	bool right;
};

FIXTURE_VARIANT_ADD(beside, left) { 2, 0, true, false };
FIXTURE_VARIANT_ADD(beside, right) { 2, 0, false, true };
FIXTURE_VARIANT_ADD(beside, both) { 2, 0, true, true };
FIXTURE_VARIANT_ADD(beside, small_left) { 32, 3, true, false };
FIXTURE_VARIANT_ADD(beside, small_right) { 32, 3, false, true };
FIXTURE_VARIANT_ADD(beside, small_both) { 32, 3, true, true };

/* One mapping, whose middle or end has moved away before the tracking began. */
FIXTURE_SETUP(beside)
{
	size_t all;

	NEED_SOFT_DIRTY();
	use_small_pages();
	self->side = variant->tables * pmd_span() / psize();
	self->moved = variant->small ?: self->side;
	all = 2 * self->side + self->moved;
	ASSERT_EQ(SRC, map_anon(SRC, bytes(all)));
	for (size_t page = 0; page < all; page++)
		if (page % SIDE_STEP == 0 || (page >= self->side &&
					      page < self->side + self->moved))
			stamp(SRC + bytes(page), page);
	ASSERT_EQ(DST, move_to(SRC + bytes(self->side), bytes(self->moved),
			       bytes(self->moved), DST));
	if (!variant->left)
		munmap(at(SRC), bytes(self->side));
	if (!variant->right)
		munmap(at(SRC + bytes(self->side + self->moved)),
		       bytes(self->side));
	clear_softdirty();
}

FIXTURE_TEARDOWN(beside)
{
}

TEST_F(beside, only_the_moved_is_dirty_mended)
{
	const unsigned long mid = SRC + bytes(self->side);
	const unsigned long right = mid + bytes(self->moved);
	const struct vma want = {
		variant->left ? SRC : mid,
		variant->right ? right + bytes(self->side) : right,
		"rw-p", 0, 0
	};

	if (!variant->small)
		SKIP_STOCK_BUG();
	ASSERT_OK(check_marks(DST, self->moved, false));
	ASSERT_EQ(mid, move_to(DST, bytes(self->moved), bytes(self->moved),
			       mid));
	ASSERT_OK(check_vmas(SRC, right + bytes(self->side), &want, 1));
	EXPECT_FALSE(has_vmflag(want.start, "sd"));
	EXPECT_OK(check_marks(mid, self->moved, true));
	EXPECT_OK(check_stamps(mid, bytes(self->moved), self->side));
	if (variant->left) {
		EXPECT_OK(check_marks(SRC, self->side, false));
		for (size_t page = 0; page < self->side; page += SIDE_STEP)
			EXPECT_OK(check_stamp(SRC + bytes(page), page));
	}
	if (variant->right)
		EXPECT_OK(check_marks(right, self->side, false));
	clear_softdirty();
	stamp(mid, 1);
	EXPECT_OK(check_marks(mid, 1, true));
	EXPECT_OK(check_marks(mid + psize(), self->moved - 1, false));
}

/* A mapping for each of three tables' pages; where a call moves all of them. */
TEST(several_mappings_are_dirty_mended)
{
	const size_t table = pmd_span() / psize();

	SKIP_STOCK_BUG();
	NEED_SOFT_DIRTY();
	use_small_pages();
	for (int offset = 0; offset < 2; offset++) {
		const unsigned long dst = DST + bytes(offset);
		const size_t len = 3 * pmd_span();

		ASSERT_EQ(SRC, map_anon(SRC, len));
		stamp_range(SRC, len, 1);
		ASSERT_EQ(0, mprotect(at(SRC + pmd_span()), pmd_span(),
				      PROT_READ));
		clear_softdirty();
		ASSERT_EQ(dst, move_to(SRC, len, len, dst));
		EXPECT_OK(check_marks(dst, 3 * table, true));
		EXPECT_OK(check_stamps(dst, len, 1));
		ASSERT_EQ(0, munmap(at(dst), len));
	}
}

/* ---- a mark on the mapping stays when mappings become one ---- */

/*
 * Something that a mapping has or has not. Two mappings side by side become one
 * as soon as both have it or both have it not.
 */
typedef int (*setter)(unsigned long addr, size_t len, bool on);

static int set_read_only(unsigned long addr, size_t len, bool on)
{
	return mprotect(at(addr), len, on ? PROT_READ : PROT_READ | PROT_WRITE);
}

static int set_dontdump(unsigned long addr, size_t len, bool on)
{
	return madvise(at(addr), len, on ? MADV_DONTDUMP : MADV_DODUMP);
}

/* On fault: nothing is faulted in by the call itself. */
static int set_locked(unsigned long addr, size_t len, bool on)
{
	return on ? mlock2(at(addr), len, MLOCK_ONFAULT) : munlock(at(addr), len);
}

static int set_name(unsigned long addr, size_t len, bool on)
{
	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len,
		     on ? "mremap" : NULL);
}

static int set_policy(unsigned long addr, size_t len, bool on)
{
	unsigned long node = 1;

	return syscall(__NR_mbind, addr, len, on ? MPOL_BIND : MPOL_DEFAULT,
		       on ? &node : NULL, on ? 8 : 0, 0);
}

static int uffd = -1;

static int set_registered(unsigned long addr, size_t len, bool on)
{
	struct uffdio_api api = { .api = UFFD_API };

	if (uffd < 0) {
		uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
			return -1;
	}
	return on ? uffd_register(uffd, at(addr), len, true, false, false) :
		    uffd_unregister(uffd, at(addr), len);
}

/* A seal cannot be taken off, and keeps off what else sets parts up. */
static int set_sealed(unsigned long addr, size_t len, bool on)
{
	return on ? seal(addr, len) : 0;
}

FIXTURE(sticky)
{
	int fd;
};

FIXTURE_VARIANT(sticky)
{
	setter set;
	bool on;	/* the middle part is given it, not deprived of it */
	bool shared;
	const char *needs;
};

FIXTURE_VARIANT_ADD(sticky, protect) {
	set_read_only, true, false, NULL };
FIXTURE_VARIANT_ADD(sticky, unprotect) {
	set_read_only, false, false, NULL };
FIXTURE_VARIANT_ADD(sticky, protect_shared) {
	set_read_only, true, true, NULL };
FIXTURE_VARIANT_ADD(sticky, unprotect_shared) {
	set_read_only, false, true, NULL };
FIXTURE_VARIANT_ADD(sticky, dontdump) {
	set_dontdump, true, false, NULL };
FIXTURE_VARIANT_ADD(sticky, dodump) {
	set_dontdump, false, false, NULL };
FIXTURE_VARIANT_ADD(sticky, dodump_shared) {
	set_dontdump, false, true, NULL };
FIXTURE_VARIANT_ADD(sticky, lock) {
	set_locked, true, false, NULL };
FIXTURE_VARIANT_ADD(sticky, unlock) {
	set_locked, false, false, NULL };
FIXTURE_VARIANT_ADD(sticky, name) {
	set_name, true, false, "names of anonymous memory" };
FIXTURE_VARIANT_ADD(sticky, unname) {
	set_name, false, false, "names of anonymous memory" };
FIXTURE_VARIANT_ADD(sticky, policy) {
	set_policy, true, false, "NUMA policies" };
FIXTURE_VARIANT_ADD(sticky, no_policy) {
	set_policy, false, false, "NUMA policies" };
FIXTURE_VARIANT_ADD(sticky, register) {
	set_registered, true, false, "userfaultfd" };
FIXTURE_VARIANT_ADD(sticky, unregister) {
	set_registered, false, false, "userfaultfd" };
FIXTURE_VARIANT_ADD(sticky, seal) {
	set_sealed, true, false, "mseal" };

#define STICKY_SELF	FIXTURE_DATA(sticky) *self
#define STICKY_VARIANT	const FIXTURE_VARIANT(sticky) *variant

/* Three parts side by side; the middle one is twice as long as the others. */
#define SIDE_PAGES	8
#define MID_PAGES	16
#define ALL_PAGES	(2 * SIDE_PAGES + MID_PAGES)
#define MIDDLE		(SRC + bytes(SIDE_PAGES))
#define RIGHT		(MIDDLE + bytes(MID_PAGES))

FIXTURE_SETUP(sticky)
{
	NEED_SOFT_DIRTY();
	use_small_pages();
	self->fd = memfd_create("mremap_merge", 0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, bytes(ALL_PAGES)));
	ASSERT_EQ(DST, map_anon(DST, psize()));
	if (variant->set(DST, psize(), true))
		SKIP(return, "needs %s", variant->needs ?: "mlock2(2)");
}

FIXTURE_TEARDOWN(sticky)
{
	close(self->fd);
}

static unsigned long map_part(STICKY_SELF, STICKY_VARIANT, unsigned long addr,
			      size_t len)
{
	if (variant->shared)
		return map_at(addr, len, PROT_NONE, MAP_SHARED, self->fd,
			      addr - SRC);
	return map_at(addr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/*
 * Maps a part that has what the test is about, or has it not. It is accessible
 * only after that, so that it never is like a neighbour that is there already.
 * A seal has to come last, so there something else makes the difference.
 */
static void make_part(META, STICKY_SELF, STICKY_VARIANT, unsigned long addr,
		      size_t len, bool with)
{
	const bool sealed = variant->set == set_sealed;

	ASSERT_EQ(addr, map_part(self, variant, addr, len));
	if (with)
		ASSERT_EQ(0, (sealed ? set_dontdump : variant->set)(addr, len,
								    true));
	if (variant->set != set_read_only || !with)
		ASSERT_EQ(0, set_read_only(addr, len, false));
	if (with && sealed)
		ASSERT_EQ(0, set_sealed(addr, len, true));
	/* Of shared memory some pages are there, though not written to. */
	if (variant->shared)
		(void)*(volatile char *)at(addr);
}

struct sticky_part {
	unsigned long addr;
	size_t pages;
};

static const struct sticky_part *sticky_parts(void)
{
	static struct sticky_part parts[3];

	parts[0] = (struct sticky_part) { SRC, SIDE_PAGES };
	parts[1] = (struct sticky_part) { MIDDLE, MID_PAGES };
	parts[2] = (struct sticky_part) { RIGHT, SIDE_PAGES };
	return parts;
}

/* How parts are written down: '.' is not there, 'c' clean, 'd' soft-dirty. */
static void make_parts(META, STICKY_SELF, STICKY_VARIANT, const char *how)
{
	const struct sticky_part *parts = sticky_parts();

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 3; i++)
			if (how[i] == "cd"[round])
				make_part(_metadata, self, variant,
					  parts[i].addr, bytes(parts[i].pages),
					  (i == 1) != variant->on);
		if (round == 0)
			clear_softdirty();
	}
	/* Sealed parts have this, so that they are not like the middle one. */
	if (variant->set == set_sealed)
		ASSERT_EQ(0, set_dontdump(MIDDLE, bytes(MID_PAGES), true));
	for (int i = 0; i < 3; i++)
		if (how[i] != '.')
			ASSERT_OK(check_marks(parts[i].addr, parts[i].pages,
					      how[i] == 'd'));
}

/* The parts that can be written to: after the next clearing only that shows. */
static void check_tracking(META, unsigned long addr, size_t pages, bool write)
{
	clear_softdirty();
	EXPECT_FALSE(has_vmflag(addr, "sd"));
	EXPECT_OK(check_marks(addr, pages, false));
	if (!write)
		return;
	stamp(addr + bytes(2), 1);
	EXPECT_OK(check_marks(addr, 2, false));
	EXPECT_OK(check_marks(addr + bytes(2), 1, true));
	EXPECT_OK(check_marks(addr + bytes(3), pages - 3, false));
}

/* All parts that are there become one mapping; it is soft-dirty if one was. */
static void check_join(META, STICKY_SELF, STICKY_VARIANT, const char *how)
{
	const bool write = variant->set != set_read_only || !variant->on;
	const unsigned long start = how[0] == '.' ? MIDDLE : SRC;
	const unsigned long end = how[2] == '.' ? RIGHT :
						  RIGHT + bytes(SIDE_PAGES);
	const size_t pages = (end - start) / psize();
	const bool dirty = strchr(how, 'd');
	struct vma vma;

	make_parts(_metadata, self, variant, how);
	ASSERT_EQ(0, variant->set(MIDDLE, bytes(MID_PAGES), variant->on));
	ASSERT_EQ(1, read_vmas(SRC, RIGHT + bytes(SIDE_PAGES), &vma, 1))
		TH_LOG("the parts were not merged");
	EXPECT_EQ(dirty, has_vmflag(start, "sd"));
	EXPECT_OK(check_marks(start, pages, dirty));
	/* No fault may be served by a monitor that there is none of. */
	if (variant->set == set_registered && variant->on)
		return;
	check_tracking(_metadata, start, pages, write);
}

/*
 * Half of the middle part goes over to its neighbour. The other half is not
 * concerned.
 */
static void check_partial_join(META, STICKY_SELF, STICKY_VARIANT,
			       const char *how)
{
	const size_t half = MID_PAGES / 2;
	const bool left = how[0] != '.';
	const unsigned long moved = left ? MIDDLE : MIDDLE + bytes(half);
	const unsigned long kept = left ? MIDDLE + bytes(half) : MIDDLE;
	const unsigned long joined = left ? SRC : MIDDLE + bytes(half);
	const bool dirty = strchr(how, 'd');
	struct vma vma[2];

	make_parts(_metadata, self, variant, how);
	ASSERT_EQ(0, variant->set(moved, bytes(half), variant->on));
	ASSERT_EQ(2, read_vmas(SRC, RIGHT + bytes(SIDE_PAGES), vma, 2))
		TH_LOG("the half was not merged");
	EXPECT_EQ(kept, left ? vma[1].start : vma[0].start);
	EXPECT_EQ(dirty, has_vmflag(joined, "sd"));
	EXPECT_OK(check_marks(joined, SIDE_PAGES + half, dirty));
	EXPECT_EQ(how[1] == 'd', has_vmflag(kept, "sd"));
	EXPECT_OK(check_marks(kept, half, how[1] == 'd'));
}

/*
 * Stock gives the whole the mark of one of its parts: mostly of the one that is
 * changed, else of the neighbour that it is added to.
 */
static bool stock_loses(const char *how, bool changed_counts)
{
	const char neighbour = how[0] == '.' ? how[2] : how[0];

	return strchr(how, 'd') &&
	       (changed_counts ? how[1] : neighbour) != 'd';
}

static bool changed_part_counts(setter set)
{
	return set == set_read_only || set == set_dontdump ||
	       set == set_locked || set == set_name;
}

TEST_F(sticky, clean_parts)
{
	check_join(_metadata, self, variant, "ccc");
}

TEST_F(sticky, clean_half)
{
	check_partial_join(_metadata, self, variant, "cc.");
}

#define STICKY_TEST(name, check, how)					\
	TEST_F(sticky, name##_mended)					\
	{								\
		if (stock_loses(how, changed_part_counts(variant->set)))	\
			SKIP_STOCK_BUG();				\
		check(_metadata, self, variant, how);			\
	}

STICKY_TEST(into_clean_left, check_join, "cd.")
STICKY_TEST(into_clean_right, check_join, ".dc")
STICKY_TEST(into_clean_both, check_join, "cdc")
STICKY_TEST(into_dirty_left, check_join, "dc.")
STICKY_TEST(into_dirty_right, check_join, ".cd")
STICKY_TEST(left_of_both_is_dirty, check_join, "dcc")
STICKY_TEST(right_of_both_is_dirty, check_join, "ccd")
STICKY_TEST(both_sides_are_dirty, check_join, "dcd")
STICKY_TEST(half_into_clean_left, check_partial_join, "cd.")
STICKY_TEST(half_into_clean_right, check_partial_join, ".dc")
STICKY_TEST(half_into_dirty_left, check_partial_join, "dc.")
STICKY_TEST(half_into_dirty_right, check_partial_join, ".cd")

/* ---- the same, by mremap() itself and by mmap() ---- */

FIXTURE(joining)
{
};

/* Written down as above; here the middle part comes by mremap(). */
FIXTURE_VARIANT(joining)
{
	const char *how;
};

FIXTURE_VARIANT_ADD(joining, clean_left) { "cc." };
FIXTURE_VARIANT_ADD(joining, clean_right) { ".cc" };
FIXTURE_VARIANT_ADD(joining, clean_both) { "ccc" };
FIXTURE_VARIANT_ADD(joining, into_clean_left) { "cd." };
FIXTURE_VARIANT_ADD(joining, into_clean_right) { ".dc" };
FIXTURE_VARIANT_ADD(joining, into_clean_both) { "cdc" };
FIXTURE_VARIANT_ADD(joining, into_dirty_left) { "dc." };
FIXTURE_VARIANT_ADD(joining, into_dirty_right) { ".cd" };
FIXTURE_VARIANT_ADD(joining, left_of_both_is_dirty) { "dcc" };
FIXTURE_VARIANT_ADD(joining, right_of_both_is_dirty) { "ccd" };

FIXTURE_SETUP(joining)
{
	const struct sticky_part *parts = sticky_parts();

	NEED_SOFT_DIRTY();
	use_small_pages();
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 3; i++) {
			const unsigned long addr = i == 1 ? DST : parts[i].addr;

			if (variant->how[i] == "cd"[round])
				ASSERT_EQ(addr, map_anon(addr,
							 bytes(parts[i].pages)));
		}
		if (round == 0)
			clear_softdirty();
	}
}

FIXTURE_TEARDOWN(joining)
{
}

static void check_joined(META, const char *how)
{
	const unsigned long start = how[0] == '.' ? MIDDLE : SRC;
	const unsigned long end = how[2] == '.' ? RIGHT :
						  RIGHT + bytes(SIDE_PAGES);
	const bool dirty = strchr(how, 'd');
	const struct vma want = { start, end, "rw-p", 0, 0 };

	ASSERT_OK(check_vmas(SRC, RIGHT + bytes(SIDE_PAGES), &want, 1));
	EXPECT_EQ(dirty, has_vmflag(start, "sd"));
	EXPECT_OK(check_marks(start, (end - start) / psize(), dirty));
	check_tracking(_metadata, start, (end - start) / psize(), true);
}

TEST_F(joining, move_mended)
{
	if (stock_loses(variant->how, false))
		SKIP_STOCK_BUG();
	ASSERT_EQ(MIDDLE, move_to(DST, bytes(MID_PAGES), bytes(MID_PAGES),
				  MIDDLE));
	check_joined(_metadata, variant->how);
}

TEST_F(joining, dontunmap_mended)
{
	if (stock_loses(variant->how, false))
		SKIP_STOCK_BUG();
	ASSERT_EQ(MIDDLE, do_mremap(DST, bytes(MID_PAGES), bytes(MID_PAGES),
				    FIXED | DONTUNMAP, MIDDLE));
	EXPECT_EQ(variant->how[1] == 'd', has_vmflag(DST, "sd"));
	check_joined(_metadata, variant->how);
}

/* Growth closes the gap between two mappings. */
FIXTURE(closing)
{
};

FIXTURE_VARIANT(closing)
{
	bool left;
	bool right;
};

FIXTURE_VARIANT_ADD(closing, clean) { false, false };
FIXTURE_VARIANT_ADD(closing, left_is_dirty) { true, false };
FIXTURE_VARIANT_ADD(closing, right_is_dirty) { false, true };

FIXTURE_SETUP(closing)
{
	NEED_SOFT_DIRTY();
	use_small_pages();
	if (!variant->left)
		ASSERT_EQ(SRC, map_anon(SRC, bytes(SIDE_PAGES)));
	if (!variant->right)
		ASSERT_EQ(RIGHT, map_anon(RIGHT, bytes(SIDE_PAGES)));
	clear_softdirty();
	if (variant->left)
		ASSERT_EQ(SRC, map_anon(SRC, bytes(SIDE_PAGES)));
	if (variant->right)
		ASSERT_EQ(RIGHT, map_anon(RIGHT, bytes(SIDE_PAGES)));
}

FIXTURE_TEARDOWN(closing)
{
}

TEST_F(closing, grow_in_place_mended)
{
	const struct vma want = {
		SRC, RIGHT + bytes(SIDE_PAGES), "rw-p", 0, 0
	};
	const bool dirty = variant->left || variant->right;

	if (variant->right)
		SKIP_STOCK_BUG();
	ASSERT_EQ(SRC, do_mremap(SRC, bytes(SIDE_PAGES),
				 bytes(SIDE_PAGES + MID_PAGES), 0, 0));
	ASSERT_OK(check_vmas(SRC, want.end, &want, 1));
	EXPECT_EQ(dirty, has_vmflag(SRC, "sd"));
	EXPECT_OK(check_marks(SRC, SIDE_PAGES, dirty));
	EXPECT_OK(check_marks(RIGHT, SIDE_PAGES, dirty));
	check_tracking(_metadata, SRC, ALL_PAGES, true);
}

/* A new mapping between two old ones has changed what is there. */
TEST_F(closing, new_mapping_in_the_gap)
{
	ASSERT_EQ(MIDDLE, map_anon(MIDDLE, bytes(MID_PAGES)));
	EXPECT_TRUE(has_vmflag(SRC, "sd"));
	EXPECT_OK(check_marks(SRC, ALL_PAGES, true));
	check_tracking(_metadata, SRC, ALL_PAGES, true);
}

/* Nor does a mark get lost, or any bigger, when a mapping is cut. */
TEST(cut_mapping_stays_marked)
{
	NEED_SOFT_DIRTY();
	use_small_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(8)));
	clear_softdirty();
	ASSERT_EQ(MIDDLE, map_anon(MIDDLE, bytes(8)));
	/* One mapping by now, all of it marked. */
	ASSERT_EQ(DST, move_to(MIDDLE, bytes(4), bytes(4), DST));
	EXPECT_TRUE(has_vmflag(DST, "sd"));
	EXPECT_OK(check_marks(DST, 4, true));
	EXPECT_OK(check_marks(MIDDLE + bytes(4), 4, true));
	EXPECT_OK(check_marks(SRC, 8, true));
}

/* ---- mappings that move and join their neighbours ---- */

/*
 *    | prev | mid | next |     at HOME
 *
 * mid comes home from AWAY, be it that it was there before or not.
 */
#define HOME	(WINDOW + GB)
#define AWAY	(WINDOW + 4 * GB)

enum kind {
	NONE,	/* nothing is there */
	BLANK,	/* a mapping of its own, never touched */
	OWN,	/* touched; was one mapping with the other parts of this kind */
	OTHER,	/* touched, was never one mapping with any other part */
};

enum place { PREV, MID, NEXT, PARTS };

FIXTURE(join)
{
	size_t len;	/* of each part */
	size_t step;	/* every so many pages one is touched */
	enum kind kinds[PARTS];
};

FIXTURE_VARIANT(join)
{
	enum kind prev;
	enum kind mid;
	enum kind next;
	bool tables;
};

/* A touched mapping comes home. */
FIXTURE_VARIANT_ADD(join, blank_prev) { BLANK, OWN, NONE, false };
FIXTURE_VARIANT_ADD(join, blank_next) { NONE, OWN, BLANK, false };
FIXTURE_VARIANT_ADD(join, blank_both) { BLANK, OWN, BLANK, false };
FIXTURE_VARIANT_ADD(join, own_prev) { OWN, OWN, NONE, false };
FIXTURE_VARIANT_ADD(join, own_next) { NONE, OWN, OWN, false };
FIXTURE_VARIANT_ADD(join, own_both) { OWN, OWN, OWN, false };
FIXTURE_VARIANT_ADD(join, own_prev_blank_next) { OWN, OWN, BLANK, false };
FIXTURE_VARIANT_ADD(join, blank_prev_own_next) { BLANK, OWN, OWN, false };
FIXTURE_VARIANT_ADD(join, other_prev) { OTHER, OWN, NONE, false };
FIXTURE_VARIANT_ADD(join, other_both) { OTHER, OWN, OTHER, false };
FIXTURE_VARIANT_ADD(join, other_prev_own_next) { OTHER, OWN, OWN, false };
FIXTURE_VARIANT_ADD(join, own_prev_other_next) { OWN, OWN, OTHER, false };
FIXTURE_VARIANT_ADD(join, other_prev_blank_next) { OTHER, OWN, BLANK, false };
FIXTURE_VARIANT_ADD(join, blank_prev_other_next) { BLANK, OWN, OTHER, false };
/* The same, moved by whole tables. */
FIXTURE_VARIANT_ADD(join, tables_blank_prev) { BLANK, OWN, NONE, true };
FIXTURE_VARIANT_ADD(join, tables_blank_next) { NONE, OWN, BLANK, true };
FIXTURE_VARIANT_ADD(join, tables_blank_both) { BLANK, OWN, BLANK, true };
FIXTURE_VARIANT_ADD(join, tables_own_both) { OWN, OWN, OWN, true };
FIXTURE_VARIANT_ADD(join, tables_blank_prev_own_next) {
	BLANK, OWN, OWN, true };
/* A mapping without pages comes. */
FIXTURE_VARIANT_ADD(join, no_pages_blank_both) { BLANK, BLANK, BLANK, false };
FIXTURE_VARIANT_ADD(join, no_pages_other_prev) { OTHER, BLANK, NONE, false };
FIXTURE_VARIANT_ADD(join, no_pages_other_next) { NONE, BLANK, OTHER, false };
FIXTURE_VARIANT_ADD(join, no_pages_other_both) { OTHER, BLANK, OTHER, false };
FIXTURE_VARIANT_ADD(join, no_pages_own_prev) { OWN, BLANK, NONE, false };
FIXTURE_VARIANT_ADD(join, no_pages_own_both) { OWN, BLANK, OWN, false };
FIXTURE_VARIANT_ADD(join, no_pages_blank_prev_other_next) {
	BLANK, BLANK, OTHER, false };
FIXTURE_VARIANT_ADD(join, no_pages_other_prev_blank_next) {
	OTHER, BLANK, BLANK, false };

#define JOIN_SELF	FIXTURE_DATA(join) *self

static unsigned long part_at(JOIN_SELF, enum place place)
{
	return HOME + place * self->len;
}

/* The pages that are touched of len bytes. */
static size_t touched(JOIN_SELF, size_t len)
{
	return len / psize() / self->step;
}

static void stamp_pages(JOIN_SELF, unsigned long addr, size_t len,
			unsigned long id)
{
	for (size_t nr = 0; nr < touched(self, len); nr++)
		stamp(addr + bytes(nr * self->step), id + nr);
}

static const char *check_blank(JOIN_SELF, unsigned long addr, size_t len)
{
	const char *why = NULL;

	for (size_t nr = 0; !why && nr < touched(self, len); nr++)
		why = check_zero(addr + bytes(nr * self->step), psize());
	return why;
}

static const char *check_pages(JOIN_SELF, unsigned long addr, size_t len,
			       unsigned long id)
{
	const char *why = NULL;

	for (size_t nr = 0; !why && nr < touched(self, len); nr++)
		why = check_stamp(addr + bytes(nr * self->step), id + nr);
	return why;
}

static unsigned long part_id(JOIN_SELF, enum place place)
{
	return 1 + place * touched(self, self->len);
}

static void stamp_part(JOIN_SELF, enum place place)
{
	stamp_pages(self, part_at(self, place), self->len,
		    part_id(self, place));
}

/* Maps the parts that are OWN as one mapping, with mid in it, and touches them. */
static void map_own_parts(META, JOIN_SELF)
{
	const enum place first = self->kinds[PREV] == OWN ? PREV : MID;
	const enum place last = self->kinds[NEXT] == OWN ? NEXT : MID;
	const size_t len = (last - first + 1) * self->len;

	if (self->kinds[MID] != OWN && first == MID && last == MID)
		return;
	ASSERT_EQ(part_at(self, first),
		  map_anon(part_at(self, first), len));
	for (enum place place = first; place <= last; place++)
		stamp_part(self, place);
}

FIXTURE_SETUP(join)
{
	self->kinds[PREV] = variant->prev;
	self->kinds[MID] = variant->mid;
	self->kinds[NEXT] = variant->next;
	self->len = variant->tables ? 2 * pmd_span() : bytes(8);
	self->step = variant->tables ? 32 : 1;
	stay_on_this_processor();
	use_small_pages();

	map_own_parts(_metadata, self);
	if (variant->mid == OWN) {
		ASSERT_EQ(AWAY, move_to(part_at(self, MID), self->len,
					self->len, AWAY));
	} else {
		munmap(at(part_at(self, MID)), self->len);
		ASSERT_EQ(AWAY, map_anon(AWAY, self->len));
	}
	for (enum place place = PREV; place <= NEXT; place += NEXT - PREV) {
		if (self->kinds[place] != BLANK && self->kinds[place] != OTHER)
			continue;
		ASSERT_EQ(part_at(self, place),
			  map_anon(part_at(self, place), self->len));
		if (self->kinds[place] == OTHER)
			stamp_part(self, place);
	}
}

FIXTURE_TEARDOWN(join)
{
}

static bool fits(JOIN_SELF, enum place place)
{
	const enum kind kind = self->kinds[place];

	/* What has no pages takes over the neighbour's anon_vma. */
	if (self->kinds[MID] == BLANK)
		return kind != NONE;
	return kind == BLANK || kind == OWN;
}

static bool joins_next(JOIN_SELF)
{
	if (!fits(self, NEXT))
		return false;
	if (!fits(self, PREV) || self->kinds[MID] != BLANK)
		return true;
	/* Then all three become one, and that has one anon_vma. */
	return self->kinds[PREV] == BLANK || self->kinds[NEXT] == BLANK ||
	       (self->kinds[PREV] == OWN && self->kinds[NEXT] == OWN);
}

/* Does stock merge here as well? It does not give an anon_vma to a neighbour. */
static bool stock_merges(JOIN_SELF)
{
	return self->kinds[MID] == BLANK ||
	       (self->kinds[PREV] != BLANK && self->kinds[NEXT] != BLANK);
}

static const char *check_layout(JOIN_SELF)
{
	struct vma want[PARTS];
	int nr = 0;

	for (enum place place = PREV; place <= NEXT; place++) {
		const unsigned long start = part_at(self, place);

		if (self->kinds[place] == NONE)
			continue;
		if ((place == MID && nr && fits(self, PREV)) ||
		    (place == NEXT && joins_next(self)))
			want[nr - 1].end = start + self->len;
		else
			want[nr++] = (struct vma) {
				start, start + self->len, "rw-p", 0, 0
			};
	}
	return check_vmas(HOME, HOME + PARTS * self->len, want, nr);
}

static const char *check_part(JOIN_SELF, enum place place)
{
	switch (self->kinds[place]) {
	case NONE:
		return check_unmapped(part_at(self, place), self->len);
	case BLANK:
		return check_blank(self, part_at(self, place), self->len);
	default:
		return check_pages(self, part_at(self, place), self->len,
				   part_id(self, place));
	}
}

static const char *check_parts(JOIN_SELF)
{
	const char *why = check_part(self, PREV);

	why = why ?: check_part(self, MID);
	return why ?: check_part(self, NEXT);
}

/* Touches all parts that are there: none is blank after that. */
static void stamp_all(JOIN_SELF)
{
	for (enum place place = PREV; place <= NEXT; place++) {
		if (self->kinds[place] == NONE)
			continue;
		stamp_part(self, place);
		self->kinds[place] = OTHER;
	}
}

static const char *swap_out(JOIN_SELF, unsigned long addr, size_t len)
{
	return check_reclaim(addr, len, touched(self, len));
}

/* Swaps a part out and reads it back. */
static const char *reclaim_part(JOIN_SELF, enum place place)
{
	const enum kind kind = self->kinds[place];
	const char *why = NULL;

	if (kind == OWN || kind == OTHER)
		why = swap_out(self, part_at(self, place), self->len);
	return why ?: check_part(self, place);
}

static const char *reclaim_parts(JOIN_SELF)
{
	const char *why = reclaim_part(self, PREV);

	why = why ?: reclaim_part(self, MID);
	return why ?: reclaim_part(self, NEXT);
}

static void come_home(META, JOIN_SELF, unsigned long flags)
{
	ASSERT_EQ(part_at(self, MID), do_mremap(AWAY, self->len, self->len,
						FIXED | flags,
						part_at(self, MID)));
}

TEST_F(join, becomes_one_mended)
{
	if (!stock_merges(self))
		SKIP_STOCK_BUG();
	come_home(_metadata, self, 0);
	EXPECT_OK(check_layout(self));
	EXPECT_OK(check_unmapped(AWAY, self->len));
	EXPECT_OK(check_parts(self));
}

TEST_F(join, becomes_one_dontunmap_mended)
{
	const struct vma left = { AWAY, AWAY + self->len, "rw-p", 0, 0 };

	if (!stock_merges(self))
		SKIP_STOCK_BUG();
	come_home(_metadata, self, MREMAP_DONTUNMAP);
	EXPECT_OK(check_layout(self));
	EXPECT_OK(check_vmas(AWAY, AWAY + self->len, &left, 1));
	EXPECT_EQ(0UL, count_entries(AWAY, self->len, CONTENTS));
	EXPECT_OK(check_blank(self, AWAY, self->len));
	EXPECT_OK(check_parts(self));
}

/* What is left at the old place and what has moved go separate ways. */
TEST_F(join, dontunmap)
{
	NEED_SWAP();
	come_home(_metadata, self, MREMAP_DONTUNMAP);
	stamp_pages(self, AWAY, self->len, 5000);
	EXPECT_OK(check_parts(self));
	EXPECT_OK(reclaim_parts(self));
	EXPECT_OK(check_pages(self, AWAY, self->len, 5000));
	ASSERT_EQ(0, munmap(at(AWAY), self->len));
	EXPECT_OK(reclaim_parts(self));
	stamp_all(self);
	EXPECT_OK(reclaim_parts(self));
}

TEST_F(join, reclaim)
{
	NEED_SWAP();
	come_home(_metadata, self, 0);
	EXPECT_OK(reclaim_parts(self));
	/* Blank parts get their first pages now, into the same anon_vma. */
	stamp_all(self);
	EXPECT_OK(reclaim_parts(self));
}

static const char *write_own_copies(JOIN_SELF)
{
	const char *why = check_parts(self);

	for (enum place place = PREV; !why && place <= NEXT; place++) {
		const unsigned long addr = part_at(self, place);

		if (self->kinds[place] == NONE)
			continue;
		stamp_pages(self, addr, self->len, 9000);
		why = check_pages(self, addr, self->len, 9000);
		why = why ?: swap_out(self, addr, self->len);
		why = why ?: check_pages(self, addr, self->len, 9000);
	}
	return why;
}

TEST_F(join, fork)
{
	NEED_SWAP();
	come_home(_metadata, self, 0);
	EXPECT_OK_IN_CHILD(write_own_copies(self));
	EXPECT_OK(check_parts(self));
	EXPECT_OK(reclaim_parts(self));
	stamp_all(self);
	EXPECT_OK_IN_CHILD(write_own_copies(self));
	EXPECT_OK(reclaim_parts(self));
}

static char wait_for_parent(int fd)
{
	char byte;

	return read(fd, &byte, 1) == 1;
}

/* The parent writes first; the child keeps what it inherited. */
TEST_F(join, fork_and_write)
{
	int go[2], status;
	pid_t child;

	NEED_SWAP();
	come_home(_metadata, self, 0);
	ASSERT_EQ(0, pipe(go));
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		_exit(!wait_for_parent(go[0]) || write_own_copies(self));
	for (enum place place = PREV; place <= NEXT; place++)
		if (self->kinds[place] != NONE)
			stamp_pages(self, part_at(self, place), self->len,
				    7000);
	ASSERT_EQ(1, write(go[1], "", 1));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	for (enum place place = PREV; place <= NEXT; place++)
		if (self->kinds[place] != NONE)
			EXPECT_OK(check_pages(self, part_at(self, place),
					      self->len, 7000));
	stamp_all(self);
	EXPECT_OK(reclaim_parts(self));
}

/* One part alone is left of what had become one. */
TEST_F(join, mid_alone)
{
	NEED_SWAP();
	come_home(_metadata, self, 0);
	munmap(at(part_at(self, PREV)), self->len);
	munmap(at(part_at(self, NEXT)), self->len);
	self->kinds[PREV] = NONE;
	self->kinds[NEXT] = NONE;
	EXPECT_OK(check_parts(self));
	EXPECT_OK(reclaim_parts(self));
	EXPECT_OK_IN_CHILD(write_own_copies(self));
	stamp_all(self);
	EXPECT_OK(reclaim_parts(self));
}

TEST_F(join, neighbours_alone)
{
	NEED_SWAP();
	come_home(_metadata, self, 0);
	ASSERT_EQ(0, munmap(at(part_at(self, MID)), self->len));
	self->kinds[MID] = NONE;
	EXPECT_OK(check_parts(self));
	stamp_all(self);
	EXPECT_OK(reclaim_parts(self));
	EXPECT_OK_IN_CHILD(write_own_copies(self));
}

/* Cuts across the seams where parts have become one. */
TEST_F(join, cut)
{
	const size_t quarter = self->len / 4, rest = self->len - quarter;
	const size_t pages = touched(self, quarter);
	const unsigned long prev = part_at(self, PREV);
	const unsigned long mid = part_at(self, MID);
	const unsigned long next = part_at(self, NEXT);

	NEED_SWAP();
	come_home(_metadata, self, 0);
	stamp_all(self);
	munmap(at(mid - quarter), 2 * quarter);
	munmap(at(next - quarter), 2 * quarter);
	EXPECT_OK(check_unmapped(mid - quarter, 2 * quarter));
	EXPECT_OK(check_unmapped(next - quarter, 2 * quarter));
	EXPECT_OK(swap_out(self, mid + quarter, 2 * quarter));
	EXPECT_OK(check_pages(self, mid + quarter, 2 * quarter,
			      part_id(self, MID) + pages));
	if (self->kinds[PREV] != NONE) {
		EXPECT_OK(swap_out(self, prev, rest));
		EXPECT_OK(check_pages(self, prev, rest, part_id(self, PREV)));
	}
	if (self->kinds[NEXT] != NONE) {
		EXPECT_OK(swap_out(self, next + quarter, rest));
		EXPECT_OK(check_pages(self, next + quarter, rest,
				      part_id(self, NEXT) + pages));
	}
}

/* A changed part goes its own way and then becomes one with the rest again. */
TEST_F(join, protect_and_back_mended)
{
	const size_t quarter = self->len / 4;
	const unsigned long start = part_at(self, MID) + quarter;

	NEED_SWAP();
	if (!stock_merges(self))
		SKIP_STOCK_BUG();
	come_home(_metadata, self, 0);
	ASSERT_EQ(0, mprotect(at(start), 2 * quarter, PROT_READ));
	EXPECT_OK(check_parts(self));
	EXPECT_OK(reclaim_parts(self));
	ASSERT_EQ(0, mprotect(at(start), 2 * quarter, PROT_READ | PROT_WRITE));
	EXPECT_OK(check_layout(self));
	EXPECT_OK(check_parts(self));
}

/* Leaves and comes back as often as it likes. */
TEST_F(join, again_mended)
{
	NEED_SWAP();
	if (!stock_merges(self))
		SKIP_STOCK_BUG();
	for (int i = 0; i < 4; i++) {
		come_home(_metadata, self, 0);
		EXPECT_OK(check_layout(self));
		EXPECT_OK(check_parts(self));
		ASSERT_EQ(AWAY, move_to(part_at(self, MID), self->len,
					self->len, AWAY));
		EXPECT_OK(check_unmapped(part_at(self, MID), self->len));
	}
	come_home(_metadata, self, 0);
	EXPECT_OK(check_layout(self));
	EXPECT_OK(reclaim_parts(self));
	stamp_all(self);
	EXPECT_OK(reclaim_parts(self));
}

/* ---- after a fork ---- */

#define FORK_PAGES	8
#define FORK_LEN	bytes(FORK_PAGES)
#define FORK_PREV	HOME
#define FORK_MID	(HOME + FORK_LEN)
#define FORK_NEXT	(HOME + 2 * FORK_LEN)
#define FORK_END	(HOME + 3 * FORK_LEN)

static bool in_child(META, const char *(*check)(void))
{
	int status;
	pid_t child = fork();

	if (!child) {
		const char *why = check();

		if (why)
			TH_LOG("child: %s", why);
		_exit(!!why);
	}
	return waitpid(child, &status, 0) == child && !status;
}

static const char *fork_move(unsigned long from, unsigned long to)
{
	const unsigned long ret = move_to(from, FORK_LEN, FORK_LEN, to);

	return ret == to ? NULL : complain("the move to %#lx returned %#lx", to, ret);
}

/* The mid part goes away, blank neighbours are mapped, and it comes back. */
static const char *go_and_find_neighbours(void)
{
	const char *why = fork_move(FORK_MID, AWAY);

	if (!why && map_anon(FORK_PREV, FORK_LEN) != FORK_PREV)
		why = "cannot map the part before";
	if (!why && map_anon(FORK_NEXT, FORK_LEN) != FORK_NEXT)
		why = "cannot map the part behind";
	return why ?: fork_move(AWAY, FORK_MID);
}

static const char *check_three(void)
{
	const struct vma want[] = {
		{ FORK_PREV, FORK_MID, "rw-p", 0, 0 },
		{ FORK_MID, FORK_NEXT, "rw-p", 0, 0 },
		{ FORK_NEXT, FORK_END, "rw-p", 0, 0 },
	};

	return check_vmas(FORK_PREV, FORK_END, want, 3);
}

static const char *check_one(void)
{
	const struct vma want = { FORK_PREV, FORK_END, "rw-p", 0, 0 };

	return check_vmas(FORK_PREV, FORK_END, &want, 1);
}

/* Writes to and reclaims all three parts. */
static const char *use_three(unsigned long id)
{
	const size_t len = FORK_END - FORK_PREV;
	const char *why;

	stamp_range(FORK_PREV, len, id);
	why = check_reclaim(FORK_PREV, len, len / psize());
	return why ?: check_stamps(FORK_PREV, len, id);
}

static void map_mid(META)
{
	stay_on_this_processor();
	use_small_pages();
	ASSERT_EQ(FORK_MID, map_anon(FORK_MID, FORK_LEN));
}

static const char *child_moves_inherited(void)
{
	const char *why = go_and_find_neighbours();

	why = why ?: check_three();
	why = why ?: check_stamps(FORK_MID, FORK_LEN, 1);
	return why ?: use_three(100);
}

/*
 * What a child inherits hangs on its parent's anon_vma, too: it does not spread
 * to neighbours that have none.
 */
TEST(inherited_does_not_join_blank)
{
	NEED_SWAP();
	map_mid(_metadata);
	stamp_range(FORK_MID, FORK_LEN, 1);
	EXPECT_TRUE(in_child(_metadata, child_moves_inherited));
	EXPECT_OK(check_stamps(FORK_MID, FORK_LEN, 1));
	/* Also if all pages are the child's own by now. */
	EXPECT_OK(check_unmapped(FORK_PREV, FORK_LEN));
}

static const char *child_moves_its_copies(void)
{
	const char *why;

	stamp_range(FORK_MID, FORK_LEN, 50);
	why = go_and_find_neighbours();
	why = why ?: check_three();
	why = why ?: check_stamps(FORK_MID, FORK_LEN, 50);
	return why ?: use_three(100);
}

TEST(copies_of_inherited_do_not_join_blank)
{
	NEED_SWAP();
	map_mid(_metadata);
	stamp_range(FORK_MID, FORK_LEN, 1);
	EXPECT_TRUE(in_child(_metadata, child_moves_its_copies));
	EXPECT_OK(check_stamps(FORK_MID, FORK_LEN, 1));
}

/* A part of an inherited mapping belongs to the rest of it. */
static const char *child_rejoins(void)
{
	const char *why = fork_move(FORK_MID, AWAY);

	why = why ?: fork_move(AWAY, FORK_MID);
	why = why ?: check_one();
	why = why ?: check_stamps(FORK_PREV, 3 * FORK_LEN, 1);
	return why ?: use_three(100);
}

TEST(inherited_rejoins_its_rest)
{
	NEED_SWAP();
	map_mid(_metadata);
	ASSERT_EQ(FORK_PREV, map_anon(FORK_PREV, FORK_LEN));
	ASSERT_EQ(FORK_NEXT, map_anon(FORK_NEXT, FORK_LEN));
	stamp_range(FORK_PREV, 3 * FORK_LEN, 1);
	ASSERT_OK(check_one());
	EXPECT_TRUE(in_child(_metadata, child_rejoins));
	EXPECT_OK(check_stamps(FORK_PREV, 3 * FORK_LEN, 1));
	EXPECT_OK(use_three(200));
}

/* A mapping without pages does not join an inherited one with some. */
static const char *child_moves_blank(void)
{
	const char *why;

	if (map_anon(AWAY, FORK_LEN) != AWAY)
		return "cannot map";
	why = fork_move(AWAY, FORK_MID);
	why = why ?: check_three();
	why = why ?: check_zero(FORK_MID, FORK_LEN);
	why = why ?: check_stamps(FORK_PREV, FORK_LEN, 1);
	why = why ?: check_stamps(FORK_NEXT, FORK_LEN, 1);
	return why ?: use_three(100);
}

TEST(blank_does_not_join_inherited)
{
	NEED_SWAP();
	stay_on_this_processor();
	use_small_pages();
	ASSERT_EQ(FORK_PREV, map_anon(FORK_PREV, FORK_LEN));
	ASSERT_EQ(FORK_NEXT, map_anon(FORK_NEXT, FORK_LEN));
	stamp_range(FORK_PREV, FORK_LEN, 1);
	stamp_range(FORK_NEXT, FORK_LEN, 1);
	EXPECT_TRUE(in_child(_metadata, child_moves_blank));
	EXPECT_OK(check_stamps(FORK_PREV, FORK_LEN, 1));
}

/* Inherited without pages, it gets an anon_vma of its own. */
static const char *child_joins(void)
{
	const char *why;

	stamp_range(FORK_MID, FORK_LEN, 1);
	why = go_and_find_neighbours();
	why = why ?: check_one();
	why = why ?: check_stamps(FORK_MID, FORK_LEN, 1);
	return why ?: use_three(100);
}

TEST(inherited_blank_joins_mended)
{
	NEED_SWAP();
	SKIP_STOCK_BUG();
	map_mid(_metadata);
	EXPECT_TRUE(in_child(_metadata, child_joins));
}

/* The parent's mapping hangs on one anon_vma only, forks or not. */
TEST(parent_joins_blank_mended)
{
	int go[2], status;
	pid_t child;

	NEED_SWAP();
	SKIP_STOCK_BUG();
	map_mid(_metadata);
	stamp_range(FORK_MID, FORK_LEN, 1);
	ASSERT_EQ(0, pipe(go));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		const char *why = "the parent is gone";

		if (wait_for_parent(go[0]))
			why = check_stamps(FORK_MID, FORK_LEN, 1);
		_exit(!!(why ?: child_moves_its_copies()));
	}
	ASSERT_OK(go_and_find_neighbours());
	EXPECT_OK(check_one());
	EXPECT_OK(check_stamps(FORK_MID, FORK_LEN, 1));
	stamp_range(FORK_PREV, 2 * FORK_LEN, 70);
	ASSERT_EQ(1, write(go[1], "", 1));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_OK(check_stamps(FORK_PREV, 2 * FORK_LEN, 70));
	EXPECT_OK(use_three(100));
}

/* Children and their children inherit what has become one. */
static const char *grandchild(void)
{
	const char *why = check_stamps(FORK_MID, FORK_LEN, 300);

	return why ?: use_three(400);
}

static const char *child_with_child(void)
{
	int status;
	pid_t child;

	stamp_range(FORK_MID, FORK_LEN, 300);
	child = fork();
	if (!child)
		_exit(!!grandchild());
	if (waitpid(child, &status, 0) != child || status)
		return "the grandchild disagrees";
	return check_stamps(FORK_MID, FORK_LEN, 300) ?: use_three(500);
}

TEST(generations)
{
	NEED_SWAP();
	map_mid(_metadata);
	stamp_range(FORK_MID, FORK_LEN, 1);
	ASSERT_OK(go_and_find_neighbours());
	EXPECT_TRUE(in_child(_metadata, child_with_child));
	EXPECT_OK(check_stamps(FORK_MID, FORK_LEN, 1));
	EXPECT_OK(use_three(100));
}

/* ---- private mappings of a file: their offset goes with them ---- */

FIXTURE(file)
{
	int fd;
	unsigned long inode;
};

FIXTURE_VARIANT(file)
{
	bool prev;
	bool next;
};

FIXTURE_VARIANT_ADD(file, prev) { true, false };
FIXTURE_VARIANT_ADD(file, next) { false, true };
FIXTURE_VARIANT_ADD(file, both) { true, true };

static unsigned long map_file(FIXTURE_DATA(file) *self, unsigned long addr,
			      size_t part)
{
	return map_at(addr, FORK_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE,
		      self->fd, part * FORK_LEN);
}

/* Three parts of a file: the one in the middle is mapped AWAY and written to. */
FIXTURE_SETUP(file)
{
	struct vma vma;
	void *all;

	stay_on_this_processor();
	use_small_pages();
	self->fd = memfd_create("mremap_merge", 0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, 3 * FORK_LEN));
	all = mmap(NULL, 3 * FORK_LEN, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->fd, 0);
	ASSERT_NE(MAP_FAILED, all);
	stamp_range((unsigned long)all, 3 * FORK_LEN, 1000);
	munmap(all, 3 * FORK_LEN);

	ASSERT_EQ(AWAY, map_file(self, AWAY, 1));
	stamp_range(AWAY, FORK_LEN, 1);
	if (variant->prev)
		ASSERT_EQ(FORK_PREV, map_file(self, FORK_PREV, 0));
	if (variant->next)
		ASSERT_EQ(FORK_NEXT, map_file(self, FORK_NEXT, 2));
	ASSERT_TRUE(find_vma(AWAY, &vma));
	self->inode = vma.inode;
}

FIXTURE_TEARDOWN(file)
{
	close(self->fd);
}

TEST_F(file, copies_join_the_file_mended)
{
	const struct vma want = {
		variant->prev ? FORK_PREV : FORK_MID,
		variant->next ? FORK_END : FORK_NEXT, "rw-p",
		variant->prev ? 0 : FORK_LEN, self->inode
	};

	SKIP_STOCK_BUG();
	ASSERT_OK(fork_move(AWAY, FORK_MID));
	EXPECT_OK(check_vmas(FORK_PREV, FORK_END, &want, 1));
	EXPECT_OK(check_stamps(FORK_MID, FORK_LEN, 1));
}

TEST_F(file, contents)
{
	NEED_SWAP();
	ASSERT_OK(fork_move(AWAY, FORK_MID));
	EXPECT_OK(check_reclaim(FORK_MID, FORK_LEN, FORK_PAGES));
	EXPECT_OK(check_stamps(FORK_MID, FORK_LEN, 1));
	if (variant->prev) {
		EXPECT_OK(check_stamps(FORK_PREV, FORK_LEN, 1000));
		stamp_range(FORK_PREV, FORK_LEN, 2000);
		ASSERT_EQ(0, munmap(at(FORK_MID), FORK_LEN));
		EXPECT_OK(check_reclaim(FORK_PREV, FORK_LEN, FORK_PAGES));
		EXPECT_OK(check_stamps(FORK_PREV, FORK_LEN, 2000));
	}
	if (variant->next)
		EXPECT_OK(check_stamps(FORK_NEXT, FORK_LEN,
				       1000 + 2 * FORK_PAGES));
}

static const char *child_moves_file(void)
{
	struct vma vma[3];
	const char *why = fork_move(AWAY, FORK_MID);
	const int nr = read_vmas(FORK_PREV, FORK_END, vma, 3);

	if (why)
		return why;
	/* On its own, whatever else is there. */
	for (int i = 0; i < nr; i++)
		if (vma[i].start == FORK_MID && vma[i].end == FORK_NEXT)
			return check_stamps(FORK_MID, FORK_LEN, 1);
	return "inherited copies have joined the file";
}

TEST_F(file, inherited_copies_do_not_join)
{
	EXPECT_TRUE(in_child(_metadata, child_moves_file));
	EXPECT_OK(check_stamps(AWAY, FORK_LEN, 1));
}

/* ---- what is left of the source is a neighbour, too ---- */

/* Nothing is touched, so the part may go anywhere beside its own remainder. */
TEST(part_joins_its_remainder)
{
	const struct vma want[] = {
		{ SRC, SRC + bytes(8), "rw-p", 0, 0 },
		{ SRC + bytes(16), SRC + bytes(32), "rw-p", 0, 0 },
	};

	ASSERT_EQ(SRC, map_anon(SRC, bytes(24)));
	ASSERT_EQ(SRC + bytes(24), move_to(SRC + bytes(8), bytes(8), bytes(8),
					   SRC + bytes(24)));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(40), want, 2));
	EXPECT_OK(check_zero(SRC + bytes(16), bytes(16)));
}

/* Pages that are there keep their offset, which fits only at their old place. */
TEST(touched_part_stays_on_its_own)
{
	const struct vma want[] = {
		{ SRC, SRC + bytes(8), "rw-p", 0, 0 },
		{ SRC + bytes(16), SRC + bytes(24), "rw-p", 0, 0 },
		{ SRC + bytes(24), SRC + bytes(32), "rw-p", 0, 0 },
	};

	use_small_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(24)));
	stamp_range(SRC, bytes(24), 1);
	ASSERT_EQ(SRC + bytes(24), move_to(SRC + bytes(8), bytes(8), bytes(8),
					   SRC + bytes(24)));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(40), want, 3));
	EXPECT_OK(check_stamps(SRC + bytes(24), bytes(8), 9));
	EXPECT_OK(check_stamps(SRC + bytes(16), bytes(8), 17));
}

/* A shrinking move to right behind the tail that it cuts off. */
TEST(shrinking_move_behind_its_tail)
{
	const struct vma want = {
		SRC + bytes(16), SRC + bytes(24), "rw-p", 0, 0
	};

	ASSERT_EQ(SRC, map_anon(SRC, bytes(16)));
	ASSERT_EQ(SRC + bytes(16), move_to(SRC, bytes(16), bytes(8),
					   SRC + bytes(16)));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(32), &want, 1));
	EXPECT_OK(check_zero(SRC + bytes(16), bytes(8)));
	stamp_range(SRC + bytes(16), bytes(8), 1);
	EXPECT_OK(check_stamps(SRC + bytes(16), bytes(8), 1));
}

/* With DONTUNMAP old and new place stay apart even where they touch. */
TEST(kept_source_stays_apart)
{
	struct vma vma[2];

	use_small_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(8)));
	ASSERT_EQ(SRC + bytes(8), do_mremap(SRC, bytes(8), bytes(8),
					    FIXED | DONTUNMAP, SRC + bytes(8)));
	stamp_range(SRC, bytes(16), 1);
	EXPECT_OK(check_stamps(SRC, bytes(16), 1));
	ASSERT_LE(1, read_vmas(SRC, SRC + bytes(16), vma, 2));
	ASSERT_EQ(0, munmap(at(SRC), bytes(8)));
	EXPECT_OK(check_stamps(SRC + bytes(8), bytes(8), 9));
}

/*
 * What is left behind empty is like a mapping just made there, wherever its pages
 * came from. Stock keeps the offset.
 */
TEST(kept_source_joins_what_is_mapped_beside_mended)
{
	const struct vma want = { SRC, SRC + bytes(16), "rw-p", 0, 0 };

	SKIP_STOCK_BUG();
	use_small_pages();
	ASSERT_EQ(AWAY, map_anon(AWAY, bytes(8)));
	stamp_range(AWAY, bytes(8), 1);
	ASSERT_EQ(SRC, move_to(AWAY, bytes(8), bytes(8), SRC));
	ASSERT_EQ(AWAY, do_mremap(SRC, bytes(8), bytes(8), FIXED | DONTUNMAP,
				  AWAY));
	ASSERT_EQ(SRC + bytes(8), map_anon(SRC + bytes(8), bytes(8)));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(16), &want, 1));
	EXPECT_OK(check_stamps(AWAY, bytes(8), 1));
	EXPECT_OK(check_zero(SRC, bytes(16)));
}

TEST_HARNESS_MAIN
