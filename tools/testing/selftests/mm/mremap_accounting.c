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
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_model.h"

#define SKIP_STOCK_BUG()						\
	do {								\
		if (expect_base())					\
			SKIP(return, "a bug of stock 6.12 that this catches"); \
	} while (0)

#define DST	(WINDOW + 2 * GB)
#define PART	(16 * MB)

/* ---- committed memory, when there is no more than there is ---- */

#define OVERCOMMIT	"/proc/sys/vm/overcommit_"

/* What is left to be committed, and what a call asks for and gives back. */
#define LEFT		(256 * MB)
#define GROWTH		(512 * MB)

FIXTURE(strict)
{
	char memory[32];
	char kbytes[32];
	char ratio[32];
};

FIXTURE_SETUP(strict)
{
	char limit[32];
	long kbytes;

	read_setting(OVERCOMMIT "memory", self->memory, sizeof(self->memory));
	read_setting(OVERCOMMIT "kbytes", self->kbytes, sizeof(self->kbytes));
	read_setting(OVERCOMMIT "ratio", self->ratio, sizeof(self->ratio));
	ASSERT_EQ(SRC, map_anon(SRC, PART));
	stamp(SRC, 1);
	ASSERT_EQ(DST, map_anon(DST, PART + GROWTH));

	/* Swap space comes on top of the limit. */
	kbytes = committed_kb() + LEFT / KB - meminfo_kb("SwapTotal");
	if (kbytes <= 0)
		SKIP(return, "needs less swap space");
	snprintf(limit, sizeof(limit), "%ld", kbytes);
	if (!write_setting(OVERCOMMIT "kbytes", limit) ||
	    !write_setting(OVERCOMMIT "memory", "2"))
		SKIP(return, "needs leave to set vm.overcommit_memory");
}

FIXTURE_TEARDOWN(strict)
{
	write_setting(OVERCOMMIT "memory", self->memory);
	/* Setting one of these two resets the other. */
	if (atol(self->kbytes))
		write_setting(OVERCOMMIT "kbytes", self->kbytes);
	else
		write_setting(OVERCOMMIT "ratio", self->ratio);
}

TEST_F(strict, old_destination_pays_for_growth)
{
	EXPECT_EQ(ENOMEM, error_of(move_to(SRC, PART, PART + GROWTH,
					   DST + GB)));
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_unmapped(DST + GB, PART + GROWTH));
	EXPECT_EQ(DST, move_to(SRC, PART, PART + GROWTH, DST));
	EXPECT_OK(check_stamp(DST, 1));
}

/* A destination that pays for a part only: nothing is lost, it least of all. */
TEST_F(strict, too_much_growth_mended)
{
	const long before = committed_kb();
	struct vma vma;

	SKIP_STOCK_BUG();
	stamp(DST, 2);
	EXPECT_EQ(ENOMEM, error_of(move_to(SRC, PART, 4 * GROWTH, DST)));
	EXPECT_OK(check_stamp(SRC, 1));
	ASSERT_TRUE(find_vma(DST, &vma));
	EXPECT_OK(check_stamp(DST, 2));
	EXPECT_EQ(before, committed_kb());
}

/* A process that takes all the memory it gets, while it is let. */
struct taker {
	volatile bool go;
	volatile bool holds;
	volatile bool rests;
};

static void take_memory(struct taker *taker)
{
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

static pid_t start_taker(META, struct taker *taker)
{
	const pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		take_memory(taker);
	}
	return pid;
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

	for (int nr = count_vmas(); nr < most && nr < 1000; nr++) {
		map_at(addr, psize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
		addr += 2 * psize();
	}
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

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "needs two processors");
	ASSERT_NE(MAP_FAILED, taker);
	/* The child would have these as well. */
	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	start_taker(_metadata, taker);
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

/* Reclaim finds only what is on its lists, and each processor keeps some back. */
static void stay_on_one_processor(void)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
}

/* The file's pages are written through a mapping that is gone afterwards. */
FIXTURE_SETUP(part)
{
	const size_t len = bytes(WHOLE);

	stay_on_one_processor();
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->fd = -1;
	if (variant->backing == ANONYMOUS) {
		ASSERT_EQ(SRC, map_anon(SRC, len));
		stamp_range(SRC, len, 1);
		return;
	}
	self->fd = memfd_create("mremap_accounting", 0);
	ASSERT_EQ(0, ftruncate(self->fd, 2 * len));
	ASSERT_EQ(SRC, map_at(SRC, 2 * len, PROT_READ | PROT_WRITE, MAP_SHARED,
			      self->fd, 0));
	stamp_range(SRC, 2 * len, 1);
	ASSERT_EQ(0, munmap(at(SRC), 2 * len));
	ASSERT_EQ(SRC, map_at(SRC, len, PROT_READ | PROT_WRITE,
			      variant->backing == SHARED_FILE ? MAP_SHARED :
			      MAP_PRIVATE, self->fd, 0));
}

FIXTURE_TEARDOWN(part)
{
}

#define SELF	FIXTURE_DATA(part) *self
#define VARIANT	const FIXTURE_VARIANT(part) *variant

static const char *check_whole(VARIANT, unsigned long moved)
{
	const size_t end = variant->start + variant->pages;
	const char *why = check_stamps(SRC, bytes(variant->start), 1);

	why = why ?: check_stamps(moved, bytes(variant->pages),
				  1 + variant->start);
	return why ?: check_stamps(SRC + bytes(end), bytes(WHOLE - end),
				   1 + end);
}

static unsigned long move_the_part(VARIANT, unsigned long flags)
{
	return do_mremap(SRC + bytes(variant->start), bytes(variant->pages),
			 bytes(variant->pages), FIXED | flags, DST);
}

/*
 * Who looks for the mappings of a page finds the moved one: reclaim for the
 * anonymous ones, the file for its own.
 */
static size_t page_out(unsigned long addr, size_t len)
{
	size_t left = len / psize();

	/* Now and then a page is busy. */
	for (int try = 0; left && try < 20; try++) {
		madvise(at(addr), len, MADV_PAGEOUT);
		left = len / psize() - count_pagemap(addr, len, PM_SWAP);
	}
	return left;
}

static void check_found(META, SELF, VARIANT)
{
	const size_t len = bytes(variant->pages);

	if (variant->backing == ANONYMOUS) {
		EXPECT_EQ(0UL, page_out(DST, len));
		EXPECT_EQ(0UL, page_out(SRC, bytes(variant->start)));
		EXPECT_OK(check_whole(variant, DST));
		return;
	}
	ASSERT_EQ(0, fallocate(self->fd,
			       FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       bytes(variant->start), len));
	EXPECT_EQ(0UL, count_pagemap(DST, len, PM_PRESENT));
	EXPECT_OK(check_zero(DST, len));
	EXPECT_OK(check_stamps(SRC, bytes(variant->start), 1));
}

TEST_F(part, is_found)
{
	if (variant->backing == ANONYMOUS && meminfo_kb("SwapFree") <= 0)
		SKIP(return, "needs swap space");
	ASSERT_OK(check_whole(variant, SRC + bytes(variant->start)));
	ASSERT_EQ(DST, move_the_part(variant, 0));
	check_found(_metadata, self, variant);
}

TEST_F(part, is_found_after_dontunmap)
{
	if (variant->backing == ANONYMOUS && meminfo_kb("SwapFree") <= 0)
		SKIP(return, "needs swap space");
	ASSERT_OK(check_whole(variant, SRC + bytes(variant->start)));
	ASSERT_EQ(DST, move_the_part(variant, MREMAP_DONTUNMAP));
	check_found(_metadata, self, variant);
}

#undef SELF
#undef VARIANT

/* Whether a call moves more than one mapping. */
static bool several_can_move(void)
{
	const size_t len = bytes(2);
	bool moved;

	map_anon(SRC, len);
	mprotect(at(SRC), psize(), PROT_READ);
	moved = !error_of(move_to(SRC, len, len, DST));
	munmap(at(WINDOW), WINDOW_SIZE);
	return moved;
}

/* ---- a third mapping, in the table where the moved one ends ---- */

#define OLD_PLACE	(WINDOW + 4 * GB)
#define NEW_PLACE	(WINDOW + 8 * GB)

/*
 * A mapping that is one with its neighbour at the new place, once it is there. A
 * table that both have there was the neighbour's before, and stays so if the move
 * fails when all has moved: what cannot be had is the memory to announce it.
 */
FIXTURE(third)
{
	int uffd;
	pthread_t reader;
};

FIXTURE_VARIANT(third)
{
	size_t len;		/* of the mapping and its neighbour, which has */
	size_t third;		/* this much of it, up to the end of a table */
	size_t touched;		/* so much from its start on */
};

FIXTURE_VARIANT_ADD(third, untouched) { 4 * MB, MB, 0 };
FIXTURE_VARIANT_ADD(third, first_table) { 4 * MB, MB, 2 * MB };
FIXTURE_VARIANT_ADD(third, directory) { GB, MB, 0 };

#define SELF	FIXTURE_DATA(third) *self
#define VARIANT	const FIXTURE_VARIANT(third) *variant

/* The call waits until its event is read. */
static void *read_forever(void *fd)
{
	struct uffd_msg msg;

	while (read(*(int *)fd, &msg, sizeof(msg)) > 0)
		;
	return NULL;
}

FIXTURE_SETUP(third)
{
	const char *why = start_failing(false);

	if (why)
		SKIP(return, "%s", why);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->uffd = open_uffd(UFFD_FEATURE_EVENT_UNMAP);
	if (self->uffd < 0)
		SKIP(return, "needs userfaultfd with events");
	/* The reader is to wait. */
	ASSERT_EQ(0, fcntl(self->uffd, F_SETFL, 0));
	ASSERT_EQ(0, pthread_create(&self->reader, NULL, read_forever,
				    &self->uffd));
}

FIXTURE_TEARDOWN(third)
{
	stop_failing();
}

static unsigned long third_at(VARIANT)
{
	return NEW_PLACE + variant->len - variant->third;
}

/*
 * They were one mapping, so that they merge also if something is touched. Where
 * nothing is, there has never been a table.
 */
static void build_third(META, SELF, VARIANT)
{
	const unsigned long third = third_at(variant);
	const size_t len = variant->len - variant->third;

	ASSERT_EQ(WINDOW, map_anon(WINDOW, variant->len));
	stamp_range(WINDOW, variant->touched, 1);
	ASSERT_EQ(OLD_PLACE, move_to(WINDOW, len, len, OLD_PLACE));
	ASSERT_EQ(third, move_to(WINDOW + len, variant->third, variant->third,
				 third));
	stamp_range(third, variant->third, 5000);
	ASSERT_EQ(0, uffd_register(self->uffd, at(OLD_PLACE), len, true, false,
				   false));
}

static bool fail_beside_third(META, SELF, VARIANT, int nth)
{
	const size_t len = variant->len - variant->third;
	unsigned long to;
	bool injected;
	struct vma vma;

	build_third(_metadata, self, variant);
	save_state();
	ASSERT_TRUE(arm_fail_nth(failure.fd, nth));
	to = move_to(OLD_PLACE, len, len, NEW_PLACE);
	injected = disarm_fail_nth(failure.fd);
	if (error_of(to)) {
		EXPECT_EQ(ENOMEM, error_of(to));
		EXPECT_OK(check_state());
	} else {
		EXPECT_EQ(NEW_PLACE, to);
	}
	EXPECT_OK(check_stamps(third_at(variant), variant->third, 5000));
	EXPECT_OK(check_stamps(error_of(to) ? OLD_PLACE : NEW_PLACE,
			       variant->touched, 1));
	/* Else this shows nothing. */
	if (!injected)
		EXPECT_TRUE(find_vma(NEW_PLACE, &vma) &&
			    vma.end == NEW_PLACE + variant->len);
	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	return injected;
}

TEST_F_TIMEOUT(third, keeps_its_table_mended, 120)
{
	int nth = 1;

	SKIP_STOCK_BUG();
	while (nth <= MOST_ALLOCATIONS && !_metadata->exit_code &&
	       fail_beside_third(_metadata, self, variant, nth))
		nth++;
	if (_metadata->exit_code)
		TH_LOG("with allocation %d failing", nth);
	EXPECT_GE(MOST_ALLOCATIONS, nth);
	/* At least a new mapping has to be allocated. */
	EXPECT_LT(1, nth);
}

#undef SELF
#undef VARIANT

/* ---- a call that fails lets go of the monitors that it was about to tell ---- */

#define CONTEXTS	"/sys/kernel/slab/userfaultfd_ctx_cache/"
#define MONITORS	50

/* Without those that the allocator has not taken back yet; -1 if it does not tell. */
static long count_contexts(void)
{
	return write_setting(CONTEXTS "shrink", "1") ?
		read_long(CONTEXTS "objects") : -1;
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
	int nth = 1, uffd;
	pthread_t reader;

	uffd = open_uffd(UFFD_FEATURE_EVENT_UNMAP);
	if (!why && (uffd < 0 || fcntl(uffd, F_SETFL, 0) ||
		     pthread_create(&reader, NULL, read_forever, &uffd)))
		why = "cannot start a monitor";
	while (!why) {
		why = fail_once(uffd, flags, nth++);
		if (!failure.has_failed)
			break;
	}
	/* At least an event has to be allocated. */
	return why ?: nth > 2 ? NULL : "nothing was made to fail";
}

FIXTURE(monitors)
{
};

FIXTURE_VARIANT(monitors)
{
	unsigned long flags;
};

FIXTURE_VARIANT_ADD(monitors, in_place) { 0 };
FIXTURE_VARIANT_ADD(monitors, moving) { FIXED };

FIXTURE_SETUP(monitors)
{
	const char *why = prepare_fail_nth();

	if (why)
		SKIP(return, "%s", why);
	if (count_contexts() < 0)
		SKIP(return, "needs " CONTEXTS);
}

FIXTURE_TEARDOWN(monitors)
{
}

TEST_F_TIMEOUT(monitors, are_let_go_mended, 300)
{
	const long before = count_contexts();

	SKIP_STOCK_BUG();
	for (int i = 0; i < MONITORS && !_metadata->exit_code; i++)
		EXPECT_OK_IN_CHILD(fail_with_monitor(variant->flags));
	/* Those of other tests may still go away. */
	EXPECT_GT(before + MONITORS / 2, count_contexts());
}

/* ---- memory runs out for good: the way back needs none ---- */

#define SPARSE_TABLES	24
#define SPARSE_SEEDS	6
#define SPARSE_POINTS	8

/*
 * A few touched pages, in some of the page tables, while others never were, and
 * a new place where the tables end elsewhere. What went ahead to one table there
 * comes back to two, or to one less.
 */
FIXTURE(sparse)
{
	int fd;
	uint64_t random;
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
	const char *why = start_failing(true);

	if (why)
		SKIP(return, "%s", why);
	if (variant->several && !several_can_move())
		SKIP(return, "needs moves of several mappings");
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->len = SPARSE_TABLES * pmd_span();
	self->fd = memfd_create("mremap_accounting", 0);
	ASSERT_EQ(0, ftruncate(self->fd, self->len));
}

FIXTURE_TEARDOWN(sparse)
{
	stop_failing();
}

static size_t pick_next(SELF, size_t limit)
{
	self->random = self->random * 6364136223846793005ULL +
		       1442695040888963407ULL;
	return (self->random >> 33) % limit;
}

/* A seed says where the two places are, and what is touched. */
static void pick_layout(SELF, VARIANT, uint64_t seed)
{
	const size_t per_table = pmd_span() / psize();
	size_t head;

	self->random = seed;
	head = seed % 2 ? pick_next(self, per_table) : 0;
	self->src = OLD_PLACE + bytes(head);
	self->dst = NEW_PLACE + bytes(head + 1 + pick_next(self, per_table - 1));
	self->nr = 0;
	for (int table = 0; table < SPARSE_TABLES; table++) {
		if (variant->prefix ? table >= 2 + (int)seed : pick_next(self, 2))
			continue;
		for (size_t nr = 1 + pick_next(self, 3); nr; nr--)
			self->pages[self->nr++] = table * per_table +
						  pick_next(self, per_table);
	}
	/* For the last mapping to fail when the others have moved. */
	if (variant->prefix && variant->several)
		self->pages[self->nr++] = SPARSE_TABLES * per_table - 1;
}

static void build_sparse(META, SELF, VARIANT)
{
	const int flags = variant->backing == SHARED_FILE ? MAP_SHARED :
							    MAP_PRIVATE;
	const unsigned long middle = self->src + self->len / 4;
	const unsigned long last = self->src + self->len / 2;

	ASSERT_EQ(self->src, map_at(self->src, self->len,
				    PROT_READ | PROT_WRITE,
				    variant->backing == ANONYMOUS ?
				    flags | MAP_ANONYMOUS : flags,
				    variant->backing == ANONYMOUS ? -1 :
				    self->fd, 0));
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

static bool is_in_hole(SELF, VARIANT, size_t page)
{
	return variant->several && page == self->len / 2 / psize();
}

static const char *check_sparse(SELF, VARIANT, unsigned long addr)
{
	const char *why = NULL;

	for (int i = 0; !why && i < self->nr; i++)
		if (!is_in_hole(self, variant, self->pages[i]))
			why = check_stamp(addr + bytes(self->pages[i]),
					  self->pages[i]);
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

/*
 * One call, from whose nth allocation on there is no more memory until it
 * returns. How many there are is what it says if nth is 0, and it has as much as
 * it wants.
 */
static int run_out_of_memory(META, SELF, VARIANT, int nth)
{
	const int many = 1000;
	char left[16] = "";
	unsigned long to;

	build_sparse(_metadata, self, variant);
	if (nth)
		ASSERT_EQ(1, pwrite(failure.make_it_fail, "1", 1, 0));
	ASSERT_TRUE(arm_fail_nth(failure.fd, nth ?: many));
	to = move_to(self->src, self->len, self->len, self->dst);
	ASSERT_LT(0, pread(failure.fd, left, sizeof(left) - 1, 0));
	arm_fail_nth(failure.fd, 0);
	ASSERT_EQ(1, pwrite(failure.make_it_fail, "0", 1, 0));
	if (error_of(to)) {
		EXPECT_EQ(ENOMEM, error_of(to));
		EXPECT_OK(check_new_place(self));
		EXPECT_OK(check_vmas(WINDOW, WINDOW + WINDOW_SIZE, self->vmas,
				     self->nr_vmas));
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
	return nth ? error_of(to) : many - atoi(left);
}

TEST_F_TIMEOUT(sparse, comes_back_without_memory_mended, 120)
{
	int failed = 0;

	SKIP_STOCK_BUG();
	for (int seed = 1; seed <= SPARSE_SEEDS; seed++) {
		int total;

		pick_layout(self, variant, seed);
		total = run_out_of_memory(_metadata, self, variant, 0);
		/* The new mapping, and a table at least. */
		ASSERT_LT(2, total);
		for (int i = 0; i < SPARSE_POINTS; i++) {
			const int nth = 1 + i * total / SPARSE_POINTS;

			failed += !!run_out_of_memory(_metadata, self, variant,
						      nth);
			if (_metadata->exit_code)
				TH_LOG("seed %d, from allocation %d of %d on",
				       seed, nth, total);
			if (_metadata->exit_code)
				return;
		}
	}
	EXPECT_LT(SPARSE_SEEDS, failed);
}

TEST_HARNESS_MAIN
