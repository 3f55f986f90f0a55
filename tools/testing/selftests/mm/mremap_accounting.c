// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap(2) may take when there is no more: memory that is counted strictly,
 * beside somebody who takes all that is given back for a moment; memory that runs out
 * for good, so that the way back has to do without; and whether reclaim and files
 * still find all pages of a mapping of which a part has moved.
 *
 * What each call is charged, and a failure at each allocation, is in mremap_test.
 *
 * Tests whose name ends in _mended fail on stock 6.12, which does not undo all
 * that a failed call has done; MREMAP_EXPECT=base skips them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_model.h"

#define STOCK_BUG	"a bug of stock 6.12 that this catches"

#define DST	(WINDOW + 2 * GB)
#define PART	(16 * MB)

/* ---- committed memory, when there is no more than there is ---- */

/* What is left to be committed, and what a call asks for and gives back. */
#define LEFT		(256 * MB)
#define GROWTH		(512 * MB)

FIXTURE(strict) { };

FIXTURE_SETUP(strict)
{
	ASSERT_EQ(SRC, map_anon(SRC, PART));
	stamp(SRC, 1);
	ASSERT_EQ(DST, map_anon(DST, PART + GROWTH));
	NEED(limit_commits(LEFT / KB), NEEDS_OVERCOMMIT);
}

FIXTURE_TEARDOWN(strict)
{
	unlimit_commits();
}

TEST_F(strict, old_destination_pays_for_growth)
{
	EXPECT_EQ(ENOMEM, error_of(move_to(SRC, PART, PART + GROWTH, DST + GB)));
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_unmapped(DST + GB, PART + GROWTH));
	EXPECT_EQ(DST, move_to(SRC, PART, PART + GROWTH, DST));
	EXPECT_OK(check_stamp(DST, 1));
}

/* A process that takes all the memory it gets, while it is let. */
struct taker {
	volatile bool go;
	volatile bool holds;
	volatile bool rests;
};

static void take_memory(struct taker *taker)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		void *took = MAP_FAILED;

		taker->rests = true;
		while (!taker->go)
			sched_yield();
		taker->rests = false;
		while (taker->go && took == MAP_FAILED)
			took = mmap(NULL, GROWTH, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (took == MAP_FAILED)
			continue;
		taker->holds = true;
		while (taker->go)
			sched_yield();
		munmap(took, GROWTH);
		taker->holds = false;
	}
}

static void let_take(struct taker *taker, bool go)
{
	taker->go = go;
	while (taker->rests == go)
		sched_yield();
}

/* Many mappings: where a kernel checks all of them, that takes its time. */
static void map_many(void)
{
	const long most = read_long("/proc/sys/vm/max_map_count") - 16;
	unsigned long addr = WINDOW;

	for (int nr = count_vmas(); nr < most && nr < 1000; nr++, addr += bytes(2))
		map_at(addr, psize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

#define STRICT_ROUNDS	300

/*
 * What the old destination gives back pays for the growth, but it is not given
 * back in between for somebody else to take. Either the call or the other one has
 * it. Processors keep a small sum each, which the limit does not know of.
 */
TEST_F_TIMEOUT(strict, growth_does_not_exceed_the_limit, 120)
{
	const long slack = (long)(LEFT / 4 / KB);
	struct taker *taker = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int taken = 0, moved = 0;
	pid_t child;

	NEED(sysconf(_SC_NPROCESSORS_ONLN) >= 2, "needs two processors");
	ASSERT_NE(MAP_FAILED, taker);
	/* The child would have these as well. */
	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		take_memory(taker);
	map_many();
	for (int round = 0; round < STRICT_ROUNDS && !taken; round++) {
		ASSERT_EQ(SRC, map_anon(SRC, PART));
		ASSERT_EQ(DST, map_anon(DST, PART + GROWTH));
		stamp(SRC, 1);
		let_take(taker, true);
		if (error_of(move_to(SRC, PART, PART + GROWTH, DST))) {
			EXPECT_OK(check_stamp(SRC, 1));
		} else {
			EXPECT_OK(check_stamp(DST, 1));
			moved++;
			/* It holds on to what it has. */
			taken += taker->holds && committed_kb() >
				 meminfo_kb("CommitLimit") + slack;
		}
		let_take(taker, false);
		munmap(at(SRC), PART);
		munmap(at(DST), PART + GROWTH);
	}
	EXPECT_LT(0, moved);
	EXPECT_EQ(0, taken)
		TH_LOG("after %d moves more is committed than there is", moved);
}

/* ---- who looks for the mappings of a page finds the moved one ---- */

#define WHOLE		16UL	/* pages */

enum backing {
	ANONYMOUS,
	SHARED_FILE,
	PRIVATE_FILE,
};

static unsigned long map_backed(enum backing backing, unsigned long addr, size_t len, int fd)
{
	if (backing == ANONYMOUS)
		return map_anon(addr, len);
	return map_at(addr, len, PROT_READ | PROT_WRITE,
		      backing == SHARED_FILE ? MAP_SHARED : MAP_PRIVATE, fd, 0);
}

FIXTURE(part)
{
	int fd;
};

FIXTURE_VARIANT(part)
{
	enum backing backing;
	size_t start;		/* of the part that moves, in pages */
	size_t pages;
};

FIXTURE_VARIANT_ADD(part, anonymous_head) { ANONYMOUS, 0, 5 };
FIXTURE_VARIANT_ADD(part, anonymous_middle) { ANONYMOUS, 5, 6 };
FIXTURE_VARIANT_ADD(part, anonymous_tail) { ANONYMOUS, 11, 5 };
FIXTURE_VARIANT_ADD(part, shared_head) { SHARED_FILE, 0, 5 };
FIXTURE_VARIANT_ADD(part, shared_middle) { SHARED_FILE, 5, 6 };
FIXTURE_VARIANT_ADD(part, shared_tail) { SHARED_FILE, 11, 5 };
FIXTURE_VARIANT_ADD(part, private_head) { PRIVATE_FILE, 0, 5 };
FIXTURE_VARIANT_ADD(part, private_middle) { PRIVATE_FILE, 5, 6 };
FIXTURE_VARIANT_ADD(part, private_tail) { PRIVATE_FILE, 11, 5 };

/* The file's pages are written through a mapping that is gone afterwards. */
FIXTURE_SETUP(part)
{
	const size_t len = bytes(WHOLE);

	stay_on_this_processor();
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->fd = memfd_create("mremap_accounting", 0);
	ASSERT_EQ(0, ftruncate(self->fd, 2 * len));
	ASSERT_EQ(SRC, map_backed(SHARED_FILE, SRC, 2 * len, self->fd));
	stamp_range(SRC, 2 * len, 1);
	ASSERT_EQ(0, munmap(at(SRC), 2 * len));
	ASSERT_EQ(SRC, map_backed(variant->backing, SRC, len, self->fd));
	if (variant->backing == ANONYMOUS)
		stamp_range(SRC, len, 1);
}

FIXTURE_TEARDOWN(part) { }

#define SELF	FIXTURE_DATA(part) *self
#define VARIANT	const FIXTURE_VARIANT(part) *variant

static const char *check_whole(VARIANT, unsigned long moved)
{
	const size_t end = variant->start + variant->pages;
	const char *why = check_stamps(SRC, bytes(variant->start), 1);

	why = why ?: check_stamps(moved, bytes(variant->pages), 1 + variant->start);
	return why ?: check_stamps(SRC + bytes(end), bytes(WHOLE - end), 1 + end);
}

/*
 * Who looks for the mappings of a page finds the moved one: reclaim for the
 * anonymous ones, the file for its own.
 */
static void check_found(META, SELF, VARIANT)
{
	const size_t start = variant->start, pages = variant->pages;

	if (variant->backing == ANONYMOUS) {
		EXPECT_EQ(pages, swap_out(DST, bytes(pages), pages));
		EXPECT_EQ(start, swap_out(SRC, bytes(start), start));
		EXPECT_OK(check_whole(variant, DST));
		return;
	}
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       bytes(start), bytes(pages)));
	EXPECT_EQ(0UL, count_pagemap(DST, bytes(pages), PM_PRESENT));
	EXPECT_OK(check_zero(DST, bytes(pages)));
	EXPECT_OK(check_stamps(SRC, bytes(start), 1));
}

static void find_part(META, SELF, VARIANT, unsigned long flags)
{
	const unsigned long from = SRC + bytes(variant->start);
	const size_t len = bytes(variant->pages);

	NEED(variant->backing != ANONYMOUS || meminfo_kb("SwapFree") > 0, "needs swap space");
	ASSERT_OK(check_whole(variant, from));
	ASSERT_EQ(DST, do_mremap(from, len, len, flags, DST));
	check_found(_metadata, self, variant);
}

TEST_F(part, is_found)
{
	find_part(_metadata, self, variant, FIXED);
}

TEST_F(part, is_found_after_dontunmap)
{
	find_part(_metadata, self, variant, KEEP);
}

#undef SELF
#undef VARIANT

/* ---- a call that fails lets go of the monitors that it was about to tell ---- */

#define CONTEXTS	"/sys/kernel/slab/userfaultfd_ctx_cache/"
#define MONITORS	50

#define OLD_PLACE	(WINDOW + 4 * GB)
#define NEW_PLACE	(WINDOW + 8 * GB)

/* Without those that the allocator has not taken back yet; -1 if it does not tell. */
static long count_contexts(void)
{
	return write_setting(CONTEXTS "shrink", "1") ? read_long(CONTEXTS "objects") : -1;
}

/* What a shrinking call drops has a monitor, which may work on if the call fails. */
static const char *fail_once(int uffd, unsigned long flags, int nth)
{
	const size_t len = bytes(4);
	struct uffdio_zeropage fill = {
		.range = { OLD_PLACE, psize() },
	};
	unsigned long to;

	if (map_anon(OLD_PLACE, len) != OLD_PLACE ||
	    uffd_register(uffd, at(OLD_PLACE), len, true, false, false))
		return "cannot register a mapping";
	failure.nth = nth;
	arm_failure();
	to = do_mremap(OLD_PLACE, len, len / 2, flags, NEW_PLACE);
	disarm_failure();
	if (error_of(to) && error_of(to) != ENOMEM)
		return complain("fails with errno %d", error_of(to));
	if (error_of(to) && ioctl(uffd, UFFDIO_ZEROPAGE, &fill))
		return complain("then no page can be filled: errno %d", errno);
	return munmap(at(WINDOW), WINDOW_SIZE) ? "munmap() failed" : NULL;
}

static const char *fail_with_monitor(unsigned long flags)
{
	const char *why = start_failing(false);
	static struct monitor monitor;
	int nth = 1;

	if (!why && !start_monitor(&monitor, UFFD_FEATURE_EVENT_UNMAP))
		why = "cannot start a monitor";
	while (!why) {
		why = fail_once(monitor.fd, flags, nth++);
		if (!failure.has_failed)
			break;
	}
	/* At least an event has to be allocated. */
	return why ?: nth > 2 ? NULL : "nothing was made to fail";
}

FIXTURE(monitors) { };

FIXTURE_VARIANT(monitors)
{
	unsigned long flags;
};

FIXTURE_VARIANT_ADD(monitors, in_place) { 0 };
FIXTURE_VARIANT_ADD(monitors, moving) { FIXED };

FIXTURE_SETUP(monitors)
{
	SKIP_STOCK(STOCK_BUG);
	NEED_OK(prepare_fail_nth());
	NEED(count_contexts() >= 0, "needs " CONTEXTS);
}

FIXTURE_TEARDOWN(monitors) { }

TEST_F_TIMEOUT(monitors, are_let_go_mended, 300)
{
	const long before = count_contexts();

	for (int i = 0; i < MONITORS && !_metadata->exit_code; i++)
		EXPECT_OK_IN_CHILD(fail_with_monitor(variant->flags));
	/* Those of other tests may still go away. */
	EXPECT_GT(before + MONITORS / 2, count_contexts());
}

/* ---- memory runs out for good: the way back needs none ---- */

#define SPARSE_TABLES	24
#define SPARSE_SEEDS	6

/*
 * A few touched pages, in some of the page tables, while others never were, and
 * a new place where the tables end elsewhere. What went ahead to one table there
 * comes back to two, or to one less.
 */
FIXTURE(sparse)
{
	int fd;
	unsigned long src;
	unsigned long dst;
	size_t len;
	size_t pages[3 * SPARSE_TABLES + 1];	/* that are touched */
	int nr;
	struct vma vmas[3];
	int nr_vmas;
};

FIXTURE_VARIANT(sparse)
{
	enum backing backing;
	bool prefix;	/* the first mapping is touched only where it starts */
	bool several;	/* mappings, with a gap before the last one */
};

FIXTURE_VARIANT_ADD(sparse, anonymous) { ANONYMOUS, false, false };
FIXTURE_VARIANT_ADD(sparse, anonymous_prefix) { ANONYMOUS, true, false };
FIXTURE_VARIANT_ADD(sparse, anonymous_several) { ANONYMOUS, false, true };
FIXTURE_VARIANT_ADD(sparse, anonymous_prefix_several) { ANONYMOUS, true, true };
FIXTURE_VARIANT_ADD(sparse, shared) { SHARED_FILE, false, false };
FIXTURE_VARIANT_ADD(sparse, shared_prefix) { SHARED_FILE, true, false };
FIXTURE_VARIANT_ADD(sparse, shared_several) { SHARED_FILE, false, true };
FIXTURE_VARIANT_ADD(sparse, private) { PRIVATE_FILE, false, false };
FIXTURE_VARIANT_ADD(sparse, private_prefix) { PRIVATE_FILE, true, false };
FIXTURE_VARIANT_ADD(sparse, private_several) { PRIVATE_FILE, false, true };

#define SELF	FIXTURE_DATA(sparse) *self
#define VARIANT	const FIXTURE_VARIANT(sparse) *variant

FIXTURE_SETUP(sparse)
{
	SKIP_STOCK(STOCK_BUG);
	NEED_OK(start_failing(true));
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->len = SPARSE_TABLES * pmd_span();
	self->fd = memfd_create("mremap_accounting", 0);
	ASSERT_EQ(0, ftruncate(self->fd, self->len));
}

FIXTURE_TEARDOWN(sparse)
{
	stop_failing();
}

/* A seed says where the two places are, and what is touched. */
static void pick_layout(SELF, VARIANT, uint64_t seed)
{
	const size_t per_table = pmd_span() / psize();
	size_t head;

	random_state = seed * 0x9e3779b97f4a7c15ULL;
	head = seed % 2 ? pick(per_table) : 0;
	self->src = OLD_PLACE + bytes(head);
	self->dst = NEW_PLACE + bytes(head + 1 + pick(per_table - 1));
	self->nr = 0;
	for (int table = 0; table < SPARSE_TABLES; table++) {
		if (variant->prefix ? table >= 2 + (int)seed : pick(2))
			continue;
		for (int nr = 1 + pick(3); nr; nr--)
			self->pages[self->nr++] = table * per_table + pick(per_table);
	}
	/* For the last mapping to fail when the others have moved. */
	if (variant->prefix && variant->several)
		self->pages[self->nr++] = SPARSE_TABLES * per_table - 1;
}

static void build_sparse(META, SELF, VARIANT)
{
	const unsigned long middle = self->src + self->len / 4;
	const unsigned long last = self->src + self->len / 2;

	ASSERT_EQ(self->src, map_backed(variant->backing, self->src, self->len, self->fd));
	for (int i = 0; i < self->nr; i++)
		stamp(self->src + bytes(self->pages[i]), self->pages[i]);
	if (variant->several) {
		ASSERT_EQ(0, mprotect(at(middle), last - middle, PROT_READ));
		ASSERT_EQ(0, munmap(at(last), psize()));
	}
	self->nr_vmas = read_vmas(WINDOW, WINDOW + WINDOW_SIZE, self->vmas,
				  ARRAY_SIZE(self->vmas));
	ASSERT_EQ(variant->several ? 3 : 1, self->nr_vmas);
}

static const char *check_sparse(SELF, VARIANT, unsigned long addr)
{
	const size_t hole = self->len / 2 / psize();
	const char *why = NULL;

	for (int i = 0; !why && i < self->nr; i++)
		if (!variant->several || self->pages[i] != hole)
			why = check_stamp(addr + bytes(self->pages[i]), self->pages[i]);
	return why;
}

/* Mappings that there was no memory to remove, but no page. */
static const char *check_new_place(SELF)
{
	for (int i = 0; i < self->nr; i++)
		if (pagemap_entry(self->dst + bytes(self->pages[i])) & PM_MOVES)
			return "a page has stayed at the new place";
	if (munmap(at(self->dst), self->len))
		return "cannot unmap the new place";
	return NULL;
}

/* One call, from one of whose allocations on there is no more memory until it returns. */
static int run_out_of_memory(META, SELF, VARIANT)
{
	unsigned long to;

	build_sparse(_metadata, self, variant);
	arm_failure();
	to = move_to(self->src, self->len, self->len, self->dst);
	disarm_failure();
	if (error_of(to)) {
		EXPECT_EQ(ENOMEM, error_of(to));
		EXPECT_OK(check_new_place(self));
		EXPECT_OK(check_vmas(WINDOW, WINDOW + WINDOW_SIZE, self->vmas, self->nr_vmas));
		EXPECT_OK(check_sparse(self, variant, self->src));
	} else {
		EXPECT_EQ(self->dst, to);
		EXPECT_OK(check_unmapped(self->src, self->len));
		EXPECT_OK(check_sparse(self, variant, self->dst));
	}
	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	/* Else the file's pages would be right without being mapped. */
	ASSERT_EQ(0, ftruncate(self->fd, 0));
	ASSERT_EQ(0, ftruncate(self->fd, self->len));
	return error_of(to);
}

TEST_F_TIMEOUT(sparse, comes_back_without_memory_mended, 120)
{
	int failed = 0;

	for (int seed = 1; seed <= SPARSE_SEEDS; seed++) {
		pick_layout(self, variant, seed);
		failure.nth = 0;
		do {
			failure.nth += 1 + failure.nth / 3;
			ASSERT_GE(MOST_ALLOCATIONS, failure.nth);
			failed += !!run_out_of_memory(_metadata, self, variant);
			ASSERT_EQ(0, _metadata->exit_code)
				TH_LOG("seed %d, from allocation %d on", seed, failure.nth);
		} while (failure.has_failed);
		/* The new mapping, and a table at least. */
		ASSERT_LT(3, failure.nth);
	}
	EXPECT_LT(SPARSE_SEEDS, failed);
}

TEST_HARNESS_MAIN
