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
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 4 * GB)

/* ---- reading the trace ---- */

struct counts {
	unsigned long vmas;
	unsigned long puds;
	unsigned long pmds;
	unsigned long huge;
	unsigned long ptes;
};

struct event {
	unsigned long addr;
	unsigned long old_len;
	unsigned long new_len;
	char flags[64];
	unsigned long new_addr;
	unsigned long result;
	int error;
	struct counts counts;
	unsigned long flushes;
	unsigned long relocated;
};

/* A buffer of this test's own, in which nobody else's events are. */
FIXTURE(trace)
{
	char buffer[128];
	char line[512];	/* of the last call */
	struct event event;
};

#define SELF	FIXTURE_DATA(trace) *self

static const char *find_tracefs(void)
{
	static const char * const places[] = {
		"/sys/kernel/tracing", "/sys/kernel/debug/tracing",
	};

	if (access("/sys/kernel/tracing/events", F_OK) &&
	    access("/sys/kernel/debug/tracing/events", F_OK) &&
	    mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL))
		mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		char events[128];

		snprintf(events, sizeof(events), "%s/events", places[i]);
		if (!access(events, F_OK))
			return places[i];
	}
	return NULL;
}

static bool set_up_buffer(SELF, const char *name, const char *contents)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", self->buffer, name);
	return write_setting(path, contents);
}

FIXTURE_SETUP(trace)
{
	const struct sched_param realtime = { .sched_priority = 1 };
	const char *tracefs = find_tracefs();
	char path[256], filter[64];

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	if (!tracefs)
		SKIP(return, "needs tracefs (and root)");
	snprintf(path, sizeof(path), "%s/events/mremap/mremap", tracefs);
	if (access(path, F_OK))
		SKIP(return, "needs the tracepoint mremap:mremap");
	snprintf(self->buffer, sizeof(self->buffer), "%s/instances/mremap_%d",
		 tracefs, getpid());
	if (mkdir(self->buffer, 0700))
		SKIP(return, "needs trace instances");
	snprintf(filter, sizeof(filter), "common_pid == %d", getpid());
	ASSERT_TRUE(set_up_buffer(self, "events/mremap/mremap/filter", filter));
	ASSERT_TRUE(set_up_buffer(self, "events/mremap/mremap/enable", "1"));
	ASSERT_TRUE(set_up_buffer(self, "tracing_on", "1"));
	if (sched_setscheduler(0, SCHED_FIFO, &realtime))
		SKIP(return, "needs leave to be a real-time task");
}

FIXTURE_TEARDOWN(trace)
{
	set_up_buffer(self, "events/mremap/mremap/enable", "0");
	rmdir(self->buffer);
}

static void forget_events(SELF)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/trace", self->buffer);
	close(open(path, O_WRONLY | O_TRUNC));
}

/* What stands before an event's own text. */
#define MARK	" mremap: "

/* Copies the line of the last event; returns how many there are. */
static int read_events(SELF)
{
	char path[256], line[512];
	FILE *trace;
	int nr = 0;

	snprintf(path, sizeof(path), "%s/trace", self->buffer);
	trace = fopen(path, "r");
	if (!trace)
		return -1;
	while (fgets(line, sizeof(line), trace)) {
		const char *event = strstr(line, MARK);

		if (*line == '#' || !event)
			continue;
		event += strlen(MARK);
		nr++;
		snprintf(self->line, sizeof(self->line), "%.*s",
			 (int)strcspn(event, "\n"), event);
	}
	fclose(trace);
	return nr;
}

/* Every field, each in its place, and nothing else. */
static bool parse_event(const char *line, struct event *event)
{
	struct counts *counts = &event->counts;
	int end = 0;

	return sscanf(line,
		      "addr=0x%lx old_len=0x%lx new_len=0x%lx flags=%63s new_addr=0x%lx result=0x%lx error=%d vmas=%lu puds=%lu pmds=%lu huge=%lu ptes=%lu flushes=%lu relocated=%lu%n",
		      &event->addr, &event->old_len, &event->new_len,
		      event->flags, &event->new_addr, &event->result,
		      &event->error, &counts->vmas, &counts->puds,
		      &counts->pmds, &counts->huge, &counts->ptes,
		      &event->flushes, &event->relocated, &end) == 14 && !line[end];
}

static void print_flags(unsigned long flags, char *out, size_t len)
{
	static const struct {
		unsigned long flag;
		const char *name;
	} names[] = {
		{ MREMAP_MAYMOVE, "MREMAP_MAYMOVE" },
		{ MREMAP_FIXED, "MREMAP_FIXED" },
		{ MREMAP_DONTUNMAP, "MREMAP_DONTUNMAP" },
	};

	snprintf(out, len, "%s", flags ? "" : "none");
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		const size_t done = strlen(out);

		if (flags & names[i].flag)
			snprintf(out + done, len - done, "%s%s",
				 done ? "|" : "", names[i].name);
	}
}

/*
 * One call, and the one event that it makes: what the event says of the request
 * and of the outcome is what was asked for and what came.
 */
static unsigned long traced(META, SELF, unsigned long addr, size_t old_len,
			    size_t new_len, unsigned long flags,
			    unsigned long new_addr)
{
	struct event *event = &self->event;
	unsigned long ret;
	char names[64];

	forget_events(self);
	ret = do_mremap(addr, old_len, new_len, flags, new_addr);
	ASSERT_EQ(1, read_events(self));
	ASSERT_TRUE(parse_event(self->line, event))
		TH_LOG("%s", self->line);
	EXPECT_EQ(addr, event->addr);
	EXPECT_EQ(old_len, event->old_len);
	EXPECT_EQ(new_len, event->new_len);
	EXPECT_EQ(new_addr, event->new_addr);
	print_flags(flags, names, sizeof(names));
	EXPECT_STREQ(names, event->flags);
	EXPECT_EQ(-error_of(ret), event->error);
	EXPECT_EQ(error_of(ret) ? 0 : ret, event->result);
	return ret;
}

static unsigned long traced_move(META, SELF, unsigned long addr, size_t len,
				 unsigned long to)
{
	return traced(_metadata, self, addr, len, len, FIXED, to);
}

static const char *check_counts(SELF, struct counts want)
{
	const struct counts *is = &self->event.counts;

	if (!memcmp(is, &want, sizeof(want)))
		return NULL;
	return complain("not vmas=%lu puds=%lu pmds=%lu huge=%lu ptes=%lu, but \"%s\"",
			want.vmas, want.puds, want.pmds, want.huge, want.ptes,
			self->line);
}

#define EXPECT_COUNTS(...)						\
	EXPECT_OK(check_counts(self, (struct counts) { __VA_ARGS__ }))

#define EXPECT_FLUSHES(nr)						\
	EXPECT_EQ((unsigned long)(nr), self->event.flushes)		\
		TH_LOG("\"%s\"", self->line)

/* Whether the mapping itself changed its place; else it was copied. */
#define EXPECT_RELOCATED(nr)						\
	EXPECT_EQ((unsigned long)(nr), self->event.relocated)		\
		TH_LOG("%s", self->line)

/* ---- what moves, and by what ---- */

/* Maps pages and touches every one that step divides. */
static void map_sparse(META, unsigned long addr, size_t pages, size_t step)
{
	ASSERT_EQ(addr, map_at(addr, bytes(pages), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			       0));
	for (size_t page = 0; page < pages; page += step)
		stamp(addr + bytes(page), page);
}

static const char *check_sparse(unsigned long addr, size_t pages, size_t step)
{
	const char *why = NULL;

	for (size_t page = 0; !why && page < pages; page += step)
		why = check_stamp(addr + bytes(page), page);
	return why;
}

static size_t table_pages(void)
{
	return pmd_span() / psize();
}

TEST_F(trace, one_page)
{
	map_sparse(_metadata, SRC, 1, 1);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, psize(), DST));
	EXPECT_COUNTS(.vmas = 1, .ptes = 1);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_stamp(DST, 0));
}

/* Where the kernel puts it, that is what the event says. */
TEST_F(trace, place_of_the_kernels_choice)
{
	unsigned long to;

	map_sparse(_metadata, SRC, 3, 1);
	guard_page(SRC + bytes(3));
	to = traced(_metadata, self, SRC, bytes(3), bytes(5), MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	ASSERT_NE(SRC, to);
	EXPECT_COUNTS(.vmas = 1, .ptes = 3);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(to, 3, 1));
}

TEST_F(trace, pages_that_are_not_there)
{
	map_sparse(_metadata, SRC, 100, 7);
	guard_page(SRC + bytes(100));
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, bytes(100), DST));
	EXPECT_COUNTS(.vmas = 1, .ptes = 15);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(DST, 100, 7));
}

/* Nothing else is mapped in the span of their page table, at either place. */
TEST_F(trace, pages_with_a_table_of_their_own)
{
	map_sparse(_metadata, SRC + psize(), 100, 7);
	ASSERT_EQ(DST + psize(), traced_move(_metadata, self, SRC + psize(),
					     bytes(100), DST + psize()));
	EXPECT_COUNTS(.vmas = 1, .pmds = 1);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(DST + psize(), 100, 7));
}

TEST_F(trace, nothing_is_there)
{
	ASSERT_EQ(SRC, map_anon(SRC, 3 * pmd_span()));
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, 3 * pmd_span(), DST));
	EXPECT_COUNTS(.vmas = 1);
	EXPECT_FLUSHES(0);
	ASSERT_EQ(SRC + psize(), traced_move(_metadata, self, DST,
					     3 * pmd_span(), SRC + psize()));
	EXPECT_COUNTS(.vmas = 1);
	EXPECT_FLUSHES(0);
}

TEST_F(trace, tables)
{
	const size_t len = 4 * pmd_span();

	map_sparse(_metadata, SRC, 4 * table_pages(), 3);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, len, DST));
	EXPECT_COUNTS(.vmas = 1, .pmds = 4);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(DST, 4 * table_pages(), 3));
	/* And back: the empty places are as good as before. */
	ASSERT_EQ(SRC, traced_move(_metadata, self, DST, len, SRC));
	EXPECT_COUNTS(.vmas = 1, .pmds = 4);
	EXPECT_OK(check_sparse(SRC, 4 * table_pages(), 3));
}

/* A table is only moved where there is one. */
TEST_F(trace, some_tables)
{
	map_sparse(_metadata, SRC, 9 * table_pages(), 4 * table_pages());
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, 9 * pmd_span(), DST));
	EXPECT_COUNTS(.vmas = 1, .pmds = 3);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(DST, 9 * table_pages(), 4 * table_pages()));
}

/* What was mapped at the destination leaves no tables in the way. */
TEST_F(trace, tables_over_old_tables)
{
	const size_t pages = 2 * table_pages(), len = 2 * pmd_span();

	map_sparse(_metadata, SRC, pages, 5);
	map_sparse(_metadata, DST, pages, 1);
	guard_page(DST - psize());
	guard_page(DST + len);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, len, DST));
	EXPECT_COUNTS(.vmas = 1, .pmds = 2);
	EXPECT_OK(check_sparse(DST, pages, 5));
	EXPECT_OK(check_guard_page(DST - psize()));
	EXPECT_OK(check_guard_page(DST + len));
}

TEST_F(trace, table_of_tables)
{
	const size_t pages = pud_span() / psize();

	map_sparse(_metadata, SRC, pages, 8000);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, pud_span(), DST));
	EXPECT_COUNTS(.vmas = 1, .puds = 1);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(DST, pages, 8000));
}

/* Neighbouring ones go in one window, as far as one table holds them all. */
TEST_F(trace, tables_of_tables)
{
	const unsigned long boundary = 64 * pud_span() * (psize() / sizeof(uint64_t));
	const size_t len = 3 * pud_span(), pages = len / psize();
	const unsigned long src = boundary - pud_span(), dst = src + 8 * pud_span();

	map_sparse(_metadata, src, pages, 8000);
	ASSERT_EQ(dst, traced_move(_metadata, self, src, len, dst));
	EXPECT_COUNTS(.vmas = 1, .puds = 3);
	EXPECT_FLUSHES(2);
	EXPECT_OK(check_sparse(dst, pages, 8000));

	ASSERT_EQ(0, madvise(at(dst + pud_span()), pud_span(), MADV_DONTNEED));
	ASSERT_EQ(dst + 4 * pud_span(), traced_move(_metadata, self, dst, len,
						    dst + 4 * pud_span()));
	EXPECT_COUNTS(.vmas = 1, .puds = 3);
	EXPECT_FLUSHES(1);

	ASSERT_EQ(src, traced_move(_metadata, self, dst + 4 * pud_span(), len, src));
	EXPECT_COUNTS(.vmas = 1, .puds = 3);
	EXPECT_FLUSHES(2);
	EXPECT_OK(check_sparse(src, pud_span() / psize(), 8000));
}

/* Not aligned to the table of tables, the tables go one by one, into two. */
TEST_F(trace, tables_of_a_table_of_tables)
{
	const unsigned long dst = DST + 3 * pmd_span();
	const size_t pages = pud_span() / psize();

	map_sparse(_metadata, SRC, pages, 10 * table_pages());
	ASSERT_EQ(dst, traced_move(_metadata, self, SRC, pud_span(), dst));
	EXPECT_COUNTS(.vmas = 1,
		      .pmds = (pages + 10 * table_pages() - 1) /
			      (10 * table_pages()));
	EXPECT_FLUSHES(2);
	EXPECT_OK(check_sparse(dst, pages, 10 * table_pages()));
}

TEST_F(trace, table_of_tables_and_more)
{
	const size_t tail = pud_span() + 2 * pmd_span();
	const size_t len = tail + bytes(9);

	map_sparse(_metadata, SRC, len / psize(), 97);
	for (size_t page = tail / psize(); page < len / psize(); page++)
		stamp(SRC + bytes(page), page);
	guard_page(SRC + len);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, len, DST));
	EXPECT_COUNTS(.vmas = 1, .puds = 1, .pmds = 2, .ptes = 9);
	EXPECT_FLUSHES(3);
	EXPECT_OK(check_sparse(DST, len / psize(), 97));
}

/* Off by a page, no table fits. */
TEST_F(trace, not_congruent)
{
	const size_t pages = 3 * table_pages();

	map_sparse(_metadata, SRC, pages, 2);
	ASSERT_EQ(DST + psize(), traced_move(_metadata, self, SRC,
					     3 * pmd_span(), DST + psize()));
	EXPECT_COUNTS(.vmas = 1, .ptes = pages / 2);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(DST + psize(), pages, 2));
}

/* Maps nr tables from addr on, each of which has one page. */
static void map_tables(META, unsigned long addr, size_t nr)
{
	map_sparse(_metadata, addr, nr * table_pages(), table_pages());
}

TEST_F(trace, flushes_of_whole_tables)
{
	const size_t numbers[] = { 1, 2, 33, 200, 511 };

	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		const size_t nr = numbers[i], len = nr * pmd_span();

		map_tables(_metadata, SRC, nr);
		ASSERT_EQ(DST, traced_move(_metadata, self, SRC, len, DST));
		EXPECT_COUNTS(.vmas = 1, .pmds = nr);
		EXPECT_FLUSHES(1);
		EXPECT_OK(check_sparse(DST, len / psize(), table_pages()));
		munmap(at(DST), len);
	}
}

/* A window ends where a table of page tables does, at either place. */
TEST_F(trace, flushes_across_tables_of_tables)
{
	const unsigned long src = SRC + pud_span() - 3 * pmd_span();
	const unsigned long dst = DST + pud_span() - pmd_span();
	const size_t len = 8 * pmd_span();

	map_tables(_metadata, src, 8);
	ASSERT_EQ(dst, traced_move(_metadata, self, src, len, dst));
	EXPECT_COUNTS(.vmas = 1, .pmds = 8);
	EXPECT_FLUSHES(3);
	EXPECT_OK(check_sparse(dst, len / psize(), table_pages()));
}

/*
 * Off by a page all entries move singly, and all of the tables are detached,
 * which takes the one flush of a window: then no TLB can hold what moves.
 */
TEST_F(trace, flushes_of_single_entries)
{
	const size_t numbers[] = { 1, 2, 31, 32, 33, 64, 65, 100, 192 };

	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		const size_t nr = numbers[i], len = nr * pmd_span();
		const unsigned long to = DST + psize();

		map_tables(_metadata, SRC, nr);
		ASSERT_EQ(to, traced_move(_metadata, self, SRC, len, to));
		EXPECT_COUNTS(.vmas = 1, .ptes = nr);
		EXPECT_FLUSHES((nr + 31) / 32);
		EXPECT_OK(check_sparse(to, len / psize(), table_pages()));
		munmap(at(to), len);
	}
}

/*
 * The first and the last table are shared with neighbours and so not detached. Their
 * windows are flushed once more, for entries that left tables in use.
 */
TEST_F(trace, flushes_with_neighbours)
{
	const struct {
		size_t nr;
		unsigned long flushes;
	} cases[] = {
		{ 1, 1 }, { 2, 2 }, { 31, 2 },
		{ 32, 2 + 1 }, { 33, 2 + 2 }, { 64, 2 + 1 + 1 },
	};

#ifndef __x86_64__
	SKIP(return, "needs page tables that can be detached");
#endif
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const size_t len = cases[i].nr * pmd_span();
		const unsigned long src = SRC + bytes(256), to = DST + bytes(3);

		map_sparse(_metadata, src, len / psize(), 64);
		guard_page(src - psize());
		guard_page(src + len);
		ASSERT_EQ(to, traced_move(_metadata, self, src, len, to));
		EXPECT_COUNTS(.vmas = 1, .ptes = len / psize() / 64);
		EXPECT_FLUSHES(cases[i].flushes);
		EXPECT_OK(check_sparse(to, len / psize(), 64));
		munmap(at(to), len);
		munmap(at(src - psize()), len + bytes(2));
	}
}

/*
 * Neighbours at both ends, in the same tables: only those between move whole. A
 * mapping that is relocated moves in one window. Else head and tail have windows of
 * their own, as they need new tables.
 */
TEST_F(trace, head_and_tail_with_neighbours)
{
	const size_t head = 12, tail = 7;
	const size_t pages = head + 2 * table_pages() + tail;
	const unsigned long src = SRC + pmd_span() - bytes(head);
	const unsigned long dst = DST + pmd_span() - bytes(head);

	map_sparse(_metadata, src, pages, 1);
	guard_page(src - psize());
	guard_page(src + bytes(pages));
	ASSERT_EQ(dst, traced(_metadata, self, src, bytes(pages), bytes(pages),
			      FIXED | DONTUNMAP, dst));
	EXPECT_COUNTS(.vmas = 1, .pmds = 2, .ptes = head + tail);
	EXPECT_FLUSHES(3);
	EXPECT_RELOCATED(0);
	EXPECT_OK(check_sparse(dst, pages, 1));

	ASSERT_EQ(0, munmap(at(src), bytes(pages)));
	guard_page(dst - psize());
	guard_page(dst + bytes(pages));
	ASSERT_EQ(src, traced_move(_metadata, self, dst, bytes(pages), src));
	EXPECT_COUNTS(.vmas = 1, .pmds = 2, .ptes = head + tail);
	EXPECT_FLUSHES(1);
	EXPECT_RELOCATED(1);
	EXPECT_OK(check_sparse(src, pages, 1));
}

/* The same at the destination, where the tail finds a table. */
TEST_F(trace, head_and_tail_to_neighbours)
{
	const size_t head = 12, tail = 7;
	const size_t pages = head + 2 * table_pages() + tail;
	const unsigned long src = SRC + pmd_span() - bytes(head);
	const unsigned long dst = DST + pmd_span() - bytes(head);

	map_sparse(_metadata, src, pages, 1);
	guard_page(dst - psize());
	guard_page(dst + bytes(pages));
	ASSERT_EQ(dst, traced(_metadata, self, src, bytes(pages), bytes(pages),
			      FIXED | DONTUNMAP, dst));
	EXPECT_COUNTS(.vmas = 1, .pmds = 2, .ptes = head + tail);
	EXPECT_FLUSHES(2);
	EXPECT_RELOCATED(0);
	EXPECT_OK(check_sparse(dst, pages, 1));
	EXPECT_OK(check_guard_page(dst - psize()));
}

/* Alone in their tables, head and tail go with these. */
TEST_F(trace, head_and_tail_alone)
{
	const size_t head = 12, tail = 7;
	const size_t pages = head + 2 * table_pages() + tail;
	const unsigned long src = SRC + pmd_span() - bytes(head);
	const unsigned long dst = DST + pmd_span() - bytes(head);

	map_sparse(_metadata, src, pages, 1);
	ASSERT_EQ(dst, traced_move(_metadata, self, src, bytes(pages), dst));
	EXPECT_COUNTS(.vmas = 1, .pmds = 4);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(dst, pages, 1));
}

TEST_F(trace, part_of_a_mapping)
{
	map_sparse(_metadata, SRC, 3 * table_pages(), 1);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC + bytes(20), bytes(30),
				   DST));
	EXPECT_COUNTS(.vmas = 1, .ptes = 30);
	ASSERT_EQ(DST + pmd_span(), traced_move(_metadata, self,
						SRC + pmd_span(), pmd_span(),
						DST + pmd_span()));
	EXPECT_COUNTS(.vmas = 1, .pmds = 1);
}

TEST_F(trace, shared_memory)
{
	ASSERT_EQ(SRC, map_at(SRC, 2 * pmd_span(), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	stamp_range(SRC, 2 * pmd_span(), 1);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, 2 * pmd_span(), DST));
	EXPECT_COUNTS(.vmas = 1, .pmds = 2);
	ASSERT_EQ(SRC + bytes(4), traced_move(_metadata, self, DST,
					      2 * pmd_span(), SRC + bytes(4)));
	EXPECT_COUNTS(.vmas = 1, .ptes = 2 * table_pages());
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_stamps(SRC + bytes(4), 2 * pmd_span(), 1));
}

/* A second view of shared memory has no pages until they are used. */
TEST_F(trace, second_view)
{
	ASSERT_EQ(SRC, map_at(SRC, bytes(8), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	stamp_range(SRC, bytes(8), 1);
	ASSERT_EQ(DST, traced(_metadata, self, SRC, 0, bytes(8), FIXED, DST));
	EXPECT_COUNTS(.vmas = 1);
	EXPECT_FLUSHES(0);
	EXPECT_OK(check_stamps(DST, bytes(8), 1));
}

TEST_F(trace, dontunmap)
{
	map_sparse(_metadata, SRC, 2 * table_pages(), 4);
	ASSERT_EQ(DST, traced(_metadata, self, SRC, 2 * pmd_span(),
			      2 * pmd_span(), FIXED | DONTUNMAP, DST));
	EXPECT_COUNTS(.vmas = 1, .pmds = 2);
	EXPECT_OK(check_sparse(DST, 2 * table_pages(), 4));
	EXPECT_OK(check_zero(SRC, bytes(3)));
	ASSERT_EQ(SRC + bytes(1), traced(_metadata, self, DST, 2 * pmd_span(),
					 2 * pmd_span(), FIXED | DONTUNMAP,
					 SRC + bytes(1)));
	EXPECT_COUNTS(.vmas = 1, .ptes = table_pages() / 2);
	EXPECT_FLUSHES(1);
}

/* Without MREMAP_FIXED the address is a hint. */
TEST_F(trace, dontunmap_with_hint)
{
	map_sparse(_metadata, SRC, 3, 1);
	ASSERT_EQ(DST, traced(_metadata, self, SRC, bytes(3), bytes(3),
			      DONTUNMAP, DST));
	EXPECT_COUNTS(.vmas = 1, .ptes = 3);
}

TEST_F(trace, growing_and_shrinking_moves)
{
	map_sparse(_metadata, SRC, 40, 1);
	ASSERT_EQ(DST, traced(_metadata, self, SRC, bytes(40), bytes(60), FIXED,
			      DST));
	EXPECT_COUNTS(.vmas = 1, .ptes = 40);
	ASSERT_EQ(SRC, traced(_metadata, self, DST, bytes(60), bytes(10), FIXED,
			      SRC));
	EXPECT_COUNTS(.vmas = 1, .ptes = 10);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(SRC, 10, 1));
}

/*
 * A mapping that cannot grow in place moves to where its tables fit, whatever
 * its own offset in them is.
 */
TEST_F(trace, place_for_whole_tables)
{
	const size_t offsets[] = { 0, 1, 300, 511 };

	for (size_t i = 0; i < ARRAY_SIZE(offsets); i++) {
		const size_t pages = 4 * table_pages();
		const unsigned long src = SRC + bytes(offsets[i]);
		unsigned long to;

		map_sparse(_metadata, src, pages, 8);
		guard_page(src - psize());
		guard_page(src + bytes(pages));
		to = traced(_metadata, self, src, bytes(pages), bytes(pages + 9),
			    MREMAP_MAYMOVE, 0);
		ASSERT_EQ(0, error_of(to));
		EXPECT_EQ(0UL, (to - src) % pmd_span());
		if (offsets[i])
			EXPECT_COUNTS(.vmas = 1, .pmds = 3,
				      .ptes = table_pages() / 8);
		else
			EXPECT_COUNTS(.vmas = 1, .pmds = 4);
		EXPECT_FLUSHES(1);
		EXPECT_RELOCATED(1);
		EXPECT_OK(check_sparse(to, pages, 8));
		EXPECT_OK(check_zero(to + bytes(pages), bytes(9)));
		munmap(at(to), bytes(pages + 9));
		munmap(at(src - psize()), bytes(pages + 2));
	}
}

TEST_F(trace, place_for_a_table_of_tables)
{
	const size_t pages = pud_span() / psize();
	unsigned long to;

	map_sparse(_metadata, SRC, pages, 9000);
	guard_page(SRC + pud_span());
	to = traced(_metadata, self, SRC, pud_span(), pud_span() + psize(),
		    MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	EXPECT_EQ(0UL, (to - SRC) % pud_span());
	EXPECT_COUNTS(.vmas = 1, .puds = 1);
	EXPECT_OK(check_sparse(to, pages, 9000));
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
static void rehearse(META, SELF)
{
	traced(_metadata, self, SRC, psize(), psize(), 0, 0);
}

/*
 * There is a place for whole tables, but only where mappings go when nothing else
 * is free, near the stack. That is not what the kernel looks for a place for.
 */
TEST_F(trace, place_in_the_usual_area)
{
	const size_t pages = 2 * table_pages();
	const size_t len = bytes(pages + 1);
	struct filler biggest, above;
	unsigned long hole;

	map_sparse(_metadata, SRC, pages, 8);
	guard_page(SRC + bytes(pages));
	rehearse(_metadata, self);
	biggest = fill_address_space(&above);
	if (above.len < 64 * MB)
		SKIP(return, "needs room above the usual area");
	hole = make_hole(_metadata, biggest, len);
	ASSERT_EQ(0, munmap(at(above.start + 16 * MB), 32 * MB));
	ASSERT_EQ(hole, traced(_metadata, self, SRC, bytes(pages), len,
			       MREMAP_MAYMOVE, 0));
	EXPECT_COUNTS(.vmas = 1, .ptes = pages / 8);
	EXPECT_OK(check_sparse(hole, pages, 8));
}

/* There is no place for a table of tables, but for the tables that it is of. */
TEST_F(trace, place_for_tables_of_a_table)
{
	const size_t pages = pud_span() / psize();
	const size_t room = pud_span() + 8 * pmd_span();
	struct filler biggest, above;
	unsigned long hole, to;

	map_sparse(_metadata, SRC, pages, 9000);
	guard_page(SRC + pud_span());
	rehearse(_metadata, self);
	biggest = fill_address_space(&above);
	hole = make_hole(_metadata, biggest, room);
	to = traced(_metadata, self, SRC, pud_span(), pud_span() + psize(),
		    MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	EXPECT_LE(hole, to);
	EXPECT_GE(hole + room, to + pud_span() + psize());
	EXPECT_EQ(0UL, (to - SRC) % pmd_span());
	EXPECT_COUNTS(.vmas = 1, .pmds = pages / 9000 + 1);
	EXPECT_OK(check_sparse(to, pages, 9000));
}

/* ---- huge pages ---- */

#define HUGE_PAGES	4

static bool map_huge(void)
{
	const size_t len = HUGE_PAGES * pmd_span();

	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	if (map_anon(SRC, len) != SRC || madvise(at(SRC), len, MADV_HUGEPAGE))
		return false;
	stamp_range(SRC, len, 0);
	return smaps_kb(SRC, "AnonHugePages") == (long)(len / KB);
}

TEST_F(trace, huge_pages)
{
	if (!map_huge())
		SKIP(return, "needs transparent huge pages");
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC,
				   HUGE_PAGES * pmd_span(), DST));
	EXPECT_COUNTS(.vmas = 1, .huge = HUGE_PAGES);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_stamps(DST, HUGE_PAGES * pmd_span(), 0));
}

/* They stay huge when the kernel looks for a place. */
TEST_F(trace, place_for_huge_pages)
{
	const size_t len = HUGE_PAGES * pmd_span();
	unsigned long to;

	if (!map_huge())
		SKIP(return, "needs transparent huge pages");
	guard_page(SRC + len);
	to = traced(_metadata, self, SRC, len, len + psize(), MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	EXPECT_COUNTS(.vmas = 1, .huge = HUGE_PAGES);
	EXPECT_FLUSHES(1);
	EXPECT_EQ((long)(len / KB), smaps_kb(to, "AnonHugePages"));
	EXPECT_OK(check_stamps(to, len, 0));
}

/* One of them is in small pages by now, and one of those is gone. */
TEST_F(trace, huge_pages_and_a_table)
{
	if (!map_huge())
		SKIP(return, "needs transparent huge pages");
	ASSERT_EQ(0, madvise(at(SRC + 2 * pmd_span() + bytes(5)), psize(),
			     MADV_DONTNEED));
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC,
				   HUGE_PAGES * pmd_span(), DST));
	EXPECT_COUNTS(.vmas = 1, .huge = HUGE_PAGES - 1, .pmds = 1);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_stamps(DST, 2 * pmd_span(), 0));
}

TEST_F(trace, huge_pages_not_congruent)
{
	if (!map_huge())
		SKIP(return, "needs transparent huge pages");
	ASSERT_EQ(DST + psize(), traced_move(_metadata, self, SRC,
					     HUGE_PAGES * pmd_span(),
					     DST + psize()));
	EXPECT_COUNTS(.vmas = 1, .ptes = HUGE_PAGES * table_pages());
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_stamps(DST + psize(), HUGE_PAGES * pmd_span(), 0));
}

/* The boundary splits one of them; with neighbours, that goes by its pages. */
TEST_F(trace, huge_pages_cut)
{
	const size_t cut = pmd_span() + bytes(100);
	const size_t len = HUGE_PAGES * pmd_span() - cut;

	if (!map_huge())
		SKIP(return, "needs transparent huge pages");
	ASSERT_EQ(DST + cut, traced_move(_metadata, self, SRC + cut, len,
					 DST + cut));
	EXPECT_COUNTS(.vmas = 1, .huge = HUGE_PAGES - 2,
		      .ptes = table_pages() - 100);
	EXPECT_FLUSHES(1);
	EXPECT_RELOCATED(1);
	EXPECT_OK(check_stamps(DST + cut, len, cut / psize()));
}

TEST_F(trace, hugetlb)
{
	const size_t huge = default_huge_page_size();

	if (meminfo_kb("HugePages_Free") < 2)
		SKIP(return, "needs free huge pages (vm.nr_hugepages)");
	ASSERT_EQ(SRC, map_at(SRC, 2 * huge, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1,
			      0));
	stamp_range(SRC, 2 * huge, 1);
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, 2 * huge, DST));
	/* They have a mover of their own, which does not count. */
	EXPECT_COUNTS(.vmas = 1);
	EXPECT_FLUSHES(0);
	EXPECT_OK(check_stamps(DST, 2 * huge, 1));
}

/* ---- swap ---- */

static size_t swap_out(unsigned long addr, size_t len)
{
	size_t swapped = 0;

	for (int try = 0; try < 20 && swapped < len / psize(); try++) {
		madvise(at(addr), len, MADV_PAGEOUT);
		swapped = count_pagemap(addr, len, PM_SWAP);
	}
	return swapped;
}

/* What is swapped out is an entry, too, but in no TLB. */
TEST_F(trace, swapped_pages)
{
	if (meminfo_kb("SwapFree") <= 0)
		SKIP(return, "needs swap space");
	map_sparse(_metadata, SRC, 40, 1);
	if (swap_out(SRC, bytes(40)) < 40)
		SKIP(return, "needs pages that can be swapped out");
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, bytes(40), DST));
	EXPECT_COUNTS(.vmas = 1, .ptes = 40);
	EXPECT_FLUSHES(0);
	/* One of them is back. */
	EXPECT_OK(check_stamp(DST + bytes(7), 7));
	ASSERT_EQ(SRC, traced_move(_metadata, self, DST, bytes(40), SRC));
	EXPECT_COUNTS(.vmas = 1, .ptes = 40);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(SRC, 40, 1));
}

TEST_F(trace, swapped_tables)
{
	if (meminfo_kb("SwapFree") <= 0)
		SKIP(return, "needs swap space");
	map_sparse(_metadata, SRC, 2 * table_pages(), 1);
	if (!swap_out(SRC, 2 * pmd_span()))
		SKIP(return, "needs pages that can be swapped out");
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, 2 * pmd_span(), DST));
	EXPECT_COUNTS(.vmas = 1, .pmds = 2);
	EXPECT_FLUSHES(1);
	EXPECT_OK(check_sparse(DST, 2 * table_pages(), 1));
}

/* ---- several mappings in one call ---- */

/*
 * Every other one is read-only; there is a gap before the last one. No window goes
 * beyond a mapping.
 */
static void map_several(META, size_t len)
{
	map_sparse(_metadata, SRC, 5 * len / psize(), 1);
	ASSERT_EQ(0, mprotect(at(SRC + len), len, PROT_READ));
	ASSERT_EQ(0, munmap(at(SRC + 3 * len), len));
}

TEST_F(trace, several_mappings_by_pages)
{
	map_several(_metadata, bytes(8));
	ASSERT_EQ(DST + psize(), traced_move(_metadata, self, SRC, bytes(40),
					     DST + psize()));
	EXPECT_COUNTS(.vmas = 4, .ptes = 32);
	EXPECT_FLUSHES(4);
	EXPECT_OK(check_sparse(DST + psize(), 24, 1));
}

TEST_F(trace, several_mappings_by_tables)
{
	map_several(_metadata, 2 * pmd_span());
	ASSERT_EQ(DST, traced_move(_metadata, self, SRC, 10 * pmd_span(), DST));
	EXPECT_COUNTS(.vmas = 4, .pmds = 8);
	EXPECT_FLUSHES(4);
	EXPECT_OK(check_sparse(DST, 6 * table_pages(), 1));
}

TEST_F(trace, several_mappings_dontunmap)
{
	map_several(_metadata, bytes(8));
	ASSERT_EQ(DST, traced(_metadata, self, SRC, bytes(40), bytes(40),
			      FIXED | DONTUNMAP, DST));
	EXPECT_COUNTS(.vmas = 4, .ptes = 32);
	EXPECT_FLUSHES(4);
	EXPECT_OK(check_zero(SRC, bytes(24)));
}

/* ---- in place ---- */

/* What does not move has nothing to count. */
static const char *check_nothing_moved(SELF)
{
	const char *why = check_counts(self, (struct counts) { 0 });

	if (!why && self->event.flushes)
		why = complain("%lu flushes, not 0", self->event.flushes);
	return why;
}

TEST_F(trace, in_place)
{
	map_sparse(_metadata, SRC, 40, 1);
	ASSERT_EQ(SRC, traced(_metadata, self, SRC, bytes(40), bytes(60), 0, 0));
	EXPECT_OK(check_nothing_moved(self));
	ASSERT_EQ(SRC, traced(_metadata, self, SRC, bytes(60), bytes(80),
			      MREMAP_MAYMOVE, 0));
	EXPECT_OK(check_nothing_moved(self));
	ASSERT_EQ(SRC, traced(_metadata, self, SRC, bytes(80), bytes(80), 0, 0));
	EXPECT_OK(check_nothing_moved(self));
	ASSERT_EQ(SRC, traced(_metadata, self, SRC, bytes(80), bytes(10), 0, 0));
	EXPECT_OK(check_nothing_moved(self));
	ASSERT_EQ(SRC, traced(_metadata, self, SRC, bytes(10), bytes(5),
			      MREMAP_MAYMOVE, 0));
	EXPECT_OK(check_nothing_moved(self));
	EXPECT_OK(check_sparse(SRC, 5, 1));
}

/* Lengths are told as they were given, not rounded. */
TEST_F(trace, odd_lengths)
{
	map_sparse(_metadata, SRC, 3, 1);
	ASSERT_EQ(DST, traced(_metadata, self, SRC, bytes(2) + 1,
			      bytes(2) + 1234, FIXED, DST));
	EXPECT_COUNTS(.vmas = 1, .ptes = 3);
	ASSERT_EQ(DST, traced(_metadata, self, DST, bytes(3) - 1, 1, 0, 0));
	EXPECT_OK(check_nothing_moved(self));
}

/* ---- calls that fail ---- */

TEST_F(trace, refused_calls)
{
	const struct {
		unsigned long addr;
		size_t old_len, new_len;
		unsigned long flags, new_addr;
		int error;
	} calls[] = {
		/* Before anything is looked at. */
		{ SRC, bytes(4), bytes(4), MREMAP_FIXED, DST, EINVAL },
		{ SRC, bytes(4), bytes(4), MREMAP_DONTUNMAP, 0, EINVAL },
		{ SRC + 1, bytes(4), bytes(4), MREMAP_MAYMOVE, 0, EINVAL },
		{ SRC, bytes(4), 0, MREMAP_MAYMOVE, 0, EINVAL },
		{ SRC, bytes(4), bytes(5), FIXED | DONTUNMAP, DST, EINVAL },
		/* After the destination was looked at. */
		{ SRC, bytes(4), bytes(4), FIXED, DST + 1, EINVAL },
		{ SRC, bytes(4), bytes(4), FIXED, SRC + bytes(2), EINVAL },
		{ SRC, bytes(4), bytes(4), FIXED, -bytes(4), EINVAL },
		/* After the source was. */
		{ DST, bytes(4), bytes(4), FIXED, SRC, EFAULT },
		{ DST, bytes(4), bytes(8), MREMAP_MAYMOVE, 0, EFAULT },
		{ SRC, bytes(16), bytes(24), MREMAP_MAYMOVE, 0, EFAULT },
		{ SRC, bytes(8), bytes(9), 0, 0, ENOMEM },
		{ SRC, 0, bytes(4), MREMAP_MAYMOVE, 0, EINVAL },
	};

	map_sparse(_metadata, SRC, 8, 1);
	guard_page(SRC + bytes(8));
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		EXPECT_EQ(calls[i].error,
			  error_of(traced(_metadata, self, calls[i].addr,
					  calls[i].old_len, calls[i].new_len,
					  calls[i].flags, calls[i].new_addr)))
			TH_LOG("call %zu", i);
		EXPECT_OK(check_nothing_moved(self));
	}
	EXPECT_OK(check_sparse(SRC, 8, 1));
}

/* Flags that nobody knows are told as a number. */
TEST_F(trace, unknown_flags)
{
	map_sparse(_metadata, SRC, 1, 1);
	forget_events(self);
	ASSERT_EQ(EINVAL, error_of(do_mremap(SRC, psize(), psize(), 0x40, 0)));
	ASSERT_EQ(1, read_events(self));
	ASSERT_TRUE(parse_event(self->line, &self->event))
		TH_LOG("%s", self->line);
	EXPECT_STREQ("0x40", self->event.flags);
	EXPECT_EQ(-EINVAL, self->event.error);
	EXPECT_OK(check_nothing_moved(self));
}

TEST_F(trace, sealed_source)
{
	map_sparse(_metadata, SRC, 2, 1);
	if (seal(SRC, bytes(2)))
		SKIP(return, "needs mseal");
	EXPECT_EQ(EPERM, error_of(traced_move(_metadata, self, SRC, bytes(2),
					      DST)));
	EXPECT_OK(check_nothing_moved(self));
}

/* ---- who else calls ---- */

/* Each process's calls are its own; every call makes one event. */
TEST_F(trace, one_event_for_each_call)
{
	int status;
	pid_t child;

	map_sparse(_metadata, SRC, 4, 1);
	forget_events(self);
	child = fork();
	ASSERT_LE(0, child);
	if (!child)
		_exit(move_to(SRC, bytes(4), bytes(4), DST) != DST);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_EQ(0, status);
	EXPECT_EQ(0, read_events(self));
	for (int i = 0; i < 5; i++) {
		ASSERT_EQ(DST, move_to(SRC, bytes(4), bytes(4), DST));
		ASSERT_EQ(SRC, move_to(DST, bytes(4), bytes(4), SRC));
	}
	EXPECT_EQ(10, read_events(self));
}

TEST_HARNESS_MAIN
