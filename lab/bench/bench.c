// SPDX-License-Identifier: GPL-2.0
/*
 * What mremap() costs, case by case. Runs in a guest where one instruction takes
 * one nanosecond of the clock (QEMU's -icount), so that a call's nanoseconds
 * are its instructions. Two calls of one case then differ only by what else the
 * kernel had to do, a timer interrupt or a refill of a cache: the cheapest of
 * several calls counts. Contents are checked after every call, outside of what
 * is measured.
 *
 * usage: bench [--quick] [--count] [--threads] [--only TEXT] [--mark]
 *   --quick  fewer sizes and calls
 *   --count  flushes only, with a thread that is busy on the other processor;
 *	      time means nothing then
 *   --threads only what threads that fault and one that moves do to each other
 *   --only   cases that have TEXT in what they are called: /NAME/SIZE/
 *   --mark   few calls, each between two "prefetchnta" for lab/bench/profile.c
 *
 * Output, one line for each result, the rest is progress:
 *   result CASE SIZE INSTRUCTIONS LOCAL REMOTE RECEIVED OWN HUGE_BEFORE HUGE_AFTER CALLS
 *   step NUMBER SIZE INSTRUCTIONS FLUSHES MOVED
 *   round NUMBER MOVES NANOSECONDS FAULTS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../run/stamp.h"
#include "arch.h"

#define KB	(1UL << 10)
#define MB	(1UL << 20)
#define GB	(1UL << 30)
#define PAGE	(4 * KB)
#define HUGE	(2 * MB)

/*
 * Up to DENSE every page is touched, above it one in each 2 MB, and above LOOSE
 * one in each GB. Huge pages are of memory up to HUGE_DENSE, the rest is the huge
 * page of zeroes.
 */
#define DENSE		(256 * MB)
#define LOOSE		(4 * GB)
#define HUGE_DENSE	GB

/*
 * Where things go that are moved to a place of their own, nothing else being
 * near. Up to DENSE both places are in one GB, as in a small process, so that
 * they share the table of PMDs; above it they share the table of PUDs.
 */
#define AREA		((char *)0x100000000000)
#define NEAR		(GB / 2)
#define FAR		(64 * GB)

#define MAX_CALLS	200

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof(*(a)))

enum counter { LOCAL_ALL, LOCAL_ONE, REMOTE, RECEIVED, NR_VMSTAT, OWN = NR_VMSTAT, NR_COUNTERS };

static const char *const counter_names[] = {
	[LOCAL_ALL] = "nr_tlb_local_flush_all",
	[LOCAL_ONE] = "nr_tlb_local_flush_one",
	[REMOTE] = "nr_tlb_remote_flush",
	[RECEIVED] = "nr_tlb_remote_flush_received",
};

struct reading {
	long instructions;
	long flushes[NR_COUNTERS];
	long huge_before, huge_after;
};

static int quick, count_only, threads_only, mark;
static const char *only;
static long pair_cost;	/* of two readings of the counter with nothing between */

static void die(const char *format, ...)
{
	int error = errno;
	va_list args;

	va_start(args, format);
	printf("bench: ");
	vprintf(format, args);
	if (error)
		printf(" (%s)", strerror(error));
	printf("\n");
	exit(1);
}

/* Of the clock, whose nanoseconds are instructions. */
#define TIMER_PERIOD	4000000

/*
 * The timer interrupts every 4 ms. Return when that will not happen soon, so that
 * it does not hit what takes less than 2 ms and comes now.
 */
static void away_from_interrupts(void)
{
	static uint64_t last;
	uint64_t before = ticks(), now, since = (before - last) % TIMER_PERIOD;

	if (count_only || (last && since > 20000 && since < TIMER_PERIOD / 2))
		return;
	for (;; before = now) {
		now = ticks();
		if (now - before > 500)
			break;
	}
	last = now;
}

/* A tick has to be an instruction. An interrupt may come between: look again. */
static void check_clock(void)
{
	uint64_t start, spent = 0;

	for (int i = 0; i < 20; i++) {
		away_from_interrupts();
		start = ticks();
		pair_cost = ticks() - start;
		start = ticks();
		spend_a_million();
		spent = ticks() - start - pair_cost;
		if (pair_cost < 9 + CLOCK_STEP && spent + CLOCK_STEP > 1000000 &&
		    spent < 1000010 + CLOCK_STEP)
			return;
	}
	die("a million instructions took %lu ns: is this -icount?", (unsigned long)spent);
}

/*
 * Counters of the kernel. /proc/vmstat has them for all processors, but counts
 * a flush of N single pages N times. The tracepoint fires once for any flush;
 * looking at it costs instructions, so this is for --count alone.
 */
static int flush_event = -1;

#define TLB_FLUSH "/sys/kernel/tracing/events/tlb/tlb_flush/id"

static void watch_flushes(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
	};
	FILE *file = fopen(TLB_FLUSH, "r");
	unsigned long id;

	if (!file || fscanf(file, "%lu", &id) != 1)
		die(TLB_FLUSH);
	fclose(file);
	attr.config = id;
	flush_event = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	/* Own flushes, as TLB_LOCAL_SHOOTDOWN and TLB_LOCAL_MM_SHOOTDOWN have it. */
	if (flush_event < 0 || ioctl(flush_event, PERF_EVENT_IOC_SET_FILTER,
				     "reason == 2 || reason == 3"))
		die("perf_event_open");
}

static long flushes_seen(void)
{
	uint64_t count;

	if (flush_event < 0)
		return 0;
	if (read(flush_event, &count, sizeof(count)) != sizeof(count))
		die("the count of flushes");
	return count;
}

static void read_counters(long counters[NR_COUNTERS])
{
	static char text[1 << 16];
	static int fd = -1;
	ssize_t length;

	if (fd < 0)
		fd = open("/proc/vmstat", O_RDONLY);
	length = pread(fd, text, sizeof(text) - 1, 0);
	if (length <= 0)
		die("/proc/vmstat");
	text[length] = 0;
	for (int i = 0; i < NR_VMSTAT; i++) {
		char *at = text;

		while ((at = strstr(at, counter_names[i])) &&
		       at[strlen(counter_names[i])] != ' ')
			at++;
		/* Only x86 counts them. */
		counters[i] = at ? atol(at + strlen(counter_names[i])) : 0;
	}
	counters[OWN] = flushes_seen();
}

/* How many huge PMDs the VMAs in a range have. */
static long huge_pmds(const char *start, size_t size)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long from, to, kb, sum = 0;
	char line[512];
	int inside = 0;

	if (!file)
		die("/proc/self/smaps");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			inside = from >= (uintptr_t)start && to <= (uintptr_t)start + size;
		else if (inside && sscanf(line, "AnonHugePages: %lu", &kb) == 1)
			sum += kb;
	}
	fclose(file);
	return sum / (HUGE / KB);
}

/* The measured system call. */

static struct reading now;	/* of the call that is under way */
static uint64_t started;
static long counters_before[NR_COUNTERS];

static inline void begin(void)
{
	read_counters(counters_before);
	away_from_interrupts();
	if (mark)
		mark_begin();
	started = ticks();
}

static inline void end(void)
{
	uint64_t stopped = ticks();
	long after[NR_COUNTERS];

	if (mark)
		mark_end();
	read_counters(after);
	now.instructions = stopped - started - pair_cost;
	for (int i = 0; i < NR_COUNTERS; i++)
		now.flushes[i] = after[i] - counters_before[i];
}

static inline long raw_mremap(char *addr, size_t old, size_t new, long flags, char *to)
{
	return raw_call(SYS_mremap, (long)addr, old, new, flags, (long)to);
}

static char *measured_mremap(char *addr, size_t old, size_t new, int flags, char *to)
{
	long ret;

	begin();
	ret = raw_mremap(addr, old, new, flags, to);
	end();
	if (ret < 0 && ret > -4096) {
		errno = -ret;
		return MAP_FAILED;
	}
	return (char *)ret;
}

/* Memory. */

static char *map(char *at, size_t size, int prot)
{
	char *got = mmap(at, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
			 (at ? MAP_FIXED_NOREPLACE : 0), -1, 0);

	if (got == MAP_FAILED || (at && got != at))
		die("mmap %zu bytes at %p", size, at);
	return got;
}

static void unmap(char *at, size_t size)
{
	if (munmap(at, size))
		die("munmap");
}

/* How much has contents, every how many bytes, and how much there. */
struct pattern {
	size_t size, stride, length;
};

static struct pattern pattern_of(size_t size, int huge)
{
	struct pattern all = { size, size, size };
	struct pattern some = { huge && size > HUGE_DENSE ? HUGE_DENSE : size, HUGE, PAGE };
	struct pattern few = { size, GB, PAGE };

	return size <= DENSE ? all : size <= LOOSE ? some : few;
}

static void fill(char *at, size_t size, int huge)
{
	struct pattern pattern = pattern_of(size, huge);

	if (madvise(at, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die("madvise");
	if (size <= DENSE && madvise(at, size, MADV_POPULATE_WRITE))
		die("populate %zu bytes", size);
	if (pattern.size < size && madvise(at + pattern.size, size - pattern.size,
					   MADV_POPULATE_READ))
		die("populate %zu bytes for reading", size - pattern.size);
	for (size_t pos = 0; pos < pattern.size; pos += pattern.stride)
		stamp(at, pos, pos + pattern.length, 1);
}

static void check(char *at, size_t size, int huge, const char *name)
{
	struct pattern pattern = pattern_of(size, huge);

	for (size_t pos = 0; pos < pattern.size; pos += pattern.stride)
		if (stamp_wrong(at, pos, pos + pattern.length, 1))
			die("%s: wrong contents", name);
}

/* The old place must be unmapped, as far as a few looks can tell. */
static void check_gone(char *at, size_t size, const char *name)
{
	size_t step = size <= 16 * PAGE ? PAGE : size / 16 & ~(PAGE - 1);

	for (size_t pos = 0; pos < size; pos += step)
		if (!madvise(at + pos, PAGE, MADV_NORMAL) || errno != ENOMEM)
			die("%s: the source is still mapped", name);
}

static void check_zero(char *at, size_t size, const char *name)
{
	const size_t places[] = { 0, size / 2 & ~7UL, size - 8 };

	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		if (*(volatile uint64_t *)(at + places[i]))
			die("%s: not zero at %zu", name, places[i]);
}

/* The cases. */

struct bench;

struct range {
	char *at;
	size_t size;
};

/* What a case has mapped before each of its calls. */
struct setup {
	const struct bench *bench;
	size_t size;
	char *src;
	int parts;		/* calls that one move takes */
	struct range beside[2];	/* what else is mapped */
};

struct bench {
	const char *name;
	void (*map)(struct setup *setup);
	void (*call)(struct setup *setup);	/* and bring everything back */
	size_t src_offset, dst_offset;		/* from multiples of 1 GB */
	int flags;
	int huge;
	int grown;				/* by moving, before it is measured */
	int sharing;				/* of a file's mapping: MAP_SHARED or _PRIVATE */
	int lasting;				/* mapped once for all calls, as it is dear */
	size_t growth;
	size_t from, to;			/* sizes */
	size_t tried[4];			/* with --quick */
};

static void unmap_setup(struct setup *setup)
{
	unmap(setup->src, setup->size);
	for (size_t i = 0; i < ARRAY_SIZE(setup->beside); i++)
		if (setup->beside[i].size)
			unmap(setup->beside[i].at, setup->beside[i].size);
}

static void note_huge(struct setup *setup, long *where, char *at, size_t size)
{
	*where = setup->bench->huge ? huge_pmds(at, size) : 0;
}

/* A source with everything above it mapped and everything below it free. */
static void map_blocked(struct setup *setup)
{
	size_t room = setup->size + 2 * HUGE;
	char *hole = map(NULL, room, PROT_NONE), *block;

	setup->src = (char *)(((uintptr_t)hole + HUGE - 1) & ~(HUGE - 1)) +
		     setup->bench->src_offset;
	block = setup->src + setup->size;
	setup->beside[0] = (struct range){ block, hole + room - block };
	unmap(hole, block - hole);
	map(setup->src, setup->size, PROT_READ | PROT_WRITE);
	fill(setup->src, setup->size, setup->bench->huge);
}

/* The kernel has to find a place for the longer mapping. */
static void call_grow(struct setup *setup)
{
	const char *name = setup->bench->name;
	size_t size = setup->size, new_size = (size + size / 2 + PAGE) & ~(PAGE - 1);
	char *src = setup->src, *dst;

	note_huge(setup, &now.huge_before, src, size);
	dst = measured_mremap(src, size, new_size, MREMAP_MAYMOVE, NULL);
	if (dst == MAP_FAILED)
		die("%s", name);
	if (dst == src)
		die("%s: it grew in place", name);
	note_huge(setup, &now.huge_after, dst, new_size);
	check(dst, size, setup->bench->huge, name);
	check_zero(dst + size, new_size - size, name);
	check_gone(src, size, name);
	if (mremap(dst, new_size, size, MREMAP_MAYMOVE | MREMAP_FIXED, src) != src)
		die("%s: back", name);
}

/* A page in use from here on, unless there is something already. What is to be unmapped? */
static struct range map_in_the_way(char *at)
{
	char *got = mmap(at, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			 -1, 0);

	if (got == MAP_FAILED && errno == EEXIST)
		return (struct range){ at, 0 };
	if (got != at || madvise(at, PAGE, MADV_POPULATE_READ))
		die("a page in the way at %p", at);
	return (struct range){ at, PAGE };
}

/*
 * A block as malloc() gets it: free space below it, and right above it something that
 * is in use, so that they share a page table. What it has grown by moving before it is
 * measured, it has from a size of two thirds; then there is something above it again.
 * Nothing is used twice. Without an offset the block ends where a page table does once
 * it has the size, if it keeps that offset when it moves.
 */
static void call_grow_block(struct setup *setup)
{
	const struct bench *bench = setup->bench;
	size_t size = setup->size, new_size = (size + size / 2 + PAGE) & ~(PAGE - 1);
	size_t first = bench->grown ? size / 3 * 2 & ~(PAGE - 1) : size;
	size_t room = size + 3 * HUGE;
	char *hole = map(NULL, room, PROT_NONE), *block, *above, *dst;
	struct range in_the_way = { 0 };

	block = (char *)(((uintptr_t)hole + HUGE - 1) & ~(HUGE - 1)) +
		(bench->src_offset ?: -size & (HUGE - 1));
	above = block + first;
	unmap(hole, above - hole);
	unmap(above, PAGE);
	map_in_the_way(above);
	map(block, first, PROT_READ | PROT_WRITE);
	fill(block, first, 0);
	if (bench->grown) {
		dst = mremap(block, first, size, MREMAP_MAYMOVE);
		if (dst == MAP_FAILED || dst == block)
			die("%s: the growth before", bench->name);
		block = dst;
		fill(block, size, 0);
		in_the_way = map_in_the_way(block + size);
	}

	dst = measured_mremap(block, size, new_size, MREMAP_MAYMOVE, NULL);
	if (dst == MAP_FAILED || dst == block)
		die("%s: it did not move", bench->name);
	check(dst, size, 0, bench->name);
	check_zero(dst + size, new_size - size, bench->name);
	check_gone(block, size, bench->name);
	unmap(dst, new_size);
	unmap(above, hole + room - above);
	if (in_the_way.size)
		unmap(in_the_way.at, in_the_way.size);
}

static char *destination(const struct setup *setup)
{
	return AREA + (setup->size <= DENSE ? NEAR : FAR) + setup->bench->dst_offset;
}

static void map_alone(struct setup *setup)
{
	setup->src = AREA + setup->bench->src_offset;
	map(setup->src, setup->size, PROT_READ | PROT_WRITE);
	fill(setup->src, setup->size, setup->bench->huge);
}

/* A file in memory. Of a private mapping the pages are those of the page cache. */
static void map_file(struct setup *setup)
{
	int sharing = setup->bench->sharing, fd = memfd_create("bench", 0);
	size_t size = setup->size;
	char *file;

	if (fd < 0 || ftruncate(fd, size))
		die("a file of %zu bytes", size);
	file = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (file == MAP_FAILED)
		die("mapping a file");
	stamp(file, 0, size, 1);
	unmap(file, size);
	setup->src = mmap(AREA, size, PROT_READ | PROT_WRITE, sharing | MAP_FIXED_NOREPLACE,
			  fd, 0);
	if (setup->src != AREA || close(fd) ||
	    madvise(AREA, size, sharing == MAP_SHARED ? MADV_POPULATE_WRITE :
							MADV_POPULATE_READ))
		die("mapping a file again");
}

/*
 * A page among many mappings, and its destination among others. Every second one is
 * read-only, and the page's own neighbours keep the page tables.
 */
#define MANY	60000UL

static void map_among(struct setup *setup)
{
	char *const places[] = { AREA + setup->bench->src_offset, destination(setup) };
	size_t size = MANY / 2 * PAGE;

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		char *at = places[i] - MANY / 4 * PAGE;

		setup->beside[i] = (struct range){ map(at, size, PROT_READ | PROT_WRITE), size };
		for (size_t pos = 0; pos < size; pos += 2 * PAGE)
			if (mprotect(at + pos, PAGE, PROT_READ))
				die("mprotect");
		*(volatile char *)(places[i] + PAGE) = 1;
		unmap(places[i], PAGE);
	}
	map_alone(setup);
}

/* The tables that the call needs are there, and others need them after it. */
static void map_with_neighbours(struct setup *setup)
{
	map_alone(setup);
	for (size_t i = 0; i < ARRAY_SIZE(setup->beside); i++) {
		struct range *range = &setup->beside[i];

		range->at = (i ? destination(setup) : setup->src) + MB;
		range->size = PAGE;
		fill(map(range->at, PAGE, PROT_READ | PROT_WRITE), PAGE, 0);
	}
}

static void call_move(struct setup *setup)
{
	const struct bench *bench = setup->bench;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | bench->flags;
	char *src = setup->src, *dst = destination(setup);
	size_t size = setup->size;

	note_huge(setup, &now.huge_before, src, size);
	if (measured_mremap(src, size, size, flags, dst) != dst)
		die("%s", bench->name);
	note_huge(setup, &now.huge_after, dst, size);
	check(dst, size, bench->huge, bench->name);
	if (bench->flags & MREMAP_DONTUNMAP) {
		check_zero(src, size, bench->name);
		unmap(src, size);
	} else {
		check_gone(src, size, bench->name);
	}
	if (mremap(dst, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, src) != src)
		die("%s: back", bench->name);
}

static void call_grow_in_place(struct setup *setup)
{
	const struct bench *bench = setup->bench;
	size_t size = setup->size, growth = bench->growth;

	if (measured_mremap(setup->src, size, size + growth, 0, NULL) != setup->src)
		die("%s", bench->name);
	check(setup->src, size, 0, bench->name);
	check_zero(setup->src + size, growth, bench->name);
	unmap(setup->src + size, growth);
}

static void call_shrink(struct setup *setup)
{
	const char *name = setup->bench->name;
	size_t size = setup->size;

	if (measured_mremap(setup->src, size, size - PAGE, 0, NULL) != setup->src)
		die("%s", name);
	check(setup->src, size - PAGE, 0, name);
	check_gone(setup->src + size - PAGE, PAGE, name);
	if (mremap(setup->src, size - PAGE, size, 0) != setup->src)
		die("%s: back", name);
	stamp(setup->src, size - PAGE, size, 1);
}

/* Three VMAs, which differ so that they are not merged. */
static void map_three(struct setup *setup)
{
	map_alone(setup);
	if (mprotect(setup->src + setup->size / 3, setup->size / 3, PROT_READ))
		die("mprotect");
}

static void call_move_if_able(struct setup *setup)
{
	const struct bench *bench = setup->bench;
	char *dst = destination(setup);

	if (raw_mremap(setup->src, setup->size, setup->size,
		       MREMAP_MAYMOVE | MREMAP_FIXED, dst) == -EFAULT) {
		now.instructions = -1;
		return;
	}
	if (mremap(dst, setup->size, setup->size, MREMAP_MAYMOVE | MREMAP_FIXED,
		   setup->src) != setup->src)
		die("%s: back", bench->name);
	call_move(setup);
}

/* Many small VMAs side by side, none of which is like the next one. */
#define PARTS	64

static void map_parts(struct setup *setup)
{
	size_t part = setup->size / PARTS;

	map_alone(setup);
	for (size_t pos = 0; pos < setup->size; pos += 2 * part)
		if (mprotect(setup->src + pos, part, PROT_READ))
			die("mprotect");
	setup->parts = PARTS;
}

static long move_parts(const struct setup *setup, char *from, char *to)
{
	size_t part = setup->size / setup->parts;
	long ret = 0;

	for (size_t pos = 0; pos < setup->size && ret >= 0; pos += part)
		ret = raw_mremap(from + pos, part, part, MREMAP_MAYMOVE | MREMAP_FIXED, to + pos);
	return ret;
}

/* One call is to do it, on a kernel where that is possible. */
static void map_parts_as_one(struct setup *setup)
{
	char *dst = destination(setup);
	long ret;

	map_parts(setup);
	setup->parts = 1;
	ret = move_parts(setup, setup->src, dst);
	if (ret == -EFAULT)
		setup->parts = PARTS;
	else if (ret < 0 || move_parts(setup, dst, setup->src) < 0)
		die("%s: there and back", setup->bench->name);
}

static void call_move_parts(struct setup *setup)
{
	const char *name = setup->bench->name;
	char *src = setup->src, *dst = destination(setup);
	long ret;

	begin();
	ret = move_parts(setup, src, dst);
	end();
	if (ret < 0)
		die("%s: %ld", name, ret);
	check(dst, setup->size, 0, name);
	check_gone(src, setup->size, name);
	if (move_parts(setup, dst, src) < 0)
		die("%s: back", name);
}

#ifndef MREMAP_OVERLAP
#define MREMAP_OVERLAP 32
#endif

/* Up by a page, by way of a place that is mapped for that. */
static long shift_by_hand(char *from, size_t size, char *to)
{
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	char *staging = mmap(NULL, size, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long ret;

	if (staging == MAP_FAILED)
		return -errno;
	ret = raw_mremap(from, size, size, flags, staging);
	return ret < 0 ? ret : raw_mremap(staging, size, size, flags, to);
}

static long shift_in_one(char *from, size_t size, char *to)
{
	return raw_mremap(from, size, size,
			  MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_OVERLAP, to);
}

static void measure_shift(struct setup *setup, long (*shift)(char *, size_t, char *))
{
	const char *name = setup->bench->name;
	char *src = setup->src, *dst = src + PAGE;
	size_t size = setup->size;
	long ret;

	begin();
	ret = shift(src, size, dst);
	end();
	if (ret != (long)dst)
		die("%s: %ld", name, ret);
	check(dst, size, 0, name);
	check_gone(src, PAGE, name);
	if (shift(dst, size, src) != (long)src)
		die("%s: back", name);
}

static void call_shift_by_hand(struct setup *setup)
{
	measure_shift(setup, shift_by_hand);
}

/* Where it is refused, nothing has changed. */
static void call_shift(struct setup *setup)
{
	char *src = setup->src;
	size_t size = setup->size;
	int able = shift_in_one(src, size, src + PAGE) >= 0;

	if (able && shift_in_one(src + PAGE, size, src) < 0)
		die("%s: back", setup->bench->name);
	measure_shift(setup, able ? shift_in_one : shift_by_hand);
}

static void map_nothing(struct setup *setup)
{
	setup->src = AREA;
	map(setup->src, setup->size, PROT_NONE);
}

static void call_exec(struct setup *setup)
{
	static char *const argv[] = { "/bin/nop", NULL }, *const envp[] = { NULL };
	int status = -1;
	pid_t child;

	begin();
	child = fork();
	if (!child) {
		execve(argv[0], argv, envp);
		_exit(127);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		status = -1;
	end();
	if (status)
		die("%s: status %d", setup->bench->name, status);
}

static const struct bench benches[] = {
	/* Growth, the place being the kernel's choice. */
	{ "grow", map_blocked, call_grow,
	  .from = 4 * KB, .to = 4 * GB, .tried = { 64 * MB, 256 * MB } },
	{ "grow-odd", map_blocked, call_grow, .src_offset = 5 * PAGE,
	  .from = 4 * KB, .to = 4 * GB, .tried = { 256 * MB } },
	{ "grow-huge", map_blocked, call_grow, .huge = 1,
	  .from = 2 * MB, .to = 4 * GB, .tried = { 256 * MB } },

	/* Small blocks: the first growth by moving, and one that follows another. */
	{ "grow-first", map_nothing, call_grow_block, .src_offset = 5 * PAGE,
	  .from = 128 * KB, .to = 4 * MB, .tried = { 256 * KB, 512 * KB, MB, 2 * MB } },
	{ "grow-again", map_nothing, call_grow_block, .grown = 1,
	  .from = 128 * KB, .to = 4 * MB, .tried = { 256 * KB, 512 * KB, MB, 2 * MB } },
	{ "grow-again-near", map_nothing, call_grow_block, .grown = 1, .src_offset = 5 * PAGE,
	  .from = 128 * KB, .to = 4 * MB, .tried = { 256 * KB, 512 * KB, MB } },

	/* Moves to a place that the caller gives. */
	{ "move", map_alone, call_move,
	  .from = 4 * KB, .to = 4 * GB, .tried = { 4 * KB, 256 * MB, GB } },
	{ "move-page", map_with_neighbours, call_move,
	  .from = 4 * KB, .to = 4 * KB, .tried = { 4 * KB } },
	{ "move-odd", map_alone, call_move,
	  .src_offset = 37 * PAGE, .dst_offset = 37 * PAGE,
	  .from = 4 * KB, .to = 4 * GB, .tried = { 256 * MB } },
	{ "move-huge", map_alone, call_move, .huge = 1,
	  .from = 2 * MB, .to = 4 * GB, .tried = { 256 * MB } },
	{ "move-pages", map_alone, call_move, .dst_offset = PAGE,
	  .from = 4 * KB, .to = 4 * GB, .tried = { 64 * MB } },
	{ "move-keep", map_alone, call_move, .dst_offset = PAGE, .flags = MREMAP_DONTUNMAP,
	  .from = 4 * KB, .to = 4 * GB, .tried = { 64 * MB } },
	{ "move-three", map_three, call_move_if_able,
	  .from = 6 * MB, .to = 6 * MB, .tried = { 6 * MB } },
	{ "move-64", map_parts_as_one, call_move_parts,
	  .from = MB, .to = MB, .tried = { MB } },
	{ "move-64-calls", map_parts, call_move_parts,
	  .from = MB, .to = MB, .tried = { MB } },
	{ "shift", map_alone, call_shift, .src_offset = 37 * PAGE,
	  .from = 4 * PAGE, .to = 256 * MB, .tried = { 64 * KB, 2 * MB, 64 * MB } },
	{ "shift-by-hand", map_alone, call_shift_by_hand, .src_offset = 37 * PAGE,
	  .from = 4 * PAGE, .to = 256 * MB, .tried = { 64 * KB, 2 * MB, 64 * MB } },
	{ "move-shared", map_file, call_move, .sharing = MAP_SHARED,
	  .from = 256 * MB, .to = 256 * MB, .tried = { 256 * MB } },
	{ "move-cached", map_file, call_move, .sharing = MAP_PRIVATE,
	  .from = 256 * MB, .to = 256 * MB, .tried = { 256 * MB } },
	{ "move-page-among", map_among, call_move, .lasting = 1,
	  .src_offset = 128 * MB, .dst_offset = 128 * MB,
	  .from = 4 * KB, .to = 4 * KB, .tried = { 4 * KB } },

	/* 64 tables in much address space: of PMDs, whole; of pages; of one page each. */
	{ "sparse", map_alone, call_move,
	  .from = 64 * GB, .to = 64 * GB, .tried = { 64 * GB } },
	{ "sparse-odd", map_alone, call_move, .dst_offset = HUGE,
	  .from = 64 * GB, .to = 64 * GB, .tried = { 64 * GB } },
	{ "sparse-pages", map_alone, call_move, .dst_offset = PAGE,
	  .from = 64 * GB, .to = 64 * GB, .tried = { 64 * GB } },

	/* What must not become dearer. */
	{ "grow-in-place-page", map_alone, call_grow_in_place, .growth = PAGE,
	  .from = 64 * KB, .to = 64 * KB, .tried = { 64 * KB } },
	{ "grow-in-place-64M", map_alone, call_grow_in_place, .growth = 64 * MB,
	  .from = 64 * KB, .to = 64 * KB, .tried = { 64 * KB } },
	{ "shrink-page", map_alone, call_shrink,
	  .from = 64 * KB, .to = 64 * KB, .tried = { 64 * KB } },
	{ "exec", map_nothing, call_exec,
	  .from = 4 * KB, .to = 4 * KB, .tried = { 4 * KB } },
};

static long local(const struct reading *reading)
{
	return reading->flushes[LOCAL_ALL] + reading->flushes[LOCAL_ONE];
}

static void print_result(const char *name, size_t size, const struct reading *reading,
			 int calls)
{
	const long *flushes = reading->flushes;

	printf("result %s %zu %ld %ld %ld %ld %ld %ld %ld %d\n", name, size,
	       reading->instructions, local(reading), flushes[REMOTE], flushes[RECEIVED],
	       flushes[OWN], reading->huge_before, reading->huge_after, calls);
	fflush(stdout);
}

static const char *called(const char *name, size_t size)
{
	static char text[64];
	int shift = size >= GB ? 30 : size >= MB ? 20 : 10;

	snprintf(text, sizeof(text), "/%s/%zu%c/", name, size >> shift,
		 size >= GB ? 'G' : size >= MB ? 'M' : 'K');
	return text;
}

static int is_wanted(const char *name, size_t size)
{
	return !only || strstr(called(name, size), only);
}

static int by_instructions(const void *a, const void *b)
{
	const struct reading *one = a, *two = b;

	return (one->instructions > two->instructions) - (one->instructions < two->instructions);
}

static int by_remote(const void *a, const void *b)
{
	const struct reading *one = a, *two = b;

	return (one->flushes[REMOTE] > two->flushes[REMOTE]) -
	       (one->flushes[REMOTE] < two->flushes[REMOTE]);
}

static int is_small(const struct bench *bench, size_t size)
{
	struct pattern pattern = pattern_of(size, bench->huge);

	return !bench->huge && pattern.size / pattern.stride * pattern.length <= 8 * MB;
}

/*
 * The two cheapest calls agree: more of them would hardly be cheaper. In a short
 * call the state of the kernel's caches of objects weighs more. They get into every
 * state now and then, so that many calls find the cheapest.
 */
static int has_settled(const struct bench *bench, size_t size, struct reading *readings,
		       int calls)
{
	long cheapest;
	int least = 10;

	qsort(readings, calls, sizeof(*readings), by_instructions);
	cheapest = readings[0].instructions;
	if (is_small(bench, size) && cheapest < 1000000)
		least = MAX_CALLS;
	else if (size >= 64 * MB && (bench->huge || cheapest > 1000000))
		least = 3;
	return calls >= least && (readings[1].instructions - cheapest) * 2000 <= cheapest;
}

static void run(const struct bench *bench, size_t size)
{
	static struct reading readings[MAX_CALLS];
	struct setup setup = { .bench = bench, .size = size };
	int limit = mark ? 5 : count_only ? 3 : MAX_CALLS, calls = 0;
	struct reading *best = readings;

	if (!is_wanted(bench->name, size))
		return;
	printf("%s\n", called(bench->name, size));
	fflush(stdout);
	bench->map(&setup);
	do {
		/* Huge pages that were split cannot be restored by moving them back. */
		if (calls && !bench->lasting &&
		    (bench->huge || (is_small(bench, size) && calls % 10 == 0))) {
			unmap_setup(&setup);
			bench->map(&setup);
		}
		memset(&now, 0, sizeof(now));
		bench->call(&setup);
		readings[calls++] = now;
		if (mark)
			printf("marked %s %ld\n", called(bench->name, size), now.instructions);
	} while (calls < limit && now.instructions >= 0 &&
		 !has_settled(bench, size, readings, calls));
	unmap_setup(&setup);
	if (now.instructions < 0)	/* this kernel cannot do it */
		return;

	qsort(readings, calls, sizeof(*readings), count_only ? by_remote : by_instructions);
	if (count_only)		/* the other thread may have been off its processor */
		best += calls - 1;
	print_result(bench->name, size, best, calls);
}

static void run_all(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(benches); i++) {
		const struct bench *bench = &benches[i];

		if (quick || count_only) {
			for (size_t j = 0; j < ARRAY_SIZE(bench->tried) && bench->tried[j]; j++)
				run(bench, bench->tried[j]);
			continue;
		}
		for (size_t size = bench->from; size <= bench->to; size *= 2)
			run(bench, size);
	}
}

/* realloc() by half, as often as it takes to get from 256 KB to 256 MB. */

#define STEPS		17
#define FIRST_SIZE	(256 * KB)

struct step {
	size_t size;
	int moved;
	struct reading best;
};

static size_t whole_pages(size_t size)
{
	return size & ~(PAGE - 1);
}

static void grow_by_steps(struct step steps[STEPS], int first)
{
	size_t size = FIRST_SIZE;
	char *buf = malloc(size);

	if (!buf)
		die("malloc");
	stamp(buf, 0, size, 1);
	for (int i = 0; i < STEPS; i++) {
		size_t want = size + size / 2;
		uintptr_t old = (uintptr_t)buf;

		begin();
		buf = realloc(buf, want);
		end();
		if (!buf)
			die("realloc");
		if (stamp_wrong(buf, 0, whole_pages(size), 1))
			die("realloc: wrong contents");
		if (mark)
			printf("marked /realloc/step %d/ %ld\n", i + 1, now.instructions);
		stamp(buf, whole_pages(size), whole_pages(want), 1);
		size = want;
		steps[i].size = size;
		steps[i].moved = old != (uintptr_t)buf;
		if (first || now.instructions < steps[i].best.instructions)
			steps[i].best = now;
	}
	free(buf);
}

static void run_realloc(void)
{
	struct step steps[STEPS];
	struct reading sum = { 0 };
	int calls = mark || count_only ? 1 : quick ? 2 : 5;

	for (int i = 0; i < calls; i++) {
		printf("realloc, growth %d of %d\n", i + 1, calls);
		fflush(stdout);
		grow_by_steps(steps, !i);
	}
	for (int i = 0; i < STEPS; i++) {
		const struct reading *best = &steps[i].best;

		printf("step %d %zu %ld %ld %d\n", i + 1, steps[i].size,
		       best->instructions, local(best), steps[i].moved);
		sum.instructions += best->instructions;
		for (int j = 0; j < NR_COUNTERS; j++)
			sum.flushes[j] += best->flushes[j];
	}
	print_result("realloc", steps[STEPS - 1].size, &sum, calls);
}

/* The other processor. */

static volatile int busy;

static void *keep_busy(void *unused)
{
	static volatile char elsewhere[64 * KB];
	cpu_set_t other;

	CPU_ZERO(&other);
	CPU_SET(1, &other);
	if (sched_setaffinity(0, sizeof(other), &other))
		die("no second processor");
	for (size_t i = 0;; i += PAGE) {
		elsewhere[i % sizeof(elsewhere)]++;
		busy = 1;
		/* QEMU runs the processors in turns: leave the first one the time. */
		relax();
	}
	return unused;
}

static void start_other(void)
{
	cpu_set_t first;
	pthread_t thread;

	CPU_ZERO(&first);
	CPU_SET(0, &first);
	if (sched_setaffinity(0, sizeof(first), &first) ||
	    pthread_create(&thread, NULL, keep_busy, NULL))
		die("second thread");
	while (!busy)
		sched_yield();
}

/*
 * Threads that fault in pages of their own, while one moves memory there and back.
 * How long do the moves take, and how many faults are served meanwhile?
 */
#define FAULTERS	8
#define FAULT_PAGES	64
#define MOVED		(16 * MB)

static volatile long faults[FAULTERS][8];	/* one in each line of the cache */

static void *keep_faulting(void *count)
{
	char *own = map(NULL, FAULT_PAGES * PAGE, PROT_READ | PROT_WRITE);

	for (;;) {
		for (size_t pos = 0; pos < FAULT_PAGES * PAGE; pos += PAGE) {
			*(volatile char *)(own + pos) = 1;
			++*(volatile long *)count;
		}
		if (madvise(own, FAULT_PAGES * PAGE, MADV_DONTNEED))
			die("madvise");
	}
	return NULL;
}

static long all_faults(void)
{
	long sum = 0;

	for (size_t i = 0; i < FAULTERS; i++)
		sum += faults[i][0];
	return sum;
}

static uint64_t nanoseconds(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000UL + time.tv_nsec;
}

static void run_round(int round, int moves)
{
	char *places[] = { AREA, AREA + NEAR };
	long faults_before;
	pthread_t thread;
	uint64_t start;

	fill(map(AREA, MOVED, PROT_READ | PROT_WRITE), MOVED, 0);
	for (size_t i = 0; i < FAULTERS; i++)
		if (pthread_create(&thread, NULL, keep_faulting, (void *)&faults[i][0]))
			die("thread %zu", i);
	for (size_t i = 0; i < FAULTERS; i++)
		while (faults[i][0] < 10 * FAULT_PAGES)
			usleep(1000);
	faults_before = all_faults();
	start = nanoseconds();
	for (int i = 0; i < moves; i++)
		if (raw_mremap(places[i % 2], MOVED, MOVED, MREMAP_MAYMOVE | MREMAP_FIXED,
			       places[(i + 1) % 2]) < 0)
			die("a move among faults");
	printf("round %d %d %lu %ld\n", round, moves,
	       (unsigned long)(nanoseconds() - start), all_faults() - faults_before);
	check(places[moves % 2], MOVED, 0, "threads");
}

/* How threads are scheduled depends on how they began: each round has new ones. */
static void run_threads(void)
{
	int rounds = quick ? 24 : 60;

	for (int round = 1; round <= rounds; round++) {
		int status = -1;
		pid_t child;

		fflush(stdout);
		child = fork();
		if (!child) {
			run_round(round, 20);
			exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			die("round %d: status %d", round, status);
	}
}

static void set(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) != (ssize_t)strlen(value))
		die("%s", path);
	close(fd);
}

#define THP "/sys/kernel/mm/transparent_hugepage/"

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--quick"))
			quick = 1;
		else if (!strcmp(argv[i], "--count"))
			count_only = 1;
		else if (!strcmp(argv[i], "--threads"))
			threads_only = 1;
		else if (!strcmp(argv[i], "--mark"))
			mark = quick = 1;
		else if (!strcmp(argv[i], "--only") && i + 1 < argc)
			only = argv[++i];
		else
			die("unknown argument %s", argv[i]);
	}

	/* Only what a case asks for is huge, and nothing becomes it later. */
	set(THP "enabled", "madvise");
	set(THP "defrag", "madvise");
	set(THP "khugepaged/scan_sleep_millisecs", "100000000");
	/* Else free() would raise it and the next block would not be mapped. */
	mallopt(M_MMAP_THRESHOLD, 128 * KB);

	if (threads_only) {
		if (is_wanted("threads", MOVED))
			run_threads();
		return 0;
	}
	if (count_only) {
		start_other();
		watch_flushes();
	} else {
		check_clock();
	}
	run_all();
	if (is_wanted("realloc", 256 * MB))
		run_realloc();
	return 0;
}
