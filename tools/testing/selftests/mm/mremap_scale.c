// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) where there is much of something, or hardly any left: tens of thousands
 * of mappings and the very limit of them, mappings as large as the address space,
 * many threads that use what moves, a control group that has no more memory, and
 * thousands of calls, after which nothing may have grown.
 *
 * MREMAP_SCALE says how much of it. 1 are 60,000 mappings; a kernel that checks its
 * tree of mappings at each change is too slow for that, and 17 are a million.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define TB		(1024 * GB)

#define SRC		WINDOW
#define DST		(WINDOW + 16 * GB)

#define TIMEOUT		3600

static unsigned long scaled(unsigned long nr, unsigned long least)
{
	const char *scale = getenv("MREMAP_SCALE");
	const double want = nr * (scale ? atof(scale) : 1);

	return want > least ? want : least;
}

static void no_huge_pages(void)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

static const char *check_same(const char *what, long is, long was)
{
	return is == was ? NULL : complain("%s: %ld, was %ld", what, is, was);
}

/* The source: private, or of a file that is longer by a page. */
static unsigned long map_src(size_t len, bool shared)
{
	const int fd = shared ? memfd_create("mremap_scale", 0) : -1;

	if (shared && ftruncate(fd, len + bytes(1)))
		return 0;
	return map_at(SRC, len, PROT_READ | PROT_WRITE,
		      shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
}

static const char *hop(unsigned long from, size_t old, size_t new, unsigned long flags,
		       unsigned long to)
{
	const unsigned long got = do_mremap(from, old, new, flags, to);

	return got == to ? NULL : complain("cannot move %#lx to %#lx: %#lx", from, to, got);
}

/* ---- many mappings, and no more than these ---- */

#define MAX_MAP_COUNT	"/proc/sys/vm/max_map_count"

/*
 * Pairs of a page that can be written to and one that cannot, so that they do not
 * merge, and a gap behind each pair.
 */
#define CROWD		(1UL << 45)
#define STAMPED		16	/* of so many pairs, one */

/* What there is of a process, of which the text may be too long to be kept. */
struct outline {
	long lines;
	uint64_t digest;
	struct counters counters;
};

static void add_text(struct outline *out, const char *text, ssize_t len)
{
	for (ssize_t i = 0; i < len; i++) {
		out->lines += text[i] == '\n';
		out->digest = (out->digest ^ (uint8_t)text[i]) * 0x100000001b3ULL;
	}
}

static void read_outline(struct outline *out)
{
	static char text[64 * KB];
	const int fd = open("/proc/self/maps", O_RDONLY);
	ssize_t got;

	*out = (struct outline) { .digest = 1 };
	while ((got = read(fd, text, sizeof(text))) > 0)
		add_text(out, text, got);
	close(fd);
	read_counters(&out->counters);
}

static const char *check_outline(const struct outline *was)
{
	struct outline is;

	read_outline(&is);
	return check_same("mappings", is.lines, was->lines) ?:
	       check_same("their digest", is.digest, was->digest) ?:
	       check_same("VmSize", is.counters.size, was->counters.size) ?:
	       check_same("RssAnon", is.counters.rss_anon, was->counters.rss_anon) ?:
	       check_same("VmPTE", is.counters.page_tables, was->counters.page_tables);
}

FIXTURE(crowd)
{
	char limit[32];
	long gate;	/* lines that are no mapping of the process */
	long nr;
};

#define SELF	FIXTURE_DATA(crowd) *self

static bool set_limit(long limit)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", limit);
	return write_setting(MAX_MAP_COUNT, text);
}

static unsigned long place_of(long nr)
{
	return CROWD + bytes(nr / 2 * 3 + nr % 2);
}

static unsigned long gap_behind(long nr)
{
	return CROWD + bytes(nr / 2 * 3 + 2);
}

static bool is_stamped(long nr)
{
	return nr % (2 * STAMPED) == 0;
}

/* As the kernel counts them. */
static long count_crowd(SELF)
{
	struct outline now;

	read_outline(&now);
	return now.lines - self->gate;
}

static const char *check_crowd(SELF)
{
	const char *why = NULL;

	for (long nr = 0; !why && nr < self->nr; nr += 2 * STAMPED)
		why = check_stamp(place_of(nr), nr);
	return why;
}

FIXTURE_SETUP(crowd)
{
	struct outline now;

	read_setting(MAX_MAP_COUNT, self->limit, sizeof(self->limit));
	self->nr = scaled(60000, 600);
	NEED(set_limit(self->nr + 5000), "needs leave to set vm.max_map_count");
	no_huge_pages();
	read_outline(&now);
	self->gate = now.lines - count_vmas();
	for (long nr = 0; nr < self->nr; nr++) {
		ASSERT_EQ(place_of(nr),
			  map_at(place_of(nr), psize(),
				 nr % 2 ? PROT_READ : PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		if (is_stamped(nr))
			stamp(place_of(nr), nr);
	}
}

FIXTURE_TEARDOWN(crowd)
{
	write_setting(MAX_MAP_COUNT, self->limit);
}

static const char *move_there_and_back(unsigned long from, unsigned long to, long id)
{
	return hop(from, psize(), psize(), FIXED, to) ?:
	       (id >= 0 ? check_stamp(to, id) : NULL) ?: hop(to, psize(), psize(), FIXED, from);
}

/* A forced move asks for five mappings more than there are, and one to spare. */
#define FORCED_NEEDS	6

TEST_F_TIMEOUT(crowd, moves_at_the_limit, TIMEOUT)
{
	const long rounds = scaled(2000, 100);
	struct outline before;

	random_state = 1;
	ASSERT_TRUE(set_limit(count_crowd(self) + FORCED_NEEDS));
	read_outline(&before);
	for (long i = 0; i < rounds && !_metadata->exit_code; i++) {
		const long nr = pick(self->nr / 2) * 2;
		const unsigned long gap = gap_behind(pick(self->nr));

		EXPECT_OK(move_there_and_back(place_of(nr), gap, is_stamped(nr) ? nr : -1));
	}
	EXPECT_OK(check_outline(&before));
	EXPECT_OK(check_crowd(self));
}

/*
 * A call, and how many mappings more than there are the limit has to allow for it.
 * One less is ENOMEM, and nothing has changed. ANY: it does not ask.
 */
#define ANY	-10

struct edge {
	const char *name;
	int first;		/* pages of eight at SRC */
	int old;
	int new;
	unsigned long flags;
	unsigned long dst;
	int page;		/* of the destination */
	long needs;
	bool split;		/* the eight are three mappings */
	int stock;		/* what stock says to it in any case */
};

static const struct edge edges[] = {
	{ "fixed", 0, 8, 8, FIXED, DST + GB, 0, .needs = 6 },
	{ "fixed, the middle", 2, 4, 4, FIXED, DST + GB, 0, .needs = 6 },
	{ "fixed, over others", 2, 4, 4, FIXED, DST, 0, .needs = 6 },
	{ "fixed, over the middle of others", 2, 4, 4, FIXED, DST, 2, .needs = 6 },
	{ "fixed, shrinks", 2, 4, 2, FIXED, DST, 2, .needs = 6 },
	{ "fixed, grows", 2, 2, 4, FIXED, DST, 2, .needs = 6 },
	{ "dontunmap", 0, 8, 8, DONTUNMAP, 0, 0, .needs = 6 },
	{ "dontunmap, the middle", 2, 4, 4, DONTUNMAP, 0, 0, .needs = 6 },
	{ "grows by moving", 0, 8, 9, MREMAP_MAYMOVE, 0, 0, .needs = 4 },
	{ "the middle grows by moving", 2, 4, 5, MREMAP_MAYMOVE, 0, 0, .needs = 4 },
	{ "grows in place", 4, 4, 5, 0, 0, 0, .needs = ANY },
	{ "shrinks", 0, 8, 4, 0, 0, 0, .needs = ANY },
	{ "shrinks in the middle", 0, 4, 2, 0, 0, 0, .needs = 1 },
	{ "nothing to do", 0, 8, 8, MREMAP_MAYMOVE, 0, 0, .needs = ANY },
	{ "several", 0, 8, 8, FIXED, DST + GB, 0, .needs = 4, .split = true,
	  .stock = EFAULT },
	{ "several, parts", 1, 6, 6, FIXED, DST + GB, 0, .needs = 6, .split = true,
	  .stock = EFAULT },
	{ "several, over the middle", 1, 6, 6, FIXED, DST, 1, .needs = 8, .split = true,
	  .stock = EFAULT },
};

/* Nothing can grow over the mapping behind the source unless there is none. */
static void build_stage(META, const struct edge *edge)
{
	munmap(at(WINDOW), WINDOW_SIZE);
	ASSERT_EQ(SRC, map_anon(SRC, bytes(8)));
	ASSERT_EQ(DST, map_anon(DST, bytes(8)));
	stamp_range(SRC, bytes(8), 1);
	stamp_range(DST, bytes(8), 101);
	if (edge->split)
		ASSERT_EQ(0, mprotect(at(SRC + bytes(3)), bytes(2), PROT_READ));
	if (edge->flags & MREMAP_MAYMOVE)
		guard_page(SRC + bytes(8));
}

static unsigned long call_edge(const struct edge *edge)
{
	return do_mremap(SRC + bytes(edge->first), bytes(edge->old),
			 bytes(edge->new), edge->flags, edge->dst + bytes(edge->page));
}

static const char *check_allowed(const struct edge *edge, unsigned long to)
{
	const int kept = edge->new < edge->old ? edge->new : edge->old;

	if (error_of(to))
		return complain("errno %d", error_of(to));
	return check_stamps(to, bytes(kept), 1 + edge->first) ?:
	       edge->first ? check_stamps(SRC, bytes(edge->first), 1) : NULL;
}

static const char *check_refused(int error, const struct outline *before)
{
	if (error != ENOMEM)
		return complain("errno %d, not ENOMEM, of one mapping too few", error);
	return check_outline(before) ?: check_stamps(SRC, bytes(8), 1) ?:
	       check_stamps(DST, bytes(8), 101);
}

/* Stock 7.x asks for the same of all calls, before it looks what they are about. */
static long needs_of(const struct edge *edge)
{
	if (expect_base_7())
		return edge->flags & MREMAP_DONTUNMAP ? 5 : 4;
	return edge->needs;
}

static const char *check_edge(SELF, const struct edge *edge)
{
	const long count = count_crowd(self), needs = needs_of(edge);
	struct outline before;
	const char *why = NULL;
	unsigned long to;

	if (needs != ANY) {
		set_limit(count + needs - 1);
		read_outline(&before);
		to = call_edge(edge);
		why = check_refused(error_of(to), &before);
	}
	if (!why) {
		set_limit(count + needs);
		why = check_allowed(edge, call_edge(edge));
	}
	set_limit(count + 5000);
	return why;
}

TEST_F_TIMEOUT(crowd, exact_limit, TIMEOUT)
{
	for (size_t i = 0; i < ARRAY_SIZE(edges); i++) {
		const struct edge *edge = &edges[i];
		const char *why;

		if (expect_base() && edge->stock)
			continue;
		build_stage(_metadata, edge);
		why = check_edge(self, edge);
		EXPECT_EQ(NULL, why)
			TH_LOG("%s: %s", edge->name, why);
	}
	EXPECT_OK(check_crowd(self));
}

#undef SELF

/* ---- as large as the address space ---- */

/* Pages that are touched: around the ends of page tables of all levels. */
#define TOUCHED	100

FIXTURE(sparse)
{
	long tables;		/* VmPTE without the mapping */
	size_t touched[TOUCHED];
	int nr;
};

FIXTURE_VARIANT(sparse)
{
	size_t len;
	unsigned long from;
	unsigned long to;	/* 0: there is no room for two of them */
};

/* The first half terabyte and the last one have a table that others use, too. */
FIXTURE_VARIANT_ADD(sparse, tb) { TB, 16 * TB, 32 * TB };
FIXTURE_VARIANT_ADD(sparse, tb_off_by_tables) { TB, 16 * TB, 32 * TB + 2 * MB };
FIXTURE_VARIANT_ADD(sparse, tb_off_by_a_page) { TB, 16 * TB, 32 * TB + 4 * KB };
FIXTURE_VARIANT_ADD(sparse, half_of_all) { 60 * TB, TB, 62 * TB };
FIXTURE_VARIANT_ADD(sparse, half_off_by_a_page) { 60 * TB, TB, 62 * TB + 4 * KB };
FIXTURE_VARIANT_ADD(sparse, nearly_all) { 125 * TB + 900 * GB, 512 * GB, 0 };
/* These need page tables of five levels. */
FIXTURE_VARIANT_ADD(sparse, to_five_levels) { TB, 16 * TB, 1UL << 50 };
FIXTURE_VARIANT_ADD(sparse, within_five_levels) { TB, 1UL << 49, (1UL << 52) - GB };
FIXTURE_VARIANT_ADD(sparse, five_levels) { 1UL << 54, 1UL << 54, 1UL << 55 };
FIXTURE_VARIANT_ADD(sparse, five_levels_off_by_a_page) {
	1UL << 50, 1UL << 54, (1UL << 55) + 4 * KB };

#define SELF	FIXTURE_DATA(sparse) *self
#define VARIANT	const FIXTURE_VARIANT(sparse) *variant

static unsigned long map_sparse(unsigned long addr, size_t len)
{
	return map_at(addr, len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static bool is_touched(SELF, size_t offset)
{
	for (int i = 0; i < self->nr; i++)
		if (self->touched[i] == offset)
			return true;
	return false;
}

static void add_touched(SELF, size_t len, size_t offset)
{
	offset -= offset % psize();
	if (offset < len && self->nr < TOUCHED && !is_touched(self, offset))
		self->touched[self->nr++] = offset;
}

static void drop_touched(SELF, size_t len)
{
	int left = 0;

	for (int i = 0; i < self->nr; i++)
		if (self->touched[i] < len)
			self->touched[left++] = self->touched[i];
	self->nr = left;
}

static void choose_touched(SELF, size_t len)
{
	const size_t ends[] = {
		0, pmd_span(), pud_span(), 3 * pud_span() + pmd_span(),
		512 * pud_span(), len / 2, len / 3, len - pmd_span(), len,
	};

	drop_touched(self, len);
	for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
		add_touched(self, len, ends[i] - psize());
		add_touched(self, len, ends[i]);
		add_touched(self, len, ends[i] + bytes(2));
	}
}

/* What page tables of the pages take that are touched at addr, which shares none. */
static long wanted_tables_kb(SELF, unsigned long addr)
{
	const size_t spans[] = { pmd_span(), pud_span(), 512 * pud_span() };
	long tables = 0;

	for (size_t level = 0; level < ARRAY_SIZE(spans); level++)
		for (int i = 0, j; i < self->nr; i++) {
			for (j = 0; j < i; j++)
				if ((addr + self->touched[i]) / spans[level] ==
				    (addr + self->touched[j]) / spans[level])
					break;
			tables += j == i;
		}
	return bytes(tables) / KB;
}

/* Where it ends, there may be some without a page, and at an offset one for each. */
static const char *check_tables(SELF, unsigned long addr, bool exact)
{
	const long want = wanted_tables_kb(self, addr);
	const long got = page_tables_kb() - self->tables;

	if (got >= want && got <= (exact ? want : 3 * want))
		return NULL;
	return complain("at %#lx: page tables of %ld kB, not %ld", addr, got, want);
}

/* A stamp is the page's number in the mapping: that stays. */
static const char *check_sparse(SELF, unsigned long addr, size_t len)
{
	const char *why = NULL;

	for (int i = 0; !why && i < self->nr; i++) {
		const size_t offset = self->touched[i], next = offset + psize();

		if (offset >= len)
			continue;
		why = check_stamp(addr + offset, offset / psize());
		if (!why && next < len && !is_touched(self, next) && is_present(addr + next))
			why = complain("a page at %#lx", addr + next);
	}
	return why;
}

static void touch_sparse(SELF, unsigned long addr)
{
	for (int i = 0; i < self->nr; i++)
		stamp(addr + self->touched[i], self->touched[i] / psize());
}

/* NULL: it is mapped now. */
static const char *try_to_map(unsigned long addr, size_t len)
{
	return map_sparse(addr, len) == addr ? NULL :
	       complain("needs %lu TB of address space at %#lx", len / TB, addr);
}

FIXTURE_SETUP(sparse)
{
	no_huge_pages();
	self->tables = page_tables_kb();
	NEED_OK(try_to_map(variant->from, variant->len));
	if (variant->to) {
		NEED_OK(try_to_map(variant->to, variant->len));
		ASSERT_EQ(0, munmap(at(variant->to), variant->len));
	}
	choose_touched(self, variant->len);
	touch_sparse(self, variant->from);
}

FIXTURE_TEARDOWN(sparse) { }

static const char *move_sparse(SELF, size_t len, unsigned long from, unsigned long to, bool exact)
{
	return hop(from, len, len, FIXED, to) ?: check_sparse(self, to, len) ?:
	       check_tables(self, to, exact) ?: check_unmapped(from, len);
}

TEST_F_TIMEOUT(sparse, moves, TIMEOUT)
{
	const bool exact = !((variant->to - variant->from) % pmd_span());
	struct counters before, after;

	/* What is read first takes pages of its own. */
	EXPECT_OK(check_sparse(self, variant->from, variant->len));
	EXPECT_OK(check_unmapped(variant->from - bytes(1), bytes(1)));
	EXPECT_OK(check_tables(self, variant->from, true));
	read_counters(&before);
	if (variant->to) {
		EXPECT_OK(move_sparse(self, variant->len, variant->from, variant->to, exact));
		EXPECT_OK(move_sparse(self, variant->len, variant->to, variant->from, exact));
		EXPECT_OK(move_sparse(self, variant->len, variant->from, variant->to, exact));
	}
	read_counters(&after);
	EXPECT_EQ(before.rss_anon, after.rss_anon);
	EXPECT_EQ(before.size, after.size);
	EXPECT_EQ(0, munmap(at(variant->to ?: variant->from), variant->len));
	EXPECT_EQ(self->tables, page_tables_kb());
}

/*
 * On the way it is set aside in a place that the kernel chooses, of which there is
 * none as large as most of what programs get without asking for more.
 */
#define MOST_ASIDE	(64 * TB)

TEST_F_TIMEOUT(sparse, moves_by_little, TIMEOUT)
{
	const size_t shifts[] = { psize(), pmd_span(), pud_span() };
	const size_t len = variant->len - pud_span();
	const int error = len > MOST_ASIDE ? ENOMEM : 0;

	SKIP_STOCK("needs MREMAP_OVERLAP");
	ASSERT_EQ(0, munmap(at(variant->from + len), pud_span()));
	choose_touched(self, len);
	touch_sparse(self, variant->from);
	for (size_t i = 0; i < ARRAY_SIZE(shifts); i++) {
		const unsigned long to = variant->from + shifts[i];

		EXPECT_EQ(error, error_of(do_mremap(variant->from, len, len, OVERLAP, to)));
		if (!error) {
			EXPECT_OK(check_sparse(self, to, len));
			EXPECT_OK(check_tables(self, to, false));
			EXPECT_EQ(variant->from, do_mremap(to, len, len, OVERLAP, variant->from));
		}
		EXPECT_OK(check_sparse(self, variant->from, len));
		if (_metadata->exit_code)
			TH_LOG("by %#zx", shifts[i]);
	}
	EXPECT_EQ(0, munmap(at(variant->from), len));
	EXPECT_EQ(self->tables, page_tables_kb());
}

TEST_F_TIMEOUT(sparse, shrinks_and_grows, TIMEOUT)
{
	const size_t sizes[] = {
		variant->len / 2, variant->len, psize(), variant->len,
		pud_span() + psize(), variant->len - pmd_span(),
	};
	size_t len = variant->len;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		EXPECT_EQ(variant->from, do_mremap(variant->from, len, sizes[i], 0, 0));
		if (sizes[i] < len)
			EXPECT_OK(check_unmapped(variant->from + sizes[i], len - sizes[i]));
		len = sizes[i];
		EXPECT_OK(check_sparse(self, variant->from, len));
		choose_touched(self, len);
		touch_sparse(self, variant->from);
		EXPECT_OK(check_sparse(self, variant->from, len));
		EXPECT_OK(check_tables(self, variant->from, false));
	}
	if (variant->to) {
		/* What follows leaves no room. */
		ASSERT_EQ(variant->from + len, map_anon(variant->from + len, psize()));
		EXPECT_EQ(variant->to, move_to(variant->from, len, variant->len, variant->to));
		EXPECT_OK(check_sparse(self, variant->to, len));
		EXPECT_EQ(0, munmap(at(variant->to), variant->len));
		EXPECT_EQ(0, munmap(at(variant->from + len), psize()));
	} else {
		EXPECT_EQ(0, munmap(at(variant->from), len));
	}
	EXPECT_EQ(self->tables, page_tables_kb());
}

#undef SELF
#undef VARIANT

/* Nobody gets an address above 47 bits without having asked for one. */
TEST(growth_stays_below_five_levels)
{
	const size_t len = bytes(8);
	unsigned long to;

	NEED(map_sparse(1UL << 50, len) == 1UL << 50, "needs page tables of five levels");
	ASSERT_EQ(SRC, map_anon(SRC, len));
	guard_page(SRC + len);
	stamp_range(SRC, len, 1);
	to = do_mremap(SRC, len, 2 * len, MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	EXPECT_GT(1UL << 47, to);
	EXPECT_OK(check_stamps(to, len, 1));
	/* One that is above grows, too, wherever that is. */
	stamp_range(1UL << 50, len, 50);
	guard_page((1UL << 50) + len);
	to = do_mremap(1UL << 50, len, 2 * len, MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	EXPECT_OK(check_stamps(to, len, 50));
}

/* ---- many threads use what moves ---- */

#define WORKERS		64
#define PAGES_EACH	10

struct worker {
	struct crew *crew;
	int nr;
	pthread_t thread;
	volatile unsigned long turn;
	volatile uint64_t want[PAGES_EACH];
	volatile uint64_t got;
	volatile bool is_wrong;
};

/* Thread and page change with each page, so that they share page tables. */
struct crew {
	volatile unsigned long base;
	volatile bool stop;
	bool is_shared;
	struct worker workers[WORKERS];
};

static __thread sigjmp_buf again;

static void try_again(int signal)
{
	siglongjmp(again, signal);
}

static volatile uint64_t *page_of(struct worker *worker, int page)
{
	return at(worker->crew->base + bytes(page * WORKERS + worker->nr));
}

/*
 * One more, in a page that may go at any moment. Where it has gone, the access
 * faults, and has not been made.
 */
static void count_in(struct worker *worker, int page)
{
	volatile uint64_t *count = page_of(worker, page);

	worker->got = *count;
	worker->is_wrong = worker->got != worker->want[page];
	*count = worker->got + 1;
	worker->want[page]++;
	worker->turn++;
}

static void drop(struct worker *worker, int page)
{
	if (madvise((void *)page_of(worker, page), psize(), MADV_DONTNEED))
		return;
	if (!worker->crew->is_shared)
		worker->want[page] = 0;
	worker->turn++;
}

static void take_turn(struct worker *worker)
{
	const int page = worker->turn % PAGES_EACH;

	if (worker->turn % 7 == 6)
		drop(worker, page);
	else
		count_in(worker, page);
}

static void *work(void *arg)
{
	struct worker *worker = arg;

	while (!worker->crew->stop && !worker->is_wrong) {
		/* All of them together want more than the processors have. */
		if (sigsetjmp(again, 0))
			usleep(1000);
		else if (worker->turn % PAGES_EACH == 0)
			usleep(1000);
		take_turn(worker);
	}
	return NULL;
}

FIXTURE(busy)
{
	struct crew *crew;
};

FIXTURE_VARIANT(busy)
{
	bool shared;
	unsigned long offset;	/* of the new place in its page table, in pages */
};

FIXTURE_VARIANT_ADD(busy, anon) { false, 0 };
FIXTURE_VARIANT_ADD(busy, anon_off_by_a_page) { false, 1 };
FIXTURE_VARIANT_ADD(busy, shared) { true, 0 };
FIXTURE_VARIANT_ADD(busy, shared_off_by_a_page) { true, 1 };

FIXTURE_SETUP(busy)
{
	struct sigaction action = { .sa_handler = try_again, .sa_flags = SA_NODEFER };

	no_huge_pages();
	self->crew = calloc(1, sizeof(*self->crew));
	self->crew->base = SRC;
	self->crew->is_shared = variant->shared;
	ASSERT_EQ(SRC, map_src(bytes(WORKERS * PAGES_EACH), variant->shared));
	ASSERT_EQ(0, sigaction(SIGSEGV, &action, NULL));
	for (int nr = 0; nr < WORKERS; nr++) {
		struct worker *worker = &self->crew->workers[nr];

		worker->crew = self->crew;
		worker->nr = nr;
		ASSERT_EQ(0, pthread_create(&worker->thread, NULL, work, worker));
	}
}

FIXTURE_TEARDOWN(busy) { }

static bool have_all_worked(const struct crew *crew)
{
	for (int nr = 0; nr < WORKERS; nr++)
		if (crew->workers[nr].turn < PAGES_EACH)
			return false;
	return true;
}

static const char *check_worker(struct worker *worker)
{
	if (worker->is_wrong)
		return complain("thread %d, turn %lu: %llu", worker->nr,
				worker->turn, (unsigned long long)worker->got);
	for (int page = 0; page < PAGES_EACH; page++)
		if (*page_of(worker, page) != worker->want[page])
			return complain("thread %d, page %d: %llu, not %llu",
					worker->nr, page,
					(unsigned long long)*page_of(worker, page),
					(unsigned long long)worker->want[page]);
	return NULL;
}

TEST_F_TIMEOUT(busy, nothing_is_lost, TIMEOUT)
{
	const unsigned long places[] = { DST + bytes(variant->offset), SRC };
	const size_t len = bytes(WORKERS * PAGES_EACH);
	const unsigned long moves = scaled(100, 10);
	struct crew *crew = self->crew;

	/* Else it would have one turn of 65. */
	setpriority(PRIO_PROCESS, syscall(__NR_gettid), -19);
	for (unsigned long i = 0; i < 100 * moves; i++) {
		if (i >= moves && have_all_worked(crew))
			break;
		ASSERT_EQ(places[i % 2], move_to(crew->base, len, len, places[i % 2]));
		crew->base = places[i % 2];
		usleep(1);
	}
	EXPECT_TRUE(have_all_worked(crew));
	crew->stop = true;
	for (int nr = 0; nr < WORKERS; nr++)
		ASSERT_EQ(0, pthread_join(crew->workers[nr].thread, NULL));
	for (int nr = 0; nr < WORKERS; nr++)
		EXPECT_OK(check_worker(&crew->workers[nr]));
}

/* ---- a control group without memory to spare ---- */

/* A page of each page table. */
#define TIGHT_TABLES	300
#define TIGHT_LEN	(TIGHT_TABLES * pmd_span())

FIXTURE(tight)
{
	unsigned long dst;
};

FIXTURE_VARIANT(tight)
{
	unsigned long offset;	/* in its page table, in pages */
	bool grows;
	bool must_do;		/* it needs next to no memory */
	bool cannot_do;		/* the source keeps its tables: others may look into them */
};

FIXTURE_VARIANT_ADD(tight, tables_move) { 0, false, true };
FIXTURE_VARIANT_ADD(tight, tables_move_and_grow) { 0, true, true };
FIXTURE_VARIANT_ADD(tight, entries_move) { 1, false, false };
FIXTURE_VARIANT_ADD(tight, entries_move_and_grow) { 1, true, false };
FIXTURE_VARIANT_ADD(tight, shared_entries_move) { 1, false, false, true };
FIXTURE_VARIANT_ADD(tight, shared_entries_move_and_grow) { 1, true, false, true };

static bool limit_group(long bytes)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", bytes);
	return write_setting(OWN_CGROUP "memory.max", bytes ? text : "max");
}

static unsigned long map_tight(bool shared)
{
	int fd;

	if (!shared)
		return map_sparse(SRC, TIGHT_LEN);
	fd = memfd_create("tight", 0);
	if (ftruncate(fd, TIGHT_LEN + pmd_span()))
		return 0;
	return map_at(SRC, TIGHT_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

/* What a processor has set aside for the group, on which the others are not. */
static void limit_to_current(bool must_do)
{
	limit_group(read_long(OWN_CGROUP "memory.current") + must_do * 256 * KB);
}

FIXTURE_SETUP(tight)
{
	NEED(!expect_base_7(), "needs limits of memory that suit this kernel");
	no_huge_pages();
	stay_on_this_processor();
	self->dst = DST + bytes(variant->offset);
	NEED(enter_group(), NEEDS_CGROUP);
	write_setting(OWN_CGROUP "memory.swap.max", "0");
	/* There is nobody else to be killed. */
	ASSERT_TRUE(write_setting("/proc/self/oom_score_adj", "-1000"));
	ASSERT_EQ(SRC, map_tight(variant->cannot_do));
	for (int table = 0; table < TIGHT_TABLES; table++)
		stamp(SRC + table * pmd_span(), table);
}

FIXTURE_TEARDOWN(tight)
{
	limit_group(0);
	leave_group();
}

static const char *check_tight(unsigned long addr)
{
	const char *why = NULL;

	for (int table = 0; !why && table < TIGHT_TABLES; table++)
		why = check_stamp(addr + table * pmd_span(), table);
	return why;
}

/* Of what processors have set aside for the group, some calls may get by. */
TEST_F_TIMEOUT(tight, moves_or_changes_nothing, TIMEOUT)
{
	const size_t new_len = TIGHT_LEN + variant->grows * pmd_span();
	const int rounds = scaled(20, 4);
	int moved = 0;

	save_state();
	limit_to_current(variant->must_do);
	for (int i = 0; i < rounds && !_metadata->exit_code; i++) {
		const unsigned long to = move_to(SRC, TIGHT_LEN, new_len, self->dst);

		if (error_of(to)) {
			EXPECT_EQ(ENOMEM, error_of(to));
			EXPECT_OK(check_state());
			EXPECT_OK(check_tight(SRC));
			continue;
		}
		moved++;
		EXPECT_EQ(self->dst, to);
		EXPECT_OK(check_tight(to));
		limit_group(0);
		ASSERT_EQ(SRC, move_to(to, new_len, TIGHT_LEN, SRC));
		limit_to_current(variant->must_do);
	}
	TH_LOG("%d of %d calls had enough", moved, rounds);
	if (variant->must_do)
		EXPECT_EQ(rounds, moved);
	if (variant->cannot_do)
		EXPECT_GT(rounds, moved);
	/* With memory again, it can. */
	limit_group(0);
	EXPECT_EQ(self->dst, move_to(SRC, TIGHT_LEN, new_len, self->dst));
	EXPECT_OK(check_tight(self->dst));
}

/* ---- calls as programs of 32 bits make them ---- */

#ifdef __x86_64__

#define COMPAT_MREMAP	163
#define LOW		(1UL << 30)
#define LOW_LEN		(64 * KB)

/* As they call it. */
static unsigned long compat_mremap(unsigned int addr, unsigned int old_len,
				   unsigned int new_len, unsigned int flags,
				   unsigned int new_addr)
{
	int ret = COMPAT_MREMAP;

	asm volatile("int $0x80"
		     : "+a" (ret)
		     : "b" (addr), "c" (old_len), "d" (new_len), "S" (flags), "D" (new_addr)
		     : "memory", "r8", "r9", "r10", "r11");
	/* Addresses have no sign, but errors do. */
	return ret < 0 && ret > -4096 ? (unsigned long)ret : (unsigned int)ret;
}

FIXTURE(compat) { };

FIXTURE_VARIANT(compat)
{
	unsigned int old_len;
	unsigned int new_len;
	unsigned int flags;
	unsigned int new_addr;	/* 0: wherever there is room */
	int error;
};

FIXTURE_VARIANT_ADD(compat, fixed) { LOW_LEN, LOW_LEN, FIXED, LOW + GB, 0 };
FIXTURE_VARIANT_ADD(compat, fixed_above_2_gb) { LOW_LEN, LOW_LEN, FIXED, 3 * GB, 0 };
FIXTURE_VARIANT_ADD(compat, fixed_grows) { LOW_LEN, 16 * MB, FIXED, 3 * GB, 0 };
FIXTURE_VARIANT_ADD(compat, grows) { LOW_LEN, 16 * MB, MREMAP_MAYMOVE, 0, 0 };
FIXTURE_VARIANT_ADD(compat, grows_to_1_gb) { LOW_LEN, GB, MREMAP_MAYMOVE, 0, 0 };
FIXTURE_VARIANT_ADD(compat, grows_too_much) {
	LOW_LEN, 4 * GB - 2 * MB, MREMAP_MAYMOVE, 0, ENOMEM };
FIXTURE_VARIANT_ADD(compat, dontunmap) { LOW_LEN, LOW_LEN, DONTUNMAP, 0, 0 };
FIXTURE_VARIANT_ADD(compat, shrinks) { LOW_LEN, 4 * KB, 0, LOW, 0 };
FIXTURE_VARIANT_ADD(compat, length_of_4_gb) {
	LOW_LEN, 0xfffff001, MREMAP_MAYMOVE, 0, ENOMEM };
FIXTURE_VARIANT_ADD(compat, no_length) { LOW_LEN, 0, 0, 0, EINVAL };

/* Is there an entry for them? A call that cannot be made ends the program. */
static bool has_compat_calls(void)
{
	const pid_t child = fork();
	int status = -1;

	if (!child)
		_exit(error_of(compat_mremap(0, 0, 0, 0, 0)) != EINVAL);
	return waitpid(child, &status, 0) == child && !status;
}

FIXTURE_SETUP(compat)
{
	NEED(has_compat_calls(), "needs CONFIG_IA32_EMULATION");
	ASSERT_EQ(LOW, map_sparse(LOW, LOW_LEN));
	guard_page(LOW + LOW_LEN);
	stamp_range(LOW, LOW_LEN, 1);
}

FIXTURE_TEARDOWN(compat) { }

TEST_F(compat, stays_within_4_gb)
{
	const size_t kept = variant->new_len < LOW_LEN ? variant->new_len : LOW_LEN;
	unsigned long to;

	save_state();
	to = compat_mremap(LOW, variant->old_len, variant->new_len,
			   variant->flags, variant->new_addr);
	ASSERT_EQ(variant->error, error_of(to));
	if (variant->error) {
		EXPECT_OK(check_state());
		EXPECT_OK(check_stamps(LOW, LOW_LEN, 1));
		return;
	}
	EXPECT_GE(4 * GB, to + variant->new_len);
	EXPECT_EQ(variant->new_addr ?: to, to);
	EXPECT_OK(check_stamps(to, kept, 1));
}

/* ---- a program of 32 bits ---- */

/* mremap_32, if the compiler can make it. */
extern const char _binary_mremap_32_start[] __attribute__((weak));
extern const char _binary_mremap_32_end[] __attribute__((weak));

#define CANNOT_RUN	126
#define END_OF_4_GB	0xffffe000UL
#define END_OF_3_GB	0xc0000000UL

/* Where its address space ends is up to the personality of who calls it. */
static __noreturn void become_program(const char *name, unsigned long end)
{
	const size_t len = _binary_mremap_32_end - _binary_mremap_32_start;
	const int fd = memfd_create("mremap_32", MFD_CLOEXEC);
	char text[16], too_long[16];
	char *argv[] = { "mremap_32", (char *)name, text, too_long, NULL };

	snprintf(text, sizeof(text), "%lx", end);
	snprintf(too_long, sizeof(too_long), "%d", expect_base_7() ? EINVAL : ENOMEM);
	if (write(fd, _binary_mremap_32_start, len) != (ssize_t)len)
		_exit(1);
	if (end == END_OF_3_GB)
		personality(ADDR_LIMIT_3GB);
	fexecve(fd, argv, environ);
	_exit(errno == ENOEXEC ? CANNOT_RUN : 1);
}

FIXTURE(program) { };

FIXTURE_VARIANT(program)
{
	const char *name;
	unsigned long end;
	bool is_new;
};

#define PROGRAM(name, is_new)						\
	FIXTURE_VARIANT_ADD(program, name) { #name, END_OF_4_GB, is_new }; \
	FIXTURE_VARIANT_ADD(program, name##_3_gb) { #name, END_OF_3_GB, is_new }

PROGRAM(grows_at_the_end, false);
PROGRAM(moves_to_the_end, false);
PROGRAM(wraps, false);
PROGRAM(keeps_the_old_place, false);
PROGRAM(has_a_second_view, false);
PROGRAM(is_several, true);
PROGRAM(overlaps, true);

FIXTURE_SETUP(program)
{
	NEED(_binary_mremap_32_start, "needs a compiler that has -m32");
	NEED(!variant->is_new || !expect_base(),
	     "needs moves of several mappings, and MREMAP_OVERLAP");
}

FIXTURE_TEARDOWN(program) { }

TEST_F(program, of_32_bits)
{
	const pid_t child = fork();
	int status = -1;

	if (!child)
		become_program(variant->name, variant->end);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	NEED(status != CANNOT_RUN << 8, "needs CONFIG_IA32_EMULATION");
	EXPECT_EQ(0, status);
}

#endif

/* ---- there and back again, thousands of times ---- */

#define SLAB		"/sys/kernel/slab/"

/* Those that moves of mappings take something from; each takes a while to be counted. */
static const char * const caches[] = {
	"vm_area_struct", "vma_lock", "anon_vma", "anon_vma_chain", "maple_node",
	"page->ptl", "kmalloc-64", "kmalloc-cg-64", "kmalloc-cg-128",
	"kmalloc-cg-192", "kmalloc-cg-256", "kmalloc-cg-512", "kmalloc-cg-1k",
};

/* What calls may leave behind. */
struct store {
	long objects[ARRAY_SIZE(caches)];
	long page_tables;
	int vmas;
	struct counters counters;
};

/* Without those that the allocator has not taken back yet; -1 if it does not tell. */
static long count_objects(const char *cache)
{
	char path[128];

	snprintf(path, sizeof(path), SLAB "%s/shrink", cache);
	if (!write_setting(path, "1"))
		return -1;
	snprintf(path, sizeof(path), SLAB "%s/objects", cache);
	return read_long(path);
}

static void read_store(struct store *out)
{
	/* What is freed a grace period later. */
	syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	for (size_t i = 0; i < ARRAY_SIZE(caches); i++)
		out->objects[i] = count_objects(caches[i]);
	out->page_tables = meminfo_kb("PageTables") * KB / psize();
	out->vmas = count_vmas();
	read_counters(&out->counters);
}

/* Others allocate as well: only what is more than so many counts. */
static const char *check_store(const struct store *was, const struct store *is, long many)
{
	for (size_t i = 0; i < ARRAY_SIZE(caches); i++)
		if (is->objects[i] > was->objects[i] + many)
			return complain("%s: %ld objects, were %ld", caches[i],
					is->objects[i], was->objects[i]);
	if (is->page_tables > was->page_tables + many)
		return complain("%ld page tables, were %ld", is->page_tables, was->page_tables);
	return NULL;
}

static const char *check_own(const struct store *was, const struct store *is)
{
	if (is->counters.rss_anon > was->counters.rss_anon + 100)
		return complain("RssAnon: %ld, was %ld", is->counters.rss_anon,
				was->counters.rss_anon);
	return check_same("mappings", is->vmas, was->vmas) ?:
	       check_same("VmPTE", is->counters.page_tables, was->counters.page_tables) ?:
	       check_same("VmSize", is->counters.size, was->counters.size);
}

enum kind {
	MOVES,
	KEEPS,		/* MREMAP_DONTUNMAP */
	GROWS,
	JOINS,		/* a neighbour that it can merge with */
	OVER,		/* in place of another one */
	OVERLAPS,	/* with the new place */
	FORKS,		/* from a child, with pages that are shared with it */
	FAILS,		/* for want of memory, somewhere on the way */
};

FIXTURE(forth)
{
	int fail;
};

FIXTURE_VARIANT(forth)
{
	enum kind kind;
	unsigned long pages;
	unsigned long offset;	/* of the new place in its page table, in pages */
	bool shared;
	bool several;
};

FIXTURE_VARIANT_ADD(forth, page) { MOVES, 1, 0, false, false };
FIXTURE_VARIANT_ADD(forth, tables) { MOVES, 1536, 0, false, false };
FIXTURE_VARIANT_ADD(forth, entries) { MOVES, 520, 1, false, false };
FIXTURE_VARIANT_ADD(forth, shared) { MOVES, 520, 3, true, false };
FIXTURE_VARIANT_ADD(forth, several) { MOVES, 9, 5, false, true };
FIXTURE_VARIANT_ADD(forth, keeps) { KEEPS, 520, 0, false, false };
FIXTURE_VARIANT_ADD(forth, keeps_entries) { KEEPS, 520, 7, false, false };
FIXTURE_VARIANT_ADD(forth, keeps_several) { KEEPS, 9, 5, false, true };
FIXTURE_VARIANT_ADD(forth, grows) { GROWS, 520, 2, false, false };
FIXTURE_VARIANT_ADD(forth, grows_shared) { GROWS, 520, 2, true, false };
FIXTURE_VARIANT_ADD(forth, joins) { JOINS, 5, 0, false, false };
FIXTURE_VARIANT_ADD(forth, over) { OVER, 520, 2, false, false };
FIXTURE_VARIANT_ADD(forth, over_shared) { OVER, 520, 0, true, false };
FIXTURE_VARIANT_ADD(forth, overlaps) { OVERLAPS, 9, 0, false, false };
FIXTURE_VARIANT_ADD(forth, overlaps_itself_several) { OVERLAPS, 9, 0, false, true };
FIXTURE_VARIANT_ADD(forth, forks) { FORKS, 5, 1, false, false };
FIXTURE_VARIANT_ADD(forth, fails) { FAILS, 520, 1, false, false };
FIXTURE_VARIANT_ADD(forth, fails_with_tables) { FAILS, 1536, 0, false, false };
FIXTURE_VARIANT_ADD(forth, fails_shared) { FAILS, 520, 1, true, false };
FIXTURE_VARIANT_ADD(forth, fails_of_several) { FAILS, 520, 1, false, true };

#define SELF	FIXTURE_DATA(forth) *self
#define VARIANT	const FIXTURE_VARIANT(forth) *variant

FIXTURE_SETUP(forth)
{
	const size_t third = bytes(variant->pages / 3);

	NEED_OK(variant->kind == FAILS ? prepare_fail_nth() : NULL);
	NEED(!variant->several || !expect_base(), "needs moves of several mappings");
	NEED(variant->kind != OVERLAPS || !expect_base(), "needs MREMAP_OVERLAP");
	NEED(count_objects("vm_area_struct") >= 0, "needs " SLAB);
	no_huge_pages();
	self->fail = open(FAIL_NTH, O_RDWR);
	ASSERT_EQ(SRC, map_src(bytes(variant->pages), variant->shared));
	stamp_range(SRC, bytes(variant->pages), 1);
	if (variant->several)
		ASSERT_EQ(0, mprotect(at(SRC + third), third, PROT_READ));
}

FIXTURE_TEARDOWN(forth) { }

static const char *there_and_back(unsigned long src, size_t len, unsigned long flags,
				  unsigned long dst)
{
	const char *why = hop(src, len, len, flags, dst);

	if (!why && flags & MREMAP_DONTUNMAP && munmap(at(src), len))
		why = "cannot unmap what was left";
	return why ?: hop(dst, len, len, flags & ~MREMAP_DONTUNMAP, src);
}

static const char *grow_and_back(size_t len, unsigned long dst)
{
	const size_t more = len + bytes(1);

	return hop(SRC, len, more, FIXED, dst) ?: hop(dst, more, len, 0, dst) ?:
	       hop(dst, len, more, 0, dst) ?: hop(dst, more, len, FIXED, SRC);
}

static const char *over_and_back(size_t len, unsigned long dst)
{
	if (map_anon(dst, len) != dst)
		return "cannot map the destination";
	stamp(dst, 7);
	return there_and_back(SRC, len, FIXED, dst);
}

static const char *fork_and_back(size_t len, unsigned long dst)
{
	const pid_t child = fork();
	int status = -1;

	if (!child)
		_exit(!!there_and_back(SRC, len, FIXED, dst));
	if (waitpid(child, &status, 0) != child || status)
		return "the child cannot move it";
	return there_and_back(SRC, len, FIXED, dst);
}

static const char *fail_and_back(int fail, int nth, size_t len, unsigned long dst)
{
	unsigned long to;

	if (!arm_fail_nth(fail, nth))
		return "cannot make it fail";
	to = do_mremap(SRC, len, len, FIXED, dst);
	disarm_fail_nth(fail);
	if (error_of(to))
		return error_of(to) == ENOMEM ? NULL : "fails otherwise";
	return hop(dst, len, len, FIXED, SRC);
}

#define ALLOCATIONS	24

static const char *go_forth_and_back(SELF, VARIANT, long round)
{
	const unsigned long dst = DST + bytes(variant->offset);
	const size_t len = bytes(variant->pages);

	switch (variant->kind) {
	case MOVES:
		return there_and_back(SRC, len, FIXED, dst);
	case KEEPS:
		return there_and_back(SRC, len, FIXED | DONTUNMAP, dst);
	case GROWS:
		return grow_and_back(len, dst);
	case JOINS:	/* What follows at the new place is what followed here before. */
		return there_and_back(SRC + len - bytes(2), bytes(2), FIXED, DST);
	case OVER:
		return over_and_back(len, dst);
	case OVERLAPS:
		return there_and_back(SRC, len, OVERLAP, SRC + bytes(1));
	case FORKS:
		return fork_and_back(len, dst);
	case FAILS:
		return fail_and_back(self->fail, 1 + round % ALLOCATIONS, len, dst);
	}
	return "no such kind";
}

static const char *go_many_rounds(SELF, VARIANT, long rounds)
{
	const char *why = NULL;

	for (long i = 0; !why && i < rounds; i++)
		why = go_forth_and_back(self, variant, i);
	return why;
}

/* What is freed later is waited for. */
static const char *check_growth(const struct store *was, struct store *is, long many)
{
	const char *why = NULL;

	for (int try = 0; try < 30; try++) {
		read_store(is);
		why = check_store(was, is, many);
		if (!why)
			break;
		usleep(100000);
	}
	return why;
}

/* What others allocate meanwhile comes once; what rounds leave behind comes again. */
#define TRIES	3

TEST_F_TIMEOUT(forth, nothing_grows, TIMEOUT)
{
	const long rounds = scaled(variant->kind == FORKS ? 300 : 2000, 150);
	/* Where one allocation of many has failed. */
	const long many = variant->kind == FAILS ? rounds / 30 : rounds / 2;
	struct store first, before, after;
	const char *growth = "";

	/* So that there is what stays from now on. */
	ASSERT_OK(go_many_rounds(self, variant, ALLOCATIONS));
	count_vmas();
	read_store(&first);
	after = first;
	for (int try = 0; growth && try < TRIES; try++) {
		before = after;
		ASSERT_OK(go_many_rounds(self, variant, rounds));
		growth = check_growth(&before, &after, many);
	}
	EXPECT_OK(growth);
	EXPECT_OK(check_own(&first, &after));
	EXPECT_OK(check_stamps(SRC, bytes(variant->pages), 1));
}

#undef SELF
#undef VARIANT

TEST_HARNESS_MAIN
