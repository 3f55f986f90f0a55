// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) and userfaultfd: registrations, write protection and events.
 *
 * A monitor that asks for UFFD_FEATURE_EVENT_REMAP is told where a mapping
 * went: that stays registered, and what was write-protected stays so. For any
 * other monitor the mapping is lost, and nothing of userfaultfd may be left in
 * it: whoever ran into that would wait for an answer that never comes.
 *
 * Tests whose name ends in _mended fail on stock 6.12, whose bug they catch;
 * MREMAP_EXPECT=base skips them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <poll.h>
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
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define SRC	(WINDOW + 4 * GB)
#define DST	(WINDOW + 8 * GB)
#define THIRD	(WINDOW + 12 * GB)

#define REMAP	UFFD_FEATURE_EVENT_REMAP
#define UNMAP	UFFD_FEATURE_EVENT_UNMAP

#define SKIP_STOCK_BUG()						\
	if (expect_base())						\
		SKIP(return, "a bug of stock 6.12 that this catches")

#define NEED_MONITOR(monitor, features)					\
	if (!start_monitor(monitor, features))				\
		SKIP(return, "%s", lacks_features(features))

/* ---- the monitor ---- */

#define MESSAGES	64

/*
 * A thread, or a process, that reads what a userfaultfd has to tell, writes
 * it down, and answers page faults. mremap() waits until it has done so.
 */
struct monitor {
	int fd;
	uint64_t features;
	size_t page;		/* page size of what is registered */
	void (*answer)(struct monitor *monitor, const struct uffd_msg *msg);
	pthread_t thread;
	int ask[2];
	int reply[2];
	struct uffd_msg got[MESSAGES];
	int nr_got;
	struct uffd_msg want[MESSAGES];
	int nr_want;
};

/* Write protection where there is no page of anonymous memory. */
#define WITH_MARKERS							\
	(UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED |	\
	 UFFD_FEATURE_WP_ASYNC)

/* Why a userfaultfd with these features cannot be had. */
static const char *lacks_features(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return "needs userfaultfd (CONFIG_USERFAULTFD)";
	close(fd);
	features &= ~api.features;
	if (features & WITH_MARKERS)
		return "needs CONFIG_PTE_MARKER_UFFD_WP";
	return complain("needs userfaultfd with features %#llx",
			(unsigned long long)features);
}

/* All of these return 0 or the errno. */
static int register_range(int fd, unsigned long addr, size_t len, uint64_t mode)
{
	struct uffdio_register reg = { .range = { addr, len }, .mode = mode };

	return ioctl(fd, UFFDIO_REGISTER, &reg) ? errno : 0;
}

#define MISSING		UFFDIO_REGISTER_MODE_MISSING
#define WP		UFFDIO_REGISTER_MODE_WP
#define MINOR		UFFDIO_REGISTER_MODE_MINOR

static int unregister_range(int fd, unsigned long addr, size_t len)
{
	struct uffdio_range range = { addr, len };

	return ioctl(fd, UFFDIO_UNREGISTER, &range) ? errno : 0;
}

static int set_protection(int fd, unsigned long addr, size_t len, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { addr, len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &wp) ? errno : 0;
}

static int fill_by_copy(int fd, unsigned long addr, size_t len,
			unsigned long from)
{
	struct uffdio_copy copy = { .dst = addr, .src = from, .len = len };

	return ioctl(fd, UFFDIO_COPY, &copy) ? errno : 0;
}

static int fill_by_move(int fd, unsigned long addr, size_t len,
			unsigned long from)
{
	struct uffdio_move move = { .dst = addr, .src = from, .len = len };

	return ioctl(fd, UFFDIO_MOVE, &move) ? errno : 0;
}

static int fill_with_zero(int fd, unsigned long addr, size_t len)
{
	struct uffdio_zeropage zero = { .range = { addr, len } };

	return ioctl(fd, UFFDIO_ZEROPAGE, &zero) ? errno : 0;
}

static int map_cached(int fd, unsigned long addr, size_t len)
{
	struct uffdio_continue cont = { .range = { addr, len } };

	return ioctl(fd, UFFDIO_CONTINUE, &cont) ? errno : 0;
}

static int poison(int fd, unsigned long addr, size_t len)
{
	struct uffdio_poison poison = { .range = { addr, len } };

	return ioctl(fd, UFFDIO_POISON, &poison) ? errno : 0;
}

static void wake(int fd, unsigned long addr, size_t len)
{
	struct uffdio_range range = { addr, len };

	ioctl(fd, UFFDIO_WAKE, &range);
}

/* What missing pages are filled with: FILLED, FILLED + 1, ... */
#define FILLED	5000

static uint64_t filling[2 * MB / sizeof(uint64_t)];

/* Whoever cannot be answered now shall ask again. */
static void answer_fault(struct monitor *monitor, const struct uffd_msg *msg)
{
	const size_t len = monitor->page;
	const unsigned long addr = msg->arg.pagefault.address & -len;
	int err;

	if (msg->event != UFFD_EVENT_PAGEFAULT)
		return;
	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
		err = set_protection(monitor->fd, addr, len, false);
	else if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR)
		err = map_cached(monitor->fd, addr, len);
	else
		err = fill_by_copy(monitor->fd, addr, len,
				   (unsigned long)filling);
	if (err)
		wake(monitor->fd, addr, len);
}

static void take_message(struct monitor *monitor)
{
	struct uffd_msg msg;

	if (read(monitor->fd, &msg, sizeof(msg)) != sizeof(msg))
		return;
	if (monitor->nr_got < MESSAGES)
		monitor->got[monitor->nr_got] = msg;
	monitor->nr_got++;
	monitor->answer(monitor, &msg);
}

static void *run_monitor(void *arg)
{
	struct monitor *monitor = arg;
	struct pollfd fds[] = {
		{ .fd = monitor->fd, .events = POLLIN },
		{ .fd = monitor->ask[0], .events = POLLIN },
	};
	char what = 0;

	while (what != 'q' && poll(fds, 2, -1) > 0) {
		if (fds[0].revents & POLLIN) {
			take_message(monitor);
		} else if (fds[1].revents) {
			if (read(monitor->ask[0], &what, 1) != 1 ||
			    write(monitor->reply[1], &what, 1) != 1)
				break;
		}
	}
	return NULL;
}

static bool open_monitor(struct monitor *monitor, uint64_t features)
{
	monitor->features = features;
	monitor->answer = monitor->answer ?: answer_fault;
	monitor->page = monitor->page ?: psize();
	for (size_t done = 0; done < monitor->page; done += psize())
		stamp((unsigned long)filling + done, FILLED + done / psize());
	monitor->fd = open_uffd(features);
	return monitor->fd >= 0 && !pipe(monitor->ask) && !pipe(monitor->reply);
}

static bool start_monitor(struct monitor *monitor, uint64_t features)
{
	return open_monitor(monitor, features) &&
	       !pthread_create(&monitor->thread, NULL, run_monitor, monitor);
}

/* Everything that was there to read when this is called has been read after. */
static bool ask_monitor(struct monitor *monitor, char what)
{
	return write(monitor->ask[1], &what, 1) == 1 &&
	       read(monitor->reply[0], &what, 1) == 1;
}

static struct uffd_msg *next_wanted(struct monitor *monitor)
{
	return &monitor->want[monitor->nr_want++];
}

static void want_remap(struct monitor *monitor, unsigned long from,
		       unsigned long to, size_t len)
{
	if (monitor->features & REMAP)
		*next_wanted(monitor) = (struct uffd_msg) {
			.event = UFFD_EVENT_REMAP,
			.arg.remap = { from, to, len },
		};
}

static void want_unmap(struct monitor *monitor, unsigned long start, size_t len)
{
	if (monitor->features & UNMAP)
		*next_wanted(monitor) = (struct uffd_msg) {
			.event = UFFD_EVENT_UNMAP,
			.arg.remove = { start, start + len },
		};
}

/* A fault is missing unless flags say that it is another kind of fault. */
static void want_fault(struct monitor *monitor, unsigned long addr,
		       uint64_t flags)
{
	*next_wanted(monitor) = (struct uffd_msg) {
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault = { .flags = flags, .address = addr },
	};
}

/* Leave only what a test can foresee. */
static void trim_message(struct uffd_msg *msg, size_t page)
{
	if (msg->event != UFFD_EVENT_PAGEFAULT)
		return;
	msg->arg.pagefault.address &= -page;
	msg->arg.pagefault.flags &= UFFD_PAGEFAULT_FLAG_WP |
				    UFFD_PAGEFAULT_FLAG_MINOR;
}

/* The messages are the wanted ones, in their order. Then starts a new list. */
static const char *check_events(struct monitor *monitor)
{
	const int nr_want = monitor->nr_want;
	int nr_got;

	if (!ask_monitor(monitor, 'p'))
		return "the monitor is gone";
	nr_got = monitor->nr_got;
	monitor->nr_want = 0;
	monitor->nr_got = 0;
	for (int i = 0; i < nr_got && i < nr_want && i < MESSAGES; i++) {
		struct uffd_msg *got = &monitor->got[i];
		struct uffd_msg *want = &monitor->want[i];

		trim_message(got, monitor->page);
		trim_message(want, monitor->page);
		if (!memcmp(got, want, sizeof(*got)))
			continue;
		return complain("event %d: %#x %#llx %#llx %#llx, not %#x %#llx %#llx %#llx",
				i, got->event, got->arg.reserved.reserved1,
				got->arg.reserved.reserved2,
				got->arg.reserved.reserved3, want->event,
				want->arg.reserved.reserved1,
				want->arg.reserved.reserved2,
				want->arg.reserved.reserved3);
	}
	if (nr_got == nr_want)
		return NULL;
	return complain("%d events, not %d; the first one too many: %#x", nr_got,
			nr_want, nr_got > nr_want ? monitor->got[nr_want].event : 0);
}

/* ---- what can be seen of a mapping ---- */

#define NOT_REGISTERED	""

/* How the mapping that starts at addr is registered. */
static const char *registration(unsigned long addr)
{
	const char *const modes[] = { "um", "uw", "ui" };
	static char found[16];
	struct vma vma;

	if (!find_vma(addr, &vma) || vma.start != addr)
		return "not mapped";
	found[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		if (!has_vmflag(addr, modes[i]))
			continue;
		if (found[0])
			strcat(found, " ");
		strcat(found, modes[i]);
	}
	return found;
}

/* What is left of a registration after a move. */
static const char *if_followed(const struct monitor *monitor, const char *modes)
{
	return monitor->features & REMAP ? modes : NOT_REGISTERED;
}

static size_t count_protected(unsigned long addr, size_t len)
{
	static uint64_t bits[1024];
	size_t count = 0;

	for (size_t done = 0; done < len; done += bytes(1024)) {
		const size_t left = (len - done) / psize();
		const size_t nr = left < 1024 ? left : 1024;

		pagemap_bits(addr + done, nr, bits);
		for (size_t page = 0; page < nr; page++)
			count += !!(bits[page] & PM_UFFD_WP);
	}
	return count;
}

static void no_huge_pages(void)
{
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
}

/* ---- events and registrations ---- */

/* Of the source, which is two tables long, every page that this divides. */
#define STEP	16

static const char *check_sparse(unsigned long addr, size_t first, size_t end)
{
	const char *why = NULL;

	for (size_t page = first; !why && page < end; page++)
		if (page % STEP == 0)
			why = check_stamp(addr + bytes(page), page);
	return why;
}

static const char *check_source(unsigned long addr, size_t len)
{
	return check_sparse(addr, 0, len / psize());
}

/*
 * A page that nobody has touched is the monitor's to fill where it is
 * registered, and empty elsewhere.
 */
static const char *check_fill(struct monitor *monitor, unsigned long addr,
			      bool registered)
{
	if (!registered)
		return check_zero(addr, psize());
	want_fault(monitor, addr, 0);
	return check_stamp(addr, FILLED);
}

FIXTURE(uffd)
{
	struct monitor monitor;
	size_t len;
};

FIXTURE_VARIANT(uffd)
{
	uint64_t features;
};

FIXTURE_VARIANT_ADD(uffd, no_events) { 0 };
FIXTURE_VARIANT_ADD(uffd, remap) { REMAP };
FIXTURE_VARIANT_ADD(uffd, unmap) { UNMAP };
FIXTURE_VARIANT_ADD(uffd, remap_unmap) { REMAP | UNMAP };

FIXTURE_SETUP(uffd)
{
	self->len = 2 * pmd_span();
	NEED_MONITOR(&self->monitor,
		     variant->features | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	no_huge_pages();
	ASSERT_EQ(SRC, map_anon(SRC, self->len));
	for (size_t page = 0; page < self->len / psize(); page += STEP)
		stamp(SRC + bytes(page), page);
	ASSERT_EQ(0, register_range(self->monitor.fd, SRC, self->len,
				    MISSING | WP));
}

FIXTURE_TEARDOWN(uffd)
{
}

TEST_F(uffd, move)
{
	struct monitor *monitor = &self->monitor;
	const bool followed = variant->features & REMAP;

	ASSERT_EQ(DST, move_to(SRC, self->len, self->len, DST));
	want_remap(monitor, SRC, DST, self->len);
	want_unmap(monitor, SRC, self->len);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
	EXPECT_OK(check_unmapped(SRC, self->len));
	EXPECT_OK(check_source(DST, self->len));
	EXPECT_OK(check_fill(monitor, DST + bytes(7), followed));
	EXPECT_OK(check_events(monitor));
}

/* Only the part that moves changes its registration. */
TEST_F(uffd, move_part)
{
	struct monitor *monitor = &self->monitor;
	const size_t first = 300, len = bytes(400);
	const unsigned long from = SRC + bytes(first);

	ASSERT_EQ(DST, move_to(from, len, len, DST));
	want_remap(monitor, from, DST, len);
	want_unmap(monitor, from, len);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_STREQ("um uw", registration(from + len));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
	EXPECT_OK(check_sparse(SRC, 0, first));
	EXPECT_OK(check_sparse(DST - bytes(first), first, first + 400));
	EXPECT_OK(check_sparse(SRC, first + 400, self->len / psize()));
	EXPECT_OK(check_fill(monitor, SRC + bytes(7), true));
	EXPECT_OK(check_events(monitor));
}

/* The event's length is the old one: nothing moved into the rest. */
TEST_F(uffd, move_and_grow)
{
	struct monitor *monitor = &self->monitor;
	const bool followed = variant->features & REMAP;

	ASSERT_EQ(DST, move_to(SRC, self->len, 2 * self->len, DST));
	want_remap(monitor, SRC, DST, self->len);
	want_unmap(monitor, SRC, self->len);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
	EXPECT_OK(check_source(DST, self->len));
	EXPECT_OK(check_fill(monitor, DST + self->len, followed));
	EXPECT_OK(check_events(monitor));
}

/* The same where the kernel chooses the place. */
TEST_F(uffd, grow_by_moving)
{
	struct monitor *monitor = &self->monitor;
	unsigned long to;

	guard_page(SRC + self->len);
	to = do_mremap(SRC, self->len, 2 * self->len, MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(to));
	want_remap(monitor, SRC, to, self->len);
	want_unmap(monitor, SRC, self->len);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(to));
	EXPECT_OK(check_source(to, self->len));
	EXPECT_OK(check_guard_page(SRC + self->len));
}

/* Nothing moves, so there is nothing to tell and nothing to lose. */
TEST_F(uffd, grow_in_place)
{
	const struct vma want = { SRC, SRC + 2 * self->len, "rw-p", 0, 0 };
	struct monitor *monitor = &self->monitor;

	ASSERT_EQ(SRC, do_mremap(SRC, self->len, 2 * self->len, 0, 0));
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_OK(check_vmas(SRC, SRC + 2 * self->len, &want, 1));
	EXPECT_OK(check_fill(monitor, SRC + self->len, true));
	EXPECT_OK(check_events(monitor));
}

/* It meets a mapping that is not registered: they stay two. */
TEST_F(uffd, grow_up_to_a_neighbour)
{
	const unsigned long next = SRC + 2 * self->len;

	ASSERT_EQ(next, map_anon(next, bytes(4)));
	ASSERT_EQ(SRC, do_mremap(SRC, self->len, 2 * self->len, 0, 0));
	EXPECT_OK(check_events(&self->monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_STREQ(NOT_REGISTERED, registration(next));
	EXPECT_OK(check_zero(next, bytes(4)));
}

TEST_F(uffd, shrink_in_place)
{
	struct monitor *monitor = &self->monitor;

	ASSERT_EQ(SRC, do_mremap(SRC, self->len, bytes(3), 0, 0));
	want_unmap(monitor, SRC + bytes(3), self->len - bytes(3));
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_OK(check_sparse(SRC, 0, 3));
}

/* One event tells all that goes, also if other mappings lie in between. */
TEST_F(uffd, shrink_across_mappings)
{
	struct monitor *monitor = &self->monitor;
	const size_t len = self->len;

	ASSERT_EQ(SRC + len, map_at(SRC + len, len, PROT_READ,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ASSERT_EQ(SRC + 2 * len, map_anon(SRC + 2 * len, len));
	ASSERT_EQ(0, register_range(monitor->fd, SRC + 2 * len, len, MISSING));
	ASSERT_EQ(SRC, do_mremap(SRC, 3 * len, bytes(40), 0, 0));
	want_unmap(monitor, SRC + bytes(40), 3 * len - bytes(40));
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_unmapped(SRC + bytes(40), 3 * len - bytes(40)));
	EXPECT_OK(check_sparse(SRC, 0, 40));
}

/*
 * The order is that in which it happened. The length is what has moved, where
 * stock tells the length that the mapping had before it was cut.
 */
TEST_F(uffd, move_and_shrink_mended)
{
	struct monitor *monitor = &self->monitor;
	const size_t half = self->len / 2;

	if (variant->features & REMAP)
		SKIP_STOCK_BUG();
	ASSERT_EQ(DST, map_anon(DST, half));
	ASSERT_EQ(0, register_range(monitor->fd, DST, half, MISSING));
	ASSERT_EQ(DST, move_to(SRC, self->len, half, DST));
	want_unmap(monitor, DST, half);
	want_remap(monitor, SRC, DST, half);
	want_unmap(monitor, SRC + half, half);
	want_unmap(monitor, SRC, half);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
	EXPECT_OK(check_source(DST, half));
	EXPECT_OK(check_unmapped(SRC, self->len));
	EXPECT_OK(check_unmapped(DST + half, half));
}

/* The tail of a shrinking move reaches over a mapping that is not registered. */
TEST_F(uffd, move_and_shrink_across_mappings_mended)
{
	struct monitor *monitor = &self->monitor;
	const size_t len = self->len;

	if (variant->features & REMAP)
		SKIP_STOCK_BUG();
	ASSERT_EQ(SRC + len, map_at(SRC + len, len, PROT_READ,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ASSERT_EQ(DST, move_to(SRC, 2 * len, bytes(40), DST));
	want_remap(monitor, SRC, DST, bytes(40));
	want_unmap(monitor, SRC + bytes(40), 2 * len - bytes(40));
	want_unmap(monitor, SRC, bytes(40));
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_sparse(DST, 0, 40));
	EXPECT_OK(check_unmapped(SRC, 2 * len));
}

/* Another mapping moves over the registered one. */
TEST_F(uffd, destination_is_unmapped)
{
	struct monitor *monitor = &self->monitor;

	ASSERT_EQ(DST, map_anon(DST, bytes(8)));
	stamp_range(DST, bytes(8), 300);
	ASSERT_EQ(SRC + bytes(4), move_to(DST, bytes(8), bytes(8),
					  SRC + bytes(4)));
	want_unmap(monitor, SRC + bytes(4), bytes(8));
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_STREQ(NOT_REGISTERED, registration(SRC + bytes(4)));
	EXPECT_STREQ("um uw", registration(SRC + bytes(12)));
	EXPECT_OK(check_sparse(SRC, 0, 4));
	EXPECT_OK(check_stamps(SRC + bytes(4), bytes(8), 300));
	EXPECT_OK(check_sparse(SRC, 12, self->len / psize()));
}

/* Of a destination that is mapped in part, all is told. */
TEST_F(uffd, destination_with_gaps_is_unmapped)
{
	struct monitor *monitor = &self->monitor;

	for (size_t page = 10; page < 40; page += 10) {
		ASSERT_EQ(DST + bytes(page), map_anon(DST + bytes(page),
						      bytes(5)));
		ASSERT_EQ(0, register_range(monitor->fd, DST + bytes(page),
					    bytes(5), MISSING));
	}
	ASSERT_EQ(DST, move_to(SRC, self->len, self->len, DST));
	want_unmap(monitor, DST, self->len);
	want_remap(monitor, SRC, DST, self->len);
	want_unmap(monitor, SRC, self->len);
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_source(DST, self->len));
}

/* Each monitor hears of what concerns it, and of nothing else. */
TEST_F(uffd, destination_of_two_monitors)
{
	struct monitor *monitor = &self->monitor;
	struct monitor other = {};
	const size_t half = self->len / 2;

	NEED_MONITOR(&other, REMAP | UNMAP);
	ASSERT_EQ(DST, map_anon(DST, self->len));
	ASSERT_EQ(0, register_range(monitor->fd, DST, half, MISSING));
	ASSERT_EQ(0, register_range(other.fd, DST + half, half, MISSING));
	ASSERT_EQ(DST, move_to(SRC, self->len, self->len, DST));
	want_unmap(&other, DST, self->len);
	EXPECT_OK(check_events(&other));
	want_unmap(monitor, DST, self->len);
	want_remap(monitor, SRC, DST, self->len);
	want_unmap(monitor, SRC, self->len);
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_source(DST, self->len));
}

/* The mapping that moves has one monitor, what it moves over has another. */
TEST_F(uffd, over_the_mapping_of_another_monitor)
{
	struct monitor *monitor = &self->monitor;
	struct monitor other = {};

	NEED_MONITOR(&other, REMAP | UNMAP | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	ASSERT_EQ(DST, map_anon(DST, 2 * self->len));
	ASSERT_EQ(0, register_range(other.fd, DST, 2 * self->len,
				    MISSING | WP));
	ASSERT_EQ(DST, move_to(SRC, self->len, self->len, DST));
	want_unmap(&other, DST, self->len);
	EXPECT_OK(check_events(&other));
	want_remap(monitor, SRC, DST, self->len);
	want_unmap(monitor, SRC, self->len);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
	EXPECT_STREQ("um uw", registration(DST + self->len));
	EXPECT_OK(check_fill(&other, DST + self->len + bytes(9), true));
	EXPECT_OK(check_events(&other));
	EXPECT_OK(check_events(monitor));
}

/* A second view of shared memory: nothing leaves the first one. */
TEST_F(uffd, second_view)
{
	struct monitor *monitor = &self->monitor;

	ASSERT_EQ(THIRD, map_at(THIRD, bytes(8), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	stamp_range(THIRD, bytes(8), 20);
	if (register_range(monitor->fd, THIRD, bytes(8), MISSING | WP))
		SKIP(return, "needs write protection of shared memory");
	ASSERT_EQ(0, set_protection(monitor->fd, THIRD, bytes(8), true));
	ASSERT_EQ(DST, move_to(THIRD, 0, bytes(8), DST));
	want_remap(monitor, THIRD, DST, 0);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um uw", registration(THIRD));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
	EXPECT_EQ(8UL, count_protected(THIRD, bytes(8)));
	EXPECT_EQ(0UL, count_protected(DST, bytes(8)));
	EXPECT_OK(check_stamps(DST, bytes(8), 20));
	stamp_range(DST, bytes(8), 40);
	EXPECT_OK(check_stamps(THIRD, bytes(8), 40));
	EXPECT_OK(check_events(monitor));
}

/*
 * What concurrent collectors do: move the pages away and fill the old place on
 * demand. Faults there are delivered with or without the event.
 */
TEST_F(uffd, dontunmap_then_fault)
{
	struct monitor *monitor = &self->monitor;

	ASSERT_EQ(DST, do_mremap(SRC, self->len, self->len, FIXED | DONTUNMAP,
				 DST));
	EXPECT_OK(check_source(DST, self->len));
	EXPECT_OK(check_stamp(SRC + bytes(7), FILLED));
	EXPECT_FALSE(is_present(SRC + bytes(8)));
	want_remap(monitor, SRC, DST, self->len);
	want_fault(monitor, SRC + bytes(7), 0);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
}

/* The old place of a part that has moved stays registered with the rest. */
TEST_F(uffd, dontunmap_part)
{
	const struct vma want = { SRC, SRC + self->len, "rw-p", 0, 0 };
	struct monitor *monitor = &self->monitor;
	const unsigned long from = SRC + bytes(300);

	ASSERT_EQ(DST, do_mremap(from, bytes(400), bytes(400),
				 FIXED | DONTUNMAP, DST));
	want_remap(monitor, from, DST, bytes(400));
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_vmas(SRC, SRC + self->len, &want, 1));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_STREQ(if_followed(monitor, "um uw"), registration(DST));
	EXPECT_OK(check_sparse(DST - bytes(300), 300, 700));
	for (size_t page = 304; page < 700; page += 64)
		EXPECT_OK(check_fill(monitor, SRC + bytes(page), true));
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_sparse(SRC, 0, 300));
	EXPECT_OK(check_sparse(SRC, 700, self->len / psize()));
}

/*
 * An empty mapping moves to the place beside its own. Stock lets it become one
 * with itself and drops that one's registration, so nobody hears of the rest.
 */
TEST_F(uffd, move_aside_mended)
{
	struct monitor *monitor = &self->monitor;
	const bool followed = variant->features & REMAP;
	const unsigned long places[] = {
		THIRD, THIRD + bytes(8), THIRD,
	};

	if (variant->features == UNMAP)
		SKIP_STOCK_BUG();
	ASSERT_EQ(THIRD, map_anon(THIRD, bytes(8)));
	for (size_t i = 0; i + 1 < ARRAY_SIZE(places); i++) {
		const unsigned long from = places[i], to = places[i + 1];

		ASSERT_EQ(0, register_range(monitor->fd, from, bytes(8),
					    MISSING | WP));
		ASSERT_EQ(to, move_to(from, bytes(8), bytes(8), to));
		want_remap(monitor, from, to, bytes(8));
		want_unmap(monitor, from, bytes(8));
		EXPECT_OK(check_events(monitor));
		EXPECT_OK(check_unmapped(from, bytes(8)));
		EXPECT_STREQ(if_followed(monitor, "um uw"), registration(to));
	}
	EXPECT_OK(check_fill(monitor, THIRD + bytes(3), followed));
	EXPECT_OK(check_events(monitor));
}

TEST_F(uffd, dontunmap_aside)
{
	struct monitor *monitor = &self->monitor;
	const unsigned long to = THIRD + bytes(8);
	const bool followed = variant->features & REMAP;

	ASSERT_EQ(THIRD, map_anon(THIRD, bytes(8)));
	ASSERT_EQ(0, register_range(monitor->fd, THIRD, bytes(8), MISSING | WP));
	ASSERT_EQ(to, do_mremap(THIRD, bytes(8), bytes(8), FIXED | DONTUNMAP,
				to));
	want_remap(monitor, THIRD, to, bytes(8));
	EXPECT_OK(check_fill(monitor, THIRD + bytes(7), true));
	EXPECT_OK(check_fill(monitor, to, followed));
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um uw", registration(THIRD));
	if (!followed)
		EXPECT_STREQ(NOT_REGISTERED, registration(to));
}

/* What a locked mapping grows by is faulted in: by the monitor, if asked. */
TEST_F(uffd, locked_growth_in_place)
{
	struct monitor *monitor = &self->monitor;

	ASSERT_EQ(THIRD, map_anon(THIRD, bytes(4)));
	stamp_range(THIRD, bytes(4), 1);
	ASSERT_EQ(0, mlock(at(THIRD), bytes(4)));
	ASSERT_EQ(0, register_range(monitor->fd, THIRD, bytes(4), MISSING));
	ASSERT_EQ(THIRD, do_mremap(THIRD, bytes(4), bytes(6), 0, 0));
	want_fault(monitor, THIRD + bytes(4), 0);
	want_fault(monitor, THIRD + bytes(5), 0);
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_stamps(THIRD, bytes(4), 1));
	EXPECT_OK(check_stamp(THIRD + bytes(4), FILLED));
	EXPECT_OK(check_stamp(THIRD + bytes(5), FILLED));
}

/*
 * The monitor may not fill anything in before it knows of the move, so it has
 * to be told first. Stock waits for the page, then tells.
 */
TEST_F(uffd, locked_growth_by_moving_mended)
{
	struct monitor *monitor = &self->monitor;
	const bool followed = variant->features & REMAP;

	if (followed)
		SKIP_STOCK_BUG();
	ASSERT_EQ(THIRD, map_anon(THIRD, bytes(4)));
	stamp_range(THIRD, bytes(4), 1);
	ASSERT_EQ(0, mlock(at(THIRD), bytes(4)));
	ASSERT_EQ(0, register_range(monitor->fd, THIRD, bytes(4), MISSING));
	ASSERT_EQ(DST, move_to(THIRD, bytes(4), bytes(6), DST));
	want_remap(monitor, THIRD, DST, bytes(4));
	want_unmap(monitor, THIRD, bytes(4));
	EXPECT_OK(check_stamps(DST, bytes(4), 1));
	EXPECT_TRUE(is_present(DST + bytes(4)));
	EXPECT_TRUE(is_present(DST + bytes(5)));
	if (!followed) {
		EXPECT_OK(check_zero(DST + bytes(4), bytes(2)));
		EXPECT_OK(check_events(monitor));
		return;
	}
	want_fault(monitor, DST + bytes(4), 0);
	want_fault(monitor, DST + bytes(5), 0);
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_stamp(DST + bytes(4), FILLED));
	EXPECT_OK(check_stamp(DST + bytes(5), FILLED));
}

TEST_F(uffd, nothing_to_do)
{
	ASSERT_EQ(SRC, do_mremap(SRC, self->len, self->len, 0, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, self->len, self->len, MREMAP_MAYMOVE, 0));
	EXPECT_OK(check_events(&self->monitor));
	EXPECT_STREQ("um uw", registration(SRC));
}

/* A refused call tells nothing and changes nothing. */
TEST_F(uffd, refused_calls)
{
	const size_t len = self->len;

	guard_page(SRC + len);
	save_state();
	EXPECT_EQ(EINVAL, error_of(move_to(SRC, len, len, SRC + bytes(8))));
	EXPECT_EQ(EINVAL, error_of(move_to(SRC, len, len, DST + 1)));
	EXPECT_EQ(EINVAL, error_of(do_mremap(SRC, len, 2 * len, DONTUNMAP, 0)));
	EXPECT_EQ(EINVAL, error_of(do_mremap(SRC, 0, len, MREMAP_MAYMOVE, 0)));
	EXPECT_EQ(ENOMEM, error_of(do_mremap(SRC, len, 2 * len, 0, 0)));
	EXPECT_EQ(EFAULT, error_of(move_to(SRC - bytes(1), len, len, DST)));
	EXPECT_OK(check_state());
	EXPECT_OK(check_events(&self->monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	/* Nor is the monitor kept from working on what has not changed. */
	EXPECT_EQ(0, set_protection(self->monitor.fd, SRC, len, true));
	EXPECT_OK(check_source(SRC, len));
}

/* The same for calls that would be in order, were it not for a limit. */
TEST_F(uffd, refused_for_a_limit)
{
	const long limit = read_long("/proc/sys/vm/max_map_count");
	const size_t len = self->len;
	struct rlimit size = {};
	struct counters now;

	read_counters(&now);
	size.rlim_cur = now.size * KB + bytes(limit + 8);
	size.rlim_max = size.rlim_cur;
	ASSERT_EQ(0, setrlimit(RLIMIT_AS, &size));
	guard_page(SRC + len);
	ASSERT_EQ(THIRD, map_at(THIRD, bytes(limit), PROT_READ,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	save_state();
	EXPECT_EQ(ENOMEM, error_of(move_to(SRC, len, 2 * len, DST)));
	EXPECT_EQ(ENOMEM, error_of(do_mremap(SRC, len, 2 * len, MREMAP_MAYMOVE,
					     0)));
	EXPECT_EQ(ENOMEM, error_of(do_mremap(SRC, len, len, FIXED | DONTUNMAP,
					     DST)));
	EXPECT_OK(check_state());

	/* A page that changes between two that do not makes two mappings more. */
	for (long page = 1; count_vmas() < limit - 3; page += 2)
		ASSERT_EQ(0, mprotect(at(THIRD + bytes(page)), psize(),
				      PROT_NONE));
	save_state();
	EXPECT_EQ(ENOMEM, error_of(move_to(SRC, len, len, DST)));
	EXPECT_EQ(ENOMEM, error_of(move_to(SRC, len, len, THIRD)));
	EXPECT_EQ(ENOMEM, error_of(do_mremap(SRC, len, len, DONTUNMAP, 0)));
	EXPECT_OK(check_state());
	EXPECT_OK(check_events(&self->monitor));
	EXPECT_STREQ("um uw", registration(SRC));
	EXPECT_EQ(0, set_protection(self->monitor.fd, SRC, len, true));
	EXPECT_OK(check_source(SRC, len));
}

/* Stock unmaps the destination, and tells so, before it looks at the source. */
TEST_F(uffd, refused_over_a_destination_mended)
{
	struct monitor *monitor = &self->monitor;
	const size_t len = self->len;

	SKIP_STOCK_BUG();
	ASSERT_EQ(DST, map_anon(DST, len + bytes(4)));
	ASSERT_EQ(0, register_range(monitor->fd, DST, len + bytes(4), MISSING));
	guard_page(SRC + len);
	save_state();
	EXPECT_EQ(EFAULT, error_of(move_to(SRC, len + bytes(4), len + bytes(4),
					   DST)));
	EXPECT_EQ(EINVAL, error_of(move_to(SRC, 0, len, DST)));
	EXPECT_OK(check_state());
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("um", registration(DST));
	EXPECT_OK(check_fill(monitor, DST + bytes(3), true));
	EXPECT_OK(check_events(monitor));
}

/* ---- moves of several mappings at once ---- */

#define ROW	3

/* Mappings of eight pages with gaps between them. */
static unsigned long in_row(int nr)
{
	return SRC + bytes(16) * nr;
}

/* Where a row goes, each mapping drives out what is in its place, no more. */
TEST(row_over_a_registered_mapping_mended)
{
	const size_t len = bytes(16) * ROW - bytes(8);
	struct monitor monitor = {};

	SKIP_STOCK_BUG();
	NEED_MONITOR(&monitor, REMAP | UNMAP);
	no_huge_pages();
	ASSERT_EQ(DST, map_anon(DST, len));
	stamp_range(DST, len, 900);
	ASSERT_EQ(0, register_range(monitor.fd, DST, len, MISSING));
	for (int nr = 0; nr < ROW; nr++) {
		ASSERT_EQ(in_row(nr), map_anon(in_row(nr), bytes(8)));
		stamp_range(in_row(nr), bytes(8), 100 * nr);
		want_unmap(&monitor, DST + in_row(nr) - SRC, bytes(8));
	}
	ASSERT_EQ(DST, move_to(SRC, len, len, DST));
	EXPECT_OK(check_events(&monitor));
	for (int nr = 0; nr < ROW; nr++) {
		const unsigned long moved = DST + in_row(nr) - SRC;
		const unsigned long gap = moved + bytes(8);

		EXPECT_STREQ(NOT_REGISTERED, registration(moved));
		EXPECT_OK(check_stamps(moved, bytes(8), 100 * nr));
		if (nr == ROW - 1)
			break;
		EXPECT_STREQ("um", registration(gap));
		EXPECT_OK(check_stamps(gap, bytes(8), 908 + 16 * nr));
	}
}

/* ---- mremap() waits for its monitor ---- */

struct mover {
	unsigned long addr;
	unsigned long to;
	size_t len;
	volatile pid_t tid;
	volatile bool back;
	unsigned long ret;
};

static void *run_mover(void *arg)
{
	struct mover *mover = arg;

	mover->tid = gettid();
	mover->ret = move_to(mover->addr, mover->len, mover->len, mover->to);
	mover->back = true;
	return NULL;
}

static bool has_message(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	return poll(&pfd, 1, 0) == 1 && pfd.revents & POLLIN;
}

/* Asleep in the kernel where nothing but its waker can get it out. */
static bool is_asleep(pid_t pid, pid_t tid)
{
	char path[64], stat[512];
	const char *state;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	if (!read_setting(path, stat, sizeof(stat)))
		return false;
	state = strrchr(stat, ')');
	return state && state[2] == 'D';
}

/*
 * Until there is an event to read and its sender has gone to sleep over it.
 * There is no hurry: whoever does not wait will be back at some time.
 */
static bool waits_for_reader(int fd, pid_t pid, volatile pid_t *tid)
{
	for (int i = 0; i < 1000000; i++) {
		if (*tid && has_message(fd) && is_asleep(pid, *tid))
			return true;
		sched_yield();
	}
	return false;
}

FIXTURE(waiting)
{
	int fd;
	struct mover mover;
	pthread_t thread;
};

/* Three events: nobody reads them unless a test does. */
FIXTURE_SETUP(waiting)
{
	const uint64_t features = REMAP | UNMAP | UFFD_FEATURE_PAGEFAULT_FLAG_WP;

	self->fd = open_uffd(features);
	if (self->fd < 0)
		SKIP(return, "%s", lacks_features(features));
	no_huge_pages();
	self->mover = (struct mover) {
		.addr = SRC, .to = DST, .len = bytes(32),
	};
	ASSERT_EQ(SRC, map_anon(SRC, bytes(32)));
	ASSERT_EQ(DST, map_anon(DST, bytes(32)));
	stamp_range(SRC, bytes(32), 1);
	ASSERT_EQ(0, register_range(self->fd, SRC, bytes(32), MISSING | WP));
	ASSERT_EQ(0, register_range(self->fd, DST, bytes(32), MISSING));
	ASSERT_EQ(0, pthread_create(&self->thread, NULL, run_mover,
				    &self->mover));
}

FIXTURE_TEARDOWN(waiting)
{
}

/*
 * By the first event, all is done already, and nothing is locked. Until the
 * last one has been read, the monitor must not work on what it takes for the
 * old state of affairs.
 */
TEST_F(waiting, until_the_last_event_is_read)
{
	const uint8_t events[] = {
		UFFD_EVENT_UNMAP, UFFD_EVENT_REMAP, UFFD_EVENT_UNMAP,
	};
	struct uffd_msg msg;

	for (size_t i = 0; i < ARRAY_SIZE(events); i++) {
		ASSERT_TRUE(waits_for_reader(self->fd, getpid(),
					     &self->mover.tid));
		EXPECT_FALSE(self->mover.back);
		EXPECT_OK(check_unmapped(SRC, bytes(32)));
		EXPECT_STREQ("um uw", registration(DST));
		EXPECT_OK(check_stamps(DST, bytes(32), 1));
		EXPECT_EQ(EAGAIN, set_protection(self->fd, DST, bytes(32), true));
		EXPECT_EQ(EAGAIN, fill_with_zero(self->fd, DST, psize()));
		ASSERT_EQ((ssize_t)sizeof(msg), read(self->fd, &msg, sizeof(msg)));
		EXPECT_EQ(events[i], msg.event);
	}
	ASSERT_EQ(0, pthread_join(self->thread, NULL));
	EXPECT_EQ(DST, self->mover.ret);
	EXPECT_FALSE(has_message(self->fd));
	EXPECT_EQ(0, set_protection(self->fd, DST, bytes(32), true));
	EXPECT_EQ(32UL, count_protected(DST, bytes(32)));
}

/* A monitor that goes away lets everybody go on, without a registration. */
TEST_F(waiting, until_the_monitor_is_gone)
{
	ASSERT_TRUE(waits_for_reader(self->fd, getpid(), &self->mover.tid));
	EXPECT_FALSE(self->mover.back);
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(0, pthread_join(self->thread, NULL));
	EXPECT_EQ(DST, self->mover.ret);
	EXPECT_STREQ(NOT_REGISTERED, registration(DST));
	EXPECT_OK(check_stamps(DST, bytes(32), 1));
}

/* Another call of another thread does not wait along. */
TEST_F(waiting, alone)
{
	ASSERT_TRUE(waits_for_reader(self->fd, getpid(), &self->mover.tid));
	ASSERT_EQ(THIRD, map_anon(THIRD, bytes(8)));
	stamp_range(THIRD, bytes(8), 50);
	ASSERT_EQ(THIRD + bytes(64), move_to(THIRD, bytes(8), bytes(8),
					     THIRD + bytes(64)));
	EXPECT_OK(check_stamps(THIRD + bytes(64), bytes(8), 50));
	EXPECT_FALSE(self->mover.back);
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(0, pthread_join(self->thread, NULL));
}

/* Whoever is killed while waiting is gone, whatever is left to be told. */
TEST(killed_while_waiting)
{
	struct mover *mover = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int ends[2], status;
	struct pollfd pfd;
	bool waits = false;
	pid_t child;
	char byte;

	ASSERT_EQ(0, pipe(ends));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		const int fd = open_uffd(REMAP | UNMAP);

		*mover = (struct mover) {
			.addr = SRC, .to = DST, .len = bytes(4),
		};
		if (fd < 0)
			_exit(1);
		map_anon(SRC, bytes(4));
		if (register_range(fd, SRC, bytes(4), MISSING) ||
		    write(ends[1], "", 1) != 1)
			_exit(3);
		run_mover(mover);
		_exit(2);
	}
	close(ends[1]);
	pfd = (struct pollfd) { .fd = ends[0], .events = POLLIN };
	ASSERT_EQ(1, poll(&pfd, 1, -1));
	if (read(ends[0], &byte, 1) != 1) {
		ASSERT_EQ(child, waitpid(child, &status, 0));
		ASSERT_EQ(1, WEXITSTATUS(status));
		SKIP(return, "needs userfaultfd with events");
	}
	for (int i = 0; !waits && i < 1000000; i++) {
		waits = mover->tid && is_asleep(child, mover->tid);
		sched_yield();
	}
	EXPECT_TRUE(waits);
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_FALSE(mover->back);
}

/* ---- what a call keeps while it waits ---- */

#define MAX_MAP_COUNT	"/proc/sys/vm/max_map_count"
#define FAIL_PAGES	"/sys/kernel/debug/fail_page_alloc/"
#define MANY		600UL

FIXTURE(keeping)
{
	char max_map_count[32];
	int fd;
	struct mover mover;
	volatile bool go;
};

FIXTURE_SETUP(keeping)
{
	const char *why = prepare_fail_nth();

	if (why)
		SKIP(return, "%s", why);
	self->fd = open_uffd(UNMAP);
	if (self->fd < 0)
		SKIP(return, "%s", lacks_features(UNMAP));
	read_setting(MAX_MAP_COUNT, self->max_map_count,
		     sizeof(self->max_map_count));
	if (atol(self->max_map_count) < 3 * (long)MANY &&
	    !write_setting(MAX_MAP_COUNT, "3000"))
		SKIP(return, "needs leave to set vm.max_map_count");
	/* Only what a task asks for in one block of more than a page. */
	write_setting(FAIL_PAGES "min-order", "1");
	write_setting(FAIL_PAGES "task-filter", "Y");
	write_setting(FAIL_PAGES "times", "-1");
	write_setting(FAIL_PAGES "probability", "100");
	no_huge_pages();
}

FIXTURE_TEARDOWN(keeping)
{
	write_setting(FAIL_PAGES "probability", "0");
	write_setting(FAIL_PAGES "min-order", "0");
	write_setting(MAX_MAP_COUNT, self->max_map_count);
}

/* Its arrays come from vmalloc(), which can be looked at. */
static void *move_without_blocks(void *arg)
{
	FIXTURE_DATA(keeping) *self = arg;

	while (!self->go)
		sched_yield();
	write_setting("/proc/thread-self/make-it-fail", "1");
	run_mover(&self->mover);
	write_setting("/proc/thread-self/make-it-fail", "0");
	return NULL;
}

/* The monitor may never answer, and other threads can wait for it as well. */
TEST_F_TIMEOUT(keeping, no_memory_for_each_mapping_mended, 120)
{
	const size_t len = bytes(2 * MANY);
	pthread_t thread;
	long before, after;

	SKIP_STOCK_BUG();
	for (unsigned long nr = 0; nr < MANY; nr++)
		ASSERT_EQ(SRC + bytes(2 * nr),
			  map_anon(SRC + bytes(2 * nr), psize()));
	stamp(SRC, 1);
	stamp(SRC + len - bytes(2), 2);
	ASSERT_EQ(DST, map_anon(DST, psize()));
	ASSERT_EQ(0, register_range(self->fd, DST, psize(), MISSING));
	self->mover = (struct mover) { .addr = SRC, .to = DST, .len = len };
	ASSERT_EQ(0, pthread_create(&thread, NULL, move_without_blocks, self));
	before = meminfo_kb("VmallocUsed");
	self->go = true;
	ASSERT_TRUE(waits_for_reader(self->fd, getpid(), &self->mover.tid));
	after = meminfo_kb("VmallocUsed");
	EXPECT_FALSE(self->mover.back);
	EXPECT_GT(before + (long)(MANY * 100 / KB), after)
		TH_LOG("%ld kB", after - before);
	EXPECT_OK(check_stamp(DST, 1));
	EXPECT_OK(check_stamp(DST + len - bytes(2), 2));
	ASSERT_EQ(0, close(self->fd));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(DST, self->mover.ret);
}

/* ---- a monitor in another process ---- */

/*
 * As for lazy migration: the monitor shares no memory with the process, but
 * for its notes, and works on it through the userfaultfd alone.
 */
FIXTURE(process)
{
	struct monitor *monitor;
	pid_t pid;
};

FIXTURE_SETUP(process)
{
	struct monitor *monitor = mmap(NULL, sizeof(*monitor),
				       PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	self->monitor = monitor;
	if (!open_monitor(monitor, REMAP | UNMAP |
			  UFFD_FEATURE_PAGEFAULT_FLAG_WP))
		SKIP(return, "needs userfaultfd with events");
	no_huge_pages();
	self->pid = fork();
	ASSERT_LE(0, self->pid);
	if (!self->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_monitor(monitor);
		_exit(0);
	}
	ASSERT_EQ(SRC, map_anon(SRC, bytes(64)));
	stamp_range(SRC, bytes(32), 1);
	ASSERT_EQ(0, register_range(monitor->fd, SRC, bytes(64), MISSING | WP));
}

FIXTURE_TEARDOWN(process)
{
	if (self->pid > 0 && ask_monitor(self->monitor, 'q'))
		waitpid(self->pid, NULL, 0);
}

TEST_F(process, follows_a_mapping)
{
	const unsigned long places[] = {
		SRC, DST + bytes(5), THIRD, DST + bytes(100), SRC,
	};
	struct monitor *monitor = self->monitor;

	for (size_t i = 0; i + 1 < ARRAY_SIZE(places); i++) {
		const unsigned long from = places[i], to = places[i + 1];

		ASSERT_EQ(0, set_protection(monitor->fd, from, bytes(32), true));
		ASSERT_EQ(to, move_to(from, bytes(64), bytes(64), to));
		want_remap(monitor, from, to, bytes(64));
		want_unmap(monitor, from, bytes(64));
		EXPECT_OK(check_events(monitor));
		EXPECT_OK(check_stamps(to, bytes(32), 1 + i));
		EXPECT_EQ(32UL, count_protected(to, bytes(32)));
		stamp_range(to, bytes(32), 2 + i);
		for (size_t page = 0; page < 32; page++)
			want_fault(monitor, to + bytes(page),
				   UFFD_PAGEFAULT_FLAG_WP);
		EXPECT_OK(check_events(monitor));
		EXPECT_OK(check_fill(monitor, to + bytes(32 + i), true));
		EXPECT_OK(check_events(monitor));
	}
}

TEST_F(process, fills_what_was_left)
{
	struct monitor *monitor = self->monitor;

	ASSERT_EQ(DST, do_mremap(SRC, bytes(64), bytes(64), FIXED | DONTUNMAP,
				 DST));
	want_remap(monitor, SRC, DST, bytes(64));
	for (size_t page = 0; page < 16; page++)
		EXPECT_OK(check_fill(monitor, SRC + bytes(page), true));
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_stamps(DST, bytes(32), 1));
}

/* ---- write protection ---- */

enum memory {
	ANON,
	ANON_HUGE,
	SHMEM,
	SHMEM_HUGE,
	HUGETLB,
};

enum pageout {
	NOT_PAGED_OUT,
	BEFORE,		/* it is protected */
	AFTER,
};

/*
 * The source consists of units, of which every other one is protected. Where
 * it starts in a page table, and whether the destination starts at the same
 * place of one, decides what moves: pages or tables.
 */
FIXTURE(wp)
{
	struct monitor monitor;
	unsigned long src;
	unsigned long dst;
	size_t unit;
	size_t len;
	size_t nr;	/* of units */
	uint64_t features;
	int fd;
};

FIXTURE_VARIANT(wp)
{
	enum memory memory;
	int flags;		/* of mmap() */
	size_t head;		/* pages from a table's start to the source */
	size_t shift;		/* pages that the destination is off */
	bool untouched;
	enum pageout pageout;
	size_t cut;		/* pages that a part starts behind a unit */
};

FIXTURE_VARIANT_ADD(wp, pages) {
	.memory = ANON, .flags = MAP_PRIVATE, .shift = 5, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, tables) {
	.memory = ANON, .flags = MAP_PRIVATE, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, head) {
	.memory = ANON, .flags = MAP_PRIVATE, .head = 300, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shared_anon) {
	.memory = SHMEM, .flags = MAP_SHARED | MAP_ANONYMOUS, .shift = 5,
	.cut = 3,
};
FIXTURE_VARIANT_ADD(wp, untouched) {
	.memory = ANON, .flags = MAP_PRIVATE, .shift = 5, .untouched = true,
	.cut = 3,
};
FIXTURE_VARIANT_ADD(wp, untouched_tables) {
	.memory = ANON, .flags = MAP_PRIVATE, .untouched = true, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, of_swapped) {
	.memory = ANON, .flags = MAP_PRIVATE, .shift = 5, .pageout = BEFORE,
	.cut = 3,
};
FIXTURE_VARIANT_ADD(wp, then_swapped) {
	.memory = ANON, .flags = MAP_PRIVATE, .shift = 5, .pageout = AFTER,
	.cut = 3,
};
FIXTURE_VARIANT_ADD(wp, swapped_tables) {
	.memory = ANON, .flags = MAP_PRIVATE, .pageout = AFTER, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, huge) { .memory = ANON_HUGE, .flags = MAP_PRIVATE };
FIXTURE_VARIANT_ADD(wp, huge_cut) {
	.memory = ANON_HUGE, .flags = MAP_PRIVATE, .cut = 9,
};
FIXTURE_VARIANT_ADD(wp, huge_split) {
	.memory = ANON_HUGE, .flags = MAP_PRIVATE, .shift = 5,
};
FIXTURE_VARIANT_ADD(wp, huge_swapped) {
	.memory = ANON_HUGE, .flags = MAP_PRIVATE, .pageout = AFTER,
};
FIXTURE_VARIANT_ADD(wp, shmem) {
	.memory = SHMEM, .flags = MAP_SHARED, .shift = 5, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shmem_tables) {
	.memory = SHMEM, .flags = MAP_SHARED, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shmem_untouched) {
	.memory = SHMEM, .flags = MAP_SHARED, .shift = 5, .untouched = true,
	.cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shmem_untouched_tables) {
	.memory = SHMEM, .flags = MAP_SHARED, .untouched = true, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shmem_then_swapped) {
	.memory = SHMEM, .flags = MAP_SHARED, .shift = 5, .pageout = AFTER,
	.cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shmem_private) {
	.memory = SHMEM, .flags = MAP_PRIVATE, .shift = 5, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shmem_private_tables) {
	.memory = SHMEM, .flags = MAP_PRIVATE, .cut = 3,
};
FIXTURE_VARIANT_ADD(wp, shmem_huge) {
	.memory = SHMEM_HUGE, .flags = MAP_SHARED,
};
FIXTURE_VARIANT_ADD(wp, shmem_huge_split) {
	.memory = SHMEM_HUGE, .flags = MAP_SHARED, .shift = 5,
};
FIXTURE_VARIANT_ADD(wp, hugetlb_private) {
	.memory = HUGETLB, .flags = MAP_PRIVATE,
};
FIXTURE_VARIANT_ADD(wp, hugetlb_shared) {
	.memory = HUGETLB, .flags = MAP_SHARED,
};
FIXTURE_VARIANT_ADD(wp, hugetlb_private_untouched) {
	.memory = HUGETLB, .flags = MAP_PRIVATE | MAP_NORESERVE,
	.untouched = true,
};
FIXTURE_VARIANT_ADD(wp, hugetlb_shared_untouched) {
	.memory = HUGETLB, .flags = MAP_SHARED | MAP_NORESERVE,
	.untouched = true,
};

#define SELF	FIXTURE_DATA(wp) *self
#define VARIANT	const FIXTURE_VARIANT(wp) *variant

/* Not every kernel can protect what is no anonymous memory, or not there. */
static uint64_t wp_features(enum memory memory, bool untouched)
{
	uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;

	if (memory != ANON && memory != ANON_HUGE)
		features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	if (untouched)
		features |= UFFD_FEATURE_WP_UNPOPULATED;
	return features;
}

#define SHMEM_ENABLED	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* Sets one of several words, and puts the one that was [set] into old. */
static bool switch_setting(const char *path, const char *text, char *old,
			   size_t len)
{
	char all[256];
	const char *start;

	if (!read_setting(path, all, sizeof(all)))
		return false;
	start = strchr(all, '[');
	if (!start)
		return false;
	snprintf(old, len, "%.*s", (int)strcspn(start + 1, "]"), start + 1);
	return write_setting(path, text);
}

/* Why this machine cannot have this kind of memory. */
static const char *lacks_memory(VARIANT)
{
	const long used = variant->memory == HUGETLB && !variant->untouched ?
		8 : 4;

	if (variant->memory == HUGETLB &&
	    meminfo_kb("HugePages_Free") - meminfo_kb("HugePages_Rsvd") < used)
		return "needs 8 free huge pages (vm.nr_hugepages)";
	if (variant->memory == HUGETLB &&
	    default_huge_page_size() > sizeof(filling))
		return "needs smaller huge pages";
	if (variant->memory == SHMEM_HUGE && access(SHMEM_ENABLED, W_OK))
		return "needs huge pages in shared memory";
	if (variant->pageout && meminfo_kb("SwapFree") <= 0)
		return "needs swap space";
	return NULL;
}

static void map_memory(META, SELF, VARIANT)
{
	int flags = variant->flags;

	self->fd = -1;
	if (variant->memory == ANON || variant->memory == ANON_HUGE)
		flags |= MAP_ANONYMOUS;
	else if (variant->memory == HUGETLB)
		flags |= MAP_ANONYMOUS | MAP_HUGETLB;
	else if (!(flags & MAP_ANONYMOUS))
		self->fd = memfd_create("wp", 0);
	if (self->fd >= 0)
		ASSERT_EQ(0, ftruncate(self->fd, self->len));
	ASSERT_EQ(self->src, map_at(self->src, self->len, PROT_READ | PROT_WRITE,
				    flags, self->fd, 0));
}

/* Of a private mapping of a file every third page is a copy of its own. */
static void touch_memory(META, SELF, VARIANT)
{
	const size_t pages = self->len / psize();
	const bool partly = variant->memory == SHMEM &&
		variant->flags & MAP_PRIVATE;
	unsigned long addr = self->src;

	if (variant->untouched)
		return;
	if (partly) {
		addr = (unsigned long)mmap(NULL, self->len,
					   PROT_READ | PROT_WRITE, MAP_SHARED,
					   self->fd, 0);
		ASSERT_NE((unsigned long)MAP_FAILED, addr);
	}
	stamp_range(addr, self->len, 1);
	if (!partly)
		return;
	munmap(at(addr), self->len);
	for (size_t page = 0; page < pages; page += 3)
		stamp(self->src + bytes(page), page + 1);
	ASSERT_EQ(NULL, check_stamps(self->src, self->len, 1));
}

FIXTURE_SETUP(wp)
{
	const bool huge = variant->memory == ANON_HUGE ||
		variant->memory == SHMEM_HUGE;
	const char *lacks = lacks_memory(variant);
	char old[32];

	if (lacks)
		SKIP(return, "%s", lacks);
	self->features = wp_features(variant->memory, variant->untouched);
	self->unit = bytes(16);
	if (huge)
		self->unit = pmd_span();
	if (variant->memory == HUGETLB)
		self->unit = default_huge_page_size();
	if (variant->memory == HUGETLB)
		self->monitor.page = self->unit;
	self->len = variant->memory == ANON || variant->memory == SHMEM ?
		2 * pmd_span() : 4 * self->unit;
	self->nr = self->len / self->unit;
	self->src = SRC + bytes(variant->head);
	self->dst = DST + bytes(variant->head + variant->shift);
	if (!huge)
		no_huge_pages();
	map_memory(_metadata, self, variant);
	if (huge)
		madvise(at(self->src), self->len, MADV_HUGEPAGE);
	if (variant->memory == SHMEM_HUGE)
		switch_setting(SHMEM_ENABLED, "advise", old, sizeof(old));
	touch_memory(_metadata, self, variant);
	if (variant->memory == SHMEM_HUGE)
		write_setting(SHMEM_ENABLED, old);
	if (huge && smaps_kb(self->src, variant->memory == ANON_HUGE ?
			     "AnonHugePages" : "ShmemPmdMapped") <= 0)
		SKIP(return, "needs transparent huge pages");
}

FIXTURE_TEARDOWN(wp)
{
}

/* Is this page of the source in a protected unit? */
static bool in_protected_unit(SELF, size_t page)
{
	return bytes(page) / self->unit % 2 == 0;
}

/* The protection of [start, end) of the source, which is at addr now. */
static const char *check_protection(SELF, unsigned long addr, size_t start,
				    size_t end, bool kept)
{
	static uint64_t bits[1 << 16];
	const size_t first = start / psize(), nr = (end - start) / psize();

	pagemap_bits(addr, nr, bits);
	for (size_t i = 0; i < nr; i++) {
		const bool want = kept && in_protected_unit(self, first + i);

		if (!!(bits[i] & PM_UFFD_WP) != want)
			return complain("page %zu at %#lx: pagemap %#llx, is%s to be protected",
					first + i, addr + bytes(i),
					(unsigned long long)bits[i],
					want ? "" : " not");
	}
	return NULL;
}

static const char *check_contents(VARIANT, unsigned long addr, size_t start,
				  size_t end)
{
	if (variant->untouched)
		return check_zero(addr, end - start);
	return check_stamps(addr, end - start, 1 + start / psize());
}

/* Write-protect every other unit, and page out all of it. */
static void protect(META, SELF, VARIANT)
{
	const int fd = self->monitor.fd;

	if (variant->pageout == BEFORE)
		ASSERT_EQ(0, madvise(at(self->src), self->len, MADV_PAGEOUT));
	ASSERT_EQ(0, register_range(fd, self->src, self->len, WP));
	for (size_t i = 0; i < self->nr; i += 2)
		ASSERT_EQ(0, set_protection(fd, self->src + i * self->unit,
					    self->unit, true));
	if (variant->pageout == AFTER)
		ASSERT_EQ(0, madvise(at(self->src), self->len, MADV_PAGEOUT));
	if (variant->pageout &&
	    count_pagemap(self->src, self->unit, PM_PRESENT))
		SKIP(return, "needs pages that can be swapped out");
	EXPECT_OK(check_protection(self, self->src, 0, self->len, true));
}

/*
 * What is protected calls the monitor at the first write, and nothing else
 * does. All of [start, end) of the source is at addr now.
 */
static void write_kept(META, SELF, unsigned long addr, size_t start, size_t end)
{
	const size_t pages[] = {
		start / psize(), (start + self->unit) / psize(),
		end / psize() - 2, end / psize() - 1,
	};
	const unsigned long base = addr - start;
	size_t last = -1;

	for (size_t i = 0; i < ARRAY_SIZE(pages); i++) {
		const unsigned long where = base + bytes(pages[i]);
		const size_t answered = bytes(pages[i]) / self->monitor.page;

		if (bytes(pages[i]) >= end)
			continue;
		if (in_protected_unit(self, pages[i]) && answered != last)
			want_fault(&self->monitor, where,
				   UFFD_PAGEFAULT_FLAG_WP);
		last = answered;
		stamp(where, 7000 + i);
		EXPECT_OK(check_stamp(where, 7000 + i));
		EXPECT_EQ(0UL, count_protected(where, psize()));
	}
	EXPECT_OK(check_events(&self->monitor));
}

/* Nobody is called, whatever is written, be it by the kernel. */
static void write_cleared(META, SELF, unsigned long addr, size_t len)
{
	const int mem = open("/proc/self/mem", O_WRONLY);

	EXPECT_EQ((ssize_t)sizeof(len), pwrite(mem, &len, sizeof(len), addr));
	EXPECT_EQ(len, *(size_t *)at(addr));
	close(mem);
	stamp_range(addr, len, 7000);
	EXPECT_OK(check_stamps(addr, len, 7000));
	EXPECT_EQ(0UL, count_protected(addr, len));
	EXPECT_OK(check_events(&self->monitor));
}

static void check_kept(META, SELF, VARIANT, unsigned long addr, size_t start,
		       size_t end)
{
	EXPECT_STREQ("uw", registration(addr));
	EXPECT_OK(check_protection(self, addr, start, end, true));
	EXPECT_OK(check_contents(variant, addr, start, end));
	/* Pages that come in for being read stay protected. */
	EXPECT_OK(check_protection(self, addr, start, end, true));
	EXPECT_OK(check_events(&self->monitor));
	write_kept(_metadata, self, addr, start, end);
}

static void check_cleared(META, SELF, VARIANT, unsigned long addr,
			  size_t start, size_t end)
{
	EXPECT_STREQ(NOT_REGISTERED, registration(addr));
	EXPECT_OK(check_protection(self, addr, start, end, false));
	EXPECT_OK(check_contents(variant, addr, start, end));
	EXPECT_OK(check_events(&self->monitor));
	write_cleared(_metadata, self, addr, end - start);
}

/* Huge pages that moved as such are still huge. */
static void check_huge(META, VARIANT, unsigned long addr, size_t len)
{
	if (variant->memory == ANON_HUGE && !variant->pageout &&
	    !variant->shift && !variant->cut)
		EXPECT_EQ((long)(len / KB), smaps_kb(addr, "AnonHugePages"));
}

TEST_F(wp, kept)
{
	NEED_MONITOR(&self->monitor, self->features | REMAP);
	protect(_metadata, self, variant);
	ASSERT_EQ(self->dst, move_to(self->src, self->len, self->len,
				     self->dst));
	want_remap(&self->monitor, self->src, self->dst, self->len);
	check_huge(_metadata, variant, self->dst, self->len);
	check_kept(_metadata, self, variant, self->dst, 0, self->len);
}

TEST_F(wp, cleared)
{
	NEED_MONITOR(&self->monitor, self->features);
	protect(_metadata, self, variant);
	ASSERT_EQ(self->dst, move_to(self->src, self->len, self->len,
				     self->dst));
	check_huge(_metadata, variant, self->dst, self->len);
	check_cleared(_metadata, self, variant, self->dst, 0, self->len);
}

/* After the bits were cleared, nothing comes up with a new registration. */
TEST_F(wp, cleared_for_good)
{
	const int prot = PROT_READ | PROT_WRITE;

	NEED_MONITOR(&self->monitor, self->features);
	protect(_metadata, self, variant);
	ASSERT_EQ(self->dst, move_to(self->src, self->len, self->len,
				     self->dst));
	ASSERT_EQ(0, mprotect(at(self->dst), self->len, PROT_READ));
	ASSERT_EQ(0, mprotect(at(self->dst), self->len, prot));
	ASSERT_EQ(0, register_range(self->monitor.fd, self->dst, self->len,
				    WP));
	EXPECT_OK(check_protection(self, self->dst, 0, self->len, false));
	EXPECT_OK(check_contents(variant, self->dst, 0, self->len));
	write_cleared(_metadata, self, self->dst, self->len);
	ASSERT_EQ(0, set_protection(self->monitor.fd, self->dst, self->unit,
				    true));
	EXPECT_EQ(self->unit / psize(), count_protected(self->dst, self->len));
	want_fault(&self->monitor, self->dst, UFFD_PAGEFAULT_FLAG_WP);
	stamp(self->dst, 1);
	EXPECT_OK(check_events(&self->monitor));
}

TEST_F(wp, kept_there_and_back)
{
	NEED_MONITOR(&self->monitor, self->features | REMAP);
	protect(_metadata, self, variant);
	for (int i = 0; i < 3; i++) {
		ASSERT_EQ(self->dst, move_to(self->src, self->len, self->len,
					     self->dst));
		EXPECT_OK(check_protection(self, self->dst, 0, self->len, true));
		ASSERT_EQ(self->src, move_to(self->dst, self->len, self->len,
					     self->src));
		want_remap(&self->monitor, self->src, self->dst, self->len);
		want_remap(&self->monitor, self->dst, self->src, self->len);
	}
	check_kept(_metadata, self, variant, self->src, 0, self->len);
}

/* Two quarters in the middle move; those at the ends keep all they have. */
static void move_part(META, SELF, VARIANT, void (*check)(META, SELF, VARIANT,
							 unsigned long, size_t,
							 size_t))
{
	const size_t start = self->len / 4 + bytes(variant->cut);
	const size_t end = start + self->len / 2;
	const unsigned long to = self->dst + start;

	protect(_metadata, self, variant);
	ASSERT_EQ(to, move_to(self->src + start, end - start, end - start, to));
	want_remap(&self->monitor, self->src + start, to, end - start);
	check(_metadata, self, variant, to, start, end);
	check_kept(_metadata, self, variant, self->src, 0, start);
	check_kept(_metadata, self, variant, self->src + end, end, self->len);
}

TEST_F(wp, part_kept)
{
	NEED_MONITOR(&self->monitor, self->features | REMAP);
	move_part(_metadata, self, variant, check_kept);
}

TEST_F(wp, part_cleared)
{
	NEED_MONITOR(&self->monitor, self->features);
	move_part(_metadata, self, variant, check_cleared);
}

/* The old place is registered, but nothing in it is protected any more. */
static void check_left_behind(META, SELF, VARIANT)
{
	EXPECT_STREQ("uw", registration(self->src));
	EXPECT_EQ(0UL, count_protected(self->src, self->len));
	if (variant->memory == ANON || variant->memory == ANON_HUGE)
		EXPECT_OK(check_zero(self->src, self->len));
	write_cleared(_metadata, self, self->src, self->len);
}

/* hugetlb cannot leave an empty mapping behind: all stays as it is. */
static bool dontunmap(META, SELF, VARIANT)
{
	const unsigned long to = do_mremap(self->src, self->len, self->len,
					   FIXED | DONTUNMAP, self->dst);

	if (variant->memory != HUGETLB) {
		EXPECT_EQ(self->dst, to);
		want_remap(&self->monitor, self->src, self->dst, self->len);
		return to == self->dst;
	}
	EXPECT_EQ(EINVAL, error_of(to));
	EXPECT_OK(check_unmapped(self->dst, self->len));
	check_kept(_metadata, self, variant, self->src, 0, self->len);
	return false;
}

TEST_F(wp, dontunmap_kept)
{
	NEED_MONITOR(&self->monitor, self->features | REMAP);
	protect(_metadata, self, variant);
	if (!dontunmap(_metadata, self, variant))
		return;
	check_kept(_metadata, self, variant, self->dst, 0, self->len);
	check_left_behind(_metadata, self, variant);
}

TEST_F(wp, dontunmap_cleared)
{
	NEED_MONITOR(&self->monitor, self->features);
	protect(_metadata, self, variant);
	if (!dontunmap(_metadata, self, variant))
		return;
	check_cleared(_metadata, self, variant, self->dst, 0, self->len);
	check_left_behind(_metadata, self, variant);
}

/* What a mapping grows by is not protected, what it keeps of it is. */
static void check_resized(META, struct monitor *monitor, size_t new_len)
{
	const size_t len = 2 * pmd_span();
	const size_t kept = len < new_len ? len : new_len;
	const size_t wanted = monitor->features & REMAP ? kept / psize() : 0;

	no_huge_pages();
	ASSERT_EQ(SRC, map_anon(SRC, len));
	stamp_range(SRC, len, 1);
	ASSERT_EQ(0, register_range(monitor->fd, SRC, len, WP));
	ASSERT_EQ(0, set_protection(monitor->fd, SRC, len, true));
	ASSERT_EQ(DST, move_to(SRC, len, new_len, DST));
	EXPECT_EQ(wanted, count_protected(DST, new_len));
	EXPECT_OK(check_stamps(DST, kept, 1));
	EXPECT_OK(check_zero(DST + kept, new_len - kept));
	stamp_range(DST + kept, new_len - kept, 1);
	/* What is left of it is protected where it was, none of it if not. */
	EXPECT_EQ(wanted, count_protected(DST, new_len));
	stamp(DST, 9);
	EXPECT_OK(check_stamp(DST, 9));
	EXPECT_TRUE(ask_monitor(monitor, 'p'));
	EXPECT_EQ(2 * !!(monitor->features & REMAP), monitor->nr_got);
}

/* One page in every 16th table of a whole table of tables. */
static void move_table_of_tables(META, struct monitor *monitor)
{
	const size_t len = pud_span(), step = 16 * pmd_span();
	const size_t wanted = monitor->features & REMAP ? len / step : 0;
	size_t nr = 0;

	no_huge_pages();
	ASSERT_EQ(SRC, map_at(SRC, len, PROT_READ | PROT_WRITE, MAP_PRIVATE |
			      MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
	for (size_t done = 0; done < len; done += step)
		stamp(SRC + done, done / step);
	ASSERT_EQ(0, register_range(monitor->fd, SRC, len, WP));
	ASSERT_EQ(0, set_protection(monitor->fd, SRC, len, true));
	ASSERT_EQ(len / step, count_protected(SRC, len));
	ASSERT_EQ(DST, move_to(SRC, len, len, DST));
	want_remap(monitor, SRC, DST, len);
	EXPECT_EQ(wanted, count_protected(DST, len));
	for (size_t done = 0; done < len; done += step) {
		EXPECT_OK(check_stamp(DST + done, done / step));
		if (wanted)
			want_fault(monitor, DST + done, UFFD_PAGEFAULT_FLAG_WP);
		stamp(DST + done, 100 + nr++);
	}
	EXPECT_OK(check_events(monitor));
	EXPECT_EQ(0UL, count_protected(DST, len));
}

FIXTURE(wp_of)
{
	struct monitor monitor;
};

FIXTURE_VARIANT(wp_of)
{
	uint64_t features;
};

FIXTURE_VARIANT_ADD(wp_of, followed) { REMAP };
FIXTURE_VARIANT_ADD(wp_of, lost) { 0 };

FIXTURE_SETUP(wp_of)
{
	NEED_MONITOR(&self->monitor,
		     variant->features | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
}

FIXTURE_TEARDOWN(wp_of)
{
}

TEST_F(wp_of, growing)
{
	check_resized(_metadata, &self->monitor, 3 * pmd_span());
}

TEST_F(wp_of, shrinking)
{
	check_resized(_metadata, &self->monitor, pmd_span() + bytes(17));
}

TEST_F(wp_of, table_of_tables)
{
	move_table_of_tables(_metadata, &self->monitor);
}

/* With nobody to ask for registrations, a protected page is just a page. */
TEST(wp_of_a_monitor_that_is_gone)
{
	struct monitor monitor = {};

	NEED_MONITOR(&monitor, UFFD_FEATURE_PAGEFAULT_FLAG_WP | REMAP);
	no_huge_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(64)));
	stamp_range(SRC, bytes(32), 1);
	ASSERT_EQ(0, register_range(monitor.fd, SRC, bytes(64), WP));
	ASSERT_EQ(0, set_protection(monitor.fd, SRC, bytes(64), true));
	ASSERT_TRUE(ask_monitor(&monitor, 'q'));
	ASSERT_EQ(0, pthread_join(monitor.thread, NULL));
	ASSERT_EQ(0, close(monitor.fd));
	ASSERT_EQ(DST, move_to(SRC, bytes(64), bytes(64), DST));
	EXPECT_STREQ(NOT_REGISTERED, registration(DST));
	EXPECT_EQ(0UL, count_protected(DST, bytes(64)));
	EXPECT_OK(check_stamps(DST, bytes(32), 1));
	EXPECT_OK(check_zero(DST + bytes(32), bytes(32)));
	stamp_range(DST, bytes(64), 2);
}

#undef SELF
#undef VARIANT

/* ---- asynchronous write protection ---- */

#define ASYNC								\
	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_PAGEFAULT_FLAG_WP |	\
	 UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

#define MOST_PAGES	2048

/*
 * Which of these pages have been written to since they were protected. With
 * PM_SCAN_WP_MATCHING they are protected again. Returns 0 or the errno.
 */
static int scan_written(unsigned long addr, size_t len, uint64_t flags,
			bool *written)
{
	static struct page_region regions[MOST_PAGES];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = flags,
		.start = addr,
		.end = addr + len,
		.vec = (uintptr_t)regions,
		.vec_len = MOST_PAGES,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	const int fd = open("/proc/self/pagemap", O_RDONLY);
	const int nr = ioctl(fd, PAGEMAP_SCAN, &arg);
	const int err = nr < 0 ? errno : 0;

	close(fd);
	memset(written, 0, len / psize());
	for (int i = 0; i < nr; i++)
		for (uint64_t page = regions[i].start; page < regions[i].end;
		     page += psize())
			written[(page - addr) / psize()] = true;
	return err;
}

FIXTURE(async)
{
	struct monitor monitor;
	unsigned long dst;
	size_t unit;
	size_t len;
};

FIXTURE_VARIANT(async)
{
	enum memory memory;
	size_t shift;	/* of the destination, in pages */
};

FIXTURE_VARIANT_ADD(async, pages) { ANON, 5 };
FIXTURE_VARIANT_ADD(async, tables) { ANON, 0 };
FIXTURE_VARIANT_ADD(async, huge) { ANON_HUGE, 0 };
FIXTURE_VARIANT_ADD(async, huge_split) { ANON_HUGE, 5 };
FIXTURE_VARIANT_ADD(async, shmem) { SHMEM, 5 };
FIXTURE_VARIANT_ADD(async, shmem_tables) { SHMEM, 0 };
FIXTURE_VARIANT_ADD(async, hugetlb) { HUGETLB, 0 };

/* Of small pages, the second half is not touched. */
FIXTURE_SETUP(async)
{
	const bool hugetlb = variant->memory == HUGETLB;
	size_t touched;

	if (hugetlb && meminfo_kb("HugePages_Free") < 4)
		SKIP(return, "needs 4 free huge pages (vm.nr_hugepages)");
	self->unit = hugetlb ? default_huge_page_size() : psize();
	self->len = hugetlb ? 4 * self->unit : 2 * pmd_span();
	if (self->len > bytes(MOST_PAGES))
		SKIP(return, "needs smaller huge pages");
	self->dst = DST + bytes(variant->shift);
	if (variant->memory != ANON_HUGE)
		no_huge_pages();
	ASSERT_EQ(SRC, map_at(SRC, self->len, PROT_READ | PROT_WRITE,
			      MAP_ANONYMOUS |
			      (variant->memory == SHMEM || hugetlb ?
			       MAP_SHARED : MAP_PRIVATE) |
			      (hugetlb ? MAP_HUGETLB : 0), -1, 0));
	if (variant->memory == ANON_HUGE)
		madvise(at(SRC), self->len, MADV_HUGEPAGE);
	touched = variant->memory == ANON_HUGE || hugetlb ?
		self->len : self->len / 2;
	stamp_range(SRC, touched, 1);
	if (variant->memory == ANON_HUGE &&
	    smaps_kb(SRC, "AnonHugePages") <= 0)
		SKIP(return, "needs transparent huge pages");
}

FIXTURE_TEARDOWN(async)
{
}

#define SELF	FIXTURE_DATA(async) *self

/* Write to every step-th unit from the first one on. */
static void write_some(SELF, unsigned long addr, size_t first, size_t step)
{
	for (size_t i = first; i < self->len / self->unit; i += step)
		*(volatile uint64_t *)at(addr + i * self->unit + 24) = i + first;
}

/* Units of which these steps tell that they were written to. */
static bool is_written(SELF, size_t page, const size_t *steps, size_t nr)
{
	const size_t unit = bytes(page) / self->unit;

	for (size_t i = 0; i < nr; i++)
		if (unit >= steps[2 * i] &&
		    (unit - steps[2 * i]) % steps[2 * i + 1] == 0)
			return true;
	return false;
}

/* Steps are pairs: the first unit written to, and the distance to the next. */
static const char *check_written(SELF, unsigned long addr, uint64_t flags,
				 const size_t *steps, size_t nr)
{
	static bool written[MOST_PAGES];
	const int err = scan_written(addr, self->len, flags, written);

	if (err)
		return complain("PAGEMAP_SCAN: %s", strerror(err));
	for (size_t page = 0; page < self->len / psize(); page++)
		if (written[page] != is_written(self, page, steps, nr))
			return complain("page %zu at %#lx is told to be %swritten to",
					page, addr, written[page] ? "" : "not ");
	return NULL;
}

static const size_t none[] = { -1, 1 };
static const size_t all[] = { 0, 1 };
static const size_t some[] = { 0, 3 };
static const size_t more[] = { 0, 3, 1, 3 };

#define PROTECT	(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC)

/* All are protected, then some written to. */
static void write_protected(META, SELF)
{
	ASSERT_EQ(0, register_range(self->monitor.fd, SRC, self->len, WP));
	EXPECT_OK(check_written(self, SRC, PROTECT, all, 1));
	EXPECT_OK(check_written(self, SRC, 0, none, 1));
	write_some(self, SRC, 0, 3);
	EXPECT_OK(check_written(self, SRC, 0, some, 1));
}

/* The next scan tells all writes since the last one, be they before the move. */
TEST_F(async, goes_on)
{
	struct monitor *monitor = &self->monitor;

	NEED_MONITOR(monitor, ASYNC | REMAP);
	write_protected(_metadata, self);
	ASSERT_EQ(self->dst, move_to(SRC, self->len, self->len, self->dst));
	want_remap(monitor, SRC, self->dst, self->len);
	EXPECT_OK(check_events(monitor));
	EXPECT_STREQ("uw", registration(self->dst));
	EXPECT_OK(check_written(self, self->dst, 0, some, 1));
	write_some(self, self->dst, 1, 3);
	EXPECT_OK(check_written(self, self->dst, PROTECT, more, 2));
	EXPECT_OK(check_written(self, self->dst, 0, none, 1));
	write_some(self, self->dst, 0, 3);
	EXPECT_OK(check_written(self, self->dst, 0, some, 1));
	EXPECT_OK(check_events(monitor));
}

/* A new registration starts with nothing protected. */
TEST_F(async, ends)
{
	static bool written[MOST_PAGES];

	NEED_MONITOR(&self->monitor, ASYNC);
	write_protected(_metadata, self);
	ASSERT_EQ(self->dst, move_to(SRC, self->len, self->len, self->dst));
	EXPECT_STREQ(NOT_REGISTERED, registration(self->dst));
	EXPECT_EQ(0UL, count_protected(self->dst, self->len));
	EXPECT_EQ(EPERM, scan_written(self->dst, self->len, PROTECT, written));
	EXPECT_OK(check_written(self, self->dst, 0, all, 1));

	ASSERT_EQ(0, register_range(self->monitor.fd, self->dst, self->len,
				    WP));
	EXPECT_EQ(0UL, count_protected(self->dst, self->len));
	EXPECT_OK(check_written(self, self->dst, PROTECT, all, 1));
	EXPECT_OK(check_written(self, self->dst, 0, none, 1));
	write_some(self, self->dst, 0, 3);
	EXPECT_OK(check_written(self, self->dst, PROTECT, some, 1));
	EXPECT_OK(check_written(self, self->dst, 0, none, 1));
	EXPECT_OK(check_events(&self->monitor));
}

/* What was left behind counts as written to: it is not what it was. */
TEST_F(async, left_behind)
{
	unsigned long to;

	NEED_MONITOR(&self->monitor, ASYNC);
	write_protected(_metadata, self);
	to = do_mremap(SRC, self->len, self->len, FIXED | DONTUNMAP, self->dst);
	if (variant->memory == HUGETLB) {
		EXPECT_EQ(EINVAL, error_of(to));
		EXPECT_OK(check_written(self, SRC, 0, some, 1));
		return;
	}
	ASSERT_EQ(self->dst, to);
	EXPECT_STREQ("uw", registration(SRC));
	EXPECT_STREQ(NOT_REGISTERED, registration(self->dst));
	EXPECT_EQ(0UL, count_protected(SRC, self->len));
	EXPECT_OK(check_written(self, SRC, PROTECT, all, 1));
	EXPECT_OK(check_written(self, SRC, 0, none, 1));
	write_some(self, SRC, 0, 3);
	EXPECT_OK(check_written(self, SRC, 0, some, 1));
	EXPECT_OK(check_events(&self->monitor));
}

#undef SELF

/* ---- neighbours that a moved mapping meets ---- */

#define LEFT	DST
#define MIDDLE	(DST + bytes(8))
#define RIGHT	(DST + bytes(16))
#define END	(DST + bytes(24))

FIXTURE(neighbours)
{
	struct monitor monitor;
	uint64_t features;
	int fd;
};

FIXTURE_VARIANT(neighbours)
{
	bool left;
	bool right;
	enum { NEVER_TOUCHED, BACK_AGAIN, OF_A_FILE } kind;
};

FIXTURE_VARIANT_ADD(neighbours, left) { true, false, NEVER_TOUCHED };
FIXTURE_VARIANT_ADD(neighbours, right) { false, true, NEVER_TOUCHED };
FIXTURE_VARIANT_ADD(neighbours, both) { true, true, NEVER_TOUCHED };
FIXTURE_VARIANT_ADD(neighbours, left_back) { true, false, BACK_AGAIN };
FIXTURE_VARIANT_ADD(neighbours, right_back) { false, true, BACK_AGAIN };
FIXTURE_VARIANT_ADD(neighbours, both_back) { true, true, BACK_AGAIN };
FIXTURE_VARIANT_ADD(neighbours, left_file) { true, false, OF_A_FILE };
FIXTURE_VARIANT_ADD(neighbours, right_file) { false, true, OF_A_FILE };
FIXTURE_VARIANT_ADD(neighbours, both_file) { true, true, OF_A_FILE };

FIXTURE_SETUP(neighbours)
{
	self->features = wp_features(variant->kind == OF_A_FILE ? SHMEM : ANON,
				     variant->kind == NEVER_TOUCHED);
	no_huge_pages();
	self->fd = memfd_create("neighbours", 0);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, bytes(24)));
}

FIXTURE_TEARDOWN(neighbours)
{
}

#define SELF	FIXTURE_DATA(neighbours) *self
#define VARIANT	const FIXTURE_VARIANT(neighbours) *variant

static void map_piece(META, SELF, VARIANT, unsigned long addr,
		      unsigned long place, size_t len)
{
	unsigned long got;

	if (variant->kind == OF_A_FILE)
		got = map_at(addr, len, PROT_READ | PROT_WRITE, MAP_SHARED,
			     self->fd, place - DST);
	else
		got = map_anon(addr, len);
	ASSERT_EQ(addr, got);
}

/*
 * A mapping at THIRD which fits between its neighbours at MIDDLE, such that
 * they can be one mapping if nothing else keeps them apart. Pages of the
 * neighbours are touched; those of the mapping only if it comes back to where
 * it was before.
 */
static void lay_out(META, SELF, VARIANT)
{
	if (variant->kind == BACK_AGAIN) {
		ASSERT_EQ(LEFT, map_anon(LEFT, END - LEFT));
		stamp_range(LEFT, END - LEFT, 1);
		ASSERT_EQ(THIRD, move_to(MIDDLE, bytes(8), bytes(8), THIRD));
	} else {
		map_piece(_metadata, self, variant, LEFT, LEFT, END - LEFT);
		map_piece(_metadata, self, variant, THIRD, MIDDLE, bytes(8));
		stamp_range(LEFT, bytes(8), 1);
		stamp_range(RIGHT, bytes(8), 17);
		munmap(at(MIDDLE), bytes(8));
	}
	if (!variant->left)
		munmap(at(LEFT), bytes(8));
	if (!variant->right)
		munmap(at(RIGHT), bytes(8));
}

static void register_neighbours(META, SELF, VARIANT)
{
	const int fd = self->monitor.fd;

	if (variant->left)
		ASSERT_EQ(0, register_range(fd, LEFT, bytes(8), WP));
	if (variant->right)
		ASSERT_EQ(0, register_range(fd, RIGHT, bytes(8), WP));
	if (variant->left)
		ASSERT_EQ(0, set_protection(fd, LEFT, bytes(8), true));
	if (variant->right)
		ASSERT_EQ(0, set_protection(fd, RIGHT, bytes(8), true));
}

static void move_between(META, SELF, VARIANT)
{
	ASSERT_EQ(MIDDLE, move_to(THIRD, bytes(8), bytes(8), MIDDLE));
	want_remap(&self->monitor, THIRD, MIDDLE, bytes(8));
	EXPECT_OK(check_events(&self->monitor));
	if (variant->left)
		EXPECT_OK(check_stamps(LEFT, bytes(8), 1));
	if (variant->kind == BACK_AGAIN)
		EXPECT_OK(check_stamps(MIDDLE, bytes(8), 9));
	if (variant->right)
		EXPECT_OK(check_stamps(RIGHT, bytes(8), 17));
}

/* As many mappings as there are, or one for all of them. */
static void check_count(META, VARIANT, bool merged)
{
	const int nr = 1 + variant->left + variant->right;

	EXPECT_EQ(merged ? 1 : nr, read_vmas(LEFT, END, NULL, 0));
}

static unsigned long first_of(VARIANT)
{
	return variant->left ? LEFT : MIDDLE;
}

/* Still protected, and still heard of. */
static void check_neighbour(META, SELF, unsigned long addr)
{
	EXPECT_EQ(8UL, count_protected(addr, bytes(8)));
	want_fault(&self->monitor, addr + bytes(2), UFFD_PAGEFAULT_FLAG_WP);
	stamp(addr + bytes(2), 70);
	EXPECT_OK(check_events(&self->monitor));
}

/* It becomes one with neighbours of the same monitor, which wants to know. */
TEST_F(neighbours, registered_all)
{
	NEED_MONITOR(&self->monitor, self->features | REMAP);
	lay_out(_metadata, self, variant);
	register_neighbours(_metadata, self, variant);
	ASSERT_EQ(0, register_range(self->monitor.fd, THIRD, bytes(8), WP));
	ASSERT_EQ(0, set_protection(self->monitor.fd, THIRD, bytes(4), true));
	move_between(_metadata, self, variant);
	check_count(_metadata, variant, true);
	EXPECT_STREQ("uw", registration(first_of(variant)));
	EXPECT_EQ(4UL, count_protected(MIDDLE, bytes(8)));
	if (variant->left)
		check_neighbour(_metadata, self, LEFT);
	if (variant->right)
		check_neighbour(_metadata, self, RIGHT);
}

/* It loses its registration, and must not take along that of its neighbours. */
TEST_F(neighbours, keep_what_it_loses_mended)
{
	SKIP_STOCK_BUG();
	NEED_MONITOR(&self->monitor, self->features);
	lay_out(_metadata, self, variant);
	register_neighbours(_metadata, self, variant);
	ASSERT_EQ(0, register_range(self->monitor.fd, THIRD, bytes(8), WP));
	ASSERT_EQ(0, set_protection(self->monitor.fd, THIRD, bytes(8), true));
	move_between(_metadata, self, variant);
	check_count(_metadata, variant, false);
	EXPECT_STREQ(NOT_REGISTERED, registration(MIDDLE));
	EXPECT_EQ(0UL, count_protected(MIDDLE, bytes(8)));
	if (variant->left) {
		EXPECT_STREQ("uw", registration(LEFT));
		check_neighbour(_metadata, self, LEFT);
	}
	if (variant->right) {
		EXPECT_STREQ("uw", registration(RIGHT));
		check_neighbour(_metadata, self, RIGHT);
	}
	stamp_range(MIDDLE, bytes(8), 80);
	EXPECT_OK(check_events(&self->monitor));
}

/*
 * It becomes one with neighbours that are as unregistered as it will be; but not
 * if it is of a file: there only a registered mapping keeps its write protection
 * when pages are reclaimed, and a failed move would have to bring it back.
 */
TEST_F(neighbours, not_registered_mended)
{
	SKIP_STOCK_BUG();
	NEED_MONITOR(&self->monitor, self->features);
	lay_out(_metadata, self, variant);
	ASSERT_EQ(0, register_range(self->monitor.fd, THIRD, bytes(8), WP));
	ASSERT_EQ(0, set_protection(self->monitor.fd, THIRD, bytes(8), true));
	move_between(_metadata, self, variant);
	check_count(_metadata, variant, variant->kind != OF_A_FILE);
	EXPECT_STREQ(NOT_REGISTERED, registration(first_of(variant)));
	if (variant->kind == OF_A_FILE)
		EXPECT_STREQ(NOT_REGISTERED, registration(MIDDLE));
	EXPECT_EQ(0UL, count_protected(LEFT, END - LEFT));
	stamp_range(first_of(variant), bytes(8), 80);
	stamp_range(MIDDLE, bytes(8), 90);
	EXPECT_OK(check_events(&self->monitor));
}

/* It stays registered, and does not spread that. */
TEST_F(neighbours, not_registered_with_event)
{
	NEED_MONITOR(&self->monitor, self->features | REMAP);
	lay_out(_metadata, self, variant);
	ASSERT_EQ(0, register_range(self->monitor.fd, THIRD, bytes(8), WP));
	ASSERT_EQ(0, set_protection(self->monitor.fd, THIRD, bytes(8), true));
	move_between(_metadata, self, variant);
	check_count(_metadata, variant, false);
	EXPECT_STREQ("uw", registration(MIDDLE));
	if (variant->left)
		EXPECT_STREQ(NOT_REGISTERED, registration(LEFT));
	if (variant->right)
		EXPECT_STREQ(NOT_REGISTERED, registration(RIGHT));
	check_neighbour(_metadata, self, MIDDLE);
}

/* One that was never registered does not become so. */
TEST_F(neighbours, registered_but_not_it)
{
	NEED_MONITOR(&self->monitor, self->features | REMAP);
	lay_out(_metadata, self, variant);
	register_neighbours(_metadata, self, variant);
	self->monitor.features &= ~(uint64_t)REMAP;
	move_between(_metadata, self, variant);
	check_count(_metadata, variant, false);
	EXPECT_STREQ(NOT_REGISTERED, registration(MIDDLE));
	if (variant->left)
		EXPECT_STREQ("uw", registration(LEFT));
	if (variant->right)
		EXPECT_STREQ("uw", registration(RIGHT));
	if (variant->left)
		check_neighbour(_metadata, self, LEFT);
	if (variant->right)
		check_neighbour(_metadata, self, RIGHT);
}

/* Neighbours of another monitor stay that one's. */
TEST_F(neighbours, of_another_monitor)
{
	struct monitor other = {};

	NEED_MONITOR(&self->monitor, self->features | REMAP);
	NEED_MONITOR(&other, self->features | REMAP);
	lay_out(_metadata, self, variant);
	register_neighbours(_metadata, self, variant);
	ASSERT_EQ(0, register_range(other.fd, THIRD, bytes(8), WP));
	ASSERT_EQ(0, set_protection(other.fd, THIRD, bytes(8), true));
	self->monitor.features &= ~(uint64_t)REMAP;
	move_between(_metadata, self, variant);
	want_remap(&other, THIRD, MIDDLE, bytes(8));
	check_count(_metadata, variant, false);
	want_fault(&other, MIDDLE, UFFD_PAGEFAULT_FLAG_WP);
	stamp(MIDDLE, 60);
	EXPECT_OK(check_events(&other));
	if (variant->left)
		check_neighbour(_metadata, self, LEFT);
	if (variant->right)
		check_neighbour(_metadata, self, RIGHT);
}

#undef SELF
#undef VARIANT

/* ---- poisoned pages ---- */

static sigjmp_buf bus_env;
static void *volatile bus_addr;

static void catch_bus(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	bus_addr = info->si_addr;
	siglongjmp(bus_env, 1);
}

/* Whether reading there raises SIGBUS, for this very page. */
static bool is_poisoned(unsigned long addr, size_t page)
{
	struct sigaction action = {
		.sa_sigaction = catch_bus, .sa_flags = SA_SIGINFO,
	};

	bus_addr = NULL;
	sigaction(SIGBUS, &action, NULL);
	if (!sigsetjmp(bus_env, 1)) {
		*(volatile char *)at(addr);
		return false;
	}
	return ((unsigned long)bus_addr & -page) == (addr & -page);
}

#define POISON_PAGES	16

FIXTURE(poison)
{
	struct monitor monitor;
	size_t unit;
	size_t nr;
	size_t len;
	unsigned long dst;
	unsigned long view;	/* a second one of shared memory */
};

FIXTURE_VARIANT(poison)
{
	enum memory memory;
	size_t shift;
	uint64_t features;
};

FIXTURE_VARIANT_ADD(poison, pages) { ANON, 5, 0 };
FIXTURE_VARIANT_ADD(poison, pages_remap) { ANON, 5, REMAP };
FIXTURE_VARIANT_ADD(poison, tables) { ANON, 0, 0 };
FIXTURE_VARIANT_ADD(poison, tables_remap) { ANON, 0, REMAP };
FIXTURE_VARIANT_ADD(poison, shmem) { SHMEM, 5, 0 };
FIXTURE_VARIANT_ADD(poison, shmem_remap) { SHMEM, 5, REMAP };
FIXTURE_VARIANT_ADD(poison, shmem_tables) { SHMEM, 0, 0 };
FIXTURE_VARIANT_ADD(poison, hugetlb) { HUGETLB, 0, 0 };
FIXTURE_VARIANT_ADD(poison, hugetlb_remap) { HUGETLB, 0, REMAP };

/*
 * Of 16 units over two tables, or of 4 huge pages, every fourth is poisoned
 * from number 1 on, and every fourth from number 2 on is there.
 */
static bool gets_poison(size_t i)
{
	return i % 4 == 1;
}

static bool gets_touched(size_t i)
{
	return i % 4 == 2;
}

static unsigned long nth(FIXTURE_DATA(poison) *self, unsigned long base,
			 size_t i)
{
	return base + i * (self->len / self->nr);
}

FIXTURE_SETUP(poison)
{
	const bool hugetlb = variant->memory == HUGETLB;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;

	if (hugetlb && meminfo_kb("HugePages_Free") < 4)
		SKIP(return, "needs 4 free huge pages (vm.nr_hugepages)");
	self->unit = hugetlb ? default_huge_page_size() : psize();
	self->nr = hugetlb ? 4 : POISON_PAGES;
	self->len = hugetlb ? 4 * self->unit : 2 * pmd_span();
	self->monitor.page = self->unit;
	self->dst = DST + bytes(variant->shift);
	NEED_MONITOR(&self->monitor, variant->features | UFFD_FEATURE_POISON);
	no_huge_pages();
	if (hugetlb)
		flags |= MAP_HUGETLB | MAP_NORESERVE;
	if (variant->memory == SHMEM)
		flags = MAP_SHARED | MAP_ANONYMOUS;
	ASSERT_EQ(SRC, map_at(SRC, self->len, PROT_READ | PROT_WRITE, flags,
			      -1, 0));
	if (variant->memory == SHMEM) {
		self->view = THIRD;
		ASSERT_EQ(THIRD, move_to(SRC, 0, self->len, THIRD));
		for (size_t i = 0; i < self->nr; i++)
			stamp(nth(self, THIRD, i), 300 + i);
	}
	for (size_t i = 0; i < self->nr; i++)
		if (gets_touched(i))
			stamp(nth(self, SRC, i), 300 + i);
	ASSERT_EQ(0, register_range(self->monitor.fd, SRC, self->len, MISSING));
	for (size_t i = 0; i < self->nr; i++)
		if (gets_poison(i))
			ASSERT_EQ(0, poison(self->monitor.fd, nth(self, SRC, i),
					    self->unit));
}

FIXTURE_TEARDOWN(poison)
{
}

#define SELF	FIXTURE_DATA(poison) *self

/* Units first to end - 1 of the source, of which number 0 would be at base. */
static void check_poison(META, SELF, unsigned long base, size_t first,
			 size_t end)
{
	for (size_t i = first; i < end; i++) {
		const unsigned long addr = nth(self, base, i);

		EXPECT_EQ(gets_poison(i), is_poisoned(addr, self->unit));
		if (gets_touched(i) || (self->view && !gets_poison(i)))
			EXPECT_OK(check_stamp(addr, 300 + i));
	}
	/* The poison is in the page tables, not in the memory. */
	for (size_t i = 0; self->view && i < self->nr; i++)
		EXPECT_OK(check_stamp(nth(self, self->view, i), 300 + i));
}

TEST_F(poison, moves_along)
{
	ASSERT_EQ(self->dst, move_to(SRC, self->len, self->len, self->dst));
	check_poison(_metadata, self, self->dst, 0, self->nr);
	EXPECT_OK(check_unmapped(SRC, self->len));
}

TEST_F(poison, moves_there_and_back)
{
	ASSERT_EQ(self->dst, move_to(SRC, self->len, self->len, self->dst));
	ASSERT_EQ(SRC, move_to(self->dst, self->len, self->len, SRC));
	check_poison(_metadata, self, SRC, 0, self->nr);
}

TEST_F(poison, of_a_part)
{
	const size_t first = self->nr / 4, end = 3 * self->nr / 4;
	const size_t start = nth(self, 0, first), len = nth(self, 0, end) - start;

	ASSERT_EQ(self->dst + start, move_to(SRC + start, len, len,
					     self->dst + start));
	check_poison(_metadata, self, SRC, 0, first);
	check_poison(_metadata, self, self->dst, first, end);
	check_poison(_metadata, self, SRC, end, self->nr);
}

/* What is mapped at the old place later is as good as new. */
TEST_F(poison, leaves_the_old_place)
{
	const bool hugetlb = variant->memory == HUGETLB;

	ASSERT_EQ(self->dst, move_to(SRC, self->len, self->len, self->dst));
	ASSERT_EQ(SRC, map_at(SRC, self->len, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS |
			      (hugetlb ? MAP_HUGETLB | MAP_NORESERVE : 0),
			      -1, 0));
	for (size_t i = 0; i < self->nr; i++) {
		EXPECT_FALSE(is_poisoned(nth(self, SRC, i), self->unit));
		EXPECT_OK(check_zero(nth(self, SRC, i), psize()));
	}
	check_poison(_metadata, self, self->dst, 0, self->nr);
}

/* Nor is it left behind: there, the monitor is asked for what is missing. */
TEST_F(poison, leaves_what_stays_mapped)
{
	const unsigned long to = do_mremap(SRC, self->len, self->len,
					   FIXED | DONTUNMAP, self->dst);

	if (variant->memory == HUGETLB) {
		EXPECT_EQ(EINVAL, error_of(to));
		check_poison(_metadata, self, SRC, 0, self->nr);
		return;
	}
	ASSERT_EQ(self->dst, to);
	want_remap(&self->monitor, SRC, self->dst, self->len);
	for (size_t i = 0; i < self->nr; i++) {
		/* Shared memory is not missing just for not being mapped. */
		if (self->view) {
			EXPECT_OK(check_stamp(nth(self, SRC, i), 300 + i));
			continue;
		}
		want_fault(&self->monitor, nth(self, SRC, i), 0);
		EXPECT_OK(check_stamp(nth(self, SRC, i), FILLED));
	}
	EXPECT_OK(check_events(&self->monitor));
	check_poison(_metadata, self, self->dst, 0, self->nr);
}

#undef SELF

/* With this feature, a missing page is a signal instead of an event. */
static void move_with_signals(META, struct monitor *monitor)
{
	const bool followed = monitor->features & REMAP;

	no_huge_pages();
	ASSERT_EQ(SRC, map_anon(SRC, bytes(8)));
	stamp_range(SRC, bytes(4), 1);
	ASSERT_EQ(0, register_range(monitor->fd, SRC, bytes(8), MISSING));
	EXPECT_TRUE(is_poisoned(SRC + bytes(6), psize()));
	ASSERT_EQ(DST, do_mremap(SRC, bytes(8), bytes(8), FIXED | DONTUNMAP,
				 DST));
	want_remap(monitor, SRC, DST, bytes(8));
	EXPECT_OK(check_stamps(DST, bytes(4), 1));
	EXPECT_EQ(followed, is_poisoned(DST + bytes(6), psize()));
	EXPECT_TRUE(is_poisoned(SRC, psize()));
	EXPECT_TRUE(is_poisoned(SRC + bytes(6), psize()));
	ASSERT_EQ(0, fill_by_copy(monitor->fd, SRC, psize(), DST));
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_events(monitor));
}

/*
 * hugetlb looks for tables to share where a gigabyte of a file is mapped at a
 * multiple of that. The moved poison must not get lost there, nor get into the
 * table of another mapping.
 */
TEST(poison_moves_where_tables_may_be_shared_mended)
{
	const size_t unit = default_huge_page_size(), len = pud_span();
	const unsigned long src = SRC + unit;
	struct monitor monitor = { .page = unit };
	int fd = memfd_create("poison", MFD_HUGETLB);

	SKIP_STOCK_BUG();
	if (meminfo_kb("HugePages_Free") < 2)
		SKIP(return, "needs 2 free huge pages (vm.nr_hugepages)");
	NEED_MONITOR(&monitor, UFFD_FEATURE_POISON);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_EQ(THIRD, map_at(THIRD, len, PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_NORESERVE, fd, 0));
	stamp(THIRD, 1);
	ASSERT_EQ(src, map_at(src, len, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_NORESERVE, fd, 0));
	ASSERT_EQ(0, register_range(monitor.fd, src, len, MISSING));
	/* Only mappings of the same kind share tables. */
	ASSERT_EQ(0, register_range(monitor.fd, THIRD, len, MISSING));
	ASSERT_EQ(0, poison(monitor.fd, src + unit, unit));
	ASSERT_EQ(DST, move_to(src, len, len, DST));
	/* Who reads what is missing would wait for the monitor. */
	ASSERT_EQ(0, unregister_range(monitor.fd, THIRD, len));
	EXPECT_TRUE(is_poisoned(DST + unit, unit));
	EXPECT_FALSE(is_poisoned(THIRD + unit, unit));
	EXPECT_OK(check_stamp(DST, 1));
	EXPECT_OK(check_stamp(THIRD, 1));
	close(fd);
}

TEST(signals_follow)
{
	struct monitor monitor = {};

	NEED_MONITOR(&monitor, UFFD_FEATURE_SIGBUS | REMAP);
	move_with_signals(_metadata, &monitor);
}

TEST(signals_stay)
{
	struct monitor monitor = {};

	NEED_MONITOR(&monitor, UFFD_FEATURE_SIGBUS);
	move_with_signals(_metadata, &monitor);
}

/* ---- minor faults ---- */

/*
 * Pages that are in the file but not in the page tables belong to the monitor
 * until it maps them. The file's second view is how it gets at them.
 */
FIXTURE(minor)
{
	struct monitor monitor;
	unsigned long dst;
	size_t unit;
	size_t nr;
};

FIXTURE_VARIANT(minor)
{
	enum memory memory;
	size_t shift;
	uint64_t features;
};

FIXTURE_VARIANT_ADD(minor, pages) { SHMEM, 5, 0 };
FIXTURE_VARIANT_ADD(minor, pages_remap) { SHMEM, 5, REMAP };
FIXTURE_VARIANT_ADD(minor, tables) { SHMEM, 0, 0 };
FIXTURE_VARIANT_ADD(minor, tables_remap) { SHMEM, 0, REMAP };
FIXTURE_VARIANT_ADD(minor, hugetlb) { HUGETLB, 0, 0 };
FIXTURE_VARIANT_ADD(minor, hugetlb_remap) { HUGETLB, 0, REMAP };

FIXTURE_SETUP(minor)
{
	const bool hugetlb = variant->memory == HUGETLB;
	int fd;

	if (hugetlb && meminfo_kb("HugePages_Free") < 4)
		SKIP(return, "needs 4 free huge pages (vm.nr_hugepages)");
	self->unit = hugetlb ? default_huge_page_size() : bytes(64);
	self->nr = hugetlb ? 4 : 2 * pmd_span() / self->unit;
	self->dst = DST + bytes(variant->shift);
	self->monitor.page = hugetlb ? self->unit : psize();
	NEED_MONITOR(&self->monitor, variant->features |
		     UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS);
	no_huge_pages();
	fd = memfd_create("minor", hugetlb ? MFD_HUGETLB : 0);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, self->nr * self->unit));
	ASSERT_EQ(SRC, map_at(SRC, self->nr * self->unit,
			      PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	ASSERT_EQ(THIRD, map_at(THIRD, self->nr * self->unit,
				PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	close(fd);
	for (size_t i = 0; i < self->nr; i++)
		stamp(THIRD + i * self->unit, i);
	/* Every other one is in the page tables, too. */
	for (size_t i = 0; i < self->nr; i += 2)
		EXPECT_OK(check_stamp(SRC + i * self->unit, i));
	ASSERT_EQ(0, register_range(self->monitor.fd, SRC,
				    self->nr * self->unit, MINOR));
}

FIXTURE_TEARDOWN(minor)
{
}

TEST_F(minor, move)
{
	struct monitor *monitor = &self->monitor;
	const size_t len = self->nr * self->unit;

	ASSERT_EQ(self->dst, move_to(SRC, len, len, self->dst));
	want_remap(monitor, SRC, self->dst, len);
	EXPECT_STREQ(if_followed(monitor, "ui"), registration(self->dst));
	for (size_t i = 0; i < self->nr; i++) {
		const unsigned long addr = self->dst + i * self->unit;

		if (i % 2 && variant->features & REMAP)
			want_fault(monitor, addr, UFFD_PAGEFAULT_FLAG_MINOR);
		EXPECT_OK(check_stamp(addr, i));
	}
	EXPECT_OK(check_events(monitor));
}

/* All faults at the old place are minor now: the file has all pages. */
TEST_F(minor, dontunmap)
{
	struct monitor *monitor = &self->monitor;
	const size_t len = self->nr * self->unit;
	const unsigned long to = do_mremap(SRC, len, len, FIXED | DONTUNMAP,
					   self->dst);

	if (variant->memory == HUGETLB) {
		EXPECT_EQ(EINVAL, error_of(to));
		EXPECT_STREQ("ui", registration(SRC));
		EXPECT_OK(check_events(monitor));
		return;
	}
	ASSERT_EQ(self->dst, to);
	want_remap(monitor, SRC, self->dst, len);
	EXPECT_STREQ("ui", registration(SRC));
	EXPECT_STREQ(if_followed(monitor, "ui"), registration(self->dst));
	for (size_t i = 0; i < self->nr; i++) {
		want_fault(monitor, SRC + i * self->unit,
			   UFFD_PAGEFAULT_FLAG_MINOR);
		EXPECT_OK(check_stamp(SRC + i * self->unit, i));
	}
	EXPECT_OK(check_events(monitor));
	for (size_t i = 0; i < self->nr; i += 2)
		EXPECT_OK(check_stamp(self->dst + i * self->unit, i));
	EXPECT_OK(check_events(monitor));
}

/* ---- garbage collectors ---- */

/*
 * A collector stops all threads, moves the heap's pages to a place of its own
 * with MREMAP_DONTUNMAP, and lets the threads go on. Whatever object one of
 * them comes to first has to be brought to its new place before. Here, all that
 * is done to it is that its second word becomes the number of the cycle.
 */
#define HEAP		SRC
#define FROM_SPACE	DST
#define SHADOW		THIRD
#define OBJECTS		128
#define MUTATORS	3
#define CYCLES		6
#define ROUNDS		2

enum resolve {
	BY_COPY,
	BY_MOVE,
	BY_CONTINUE,	/* and the heap is a file, with a second view */
};

struct collector {
	struct monitor monitor;
	enum resolve by;
	unsigned long from_space;
	pthread_barrier_t stopped;
	pthread_barrier_t started;
	volatile unsigned int cycle;
	volatile bool over;
	unsigned long resolved;
	unsigned long failed;
	unsigned long wrong;
	uint64_t counters[OBJECTS];	/* each written by its mutator alone */
};

static struct collector collector;

static size_t heap_len(void)
{
	return 2 * pmd_span();
}

static size_t object_offset(size_t object)
{
	return object * (heap_len() / OBJECTS);
}

/* Some objects are never written to, and stay empty. */
static bool is_empty(size_t object)
{
	return collector.by != BY_CONTINUE && object % 8 == 7;
}

/* Brings the object at this address of the heap up to date. */
static int resolve(unsigned long addr)
{
	const unsigned long offset = addr - HEAP;
	const size_t object = offset / object_offset(1);
	const int fd = collector.monitor.fd;
	volatile uint64_t *from;

	if (is_empty(object))
		return fill_with_zero(fd, addr, psize());
	from = at((collector.by == BY_CONTINUE ? SHADOW : collector.from_space) +
		  offset);
	from[1] = collector.cycle;
	if (collector.by == BY_COPY)
		return fill_by_copy(fd, addr, psize(), (unsigned long)from);
	if (collector.by == BY_MOVE)
		return fill_by_move(fd, addr, psize(), (unsigned long)from);
	return map_cached(fd, addr, psize());
}

/*
 * Somebody else may have been quicker. If it fails for another reason, the test
 * has failed: then nobody shall wait any more.
 */
static void resolve_and_count(unsigned long addr)
{
	const unsigned long page = addr & -(unsigned long)psize();
	const int err = resolve(page);

	if (!err) {
		__atomic_add_fetch(&collector.resolved, 1, __ATOMIC_SEQ_CST);
	} else if (err == EEXIST) {
		wake(collector.monitor.fd, page, psize());
	} else {
		__atomic_add_fetch(&collector.failed, 1, __ATOMIC_SEQ_CST);
		unregister_range(collector.monitor.fd, HEAP, heap_len());
	}
}

/* As for the from-space, the collector does not want to hear of it. */
static void answer_collector(struct monitor *monitor, const struct uffd_msg *msg)
{
	if (msg->event == UFFD_EVENT_REMAP)
		unregister_range(monitor->fd, msg->arg.remap.to,
				 msg->arg.remap.len);
	else if (msg->event == UFFD_EVENT_PAGEFAULT)
		resolve_and_count(msg->arg.pagefault.address);
}

static void resolve_on_signal(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	resolve_and_count((unsigned long)info->si_addr);
}

static void use_object(size_t object)
{
	volatile uint64_t *words = at(HEAP + object_offset(object));
	const uint64_t cycle = is_empty(object) ? 0 : collector.cycle;

	if (words[0] != collector.counters[object] || words[1] != cycle)
		__atomic_add_fetch(&collector.wrong, 1, __ATOMIC_SEQ_CST);
	if (!is_empty(object))
		words[0] = ++collector.counters[object];
}

static void *run_mutator(void *arg)
{
	const size_t first = (uintptr_t)arg;

	for (;;) {
		pthread_barrier_wait(&collector.started);
		if (collector.over)
			return NULL;
		for (int round = 0; round < ROUNDS; round++)
			for (size_t i = first; i < OBJECTS; i += MUTATORS)
				use_object(i * 37 % OBJECTS);
		pthread_barrier_wait(&collector.stopped);
	}
}

FIXTURE(collector)
{
	pthread_t mutators[MUTATORS];
};

FIXTURE_VARIANT(collector)
{
	enum resolve by;
	uint64_t features;
	bool late;	/* the heap is registered only while it is collected */
	size_t shift;	/* of the from-space, in pages */
	bool huge;	/* pages, before the first cycle */
};

FIXTURE_VARIANT_ADD(collector, copy) { .by = BY_COPY };
FIXTURE_VARIANT_ADD(collector, copy_pages) { .by = BY_COPY, .shift = 5 };
FIXTURE_VARIANT_ADD(collector, copy_huge) { .by = BY_COPY, .huge = true };
FIXTURE_VARIANT_ADD(collector, copy_late) { .by = BY_COPY, .late = true };
FIXTURE_VARIANT_ADD(collector, copy_remap) { .by = BY_COPY, .features = REMAP };
FIXTURE_VARIANT_ADD(collector, copy_signal) {
	.by = BY_COPY, .features = UFFD_FEATURE_SIGBUS,
};
FIXTURE_VARIANT_ADD(collector, copy_signal_late) {
	.by = BY_COPY, .features = UFFD_FEATURE_SIGBUS, .late = true,
};
FIXTURE_VARIANT_ADD(collector, move) {
	.by = BY_MOVE, .features = UFFD_FEATURE_MOVE,
};
FIXTURE_VARIANT_ADD(collector, move_pages) {
	.by = BY_MOVE, .features = UFFD_FEATURE_MOVE, .shift = 5,
};
FIXTURE_VARIANT_ADD(collector, move_huge) {
	.by = BY_MOVE, .features = UFFD_FEATURE_MOVE, .huge = true,
};
FIXTURE_VARIANT_ADD(collector, move_late) {
	.by = BY_MOVE, .features = UFFD_FEATURE_MOVE, .late = true,
};
FIXTURE_VARIANT_ADD(collector, move_remap) {
	.by = BY_MOVE, .features = UFFD_FEATURE_MOVE | REMAP,
};
FIXTURE_VARIANT_ADD(collector, minor) {
	.by = BY_CONTINUE, .features = UFFD_FEATURE_MINOR_SHMEM,
};
FIXTURE_VARIANT_ADD(collector, minor_pages) {
	.by = BY_CONTINUE, .features = UFFD_FEATURE_MINOR_SHMEM, .shift = 5,
};
FIXTURE_VARIANT_ADD(collector, minor_late) {
	.by = BY_CONTINUE, .features = UFFD_FEATURE_MINOR_SHMEM, .late = true,
};
FIXTURE_VARIANT_ADD(collector, minor_remap) {
	.by = BY_CONTINUE, .features = UFFD_FEATURE_MINOR_SHMEM | REMAP,
};
FIXTURE_VARIANT_ADD(collector, minor_signal_late) {
	.by = BY_CONTINUE, .features = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_SIGBUS,
	.late = true,
};

#define VARIANT	const FIXTURE_VARIANT(collector) *variant

static void map_heap(META, VARIANT)
{
	const size_t len = heap_len();
	int fd;

	if (variant->by != BY_CONTINUE) {
		ASSERT_EQ(HEAP, map_anon(HEAP, len));
		return;
	}
	fd = memfd_create("heap", 0);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, len));
	ASSERT_EQ(HEAP, map_at(HEAP, len, PROT_READ | PROT_WRITE, MAP_SHARED,
			       fd, 0));
	ASSERT_EQ(SHADOW, map_at(SHADOW, len, PROT_READ | PROT_WRITE,
				 MAP_SHARED, fd, 0));
	close(fd);
}

static int register_heap(VARIANT)
{
	return register_range(collector.monitor.fd, HEAP, heap_len(),
			      variant->by == BY_CONTINUE ? MINOR : MISSING);
}

FIXTURE_SETUP(collector)
{
	struct sigaction action = {
		.sa_sigaction = resolve_on_signal, .sa_flags = SA_SIGINFO,
	};

	collector.by = variant->by;
	collector.from_space = FROM_SPACE + bytes(variant->shift);
	collector.monitor.answer = answer_collector;
	if (!variant->huge)
		no_huge_pages();
	map_heap(_metadata, variant);
	if (variant->huge)
		madvise(at(HEAP), heap_len(), MADV_HUGEPAGE);
	for (size_t i = 0; i < OBJECTS; i++)
		if (!is_empty(i))
			*(uint64_t *)at(HEAP + object_offset(i)) = 0;
	if (variant->huge && smaps_kb(HEAP, "AnonHugePages") <= 0)
		SKIP(return, "needs transparent huge pages");
	NEED_MONITOR(&collector.monitor, variant->features);
	if (!variant->late)
		ASSERT_EQ(0, register_heap(variant));
	if (variant->features & UFFD_FEATURE_SIGBUS)
		ASSERT_EQ(0, sigaction(SIGBUS, &action, NULL));
	pthread_barrier_init(&collector.started, NULL, MUTATORS + 1);
	pthread_barrier_init(&collector.stopped, NULL, MUTATORS + 1);
	for (size_t i = 0; i < MUTATORS; i++)
		ASSERT_EQ(0, pthread_create(&self->mutators[i], NULL,
					    run_mutator, (void *)i));
}

FIXTURE_TEARDOWN(collector)
{
}

/* The mutators stand still, and so does what is told to the monitor. */
static void flip(META, VARIANT)
{
	ASSERT_EQ(collector.from_space,
		  do_mremap(HEAP, heap_len(), heap_len(), FIXED | DONTUNMAP,
			    collector.from_space));
	if (variant->late)
		ASSERT_EQ(0, register_heap(variant));
	collector.cycle++;
}

/* The from-space is as it was when the pages got there. */
static void check_from_space(META, VARIANT, const uint64_t *counters)
{
	const unsigned long base = collector.from_space;

	if (variant->by != BY_COPY)
		return;
	for (size_t i = 0; i < OBJECTS; i++)
		EXPECT_EQ(counters[i],
			  *(volatile uint64_t *)at(base + object_offset(i)));
}

static void collect(META, VARIANT)
{
	uint64_t counters[OBJECTS];

	memcpy(counters, collector.counters, sizeof(counters));
	flip(_metadata, variant);
	pthread_barrier_wait(&collector.started);
	/* Meanwhile the collector comes to every object, too. */
	for (size_t i = 0; i < OBJECTS; i++)
		*(volatile uint64_t *)at(HEAP + object_offset(i));
	pthread_barrier_wait(&collector.stopped);
	/* A mutator may go on before its answer has been counted. */
	ASSERT_TRUE(ask_monitor(&collector.monitor, 'p'));
	check_from_space(_metadata, variant, counters);
	if (variant->late)
		ASSERT_EQ(0, unregister_range(collector.monitor.fd, HEAP,
					      heap_len()));
}

TEST_F_TIMEOUT(collector, cycles, 120)
{
	for (unsigned int cycle = 1; cycle <= CYCLES; cycle++) {
		collect(_metadata, variant);
		EXPECT_EQ(0UL, collector.wrong);
		EXPECT_EQ(0UL, collector.failed);
		EXPECT_EQ(cycle * OBJECTS, collector.resolved);
		EXPECT_STREQ(NOT_REGISTERED, registration(collector.from_space));
	}
	collector.over = true;
	pthread_barrier_wait(&collector.started);
	for (size_t i = 0; i < MUTATORS; i++)
		ASSERT_EQ(0, pthread_join(self->mutators[i], NULL));
	for (size_t i = 0; i < OBJECTS; i++)
		EXPECT_EQ(is_empty(i) ? 0UL : CYCLES * ROUNDS,
			  collector.counters[i]);
}

#undef VARIANT

/* ---- moves that fail halfway: what the model of mremap_test does not know ---- */

#define MOST_ALLOCATIONS	400

FIXTURE(failing)
{
	struct monitor monitor;
	struct monitor other;
	unsigned long src;
	unsigned long dst;
	size_t len;
	size_t new_len;
	size_t protect;		/* so much from the start on is protected */
	size_t protected;	/* these are the pages that it is of */
	size_t step;		/* from one touched page to the next */
	int fail_nth;
};

FIXTURE_VARIANT(failing)
{
	enum memory memory;
	uint64_t features;
	int resize;		/* in tables */
	bool occupied;		/* two monitors have the destination, half of it each */
	bool markers;		/* untouched pages are protected, too */
};

FIXTURE_VARIANT_ADD(failing, markers) {
	.memory = ANON, .features = REMAP | UNMAP, .markers = true,
};
FIXTURE_VARIANT_ADD(failing, markers_no_event) {
	.memory = ANON, .markers = true,
};
FIXTURE_VARIANT_ADD(failing, shmem) { .memory = SHMEM, .features = REMAP | UNMAP };
FIXTURE_VARIANT_ADD(failing, shmem_no_event) { .memory = SHMEM };
FIXTURE_VARIANT_ADD(failing, shrinking) {
	.memory = ANON, .features = REMAP | UNMAP, .resize = -1,
};
FIXTURE_VARIANT_ADD(failing, occupied_by_two_monitors) {
	.memory = ANON, .features = REMAP | UNMAP, .occupied = true,
};

#define SELF	FIXTURE_DATA(failing) *self
#define VARIANT	const FIXTURE_VARIANT(failing) *variant

FIXTURE_SETUP(failing)
{
	const char *lacks = prepare_fail_nth();

	if (lacks)
		SKIP(return, "%s", lacks);
	self->src = SRC + bytes(3);
	self->dst = DST + bytes(7);
	self->len = 3 * pmd_span();
	self->new_len = self->len + variant->resize * (long)pmd_span();
	self->protect = pmd_span();
	self->step = bytes(64);
	NEED_MONITOR(&self->monitor, variant->features |
		     wp_features(variant->memory, variant->markers));
	if (variant->occupied)
		NEED_MONITOR(&self->other, UNMAP | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	no_huge_pages();
	self->fail_nth = open(FAIL_NTH, O_RDWR);
	ASSERT_LE(0, self->fail_nth);
}

FIXTURE_TEARDOWN(failing)
{
}

/* What is protected is so whether it is touched or not. */
static void build(META, SELF, VARIANT)
{
	const int fd = self->monitor.fd;
	int flags = MAP_ANONYMOUS | MAP_PRIVATE;

	if (variant->memory == SHMEM)
		flags = MAP_ANONYMOUS | MAP_SHARED;
	ASSERT_EQ(self->src, map_at(self->src, self->len,
				    PROT_READ | PROT_WRITE, flags, -1, 0));
	for (size_t done = 0; done < self->len; done += self->step)
		stamp(self->src + done, done / self->step);
	ASSERT_EQ(0, register_range(fd, self->src, self->len, WP));
	ASSERT_EQ(0, set_protection(fd, self->src, self->protect, true));
	self->protected = count_protected(self->src, self->len);
	ASSERT_NE(0UL, self->protected);
	if (!variant->occupied)
		return;
	ASSERT_EQ(self->dst, map_anon(self->dst, self->new_len));
	ASSERT_EQ(0, register_range(fd, self->dst, pmd_span(), WP));
	ASSERT_EQ(0, register_range(self->other.fd, self->dst + pmd_span(),
				    self->new_len - pmd_span(), WP));
}

/* Each monitor of the old destination is told of all that is unmapped. */
static void want_unmapped_destination(SELF, VARIANT)
{
	want_unmap(&self->monitor, self->dst, self->new_len);
	if (variant->occupied)
		want_unmap(&self->other, self->dst, self->new_len);
}

static const char *check_other(SELF, VARIANT)
{
	return variant->occupied ? check_events(&self->other) : NULL;
}

static const char *check_stepped(SELF, unsigned long addr, size_t len)
{
	const char *why = NULL;

	for (size_t done = 0; !why && done < len; done += self->step)
		why = check_stamp(addr + done, done / self->step);
	return why;
}

/*
 * As before, and nobody has heard of it; but if the destination had been
 * unmapped, that is told. The monitor is not kept from its work.
 */
static void check_failed_move(META, SELF, VARIANT)
{
	const struct vma want = {
		self->src, self->src + self->len, "rw-p", 0, 0,
	};

	EXPECT_STREQ("uw", registration(self->src));
	EXPECT_EQ(self->protected, count_protected(self->src, self->len));
	EXPECT_OK(check_stepped(self, self->src, self->len));
	if (variant->memory == ANON)
		EXPECT_OK(check_vmas(self->src, self->src + self->len, &want,
				     1));
	if (read_vmas(self->dst, self->dst + self->new_len, NULL, 0) > 0) {
		EXPECT_TRUE(variant->occupied);
		EXPECT_STREQ("uw", registration(self->dst));
	} else if (variant->occupied) {
		want_unmapped_destination(self, variant);
	}
	EXPECT_EQ(0, set_protection(self->monitor.fd, self->src, self->protect,
				    true));
	EXPECT_OK(check_events(&self->monitor));
	EXPECT_OK(check_other(self, variant));
}

static void check_done_move(META, SELF, VARIANT)
{
	struct monitor *monitor = &self->monitor;
	const size_t protected = variant->features & REMAP ?
		self->protected : 0;
	const size_t kept = self->len < self->new_len ?
		self->len : self->new_len;

	if (variant->occupied)
		want_unmapped_destination(self, variant);
	want_remap(monitor, self->src, self->dst, kept);
	if (kept < self->len)
		want_unmap(monitor, self->src + kept, self->len - kept);
	want_unmap(monitor, self->src, kept);
	EXPECT_OK(check_events(monitor));
	EXPECT_OK(check_other(self, variant));
	EXPECT_STREQ(if_followed(monitor, "uw"), registration(self->dst));
	EXPECT_EQ(protected, count_protected(self->dst, self->new_len));
	EXPECT_OK(check_stepped(self, self->dst, kept));
}

/* One call, its nth allocation failing; whether it came to that. */
static bool fail_once(META, SELF, VARIANT, int nth)
{
	unsigned long to;
	bool injected;

	build(_metadata, self, variant);
	ASSERT_TRUE(arm_fail_nth(self->fail_nth, nth));
	to = move_to(self->src, self->len, self->new_len, self->dst);
	injected = disarm_fail_nth(self->fail_nth);
	if (error_of(to)) {
		EXPECT_EQ(ENOMEM, error_of(to));
		check_failed_move(_metadata, self, variant);
	} else {
		check_done_move(_metadata, self, variant);
	}
	ASSERT_EQ(0, munmap(at(WINDOW), WINDOW_SIZE));
	/* What that has told is of no interest. */
	ASSERT_TRUE(ask_monitor(&self->monitor, 'p'));
	self->monitor.nr_got = 0;
	if (variant->occupied)
		ASSERT_TRUE(ask_monitor(&self->other, 'p'));
	self->other.nr_got = 0;
	return injected;
}

/* Stock loses the protection bits on the way, and may move without a word. */
TEST_F_TIMEOUT(failing, every_allocation_mended, 120)
{
	int nth = 1;

	SKIP_STOCK_BUG();
	while (nth <= MOST_ALLOCATIONS &&
	       fail_once(_metadata, self, variant, nth) && !_metadata->exit_code)
		nth++;
	EXPECT_GE(MOST_ALLOCATIONS, nth);
	EXPECT_LT(1, nth);
}

#undef SELF
#undef VARIANT

TEST_HARNESS_MAIN
