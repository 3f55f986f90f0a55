// SPDX-License-Identifier: GPL-2.0
/*
 * Mappings of huge pages that mremap(2) makes larger: in place and by moving, private
 * and shared, of no file, of a memfd, of a file. What is added is reserved, or the
 * call fails and changes nothing; and in the end all that was taken is free again.
 *
 * That they keep what they have when they move, and a failure at each allocation, is
 * in mremap_test; what is refused is in mremap_errno as well.
 *
 * Tests whose name ends in _mended are about growth, which stock 6.12 refuses;
 * MREMAP_EXPECT=base skips them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#define SRC	(WINDOW + GB)
#define DST	(WINDOW + 3 * GB)
#define FILL	(WINDOW + 8 * GB)

/* What a test may use, so many huge pages. */
#define ENOUGH		10
#define NEEDS_PAGES	"needs 10 free huge pages (vm.nr_hugepages)"

#define NO_GROWTH	"stock 6.12 does not grow hugetlb"

/* Asked for once: reading a file takes memory, which may be what is to fail. */
static size_t huge(size_t pages)
{
	static size_t size;

	if (!size)
		size = default_huge_page_size();
	return pages * size;
}

/* ---- the pool of huge pages ---- */

struct pool {
	long total;
	long free;
	long reserved;
	long surplus;
};

static struct pool read_pool(void)
{
	return (struct pool) {
		.total = meminfo_kb("HugePages_Total"),
		.free = meminfo_kb("HugePages_Free"),
		.reserved = meminfo_kb("HugePages_Rsvd"),
		.surplus = meminfo_kb("HugePages_Surp"),
	};
}

/* So many more are in use than then, and so many more reserved. */
static const char *check_pool(const struct pool *then, long used, long reserved)
{
	const struct pool now = read_pool();

	if (now.total == then->total && now.surplus == then->surplus &&
	    now.free == then->free - used && now.reserved == then->reserved + reserved)
		return NULL;
	return complain("%ld huge pages used (want %ld), %ld reserved (%ld), %ld surplus",
			then->free - now.free, used, now.reserved - then->reserved,
			reserved, now.surplus - then->surplus);
}

/* Pages of a file go when the last reference to it does, which may take a moment. */
static const char *wait_for_pool(const struct pool *then)
{
	for (int try = 0; try < 100 && check_pool(then, 0, 0); try++)
		usleep(20 * 1000);
	return check_pool(then, 0, 0);
}

/* Reserves all that is free but so many. */
static const char *leave(size_t pages)
{
	const struct pool now = read_pool();
	const size_t taken = now.free - now.reserved - pages;

	if (map_at(FILL, huge(taken), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0) != FILL)
		return "cannot reserve huge pages";
	return NULL;
}

/* ---- mappings ---- */

enum source {
	ANON,
	MEMFD,
	MOUNTED,	/* a file of a hugetlbfs without limits */
};

FIXTURE(kind)
{
	struct pool pool;	/* before anything was mapped */
	char mount[32];
	int fd;
	int flags;		/* of mmap() */
	bool shared;
};

#define SELF	const FIXTURE_DATA(kind) *self

FIXTURE_VARIANT(kind)
{
	int flags;
	enum source source;
};

FIXTURE_VARIANT_ADD(kind, anon) { MAP_PRIVATE, ANON };
FIXTURE_VARIANT_ADD(kind, anon_shared) { MAP_SHARED, ANON };
FIXTURE_VARIANT_ADD(kind, memfd) { MAP_PRIVATE, MEMFD };
FIXTURE_VARIANT_ADD(kind, memfd_shared) { MAP_SHARED, MEMFD };
FIXTURE_VARIANT_ADD(kind, file) { MAP_PRIVATE, MOUNTED };
FIXTURE_VARIANT_ADD(kind, file_shared) { MAP_SHARED, MOUNTED };

static const char *mount_hugetlbfs(char *path, const char *options)
{
	strcpy(path, "/tmp/hugetlb.XXXXXX");
	if (!mkdtemp(path))
		return "needs a directory";
	if (mount("none", path, "hugetlbfs", 0, options)) {
		rmdir(path);
		*path = '\0';
		return "needs leave to mount hugetlbfs";
	}
	return NULL;
}

static void unmount(const char *path)
{
	if (!*path)
		return;
	umount2(path, MNT_DETACH);
	rmdir(path);
}

/* Its name goes at once, so that its pages go with the last mapping. */
static int open_unlinked(const char *folder)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/file", folder);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	unlink(path);
	return fd;
}

FIXTURE_SETUP(kind)
{
	SKIP_STOCK(NO_GROWTH);
	NEED(get_free_hugepages() >= ENOUGH, NEEDS_PAGES);
	self->fd = -1;
	self->flags = variant->flags;
	self->shared = variant->flags & MAP_SHARED;
	if (variant->source == ANON) {
		self->flags |= MAP_ANONYMOUS | MAP_HUGETLB;
	} else if (variant->source == MEMFD) {
		self->fd = memfd_create("huge", MFD_HUGETLB | MFD_ALLOW_SEALING);
	} else {
		NEED_OK(mount_hugetlbfs(self->mount, NULL));
		self->fd = open_unlinked(self->mount);
	}
	ASSERT_TRUE(self->fd >= 0 || variant->source == ANON);
	self->pool = read_pool();
}

/* Nothing of it is mapped any more, nor open: all is as before. */
FIXTURE_TEARDOWN(kind)
{
	put_settings_back();
	munmap(at(WINDOW), WINDOW_SIZE);
	close(self->fd);
	EXPECT_OK(wait_for_pool(&self->pool));
	unmount(self->mount);
}

static unsigned long map_pages(SELF, size_t pages, int more_flags)
{
	return map_at(SRC, huge(pages), PROT_READ | PROT_WRITE, self->flags | more_flags,
		      self->fd, 0);
}

/* Of each huge page the first and the last small page. */
static void stamp_pages(unsigned long addr, size_t pages, unsigned long id)
{
	for (size_t i = 0; i < pages; i++) {
		stamp(addr + huge(i), id + i);
		stamp(addr + huge(i + 1) - psize(), id + i);
	}
}

static const char *check_pages(unsigned long addr, size_t pages, unsigned long id)
{
	const char *why = NULL;

	for (size_t i = 0; i < pages; i++) {
		why = why ?: check_stamp(addr + huge(i), id + i);
		why = why ?: check_stamp(addr + huge(i + 1) - psize(), id + i);
	}
	return why;
}

static const char *check_zero_pages(unsigned long addr, size_t pages)
{
	const char *why = NULL;

	for (size_t i = 0; i < pages; i++) {
		why = why ?: check_zero(addr + huge(i), psize());
		why = why ?: check_zero(addr + huge(i + 1) - psize(), psize());
	}
	return why;
}

static void map_stamped(META, SELF, size_t pages)
{
	ASSERT_EQ(SRC, map_pages(self, pages, 0));
	stamp_pages(SRC, pages, 1);
}

/* If it has a file, that is so long. */
static const char *check_size(SELF, size_t pages)
{
	struct stat stat = {};

	if (self->fd < 0 || (!fstat(self->fd, &stat) && stat.st_size == (off_t)huge(pages)))
		return NULL;
	return complain("the file has %zu huge pages, not %zu", stat.st_size / huge(1), pages);
}

/*
 * At addr are two stamped pages and three new ones, which nobody has touched. When
 * somebody has, it can grow again.
 */
static const char *check_growth(SELF, unsigned long addr)
{
	const char *why = check_pool(&self->pool, 2, 3);

	why = why ?: check_pages(addr, 2, 1);
	why = why ?: check_zero_pages(addr + huge(2), 3);
	if (why)
		return why;
	stamp_pages(addr + huge(2), 3, 3);
	why = check_pool(&self->pool, 5, 0);
	addr = do_mremap(addr, huge(5), huge(6), MREMAP_MAYMOVE, 0);
	if (why || error_of(addr))
		return why ?: complain("does not grow again: errno %d", error_of(addr));
	why = check_pool(&self->pool, 5, 1);
	why = why ?: check_pages(addr, 5, 1);
	why = why ?: check_zero_pages(addr + huge(5), 1);
	munmap(at(addr), huge(6));
	return why;
}

TEST_F(kind, grows_in_place_mended)
{
	map_stamped(_metadata, self, 2);
	EXPECT_OK(check_pool(&self->pool, 2, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(5), 0, 0));
	EXPECT_OK(check_growth(self, SRC));
}

TEST_F(kind, grows_by_moving_mended)
{
	unsigned long moved;

	map_stamped(_metadata, self, 2);
	guard_page(SRC + huge(2));
	moved = do_mremap(SRC, huge(2), huge(5), MREMAP_MAYMOVE, 0);
	ASSERT_EQ(0, error_of(moved));
	EXPECT_OK(check_unmapped(SRC, huge(2)));
	EXPECT_OK(check_guard_page(SRC + huge(2)));
	EXPECT_OK(check_growth(self, moved));
}

/* Nobody ever touches it: what was reserved is given back. */
TEST_F(kind, untouched_mended)
{
	ASSERT_EQ(SRC, map_pages(self, 2, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 0, 4));
	ASSERT_EQ(DST, move_to(SRC, huge(4), huge(7), DST));
	EXPECT_OK(check_pool(&self->pool, 0, 7));
}

/* ---- parts ---- */

TEST_F(kind, end_grows_in_place_mended)
{
	NEED(self->shared, "private ones grow as a whole");
	map_stamped(_metadata, self, 4);
	ASSERT_EQ(SRC + huge(2), do_mremap(SRC + huge(2), huge(2), huge(4), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 4, 2));
	EXPECT_OK(check_pages(SRC, 4, 1));
	EXPECT_OK(check_zero_pages(SRC + huge(4), 2));
	EXPECT_OK(check_pool(&self->pool, 6, 0));
}

/* The new part of the middle has the pages of the end, which stays. */
TEST_F(kind, middle_grows_mended)
{
	NEED(self->shared, "private ones grow as a whole");
	ASSERT_EQ(SRC, map_pages(self, 4, 0));
	stamp_pages(SRC, 3, 1);
	ASSERT_EQ(DST, move_to(SRC + huge(1), huge(1), huge(4), DST));
	EXPECT_OK(check_pool(&self->pool, 3, 2));
	EXPECT_OK(check_pages(SRC, 1, 1));
	EXPECT_OK(check_unmapped(SRC + huge(1), huge(1)));
	EXPECT_OK(check_pages(SRC + huge(2), 1, 3));
	EXPECT_OK(check_pages(DST, 2, 2));
	EXPECT_OK(check_zero_pages(DST + huge(2), 2));
	stamp_pages(SRC + huge(3), 1, 4);
	EXPECT_OK(check_pool(&self->pool, 5, 0));
	EXPECT_OK(check_pages(DST + huge(2), 1, 4));
}

/* As above, but what is behind it has moved away. */
TEST_F(kind, grows_where_its_end_was_mended)
{
	NEED(self->shared, "private ones grow as a whole");
	map_stamped(_metadata, self, 4);
	ASSERT_EQ(DST, move_to(SRC + huge(2), huge(2), huge(2), DST));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 4, 0));
	EXPECT_OK(check_pages(SRC, 4, 1));
	EXPECT_OK(check_pages(DST, 2, 3));
	munmap(at(DST), huge(2));
	EXPECT_OK(check_pages(SRC, 4, 1));
}

static int error_of_growth(unsigned long addr, size_t from, size_t to)
{
	return error_of(do_mremap(addr, huge(from), huge(to), MREMAP_MAYMOVE, 0));
}

/*
 * The parts of a private mapping use one reservation map, by their offsets in the
 * file: none of them grows, until it is the only one.
 */
TEST_F(kind, part_does_not_grow_mended)
{
	NEED(!self->shared, "shared ones grow in part");
	ASSERT_EQ(SRC, map_pages(self, 4, 0));
	stamp_pages(SRC, 3, 1);
	save_state();
	EXPECT_EQ(EINVAL, error_of_growth(SRC, 2, 3));
	EXPECT_EQ(EINVAL, error_of_growth(SRC + huge(1), 1, 2));
	EXPECT_EQ(EINVAL, error_of_growth(SRC + huge(2), 2, 3));
	EXPECT_OK(check_state());
	/* Elsewhere, it is a mapping of its own, but not the only part. */
	ASSERT_EQ(DST, move_to(SRC + huge(2), huge(2), huge(2), DST));
	EXPECT_EQ(EINVAL, error_of_growth(SRC, 2, 3));
	EXPECT_EQ(EINVAL, error_of_growth(DST, 2, 3));
	EXPECT_OK(check_pool(&self->pool, 3, 1));
	munmap(at(DST), huge(2));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 2, 2));
	EXPECT_OK(check_pages(SRC, 2, 1));
	stamp_pages(SRC, 4, 1);
	EXPECT_OK(check_pool(&self->pool, 4, 0));
}

/* A private mapping has its reservations back then; a shared one's pages stay. */
TEST_F(kind, grows_after_dontneed_mended)
{
	map_stamped(_metadata, self, 4);
	ASSERT_EQ(0, madvise(at(SRC + huge(1)), huge(2), MADV_DONTNEED));
	EXPECT_OK(check_pool(&self->pool, self->shared ? 4 : 2, self->shared ? 0 : 2));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(4), huge(5), 0, 0));
	EXPECT_OK(check_pool(&self->pool, self->shared ? 4 : 2, self->shared ? 1 : 3));
	ASSERT_EQ(DST, move_to(SRC, huge(5), huge(6), DST));
	EXPECT_OK(check_pool(&self->pool, self->shared ? 4 : 2, self->shared ? 2 : 4));
	EXPECT_OK(check_pages(DST, 1, 1));
	EXPECT_OK(check_pages(DST + huge(3), 1, 4));
	stamp_pages(DST, 6, 1);
	EXPECT_OK(check_pool(&self->pool, 6, 0));
}

/* What was used there before does not count as used again. */
TEST_F(kind, shrinks_and_grows_mended)
{
	map_stamped(_metadata, self, 4);
	ASSERT_EQ(SRC, do_mremap(SRC, huge(4), huge(2), 0, 0));
	EXPECT_OK(check_pool(&self->pool, self->shared ? 4 : 2, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(5), 0, 0));
	EXPECT_OK(check_pool(&self->pool, self->shared ? 4 : 2, self->shared ? 1 : 3));
	EXPECT_OK(check_pages(SRC, self->shared ? 4 : 2, 1));
	stamp_pages(SRC, 5, 1);
	EXPECT_OK(check_pool(&self->pool, 5, 0));
}

/* After it has grown, it can be cut like any other. */
TEST_F(kind, is_cut_after_growth_mended)
{
	ASSERT_EQ(SRC, map_pages(self, 2, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(6), 0, 0));
	stamp_pages(SRC + huge(3), 1, 1);
	munmap(at(SRC + huge(1)), huge(4));
	EXPECT_OK(check_pool(&self->pool, self->shared, self->shared ? 5 : 2));
	stamp_pages(SRC, 1, 2);
	stamp_pages(SRC + huge(5), 1, 3);
	EXPECT_OK(check_pool(&self->pool, self->shared + 2, self->shared ? 3 : 0));
}

/* ---- no pages ---- */

static const char *refuse_growth(size_t to, int error)
{
	const unsigned long calls[][2] = {
		{ 0, 0 }, { MREMAP_MAYMOVE, 0 }, { FIXED, DST },
	};
	const struct pool before = read_pool();
	const char *why = NULL;

	map_anon(DST, psize());
	stamp(DST, 77);
	save_state();
	for (size_t i = 0; !why && i < ARRAY_SIZE(calls); i++) {
		const int err = error_of(do_mremap(SRC, huge(2), huge(to),
						   calls[i][0], calls[i][1]));

		if (err != error)
			why = complain("call %zu: errno %d, not %d", i, err, error);
		why = why ?: check_pool(&before, 0, 0);
		why = why ?: check_state();
	}
	return why ?: check_stamp(DST, 77);
}

TEST_F(kind, no_page_is_left_mended)
{
	map_stamped(_metadata, self, 2);
	ASSERT_OK(leave(2));
	EXPECT_OK(refuse_growth(5, ENOMEM));
	EXPECT_OK(check_pages(SRC, 2, 1));
	EXPECT_OK(check_size(self, 2));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
	stamp_pages(SRC + huge(2), 2, 3);
	EXPECT_OK(check_pages(SRC, 4, 1));
}

/* A part that is refused is not even split for it. */
TEST_F(kind, no_page_is_left_for_a_part_mended)
{
	ASSERT_EQ(SRC, map_pages(self, 4, 0));
	ASSERT_OK(leave(1));
	save_state();
	EXPECT_EQ(self->shared ? ENOMEM : EINVAL,
		  error_of(move_to(SRC + huge(1), huge(1), huge(6), DST)));
	EXPECT_OK(check_state());
}

TEST_F(kind, nothing_is_reserved_mended)
{
	ASSERT_EQ(SRC, map_pages(self, 2, MAP_NORESERVE));
	ASSERT_OK(leave(1));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(5), 0, 0));
	ASSERT_EQ(DST, move_to(SRC, huge(5), huge(20), DST));
	munmap(at(FILL), huge(self->pool.total));
	EXPECT_OK(check_pool(&self->pool, 0, 0));
	stamp_pages(DST + huge(18), 2, 1);
	EXPECT_OK(check_pool(&self->pool, 2, 0));
}

/* ---- a failure at each allocation ---- */

/* Of a shared mapping a part grows, so that it is split as well. */
TEST_F_TIMEOUT(kind, every_allocation_mended, 120)
{
	const size_t first = self->shared, old = 4 - 2 * first;
	int fd = open(FAIL_NTH, O_RDWR), nth = 0, err;
	struct pool mapped;

	NEED_OK(prepare_fail_nth());
	ASSERT_LE(0, fd);
	do {
		ASSERT_EQ(SRC, map_pages(self, 4, 0));
		stamp_pages(SRC, 3, 1);
		ASSERT_EQ(0, self->fd >= 0 ? ftruncate(self->fd, huge(4)) : 0);
		mapped = read_pool();
		ASSERT_TRUE(arm_fail_nth(fd, ++nth));
		err = error_of(move_to(SRC + huge(first), huge(old), huge(old + 3), DST));
		arm_fail_nth(fd, 0);
		if (err) {
			ASSERT_EQ(ENOMEM, err);
			ASSERT_OK(check_pool(&mapped, 0, 0));
			ASSERT_OK(check_pages(SRC, 3, 1));
			ASSERT_OK(check_unmapped(DST, huge(old + 3)));
			ASSERT_OK(check_size(self, 4));
			stamp_pages(SRC + huge(3), 1, 4);
		} else {
			ASSERT_OK(check_pages(DST, 2, 1 + first));
		}
		munmap(at(SRC), huge(4));
		munmap(at(DST), huge(old + 3));
		ASSERT_EQ(0, self->fd >= 0 ? ftruncate(self->fd, 0) : 0);
		ASSERT_OK(wait_for_pool(&self->pool));
		ASSERT_GT(1000, nth);
	} while (err);
	EXPECT_LT(1, nth);
	close(fd);
}

/* ---- fork ---- */

static const char *child_grows(bool shared)
{
	const unsigned long ret = do_mremap(SRC, huge(2), huge(3), 0, 0);
	const char *why = NULL;

	/* What a child has of a private mapping has no reservations. */
	if (error_of(ret) != (shared ? 0 : EINVAL))
		return complain("a child's growth: errno %d", error_of(ret));
	why = check_pages(SRC, 2, 1);
	return why ?: shared ? check_zero_pages(SRC + huge(2), 1) : NULL;
}

TEST_F(kind, grows_after_fork_mended)
{
	map_stamped(_metadata, self, 2);
	EXPECT_OK_IN_CHILD(child_grows(self->shared));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(5), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 2 + self->shared, 3 - self->shared));
	stamp_pages(SRC, 5, 1);
	EXPECT_OK(check_pages(SRC, 5, 1));
}

/* Neither has reservations, so that neither takes a page from the other. */
static const char *child_grows_unreserved(const struct pool *then)
{
	const char *why = NULL;

	if (do_mremap(SRC, huge(2), huge(4), 0, 0) != SRC)
		return complain("a child's growth: errno %d", errno);
	why = check_pool(then, 0, 0);
	why = why ?: check_pages(SRC, 2, 1);
	stamp_pages(SRC + huge(2), 2, 7);
	why = why ?: check_pool(then, 2, 0);
	return why ?: check_pages(SRC + huge(2), 2, 7);
}

TEST_F(kind, child_grows_what_is_not_reserved_mended)
{
	struct pool mapped;

	ASSERT_EQ(SRC, map_pages(self, 2, MAP_NORESERVE));
	stamp_pages(SRC, 2, 1);
	mapped = read_pool();
	EXPECT_OK_IN_CHILD(child_grows_unreserved(&mapped));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(5), 0, 0));
	EXPECT_OK(check_pages(SRC, 2, 1));
	EXPECT_OK(self->shared ? check_pages(SRC + huge(2), 2, 7) :
			   check_zero_pages(SRC + huge(2), 2));
}

/*
 * There is no page to copy to, so the child loses its own, wherever it has it; stock
 * looks for it where the parent has moved, and would try for ever.
 */
TEST_F(kind, write_after_fork_and_move_mended)
{
	int ends[2], status;
	pid_t child;
	char byte;

	NEED(!self->shared, "only private pages are copied");
	map_stamped(_metadata, self, 2);
	ASSERT_EQ(0, pipe(ends));
	child = fork();
	if (!child) {
		close(ends[1]);
		_exit(read(ends[0], &byte, 1));
	}
	ASSERT_EQ(DST, move_to(SRC, huge(2), huge(2), DST));
	ASSERT_OK(leave(0));
	stamp_pages(DST, 2, 5);
	EXPECT_OK(check_pages(DST, 2, 5));
	close(ends[1]);
	close(ends[0]);
	EXPECT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
}

/* A part that moves away takes along what is reserved for it, and nothing else. */
TEST_F(kind, rest_keeps_its_reservations_mended)
{
	ASSERT_EQ(SRC, map_pages(self, 3, 0));
	ASSERT_EQ(DST, move_to(SRC + huge(1), huge(1), huge(1), DST));
	EXPECT_OK(check_pool(&self->pool, 0, 3));
	ASSERT_OK(leave(0));
	stamp_pages(SRC, 1, 1);
	stamp_pages(DST, 1, 2);
	stamp_pages(SRC + huge(2), 1, 3);
	EXPECT_OK(check_pages(SRC, 1, 1));
	EXPECT_OK(check_pages(DST, 1, 2));
	EXPECT_OK(check_pages(SRC + huge(2), 1, 3));
}

/* ---- the file ---- */

TEST_F(kind, file_grows_mended)
{
	NEED(self->fd >= 0, "its file cannot be seen");
	ASSERT_EQ(SRC, map_pages(self, 2, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(5), 0, 0));
	EXPECT_OK(check_size(self, 5));
	/* As with mmap(): not for who can but read. */
	ASSERT_EQ(0, mprotect(at(SRC), huge(5), PROT_READ));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(5), huge(6), 0, 0));
	EXPECT_OK(check_size(self, 5));
}

TEST_F(kind, sealed_file_does_not_grow_mended)
{
	NEED(variant->source == MEMFD, "only a memfd can be sealed");
	map_stamped(_metadata, self, 2);
	ASSERT_EQ(0, ftruncate(self->fd, huge(4)));
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_GROW));
	EXPECT_OK(refuse_growth(5, EPERM));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
	EXPECT_OK(check_pages(SRC, 2, 1));
	EXPECT_OK(check_zero_pages(SRC + huge(2), 2));
	EXPECT_OK(check_size(self, 4));
}

/* An anonymous mapping can be made writable later. */
TEST_F(kind, protected_grows_mended)
{
	NEED(variant->source == ANON, "that is as long as its file");
	ASSERT_EQ(SRC, map_pages(self, 2, 0));
	ASSERT_EQ(0, mprotect(at(SRC), huge(2), PROT_NONE));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(3), 0, 0));
	ASSERT_EQ(DST, move_to(SRC, huge(3), huge(5), DST));
	ASSERT_EQ(0, mprotect(at(DST), huge(5), PROT_READ | PROT_WRITE));
	stamp_pages(DST, 5, 1);
	EXPECT_OK(check_pages(DST, 5, 1));
}

/*
 * A shared mapping has lost the reservations of what was cut off. That comes back with
 * the file, and is to be had then; a private mapping has kept its own.
 */
TEST_F(kind, grows_over_what_was_cut_mended)
{
	NEED(self->fd >= 0, "its file cannot be cut");
	map_stamped(_metadata, self, 4);
	ASSERT_EQ(0, ftruncate(self->fd, huge(2)));
	EXPECT_OK(check_pool(&self->pool, 2, self->shared ? 0 : 2));
	ASSERT_OK(leave(self->shared ? 3 : 1));
	EXPECT_EQ(ENOMEM, error_of(do_mremap(SRC, huge(4), huge(6), 0, 0)));
	EXPECT_EQ(ENOMEM, error_of(move_to(SRC, huge(4), huge(6), DST)));
	munmap(at(FILL), huge(self->pool.total));
	EXPECT_OK(check_pool(&self->pool, 2, self->shared ? 0 : 2));
	ASSERT_OK(leave(self->shared ? 4 : 2));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(4), huge(6), 0, 0));
	EXPECT_OK(check_pages(SRC, 2, 1));
	EXPECT_OK(check_zero_pages(SRC + huge(2), 4));
}

/* The part moves without the one before it, and answers for itself. */
TEST_F(kind, part_grows_over_what_was_cut_mended)
{
	NEED(self->fd >= 0 && self->shared, "needs a file that is shared");
	ASSERT_EQ(SRC, map_pages(self, 4, 0));
	ASSERT_EQ(0, ftruncate(self->fd, huge(1)));
	EXPECT_OK(check_pool(&self->pool, 0, 1));
	ASSERT_EQ(DST, move_to(SRC + huge(2), huge(2), huge(3), DST));
	EXPECT_OK(check_pool(&self->pool, 0, 1 + 3));
	stamp_pages(DST, 3, 1);
	EXPECT_OK(check_pool(&self->pool, 3, 1));
}

/* What can but be read does not make the file longer: what was cut stays away. */
TEST_F(kind, file_that_was_cut_stays_mended)
{
	NEED(self->fd >= 0, "its file cannot be cut");
	ASSERT_EQ(SRC, map_pages(self, 4, 0));
	ASSERT_EQ(0, mprotect(at(SRC), huge(4), PROT_READ));
	ASSERT_EQ(0, ftruncate(self->fd, huge(1)));
	EXPECT_OK(check_pool(&self->pool, 0, self->shared ? 1 : 4));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(4), huge(5), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 0, self->shared ? 2 : 5));
	EXPECT_OK(check_size(self, 1));
}

/* What was given back on purpose is not reserved again. */
TEST_F(kind, hole_stays_mended)
{
	NEED(self->fd >= 0 && self->shared, "needs a file that is shared");
	map_stamped(_metadata, self, 4);
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       huge(1), huge(1)));
	EXPECT_OK(check_pool(&self->pool, 3, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(4), huge(5), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 3, 1));
}

/* Somebody cuts the file all the time: what is reserved must come out even. */
TEST_F_TIMEOUT(kind, file_is_cut_meanwhile_mended, 120)
{
	const int rounds = 15;
	pid_t child, parent = getpid();

	NEED(self->fd >= 0, "its file cannot be cut");
	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	ASSERT_EQ(SRC, map_pages(self, 2, 0));
	child = fork();
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
		while (getppid() == parent) {
			ftruncate(self->fd, huge(1));
			ftruncate(self->fd, huge(6));
			map_at(FILL, huge(6), PROT_READ, MAP_SHARED, self->fd, 0);
			fallocate(self->fd, 0, huge(3), huge(1));
			munmap(at(FILL), huge(6));
		}
		_exit(1);
	}
	for (int round = 0; round < rounds; round++) {
		/* Pages to unmap first: so there is time to cut the file. */
		ASSERT_EQ(DST, map_at(DST, huge(6), PROT_READ | PROT_WRITE, MAP_PRIVATE |
				      MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
		ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
		ASSERT_EQ(DST, move_to(SRC, huge(4), huge(6), DST));
		ASSERT_EQ(SRC, move_to(DST, huge(6), huge(2), SRC));
	}
	kill(child, SIGKILL);
	EXPECT_EQ(child, waitpid(child, NULL, 0));
}

/* ---- what else a mapping may be ---- */

/* What is at the given place goes. */
TEST_F(kind, locked_mended)
{
	struct counters counters;

	ASSERT_EQ(SRC, map_pages(self, 2, MAP_LOCKED));
	ASSERT_EQ(0, mlock(at(SRC), huge(2)));
	stamp_pages(SRC, 2, 1);
	ASSERT_EQ(DST, map_anon(DST, huge(6)));
	ASSERT_EQ(DST, move_to(SRC, huge(2), huge(5), DST));
	EXPECT_OK(check_unmapped(SRC, huge(2)));
	read_counters(&counters);
	/* Huge pages are never swapped, and are not counted as locked. */
	EXPECT_EQ(0, counters.locked);
	EXPECT_OK(check_growth(self, DST));
}

/* It is not a locked mapping, so what is added is reserved, not faulted in. */
TEST_F(kind, all_is_to_be_locked_mended)
{
	struct counters counters;

	ASSERT_EQ(0, mlockall(MCL_FUTURE));
	ASSERT_EQ(SRC, map_pages(self, 2, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
	ASSERT_EQ(DST, move_to(SRC, huge(4), huge(5), DST));
	munlockall();
	EXPECT_OK(check_pool(&self->pool, 2, 3));
	read_counters(&counters);
	EXPECT_EQ(0, counters.locked);
	stamp_pages(DST, 2, 1);
	EXPECT_OK(check_growth(self, DST));
}

TEST_F(kind, registered_mended)
{
	const int uffd = open_uffd(UFFD_FEATURE_WP_HUGETLBFS_SHMEM);

	NEED(uffd >= 0, "needs userfaultfd");
	map_stamped(_metadata, self, 2);
	ASSERT_EQ(0, uffd_register(uffd, at(SRC), huge(2), false, true, false));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(4), 0, 0));
	EXPECT_TRUE(has_vmflag(SRC, "uw"));
	ASSERT_EQ(DST, move_to(SRC, huge(4), huge(5), DST));
	EXPECT_FALSE(has_vmflag(DST, "uw"));
	close(uffd);
	EXPECT_OK(check_growth(self, DST));
}

#define OTHER_VIEW	(WINDOW + 16 * GB)

/*
 * It has no table, and is as long as one only when it has grown. Then its table is one
 * with that of another view of the file, and is left to faults.
 */
TEST_F(kind, grows_to_a_shared_table_mended)
{
	const size_t len = pud_span();

	NEED(self->fd >= 0 && self->shared, "needs a file that is shared");
	ASSERT_EQ(SRC, map_pages(self, len / huge(1) - 1, MAP_NORESERVE));
	ASSERT_EQ(OTHER_VIEW, map_at(OTHER_VIEW, len, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_NORESERVE, self->fd, 0));
	stamp_pages(OTHER_VIEW, 2, 1);
	ASSERT_EQ(SRC, do_mremap(SRC, len - huge(1), len, 0, 0));
	EXPECT_OK(check_pages(SRC, 2, 1));
	stamp_pages(SRC + len - huge(1), 1, 3);
	EXPECT_OK(check_pages(OTHER_VIEW + len - huge(1), 1, 3));
	ASSERT_EQ(DST, move_to(SRC, len, len + huge(1), DST));
	EXPECT_OK(check_unmapped(SRC, len));
	EXPECT_OK(check_pages(DST, 2, 1));
	EXPECT_OK(check_pages(DST + len - huge(1), 1, 3));
	EXPECT_OK(check_pages(OTHER_VIEW, 2, 1));
	stamp_pages(DST + len - huge(1), 2, 4);
	EXPECT_OK(check_pages(OTHER_VIEW + len - huge(1), 1, 4));
}

/* Pages that exist only while they are needed. */
TEST_F(kind, surplus_pages_mended)
{
	map_stamped(_metadata, self, 2);
	ASSERT_OK(leave(0));
	NEED(change_setting("/proc/sys/vm/nr_overcommit_hugepages", "4"),
	     "needs leave to set vm.nr_overcommit_hugepages");
	NEED(do_mremap(SRC, huge(2), huge(6), 0, 0) == SRC, "needs memory for more huge pages");
	stamp_pages(SRC, 6, 1);
	/* With a surplus, what is unmapped may go on counting as used. */
	EXPECT_EQ(SRC, do_mremap(SRC, huge(6), huge(2), 0, 0));
	EXPECT_EQ(SRC, do_mremap(SRC, huge(2), huge(6), 0, 0));
	EXPECT_OK(check_pages(SRC, self->shared ? 6 : 2, 1));
	stamp_pages(SRC, 6, 1);
	EXPECT_EQ(DST, move_to(SRC, huge(6), huge(6), DST));
	EXPECT_OK(check_pages(DST, 6, 1));
}

/* ---- several at the same time ---- */

/* The kernel stops when growth is reserved and not yet committed. */
#define DELAY	DELAY_DIR "reserved"

static bool has_delays(void)
{
	if (access(DELAY, W_OK))
		mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	return !access(DELAY, W_OK);
}

static bool has_ended(pid_t pid)
{
	siginfo_t info = {};

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid;
}

static int grow_slowly(void *unused)
{
	(void)unused;
	_exit(error_of(move_to(SRC, huge(4), huge(7), DST)));
}

/* Returns when the call, which another process makes, has stopped. */
static pid_t start_growth(META, int (*grow)(void *arg), int more_flags)
{
	static char stack[64 * KB] __attribute__((aligned(16)));
	pid_t pid;

	write_setting(DELAY, "2000000");
	pid = clone(grow, stack + sizeof(stack), more_flags | SIGCHLD, NULL);
	ASSERT_LT(0, pid);
	while (!is_asleep(pid) && !has_ended(pid))
		sched_yield();
	write_setting(DELAY, "0");
	ASSERT_FALSE(has_ended(pid));
	return pid;
}

static int result_of_growth(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static bool is_killed(pid_t pid)
{
	int status;

	return !kill(pid, SIGKILL) && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status);
}

/* Four stamped pages, which can be made to grow slowly. */
static const char *map_for_delay(SELF)
{
	if (!has_delays())
		return NEEDS_DELAYS;
	if (map_pages(self, 4, 0) != SRC)
		return "cannot map huge pages";
	stamp_pages(SRC, 4, 1);
	return NULL;
}

/* Who cuts the file waits until it has grown, and takes the reservations as well. */
TEST_F(kind, file_is_cut_between_mended)
{
	pid_t pid;

	NEED(self->fd >= 0, "its file cannot be cut");
	NEED_OK(map_for_delay(self));
	pid = start_growth(_metadata, grow_slowly, CLONE_VM);
	EXPECT_EQ(0, ftruncate(self->fd, huge(2)));
	EXPECT_EQ(0, result_of_growth(pid));
	EXPECT_OK(check_unmapped(SRC, huge(4)));
	EXPECT_OK(check_size(self, 2));
	EXPECT_OK(check_pool(&self->pool, 2, self->shared ? 0 : 5));
	EXPECT_OK(check_pages(DST, 2, 1));
	ASSERT_EQ(DST, do_mremap(DST, huge(7), huge(8), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 2, 6));
	EXPECT_OK(check_zero_pages(DST + huge(2), 6));
}

/* Whoever has sealed it can rely on its size. */
TEST_F(kind, file_is_sealed_between_mended)
{
	struct stat sealed, stat;
	pid_t pid;

	NEED(variant->source == MEMFD, "only a memfd can be sealed");
	NEED_OK(map_for_delay(self));
	pid = start_growth(_metadata, grow_slowly, CLONE_VM);
	EXPECT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_GROW));
	EXPECT_EQ(0, fstat(self->fd, &sealed));
	EXPECT_EQ(0, result_of_growth(pid));
	EXPECT_OK(check_unmapped(SRC, huge(4)));
	ASSERT_EQ(0, fstat(self->fd, &stat));
	EXPECT_EQ(sealed.st_size, stat.st_size);
	EXPECT_OK(check_pages(DST, 4, 1));
}

/* The second one finds reserved what it needs, and asks for no more. */
TEST_F(kind, another_grows_between_mended)
{
	pid_t pid;

	NEED(self->shared, "only shared mappings have the same pages");
	NEED_OK(map_for_delay(self));
	ASSERT_OK(leave(3));
	pid = start_growth(_metadata, grow_slowly, 0);
	EXPECT_EQ(SRC, do_mremap(SRC, huge(4), huge(7), 0, 0));
	EXPECT_EQ(0, result_of_growth(pid));
	munmap(at(FILL), huge(self->pool.total));
	EXPECT_OK(check_pool(&self->pool, 4, 3));
	EXPECT_OK(check_zero_pages(SRC + huge(4), 3));
}

static pid_t start_second_growth(void)
{
	const pid_t pid = fork();

	if (!pid)
		_exit(error_of(do_mremap(SRC, huge(4), huge(5), 0, 0)));
	while (!is_asleep(pid) && !has_ended(pid))
		sched_yield();
	return pid;
}

/* Who waits for the first one can be killed, and that one then goes on. */
TEST_F(kind, waiting_is_killed_mended)
{
	bool killed = false;
	pid_t first, second;

	NEED(self->shared, "only shared mappings have the same file");
	NEED_OK(map_for_delay(self));
	for (int round = 0; round < 5 && !killed; round++) {
		first = start_growth(_metadata, grow_slowly, 0);
		second = start_second_growth();
		killed = is_killed(second) && is_asleep(first);
		EXPECT_EQ(0, result_of_growth(first));
	}
	EXPECT_TRUE(killed);
	EXPECT_OK(check_pool(&self->pool, 4, 3));
	EXPECT_OK(check_pages(SRC, 4, 1));
}

/* Who is killed gives back what it has reserved, and its mapping can grow later. */
TEST_F(kind, growing_is_killed_mended)
{
	pid_t pid;

	NEED_OK(map_for_delay(self));
	pid = start_growth(_metadata, grow_slowly, CLONE_VM);
	EXPECT_OK(check_pool(&self->pool, 4, 3));
	EXPECT_TRUE(is_killed(pid));
	EXPECT_OK(check_pool(&self->pool, 4, 0));
	EXPECT_OK(check_unmapped(DST, huge(7)));
	EXPECT_OK(check_pages(SRC, 4, 1));
	EXPECT_OK(check_size(self, 4));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(4), huge(6), 0, 0));
	EXPECT_OK(check_pool(&self->pool, 4, 2));
}

/* A fault waits for nobody: what it has made needs no reservation any more. */
TEST_F(kind, page_is_touched_between_mended)
{
	pid_t pid;

	NEED(self->fd >= 0 && self->shared, "needs a file that is shared");
	NEED_OK(map_for_delay(self));
	ASSERT_EQ(0, ftruncate(self->fd, huge(7)));
	ASSERT_EQ(FILL, map_at(FILL, huge(7), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_NORESERVE, self->fd, 0));
	pid = start_growth(_metadata, grow_slowly, 0);
	stamp_pages(FILL + huge(5), 1, 6);
	EXPECT_FALSE(has_ended(pid));
	EXPECT_EQ(0, result_of_growth(pid));
	EXPECT_OK(check_pool(&self->pool, 4 + 1, 2));
	stamp_pages(FILL + huge(4), 1, 5);
	EXPECT_OK(check_pool(&self->pool, 4 + 2, 1));
	EXPECT_OK(check_pages(FILL, 6, 1));
}

/* ---- limits of a file system ---- */

FIXTURE(limited)
{
	struct pool unmounted;
	struct pool pool;
	char mount[32];
	int fd;
};

FIXTURE_VARIANT(limited)
{
	int flags;
	int most;	/* 0: no limit */
	int least;	/* so many are reserved for it */
};

FIXTURE_VARIANT_ADD(limited, most) { MAP_PRIVATE, 4, 0 };
FIXTURE_VARIANT_ADD(limited, most_shared) { MAP_SHARED, 4, 0 };
FIXTURE_VARIANT_ADD(limited, least) { MAP_PRIVATE, 0, 4 };
FIXTURE_VARIANT_ADD(limited, least_shared) { MAP_SHARED, 0, 4 };
FIXTURE_VARIANT_ADD(limited, both) { MAP_PRIVATE, 6, 4 };
FIXTURE_VARIANT_ADD(limited, both_shared) { MAP_SHARED, 6, 4 };

FIXTURE_SETUP(limited)
{
	char options[96] = "mode=700", option[32];

	SKIP_STOCK(NO_GROWTH);
	NEED(get_free_hugepages() >= ENOUGH, NEEDS_PAGES);
	self->unmounted = read_pool();
	if (variant->most) {
		snprintf(option, sizeof(option), ",size=%zu", huge(variant->most));
		strcat(options, option);
	}
	if (variant->least) {
		snprintf(option, sizeof(option), ",min_size=%zu", huge(variant->least));
		strcat(options, option);
	}
	NEED_OK(mount_hugetlbfs(self->mount, options));
	self->fd = open_unlinked(self->mount);
	ASSERT_LE(0, self->fd);
	self->pool = read_pool();
	ASSERT_OK(check_pool(&self->unmounted, 0, variant->least));
	ASSERT_EQ(SRC, map_at(SRC, huge(2), PROT_READ | PROT_WRITE, variant->flags, self->fd, 0));
	stamp_pages(SRC, 2, 1);
}

FIXTURE_TEARDOWN(limited)
{
	munmap(at(WINDOW), WINDOW_SIZE);
	close(self->fd);
	EXPECT_OK(wait_for_pool(&self->pool));
	unmount(self->mount);
	EXPECT_OK(wait_for_pool(&self->unmounted));
}

static long free_of(const FIXTURE_DATA(limited) *self)
{
	struct statfs stat;

	return statfs(self->mount, &stat) ? -1 : (long)stat.f_bfree;
}

TEST_F(limited, grows_up_to_the_limit_mended)
{
	const int most = variant->most;

	NEED(most, "it has no limit");
	EXPECT_EQ(most - 2, free_of(self));
	EXPECT_OK(refuse_growth(most + 1, ENOMEM));
	EXPECT_EQ(most - 2, free_of(self));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(most), 0, 0));
	EXPECT_EQ(0, free_of(self));
	stamp_pages(SRC, most, 1);
	ASSERT_EQ(DST, move_to(SRC, huge(most), huge(most), DST));
	EXPECT_EQ(0, free_of(self));
	EXPECT_OK(check_pages(DST, most, 1));
}

/* The first two of what is added are reserved already. */
TEST_F(limited, uses_its_minimum_mended)
{
	const int least = variant->least;

	NEED(least, "it has no minimum");
	EXPECT_OK(check_pool(&self->pool, 2, -2));
	ASSERT_OK(leave(1));
	EXPECT_OK(refuse_growth(6, ENOMEM));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(5), 0, 0));
	munmap(at(FILL), huge(self->unmounted.total));
	EXPECT_OK(check_pool(&self->pool, 2, -2 + 1));
	stamp_pages(SRC, 5, 1);
	EXPECT_OK(check_pool(&self->pool, 5, -least));
}

static int fd_of_slow_growth, flags_of_slow_growth;

static int map_and_grow_slowly(void *unused)
{
	(void)unused;
	if (map_at(DST, huge(1), PROT_READ | PROT_WRITE, flags_of_slow_growth,
		   fd_of_slow_growth, huge(2)) != DST)
		_exit(1);
	_exit(error_of(move_to(DST, huge(1), huge(2), DST + huge(4))));
}

/*
 * What others free does not go back to the minimum as long as enough is used without
 * it. Growth that comes to nothing has to see to that.
 */
TEST_F(limited, others_free_between_mended)
{
	pid_t pid;

	NEED(has_delays(), NEEDS_DELAYS);
	NEED(variant->least, "it has no minimum");
	ASSERT_EQ(FILL, map_at(FILL, huge(1), PROT_READ | PROT_WRITE, MAP_PRIVATE,
			       self->fd, huge(2)));
	EXPECT_OK(check_pool(&self->pool, 2, -2));
	fd_of_slow_growth = self->fd;
	flags_of_slow_growth = variant->flags;
	pid = start_growth(_metadata, map_and_grow_slowly, 0);
	EXPECT_OK(check_pool(&self->pool, 2, -1));
	munmap(at(FILL), huge(1));
	EXPECT_FALSE(has_ended(pid));
	EXPECT_TRUE(is_killed(pid));
	munmap(at(SRC), huge(2));
	EXPECT_EQ(0, ftruncate(self->fd, 0));
	EXPECT_OK(wait_for_pool(&self->pool));
}

/* It fails when all is reserved. */
TEST_F(limited, every_allocation_mended)
{
	int fd = open(FAIL_NTH, O_RDWR), nth = 0;
	const struct pool before = read_pool();
	const long left = free_of(self);
	unsigned long ret;

	NEED_OK(prepare_fail_nth());
	guard_page(SRC + huge(2));
	do {
		ASSERT_OK(check_pool(&before, 0, 0));
		ASSERT_EQ(left, free_of(self));
		ASSERT_OK(check_pages(SRC, 2, 1));
		ASSERT_TRUE(arm_fail_nth(fd, ++nth));
		ret = do_mremap(SRC, huge(2), huge(variant->most ?: 5), FIXED, DST);
		arm_fail_nth(fd, 0);
		ASSERT_GT(1000, nth);
	} while (error_of(ret) == ENOMEM);
	EXPECT_EQ(DST, ret);
	EXPECT_LT(1, nth);
	close(fd);
}

/* ---- limits of a group ---- */

#define ABOVE	CGROUPS "mremap_hugetlb/"
#define GROUP	ABOVE "group/"
#define OTHER	ABOVE "other/"

FIXTURE(group)
{
	bool shared;
};

FIXTURE_VARIANT(group)
{
	int flags;
};

FIXTURE_VARIANT_ADD(group, private) { MAP_PRIVATE };
FIXTURE_VARIANT_ADD(group, shared) { MAP_SHARED };

static const char *rsvd_file(const char *group, const char *file)
{
	const size_t mb = huge(1) / MB;
	static char path[96];

	snprintf(path, sizeof(path), "%shugetlb.%zu%s.rsvd.%s", group,
		 mb < 1024 ? mb : mb / 1024, mb < 1024 ? "MB" : "GB", file);
	return path;
}

static bool set_limit(const char *group, size_t pages)
{
	char limit[32];

	snprintf(limit, sizeof(limit), "%zu", huge(pages));
	return write_setting(rsvd_file(group, "max"), limit);
}

static size_t charged_to(const char *group)
{
	return read_long(rsvd_file(group, "current"));
}

/* Of ours: those that were removed, but that somebody still refers to. */
static long dying_groups(void)
{
	char stat[256] = "";
	const char *dying;

	read_setting(ABOVE "cgroup.stat", stat, sizeof(stat));
	dying = strstr(stat, "nr_dying_descendants ");
	return dying ? atol(strchr(dying, ' ')) : -1;
}

/* So many huge pages are charged to the two. */
static const char *check_charges(size_t pages, size_t other)
{
	const size_t charged = charged_to(GROUP), charged_other = charged_to(OTHER);

	if (charged == huge(pages) && charged_other == huge(other))
		return NULL;
	return complain("%zu (want %zu) and %zu (want %zu) huge pages charged",
			charged / huge(1), pages, charged_other / huge(1), other);
}

FIXTURE_SETUP(group)
{
	SKIP_STOCK(NO_GROWTH);
	NEED(get_free_hugepages() >= ENOUGH, NEEDS_PAGES);
	NEED(write_setting(CGROUPS "cgroup.subtree_control", "+hugetlb"),
	     "needs CONFIG_CGROUP_HUGETLB (" CGROUPS ")");
	self->shared = variant->flags & MAP_SHARED;
	ASSERT_EQ(0, mkdir(ABOVE, 0700));
	ASSERT_TRUE(write_setting(ABOVE "cgroup.subtree_control", "+hugetlb"));
	ASSERT_EQ(0, mkdir(GROUP, 0700));
	ASSERT_EQ(0, mkdir(OTHER, 0700));
	ASSERT_TRUE(write_setting(GROUP "cgroup.procs", "0"));
	ASSERT_EQ(SRC, map_at(SRC, huge(2), PROT_READ | PROT_WRITE, variant->flags |
			      MAP_ANONYMOUS | MAP_HUGETLB, -1, 0));
	stamp_pages(SRC, 2, 1);
	ASSERT_OK(check_charges(2, 0));
}

/* Each reference that a charge has taken is gone with it, or the groups would stay. */
FIXTURE_TEARDOWN(group)
{
	munmap(at(WINDOW), WINDOW_SIZE);
	for (int try = 0; try < 100 && check_charges(0, 0); try++)
		usleep(20 * 1000);
	EXPECT_OK(check_charges(0, 0));
	write_setting(CGROUPS "cgroup.procs", "0");
	EXPECT_EQ(0, rmdir(GROUP));
	EXPECT_EQ(0, rmdir(OTHER));
	for (int try = 0; try < 500 && dying_groups(); try++)
		usleep(20 * 1000);
	EXPECT_EQ(0, dying_groups());
	EXPECT_EQ(0, rmdir(ABOVE));
}

TEST_F(group, is_charged_mended)
{
	ASSERT_TRUE(set_limit(GROUP, 5));
	EXPECT_OK(refuse_growth(6, ENOMEM));
	EXPECT_OK(check_charges(2, 0));
	munmap(at(DST), psize());
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(3), 0, 0));
	EXPECT_OK(check_charges(3, 0));
	ASSERT_EQ(DST, move_to(SRC, huge(3), huge(5), DST));
	EXPECT_OK(check_charges(5, 0));
	stamp_pages(DST, 5, 1);
}

/*
 * The group of the caller is charged, but if the mapping is private the one that is
 * charged for all of it.
 */
TEST_F(group, after_another_was_joined_mended)
{
	ASSERT_TRUE(write_setting(OTHER "cgroup.procs", "0"));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(3), 0, 0));
	EXPECT_OK(check_charges(self->shared ? 2 : 3, self->shared ? 1 : 0));
	ASSERT_EQ(DST, move_to(SRC, huge(3), huge(5), DST));
	EXPECT_OK(check_charges(self->shared ? 2 : 5, self->shared ? 3 : 0));
	ASSERT_TRUE(write_setting(GROUP "cgroup.procs", "0"));
	ASSERT_EQ(SRC, move_to(DST, huge(5), huge(6), SRC));
	EXPECT_OK(check_charges(self->shared ? 3 : 6, self->shared ? 3 : 0));
	EXPECT_OK(check_pages(SRC, 2, 1));
	stamp_pages(SRC, 6, 1);
	EXPECT_OK(check_charges(self->shared ? 3 : 6, self->shared ? 3 : 0));
}

/* What is refused, by the group or after it was charged, is charged to nobody. */
TEST_F(group, limit_of_another_mended)
{
	const char *limited = self->shared ? OTHER : GROUP;

	ASSERT_TRUE(write_setting(OTHER "cgroup.procs", "0"));
	ASSERT_TRUE(set_limit(limited, self->shared ? 2 : 4));
	EXPECT_OK(refuse_growth(5, ENOMEM));
	EXPECT_OK(check_charges(2, 0));
	ASSERT_TRUE(set_limit(limited, 100));
	/* For what takes all that is left. */
	ASSERT_TRUE(write_setting(CGROUPS "cgroup.procs", "0"));
	ASSERT_OK(leave(1));
	ASSERT_TRUE(write_setting(OTHER "cgroup.procs", "0"));
	EXPECT_OK(refuse_growth(4, ENOMEM));
	EXPECT_OK(check_charges(2, 0));
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(3), 0, 0));
	EXPECT_OK(check_charges(self->shared ? 2 : 3, self->shared ? 1 : 0));
}

/* What a group above both is charged for is not charged for a second time. */
TEST_F(group, limit_of_both_mended)
{
	ASSERT_TRUE(set_limit(ABOVE, 3));
	ASSERT_TRUE(write_setting(OTHER "cgroup.procs", "0"));
	EXPECT_OK(refuse_growth(4, ENOMEM));
	munmap(at(DST), psize());
	ASSERT_EQ(SRC, do_mremap(SRC, huge(2), huge(3), 0, 0));
	EXPECT_EQ(huge(3), charged_to(ABOVE));
}

/* ---- a bug of others, which moves are not to make worse ---- */

#define FAULTS	8

static pthread_barrier_t all_ready;
static int zeros;

/* By a system call: an error, not a signal, if the page is gone. */
static void *fault_in(void *page)
{
	pthread_barrier_wait(&all_ready);
	if (read(zeros, page, 1) < 0)
		page = NULL;
	return page;
}

/* Faults that have begun when a file is cut. What they bring is not to stay there. */
static const char *truncate_meanwhile(int file, int patience)
{
	pthread_t threads[FAULTS];

	for (int i = 0; i < FAULTS; i++)
		if (pthread_create(&threads[i], NULL, fault_in, at(SRC + huge(i))))
			return "cannot start a thread";
	pthread_barrier_wait(&all_ready);
	while (patience--)
		sched_yield();
	if (ftruncate(file, 0))
		return "cannot truncate the file";
	for (int i = 0; i < FAULTS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < FAULTS; i++)
		if (is_present(SRC + huge(i)))
			return complain("page %d is mapped, behind the end of the file", i);
	return NULL;
}

TEST(truncation_waits_for_faults_fixed)
{
	int file;

	NEED(expect_fixed(), "a bug of other calls (MREMAP_EXPECT=fixed)");
	NEED(get_free_hugepages() >= FAULTS, "needs 8 free huge pages (vm.nr_hugepages)");
	file = memfd_create("cut", MFD_HUGETLB);
	zeros = open("/dev/zero", O_RDONLY);
	ASSERT_LE(0, zeros);
	ASSERT_EQ(0, pthread_barrier_init(&all_ready, NULL, FAULTS + 1));
	for (int round = 0; round < 100; round++) {
		ASSERT_EQ(0, ftruncate(file, huge(FAULTS)));
		ASSERT_EQ(SRC, map_at(SRC, huge(FAULTS), PROT_READ | PROT_WRITE, MAP_SHARED,
				      file, 0));
		ASSERT_OK(truncate_meanwhile(file, round % 10));
		munmap(at(SRC), huge(FAULTS));
	}
}

/* ---- System V ---- */

TEST(segment_does_not_grow)
{
	int id;

	NEED(get_free_hugepages() >= 2, "needs 2 free huge pages (vm.nr_hugepages)");
	id = shmget(IPC_PRIVATE, huge(2), IPC_CREAT | SHM_HUGETLB | 0600);
	NEED(id >= 0, "needs System V shared memory of huge pages");
	ASSERT_EQ(at(SRC), shmat(id, at(SRC), 0));
	shmctl(id, IPC_RMID, NULL);
	stamp_pages(SRC, 2, 1);
	EXPECT_OK(refuse_growth(4, EINVAL));
	EXPECT_OK(check_pages(SRC, 2, 1));
}

TEST_HARNESS_MAIN
