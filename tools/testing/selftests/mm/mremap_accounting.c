// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap(2) charges: memory committed, to the page, when a call succeeds
 * and when it fails halfway. Nothing else that commits memory may run beside
 * this.
 *
 * The sweeps let every single allocation of a call fail in turn, and then also
 * all that follow it. They need a kernel with fault injection
 * (CONFIG_FAULT_INJECTION_DEBUG_FS, FAILSLAB and FAIL_PAGE_ALLOC).
 *
 * Tests whose name ends in _mended fail on stock 6.12, which does not undo all
 * that a failed call has done; MREMAP_EXPECT=base skips them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define SKIP_STOCK_BUG()						\
	if (expect_base())						\
		SKIP(return, "a bug of stock 6.12 that this catches")

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 2 * GB)

/* ---- committed memory ---- */

/* Large, so that a page of somebody else's cannot hide a mistake. */
#define LEN	(64 * MB)
#define PART	(16 * MB)

enum kind {
	PRIVATE,	/* charged */
	NORESERVE,	/* not charged */
	SHARED,		/* charged to the object, not to the mapping */
};

FIXTURE(committed)
{
	long before;
	long mapped;	/* what the mapping itself was charged */
};

FIXTURE_VARIANT(committed)
{
	enum kind kind;
};

FIXTURE_VARIANT_ADD(committed, private) { PRIVATE };
FIXTURE_VARIANT_ADD(committed, noreserve) { NORESERVE };
FIXTURE_VARIANT_ADD(committed, shared) { SHARED };

static unsigned long map_kind(enum kind kind, unsigned long addr, size_t len)
{
	const int flags[] = {
		[PRIVATE] = MAP_PRIVATE,
		[NORESERVE] = MAP_PRIVATE | MAP_NORESERVE,
		[SHARED] = MAP_SHARED,
	};

	return map_at(addr, len, PROT_READ | PROT_WRITE,
		      flags[kind] | MAP_ANONYMOUS, -1, 0);
}

FIXTURE_SETUP(committed)
{
	if (read_long("/proc/sys/vm/overcommit_memory") != 0)
		SKIP(return, "needs vm.overcommit_memory = 0");
	committed_kb();
	self->before = committed_kb();
	ASSERT_EQ(SRC, map_kind(variant->kind, SRC, LEN));
	self->mapped = committed_kb() - self->before;
	ASSERT_EQ(variant->kind == NORESERVE ? 0 : (long)(LEN / KB),
		  self->mapped);
	stamp(SRC, 1);
	stamp(SRC + LEN - psize(), 2);
}

FIXTURE_TEARDOWN(committed)
{
}

#define SELF	FIXTURE_DATA(committed) *self
#define VARIANT	const FIXTURE_VARIANT(committed) *variant

/* The mapping is charged this much more than at first. */
static void check_charge(META, SELF, VARIANT, long more)
{
	if (variant->kind != PRIVATE)
		more = 0;
	EXPECT_EQ(self->before + self->mapped + more / (long)KB,
		  committed_kb());
}

/* Once all is unmapped all is given back: no charge was lost or doubled. */
static void check_given_back(META, SELF)
{
	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	EXPECT_EQ(self->before, committed_kb());
}

static void check_accounted(META, VARIANT, unsigned long addr)
{
	EXPECT_EQ(variant->kind == PRIVATE, has_vmflag(addr, "ac"));
}

TEST_F(committed, move)
{
	ASSERT_EQ(DST, move_to(SRC, LEN, LEN, DST));
	check_charge(_metadata, self, variant, 0);
	check_accounted(_metadata, variant, DST);
	check_given_back(_metadata, self);
}

TEST_F(committed, shrink)
{
	ASSERT_EQ(SRC, do_mremap(SRC, LEN, LEN - PART, 0, 0));
	check_charge(_metadata, self, variant, -PART);
	check_given_back(_metadata, self);
}

TEST_F(committed, grow_in_place)
{
	ASSERT_EQ(SRC, do_mremap(SRC, LEN, LEN + PART, 0, 0));
	check_charge(_metadata, self, variant, PART);
	check_accounted(_metadata, variant, SRC);
	check_given_back(_metadata, self);
}

TEST_F(committed, grow_by_moving)
{
	unsigned long to;

	ASSERT_EQ(SRC + LEN, map_at(SRC + LEN, psize(), PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	to = do_mremap(SRC, LEN, LEN + PART, MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	check_charge(_metadata, self, variant, PART);
	check_accounted(_metadata, variant, to);
	ASSERT_EQ(0, munmap(at(to), LEN + PART));
	check_given_back(_metadata, self);
}

TEST_F(committed, move_and_grow)
{
	ASSERT_EQ(DST, move_to(SRC, LEN, LEN + PART, DST));
	check_charge(_metadata, self, variant, PART);
	check_given_back(_metadata, self);
}

TEST_F(committed, move_and_shrink)
{
	ASSERT_EQ(DST, move_to(SRC, LEN, LEN - PART, DST));
	check_charge(_metadata, self, variant, -PART);
	check_given_back(_metadata, self);
}

TEST_F(committed, move_over_mapping)
{
	ASSERT_EQ(DST, map_anon(DST, 2 * LEN));
	ASSERT_EQ(DST + PART, move_to(SRC, LEN, LEN, DST + PART));
	/* Half of the private mapping at DST is left. */
	EXPECT_EQ(self->before + self->mapped + (long)(LEN / KB),
		  committed_kb());
	check_given_back(_metadata, self);
}

/*
 * What the old destination gives back pays for the growth, all of it or a part:
 * that is charged once, to the new mapping.
 */
static void grow_over(META, SELF, VARIANT, enum kind old, size_t start,
		      size_t len)
{
	ASSERT_EQ(DST + start, map_kind(old, DST + start, len));
	ASSERT_EQ(DST, move_to(SRC, LEN, LEN + PART, DST));
	check_charge(_metadata, self, variant, PART);
	check_accounted(_metadata, variant, DST);
	ASSERT_EQ(0, munmap(at(DST), LEN + PART));
	EXPECT_EQ(self->before, committed_kb());
}

TEST_F(committed, grow_over_mapping)
{
	grow_over(_metadata, self, variant, PRIVATE, 0, LEN + PART);
}

TEST_F(committed, grow_over_smaller_mapping)
{
	grow_over(_metadata, self, variant, PRIVATE, LEN, PART / 2);
}

TEST_F(committed, grow_over_uncharged_mapping)
{
	grow_over(_metadata, self, variant, NORESERVE, 0, LEN);
}

/* Only a part of what was mapped at the destination goes away. */
TEST_F(committed, grow_over_part_of_mapping)
{
	const long rest = (long)(LEN / KB);

	ASSERT_EQ(DST + PART, map_anon(DST + PART, 2 * LEN));
	ASSERT_EQ(DST, move_to(SRC, LEN, LEN + PART, DST));
	EXPECT_EQ(self->before + self->mapped + rest +
		  (variant->kind == PRIVATE ? (long)(PART / KB) : 0),
		  committed_kb());
	check_given_back(_metadata, self);
}

TEST_F(committed, dontunmap_over_mapping)
{
	ASSERT_EQ(DST, map_anon(DST, LEN));
	ASSERT_EQ(DST, do_mremap(SRC, LEN, LEN, FIXED | DONTUNMAP, DST));
	check_charge(_metadata, self, variant, LEN);
	ASSERT_EQ(0, munmap(at(DST), LEN));
	check_charge(_metadata, self, variant, 0);
	check_given_back(_metadata, self);
}

/* What the call drops ends inside of a mapping: the rest is still charged. */
TEST_F(committed, move_and_shrink_part)
{
	ASSERT_EQ(0, mprotect(at(SRC + LEN - PART), PART, PROT_READ));
	ASSERT_EQ(DST, move_to(SRC + PART, LEN - 3 * PART / 2, PART, DST));
	check_charge(_metadata, self, variant, 3 * PART / 2 + PART - LEN);
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_stamp(SRC + LEN - psize(), 2));
	check_given_back(_metadata, self);
}

TEST_F(committed, dontunmap)
{
	ASSERT_EQ(DST, do_mremap(SRC, LEN, LEN, FIXED | DONTUNMAP, DST));
	check_charge(_metadata, self, variant, LEN);
	check_accounted(_metadata, variant, SRC);
	check_accounted(_metadata, variant, DST);
	check_given_back(_metadata, self);
}

TEST_F(committed, dontunmap_part)
{
	ASSERT_EQ(DST, do_mremap(SRC + PART, PART, PART, FIXED | DONTUNMAP,
				 DST));
	check_charge(_metadata, self, variant, PART);
	check_given_back(_metadata, self);
}

/* The parts that stay are still charged when a part moves away. */
static void move_part(META, SELF, VARIANT, size_t start, size_t len)
{
	ASSERT_EQ(DST, move_to(SRC + start, len, len, DST));
	check_charge(_metadata, self, variant, 0);
	check_accounted(_metadata, variant, DST);
	if (start)
		check_accounted(_metadata, variant, SRC);
	if (start + len < LEN)
		check_accounted(_metadata, variant, SRC + start + len);
	ASSERT_EQ(0, munmap(at(DST), len));
	check_charge(_metadata, self, variant, -len);
	check_given_back(_metadata, self);
}

TEST_F(committed, head)
{
	move_part(_metadata, self, variant, 0, PART);
}

TEST_F(committed, middle)
{
	move_part(_metadata, self, variant, PART, PART);
}

TEST_F(committed, tail)
{
	move_part(_metadata, self, variant, LEN - PART, PART);
}

/* Growing the front part moves it and leaves the rest where it is. */
TEST_F(committed, grow_front_part)
{
	unsigned long to = do_mremap(SRC, PART, 2 * PART, MREMAP_MAYMOVE, 0);

	ASSERT_EQ(0, error_of(to));
	check_charge(_metadata, self, variant, PART);
	check_accounted(_metadata, variant, SRC + PART);
	ASSERT_EQ(0, munmap(at(to), 2 * PART));
	check_given_back(_metadata, self);
}

/* Only what is charged can be too much. */
TEST_F(committed, grow_over_memory)
{
	const int error = variant->kind == PRIVATE ? ENOMEM : 0;

	EXPECT_EQ(error, error_of(move_to(SRC, LEN, 1UL << 40, SRC - (2UL << 40))));
	check_charge(_metadata, self, variant, 0);
	if (error)
		EXPECT_OK(check_stamp(SRC, 1));
	munmap(at(SRC - (2UL << 40)), 1UL << 40);
	check_given_back(_metadata, self);
}

/* Not writable, so not charged; made writable after the move it is. */
TEST_F(committed, read_only)
{
	const long before = committed_kb();

	ASSERT_EQ(DST, map_at(DST, LEN, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0));
	ASSERT_EQ(DST + 2 * LEN, move_to(DST, LEN, 2 * LEN, DST + 2 * LEN));
	EXPECT_EQ(before, committed_kb());
	ASSERT_EQ(0, mprotect(at(DST + 2 * LEN), 2 * LEN,
			      PROT_READ | PROT_WRITE));
	EXPECT_EQ(before + (long)(2 * LEN / KB), committed_kb());
	check_given_back(_metadata, self);
}

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

/* ---- a part of a mapping keeps its place in the whole ---- */

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

#undef SELF
#undef VARIANT
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

static unsigned long move_the_part(VARIANT, size_t more, unsigned long flags)
{
	return do_mremap(SRC + bytes(variant->start), bytes(variant->pages),
			 bytes(variant->pages + more), FIXED | flags, DST);
}

/* A file's pages are faulted in only now, at the new place. */
TEST_F(part, move)
{
	ASSERT_EQ(DST, move_the_part(variant, 0, 0));
	EXPECT_OK(check_whole(variant, DST));
}

TEST_F(part, move_touched)
{
	ASSERT_OK(check_whole(variant, SRC + bytes(variant->start)));
	ASSERT_EQ(DST, move_the_part(variant, 0, 0));
	EXPECT_OK(check_whole(variant, DST));
}

/* A longer view of a file shows what follows there. */
TEST_F(part, grow)
{
	const size_t end = variant->start + variant->pages;

	ASSERT_EQ(DST, move_the_part(variant, 7, 0));
	EXPECT_OK(check_whole(variant, DST));
	if (variant->backing == ANONYMOUS)
		EXPECT_OK(check_zero(DST + bytes(variant->pages), bytes(7)));
	else
		EXPECT_OK(check_stamps(DST + bytes(variant->pages), bytes(7),
				       1 + end));
}

TEST_F(part, dontunmap)
{
	const unsigned long old = SRC + bytes(variant->start);

	ASSERT_EQ(DST, move_the_part(variant, 0, MREMAP_DONTUNMAP));
	EXPECT_OK(check_whole(variant, DST));
	if (variant->backing == ANONYMOUS)
		EXPECT_OK(check_zero(old, bytes(variant->pages)));
	else
		EXPECT_OK(check_whole(variant, old));
}

/* Moved back it is one mapping again, and nothing tells that it was away. */
TEST_F(part, there_and_back)
{
	const unsigned long old = SRC + bytes(variant->start);
	const size_t len = bytes(variant->pages);

	ASSERT_OK(check_whole(variant, old));
	save_state();
	ASSERT_EQ(DST, move_the_part(variant, 0, 0));
	ASSERT_EQ(old, move_to(DST, len, len, old));
	EXPECT_OK(check_state());
	EXPECT_OK(check_whole(variant, old));
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
	ASSERT_EQ(DST, move_the_part(variant, 0, 0));
	check_found(_metadata, self, variant);
}

TEST_F(part, is_found_after_dontunmap)
{
	if (variant->backing == ANONYMOUS && meminfo_kb("SwapFree") <= 0)
		SKIP(return, "needs swap space");
	ASSERT_OK(check_whole(variant, SRC + bytes(variant->start)));
	ASSERT_EQ(DST, move_the_part(variant, 0, MREMAP_DONTUNMAP));
	check_found(_metadata, self, variant);
}

/* A second view of a shared mapping, from its middle on. */
TEST_F(part, duplicate)
{
	const unsigned long old = SRC + bytes(variant->start);
	const int error = variant->backing == SHARED_FILE ? 0 : EINVAL;

	EXPECT_EQ(error, error_of(move_to(old, 0, bytes(variant->pages), DST)));
	EXPECT_OK(check_whole(variant, error ? old : DST));
	EXPECT_OK(check_whole(variant, old));
}

/* ---- a part moves beside the rest, and must not be taken for one with it ---- */

#define HALF	(WHOLE / 2)

enum touch {
	UNTOUCHED,
	READ,		/* has zero pages only: it may still merge anywhere */
	WRITTEN,
};

FIXTURE(beside)
{
	unsigned long old;
	unsigned long to;
	long committed;
	long locked;
};

FIXTURE_VARIANT(beside)
{
	enum touch touch;
	bool upper;	/* half of the mapping is it that moves */
	bool above;	/* of the mapping is where it goes */
};

FIXTURE_VARIANT_ADD(beside, lower_below) { UNTOUCHED, false, false };
FIXTURE_VARIANT_ADD(beside, lower_above) { UNTOUCHED, false, true };
FIXTURE_VARIANT_ADD(beside, upper_below) { UNTOUCHED, true, false };
FIXTURE_VARIANT_ADD(beside, upper_above) { UNTOUCHED, true, true };
FIXTURE_VARIANT_ADD(beside, read_lower_below) { READ, false, false };
FIXTURE_VARIANT_ADD(beside, read_lower_above) { READ, false, true };
FIXTURE_VARIANT_ADD(beside, read_upper_below) { READ, true, false };
FIXTURE_VARIANT_ADD(beside, read_upper_above) { READ, true, true };
FIXTURE_VARIANT_ADD(beside, written_lower_below) { WRITTEN, false, false };
FIXTURE_VARIANT_ADD(beside, written_lower_above) { WRITTEN, false, true };
FIXTURE_VARIANT_ADD(beside, written_upper_below) { WRITTEN, true, false };
FIXTURE_VARIANT_ADD(beside, written_upper_above) { WRITTEN, true, true };

FIXTURE_SETUP(beside)
{
	struct counters now;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	committed_kb();
	self->committed = committed_kb();
	read_counters(&now);
	self->locked = now.locked;
	self->old = SRC + (variant->upper ? bytes(HALF) : 0);
	self->to = variant->above ? SRC + bytes(WHOLE) : SRC - bytes(HALF);
	ASSERT_EQ(SRC, map_anon(SRC, bytes(WHOLE)));
	if (variant->touch == READ)
		ASSERT_OK(check_zero(SRC, bytes(WHOLE)));
	if (variant->touch == WRITTEN)
		stamp_range(SRC, bytes(WHOLE), 1);
}

FIXTURE_TEARDOWN(beside)
{
}

#undef SELF
#undef VARIANT
#define SELF	FIXTURE_DATA(beside) *self
#define VARIANT	const FIXTURE_VARIANT(beside) *variant

/* The half at addr has the contents of the upper or of the lower half. */
static const char *check_half(VARIANT, unsigned long addr, bool upper)
{
	if (variant->touch == WRITTEN)
		return check_stamps(addr, bytes(HALF), upper ? 1 + HALF : 1);
	return check_zero(addr, bytes(HALF));
}

static const char *check_halves(SELF, VARIANT)
{
	const unsigned long rest = SRC + (variant->upper ? 0 : bytes(HALF));
	const char *why = check_half(variant, self->to, variant->upper);

	return why ?: check_half(variant, rest, !variant->upper);
}

/* No charge and no lock of a page was lost or counted twice. */
static void check_all_returned(META, SELF)
{
	struct counters now;

	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	read_counters(&now);
	EXPECT_EQ(self->committed, committed_kb());
	EXPECT_EQ(self->locked, now.locked);
}

TEST_F(beside, move)
{
	struct counters before, after;

	read_counters(&before);
	ASSERT_EQ(self->to, move_to(self->old, bytes(HALF), bytes(HALF),
				    self->to));
	read_counters(&after);
	EXPECT_EQ(before.size, after.size);
	EXPECT_EQ(before.data, after.data);
	EXPECT_EQ(before.rss_anon, after.rss_anon);
	EXPECT_OK(check_unmapped(self->old, bytes(HALF)));
	EXPECT_OK(check_halves(self, variant));
	check_all_returned(_metadata, self);
}

/* Grown, so that it could swallow what is behind. */
TEST_F(beside, move_and_grow)
{
	const unsigned long to = variant->above ? self->to :
		self->to - bytes(HALF);

	ASSERT_EQ(to, move_to(self->old, bytes(HALF), bytes(WHOLE), to));
	self->to = to;
	EXPECT_OK(check_unmapped(self->old, bytes(HALF)));
	EXPECT_OK(check_halves(self, variant));
	EXPECT_OK(check_zero(to + bytes(HALF), bytes(HALF)));
	check_all_returned(_metadata, self);
}

/* Two mappings, each on its own: what becomes of one is not the other's affair. */
TEST_F(beside, dontunmap)
{
	const unsigned long seam = variant->above ? self->to : SRC;
	struct vma below, above;

	ASSERT_EQ(self->to, do_mremap(self->old, bytes(HALF), bytes(HALF),
				      FIXED | DONTUNMAP, self->to));
	ASSERT_TRUE(find_vma(seam - 1, &below));
	ASSERT_TRUE(find_vma(seam, &above));
	EXPECT_EQ(seam, below.end);
	EXPECT_EQ(seam, above.start);
	EXPECT_OK(check_halves(self, variant));
	EXPECT_OK(check_zero(self->old, bytes(HALF)));
	check_all_returned(_metadata, self);
}

static bool is_locked(unsigned long addr)
{
	struct vma vma;

	return find_vma(addr, &vma) && has_vmflag(vma.start, "lo");
}

/* The lock goes with the moved half, and stays with the other one. */
TEST_F(beside, dontunmap_locked)
{
	const unsigned long rest = SRC + (variant->upper ? 0 : bytes(HALF));
	struct counters before, after;

	ASSERT_EQ(0, mlock2(at(SRC), bytes(WHOLE), MLOCK_ONFAULT));
	read_counters(&before);
	ASSERT_EQ(self->to, do_mremap(self->old, bytes(HALF), bytes(HALF),
				      FIXED | DONTUNMAP, self->to));
	read_counters(&after);
	EXPECT_EQ(before.locked, after.locked);
	EXPECT_TRUE(is_locked(self->to));
	EXPECT_TRUE(is_locked(rest));
	EXPECT_FALSE(is_locked(self->old));
	EXPECT_OK(check_halves(self, variant));
	check_all_returned(_metadata, self);
}

/* ---- every allocation fails once ---- */

#define FAILSLAB	"/sys/kernel/debug/failslab/"
#define FAIL_PAGES	"/sys/kernel/debug/fail_page_alloc/"

/* More allocations than any of the calls below makes. */
#define MOST_ALLOCATIONS	400

/* All that a sweep maps lies in here; the upper half is ballast. */
#define SWEEP_SIZE	(8UL << 40)
#define BALLAST		(WINDOW + SWEEP_SIZE / 2)

/* What is mapped at the source. */
enum memory {
	ANON,
	EMPTY,			/* ANON, and never touched */
	SHMEM,
	HUGE,			/* ANON in transparent huge pages */
	HUGETLB,
	HUGETLB_SHARED,
	SEVERAL,		/* a third is ANON, one read-only, one a file */
	SEVERAL_AND_GAP,	/* and nothing between the last two */
};

/* What is special about it. */
#define OCCUPIED	0x001	/* two mappings are at the destination */
#define TWO_MAPPINGS	0x002	/* the second half of the source is read-only */
#define LOCKED		0x004
#define UFFD		0x008	/* registered */
#define UFFD_EVENTS	0x010	/* and events are asked for */
#define UFFD_WP		0x020	/* and the first half is write-protected */
#define KSM		0x040	/* all pages are the same, and merged */
#define SOFT_DIRTY	0x080	/* tracking is on, and every other page dirty */
#define BESIDE		0x100	/* the destination ends where the mapping starts */
#define NEIGHBOUR	0x200	/* growing in place meets a mapping */
#define WIDE		0x400	/* for tables that move whole */
#define MERGES		0x800	/* what is beside the source has moved before */

struct ledger {
	struct counters counters;
	long committed;
	long free;		/* huge pages */
	long reserved;
};

FIXTURE(sweep)
{
	int fail_nth;
	int make_it_fail;
	int pagemap;
	int uffd;
	int stop[2];
	int stopped[2];
	pthread_t reader;
	int nr_events;

	int nth;
	bool from_there_on;	/* all that follow the nth fail, too */
	size_t touched;
	uint64_t pages[64];
	struct ledger cleared;	/* with nothing mapped */
	struct ledger built;	/* just before the call */
	long huge;
	struct smap smaps[16];
	int nr_smaps;
};

FIXTURE_VARIANT(sweep)
{
	enum memory memory;
	unsigned int with;
	size_t src;		/* offset of the source, in pages */
	size_t dst;		/* offset of the destination */
	size_t old_pages;
	size_t new_pages;
	size_t below;		/* pages of the same mapping below the source */
	size_t above;
	size_t step;		/* every step-th page is touched */
	unsigned long flags;
};

/* Page tables have 512 entries where these numbers matter. */
FIXTURE_VARIANT_ADD(sweep, one_page) {
	.old_pages = 1, .new_pages = 1, .step = 1, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, middle) {
	.src = 3, .dst = 7, .old_pages = 24, .new_pages = 24, .below = 1,
	.above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, four_tables_of_pages) {
	.src = 3, .dst = 7, .old_pages = 4 * 512, .new_pages = 4 * 512,
	.above = 1, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, across_directories) {
	.src = 512 * 512 - 600, .dst = 512 * 512 - 5, .old_pages = 1200,
	.new_pages = 1200, .above = 1, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, shared) {
	.memory = SHMEM, .src = 3, .dst = 7, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 1, .above = 1, .step = 100,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, empty_beside_itself) {
	.memory = EMPTY, .with = BESIDE, .src = 128, .old_pages = 64,
	.new_pages = 64, .below = 64, .step = 4, .flags = FIXED,
};

/* The new mapping is one with its neighbours until it is unmapped again. */
FIXTURE_VARIANT_ADD(sweep, merges_below) {
	.with = MERGES, .src = 3, .dst = 7, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 2, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, merges_above) {
	.with = MERGES, .src = 3, .dst = 7, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .above = 2, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, merges_on_both_sides) {
	.with = MERGES, .src = 3, .dst = 7, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 2, .above = 2, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, merges_shared) {
	.memory = SHMEM, .with = MERGES, .src = 3, .dst = 7,
	.old_pages = 2 * 512, .new_pages = 2 * 512, .below = 2, .above = 2,
	.step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, merges_tables) {
	.with = MERGES | WIDE, .src = 512, .dst = 512, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 2, .above = 2, .step = 100,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, merges_tables_soft_dirty) {
	.with = MERGES | SOFT_DIRTY, .src = 512, .dst = 512,
	.old_pages = 2 * 512, .new_pages = 2 * 512, .below = 2, .above = 2,
	.step = 100, .flags = FIXED,
};

/* Tables that move whole, and tables of these. */
FIXTURE_VARIANT_ADD(sweep, whole_tables) {
	.with = WIDE, .old_pages = 4 * 512, .new_pages = 4 * 512, .above = 1,
	.step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, first_table_in_part) {
	.with = WIDE, .src = 200, .dst = 200, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .above = 1, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, whole_directory) {
	.with = WIDE, .dst = 512 * 512 * 512, .old_pages = 512 * 512,
	.new_pages = 512 * 512, .above = 1, .step = 512 * 64, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, directory_and_tables) {
	.with = WIDE, .src = 512 * 511, .dst = 512 * 512 * 512 + 512 * 511,
	.old_pages = 512 * 514, .new_pages = 512 * 514, .above = 1,
	.step = 512 * 64, .flags = FIXED,
};

/* Huge pages that move whole, in pieces, and both. */
FIXTURE_VARIANT_ADD(sweep, huge) {
	.memory = HUGE, .with = WIDE, .old_pages = 2 * 512, .new_pages = 2 * 512,
	.step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, huge_in_pieces) {
	.memory = HUGE, .dst = 7, .old_pages = 2 * 512, .new_pages = 2 * 512,
	.step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, huge_part) {
	.memory = HUGE, .src = 256, .dst = 256, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 256, .above = 256, .step = 100,
	.flags = FIXED,
};

/* Other lengths. */
FIXTURE_VARIANT_ADD(sweep, grow) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 3 * 512,
	.above = 1, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, grow_anywhere) {
	.src = 3, .old_pages = 2 * 512, .new_pages = 1 << 18, .above = 1,
	.step = 100, .flags = MREMAP_MAYMOVE,
};
FIXTURE_VARIANT_ADD(sweep, grow_to_neighbour) {
	.memory = EMPTY, .with = NEIGHBOUR, .src = 3, .old_pages = 24,
	.new_pages = 48, .step = 4,
};
FIXTURE_VARIANT_ADD(sweep, shrink) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 512,
	.below = 1, .above = 1, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, shrink_two_mappings) {
	.with = TWO_MAPPINGS, .src = 3, .dst = 7, .old_pages = 48,
	.new_pages = 16, .below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, shrink_in_place) {
	.src = 3, .old_pages = 48, .new_pages = 16, .below = 1, .above = 1,
	.step = 4,
};
FIXTURE_VARIANT_ADD(sweep, shrink_two_mappings_in_place) {
	.with = TWO_MAPPINGS, .src = 3, .old_pages = 48, .new_pages = 16,
	.below = 1, .above = 1, .step = 4,
};

/* The source stays mapped. */
FIXTURE_VARIANT_ADD(sweep, dontunmap) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 2 * 512,
	.step = 100, .flags = FIXED | DONTUNMAP,
};
FIXTURE_VARIANT_ADD(sweep, dontunmap_part) {
	.src = 3, .dst = 7, .old_pages = 24, .new_pages = 24, .below = 1,
	.above = 1, .step = 4, .flags = FIXED | DONTUNMAP,
};
FIXTURE_VARIANT_ADD(sweep, dontunmap_shared) {
	.memory = SHMEM, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 24,
	.below = 1, .above = 1, .step = 4, .flags = FIXED | DONTUNMAP,
};

/* Something is mapped at the destination. */
FIXTURE_VARIANT_ADD(sweep, over) {
	.with = OCCUPIED, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 24,
	.below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, over_grow) {
	.with = OCCUPIED, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 48,
	.above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, over_shrink) {
	.with = OCCUPIED | TWO_MAPPINGS, .src = 3, .dst = 7, .old_pages = 48,
	.new_pages = 16, .below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, over_dontunmap) {
	.with = OCCUPIED, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 24,
	.step = 4, .flags = FIXED | DONTUNMAP,
};

FIXTURE_VARIANT_ADD(sweep, locked) {
	.with = LOCKED, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 24,
	.below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, locked_grow) {
	.with = LOCKED, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 28,
	.above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, locked_grow_in_place) {
	.with = LOCKED, .src = 3, .old_pages = 24, .new_pages = 28, .below = 1,
	.step = 4,
};
FIXTURE_VARIANT_ADD(sweep, locked_dontunmap) {
	.with = LOCKED, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 24,
	.below = 1, .above = 1, .step = 4, .flags = FIXED | DONTUNMAP,
};

FIXTURE_VARIANT_ADD(sweep, hugetlb) {
	.memory = HUGETLB, .old_pages = 4 * 512, .new_pages = 4 * 512,
	.step = 1024, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, hugetlb_part) {
	.memory = HUGETLB, .src = 512, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 512, .above = 512, .step = 1024,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, hugetlb_shared) {
	.memory = HUGETLB_SHARED, .old_pages = 4 * 512, .new_pages = 4 * 512,
	.step = 1024, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, hugetlb_shared_part) {
	.memory = HUGETLB_SHARED, .src = 512, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 512, .above = 512, .step = 1024,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, hugetlb_shrink) {
	.memory = HUGETLB, .old_pages = 3 * 512, .new_pages = 1 * 512,
	.above = 512, .step = 512, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, hugetlb_wp) {
	.memory = HUGETLB, .with = UFFD | UFFD_WP, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .step = 512, .flags = FIXED,
};

FIXTURE_VARIANT_ADD(sweep, uffd) {
	.with = UFFD, .src = 3, .dst = 7, .old_pages = 24, .new_pages = 24,
	.below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, uffd_events) {
	.with = UFFD | UFFD_EVENTS, .src = 3, .dst = 7, .old_pages = 24,
	.new_pages = 24, .below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, uffd_events_over) {
	.with = UFFD | UFFD_EVENTS | OCCUPIED, .src = 3, .dst = 7,
	.old_pages = 24, .new_pages = 24, .below = 1, .above = 1, .step = 4,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, uffd_events_dontunmap) {
	.with = UFFD | UFFD_EVENTS, .src = 3, .dst = 7, .old_pages = 24,
	.new_pages = 24, .step = 4, .flags = FIXED | DONTUNMAP,
};
FIXTURE_VARIANT_ADD(sweep, uffd_events_shrink) {
	.with = UFFD | UFFD_EVENTS | TWO_MAPPINGS, .src = 3, .dst = 7,
	.old_pages = 48, .new_pages = 16, .below = 1, .above = 1, .step = 4,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, uffd_events_shrink_in_place) {
	.with = UFFD | UFFD_EVENTS | TWO_MAPPINGS, .src = 3, .old_pages = 48,
	.new_pages = 16, .below = 1, .above = 1, .step = 4,
};
FIXTURE_VARIANT_ADD(sweep, uffd_wp) {
	.with = UFFD | UFFD_WP, .src = 3, .dst = 7, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 1, .above = 1, .step = 100,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, uffd_wp_tables) {
	.with = UFFD | UFFD_WP | WIDE, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, uffd_wp_huge) {
	.memory = HUGE, .with = UFFD | UFFD_WP | WIDE, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, uffd_wp_events) {
	.with = UFFD | UFFD_WP | UFFD_EVENTS, .src = 3, .dst = 7,
	.old_pages = 24, .new_pages = 24, .below = 1, .above = 1, .step = 4,
	.flags = FIXED,
};

FIXTURE_VARIANT_ADD(sweep, ksm) {
	.with = KSM, .src = 3, .dst = 7, .old_pages = 4, .new_pages = 4,
	.below = 1, .above = 1, .step = 1, .flags = FIXED,
};

FIXTURE_VARIANT_ADD(sweep, soft_dirty) {
	.with = SOFT_DIRTY, .src = 3, .dst = 7, .old_pages = 2 * 512,
	.new_pages = 2 * 512, .below = 1, .above = 1, .step = 100,
	.flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, soft_dirty_tables) {
	.with = SOFT_DIRTY | WIDE, .old_pages = 3 * 512, .new_pages = 3 * 512,
	.step = 100, .flags = FIXED,
};

/* Several mappings in one call. */
FIXTURE_VARIANT_ADD(sweep, several) {
	.memory = SEVERAL, .src = 3, .dst = 7, .old_pages = 3 * 40,
	.new_pages = 3 * 40, .below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, several_and_gap) {
	.memory = SEVERAL_AND_GAP, .src = 490, .dst = 7, .old_pages = 3 * 40,
	.new_pages = 3 * 40, .below = 1, .above = 1, .step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, several_over) {
	.memory = SEVERAL, .with = OCCUPIED, .src = 3, .dst = 7,
	.old_pages = 3 * 40, .new_pages = 3 * 40, .below = 1, .above = 1,
	.step = 4, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, several_dontunmap) {
	.memory = SEVERAL, .src = 3, .dst = 7, .old_pages = 3 * 40,
	.new_pages = 3 * 40, .below = 1, .above = 1, .step = 4,
	.flags = FIXED | DONTUNMAP,
};
FIXTURE_VARIANT_ADD(sweep, several_locked) {
	.memory = SEVERAL, .with = LOCKED, .src = 3, .dst = 7,
	.old_pages = 3 * 8, .new_pages = 3 * 8, .below = 1, .above = 1,
	.step = 4, .flags = FIXED,
};

#undef SELF
#undef VARIANT
#define SELF	FIXTURE_DATA(sweep) *self
#define VARIANT	const FIXTURE_VARIANT(sweep) *variant

/* ---- where things are ---- */

static unsigned long sweep_src(VARIANT)
{
	return SRC + bytes(variant->src);
}

static unsigned long sweep_dst(VARIANT)
{
	if (!(variant->flags & MREMAP_FIXED))
		return 0;
	if (variant->with & BESIDE)
		return SRC + bytes(variant->src - variant->below -
				   variant->new_pages);
	return DST + bytes(variant->dst);
}

static size_t old_len(VARIANT)
{
	return bytes(variant->old_pages);
}

static size_t new_len(VARIANT)
{
	return bytes(variant->new_pages);
}

/* All of the mapping that the source is a part of. */
static unsigned long whole_start(VARIANT)
{
	return sweep_src(variant) - bytes(variant->below);
}

static size_t whole_len(VARIANT)
{
	return bytes(variant->below + variant->old_pages + variant->above);
}

static bool is_several(VARIANT)
{
	return variant->memory == SEVERAL || variant->memory == SEVERAL_AND_GAP;
}

static bool is_hugetlb(VARIANT)
{
	return variant->memory == HUGETLB || variant->memory == HUGETLB_SHARED;
}

/* The source's pages come in thirds, of which the last can start with a gap. */
static bool is_in_gap(VARIANT, size_t page)
{
	const size_t third = variant->old_pages / 3;

	return variant->memory == SEVERAL_AND_GAP && page >= 2 * third &&
	       page < 2 * third + third / 2;
}

static bool is_touched(VARIANT, size_t page)
{
	return variant->memory != EMPTY && page % variant->step == 0 &&
	       !is_in_gap(variant, page);
}

/* KSM merges what is the same. */
static unsigned long id_of(VARIANT, size_t page)
{
	return variant->with & KSM ? 7 : 100 + page;
}

/* ---- the stage ---- */

static void stamp_source(VARIANT, unsigned long addr, size_t first, size_t end)
{
	for (size_t page = first; page < end; page++)
		if (is_touched(variant, page))
			stamp(addr + bytes(page), id_of(variant, page));
}

/* The parts that stay, below and above, are stamped all over. */
static void stamp_rest(VARIANT)
{
	const unsigned long src = sweep_src(variant);

	if (variant->memory == EMPTY)
		return;
	stamp_range(whole_start(variant), bytes(variant->below), 10000);
	stamp_range(src + old_len(variant), bytes(variant->above), 20000);
}

static void map_several(META, VARIANT)
{
	const size_t third = bytes(variant->old_pages / 3);
	const size_t gap = variant->memory == SEVERAL_AND_GAP ? third / 2 : 0;
	const unsigned long last = sweep_src(variant) + 2 * third;
	const size_t len = third + bytes(variant->above);
	const int fd = memfd_create("mremap_accounting", 0);

	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_EQ(whole_start(variant), map_anon(whole_start(variant),
						 last - whole_start(variant)));
	ASSERT_EQ(last + gap, map_at(last + gap, len - gap,
				     PROT_READ | PROT_WRITE, MAP_SHARED, fd,
				     gap));
	close(fd);
}

static void map_source(META, VARIANT)
{
	const int flags[] = {
		[ANON] = MAP_PRIVATE,
		[EMPTY] = MAP_PRIVATE,
		[SHMEM] = MAP_SHARED,
		[HUGE] = MAP_PRIVATE,
		[HUGETLB] = MAP_PRIVATE | MAP_HUGETLB,
		[HUGETLB_SHARED] = MAP_SHARED | MAP_HUGETLB,
	};

	if (is_several(variant)) {
		map_several(_metadata, variant);
		return;
	}
	ASSERT_EQ(whole_start(variant),
		  map_at(whole_start(variant), whole_len(variant),
			 PROT_READ | PROT_WRITE,
			 flags[variant->memory] | MAP_ANONYMOUS, -1, 0));
	if (variant->memory == HUGE)
		ASSERT_EQ(0, madvise(at(whole_start(variant)),
				     whole_len(variant), MADV_HUGEPAGE));
}

/* Where the part of the mapping below the source is, and that above it. */
static unsigned long below_at(VARIANT)
{
	if (variant->with & MERGES)
		return sweep_dst(variant) - bytes(variant->below);
	return whole_start(variant);
}

static unsigned long above_at(VARIANT)
{
	if (variant->with & MERGES)
		return sweep_dst(variant) + old_len(variant);
	return sweep_src(variant) + old_len(variant);
}

static void move_rest(META, VARIANT)
{
	const size_t below = bytes(variant->below);
	const size_t above = bytes(variant->above);

	if (!(variant->with & MERGES))
		return;
	if (below)
		ASSERT_EQ(below_at(variant),
			  move_to(whole_start(variant), below, below,
				  below_at(variant)));
	if (above)
		ASSERT_EQ(above_at(variant),
			  move_to(sweep_src(variant) + old_len(variant), above,
				  above, above_at(variant)));
}

static void protect_source(META, VARIANT)
{
	const unsigned long src = sweep_src(variant);
	const size_t third = old_len(variant) / 3;

	if (is_several(variant))
		ASSERT_EQ(0, mprotect(at(src + third), third, PROT_READ));
	if (variant->with & TWO_MAPPINGS)
		ASSERT_EQ(0, mprotect(at(src + old_len(variant) / 2),
				      old_len(variant) / 2 +
				      bytes(variant->above), PROT_READ));
}

/*
 * What a call may unmap. Its second half is a mapping of its own. Unless it is
 * registered, both halves go on beyond it.
 */
static void map_old_destination(META, SELF, VARIANT)
{
	const unsigned long dst = sweep_dst(variant);
	const size_t len = new_len(variant);

	ASSERT_EQ(dst, map_anon(dst, len));
	stamp_range(dst, len, 5000);
	if (variant->with & UFFD)
		ASSERT_EQ(0, uffd_register(self->uffd, at(dst), len, true, true,
					   false));
	ASSERT_EQ(0, mprotect(at(dst + len / 2), len / 2, PROT_READ));
}

static void map_destination(META, SELF, VARIANT)
{
	const unsigned long dst = sweep_dst(variant);

	if (!(variant->with & OCCUPIED))
		return;
	/* As one, so that what is mapped in between later is one with both. */
	ASSERT_EQ(dst - psize(), map_anon(dst - psize(),
					  new_len(variant) + bytes(2)));
	stamp(dst - psize(), 4000);
	stamp(dst + new_len(variant), 4001);
	ASSERT_EQ(0, mprotect(at(dst + new_len(variant)), psize(), PROT_READ));
	ASSERT_EQ(0, munmap(at(dst), new_len(variant)));
	map_old_destination(_metadata, self, variant);
}

static void write_protect(META, SELF, VARIANT, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { sweep_src(variant), old_len(variant) / 2 },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	/* EAGAIN: a change of the mappings has been begun and not ended. */
	EXPECT_EQ(0, ioctl(self->uffd, UFFDIO_WRITEPROTECT, &wp));
}

static void register_source(META, SELF, VARIANT)
{
	if (!(variant->with & UFFD))
		return;
	ASSERT_EQ(0, uffd_register(self->uffd, at(whole_start(variant)),
				   whole_len(variant), !is_hugetlb(variant),
				   true, false));
	if (variant->with & UFFD_WP)
		write_protect(_metadata, self, variant, true);
}

#define KSM_DIR	"/sys/kernel/mm/ksm/"

static void merge_source(META, VARIANT)
{
	const unsigned long addr = whole_start(variant);
	const long want = (long)(old_len(variant) / KB);
	long merged = 0;

	if (!(variant->with & KSM))
		return;
	ASSERT_EQ(0, madvise(at(addr), whole_len(variant), MADV_MERGEABLE));
	write_setting(KSM_DIR "run", "1");
	for (int try = 0; merged < want && try < 10000; try++) {
		usleep(1000);
		merged = smaps_kb(addr, "KSM");
	}
	write_setting(KSM_DIR "run", "0");
	ASSERT_LE(want, merged);
}

static void track_source(VARIANT)
{
	const unsigned long src = sweep_src(variant);

	if (!(variant->with & SOFT_DIRTY))
		return;
	clear_softdirty();
	for (size_t page = 0; page < variant->old_pages;
	     page += 2 * variant->step)
		stamp(src + bytes(page), id_of(variant, page));
}

/* A mapping that an empty one merges with once it has grown up to it. */
static void map_neighbour(META, VARIANT)
{
	const unsigned long end = sweep_src(variant) + new_len(variant);

	if (!(variant->with & NEIGHBOUR))
		return;
	ASSERT_EQ(end, map_anon(end, psize()));
	stamp(end, 30000);
}

/*
 * More of it in each round, so that the size is a new peak and a call that goes
 * beyond, for a moment only, shows. Nothing of it is charged or touched.
 */
static void map_ballast(META, SELF, VARIANT)
{
	const size_t unit = 4 * (old_len(variant) + new_len(variant));

	ASSERT_EQ(BALLAST, map_at(BALLAST, (self->nth + 1) * unit, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

static void build(META, SELF, VARIANT)
{
	map_source(_metadata, variant);
	stamp_source(variant, sweep_src(variant), 0, variant->old_pages);
	stamp_rest(variant);
	move_rest(_metadata, variant);
	protect_source(_metadata, variant);
	map_neighbour(_metadata, variant);
	if (variant->with & LOCKED)
		ASSERT_EQ(0, mlock(at(whole_start(variant)), whole_len(variant)));
	register_source(_metadata, self, variant);
	map_destination(_metadata, self, variant);
	merge_source(_metadata, variant);
	map_ballast(_metadata, self, variant);
	track_source(variant);
}

/* ---- events ---- */

/* The call waits until its events are read. */
static void *read_events(void *arg)
{
	FIXTURE_DATA(sweep) *self = arg;
	struct pollfd fds[] = {
		{ .fd = self->uffd, .events = POLLIN },
		{ .fd = self->stop[0], .events = POLLIN },
	};
	struct uffd_msg msg;
	char byte;

	while (poll(fds, 2, -1) > 0) {
		if (fds[0].revents) {
			if (read(self->uffd, &msg, sizeof(msg)) == sizeof(msg))
				self->nr_events++;
		} else if (read(self->stop[0], &byte, 1) != 1 ||
			   write(self->stopped[1], &byte, 1) != 1) {
			break;
		}
	}
	return NULL;
}

/* How many since last asked. The reader answers when it has counted them all. */
static int count_events(SELF)
{
	int nr = 0;
	char byte = 0;

	if (!self->reader)
		return 0;
	if (write(self->stop[1], &byte, 1) == 1 &&
	    read(self->stopped[0], &byte, 1) == 1)
		nr = self->nr_events;
	self->nr_events = 0;
	return nr;
}

static const char *start_uffd(SELF, VARIANT)
{
	uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;

	self->uffd = -1;
	if (!(variant->with & UFFD))
		return NULL;
	if (is_hugetlb(variant))
		features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	if (variant->with & UFFD_EVENTS)
		features |= UFFD_FEATURE_EVENT_REMAP |
			    UFFD_FEATURE_EVENT_UNMAP;
	self->uffd = open_uffd(features);
	if (self->uffd < 0)
		return "needs userfaultfd that can write-protect such memory";
	if (!(variant->with & UFFD_EVENTS))
		return NULL;
	if (pipe(self->stop) || pipe(self->stopped) ||
	    pthread_create(&self->reader, NULL, read_events, self))
		return "cannot start a thread";
	return NULL;
}

/* ---- what is remembered, and compared after the call ---- */

/* pagemap bits that are the same after a failure; PM_SOFT_DIRTY may be added. */
#define PM_KEPT	(PM_PRESENT | PM_SWAP | PM_FILE | PM_UFFD_WP | PM_SOFT_DIRTY)

static uint64_t page_bits(SELF, VARIANT, size_t page)
{
	return pagemap_get_entry(self->pagemap, at(sweep_src(variant) +
						   bytes(page))) & PM_KEPT;
}

static void save_pages(META, SELF, VARIANT)
{
	self->touched = 0;
	for (size_t page = 0; page < variant->old_pages; page += variant->step) {
		ASSERT_GT(ARRAY_SIZE(self->pages), self->touched);
		self->pages[self->touched++] = page_bits(self, variant, page);
	}
}

/* Tables that move whole take the bits along as they are, there and back. */
static const char *check_bits(SELF, VARIANT)
{
	const uint64_t may_come = variant->with & WIDE ? 0 : PM_SOFT_DIRTY;

	for (size_t i = 0; i < self->touched; i++) {
		const uint64_t was = self->pages[i];
		const uint64_t is = page_bits(self, variant, i * variant->step);

		if (was & ~is & PM_SOFT_DIRTY)
			return "a page is not soft-dirty any more";
		if (was & ~is & PM_UFFD_WP)
			return "a page is not write-protected any more";
		if ((is ^ was) & ~may_come)
			return "the pagemap bits of a page have changed";
	}
	return NULL;
}

static void read_ledger(VARIANT, struct ledger *ledger)
{
	read_counters(&ledger->counters);
	ledger->committed = committed_kb();
	if (!is_hugetlb(variant))
		return;
	ledger->free = meminfo_kb("HugePages_Free");
	ledger->reserved = meminfo_kb("HugePages_Rsvd");
}

static void save_all(META, SELF, VARIANT)
{
	save_pages(_metadata, self, variant);
	if (self->from_there_on)
		return;
	self->nr_smaps = read_smaps(WINDOW, BALLAST, self->smaps,
				    ARRAY_SIZE(self->smaps));
	ASSERT_GE((int)ARRAY_SIZE(self->smaps), self->nr_smaps);
	if (variant->memory == HUGE) {
		self->huge = smaps_kb(whole_start(variant), "AnonHugePages");
		ASSERT_LT(0, self->huge);
	}
	save_state();
	read_ledger(variant, &self->built);
}

/* hugetlb never merges: what was split for a moment stays split. */
static bool may_stay_split(VARIANT)
{
	return is_hugetlb(variant) && (variant->below || variant->above);
}

static bool was_split(const struct smap *below, const struct smap *above)
{
	const struct vma *a = &below->vma, *b = &above->vma;

	return a->end == b->start && a->inode == b->inode &&
	       a->offset + (a->end - a->start) == b->offset &&
	       !strcmp(a->perms, b->perms) && !strcmp(below->flags, above->flags);
}

static int glue(struct smap *smaps, int nr)
{
	int last = 0;

	for (int i = 1; i < nr; i++) {
		if (was_split(&smaps[last], &smaps[i]))
			smaps[last].vma.end = smaps[i].vma.end;
		else
			smaps[++last] = smaps[i];
	}
	return nr ? last + 1 : 0;
}

/* Flags of a mapping tell whether it is locked, charged, registered and more. */
static const char *check_smaps(SELF, VARIANT)
{
	struct smap now[16];
	int nr = read_smaps(WINDOW, BALLAST, now, ARRAY_SIZE(now));

	if (nr >= 0 && nr <= (int)ARRAY_SIZE(now) && may_stay_split(variant))
		nr = glue(now, nr);
	if (nr != self->nr_smaps)
		return "the number of mappings has changed";
	for (int i = 0; i < nr; i++) {
		const struct smap *was = &self->smaps[i];

		if (now[i].vma.start != was->vma.start ||
		    now[i].vma.end != was->vma.end ||
		    strcmp(now[i].vma.perms, was->vma.perms))
			return "a mapping has changed";
		if (strcmp(now[i].flags, was->flags))
			return "the flags of a mapping have changed";
	}
	return NULL;
}

static const char *check_pages(VARIANT, unsigned long addr)
{
	const size_t pages = variant->old_pages < variant->new_pages ?
		variant->old_pages : variant->new_pages;
	const char *why = NULL;

	for (size_t page = 0; !why && page < pages; page++)
		if (is_touched(variant, page))
			why = check_stamp(addr + bytes(page),
					  id_of(variant, page));
	return why;
}

/* What is not moved is there in any case. */
static const char *check_rest(VARIANT)
{
	const unsigned long src = sweep_src(variant);
	const unsigned long dst = sweep_dst(variant);
	const char *why = NULL;

	if (variant->memory != EMPTY) {
		why = check_stamps(below_at(variant), bytes(variant->below),
				   10000);
		why = why ?: check_stamps(above_at(variant),
					  bytes(variant->above), 20000);
	}
	if (variant->with & NEIGHBOUR)
		why = why ?: check_stamp(src + new_len(variant), 30000);
	if (!(variant->with & OCCUPIED))
		return why;
	why = why ?: check_stamp(dst - psize(), 4000);
	return why ?: check_stamp(dst + new_len(variant), 4001);
}

/* Also of what was to be dropped by shrinking. */
static const char *check_source(VARIANT)
{
	const unsigned long src = sweep_src(variant);
	const char *why = NULL;

	for (size_t page = 0; !why && page < variant->old_pages; page++)
		if (is_touched(variant, page))
			why = check_stamp(src + bytes(page),
					  id_of(variant, page));
	return why;
}

/*
 * The old destination may be gone, but only as a whole. If it is, it is mapped
 * again: then all the rest can be compared with what was before.
 */
static void check_old_destination(META, SELF, VARIANT)
{
	const unsigned long dst = sweep_dst(variant);
	const int nr_events = count_events(self);
	struct vma vma;
	bool gone;

	if (!(variant->with & OCCUPIED)) {
		EXPECT_EQ(0, nr_events);
		return;
	}
	gone = !find_vma(dst, &vma);
	/* Without memory the new mapping cannot be unmapped again, either. */
	if (!gone && self->from_there_on)
		gone = check_stamp(dst, 5000);
	if (!gone)
		EXPECT_OK(check_stamps(dst, new_len(variant), 5000));
	if (variant->with & UFFD_EVENTS)
		EXPECT_EQ(gone, nr_events);
	if (!gone || self->from_there_on)
		return;
	EXPECT_OK(check_unmapped(dst, new_len(variant)));
	map_old_destination(_metadata, self, variant);
}

static void check_same(META, const struct ledger *was, const struct ledger *is)
{
	EXPECT_EQ(was->counters.size, is->counters.size);
	EXPECT_EQ(was->counters.locked, is->counters.locked);
	EXPECT_EQ(was->counters.data, is->counters.data);
	EXPECT_EQ(was->counters.page_tables, is->counters.page_tables);
	EXPECT_EQ(was->counters.rss_anon, is->counters.rss_anon);
	EXPECT_EQ(was->counters.rss_file, is->counters.rss_file);
	EXPECT_EQ(was->counters.rss_shmem, is->counters.rss_shmem);
	EXPECT_EQ(was->committed, is->committed);
	EXPECT_EQ(was->free, is->free);
	EXPECT_EQ(was->reserved, is->reserved);
}

static void check_ledger(META, SELF, VARIANT)
{
	const struct counters *was = &self->built.counters;
	struct ledger now = { 0 };

	read_ledger(variant, &now);
	check_same(_metadata, &self->built, &now);
	EXPECT_EQ(was->size, was->peak)
		TH_LOG("this round shows no peak");
	EXPECT_EQ(was->peak, now.counters.peak);
	EXPECT_LE(now.counters.rss, now.counters.rss_peak);
	/* The kernel takes it from counters that are not exact. */
	EXPECT_GE(was->rss_peak + (long)(2 * MB / KB), now.counters.rss_peak);
}

/* A failed call has left the mapping alone, down to the last charge. */
static void check_failed(META, SELF, VARIANT)
{
	check_old_destination(_metadata, self, variant);
	EXPECT_OK(check_source(variant));
	EXPECT_OK(check_rest(variant));
	EXPECT_OK(check_bits(self, variant));
	if (!may_stay_split(variant))
		EXPECT_OK(check_state());
	EXPECT_OK(check_smaps(self, variant));
	check_ledger(_metadata, self, variant);
	if (variant->memory == HUGE && (variant->with & WIDE))
		EXPECT_EQ(self->huge, smaps_kb(whole_start(variant),
					       "AnonHugePages"));
	if (variant->with & UFFD)
		write_protect(_metadata, self, variant, variant->with & UFFD_WP);
}

/*
 * There may not be the memory to unmap the new mapping again. Where the kernel
 * has put it, only its length tells.
 */
static void unmap_left_over(META, VARIANT)
{
	const size_t len = new_len(variant);
	struct vma vmas[64];
	const int nr = read_vmas(0, 1UL << 56, vmas, ARRAY_SIZE(vmas));

	ASSERT_GE((int)ARRAY_SIZE(vmas), nr);
	for (int i = 0; variant->flags == MREMAP_MAYMOVE && i < nr; i++)
		if (vmas[i].end - vmas[i].start == len)
			munmap(at(vmas[i].start), len);
}

/* Then there is no memory to mend anything, either. But nothing is lost. */
static void check_failed_for_good(META, SELF, VARIANT)
{
	check_old_destination(_metadata, self, variant);
	EXPECT_OK(check_source(variant));
	EXPECT_OK(check_rest(variant));
	EXPECT_OK(check_bits(self, variant));
	unmap_left_over(_metadata, variant);
}

/* If there is memory for it. */
static void check_merged(META, VARIANT)
{
	struct vma vma;

	if (!(variant->with & MERGES))
		return;
	ASSERT_TRUE(find_vma(sweep_dst(variant), &vma));
	EXPECT_EQ(below_at(variant), vma.start);
	EXPECT_EQ(above_at(variant) + bytes(variant->above), vma.end);
}

static void check_succeeded(META, SELF, VARIANT, unsigned long to)
{
	const unsigned long src = sweep_src(variant);
	const int nr_events = count_events(self);

	EXPECT_OK(check_pages(variant, to));
	EXPECT_OK(check_rest(variant));
	if (variant->with & UFFD_EVENTS)
		EXPECT_LT(0, nr_events);
	if (to != src && !(variant->flags & MREMAP_DONTUNMAP))
		EXPECT_OK(check_unmapped(src, old_len(variant)));
	if (to == src && variant->new_pages < variant->old_pages)
		EXPECT_OK(check_unmapped(src + new_len(variant),
					 old_len(variant) - new_len(variant)));
	if (!sweep_dst(variant) && to != src)
		munmap(at(to), new_len(variant));
}

/* ---- the sweep ---- */

/*
 * A task that is made to fail does so at every allocation, but fail-nth comes
 * before that: as long as it counts, only the nth fails.
 */
static void set_make_it_fail(META, SELF, bool fail)
{
	if (self->from_there_on)
		ASSERT_EQ(1, pwrite(self->make_it_fail, fail ? "1" : "0", 1, 0));
}

static bool set_probability(const char *percent)
{
	return write_setting(FAILSLAB "task-filter", "Y") &&
	       write_setting(FAIL_PAGES "task-filter", "Y") &&
	       write_setting(FAILSLAB "times", "-1") &&
	       write_setting(FAIL_PAGES "times", "-1") &&
	       write_setting(FAILSLAB "probability", percent) &&
	       write_setting(FAIL_PAGES "probability", percent);
}

/* The call; whether an allocation of it has failed. */
static bool call_failing(META, SELF, VARIANT, unsigned long *to)
{
	bool injected;

	set_make_it_fail(_metadata, self, true);
	ASSERT_TRUE(arm_fail_nth(self->fail_nth, self->nth));
	*to = do_mremap(sweep_src(variant), old_len(variant), new_len(variant),
			variant->flags, sweep_dst(variant));
	injected = disarm_fail_nth(self->fail_nth);
	set_make_it_fail(_metadata, self, false);
	return injected;
}

/* Whatever has happened, all can be unmapped, and then nothing is left. */
static void clear(META, SELF, VARIANT, struct ledger *ledger)
{
	ASSERT_EQ(0, munmap(at(WINDOW), SWEEP_SIZE));
	count_events(self);
	read_ledger(variant, ledger);
}

static bool fail_once(META, SELF, VARIANT)
{
	struct ledger now = { 0 };
	unsigned long to;
	bool injected;

	build(_metadata, self, variant);
	save_all(_metadata, self, variant);
	injected = call_failing(_metadata, self, variant, &to);
	if (error_of(to))
		EXPECT_EQ(ENOMEM, error_of(to));

	if (!injected)
		check_merged(_metadata, variant);
	if (!error_of(to))
		check_succeeded(_metadata, self, variant, to);
	else if (self->from_there_on)
		check_failed_for_good(_metadata, self, variant);
	else
		check_failed(_metadata, self, variant);
	clear(_metadata, self, variant, &now);
	check_same(_metadata, &self->cleared, &now);
	return injected;
}

/* More of the stack than anything below uses. */
static void fault_in_stack(void)
{
	char room[64 * KB];

	memset(room, 0, sizeof(room));
	asm volatile("" : : "r" (room) : "memory");
}

/*
 * The checks find nothing where nothing was done. This also faults in all that
 * the program needs later on, which would be taken for a change.
 */
static void rehearse(META, SELF, VARIANT)
{
	const bool from_there_on = self->from_there_on;

	fault_in_stack();
	arm_fail_nth(self->fail_nth, 0);
	set_make_it_fail(_metadata, self, false);
	EXPECT_EQ(EINVAL, error_of(do_mremap(1, 0, 0, 0, 0)));
	disarm_fail_nth(self->fail_nth);
	self->from_there_on = false;
	build(_metadata, self, variant);
	save_all(_metadata, self, variant);
	check_failed(_metadata, self, variant);
	clear(_metadata, self, variant, &self->cleared);
	self->from_there_on = from_there_on;
	/* Less than none would be a very large number. */
	ASSERT_GE(self->cleared.free, self->cleared.reserved);
}

static void sweep(META, SELF, VARIANT)
{
	rehearse(_metadata, self, variant);
	for (self->nth = 1; self->nth <= MOST_ALLOCATIONS; self->nth++) {
		const bool injected = fail_once(_metadata, self, variant);

		if (_metadata->exit_code)
			TH_LOG("with allocation %d failing", self->nth);
		if (_metadata->exit_code || !injected)
			break;
	}
	EXPECT_GE(MOST_ALLOCATIONS, self->nth);
	/* At least a new mapping has to be allocated. */
	EXPECT_LT(1, self->nth);
}

static const char *check_requirements(VARIANT)
{
	if ((variant->with & SOFT_DIRTY) && !softdirty_supported())
		return "needs CONFIG_MEM_SOFT_DIRTY";
	if ((variant->with & KSM) && read_long(KSM_DIR "run") < 0)
		return "needs KSM";
	if (is_hugetlb(variant) && default_huge_page_size() != 512 * psize())
		return "needs huge pages of 512 pages";
	if (is_hugetlb(variant) && get_free_hugepages() < 4)
		return "needs 4 free huge pages (vm.nr_hugepages)";
	return NULL;
}

/* Whether a call moves more than one mapping. */
static bool moves_several(void)
{
	const size_t len = bytes(2);
	bool moved;

	map_anon(SRC, len);
	mprotect(at(SRC), psize(), PROT_READ);
	moved = !error_of(move_to(SRC, len, len, DST));
	munmap(at(WINDOW), WINDOW_SIZE);
	return moved;
}

FIXTURE_SETUP(sweep)
{
	const char *why = prepare_fail_nth();

	why = why ?: check_requirements(variant);
	if (why)
		SKIP(return, "%s", why);
	if (is_several(variant) && !moves_several())
		SKIP(return, "needs moves of several mappings");
	if (variant->memory == HUGE && read_pmd_pagesize() != 512 * psize())
		SKIP(return, "needs transparent huge pages of 512 pages");
	if (variant->memory != HUGE)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	stay_on_one_processor();
	write_setting(KSM_DIR "pages_to_scan", "1000");
	write_setting(KSM_DIR "sleep_millisecs", "1");
	why = start_uffd(self, variant);
	if (why)
		SKIP(return, "%s", why);
	self->fail_nth = open(FAIL_NTH, O_RDWR);
	self->make_it_fail = open("/proc/self/make-it-fail", O_RDWR);
	self->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_LE(0, self->fail_nth);
	ASSERT_LE(0, self->make_it_fail);
	ASSERT_LE(0, self->pagemap);
}

FIXTURE_TEARDOWN(sweep)
{
	set_probability("0");
}

TEST_F_TIMEOUT(sweep, every_allocation_mended, 120)
{
	SKIP_STOCK_BUG();
	sweep(_metadata, self, variant);
}

TEST_F_TIMEOUT(sweep, every_allocation_from_one_on_mended, 120)
{
	SKIP_STOCK_BUG();
	self->from_there_on = true;
	ASSERT_TRUE(set_probability("100"));
	sweep(_metadata, self, variant);
}

#undef SELF
#undef VARIANT

/* ---- a third mapping, in the table where the moved one ends ---- */

#define OLD_PLACE	(WINDOW + 4 * GB)
#define NEW_PLACE	(WINDOW + 8 * GB)

/*
 * A mapping that is one with its neighbour at the new place, once it is there. A
 * table that both have there was the neighbour's before, and stays so if the
 * move fails when all of this mapping has moved.
 */
FIXTURE(third)
{
	int fail_nth;
	int uffd;
	pthread_t reader;
};

FIXTURE_VARIANT(third)
{
	size_t len;		/* of the mapping and its neighbour, which has */
	size_t third;		/* this much of it, up to the end of a table */
	size_t touched;		/* so much from its start on */
	size_t next;		/* where another one follows, to fail at */
	bool late;		/* what fails is to announce the unmapping */
};

FIXTURE_VARIANT_ADD(third, untouched) {
	.len = 4 * MB, .third = MB, .next = 6 * MB,
};
FIXTURE_VARIANT_ADD(third, first_table) {
	.len = 4 * MB, .third = MB, .touched = 2 * MB, .next = 6 * MB,
};
FIXTURE_VARIANT_ADD(third, both_tables) {
	.len = 4 * MB, .third = MB, .touched = 3 * MB, .next = 6 * MB,
};
FIXTURE_VARIANT_ADD(third, directory) {
	.len = GB, .third = MB, .next = GB + 2 * MB,
};
FIXTURE_VARIANT_ADD(third, directory_first_table) {
	.len = GB, .third = MB, .touched = 2 * MB, .next = GB + 2 * MB,
};
FIXTURE_VARIANT_ADD(third, late_untouched) {
	.len = 4 * MB, .third = MB, .late = true,
};
FIXTURE_VARIANT_ADD(third, late_first_table) {
	.len = 4 * MB, .third = MB, .touched = 2 * MB, .late = true,
};
FIXTURE_VARIANT_ADD(third, late_directory) {
	.len = GB, .third = MB, .late = true,
};

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
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_UNMAP,
	};
	const char *why = prepare_fail_nth();

	if (why)
		SKIP(return, "%s", why);
	if (!variant->late && !moves_several())
		SKIP(return, "needs moves of several mappings");
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->fail_nth = open(FAIL_NTH, O_RDWR);
	ASSERT_LE(0, self->fail_nth);
	if (!variant->late)
		return;
	self->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (self->uffd < 0 || ioctl(self->uffd, UFFDIO_API, &api))
		SKIP(return, "needs userfaultfd with events");
	ASSERT_EQ(0, pthread_create(&self->reader, NULL, read_forever,
				    &self->uffd));
}

FIXTURE_TEARDOWN(third)
{
}

static unsigned long third_at(VARIANT)
{
	return NEW_PLACE + variant->len - variant->third;
}

/* All that the call moves. */
static size_t third_call_len(VARIANT)
{
	return variant->next ? variant->next + psize() :
			       variant->len - variant->third;
}

/*
 * They were one mapping, so that they merge also if something is touched. Where
 * nothing is, there has never been a table.
 */
static void build_third(META, SELF, VARIANT)
{
	const unsigned long next = OLD_PLACE + variant->next;
	const unsigned long third = third_at(variant);
	const size_t len = variant->len - variant->third;

	ASSERT_EQ(WINDOW, map_anon(WINDOW, variant->len));
	stamp_range(WINDOW, variant->touched, 1);
	ASSERT_EQ(OLD_PLACE, move_to(WINDOW, len, len, OLD_PLACE));
	ASSERT_EQ(third, move_to(WINDOW + len, variant->third, variant->third,
				 third));
	stamp_range(third, variant->third, 5000);
	if (variant->next) {
		ASSERT_EQ(next, map_anon(next, psize()));
		stamp(next, 4000);
	}
	if (variant->late)
		ASSERT_EQ(0, uffd_register(self->uffd, at(OLD_PLACE), len, true,
					   false, false));
}

static bool fail_beside_third(META, SELF, VARIANT, int nth)
{
	const size_t len = third_call_len(variant);
	unsigned long to, place;
	bool injected;
	struct vma vma;

	build_third(_metadata, self, variant);
	save_state();
	ASSERT_TRUE(arm_fail_nth(self->fail_nth, nth));
	to = move_to(OLD_PLACE, len, len, NEW_PLACE);
	injected = disarm_fail_nth(self->fail_nth);
	if (error_of(to)) {
		EXPECT_EQ(ENOMEM, error_of(to));
		EXPECT_OK(check_state());
	} else {
		EXPECT_EQ(NEW_PLACE, to);
	}
	place = error_of(to) ? OLD_PLACE : NEW_PLACE;
	EXPECT_OK(check_stamps(third_at(variant), variant->third, 5000));
	EXPECT_OK(check_stamps(place, variant->touched, 1));
	if (variant->next)
		EXPECT_OK(check_stamp(place + variant->next, 4000));
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
	while (nth <= MOST_ALLOCATIONS &&
	       fail_beside_third(_metadata, self, variant, nth)) {
		if (_metadata->exit_code)
			TH_LOG("with allocation %d failing", nth);
		if (_metadata->exit_code)
			break;
		nth++;
	}
	EXPECT_GE(MOST_ALLOCATIONS, nth);
	/* At least a new mapping has to be allocated. */
	EXPECT_LT(1, nth);
}

#undef SELF
#undef VARIANT

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
	int fail_nth;
	int make_it_fail;
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
	const char *why = prepare_fail_nth();

	if (why)
		SKIP(return, "%s", why);
	if (variant->several && !moves_several())
		SKIP(return, "needs moves of several mappings");
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->len = SPARSE_TABLES * pmd_span();
	self->fd = memfd_create("mremap_accounting", 0);
	ASSERT_EQ(0, ftruncate(self->fd, self->len));
	self->fail_nth = open(FAIL_NTH, O_RDWR);
	self->make_it_fail = open("/proc/self/make-it-fail", O_RDWR);
	ASSERT_LE(0, self->fail_nth);
	ASSERT_LE(0, self->make_it_fail);
	ASSERT_TRUE(set_probability("100"));
}

FIXTURE_TEARDOWN(sparse)
{
	set_probability("0");
}

static size_t pick(SELF, size_t limit)
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
	head = seed % 2 ? pick(self, per_table) : 0;
	self->src = OLD_PLACE + bytes(head);
	self->dst = NEW_PLACE + bytes(head + 1 + pick(self, per_table - 1));
	self->nr = 0;
	for (int table = 0; table < SPARSE_TABLES; table++) {
		if (variant->prefix ? table >= 2 + (int)seed : pick(self, 2))
			continue;
		for (size_t nr = 1 + pick(self, 3); nr; nr--)
			self->pages[self->nr++] = table * per_table +
						  pick(self, per_table);
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
		ASSERT_EQ(1, pwrite(self->make_it_fail, "1", 1, 0));
	ASSERT_TRUE(arm_fail_nth(self->fail_nth, nth ?: many));
	to = move_to(self->src, self->len, self->len, self->dst);
	ASSERT_LT(0, pread(self->fail_nth, left, sizeof(left) - 1, 0));
	arm_fail_nth(self->fail_nth, 0);
	ASSERT_EQ(1, pwrite(self->make_it_fail, "0", 1, 0));
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
	fault_in_stack();
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
