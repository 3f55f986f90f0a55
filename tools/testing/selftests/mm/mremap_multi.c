// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) where the rows of mremap_test do not reach, nearly all of it of several
 * mappings in one call: limits, hugetlb that is not aligned, System V shared memory,
 * AIO rings, the vDSO, threads and children that use the memory meanwhile, and a
 * signal that kills the caller on the way.
 *
 * Most tests work on the world of mremap_model.h. Stock 6.12 moves one mapping at a
 * time; MREMAP_EXPECT=base skips them.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_model.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#define ONE_AT_A_TIME	"stock 6.12 moves one mapping at a time"

/* ---- limits ---- */

FIXTURE(multi)
{
	struct world w;
};

FIXTURE_SETUP(multi)
{
	SKIP_STOCK(ONE_AT_A_TIME);
}

FIXTURE_TEARDOWN(multi) { }

static const char *check_error(unsigned long ret, int error)
{
	return error_of(ret) == error ? NULL : complain("errno %d, not %d", error_of(ret), error);
}

/* A soft limit, so that it can be raised again. */
static const char *set_limit(int resource, unsigned long value)
{
	struct rlimit limit;

	if (getrlimit(resource, &limit))
		return "no limit";
	limit.rlim_cur = value;
	return setrlimit(resource, &limit) ? "cannot set a limit" : NULL;
}

static const char *limited_call(struct world *w, const struct call *call,
				int resource, long limit, int error)
{
	const char *why = set_limit(resource, limit);

	why = why ?: try_call(w, call, error ? ERROR(error) : 0);
	return why ?: set_limit(resource, RLIM_INFINITY);
}

/*
 * Two cells of the destination are replaced, so are free; the one in the gap is
 * not. Six cells come into being.
 */
#define LIMITED_LOW	"wwr.spw"
#define LIMITED_HIGH	"dd.d..."

static void fit_limit(META, struct world *w, int resource, int added)
{
	const struct call call = { 0, 7, 7, KEEP, UP(0) };
	struct counters now;
	long limit;

	ASSERT_OK(build(w, PAGES, LIMITED_LOW, LIMITED_HIGH));
	read_counters(&now);
	limit = (resource == RLIMIT_AS ? now.size : now.data) * KB + added * w->unit;
	ASSERT_OK(limited_call(w, &call, resource, limit - psize(), ENOMEM));
	ASSERT_OK(limited_call(w, &call, resource, limit, 0));
}

TEST_F(multi, address_space_limit_mended)
{
	fit_limit(_metadata, &self->w, RLIMIT_AS, 4);
}

TEST_F(multi, data_limit_mended)
{
	fit_limit(_metadata, &self->w, RLIMIT_DATA, 2);
}

/* What only changes its place adds nothing, be the limit exceeded already. */
TEST_F(multi, limits_do_not_bind_moves_mended)
{
	const struct call call = { 0, 7, 7, FIXED, UP(0) };
	struct world *w = &self->w;
	struct counters now;

	ASSERT_OK(build(w, PAGES, LIMITED_LOW, LIMITED_HIGH));
	read_counters(&now);
	ASSERT_OK(set_limit(RLIMIT_AS, now.size * KB));
	ASSERT_OK(limited_call(w, &call, RLIMIT_DATA, psize(), 0));
}

/* The lock goes with the pages, so there is never more of it. */
TEST_F(multi, locked_memory_limit_mended)
{
	struct call call = { 0, 7, 7, KEEP, UP(0) };
	struct world *w = &self->w;
	struct counters now;

	ASSERT_OK(build(w, PAGES, "lrlw.ll", "ww"));
	read_counters(&now);
	ASSERT_OK(set_limit(RLIMIT_MEMLOCK, now.locked * KB));
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	ASSERT_OK(call_as_modelled(w, &call));
	call = (struct call) { UP(0), 7, 7, FIXED, 0 };
	ASSERT_OK(call_as_modelled(w, &call));
}

/* A mapping of its own for each page; as many as there may be. */
static int fill_map_count(void)
{
	int pages = 0;

	while (map_at(FILL + bytes(pages), psize(), pages % 2 ? PROT_READ : PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == FILL + bytes(pages))
		pages++;
	return pages;
}

/*
 * Whatever the number is that a call needs: with fewer left it is refused, each
 * time without a trace, and then goes through.
 */
static void sweep_map_count(META, struct world *w, unsigned long flags)
{
	const struct call call = { 1, 13, 13, flags, UP(1) };
	int filled, refused = 0;
	unsigned long ret;

	ASSERT_OK(build(w, PAGES, "wwrs.p.wrwrs.ll", "ddddddddddddddd"));
	filled = fill_map_count();
	ASSERT_LT(80, filled);
	for (;;) {
		/* The filling is part of what has to stay as it is. */
		ASSERT_OK(settle(w));
		ret = make_call(w, &call, true);
		if (!error_of(ret))
			break;
		ASSERT_EQ(ENOMEM, error_of(ret));
		ASSERT_OK(check_refusal(w));
		refused++;
		ASSERT_EQ(0, munmap(at(FILL + bytes(--filled)), psize()));
	}
	EXPECT_OK(check_success(w, &call, ret));
	EXPECT_LT(0, refused);
	EXPECT_GE(80, refused)
		TH_LOG("10 mappings move only with room for %d more", refused);
}

TEST_F(multi, map_count_mended)
{
	sweep_map_count(_metadata, &self->w, FIXED);
}

TEST_F(multi, map_count_dontunmap_mended)
{
	sweep_map_count(_metadata, &self->w, KEEP);
}

/* ---- memory that is counted strictly ---- */

FIXTURE(strict)
{
	struct world w;
};

FIXTURE_SETUP(strict)
{
	SKIP_STOCK(ONE_AT_A_TIME);
	NEED(limit_commits(GB / KB), NEEDS_OVERCOMMIT);
	unlimit_commits();
}

FIXTURE_TEARDOWN(strict)
{
	unlimit_commits();
}

/* Makes a call while this much more memory may be committed than there is. */
static const char *strict_call(struct world *w, const struct call *call, long room_kb, int error)
{
	const char *why;

	if (!limit_commits(room_kb))
		return "cannot set vm.overcommit_memory";
	why = try_call(w, call, error ? ERROR(error) : 0);
	unlimit_commits();
	return why;
}

/*
 * Half a cell more or less is far more than what the kernel keeps in reserve,
 * a 32nd of the process.
 */
#define ROOM(cells, w)	((long)((w)->unit / KB * ((cells) * 2 + 1) / 2))

/* The first one by itself would have found enough. */
TEST_F(strict, dontunmap_mended)
{
	const struct call call = { 0, 2, 2, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "wd", ""));
	ASSERT_OK(strict_call(w, &call, ROOM(1, w), ENOMEM));
	ASSERT_OK(strict_call(w, &call, ROOM(2, w), 0));
}

/* What is not charged does not count, nor what the destination gives back. */
TEST_F(strict, dontunmap_over_charged_mended)
{
	const struct call call = { 0, 4, 4, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "wos.", "d..."));
	ASSERT_OK(strict_call(w, &call, ROOM(0, w), 0));
}

/* A destination that survives in a gap does not give back anything. */
TEST_F(strict, dontunmap_over_gap_mended)
{
	const struct call call = { 0, 3, 3, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "w.d", "dd."));
	ASSERT_OK(strict_call(w, &call, ROOM(0, w), ENOMEM));
	ASSERT_OK(strict_call(w, &call, ROOM(1, w), 0));
}

TEST_F(strict, move_mended)
{
	const struct call call = { 0, 3, 3, FIXED, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "w.d", ""));
	ASSERT_OK(strict_call(w, &call, ROOM(0, w), 0));
}

/* It is refused, with MREMAP_DONTUNMAP as well, and nothing changes. */
static const char *refused_to(struct world *w, unsigned long addr, size_t len,
			      unsigned long new_addr, int error)
{
	const unsigned long flags[] = { FIXED, KEEP };
	const char *why = NULL;

	for (int i = 0; !why && i < 2; i++) {
		begin_call(w, true);
		why = check_error(do_mremap(addr, len, len, flags[i], new_addr), error);
		why = why ?: check_refusal(w);
	}
	return why;
}

TEST_F(multi, places_that_are_none_mended)
{
	struct world *w = &self->w;
	const size_t len = bytes(3);

	ASSERT_OK(build(w, PAGES, "wrs", "ddd"));
	EXPECT_OK(refused_to(w, w->base, len, cell_addr(w, UP(0)) + 1, EINVAL));
	EXPECT_OK(refused_to(w, w->base, len, 1UL << 63, EINVAL));
	EXPECT_OK(refused_to(w, w->base, len, -len, EINVAL));
	EXPECT_OK(refused_to(w, w->base, -2 * len, cell_addr(w, UP(0)), EINVAL));
	EXPECT_OK(refused_to(w, w->base, 1UL << 62, cell_addr(w, UP(0)), EINVAL));
}

/* Where only the privileged may map. */
TEST_F(multi, below_the_lowest_address_mended)
{
	struct world *w = &self->w;

	NEED(read_long("/proc/sys/vm/mmap_min_addr") > 0, "needs vm.mmap_min_addr");
	ASSERT_OK(build(w, PAGES, "wrs", ""));
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	EXPECT_OK(refused_to(w, w->base, bytes(3), 0, EPERM));
}

/* ---- names and policies ---- */

/* What /proc/self/maps calls the mapping that starts at addr. */
static const char *name_at(unsigned long addr)
{
	static char line[8192];
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start = 0;
	int name = 0;

	while (start != addr && maps && fgets(line, sizeof(line), maps)) {
		line[strcspn(line, "\n")] = '\0';
		if (sscanf(line, "%lx-%*x %*s %*s %*s %*s %n", &start, &name) != 1)
			break;
	}
	if (maps)
		fclose(maps);
	return start == addr ? line + name : "nothing";
}

TEST_F(multi, names_move_along_mended)
{
	static const char * const names[][2] = {
		{ "first", "[anon:first]" }, { "second", "[anon:second]" }, { NULL, "" },
		{ "last", "[anon:last]" },
	};
	const struct call call = { 0, 4, 4, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, PAGES, "wwww", ""));
	for (int i = 0; i < 4; i++)
		NEED(!prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, cell_addr(w, i), w->unit,
			    names[i][0]), "needs CONFIG_ANON_VMA_NAME");
	ASSERT_OK(settle(w) ?: call_as_modelled(w, &call));
	for (int i = 0; i < 4; i++) {
		EXPECT_STREQ(names[i][1], name_at(cell_addr(w, i)));
		EXPECT_STREQ(names[i][1], name_at(cell_addr(w, UP(i))));
	}
}

TEST_F(multi, policies_move_along_mended)
{
	const int modes[] = { MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED, MPOL_DEFAULT };
	const struct call call = { 0, 4, 4, FIXED, UP(0) };
	struct world *w = &self->w;
	unsigned long node = 1;
	int mode;

	ASSERT_OK(build(w, PAGES, "wwww", ""));
	for (int i = 0; i < 3; i++)
		NEED(!syscall(__NR_mbind, cell_addr(w, i), w->unit, modes[i], &node, 8, 0),
		     "needs NUMA policies");
	ASSERT_OK(settle(w) ?: call_as_modelled(w, &call));
	for (int i = 0; i < 4; i++) {
		EXPECT_EQ(0, syscall(__NR_get_mempolicy, &mode, NULL, 0, cell_addr(w, UP(i)),
				     MPOL_F_ADDR));
		EXPECT_EQ(modes[i], mode);
	}
}

/* ---- what is attached to pages, for each size of what moves ---- */

FIXTURE(shaped)
{
	struct world w;
};

FIXTURE_VARIANT(shaped)
{
	enum shape shape;
};

FIXTURE_VARIANT_ADD(shaped, pages) { PAGES };
FIXTURE_VARIANT_ADD(shaped, parts_of_tables) { PARTS };
FIXTURE_VARIANT_ADD(shaped, uneven) { UNEVEN };
FIXTURE_VARIANT_ADD(shaped, tables) { TABLES };
FIXTURE_VARIANT_ADD(shaped, huge_pages) { HUGE };
FIXTURE_VARIANT_ADD(shaped, parts_of_huge_pages) { HUGE_PARTS };
FIXTURE_VARIANT_ADD(shaped, directories) { DIRECTORIES };

FIXTURE_SETUP(shaped)
{
	const bool huge = variant->shape == HUGE || variant->shape == HUGE_PARTS;

	SKIP_STOCK(ONE_AT_A_TIME);
	NEED(!huge || !madvise(NULL, 0, MADV_HUGEPAGE), "needs transparent huge pages");
}

FIXTURE_TEARDOWN(shaped) { }

/* ---- hugetlb ---- */

#define NEEDS_TABLE_SIZE	"needs huge pages of the size of a table"

FIXTURE(hugetlb)
{
	struct world w;
};

FIXTURE_VARIANT(hugetlb)
{
	const char *low;
};

FIXTURE_VARIANT_ADD(hugetlb, private) { "whhr" };
FIXTURE_VARIANT_ADD(hugetlb, shared) { "wkkr" };

FIXTURE_SETUP(hugetlb)
{
	SKIP_STOCK(ONE_AT_A_TIME);
	NEED(default_huge_page_size() == pmd_span(), NEEDS_TABLE_SIZE);
	NEED_OK(build(&self->w, TABLES, variant->low, ""));
}

FIXTURE_TEARDOWN(hugetlb) { }

TEST_F(hugetlb, destination_is_not_aligned_mended)
{
	struct world *w = &self->w;
	const unsigned long to = cell_addr(w, UP(0)) + psize();

	EXPECT_OK(refused_to(w, w->base, 4 * w->unit, to, EINVAL));
}

TEST_F(hugetlb, source_is_not_aligned_mended)
{
	struct world *w = &self->w;
	const unsigned long from = cell_addr(w, 1) + psize(), to = cell_addr(w, UP(0)) + psize();

	EXPECT_OK(refused_to(w, from, 3 * w->unit - psize(), to, EINVAL));
}

/* A gap of the source would cut a huge page of the destination in two. */
TEST_F(hugetlb, cut_at_destination_mended)
{
	struct world *w = &self->w;

	ASSERT_EQ(FILL, map_anon(FILL, psize()));
	ASSERT_EQ(FILL + bytes(2), map_anon(FILL + bytes(2), w->unit - bytes(2)));
	ASSERT_OK(settle(w));
	EXPECT_OK(refused_to(w, FILL, w->unit, cell_addr(w, 1), EINVAL));
}

/* A range that ends amid a huge page moves all of it, as with one mapping. */
TEST_F(hugetlb, end_is_rounded_mended)
{
	const struct call call = { 0, 2, 2, FIXED, UP(0) };
	struct world *w = &self->w;
	const size_t len = w->unit + psize();

	ASSERT_EQ(cell_addr(w, UP(0)), move_to(w->base, len, len, cell_addr(w, UP(0))));
	apply(w, &call, 0);
	EXPECT_OK(check_world(w));
}

/* So does what is cut off: of both huge pages nothing is left where they were. */
TEST_F(hugetlb, tail_is_rounded_mended)
{
	const struct call call = { 0, 3, 2, FIXED, UP(0) };
	struct world *w = &self->w;

	ASSERT_EQ(cell_addr(w, UP(0)), move_to(w->base, 2 * w->unit + psize(),
					       w->unit + psize(), cell_addr(w, UP(0))));
	apply(w, &call, 0);
	EXPECT_OK(check_world(w));
}

/* Both lengths end in one huge page. */
TEST_F(hugetlb, growth_is_rounded_away_mended)
{
	struct world *w = &self->w;

	save_state();
	ASSERT_EQ(w->base, do_mremap(w->base, w->unit + psize(), w->unit + 2 * psize(),
				     MREMAP_MAYMOVE, 0));
	EXPECT_OK(check_state());
	EXPECT_OK(check_world(w));
}

/* The huge page is first, so the place has to suit it. None is taken. */
TEST(gigantic_page_finds_a_place_mended)
{
	const size_t len = GB + psize();
	const unsigned long end = SRC + len;
	unsigned long dst;

	SKIP_STOCK(ONE_AT_A_TIME);
	NEED(map_at(SRC, GB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
		    MAP_HUGE_1GB | MAP_NORESERVE, -1, 0) == SRC, "needs huge pages of 1 GB");
	ASSERT_EQ(end - psize(), map_anon(end - psize(), psize()));
	ASSERT_EQ(end, map_anon(end, psize()));
	ASSERT_EQ(0, mprotect(at(end), psize(), PROT_READ));
	stamp(end - psize(), 1);

	dst = do_mremap(SRC, len, len + psize(), MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(dst));
	EXPECT_EQ(0, dst % GB);
	EXPECT_OK(check_unmapped(SRC, len));
	EXPECT_OK(check_stamp(dst + GB, 1));
	EXPECT_OK(check_zero(dst + len, psize()));
}

/*
 * What is behind follows at the end that the source has, which is not that of a
 * huge page counted from its odd start. No huge page is taken.
 */
TEST(hugetlb_not_aligned_before_neighbour_mended)
{
	const size_t huge = default_huge_page_size();
	const unsigned long dst = FILL + GB;

	SKIP_STOCK(ONE_AT_A_TIME);
	NEED(huge == pmd_span(), NEEDS_TABLE_SIZE);
	ASSERT_EQ(SRC, map_at(SRC, huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |
			      MAP_HUGETLB | MAP_NORESERVE, -1, 0));
	ASSERT_EQ(SRC + huge, map_anon(SRC + huge, bytes(3)));
	stamp_range(SRC + huge, bytes(3), 1);
	save_state();
	for (size_t page = 1; page < 3; page++) {
		EXPECT_EQ(EINVAL, error_of(move_to(SRC + bytes(page), huge, huge, dst)));
		EXPECT_EQ(EINVAL, error_of(do_mremap(SRC + bytes(page), huge, huge, KEEP, dst)));
	}
	EXPECT_OK(check_state());
	EXPECT_OK(check_stamps(SRC + huge, bytes(3), 1));
}

/* ---- System V shared memory ---- */

#define SEGMENTS	2
#define SEGMENT_PAGES	4

/* Cells: one of anonymous memory, the segments around a gap, two more. */
static const int segment_cells[SEGMENTS] = { 1, 6 };

#define SYSV_CELLS	12

FIXTURE(sysv)
{
	struct world w;
	int ids[SEGMENTS];
};

FIXTURE_SETUP(sysv)
{
	struct world *w = &self->w;

	SKIP_STOCK(ONE_AT_A_TIME);
	ASSERT_OK(build(w, PAGES, "w.........rr", ""));
	for (int i = 0; i < SEGMENTS; i++) {
		void *const addr = at(cell_addr(w, segment_cells[i]));

		self->ids[i] = shmget(IPC_PRIVATE, bytes(SEGMENT_PAGES), IPC_CREAT | 0600);
		NEED(self->ids[i] >= 0, "needs System V shared memory");
		ASSERT_EQ(addr, shmat(self->ids[i], addr, 0));
		/* It goes away with the last mapping. */
		ASSERT_EQ(0, shmctl(self->ids[i], IPC_RMID, NULL));
		for (int page = 0; page < SEGMENT_PAGES; page++)
			restamp(w, segment_cells[i] + page);
	}
	ASSERT_OK(settle(w));
}

FIXTURE_TEARDOWN(sysv) { }

/* Each mapping of a segment is an attachment, and there are no others. */
static void check_attached(META, FIXTURE_DATA(sysv) *self, unsigned long first,
			   unsigned long second)
{
	const unsigned long want[SEGMENTS] = { first, second };
	struct shmid_ds ds;

	for (int i = 0; i < SEGMENTS; i++) {
		ASSERT_EQ(0, shmctl(self->ids[i], IPC_STAT, &ds));
		EXPECT_EQ(want[i], ds.shm_nattch)
			TH_LOG("segment %d", i);
	}
}

TEST_F(sysv, moves_with_others_mended)
{
	const struct call there = { 0, SYSV_CELLS, SYSV_CELLS, FIXED, UP(2) };
	const struct call back = { UP(2), SYSV_CELLS, SYSV_CELLS, FIXED, 0 };

	for (int round = 0; round < 2; round++) {
		ASSERT_OK(call_as_modelled(&self->w, &there));
		check_attached(_metadata, self, 1, 1);
		ASSERT_OK(call_as_modelled(&self->w, &back));
		check_attached(_metadata, self, 1, 1);
	}
}

/* The old place still shows the segments, so there are two of each. */
TEST_F(sysv, dontunmap_mended)
{
	const size_t len = SYSV_CELLS * psize();
	struct world *w = &self->w;
	const unsigned long dst = cell_addr(w, UP(0));

	ASSERT_EQ(dst, do_mremap(w->base, len, len, KEEP, dst));
	check_attached(_metadata, self, 2, 2);
	for (int nr = 1; nr < 10; nr++) {
		if (w->cells[nr].content != OWN)
			continue;
		EXPECT_OK(check_contents_at(w, w->base + bytes(nr), &w->cells[nr]));
		EXPECT_OK(check_contents_at(w, dst + bytes(nr), &w->cells[nr]));
	}
	ASSERT_EQ(0, munmap(at(w->base), len));
	check_attached(_metadata, self, 1, 1);
}

/* What stays behind of a segment is a mapping of its own. */
TEST_F(sysv, parts_mended)
{
	const struct call calls[] = {
		/* The end of the first one and the start of the second. */
		{ 3, 5, 5, FIXED, UP(0) },
		/* What has moved, and the gap before what moves now. */
		{ UP(0), 9, 9, FIXED, UP(12) },
		/* One part alone. */
		{ 8, 1, 1, FIXED, UP(8) },
	};
	const unsigned long want[][SEGMENTS] = { { 2, 2 }, { 2, 2 }, { 2, 3 } };

	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		ASSERT_OK(call_as_modelled(&self->w, &calls[i]));
		check_attached(_metadata, self, want[i][0], want[i][1]);
	}
}

/* Refused for a fault of another mapping: nobody has attached for it. */
TEST_F(sysv, refused_mended)
{
	const struct call whole = { 0, SYSV_CELLS, SYSV_CELLS, FIXED, UP(2) };
	const struct call parts = { 3, 9, 9, FIXED, UP(2) };
	struct world *w = &self->w;

	NEED(!seal(cell_addr(w, SYSV_CELLS - 1), psize()), "needs mseal(2)");
	w->cells[SYSV_CELLS - 1].sealed = true;
	ASSERT_OK(settle(w));
	ASSERT_OK(call_refused(w, &whole, EPERM));
	ASSERT_OK(call_refused(w, &parts, EPERM));
	check_attached(_metadata, self, 1, 1);
}

/* Nor has anybody after a call that had come so far when memory ran out. */
TEST_F_TIMEOUT(sysv, every_allocation_mended, 120)
{
	const struct call there = { 0, SYSV_CELLS, SYSV_CELLS, FIXED, UP(2) };
	const struct call back = { UP(2), SYSV_CELLS, SYSV_CELLS, FIXED, 0 };
	struct world *w = &self->w;
	int fd;

	NEED_OK(start_failing(false));
	fd = failure.fd;
	failure.has_failed = true;
	for (failure.nth = 1; failure.has_failed; failure.nth++) {
		ASSERT_OK(fail_call(w, &there));
		check_attached(_metadata, self, 1, 1);
		/* Not every allocation is needed. */
		if (failure.has_failed && w->cells[UP(2)].is.mapped) {
			failure.fd = -1;
			ASSERT_OK(call_as_modelled(w, &back));
			failure.fd = fd;
		}
	}
	/* At least the new mappings have to be allocated. */
	EXPECT_LT(4, failure.nth);
	stop_failing();
}

/* ---- AIO: a driver that hears of moves, and may refuse ---- */

struct ring {
	unsigned long ctx;	/* also where it is mapped */
	size_t len;
};

static long io_setup(struct ring *ring)
{
	struct vma vma;

	ring->ctx = 0;
	if (syscall(__NR_io_setup, 1, &ring->ctx) || !find_vma(ring->ctx, &vma))
		return -1;
	ring->len = vma.end - vma.start;
	return 0;
}

/* Reads a byte through the ring: the kernel has to know where that is. */
static const char *use_ring(const struct ring *ring)
{
	struct io_event event = { 0 };
	int fd = open("/proc/self/exe", O_RDONLY);
	char byte = 0;
	struct iocb cb = {
		.aio_fildes = fd,
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_buf = (unsigned long)&byte,
		.aio_nbytes = 1,
	}, *cbs = &cb;
	const long submitted = syscall(__NR_io_submit, ring->ctx, 1, &cbs);
	const long got = submitted == 1 ?
		syscall(__NR_io_getevents, ring->ctx, 1, 1, &event, NULL) : 0;

	close(fd);
	if (got != 1 || event.res != 1 || byte != '\177')
		return complain("ring %#lx: submitted %ld, got %ld, result %ld",
				ring->ctx, submitted, got, (long)event.res);
	return NULL;
}

/* Takes a ring to another place, as one mapping. */
static const char *place_ring(struct ring *ring, unsigned long addr)
{
	if (move_to(ring->ctx, ring->len, ring->len, addr) != addr)
		return "cannot move an AIO ring";
	ring->ctx = addr;
	return use_ring(ring);
}

/*
 * The driver is asked when everything else has been done, which is too late for
 * what has been in the way: so it is not asked at all.
 */
TEST_F(multi, aio_ring_mended)
{
	struct world *w = &self->w;
	struct ring ring;
	size_t len;

	NEED(!io_setup(&ring), "needs AIO");
	ASSERT_OK(build(w, PAGES, "wwr", "dddddd"));
	/* Behind the low half, so that the range has a gap before it. */
	ASSERT_OK(place_ring(&ring, cell_addr(w, HALF - 1) + psize()));
	ASSERT_OK(settle(w));
	len = bytes(HALF) + ring.len;
	ASSERT_OK(refused_to(w, w->base, len, cell_addr(w, UP(0)), EFAULT));
	ASSERT_OK(use_ring(&ring));
	ASSERT_OK(refused_to(w, w->base, len + psize(), cell_addr(w, UP(0)), EFAULT));
	ASSERT_OK(use_ring(&ring));
	/* Nor before a gap, but by itself. */
	ASSERT_OK(refused_to(w, ring.ctx, 2 * ring.len, cell_addr(w, UP(8)), EFAULT));
	ASSERT_OK(place_ring(&ring, cell_addr(w, UP(8))));
	EXPECT_EQ(0, syscall(__NR_io_destroy, ring.ctx));
	EXPECT_OK(check_contents(w));
}

/* ---- the vDSO ---- */

typedef int clock_function(clockid_t clock, struct timespec *ts);

/* The vDSO and, right below it, the mappings with its data. */
static struct vdso {
	unsigned long start;
	unsigned long code;
	unsigned long end;
	unsigned long clock;	/* address of its clock_gettime() */
} vdso;

/* By its section headers, which are part of the image. */
static unsigned long find_symbol(unsigned long base, const char *name)
{
	const Elf64_Ehdr *elf = at(base);
	const Elf64_Shdr *section = at(base + elf->e_shoff);

	if (memcmp(elf->e_ident, ELFMAG, SELFMAG) || elf->e_ident[EI_CLASS] != ELFCLASS64)
		return 0;
	for (int i = 0; i < elf->e_shnum; i++) {
		const Elf64_Sym *sym = at(base + section[i].sh_offset);
		const unsigned long nr = section[i].sh_size / sizeof(*sym);
		const char *names;

		if (section[i].sh_type != SHT_DYNSYM)
			continue;
		names = at(base + section[section[i].sh_link].sh_offset);
		for (unsigned long j = 0; j < nr; j++)
			if (!strcmp(names + sym[j].st_name, name))
				return base + sym[j].st_value;
	}
	return 0;
}

/* The system call has been right all the time; libc's own pointer is not. */
static const char *check_clock(unsigned long clock)
{
	clock_function *get = (clock_function *)clock;
	struct timespec before, now = { 0 }, after;

	for (int i = 0; i < 3; i++) {
		syscall(__NR_clock_gettime, CLOCK_MONOTONIC, &before);
		if (get(CLOCK_MONOTONIC, &now))
			return "the vDSO's clock fails";
		syscall(__NR_clock_gettime, CLOCK_MONOTONIC, &after);
		if (now.tv_sec < before.tv_sec || now.tv_sec > after.tv_sec ||
		    (now.tv_sec == before.tv_sec &&
		     now.tv_nsec < before.tv_nsec) ||
		    (now.tv_sec == after.tv_sec && now.tv_nsec > after.tv_nsec))
			return "the vDSO's clock is wrong";
	}
	return NULL;
}

static const char *refuse_vdso(unsigned long start, unsigned long end, unsigned long flags)
{
	unsigned long ret;

	/* A child's own copies of what the check writes to are made before. */
	save_state();
	check_state();
	save_state();
	ret = do_mremap(start, end - start, end - start, flags, SRC);
	return check_error(ret, EINVAL) ?: check_state() ?: check_clock(vdso.clock);
}

/* Neither can be split, nor left behind empty. */
static const char *vdso_stays(void)
{
	const char *why = refuse_vdso(vdso.start, vdso.end, KEEP);

	if (vdso.end - vdso.code > psize())
		why = why ?: refuse_vdso(vdso.start, vdso.code + psize(), FIXED);
	return why;
}

static const char *vdso_moves(void)
{
	const size_t len = vdso.end - vdso.start;
	const char *why = check_clock(vdso.clock);

	if (!why && move_to(vdso.start, len, len, SRC) != SRC)
		why = "it does not move";
	why = why ?: check_clock(vdso.clock - vdso.start + SRC);
	why = why ?: check_unmapped(vdso.start, len);
	/* And back. */
	if (!why && move_to(SRC, len, len, vdso.start) != vdso.start)
		why = "it does not move back";
	return why ?: check_clock(vdso.clock);
}

static bool find_vdso(void)
{
	struct vma vma;

	vdso.code = getauxval(AT_SYSINFO_EHDR);
	if (!vdso.code || !find_vma(vdso.code, &vma))
		return false;
	vdso.end = vma.end;
	vdso.start = vdso.code;
	while (find_vma(vdso.start - 1, &vma) && !strcmp(vma.perms, "r--p") && !vma.inode)
		vdso.start = vma.start;
	vdso.clock = find_symbol(vdso.code, "__vdso_clock_gettime") ?:
		     find_symbol(vdso.code, "__kernel_clock_gettime");
	return vdso.start < vdso.code && vdso.clock;
}

#define NEEDS_VDSO	"needs a vDSO with a clock"

/* In children: nobody else's clock shall fail. */
TEST_F(multi, vdso_moves_mended)
{
	NEED(find_vdso(), NEEDS_VDSO);
	EXPECT_OK_IN_CHILD(vdso_moves());
}

TEST_F(multi, vdso_stays_mended)
{
	NEED(find_vdso(), NEEDS_VDSO);
	EXPECT_OK_IN_CHILD(vdso_stays());
}

/* ---- beside threads and processes ---- */

#define SCRIBES	HALF

/* Counts in every writable cell, wherever these are at the moment. */
struct scribe {
	const struct world *w;
	struct cell cells[SCRIBES];
	volatile int first;
	volatile bool stop;
	volatile unsigned long rounds;
	uint64_t count[SCRIBES];
	unsigned long lost;
	pthread_t thread;
};

static __thread sigjmp_buf scribe_env;

static void scribe_fault(int signal)
{
	(void)signal;
	siglongjmp(scribe_env, 1);
}

static void write_cell(struct scribe *scribe, int nr)
{
	/* A word that no stamp reaches. */
	volatile uint64_t *where = at(cell_addr(scribe->w, scribe->first + nr) + psize() / 4);

	/* It may have moved since: then it is found in the next round. */
	if (sigsetjmp(scribe_env, 1))
		return;
	if (*where != scribe->count[nr])
		scribe->lost++;
	*where = scribe->count[nr] + 1;
	scribe->count[nr]++;
}

static void *run_scribe(void *arg)
{
	struct scribe *scribe = arg;

	while (!scribe->stop) {
		for (int nr = 0; nr < SCRIBES; nr++)
			if (!strcmp(scribe->cells[nr].is.perms, "rw-p"))
				write_cell(scribe, nr);
		scribe->rounds++;
	}
	return NULL;
}

/* Until a round that begins from now on is over. */
static void wait_for_scribe(struct scribe *scribe)
{
	const unsigned long rounds = scribe->rounds;

	while (scribe->rounds < rounds + 2)
		sched_yield();
}

static int start_scribe(struct scribe *scribe, struct world *w)
{
	*scribe = (struct scribe) { .w = w };
	memcpy(scribe->cells, w->cells, sizeof(scribe->cells));
	return pthread_create(&scribe->thread, NULL, run_scribe, scribe);
}

static const char *stop_scribe(struct scribe *scribe)
{
	const char *why = NULL;

	scribe->stop = true;
	pthread_join(scribe->thread, NULL);
	if (scribe->lost)
		why = complain("%lu writes lost", scribe->lost);
	for (int nr = 0; !why && nr < SCRIBES; nr++) {
		const unsigned long addr = cell_addr(scribe->w, scribe->first + nr);

		if (strcmp(scribe->cells[nr].is.perms, "rw-p"))
			continue;
		if (!scribe->count[nr])
			why = complain("cell %d was never written to", nr);
		else if (*(uint64_t *)at(addr + psize() / 4) != scribe->count[nr])
			why = complain("cell %d has another count", nr);
	}
	return why;
}

#define SCRIBE_LOW	"wwrrww.spoowwlrwrwrw"
#define SCRIBE_CELLS	20

/* No write of another thread is lost. */
TEST_F_TIMEOUT(shaped, write_while_moving_mended, 120)
{
	struct world *w = &self->w;
	static struct scribe scribe;
	size_t len;

	ASSERT_OK(build(w, variant->shape, SCRIBE_LOW, ""));
	len = SCRIBE_CELLS * w->unit;
	signal(SIGSEGV, scribe_fault);
	ASSERT_EQ(0, start_scribe(&scribe, w));
	wait_for_scribe(&scribe);
	for (int move = 0; move < 100; move++) {
		const int to = scribe.first ? 0 : UP(0);

		ASSERT_EQ(cell_addr(w, to), move_to(cell_addr(w, scribe.first), len, len,
						    cell_addr(w, to)));
		scribe.first = to;
		if (move % 4 == 0)
			wait_for_scribe(&scribe);
	}
	EXPECT_OK(stop_scribe(&scribe));
	EXPECT_OK(check_layout(w));
	EXPECT_OK(check_contents(w));
}

/* Both sides of a fork move the pages that they share, then write. */
static const char *move_and_write(struct world *w, int to)
{
	const struct call call = { 0, 10, 10, FIXED, to };
	const char *why = settle(w);

	why = why ?: call_as_modelled(w, &call);
	for (int i = 0; !why && i < CELLS; i++)
		if (is_plain(&w->cells[i]))
			restamp(w, i);
	return why ?: check_contents(w);
}

TEST_F(shaped, shared_with_child_mended)
{
	struct world *w = &self->w;

	ASSERT_OK(build(w, variant->shape, "wwrr.ppdso", ""));
	EXPECT_OK_IN_CHILD(move_and_write(w, UP(3)));
	EXPECT_OK(settle(w) ?: check_world(w));
	EXPECT_OK(move_and_write(w, UP(5)));
}

/* ---- killed on the way ---- */

struct doomed {
	struct world *w;
	unsigned long flags;
};

/* Moves in a process of its own, in the same address space. */
static int move_to_be_killed(void *arg)
{
	const struct doomed *doomed = arg;
	const size_t len = bytes(HALF);

	do_mremap(cell_addr(doomed->w, 0), len, len, doomed->flags, cell_addr(doomed->w, UP(0)));
	return 0;
}

FIXTURE(killed)
{
	struct world w;
};

FIXTURE_VARIANT(killed)
{
	unsigned long flags;
};

/* The mappings themselves have gone to the new place, or copies of them. */
FIXTURE_VARIANT_ADD(killed, relocated) { FIXED };
FIXTURE_VARIANT_ADD(killed, copied) { KEEP };

FIXTURE_SETUP(killed)
{
	SKIP_STOCK(ONE_AT_A_TIME);
	if (access(DELAY_DIR, F_OK))
		mount("debugfs", DEBUGFS, "debugfs", 0, NULL);
	NEED(write_setting(DELAY_DIR "planned", "0"), NEEDS_DELAYS);
}

FIXTURE_TEARDOWN(killed)
{
	write_setting(DELAY_DIR "planned", "0");
}

/*
 * The signal comes while the first of the mappings waits a second to be moved,
 * as all the others are to after it. Whoever shares the memory finds it as it
 * was.
 */
TEST_F(killed, others_find_all_as_before_mended)
{
	static char stack[64 * KB] __attribute__((aligned(16)));
	struct world *w = &self->w;
	struct doomed doomed = { w, variant->flags };
	int status;
	pid_t pid;

	ASSERT_OK(build(w, PAGES, "wrwrlrwpwrwswrwrorwrpswrwrwrwrwr", ""));
	memset(stack, 0, sizeof(stack));
	begin_call(w, true);
	ASSERT_TRUE(write_setting(DELAY_DIR "planned", "1000000"));
	pid = clone(move_to_be_killed, stack + sizeof(stack), CLONE_VM | SIGCHLD, &doomed);
	ASSERT_LT(0, pid);
	while (!is_asleep(pid) && !waitpid(pid, &status, WNOHANG))
		sched_yield();
	EXPECT_EQ(0, kill(pid, SIGKILL));
	ASSERT_TRUE(write_setting(DELAY_DIR "planned", "0"));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	ASSERT_OK(check_refusal(w));
}

TEST_HARNESS_MAIN
