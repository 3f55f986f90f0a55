// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap(2) charges: memory committed, to the page, when a call succeeds
 * and when it fails halfway. Nothing else that commits memory may run beside
 * this.
 *
 * The sweeps let every single allocation of a call fail in turn. They need a
 * kernel with fault injection (CONFIG_FAULT_INJECTION_DEBUG_FS, FAILSLAB and
 * FAIL_PAGE_ALLOC).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

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

/* ---- every allocation fails once ---- */

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define DEBUGFS		"/sys/kernel/debug/"

/* More allocations than any of the calls below makes. */
#define MOST_ALLOCATIONS	400

static const char *set_up_injection(void)
{
	const char *const settings[][2] = {
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
	for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
		if (!write_setting(settings[i][0], settings[i][1]))
			return "needs failslab and fail_page_alloc in debugfs";
	return NULL;
}

FIXTURE(sweep)
{
	int fd;
	long committed;
};

FIXTURE_VARIANT(sweep)
{
	size_t src;		/* offset of the source, in pages */
	size_t dst;		/* offset of the destination */
	size_t old_pages;
	size_t new_pages;
	size_t step;		/* every step-th page is touched */
	unsigned long flags;
	bool occupied;		/* something is mapped at the destination */
	bool shared;
};

/* Page tables have 512 entries where these numbers matter. */
FIXTURE_VARIANT_ADD(sweep, one_page) {
	.old_pages = 1, .new_pages = 1, .step = 1, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, four_tables_of_pages) {
	.src = 3, .dst = 7, .old_pages = 4 * 512, .new_pages = 4 * 512,
	.step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, whole_tables) {
	.old_pages = 4 * 512, .new_pages = 4 * 512, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, across_directories) {
	.src = 512 * 512 - 600, .dst = 512 * 512 - 5, .old_pages = 1200,
	.new_pages = 1200, .step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, grow) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 3 * 512,
	.step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, grow_anywhere) {
	.src = 3, .old_pages = 2 * 512, .new_pages = 1 << 18, .step = 100,
	.flags = MREMAP_MAYMOVE,
};
FIXTURE_VARIANT_ADD(sweep, shrink) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 512,
	.step = 100, .flags = FIXED,
};
FIXTURE_VARIANT_ADD(sweep, dontunmap) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 2 * 512,
	.step = 100, .flags = FIXED | DONTUNMAP,
};
FIXTURE_VARIANT_ADD(sweep, over_mapping) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 2 * 512,
	.step = 100, .flags = FIXED, .occupied = true,
};
FIXTURE_VARIANT_ADD(sweep, shared) {
	.src = 3, .dst = 7, .old_pages = 2 * 512, .new_pages = 2 * 512,
	.step = 100, .flags = FIXED, .shared = true,
};

FIXTURE_SETUP(sweep)
{
	const char *why = set_up_injection();

	if (why)
		SKIP(return, "%s", why);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	self->fd = open(FAIL_NTH, O_RDWR);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(sweep)
{
	if (self->fd >= 0)
		close(self->fd);
}

static bool arm(int fd, int nth)
{
	char text[16];
	const int len = snprintf(text, sizeof(text), "%d", nth);

	return pwrite(fd, text, len, 0) == len;
}

/* Whether the armed failure has happened; none is pending afterwards. */
static bool disarm(int fd)
{
	char left[16] = "";

	if (pread(fd, left, sizeof(left) - 1, 0) <= 0)
		return false;
	arm(fd, 0);
	return atoi(left) == 0;
}

#undef SELF
#undef VARIANT
#define SELF	FIXTURE_DATA(sweep) *self
#define VARIANT	const FIXTURE_VARIANT(sweep) *variant

static unsigned long sweep_src(VARIANT)
{
	return SRC + bytes(variant->src);
}

static unsigned long sweep_dst(VARIANT)
{
	return variant->flags & MREMAP_FIXED ? DST + bytes(variant->dst) : 0;
}

/* A mapping with neighbours, as the first part of a larger one. */
static void build(META, VARIANT)
{
	const unsigned long src = sweep_src(variant);
	const size_t len = bytes(variant->old_pages);

	ASSERT_EQ(src, map_at(src, len + psize(), PROT_READ | PROT_WRITE,
			      (variant->shared ? MAP_SHARED : MAP_PRIVATE) |
			      MAP_ANONYMOUS, -1, 0));
	for (size_t page = 0; page < variant->old_pages; page += variant->step)
		stamp(src + bytes(page), page);
	stamp(src + len, variant->old_pages);
	if (variant->occupied)
		map_at(sweep_dst(variant), len, PROT_READ,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static const char *check_pages(VARIANT, unsigned long addr)
{
	const size_t pages = variant->old_pages < variant->new_pages ?
		variant->old_pages : variant->new_pages;
	const char *why = NULL;

	for (size_t page = 0; !why && page < pages; page += variant->step)
		why = check_stamp(addr + bytes(page), page);
	return why;
}

/* A failed call has left the mapping alone, down to the last charge. */
static void check_failed(META, SELF, VARIANT, int error)
{
	const unsigned long src = sweep_src(variant);
	const bool shrunk = variant->new_pages < variant->old_pages;

	EXPECT_EQ(ENOMEM, error);
	EXPECT_OK(check_pages(variant, src));
	EXPECT_OK(check_stamp(src + bytes(variant->old_pages),
			      variant->old_pages));
	/*
	 * Unmapping what is in the way, or the tail, may have been done before
	 * memory ran out: then it stays so.
	 */
	if (variant->occupied || shrunk)
		return;
	EXPECT_OK(check_state());
	/* Stock loses the charge of a growing move that fails halfway. */
	if (!expect_base())
		EXPECT_EQ(self->committed, committed_kb());
}

static void check_succeeded(META, VARIANT, unsigned long to)
{
	const unsigned long src = sweep_src(variant);

	EXPECT_OK(check_pages(variant, to));
	EXPECT_OK(check_stamp(src + bytes(variant->old_pages),
			      variant->old_pages));
	if (!(variant->flags & MREMAP_DONTUNMAP))
		EXPECT_OK(check_unmapped(src, bytes(variant->old_pages)));
	if (!sweep_dst(variant))
		munmap(at(to), bytes(variant->new_pages));
}

/* One call, its nth allocation failing; whether it came to that. */
static bool fail_once(META, SELF, VARIANT, int nth)
{
	const long before = committed_kb();
	unsigned long to;
	bool injected;

	build(_metadata, variant);
	save_state();
	self->committed = committed_kb();

	ASSERT_TRUE(arm(self->fd, nth));
	to = do_mremap(sweep_src(variant), bytes(variant->old_pages),
		       bytes(variant->new_pages), variant->flags,
		       sweep_dst(variant));
	injected = disarm(self->fd);

	if (error_of(to))
		check_failed(_metadata, self, variant, error_of(to));
	else
		check_succeeded(_metadata, variant, to);
	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	if (!expect_base())
		EXPECT_EQ(before, committed_kb());
	return injected;
}

TEST_F(sweep, every_allocation)
{
	int nth = 1;

	while (nth <= MOST_ALLOCATIONS && fail_once(_metadata, self, variant, nth) &&
	       !_metadata->exit_code)
		nth++;
	EXPECT_GE(MOST_ALLOCATIONS, nth);
	/* At least the new mapping has to be allocated. */
	EXPECT_LT(1, nth);
}

TEST_HARNESS_MAIN
