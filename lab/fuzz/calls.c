// SPDX-License-Identifier: GPL-2.0
/*
 * The grammar of the fuzzer's calls: see calls.h.
 *
 * Arguments are numbers that are taken for addresses, flags and the like only when
 * the call is made, so that any part of a program is a program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "calls.h"

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))

#ifndef MREMAP_OVERLAP
#define MREMAP_OVERLAP		32
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef SYS_mseal
#define SYS_mseal		462
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret	447
#endif
#ifndef UFFDIO_MOVE
#define UFFDIO_MOVE		_IOWR(UFFDIO, 0x05, struct uffdio_copy)
#endif
#ifndef UFFDIO_POISON
#define UFFDIO_POISON		_IOWR(UFFDIO, 0x08, struct uffdio_zeropage)
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE	67
#endif

/* ---- the grammar ---- */

enum kind {
	MMAP, MUNMAP, MREMAP, MPROTECT, MADVISE, MLOCK, MUNLOCK, MLOCKALL, TOUCH, FORK,
	UFFD, REGISTER, UNREGISTER, PROTECT_WP, COPY, ZEROPAGE, MOVE, CONTINUE, POISON,
	SHMAT, SHMDT, AIO, AIO_END, BUFFERS, REMAP_FILE, MBIND, TRUNCATE, PUNCH, SEAL,
	NAME, CLEAR_REFS, LIMIT, MSEAL, KILL, EXEC, UPROBE, PKEY, MERGE, READV, SYNC,
	KINDS,
};

enum arg { NONE, ADDR, LEN, PROT, MAP, OBJECT, OFFSET, ADVICE, REMAP, BITS, SMALL };

static const struct spec {
	const char *name;
	int weight;
	enum arg args[MOST_ARGS];
} specs[KINDS] = {
	[MMAP] = { "mmap", 24, { ADDR, LEN, PROT, MAP, OBJECT } },
	[MUNMAP] = { "munmap", 4, { ADDR, LEN } },
	[MREMAP] = { "mremap", 40, { ADDR, LEN, LEN, REMAP, ADDR } },
	[MPROTECT] = { "mprotect", 5, { ADDR, LEN, PROT } },
	[MADVISE] = { "madvise", 8, { ADDR, LEN, ADVICE } },
	[MLOCK] = { "mlock", 3, { ADDR, LEN, BITS } },
	[MUNLOCK] = { "munlock", 1, { ADDR, LEN } },
	[MLOCKALL] = { "mlockall", 1, { BITS } },
	[TOUCH] = { "touch", 16, { ADDR, LEN, BITS } },
	[FORK] = { "fork", 2, { BITS } },
	[UFFD] = { "userfaultfd", 4, { BITS } },
	[REGISTER] = { "register", 4, { ADDR, LEN, BITS } },
	[UNREGISTER] = { "unregister", 1, { ADDR, LEN } },
	[PROTECT_WP] = { "writeprotect", 2, { ADDR, LEN, BITS } },
	[COPY] = { "copy", 1, { ADDR, ADDR, LEN, BITS } },
	[ZEROPAGE] = { "zeropage", 1, { ADDR, LEN } },
	[MOVE] = { "move", 1, { ADDR, ADDR, LEN, BITS } },
	[CONTINUE] = { "continue", 1, { ADDR, LEN } },
	[POISON] = { "poison", 1, { ADDR, LEN } },
	[SHMAT] = { "shmat", 3, { ADDR, LEN, BITS } },
	[SHMDT] = { "shmdt", 1, { ADDR } },
	[AIO] = { "io_setup", 2, { SMALL } },
	[AIO_END] = { "io_destroy", 1, { ADDR } },
	[BUFFERS] = { "register_buffers", 2, { ADDR, LEN } },
	[REMAP_FILE] = { "remap_file_pages", 1, { ADDR, LEN, OFFSET } },
	[MBIND] = { "mbind", 1, { ADDR, LEN, BITS } },
	[TRUNCATE] = { "ftruncate", 2, { OBJECT, OFFSET } },
	[PUNCH] = { "punch", 1, { OBJECT, OFFSET, LEN } },
	[SEAL] = { "seal", 1, { OBJECT, BITS } },
	[NAME] = { "name", 1, { ADDR, LEN, BITS } },
	[CLEAR_REFS] = { "clear_refs", 1, { BITS } },
	[LIMIT] = { "limit", 1, { BITS, LEN } },
	[MSEAL] = { "mseal", 1, { ADDR, LEN } },
	[KILL] = { "kill", 1, { SMALL } },
	[EXEC] = { "exec", 1, { SMALL } },
	[UPROBE] = { "uprobe", 1, { OFFSET } },
	[PKEY] = { "pkey_mprotect", 1, { ADDR, LEN, PROT } },
	[MERGE] = { "memory_merge", 1, { BITS } },
	[READV] = { "readv", 1, { ADDR, ADDR, LEN } },
	[SYNC] = { "msync", 1, { ADDR, LEN } },
};

enum object {
	ANON, MEMFD, SEALABLE, HUGE, RAM_FILE, DISK_FILE, SECRET, RING, PERF, ZERO, OBJECTS,
};

/*
 * An address is a page of the window, or of where an earlier call has put something.
 * Either may be off by some bytes. A length may be so, too, or be far too large.
 */
#define PAGES		(1U << 20)
#define PAGE_MASK	(PAGES - 1)
#define PLACE		(1U << 24)	/* not of the window: see places */
#define PLACE_SHIFT	25
#define ODD		(1U << 27)
#define ENORMOUS	(1U << 28)
#define WINDOW		0x100000000000UL
#define PLACES		4

/* ---- arguments ---- */

static uint32_t pick(const uint32_t *values, uint32_t n)
{
	return values[below(n)];
}

#define PICK(...) ({						\
	static const uint32_t values_[] = { __VA_ARGS__ };	\
	pick(values_, ARRAY_SIZE(values_)); })

/* Few places, so that calls meet; mostly where page tables begin or end. */
static uint32_t random_address(void)
{
	uint32_t page = PICK(0, 0, 0, 0, 0, 0, 1, 2, 3) * GIGABYTE;

	if (one_in(8))
		return PLACE | below(PLACES) << PLACE_SHIFT | PICK(0, 0, 0, 1, 2, 512);
	page += below(8) * TABLE + PICK(0, 0, 0, 0, 1, 2, 3, 4, 8, 509, 510, 511);
	return page | (one_in(64) ? ODD : 0);
}

static uint32_t random_length(void)
{
	if (one_in(32))
		return PICK(0, 1 | ODD, 2 | ODD, ENORMOUS, GIGABYTE + 1, 2 * GIGABYTE);
	return PICK(1, 1, 1, 2, 2, 3, 4, 4, 8, 16, 33, 511, 512, 512, 512, 513, 1024, 1024,
		    1025, 1536, 2048, 4096, GIGABYTE, GIGABYTE);
}

static uint32_t random_flags(void)
{
	uint32_t flags = one_in(4) ? MAP_SHARED : MAP_PRIVATE;

	if (!one_in(8))
		flags |= MAP_FIXED;
	if (one_in(8))
		flags |= PICK(MAP_NORESERVE, MAP_POPULATE, MAP_LOCKED, MAP_GROWSDOWN, MAP_STACK,
			      MAP_HUGETLB, MAP_HUGETLB, MAP_FIXED_NOREPLACE, MAP_32BIT,
			      MAP_NONBLOCK | MAP_POPULATE, MAP_SHARED_VALIDATE);
	return flags;
}

static uint32_t random_arg(enum arg arg)
{
	switch (arg) {
	case NONE:
		return 0;
	case ADDR:
		return random_address();
	case LEN:
		return random_length();
	case PROT:
		return PICK(PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
			    PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC, PROT_WRITE);
	case MAP:
		return random_flags();
	case OBJECT:
		return one_in(2) ? ANON : below(OBJECTS);
	case OFFSET:
		return PICK(0, 0, 1, 2, 4, 511, 512, 1024);
	case ADVICE:
		return PICK(MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, MADV_COLD, MADV_COLLAPSE,
			    MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
			    MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_DONTFORK, MADV_DOFORK,
			    MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_DONTDUMP, MADV_DODUMP,
			    MADV_REMOVE, 22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */,
			    24 /* DONTNEED_LOCKED */, MADV_WILLNEED, MADV_RANDOM);
	case REMAP:
		if (one_in(16))
			return below(64);
		return PICK(0, MREMAP_MAYMOVE, MREMAP_MAYMOVE, MREMAP_MAYMOVE,
			    MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_FIXED,
			    MREMAP_MAYMOVE | MREMAP_FIXED, MREMAP_MAYMOVE | MREMAP_FIXED,
			    MREMAP_MAYMOVE | MREMAP_DONTUNMAP,
			    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_OVERLAP,
			    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_OVERLAP);
	case BITS:
		return below(256);
	case SMALL:
		return below(16);
	}
	return 0;
}

/* As often as not an argument is one that an earlier call has had. */
static uint32_t known_arg(const struct program *program, int before, enum arg arg)
{
	const struct call *call;
	int i, at;

	if (before && (arg == ADDR || arg == LEN)) {
		call = &program->calls[below(before)];
		at = below(MOST_ARGS);
		for (i = 0; i < MOST_ARGS; i++, at = (at + 1) % MOST_ARGS)
			if (specs[call->kind].args[at] == arg)
				return call->args[at];
	}
	return random_arg(arg);
}

static enum kind random_kind(void)
{
	static int sum;
	int at, kind;

	if (!sum)
		for (kind = 0; kind < KINDS; kind++)
			sum += specs[kind].weight;
	at = below(sum);
	for (kind = 0; at >= specs[kind].weight; kind++)
		at -= specs[kind].weight;
	return kind;
}

static bool has_range(const struct call *call)
{
	return specs[call->kind].args[0] == ADDR && specs[call->kind].args[1] == LEN;
}

/* The range that an earlier call has dealt with. */
static void take_range(const struct program *program, int before, struct call *call)
{
	const struct call *other = &program->calls[below(before)];

	if (!has_range(call) || !has_range(other))
		return;
	call->args[0] = other->args[0];
	call->args[1] = other->args[1];
}

/* As far as to the next mapping that an earlier call has made, or 0. */
static uint32_t room_at(const struct program *program, int before, uint32_t addr)
{
	uint32_t room = 0;

	for (int i = 0; i < before; i++) {
		const struct call *call = &program->calls[i];
		const uint32_t distance = call->args[0] - addr;

		if (call->kind == MMAP && call->args[0] > addr && distance < PAGES &&
		    (!room || distance < room))
			room = distance;
	}
	return room;
}

static void choose_sizes(const struct program *program, int before, struct call *call)
{
	uint32_t *args = call->args;
	const uint32_t room = room_at(program, before, args[0]);

	switch (below(6)) {
	case 0 ... 2:
		args[2] = args[1];
		break;
	case 3:
		args[2] = args[1] + (args[1] % TABLE ? 1 + below(8) : TABLE);
		break;
	case 4:
		/* In place, so that it may become one with what is there. */
		args[2] = room ?: args[1];
		args[3] = PICK(0, MREMAP_MAYMOVE);
		break;
	}
}

/* Most arguments at random would only be refused, and for the same few reasons. */
static void make_sensible(const struct program *program, int before, struct call *call)
{
	uint32_t *args = call->args;

	switch (call->kind) {
	case MMAP:
		if (args[4] == HUGE || args[3] & MAP_HUGETLB) {
			args[0] &= ~(TABLE - 1U);
			args[1] = (1 + below(4)) * TABLE;
		}
		break;
	case MREMAP:
		choose_sizes(program, before, call);
		if (args[3] & MREMAP_OVERLAP) {
			args[2] = args[1];
			args[4] = args[0] + PICK(1, 2, 3, TABLE, TABLE + 1, 2 * TABLE);
		}
		if (args[3] & MREMAP_OVERLAP && one_in(2)) {
			const uint32_t to = args[4];

			args[4] = args[0];
			args[0] = to;
		}
		break;
	default:
		break;
	}
}

static void random_call(const struct program *program, int before, struct call *call)
{
	memset(call, 0, sizeof(*call));
	call->kind = random_kind();
	for (int i = 0; i < MOST_ARGS; i++) {
		const enum arg arg = specs[call->kind].args[i];

		call->args[i] = one_in(2) ? random_arg(arg) : known_arg(program, before, arg);
	}
	if (before && one_in(2))
		take_range(program, before, call);
	if (!one_in(4))
		make_sensible(program, before, call);
	if (one_in(call->kind != MREMAP ? 40 : call->args[2] > call->args[1] ? 3 : 12))
		call->fail = 1 + below(one_in(4) ? 40 : 8);
	call->aside = one_in(40);
}

/* The same once more, with a gap in between. */
static void put_behind(const struct call *first, struct call *call)
{
	*call = *first;
	call->args[0] += first->args[1] + PICK(1, 2, 8, 512);
	call->args[1] = PICK(1, 2, 8, 512);
}

void random_program(struct program *program)
{
	int n = 2;

	program->length = 3 + below(MOST_CALLS - 4);
	/* Something has to be mapped for anything to come of it. */
	program->calls[0] = (struct call) {
		.kind = MMAP,
		.args = { random_address(), random_length(), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_FIXED, one_in(4) ? below(OBJECTS) : ANON },
	};
	program->calls[1] = (struct call) { .kind = TOUCH, .args[2] = below(8) };
	take_range(program, 1, &program->calls[1]);
	if (one_in(3))
		put_behind(&program->calls[0], &program->calls[n++]);
	for (; n < program->length; n++)
		random_call(program, n, &program->calls[n]);
}

static void insert_call(struct program *program)
{
	const int at = below(program->length + 1);

	if (program->length == MOST_CALLS)
		return;
	memmove(&program->calls[at + 1], &program->calls[at],
		(program->length - at) * sizeof(struct call));
	program->length++;
	random_call(program, at, &program->calls[at]);
}

static void delete_call(struct program *program)
{
	const int at = below(program->length);

	if (program->length == 1)
		return;
	program->length--;
	memmove(&program->calls[at], &program->calls[at + 1],
		(program->length - at) * sizeof(struct call));
}

static void change_arg(struct program *program)
{
	const int n = below(program->length);
	struct call *call = &program->calls[n];
	const int at = below(MOST_ARGS);
	const enum arg arg = specs[call->kind].args[at];
	uint32_t *value = &call->args[at];

	switch (below(4)) {
	case 0:
		*value = known_arg(program, n, arg);
		break;
	case 1:
		if (arg == ADDR || arg == LEN || arg == OFFSET)
			*value = (*value & ~PAGE_MASK) |
				 ((*value + PICK(1, -1, 2, -2, 512, -512)) & PAGE_MASK);
		else if (arg != NONE)
			*value ^= 1U << below(arg == MAP ? 18 : 6);
		break;
	case 2:
		call->fail = one_in(2) ? 0 : 1 + below(30);
		break;
	default:
		*value = random_arg(arg);
	}
}

static void append_part(struct program *program, const struct program *other)
{
	const int from = below(other->length);
	int at = below(program->length + 1), i;

	for (i = from; i < other->length && at < MOST_CALLS; i++)
		program->calls[at++] = other->calls[i];
	program->length = at;
}

/* The same program again and again, but that another allocation of one call fails. */
void fail_in_turn(struct program *programs, int n)
{
	const struct program *first = &programs[0];
	int at = below(first->length);

	for (int i = 0; i < first->length && first->calls[at].kind != MREMAP; i++)
		at = (at + 1) % first->length;
	for (int i = n - 1; i >= 0; i--) {
		programs[i] = *first;
		programs[i].calls[at].fail = 1 + i;
	}
}

void mutate(struct program *program, const struct program *other)
{
	do {
		switch (below(10)) {
		case 0 ... 2:
			insert_call(program);
			break;
		case 3:
			delete_call(program);
			break;
		case 4:
			append_part(program, other);
			break;
		case 5:
			program->calls[below(program->length)].aside ^= one_in(4);
			break;
		default:
			change_arg(program);
		}
	} while (!one_in(3));
}

/* ---- programs as text: "mmap 0,200,3,12,0; mremap!3 0,200,200,3,400" ---- */

int print_program(const struct program *program, char *text, int size)
{
	int n = 0, i, j, last;

	for (i = 0; i < program->length; i++) {
		const struct call *call = &program->calls[i];

		n += snprintf(text + n, size - n, "%s%s", i ? "; " : "", specs[call->kind].name);
		if (call->fail)
			n += snprintf(text + n, size - n, "!%u", call->fail);
		if (call->aside)
			n += snprintf(text + n, size - n, "&");
		for (last = MOST_ARGS; last && !specs[call->kind].args[last - 1];)
			last--;
		for (j = 0; j < last; j++)
			n += snprintf(text + n, size - n, "%c%x", j ? ',' : ' ', call->args[j]);
	}
	return n;
}

static bool parse_call(const char *text, struct call *call)
{
	const size_t n = strcspn(text, " !&");
	char *end = (char *)text + n;
	int i;

	memset(call, 0, sizeof(*call));
	while (call->kind < KINDS && (strlen(specs[call->kind].name) != n ||
				      strncmp(text, specs[call->kind].name, n)))
		call->kind++;
	if (call->kind == KINDS)
		return false;
	if (*end == '!')
		call->fail = strtoul(end + 1, &end, 10);
	if (*end == '&') {
		call->aside = 1;
		end++;
	}
	for (i = 0; i < MOST_ARGS && (*end == ' ' || *end == ','); i++)
		call->args[i] = strtoul(end + 1, &end, 16);
	return !*end;
}

bool parse_program(const char *text, struct program *program)
{
	char copy[4096], *rest = copy, *word;

	program->length = 0;
	snprintf(copy, sizeof(copy), "%s", text);
	while ((word = strsep(&rest, ";\n"))) {
		word += strspn(word, " ");
		if (!*word)
			continue;
		if (program->length == MOST_CALLS ||
		    !parse_call(word, &program->calls[program->length++]))
			return false;
	}
	return program->length;
}

/* ---- what calls have to do with ---- */

static unsigned long places[PLACES];
static unsigned int next_place;
static int fds[OBJECTS];
static int uffd = -1, fail_fd = -1;
static int uprobe_type;
static int forks;
static char *source;		/* pages to copy from, as large as a huge one */

#define FAIL_NTH	"/proc/thread-self/fail-nth"

static const char nops[] = "/tmp/nops";

static unsigned long address(uint32_t arg)
{
	unsigned long addr = (arg & PAGE_MASK) * PAGE;

	addr += arg & PLACE ? places[arg >> PLACE_SHIFT & (PLACES - 1)] : WINDOW;
	return addr + (arg & ODD ? 0x123 : 0);
}

static unsigned long length(uint32_t arg)
{
	if (arg & ENORMOUS)
		return -PAGE * ((arg & 7) + 1);
	return (arg & PAGE_MASK) * PAGE + (arg & ODD ? 0x123 : 0);
}

/* What is faulted in has to fit in the guest. */
static unsigned long little(uint32_t arg)
{
	const unsigned long len = length(arg);

	return len > 4 * TABLE * PAGE ? 4 * TABLE * PAGE : len;
}

static int open_file(const char *path)
{
	const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd >= 0 && ftruncate(fd, 4 * TABLE * PAGE))
		return -1;
	return fd;
}

static int open_memfd(unsigned int flags, unsigned long size)
{
	const int fd = memfd_create("fuzz", flags | MFD_CLOEXEC);

	if (fd >= 0 && ftruncate(fd, size))
		return -1;
	return fd;
}

static int open_perf(struct perf_event_attr *attr)
{
	attr->size = sizeof(*attr);
	return syscall(SYS_perf_event_open, attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

static int open_object(enum object object)
{
	struct perf_event_attr dummy = {
		.type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_DUMMY,
	};
	struct io_uring_params params = {};
	const char *disk = getenv("MREMAP_DISK");
	char path[64];

	switch (object) {
	case MEMFD:
		return open_memfd(0, 8 * TABLE * PAGE);
	case SEALABLE:
		return open_memfd(MFD_ALLOW_SEALING, 2 * TABLE * PAGE);
	case HUGE:
		return open_memfd(MFD_HUGETLB | MFD_ALLOW_SEALING, 4 * TABLE * PAGE);
	case RAM_FILE:
		return open_file(nops);
	case DISK_FILE:
		snprintf(path, sizeof(path), "%s/fuzz", disk ?: "/tmp");
		return open_file(path);
	case SECRET:
		return syscall(SYS_memfd_secret, 0);
	case RING:
		return syscall(SYS_io_uring_setup, 8, &params);
	case PERF:
		return open_perf(&dummy);
	case ZERO:
		return open("/dev/zero", O_RDWR | O_CLOEXEC);
	default:
		return -1;
	}
}

static int object_fd(uint32_t arg)
{
	const enum object object = arg % OBJECTS;

	if (object != ANON && fds[object] < 0)
		fds[object] = open_object(object);
	return fds[object];
}

/* ---- accesses, which may fault in vain ---- */

static __thread sigjmp_buf out;
static __thread volatile bool accessing;

static void on_fault(int number)
{
	if (!accessing)
		_exit(number);
	siglongjmp(out, 1);
}

static void touch_page(volatile char *page, bool write)
{
	accessing = true;
	if (!sigsetjmp(out, 1)) {
		if (write)
			*page = 1;
		else
			(void)*page;
	}
	accessing = false;
}

/* Bits: 1 write, 2 all pages, 4 the last one as well. */
static void touch(unsigned long addr, unsigned long len, uint32_t bits)
{
	const unsigned long pages = len / PAGE;
	const unsigned long most = bits & 2 ? 64 : 8;
	const unsigned long step = pages > most ? pages / most : 1;

	for (unsigned long i = 0; i < pages && i < most * step; i += step)
		touch_page((char *)addr + i * PAGE, bits & 1);
	if (bits & 4 && pages)
		touch_page((char *)addr + (pages - 1) * PAGE, bits & 1);
}

/* ---- userfaultfd ---- */

static int ioctl_range(int request, unsigned long addr, unsigned long len)
{
	struct uffdio_zeropage range = { .range = { addr, len } };

	return ioctl(uffd, request, &range);
}

/* One way or the other the one who faulted must get on. */
static void answer(const struct uffd_msg *msg)
{
	const unsigned long huge = TABLE * PAGE;
	const unsigned long addr = msg->arg.pagefault.address & -PAGE;
	const uint64_t flags = msg->arg.pagefault.flags;
	struct uffdio_writeprotect writable = { .range = { addr, PAGE } };
	struct uffdio_continue cont = { .range = { addr, PAGE } };
	struct uffdio_copy copy = { addr & -huge, (unsigned long)source, huge, 0, 0 };

	if (flags & UFFD_PAGEFAULT_FLAG_WP) {
		if (!ioctl(uffd, UFFDIO_WRITEPROTECT, &writable))
			return;
	} else if (flags & UFFD_PAGEFAULT_FLAG_MINOR) {
		if (!ioctl(uffd, UFFDIO_CONTINUE, &cont))
			return;
	} else if (!ioctl_range(UFFDIO_ZEROPAGE, addr, PAGE) ||
		   !ioctl(uffd, UFFDIO_COPY, &copy)) {
		return;
	}
	if (ioctl_range(UFFDIO_UNREGISTER, addr, PAGE))
		ioctl_range(UFFDIO_UNREGISTER, addr & -huge, huge);
	ioctl_range(UFFDIO_WAKE, addr & -huge, huge);
}

static void *monitor(void *unused)
{
	struct uffd_msg msg;

	while (read(uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		if (msg.event == UFFD_EVENT_PAGEFAULT)
			answer(&msg);
		else if (msg.event == UFFD_EVENT_FORK)
			close(msg.arg.fork.ufd);
	}
	return unused;
}

static long open_uffd(uint32_t bits)
{
	struct uffdio_api api = { .api = UFFD_API };
	pthread_t thread;

	if (uffd >= 0)
		return -1;
	if (bits & 1)
		api.features |= UFFD_FEATURE_EVENT_REMAP;
	if (bits & 2)
		api.features |= UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE;
	if (bits & 4)
		api.features |= UFFD_FEATURE_EVENT_FORK;
	if (bits & 8)
		api.features |= UFFD_FEATURE_SIGBUS;
	if (bits & 16)
		api.features |= 1 << 13 /* WP_UNPOPULATED */ | UFFD_FEATURE_PAGEFAULT_FLAG_WP;
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		return -1;
	return pthread_create(&thread, NULL, monitor, NULL);
}

static long uffd_register(unsigned long addr, unsigned long len, uint32_t bits)
{
	struct uffdio_register reg = { .range = { addr, len }, .mode = bits & 7 };

	return ioctl(uffd, UFFDIO_REGISTER, &reg);
}

static long uffd_protect(unsigned long addr, unsigned long len, uint32_t bits)
{
	struct uffdio_writeprotect wp = { .range = { addr, len }, .mode = !(bits & 3) ? 0 : 1 };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

static long uffd_copy(int request, unsigned long to, unsigned long from, unsigned long len,
		      uint32_t bits)
{
	struct uffdio_copy copy = { to, from, len, bits & 3, 0 };

	return ioctl(uffd, request, &copy);
}

/* ---- calls that take more than one ---- */

static long attach(unsigned long addr, unsigned long len, uint32_t bits)
{
	const int id = shmget(IPC_PRIVATE, len, 0600 | (bits & 8 ? SHM_HUGETLB : 0));
	long at;

	if (id < 0)
		return -1;
	at = (long)shmat(id, (void *)addr, (bits & 1 ? SHM_REMAP : 0) |
			 (bits & 6 ? 0 : SHM_RDONLY));
	shmctl(id, IPC_RMID, NULL);
	return at;
}

static long register_buffers(unsigned long addr, unsigned long len)
{
	const struct iovec vec = { (void *)addr, len };

	return syscall(SYS_io_uring_register, object_fd(RING), IORING_REGISTER_BUFFERS, &vec, 1);
}

static long bind_range(unsigned long addr, unsigned long len, uint32_t bits)
{
	static const unsigned long node_0 = 1;

	return syscall(SYS_mbind, addr, len, bits & 1 ? MPOL_BIND : MPOL_PREFERRED, &node_0, 64,
		       bits & 6);
}

static long clear_refs(uint32_t bits)
{
	const int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	const long n = write(fd, bits & 3 ? "4" : "1", 1);

	close(fd);
	return n;
}

static long limit(uint32_t bits, unsigned long len)
{
	const int which = bits & 1 ? RLIMIT_AS : bits & 2 ? RLIMIT_DATA : RLIMIT_MEMLOCK;
	struct rlimit limit;

	/* About as much as is in use by now, where it matters. */
	getrlimit(which, &limit);
	limit.rlim_cur = which == RLIMIT_MEMLOCK ? little(len / PAGE) : 4 * len + (32UL << 20);
	return setrlimit(which, &limit);
}

static long end_soon(uint32_t small)
{
	const struct itimerval soon = { .it_value.tv_usec = 50 << (small & 7) };

	return setitimer(ITIMER_REAL, &soon, NULL);
}

/* The new image's stack is filled from its top, and then shifted. */
static long exec_self(uint32_t small)
{
	static char argument[100 << 10];
	char *argv[18] = { "fuzz", "--exit" };

	memset(argument, 'x', sizeof(argument) - 1);
	for (uint32_t i = 0; i < (small & 15); i++)
		argv[2 + i] = argument;
	return execv("/proc/self/exe", argv);
}

static long probe(uint32_t offset)
{
	struct perf_event_attr attr = {
		.type = uprobe_type, .config1 = (unsigned long)nops,
		.config2 = (offset & 63) * PAGE,
	};

	return open_perf(&attr);
}

static long remap(const struct call *call)
{
	return (long)mremap((void *)address(call->args[0]), length(call->args[1]),
			    length(call->args[2]), call->args[3], address(call->args[4]));
}

static long map(const struct call *call)
{
	const int fd = object_fd(call->args[4]);
	int flags = call->args[3] & ~0xfc000000;
	unsigned long len = length(call->args[1]);

	if (call->args[4] % OBJECTS == ANON)
		flags |= MAP_ANONYMOUS;
	if (flags & (MAP_LOCKED | MAP_POPULATE))
		len = little(call->args[1]);
	/* If a driver refuses, 6.12 forgets the charge of what was mapped there. */
	if (flags & MAP_FIXED)
		munmap((void *)address(call->args[0]), len);
	/* Its rings have offsets of their own. */
	return (long)mmap((void *)address(call->args[0]), len, call->args[2], flags, fd,
			  call->args[4] % OBJECTS == RING && call->args[2] & 2 ? IORING_OFF_SQES : 0);
}

static long fork_process(uint32_t bits)
{
	long pid;

	if (forks == 2)
		return -1;
	forks++;
	pid = fork();
	if (!pid && bits & 1)
		pause();
	/* The file is of the thread that has opened it. */
	if (!pid) {
		close(fail_fd);
		fail_fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	}
	return pid;
}

static void remember(long result)
{
	if (result > 0 && !(result & (PAGE - 1)))
		places[next_place++ % PLACES] = result;
}

static void make_call(const struct call *call)
{
	const uint32_t *a = call->args;
	const unsigned long addr = address(a[0]), len = length(a[1]);

	switch ((enum kind)call->kind) {
	case MMAP:
		remember(map(call));
		break;
	case MUNMAP:
		munmap((void *)addr, len);
		break;
	case MREMAP:
		remember(remap(call));
		break;
	case MPROTECT:
		mprotect((void *)addr, len, a[2]);
		break;
	case MADVISE:
		madvise((void *)addr, a[2] == 22 || a[2] == 23 || a[2] == MADV_COLLAPSE ?
			little(a[1]) : len, a[2]);
		break;
	case MLOCK:
		syscall(SYS_mlock2, addr, little(a[1]), a[2] & 1);
		break;
	case MUNLOCK:
		munlock((void *)addr, len);
		break;
	case MLOCKALL:
		/* Not what is there, which is the fuzzer. */
		if (a[0] & 1)
			mlockall(MCL_FUTURE | (a[0] & 2 ? MCL_ONFAULT : 0));
		else
			munlockall();
		break;
	case TOUCH:
		touch(addr, len, a[2]);
		break;
	case FORK:
		fork_process(a[0]);
		break;
	case UFFD:
		open_uffd(a[0]);
		break;
	case REGISTER:
		uffd_register(addr, len, a[2]);
		break;
	case UNREGISTER:
		ioctl_range(UFFDIO_UNREGISTER, addr, len);
		break;
	case PROTECT_WP:
		uffd_protect(addr, len, a[2]);
		break;
	case COPY:
		uffd_copy(UFFDIO_COPY, addr, (unsigned long)source, little(a[2]), a[3]);
		break;
	case ZEROPAGE:
		ioctl_range(UFFDIO_ZEROPAGE, addr, little(a[1]));
		break;
	case MOVE:
		uffd_copy(UFFDIO_MOVE, addr, address(a[1]), length(a[2]), a[3]);
		break;
	case CONTINUE:
		ioctl_range(UFFDIO_CONTINUE, addr, len);
		break;
	case POISON:
		ioctl_range(UFFDIO_POISON, addr, little(a[1]));
		break;
	case SHMAT:
		remember(attach(addr, len, a[2]));
		break;
	case SHMDT:
		shmdt((void *)addr);
		break;
	case AIO: {
		aio_context_t ring = 0;

		if (!syscall(SYS_io_setup, 1 << a[0] % 10, &ring))
			remember(ring);
		break;
	}
	case AIO_END:
		syscall(SYS_io_destroy, addr);
		break;
	case BUFFERS:
		register_buffers(addr, little(a[1]));
		break;
	case REMAP_FILE:
		remap_file_pages((void *)addr, len, 0, a[2], 0);
		break;
	case MBIND:
		bind_range(addr, len, a[2]);
		break;
	case TRUNCATE:
		if (ftruncate(object_fd(a[0]), (off_t)(a[1] & PAGE_MASK) * PAGE))
			break;
		break;
	case PUNCH:
		fallocate(object_fd(a[0]), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  (off_t)(a[1] & PAGE_MASK) * PAGE, length(a[2]));
		break;
	case SEAL:
		fcntl(object_fd(a[0]), F_ADD_SEALS, a[1] & 0x1e);
		break;
	case NAME:
		prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len, a[2] & 1 ? "one" : "other");
		break;
	case CLEAR_REFS:
		clear_refs(a[0]);
		break;
	case LIMIT:
		limit(a[0], len);
		break;
	case MSEAL:
		syscall(SYS_mseal, addr, len, 0);
		break;
	case KILL:
		end_soon(a[0]);
		break;
	case EXEC:
		exec_self(a[0]);
		break;
	case UPROBE:
		probe(a[0]);
		break;
	case PKEY:
		pkey_mprotect((void *)addr, len, a[2], pkey_alloc(0, 0));
		break;
	case MERGE:
		prctl(PR_SET_MEMORY_MERGE, a[0] & 1, 0, 0, 0);
		break;
	case READV: {
		const struct iovec to = { (void *)addr, little(a[2]) };
		const struct iovec from = { (void *)address(a[1]), little(a[2]) };

		process_vm_readv(getpid(), &to, 1, &from, 1, 0);
		break;
	}
	case SYNC:
		msync((void *)addr, len, MS_SYNC);
		break;
	case KINDS:
		break;
	}
}

/* ---- a program ---- */

static void fail_nth(int fd, int nth)
{
	char text[8];
	const int n = snprintf(text, sizeof(text), "%d", nth);

	if (pwrite(fd, text, n, 0) != n)
		return;
}

static void *make_aside(void *call)
{
	make_call(call);
	return NULL;
}

static void drop_capability(int number)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		return;
	data[0].effective &= ~(1U << number);
	syscall(SYS_capset, &header, data);
}

void run_program(const struct program *program)
{
	const struct rlimit locked = { 16 << 20, 16 << 20 };
	pthread_t threads[MOST_CALLS];
	int n = 0;

	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	memset(fds, -1, sizeof(fds));
	for (int i = 0; i < PLACES; i++)
		places[i] = WINDOW + i * TABLE * PAGE;
	fail_fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	setrlimit(RLIMIT_MEMLOCK, &locked);
	drop_capability(CAP_IPC_LOCK);
	for (int i = 0; i < program->length; i++) {
		const struct call *call = &program->calls[i];

		if (call->aside && !pthread_create(&threads[n], NULL, make_aside, (void *)call)) {
			n++;
			continue;
		}
		if (call->fail && call->kind != TOUCH)
			fail_nth(fail_fd, call->fail);
		make_call(call);
		if (call->fail)
			fail_nth(fail_fd, 0);
	}
	while (n--)
		pthread_join(threads[n], NULL);
}

void prepare_calls(void)
{
	static char page[PAGE];
	FILE *file = fopen("/sys/bus/event_source/devices/uprobe/type", "re");
	const int fd = open_file(nops);

	if (file && fscanf(file, "%d", &uprobe_type) != 1)
		uprobe_type = 0;
	if (file)
		fclose(file);
	memset(page, 0x90, sizeof(page));
	for (int i = 0; i < 64; i++)
		if (pwrite(fd, page, PAGE, i * PAGE) != PAGE)
			break;
	close(fd);
	source = mmap(NULL, 4 * TABLE * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}
