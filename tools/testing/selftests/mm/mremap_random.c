// SPDX-License-Identifier: GPL-2.0
/*
 * Random calls of everything that changes an address space, mremap(2) above all,
 * against a model that knows every page of a window: what is mapped, with which
 * protection, lock and advice, of which object, what it contains, and whether it has
 * to read as changed. Of every call it knows whether it is refused, and why, also by
 * limits and by seals. A call may find no memory, and has changed nothing then. What the
 * process is charged with has to add up, and nothing of it may stay when it is gone.
 * Meanwhile KSM merges pages that are alike.
 *
 * A run is one seed: a list of calls that depends on nothing else. It is made in a
 * child, which begins with an empty window, and ends with the first thing that is not
 * as modelled. The list is then tried again with parts left out, as long as it still
 * fails, and what is left of it is printed. As a call's outcome is computed from what
 * was before it, any part of a list is a list.
 *
 * Only where VMAs end is asked of the kernel: the model does not know what it merged.
 *
 * In the environment:
 *	MREMAP_SEEDS=FIRST-LAST	   the seeds that the test "asked_for" takes
 *	MREMAP_SOAK=SECONDS	   for how long it goes on, with any number of seeds
 *	MREMAP_LOG=FILE		   what came of each call, the same on every kernel but
 *				   for lines that are marked as being allowed to differ
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

/* The window, in pages: five page tables. Most calls are near the end of the first. */
#define TABLE		512
#define PAGES		(5 * TABLE)
#define BASE		(WINDOW + GB)
#define BUSY		(WINDOW + 2 * GB)

#define CALLS		2000	/* of a run */
#define MOST_CALLS	4096
#define FULL_CHECK	64
#define FLAG_CHECK	512	/* calls from one check of the flags of VMAs to the next */
#define MOST_REPLAYS	600	/* when a list is shortened */
#define TIMEOUT		600

/* ---- what a run consists of ---- */

/* In the order in which they are drawn: another one would be other lists for all seeds. */
enum kind {
	REMAP, WRITE, MAP, UNMAP, PROTECT, ADVISE, LOCK, UNLOCK, TRUNCATE, PUNCH, TOUCH, FORK,
	CLEAR_DIRTY, SEAL, STEP_ASIDE, REGISTER, UNREGISTER, WRITE_PROTECT, LIMIT, SEAL_FILE,
	KINDS,
};

/* Pages; what is not used by a kind is 0. */
struct call {
	enum kind kind;
	int at;
	int len;		/* old length */
	int new;
	int to;			/* FAR: out of the address space */
	int odd;		/* bytes that its arguments are off by: see enum odd */
	unsigned long flags;	/* also advice, what is mapped, limited, or sealed */
	int fail;		/* the nth allocation fails; 0: none does */
	int prot;
	int object;		/* a file, ANON or SHARED */
	int offset;
};

#define FAR	(-1)
#define ALIKE	1		/* all pages that are written get the same contents */
#define NO_LIMIT (-1)		/* pages more than are in use */

enum odd { ODD_ADDR = 1, ODD_NEW_ADDR = 2, ODD_OLD_LEN = 4, ODD_NEW_LEN = 8, NO_NEW_LEN = 16 };

#define ANON	(-1)
#define SHARED	(-2)	/* anonymous: an object of its own */

/* ---- the model ---- */

enum content {
	VIEW,		/* of the object; nothing if there is none */
	OWN,		/* stamped, or copied */
	LAZY,		/* the same, or zero: MADV_FREE */
	UNSURE,		/* a view, or a copy */
};

enum advice {
	HUGE = 1, NO_HUGE = 2, MERGEABLE = 4, DONT_FORK = 8, WIPE = 16, DONT_DUMP = 32,
	NO_RESERVE = 64, LOCKED = 128,
	REGISTERED = 256,	/* with userfaultfd, which raises SIGBUS */
};

static const struct {
	enum advice advice;
	char text[4];
} flag_texts[] = {
	{ HUGE, " hg" }, { NO_HUGE, " nh" }, { MERGEABLE, " mg" }, { DONT_FORK, " dc" },
	{ WIPE, " wf" }, { DONT_DUMP, " dd" }, { NO_RESERVE, " nr" }, { LOCKED, " lo" },
	{ REGISTERED, " uw" },
};

/* A page of which it is not known whether it is there may be protected, or not. */
enum protected { UNPROTECTED, PROTECTED, PERHAPS };

struct page {
	bool mapped;
	bool shared;
	bool sealed;
	bool read_only;		/* for ever, by a seal of the file */
	bool vma_dirty;		/* reads as changed: the mapping, or the page itself */
	bool dirty;
	uint8_t prot;
	uint8_t content;
	uint8_t protected;	/* by userfaultfd: see enum protected */
	int8_t object;
	uint16_t flags;
	int offset;
	uint32_t id;		/* if it is no view; 0: zero */
	uint32_t birth;		/* pages of one birth are one mapping */
};

#define FILES	4
#define TO_SEAL	(FILES - 1)	/* the only file that gets seals: they stay */
#define OBJECTS	32

struct object {
	int fd;			/* -1: anonymous memory */
	unsigned long inode;
	int size;
	unsigned int seals;
	uint32_t ids[PAGES];
};

static struct page pages[PAGES];
static struct object objects[OBJECTS];
static uint32_t next_id, next_birth;

/* What the process has: what is in the window, and besides. Its limits, in pages. */
struct sums {
	long size;
	long data;
	long locked;
};

static struct sums beside;
static long size_limit, lock_limit;

/* What the model gets wrong on purpose, so that it has to be found out. */
static enum mistake {
	NONE, KEPT_PAGES, GROWN_PAGES, OLD_PROTECTION, OVERLAPS, KEPT_OFFSET, LEFT_BEHIND,
} mistake;

/* Between the run and who waits for it. */
static struct report {
	struct call calls[MOST_CALLS];
	int nr_calls;			/* that were begun */
	char complaint[512];
	unsigned long succeeded[KINDS];
	unsigned long refused[KINDS];
	unsigned long busy_writes;
	unsigned long without_memory;	/* calls */
	long merged;			/* pages, at most */
} *report;

static int check_step = FULL_CHECK;	/* calls from one check of everything to the next */
static int flag_check_step = FLAG_CHECK;
static bool with_threads;
static FILE *log_file;
static unsigned long page_size;
static int maps_fd, pagemap_fd, uffd, fail_fd;
static bool tracks_dirty, can_fail, has_huge_pages;

static unsigned long P(int page)
{
	return BASE + page * page_size;
}

static __noreturn __printf(1, 2) void fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(report->complaint, sizeof(report->complaint), format, args);
	va_end(args);
	_exit(1);
}

static bool beyond_end(const struct page *p)
{
	return p->object >= 0 && p->offset >= objects[p->object].size;
}

static uint32_t id_of(const struct page *p)
{
	if (p->content != VIEW)
		return p->id;
	if (p->object < 0 || beyond_end(p))
		return 0;
	return objects[p->object].ids[p->offset];
}

static int count_mapped(int first, int nr)
{
	int mapped = 0;

	for (int i = first; i < first + nr; i++)
		mapped += pages[i].mapped;
	return mapped;
}

static bool is_free(int first, int nr)
{
	return !count_mapped(first, nr);
}

static bool is_mapped(int first, int nr)
{
	return count_mapped(first, nr) == nr;
}

static bool any_sealed(int first, int nr)
{
	for (int i = first; i < first + nr; i++)
		if (pages[i].mapped && pages[i].sealed)
			return true;
	return false;
}

static int count_locked(int first, int nr)
{
	int locked = 0;

	for (int i = first; i < first + nr; i++)
		locked += !!(pages[i].flags & LOCKED);
	return locked;
}

static bool exceeds_size(long added)
{
	return beside.size + count_mapped(0, PAGES) + added > size_limit;
}

static bool exceeds_locks(long added)
{
	return count_locked(0, PAGES) + added > lock_limit;
}

/* The range becomes one mapping, or several, of which none goes beyond it. */
static void give_birth(int first, int nr)
{
	const int end = first + nr;
	uint32_t old = 0;

	if (end < PAGES && pages[end].birth == pages[end - 1].birth) {
		old = pages[end].birth;
		next_birth++;
		for (int i = end; i < PAGES && pages[i].mapped && pages[i].birth == old; i++)
			pages[i].birth = next_birth;
	}
	old = 0;
	for (int i = first; i < end; i++) {
		if (!pages[i].mapped)
			continue;
		if (i == first || pages[i].birth != old)
			next_birth++;
		old = pages[i].birth;
		pages[i].birth = next_birth;
	}
}

static void forget(int first, int nr)
{
	give_birth(first, nr);
	memset(&pages[first], 0, nr * sizeof(pages[0]));
}

/*
 * Pages that are faulted in for a lock are copied if they could be written to. It ends
 * with the first that cannot be. Returns whether all were, or PERHAPS.
 */
static int populate(struct page *p, int nr)
{
	int all = true;

	for (int i = 0; i < nr; i++) {
		const bool written_to = !p[i].shared && p[i].prot & PROT_WRITE;

		if (!p[i].prot || beyond_end(&p[i]) ||
		    (written_to && p[i].protected == PROTECTED))
			return false;
		if (written_to && p[i].protected == PERHAPS)
			all = PERHAPS;
		if (!written_to || p[i].object < 0 || p[i].content != VIEW)
			continue;
		p[i].id = id_of(&p[i]);
		p[i].content = all == PERHAPS ? UNSURE : OWN;
	}
	return all;
}

static int free_object(void)
{
	bool used[OBJECTS] = {};

	for (int i = 0; i < PAGES; i++)
		if (pages[i].mapped && pages[i].object >= 0)
			used[pages[i].object] = true;
	for (int i = FILES; i < OBJECTS; i++)
		if (!used[i])
			return i;
	return 0;
}

/* ---- looking at memory ---- */

static sigjmp_buf where_to;
static volatile bool may_fault;
static volatile unsigned long fault_addr;
static pthread_t main_thread;

/* The thread's own, see below. */
static sigjmp_buf busy_where_to;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (with_threads && !pthread_equal(pthread_self(), main_thread))
		siglongjmp(busy_where_to, sig);
	fault_addr = (unsigned long)info->si_addr;
	if (!may_fault)
		fail("signal %d at %#lx", sig, fault_addr);
	siglongjmp(where_to, sig);
}

static void check_page(int nr)
{
	const struct page *p = &pages[nr];
	const uint32_t id = id_of(p);
	const char *why = NULL;

	if (p->content == LAZY && !*(volatile uint64_t *)at(P(nr)))
		why = check_zero(P(nr), page_size);
	else if (id)
		why = check_stamp(P(nr), id);
	else
		why = check_zero(P(nr), page_size);
	if (why)
		fail("contents of page %d, which should be of id %u: %s", nr, id, why);
}

static bool can_be_read(const struct page *p)
{
	return p->mapped && p->prot & PROT_READ && p->content != UNSURE && !beyond_end(p);
}

static void check_protection(int nr, bool is)
{
	const struct page *p = &pages[nr];

	if (is && !(p->flags & REGISTERED))
		fail("page %d is protected, but not registered", nr);
	if (p->content == OWN && p->protected != PERHAPS && is == !p->protected)
		fail("page %d is protected, or is not, as it should not be", nr);
}

/* What KSM has merged is a new entry. */
static bool has_to_be_dirty(const struct page *p)
{
	return p->mapped && tracks_dirty &&
	       (p->vma_dirty || (p->dirty && !(p->flags & MERGEABLE)));
}

/* Zero pages are looked at only if they are there: else there would soon be no others. */
static void check_contents(int first, int nr)
{
	static uint64_t bits[PAGES];
	volatile int i = first;
	int sig;

	if (pread(pagemap_fd, bits, nr * sizeof(bits[0]),
		  P(first) / page_size * sizeof(bits[0])) != (ssize_t)(nr * sizeof(bits[0])))
		fail("pagemap cannot be read");
	may_fault = true;
	sig = sigsetjmp(where_to, 0);
	if (sig)
		fail("page %d: signal %d at %#lx", i, sig, fault_addr);
	for (; i < first + nr; i++) {
		const struct page *p = &pages[i];
		const uint64_t is = bits[i - first];

		if (can_be_read(p) && (id_of(p) || is & (PM_PRESENT | PM_SWAP)))
			check_page(i);
		check_protection(i, is & PM_UFFD_WP);
		if (!p->mapped && is & (PM_PRESENT | PM_SWAP))
			fail("page %d: not mapped, but in pagemap: %#lx", i, (long)is);
		if (has_to_be_dirty(p) && !(is & PM_SOFT_DIRTY))
			fail("page %d: has changed, but does not read as such: %#lx", i,
			     (long)is);
	}
	may_fault = false;
}

static bool query(unsigned long addr, uint64_t flags, struct procmap_query *vma)
{
	*vma = (struct procmap_query) {
		.size = sizeof(*vma), .query_flags = flags, .query_addr = addr,
	};
	return !ioctl(maps_fd, PROCMAP_QUERY, vma);
}

/* Where the mapping ends that the page is in. */
static int end_of_vma(int page)
{
	struct procmap_query vma;

	if (!query(P(page), 0, &vma))
		return 0;
	return vma.vma_end > P(PAGES) ? PAGES : (int)((vma.vma_end - BASE) / page_size);
}

static void check_page_of_vma(int nr, const struct procmap_query *vma)
{
	const struct page *p = &pages[nr];
	const unsigned long offset = vma->vma_offset + P(nr) - vma->vma_start;
	const int prot = (vma->vma_flags & PROCMAP_QUERY_VMA_READABLE ? PROT_READ : 0) |
			 (vma->vma_flags & PROCMAP_QUERY_VMA_WRITABLE ? PROT_WRITE : 0);

	if (!p->mapped)
		fail("page %d is mapped, but should not be", nr);
	if (prot != p->prot)
		fail("protection of page %d is %d, not %d", nr, prot, p->prot);
	if (!!(vma->vma_flags & PROCMAP_QUERY_VMA_SHARED) != p->shared)
		fail("page %d is shared, or is not, as it should not be", nr);
	if (vma->inode != (p->object < 0 ? 0 : objects[p->object].inode))
		fail("page %d is of inode %lu", nr, (long)vma->inode);
	if (p->object >= 0 && offset != p->offset * page_size)
		fail("page %d has file offset %#lx, not page %d", nr, offset, p->offset);
}

static void check_gap(int first, int end)
{
	for (int i = first; i < end; i++)
		if (pages[i].mapped)
			fail("page %d should be mapped", i);
}

static void check_layout(int first, int nr)
{
	const int end = first + nr;
	struct procmap_query vma;

	while (first < end && query(P(first), PROCMAP_QUERY_COVERING_OR_NEXT_VMA, &vma)) {
		int start = first, vma_end = end;

		if (vma.vma_start >= P(end))
			break;
		if (vma.vma_start > P(first))
			start = (vma.vma_start - BASE) / page_size;
		if (vma.vma_end < P(end))
			vma_end = (vma.vma_end - BASE) / page_size;
		check_gap(first, start);
		for (int i = start; i < vma_end; i++)
			check_page_of_vma(i, &vma);
		first = vma_end;
	}
	check_gap(first, end);
}

static void check_flags(void)
{
	static struct smap smaps[PAGES];
	const int nr = read_smaps(P(0), P(PAGES), smaps, PAGES);

	for (int map = 0; map < nr; map++) {
		unsigned int flags = 0;

		for (size_t i = 0; i < ARRAY_SIZE(flag_texts); i++)
			if (strstr(smaps[map].flags, flag_texts[i].text))
				flags |= flag_texts[i].advice;
		for (unsigned long addr = smaps[map].vma.start; addr < smaps[map].vma.end;
		     addr += page_size) {
			const int page = (addr - BASE) / page_size;

			if (pages[page].flags != flags)
				fail("flags of page %d are %#x, not %#x", page, flags,
				     pages[page].flags);
		}
	}
}

static void read_sums(struct sums *sums)
{
	struct counters now;

	read_counters(&now);
	*sums = (struct sums) {
		now.size * KB / page_size, now.data * KB / page_size,
		now.locked * KB / page_size,
	};
}

static void check_sums(void)
{
	struct sums want = beside, is;

	for (int i = 0; i < PAGES; i++) {
		const struct page *p = &pages[i];

		want.size += p->mapped;
		want.data += p->mapped && !p->shared && p->prot & PROT_WRITE;
		want.locked += !!(p->flags & LOCKED);
	}
	read_sums(&is);
	if (is.size != want.size)
		fail("%ld pages are mapped, not %ld", is.size, want.size);
	if (is.data != want.data)
		fail("%ld pages are data, not %ld", is.data, want.data);
	if (is.locked != want.locked)
		fail("%ld pages are locked, not %ld", is.locked, want.locked);
}

static void check_all(void)
{
	check_layout(0, PAGES);
	check_contents(0, PAGES);
	check_sums();
}

/* What a call has to do with, but no more of it than is cheap. */
static void check_some(int first, int nr)
{
	if (first < 0)
		first = 0;
	if (nr > 24)
		nr = 24;
	if (first + nr > PAGES)
		nr = PAGES - first;
	if (nr > 0) {
		check_layout(first, nr);
		check_contents(first, nr);
	}
}

/* ---- calls other than mremap(): they return an errno ---- */

static void expect_error(int error, int want)
{
	if (error != want)
		fail("failed with %d (%s) instead of %d", error, strerror(error), want);
}

static int error_of_call(long ret)
{
	return ret == -1 ? errno : 0;
}

#define WRITE_SEALS	(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)

static bool is_write_sealed(int object)
{
	return object >= 0 && objects[object].seals & WRITE_SEALS;
}

static void map_pages(const struct call *c, int object)
{
	next_birth++;
	forget(c->at, c->len);
	for (int i = 0; i < c->len; i++) {
		pages[c->at + i] = (struct page) {
			.mapped = true,
			.shared = c->flags & MAP_SHARED,
			.read_only = c->flags & MAP_SHARED && is_write_sealed(object),
			.prot = c->prot,
			.object = object,
			.offset = object < FILES ? c->offset + i : i,
			.birth = next_birth,
			.flags = (c->flags & MAP_NORESERVE ? NO_RESERVE : 0) |
				 (c->flags & MAP_LOCKED ? LOCKED : 0),
			.vma_dirty = true,
		};
	}
	if (c->flags & (MAP_LOCKED | MAP_POPULATE))
		populate(&pages[c->at], c->len);
}

/* In the order in which the kernel asks. */
static int error_of_map(const struct call *c, int object)
{
	if (c->flags & MAP_FIXED_NOREPLACE && !is_free(c->at, c->len))
		return EEXIST;
	if (c->flags & MAP_LOCKED && exceeds_locks(c->len))
		return EAGAIN;
	if (is_write_sealed(object) && c->flags & MAP_SHARED && c->prot & PROT_WRITE)
		return EPERM;
	if (any_sealed(c->at, c->len))
		return EPERM;
	return exceeds_size(c->len - count_mapped(c->at, c->len)) ? ENOMEM : 0;
}

static int do_map(const struct call *c)
{
	const bool anon = c->object < 0;
	struct procmap_query vma;
	int object = c->object, want, error;

	if (object == SHARED) {
		object = free_object();
		if (!object)
			return 0;
	}
	want = error_of_map(c, object);
	error = error_of_call((long)mmap(at(P(c->at)), bytes(c->len), c->prot,
					 c->flags | (anon ? MAP_ANONYMOUS : 0),
					 anon ? -1 : objects[object].fd,
					 anon ? 0 : bytes(c->offset)));
	expect_error(error, want);
	if (error)
		return error;
	if (c->object == SHARED) {
		if (!query(P(c->at), 0, &vma))
			fail("page %d is not mapped", c->at);
		memset(objects[object].ids, 0, sizeof(objects[object].ids));
		objects[object].inode = vma.inode;
		objects[object].size = c->len;
	}
	map_pages(c, object);
	return 0;
}

static int do_unmap(const struct call *c)
{
	const int error = error_of_call(munmap(at(P(c->at)), bytes(c->len)));

	expect_error(error, any_sealed(c->at, c->len) ? EPERM : 0);
	if (!error)
		forget(c->at, c->len);
	return error;
}

/* What comes before a gap, or before what is refused, is changed all the same. */
static int do_protect(const struct call *c)
{
	const int error = error_of_call(mprotect(at(P(c->at)), bytes(c->len), c->prot));
	bool unsure = false;
	int want = 0, i;

	for (i = c->at; i < c->at + c->len; i++) {
		struct page *p = &pages[i];
		const bool becomes_writable = !p->shared && p->flags & LOCKED &&
			!(p->prot & PROT_WRITE) && c->prot & PROT_WRITE;

		if (!p->mapped)
			want = ENOMEM;
		else if (p->read_only && c->prot & PROT_WRITE)
			want = EACCES;
		else if (p->sealed)
			want = EPERM;
		if (want)
			break;
		if (mistake != OLD_PROTECTION || c->len < 3)
			p->prot = c->prot;
		if (!becomes_writable)
			continue;
		if (unsure && p->object >= 0 && p->content == VIEW)
			p->content = UNSURE;
		else if (!populate(p, 1))
			unsure = true;
	}
	if (i > c->at)
		give_birth(c->at, i - c->at);
	expect_error(error, want);
	return error;
}

static bool is_discard(int advice)
{
	return advice == MADV_FREE || advice == MADV_DONTNEED || advice == MADV_REMOVE ||
	       advice == MADV_DONTFORK || advice == MADV_WIPEONFORK;
}

static void punch(int object, int offset)
{
	if (offset < objects[object].size)
		objects[object].ids[offset] = 0;
}

/* Advice that sets and clears flags. */
static const struct {
	int advice;
	unsigned int set;
	unsigned int clear;
} advised_flags[] = {
	{ MADV_HUGEPAGE, HUGE, NO_HUGE }, { MADV_NOHUGEPAGE, NO_HUGE, HUGE },
	{ MADV_DONTFORK, DONT_FORK, 0 }, { MADV_DOFORK, 0, DONT_FORK },
	{ MADV_WIPEONFORK, WIPE, 0 }, { MADV_KEEPONFORK, 0, WIPE },
	{ MADV_DONTDUMP, DONT_DUMP, 0 }, { MADV_DODUMP, 0, DONT_DUMP },
	{ MADV_UNMERGEABLE, 0, MERGEABLE },
};

/* The errno that this advice has for this page, if it is not taken. */
static int advise_page(struct page *p, int advice)
{
	const bool anon = p->object < 0;

	if (is_discard(advice) && p->sealed && anon && !(p->prot & PROT_WRITE))
		return EPERM;
	switch (advice) {
	case MADV_DONTNEED:
		if (p->flags & LOCKED)
			return EINVAL;
		if (!p->shared) {
			p->content = VIEW;
			p->dirty = false;
			p->protected = UNPROTECTED;
		}
		break;
	case MADV_FREE:
		if (p->flags & LOCKED || !anon)
			return EINVAL;
		if (p->content == OWN)
			p->content = LAZY;
		if (p->protected)
			p->protected = PERHAPS;
		p->dirty = false;
		break;
	case MADV_COLD:
	case MADV_PAGEOUT:
		if (p->flags & LOCKED)
			return EINVAL;
		break;
	case MADV_REMOVE:
		if (p->flags & LOCKED || anon)
			return EINVAL;
		if (!p->shared || p->read_only)
			return EACCES;
		if (is_write_sealed(p->object))
			return EPERM;
		punch(p->object, p->offset);
		break;
	case MADV_MERGEABLE:
		if (!p->shared)
			p->flags |= MERGEABLE;
		if (p->protected)
			p->protected = PERHAPS;
		break;
	case MADV_UNMERGEABLE:
		if (p->flags & MERGEABLE)
			p->dirty = false;
		break;
	case MADV_WIPEONFORK:
		if (!anon)
			return EINVAL;
		break;
	}
	for (size_t i = 0; i < ARRAY_SIZE(advised_flags); i++)
		if (advised_flags[i].advice == advice)
			p->flags = (p->flags & ~advised_flags[i].clear) | advised_flags[i].set;
	return 0;
}

/* A kernel without transparent huge pages refuses these before it looks at the range. */
static bool is_unknown_advice(int advice)
{
	return !has_huge_pages && (advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE);
}

static int do_advise(const struct call *c)
{
	const int error = error_of_call(madvise(at(P(c->at)), bytes(c->len), c->flags));
	int want = 0, i;

	/* Whether pages can be collapsed now is beyond the model. */
	if (c->flags == MADV_COLLAPSE)
		return error;
	if (is_unknown_advice(c->flags)) {
		expect_error(error, EINVAL);
		return error;
	}
	for (i = c->at; i < c->at + c->len; i++) {
		if (pages[i].mapped) {
			int refused = advise_page(&pages[i], c->flags);

			if (refused) {
				want = refused;
				break;
			}
		} else {
			want = ENOMEM;
		}
	}
	if (i > c->at)
		give_birth(c->at, i - c->at);
	expect_error(error, want);
	return error;
}

static int do_lock(const struct call *c)
{
	const bool locks = c->kind == LOCK;
	const bool exceeds = locks && exceeds_locks(c->len - count_locked(c->at, c->len));
	int populated = true;
	const int error = error_of_call(locks ? mlock(at(P(c->at)), bytes(c->len)) :
					munlock(at(P(c->at)), bytes(c->len)));
	int i;

	if (exceeds) {
		expect_error(error, ENOMEM);
		return error;
	}
	for (i = c->at; i < c->at + c->len && pages[i].mapped; i++)
		pages[i].flags = (pages[i].flags & ~LOCKED) | (locks ? LOCKED : 0);
	if (i > c->at)
		give_birth(c->at, i - c->at);
	if (i < c->at + c->len)
		populated = false;
	else if (locks)
		populated = populate(&pages[c->at], c->len);
	if (populated != PERHAPS || error != ENOMEM)
		expect_error(error, populated ? 0 : ENOMEM);
	return error;
}

/* What is protected raises SIGBUS. */
static void write_in_vain(int page)
{
	int sig;

	may_fault = true;
	sig = sigsetjmp(where_to, 0);
	if (!sig)
		*(volatile char *)at(P(page)) = 1;
	may_fault = false;
	if (sig != SIGBUS)
		fail("page %d: protected, but writing to it raised signal %d", page, sig);
}

static int do_write(const struct call *c)
{
	next_id++;
	for (int i = c->at; i < c->at + c->len; i++) {
		struct page *p = &pages[i];

		if (!p->mapped || !(p->prot & PROT_WRITE) || beyond_end(p))
			continue;
		if (p->protected) {
			if (p->protected == PROTECTED)
				write_in_vain(i);
			continue;
		}
		if (!(c->flags & ALIKE))
			next_id++;
		stamp(P(i), next_id);
		if (p->shared) {
			objects[p->object].ids[p->offset] = next_id;
		} else {
			p->content = OWN;
			p->id = next_id;
			p->dirty = true;
		}
	}
	return 0;
}

/* The signal that reading from the page raises, or 0. */
static int read_page(int page)
{
	int sig;

	may_fault = true;
	sig = sigsetjmp(where_to, 0);
	if (!sig)
		*(volatile char *)at(P(page));
	may_fault = false;
	return sig;
}

/* Reads pages, whether they can be read or not. */
static int do_touch(const struct call *c)
{
	for (int i = c->at; i < c->at + c->len; i++) {
		const struct page *p = &pages[i];
		int want = 0, sig;

		if (p->mapped && p->content == UNSURE)
			continue;
		if (!p->mapped || !p->prot)
			want = SIGSEGV;
		else if (beyond_end(p))
			want = SIGBUS;
		sig = read_page(i);
		if (sig != want)
			fail("page %d: signal %d, not %d", i, sig, want);
		if (!want)
			check_page(i);
	}
	return 0;
}

/* Private copies go with what they are copies of, unless it is only a hole. */
static int do_truncate(const struct call *c)
{
	struct object *object = &objects[c->object];
	const int error = error_of_call(ftruncate(object->fd, bytes(c->len)));
	const unsigned int seal = c->len < object->size ? F_SEAL_SHRINK :
				  c->len > object->size ? F_SEAL_GROW : 0;

	expect_error(error, object->seals & seal ? EPERM : 0);
	if (error)
		return error;
	for (int i = 0; i < PAGES; i++) {
		struct page *p = &pages[i];

		if (p->mapped && p->object == c->object && p->offset >= c->len) {
			p->content = VIEW;
			p->dirty = false;
		}
	}
	for (int i = c->len; i < object->size; i++)
		object->ids[i] = 0;
	object->size = c->len;
	return 0;
}

static int do_punch(const struct call *c)
{
	const int error = error_of_call(fallocate(objects[c->object].fd,
						  FALLOC_FL_PUNCH_HOLE |
						  FALLOC_FL_KEEP_SIZE,
						  bytes(c->offset), bytes(c->len)));

	expect_error(error, is_write_sealed(c->object) ? EPERM : 0);
	if (error)
		return error;
	for (int i = c->offset; i < c->offset + c->len; i++)
		punch(c->object, i);
	return 0;
}

static __noreturn void look_as_child(void)
{
	for (int i = 0; i < PAGES; i++) {
		struct page *p = &pages[i];

		if (p->mapped && p->flags & DONT_FORK)
			*p = (struct page) {};
		else if (p->flags & WIPE)
			p->content = VIEW;
		p->dirty = false;
		p->vma_dirty = false;
		p->flags &= ~(REGISTERED | LOCKED);
		p->protected = UNPROTECTED;
	}
	close(maps_fd);
	close(pagemap_fd);
	maps_fd = open("/proc/self/maps", O_RDONLY);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	check_all();
	for (int i = 0; i < PAGES; i++)
		if (pages[i].mapped && !pages[i].shared && pages[i].prot & PROT_WRITE &&
		    pages[i].content == OWN)
			stamp(P(i), 0xbad);
	_exit(0);
}

static int do_fork(const struct call *c)
{
	int status = -1;
	pid_t child;

	(void)c;
	if (log_file)
		fflush(log_file);
	child = fork();

	if (!child)
		look_as_child();
	if (child < 0 || waitpid(child, &status, 0) != child)
		fail("cannot fork: %d", errno);
	if (status && WIFEXITED(status))
		_exit(1);	/* it has complained */
	if (status)
		fail("the child ended with status %#x", status);
	return 0;
}

static int do_clear_dirty(const struct call *c)
{
	(void)c;
	if (!write_setting("/proc/self/clear_refs", "4"))
		return ENOENT;
	for (int i = 0; i < PAGES; i++) {
		pages[i].dirty = false;
		pages[i].vma_dirty = false;
	}
	return 0;
}

static int do_seal(const struct call *c)
{
	const int error = -seal(P(c->at), bytes(c->len));

	if (error == ENOSYS)
		return error;
	expect_error(error, is_mapped(c->at, c->len) ? 0 : ENOMEM);
	if (error)
		return error;
	for (int i = c->at; i < c->at + c->len; i++)
		pages[i].sealed = true;
	give_birth(c->at, c->len);
	return 0;
}

static bool is_private_anon(int first, int nr)
{
	for (int i = first; i < first + nr; i++)
		if (!pages[i].mapped || pages[i].shared || pages[i].object >= 0)
			return false;
	return true;
}

static void register_pages(const struct call *c)
{
	for (int i = c->at; i < c->at + c->len; i++) {
		if (c->kind == REGISTER) {
			pages[i].flags |= REGISTERED;
		} else {
			pages[i].flags &= ~REGISTERED;
			pages[i].protected = UNPROTECTED;
		}
	}
	give_birth(c->at, c->len);
}

static int do_register(const struct call *c)
{
	struct uffdio_register args = {
		.range = { P(c->at), bytes(c->len) }, .mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (uffd < 0 || !is_private_anon(c->at, c->len))
		return ENOTSUP;
	if (c->kind == REGISTER ? ioctl(uffd, UFFDIO_REGISTER, &args) :
				  ioctl(uffd, UFFDIO_UNREGISTER, &args.range))
		fail("userfaultfd: failed with %d", errno);
	register_pages(c);
	return 0;
}

static int do_write_protect(const struct call *c)
{
	struct uffdio_writeprotect args = {
		.range = { P(c->at), bytes(c->len) }, .mode = c->flags,
	};

	for (int i = c->at; i < c->at + c->len; i++)
		if (!(pages[i].flags & REGISTERED))
			return ENOTSUP;
	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &args))
		fail("userfaultfd: failed with %d", errno);
	for (int i = c->at; i < c->at + c->len; i++) {
		struct page *p = &pages[i];

		p->protected = !c->flags ? UNPROTECTED :
			       p->content == OWN && !(p->flags & MERGEABLE) ? PROTECTED : PERHAPS;
	}
	return 0;
}

/* So many pages more than there are by now, or as many as the process may have at all. */
static int do_limit(const struct call *c)
{
	const bool is_size = c->flags == RLIMIT_AS;
	const long used = is_size ? beside.size + count_mapped(0, PAGES) : count_locked(0, PAGES);
	struct rlimit rlimit;
	long limit;

	if (getrlimit(c->flags, &rlimit))
		fail("getrlimit failed with %d", errno);
	limit = rlimit.rlim_max / page_size;
	if (c->len != NO_LIMIT && used + c->len < limit)
		limit = used + c->len;
	rlimit.rlim_cur = bytes(limit);
	if (setrlimit(c->flags, &rlimit))
		fail("setrlimit failed with %d", errno);
	if (is_size)
		size_limit = limit;
	else
		lock_limit = limit;
	return 0;
}

static bool can_be_written(int object)
{
	for (int i = 0; i < PAGES; i++)
		if (pages[i].mapped && pages[i].shared && pages[i].object == object &&
		    !pages[i].read_only)
			return true;
	return false;
}

/* If others happen to have one of its pages, it is busy, too. */
static int do_seal_file(const struct call *c)
{
	struct object *object = &objects[c->object];
	const int error = error_of_call(fcntl(object->fd, F_ADD_SEALS, c->flags));
	const bool denies = c->flags & F_SEAL_WRITE && !(object->seals & F_SEAL_WRITE);

	if (denies && (can_be_written(c->object) || error == EBUSY)) {
		expect_error(error, EBUSY);
		return error;
	}
	expect_error(error, 0);
	object->seals |= c->flags;
	return 0;
}

/* ---- mremap() ---- */

#define ERROR(error)	(1ULL << (error))

static size_t old_len(const struct call *c)
{
	return bytes(c->len) - (c->len && c->odd & ODD_OLD_LEN ? 7 : 0);
}

static size_t new_len(const struct call *c)
{
	if (c->odd & NO_NEW_LEN)
		return 0;
	return bytes(c->new) - (c->odd & ODD_NEW_LEN ? 5 : 0);
}

static unsigned long new_addr(const struct call *c)
{
	if (c->to == FAR)
		return 1UL << 62;
	return P(c->to) + (c->odd & ODD_NEW_ADDR ? 16 : 0);
}

static bool is_fixed(const struct call *c)
{
	return c->flags & MREMAP_FIXED;
}

static bool is_kept(const struct call *c)
{
	return c->flags & MREMAP_DONTUNMAP;
}

static bool is_forced(const struct call *c)
{
	return is_fixed(c) || is_kept(c);
}

static int kept_len(const struct call *c)
{
	return c->len < c->new ? c->len : c->new;
}

static bool share_a_page(const struct call *c)
{
	return c->to != FAR && c->at + c->len > c->to && c->to + c->new > c->at;
}

/* It moves by less than its length. */
static bool is_shift(const struct call *c)
{
	return c->flags & MREMAP_OVERLAP && share_a_page(c) && !expect_base();
}

/* What the arguments alone are refused for. */
static bool is_bad(const struct call *c)
{
	const unsigned long known = expect_base() ? 7 : 7 | MREMAP_OVERLAP;

	if (c->flags & ~known || (is_forced(c) && !(c->flags & MREMAP_MAYMOVE)))
		return true;
	if (c->flags & MREMAP_OVERLAP && (!is_fixed(c) || is_kept(c)))
		return true;
	if (is_kept(c) && (!c->len || old_len(c) > new_len(c) ||
			   (old_len(c) != new_len(c) && expect_base())) &&
	    !(expect_base_7() && c->len && c->len == c->new))
		return true;
	return c->odd & (ODD_ADDR | NO_NEW_LEN);
}

static bool is_bad_place(const struct call *c)
{
	if (c->to == FAR || c->odd & ODD_NEW_ADDR)
		return true;
	if (is_shift(c))
		return c->len != c->new;
	return mistake != OVERLAPS && share_a_page(c);
}

static bool fits(const struct call *c)
{
	return c->len && is_free(c->at + c->len, c->new - c->len);
}

/* Whether it moves more than one mapping, or one and a gap. */
static bool covers_several(const struct call *c, int vma_end)
{
	const bool grows = c->flags & MREMAP_MAYMOVE && c->new > c->len;

	if (kept_len(c) <= vma_end - c->at || !(is_forced(c) || grows))
		return false;
	if (expect_base())
		return expect_base_7() && c->len == c->new;
	return c->len == c->new || is_mapped(c->at, kept_len(c));
}

/* Whether something comes to that page of the new range, and not only a gap. */
static bool is_replaced(const struct call *c, int nr)
{
	return nr >= kept_len(c) || pages[c->at + nr].mapped;
}

/* What it has more afterwards has to be allowed. */
static uint64_t errors_of_limits(const struct call *c)
{
	const int growth = c->new > c->len ? c->new - c->len : 0;
	const bool is_locked = pages[c->at + (c->len ? c->len - 1 : 0)].flags & LOCKED;
	long size = growth + (is_kept(c) ? count_mapped(c->at, c->len) : 0);
	long locked = is_locked ? growth : 0;
	const bool grows = size, locks = locked;
	uint64_t errors = 0;

	/* Stock 7.x looks at growth before that is unmapped. */
	for (int i = 0; is_fixed(c) && c->to != FAR && i < c->new; i++) {
		if (!is_replaced(c, i) || (growth && expect_base_7()))
			continue;
		size -= pages[c->to + i].mapped;
		locked -= !!(pages[c->to + i].flags & LOCKED);
	}
	if (locks && exceeds_locks(locked))
		errors |= ERROR(EAGAIN);
	if (grows && exceeds_size(size))
		errors |= ERROR(ENOMEM);
	return errors;
}

/* All that is wrong with a call; the kernel may tell any of it. */
static uint64_t errors_of(const struct call *c, int vma_end)
{
	const int kept = kept_len(c);
	const bool several = covers_several(c, vma_end) || is_shift(c);
	uint64_t errors = 0;

	if (is_bad(c))
		return ERROR(EINVAL);
	if (!pages[c->at].mapped)
		errors |= ERROR(EFAULT);
	if (is_forced(c) && is_bad_place(c))
		errors |= ERROR(EINVAL);
	if (any_sealed(c->at, several ? kept : 1) ||
	    (c->len > c->new && any_sealed(c->at + kept, c->len - kept)))
		errors |= ERROR(EPERM);
	for (int i = 0; is_fixed(c) && c->to != FAR && i < c->new; i++)
		if (pages[c->to + i].sealed && (is_replaced(c, i) || !several))
			errors |= ERROR(EPERM);
	for (int i = c->at; several && i < c->at + kept; i++)
		if (pages[i].flags & REGISTERED)
			errors |= is_shift(c) ? ERROR(EINVAL) : ERROR(EFAULT);
	errors |= errors_of_limits(c);
	if (several)
		return errors;
	if (!c->len && !pages[c->at].shared)
		errors |= ERROR(EINVAL);
	if (!c->len && is_fixed(c) && c->to == c->at)
		errors |= ERROR(EFAULT);
	if ((is_forced(c) || c->new > c->len) && kept > vma_end - c->at)
		errors |= ERROR(EFAULT);
	if (c->new > c->len && !fits(c) && !(c->flags & MREMAP_MAYMOVE))
		errors |= ERROR(ENOMEM);
	return errors;
}

static struct page moved_pages[PAGES];

static struct page moved(struct page p)
{
	p.flags &= ~REGISTERED;
	p.protected = UNPROTECTED;
	p.dirty = p.content == OWN;
	return p;
}

/* What the new range has: the moved pages, and those that it grew by. */
static void plan_pages(const struct call *c)
{
	const int kept = kept_len(c);
	struct page p = pages[c->at + (kept ? kept - 1 : 0)];

	for (int i = 0; i < kept; i++)
		moved_pages[i] = moved(pages[c->at + i]);
	p.content = mistake == GROWN_PAGES && p.content == OWN ? OWN : VIEW;
	p.dirty = false;
	p.flags &= ~REGISTERED;
	p.protected = UNPROTECTED;
	for (int i = kept; i < c->new; i++) {
		if (i && mistake != KEPT_OFFSET)
			p.offset++;
		moved_pages[i] = p;
	}
	if (p.flags & LOCKED)
		populate(&moved_pages[kept], c->new - kept);
}

static void put_pages(int to, int nr)
{
	for (int i = 0; i < nr; i++) {
		/* What is mapped where a gap comes to, stays. */
		if (!moved_pages[i].mapped)
			continue;
		pages[to + i] = moved_pages[i];
		pages[to + i].birth += 1U << 30;	/* never one with what was left */
	}
	give_birth(to, nr);
}

static void leave_pages(const struct call *c)
{
	if (!is_kept(c)) {
		if (c->len)
			forget(c->at, c->len);
		return;
	}
	for (int i = c->at; i < c->at + c->len; i++) {
		struct page *p = &pages[i];

		p->flags &= ~LOCKED;
		if (!p->shared && mistake != KEPT_PAGES)
			p->content = VIEW;
		p->protected = UNPROTECTED;
		p->dirty = false;
	}
	give_birth(c->at, c->len);
}

static int lowest_free(int nr)
{
	int run = 0;

	for (int i = 0; i < PAGES; i++) {
		run = pages[i].mapped ? 0 : run + 1;
		if (run == nr)
			return i + 1 - nr;
	}
	return -1;
}

/* The kernel chose a place elsewhere. The pages are to come back, if there is room. */
static void bring_back(const struct call *c, unsigned long addr, bool drop)
{
	int to = is_kept(c) && is_free(c->to, c->new) ? c->to : lowest_free(c->new);
	unsigned long ret;

	if (drop || to < 0) {
		munmap(at(addr), bytes(c->new));
		return;
	}
	ret = move_to(addr, bytes(c->new), bytes(c->new), P(to));
	if (ret != P(to))
		fail("moving %d pages back from %#lx to page %d: %#lx", c->new, addr, to, ret);
	for (int i = 0; i < c->new; i++)
		moved_pages[i] = moved(moved_pages[i]);
	put_pages(to, c->new);
	check_some(to, c->new);
}

static void apply_growth(const struct call *c)
{
	const struct page last = pages[c->at + c->len - 1];

	plan_pages(c);
	for (int i = c->len; i < c->new; i++) {
		pages[c->at + i] = moved_pages[i];
		pages[c->at + i].flags |= last.flags & REGISTERED;
	}
}

static void apply_move(const struct call *c, unsigned long ret, bool drop)
{
	const int to = (ret - BASE) / page_size;
	const bool inside = ret >= BASE && ret < P(PAGES);

	if (is_fixed(c) ? ret != P(c->to) : inside && !is_free(to, c->new))
		fail("returned page %d", to);
	if (is_shift(c) && c->to == c->at)
		return;
	plan_pages(c);
	if (mistake != LEFT_BEHIND || !is_shift(c))
		leave_pages(c);
	if (!inside) {
		bring_back(c, ret, drop);
		return;
	}
	if (c->len != c->new)
		forget(to, c->new);
	put_pages(to, c->new);
}

static void apply_remap(const struct call *c, unsigned long ret, bool drop)
{
	if (is_forced(c)) {
		apply_move(c, ret, drop);
	} else if (c->new > c->len && !fits(c)) {
		apply_move(c, ret, drop);
	} else {
		if (ret != P(c->at))
			fail("returned %#lx", ret);
		if (c->new > c->len)
			apply_growth(c);
		else if (c->new < c->len)
			forget(c->at + c->new, c->len - c->new);
	}
}

/*
 * Why the outcome on another kernel may be another one, or NULL. What was born together
 * is one mapping on each of them, but anything else may have been merged, or not.
 */
static const char *may_differ(const struct call *c)
{
	const bool resizes = is_forced(c) || c->new > c->len;

	if (is_kept(c) && old_len(c) < new_len(c))
		return "keeps and grows";
	if (c->flags & MREMAP_OVERLAP)
		return "overlaps";
	for (int i = 1; resizes && i < kept_len(c); i++) {
		if (!pages[c->at + i].mapped)
			return "gap";
		if (pages[c->at + i].birth != pages[c->at].birth)
			return "several";
	}
	return NULL;
}

static void empty(int first, int nr)
{
	if (first < 0)
		return;
	if (!munmap(at(P(first)), bytes(nr)))
		forget(first, nr);
}

static const char *differs;

/*
 * Stock 6.12 unmaps the destination before it refuses. To have the same afterwards on
 * all kernels, what such a call dealt with is unmapped.
 */
static void make_equal(const struct call *c, int error)
{
	if (differs || (error && is_fixed(c) && (log_file || expect_base()))) {
		empty(c->at, c->len > c->new ? c->len : c->new);
		if (is_forced(c))
			empty(c->to, c->new);
	}
}

/* What is populated after a call may fail unseen. */
static bool arm(const struct call *c)
{
	const int kept = kept_len(c);

	return c->fail && can_fail && kept && !(pages[c->at + kept - 1].flags & LOCKED) &&
	       arm_fail_nth(fail_fd, c->fail);
}

/*
 * Nothing has changed, but that what was to be replaced may be gone: then all of it.
 */
static void apply_failure(const struct call *c)
{
	bool is_asked = false, is_gone = false;
	struct procmap_query vma;

	report->without_memory++;
	for (int i = 0; is_fixed(c) && i < c->new; i++) {
		if (!pages[c->to + i].mapped || !is_replaced(c, i))
			continue;
		if (is_shift(c) && c->to + i >= c->at && c->to + i < c->at + c->len)
			continue;
		if (!is_asked)
			is_gone = !query(P(c->to + i), 0, &vma);
		is_asked = true;
		if (is_gone)
			forget(c->to + i, 1);
	}
	check_all();
}

/*
 * Stock 7.x moves several of the same size, each to where there is room for it, and knows
 * no limits on all of them together. What is fixed is as with ours.
 */
static bool moves_one_by_one(const struct call *c, int vma_end)
{
	return expect_base_7() && !is_fixed(c) && covers_several(c, vma_end);
}

static int do_remap(const struct call *c)
{
	const int vma_end = pages[c->at].mapped ? end_of_vma(c->at) : 0;
	const uint64_t errors = errors_of(c, vma_end);
	bool armed, failed;
	unsigned long ret;
	int error;

	if (pages[c->at].mapped && !vma_end)
		fail("page %d should be mapped", c->at);
	if (moves_one_by_one(c, vma_end))
		return 0;
	differs = log_file ? may_differ(c) : NULL;
	armed = arm(c);
	ret = do_mremap(P(c->at) + (c->odd & ODD_ADDR ? 8 : 0), old_len(c), new_len(c),
			c->flags, new_addr(c));
	failed = armed && disarm_fail_nth(fail_fd);
	error = error_of(ret);
	/* Memory may be out before it is found what else is wrong. */
	if (failed && error == ENOMEM && !(errors & ERROR(ENOMEM))) {
		if (!errors)
			apply_failure(c);
		return error;
	}
	if (error && !(errors & ERROR(error)))
		fail("failed with %d (%s)%s", error, strerror(error),
		     errors ? ", which is not wrong with it" : "");
	if (!error && errors)
		fail("did not fail, although that is wrong: %#llx", (long long)errors);
	if (!error)
		apply_remap(c, ret, differs);
	make_equal(c, error);
	return error;
}

/* ---- others in the same address space ---- */

/*
 * A thread that counts in pages that move now and then. What it finds is what it left
 * there, or, if the page went away in the middle, one more.
 */
#define BUSY_PAGES	4

static volatile int busy_place;
static volatile bool busy_stop;
static pthread_t busy_thread;

static unsigned long busy_addr(int place)
{
	return BUSY + place * 2 * pmd_span();
}

static void count_in_page(unsigned long addr, uint64_t count)
{
	const size_t words[] = { 0, page_size / 24, page_size / 8 - 1 };

	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		volatile uint64_t *word = (volatile uint64_t *)at(addr) + words[i];
		const uint64_t found = *word;

		if (found != count && found != count + 1)
			fail("a page that is written to at all times has %lu, not %lu",
			     (long)found, (long)count);
		*word = count + 1;
	}
}

static void *count_in_pages(void *arg)
{
	uint64_t *counts = arg;
	static volatile int page;

	while (!busy_stop) {
		if (!sigsetjmp(busy_where_to, 0)) {
			count_in_page(busy_addr(busy_place) + bytes(page), counts[page]);
			counts[page]++;
			report->busy_writes++;
			page = (page + 1) % BUSY_PAGES;
		}
	}
	return arg;
}

static int do_step_aside(const struct call *c)
{
	const unsigned long to = busy_addr(!busy_place);

	(void)c;
	if (!with_threads)
		return 0;
	if (move_to(busy_addr(busy_place), bytes(BUSY_PAGES), bytes(BUSY_PAGES), to) != to)
		fail("moving the busy pages failed");
	busy_place = !busy_place;
	return 0;
}

static void start_busy_thread(void)
{
	static uint64_t counts[BUSY_PAGES];

	map_anon(busy_addr(0), bytes(BUSY_PAGES));
	if (pthread_create(&busy_thread, NULL, count_in_pages, counts))
		fail("cannot start a thread");
}

static void stop_busy_thread(void)
{
	busy_stop = true;
	pthread_join(busy_thread, NULL);
}

/* ---- drawing calls ---- */

static const struct {
	const char *name;
	int (*make)(const struct call *c);	/* the errno */
	int weight;
} kinds[KINDS] = {
	[REMAP] = { "mremap", do_remap, 340 },
	[WRITE] = { "write", do_write, 220 },
	[MAP] = { "mmap", do_map, 150 },
	[UNMAP] = { "munmap", do_unmap, 40 },
	[PROTECT] = { "mprotect", do_protect, 70 },
	[ADVISE] = { "madvise", do_advise, 90 },
	[LOCK] = { "mlock", do_lock, 15 },
	[UNLOCK] = { "munlock", do_lock, 20 },
	[TRUNCATE] = { "ftruncate", do_truncate, 12 },
	[PUNCH] = { "punch hole", do_punch, 12 },
	[TOUCH] = { "touch", do_touch, 25 },
	[FORK] = { "fork", do_fork, 2 },
	[CLEAR_DIRTY] = { "clear_refs", do_clear_dirty, 15 },
	[SEAL] = { "mseal", do_seal, 1 },
	[STEP_ASIDE] = { "step aside", do_step_aside, 10 },
	[REGISTER] = { "UFFDIO_REGISTER", do_register, 12 },
	[UNREGISTER] = { "UFFDIO_UNREGISTER", do_register, 4 },
	[WRITE_PROTECT] = { "UFFDIO_WRITEPROTECT", do_write_protect, 20 },
	[LIMIT] = { "setrlimit", do_limit, 8 },
	[SEAL_FILE] = { "F_ADD_SEALS", do_seal_file, 2 },
};

/* Of some seeds: whole tables, so that these move as such. */
static bool is_large;

static int pick_page(void)
{
	if (is_large && !one_in(3))
		return pick(5) * TABLE;
	if (!one_in(3))
		return TABLE - 80 + pick(160);
	if (!one_in(4))
		return (1 + pick(4)) * TABLE - 20 + pick(40);
	return pick(PAGES);
}

static int pick_mapped(void)
{
	int page = pick_page();

	for (int tries = 0; tries < 12 && !pages[page].mapped; tries++)
		page = pick_page();
	/* Where a mapping begins, more often than not. */
	if (!one_in(3))
		while (page && pages[page].mapped && pages[page - 1].birth == pages[page].birth)
			page--;
	return page;
}

static int pick_len(void)
{
	if (is_large && one_in(2))
		return (1 + pick(2)) * TABLE;
	if (!one_in(4))
		return 1 + pick(8);
	if (!one_in(3))
		return 1 + pick(40);
	return (1 + pick(2)) * TABLE - (one_in(2) ? pick(12) : 0);
}

static int clip(int page, int len)
{
	return page + len > PAGES ? PAGES - page : len;
}

static int pick_prot(void)
{
	switch (pick(8)) {
	case 0: return PROT_NONE;
	case 1: return PROT_READ;
	default: return PROT_READ | PROT_WRITE;
	}
}

static void draw_map(struct call *c)
{
	static const int what[] = { ANON, ANON, ANON, SHARED, 0, 1, 2, TO_SEAL };

	c->at = one_in(8) ? pick(5) * TABLE : pick_page();
	c->len = clip(c->at, pick_len());
	c->object = what[pick(ARRAY_SIZE(what))];
	c->prot = pick_prot();
	c->flags = c->object == SHARED || (c->object >= 0 && one_in(2)) ?
		MAP_SHARED : MAP_PRIVATE;
	c->flags |= one_in(3) ? MAP_FIXED : MAP_FIXED_NOREPLACE;
	if (one_in(10))
		c->flags |= MAP_NORESERVE;
	if (one_in(12) && c->len < 50)
		c->flags |= one_in(2) ? MAP_POPULATE : MAP_LOCKED;
	if (c->object >= 0)
		c->offset = pick(40);
}

static void draw_advice(struct call *c)
{
	static const int advice[] = {
		MADV_DONTNEED, MADV_DONTNEED, MADV_DONTNEED, MADV_FREE, MADV_COLD,
		MADV_PAGEOUT, MADV_PAGEOUT, MADV_REMOVE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
		MADV_MERGEABLE, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_DONTFORK, MADV_DOFORK,
		MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_DONTDUMP, MADV_DODUMP,
		MADV_COLLAPSE,
	};

	c->flags = advice[pick(ARRAY_SIZE(advice))];
	if ((c->flags == MADV_HUGEPAGE || c->flags == MADV_COLLAPSE) && !one_in(3)) {
		c->at = pick(5) * TABLE;
		c->len = TABLE;
	}
}

/* To the end of the mapping, or anything. */
static int pick_old_len(int first)
{
	int page = first;

	if (one_in(2))
		return clip(first, pick_len());
	while (page < PAGES && pages[page].mapped && pages[page].birth == pages[first].birth)
		page++;
	return page > first ? page - first : 1;
}

static void draw_sizes(struct call *c)
{
	c->new = c->len;
	switch (pick(6)) {
	case 0:
		c->new = 1 + pick(c->len);
		break;
	case 1:
	case 2:
		c->new = clip(c->at, c->len + (one_in(6) ? pick_len() : 1 + pick(6)));
		break;
	}
	if (one_in(20)) {
		c->len = 0;
		c->new = clip(c->at, pick_len());
	}
}

/* By some pages, or some tables, up or down; seldom to where that is not allowed. */
static void draw_shift(struct call *c)
{
	const int way = one_in(3) ? TABLE * pick(3) : pick(c->len + 1);

	c->flags = OVERLAP;
	if (!one_in(20))
		c->new = c->len;
	c->to = one_in(2) ? c->at + way : c->at - way;
	if (c->to + c->new > PAGES)
		c->to = PAGES - c->new;
	if (c->to < 0)
		c->to = 0;
}

static void draw_remap(struct call *c)
{
	static const unsigned long flags[] = {
		0, MREMAP_MAYMOVE, MREMAP_MAYMOVE, FIXED, FIXED, FIXED, FIXED, DONTUNMAP,
		FIXED | DONTUNMAP, FIXED | DONTUNMAP,
	};

	c->at = pick_mapped();
	c->len = pick_old_len(c->at);
	draw_sizes(c);
	c->flags = flags[pick(ARRAY_SIZE(flags))];
	for (int tries = 0; tries < 8; tries++) {
		c->to = one_in(3) ? pick_page() : (c->at + pick(5) * TABLE) % PAGES;
		if (c->to + c->new > PAGES)
			c->to = PAGES - c->new;
		if (c->at + c->len <= c->to || c->to + c->new <= c->at)
			break;
	}
	if (c->flags == FIXED && c->len && one_in(4))
		draw_shift(c);
	if (one_in(5))
		c->fail = 1 + pick(one_in(3) ? 40 : 10);
	if (one_in(30))
		c->odd = 1 << pick(5);
	if (one_in(60))
		c->flags = pick(16) | (one_in(4) ? MREMAP_OVERLAP : 0);
	if (one_in(100))
		c->to = FAR;
}

/* Low, and soon lifted again: else calls would mostly be refused. */
static void draw_limit(struct call *c)
{
	c->flags = one_in(2) ? RLIMIT_AS : RLIMIT_MEMLOCK;
	c->len = one_in(2) ? NO_LIMIT : 1 + pick(c->flags == RLIMIT_AS ? 200 : 20);
}

static void draw_seals(struct call *c)
{
	static const unsigned int seals[] = {
		F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE,
	};

	c->object = TO_SEAL;
	c->flags = seals[pick(ARRAY_SIZE(seals))];
}

/* What is registered, and all of it, unless there is nothing. */
static void draw_protection(struct call *c)
{
	const int start = pick(PAGES);

	for (int i = 0; i < PAGES; i++) {
		c->at = (start + i) % PAGES;
		if (pages[c->at].flags & REGISTERED)
			break;
	}
	c->len = clip(c->at, pick_old_len(c->at));
	c->flags = one_in(3) ? 0 : UFFDIO_WRITEPROTECT_MODE_WP;
}

static enum kind pick_kind(void)
{
	int sum = 0, kind = 0, which;

	for (int i = 0; i < KINDS; i++)
		sum += kinds[i].weight;
	which = pick(sum);
	while (which >= kinds[kind].weight)
		which -= kinds[kind++].weight;
	return kind;
}

static void draw_call(struct call *c)
{
	*c = (struct call) { .kind = pick_kind() };
	c->at = c->kind == WRITE || c->kind == ADVISE || c->kind == PROTECT ||
		c->kind == REGISTER || one_in(2) ? pick_mapped() : pick_page();
	c->len = clip(c->at, pick_len());
	switch (c->kind) {
	case MAP:
		draw_map(c);
		break;
	case PROTECT:
		c->prot = pick_prot();
		break;
	case ADVISE:
		draw_advice(c);
		break;
	case WRITE:
		c->flags = one_in(4) ? ALIKE : 0;
		/* fall through */
	case TOUCH:
		c->len = clip(c->at, 1 + pick(6));
		break;
	case LIMIT:
		draw_limit(c);
		break;
	case SEAL_FILE:
		draw_seals(c);
		break;
	case LOCK:
		if (c->len > 64)
			c->len = 64;
		break;
	case TRUNCATE:
		c->object = pick(FILES);
		c->len = pick(c->object ? 90 : 700);
		break;
	case PUNCH:
		c->object = pick(FILES);
		c->offset = pick(60);
		c->len = 1 + pick(10);
		break;
	case SEAL:
		c->len = clip(c->at, 1 + pick(3));
		if (log_file || expect_base())
			c->kind = TOUCH;
		break;
	case REGISTER:
		c->len = pick_old_len(c->at);
		break;
	case WRITE_PROTECT:
		draw_protection(c);
		break;
	case REMAP:
		draw_remap(c);
		break;
	default:
		break;
	}
}

/* ---- a call as text ---- */

static void flags_as_text(char *out, unsigned long flags)
{
	static const struct {
		unsigned long flag;
		const char *name;
	} names[] = {
		{ MREMAP_MAYMOVE, "MREMAP_MAYMOVE" }, { MREMAP_FIXED, "MREMAP_FIXED" },
		{ MREMAP_DONTUNMAP, "MREMAP_DONTUNMAP" }, { 8, "8" },
		{ MREMAP_OVERLAP, "MREMAP_OVERLAP" },
	};

	strcpy(out, flags ? "" : "0");
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (!(flags & names[i].flag))
			continue;
		if (*out)
			strcat(out, " | ");
		strcat(out, names[i].name);
	}
}

static void remap_as_text(char *out, size_t size, const struct call *c)
{
	char flags[96], to[32], fails[32];

	flags_as_text(flags, c->flags);
	snprintf(to, sizeof(to), c->to == FAR ? "TASK_SIZE" : "P(%d)", c->to);
	snprintf(fails, sizeof(fails), c->fail ? " without allocation %d" : "", c->fail);
	snprintf(out, size, "mremap(P(%d)%s, %d pages%s, %d pages%s, %s, %s%s)%s", c->at,
		 c->odd & ODD_ADDR ? " + 8" : "", c->len, c->odd & ODD_OLD_LEN ? " - 7" : "",
		 c->odd & NO_NEW_LEN ? 0 : c->new, c->odd & ODD_NEW_LEN ? " - 5" : "", flags,
		 to, c->odd & ODD_NEW_ADDR ? " + 16" : "", fails);
}

/* What a call does not use is 0, or of no interest. */
static const char *text_of(const struct call *c)
{
	const struct {
		const char *format;
		long value;
	} fields[] = {
		{ ", prot %ld", c->prot }, { ", flags %#lx", c->flags },
		{ ", object %ld", c->object }, { ", offset %ld", c->offset },
	};
	static char text[256];
	int len;

	if (c->kind == REMAP) {
		remap_as_text(text, sizeof(text), c);
		return text;
	}
	len = sprintf(text, "%s(P(%d), %d pages", kinds[c->kind].name, c->at, c->len);
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		if (fields[i].value)
			len += sprintf(text + len, fields[i].format, fields[i].value);
	return strcat(text, ")");
}

/* ---- a run ---- */

/* Of the layout and the contents as they were found to be. */
static uint64_t digest(void)
{
	uint64_t hash = 14695981039346656037ULL;

	for (int i = 0; i < PAGES; i++) {
		const struct page *p = &pages[i];
		const uint64_t values[] = {
			p->mapped, p->shared, p->prot, p->flags, (uint8_t)p->object,
			p->object < 0 ? 0 : p->offset, p->content == UNSURE ? 0 : id_of(p),
		};

		for (size_t k = 0; p->mapped && k < ARRAY_SIZE(values); k++)
			hash = (hash ^ (values[k] + i)) * 1099511628211ULL;
	}
	return hash;
}

static void log_call(int nr, const struct call *c, int error)
{
	/* What can be collapsed depends on more than the calls. */
	if (c->kind == ADVISE && c->flags == MADV_COLLAPSE)
		error = 0;
	check_layout(0, PAGES);
	fprintf(log_file, "call %d\t%s\t%s\t%s\t%016lx\n", nr, text_of(c), differs ?: "",
		error ? strerrorname_np(error) : "done", (long)digest());
	differs = NULL;
}

static void note_merged(void)
{
	const long merged = read_long("/proc/self/ksm_merging_pages");

	if (merged > report->merged)
		report->merged = merged;
}

static void after_call(int nr, const struct call *c, int error)
{
	if (error)
		report->refused[c->kind]++;
	else
		report->succeeded[c->kind]++;
	if (log_file)
		log_call(nr, c, error);
	if (nr % check_step == check_step - 1)
		check_all();
	if (nr % flag_check_step == flag_check_step - 1) {
		check_flags();
		note_merged();
	}
	if (c->kind == TRUNCATE || c->kind == PUNCH || c->kind == LIMIT)
		return;
	check_some(c->at, c->len > c->new ? c->len : c->new);
	if (c->kind == REMAP && is_fixed(c))
		check_some(c->to, c->new);
}

/* What is mapped beyond the window merges with nothing in it. */
static void fence(int page, const char *name)
{
	const int fd = memfd_create(name, 0);

	if (map_at(P(page), page_size, PROT_NONE, MAP_PRIVATE, fd, 0) != P(page))
		fail("the window is in use");
	close(fd);
}

static void make_files(void)
{
	static const int sizes[FILES] = { 600, 64, 30, 50 };

	for (int i = 0; i < FILES; i++) {
		struct object *object = &objects[i];
		struct procmap_query vma;

		object->fd = memfd_create("random", MFD_ALLOW_SEALING);
		object->size = sizes[i];
		if (object->fd < 0 || ftruncate(object->fd, bytes(object->size)))
			fail("cannot make a file");
		map_at(P(0), page_size, PROT_READ, MAP_SHARED, object->fd, 0);
		if (!query(P(0), 0, &vma))
			fail("PROCMAP_QUERY failed with %d", errno);
		object->inode = vma.inode;
		munmap(at(P(0)), page_size);
	}
}

/* Who has it is not limited in what is locked. */
static void drop_capability(int number)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, data))
		fail("capget failed with %d", errno);
	data[CAP_TO_INDEX(number)].effective &= ~CAP_TO_MASK(number);
	if (syscall(SYS_capset, &header, data))
		fail("capset failed with %d", errno);
}

/* The stack is not to grow any more: it is what the process has besides the window. */
static void sum_up_besides(void)
{
	volatile char stack[256 * KB];

	for (size_t i = 0; i < sizeof(stack); i += KB)
		stack[i] = 0;
	read_sums(&beside);
	read_sums(&beside);
}

static void open_window(void)
{
	const struct sigaction action = {
		.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	page_size = psize();
	main_thread = pthread_self();
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	maps_fd = open("/proc/self/maps", O_RDONLY);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	uffd = open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_SIGBUS);
	fence(-1, "below");
	fence(PAGES, "above");
	make_files();
	map_anon(P(0), page_size);
	tracks_dirty = !expect_base() && pagemap_entry(P(0)) & PM_SOFT_DIRTY;
	munmap(at(P(0)), page_size);
	do_limit(&(struct call) { .flags = RLIMIT_AS, .len = NO_LIMIT });
	do_limit(&(struct call) { .flags = RLIMIT_MEMLOCK, .len = NO_LIMIT });
	drop_capability(CAP_IPC_LOCK);
	fail_fd = open(FAIL_NTH, O_RDWR);
	if (with_threads)
		start_busy_thread();
	sum_up_besides();
}

static __noreturn void close_window(void)
{
	check_all();
	check_flags();
	note_merged();
	if (with_threads)
		stop_busy_thread();
	if (log_file)
		fclose(log_file);
	_exit(0);
}

/* Those calls; without them, the first ones of that seed. */
static __noreturn void run_calls(const struct call *calls, unsigned long seed, int nr)
{
	random_state = (seed + 1) * 0x9e3779b97f4a7c15ULL;
	is_large = seed % 4 == 1;
	if (calls) {
		/* The shorter, the sooner is seen what is wrong. */
		check_step = 1 + nr / 50;
		flag_check_step = check_step;
		log_file = NULL;
	}
	open_window();
	for (int i = 0; i < nr; i++) {
		struct call *c = &report->calls[i];

		if (calls)
			*c = calls[i];
		else
			draw_call(c);
		report->nr_calls = i + 1;
		after_call(i, c, kinds[c->kind].make(c));
	}
	close_window();
}

/* Whether the child ends as one that found all as modelled. */
static bool is_one_run_good(const struct call *calls, unsigned long seed, int nr)
{
	int status = -1;
	pid_t child;

	*report->complaint = '\0';
	report->nr_calls = 0;
	if (log_file)
		fflush(log_file);
	child = fork();
	if (!child)
		run_calls(calls, seed, nr);
	if (child < 0 || waitpid(child, &status, 0) != child)
		return false;
	if (status && !*report->complaint)
		snprintf(report->complaint, sizeof(report->complaint),
			 "ended with status %#x", status);
	return !status;
}

/* -1: others change it as well; or it is of no interest. */
static long committed_before(void)
{
	const long is = committed_kb();

	if (log_file)
		return -1;
	usleep(20000);
	return committed_kb() == is ? is : -1;
}

/* Some of it may be given back later. */
static bool is_given_back(long before)
{
	for (int i = 0; i < 50 && before >= 0; i++) {
		if (committed_kb() == before)
			return true;
		usleep(20000);
	}
	return before < 0;
}

/* What others commit meanwhile comes once; what a run leaves behind comes again. */
#define RUNS	3

static bool is_run_good(const struct call *calls, unsigned long seed, int nr)
{
	long before;

	for (int i = 0; i < RUNS; i++) {
		before = committed_before();
		if (!is_one_run_good(calls, seed, nr))
			return false;
		if (is_given_back(before))
			return true;
	}
	snprintf(report->complaint, sizeof(report->complaint),
		 "Committed_AS is %ld kB in the end, was %ld", committed_kb(), before);
	return false;
}

/* ---- what is left of a list that fails ---- */

static struct call list[MOST_CALLS];
static int list_len;

static void without(struct call *out, int first, int nr)
{
	memcpy(out, list, first * sizeof(*list));
	memcpy(out + first, list + first + nr, (list_len - first - nr) * sizeof(*list));
}

/* Leaves parts out, of half its length at first, of one call in the end. */
static void shorten_list(void)
{
	static struct call shorter[MOST_CALLS];
	int replays = 0;

	for (int part = list_len / 2; part; part = part > 1 ? part / 2 : 0) {
		for (int first = 0; first + part <= list_len && replays < MOST_REPLAYS;) {
			without(shorter, first, part);
			replays++;
			if (is_run_good(shorter, 0, list_len - part)) {
				first += part;
			} else {
				/* What comes after the failure is of no interest. */
				memcpy(list, shorter, report->nr_calls * sizeof(*list));
				list_len = report->nr_calls;
			}
		}
	}
}

/* With everything checked more often, it may come earlier; or not again. */
static bool find_reason(META, unsigned long seed)
{
	list_len = report->nr_calls;
	memcpy(list, report->calls, list_len * sizeof(*list));
	TH_LOG("seed %lu, call %d, %s: %s", seed, list_len,
	       list_len ? text_of(&list[list_len - 1]) : "", report->complaint);
	if (is_run_good(list, 0, list_len)) {
		TH_LOG("seed %lu: not so when made again", seed);
		return false;
	}
	list_len = report->nr_calls;
	shorten_list();
	is_run_good(list, 0, list_len);
	return true;
}

static void print_list(META, unsigned long seed)
{
	TH_LOG("seed %lu, the last of these calls: %s", seed, report->complaint);
	for (int i = 0; i < list_len; i++)
		TH_LOG("\t%s;", text_of(&list[i]));
}

static void explain(META, unsigned long seed)
{
	with_threads = false;
	if (find_reason(_metadata, seed))
		print_list(_metadata, seed);
}

/* ---- tests ---- */

/* So that pages are merged soon. */
static void start_merging(void)
{
	static const char * const values[][2] = {
		{ "smart_scan", "0" }, { "pages_to_scan", "1000" },
		{ "sleep_millisecs", "1" }, { "run", "1" },
	};
	char path[64];

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", values[i][0]);
		if (!access(path, W_OK))
			change_setting(path, values[i][1]);
	}
}

static void set_up(META)
{
	/* Where it ends is another matter, and of other tests. */
	NEED(change_setting("/proc/sys/vm/max_map_count", "65530"), "needs root");
	start_merging();
	can_fail = !expect_base() && !getenv("MREMAP_LOG") && !prepare_fail_nth();
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, report);
	has_huge_pages = !madvise(report, sizeof(*report), MADV_NOHUGEPAGE);
}

FIXTURE(run) { };

FIXTURE_VARIANT(run)
{
	unsigned long first;
	unsigned long last;
	bool threads;
};

FIXTURE_SETUP(run)
{
	set_up(_metadata);
	with_threads = variant->threads;
}

FIXTURE_TEARDOWN(run)
{
	put_settings_back();
}

FIXTURE_VARIANT_ADD(run, seeds_1) { 100, 100, false };
FIXTURE_VARIANT_ADD(run, seeds_2) { 200, 201, false };
FIXTURE_VARIANT_ADD(run, tables) { 125, 125, false };
FIXTURE_VARIANT_ADD(run, while_a_thread_writes) { 300, 300, true };

TEST_F_TIMEOUT(run, is_as_modelled, TIMEOUT)
{
	for (unsigned long seed = variant->first; seed <= variant->last; seed++) {
		if (is_run_good(NULL, seed, CALLS))
			continue;
		EXPECT_TRUE(false)
			TH_LOG("seed %lu: %s", seed, report->complaint);
		explain(_metadata, seed);
	}
	if (variant->threads)
		EXPECT_LT(0, report->busy_writes);
}

/* What was not asked for is as many as there are. */
struct asked {
	unsigned long first;
	unsigned long last;
	long seconds;
	long step;		/* from one line of progress to the next */
};

static struct asked read_environment(void)
{
	struct asked asked = { .first = 1, .last = ULONG_MAX };
	const char *seeds = getenv("MREMAP_SEEDS"), *soak = getenv("MREMAP_SOAK");
	const char *log = getenv("MREMAP_LOG");

	if (seeds && sscanf(seeds, "%lu-%lu", &asked.first, &asked.last) == 1)
		asked.last = asked.first;
	asked.seconds = soak ? atol(soak) : 0;
	asked.step = asked.seconds < 600 ? 10 : 60;
	if (log)
		log_file = fopen(log, "w");
	return asked;
}

static long seconds_since(const struct timespec *start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec - start->tv_sec;
}

static unsigned long calls_made(void)
{
	unsigned long sum = 0;

	for (int kind = 0; kind < KINDS; kind++)
		sum += report->succeeded[kind] + report->refused[kind];
	return sum;
}

static void print_progress(long seconds, unsigned long first, unsigned long seeds)
{
	char counts[512] = "";

	for (int kind = 0; kind < KINDS; kind++)
		snprintf(counts + strlen(counts), sizeof(counts) - strlen(counts), ", %s %lu/%lu",
			 kinds[kind].name, report->succeeded[kind], report->refused[kind]);
	printf("# %ld s, %lu seeds from %lu on, %lu calls (%lu without memory), ", seconds, seeds,
	       first, calls_made(), report->without_memory);
	printf("%lu writes meanwhile, up to %ld pages merged (done/refused%s)\n",
	       report->busy_writes, report->merged, counts);
	fflush(stdout);
}

FIXTURE(asked_for)
{
	struct asked asked;
};

FIXTURE_SETUP(asked_for)
{
	NEED(getenv("MREMAP_SEEDS") || getenv("MREMAP_SOAK"),
	     "needs MREMAP_SEEDS or MREMAP_SOAK in the environment");
	set_up(_metadata);
	self->asked = read_environment();
}

FIXTURE_TEARDOWN(asked_for)
{
	put_settings_back();
}

#define MOST_FAILURES	5

TEST_F_TIMEOUT(asked_for, seeds_are_as_modelled, 7 * 24 * 3600)
{
	const struct asked *asked = &self->asked;
	unsigned long seeds = 0;
	struct timespec start;
	int failures = 0;
	long told = 0;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (unsigned long seed = asked->first; seed <= asked->last; seed++) {
		const long seconds = seconds_since(&start);

		if (asked->seconds && seconds >= asked->seconds)
			break;
		with_threads = !log_file && seed % 8 == 0;
		if (log_file)
			fprintf(log_file, "call 0\tseed %lu\t\t\t\n", seed);
		seeds++;
		if (!is_run_good(NULL, seed, CALLS)) {
			EXPECT_TRUE(false)
				TH_LOG("seed %lu: %s", seed, report->complaint);
			explain(_metadata, seed);
			if (++failures == MOST_FAILURES)
				break;
		}
		if (seconds >= told + asked->step || seed == asked->last) {
			print_progress(seconds, asked->first, seeds);
			told = seconds;
		}
	}
	print_progress(seconds_since(&start), asked->first, seeds);
	if (log_file)
		fclose(log_file);
}

/* A model that is wrong has to be found out, by a short list of calls. */
FIXTURE(wrong) { };

FIXTURE_VARIANT(wrong)
{
	enum mistake mistake;
};

FIXTURE_SETUP(wrong)
{
	NEED(variant->mistake != LEFT_BEHIND || !expect_base(), "needs MREMAP_OVERLAP");
	set_up(_metadata);
}

FIXTURE_TEARDOWN(wrong)
{
	put_settings_back();
}

FIXTURE_VARIANT_ADD(wrong, kept_pages) { KEPT_PAGES };
FIXTURE_VARIANT_ADD(wrong, grown_pages) { GROWN_PAGES };
FIXTURE_VARIANT_ADD(wrong, old_protection) { OLD_PROTECTION };
FIXTURE_VARIANT_ADD(wrong, overlap) { OVERLAPS };
FIXTURE_VARIANT_ADD(wrong, kept_offset) { KEPT_OFFSET };
FIXTURE_VARIANT_ADD(wrong, left_behind) { LEFT_BEHIND };

/* Where short lists are enough, they are short from the start. */
#define SEEDS		30
#define FEW_CALLS	300
#define SHORT		8

TEST_F_TIMEOUT(wrong, model_is_found_out, TIMEOUT)
{
	unsigned long seed = 1;

	mistake = variant->mistake;
	while (seed < SEEDS && is_run_good(NULL, seed, FEW_CALLS))
		seed++;
	ASSERT_LT(seed, SEEDS);
	ASSERT_TRUE(find_reason(_metadata, seed));
	EXPECT_GE(SHORT, list_len)
		print_list(_metadata, seed);
}

TEST_HARNESS_MAIN
