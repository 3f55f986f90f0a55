// SPDX-License-Identifier: GPL-2.0
/*
 * A fuzzer of mremap(2) and of what else changes an address space, which is guided
 * by the kernel's coverage (KCOV) as syzkaller is. Runs as root in a guest.
 *
 * A program is a short list of calls. Each one runs in a process of its own. If it
 * reaches a step in the kernel, from one place to the next, that none has reached
 * before, it is kept, and later ones are made from it. After each program, the books of
 * its process have to add up, and when it is gone, nothing may be left of it: what
 * is committed, reserved, locked, page tables, VMAs. For the rest, see the kernel's log.
 *
 * Programs are printed before they run: "run TEXT". If the kernel goes down, it was by
 * one of the last ones.
 *
 *	fuzz --seed N --seconds N [--sites FILE]	FILE: addresses to tell of
 *	fuzz --replay FILE [--times N]	runs the programs in FILE; one that
 *					fails is shortened
 *
 * built with: -pthread lab/fuzz/calls.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kcov.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "calls.h"

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))

#define BATCH		16	/* programs that are printed together */
#define THOROUGH	16	/* batches from one thorough look to the next */
#define PROGRAM_SECONDS	3
#define SETTLE_MS	3000	/* what is left to a kernel thread takes a while */

/* ---- random numbers: splitmix64 ---- */

static uint64_t random_state;

uint32_t below(uint32_t bound)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return (z ^ (z >> 31)) % bound;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *text)
{
	fprintf(stderr, "fuzz: %s: %s\n", text, strerror(errno));
	exit(1);
}

/* ---- coverage ---- */

#define AREA		(1UL << 16)	/* words */
#define STEPS		(1U << 22)
#define POINTS		(1U << 16)

static int kcov = -1;
static unsigned long *area;
static uint8_t *steps;		/* a bit for each pair of places, by its hash */
static uint32_t *points;	/* a hash table of places: the lower half of an address */
static uint32_t *sites;		/* another one, of those that count */
static unsigned int points_seen, sites_known, sites_seen;

static uint32_t hash(uint64_t value)
{
	return value * 0x9e3779b97f4a7c15 >> 32;
}

/* Whether the value was new. */
static bool add(uint32_t *table, uint32_t value)
{
	uint32_t at = hash(value) % POINTS;

	while (table[at]) {
		if (table[at] == value)
			return false;
		at = (at + 1) % POINTS;
	}
	table[at] = value;
	return true;
}

static bool has(const uint32_t *table, uint32_t value)
{
	for (uint32_t at = hash(value) % POINTS; table[at]; at = (at + 1) % POINTS)
		if (table[at] == value)
			return true;
	return false;
}

/* Only for the fuzzer: a program might write to it, and a copy of its tables costs. */
static void *room(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED || madvise(p, size, MADV_DONTFORK))
		fail("no memory");
	return p;
}

static void prepare_coverage(const char *file)
{
	char line[64];
	FILE *in;

	steps = room(STEPS / 8);
	points = room(POINTS * sizeof(*points));
	sites = room(POINTS * sizeof(*sites));
	kcov = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	if (kcov < 0) {
		printf("no KCOV: programs are chosen blindly\n");
		return;
	}
	if (ioctl(kcov, KCOV_INIT_TRACE, AREA))
		fail("KCOV_INIT_TRACE");
	area = mmap(NULL, AREA * sizeof(*area), PROT_READ | PROT_WRITE, MAP_SHARED, kcov, 0);
	if (area == MAP_FAILED)
		fail("kcov");
	in = file ? fopen(file, "re") : NULL;
	while (in && fgets(line, sizeof(line), in))
		sites_known += add(sites, strtoull(line, NULL, 16));
	if (in)
		fclose(in);
}

/* Of the program that has just run: the number of steps that are new. */
static unsigned int new_steps(void)
{
	unsigned int found = 0;
	unsigned long n, last = 0;

	if (!area)
		return 0;
	n = area[0] < AREA - 1 ? area[0] : AREA - 1;
	for (unsigned long i = 1; i <= n; i++) {
		const uint32_t point = area[i];
		const uint32_t step = hash((uint64_t)last << 32 | point) % STEPS;

		last = point;
		if (steps[step / 8] & 1 << step % 8)
			continue;
		steps[step / 8] |= 1 << step % 8;
		found++;
		if (points_seen < POINTS / 2 && add(points, point)) {
			points_seen++;
			sites_seen += has(sites, point);
		}
	}
	return found;
}

/* ---- the books of a process, looked at by itself ---- */

struct outcome {
	char complaint[256];	/* empty: none */
};

static struct outcome *outcome;	/* shared with the process of the program */

static char text[1 << 18];

static const char *read_text(const char *path)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t n = 0;
	ssize_t got;

	while (fd >= 0 && n < sizeof(text) - 1 &&
	       (got = read(fd, text + n, sizeof(text) - 1 - n)) > 0)
		n += got;
	text[n] = 0;
	if (fd >= 0)
		close(fd);
	return text;
}

/* The number behind the name, at the start of a line; -1 if there is none. */
static long number_of(const char *in, const char *name)
{
	const size_t n = strlen(name);

	for (const char *at = in; at; at = strchr(at, '\n')) {
		at += *at == '\n';
		if (!strncmp(at, name, n))
			return strtol(at + n, NULL, 10);
	}
	return -1;
}

static void complain(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsnprintf(outcome->complaint, sizeof(outcome->complaint), format, list);
	va_end(list);
}

struct sums {
	long size, data, locked;	/* KB */
};

static bool has_flag(const char *flags, const char *flag)
{
	return flags && memmem(flags, strcspn(flags, "\n"), flag, 3);
}

/* One line, "START-END PERMS ..."; in smaps its flags are some lines further down. */
static void add_mapping(struct sums *sums, const char *line, unsigned long *last)
{
	const char *flags = strstr(line, "\nVmFlags:");
	unsigned long start, end;
	char perms[5];
	long size;

	/* vsyscall is not of the process. */
	if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3 || start > 1UL << 63)
		return;
	if (start < *last || start >= end)
		complain("a mapping at %lx overlaps another one", start);
	*last = end;
	flags = flags ? flags + 1 : NULL;
	size = (end - start) / 1024;
	sums->size += size;
	if (perms[1] == 'w' && perms[3] == 'p' && !has_flag(flags, " gd") &&
	    !(!flags && memmem(line, strcspn(line, "\n"), "[stack]", 7)))
		sums->data += size;
	if (has_flag(flags, " lo"))
		sums->locked += size;
}

static bool add_mappings(struct sums *sums, const char *file)
{
	const char *line = read_text(file);
	unsigned long last = 0;

	memset(sums, 0, sizeof(*sums));
	if (strlen(line) == sizeof(text) - 1)
		return false;
	for (; *line; line++) {
		if (line[0] >= 'a' || (line[0] >= '0' && line[0] <= '9'))
			add_mapping(sums, line, &last);
		line = strchr(line, '\n');
		if (!line)
			break;
	}
	return true;
}

static void check_process(void)
{
	const char *status = read_text("/proc/self/status");
	const long size = number_of(status, "VmSize:"), data = number_of(status, "VmData:");
	const long locked = number_of(status, "VmLck:");
	struct sums sums;

	if (size < 0)
		return;	/* it has no memory left for that */
	/* What costs much less tells of everything in most cases. */
	if (!locked && getpid() % 8 && add_mappings(&sums, "/proc/self/maps") &&
	    sums.size == size && sums.data == data)
		return;
	if (!add_mappings(&sums, "/proc/self/smaps"))
		return;
	if (sums.size != size)
		complain("VmSize is %ld KB, of mappings there are %ld", size, sums.size);
	if (sums.data != data)
		complain("VmData is %ld KB, of private writable mappings there are %ld", data,
			 sums.data);
	if (sums.locked != locked)
		complain("VmLck is %ld KB, of locked mappings there are %ld", locked, sums.locked);
}

/* ---- what is left when all processes of a program are gone ---- */

enum { THOROUGHLY = 1 };

struct book {
	const char *file, *name;
	long tolerance;
	int how;
	long before;
};

/* Freed objects of slabs are given back by "shrink"; pages of locked memory lag behind. */
static struct book books[] = {
	{ "/proc/meminfo", "Committed_AS:", 0, 0, 0 },
	{ "/proc/meminfo", "HugePages_Free:", 0, 0, 0 },
	{ "/proc/meminfo", "HugePages_Rsvd:", 0, 0, 0 },
	{ "/proc/meminfo", "HugePages_Surp:", 0, 0, 0 },
	{ "/proc/vmstat", "nr_page_table_pages ", 16, THOROUGHLY, 0 },
	{ "/proc/vmstat", "nr_mlock ", 64, THOROUGHLY, 0 },
	{ "/proc/vmstat", "nr_shmem ", 32, THOROUGHLY, 0 },
	{ "/proc/vmstat", "nr_anon_pages ", 64, THOROUGHLY, 0 },
	{ "/proc/slabinfo", "vm_area_struct ", 32, THOROUGHLY, 0 },
	{ "/proc/slabinfo", "anon_vma ", 32, THOROUGHLY, 0 },
	{ "/proc/slabinfo", "anon_vma_chain ", 32, THOROUGHLY, 0 },
	{ "/proc/slabinfo", "vma_lock ", 32, THOROUGHLY, 0 },
	{ "/proc/slabinfo", "mm_struct ", 2, THOROUGHLY, 0 },
	{ "/proc/slabinfo", "userfaultfd_ctx_cache ", 2, THOROUGHLY, 0 },
};

static void write_text(const char *path, const char *value)
{
	const int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, value, strlen(value)) < 0)
		errno = 0;
	close(fd);
}

static void settle_thoroughly(void)
{
	char path[96];

	write_text("/proc/sys/vm/stat_refresh", "1");
	for (size_t i = 0; i < ARRAY_SIZE(books); i++) {
		if (strcmp(books[i].file, "/proc/slabinfo"))
			continue;
		snprintf(path, sizeof(path), "/sys/kernel/slab/%.*s/shrink",
			 (int)strcspn(books[i].name, " "), books[i].name);
		write_text(path, "1");
	}
}

/* What is wrong, if anything; "before" becomes what is there now if that is asked for. */
static bool look_at_books(int how, bool set)
{
	const char *file = NULL;
	bool good = true;

	if (how & THOROUGHLY)
		settle_thoroughly();
	for (size_t i = 0; i < ARRAY_SIZE(books); i++) {
		struct book *book = &books[i];
		long value;

		if (book->how & ~how)
			continue;
		if (!file || strcmp(file, book->file))
			read_text(file = book->file);
		value = number_of(text, book->name);
		if (set)
			book->before = value;
		if (labs(value - book->before) <= book->tolerance)
			continue;
		complain("%.*s was %ld, is %ld", (int)strcspn(book->name, ": "), book->name,
			 book->before, value);
		good = false;
	}
	return good;
}

static void check_books(int how)
{
	const double end = now() + SETTLE_MS / 1000.0;

	while (!look_at_books(how, false)) {
		if (now() > end)
			return;
		poll(NULL, 0, 20);
	}
	outcome->complaint[0] = 0;
}

static void remove_segments(void)
{
	struct shmid_ds segment;
	struct shm_info info;
	const int last = shmctl(0, SHM_INFO, (void *)&info);

	for (int i = 0; info.used_ids && i <= last; i++) {
		const int id = shmctl(i, SHM_STAT, &segment);

		if (id >= 0)
			shmctl(id, IPC_RMID, NULL);
	}
}

/* ---- a run of a program ---- */

static void in_child(const struct program *program)
{
	const pid_t me = getpid();
	const struct itimerval limit = { .it_value.tv_sec = PROGRAM_SECONDS };

	setpgid(0, 0);
	setitimer(ITIMER_REAL, &limit, NULL);
	if (area) {
		area[0] = 0;
		ioctl(kcov, KCOV_ENABLE, KCOV_TRACE_PC);
	}
	run_program(program);
	if (getpid() != me)
		_exit(0);
	if (area)
		ioctl(kcov, KCOV_DISABLE, 0);
	check_process();
	_exit(0);
}

/* What is wrong after it, or NULL. */
static const char *run(const struct program *program, int how)
{
	pid_t child;

	outcome->complaint[0] = 0;
	child = fork();
	if (child < 0)
		fail("fork");
	if (!child)
		in_child(program);
	setpgid(child, child);
	waitpid(child, NULL, 0);
	/* There may be more than one left, which are ours now. */
	kill(-child, SIGKILL);
	while (wait(NULL) > 0)
		;
	remove_segments();
	if (!outcome->complaint[0])
		check_books(how);
	return outcome->complaint[0] ? outcome->complaint : NULL;
}

/* ---- programs that fail are shortened ---- */

static void show(const char *what, const struct program *program)
{
	static char line[4096];

	print_program(program, line, sizeof(line));
	printf("%s %s\n", what, line);
}

static const char *fails(const struct program *program)
{
	const char *why = NULL;

	for (int i = 0; i < 3 && !why; i++) {
		look_at_books(THOROUGHLY, true);
		why = run(program, THOROUGHLY);
	}
	return why;
}

static void shorten(const struct program *failing)
{
	struct program best = *failing, trial;

	for (int i = best.length - 1; i >= 0 && best.length > 1; i--) {
		trial = best;
		trial.length--;
		memmove(&trial.calls[i], &trial.calls[i + 1],
			(trial.length - i) * sizeof(struct call));
		if (fails(&trial))
			best = trial;
	}
	for (int i = 0; i < best.length; i++) {
		trial = best;
		trial.calls[i].fail = trial.calls[i].aside = 0;
		if (memcmp(&trial, &best, sizeof(best)) && fails(&trial))
			best = trial;
	}
	show("SHORTENED", &best);
}

/* What is left after all of them, or NULL. */
static const char *leaves(const struct program *programs, int n)
{
	look_at_books(THOROUGHLY, true);
	for (int i = 0; i < n; i++)
		run(&programs[i], 0);
	check_books(THOROUGHLY);
	return outcome->complaint[0] ? outcome->complaint : NULL;
}

/* Which of them was it? */
static void find(const struct program *programs, int n, const char *why)
{
	printf("FAILED %s\n", why);
	fflush(stdout);
	for (int i = 0; i < n; i++) {
		const char *again;

		if (n > BATCH && !(i % BATCH) && !leaves(&programs[i], BATCH)) {
			i += BATCH - 1;
			continue;
		}
		again = fails(&programs[i]);
		if (!again)
			continue;
		printf("BY %s\n", again);
		show("PROGRAM", &programs[i]);
		fflush(stdout);
		shorten(&programs[i]);
		return;
	}
	printf("it does not happen again\n");
}

/* ---- the corpus ---- */

#define MOST_KEPT	(1 << 15)

static struct program *corpus;
static int kept;

static void choose(struct program *program)
{
	int at;

	if (kept < 8 || one_in(area ? 20 : 1)) {
		random_program(program);
		return;
	}
	/* The latest ones are the most promising. */
	at = one_in(2) ? (int)below(kept) : kept - 1 - (int)below(kept < 64 ? kept : 64);
	*program = corpus[at];
	mutate(program, &corpus[below(kept)]);
}

static void keep(const struct program *program)
{
	corpus[kept < MOST_KEPT ? kept++ : (int)below(MOST_KEPT)] = *program;
}

/* ---- the run ---- */

static struct program batch[BATCH * THOROUGH];
static unsigned long programs_run, calls_made;

/* The reader has taken what was printed: it gets out of the guest, whatever comes. */
static void flush(void)
{
	int waiting;

	fflush(stdout);
	for (int i = 0; i < 1000; i++) {
		if (ioctl(1, FIONREAD, &waiting) || !waiting)
			break;
		poll(NULL, 0, 1);
	}
}

static void progress(double start)
{
	const double seconds = now() - start;

	printf("%5.0f s: %lu programs (%.0f/s), %lu calls, %d kept, %u places, %u of %u in mremap\n",
	       seconds, programs_run, programs_run / seconds, calls_made, kept, points_seen,
	       sites_seen, sites_known);
	fflush(stdout);
}

/* Of some batches all are one program, which runs out of memory earlier or later. */
static void choose_batch(struct program *programs)
{
	for (int i = 0; i < BATCH; i++)
		choose(&programs[i]);
	if (kept >= 8 && one_in(6))
		fail_in_turn(programs, BATCH);
}

static bool run_batch(struct program *programs)
{
	const char *why;

	choose_batch(programs);
	for (int i = 0; i < BATCH; i++)
		show("run", &programs[i]);
	flush();
	for (int i = 0; i < BATCH; i++) {
		programs_run++;
		calls_made += programs[i].length;
		why = run(&programs[i], 0);
		if (why) {
			find(&programs[i], 1, why);
			return false;
		}
		if (new_steps())
			keep(&programs[i]);
	}
	return true;
}

static bool fuzz(uint64_t seed, double seconds)
{
	const double start = now();
	double told = start;
	bool good = true;
	int n = 0;

	random_state = seed;
	printf("seed %lu\n", seed);
	while (good && now() < start + seconds) {
		good = run_batch(&batch[n * BATCH]);
		if (good && ++n == THOROUGH) {
			check_books(THOROUGHLY);
			good = !outcome->complaint[0];
			if (!good)
				find(batch, n * BATCH, strdup(outcome->complaint));
			n = 0;
		}
		if (now() > told + 10) {
			progress(start);
			told = now();
		}
	}
	progress(start);
	for (uint32_t i = 0; i < POINTS; i++)
		if (points[i])
			printf("at ffffffff%08x\n", points[i]);
	return good;
}

static bool replay(const char *file, int times)
{
	static char line[8192];
	struct program program;
	FILE *in = fopen(file, "re");
	const char *why;

	if (!in)
		fail(file);
	while (fgets(line, sizeof(line), in)) {
		const char *start = strncmp(line, "run ", 4) ? line : line + 4;

		if (!parse_program(start, &program)) {
			printf("cannot read: %s", line);
			return false;
		}
		show("run", &program);
		flush();
		for (int i = 0; i < times; i++) {
			look_at_books(THOROUGHLY, true);
			why = run(&program, THOROUGHLY);
			if (!why)
				continue;
			find(&program, 1, why);
			return false;
		}
	}
	return true;
}

static void prepare(void)
{
	static const char * const settings[][2] = {
		{ "failslab/ignore-gfp-wait", "N" }, { "failslab/verbose", "0" },
		{ "fail_page_alloc/ignore-gfp-wait", "N" },
		{ "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ "fail_page_alloc/min-order", "0" }, { "fail_page_alloc/verbose", "0" },
	};
	static const struct program nothing = { .length = 1, .calls[0].kind = 1 };
	char path[96];

	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s", settings[i][0]);
		write_text(path, settings[i][1]);
	}
	write_text("/proc/sys/vm/max_map_count", "400");
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	corpus = room(MOST_KEPT * sizeof(*corpus));
	outcome = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (outcome == MAP_FAILED)
		fail("no memory");
	prepare_calls();
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	/* What the first ones make for good. */
	look_at_books(THOROUGHLY, true);
	for (int i = 0; i < 4; i++)
		run(&nothing, 0);
	look_at_books(THOROUGHLY, true);
	outcome->complaint[0] = 0;
}

int main(int argc, char **argv)
{
	const char *file = NULL, *site_file = NULL;
	double seconds = 60;
	uint64_t seed = 1;
	int times = 1;
	bool good;

	if (argc > 1 && !strcmp(argv[1], "--exit"))
		return 0;
	for (int i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--seed"))
			seed = strtoull(argv[i + 1], NULL, 10);
		else if (!strcmp(argv[i], "--seconds"))
			seconds = atof(argv[i + 1]);
		else if (!strcmp(argv[i], "--sites"))
			site_file = argv[i + 1];
		else if (!strcmp(argv[i], "--replay"))
			file = argv[i + 1];
		else if (!strcmp(argv[i], "--times"))
			times = atoi(argv[i + 1]);
	}
	prepare_coverage(site_file);
	prepare();
	good = file ? replay(file, times) : fuzz(seed, seconds);
	flush();
	return !good;
}
