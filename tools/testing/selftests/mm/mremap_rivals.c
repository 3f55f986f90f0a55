// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) against rivals for the same memory: a table of them, each with several
 * kinds of memory and several kinds of moves.
 *
 * The mover, which is the test itself, moves the memory to another place and back.
 * The rival, a thread or a process, acts on both places again and again. The writer,
 * a thread on a processor of its own, goes after the memory and counts in some of its
 * pages. Every page has a stamp. Whoever comes first, no stamp and no count may be
 * lost, unless that is what the rival is for.
 *
 * A contest ends after some acts, and moves go on for as long; mostly without waiting
 * for an act to end, so that they meet in the middle of it. The rival has to get its way
 * with each kind of memory at least once. Contests are held at full speed, and with
 * CONFIG_DEBUG_MREMAP_DELAY also with each move held up for a while at every point
 * where a rival could do harm. mremap_race looks at single such moments.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define HOME	(WINDOW + GB)
#define AWAY	(WINDOW + 4 * GB)
#define SIDE	(WINDOW + 8 * GB)

/* For the slowest of kernels, with everything else that it has to do. */
#define TIMEOUT	300

/* Acts of a rival; and if it does not get its way, up to so many. */
#define ACTS		5
#define SLOW_ACTS	3
#define MOST_ACTS	100

#define MAX_PAGES	1024
#define CPU_OF_WRITER	1

/* ---- memory, moves, rivals ---- */

enum {
	ANON = 1, HUGE = 2, SHMEM = 4, DISK = 8, PRIVATE = 16, HUGETLB = 32,
	TEXT = 64,
};

#define FILES	(SHMEM | DISK | PRIVATE | HUGETLB)
#define SMALL	(ANON | SHMEM | DISK | PRIVATE)

struct kind {
	const char *name;
	unsigned int bit;
	int prot;
	int flags;
};

#define READ_WRITE	(PROT_READ | PROT_WRITE)

static const struct kind kinds[] = {
	{ "anonymous memory", ANON, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS },
	{ "huge pages", HUGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS },
	{ "shared memory", SHMEM, READ_WRITE, MAP_SHARED },
	{ "a file on a disk", DISK, READ_WRITE, MAP_SHARED },
	{ "private pages of a file", PRIVATE, READ_WRITE, MAP_PRIVATE },
	{ "hugetlb", HUGETLB, READ_WRITE, MAP_SHARED },
	{ "code", TEXT, PROT_READ | PROT_EXEC, MAP_PRIVATE },
};

enum {
	PLAIN = 1,
	KEEPS = 2,	/* the old place, empty */
	GROWS = 4,
	SEVERAL = 8,	/* mappings */
	SHIFTS = 16,	/* by less than the length */
};

struct move {
	const char *name;
	unsigned int how;
	unsigned int kinds;
	size_t pages;
	size_t offset;	/* of the other place, in pages */
};

#define GROWTH	8	/* pages */

static const struct move moves[] = {
	{ "entries", PLAIN, SMALL | TEXT, 16, 5 },
	{ "entries, kept", KEEPS, SMALL | TEXT, 16, 5 },
	{ "entries, grown", GROWS, SMALL, 16, 5 },
	{ "entries of several mappings", SEVERAL, SMALL, 18, 5 },
	{ "entries, shifted", SHIFTS, SMALL, 16, 3 },
	{ "a table", PLAIN, ANON | SHMEM | TEXT, 512, 0 },
	{ "the entries of a table", PLAIN, ANON | SHMEM, 512, 5 },
	{ "huge entries", PLAIN, HUGE, 1024, 0 },
	{ "huge entries, split", PLAIN, HUGE, 1024, 5 },
	{ "huge pages", PLAIN, HUGETLB, 2, 3 },
};

struct contest;

struct rival {
	/* Once: it may act, or what it needs is missing. */
	const char *(*prepare)(struct contest *contest);
	/* Whether it got its way. */
	bool (*act)(struct contest *contest);
	/* For each contest: when the memory is there, and when all stand still. */
	const char *(*begin)(struct contest *contest);
	const char *(*end)(struct contest *contest);
	/* How it writes to a place: the number of sectors that it has written. */
	size_t (*means)(struct contest *contest, int place);
	const char *needs;	/* a file, without which it cannot act, either */
	unsigned int kinds;
	unsigned int but;	/* moves that it does not go with */
	bool is_process;
	bool empties;		/* pages read as zero, or as they were */
	bool alike;		/* pages without a count have one stamp */
	bool takes;		/* pages away for a while */
	bool alone;		/* there is no writer */
	bool slow;
	bool large;		/* a page table at least */
	bool starves;		/* the mover, who is not killed, but may have to try again */
};

#define SECTORS	64

/* In memory that the processes share, and that never moves. */
struct contest {
	const struct rival *rival;
	unsigned int named;	/* contests that there are for it, until now */
	const struct kind *kind;
	const struct move *move;
	size_t unit;		/* bytes of a page of this kind */
	size_t pages;
	size_t len;
	unsigned long places[2];
	volatile int now;	/* at which of them it is */
	unsigned int moved;
	int fd;			/* of the file, if there is one */
	int direct;		/* the same, past the page cache */
	pid_t mover;

	/* The rival. */
	volatile bool over;
	volatile unsigned int acts;
	volatile unsigned int successes;
	char complaint[256];
	pthread_t thread;
	pid_t child;
	long before;		/* of a counter in /proc/vmstat */

	/* The writer. */
	pthread_t writer;
	volatile bool written;	/* enough */
	volatile int place;
	volatile size_t page;
	volatile uint64_t counts[MAX_PAGES];

	/* What a rival has written into the pages: for certain, or perhaps. */
	int disk;
	int past_cache;
	uint64_t generation;
	uint64_t done[SECTORS];
	uint64_t tried[SECTORS];
};

static unsigned long page_at(const struct contest *contest, int place, size_t page)
{
	return contest->places[place] + page * contest->unit;
}

static void complain_of(struct contest *contest, const char *why)
{
	if (why && !*contest->complaint)
		snprintf(contest->complaint, sizeof(contest->complaint), "%s", why);
}

static const char *complaint_of(struct contest *contest)
{
	return *contest->complaint ? contest->complaint : NULL;
}

static void nap(void)
{
	usleep(200);
}

/* ---- moves that are held up ---- */

#define DELAY		"3000"

/* Before the TLB is flushed there may be time for a page to be freed, and used again. */
#define LONG_DELAY	"20000"

static bool hold_up_moves(const char *moved)
{
	return change_setting(DELAY_DIR "planned", DELAY) &&
	       change_setting(DELAY_DIR "detached", DELAY) &&
	       change_setting(DELAY_DIR "detach_flushed", DELAY) &&
	       change_setting(DELAY_DIR "moved", moved);
}

/* ---- places where there may be nothing ---- */

static __thread sigjmp_buf missed;
static __thread bool may_miss;

static void on_fault(int number)
{
	if (may_miss)
		siglongjmp(missed, 1);
	/* It comes again. */
	signal(number, SIG_DFL);
}

/* ---- what is in a page ---- */

/* A word of a page that is no part of its stamp: the page, and a count. */
#define COUNTER	2

static size_t stride_of_counters(const struct contest *contest)
{
	return contest->pages < 8 ? 1 : contest->pages / 8;
}

static bool has_counter(const struct contest *contest, size_t page)
{
	return !contest->rival->alone && contest->kind->prot & PROT_WRITE &&
	       page % stride_of_counters(contest) == 0;
}

static volatile uint64_t *counter_at(const struct contest *contest, int place, size_t page)
{
	return (volatile uint64_t *)at(page_at(contest, place, page)) + COUNTER;
}

static uint64_t tag_of(size_t page)
{
	return (page + 1ULL) << 32;
}

static unsigned long id_of(const struct contest *contest, size_t page)
{
	return contest->rival->alike && !has_counter(contest, page) ? 9999 : 1 + page;
}

static const char *check_page(const struct contest *contest, int place, size_t page)
{
	const unsigned long addr = page_at(contest, place, page);

	if (contest->rival->empties && !check_zero(addr, psize()))
		return NULL;
	return check_stamp(addr, id_of(contest, page));
}

static const char *check_pages(const struct contest *contest, int place)
{
	const char *why = NULL;

	for (size_t page = 0; !why && page < contest->pages; page++)
		why = check_page(contest, place, page);
	return why;
}

/* NULL, too, if there is nothing. */
static const char *check_if_there(const struct contest *contest, int place, bool *there)
{
	const char *why = NULL;

	*there = false;
	if (!sigsetjmp(missed, 1)) {
		may_miss = true;
		why = check_pages(contest, place);
		*there = true;
	}
	may_miss = false;
	return why;
}

static const char *check_counts(const struct contest *contest, int place)
{
	for (size_t page = 0; page < contest->pages; page++) {
		const uint64_t got = *counter_at(contest, place, page);

		if (!has_counter(contest, page) ||
		    got == contest->counts[page] || (contest->rival->empties && !got))
			continue;
		return complain("page %zu: count %#llx, not %#llx", page,
				(unsigned long long)got,
				(unsigned long long)contest->counts[page]);
	}
	return NULL;
}

/* ---- the writer ---- */

static void next_page(struct contest *contest)
{
	contest->page += stride_of_counters(contest);
	if (contest->page >= contest->pages)
		contest->page = 0;
}

/* Nothing of the contest writes such a word where the writer looks. */
static bool is_of_others(const struct contest *contest, uint64_t found)
{
	return found && (found < tag_of(0) || found >> 32 > contest->pages);
}

/* It is at the other place, or lost, which will be seen at the end. */
static void go_after_memory(struct contest *contest)
{
	contest->place = !contest->place;
	if (!contest->place)
		next_page(contest);
}

/* Blindly, beside the count, and only then with a look at what is there. */
static bool count_in_page(struct contest *contest)
{
	volatile uint64_t *count = &contest->counts[contest->page];
	volatile uint64_t *words = counter_at(contest, contest->place, contest->page);
	uint64_t found = *count;

	words[1] = tag_of(0);
	if (__atomic_compare_exchange_n(words, &found, *count + 1, false,
					__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		++*count;
		next_page(contest);
		return true;
	}
	if (found >> 32 == contest->page + 1)
		complain_of(contest, "the writer does not find what it wrote");
	if (is_of_others(contest, found))
		complain_of(contest, "the writer finds what others have written");
	return false;
}

/* It never sleeps, and is not to keep others waiting for its processor. */
static void *run_writer(void *arg)
{
	struct contest *contest = arg;
	const struct sched_param none = { 0 };

	stay_on_processor(CPU_OF_WRITER);
	sched_setscheduler(0, SCHED_IDLE, &none);
	if (sigsetjmp(missed, 1))
		go_after_memory(contest);
	may_miss = true;
	while (!contest->written)
		if (!count_in_page(contest))
			go_after_memory(contest);
	return NULL;
}

/* ---- the rival ---- */

static void *act_until_over(void *arg)
{
	struct contest *contest = arg;

	while (!contest->over) {
		contest->successes += contest->rival->act(contest);
		contest->acts++;
		nap();
	}
	return NULL;
}

/* Before the memory is mapped, of which it is to have no copy. */
static void start_process(META, struct contest *contest)
{
	const pid_t child = fork();

	ASSERT_LE(0, child);
	if (child) {
		contest->child = child;
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!contest->acts)	/* the mover says when */
		nap();
	act_until_over(contest);
	_exit(0);
}

static void start_threads(META, struct contest *contest)
{
	if (contest->child)
		contest->acts = 1;
	else
		ASSERT_EQ(0, pthread_create(&contest->thread, NULL, act_until_over, contest));
	if (has_counter(contest, 0))
		ASSERT_EQ(0, pthread_create(&contest->writer, NULL, run_writer, contest));
}

static void end_threads(META, struct contest *contest)
{
	int status = 0;

	contest->over = true;
	if (contest->child)
		waitpid(contest->child, &status, 0);
	else
		pthread_join(contest->thread, NULL);
	EXPECT_EQ(0, status)
		TH_LOG("the rival is gone");
	contest->written = true;
	if (has_counter(contest, 0))
		pthread_join(contest->writer, NULL);
}

/* While another process does something, without which the test is over. */
static void nap_meanwhile(struct contest *contest)
{
	if (contest->child && waitpid(contest->child, NULL, WNOHANG)) {
		fputs("# the other process is gone\n", stderr);
		abort();
	}
	nap();
}

/* It has done something since. */
static void wait_for_rival(struct contest *contest)
{
	const unsigned int acts = contest->acts;

	while (contest->acts == acts)
		nap_meanwhile(contest);
}

/* ---- a contest ---- */

static size_t hugetlb_unit(void)
{
	return meminfo_kb("Hugepagesize") * KB;
}

static const char *open_memory(struct contest *contest)
{
	contest->fd = -1;
	switch (contest->kind->bit) {
	case DISK:
		return open_on_disk(contest->len, &contest->fd,
				    &contest->direct) ? NULL : NEEDS_DISK;
	case SHMEM:
	case PRIVATE:
	case TEXT:
		contest->fd = memfd_create("memory", 0);
		break;
	case HUGETLB:
		if (meminfo_kb("HugePages_Free") < 6)
			return "needs six huge pages";
		contest->fd = memfd_create("memory", MFD_HUGETLB);
		break;
	default:
		return NULL;
	}
	return contest->fd >= 0 && !ftruncate(contest->fd, contest->len) ?
	       NULL : "needs memfd_create()";
}

static void fill_memory(struct contest *contest)
{
	for (size_t page = 0; page < contest->pages; page++) {
		stamp(page_at(contest, 0, page), id_of(contest, page));
		if (!has_counter(contest, page))
			continue;
		contest->counts[page] = tag_of(page);
		*counter_at(contest, 0, page) = tag_of(page);
	}
}

/* "b8 imm32 c3": a function that returns the number of its page. */
#define CODE	1024

static void fill_code(META, struct contest *contest)
{
	ASSERT_EQ(HOME, map_at(HOME, contest->len, READ_WRITE, MAP_SHARED, contest->fd, 0));
	fill_memory(contest);
	for (uint32_t page = 0; page < contest->pages; page++) {
		unsigned char *code = at(page_at(contest, 0, page) + CODE);

		code[0] = 0xb8;
		memcpy(code + 1, &page, sizeof(page));
		code[5] = 0xc3;
	}
	munmap(at(HOME), contest->len);
}

static void map_memory(META, struct contest *contest)
{
	const size_t third = contest->len / 3;

	if (contest->kind->bit == TEXT)
		fill_code(_metadata, contest);
	ASSERT_EQ(HOME, map_at(HOME, contest->len, contest->kind->prot,
			       contest->kind->flags, contest->fd, 0));
	if (contest->kind->bit == HUGE)
		madvise(at(HOME), contest->len, MADV_HUGEPAGE);
	if (contest->move->how == SEVERAL)
		madvise(at(HOME + third), third, MADV_RANDOM);
	if (contest->kind->bit != TEXT)
		fill_memory(contest);
}

/* So that there are some for the rival to take. What is in them may change meanwhile. */
static void touch_pages_if_there(struct contest *contest)
{
	bool there;

	check_if_there(contest, contest->now, &there);
}

static size_t len_at(const struct contest *contest, int place)
{
	return contest->len + (place && contest->move->how == GROWS ? bytes(GROWTH) : 0);
}

static unsigned long move_once(struct contest *contest)
{
	const unsigned int how = contest->move->how;
	const int now = contest->now;
	const unsigned long to = contest->places[!now];
	const unsigned long got =
		do_mremap(contest->places[now], len_at(contest, now),
			  len_at(contest, !now),
			  how == KEEPS ? FIXED | DONTUNMAP : how == SHIFTS ? OVERLAP : FIXED, to);

	contest->now ^= got == to;
	contest->moved++;
	return got;
}

static void unmap_old_place(const struct contest *contest)
{
	if (contest->move->how == KEEPS)
		munmap(at(contest->places[!contest->now]), contest->len);
}

/* Its group may have no memory left, for a while. */
static bool may_starve(const struct contest *contest)
{
	return contest->rival->starves && contest->acts < MOST_ACTS;
}

static void move_memory(META, struct contest *contest)
{
	const unsigned long to = contest->places[!contest->now];
	unsigned long got;

	while (got = move_once(contest), error_of(got) == ENOMEM && may_starve(contest))
		nap();
	ASSERT_EQ(to, got);
	/* It is to be met in the middle of what it does. */
	if (contest->moved % 4)
		nap();
	else
		wait_for_rival(contest);
	unmap_old_place(contest);
	if (contest->rival->empties)
		touch_pages_if_there(contest);
	else if (!contest->rival->takes)
		EXPECT_OK(check_pages(contest, contest->now));
}

static bool another_move(const struct contest *contest)
{
	return contest->acts < (contest->rival->slow ? SLOW_ACTS : ACTS) ||
	       (!contest->successes && contest->acts < MOST_ACTS);
}

static void start_contest(struct contest *contest, const struct kind *kind,
			  const struct move *move)
{
	const size_t unit = kind->bit == HUGETLB ? hugetlb_unit() : psize();
	const unsigned long base = move->how == SHIFTS ? HOME : AWAY;

	*contest = (struct contest) {
		.rival = contest->rival,
		.named = contest->named,
		.mover = contest->mover,
		.disk = contest->disk,
		.past_cache = contest->past_cache,
		.kind = kind,
		.move = move,
		.unit = unit,
		.pages = move->pages,
		.len = move->pages * unit,
		.places = { HOME, base + move->offset * unit },
	};
}

static void end_contest(META, struct contest *contest)
{
	const struct rival *rival = contest->rival;

	end_threads(_metadata, contest);
	EXPECT_OK(complaint_of(contest));
	EXPECT_OK(check_pages(contest, contest->now));
	EXPECT_OK(check_counts(contest, contest->now));
	if (rival->end)
		EXPECT_OK(rival->end(contest));
	munmap(at(contest->places[contest->now]), len_at(contest, contest->now));
	if (contest->fd >= 0)
		close(contest->fd);
	if (contest->kind->bit == DISK)
		close(contest->direct);
}

/* Nothing else shows whether huge pages are what moves. */
static const char *check_kind(const struct contest *contest)
{
	if (contest->kind->bit != HUGE || smaps_kb(HOME, "AnonHugePages") * KB == contest->len)
		return NULL;
	return "needs huge pages of anonymous memory that are free (AnonHugePages)";
}

static void call_off(struct contest *contest)
{
	contest->over = true;
	contest->acts = 1;
	if (contest->child)
		waitpid(contest->child, NULL, 0);
	munmap(at(HOME), contest->len);
}

/* What is missing for it, or NULL. */
static const char *hold_contest(META, struct contest *contest)
{
	const struct rival *rival = contest->rival;
	const char *missing = open_memory(contest);

	if (missing)
		return missing;
	if (rival->is_process)
		start_process(_metadata, contest);
	map_memory(_metadata, contest);
	missing = check_kind(contest);
	if (missing) {
		call_off(contest);
		return missing;
	}
	if (rival->begin)
		ASSERT_OK(rival->begin(contest));
	start_threads(_metadata, contest);
	while (another_move(contest))
		move_memory(_metadata, contest);
	end_contest(_metadata, contest);
	return NULL;
}

static bool can_move(const struct rival *rival, const struct kind *kind, const struct move *move)
{
	if (expect_base() && move->how & (SEVERAL | SHIFTS))
		return false;
	if (rival->large && move->pages < 512)
		return false;
	return rival->kinds & kind->bit && move->kinds & kind->bit && !(rival->but & move->how);
}

/* Whether it was held. */
static bool hold_named(META, struct contest *contest, const struct kind *kind,
		       const struct move *move)
{
	const char *missing;

	start_contest(contest, kind, move);
	missing = hold_contest(_metadata, contest);
	if (missing)
		TH_LOG("no contest for %s: %s", kind->name, missing);
	if (_metadata->exit_code == KSFT_FAIL)
		TH_LOG("that was %s: %s, %u moves, %u acts", kind->name,
		       move->name, contest->moved, contest->acts);
	return !missing;
}

/* How many were held. */
static int hold_all_of(META, struct contest *contest, const struct kind *kind)
{
	unsigned int successes = 0;
	int held = 0;

	for (size_t m = 0; m < ARRAY_SIZE(moves); m++) {
		if (_metadata->exit_code == KSFT_FAIL)
			return held;
		if (!can_move(contest->rival, kind, &moves[m]) ||
		    is_left_out(contest->named++) ||
		    !hold_named(_metadata, contest, kind, &moves[m]))
			continue;
		held++;
		successes += contest->successes;
	}
	if (held)
		EXPECT_LT(0, successes)
			TH_LOG("the rival never got its way with %s", kind->name);
	return held;
}

static void hold_contests(META, struct contest *contest)
{
	int held = 0;

	for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
		held += hold_all_of(_metadata, contest, &kinds[k]);
	if (!held)
		SKIP(return, "needs what is said above");
}

/* ---- others who move pages: compaction, move_pages(), NUMA balancing ---- */

/* Since this was last asked, in this contest. */
static bool has_grown(struct contest *contest, const char *name)
{
	const long before = contest->before;

	contest->before = vm_counter(name) + 1;
	return before && contest->before > before;
}

#define COMPACT	"/proc/sys/vm/compact_memory"

static bool compact(struct contest *contest)
{
	write_setting(COMPACT, "1");
	/* What is in good order it does not move. */
	return has_grown(contest, "compact_migrate_scanned");
}

#define TWO_NODES	"/sys/devices/system/node/node1"	/* also by numa=fake=2 */

/* How many of them are there now. */
static size_t migrate_to(struct contest *contest, int place, int node)
{
	static void *pages[MAX_PAGES];
	static int nodes[MAX_PAGES], status[MAX_PAGES];
	size_t there = 0;

	for (size_t i = 0; i < contest->pages; i++) {
		pages[i] = at(page_at(contest, place, i));
		nodes[i] = node;
		status[i] = -1;
	}
	syscall(__NR_move_pages, contest->mover, contest->pages, pages, nodes,
		status, MPOL_MF_MOVE_ALL);
	for (size_t i = 0; i < contest->pages; i++)
		there += status[i] == node;
	return there;
}

static bool migrate(struct contest *contest)
{
	const int node = contest->acts & 1;
	const size_t there = migrate_to(contest, 0, node) + migrate_to(contest, 1, node);

	return has_grown(contest, "pgmigrate_success") && there;
}

#define BALANCING	"/proc/sys/kernel/numa_balancing"
#define SCANS		"/sys/kernel/debug/sched/numa_balancing/"
#define NEEDS_BALANCING	"needs CONFIG_NUMA_BALANCING and CONFIG_SCHED_DEBUG"

static const char *prepare_balancing(struct contest *contest)
{
	(void)contest;
	return change_setting(SCANS "scan_delay_ms", "1") &&
	       change_setting(SCANS "scan_period_min_ms", "5") &&
	       change_setting(SCANS "scan_period_max_ms", "10") &&
	       change_setting(BALANCING, "1") ? NULL : NEEDS_BALANCING;
}

/* From where faults bring the pages back. */
static bool take_to_other_node(struct contest *contest)
{
	migrate_to(contest, 0, 1);
	migrate_to(contest, 1, 1);
	return has_grown(contest, "numa_hint_faults");
}

/* ---- reclaim and swap ---- */

static const char *prepare_reclaim(struct contest *contest)
{
	(void)contest;
	if (meminfo_kb("SwapFree") <= 0)
		return "needs swap space";
	return enter_group() ? NULL : NEEDS_CGROUP;
}

static bool reclaim_some(struct contest *contest)
{
	char amount[32];

	/* What there is not would be tried to get many times. */
	snprintf(amount, sizeof(amount), "%zu", contest->len / 2);
	write_setting(OWN_CGROUP "memory.reclaim", amount);
	return has_grown(contest, "pswpout");
}

#define GENERATIONS		"/sys/kernel/mm/lru_gen/enabled"
#define NEEDS_GENERATIONS	"needs CONFIG_LRU_GEN"

static const char *prepare_lists(struct contest *contest)
{
	if (!access(GENERATIONS, F_OK))
		change_setting(GENERATIONS, "n");
	return prepare_reclaim(contest);
}

static const char *prepare_generations(struct contest *contest)
{
	return change_setting(GENERATIONS, "y") ? prepare_reclaim(contest) : NEEDS_GENERATIONS;
}

static bool switch_generations(struct contest *contest)
{
	write_setting(GENERATIONS, contest->acts & 1 ? "y" : "n");
	return reclaim_some(contest);
}

/* The first line is a head. */
static const char *swap_device(void)
{
	static char table[512];
	char *line;

	if (!read_setting("/proc/swaps", table, sizeof(table)))
		return NULL;
	line = strchr(table, '\n');
	if (!line)
		return NULL;
	line[1 + strcspn(line + 1, " \t")] = '\0';
	return line[1] == '/' ? line + 1 : NULL;
}

static char swapped_to[128];

static const char *prepare_swapoff(struct contest *contest)
{
	const char *device = swap_device();

	if (!device)
		return "needs swap space";
	snprintf(swapped_to, sizeof(swapped_to), "%s", device);
	return prepare_reclaim(contest);
}

static bool swap_off_and_on(struct contest *contest)
{
	const bool swapped = reclaim_some(contest);
	const bool off = !swapoff(swapped_to);

	if (off && swapon(swapped_to, 0))
		complain_of(contest, "cannot swap any more");
	return swapped && off;
}

/*
 * Who is killed if nothing can be reclaimed for a while, as can be on a busy machine: the
 * one who uses up memory. What happens to moves then, is_out_of_memory sees.
 */
#define KILLED		"/proc/self/oom_score_adj"

static const char *prepare_limit(struct contest *contest)
{
	return change_setting(KILLED, "-1000") ? prepare_reclaim(contest) :
	       "needs leave to change its oom_score_adj";
}

/* Less than is needed: also what the call itself allocates has to be reclaimed. */
static const char *limit_group(struct contest *contest)
{
	(void)contest;
	return write_setting(OWN_CGROUP "memory.max", "4M") ? NULL : "cannot limit the group";
}

/* The next memory may need huge pages from the start. */
static const char *lift_limit(struct contest *contest)
{
	(void)contest;
	return write_setting(OWN_CGROUP "memory.max", "max") ? NULL : "cannot lift the limit";
}

static bool use_up_memory(struct contest *contest)
{
	const size_t len = 6 * MB;
	const pid_t child = fork();
	char *pages;

	if (child < 0)
		return false;
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!write_setting(KILLED, "1000"))
			_exit(1);
		pages = mmap(NULL, len, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (size_t done = 0; done < len; done += psize())
			pages[done] = 1;
		_exit(0);
	}
	waitpid(child, NULL, 0);
	return has_grown(contest, "pswpout");
}

/* ---- huge pages come and go ---- */

#define SPLIT	"/sys/kernel/debug/split_huge_pages"

static bool collapse_there(struct contest *contest, int place)
{
	struct iovec range = { at(contest->places[place]), contest->len };
	const int pidfd = syscall(__NR_pidfd_open, contest->mover, 0);
	const bool done = syscall(__NR_process_madvise, pidfd, &range, 1, MADV_COLLAPSE, 0) > 0;

	close(pidfd);
	return done;
}

static bool collapse_file(struct contest *contest)
{
	void *view = mmap(at(SIDE), contest->len, READ_WRITE,
			  MAP_SHARED | MAP_FIXED, contest->fd, 0);

	/* There must be a page table. */
	return view != MAP_FAILED && *(volatile uint64_t *)view &&
	       !madvise(view, contest->len, MADV_COLLAPSE);
}

static void split_there(struct contest *contest, int place)
{
	const unsigned long start = contest->places[place];
	char range[64];

	snprintf(range, sizeof(range), "%d,0x%lx,0x%lx", contest->mover, start,
		 start + contest->len);
	write_setting(SPLIT, range);
}

static bool collapse_and_split(struct contest *contest)
{
	bool done = collapse_there(contest, 0) + collapse_there(contest, 1);

	if (contest->kind->bit == SHMEM)
		done |= collapse_file(contest);
	split_there(contest, 0);
	split_there(contest, 1);
	return done;
}

/* ---- files: write-back, truncation, holes ---- */

static bool sync_file(struct contest *contest)
{
	if (sync_file_range(contest->fd, 0, contest->len,
			    SYNC_FILE_RANGE_WAIT_BEFORE |
			    SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER))
		complain_of(contest, "cannot write the file");
	return true;
}

static const char *check_disk(struct contest *contest)
{
	uint64_t *file = aligned_alloc(psize(), contest->len);
	const char *why = NULL;

	if (fsync(contest->fd) || pread(contest->direct, file, contest->len, 0) !=
	    (ssize_t)contest->len)
		why = "cannot read from the disk";
	for (size_t page = 0; !why && page < contest->pages; page++) {
		const uint64_t *words = file + page * psize() / sizeof(*file);

		why = check_stamp((unsigned long)words, id_of(contest, page));
		if (!why && has_counter(contest, page) && words[COUNTER] != contest->counts[page])
			why = "what was counted last is not on the disk";
	}
	free(file);
	return why;
}

#define REUSED	16

/*
 * Pages freed last are the first that one gets. Does anybody write to them? Whoever
 * reads them, as the writer might, finds what is nobody's count.
 */
static void reuse_pages(struct contest *contest)
{
	unsigned char *pages = mmap(NULL, bytes(REUSED), READ_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	memset(pages, 0x5a, bytes(REUSED));
	usleep(2000);
	for (size_t i = 0; i < bytes(REUSED); i++)
		if (pages[i] != 0x5a)
			complain_of(contest, "somebody writes to a freed page");
	munmap(pages, bytes(REUSED));
}

/* Whether the mover has a page there, which is copied. */
static bool peek(struct contest *contest, unsigned long addr, void *page)
{
	struct iovec here = { page, psize() }, there = { at(addr), psize() };
	const ssize_t got = syscall(__NR_process_vm_readv, contest->mover, &here,
				    1, &there, 1, 0);

	if (got < 0 && errno != EFAULT)
		complain_of(contest, "cannot look at what the mover has");
	return got == (ssize_t)psize();
}

/*
 * Of the file behind its end nothing may be mapped, whatever was on its way meanwhile.
 * The last quarter is behind it at both places: these are far apart, or less than a
 * quarter. But a fault of hugetlb that has looked at the size of the file before can map
 * a page after it was cut, whether anything moves or not.
 */
static void look_behind_end(struct contest *contest)
{
	static char page[64 * KB];
	const size_t first = contest->pages * 3 / 4;

	if (contest->kind->bit == HUGETLB)
		return;
	for (size_t i = first; i < contest->pages; i += 1 + contest->pages / 64)
		if (peek(contest, page_at(contest, 0, i), page) ||
		    peek(contest, page_at(contest, 1, i), page))
			complain_of(contest, "a page behind the end is mapped");
}

static bool cut_file(struct contest *contest)
{
	const size_t rest = contest->pages / 2 * contest->unit;

	if (ftruncate(contest->fd, rest))
		complain_of(contest, "cannot truncate");
	/* At once: a look waits until the move is over, and all is flushed. */
	reuse_pages(contest);
	look_behind_end(contest);
	if (ftruncate(contest->fd, contest->len))
		complain_of(contest, "cannot make it as long as before");
	return true;
}

/* Its stamp is at no other place, until somebody puts it there again. */
static void look_for_page(struct contest *contest, size_t nr)
{
	static uint64_t page[64 * KB / sizeof(uint64_t)];

	for (int place = 0; place < 2; place++)
		if (peek(contest, page_at(contest, place, nr), page) &&
		    !check_stamp((unsigned long)page, id_of(contest, nr)))
			complain_of(contest, "a page is mapped that was a hole");
}

static void stamp_in_file(struct contest *contest, size_t nr)
{
	void *page = mmap(NULL, contest->unit, READ_WRITE, MAP_SHARED,
			  contest->fd, nr * contest->unit);

	if (page == MAP_FAILED) {
		complain_of(contest, "cannot map the file");
		return;
	}
	stamp((unsigned long)page, id_of(contest, nr));
	munmap(page, contest->unit);
}

static bool punch_holes(struct contest *contest)
{
	const size_t half = contest->pages / 2;

	if (fallocate(contest->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      half * contest->unit, contest->unit))
		complain_of(contest, "cannot punch a hole");
	reuse_pages(contest);	/* before the look, which waits for the move */
	look_for_page(contest, half);
	/* For the next hole. */
	stamp_in_file(contest, half);
	return true;
}

/* Nobody has touched the first half. */
static const char *check_first_half(struct contest *contest)
{
	const char *why = NULL;

	for (size_t page = 0; !why && page < contest->pages / 2; page++)
		why = check_stamp(page_at(contest, contest->now, page), id_of(contest, page));
	return why;
}

/* ---- KSM ---- */

#define KSM	"/sys/kernel/mm/ksm/"

static const char *prepare_ksm(struct contest *contest)
{
	(void)contest;
	if (!access(KSM "smart_scan", F_OK))
		change_setting(KSM "smart_scan", "0");
	return change_setting(KSM "pages_to_scan", "2000") &&
	       change_setting(KSM "sleep_millisecs", "1") &&
	       change_setting(KSM "run", "1") ? NULL : "needs CONFIG_KSM";
}

static void advise_both(struct contest *contest, int advice)
{
	for (int place = 0; place < 2; place++)
		madvise(at(contest->places[place]), contest->len, advice);
}

static const char *offer_pages(struct contest *contest)
{
	advise_both(contest, MADV_MERGEABLE);
	return NULL;
}

static bool merge_for_a_while(void)
{
	for (int i = 0; i < 500; i++) {
		if (read_long("/proc/self/ksm_merging_pages") > 0)
			return true;
		usleep(1000);
	}
	return false;
}

static bool merge_and_unmerge(struct contest *contest)
{
	bool merged;

	advise_both(contest, MADV_MERGEABLE);
	merged = merge_for_a_while();
	if (contest->acts & 1) {
		advise_both(contest, MADV_UNMERGEABLE);
	} else {
		write_setting(KSM "run", "2");
		write_setting(KSM "run", "1");
	}
	return merged;
}

static bool all_go_to(struct contest *contest, int node)
{
	/* Some may be busy, and those that are merged are one. */
	for (int i = 0; i < 20; i++) {
		if (migrate_to(contest, contest->now, node) == contest->pages)
			return true;
		nap();
	}
	return false;
}

/* Wherever it is, what was merged is known to be there: else it could not be migrated. */
static const char *move_merged(struct contest *contest)
{
	const char *why = NULL;

	if (access(TWO_NODES, F_OK))
		return NULL;
	advise_both(contest, MADV_MERGEABLE);
	if (!merge_for_a_while())
		return "nothing is merged any more";
	write_setting(KSM "run", "0");
	if (error_of(move_once(contest)))
		return "cannot move once more";
	unmap_old_place(contest);
	if (!all_go_to(contest, 0) || !all_go_to(contest, 1))
		why = "what was merged cannot be migrated";
	write_setting(KSM "run", "1");
	return why ?: check_pages(contest, contest->now);
}

/* ---- fork, and neighbours ---- */

static void write_to_copies(struct contest *contest, int place)
{
	if (contest->kind->bit & (ANON | HUGE | PRIVATE))
		for (size_t page = 0; page < contest->pages; page++)
			stamp(page_at(contest, place, page), 5000 + page);
}

static __noreturn void look_as_child(struct contest *contest)
{
	bool there[2], seen = false;

	for (int place = 0; place < 2; place++) {
		const char *wrong = check_if_there(contest, place, &there[place]);

		if (there[place] && !wrong)
			write_to_copies(contest, place);
		seen |= there[place] && !wrong;
	}
	if (!seen)
		complain_of(contest, "the memory is at neither place");
	if (there[0] && there[1] && !(contest->move->how & (KEEPS | SHIFTS)))
		complain_of(contest, "there is memory at both places");
	_exit(0);
}

static bool fork_and_look(struct contest *contest)
{
	const pid_t child = fork();
	int status;

	if (!child)
		look_as_child(contest);
	if (waitpid(child, &status, 0) != child || status)
		complain_of(contest, "the child has failed");
	return true;
}

#define NEIGHBOURS	4

/* In the table that the memory ends in, or the next one. */
static const char *touch_and_go(struct contest *contest, int place)
{
	const unsigned long addr = contest->places[place] + contest->len + bytes(40);
	const size_t len = bytes(NEIGHBOURS);
	const char *why;

	if (map_anon(addr, len) != addr)
		return "there is no room for a neighbour";
	stamp_range(addr, len, 7000);
	why = check_stamps(addr, len, 7000);
	madvise(at(addr), len, MADV_DONTNEED);
	why = why ?: check_zero(addr, len);
	stamp_range(addr, len, 8000);
	why = why ?: check_stamps(addr, len, 8000);
	munmap(at(addr), len);
	return why;
}

static bool be_a_neighbour(struct contest *contest)
{
	complain_of(contest, touch_and_go(contest, 0));
	complain_of(contest, touch_and_go(contest, 1));
	return true;
}

/* ---- those who write into pages that they have looked up ---- */

#define SECTOR	512

static unsigned long sector_at(struct contest *contest, int place, size_t page)
{
	return page_at(contest, place, page) + psize() * 3 / 4;
}

static size_t nr_sectors(const struct contest *contest)
{
	return contest->pages < SECTORS ? contest->pages : SECTORS;
}

static char sectors[SECTORS * SECTOR] __attribute__((aligned(65536)));

static void make_generation(struct contest *contest)
{
	uint64_t *words = (uint64_t *)sectors;

	contest->generation++;
	for (size_t i = 0; i < nr_sectors(contest); i++) {
		contest->tried[i] = contest->generation;
		for (size_t word = 0; word < SECTOR / sizeof(*words); word++)
			*words++ = tag_of(i) + contest->generation;
	}
}

static bool write_generation(struct contest *contest, int place)
{
	size_t nr;

	make_generation(contest);
	nr = contest->rival->means(contest, place);
	for (size_t i = 0; i < nr; i++)
		contest->done[i] = contest->generation;
	return nr;
}

static bool write_to_both(struct contest *contest)
{
	return write_generation(contest, 0) + write_generation(contest, 1);
}

static const char *check_sector(struct contest *contest, size_t page)
{
	const volatile uint64_t *words = at(sector_at(contest, contest->now, page));
	const uint64_t done = contest->done[page], tried = contest->tried[page];

	for (size_t word = 0; word < SECTOR / sizeof(*words); word++) {
		const uint64_t got = words[word] ? words[word] - tag_of(page) : 0;

		if (got < done || got > tried)
			return complain("page %zu: write lost: %#llx, not %#llx to %#llx",
					page, (unsigned long long)got,
					(unsigned long long)done, (unsigned long long)tried);
	}
	return NULL;
}

static const char *check_sectors(struct contest *contest)
{
	const char *why = NULL;

	for (size_t page = 0; !why && page < nr_sectors(contest); page++)
		why = check_sector(contest, page);
	return why;
}

static void list_sectors(struct contest *contest, int place, struct iovec *list)
{
	for (size_t i = 0; i < nr_sectors(contest); i++)
		list[i] = (struct iovec) { at(sector_at(contest, place, i)), SECTOR };
}

static const char *prepare_process_vm(struct contest *contest)
{
	(void)contest;
	syscall(__NR_process_vm_readv, getpid(), NULL, 0, NULL, 0, 0);
	return errno == ENOSYS ? "needs CONFIG_CROSS_MEMORY_ATTACH" : NULL;
}

static size_t write_by_process_vm(struct contest *contest, int place)
{
	const size_t nr = nr_sectors(contest);
	struct iovec here = { sectors, nr * SECTOR }, there[SECTORS];
	ssize_t written;

	list_sectors(contest, place, there);
	written = syscall(__NR_process_vm_writev, contest->mover, &here, 1, there, nr, 0);
	return written > 0 ? written / SECTOR : 0;
}

static size_t write_by_proc(struct contest *contest, int place)
{
	size_t nr = 0;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", contest->mover);
	fd = open(path, O_RDWR);
	while (fd >= 0 && nr < nr_sectors(contest) &&
	       pwrite(fd, sectors + nr * SECTOR, SECTOR, sector_at(contest, place, nr)) == SECTOR)
		nr++;
	close(fd);
	return nr;
}

static const char *prepare_direct(struct contest *contest)
{
	return open_on_disk(sizeof(sectors), &contest->disk,
			    &contest->past_cache) ? NULL : NEEDS_DISK;
}

static bool write_sectors_to_disk(struct contest *contest)
{
	const ssize_t len = nr_sectors(contest) * SECTOR;

	return pwrite(contest->past_cache, sectors, len, 0) == len;
}

static size_t read_from_disk(struct contest *contest, int place)
{
	struct iovec there[SECTORS];
	ssize_t got;

	list_sectors(contest, place, there);
	if (!write_sectors_to_disk(contest))
		return 0;
	got = preadv(contest->past_cache, there, nr_sectors(contest), 0);
	return got > 0 ? got / SECTOR : 0;
}

/* ---- buffers of io_uring ---- */

static struct ring {
	int fd;
	struct io_uring_params params;
	void *ring;
	size_t len;
	struct io_uring_sqe *sqes;
} ring;

static bool open_ring(void)
{
	struct io_uring_params *params = &ring.params;

	memset(&ring, 0, sizeof(ring));
	ring.fd = syscall(__NR_io_uring_setup, 8, params);
	if (ring.fd < 0)
		return false;
	ring.len = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	if (ring.len < params->sq_off.array + params->sq_entries * 4)
		ring.len = params->sq_off.array + params->sq_entries * 4;
	ring.ring = mmap(NULL, ring.len, READ_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	ring.sqes = mmap(NULL, params->sq_entries * sizeof(*ring.sqes),
			 READ_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
	return ring.ring != MAP_FAILED && ring.sqes != MAP_FAILED;
}

static unsigned int *in_ring(unsigned int offset)
{
	return ring.ring + offset;
}

/* One request, and its result. */
static int submit(struct io_uring_sqe sqe)
{
	const struct io_sqring_offsets *sq = &ring.params.sq_off;
	const struct io_cqring_offsets *cq = &ring.params.cq_off;
	const unsigned int tail = *in_ring(sq->tail);
	const unsigned int slot = tail & *in_ring(sq->ring_mask);
	const unsigned int head = *in_ring(cq->head);
	struct io_uring_cqe *cqes = ring.ring + cq->cqes;
	int result;

	ring.sqes[slot] = sqe;
	in_ring(sq->array)[slot] = slot;
	__atomic_store_n(in_ring(sq->tail), tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	result = cqes[head & *in_ring(cq->ring_mask)].res;
	__atomic_store_n(in_ring(cq->head), head + 1, __ATOMIC_RELEASE);
	return result;
}

static const char *prepare_ring(struct contest *contest)
{
	if (!open_ring())
		return "needs io_uring";
	return prepare_direct(contest);
}

/* From here on they are known by the frames that they are in. */
static const char *register_memory(struct contest *contest)
{
	struct iovec memory = { at(HOME), contest->len };

	return syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS,
		       &memory, 1) ? "cannot register the memory" : NULL;
}

/* At whichever place they are by now. */
static size_t read_fixed(struct contest *contest, int place)
{
	size_t nr = 0;

	(void)place;
	if (!write_sectors_to_disk(contest))
		return 0;
	while (nr < nr_sectors(contest) && submit((struct io_uring_sqe) {
			.opcode = IORING_OP_READ_FIXED,
			.fd = contest->past_cache,
			.off = nr * SECTOR,
			.addr = sector_at(contest, 0, nr),
			.len = SECTOR,
		}) == SECTOR)
		nr++;
	return nr;
}

static const char *end_registered(struct contest *contest)
{
	const char *why = check_sectors(contest);

	if (syscall(__NR_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0))
		return "cannot unregister the memory";
	return why;
}

/* ---- pages in a pipe ---- */

#define SPLICED	8

static int pipe_ends[2];

static const char *prepare_pipe(struct contest *contest)
{
	(void)contest;
	return pipe(pipe_ends) ? "needs a pipe" : NULL;
}

static bool splice_from(struct contest *contest, int place)
{
	static char page[64 * KB];
	struct iovec source = { at(contest->places[place]), bytes(SPLICED) };
	const ssize_t got = vmsplice(pipe_ends[1], &source, 1, SPLICE_F_NONBLOCK);

	for (ssize_t done = 0; done < got; done += psize()) {
		if (read(pipe_ends[0], page, psize()) != (ssize_t)psize())
			complain_of(contest, "cannot read the pipe");
		complain_of(contest, check_stamp((unsigned long)page, 1 + done / psize()));
	}
	return got > 0;
}

static bool splice_both(struct contest *contest)
{
	return splice_from(contest, 0) + splice_from(contest, 1);
}

/* ---- userfaultfd ---- */

static struct monitor monitor;

static int register_range(unsigned long addr, size_t len)
{
	struct uffdio_register reg = {
		.range = { addr, len }, .mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	return ioctl(monitor.fd, UFFDIO_REGISTER, &reg) ? errno : 0;
}

static struct contest *monitored;

/* Which place is that, or -1? */
static int place_of(struct contest *contest, unsigned long addr)
{
	for (int place = 0; place < 2; place++)
		if (addr - contest->places[place] < contest->len)
			return place;
	return -1;
}

static void fill_missing(struct monitor *asked, const struct uffd_msg *msg)
{
	static char page[64 * KB] __attribute__((aligned(65536)));
	const unsigned long addr = msg->arg.pagefault.address &
				   -(unsigned long)psize();
	const int place = place_of(monitored, addr);
	struct uffdio_copy copy = { .dst = addr, .src = (unsigned long)page, .len = psize() };

	if (msg->event != UFFD_EVENT_PAGEFAULT || place < 0)
		return;
	stamp((unsigned long)page, id_of(monitored, (addr - monitored->places[place]) / psize()));
	/* It may have moved: then whoever waits is to look again. */
	if (ioctl(asked->fd, UFFDIO_COPY, &copy))
		ioctl(asked->fd, UFFDIO_WAKE, &(struct uffdio_range) { addr, psize() });
}

static const char *prepare_monitor(struct contest *contest)
{
	monitored = contest;
	monitor.answer = fill_missing;
	return start_monitor(&monitor, UFFD_FEATURE_EVENT_REMAP) ? NULL :
	       "needs userfaultfd with UFFD_FEATURE_EVENT_REMAP";
}

static const char *register_memory_missing(struct contest *contest)
{
	return register_range(HOME, contest->len) ? "cannot register" : NULL;
}

/* Where there is nothing they come from the monitor. */
static bool drop_and_look(struct contest *contest)
{
	bool there, any = false;

	for (int place = 0; place < 2; place++) {
		madvise(at(contest->places[place]), contest->len, MADV_DONTNEED);
		complain_of(contest, check_if_there(contest, place, &there));
		any |= there;
	}
	return any;
}

static const char *prepare_uffd_move(struct contest *contest)
{
	(void)contest;
	monitor.fd = open_uffd(UFFD_FEATURE_MOVE);
	if (monitor.fd < 0)
		return "needs userfaultfd with UFFDIO_MOVE";
	if (map_anon(SIDE, bytes(SPLICED)) != SIDE)
		return "needs a place at the side";
	return register_range(SIDE, bytes(SPLICED)) ? "cannot register" : NULL;
}

/* How many have moved. */
static size_t move_by_uffd(unsigned long from, unsigned long to, size_t len)
{
	struct uffdio_move move = { .dst = to, .src = from, .len = len };

	return !ioctl(monitor.fd, UFFDIO_MOVE, &move) ? len : move.move > 0 ? move.move : 0;
}

/* To wherever the memory is by now; what is moved by mremap() is not registered. */
static size_t move_back_by_uffd(struct contest *contest, size_t done, size_t len)
{
	const unsigned long place = contest->places[contest->now];

	if (register_range(place, contest->len))
		return 0;
	return move_by_uffd(SIDE + done, place + done, len - done);
}

static bool take_aside(struct contest *contest)
{
	const unsigned long place = contest->places[contest->now];
	const size_t len = move_by_uffd(place, SIDE, bytes(SPLICED));
	size_t done = 0;

	for (int i = 0; done < len && i < 100000; i++) {
		const size_t got = move_back_by_uffd(contest, done, len);

		done += got;
		if (!got)
			nap();
	}
	if (done < len)
		complain_of(contest, "the pages cannot go back");
	return len;
}

/* ---- breakpoints in code ---- */

#define UPROBES	"/sys/bus/event_source/devices/uprobe/type"

static const char *prepare_uprobes(struct contest *contest)
{
	(void)contest;
#ifndef __x86_64__
	return "needs x86-64, whose code it has";
#endif
	return access(UPROBES, R_OK) ? "needs CONFIG_UPROBE_EVENTS" : NULL;
}

static int open_event(struct perf_event_attr *attr, pid_t pid, int cpu)
{
	attr->size = sizeof(*attr);
	return syscall(__NR_perf_event_open, attr, pid, cpu, -1, 0);
}

static int set_breakpoint(struct contest *contest, size_t page)
{
	char path[64];
	struct perf_event_attr attr = {
		.type = read_long(UPROBES),
		.uprobe_path = (unsigned long)path,
		.probe_offset = page * psize() + CODE,
	};

	snprintf(path, sizeof(path), "/proc/self/fd/%d", contest->fd);
	return open_event(&attr, 0, -1);
}

typedef uint32_t code_fn(void);

static void call_if_there(struct contest *contest, int place, size_t page)
{
	code_fn *code = at(page_at(contest, place, page) + CODE);

	if (!sigsetjmp(missed, 1)) {
		may_miss = true;
		if (code() != page)
			complain_of(contest, "code with a breakpoint is wrong");
	}
	may_miss = false;
}

static bool set_and_clear(struct contest *contest)
{
	const size_t page = contest->acts % contest->pages;
	const int event = set_breakpoint(contest, page);
	uint64_t hits = 0;

	call_if_there(contest, 0, page);
	call_if_there(contest, 1, page);
	nap();
	if (read(event, &hits, sizeof(hits)) < 0)
		hits = 0;
	close(event);
	return hits > 0;
}

static const char *check_code(struct contest *contest)
{
	for (size_t page = 0; page < contest->pages; page++) {
		const unsigned long addr = page_at(contest, contest->now, page);

		if (*(volatile unsigned char *)at(addr + CODE) != 0xb8)
			return complain("page %zu: a breakpoint is left", page);
	}
	return NULL;
}

/* ---- the table ---- */

FIXTURE(against)
{
	struct contest *contest;
};

FIXTURE_VARIANT(against)
{
	struct rival rival;
};

#define RIVAL(name, ...) \
	FIXTURE_VARIANT_ADD(against, name) { { __VA_ARGS__ } }

RIVAL(compaction, NULL, compact, .needs = COMPACT, .is_process = true, .slow = true,
      .kinds = ANON | SHMEM | HUGE, .but = GROWS | SEVERAL);
RIVAL(migration, NULL, migrate, .needs = TWO_NODES, .is_process = true, .slow = true,
      .kinds = ANON | SHMEM | PRIVATE | DISK | HUGE | HUGETLB);
RIVAL(numa_balancing, prepare_balancing, take_to_other_node, .needs = TWO_NODES,
      .is_process = true, .kinds = ANON | SHMEM);
RIVAL(reclaim, prepare_lists, reclaim_some, .is_process = true, .slow = true,
      .kinds = ANON | SHMEM | PRIVATE | HUGE, .but = GROWS);
RIVAL(reclaim_by_generations, prepare_generations, reclaim_some, .is_process = true,
      .slow = true, .kinds = ANON | SHMEM, .but = GROWS);
RIVAL(switched_generations, prepare_generations, switch_generations,
      .is_process = true, .slow = true, .kinds = ANON, .but = GROWS);
RIVAL(swapoff, prepare_swapoff, swap_off_and_on, .is_process = true, .slow = true,
      .kinds = ANON | SHMEM, .but = GROWS | SEVERAL);
RIVAL(limit, prepare_limit, use_up_memory, limit_group, lift_limit,
      .is_process = true, .slow = true, .starves = true, .kinds = ANON | HUGE);
RIVAL(collapse, NULL, collapse_and_split, .needs = SPLIT, .is_process = true, .large = true,
      .kinds = ANON | SHMEM | HUGE, .but = KEEPS | GROWS | SEVERAL | SHIFTS);
RIVAL(writeback, NULL, sync_file, .is_process = true, .kinds = DISK, .end = check_disk);
RIVAL(truncation, prepare_process_vm, cut_file, .is_process = true, .kinds = FILES,
      .empties = true, .end = check_first_half);
RIVAL(hole_punching, prepare_process_vm, punch_holes, .is_process = true,
      .kinds = SHMEM | HUGETLB, .empties = true, .end = check_first_half);
RIVAL(ksm, prepare_ksm, merge_and_unmerge, offer_pages, move_merged,
      .alike = true, .kinds = ANON | PRIVATE);
RIVAL(fork, NULL, fork_and_look, .kinds = ANON | SHMEM | PRIVATE | DISK | HUGE | HUGETLB);
RIVAL(neighbour, NULL, be_a_neighbour, .kinds = ANON | SHMEM | HUGE, .but = SHIFTS);
RIVAL(process_vm, prepare_process_vm, write_to_both, .means = write_by_process_vm,
      .is_process = true, .kinds = ANON | SHMEM | PRIVATE | HUGE | HUGETLB,
      .but = KEEPS | SHIFTS, .end = check_sectors);
RIVAL(debugger, NULL, write_to_both, .means = write_by_proc, .is_process = true,
      .kinds = ANON | SHMEM | PRIVATE | HUGE, .but = KEEPS | SHIFTS, .end = check_sectors);
RIVAL(direct_read, prepare_direct, write_to_both, .means = read_from_disk,
      .kinds = ANON | SHMEM | PRIVATE | HUGE | HUGETLB, .but = KEEPS | SHIFTS,
      .end = check_sectors);
RIVAL(fixed_buffers, prepare_ring, write_to_both, register_memory, end_registered,
      .means = read_fixed, .kinds = ANON | SHMEM | PRIVATE | HUGE | HUGETLB);
RIVAL(vmsplice, prepare_pipe, splice_both, .kinds = ANON | SHMEM | PRIVATE,
      .but = KEEPS | SHIFTS);
RIVAL(userfaultfd, prepare_monitor, drop_and_look, register_memory_missing,
      .kinds = ANON, .but = SHIFTS | GROWS | SEVERAL, .alone = true);
RIVAL(uffdio_move, prepare_uffd_move, take_aside, .kinds = ANON,
      .but = KEEPS | SHIFTS | SEVERAL, .alone = true, .takes = true);
RIVAL(uprobes, prepare_uprobes, set_and_clear, .kinds = TEXT, .end = check_code);

static struct contest *new_contest(META)
{
	struct contest *contest = mmap(NULL, sizeof(*contest), READ_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, contest);
	contest->mover = getpid();
	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	return contest;
}

FIXTURE_SETUP(against)
{
	NEED(sysconf(_SC_NPROCESSORS_ONLN) >= 2, "needs two processors");
	self->contest = new_contest(_metadata);
	self->contest->rival = &variant->rival;
}

FIXTURE_TEARDOWN(against)
{
	/* If the rival was killed between the two. */
	if (*swapped_to)
		swapon(swapped_to, 0);
	put_settings_back();
	leave_group();
}

/* What is missing for it, or NULL. */
static const char *prepare(struct contest *contest)
{
	const struct rival *rival = contest->rival;

	if (rival->needs && access(rival->needs, W_OK))
		return complain("needs %s", rival->needs);
	return rival->prepare ? rival->prepare(contest) : NULL;
}

TEST_F_TIMEOUT(against, at_full_speed, TIMEOUT)
{
	NEED_OK(prepare(self->contest));
	hold_contests(_metadata, self->contest);
}

TEST_F_TIMEOUT(against, held_up, TIMEOUT)
{
	NEED(hold_up_moves(variant->rival.empties ? LONG_DELAY : DELAY), NEEDS_DELAYS);
	NEED_OK(prepare(self->contest));
	hold_contests(_metadata, self->contest);
}

/* ---- a ring that the kernel writes to ---- */

#define RING_PAGES	4

FIXTURE(ring)
{
	struct contest *contest;
	int event;
	void *view;
};

static bool open_samples(FIXTURE_DATA(ring) *self)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE,
		.config = PERF_COUNT_SW_PAGE_FAULTS,
		.sample_period = 1,
		/* It walks the page tables without a lock for some of that. */
		.sample_type = PERF_SAMPLE_ADDR | PERF_SAMPLE_PHYS_ADDR |
			       PERF_SAMPLE_DATA_PAGE_SIZE |
			       PERF_SAMPLE_CALLCHAIN,
	};

	self->event = open_event(&attr, -1, CPU_OF_WRITER);
	self->view = mmap(NULL, bytes(1 + RING_PAGES), READ_WRITE, MAP_SHARED, self->event, 0);
	return self->event >= 0 && self->view != MAP_FAILED;
}

FIXTURE_SETUP(ring)
{
	NEED(sysconf(_SC_NPROCESSORS_ONLN) >= 2, "needs two processors");
	NEED(open_samples(self), "needs CONFIG_PERF_EVENTS and leave to use them");
	self->contest = new_contest(_metadata);
	self->contest->len = bytes(1 + RING_PAGES);
	self->contest->places[0] = HOME;
	self->contest->places[1] = AWAY + bytes(5);
	hold_up_moves(DELAY);
}

FIXTURE_TEARDOWN(ring)
{
	put_settings_back();
}

static void touch_if_there(unsigned long addr)
{
	madvise(at(addr), psize(), MADV_DONTNEED);
	may_miss = true;
	if (!sigsetjmp(missed, 1))
		stamp(addr, 1);
	may_miss = false;
}

/* Each page that is touched leaves a sample, also of places that move. */
static void *touch_pages(void *arg)
{
	struct contest *contest = arg;

	stay_on_processor(CPU_OF_WRITER);
	while (!contest->over) {
		touch_if_there(contest->places[0] + GB);
		touch_if_there(contest->places[1] + GB);
		contest->acts++;
	}
	return NULL;
}

static void move_ring(META, struct contest *contest)
{
	const unsigned long from = contest->places[contest->now];
	const unsigned long to = contest->places[!contest->now];

	ASSERT_EQ(to, do_mremap(from, contest->len, contest->len, FIXED, to));
	ASSERT_EQ(to + GB, do_mremap(from + GB, contest->len, contest->len, FIXED, to + GB));
	contest->now = !contest->now;
	wait_for_rival(contest);
}

TEST_F_TIMEOUT(ring, moves, TIMEOUT)
{
	struct contest *contest = self->contest;
	const struct perf_event_mmap_page *head = self->view;

	ASSERT_EQ(HOME, map_at(HOME, contest->len, READ_WRITE, MAP_SHARED, self->event, 0));
	ASSERT_EQ(HOME + GB, map_anon(HOME + GB, contest->len));
	ASSERT_EQ(0, pthread_create(&contest->thread, NULL, touch_pages, contest));
	for (int i = 0; i < 20; i++)
		move_ring(_metadata, contest);
	contest->over = true;
	pthread_join(contest->thread, NULL);
	ioctl(self->event, PERF_EVENT_IOC_DISABLE, 0);
	EXPECT_LT(0, head->data_head);
	EXPECT_EQ(0, memcmp(self->view, at(contest->places[contest->now]), contest->len));
}

/* ---- those who are killed in the middle of it ---- */

FIXTURE(killed)
{
	struct contest *contest;
};

FIXTURE_SETUP(killed)
{
	struct contest *contest = new_contest(_metadata);

	self->contest = contest;
	contest->len = bytes(16);
	contest->fd = memfd_create("memory", 0);
	ASSERT_EQ(0, ftruncate(contest->fd, contest->len));
	ASSERT_EQ(SIDE, map_at(SIDE, contest->len, READ_WRITE, MAP_SHARED, contest->fd, 0));
	stamp_range(SIDE, contest->len, 1);
	hold_up_moves(DELAY);
}

FIXTURE_TEARDOWN(killed)
{
	put_settings_back();
	leave_group();
}

/* There may be no memory for it for a while. */
static void move_or_exit(unsigned long from, size_t len, unsigned long to)
{
	unsigned long got;

	do
		got = do_mremap(from, len, len, FIXED, to);
	while (error_of(got) == ENOMEM);
	if (got != to)
		_exit(2);
}

/* Memory that others have as well, and memory of its own. */
static __noreturn void move_until_killed(struct contest *contest)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	map_at(HOME, contest->len, READ_WRITE, MAP_SHARED, contest->fd, 0);
	stamp_range(HOME, contest->len, 1);
	map_anon(HOME + GB, pmd_span());
	stamp_range(HOME + GB, pmd_span(), 1);
	for (;;) {
		move_or_exit(HOME, contest->len, AWAY);
		move_or_exit(HOME + GB, pmd_span(), AWAY + GB + bytes(5));
		contest->moved++;
		move_or_exit(AWAY + GB + bytes(5), pmd_span(), HOME + GB);
		move_or_exit(AWAY, contest->len, HOME);
	}
}

static void start_victim(META, struct contest *contest, void (*victim)(struct contest *contest))
{
	const pid_t child = fork();

	ASSERT_LE(0, child);
	if (!child)
		victim(contest);
	contest->child = child;
}

static void wait_for_moves(struct contest *contest)
{
	const unsigned int moved = contest->moved;

	while (contest->moved < moved + 2)
		nap_meanwhile(contest);
}

static void expect_killed(META, struct contest *contest)
{
	int status;

	ASSERT_EQ(contest->child, waitpid(contest->child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	EXPECT_OK(check_stamps(SIDE, contest->len, 1));
}

/* By the one who reaps for the killer of those who use too much memory. */
TEST_F_TIMEOUT(killed, is_reaped, TIMEOUT)
{
	struct contest *contest = self->contest;
	int pidfd;

	for (int i = 0; i < 5; i++) {
		start_victim(_metadata, contest, move_until_killed);
		wait_for_moves(contest);
		pidfd = syscall(__NR_pidfd_open, contest->child, 0);
		ASSERT_LE(0, pidfd);
		ASSERT_EQ(0, kill(contest->child, SIGKILL));
		while (syscall(__NR_process_mrelease, pidfd, 0) && errno == EAGAIN)
			nap();
		expect_killed(_metadata, contest);
		close(pidfd);
	}
}

static void *use_too_much(void *arg)
{
	(void)arg;
	for (;;) {
		volatile char *page = mmap(NULL, psize(), READ_WRITE,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (page != MAP_FAILED)
			*page = 1;
	}
	return NULL;
}

static __noreturn void move_until_out_of_memory(struct contest *contest)
{
	pthread_t thread;

	if (!enter_group() || !write_setting(OWN_CGROUP "memory.max", "6M"))
		_exit(1);
	write_setting(OWN_CGROUP "memory.swap.max", "0");
	setrlimit(RLIMIT_CORE, &(struct rlimit) { 0, 0 });
	if (pthread_create(&thread, NULL, use_too_much, NULL))
		_exit(1);
	move_until_killed(contest);
}

TEST_F_TIMEOUT(killed, is_out_of_memory, TIMEOUT)
{
	struct contest *contest = self->contest;
	const bool can_enter = enter_group();

	leave_group();
	NEED(can_enter, NEEDS_CGROUP);
	for (int i = 0; i < 3; i++) {
		start_victim(_metadata, contest, move_until_out_of_memory);
		expect_killed(_metadata, contest);
		leave_group();
	}
}

TEST_HARNESS_MAIN
