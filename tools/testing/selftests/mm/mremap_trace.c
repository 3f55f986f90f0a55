// SPDX-License-Identifier: GPL-2.0
/*
 * What the tracepoint mremap:mremap tells about each call of mremap(2): the
 * request, the outcome, and by what the pages went: PUD entries, PMD entries,
 * huge pages or single PTEs. So this also sees whether tables move whole where
 * they can.
 *
 * And how often the TLB is flushed: not at all if nothing moved that a TLB may
 * hold, else once for each window, whatever moves in it. A window has up to 512
 * tables or huge pages that move whole, or 32 page tables whose entries move one
 * by one. It ends early if somebody waits for the processor, which nobody does
 * here: the tests are real-time tasks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 4 * GB)
#define KEEP	(FIXED | DONTUNMAP)

/* What an event has after the request and the outcome. */
struct counts {
	unsigned long vmas;
	unsigned long puds;
	unsigned long pmds;
	unsigned long huge;
	unsigned long ptes;
	unsigned long flushes;
	unsigned long relocated;	/* the mapping itself changed its place */
};

struct call {
	unsigned long from;
	size_t old_len;
	size_t new_len;
	unsigned long flags;
	unsigned long to;
	size_t apart;	/* if the kernel is to move it: by a multiple of this */
	struct counts counts;
};

enum memory {
	PRIVATE,
	UNTOUCHED,
	SHARED,
	HUGE,
	HUGETLB,
	SWAPPED,
	SEVERAL,	/* the second fifth is read-only, the gap is not mapped */
};

#define MAX_CALLS	6	/* the last one is none */
#define MAX_GUARDS	4

struct row {
	enum memory memory;
	unsigned long start;
	size_t len;
	size_t step;	/* every so many pages one is touched; 0 is 1 */
	size_t gap;	/* so many pages before some that have no contents */
	size_t gap_pages;
	bool detached;	/* only where the kernel detaches page tables */
	unsigned long guards[MAX_GUARDS];
	struct call calls[MAX_CALLS];
};

/* A buffer of this test's own, in which nobody else's events are. */
FIXTURE(trace)
{
	char buffer[128];
	char line[512];		/* of the last call */
	struct counts counts;
	struct row row;
	unsigned long origin;	/* where the first page of the row is, or would be */
};

#define SELF	FIXTURE_DATA(trace) *self
#define EVENT	"events/mremap/mremap"

static const char *find_tracefs(void)
{
	if (!access("/sys/kernel/tracing/events", F_OK) ||
	    !mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL))
		return "/sys/kernel/tracing";
	if (access("/sys/kernel/debug/tracing/events", F_OK))
		mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (!access("/sys/kernel/debug/tracing/events", F_OK))
		return "/sys/kernel/debug/tracing";
	return NULL;
}

static const char *in_buffer(SELF, const char *name)
{
	static char path[256];

	snprintf(path, sizeof(path), "%s/%s", self->buffer, name);
	return path;
}

FIXTURE_SETUP(trace)
{
	const struct sched_param realtime = { .sched_priority = 1 };
	const char *tracefs = find_tracefs();
	char path[256], filter[64];

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	NEED(tracefs, "needs tracefs (and root)");
	snprintf(path, sizeof(path), "%s/" EVENT, tracefs);
	NEED(!access(path, F_OK), "needs the tracepoint mremap:mremap");
	snprintf(self->buffer, sizeof(self->buffer), "%s/instances/mremap_%d", tracefs, getpid());
	NEED(!mkdir(self->buffer, 0700), "needs trace instances");
	snprintf(filter, sizeof(filter), "common_pid == %d", getpid());
	ASSERT_TRUE(write_setting(in_buffer(self, EVENT "/filter"), filter));
	ASSERT_TRUE(write_setting(in_buffer(self, EVENT "/enable"), "1"));
	ASSERT_TRUE(write_setting(in_buffer(self, "tracing_on"), "1"));
	NEED(!sched_setscheduler(0, SCHED_FIFO, &realtime), "needs leave to be a real-time task");
}

FIXTURE_TEARDOWN(trace)
{
	write_setting(in_buffer(self, EVENT "/enable"), "0");
	rmdir(self->buffer);
	put_settings_back();
}

static void forget_events(SELF)
{
	close(open(in_buffer(self, "trace"), O_WRONLY | O_TRUNC));
}

/* Copies the text of the last event; returns how many there are. */
static int read_events(SELF)
{
	static const char mark[] = " mremap: ";
	FILE *trace = fopen(in_buffer(self, "trace"), "r");
	char line[512];
	int nr = 0;

	if (!trace)
		return -1;
	while (fgets(line, sizeof(line), trace)) {
		const char *event = strstr(line, mark);

		if (*line == '#' || !event)
			continue;
		event += strlen(mark);
		nr++;
		snprintf(self->line, sizeof(self->line), "%.*s",
			 (int)strcspn(event, "\n"), event);
	}
	fclose(trace);
	return nr;
}

/* Flags that nobody knows are told as a number. */
static const char *name_flags(unsigned long flags)
{
	static const char * const names[] = {
		[0] = "none",
		[MREMAP_MAYMOVE] = "MREMAP_MAYMOVE",
		[FIXED] = "MREMAP_MAYMOVE|MREMAP_FIXED",
		[DONTUNMAP] = "MREMAP_MAYMOVE|MREMAP_DONTUNMAP",
		[KEEP] = "MREMAP_MAYMOVE|MREMAP_FIXED|MREMAP_DONTUNMAP",
		[OVERLAP] = "MREMAP_MAYMOVE|MREMAP_FIXED|MREMAP_OVERLAP",
	};

	return flags < ARRAY_SIZE(names) && names[flags] ? names[flags] : "0x40";
}

#define COUNTS	"vmas=%lu puds=%lu pmds=%lu huge=%lu ptes=%lu flushes=%lu relocated=%lu"

/*
 * One call, and the one event that it makes, with every field in its place and
 * nothing else: the request, the outcome, and counts that are looked at later.
 */
static unsigned long traced(META, SELF, const struct call *call)
{
	struct counts *counts = &self->counts;
	char want[512];
	unsigned long ret;
	int parsed, end = 0;

	forget_events(self);
	ret = do_mremap(call->from, call->old_len, call->new_len, call->flags, call->to);
	ASSERT_EQ(1, read_events(self));
	snprintf(want, sizeof(want),
		 "addr=0x%lx old_len=0x%zx new_len=0x%zx flags=%s new_addr=0x%lx result=0x%lx error=%d ",
		 call->from, call->old_len, call->new_len, name_flags(call->flags),
		 call->to, error_of(ret) ? 0 : ret, -error_of(ret));
	ASSERT_EQ(0, strncmp(want, self->line, strlen(want)))
		TH_LOG("not \"%s\", but \"%s\"", want, self->line);
	parsed = sscanf(self->line + strlen(want), COUNTS "%n", &counts->vmas, &counts->puds,
			&counts->pmds, &counts->huge, &counts->ptes, &counts->flushes,
			&counts->relocated, &end);
	ASSERT_EQ(7, parsed)
		TH_LOG("\"%s\"", self->line);
	ASSERT_STREQ("", self->line + strlen(want) + end);
	return ret;
}

static void expect_counts(META, SELF, const struct counts *want)
{
	EXPECT_EQ(0, memcmp(&self->counts, want, sizeof(*want)))
		TH_LOG("not \"" COUNTS "\", but \"%s\"", want->vmas, want->puds, want->pmds,
		       want->huge, want->ptes, want->flushes, want->relocated, self->line);
}

/* ---- rows: memory, calls, and what they make ---- */

static size_t table_pages(void)
{
	return pmd_span() / psize();
}

static size_t tables(size_t nr)
{
	return nr * pmd_span();
}

/* Does that page of the row's memory have contents? */
static bool is_there(const struct row *row, size_t page)
{
	return row->memory != UNTOUCHED && page % (row->step ?: 1) == 0 &&
	       (page < row->gap || page >= row->gap + row->gap_pages);
}

static const char *check_pages(const struct row *row, unsigned long addr, size_t len,
			       size_t first, bool zero)
{
	const char *why = NULL;

	for (size_t page = 0; !why && page < len / psize(); page++) {
		if (!is_there(row, first + page))
			continue;
		why = zero ? check_zero(addr + bytes(page), psize()) :
			     check_stamp(addr + bytes(page), first + page);
	}
	return why;
}

/* Returns what is missing for the row's memory, or NULL. */
static const char *lay_out(META, SELF, const struct row *row)
{
	const unsigned long start = row->start, gap = start + bytes(row->gap);
	const size_t fifth = row->len / 5;
	const int flags = (row->memory == SHARED ? MAP_SHARED : MAP_PRIVATE) |
			  (row->memory == HUGETLB ? MAP_HUGETLB : 0);

	self->row = *row;
	self->origin = start;
#ifndef __x86_64__
	if (row->detached)
		return "page tables that can be detached";
#endif
	if (row->memory == HUGETLB && meminfo_kb("HugePages_Free") < 3)
		return "free huge pages (vm.nr_hugepages)";
	prctl(PR_SET_THP_DISABLE, row->memory != HUGE, 0, 0, 0);
	ASSERT_EQ(start, map_at(start, row->len, PROT_READ | PROT_WRITE,
				MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0));
	if (row->memory == HUGE)
		madvise(at(start), row->len, MADV_HUGEPAGE);
	for (size_t page = 0; page < row->len / psize(); page += row->step ?: 1)
		if (row->memory != UNTOUCHED)
			stamp(start + bytes(page), page);
	if (row->memory == HUGE && smaps_kb(start, "AnonHugePages") != (long)(row->len / KB))
		return "transparent huge pages";
	if (row->memory == SWAPPED && !swap_out(start, row->len, row->len / psize()))
		return "swap space, and pages that can be swapped out";
	if (row->memory == HUGE && row->gap_pages)
		ASSERT_EQ(0, madvise(at(gap), bytes(row->gap_pages), MADV_DONTNEED));
	if (row->memory == SEVERAL) {
		ASSERT_EQ(0, mprotect(at(start + fifth), fifth, PROT_READ));
		ASSERT_EQ(0, munmap(at(gap), bytes(row->gap_pages)));
	}
	for (int i = 0; i < MAX_GUARDS && row->guards[i]; i++)
		guard_page(row->guards[i]);
	return NULL;
}

/* Makes the call; returns where the memory is after it. */
static unsigned long run_call(META, SELF, const struct call *call)
{
	const unsigned long to = traced(_metadata, self, call);

	expect_counts(_metadata, self, &call->counts);
	if (call->apart) {
		ASSERT_EQ(0, error_of(to));
		EXPECT_NE(call->from, to);
		EXPECT_EQ(0UL, (to - call->from) % call->apart);
	} else {
		ASSERT_EQ(call->to ?: call->from, to);
	}
	self->origin += to - call->from;
	return to;
}

static void expect_huge(META, unsigned long addr, size_t nr)
{
	EXPECT_EQ((long)(tables(nr) / KB), smaps_kb(addr, "AnonHugePages"));
}

/* The contents of what the call has moved, and of what it has grown by or left. */
static void check_call(META, SELF, const struct call *call, unsigned long to)
{
	const struct row *row = &self->row;
	const size_t old_len = call->old_len ?: call->new_len;
	const size_t first = (to - self->origin) / psize();
	const bool grows = call->new_len > old_len;

	EXPECT_OK(check_pages(row, to, grows ? old_len : call->new_len, first, false));
	if (grows)
		EXPECT_OK(check_zero(to + old_len, call->new_len - old_len));
	if (call->flags & MREMAP_DONTUNMAP)
		EXPECT_OK(check_pages(row, call->from, old_len, first, true));
	/* Huge pages stay huge, also where the kernel looks for a place. */
	if (row->memory == HUGE)
		expect_huge(_metadata, to, call->counts.huge);
	/* And those below what moves, but for one that the boundary is in. */
	if (row->memory == HUGE && call->from > row->start) {
		const size_t left = call->from - row->start;

		expect_huge(_metadata, row->start, left / pmd_span());
		EXPECT_OK(check_pages(row, row->start, left, 0, false));
	}
}

static void run_row(META, SELF, const struct row *row)
{
	const char *missing = lay_out(_metadata, self, row);

	if (missing)
		SKIP(return, "needs %s", missing);
	for (const struct call *call = row->calls; call->from; call++)
		check_call(_metadata, self, call, run_call(_metadata, self, call));
	for (int i = 0; i < MAX_GUARDS && row->guards[i]; i++)
		EXPECT_OK(check_guard_page(row->guards[i]));
}

#define LAY_OUT(...)							\
	lay_out(_metadata, self, &(const struct row) { __VA_ARGS__, .detached = false })
#define CALL(...)	run_call(_metadata, self, &(const struct call) { __VA_ARGS__ })

/* A test that is a row. */
#define ROW(name, ...)							\
	TEST_F(trace, name)						\
	{								\
		run_row(_metadata, self, &(const struct row) { __VA_ARGS__ }); \
	}

/* Memory moves as a whole to a given place. */
#define WHOLE(name, memory, start, len, step, to, ...)			\
	ROW(name, memory, start, len, step,				\
	    .calls = { { MOVE(start, len, to), __VA_ARGS__ } })

/* It cannot grow where it is, and the kernel chooses the place. */
#define BLOCKED(name, memory, start, len, step, more, apart, ...)	\
	ROW(name, memory, start, len, step,				\
	    .guards = { (start) - psize(), (start) + (len) }, .calls = {	\
		{ start, len, (len) + bytes(more), MREMAP_MAYMOVE, 0, apart, __VA_ARGS__ } })

#define CALLED(...)	.calls = { { __VA_ARGS__ } }
#define MOVE(from, len, to)	from, len, len, FIXED, to
#define HERE(addr, old, new, may_move)	.from = addr, .old_len = old, .new_len = new,	\
					.flags = may_move

/* What one mapping makes: it is moved itself, or is copied to a new one. */
#define RELOCATED(...)	.counts = { .vmas = 1, .relocated = 1, __VA_ARGS__ }
#define COPIED(...)	.counts = { .vmas = 1, __VA_ARGS__ }

/* ---- what moves, and by what ---- */

WHOLE(one_page, PRIVATE, SRC, bytes(1), 1, DST, RELOCATED(.ptes = 1, .flushes = 1))
/* Nothing else is mapped in the span of their page table, at either place. */
WHOLE(pages_with_a_table_of_their_own, PRIVATE, SRC + bytes(1), bytes(100), 7,
      DST + bytes(1), RELOCATED(.pmds = 1, .flushes = 1))
ROW(pages_that_are_not_there, PRIVATE, SRC, bytes(100), 7, .guards = { SRC + bytes(100) },
    CALLED(MOVE(SRC, bytes(100), DST), RELOCATED(.ptes = 15, .flushes = 1)))
ROW(nothing_is_there, UNTOUCHED, SRC, tables(3),
    .calls = { { MOVE(SRC, tables(3), DST), RELOCATED(.flushes = 0) },
	       { MOVE(DST, tables(3), SRC + bytes(1)), RELOCATED(.flushes = 0) } })
/* And back: the empty places are as good as before. */
ROW(tables, PRIVATE, SRC, tables(4), 3,
    .calls = { { MOVE(SRC, tables(4), DST), RELOCATED(.pmds = 4, .flushes = 1) },
	       { MOVE(DST, tables(4), SRC), RELOCATED(.pmds = 4, .flushes = 1) } })
/* A table is only moved where there is one. */
WHOLE(some_tables, PRIVATE, SRC, tables(9), 4 * table_pages(), DST,
      RELOCATED(.pmds = 3, .flushes = 1))
WHOLE(table_of_tables, PRIVATE, SRC, pud_span(), 8000, DST, RELOCATED(.puds = 1, .flushes = 1))
/* Not aligned to the table of tables, the tables go one by one, into two. */
WHOLE(tables_of_a_table_of_tables, PRIVATE, SRC, pud_span(), 10 * table_pages(),
      DST + tables(3), COPIED(.pmds = (table_pages() + 9) / 10, .flushes = 2))
#define MORE	(pud_span() + tables(2) + bytes(300))
ROW(table_of_tables_and_more, PRIVATE, SRC, MORE, 64, .guards = { SRC + MORE },
    CALLED(MOVE(SRC, MORE, DST), COPIED(.puds = 1, .pmds = 2, .ptes = 5, .flushes = 3)))
/* Off by a page, no table fits. */
WHOLE(not_congruent, PRIVATE, SRC, tables(3), 2, DST + bytes(1),
      RELOCATED(.ptes = 3 * table_pages() / 2, .flushes = 1))
ROW(part_of_a_mapping, PRIVATE, SRC, tables(3),
    CALLED(MOVE(SRC + bytes(20), bytes(30), DST), RELOCATED(.ptes = 30, .flushes = 1)))
ROW(table_of_a_mapping, PRIVATE, SRC, tables(3),
    CALLED(MOVE(SRC + tables(1), tables(1), DST + tables(1)), RELOCATED(.pmds = 1, .flushes = 1)))
ROW(shared_memory, SHARED, SRC, tables(2),
    .calls = { { MOVE(SRC, tables(2), DST), RELOCATED(.pmds = 2, .flushes = 1) },
	       { MOVE(DST, tables(2), SRC + bytes(4)),
		 RELOCATED(.ptes = 2 * table_pages(), .flushes = 1) } })
/* A second view of shared memory has no pages until they are used. */
ROW(second_view, SHARED, SRC, bytes(8), CALLED(SRC, 0, bytes(8), FIXED, DST, COPIED()))
ROW(dontunmap, PRIVATE, SRC, tables(2), 4,
    .calls = { { SRC, tables(2), tables(2), KEEP, DST, COPIED(.pmds = 2, .flushes = 1) },
	       { DST, tables(2), tables(2), KEEP, SRC + bytes(1),
		 COPIED(.ptes = table_pages() / 2, .flushes = 1) } })
/* Without MREMAP_FIXED the address is a hint. */
ROW(dontunmap_with_hint, PRIVATE, SRC, bytes(3),
    CALLED(SRC, bytes(3), bytes(3), DONTUNMAP, DST, COPIED(.ptes = 3, .flushes = 1)))
ROW(growing_and_shrinking_moves, PRIVATE, SRC, bytes(40),
    .calls = { { SRC, bytes(40), bytes(60), FIXED, DST, RELOCATED(.ptes = 40, .flushes = 1) },
	       { DST, bytes(60), bytes(10), FIXED, SRC, RELOCATED(.ptes = 10, .flushes = 1) } })

/* Of several mappings, each in a window of its own. */
#define EACH(nr, ...)	.counts = { .vmas = nr, .relocated = nr, .flushes = nr, __VA_ARGS__ }
#define FIFTHS(len)	SEVERAL, SRC, 5 * (len), .gap = 3 * (len) / psize(), \
			.gap_pages = (len) / psize()
ROW(several_mappings_by_pages, FIFTHS(bytes(8)),
    CALLED(MOVE(SRC, bytes(40), DST + bytes(1)), EACH(4, .ptes = 32)))
ROW(several_mappings_by_tables, FIFTHS(tables(2)),
    CALLED(MOVE(SRC, tables(10), DST), EACH(4, .pmds = 8)))
ROW(several_mappings_dontunmap, FIFTHS(bytes(8)),
    CALLED(SRC, bytes(40), bytes(40), KEEP, DST,
	   .counts = { .vmas = 4, .ptes = 32, .flushes = 4 }))
/* Only what has been adjacent to the others: these are three. */
ROW(several_mappings_that_grow_mended, FIFTHS(bytes(8)),
    CALLED(SRC, bytes(24), bytes(30), FIXED, DST + bytes(1), EACH(3, .ptes = 24)))
ROW(several_mappings_that_shrink_mended, FIFTHS(bytes(8)),
    CALLED(SRC, bytes(24), bytes(12), FIXED, DST + bytes(1), EACH(2, .ptes = 12)))

/* By less than the length: a few pages in place, more by way of a staging place. */
#define SHIFT(from, len, to)	from, len, len, OVERLAP, to
ROW(shift_of_pages, PRIVATE, SRC, bytes(16),
    .calls = { { SHIFT(SRC, bytes(16), SRC + bytes(1)), RELOCATED(.ptes = 16, .flushes = 1) },
	       { SHIFT(SRC + bytes(1), bytes(16), SRC), RELOCATED(.ptes = 16, .flushes = 1) } })
ROW(shift_of_all_that_is_done_in_place, PRIVATE, SRC, bytes(512), 4,
    CALLED(SHIFT(SRC, bytes(512), SRC + bytes(1)), RELOCATED(.ptes = 128, .flushes = 1)))
/* The first table has left its place, which it finds free. The second one stayed. */
ROW(shift_of_one_page_more, PRIVATE, SRC, bytes(513), 4, .detached = true,
    CALLED(SHIFT(SRC, bytes(513), SRC + bytes(1)), COPIED(.ptes = 130, .pmds = 1, .flushes = 2)))
ROW(shift_of_nothing, UNTOUCHED, SRC, bytes(16),
    CALLED(SHIFT(SRC, bytes(16), SRC + bytes(1)), RELOCATED(.flushes = 0)))
ROW(shift_of_tables, PRIVATE, SRC, tables(4), 3,
    CALLED(SHIFT(SRC, tables(4), SRC + tables(1)), COPIED(.pmds = 8, .flushes = 2)))
ROW(shift_of_several_by_pages, FIFTHS(bytes(8)),
    CALLED(SHIFT(SRC, bytes(40), SRC + bytes(3)), EACH(4, .ptes = 32)))
/* What is shorter than the way it goes need not overlap itself. */
ROW(shift_of_several_far, FIFTHS(bytes(8)),
    CALLED(SHIFT(SRC, bytes(40), SRC + bytes(20)), EACH(4, .ptes = 32)))

WHOLE(huge_pages, HUGE, SRC, tables(4), 1, DST, RELOCATED(.huge = 4, .flushes = 1))
WHOLE(huge_pages_not_congruent, HUGE, SRC, tables(4), 1, DST + bytes(1),
      RELOCATED(.ptes = 4 * table_pages(), .flushes = 1))
/* One of them is in small pages by now, and one of those is gone. */
ROW(huge_pages_and_a_table, HUGE, SRC, tables(4), .gap = 2 * table_pages() + 5,
    .gap_pages = 1,
    CALLED(MOVE(SRC, tables(4), DST), RELOCATED(.huge = 3, .pmds = 1, .flushes = 1)))
/* The boundary splits just one of them; with neighbours, that goes by its pages. */
#define CUT	(tables(1) + bytes(100))
ROW(huge_pages_cut, HUGE, SRC, tables(4),
    CALLED(MOVE(SRC + CUT, tables(4) - CUT, DST + CUT),
	   RELOCATED(.huge = 2, .ptes = table_pages() - 100, .flushes = 1)))
/* They have a mover of their own, which does not count. */
WHOLE(hugetlb, HUGETLB, SRC, 2 * default_huge_page_size(), 1, DST, COPIED())
ROW(hugetlb_grows_mended, HUGETLB, SRC, 2 * default_huge_page_size(),
    CALLED(SRC, 2 * default_huge_page_size(), 3 * default_huge_page_size(), FIXED, DST, COPIED()))
/* What is swapped out is an entry, too, whose table is moved like any other. */
WHOLE(swapped_tables, SWAPPED, SRC, tables(2), 1, DST, RELOCATED(.pmds = 2, .flushes = 1))

/* ---- neighbours in the same tables ---- */

/* Two tables, and so many pages before and behind them. */
#define HEAD	12
#define TAIL	7
#define BOTH	(tables(2) + bytes(HEAD + TAIL))
#define FROM	(SRC + tables(1) - bytes(HEAD))
#define TO	(DST + tables(1) - bytes(HEAD))
#define AROUND(where)	(where) - bytes(1), (where) + BOTH

/*
 * Only the tables between the neighbours move whole. Head and tail of a copy have
 * windows of their own if they need new tables; the tail finds one if there are
 * neighbours at the destination. What is relocated moves in one window.
 */
ROW(head_and_tail_copied, PRIVATE, FROM, BOTH, .guards = { AROUND(FROM) },
    CALLED(FROM, BOTH, BOTH, KEEP, TO, COPIED(.pmds = 2, .ptes = HEAD + TAIL, .flushes = 3)))
ROW(head_and_tail_copied_to_neighbours, PRIVATE, FROM, BOTH, .guards = { AROUND(TO) },
    CALLED(FROM, BOTH, BOTH, KEEP, TO, COPIED(.pmds = 2, .ptes = HEAD + TAIL, .flushes = 2)))
ROW(head_and_tail_with_neighbours, PRIVATE, FROM, BOTH, .guards = { AROUND(FROM), AROUND(TO) },
    CALLED(MOVE(FROM, BOTH, TO), RELOCATED(.pmds = 2, .ptes = HEAD + TAIL, .flushes = 1)))
/* Alone in their tables, head and tail go with these. */
WHOLE(head_and_tail_alone, PRIVATE, FROM, BOTH, 1, TO, RELOCATED(.pmds = 4, .flushes = 1))

/* ---- windows ---- */

/* One of each table's pages is there, and the tables move whole. */
#define TABLES(name, nr)						\
	WHOLE(name, PRIVATE, SRC, tables(nr), table_pages(), DST,	\
	      RELOCATED(.pmds = nr, .flushes = 1))

TABLES(flush_of_1_table, 1)
TABLES(flush_of_2_tables, 2)
TABLES(flush_of_33_tables, 33)
TABLES(flush_of_200_tables, 200)
TABLES(flush_of_511_tables, 511)

/* A window ends where a table of page tables does, at either place. */
WHOLE(flushes_across_tables_of_tables, PRIVATE, SRC + pud_span() - tables(3), tables(8),
      table_pages(), DST + pud_span() - tables(1), COPIED(.pmds = 8, .flushes = 3))

/*
 * Off by a page all entries move singly, and all of the tables are detached,
 * which takes the one flush of a window: then no TLB can hold what moves.
 */
#define ENTRIES(name, nr, windows)					\
	WHOLE(name, PRIVATE, SRC, tables(nr), table_pages(), DST + bytes(1), \
	      .counts = { .vmas = 1, .ptes = nr, .flushes = windows,	\
			  .relocated = (windows) == 1 })

ENTRIES(flush_of_1_entry, 1, 1)
ENTRIES(flush_of_2_entries, 2, 1)
ENTRIES(flush_of_31_entries, 31, 1)
ENTRIES(flush_of_32_entries, 32, 1)
ENTRIES(flushes_of_33_entries, 33, 2)
ENTRIES(flushes_of_64_entries, 64, 2)
ENTRIES(flushes_of_65_entries, 65, 3)
ENTRIES(flushes_of_100_entries, 100, 4)
ENTRIES(flushes_of_192_entries, 192, 6)

/*
 * The first and the last table are shared with neighbours and so not detached. Their
 * windows are flushed once more, for entries that left tables in use.
 */
#define SHARING(name, nr, nr_flushes, whole)				\
	ROW(name, PRIVATE, SRC + bytes(256), tables(nr), 64, \
	    .detached = true,						\
	    .guards = { SRC + bytes(255), SRC + tables(nr) + bytes(256) }, \
	    .calls = { { MOVE(SRC + bytes(256), tables(nr), DST + bytes(3)), \
			 .counts = { .vmas = 1, .ptes = tables(nr) / bytes(64), \
				     .flushes = nr_flushes, .relocated = whole } } })

SHARING(flush_of_1_shared_table, 1, 1, true)
SHARING(flushes_of_2_shared_tables, 2, 2, true)
SHARING(flushes_of_31_with_neighbours, 31, 2, true)
SHARING(flushes_of_32_with_neighbours, 32, 2 + 1, false)
SHARING(flushes_of_33_with_neighbours, 33, 2 + 2, false)
SHARING(flushes_of_64_with_neighbours, 64, 2 + 1 + 1, false)

/* ---- places that the kernel chooses ---- */

BLOCKED(place_of_the_kernels_choice, PRIVATE, SRC, bytes(3), 1, 2, bytes(1),
	RELOCATED(.ptes = 3, .flushes = 1))
/* Where the tables of a mapping fit, whatever its own offset in them is. */
BLOCKED(place_for_whole_tables, PRIVATE, SRC, tables(4), 8, 9, tables(1),
	RELOCATED(.pmds = 4, .flushes = 1))
#define PLACE(offset)							\
	BLOCKED(place_for_whole_tables_##offset, PRIVATE, SRC + bytes(offset), \
		tables(4), 8, 9, tables(1),				\
		RELOCATED(.pmds = 3, .ptes = table_pages() / 8, .flushes = 1))
PLACE(1) PLACE(300) PLACE(511)
BLOCKED(place_for_a_table_of_tables, PRIVATE, SRC, pud_span(), 9000, 1, pud_span(),
	RELOCATED(.puds = 1, .flushes = 1))
/* They stay huge. */
BLOCKED(place_for_huge_pages, HUGE, SRC, tables(4), 1, 1, tables(1),
	RELOCATED(.huge = 4, .flushes = 1))

#define HUGE_PAGES	"/sys/kernel/mm/transparent_hugepage/"

static bool allow_huge_pages(size_t len, const char *when)
{
	char path[96];

	snprintf(path, sizeof(path), HUGE_PAGES "hugepages-%zukB/enabled", len / KB);
	return change_setting(path, when);
}

/* Those as large as a page table, and of the smaller ones those of this length. */
static bool allow_only_huge_pages_of(size_t small)
{
	for (size_t len = bytes(4); len < tables(1); len *= 2)
		if (!allow_huge_pages(len, len == small ? "madvise" : "never"))
			return false;
	return change_setting(HUGE_PAGES "enabled", "madvise") &&
	       allow_huge_pages(tables(1), "madvise");
}

#define NEEDS_HUGE_PAGES	"needs " HUGE_PAGES "hugepages-*kB/enabled"

/* Where in a page table it goes if it may be in huge pages and doubles its length. */
static unsigned long place_of_small_block(META, SELF, unsigned long start)
{
	const size_t len = tables(1) / 4;
	unsigned long to;

	LAY_OUT(PRIVATE, start, len, 8, .guards = { start - psize(), start + len });
	EXPECT_EQ(0, madvise(at(start), len, MADV_HUGEPAGE));
	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);	/* nothing is huge yet */
	to = CALL(start, len, 2 * len, MREMAP_MAYMOVE, 0, bytes(1),
		  RELOCATED(.ptes = table_pages() / 32, .flushes = 1));
	EXPECT_OK(check_pages(&self->row, to, len, 0, false));
	return to % tables(1);
}

/* A small block that grows is moved to where huge pages can be added to it. */
TEST_F(trace, place_of_a_small_block)
{
	NEED(allow_only_huge_pages_of(0), NEEDS_HUGE_PAGES);
	EXPECT_EQ(0, place_of_small_block(_metadata, self, SRC + bytes(37)));
}

/* What it may have in smaller ones would no longer be aligned as they are. */
TEST_F(trace, place_of_a_small_block_in_huge_pages)
{
	NEED(allow_only_huge_pages_of(bytes(16)), NEEDS_HUGE_PAGES);
	EXPECT_EQ(bytes(48), place_of_small_block(_metadata, self, SRC + bytes(48)));
}

/* ---- places in an address space that is full ---- */

#define LEAST	MB

/* Where something was mapped to fill it. */
struct filler {
	unsigned long start;
	size_t len;
};

/*
 * Maps all that is free, but for holes of less than LEAST. When nothing is left
 * of the usual area, the kernel goes on above it: the biggest one there is *above,
 * of length 0 if there is none. Returns the biggest one of all.
 */
static struct filler fill_address_space(struct filler *above)
{
	const int prot = PROT_NONE;
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	struct filler biggest = { 0 };
	/* The highest free page of the usual area, so there is none above it. */
	void *last = mmap(NULL, psize(), prot, flags, -1, 0);

	*above = (struct filler) { 0 };
	for (size_t len = 1UL << 46; len >= LEAST; len /= 2) {
		void *p;

		while ((p = mmap(NULL, len, prot, flags, -1, 0)) != MAP_FAILED) {
			if (!biggest.len)
				biggest = (struct filler) { (unsigned long)p, len };
			if (p > last && !above->len)
				*above = (struct filler) { (unsigned long)p, len };
		}
	}
	return biggest;
}

/* A hole in the middle of a filler, at an offset that tables do not have. */
static unsigned long make_hole(META, struct filler filler, size_t len)
{
	const unsigned long middle = filler.start + filler.len / 2;
	const unsigned long hole = middle / pud_span() * pud_span() + bytes(37);

	ASSERT_LT(2 * (len + pud_span()), filler.len);
	ASSERT_EQ(0, munmap(at(hole), len));
	return hole;
}

/* The trace is read with memory that has to be there by then. */
static struct filler fill(META, SELF, struct filler *above)
{
	CALL(HERE(SRC, psize(), psize(), 0));
	return fill_address_space(above);
}

/*
 * There is a place for whole tables, but only where mappings go when nothing else
 * is free, near the stack. That is not what the kernel looks for a place for.
 */
TEST_F(trace, place_in_the_usual_area)
{
	const size_t len = tables(2) + bytes(1);
	struct filler biggest, above;
	unsigned long hole;

	LAY_OUT(PRIVATE, SRC, tables(2), 8, .guards = { SRC + tables(2) });
	biggest = fill(_metadata, self, &above);
	NEED(above.len >= 64 * MB, "needs room above the usual area");
	hole = make_hole(_metadata, biggest, len);
	ASSERT_EQ(0, munmap(at(above.start + 16 * MB), 32 * MB));
	ASSERT_EQ(hole, CALL(SRC, tables(2), len, MREMAP_MAYMOVE, 0, bytes(1),
			     RELOCATED(.ptes = table_pages() / 4, .flushes = 1)));
	EXPECT_OK(check_pages(&self->row, hole, tables(2), 0, false));
}

/* There is no place for a table of tables, but for the tables that it is of. */
TEST_F(trace, place_for_tables_of_a_table)
{
	const size_t len = pud_span() + bytes(1);
	const size_t room = pud_span() + tables(8);
	struct filler biggest, above;
	unsigned long hole, to;

	LAY_OUT(PRIVATE, SRC, pud_span(), 9000, .guards = { SRC + pud_span() });
	biggest = fill(_metadata, self, &above);
	hole = make_hole(_metadata, biggest, room);
	to = CALL(SRC, pud_span(), len, MREMAP_MAYMOVE, 0, tables(1),
		  COPIED(.pmds = pud_span() / bytes(9000) + 1, .flushes = 2));
	EXPECT_LE(hole, to);
	EXPECT_GE(hole + room, to + len);
	EXPECT_OK(check_pages(&self->row, to, pud_span(), 0, false));
}

/* ---- what takes more than a row ---- */

/* What is swapped out is in no TLB; then one page is back. */
TEST_F(trace, swapped_pages)
{
	const char *missing = LAY_OUT(SWAPPED, SRC, bytes(40));

	if (missing || count_pagemap(SRC, bytes(40), PM_SWAP) < 40)
		SKIP(return, "needs %s", missing ?: "pages that can be swapped out");
	CALL(MOVE(SRC, bytes(40), DST), RELOCATED(.ptes = 40, .flushes = 0));
	EXPECT_OK(check_stamp(DST + bytes(7), 7));
	CALL(MOVE(DST, bytes(40), SRC), RELOCATED(.ptes = 40, .flushes = 1));
	EXPECT_OK(check_stamps(SRC, bytes(40), 0));
}

/* What was mapped at the destination leaves no tables in the way. */
TEST_F(trace, tables_over_old_tables)
{
	ASSERT_EQ(DST, map_anon(DST, tables(2)));
	stamp_range(DST, tables(2), 5000);
	LAY_OUT(PRIVATE, SRC, tables(2), 5, .guards = { DST - bytes(1), DST + tables(2) });
	CALL(MOVE(SRC, tables(2), DST), RELOCATED(.pmds = 2, .flushes = 1));
	EXPECT_OK(check_pages(&self->row, DST, tables(2), 0, false));
	EXPECT_OK(check_guard_page(DST - bytes(1)));
	EXPECT_OK(check_guard_page(DST + tables(2)));
}

/* Neighbouring ones go in one window, as far as one table holds them all. */
TEST_F(trace, tables_of_tables)
{
	const unsigned long boundary = 64 * pud_span() * table_pages();
	const unsigned long src = boundary - pud_span(), dst = src + 8 * pud_span();
	const unsigned long far = dst + 4 * pud_span();
	const size_t len = 3 * pud_span();

	LAY_OUT(PRIVATE, src, len, 8000);
	CALL(MOVE(src, len, dst), COPIED(.puds = 3, .flushes = 2));
	EXPECT_OK(check_pages(&self->row, dst, len, 0, false));
	ASSERT_EQ(0, madvise(at(dst + pud_span()), pud_span(), MADV_DONTNEED));
	CALL(MOVE(dst, len, far), COPIED(.puds = 3, .flushes = 1));
	CALL(MOVE(far, len, src), COPIED(.puds = 3, .flushes = 2));
	EXPECT_OK(check_pages(&self->row, src, pud_span(), 0, false));
}

/* ---- in place, and what is refused: nothing moves ---- */

ROW(in_place, PRIVATE, SRC, bytes(40), .gap = 40, .gap_pages = 40,
    .calls = { { HERE(SRC, bytes(40), bytes(60), 0) },
	       { HERE(SRC, bytes(60), bytes(80), MREMAP_MAYMOVE) },
	       { HERE(SRC, bytes(80), bytes(80), 0) },
	       { HERE(SRC, bytes(80), bytes(10), 0) },
	       { HERE(SRC, bytes(10), bytes(5), MREMAP_MAYMOVE) } })

/* Lengths are told as they were given, not rounded. */
TEST_F(trace, odd_lengths)
{
	LAY_OUT(PRIVATE, SRC, bytes(3));
	CALL(SRC, bytes(2) + 1, bytes(2) + 1234, FIXED, DST, RELOCATED(.ptes = 3, .flushes = 1));
	CALL(HERE(DST, bytes(3) - 1, 1, 0));
}

static void refuse(META, SELF, const struct call *call, int error)
{
	EXPECT_EQ(error, error_of(traced(_metadata, self, call)));
	expect_counts(_metadata, self, &(struct counts) { 0 });
}

#define REFUSED(error, ...)						\
	refuse(_metadata, self, &(struct call) { __VA_ARGS__, .apart = 0 }, error)

/* One of each stage: for its flags, its destination, its source, for room, for a seal. */
TEST_F(trace, refused_calls)
{
	const size_t len = bytes(8);

	LAY_OUT(PRIVATE, SRC, len, .guards = { SRC + len });
	REFUSED(EINVAL, SRC, len, len, 0x40);
	REFUSED(EINVAL, SRC, len, len, FIXED, DST + 1);
	REFUSED(EFAULT, SRC, 2 * len, 3 * len, MREMAP_MAYMOVE);
	REFUSED(ENOMEM, SRC, len, len + psize(), 0);
	ASSERT_EQ(0, seal(SRC, len));
	REFUSED(EPERM, MOVE(SRC, len, DST));
	EXPECT_OK(check_stamps(SRC, len, 0));
}

/* ---- who else calls ---- */

/* Each process's calls are its own; every call makes one event. */
TEST_F(trace, one_event_for_each_call)
{
	LAY_OUT(PRIVATE, SRC, bytes(4));
	forget_events(self);
	EXPECT_OK_IN_CHILD(move_to(SRC, bytes(4), bytes(4), DST) == DST ?
			   NULL : "the move has failed");
	EXPECT_EQ(0, read_events(self));
	for (int i = 0; i < 5; i++) {
		ASSERT_EQ(DST, move_to(SRC, bytes(4), bytes(4), DST));
		ASSERT_EQ(SRC, move_to(DST, bytes(4), bytes(4), SRC));
	}
	EXPECT_EQ(10, read_events(self));
}

/*
 * A place of the kernel's choice that spans the end of a table of page tables takes
 * more windows than another one. Without randomization it is always the same place.
 */
static void __attribute__((constructor)) fix_places(int argc, char **argv)
{
	const int persona = personality(0xffffffff);

	if (argc && !(persona & ADDR_NO_RANDOMIZE) &&
	    personality(persona | ADDR_NO_RANDOMIZE) >= 0)
		execv("/proc/self/exe", argv);
}

TEST_HARNESS_MAIN
