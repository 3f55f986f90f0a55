// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) and the rest of memory management: what else is attached to pages
 * and mappings, and whether it moves along; translations of the old address; limits
 * at their boundary; memory of special kinds; and the stack of an execve().
 *
 * What moves along with any mapping is in mremap_test.
 *
 * Tests whose name ends in _mended fail on stock 6.12, whose bug they catch;
 * MREMAP_EXPECT=base skips them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#ifndef __NR_memfd_secret
#define __NR_memfd_secret 447
#endif

/* Of the rings that perf writes to, behind a page about them. */
#define RING_PAGES	8

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 2 * GB)
#define THIRD	(WINDOW + 3 * GB)

#define STOCK_BUG	"a bug of stock 6.12 that this catches"
#define A_HUGE_PAGE	"needs a free huge page (vm.nr_hugepages)"

/* Touched anonymous memory of small pages. */
static void map_touched(META, unsigned long addr, size_t pages)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(addr, map_anon(addr, bytes(pages)));
	stamp_range(addr, bytes(pages), 1);
}

/* ---- locked memory ---- */

TEST(locked_on_fault_growth_is_not_populated)
{
	map_touched(_metadata, SRC, 8);
	ASSERT_EQ(0, mlock2(at(SRC), bytes(8), MLOCK_ONFAULT));
	ASSERT_EQ(DST, move_to(SRC, bytes(8), bytes(24), DST));
	EXPECT_EQ(8UL, count_pagemap(DST, bytes(24), PM_PRESENT));
	EXPECT_OK(check_stamps(DST, bytes(8), 1));
}

/* ---- KSM ---- */

#define KSM	"/sys/kernel/mm/ksm/"

static bool wait_for_merge(unsigned long addr)
{
	for (int try = 0; try < 300; try++) {
		if (smaps_kb(addr, "KSM") > 0)
			return true;
		usleep(100 * 1000);
	}
	return false;
}

TEST(ksm_pages_are_unmerged)
{
	const size_t pages = 16;
	bool merged;

	NEED(read_long(KSM "run") >= 0, "needs KSM");
	map_touched(_metadata, SRC, pages);
	for (size_t page = 0; page < pages; page++)
		stamp(SRC + bytes(page), 7);
	ASSERT_EQ(0, madvise(at(SRC), bytes(pages), MADV_MERGEABLE));
	NEED(smaps_kb(SRC, "KSM") >= 0, "needs KSM in /proc/self/smaps");
	write_setting(KSM "pages_to_scan", "1000");
	ASSERT_TRUE(write_setting(KSM "run", "1"));
	merged = wait_for_merge(SRC);
	ASSERT_TRUE(write_setting(KSM "run", "0"));
	NEED(merged, "ksmd merged nothing");

	ASSERT_EQ(DST, move_to(SRC, bytes(pages), bytes(pages), DST));
	EXPECT_EQ(0, smaps_kb(DST, "KSM"));
	EXPECT_TRUE(has_vmflag(DST, "mg"));
	for (size_t page = 0; page < pages; page++)
		EXPECT_OK(check_stamp(DST + bytes(page), 7));
}

/* ---- transparent huge pages ---- */

/* Makes the kernel split the huge page at addr, and looks at what it maps. */
static const char *split_and_check(unsigned long addr, unsigned long id)
{
	if (mprotect(at(addr + bytes(7)), psize(), PROT_READ))
		return "mprotect() failed";
	return check_stamps(addr, pmd_span(), id);
}

/*
 * A huge page has a page table in reserve for its split, in a list for each table
 * of huge pages. A part of a list goes to one that is empty, another part to one
 * that is not, and then all that is left.
 */
TEST(huge_pages_are_split_after_moving)
{
	static const struct { int first, nr; } moves[] = { { 1, 2 }, { 3, 3 }, { 0, 1 } };
	const size_t len = 6 * pmd_span(), far = 4 * pud_span();
	const unsigned long per_span = pmd_span() / psize();
	long before, after;

	ASSERT_EQ(SRC, map_anon(SRC, len));
	/* Refused by a kernel without them. */
	madvise(at(SRC), len, MADV_HUGEPAGE);
	stamp_range(SRC, len, 1);
	NEED(smaps_kb(SRC, "AnonHugePages") == (long)(len / KB), "needs transparent huge pages");
	before = page_tables_kb();
	for (size_t i = 0; i < ARRAY_SIZE(moves); i++) {
		unsigned long src = SRC + moves[i].first * pmd_span();
		size_t size = moves[i].nr * pmd_span();

		ASSERT_EQ(src + far, move_to(src, size, size, src + far));
	}
	/* At most another table of huge pages, and the one above it. */
	after = page_tables_kb();
	EXPECT_LE(before, after);
	EXPECT_GE(before + (long)(bytes(2) / KB), after);

	for (int i = 0; i < 6; i++)
		EXPECT_OK(split_and_check(SRC + i * pmd_span() + far, 1 + i * per_span));
	/* A table in reserve counts already. */
	EXPECT_EQ(after, page_tables_kb());
}

/* ---- hugetlb ---- */

TEST(lengths_are_rounded_to_huge_pages)
{
	const size_t huge = default_huge_page_size(), len = 2 * huge;

	NEED(get_free_hugepages() >= 2, "needs 2 free huge pages (vm.nr_hugepages)");
	ASSERT_EQ(SRC, map_at(SRC, len, PROT_READ | PROT_WRITE, MAP_PRIVATE |
			      MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
	stamp_range(SRC, huge, 1);
	ASSERT_EQ(DST, move_to(SRC, len - psize(), len - bytes(7), DST));
	EXPECT_OK(check_unmapped(SRC, len));
	EXPECT_OK(check_stamps(DST, huge, 1));
	EXPECT_OK(check_zero(DST + huge, huge));
}

/* A mapping of which just the page at where is touched. */
static void move_hugetlb(META, int flags, size_t len, size_t where)
{
	const unsigned long dst = SRC + 2 * len;

	ASSERT_EQ(SRC, map_at(SRC, len, PROT_READ | PROT_WRITE,
			      flags | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, -1, 0));
	stamp(SRC + where, 1);
	ASSERT_EQ(dst, move_to(SRC, len, len, dst));
	EXPECT_OK(check_stamp(dst + where, 1));
	EXPECT_OK(check_unmapped(SRC, len));
}

/* Longer than an int can tell. */
TEST(hugetlb_of_4_gb_mended)
{
	SKIP_STOCK(STOCK_BUG);
	NEED(meminfo_kb("HugePages_Free") > 0, A_HUGE_PAGE);
	move_hugetlb(_metadata, MAP_PRIVATE, 4 * GB, 3 * GB);
}

/* Where hugetlb may share its tables, 6.12 waits for a lock that it holds. */
TEST(hugetlb_that_may_share_tables_mended)
{
	SKIP_STOCK(STOCK_BUG);
	NEED(meminfo_kb("HugePages_Free") > 0, A_HUGE_PAGE);
	move_hugetlb(_metadata, MAP_SHARED, pud_span(), 0);
}

/* ---- translations of the old address ---- */

#define TLB_PAGES	16

/* Counts at one address, with nothing that would enter the kernel. */
struct counting {
	volatile uint64_t *where;
	volatile bool stop;
};

FIXTURE(tlb)
{
	struct counting counting;
	size_t stride;	/* in bytes */
	size_t len;
};

FIXTURE_VARIANT(tlb)
{
	size_t stride;	/* pages from one touched page to the next */
	size_t dst;	/* offset of the destination, in pages */
	bool huge;
};

FIXTURE_VARIANT_ADD(tlb, pages) { 1, 5, false };
FIXTURE_VARIANT_ADD(tlb, tables) { 512, 0, false };
FIXTURE_VARIANT_ADD(tlb, directory) { 512 * 32, 0, false };
FIXTURE_VARIANT_ADD(tlb, huge) { 512, 0, true };

FIXTURE_SETUP(tlb)
{
	self->stride = bytes(variant->stride);
	self->len = TLB_PAGES * self->stride;
	if (!variant->huge)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(SRC, map_at(SRC, self->len, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	if (variant->huge)
		madvise(at(SRC), self->len, MADV_HUGEPAGE);
	for (int i = 0; i < TLB_PAGES; i++)
		stamp(SRC + i * self->stride, i);
	NEED(!variant->huge || smaps_kb(SRC, "AnonHugePages") > 0,
	     "needs transparent huge pages");
}

FIXTURE_TEARDOWN(tlb) { }

/* Reads every touched page at its old address: how many are not empty. */
static int look(size_t stride)
{
	int found = 0;

	for (int i = 0; i < TLB_PAGES; i++)
		found += *(volatile uint64_t *)at(SRC + i * stride) != 0;
	return found;
}

/*
 * The source stays mapped, so nothing is flushed but by the move itself, and
 * nothing comes between it and the look: no system call, no other process.
 */
TEST_F(tlb, old_place_is_empty_at_once)
{
	const unsigned long dst = DST + bytes(variant->dst);
	unsigned long to;
	int before, after;

	before = look(self->stride);
	to = do_mremap(SRC, self->len, self->len, FIXED | DONTUNMAP, dst);
	after = look(self->stride);
	ASSERT_EQ(dst, to);
	EXPECT_EQ(TLB_PAGES, before);
	EXPECT_EQ(0, after);
	for (int i = 0; i < TLB_PAGES; i++)
		EXPECT_OK(check_stamp(dst + i * self->stride, i));
}

static void *run_counting(void *arg)
{
	struct counting *counting = arg;

	while (!counting->stop)
		(*counting->where)++;
	return NULL;
}

/* Waits, within reason, until the other thread has counted at this address. */
static bool counts_at(unsigned long addr)
{
	volatile uint64_t *where = at(addr);
	const uint64_t seen = *where;

	for (int i = 0; i < 5000 && *where == seen; i++)
		usleep(1000);
	return *where != seen;
}

/*
 * The other thread never stops writing, and its processor knows the old
 * translation by heart: if nobody tells it, what it writes goes to the page at
 * its new place.
 */
TEST_F(tlb, no_write_through_the_old_address)
{
	const unsigned long dst = DST + bytes(variant->dst);
	pthread_t thread;
	uint64_t moved;

	NEED(sysconf(_SC_NPROCESSORS_ONLN) >= 2, "needs two processors");
	self->counting.where = at(SRC);
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_counting, &self->counting));
	ASSERT_TRUE(counts_at(SRC));
	ASSERT_EQ(dst, do_mremap(SRC, self->len, self->len, FIXED | DONTUNMAP, dst));
	moved = *(volatile uint64_t *)at(dst);
	EXPECT_TRUE(counts_at(SRC));
	EXPECT_EQ(moved, *(volatile uint64_t *)at(dst));
	self->counting.stop = true;
	pthread_join(thread, NULL);
	for (int i = 1; i < TLB_PAGES; i++)
		EXPECT_OK(check_stamp(dst + i * self->stride, i));
}

/* ---- limits at their boundary ---- */

static void set_limit(META, int resource, unsigned long value)
{
	const struct rlimit limit = { value, value };

	ASSERT_EQ(0, setrlimit(resource, &limit));
}

/* What the destination of MREMAP_FIXED frees counts before the limits do; not in 7.x. */
TEST(limits_count_without_the_destination)
{
	struct counters now;

	map_touched(_metadata, SRC, 8);
	ASSERT_EQ(DST, map_anon(DST, bytes(16)));
	read_counters(&now);
	set_limit(_metadata, RLIMIT_AS, now.size * KB);
	set_limit(_metadata, RLIMIT_DATA, now.data * KB);
	if (expect_base_7()) {
		EXPECT_EQ(ENOMEM, error_of(move_to(SRC, bytes(8), bytes(16), DST)));
		EXPECT_OK(check_stamps(SRC, bytes(8), 1));
		return;
	}
	ASSERT_EQ(DST, move_to(SRC, bytes(8), bytes(16), DST));
	EXPECT_OK(check_stamps(DST, bytes(8), 1));
}

TEST(memlock_counts_without_the_destination)
{
	map_touched(_metadata, SRC, 8);
	ASSERT_EQ(DST, map_anon(DST, bytes(16)));
	ASSERT_EQ(0, mlock(at(SRC), bytes(8)));
	ASSERT_EQ(0, mlock(at(DST), bytes(16)));
	set_limit(_metadata, RLIMIT_MEMLOCK, bytes(24));
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	if (expect_base_7()) {
		EXPECT_EQ(EAGAIN, error_of(move_to(SRC, bytes(8), bytes(24), DST)));
		EXPECT_OK(check_stamps(SRC, bytes(8), 1));
		return;
	}
	ASSERT_EQ(DST, move_to(SRC, bytes(8), bytes(24), DST));
	EXPECT_EQ(EAGAIN, error_of(do_mremap(DST, bytes(24), bytes(25), 0, 0)));
	EXPECT_OK(check_stamps(DST, bytes(8), 1));
}

/*
 * Lengths that are more than the address space, and that it takes little more to
 * wrap. What is mapped besides has to be less than that: else a limit refuses them.
 */
TEST(longer_than_the_address_space)
{
#ifdef __x86_64__
	const size_t all = 1UL << 47;
#else
	const size_t all = 1UL << 48;
#endif
	const size_t lengths[] = {
		-4 * KB, -MB, -4 * MB - 4 * KB, -5 * MB - 4 * KB, -6 * MB, -6 * MB - 4 * KB,
		-512 * MB, -GB, -GB - 4 * MB, -2 * GB, 1UL << 63, all,
	};
	const size_t from[] = { 4 * KB, GB };
	const int wanted = expect_base_7() ? EINVAL : ENOMEM;

	for (size_t i = 0; i < ARRAY_SIZE(from); i++) {
		ASSERT_EQ(SRC, map_at(SRC, from[i], PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
				      -1, 0));
		save_state();
		for (size_t j = 0; j < ARRAY_SIZE(lengths); j++) {
			/* 7.x compares it with what there is: 47 bits, or 56. */
			if (expect_base_7() && lengths[j] == all)
				continue;
			EXPECT_EQ(wanted, error_of(do_mremap(SRC, from[i], lengths[j],
							     MREMAP_MAYMOVE, 0)))
				TH_LOG("from %#zx to %#zx", from[i], lengths[j]);
			EXPECT_OK(check_state());
		}
		ASSERT_EQ(0, munmap(at(SRC), from[i]));
	}
}

/* A move fails a few mappings before the limit, at a number of its own. */
FIXTURE(map_count) { };

FIXTURE_VARIANT(map_count)
{
	unsigned long flags;
	long left;	/* mappings that the process may still make */
	long left_7;	/* the same on stock 7.x */
	int error;
};

FIXTURE_VARIANT_ADD(map_count, fixed_enough) { FIXED, 6, 4, 0 };
FIXTURE_VARIANT_ADD(map_count, fixed_too_few) { FIXED, 5, 3, ENOMEM };
FIXTURE_VARIANT_ADD(map_count, dontunmap_enough) { DONTUNMAP, 6, 5, 0 };
FIXTURE_VARIANT_ADD(map_count, dontunmap_too_few) { DONTUNMAP, 5, 4, ENOMEM };
FIXTURE_VARIANT_ADD(map_count, grow_enough) { MREMAP_MAYMOVE, 4, 4, 0 };
FIXTURE_VARIANT_ADD(map_count, grow_too_few) { MREMAP_MAYMOVE, 3, 3, ENOMEM };

FIXTURE_SETUP(map_count)
{
	const long limit = read_long("/proc/sys/vm/max_map_count");
	const long left = expect_base_7() ? variant->left_7 : variant->left;
	long missing;

	map_touched(_metadata, SRC, 8);
	ASSERT_EQ(THIRD, map_at(THIRD, bytes(limit), PROT_READ,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	missing = limit - left - count_vmas();
	/* A page that changes between two that do not makes two mappings more. */
	for (long page = 1; page < missing; page += 2)
		ASSERT_EQ(0, mprotect(at(THIRD + bytes(page)), psize(), PROT_NONE));
	if (missing % 2)
		ASSERT_EQ(0, mprotect(at(THIRD + bytes(limit - 1)), psize(), PROT_NONE));
	ASSERT_EQ(limit - left, count_vmas());
}

FIXTURE_TEARDOWN(map_count) { }

/* The middle of a mapping: that needs the most of them. */
TEST_F(map_count, move)
{
	const size_t grow = variant->flags == MREMAP_MAYMOVE ? bytes(1) : 0;
	const unsigned long dst = variant->flags & MREMAP_FIXED ? DST : 0;
	unsigned long to;

	save_state();
	to = do_mremap(SRC + bytes(2), bytes(4), bytes(4) + grow, variant->flags, dst);
	ASSERT_EQ(variant->error, error_of(to));
	if (variant->error) {
		EXPECT_OK(check_state());
		EXPECT_OK(check_stamps(SRC, bytes(8), 1));
		return;
	}
	EXPECT_OK(check_stamps(SRC, bytes(2), 1));
	EXPECT_OK(check_stamps(to, bytes(4), 3));
	EXPECT_OK(check_stamps(SRC + bytes(6), bytes(2), 7));
}

/* ---- secret memory: locked, if at all, for as long as it is mapped ---- */

#define SECRET_PAGES	16

FIXTURE(secret)
{
	size_t len;
	long locked;	/* in kB, by the rest of the process */
};

/*
 * Mapped while everything new is locked, it stays so: munlock() has no effect on
 * it. A page of other memory is below.
 */
FIXTURE_SETUP(secret)
{
	const int fd = syscall(__NR_memfd_secret, 0);
	struct counters now;

	NEED(fd >= 0, "needs memfd_secret(2)");
	self->len = bytes(SECRET_PAGES);
	ASSERT_EQ(0, ftruncate(fd, self->len));
	ASSERT_EQ(0, mlockall(MCL_FUTURE));
	ASSERT_EQ(SRC, map_at(SRC, self->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	ASSERT_EQ(0, munlockall());
	close(fd);
	ASSERT_TRUE(has_vmflag(SRC, "lo"));
	read_counters(&now);
	self->locked = now.locked - (long)(self->len / KB);
	stamp_range(SRC, self->len, 1);
	map_touched(_metadata, SRC - psize(), 1);
}

FIXTURE_TEARDOWN(secret) { }

/* The pages there are locked, every mapping of them. */
static const char *check_locked(unsigned long addr, size_t len)
{
	struct vma vma;

	for (size_t done = 0; done < len; done += psize())
		if (!find_vma(addr + done, &vma) || !has_vmflag(vma.start, "lo"))
			return "secret memory is not locked";
	return NULL;
}

static void check_locked_pages(META, FIXTURE_DATA(secret) *self, size_t pages)
{
	struct counters now;

	read_counters(&now);
	EXPECT_EQ(self->locked + (long)(bytes(pages) / KB), now.locked);
}

TEST_F(secret, move)
{
	ASSERT_EQ(DST, move_to(SRC, self->len, self->len, DST));
	EXPECT_OK(check_locked(DST, self->len));
	check_locked_pages(_metadata, self, SECRET_PAGES);
	EXPECT_OK(check_stamps(DST, self->len, 1));
	ASSERT_EQ(0, munmap(at(DST), self->len));
	check_locked_pages(_metadata, self, 0);
}

/* What stays mapped shows the same pages, and keeps them out of swap, too. */
TEST_F(secret, dontunmap_mended)
{
	SKIP_STOCK(STOCK_BUG);
	ASSERT_EQ(DST, do_mremap(SRC, self->len, self->len, FIXED | DONTUNMAP, DST));
	EXPECT_OK(check_locked(SRC, self->len));
	EXPECT_OK(check_locked(DST, self->len));
	check_locked_pages(_metadata, self, 2 * SECRET_PAGES);
	EXPECT_OK(check_stamps(DST, self->len, 1));
	EXPECT_OK(check_stamps(SRC, self->len, 1));
	ASSERT_EQ(0, munmap(at(SRC), self->len));
	check_locked_pages(_metadata, self, SECRET_PAGES);
	ASSERT_EQ(0, munmap(at(DST), self->len));
	check_locked_pages(_metadata, self, 0);
}

/*
 * Of several, each mapping by its own rule: other memory gives its lock away. Only
 * a part of the last one moves, and is locked twice.
 */
TEST_F(secret, dontunmap_several_mended)
{
	const size_t part = SECRET_PAGES / 4, len = bytes(1 + part);
	const unsigned long src = SRC - psize();

	SKIP_STOCK(STOCK_BUG);
	ASSERT_EQ(0, mlock(at(src), psize()));
	ASSERT_EQ(DST, do_mremap(src, len, len, FIXED | DONTUNMAP, DST));
	EXPECT_OK(check_locked(SRC, self->len));
	EXPECT_OK(check_locked(DST, len));
	EXPECT_FALSE(has_vmflag(src, "lo"));
	check_locked_pages(_metadata, self, SECRET_PAGES + part + 1);
	EXPECT_OK(check_stamps(DST + psize(), bytes(part), 1));
	EXPECT_OK(check_stamps(SRC, self->len, 1));
	ASSERT_EQ(0, munmap(at(src), psize() + self->len));
	check_locked_pages(_metadata, self, part + 1);
}

/* It is locked twice then, so that much has to be allowed. */
TEST_F(secret, dontunmap_within_the_limit_mended)
{
	const unsigned long most = self->locked * KB + 2 * self->len;

	SKIP_STOCK(STOCK_BUG);
	set_limit(_metadata, RLIMIT_MEMLOCK, most - psize());
	/* Who may lock memory anyway is not bound. */
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	save_state();
	EXPECT_EQ(EAGAIN, error_of(do_mremap(SRC, self->len, self->len, FIXED | DONTUNMAP, DST)));
	EXPECT_EQ(EAGAIN, error_of(do_mremap(SRC, self->len, self->len, DONTUNMAP, 0)));
	EXPECT_OK(check_state());
	ASSERT_EQ(0, setresuid(-1, 0, -1));
	set_limit(_metadata, RLIMIT_MEMLOCK, most);
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	EXPECT_EQ(DST, do_mremap(SRC, self->len, self->len, FIXED | DONTUNMAP, DST));
	check_locked_pages(_metadata, self, 2 * SECRET_PAGES);
}

/* ---- a mapped trace buffer ---- */

#define TRACING		"/sys/kernel/tracing/"
#define TAINTED		"/proc/sys/kernel/tainted"

FIXTURE(trace_buffer)
{
	int fd;
	long tainted;
	uint32_t meta_page_size;	/* what the mapping starts with */
};

FIXTURE_SETUP(trace_buffer)
{
	if (access(TRACING "trace", F_OK))
		mount("tracefs", TRACING, "tracefs", 0, NULL);
	NEED(!access(TRACING "snapshot", W_OK),
	     "needs snapshots of trace buffers (CONFIG_TRACER_SNAPSHOT)");
	self->tainted = read_long(TAINTED);
	self->fd = open(TRACING "per_cpu/cpu0/trace_pipe_raw", O_RDONLY);
	ASSERT_LE(0, self->fd);
	/* One that was taken before would keep the buffer from being mapped. */
	ASSERT_TRUE(write_setting(TRACING "snapshot", "0"));
}

FIXTURE_TEARDOWN(trace_buffer)
{
	if (self->fd > 0)
		write_setting(TRACING "snapshot", "0");
}

/* A snapshot swaps the buffers, so there is none of a buffer that is mapped. */
static bool takes_snapshot(void)
{
	return write_setting(TRACING "snapshot", "1") && write_setting(TRACING "snapshot", "0");
}

static void move_buffer(META, FIXTURE_DATA(trace_buffer) *self,
			unsigned long from, unsigned long to)
{
	const size_t len = bytes(3);

	ASSERT_EQ(to, move_to(from, len, len, to));
	EXPECT_OK(check_unmapped(from, len));
	EXPECT_EQ(self->meta_page_size, *(uint32_t *)at(to));
	ASSERT_FALSE(takes_snapshot());
}

TEST_F(trace_buffer, moves_mended)
{
	const size_t len = bytes(3);

	SKIP_STOCK(STOCK_BUG);
	for (int round = 0; round < 2; round++) {
		NEED(map_at(SRC, len, PROT_READ, MAP_SHARED, self->fd, 0) == SRC,
		     "needs trace buffers that can be mapped");
		self->meta_page_size = *(uint32_t *)at(SRC);
		EXPECT_FALSE(takes_snapshot());
		move_buffer(_metadata, self, SRC, DST);
		move_buffer(_metadata, self, DST, THIRD);
		ASSERT_EQ(0, munmap(at(THIRD), len));
		EXPECT_TRUE(takes_snapshot());
	}
	/* No warning, if there had been none. */
	EXPECT_EQ(self->tainted, read_long(TAINTED));
}

/* ---- profilers are told where code has gone ---- */

static int open_perf(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.config = PERF_COUNT_SW_DUMMY,
		.size = sizeof(attr),
		.mmap = 1,
		.mmap2 = 1,
		.mmap_data = 1,
	};

	return syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
}

FIXTURE(profiled)
{
	int fd;
	struct perf_event_mmap_page *ring;
};

FIXTURE_SETUP(profiled)
{
	SKIP_STOCK("stock 6.12 does not tell");
	self->fd = open_perf();
	NEED(self->fd >= 0, "needs perf_event_open(2)");
	self->ring = mmap(NULL, bytes(1 + RING_PAGES), PROT_READ | PROT_WRITE, MAP_SHARED,
			  self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->ring);
}

FIXTURE_TEARDOWN(profiled) { }

/* The first words of a PERF_RECORD_MMAP2. */
struct told {
	struct perf_event_header header;
	uint32_t pid, tid;
	uint64_t addr, len, pgoff;
};

/* Reads the next one, if there is any. */
static bool is_told(FIXTURE_DATA(profiled) *self, struct told *told)
{
	struct perf_event_mmap_page *ring = self->ring;
	const char *records = (char *)ring + ring->data_offset;

	while (ring->data_tail < ring->data_head) {
		/* The ring is never full, but a record may go on at its start. */
		for (size_t i = 0; i < sizeof(*told); i++)
			((char *)told)[i] = records[(ring->data_tail + i) % bytes(RING_PAGES)];
		ring->data_tail += told->header.size;
		if (told->header.type == PERF_RECORD_MMAP2)
			return true;
	}
	return false;
}

/* That is the next thing to be told, and so many bytes of the file are before it. */
static void expect_told(META, FIXTURE_DATA(profiled) *self, unsigned long addr, size_t len,
			size_t pgoff)
{
	struct told told;

	ASSERT_TRUE(is_told(self, &told));
	EXPECT_EQ(addr, told.addr);
	EXPECT_EQ(len, told.len);
	EXPECT_EQ(pgoff, told.pgoff);
}

static void expect_nothing_told(META, FIXTURE_DATA(profiled) *self)
{
	struct told told;

	EXPECT_FALSE(is_told(self, &told))
		TH_LOG("told of %#lx", (unsigned long)told.addr);
}

static void map_code(META, unsigned long addr, size_t pages)
{
	int fd = memfd_create("mremap_features", 0);

	ASSERT_EQ(0, ftruncate(fd, bytes(pages)));
	ASSERT_EQ(addr, map_at(addr, bytes(pages), PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0));
	close(fd);
}

/* What has been told so far, be it of the ring itself, is no concern of the test. */
static void forget_told(FIXTURE_DATA(profiled) *self)
{
	self->ring->data_tail = self->ring->data_head;
}

TEST_F(profiled, moved_code_mended)
{
	forget_told(self);
	map_code(_metadata, SRC, 4);
	expect_told(_metadata, self, SRC, bytes(4), 0);
	/* All of it, a part, and a second view of what is there. */
	ASSERT_EQ(DST, move_to(SRC, bytes(4), bytes(4), DST));
	expect_told(_metadata, self, DST, bytes(4), 0);
	ASSERT_EQ(SRC, move_to(DST + bytes(2), bytes(1), bytes(1), SRC));
	expect_told(_metadata, self, SRC, bytes(1), bytes(2));
	ASSERT_EQ(SRC + bytes(8), move_to(SRC, 0, bytes(1), SRC + bytes(8)));
	expect_told(_metadata, self, SRC + bytes(8), bytes(1), bytes(2));
	expect_nothing_told(_metadata, self);
}

TEST_F(profiled, each_of_several_mended)
{
	map_code(_metadata, SRC, 1);
	map_anon(SRC + bytes(1), bytes(1));
	map_code(_metadata, SRC + bytes(2), 2);
	forget_told(self);
	ASSERT_EQ(DST, move_to(SRC, bytes(4), bytes(4), DST));
	expect_told(_metadata, self, DST, bytes(1), 0);
	/* Not of the data in between. */
	expect_told(_metadata, self, DST + bytes(2), bytes(2), 0);
	expect_nothing_told(_metadata, self);
}

/* Code that grows where it is. */
TEST_F(profiled, grown_code_mended)
{
	map_code(_metadata, SRC, 4);
	forget_told(self);
	ASSERT_EQ(SRC, do_mremap(SRC, bytes(4), bytes(6), 0, 0));
	expect_told(_metadata, self, SRC, bytes(6), 0);
	expect_nothing_told(_metadata, self);
}

/* Neither of data, nor of what has stayed where it was. */
TEST_F(profiled, nothing_else_mended)
{
	map_code(_metadata, SRC, 4);
	ASSERT_EQ(SRC + MB, map_anon(SRC + MB, bytes(4)));
	forget_told(self);
	ASSERT_EQ(DST + MB, move_to(SRC + MB, bytes(4), bytes(4), DST + MB));
	ASSERT_EQ(EINVAL, error_of(move_to(SRC, bytes(4), bytes(4), DST + 1)));
	ASSERT_EQ(SRC, do_mremap(SRC, bytes(4), bytes(2), 0, 0));
	expect_nothing_told(_metadata, self);
}

/* Half of a ring would be counted as all of it when it goes. */
TEST(ring_of_perf_stays_whole)
{
	const size_t len = bytes(1 + RING_PAGES), rest = len - bytes(1);
	const int fd = open_perf();

	NEED(fd >= 0, "needs perf_event_open(2)");
	ASSERT_EQ(SRC, map_at(SRC, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	save_state();
	EXPECT_EQ(EINVAL, error_of(move_to(SRC, bytes(1), bytes(1), DST)));
	EXPECT_EQ(EINVAL, error_of(move_to(SRC + bytes(1), rest, rest, DST)));
	EXPECT_EQ(EINVAL, error_of(do_mremap(SRC, len, bytes(1), 0, 0)));
	EXPECT_OK(check_state());
	EXPECT_EQ(DST, move_to(SRC, len, len, DST));
	EXPECT_EQ(0, munmap(at(DST), len));
	close(fd);
}

/* ---- breakpoints of uprobes ---- */

#define PROBE		"mremap_features/probe"
#define NOP		0x90
#define BREAKPOINT	0xcc

FIXTURE(probed)
{
	int fd;
};

/* At the start of the second page of a file that has nothing to do. */
FIXTURE_SETUP(probed)
{
	static char code[64 * KB];
	char text[128];

#ifndef __x86_64__
	SKIP(return, "needs x86");
#endif
	self->fd = memfd_create("mremap_features", 0);
	memset(code, NOP, sizeof(code));
	ASSERT_EQ((long)bytes(2), write(self->fd, code, bytes(2)));
	snprintf(text, sizeof(text), "p:" PROBE " /proc/%d/fd/%d:%#zx", getpid(),
		 self->fd, bytes(1));
	NEED(write_setting(TRACING "uprobe_events", text),
	     "needs CONFIG_UPROBE_EVENTS (" TRACING ")");
	ASSERT_TRUE(write_setting(TRACING "events/" PROBE "/enable", "1"));
}

FIXTURE_TEARDOWN(probed)
{
	write_setting(TRACING "events/" PROBE "/enable", "0");
	write_setting(TRACING "uprobe_events", "-:" PROBE);
}

static void map_probed(META, FIXTURE_DATA(probed) *self, unsigned long addr, size_t page)
{
	ASSERT_EQ(addr, map_at(addr, bytes(1), PROT_READ | PROT_EXEC,
			       MAP_PRIVATE, self->fd, bytes(page)));
}

static long move_breakpoint(META, FIXTURE_DATA(probed) *self)
{
	struct counters after;
	struct vma vma;

	map_probed(_metadata, self, DST, 0);
	map_probed(_metadata, self, SRC, 1);
	EXPECT_EQ(BREAKPOINT, *(volatile uint8_t *)at(SRC));
	ASSERT_EQ(DST + bytes(1), move_to(SRC, bytes(1), bytes(1), DST + bytes(1)));
	EXPECT_EQ(BREAKPOINT, *(volatile uint8_t *)at(DST + bytes(1)));
	ASSERT_TRUE(find_vma(DST, &vma));
	/* Else this shows nothing. Stock may keep them apart. */
	if (!expect_base())
		EXPECT_EQ(DST + bytes(2), vma.end);
	ASSERT_EQ(0, munmap(at(DST), bytes(2)));
	read_counters(&after);
	return after.rss_anon;
}

/*
 * The mapping at the new place becomes longer before the pages come there. Whoever
 * sets a breakpoint at that time loses a page.
 */
TEST_F(probed, breakpoint_moves_to_a_neighbour)
{
	const long before = move_breakpoint(_metadata, self);

	EXPECT_EQ(before, move_breakpoint(_metadata, self));
}

/* ---- execve: the new stack is shifted with all arguments in it ---- */

#define EXEC_STRINGS	80
#define EXEC_STRING	(64 * KB - 1)

/* A letter for every 4 KB, so that a page too many or too few shows. */
static void make_exec_string(char *string, int nr)
{
	for (size_t start = 0; start < EXEC_STRING; start += 4 * KB) {
		const size_t left = EXEC_STRING - start;

		memset(string + start, 'a' + (nr * 7 + start / (4 * KB)) % 26,
		       left < 4 * KB ? left : 4 * KB);
	}
	string[EXEC_STRING] = '\0';
}

static bool same_exec_strings(char **strings)
{
	static char want[EXEC_STRING + 1];

	for (int i = 0; i < EXEC_STRINGS; i++) {
		make_exec_string(want, i);
		if (!strings[i] || strcmp(strings[i], want))
			return false;
	}
	return !strings[EXEC_STRINGS];
}

#define CHECK_STRINGS	"check-strings"

static const char *exec_with_arguments(void)
{
	static char *argv[2 + EXEC_STRINGS + 1] = { "/proc/self/exe", CHECK_STRINGS };
	static char *nothing[] = { NULL };
	const struct rlimit limit = { 64 * MB, 64 * MB };

	for (int i = 0; i < EXEC_STRINGS; i++) {
		argv[2 + i] = malloc(EXEC_STRING + 1);
		make_exec_string(argv[2 + i], i);
	}
	setrlimit(RLIMIT_STACK, &limit);
	execve(argv[0], argv, nothing);
	return "execve failed";
}

TEST(exec_keeps_megabytes_of_arguments)
{
	for (int i = 0; i < 3; i++)
		EXPECT_OK_IN_CHILD(exec_with_arguments());
}

/* ---- the same, when memory runs out on the way ---- */

#define FROM_EXEC	"from-exec"
#define NOTHING_FAILED	3
#define MOST_OF_EXEC	2000

FIXTURE(exec) { };

FIXTURE_SETUP(exec)
{
	NEED_OK(prepare_fail_nth());
}

FIXTURE_TEARDOWN(exec) { }

/* What the new program tells. */
static int tell_of_failure(void)
{
	return read_long(FAIL_NTH) > 0 ? NOTHING_FAILED : 0;
}

static void exec_failing(int nth)
{
	static char *argv[] = { "/proc/self/exe", FROM_EXEC, NULL };
	static char *nothing[] = { NULL };
	int fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);

	arm_fail_nth(fd, nth);
	execve(argv[0], argv, nothing);
	arm_fail_nth(fd, 0);
	_exit(errno);
}

/* How the nth allocation's failure ends an execve(), as waitpid() says. */
static int run_exec_failing(int nth)
{
	pid_t child = fork();
	int status = -1;

	if (!child)
		exec_failing(nth);
	return waitpid(child, &status, 0) == child ? status : -1;
}

/*
 * A program whose stack could not be moved must not start with half of it: its last
 * pages would be lost, of which the kernel complains in its log.
 */
TEST_F_TIMEOUT(exec, without_memory, 900)
{
	int nth, status = 0, killed = 0;

	for (nth = 1; nth < MOST_OF_EXEC; nth++) {
		status = run_exec_failing(nth);
		if (WIFEXITED(status) && WEXITSTATUS(status) == NOTHING_FAILED)
			break;
		if (!WIFSIGNALED(status))
			continue;
		EXPECT_EQ(SIGSEGV, WTERMSIG(status));
		killed++;
	}
	EXPECT_GT(MOST_OF_EXEC, nth);
	/* The stack is moved when there is no way back any more. */
	EXPECT_LT(0, killed);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], CHECK_STRINGS))
		return !same_exec_strings(argv + 2);
	if (argc > 1 && !strcmp(argv[1], FROM_EXEC))
		return tell_of_failure();
	return test_harness_run(argc, argv);
}
