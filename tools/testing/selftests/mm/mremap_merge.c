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
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 4 * GB)

#define NOT_ON_STOCK	"what stock 6.12 does not do"

#define NEED_SOFT_DIRTY()	NEED(softdirty_supported(), "needs CONFIG_MEM_SOFT_DIRTY")
#define NEED_SWAP()		NEED(meminfo_kb("SwapFree") > 0, "needs swap space")

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

/* Reads entries[], and sets scanned[] where PAGEMAP_SCAN says soft-dirty. */
static const char *read_soft_dirty(unsigned long addr, size_t pages)
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
	int fd, nr = 0;

	if (pages > MAX_PAGES)
		return "too many pages";
	fd = open("/proc/self/pagemap", O_RDONLY);
	pagemap_bits(addr, pages, entries);
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

/*
 * Swaps the range out. Reclaim finds a page's mappings by the rmap alone, so
 * what it cannot swap out is not where the rmap says.
 */
static const char *check_reclaim(unsigned long addr, size_t len, size_t pages)
{
	const size_t swapped = swap_out(addr, len, pages);

	if (swapped == pages)
		return NULL;
	return complain("%#lx-%#lx: %zu pages swapped out, not %zu", addr,
			addr + len, swapped, pages);
}

/* What the pages of a file are stamped with, from its start on. */
#define FILE_ID		0x100000

static int make_file(META, size_t len)
{
	const int fd = memfd_create("mremap_merge", 0);
	void *file;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, len));
	file = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, file);
	stamp_range((unsigned long)file, len, FILE_ID);
	munmap(file, len);
	return fd;
}

/* ---- children ---- */

struct home;
typedef const char *(*checker)(struct home *h);

struct child {
	pid_t pid;
	int go;
};

/* Forks a child that checks when it is told to go on. */
static bool fork_waiting(struct child *child, checker check, struct home *h)
{
	const char *why = "the parent is gone";
	int go[2];
	char byte;

	if (pipe(go))
		return false;
	child->pid = fork();
	child->go = go[1];
	if (child->pid)
		return child->pid > 0;
	close(go[1]);
	if (read(go[0], &byte, 1) == 1)
		why = check(h);
	if (why)
		fprintf(stderr, "# child: %s\n", why);
	_exit(!!why);
}

static const char *go_on(const struct child *child)
{
	int status;

	if (write(child->go, "", 1) != 1 || waitpid(child->pid, &status, 0) != child->pid)
		return "the child is gone";
	return status ? "a child disagrees" : NULL;
}

static const char *in_child(checker check, struct home *h)
{
	struct child child;

	return fork_waiting(&child, check, h) ? go_on(&child) : "cannot fork";
}

/* ---- moved pages read as changed ---- */

/* mremap_test has the other kinds of memory. */
enum backing {
	WRITTEN,	/* anonymous, written to */
	SWAPPED,	/* then swapped out */
	READ,		/* anonymous, only read: the zero page */
	HUGE,
	SHARED_HUGE,
};

FIXTURE(dirty)
{
	unsigned long src;
	unsigned long dst;
	size_t pages;
	size_t len;
};

FIXTURE_VARIANT(dirty)
{
	enum backing backing;
	size_t from;	/* pages from a table's start to the source */
	size_t to;	/* the same for the destination */
	size_t tables;	/* length: so many tables */
	size_t pages;	/* and so many pages */
	size_t step;	/* every so many pages one is touched */
	bool lost;	/* tables move: stock forgets about their pages */
};

#define DIRTY(name, ...)	FIXTURE_VARIANT_ADD(dirty, name) { __VA_ARGS__ }

DIRTY(pages, WRITTEN, 0, 3, 0, 40, 1, false);
DIRTY(pages_of_tables, WRITTEN, 7, 2, 2, 9, 3, false);
DIRTY(swapped_pages, SWAPPED, 0, 5, 2, 0, 1, false);
DIRTY(swapped_tables, SWAPPED, 0, 0, 2, 0, 1, true);
DIRTY(zero_pages, READ, 0, 3, 0, 40, 2, false);
DIRTY(zero_pages_in_tables, READ, 0, 0, 2, 0, 2, true);
DIRTY(tables, WRITTEN, 0, 0, 4, 0, 1, true);
DIRTY(sparse_tables, WRITTEN, 0, 0, 16, 0, 300, true);
DIRTY(tables_and_tail, WRITTEN, 0, 0, 2, 77, 1, true);
DIRTY(head_and_tables, WRITTEN, 300, 300, 2, 212, 1, true);
DIRTY(head_and_tail, WRITTEN, 300, 300, 2, 0, 1, true);
DIRTY(head_only, WRITTEN, 400, 400, 0, 112, 1, true);
DIRTY(table_of_tables, WRITTEN, 0, 0, 512, 0, 5000, true);
DIRTY(huge, HUGE, 0, 0, 3, 0, 1, false);
DIRTY(huge_split, HUGE, 0, 1, 2, 0, 1, false);
DIRTY(huge_and_head, HUGE, 300, 300, 2, 212, 1, true);
DIRTY(shared_huge, SHARED_HUGE, 0, 0, 2, 0, 1, false);

#define DIRTY_SELF	FIXTURE_DATA(dirty) *self
#define DIRTY_VARIANT	const FIXTURE_VARIANT(dirty) *variant

static bool is_touched(DIRTY_SELF, DIRTY_VARIANT, size_t page)
{
	return page % variant->step == 0 || page == self->pages - 1;
}

static void touch(DIRTY_SELF, DIRTY_VARIANT)
{
	for (size_t page = 0; page < self->pages; page++) {
		const unsigned long addr = self->src + bytes(page);

		if (!is_touched(self, variant, page))
			continue;
		if (variant->backing != READ)
			stamp(addr, page);
		else
			(void)*(volatile char *)at(addr);
	}
}

FIXTURE_SETUP(dirty)
{
	const enum backing backing = variant->backing;
	const bool shared = backing == SHARED_HUGE;
	const bool huge = backing == HUGE || shared;

	NEED_SOFT_DIRTY();
	if (backing == SWAPPED)
		NEED_SWAP();
	stay_on_this_processor();
	prctl(PR_SET_THP_DISABLE, !huge, 0, 0, 0);
	self->src = SRC + bytes(variant->from);
	self->dst = DST + bytes(variant->to);
	self->pages = variant->tables * pmd_span() / psize() + variant->pages;
	self->len = bytes(self->pages);
	ASSERT_EQ(self->src, map_at(self->src, self->len, PROT_READ | PROT_WRITE,
				    MAP_ANONYMOUS | MAP_NORESERVE |
				    (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0));
	if (backing == HUGE)
		madvise(at(self->src), self->len, MADV_HUGEPAGE);
	touch(self, variant);
	NEED(!shared || !madvise(at(self->src), self->len, MADV_COLLAPSE),
	     "needs huge pages of shared memory");
	touch(self, variant);
	NEED(!huge || smaps_kb(self->src, shared ? "ShmemPmdMapped" : "AnonHugePages") > 0,
	     "needs transparent huge pages");
	if (backing == SWAPPED)
		ASSERT_OK(check_reclaim(self->src, self->len, self->pages));
}

FIXTURE_TEARDOWN(dirty) { }

static const char *check_contents(DIRTY_SELF, DIRTY_VARIANT, unsigned long to)
{
	const char *why = NULL;

	for (size_t page = 0; !why && page < self->pages; page++) {
		if (is_touched(self, variant, page))
			why = variant->backing == READ ?
			      check_zero(to + bytes(page), psize()) :
			      check_stamp(to + bytes(page), page);
	}
	return why;
}

/*
 * Of the touched pages the first nr are soft-dirty, and no other. Pages never
 * touched have no contents that anybody could save.
 */
static const char *check_dirty(DIRTY_SELF, DIRTY_VARIANT, unsigned long addr, size_t nr)
{
	const char *why = read_soft_dirty(addr, self->pages);

	for (size_t page = 0; !why && page < self->pages; page++) {
		const bool contents = entries[page] & CONTENTS;

		if (contents != is_touched(self, variant, page))
			return complain("page %#lx has %s contents",
					addr + bytes(page), contents ? "" : "no");
		if (contents)
			why = check_entry(addr, page, page < nr);
	}
	return why;
}

/* A huge page has one bit for all of it. */
static size_t pages_in_one(unsigned long addr)
{
	const bool huge = smaps_kb(addr, "AnonHugePages") > 0 ||
			  smaps_kb(addr, "ShmemPmdMapped") > 0;

	return huge && addr % pmd_span() == 0 ? pmd_span() / psize() : 1;
}

/*
 * A mapping that moves is tracked like any other, wherever it moves, whether it
 * leaves its old place mapped, with nothing to show there, and whether it grows.
 * It is clean after the next clearing, then just what is written is dirty.
 */
TEST_F_TIMEOUT(dirty, moved_pages_mended, 200)
{
	const struct {
		unsigned long from, to, flags;
		size_t more;	/* that it grows by */
	} moves[] = {
		{ self->src, self->dst, FIXED, 0 },
		{ self->dst, self->src, FIXED, 0 },
		{ self->src, self->dst, FIXED | DONTUNMAP, 0 },
		{ self->dst, self->src, FIXED, pmd_span() },
	};
	const size_t len = self->len;

	if (variant->lost)
		SKIP_STOCK(NOT_ON_STOCK);
	for (size_t i = 0; i < ARRAY_SIZE(moves); i++) {
		const unsigned long from = moves[i].from, to = moves[i].to;
		const size_t swapped = count_pagemap(from, len, PM_SWAP);

		clear_softdirty();
		EXPECT_FALSE(has_vmflag(from, "sd"));
		ASSERT_OK(check_dirty(self, variant, from, 0));
		ASSERT_EQ(to, do_mremap(from, len, len + moves[i].more, moves[i].flags, to));
		EXPECT_OK(check_dirty(self, variant, to, self->pages));
		EXPECT_EQ(swapped, count_pagemap(to, len, PM_SWAP));
		if (moves[i].flags & MREMAP_DONTUNMAP)
			EXPECT_EQ(0UL, count_pagemap(from, len, CONTENTS));
		EXPECT_EQ(0UL, count_pagemap(to + len, moves[i].more, CONTENTS));
		/* Reading swapped pages brings them in, and the mark stays. */
		EXPECT_OK(check_contents(self, variant, to));
		EXPECT_OK(check_dirty(self, variant, to, self->pages));
		clear_softdirty();
		EXPECT_FALSE(has_vmflag(to, "sd"));
		EXPECT_OK(check_dirty(self, variant, to, 0));
		if (variant->backing == READ)
			continue;
		stamp(to, 0);
		EXPECT_OK(check_dirty(self, variant, to, pages_in_one(to)));
	}
}

/* ---- a mark on the mapping stays when mappings become one ---- */

/*
 * Something that a mapping has or has not. Two mappings side by side become one
 * as soon as both have it or both have it not.
 */
enum attribute {
	PLACE,		/* none: the middle part moves there */
	READ_ONLY,
	DONTDUMP,
	LOCKED,		/* on fault: nothing is faulted in by the call itself */
	NAME,
	POLICY,
	REGISTERED,
	SEALED,		/* cannot be taken off, and keeps off what else sets parts up */
};

static int set_registered(unsigned long addr, size_t len, bool on)
{
	static int uffd = -1;

	if (uffd < 0)
		uffd = open_uffd(0);
	if (uffd < 0)
		return -1;
	return on ? uffd_register(uffd, at(addr), len, true, false, false) :
		    uffd_unregister(uffd, at(addr), len);
}

static int set(enum attribute attribute, unsigned long addr, size_t len, bool on)
{
	unsigned long node = 1;

	switch (attribute) {
	case READ_ONLY:
		return mprotect(at(addr), len, on ? PROT_READ : PROT_READ | PROT_WRITE);
	case DONTDUMP:
		return madvise(at(addr), len, on ? MADV_DONTDUMP : MADV_DODUMP);
	case LOCKED:
		return on ? mlock2(at(addr), len, MLOCK_ONFAULT) : munlock(at(addr), len);
	case NAME:
		return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len, on ? "mremap" : NULL);
	case POLICY:
		return syscall(__NR_mbind, addr, len, on ? MPOL_BIND : MPOL_DEFAULT,
			       on ? &node : NULL, on ? 8 : 0, 0);
	case REGISTERED:
		return set_registered(addr, len, on);
	case SEALED:
		return on ? seal(addr, len) : 0;
	default:
		return -1;
	}
}

FIXTURE(sticky) { };

FIXTURE_VARIANT(sticky)
{
	enum attribute set;
	bool on;	/* the middle part is given it, not deprived of it */
	bool shared;
	unsigned long flags;	/* of a move */
};

#define STICKY(name, ...)	FIXTURE_VARIANT_ADD(sticky, name) { __VA_ARGS__ }

STICKY(protect, READ_ONLY, true, false, 0);
STICKY(unprotect, READ_ONLY, false, false, 0);
STICKY(protect_shared, READ_ONLY, true, true, 0);
STICKY(unprotect_shared, READ_ONLY, false, true, 0);
STICKY(dontdump, DONTDUMP, true, false, 0);
STICKY(dodump, DONTDUMP, false, false, 0);
STICKY(dodump_shared, DONTDUMP, false, true, 0);
STICKY(lock, LOCKED, true, false, 0);
STICKY(unlock, LOCKED, false, false, 0);
STICKY(name, NAME, true, false, 0);
STICKY(unname, NAME, false, false, 0);
STICKY(policy, POLICY, true, false, 0);
STICKY(no_policy, POLICY, false, false, 0);
STICKY(register, REGISTERED, true, false, 0);
STICKY(unregister, REGISTERED, false, false, 0);
STICKY(seal, SEALED, true, false, 0);
STICKY(move, PLACE, false, false, FIXED);
STICKY(dontunmap, PLACE, false, false, FIXED | DONTUNMAP);

#define STICKY_VARIANT	const FIXTURE_VARIANT(sticky) *variant

/* Three parts side by side; the middle one is twice as long as the others. */
#define SIDE_PAGES	8
#define MID_PAGES	16
#define ALL_PAGES	(2 * SIDE_PAGES + MID_PAGES)
#define MIDDLE		(SRC + bytes(SIDE_PAGES))
#define RIGHT		(MIDDLE + bytes(MID_PAGES))
#define END		(RIGHT + bytes(SIDE_PAGES))

FIXTURE_SETUP(sticky)
{
	static const char * const needs[] = {
		[LOCKED] = "mlock2(2)",
		[NAME] = "names of anonymous memory",
		[POLICY] = "NUMA policies",
		[REGISTERED] = "userfaultfd",
		[SEALED] = "mseal",
	};

	NEED_SOFT_DIRTY();
	use_small_pages();
	if (variant->set == PLACE)
		return;
	ASSERT_EQ(DST, map_anon(DST, psize()));
	if (set(variant->set, DST, psize(), true))
		SKIP(return, "needs %s", needs[variant->set]);
}

FIXTURE_TEARDOWN(sticky) { }

/* Where the middle part is at first. */
static unsigned long middle_of(STICKY_VARIANT)
{
	return variant->set == PLACE ? DST : MIDDLE;
}

/*
 * Maps a part that has what the test is about, or has it not. It is accessible
 * only after that, so that it never is like a neighbour that is there already.
 * A seal has to come last, so there something else makes the difference.
 */
static void make_part(META, STICKY_VARIANT, int fd, unsigned long addr, size_t len, bool with)
{
	const bool sealed = variant->set == SEALED;

	ASSERT_EQ(addr, map_at(addr, len, PROT_NONE, fd < 0 ?
			       MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd,
			       fd < 0 ? 0 : addr - SRC));
	if (with)
		ASSERT_EQ(0, set(sealed ? DONTDUMP : variant->set, addr, len, true));
	if (variant->set != READ_ONLY || !with)
		ASSERT_EQ(0, set(READ_ONLY, addr, len, false));
	if (with && sealed)
		ASSERT_EQ(0, seal(addr, len));
	/* Of shared memory some pages are there, though not written to. */
	if (fd >= 0)
		(void)*(volatile char *)at(addr);
}

/* How parts are written down: '.' is not there, 'c' clean, 'd' soft-dirty. */
static void make_parts(META, STICKY_VARIANT, const char *how)
{
	const unsigned long start[] = { SRC, middle_of(variant), RIGHT };
	const size_t pages[] = { SIDE_PAGES, MID_PAGES, SIDE_PAGES };
	const int fd = variant->shared ? make_file(_metadata, bytes(ALL_PAGES)) : -1;

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 3; i++)
			if (how[i] == "cd"[round])
				make_part(_metadata, variant, fd, start[i], bytes(pages[i]),
					  variant->set != PLACE && (i == 1) != variant->on);
		if (round == 0)
			clear_softdirty();
	}
	/* Sealed parts have this, so that they are not like the middle one. */
	if (variant->set == SEALED)
		ASSERT_EQ(0, set(DONTDUMP, MIDDLE, bytes(MID_PAGES), true));
	for (int i = 0; i < 3; i++)
		if (how[i] != '.')
			ASSERT_OK(check_marks(start[i], pages[i], how[i] == 'd'));
	close(fd);
}

/* So many bytes of the middle part, from there on, become like its neighbours. */
static void assimilate(META, STICKY_VARIANT, unsigned long addr, size_t len)
{
	const unsigned long from = middle_of(variant) + addr - MIDDLE;

	if (variant->set == PLACE)
		ASSERT_EQ(addr, do_mremap(from, len, len, variant->flags, addr));
	if (variant->set != PLACE)
		ASSERT_EQ(0, set(variant->set, addr, len, variant->on));
}

static void check_mapping(META, unsigned long start, unsigned long end, bool dirty)
{
	struct vma vma;

	ASSERT_TRUE(find_vma(start, &vma));
	ASSERT_EQ(start, vma.start);
	ASSERT_EQ(end, vma.end);
	EXPECT_EQ(dirty, has_vmflag(start, "sd"));
	EXPECT_OK(check_marks(start, (end - start) / psize(), dirty));
}

/* After the next clearing only what is written shows. */
static void check_tracking(META, unsigned long start, unsigned long end, bool write)
{
	const size_t pages = (end - start) / psize();

	clear_softdirty();
	check_mapping(_metadata, start, end, false);
	if (!write)
		return;
	stamp(start + bytes(2), 1);
	EXPECT_OK(check_marks(start, 2, false));
	EXPECT_OK(check_marks(start + bytes(2), 1, true));
	EXPECT_OK(check_marks(start + bytes(3), pages - 3, false));
}

/* All parts that are there become one mapping; it is soft-dirty if one was. */
static void check_join(META, STICKY_VARIANT, const char *how)
{
	const bool read_only = variant->set == READ_ONLY && variant->on;
	const unsigned long start = how[0] == '.' ? MIDDLE : SRC;
	const unsigned long end = how[2] == '.' ? RIGHT : END;

	make_parts(_metadata, variant, how);
	assimilate(_metadata, variant, MIDDLE, bytes(MID_PAGES));
	check_mapping(_metadata, start, end, strchr(how, 'd'));
	if (variant->flags & MREMAP_DONTUNMAP)
		check_mapping(_metadata, DST, DST + bytes(MID_PAGES), how[1] == 'd');
	/* No fault may be served by a monitor that there is none of. */
	if (variant->set != REGISTERED || !variant->on)
		check_tracking(_metadata, start, end, !read_only);
}

/*
 * Half of the middle part goes over to its neighbour. The other half is not
 * concerned.
 */
static void check_partial_join(META, STICKY_VARIANT, const char *how)
{
	const size_t half = bytes(MID_PAGES / 2);
	const bool left = how[0] != '.';
	const unsigned long kept = middle_of(variant) + (left ? half : 0);
	struct vma vma;

	make_parts(_metadata, variant, how);
	assimilate(_metadata, variant, left ? MIDDLE : MIDDLE + half, half);
	check_mapping(_metadata, left ? SRC : MIDDLE + half,
		      left ? MIDDLE + half : END, strchr(how, 'd'));
	ASSERT_TRUE(find_vma(kept, &vma));
	EXPECT_EQ(how[1] == 'd', has_vmflag(vma.start, "sd"));
	EXPECT_OK(check_marks(kept, MID_PAGES / 2, how[1] == 'd'));
}

/*
 * Stock gives the whole the mark of one of its parts: mostly of the one that is
 * changed, else of the neighbour that it is added to.
 */
static bool stock_loses(STICKY_VARIANT, const char *how)
{
	const bool changed_counts = variant->set >= READ_ONLY && variant->set <= NAME;
	const char neighbour = how[0] == '.' ? how[2] : how[0];

	return strchr(how, 'd') && (changed_counts ? how[1] : neighbour) != 'd';
}

#define STICKY_TEST(name, check, how)					\
	TEST_F(sticky, name)						\
	{								\
		if (stock_loses(variant, how))				\
			SKIP_STOCK(NOT_ON_STOCK);			\
		check(_metadata, variant, how);				\
	}

STICKY_TEST(clean_parts, check_join, "ccc")
STICKY_TEST(clean_left, check_join, "cc.")
STICKY_TEST(clean_right, check_join, ".cc")
STICKY_TEST(into_clean_left_mended, check_join, "cd.")
STICKY_TEST(into_clean_right_mended, check_join, ".dc")
STICKY_TEST(into_clean_both_mended, check_join, "cdc")
STICKY_TEST(into_dirty_left_mended, check_join, "dc.")
STICKY_TEST(into_dirty_right_mended, check_join, ".cd")
STICKY_TEST(left_of_both_is_dirty_mended, check_join, "dcc")
STICKY_TEST(right_of_both_is_dirty_mended, check_join, "ccd")
STICKY_TEST(both_sides_are_dirty_mended, check_join, "dcd")
STICKY_TEST(clean_half, check_partial_join, "cc.")
STICKY_TEST(half_into_clean_left_mended, check_partial_join, "cd.")
STICKY_TEST(half_into_clean_right_mended, check_partial_join, ".dc")
STICKY_TEST(half_into_dirty_left_mended, check_partial_join, "dc.")
STICKY_TEST(half_into_dirty_right_mended, check_partial_join, ".cd")

/* ---- a gap that is closed ---- */

static const char * const gaps[] = { "c.c", "d.c", "c.d" };

static void make_gap(META, const char *how)
{
	const FIXTURE_VARIANT(sticky) plain = { .flags = FIXED };

	use_small_pages();
	munmap(at(SRC), bytes(ALL_PAGES));
	make_parts(_metadata, &plain, how);
}

TEST(growth_closes_a_gap_mended)
{
	NEED_SOFT_DIRTY();
	for (size_t i = 0; i < ARRAY_SIZE(gaps); i++) {
		/* Stock loses the mark of what is behind the gap. */
		if (gaps[i][2] == 'd' && expect_base())
			continue;
		make_gap(_metadata, gaps[i]);
		ASSERT_EQ(SRC, do_mremap(SRC, bytes(SIDE_PAGES),
					 bytes(SIDE_PAGES + MID_PAGES), 0, 0));
		check_mapping(_metadata, SRC, END, strchr(gaps[i], 'd'));
		check_tracking(_metadata, SRC, END, true);
	}
}

/* What it reaches has no pages, as a new mapping between the two would have none. */
TEST(growth_joins_untouched_mended)
{
	struct vma one = { SRC, SRC + bytes(4), "rw-p", 0, 0 };

	SKIP_STOCK("stock 6.12 leaves two mappings");
	ASSERT_EQ(SRC, map_anon(SRC, psize()));
	stamp(SRC, 1);
	ASSERT_EQ(SRC + bytes(2), map_anon(SRC + bytes(2), bytes(2)));
	ASSERT_EQ(SRC, do_mremap(SRC, psize(), bytes(2), 0, 0));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(4), &one, 1));
	stamp(SRC + bytes(3), 2);
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_stamp(SRC + bytes(3), 2));
}

/* One has been there before, and the other one, which has no pages, fits to it there. */
TEST(several_return_together_mended)
{
	const struct vma one = { SRC, SRC + bytes(2), "rw-p", 0, 0 };
	const unsigned long away = SRC + GB;

	SKIP_STOCK("stock 6.12 moves one mapping at a time");
	ASSERT_EQ(SRC, map_anon(SRC, psize()));
	stamp(SRC, 1);
	ASSERT_EQ(away, move_to(SRC, psize(), psize(), away));
	ASSERT_EQ(away + psize(), map_anon(away + psize(), psize()));
	ASSERT_EQ(SRC, move_to(away, bytes(2), bytes(2), SRC));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(2), &one, 1));
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_zero(SRC + psize(), psize()));
}

/* ---- mappings that move and join their neighbours ---- */

/*
 *    | prev | mid | next |     at HOME
 *
 * mid comes home from AWAY, be it that it was there before or not. A letter says
 * what a part is:
 *
 *   .  nothing is there
 *   b  blank: a mapping of its own, never touched
 *   o  touched, was one mapping with the other parts of this kind
 *   x  touched, was never one mapping with any other part
 */
#define HOME	(WINDOW + GB)
#define AWAY	(WINDOW + 4 * GB)

enum part {
	PREV,
	MID,
	NEXT,
	LEFT,	/* at AWAY, what stays mapped there when mid has come */
	PARTS,
};

struct home {
	size_t len;	/* of each part */
	size_t step;	/* every so many pages one is touched */
	int fd;		/* of the file that is mapped, or -1 */
	unsigned long inode;
	char kinds[PARTS + 1];
	unsigned long ids[PARTS];
	unsigned long stamped;	/* times that a part was */
	bool mid_joins;		/* is one mapping with prev then */
	bool next_joins;	/* with mid */
	bool writes;		/* for come_back() */
	struct child child;
};

enum memory {
	PAGES,
	TABLES,
	FILE_PAGES,	/* private ones: what is blank has the file's contents */
};

static unsigned long part_at(const struct home *h, enum part part)
{
	return part == LEFT ? AWAY : HOME + part * h->len;
}

static off_t offset_of(const struct home *h, enum part part)
{
	return h->fd < 0 ? 0 : (part == LEFT ? MID : part) * h->len;
}

static unsigned long map_part(const struct home *h, enum part part, size_t len)
{
	return map_at(part_at(h, part), len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | (h->fd < 0 ? MAP_ANONYMOUS : 0), h->fd, offset_of(h, part));
}

/* The pages that are touched of len bytes. */
static size_t touched(const struct home *h, size_t len)
{
	return len / psize() / h->step;
}

/* Never with what any part, here or in another process, had before. */
static void stamp_part(struct home *h, enum part part)
{
	h->ids[part] = (getpid() * 100UL + h->stamped++) * 1000;
	for (size_t nr = 0; nr < touched(h, h->len); nr++)
		stamp(part_at(h, part) + bytes(nr * h->step), h->ids[part] + nr);
}

/* Touches all parts that are there: none is blank after that. */
static const char *stamp_all(struct home *h)
{
	for (enum part part = PREV; part < PARTS; part++) {
		if (h->kinds[part] == '.')
			continue;
		stamp_part(h, part);
		h->kinds[part] = 'x';
	}
	return NULL;
}

static const char *check_pages(const struct home *h, unsigned long addr, size_t len,
			       unsigned long id)
{
	const char *why = NULL;

	for (size_t nr = 0; !why && nr < touched(h, len); nr++)
		why = check_stamp(addr + bytes(nr * h->step), id + nr);
	return why;
}

static const char *check_part(const struct home *h, enum part part)
{
	const unsigned long addr = part_at(h, part);

	switch (h->kinds[part]) {
	case '.':
		return check_unmapped(addr, h->len);
	case 'b':
		if (h->fd < 0)
			return check_zero(addr, h->len);
		return check_stamps(addr, h->len, FILE_ID + offset_of(h, part) / psize());
	default:
		return check_pages(h, addr, h->len, h->ids[part]);
	}
}

static const char *check_parts(struct home *h)
{
	const char *why = NULL;

	for (enum part part = PREV; !why && part < PARTS; part++)
		why = check_part(h, part);
	return why;
}

/* Swaps the touched parts out and reads them back. */
static const char *reclaim_parts(struct home *h)
{
	const char *why = NULL;

	for (enum part part = PREV; !why && part < PARTS; part++) {
		if (h->kinds[part] == 'o' || h->kinds[part] == 'x')
			why = check_reclaim(part_at(h, part), h->len, touched(h, h->len));
		why = why ?: check_part(h, part);
	}
	return why;
}

/* Blank parts get their first pages, into the anon_vma that the others have. */
static const char *rewrite_parts(struct home *h)
{
	stamp_all(h);
	return reclaim_parts(h);
}

/* In a child each page is written to, which is a copy, so far. */
static const char *write_copies(struct home *h)
{
	return check_parts(h) ?: rewrite_parts(h);
}

static const char *check_layout(struct home *h)
{
	struct vma want[PARTS];
	int nr = 0;

	for (enum part part = PREV; part <= NEXT; part++) {
		const bool joins = part == MID ? h->mid_joins : h->next_joins;
		const unsigned long start = part_at(h, part);

		if (h->kinds[part] == '.')
			continue;
		if (nr && joins)
			want[nr - 1].end = start + h->len;
		else
			want[nr++] = (struct vma) {
				start, start + h->len, "rw-p", offset_of(h, part), h->inode
			};
	}
	return check_vmas(HOME, HOME + 3 * h->len, want, nr);
}

/* The parts that are 'o' are mapped as one, and touched. */
static void make_home(META, struct home *h, enum memory memory, const char *kinds)
{
	const enum part first = kinds[PREV] == 'o' ? PREV : MID;
	const enum part last = kinds[NEXT] == 'o' ? NEXT : MID;
	struct vma vma;

	stay_on_this_processor();
	use_small_pages();
	*h = (struct home) {
		.len = memory == TABLES ? 2 * pmd_span() : bytes(8),
		.step = memory == TABLES ? 32 : 1,
		.fd = -1,
	};
	snprintf(h->kinds, sizeof(h->kinds), "%s.", kinds);
	if (memory == FILE_PAGES)
		h->fd = make_file(_metadata, 3 * h->len);
	ASSERT_EQ(part_at(h, first), map_part(h, first, (last - first + 1) * h->len));
	ASSERT_TRUE(find_vma(part_at(h, first), &vma));
	h->inode = vma.inode;
	for (enum part part = first; part <= last; part++)
		if (kinds[part] == 'o')
			stamp_part(h, part);
	if (kinds[MID] == '.')
		ASSERT_EQ(0, munmap(at(part_at(h, MID)), h->len));
}

static unsigned long move_part(const struct home *h, enum part from, enum part to,
			       unsigned long flags)
{
	return do_mremap(part_at(h, from), h->len, h->len, FIXED | flags, part_at(h, to));
}

FIXTURE(join)
{
	struct home home;
};

FIXTURE_VARIANT(join)
{
	const char *kinds;
	enum memory memory;
};

#define JOIN(name, kinds, memory)	FIXTURE_VARIANT_ADD(join, name) { kinds, memory }

/* A touched mapping comes home. */
JOIN(blank_prev, "bo.", PAGES);
JOIN(blank_next, ".ob", PAGES);
JOIN(blank_both, "bob", PAGES);
JOIN(own_prev, "oo.", PAGES);
JOIN(own_next, ".oo", PAGES);
JOIN(own_both, "ooo", PAGES);
JOIN(own_prev_blank_next, "oob", PAGES);
JOIN(blank_prev_own_next, "boo", PAGES);
JOIN(other_prev, "xo.", PAGES);
JOIN(other_both, "xox", PAGES);
JOIN(other_prev_own_next, "xoo", PAGES);
JOIN(own_prev_other_next, "oox", PAGES);
JOIN(other_prev_blank_next, "xob", PAGES);
JOIN(blank_prev_other_next, "box", PAGES);
/* The same, moved by whole tables. */
JOIN(tables_blank_prev, "bo.", TABLES);
JOIN(tables_blank_next, ".ob", TABLES);
JOIN(tables_blank_both, "bob", TABLES);
JOIN(tables_own_both, "ooo", TABLES);
JOIN(tables_blank_prev_own_next, "boo", TABLES);
/* Of a file: its offset goes with it. */
JOIN(file_prev, "bo.", FILE_PAGES);
JOIN(file_next, ".ob", FILE_PAGES);
JOIN(file_both, "bob", FILE_PAGES);
/* A mapping without pages comes. */
JOIN(no_pages_blank_both, "bbb", PAGES);
JOIN(no_pages_other_prev, "xb.", PAGES);
JOIN(no_pages_other_next, ".bx", PAGES);
JOIN(no_pages_other_both, "xbx", PAGES);
JOIN(no_pages_own_prev, "ob.", PAGES);
JOIN(no_pages_own_both, "obo", PAGES);
JOIN(no_pages_blank_prev_other_next, "bbx", PAGES);
JOIN(no_pages_other_prev_blank_next, "xbb", PAGES);

/* What has no pages takes over the neighbour's anon_vma. */
static bool fits(const char *kinds, enum part part)
{
	return strchr(kinds[MID] == 'b' ? "box" : "bo", kinds[part]);
}

static bool joins_next(const char *kinds)
{
	if (!fits(kinds, NEXT))
		return false;
	if (!fits(kinds, PREV) || kinds[MID] != 'b')
		return true;
	/* Then all three become one, and that has one anon_vma. */
	return kinds[PREV] == 'b' || kinds[NEXT] == 'b' ||
	       (kinds[PREV] == 'o' && kinds[NEXT] == 'o');
}

FIXTURE_SETUP(join)
{
	const char *kinds = variant->kinds;
	struct home *h = &self->home;

	make_home(_metadata, h, variant->memory, kinds);
	h->mid_joins = fits(kinds, PREV);
	h->next_joins = joins_next(kinds);
	if (kinds[MID] == 'o') {
		ASSERT_EQ(AWAY, move_part(h, MID, LEFT, 0));
	} else {
		ASSERT_EQ(0, munmap(at(part_at(h, MID)), h->len));
		ASSERT_EQ(AWAY, map_part(h, LEFT, h->len));
	}
	for (enum part part = PREV; part <= NEXT; part += NEXT - PREV) {
		if (kinds[part] == '.' || kinds[part] == 'o')
			continue;
		ASSERT_EQ(part_at(h, part), map_part(h, part, h->len));
		if (kinds[part] == 'x')
			stamp_part(h, part);
	}
}

FIXTURE_TEARDOWN(join) { }

/* ---- what happens to them then: steps that return NULL, or what is wrong ---- */

static const char *go_away(struct home *h)
{
	if (move_part(h, MID, LEFT, 0) != AWAY)
		return "cannot move away";
	return check_unmapped(part_at(h, MID), h->len);
}

static const char *come_home(struct home *h)
{
	return move_part(h, LEFT, MID, 0) == part_at(h, MID) ? NULL : "cannot move back";
}

/* What is left mapped has no pages. */
static const char *come_and_leave_mapping(struct home *h)
{
	const struct vma left = {
		AWAY, AWAY + h->len, "rw-p", offset_of(h, LEFT), h->inode
	};

	if (move_part(h, LEFT, MID, MREMAP_DONTUNMAP) != part_at(h, MID))
		return "cannot move back";
	h->kinds[LEFT] = 'b';
	if (count_pagemap(AWAY, h->len, CONTENTS))
		return "there are pages where they have left";
	return check_vmas(AWAY, AWAY + h->len, &left, 1);
}

static const char *touch_left(struct home *h)
{
	stamp_part(h, LEFT);
	h->kinds[LEFT] = 'x';
	return NULL;
}

static const char *drop(struct home *h, enum part part)
{
	h->kinds[part] = '.';
	return munmap(at(part_at(h, part)), h->len) ? "cannot unmap" : NULL;
}

static const char *drop_left(struct home *h)
{
	return drop(h, LEFT);
}

static const char *drop_mid(struct home *h)
{
	return drop(h, MID);
}

static const char *drop_neighbours(struct home *h)
{
	return drop(h, PREV) ?: drop(h, NEXT);
}

static const char *fork_and_write_copies(struct home *h)
{
	return in_child(write_copies, h);
}

static const char *fork_child(struct home *h)
{
	return fork_waiting(&h->child, write_copies, h) ? NULL : "cannot fork";
}

static const char *let_child_write(struct home *h)
{
	return go_on(&h->child);
}

/* Cuts across the seams where parts have become one. */
static const char *cut(struct home *h)
{
	const size_t quarter = h->len / 4;
	const char *why = NULL;

	for (enum part part = MID; !why && part <= NEXT; part++) {
		munmap(at(part_at(h, part) - quarter), 2 * quarter);
		why = check_unmapped(part_at(h, part) - quarter, 2 * quarter);
	}
	for (enum part part = PREV; !why && part <= NEXT; part++) {
		const size_t front = part == PREV ? 0 : quarter;
		const size_t len = part == MID ? 2 * quarter : 3 * quarter;
		const unsigned long addr = part_at(h, part) + front;

		if (h->kinds[part] == '.')
			continue;
		why = check_reclaim(addr, len, touched(h, len)) ?:
		      check_pages(h, addr, len, h->ids[part] + touched(h, front));
	}
	return why;
}

static const char *set_inner_part(struct home *h, int prot)
{
	void *inner = at(part_at(h, MID) + h->len / 4);

	return mprotect(inner, h->len / 2, prot) ? "cannot protect" : NULL;
}

static const char *protect(struct home *h)
{
	return set_inner_part(h, PROT_READ);
}

static const char *unprotect(struct home *h)
{
	return set_inner_part(h, PROT_READ | PROT_WRITE);
}

/* Stock does not give an anon_vma to a neighbour. */
static bool stock_merges(const char *kinds)
{
	return kinds[MID] == 'b' || (kinds[PREV] != 'b' && kinds[NEXT] != 'b');
}

/* What a test needs. */
#define SWAP	1
#define MERGE	2	/* stock is left out where it does not merge */

#define JOIN_TEST(name, needs, ...)					\
	TEST_F(join, name)						\
	{								\
		const checker steps[] = { __VA_ARGS__ };		\
									\
		if ((needs) & SWAP)					\
			NEED_SWAP();					\
		if ((needs) & MERGE && !stock_merges(variant->kinds))	\
			SKIP_STOCK(NOT_ON_STOCK);			\
		for (size_t i = 0; i < ARRAY_SIZE(steps); i++)		\
			ASSERT_OK(steps[i](&self->home));		\
	}

JOIN_TEST(becomes_one_mended, MERGE, come_home, check_layout, check_parts)
JOIN_TEST(becomes_one_dontunmap_mended, MERGE, come_and_leave_mapping, check_layout, check_parts)
JOIN_TEST(reclaim, SWAP, come_home, reclaim_parts, rewrite_parts)
/* What is left at the old place and what has moved go separate ways. */
JOIN_TEST(dontunmap, SWAP, come_and_leave_mapping, touch_left, check_parts,
	  reclaim_parts, drop_left, reclaim_parts, rewrite_parts)
JOIN_TEST(fork, SWAP, come_home, fork_and_write_copies, check_parts, reclaim_parts,
	  stamp_all, fork_and_write_copies, reclaim_parts)
/* The parent writes first; the child keeps what it inherited. */
JOIN_TEST(fork_and_write, SWAP, come_home, fork_child, stamp_all, let_child_write,
	  check_parts, rewrite_parts)
/* One part alone is left of what had become one. */
JOIN_TEST(mid_alone, SWAP, come_home, drop_neighbours, check_parts, reclaim_parts,
	  fork_and_write_copies, rewrite_parts)
JOIN_TEST(neighbours_alone, SWAP, come_home, drop_mid, check_parts, rewrite_parts,
	  fork_and_write_copies)
JOIN_TEST(cut, SWAP, come_home, stamp_all, cut)
/* A changed part goes its own way and then becomes one with the rest again. */
JOIN_TEST(protect_and_back_mended, SWAP | MERGE, come_home, protect, check_parts,
	  reclaim_parts, unprotect, check_layout, check_parts)
/* Leaves and comes back as often as it likes. */
JOIN_TEST(again_mended, SWAP | MERGE, come_home, check_layout, check_parts,
	  go_away, come_home, check_layout, check_parts,
	  go_away, come_home, check_layout, check_parts,
	  go_away, come_home, check_layout, check_parts,
	  go_away, come_home, check_layout, reclaim_parts, rewrite_parts)

/* ---- after a fork ---- */

/*
 * The mid part goes away, or has never been here; where there are no neighbours,
 * blank ones are mapped; and it comes back.
 */
static const char *come_back(struct home *h)
{
	const char *why = NULL;

	if (h->writes) {
		stamp_part(h, MID);
		h->kinds[MID] = 'x';
	}
	if (h->kinds[MID] != '.')
		why = go_away(h);
	for (enum part part = PREV; !why && part <= NEXT; part++) {
		const enum part where = part == MID ? LEFT : part;

		if (h->kinds[part] != '.')
			continue;
		h->kinds[part] = 'b';
		if (map_part(h, where, h->len) != part_at(h, where))
			why = "cannot map what is blank";
	}
	return why ?: come_home(h) ?: check_layout(h) ?: check_parts(h);
}

static const char *come_back_and_rewrite(struct home *h)
{
	return come_back(h) ?: rewrite_parts(h);
}

static void inherit(META, const char *kinds, enum memory memory, bool writes, bool joins)
{
	struct home h;

	make_home(_metadata, &h, memory, kinds);
	h.writes = writes;
	h.mid_joins = joins;
	h.next_joins = joins;
	EXPECT_OK(in_child(come_back_and_rewrite, &h));
	EXPECT_OK(check_parts(&h));
	EXPECT_OK(rewrite_parts(&h));
}

#define INHERIT(name, kinds, memory, writes, joins)			\
	TEST(name)							\
	{								\
		NEED_SWAP();						\
		inherit(_metadata, kinds, memory, writes, joins);	\
	}

/*
 * What a child inherits hangs on its parent's anon_vma, too: it does not spread to
 * neighbours that have none, even if all pages are the child's own by now.
 */
INHERIT(inherited_does_not_join_blank, ".o.", PAGES, false, false)
INHERIT(copies_of_inherited_do_not_join_blank, ".o.", PAGES, true, false)
INHERIT(inherited_copies_do_not_join_the_file, ".o.", FILE_PAGES, false, false)
/* A mapping without pages does not join an inherited one with some. */
INHERIT(blank_does_not_join_inherited, "o.o", PAGES, false, false)
/* A part of an inherited mapping belongs to the rest of it. */
INHERIT(inherited_rejoins_its_rest, "ooo", PAGES, false, true)

/* Inherited without pages, it gets an anon_vma of its own. */
TEST(inherited_blank_joins_mended)
{
	NEED_SWAP();
	SKIP_STOCK(NOT_ON_STOCK);
	inherit(_metadata, ".b.", PAGES, true, true);
}

static const char *come_back_in_child(struct home *h)
{
	h->writes = true;
	return check_parts(h) ?: come_back_and_rewrite(h);
}

/* The parent's mapping hangs on one anon_vma only, forks or not. */
TEST(parent_joins_blank_mended)
{
	struct child child;
	struct home h;

	NEED_SWAP();
	SKIP_STOCK(NOT_ON_STOCK);
	make_home(_metadata, &h, PAGES, ".o.");
	ASSERT_TRUE(fork_waiting(&child, come_back_in_child, &h));
	h.mid_joins = true;
	h.next_joins = true;
	ASSERT_OK(come_back(&h));
	stamp_all(&h);
	EXPECT_OK(go_on(&child));
	EXPECT_OK(check_parts(&h));
	EXPECT_OK(rewrite_parts(&h));
}

static const char *child_with_child(struct home *h)
{
	const char *why;

	stamp_part(h, MID);
	why = in_child(write_copies, h);
	return why ?: check_parts(h) ?: rewrite_parts(h);
}

/* Children and their children inherit what has become one. */
TEST(generations)
{
	struct home h;

	NEED_SWAP();
	make_home(_metadata, &h, PAGES, ".o.");
	h.mid_joins = !expect_base_6();
	h.next_joins = !expect_base_6();
	ASSERT_OK(come_back(&h));
	EXPECT_OK(in_child(child_with_child, &h));
	EXPECT_OK(check_parts(&h));
	EXPECT_OK(rewrite_parts(&h));
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
	ASSERT_EQ(SRC + bytes(24), move_to(SRC + bytes(8), bytes(8), bytes(8), SRC + bytes(24)));
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
	ASSERT_EQ(SRC + bytes(24), move_to(SRC + bytes(8), bytes(8), bytes(8), SRC + bytes(24)));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(40), want, 3));
	EXPECT_OK(check_stamps(SRC + bytes(24), bytes(8), 9));
	EXPECT_OK(check_stamps(SRC + bytes(16), bytes(8), 17));
}

/*
 * What is left behind empty is like a mapping just made there, wherever its pages
 * came from. Stock keeps the offset.
 */
TEST(kept_source_joins_what_is_mapped_beside_mended)
{
	const struct vma want = { SRC, SRC + bytes(16), "rw-p", 0, 0 };

	SKIP_STOCK(NOT_ON_STOCK);
	use_small_pages();
	ASSERT_EQ(AWAY, map_anon(AWAY, bytes(8)));
	stamp_range(AWAY, bytes(8), 1);
	ASSERT_EQ(SRC, move_to(AWAY, bytes(8), bytes(8), SRC));
	ASSERT_EQ(AWAY, do_mremap(SRC, bytes(8), bytes(8), FIXED | DONTUNMAP, AWAY));
	ASSERT_EQ(SRC + bytes(8), map_anon(SRC + bytes(8), bytes(8)));
	EXPECT_OK(check_vmas(SRC, SRC + bytes(16), &want, 1));
	EXPECT_OK(check_stamps(AWAY, bytes(8), 1));
	EXPECT_OK(check_zero(SRC, bytes(16)));
}

TEST_HARNESS_MAIN
