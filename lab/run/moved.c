// SPDX-License-Identifier: GPL-2.0
/*
 * The process that CRIU dumps: it moves stamped mappings about with mremap(),
 * says "ready" and waits for SIGUSR1; then it checks all of them, moves each
 * once more, checks again and says "verified". Linked statically, so that
 * CRIU has one executable to find again.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "stamp.h"

#define KB	(1UL << 10)
#define MB	(1UL << 20)
#define GB	(1UL << 30)

struct region {
	const char *name;
	size_t size;		/* before the move */
	size_t moved_size;
	size_t align;		/* of both places, ... */
	size_t from, to;	/* ... to which these are added */
	int map_flags;
	int move_flags;
	int huge;
	size_t stamped;		/* bytes with contents, 0: all that survive */
	char *at;
};

static struct region regions[] = {
	{ .name = "one page", .size = 4 * KB, .moved_size = 4 * KB,
	  .align = 2 * MB, .from = 4 * KB, .to = 64 * KB },
	{ .name = "off by one page", .size = 16 * MB, .moved_size = 16 * MB,
	  .align = 2 * MB, .to = 4 * KB },
	{ .name = "congruent, ragged ends", .size = 9 * MB + 12 * KB,
	  .moved_size = 9 * MB + 12 * KB,
	  .align = 2 * MB, .from = 20 * KB, .to = 20 * KB },
	{ .name = "whole tables", .size = 32 * MB, .moved_size = 32 * MB,
	  .align = 2 * MB },
	{ .name = "whole directory", .size = GB, .moved_size = GB,
	  .align = GB, .stamped = 8 * MB },
	{ .name = "huge pages, aligned", .size = 16 * MB, .moved_size = 16 * MB,
	  .align = 2 * MB, .huge = 1 },
	{ .name = "huge pages, split", .size = 16 * MB, .moved_size = 16 * MB,
	  .align = 2 * MB, .to = 8 * KB, .huge = 1 },
	{ .name = "grown", .size = 4 * MB, .moved_size = 12 * MB,
	  .align = 2 * MB, .to = 4 * KB },
	{ .name = "shrunk", .size = 12 * MB, .moved_size = 4 * MB,
	  .align = 2 * MB, .to = 4 * KB },
	{ .name = "shared", .size = 8 * MB, .moved_size = 8 * MB,
	  .align = 2 * MB, .to = 12 * KB, .map_flags = MAP_SHARED },
	{ .name = "old mapping kept", .size = 8 * MB, .moved_size = 8 * MB,
	  .align = 2 * MB, .move_flags = MREMAP_DONTUNMAP },
};

#define NREGIONS (sizeof(regions) / sizeof(regions[0]))

static volatile sig_atomic_t signalled;

static void on_signal(int sig)
{
	signalled = sig;
}

static void die(const struct region *region, const char *what)
{
	printf("%s: ", region->name);
	fflush(stdout);
	perror(what);
	exit(1);
}

/* Address space that nothing else uses, at the region's alignment. */
static char *reserve(const struct region *region, size_t size)
{
	size_t room = size + 2 * region->align;
	char *hole = mmap(NULL, room, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (hole == MAP_FAILED)
		die(region, "reserve");
	return (char *)(((uintptr_t)hole + region->align) & ~(region->align - 1));
}

static size_t stamped_bytes(const struct region *region)
{
	size_t kept = region->size < region->moved_size ?
		      region->size : region->moved_size;

	return region->stamped ? region->stamped : kept;
}

static void check(const struct region *region, size_t index, const char *when)
{
	if (stamp_wrong(region->at, 0, stamped_bytes(region), index)) {
		printf("%s: contents lost %s\n", region->name, when);
		exit(1);
	}
}

static void create(struct region *region, size_t index)
{
	int kind = region->map_flags ? region->map_flags : MAP_PRIVATE;
	char *place = reserve(region, region->size + region->from) + region->from;

	region->at = mmap(place, region->size, PROT_READ | PROT_WRITE,
			  kind | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	if (region->at == MAP_FAILED)
		die(region, "mmap");
	if (madvise(region->at, region->size,
		    region->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die(region, "madvise");
	stamp(region->at, 0, stamped_bytes(region), index);
}

static void move(struct region *region, size_t from_size)
{
	char *place = reserve(region, region->moved_size + region->to) + region->to;

	region->at = mremap(region->at, from_size, region->moved_size,
			    MREMAP_MAYMOVE | MREMAP_FIXED | region->move_flags,
			    place);
	if (region->at == MAP_FAILED)
		die(region, "mremap");
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t blocked, before;
	size_t i;

	setlinebuf(stdout);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, &before);
	sigaction(SIGUSR1, &action, NULL);

	for (i = 0; i < NREGIONS; i++) {
		create(&regions[i], i);
		move(&regions[i], regions[i].size);
	}
	for (i = 0; i < NREGIONS; i++)
		check(&regions[i], i, "by the first move");
	puts("ready");
	while (!signalled)
		sigsuspend(&before);

	for (i = 0; i < NREGIONS; i++)
		check(&regions[i], i, "between dump and restore");
	for (i = 0; i < NREGIONS; i++)
		move(&regions[i], regions[i].moved_size);
	for (i = 0; i < NREGIONS; i++)
		check(&regions[i], i, "by the move after the restore");
	puts("verified");
	return 0;
}
