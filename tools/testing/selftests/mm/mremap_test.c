// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap(2) does to a mapping: every backing x every placement x every
 * operation. After each: the contents of every page, that pages nobody touched
 * are still untouched, the layout, the neighbours and the counters.
 *
 * A mapping's pages are numbered from its start; contents follow the number:
 * some pages are written through the mapping, some come from the file below
 * it, the rest read as zero.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define WRITTEN_ID	0x100000	/* + page: written through the mapping */
#define FILE_ID		0x200000	/* + page: was in the file before */
#define LATER_ID	0x300000	/* + page: written after the operation */

#define FILE_OFFSET_PAGES	4
#define MAX_PAGES		2048

enum backing {
	ANON,
	ANON_HUGE,
	ANON_LOCKED,
	ANON_SHARED,
	MEMFD_SHARED,
	MEMFD_PRIVATE,
	FILE_SHARED,
};

enum placement {
	/* Source and destination at different offsets of a page table. */
	PAGES,
	/* At the same odd offset, tables shared with neighbours. */
	CONGRUENT,
	/* The same with no neighbours: the ends' tables may move whole. */
	CONGRUENT_ALONE,
	/* Whole page tables. */
	TABLES,
};

FIXTURE(move)
{
	unsigned long src;
	unsigned long dst;
	size_t pages;
	size_t step;		/* pages to grow or to shrink by */
	int fd;
	unsigned long inode;
	bool guard_above;
	long huge_kb;
	struct counters before;
	struct counters after;
};

FIXTURE_VARIANT(move)
{
	enum backing backing;
	enum placement placement;
};

#define PLACED(name, id, place, PLACE)					\
	FIXTURE_VARIANT_ADD(move, name##_##place) { id, PLACE }

/* All placements where page tables matter most, ends and middle elsewhere. */
PLACED(anon, ANON, pages, PAGES);
PLACED(anon, ANON, congruent, CONGRUENT);
PLACED(anon, ANON, congruent_alone, CONGRUENT_ALONE);
PLACED(anon, ANON, tables, TABLES);
PLACED(huge, ANON_HUGE, pages, PAGES);
PLACED(huge, ANON_HUGE, congruent, CONGRUENT);
PLACED(huge, ANON_HUGE, congruent_alone, CONGRUENT_ALONE);
PLACED(huge, ANON_HUGE, tables, TABLES);
PLACED(locked, ANON_LOCKED, pages, PAGES);
PLACED(locked, ANON_LOCKED, tables, TABLES);
PLACED(anon_shared, ANON_SHARED, pages, PAGES);
PLACED(anon_shared, ANON_SHARED, congruent, CONGRUENT);
PLACED(memfd_shared, MEMFD_SHARED, pages, PAGES);
PLACED(memfd_shared, MEMFD_SHARED, congruent, CONGRUENT);
PLACED(memfd_shared, MEMFD_SHARED, congruent_alone, CONGRUENT_ALONE);
PLACED(memfd_shared, MEMFD_SHARED, tables, TABLES);
PLACED(memfd_private, MEMFD_PRIVATE, pages, PAGES);
PLACED(memfd_private, MEMFD_PRIVATE, congruent_alone, CONGRUENT_ALONE);
PLACED(file_shared, FILE_SHARED, pages, PAGES);
PLACED(file_shared, FILE_SHARED, tables, TABLES);

#define SELF	FIXTURE_DATA(move) *self
#define VARIANT	const FIXTURE_VARIANT(move) *variant
/* pagemap of the source before the operation. */
static uint64_t source_bits[MAX_PAGES];

static bool is_shared(VARIANT)
{
	return variant->backing == ANON_SHARED ||
	       variant->backing == MEMFD_SHARED ||
	       variant->backing == FILE_SHARED;
}

static bool is_file(VARIANT)
{
	return variant->backing >= MEMFD_SHARED;
}

static bool has_neighbours(VARIANT)
{
	return variant->placement != CONGRUENT_ALONE;
}

/* Enough pages at both ends and around every page table boundary. */
static bool is_written(SELF, size_t page)
{
	const size_t in_table = (self->src / psize() + page) %
				(pmd_span() / psize());

	if (page >= self->pages)
		return false;
	return page % 32 < 2 || page + 2 >= self->pages || in_table < 2 ||
	       in_table + 2 >= pmd_span() / psize();
}

static bool is_in_file(VARIANT, size_t page)
{
	return is_file(variant) && page % 8 == 1;
}

/* That all the other pages are untouched shows in pagemap; reading a few does. */
static bool is_blank_read(size_t page)
{
	return page % 64 == 6;
}

static int open_file(VARIANT)
{
	char path[] = "mremap_test.XXXXXX";
	int fd;

	if (variant->backing != FILE_SHARED)
		return memfd_create("mremap_test", 0);
	fd = mkstemp(path);
	if (fd >= 0)
		unlink(path);
	return fd;
}

static void fill_file(SELF, VARIANT, size_t pages)
{
	const size_t len = (FILE_OFFSET_PAGES + pages) * psize();
	char *file;

	if (ftruncate(self->fd, len))
		return;
	file = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	for (size_t page = 0; page < pages; page++)
		if (is_in_file(variant, page))
			stamp((unsigned long)file +
			      (FILE_OFFSET_PAGES + page) * psize(),
			      FILE_ID + page);
	munmap(file, len);
}

/* Maps pages [first, first + nr) of the backing at addr. */
static unsigned long map_pages(SELF, VARIANT, unsigned long addr, size_t first,
			       size_t nr)
{
	const int flags = is_shared(variant) ? MAP_SHARED : MAP_PRIVATE;

	if (is_file(variant))
		return map_at(addr, nr * psize(), PROT_READ | PROT_WRITE, flags,
			      self->fd, (FILE_OFFSET_PAGES + first) * psize());
	return map_at(addr, nr * psize(), PROT_READ | PROT_WRITE,
		      flags | MAP_ANONYMOUS, -1, 0);
}

/* The madvise() or mlock() that belongs to the backing. */
static int advise(VARIANT, unsigned long addr, size_t len)
{
	if (variant->backing == ANON_HUGE)
		return madvise(at(addr), len, MADV_HUGEPAGE);
	if (variant->backing == ANON_LOCKED)
		return mlock(at(addr), len);
	return 0;
}

static void choose_place(SELF, VARIANT)
{
	const size_t table = pmd_span() / psize();
	const unsigned long src = WINDOW + GB, dst = WINDOW + 2 * GB;

	switch (variant->placement) {
	case PAGES:
		self->src = src + pmd_span() - 5 * psize();
		self->dst = dst + pmd_span() - 2 * psize();
		self->pages = table + 9;
		self->step = 3;
		break;
	case CONGRUENT:
	case CONGRUENT_ALONE:
		self->src = src + pmd_span() - 5 * psize();
		self->dst = dst + 3 * pmd_span() - 5 * psize();
		self->pages = 5 + 2 * table + 7;
		self->step = table + 2;
		break;
	case TABLES:
		self->src = src + 2 * pmd_span();
		self->dst = dst + 4 * pmd_span();
		self->pages = 2 * table;
		self->step = table;
		break;
	}
}

static bool thp_available(void)
{
	char enabled[64];

	return read_setting("/sys/kernel/mm/transparent_hugepage/enabled",
			    enabled, sizeof(enabled)) &&
	       !strstr(enabled, "[never]");
}

FIXTURE_SETUP(move)
{
	struct vma vma;

	self->fd = -1;
	choose_place(self, variant);
	if (variant->backing == ANON_HUGE && !thp_available())
		SKIP(return, "needs transparent huge pages");
	if (variant->backing != ANON_HUGE)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (is_file(variant)) {
		self->fd = open_file(variant);
		ASSERT_LE(0, self->fd);
		fill_file(self, variant, self->pages + self->step + 1);
	}

	ASSERT_EQ(self->src, map_pages(self, variant, self->src, 0, self->pages));
	ASSERT_EQ(0, advise(variant, self->src, self->pages * psize()));
	for (size_t page = 0; page < self->pages; page++)
		if (is_written(self, page))
			stamp(self->src + page * psize(), WRITTEN_ID + page);
	ASSERT_TRUE(find_vma(self->src, &vma));
	self->inode = vma.inode;

	if (has_neighbours(variant)) {
		guard_page(self->src - psize());
		guard_page(self->src + self->pages * psize());
		self->guard_above = true;
	}
}

FIXTURE_TEARDOWN(move)
{
	if (self->fd >= 0)
		close(self->fd);
}

/* ---- steps ---- */

static unsigned long page_addr(unsigned long base, size_t page)
{
	return base + page * psize();
}

static void free_above(SELF)
{
	if (self->guard_above)
		munmap(at(page_addr(self->src, self->pages)), psize());
	self->guard_above = false;
}

static void block_above(SELF)
{
	if (!self->guard_above)
		guard_page(page_addr(self->src, self->pages));
	self->guard_above = true;
}

/* Guards around the destination of pages [first, first + nr). */
static void guard_dst(SELF, VARIANT, size_t first, size_t nr)
{
	if (!has_neighbours(variant))
		return;
	guard_page(page_addr(self->dst, first) - psize());
	guard_page(page_addr(self->dst, first + nr));
}

/* Remembers what the operation is compared with: the last step before it. */
static void begin(SELF, VARIANT)
{
	struct counters warm_up;

	pagemap_bits(self->src, self->pages, source_bits);
	if (variant->backing == ANON_HUGE)
		self->huge_kb = smaps_kb(self->src, "AnonHugePages");
	read_counters(&warm_up);
	read_counters(&self->before);
}

/* The operation; the checks' own page faults come after its counters. */
static unsigned long remap(SELF, unsigned long addr, size_t pages,
			   size_t new_pages, unsigned long flags,
			   unsigned long to)
{
	unsigned long ret = do_mremap(addr, bytes(pages), bytes(new_pages),
				      flags, to);

	read_counters(&self->after);
	return ret;
}

/* ---- checks ---- */

struct layout {
	struct vma vma[8];
	int nr;
};

static void add_guard(struct layout *want, unsigned long addr)
{
	want->vma[want->nr++] = (struct vma){ addr, addr + psize(), "r--p", 0, 0 };
}

static void add_pages(SELF, VARIANT, struct layout *want, unsigned long addr,
		      size_t first, size_t nr)
{
	struct vma vma = { .start = addr, .end = page_addr(addr, nr) };

	strcpy(vma.perms, is_shared(variant) ? "rw-s" : "rw-p");
	if (is_file(variant))
		vma.offset = bytes(FILE_OFFSET_PAGES + first);
	else if (is_shared(variant))
		vma.offset = bytes(first);
	vma.inode = self->inode;
	want->vma[want->nr++] = vma;
}

static void check_around(META, unsigned long start, unsigned long end,
			 const struct layout *want)
{
	const size_t margin = pmd_span();

	EXPECT_OK(check_vmas(start - margin, end + margin, want->vma, want->nr));
}

/*
 * The source's surroundings hold its guards and up to two pieces of it, pages
 * [a, a_end) and [b, b_end).
 */
static void check_src_pieces(META, SELF, VARIANT, size_t a, size_t a_end,
			     size_t b, size_t b_end)
{
	struct layout want = { .nr = 0 };

	if (has_neighbours(variant))
		add_guard(&want, self->src - psize());
	if (a < a_end)
		add_pages(self, variant, &want, page_addr(self->src, a), a, a_end - a);
	if (b < b_end)
		add_pages(self, variant, &want, page_addr(self->src, b), b, b_end - b);
	if (self->guard_above)
		add_guard(&want, page_addr(self->src, self->pages));
	check_around(_metadata, self->src, page_addr(self->src, self->pages),
		     &want);

	if (has_neighbours(variant))
		EXPECT_OK(check_guard_page(self->src - psize()));
	if (self->guard_above)
		EXPECT_OK(check_guard_page(page_addr(self->src, self->pages)));
}

static void check_src_gone(META, SELF, VARIANT)
{
	check_src_pieces(_metadata, self, variant, 0, 0, 0, 0);
}

static void check_src_whole(META, SELF, VARIANT)
{
	check_src_pieces(_metadata, self, variant, 0, self->pages, 0, 0);
}

/* The destination holds pages [first, first + nr) between its guards. */
static void check_dst(META, SELF, VARIANT, size_t first, size_t nr)
{
	const unsigned long addr = page_addr(self->dst, first);
	struct layout want = { .nr = 0 };

	if (has_neighbours(variant))
		add_guard(&want, addr - psize());
	add_pages(self, variant, &want, addr, first, nr);
	if (has_neighbours(variant))
		add_guard(&want, page_addr(addr, nr));
	check_around(_metadata, addr, page_addr(addr, nr), &want);

	if (has_neighbours(variant)) {
		EXPECT_OK(check_guard_page(addr - psize()));
		EXPECT_OK(check_guard_page(page_addr(addr, nr)));
	}
}

/* A place that the kernel chose: exactly one mapping with the pages. */
static void check_chosen(META, SELF, VARIANT, unsigned long addr, size_t nr)
{
	struct layout want = { .nr = 0 };

	add_pages(self, variant, &want, addr, 0, nr);
	EXPECT_OK(check_vmas(addr, page_addr(addr, nr), want.vma, want.nr));
}

static bool is_readable(unsigned long addr)
{
	char byte;
	struct iovec local = { &byte, 1 }, remote = { at(addr), 1 };

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1;
}

/* Reads pages [first, first + nr) at addr, with or without what was written. */
static void check_contents(META, SELF, VARIANT, unsigned long addr,
			   size_t first, size_t nr, bool written)
{
	for (size_t page = first; page < first + nr; page++, addr += psize()) {
		if (written && is_written(self, page)) {
			ASSERT_OK(check_stamp(addr, WRITTEN_ID + page));
		} else if (is_in_file(variant, page)) {
			ASSERT_OK(check_stamp(addr, FILE_ID + page));
		} else if (!is_blank_read(page)) {
			continue;
		} else if (variant->backing == ANON_SHARED &&
			   page >= self->pages) {
			/* The object did not grow with the mapping. */
			ASSERT_FALSE(is_readable(addr));
		} else {
			ASSERT_OK(check_zero(addr, psize()));
		}
	}
}

static void check_file_page(META, SELF, size_t page, unsigned long id)
{
	const off_t offset = bytes(FILE_OFFSET_PAGES + page);
	void *file = mmap(NULL, psize(), PROT_READ, MAP_SHARED, self->fd, offset);

	ASSERT_NE(MAP_FAILED, file);
	EXPECT_OK(check_stamp((unsigned long)file, id));
	munmap(file, psize());
}

/* New writes land in the pages they are meant for. */
static void check_writable(META, SELF, VARIANT, unsigned long addr,
			   size_t first, size_t nr)
{
	const size_t in_file = first + (9 - first % 8) % 8;

	stamp(addr, LATER_ID + first);
	EXPECT_OK(check_stamp(addr, LATER_ID + first));
	if (!is_file(variant) || in_file >= first + nr)
		return;
	stamp(page_addr(addr, in_file - first), LATER_ID + in_file);
	check_file_page(_metadata, self, in_file,
			(is_shared(variant) ? LATER_ID : FILE_ID) + in_file);
}

/* Pages [first, first + nr) of the source are now at addr, with all they had. */
static void check_moved(META, SELF, VARIANT, unsigned long addr, size_t first,
			size_t nr)
{
	const size_t old_end = self->pages < first + nr ? self->pages : first + nr;
	const size_t grown = first + nr - old_end;

	ASSERT_OK(check_pagemap(addr, old_end - first, source_bits + first));
	if (variant->backing == ANON_LOCKED) {
		EXPECT_EQ(grown, count_pagemap(page_addr(addr, old_end - first),
					       bytes(grown), PM_PRESENT));
	} else {
		EXPECT_OK(check_pagemap(page_addr(addr, old_end - first), grown,
					NULL));
	}
	check_contents(_metadata, self, variant, addr, first, nr, true);
	check_writable(_metadata, self, variant, addr, first, nr);
}

/* The place where the pages were is mapped and has lost them. */
static void check_emptied(META, SELF, VARIANT, unsigned long addr)
{
	EXPECT_OK(check_pagemap(addr, self->pages, NULL));
	check_contents(_metadata, self, variant, addr, 0, self->pages,
		       is_shared(variant));
}

/* Huge pages stay huge when source and destination are congruent. */
static void check_huge(META, SELF, VARIANT, unsigned long addr)
{
	if (variant->backing != ANON_HUGE)
		return;
	if (variant->placement == TABLES)
		EXPECT_LT(0, self->huge_kb);
	EXPECT_EQ(variant->placement == PAGES ? 0 : self->huge_kb,
		  smaps_kb(addr, "AnonHugePages"));
}

/* The counters changed by this many mapped, and as many locked, pages. */
static void check_grown_by(META, SELF, VARIANT, long pages, long locked)
{
	const long kb = psize() / 1024;
	const struct counters *was = &self->before, *is = &self->after;

	if (variant->backing != ANON_LOCKED)
		locked = 0;
	EXPECT_EQ(was->size + pages * kb, is->size);
	EXPECT_EQ(was->data + (is_shared(variant) ? 0 : pages * kb), is->data);
	EXPECT_EQ(was->locked + locked * kb, is->locked);
	EXPECT_EQ(was->peak > is->size ? was->peak : is->size, is->peak);
}

static void check_rss_same(META, SELF)
{
	EXPECT_EQ(self->before.rss_anon, self->after.rss_anon);
	EXPECT_EQ(self->before.rss_file, self->after.rss_file);
	EXPECT_EQ(self->before.rss_shmem, self->after.rss_shmem);
}

/* ---- in place ---- */

TEST_F(move, same_size_is_a_no_op)
{
	begin(self, variant);
	ASSERT_EQ(self->src, remap(self, self->src, self->pages, self->pages,
				   MREMAP_MAYMOVE, 0));
	check_grown_by(_metadata, self, variant, 0, 0);
	check_rss_same(_metadata, self);
	check_src_whole(_metadata, self, variant);
	check_moved(_metadata, self, variant, self->src, 0, self->pages);
}

TEST_F(move, shrink_in_place)
{
	const size_t left = self->pages - self->step;

	begin(self, variant);
	ASSERT_EQ(self->src, remap(self, self->src, self->pages, left, 0, 0));
	check_grown_by(_metadata, self, variant, -self->step, -self->step);
	check_src_pieces(_metadata, self, variant, 0, left, 0, 0);
	check_moved(_metadata, self, variant, self->src, 0, left);
}

/* The length may end inside the mapping: the pages behind it stay. */
TEST_F(move, shrink_middle)
{
	const size_t keep = 3, cut_end = 3 + self->step;

	begin(self, variant);
	ASSERT_EQ(self->src, remap(self, self->src, cut_end, keep,
				   MREMAP_MAYMOVE, 0));
	check_grown_by(_metadata, self, variant, -self->step, -self->step);
	check_src_pieces(_metadata, self, variant, 0, keep, cut_end,
			 self->pages);
	check_moved(_metadata, self, variant, self->src, 0, keep);
	check_moved(_metadata, self, variant, page_addr(self->src, cut_end),
		    cut_end, self->pages - cut_end);
}

TEST_F(move, grow_in_place)
{
	const size_t more = self->pages + self->step;
	struct layout want = { .nr = 0 };

	free_above(self);
	begin(self, variant);
	ASSERT_EQ(self->src, remap(self, self->src, self->pages, more, 0, 0));
	check_grown_by(_metadata, self, variant, self->step, self->step);
	if (has_neighbours(variant))
		add_guard(&want, self->src - psize());
	add_pages(self, variant, &want, self->src, 0, more);
	check_around(_metadata, self->src, page_addr(self->src, more), &want);
	check_moved(_metadata, self, variant, self->src, 0, more);
}

/* Growing over a hole, up to what continues the mapping, makes it one again. */
TEST_F(move, grow_into_next)
{
	const size_t more = self->pages + self->step;
	const unsigned long next = page_addr(self->src, more);
	/* Shared anonymous memory does not grow with its mapping. */
	const bool has_next_page = variant->backing != ANON_SHARED;
	struct layout want = { .nr = 0 };

	free_above(self);
	ASSERT_EQ(self->src, remap(self, self->src, self->pages, more + 1, 0, 0));
	if (has_next_page)
		stamp(next, LATER_ID + more);
	ASSERT_EQ(0, munmap(at(page_addr(self->src, self->pages)),
			    bytes(self->step)));
	ASSERT_EQ(2, read_vmas(self->src, next + psize(), NULL, 0));
	begin(self, variant);
	ASSERT_EQ(self->src, remap(self, self->src, self->pages, more, 0, 0));
	check_grown_by(_metadata, self, variant, self->step, self->step);

	if (has_neighbours(variant))
		add_guard(&want, self->src - psize());
	add_pages(self, variant, &want, self->src, 0, more + 1);
	check_around(_metadata, self->src, next + psize(), &want);
	check_moved(_metadata, self, variant, self->src, 0, more);
	if (has_next_page)
		EXPECT_OK(check_stamp(next, LATER_ID + more));
}

/* ---- moves to a place the kernel chooses ---- */

TEST_F(move, grow_blocked_above)
{
	const size_t more = self->pages + self->step;
	unsigned long to;

	block_above(self);
	begin(self, variant);
	to = remap(self, self->src, self->pages, more, MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	ASSERT_NE(self->src, to);
	check_grown_by(_metadata, self, variant, self->step, self->step);
	check_src_gone(_metadata, self, variant);
	check_chosen(_metadata, self, variant, to, more);
	check_moved(_metadata, self, variant, to, 0, more);
}

/* Growing only the front part of a mapping has to move it. */
TEST_F(move, grow_front_part)
{
	const size_t part = self->pages - 3, more = self->pages + self->step;
	struct layout want = { .nr = 0 };
	unsigned long to;

	begin(self, variant);
	to = remap(self, self->src, part, more, MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	check_grown_by(_metadata, self, variant, more - part, more - part);
	check_src_pieces(_metadata, self, variant, part, self->pages, 0, 0);
	add_pages(self, variant, &want, to, 0, more);
	EXPECT_OK(check_vmas(to, page_addr(to, more), want.vma, want.nr));
	ASSERT_OK(check_pagemap(to, part, source_bits));
	check_contents(_metadata, self, variant, to, 0, part, true);
	/* Then comes what the object has there, but no private page of it. */
	check_contents(_metadata, self, variant, page_addr(to, part), part,
		       more - part, is_shared(variant));
	check_moved(_metadata, self, variant, page_addr(self->src, part), part,
		    self->pages - part);
	check_writable(_metadata, self, variant, to, 0, part);
}

/* ---- MREMAP_FIXED ---- */

TEST_F(move, fixed_to_free_place)
{
	guard_dst(self, variant, 0, self->pages);
	begin(self, variant);
	ASSERT_EQ(self->dst, remap(self, self->src, self->pages, self->pages,
				   FIXED, self->dst));
	check_grown_by(_metadata, self, variant, 0, 0);
	check_rss_same(_metadata, self);
	check_huge(_metadata, self, variant, self->dst);
	check_src_gone(_metadata, self, variant);
	check_dst(_metadata, self, variant, 0, self->pages);
	check_moved(_metadata, self, variant, self->dst, 0, self->pages);
}

/* What is mapped on both sides of the destination survives. */
TEST_F(move, fixed_over_mapping)
{
	const unsigned long low = self->dst - bytes(3);
	const unsigned long end = page_addr(self->dst, self->pages);
	struct layout want = { .nr = 0 };

	map_at(low, end + bytes(3) - low, PROT_READ | PROT_WRITE,
	       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stamp_range(low, end + bytes(3) - low, 1);
	ASSERT_EQ(1, read_vmas(low, end, want.vma, 1));
	begin(self, variant);
	ASSERT_EQ(self->dst, remap(self, self->src, self->pages, self->pages,
				   FIXED, self->dst));

	want.vma[2] = want.vma[0];
	want.vma[0].end = self->dst;
	want.vma[2].start = end;
	want.vma[2].offset += end - low;
	want.nr = 1;
	add_pages(self, variant, &want, self->dst, 0, self->pages);
	want.nr++;
	check_around(_metadata, low, end + bytes(3), &want);
	check_huge(_metadata, self, variant, self->dst);
	check_src_gone(_metadata, self, variant);
	check_moved(_metadata, self, variant, self->dst, 0, self->pages);
	EXPECT_OK(check_stamps(low, bytes(3), 1));
	EXPECT_OK(check_stamps(end, bytes(3), 1 + 3 + self->pages));
}

TEST_F(move, fixed_grow)
{
	const size_t more = self->pages + self->step;

	guard_dst(self, variant, 0, more);
	begin(self, variant);
	ASSERT_EQ(self->dst, remap(self, self->src, self->pages, more, FIXED,
				   self->dst));
	check_grown_by(_metadata, self, variant, self->step, self->step);
	check_src_gone(_metadata, self, variant);
	check_dst(_metadata, self, variant, 0, more);
	check_moved(_metadata, self, variant, self->dst, 0, more);
}

TEST_F(move, fixed_shrink)
{
	const size_t left = self->pages - self->step;

	guard_dst(self, variant, 0, left);
	begin(self, variant);
	ASSERT_EQ(self->dst, remap(self, self->src, self->pages, left, FIXED,
				   self->dst));
	check_grown_by(_metadata, self, variant, -self->step, -self->step);
	check_src_gone(_metadata, self, variant);
	check_dst(_metadata, self, variant, 0, left);
	check_moved(_metadata, self, variant, self->dst, 0, left);
}

TEST_F(move, there_and_back)
{
	begin(self, variant);
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(self->dst, remap(self, self->src, self->pages,
					   self->pages, FIXED, self->dst));
		ASSERT_EQ(self->src, remap(self, self->dst, self->pages,
					   self->pages, FIXED, self->src));
	}
	check_grown_by(_metadata, self, variant, 0, 0);
	check_rss_same(_metadata, self);
	check_huge(_metadata, self, variant, self->src);
	check_src_whole(_metadata, self, variant);
	EXPECT_OK(check_unmapped(self->dst, bytes(self->pages)));
	check_moved(_metadata, self, variant, self->src, 0, self->pages);
}

/* ---- parts of a mapping ---- */

static void move_part(META, SELF, VARIANT, size_t first, size_t nr)
{
	const unsigned long to = page_addr(self->dst, first);
	const size_t end = first + nr;

	guard_dst(self, variant, first, nr);
	begin(self, variant);
	ASSERT_EQ(to, remap(self, page_addr(self->src, first), nr, nr, FIXED,
			    to));
	check_grown_by(_metadata, self, variant, 0, 0);
	check_rss_same(_metadata, self);
	check_src_pieces(_metadata, self, variant, 0, first, end, self->pages);
	check_dst(_metadata, self, variant, first, nr);
	check_moved(_metadata, self, variant, to, first, nr);
	if (first)
		check_moved(_metadata, self, variant, self->src, 0, first);
	if (end < self->pages)
		check_moved(_metadata, self, variant, page_addr(self->src, end),
			    end, self->pages - end);
}

static size_t middle_page(SELF, VARIANT)
{
	return variant->placement == TABLES ? self->pages / 2 :
					      self->pages / 2 + 1;
}

TEST_F(move, head)
{
	move_part(_metadata, self, variant, 0, middle_page(self, variant));
}

TEST_F(move, middle)
{
	move_part(_metadata, self, variant, 3, self->pages - 6);
}

TEST_F(move, tail)
{
	const size_t first = middle_page(self, variant);

	move_part(_metadata, self, variant, first, self->pages - first);
}

TEST_F(move, one_page)
{
	move_part(_metadata, self, variant, middle_page(self, variant), 1);
}

/* ---- MREMAP_DONTUNMAP ---- */

static void check_dontunmap(META, SELF, VARIANT)
{
	/* The lock goes with the pages, so as much is locked as before. */
	check_grown_by(_metadata, self, variant, self->pages, 0);
	check_rss_same(_metadata, self);
	check_src_whole(_metadata, self, variant);
	if (variant->backing == ANON_LOCKED)
		EXPECT_FALSE(has_vmflag(self->src, "lo"));
}

TEST_F(move, dontunmap)
{
	unsigned long to;

	begin(self, variant);
	to = remap(self, self->src, self->pages, self->pages, DONTUNMAP, 0);
	ASSERT_EQ(0, error_of(to));
	check_dontunmap(_metadata, self, variant);
	check_chosen(_metadata, self, variant, to, self->pages);
	check_moved(_metadata, self, variant, to, 0, self->pages);
	if (!is_shared(variant))
		check_emptied(_metadata, self, variant, self->src);
}

TEST_F(move, dontunmap_hint)
{
	unsigned long to;

	begin(self, variant);
	to = remap(self, self->src, self->pages, self->pages, DONTUNMAP,
		   self->dst);
	ASSERT_EQ(0, error_of(to));
	/* A file system may place mappings of its own files as it likes. */
	if (variant->backing != FILE_SHARED)
		EXPECT_EQ(self->dst, to);
	check_dontunmap(_metadata, self, variant);
	check_chosen(_metadata, self, variant, to, self->pages);
	check_moved(_metadata, self, variant, to, 0, self->pages);
}

/* A hint is no order: what is mapped there stays. */
TEST_F(move, dontunmap_hint_taken)
{
	unsigned long to;

	guard_page(self->dst);
	begin(self, variant);
	to = remap(self, self->src, self->pages, self->pages, DONTUNMAP, self->dst);
	ASSERT_EQ(0, error_of(to));
	ASSERT_NE(self->dst, to);
	check_dontunmap(_metadata, self, variant);
	EXPECT_OK(check_guard_page(self->dst));
	check_moved(_metadata, self, variant, to, 0, self->pages);
}

TEST_F(move, dontunmap_fixed)
{
	guard_dst(self, variant, 0, self->pages);
	begin(self, variant);
	ASSERT_EQ(self->dst, remap(self, self->src, self->pages, self->pages,
				   FIXED | DONTUNMAP, self->dst));
	check_dontunmap(_metadata, self, variant);
	check_huge(_metadata, self, variant, self->dst);
	check_dst(_metadata, self, variant, 0, self->pages);
	check_emptied(_metadata, self, variant, self->src);
	check_moved(_metadata, self, variant, self->dst, 0, self->pages);
}

/* Both mappings stay good for use and can be moved on. */
TEST_F(move, dontunmap_then_move_source)
{
	const unsigned long third = WINDOW + 3 * GB;

	begin(self, variant);
	ASSERT_EQ(self->dst, remap(self, self->src, self->pages, self->pages,
				   FIXED | DONTUNMAP, self->dst));
	stamp(self->src, WRITTEN_ID);
	ASSERT_EQ(third, remap(self, self->src, self->pages, self->pages, FIXED,
			       third));
	check_src_gone(_metadata, self, variant);
	EXPECT_OK(check_stamp(third, WRITTEN_ID));
	check_moved(_metadata, self, variant, self->dst, 0, self->pages);
}

/* ---- old size 0: one more mapping of the same pages ---- */

TEST_F(move, duplicate)
{
	unsigned long to;

	begin(self, variant);
	to = remap(self, self->src, 0, self->pages, MREMAP_MAYMOVE, 0);
	if (!is_shared(variant)) {
		ASSERT_EQ(EINVAL, error_of(to));
		check_grown_by(_metadata, self, variant, 0, 0);
		check_src_whole(_metadata, self, variant);
		check_moved(_metadata, self, variant, self->src, 0, self->pages);
		return;
	}
	ASSERT_EQ(0, error_of(to));
	check_grown_by(_metadata, self, variant, self->pages, 0);
	check_src_whole(_metadata, self, variant);
	check_chosen(_metadata, self, variant, to, self->pages);
	EXPECT_OK(check_pagemap(to, self->pages, NULL));
	EXPECT_OK(check_pagemap(self->src, self->pages, source_bits));
	check_contents(_metadata, self, variant, to, 0, self->pages, true);
	stamp(to, LATER_ID);
	EXPECT_OK(check_stamp(self->src, LATER_ID));
}

TEST_F(move, duplicate_part_fixed)
{
	const size_t first = 3, nr = self->pages - 6;
	const unsigned long to = page_addr(self->dst, first);

	if (!is_shared(variant)) {
		EXPECT_EQ(EINVAL, error_of(remap(self, self->src, 0, nr, FIXED,
						 to)));
		return;
	}
	guard_dst(self, variant, first, nr);
	begin(self, variant);
	ASSERT_EQ(to, remap(self, page_addr(self->src, first), 0, nr, FIXED,
			    to));
	check_grown_by(_metadata, self, variant, nr, 0);
	check_src_whole(_metadata, self, variant);
	check_dst(_metadata, self, variant, first, nr);
	check_contents(_metadata, self, variant, to, first, nr, true);
	check_contents(_metadata, self, variant, self->src, 0, self->pages, true);
}

/* ---- whole page middle directories ---- */

FIXTURE(wide)
{
	int fd;
	size_t len;
};

FIXTURE_VARIANT(wide)
{
	bool memfd;
	size_t dst_offset;	/* in pages, from a directory boundary */
};

FIXTURE_VARIANT_ADD(wide, anon_aligned) { false, 0 };
FIXTURE_VARIANT_ADD(wide, anon_tables) { false, 512 };
FIXTURE_VARIANT_ADD(wide, anon_pages) { false, 7 };
FIXTURE_VARIANT_ADD(wide, memfd_aligned) { true, 0 };

#define WIDE_SRC	(WINDOW + 4 * GB)
#define WIDE_DST	(WINDOW + 12 * GB)

FIXTURE_SETUP(wide)
{
	self->fd = -1;
	self->len = pud_span() + bytes(5);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (variant->memfd) {
		self->fd = memfd_create("mremap_test", 0);
		ASSERT_EQ(0, ftruncate(self->fd, self->len));
		ASSERT_EQ(WIDE_SRC, map_at(WIDE_SRC, self->len,
					   PROT_READ | PROT_WRITE, MAP_SHARED,
					   self->fd, 0));
	} else {
		ASSERT_EQ(WIDE_SRC, map_at(WIDE_SRC, self->len,
					   PROT_READ | PROT_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS |
					   MAP_NORESERVE, -1, 0));
	}
}

FIXTURE_TEARDOWN(wide)
{
	if (self->fd >= 0)
		close(self->fd);
}

/* A page of every sixteenth table, at a different place in each. */
static size_t wide_page(int i)
{
	return i * pmd_span() * 16 + bytes(i * 11);
}

#define WIDE_PAGES	32

TEST_F(wide, move_and_back)
{
	const unsigned long dst = WIDE_DST + bytes(variant->dst_offset);
	unsigned long place[] = { WIDE_SRC, dst };
	struct counters before, after;
	long page_tables = 0;

	for (int i = 0; i < WIDE_PAGES; i++)
		stamp(WIDE_SRC + wide_page(i), i);
	stamp(WIDE_SRC + pud_span() + bytes(4), WIDE_PAGES);
	guard_page(WIDE_SRC - psize());
	guard_page(WIDE_SRC + self->len);
	guard_page(dst - psize());
	guard_page(dst + self->len);
	read_counters(&before);
	for (int round = 0; round < 4; round++) {
		const unsigned long from = place[round % 2];
		const unsigned long to = place[!(round % 2)];

		read_counters(&before);
		ASSERT_EQ(to, move_to(from, self->len, self->len, to));
		read_counters(&after);
		EXPECT_EQ(before.size, after.size);
		EXPECT_EQ(before.rss_anon, after.rss_anon);
		EXPECT_EQ(before.rss_shmem, after.rss_shmem);
		EXPECT_OK(check_unmapped(from, self->len));
		for (int i = 0; i < WIDE_PAGES; i++)
			ASSERT_OK(check_stamp(to + wide_page(i), i));
		EXPECT_OK(check_stamp(to + pud_span() + bytes(4), WIDE_PAGES));
		EXPECT_FALSE(is_present(to + psize()));
		EXPECT_FALSE(is_present(to + pud_span()));
		/* By then the test itself has touched what it needs. */
		if (round == 1)
			page_tables = after.page_tables;
	}
	/* A table that straddles two leaves both, and these two each again. */
	if (variant->dst_offset % 512 == 0)
		EXPECT_EQ(page_tables, after.page_tables);
	EXPECT_OK(check_guard_page(WIDE_SRC - psize()));
	EXPECT_OK(check_guard_page(WIDE_SRC + self->len));
	EXPECT_OK(check_guard_page(dst - psize()));
	EXPECT_OK(check_guard_page(dst + self->len));
}

/* ---- where a moved mapping joins its neighbours ---- */

/* Untouched anonymous memory takes its offset from where it is, so it merges. */
TEST(untouched_merges_with_neighbours)
{
	const unsigned long src = WINDOW + GB, dst = WINDOW + 2 * GB;
	const struct vma want = { dst, dst + bytes(6), "rw-p", 0, 0 };

	ASSERT_EQ(src, map_anon(src, bytes(2)));
	ASSERT_EQ(dst, map_anon(dst, bytes(2)));
	ASSERT_EQ(dst + bytes(4), map_anon(dst + bytes(4), bytes(2)));
	ASSERT_EQ(dst + bytes(2), move_to(src, bytes(2), bytes(2),
					  dst + bytes(2)));
	EXPECT_OK(check_unmapped(src, bytes(2)));
	EXPECT_OK(check_vmas(dst, dst + bytes(6), &want, 1));
	EXPECT_OK(check_zero(dst, bytes(6)));
}

/* An untouched mapping moved right beside itself merges with what is left. */
TEST(untouched_part_beside_itself)
{
	const unsigned long src = WINDOW + GB;
	const struct vma want = { src, src + bytes(6), "rw-p", 0, 0 };

	ASSERT_EQ(src, map_anon(src, bytes(6)));
	ASSERT_EQ(src + bytes(6), move_to(src + bytes(4), bytes(2), bytes(2),
					  src + bytes(6)));
	ASSERT_EQ(src + bytes(4), move_to(src + bytes(6), bytes(2), bytes(2),
					  src + bytes(4)));
	EXPECT_OK(check_vmas(src, src + bytes(8), &want, 1));
	EXPECT_OK(check_zero(src, bytes(6)));
}

/* Touched pages moved back between their old neighbours are one mapping again. */
TEST(touched_part_returns)
{
	const unsigned long src = WINDOW + GB, dst = WINDOW + 2 * GB;
	const struct vma want = { src, src + bytes(6), "rw-p", 0, 0 };

	ASSERT_EQ(src, map_anon(src, bytes(6)));
	stamp_range(src, bytes(6), 1);
	ASSERT_EQ(dst, move_to(src + bytes(2), bytes(2), bytes(2), dst));
	EXPECT_EQ(3, read_vmas(WINDOW, WINDOW + WINDOW_SIZE, NULL, 0));
	ASSERT_EQ(src + bytes(2), move_to(dst, bytes(2), bytes(2),
					  src + bytes(2)));
	EXPECT_OK(check_vmas(WINDOW, WINDOW + WINDOW_SIZE, &want, 1));
	EXPECT_OK(check_stamps(src, bytes(6), 1));
}

/* A page table empties and fills as pages leave and come. */
TEST(page_tables_are_not_leaked)
{
	const unsigned long src = WINDOW + GB, dst = WINDOW + 2 * GB;
	const size_t len = 3 * pmd_span();
	struct counters before, after;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	read_counters(&before);
	read_counters(&before);
	for (size_t offset = 0; offset < bytes(20); offset += bytes(5)) {
		ASSERT_EQ(src, map_anon(src, len));
		for (size_t done = 0; done < len; done += pmd_span() / 4)
			stamp(src + done, done);
		ASSERT_EQ(dst + offset, move_to(src, len, len, dst + offset));
		for (size_t done = 0; done < len; done += pmd_span() / 4)
			ASSERT_OK(check_stamp(dst + offset + done, done));
		ASSERT_EQ(0, munmap(at(dst + offset), len));
	}
	read_counters(&after);
	EXPECT_EQ(before.page_tables, after.page_tables);
	EXPECT_EQ(before.size, after.size);
}

/* Whole tables move without a new table: none is allocated, none is left. */
TEST(whole_tables_move_as_they_are)
{
	const unsigned long src = WINDOW + GB;
	const unsigned long dst = src + 64 * pmd_span();
	const size_t len = 8 * pmd_span();
	struct counters before, after;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(src, map_anon(src, len));
	for (size_t done = 0; done < len; done += pmd_span())
		stamp(src + done, done);
	read_counters(&before);
	read_counters(&before);
	ASSERT_EQ(dst, move_to(src, len, len, dst));
	read_counters(&after);
	EXPECT_EQ(before.page_tables, after.page_tables);
	for (size_t done = 0; done < len; done += pmd_span())
		EXPECT_OK(check_stamp(dst + done, done));
}

/* What stays of a mapping and what is dropped share a table: both let go of it. */
TEST(page_table_of_a_shrinking_move_is_freed)
{
	const unsigned long src = WINDOW + GB, dst = WINDOW + 2 * GB;
	struct counters before, after;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(src, map_anon(src, bytes(8)));
	stamp_range(src, bytes(8), 1);
	read_counters(&before);
	read_counters(&before);
	ASSERT_EQ(dst, move_to(src, bytes(8), bytes(4), dst));
	read_counters(&after);
	EXPECT_EQ(before.page_tables, after.page_tables);
	EXPECT_OK(check_stamps(dst, bytes(4), 1));
}

/* ---- old and new place in one mapping ---- */

/* Also what a child inherits, which the mapping has to be known to have pages for. */
static const char *check_inherited(unsigned long addr, size_t len, unsigned long id)
{
	int status = -1;
	pid_t child = fork();

	if (!child)
		_exit(!!check_stamps(addr, len, id));
	if (child < 0 || waitpid(child, &status, 0) != child)
		return "cannot fork";
	return status ? "a child does not find the pages" : NULL;
}

/* What is unmapped cuts the mapping of which a part moves, below or above. */
static void leave_behind(META, size_t from, size_t to, size_t pages)
{
	const unsigned long src = WINDOW + GB;
	const size_t low = from < to ? from : to;
	const size_t high = from < to ? to : from;

	ASSERT_EQ(src, map_anon(src, bytes(16)));
	stamp_range(src, bytes(16), 1);
	ASSERT_EQ(src + bytes(to),
		  do_mremap(src + bytes(from), bytes(pages), bytes(pages),
			    FIXED | DONTUNMAP, src + bytes(to)));
	EXPECT_OK(check_stamps(src, bytes(low), 1));
	EXPECT_OK(check_stamps(src + bytes(low + pages),
			       bytes(high - low - pages), 1 + low + pages));
	EXPECT_OK(check_stamps(src + bytes(high + pages),
			       bytes(16 - high - pages), 1 + high + pages));
	EXPECT_OK(check_stamps(src + bytes(to), bytes(pages), 1 + from));
	EXPECT_OK(check_inherited(src + bytes(to), bytes(pages), 1 + from));
	EXPECT_OK(check_zero(src + bytes(from), bytes(pages)));
	ASSERT_EQ(0, munmap(at(src), bytes(16)));
}

TEST(dontunmap_within_a_mapping)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	for (size_t from = 0; from <= 12; from += 4)
		for (size_t to = 0; to <= 12; to += 4)
			if (from != to)
				leave_behind(_metadata, from, to, 4);
}

/* ---- overlap ---- */

TEST(adjacent_is_no_overlap)
{
	const unsigned long src = WINDOW + GB;

	ASSERT_EQ(src, map_anon(src, bytes(4)));
	stamp_range(src, bytes(4), 1);
	ASSERT_EQ(src + bytes(4), move_to(src, bytes(4), bytes(4),
					  src + bytes(4)));
	EXPECT_OK(check_stamps(src + bytes(4), bytes(4), 1));
	ASSERT_EQ(src, move_to(src + bytes(4), bytes(4), bytes(4), src));
	EXPECT_OK(check_stamps(src, bytes(4), 1));
	EXPECT_OK(check_unmapped(src + bytes(4), bytes(4)));
}

/* Lengths are rounded up to whole pages. */
TEST(lengths_are_rounded_up)
{
	const unsigned long src = WINDOW + GB, dst = WINDOW + 2 * GB;

	ASSERT_EQ(src, map_anon(src, bytes(4)));
	stamp_range(src, bytes(4), 1);
	ASSERT_EQ(dst, move_to(src, bytes(3) + 1, bytes(3) + 7, dst));
	EXPECT_OK(check_unmapped(src, bytes(4)));
	EXPECT_OK(check_stamps(dst, bytes(4), 1));
	ASSERT_EQ(dst, do_mremap(dst, bytes(4), bytes(1) + 1, 0, 0));
	EXPECT_OK(check_stamps(dst, bytes(2), 1));
	EXPECT_OK(check_unmapped(dst + bytes(2), bytes(2)));
}

TEST_HARNESS_MAIN
