// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) against others who deal with the same pages at the same time:
 * holes in files, writeback, collapse, migration, reclaim, GUP, page faults.
 *
 * There are three sides. The mover is the test itself. The disturber, a process
 * or a thread, does one thing for each call of the mover. The writer, on another
 * processor, never stops writing through the old address, so that its processor
 * keeps the old translation for as long as nobody takes it away.
 *
 * With CONFIG_DEBUG_MREMAP_DELAY the kernel stops for a while where it holds what
 * keeps the others out, or has yet to look at what they did. The mover then shares
 * its processor with the disturber, which waits until the mover sleeps. That is
 * tried until the disturber has once come in between and got its way; that it never
 * does is a failure. The variants that are "undelayed" need no such option: there
 * the calls just race. What is checked has to be true whoever comes first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 4 * GB)
#define VIEW	(WINDOW + 8 * GB)

/* For the slowest of kernels, with everything else that it has to do. */
#define TIMEOUT	200

/* ---- delays ---- */

enum point { PLANNED, DETACHED, DETACH_FLUSHED, MOVED, NR_POINTS, UNDELAYED = NR_POINTS };

static const char * const point_names[NR_POINTS] = {
	"planned", "detached", "detach_flushed", "moved",
};

#define DELAY	"300000"

static bool set_delay(enum point point, const char *usecs)
{
	char path[128];

	snprintf(path, sizeof(path), DELAY_DIR "%s", point_names[point]);
	return write_setting(path, usecs);
}

static void set_no_delays(void)
{
	for (int point = 0; point < NR_POINTS; point++)
		set_delay(point, "0");
}

/* ---- the three sides ---- */

static size_t table_pages(void)
{
	return pmd_span() / psize();
}

#define CPU_OF_MOVER	0
#define CPU_OF_WRITER	1

/* In the hope that the disturber comes in between. */
#define MOST_ROUNDS	10

#define MAX_PAGES	512

/* In memory that the processes share, and that never moves. */
struct race {
	bool delayed;		/* the kernel stops where the variant says */
	unsigned int round;
	size_t len;
	unsigned long dst;
	volatile bool over;

	/* The mover: calls that it has begun, and that have come back. */
	pid_t mover;
	volatile unsigned int called;
	volatile unsigned int returned;

	/*
	 * The disturber: calls that it has dealt with, whether it met the mover
	 * within the last one, and how often it did so and got its way.
	 */
	const char *(*disturb)(struct race *race);
	bool at_once;		/* not only when the mover sleeps */
	volatile unsigned int disturbed;
	volatile bool met;
	volatile unsigned int successes;
	uint64_t frames[MAX_PAGES];	/* of the source, before the call */
	char complaint[256];
	pthread_t thread;
	pid_t child;
	int fd;			/* of the file that is mapped, if there is one */
	int direct;		/* the same file, past the page cache */
	int pipe[2];
	long got;		/* bytes */

	/* The writer. A counter shall not be found changed by anyone else. */
	volatile uint64_t *where;
	bool is_counter;
	volatile bool stop;	/* after one more write */
	volatile uint64_t written;
	volatile bool was_changed;
	uint64_t found;
	pthread_t writer;
};

static void unpin(void)
{
	cpu_set_t set;

	memset(&set, 0xff, sizeof(set));
	sched_setaffinity(0, sizeof(set), &set);
}

static void nap(void)
{
	usleep(200);
}

/* Let the writer's processor have its time, if one thread emulates them all. */
static void let_others_write(void)
{
	usleep(10 * 1000);
}

/* Within the call, that is; false if that comes back first. */
static bool wait_until_asleep(struct race *race, unsigned int call)
{
	while (race->returned < call) {
		if (is_asleep(race->mover))
			return true;
		nap();
	}
	return false;
}

static void count_success(struct race *race, bool success)
{
	race->successes += race->met && success;
}

static void disturb_all_calls(struct race *race)
{
	const char *why;

	if (!race->delayed)
		unpin();
	while (!race->over) {
		const unsigned int call = race->disturbed + 1;

		if (race->called < call) {
			nap();
			continue;
		}
		if (race->delayed && !race->at_once)
			race->met = wait_until_asleep(race, call);
		why = race->disturb(race);
		if (why)
			snprintf(race->complaint, sizeof(race->complaint), "disturber: %s", why);
		race->disturbed = call;
	}
}

static void *disturbing_thread(void *arg)
{
	disturb_all_calls(arg);
	return NULL;
}

static void start_thread(META, struct race *race, const char *(*disturb)(struct race *race))
{
	race->disturb = disturb;
	ASSERT_EQ(0, pthread_create(&race->thread, NULL, disturbing_thread, race));
}

/* Before anything is mapped that the process is not to have a copy of. */
static void start_process(META, struct race *race, const char *(*disturb)(struct race *race))
{
	pid_t child;

	race->disturb = disturb;
	child = fork();
	ASSERT_LE(0, child);
	if (child) {
		race->child = child;
		return;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	disturb_all_calls(race);
	_exit(0);
}

/* If the disturber is gone, the test is over. */
static void wait_for_disturber(struct race *race)
{
	while (race->disturbed < race->called) {
		if (race->child && waitpid(race->child, NULL, WNOHANG)) {
			fputs("# the disturber is gone\n", stderr);
			abort();
		}
		nap();
	}
}

/* A call of the mover. It is over when the disturber is done, too. */
static unsigned long raced(struct race *race, unsigned long addr, size_t len,
			   unsigned long flags, unsigned long to)
{
	unsigned long ret;

	race->called++;
	ret = do_mremap(addr, len, len, flags, to);
	race->returned++;
	wait_for_disturber(race);
	return ret;
}

static unsigned long raced_move(struct race *race, unsigned long flags)
{
	return raced(race, SRC, race->len, flags, race->dst);
}

static const char *complaint_of(struct race *race)
{
	return *race->complaint ? race->complaint : NULL;
}

static __thread sigjmp_buf writer_env;

static void writer_fault(int signal)
{
	(void)signal;
	siglongjmp(writer_env, 1);
}

static bool count_on(struct race *race)
{
	race->found = race->written;
	return __atomic_compare_exchange_n(race->where, &race->found,
					   race->written + 1, false,
					   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void *run_writer(void *arg)
{
	struct race *race = arg;
	bool stop = false;

	stay_on_processor(CPU_OF_WRITER);
	if (sigsetjmp(writer_env, 1))
		return NULL;
	while (!stop) {
		stop = race->stop;
		if (!race->is_counter) {
			*race->where = race->written + 1;
		} else if (!count_on(race)) {
			race->was_changed = true;
			break;
		}
		race->written++;
	}
	return NULL;
}

/* A word of a page that is no part of its stamp. */
#define COUNTER	2

static volatile uint64_t *counter_at(unsigned long page)
{
	return (volatile uint64_t *)at(page) + COUNTER;
}

static void start_writer(META, struct race *race, unsigned long page, bool is_counter)
{
	race->where = counter_at(page);
	race->is_counter = is_counter;
	race->stop = false;
	race->was_changed = false;
	race->written = 1;
	*race->where = 1;
	ASSERT_EQ(0, pthread_create(&race->writer, NULL, run_writer, race));
	while (race->written < 100)
		nap();
}

static void end_writer(struct race *race)
{
	race->stop = true;
	pthread_join(race->writer, NULL);
}

/*
 * How the entries go, and where the kernel stops: single entries of a table that
 * has others as well, a table whole, or the entries of a table taken out.
 */
FIXTURE(race)
{
	struct race *race;
};

FIXTURE_VARIANT(race)
{
	size_t pages;
	size_t offset;	/* of the destination, in pages */
	enum point point;
};

FIXTURE_VARIANT_ADD(race, entries_planned) { 16, 5, PLANNED };
FIXTURE_VARIANT_ADD(race, entries_moved) { 16, 5, MOVED };
FIXTURE_VARIANT_ADD(race, table_planned) { 512, 0, PLANNED };
FIXTURE_VARIANT_ADD(race, table_moved) { 512, 0, MOVED };
FIXTURE_VARIANT_ADD(race, table_to_detach) { 512, 5, PLANNED };
FIXTURE_VARIANT_ADD(race, table_detached) { 512, 5, DETACHED };
FIXTURE_VARIANT_ADD(race, table_detach_flushed) { 512, 5, DETACH_FLUSHED };
FIXTURE_VARIANT_ADD(race, entries_undelayed) { 16, 5, UNDELAYED };
FIXTURE_VARIANT_ADD(race, table_undelayed) { 512, 0, UNDELAYED };
FIXTURE_VARIANT_ADD(race, table_to_detach_undelayed) { 512, 5, UNDELAYED };

/* NULL: something is missing, and the test is skipped. */
static struct race *set_up(META, enum point point, size_t len, unsigned long dst)
{
	struct race *race = mmap(NULL, sizeof(*race), PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, race);
	race->mover = getpid();
	race->fd = -1;
	race->len = len;
	race->dst = dst;
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return NULL, "needs two processors");
	set_no_delays();
	race->delayed = point != UNDELAYED;
	if (race->delayed && !set_delay(point, DELAY))
		SKIP(return NULL, NEEDS_DELAYS);
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	signal(SIGSEGV, writer_fault);
	stay_on_processor(CPU_OF_MOVER);
	return race;
}

/* Delayed until the disturber has got its way, else a few times as it comes. */
static bool another_round(struct race *race)
{
	const unsigned int most = race->delayed ? MOST_ROUNDS : 5;

	if (race->round == most || (race->delayed && race->successes))
		return false;
	race->round++;
	return true;
}

static void end_race(META, struct race *race)
{
	if (race->delayed && race->round)
		EXPECT_LT(0, race->successes)
			TH_LOG("the disturber never got its way");
	race->over = true;
	if (race->thread)
		pthread_join(race->thread, NULL);
	if (race->child)
		waitpid(race->child, NULL, 0);
	set_no_delays();
}

FIXTURE_SETUP(race)
{
	self->race = set_up(_metadata, variant->point, bytes(variant->pages),
			    DST + bytes(variant->offset));
}

FIXTURE_TEARDOWN(race)
{
	end_race(_metadata, self->race);
}

static void map_shared(META, struct race *race)
{
	ASSERT_EQ(SRC, map_at(SRC, race->len, PROT_READ | PROT_WRITE, MAP_SHARED, race->fd, 0));
	stamp_range(SRC, race->len, 1);
}

static void map_private(META, struct race *race)
{
	ASSERT_EQ(SRC, map_anon(SRC, race->len));
	stamp_range(SRC, race->len, 1);
}

static void unmap_both(struct race *race)
{
	munmap(at(SRC), race->len);
	munmap(at(race->dst), race->len);
}

/* Moves what is mapped, the first page of which is being written to. */
static void move_written_page(META, struct race *race, bool is_counter, int flags)
{
	start_writer(_metadata, race, SRC, is_counter);
	ASSERT_EQ(race->dst, raced_move(race, flags));
	end_writer(race);
	EXPECT_OK(complaint_of(race));
}

/* What the writer has counted is at the new place: all of it, and no more. */
static void expect_counted(META, struct race *race, unsigned long page)
{
	EXPECT_EQ(race->written, *counter_at(page))
		TH_LOG("the writer's last writes are lost");
}

/* Anonymous memory that has moved leaves nothing behind. */
static void expect_counted_until_moved(META, struct race *race)
{
	expect_counted(_metadata, race, race->dst);
	if (race->was_changed)
		EXPECT_EQ(0UL, race->found);
}

/* ---- pages that are freed ---- */

#define REUSED	64

/* Pages freed last are the first that one gets. Does anybody write to them? */
static const char *reuse_pages(struct race *race)
{
	unsigned char *pages = mmap(NULL, bytes(REUSED), PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const char *why = NULL;

	memset(pages, 0x5a, bytes(REUSED));
	let_others_write();
	race->stop = true;
	let_others_write();
	for (size_t i = 0; i < bytes(REUSED); i++)
		if (pages[i] != 0x5a)
			why = "somebody writes to a page that was freed";
	munmap(pages, bytes(REUSED));
	return why;
}

/* The first page only: zapping many of them would flush everything. */
static const char *punch_hole(struct race *race)
{
	if (fallocate(race->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, psize()))
		return "cannot punch a hole";
	count_success(race, true);
	return reuse_pages(race);
}

static void start_punching(META, struct race *race)
{
	race->fd = memfd_create("hole", 0);
	ASSERT_LE(0, race->fd);
	ASSERT_EQ(0, ftruncate(race->fd, race->len));
	start_process(_metadata, race, punch_hole);
}

TEST_F_TIMEOUT(race, hole_is_punched, TIMEOUT)
{
	struct race *race = self->race;

	start_punching(_metadata, race);
	while (another_round(race)) {
		map_shared(_metadata, race);
		move_written_page(_metadata, race, false, FIXED | DONTUNMAP);
		EXPECT_OK(check_stamps(race->dst + psize(), race->len - psize(), 2));
		unmap_both(race);
	}
}

/* By less than the length, in place or by way of a staging place. */
FIXTURE(shift)
{
	struct race *race;
};

FIXTURE_VARIANT(shift)
{
	size_t pages;
	enum point point;
};

FIXTURE_VARIANT_ADD(shift, planned) { 16, PLANNED };
FIXTURE_VARIANT_ADD(shift, set_aside) { 16, DETACH_FLUSHED };
FIXTURE_VARIANT_ADD(shift, moved) { 16, MOVED };
FIXTURE_VARIANT_ADD(shift, staged) { 600, MOVED };
FIXTURE_VARIANT_ADD(shift, undelayed) { 16, UNDELAYED };
FIXTURE_VARIANT_ADD(shift, staged_undelayed) { 600, UNDELAYED };

FIXTURE_SETUP(shift)
{
	SKIP_STOCK("stock 6.12 does not know of MREMAP_OVERLAP");
	self->race = set_up(_metadata, variant->point, bytes(variant->pages), SRC + bytes(3));
}

FIXTURE_TEARDOWN(shift)
{
	end_race(_metadata, self->race);
}

/* Who looks for the page finds it at the one place or at the other. */
TEST_F_TIMEOUT(shift, hole_is_punched_mended, TIMEOUT)
{
	struct race *race = self->race;

	start_punching(_metadata, race);
	while (another_round(race)) {
		map_shared(_metadata, race);
		move_written_page(_metadata, race, false, OVERLAP);
		EXPECT_OK(check_zero(race->dst, psize()));
		EXPECT_OK(check_stamps(race->dst + psize(), race->len - psize(), 2));
		munmap(at(race->dst), race->len);
	}
}

/* A table of page tables moves as one entry. */
TEST(directory_loses_page)
{
	const size_t last = pud_span() - psize();
	struct race *race = set_up(_metadata, MOVED, pud_span(), DST);

	if (!race)
		return;
	start_punching(_metadata, race);
	while (another_round(race)) {
		ASSERT_EQ(SRC, map_at(SRC, race->len, PROT_READ | PROT_WRITE,
				      MAP_SHARED, race->fd, 0));
		stamp(SRC + last, 1);
		move_written_page(_metadata, race, false, FIXED | DONTUNMAP);
		EXPECT_OK(check_stamp(race->dst + last, 1));
		unmap_both(race);
	}
	end_race(_metadata, race);
}

/* ---- pages that are cleaned ---- */

/* After this, the writer's last write has to make the page dirty again. */
static const char *clean_first_page(struct race *race)
{
	if (sync_file_range(race->fd, 0, psize(), SYNC_FILE_RANGE_WAIT_BEFORE |
			    SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER))
		return "cannot write the page";
	count_success(race, true);
	race->stop = true;
	let_others_write();
	return NULL;
}

static uint64_t read_from_disk(struct race *race)
{
	void *page = aligned_alloc(psize(), psize());
	uint64_t count = 0;

	if (!fsync(race->fd) && pread(race->direct, page, psize(), 0) == (ssize_t)psize())
		count = *counter_at((unsigned long)page);
	free(page);
	return count;
}

TEST_F_TIMEOUT(race, file_is_cleaned, TIMEOUT)
{
	struct race *race = self->race;

	NEED(open_on_disk(race->len, &race->fd, &race->direct), NEEDS_DISK);
	start_process(_metadata, race, clean_first_page);
	while (another_round(race)) {
		map_shared(_metadata, race);
		/* The less there is to write during the call, the better. */
		ASSERT_EQ(0, fsync(race->fd));
		move_written_page(_metadata, race, false, FIXED | DONTUNMAP);
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		expect_counted(_metadata, race, race->dst);
		unmap_both(race);
		EXPECT_EQ(race->written, read_from_disk(race))
			TH_LOG("what was written last is not on the disk");
	}
}

/* ---- page tables that are retracted ---- */

static const char *collapse_file(struct race *race)
{
	static bool is_mapped;

	if (!is_mapped && mmap(at(VIEW), pmd_span(), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, race->fd, 0) ==
	    MAP_FAILED)
		return "cannot map the file";
	is_mapped = true;
	/* There must be a page table. */
	(void)*(volatile char *)at(VIEW);
	count_success(race, !madvise(at(VIEW), pmd_span(), MADV_COLLAPSE));
	return NULL;
}

static bool can_collapse(struct race *race)
{
	bool done;

	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
	done = mmap(at(VIEW), pmd_span(), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED, race->fd, 0) != MAP_FAILED;
	stamp(VIEW, 1);
	done = done && !madvise(at(VIEW), pmd_span(), MADV_COLLAPSE);
	munmap(at(VIEW), pmd_span());
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	return done;
}

/*
 * The file becomes a huge page. Others who map it lose their page tables, and
 * nobody asks for their mmap_lock.
 */
TEST_F_TIMEOUT(race, file_is_collapsed, TIMEOUT)
{
	struct race *race = self->race;

	race->fd = memfd_create("collapsed", 0);
	ASSERT_LE(0, race->fd);
	ASSERT_EQ(0, ftruncate(race->fd, pmd_span()));
	NEED(can_collapse(race), "needs shared memory that collapses to huge pages");
	start_process(_metadata, race, collapse_file);
	while (another_round(race)) {
		/* Small pages again. */
		ASSERT_EQ(0, ftruncate(race->fd, 0));
		ASSERT_EQ(0, ftruncate(race->fd, pmd_span()));
		map_shared(_metadata, race);
		move_written_page(_metadata, race, true, FIXED | DONTUNMAP);
		EXPECT_FALSE(race->was_changed);
		expect_counted(_metadata, race, race->dst);
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		EXPECT_OK(check_stamps(SRC, race->len, 1));
		unmap_both(race);
	}
}

/* ---- pages that are migrated ---- */

/* Which page frames the pages are in; one that is in none is somewhere else, too. */
static uint64_t frame_of(uint64_t entry)
{
	return entry & PM_PRESENT ? PAGEMAP_PFN(entry) : 0;
}

static void save_frames(META, struct race *race)
{
	pagemap_bits(SRC, race->len / psize(), race->frames);
	for (size_t i = 0; i < race->len / psize(); i++)
		ASSERT_NE(0UL, frame_of(race->frames[i]))
			TH_LOG("page frame numbers are for root");
}

/* Before the pages are read, which brings back those that are swapped out. */
static bool have_new_frames(struct race *race)
{
	static uint64_t now[MAX_PAGES];
	const size_t nr = race->len / psize();

	pagemap_bits(race->dst, nr, now);
	for (size_t i = 0; i < nr; i++)
		if (frame_of(now[i]) != frame_of(race->frames[i]))
			return true;
	return false;
}

/*
 * While a page migrates, its entry is none of a page. As the disturber has the
 * same processor, that lasts until the mover sleeps.
 */
static bool has_migrating_pages(struct race *race)
{
	static uint64_t entries[MAX_PAGES];
	const size_t nr = race->len / psize();

	pagemap_bits(SRC, nr, entries);
	for (size_t i = 0; i < nr; i++)
		if (!(entries[i] & PM_PRESENT))
			return true;
	return false;
}

/* The disturber goes first. */
static unsigned long move_while_migrating(struct race *race)
{
	unsigned long ret;

	race->called++;
	race->met = false;
	while (!race->met && race->disturbed < race->called) {
		race->met = has_migrating_pages(race);
		if (!race->met)
			nap();
	}
	ret = do_mremap(SRC, race->len, race->len, FIXED | DONTUNMAP, race->dst);
	race->returned++;
	wait_for_disturber(race);
	return ret;
}

/* To the node where they are not. They are looked up under mmap_lock, but migrate without it. */
static const char *migrate_memory(struct race *race)
{
	static void *pages[MAX_PAGES];
	static int nodes[MAX_PAGES], status[MAX_PAGES];
	const size_t nr = race->len / psize();

	for (size_t i = 0; i < nr; i++)
		pages[i] = at(SRC + bytes(i));
	if (syscall(__NR_move_pages, race->mover, nr, pages, NULL, status, 0))
		return "cannot see where the pages are";
	for (size_t i = 0; i < nr; i++)
		nodes[i] = !status[0];
	if (syscall(__NR_move_pages, race->mover, nr, pages, nodes, status, MPOL_MF_MOVE_ALL) < 0)
		return "cannot move the pages";
	return NULL;
}

TEST_F_TIMEOUT(race, memory_is_migrated, TIMEOUT)
{
	struct race *race = self->race;

	NEED(!access("/sys/devices/system/node/node1", F_OK),
	     "needs two NUMA nodes (or numa=fake=2)");
	race->at_once = true;
	start_process(_metadata, race, migrate_memory);
	while (another_round(race)) {
		map_private(_metadata, race);
		save_frames(_metadata, race);
		start_writer(_metadata, race, SRC, true);
		ASSERT_EQ(race->dst, move_while_migrating(race));
		count_success(race, have_new_frames(race));
		end_writer(race);
		EXPECT_OK(complaint_of(race));
		expect_counted_until_moved(_metadata, race);
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		unmap_both(race);
	}
}

/* ---- pages that are swapped out ---- */

/* It may get less than it asks for. */
static const char *reclaim_memory(struct race *race)
{
	(void)race;
	for (int i = 0; i < 3; i++)
		write_setting(OWN_CGROUP "memory.reclaim", "1M");
	return NULL;
}

TEST_F_TIMEOUT(race, memory_is_reclaimed, TIMEOUT)
{
	struct race *race = self->race;

	NEED(meminfo_kb("SwapFree") > 0, "needs swap space");
	start_process(_metadata, race, reclaim_memory);
	NEED(enter_group(), NEEDS_CGROUP);
	while (another_round(race)) {
		map_private(_metadata, race);
		save_frames(_metadata, race);
		start_writer(_metadata, race, SRC, true);
		ASSERT_EQ(race->dst, raced_move(race, FIXED | DONTUNMAP));
		/* Reclaim passes over pages whose rmap locks are taken. */
		if (variant->point != PLANNED || have_new_frames(race))
			count_success(race, true);
		end_writer(race);
		expect_counted_until_moved(_metadata, race);
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		unmap_both(race);
	}
	leave_group();
}

/* ---- pages that others hold ---- */

/* What is on the disk, and what was in memory before. */
#define ON_DISK	5000

static const char *read_into_source(struct race *race)
{
	race->got = pread(race->direct, at(SRC), race->len, 0);
	count_success(race, true);
	return race->got == (long)race->len ? NULL : "cannot read all of it";
}

/* Read to the pages that have moved, or to those that came after them. */
static const char *check_read_pages(struct race *race)
{
	const char *why = NULL;

	for (long done = 0; !why && done < race->got; done += psize()) {
		const unsigned long nr = done / psize();

		if (check_stamp(SRC + done, ON_DISK + nr))
			why = check_stamp(race->dst + done, ON_DISK + nr);
		else
			why = check_stamp(race->dst + done, 1 + nr);
	}
	return why;
}

TEST_F_TIMEOUT(race, direct_read, TIMEOUT)
{
	struct race *race = self->race;

	NEED(open_on_disk(race->len, &race->fd, &race->direct), NEEDS_DISK);
	map_shared(_metadata, race);
	stamp_range(SRC, race->len, ON_DISK);
	munmap(at(SRC), race->len);
	ASSERT_EQ(0, fsync(race->fd));
	start_thread(_metadata, race, read_into_source);
	while (another_round(race)) {
		map_private(_metadata, race);
		ASSERT_EQ(race->dst, raced_move(race, FIXED | DONTUNMAP));
		EXPECT_OK(complaint_of(race));
		EXPECT_OK(check_read_pages(race));
		unmap_both(race);
	}
}

#define SPLICED	16

static const char *splice_source(struct race *race)
{
	struct iovec source = { at(SRC), bytes(SPLICED) };

	race->got = vmsplice(race->pipe[1], &source, 1, SPLICE_F_NONBLOCK);
	return NULL;
}

/* The pages in the pipe are the very ones that are at the new place now. */
static const char *check_spliced_pages(struct race *race)
{
	static char page[64 * KB];
	const char *why = NULL;

	for (long done = 0; done < race->got; done += psize()) {
		if (read(race->pipe[0], page, psize()) != (ssize_t)psize())
			return "cannot read the pipe";
		why = why ?: check_stamp((unsigned long)page, ON_DISK + done / psize());
	}
	return why;
}

TEST_F_TIMEOUT(race, pages_in_a_pipe, TIMEOUT)
{
	struct race *race = self->race;

	ASSERT_EQ(0, pipe(race->pipe));
	start_thread(_metadata, race, splice_source);
	while (another_round(race)) {
		map_private(_metadata, race);
		ASSERT_EQ(race->dst, raced_move(race, FIXED));
		/* At a later point there is no way to the pages. */
		if (variant->point != PLANNED || race->got == (long)bytes(SPLICED))
			count_success(race, true);
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		stamp_range(race->dst, race->len, ON_DISK);
		EXPECT_OK(check_spliced_pages(race));
		munmap(at(race->dst), race->len);
	}
}

/* ---- page tables that others make ---- */

/* In the second half of the last table that the new place reaches into. */
static unsigned long neighbour_of(struct race *race)
{
	const unsigned long last = race->dst + race->len - 1;

	return (last & -pmd_span()) + pmd_span() / 2 + pmd_span() *
	       (race->len == pmd_span() && race->dst == DST);
}

#define TOUCHED	8

static const char *touch_neighbour(struct race *race)
{
	stamp_range(neighbour_of(race), bytes(TOUCHED), 7000);
	/* Nobody has to wait for a neighbour's move. */
	count_success(race, race->returned < race->called);
	return NULL;
}

/*
 * It has no table there yet, but pages elsewhere, and so it can be faulted in
 * without mmap_lock.
 */
TEST_F_TIMEOUT(race, neighbour_is_touched, TIMEOUT)
{
	struct race *race = self->race;
	const unsigned long neighbour = neighbour_of(race);

	start_thread(_metadata, race, touch_neighbour);
	while (another_round(race)) {
		map_private(_metadata, race);
		ASSERT_EQ(neighbour, map_anon(neighbour, pmd_span()));
		stamp(neighbour + pmd_span() - psize(), 1);
		ASSERT_EQ(race->dst, raced_move(race, FIXED | DONTUNMAP));
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		EXPECT_OK(check_stamps(neighbour, bytes(TOUCHED), 7000));
		EXPECT_OK(check_stamp(neighbour + pmd_span() - psize(), 1));
		EXPECT_OK(check_zero(SRC, race->len));
		unmap_both(race);
		munmap(at(neighbour), pmd_span());
	}
}

/* ---- page tables that are shared with UFFDIO_MOVE ---- */

/* Two places beside the old and the new one, in the same tables. */
#define BESIDE_SRC	(SRC + bytes(64))
#define BESIDE_DST	(DST + bytes(64))
#define EXCHANGED	16

static const char *move_by_uffd(int fd, unsigned long from, unsigned long to)
{
	struct uffdio_move move = { .dst = to, .src = from, .len = bytes(EXCHANGED) };

	return ioctl(fd, UFFDIO_MOVE, &move) ? "UFFDIO_MOVE failed" : NULL;
}

/* There and back, in either order of the page table locks. */
static const char *exchange_pages(struct race *race)
{
	const char *why = NULL;

	for (int i = 0; !why && i < 10; i++) {
		why = move_by_uffd(race->fd, BESIDE_SRC, BESIDE_DST);
		why = why ?: move_by_uffd(race->fd, BESIDE_DST, BESIDE_SRC);
	}
	count_success(race, !why);
	return why;
}

static void map_registered(META, int fd, unsigned long addr)
{
	struct uffdio_register reg = {
		.range = { addr, bytes(EXCHANGED) },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	ASSERT_EQ(addr, map_anon(addr, bytes(EXCHANGED)));
	if (addr == BESIDE_SRC)
		stamp_range(addr, bytes(EXCHANGED), 3000);
	ASSERT_EQ(0, ioctl(fd, UFFDIO_REGISTER, &reg));
}

/* Only single entries share their tables with somebody. */
FIXTURE(exchange)
{
	struct race *race;
};

FIXTURE_VARIANT(exchange)
{
	enum point point;
};

FIXTURE_VARIANT_ADD(exchange, planned) { PLANNED };
FIXTURE_VARIANT_ADD(exchange, moved) { MOVED };
FIXTURE_VARIANT_ADD(exchange, undelayed) { UNDELAYED };

FIXTURE_SETUP(exchange)
{
	self->race = set_up(_metadata, variant->point, bytes(32), DST + bytes(5));
}

FIXTURE_TEARDOWN(exchange)
{
	end_race(_metadata, self->race);
}

TEST_F_TIMEOUT(exchange, pages_are_exchanged, TIMEOUT)
{
	struct race *race = self->race;

	race->fd = open_uffd(UFFD_FEATURE_MOVE);
	NEED(race->fd >= 0, "needs userfaultfd with UFFDIO_MOVE");
	map_registered(_metadata, race->fd, BESIDE_SRC);
	map_registered(_metadata, race->fd, BESIDE_DST);
	start_thread(_metadata, race, exchange_pages);
	while (another_round(race)) {
		map_private(_metadata, race);
		ASSERT_EQ(race->dst, raced_move(race, FIXED));
		EXPECT_OK(complaint_of(race));
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		EXPECT_OK(check_stamps(BESIDE_SRC, bytes(EXCHANGED), 3000));
		munmap(at(race->dst), race->len);
	}
}

/* ---- huge pages that are split ---- */

#define SPLIT_ALL	"/sys/kernel/debug/split_huge_pages"

FIXTURE(huge)
{
	struct race *race;
};

/* With soft-dirty tracking, tables of a mapping that was merged stay in place. */
FIXTURE_VARIANT(huge)
{
	bool tracked;
	size_t offset;	/* of the destination, in pages */
	enum point point;
};

FIXTURE_VARIANT_ADD(huge, planned) { false, 0, PLANNED };
FIXTURE_VARIANT_ADD(huge, moved) { false, 0, MOVED };
FIXTURE_VARIANT_ADD(huge, split_planned) { false, 5, PLANNED };
FIXTURE_VARIANT_ADD(huge, tracked_planned) { true, 0, PLANNED };
FIXTURE_VARIANT_ADD(huge, tracked_detached) { true, 0, DETACHED };
FIXTURE_VARIANT_ADD(huge, undelayed) { false, 0, UNDELAYED };
FIXTURE_VARIANT_ADD(huge, tracked_undelayed) { true, 0, UNDELAYED };

static const char *split_all(struct race *race)
{
	const long before = vm_counter("thp_split_page");

	if (!write_setting(SPLIT_ALL, "1"))
		return "cannot split huge pages";
	count_success(race, vm_counter("thp_split_page") > before);
	return NULL;
}

FIXTURE_SETUP(huge)
{
	const size_t len = 2 * pmd_span();

	NEED(!access(SPLIT_ALL, W_OK), "needs " SPLIT_ALL);
	NEED(!variant->tracked || softdirty_supported(), "needs CONFIG_MEM_SOFT_DIRTY");
	self->race = set_up(_metadata, variant->point, len,
			    variant->tracked ? SRC + len : DST + bytes(variant->offset));
	prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
}

FIXTURE_TEARDOWN(huge)
{
	end_race(_metadata, self->race);
}

/* One table of small pages, then a huge page. */
static void map_small_and_huge(META, struct race *race, unsigned long addr)
{
	ASSERT_EQ(addr, map_anon(addr, race->len));
	ASSERT_EQ(0, madvise(at(addr), race->len, MADV_NOHUGEPAGE));
	stamp_range(addr, race->len / 2, 1);
	ASSERT_EQ(0, madvise(at(addr), race->len, MADV_HUGEPAGE));
	stamp_range(addr + race->len / 2, race->len / 2, 1 + table_pages());
}

/* So that the new place is merged with a neighbour below, which is clean. */
static void map_clean_neighbour(META, struct race *race)
{
	ASSERT_EQ(SRC, map_anon(SRC, 2 * race->len));
	ASSERT_EQ(0, madvise(at(SRC), 2 * race->len, MADV_NOHUGEPAGE));
	stamp_range(SRC, psize(), 1);
	stamp_range(race->dst, race->len / 2, 1);
	ASSERT_EQ(0, madvise(at(SRC), 2 * race->len, MADV_HUGEPAGE));
	stamp_range(race->dst + race->len / 2, race->len / 2, 1 + table_pages());
	ASSERT_EQ(DST, move_to(race->dst, race->len, race->len, DST));
	clear_softdirty();
}

TEST_F_TIMEOUT(huge, pages_are_split, TIMEOUT)
{
	struct race *race = self->race;
	const unsigned long src = variant->tracked ? DST : SRC;

	start_process(_metadata, race, split_all);
	while (another_round(race)) {
		if (variant->tracked)
			map_clean_neighbour(_metadata, race);
		else
			map_small_and_huge(_metadata, race, src);
		if (smaps_kb(src, "AnonHugePages") <= 0) {
			race->round = 0;
			SKIP(return, "needs transparent huge pages");
		}
		start_writer(_metadata, race, src + race->len / 2, true);
		ASSERT_EQ(race->dst, raced(race, src, race->len, FIXED | DONTUNMAP, race->dst));
		end_writer(race);
		EXPECT_OK(complaint_of(race));
		expect_counted(_metadata, race, race->dst + race->len / 2);
		EXPECT_OK(check_stamps(race->dst, race->len, 1));
		EXPECT_OK(check_zero(src, race->len));
		munmap(at(src), race->len);
		munmap(at(SRC), race->dst + race->len - SRC);
	}
}

TEST_HARNESS_MAIN
