// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2) over several mappings at once: all of them move, or nothing has
 * happened. Stock 6.12 moves one mapping at a time.
 *
 * Most tests work on a world of cells of equal size. Text says what is mapped
 * there, one letter a cell, see lay_run(). Every call is compared with a model
 * of it: contents, protection, flags and file offset of every cell, what the
 * process is charged, and if the call is refused, that all is as before.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/magic.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../kselftest_harness.h"
#include "mremap_util.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#define SRC	(WINDOW + GB)
#define FILL	(WINDOW + 40 * GB)
#define KEEP	(FIXED | DONTUNMAP)

#define SKIP_STOCK()							\
	do {								\
		if (expect_base())					\
			SKIP(return, "stock 6.12 moves one mapping at a time"); \
	} while (0)

/* ---- the world ---- */

/* A low and a high half, usually the source and the destination. */
#define CELLS	64
#define HALF	32
#define UP(cell)	(HALF + (cell))

/* Cells that the file is long. */
#define FILE_CELLS	192
#define FILE_ID		0x1000000UL

enum shape {
	PAGES,		/* a cell is a page, tables end amid of them */
	PARTS,		/* a quarter of a page table */
	UNEVEN,		/* the same, and the halves are not congruent */
	TABLES,		/* a page table */
	HUGE,		/* a huge page */
	HUGE_PARTS,	/* a quarter of a huge page */
	DIRECTORIES,	/* half a table of page tables */
	LARGE,		/* 256 MB */
};

enum content {
	ZERO,		/* never touched */
	OWN,		/* stamped */
	FROM_FILE,
};

/* What /proc/self/smaps says of a cell. */
struct attributes {
	bool mapped;
	bool locked;
	char perms[5];
	unsigned long inode;
	unsigned long offset;
	int flags;	/* all other VmFlags, as an index of flag_texts[] */
};

struct cell {
	struct attributes is;
	bool sealed;
	enum content content;
	unsigned long id;
};

/* In kB. */
struct books {
	long size;
	long data;
	long locked;
	long committed;
};

struct world {
	unsigned long base;
	size_t unit;	/* bytes of a cell */
	size_t skew;	/* what the high half is displaced by */
	bool huge;
	bool sparse;	/* cells too large to be charged or locked */
	int fd;
	unsigned long next_id;
	unsigned long next_offset;	/* of the file, in cells */
	unsigned long filled;		/* how far it is stamped */
	struct cell cells[CELLS];
	bool joined[CELLS];	/* one mapping with the cell below */
	struct books rest;	/* of the process, outside of the cells */
	/* Where the kernel chose to put what the last call moved. */
	unsigned long away;
	int nr_away;
	struct cell away_cells[CELLS];
};

static unsigned long cell_addr(const struct world *w, int cell)
{
	return w->base + cell * w->unit + (cell >= HALF ? w->skew : 0);
}

static unsigned long world_end(const struct world *w)
{
	return cell_addr(w, CELLS - 1) + w->unit;
}

/* No range may cross this on its way up from the cell. */
static int end_of_half(const struct world *w, int cell)
{
	return w->skew && cell < HALF ? HALF : CELLS;
}

/* The pages of a cell that are stamped, as offsets in bytes. */
static int nr_spots(const struct world *w)
{
	return w->unit == psize() ? 1 : 3;
}

static size_t spot(const struct world *w, int nr)
{
	const size_t pages = w->unit / psize();
	const size_t where[] = { 0, pages / 2 + 1, pages - 1 };

	return bytes(where[nr]);
}

static void stamp_cell(const struct world *w, unsigned long addr,
		       unsigned long id)
{
	for (int nr = 0; nr < nr_spots(w); nr++)
		stamp(addr + spot(w, nr), id * 4 + nr);
}

static const char *check_contents_at(const struct world *w, unsigned long addr,
				     const struct cell *cell)
{
	const unsigned long id = cell->content == OWN ? cell->id :
		FILE_ID + cell->is.offset / w->unit;
	const char *why = NULL;

	for (int nr = 0; !why && nr < nr_spots(w); nr++) {
		if (cell->content == ZERO)
			why = check_zero(addr + spot(w, nr), psize());
		else
			why = check_stamp(addr + spot(w, nr), id * 4 + nr);
	}
	return why;
}

/* ---- building it ---- */

/* Stamps the file up to that cell. */
static const char *fill_file(struct world *w, unsigned long end)
{
	static char page[1 << 16] __attribute__((aligned(1 << 16)));

	for (; w->filled < end; w->filled++) {
		for (int nr = 0; nr < nr_spots(w); nr++) {
			const off_t where = w->filled * w->unit + spot(w, nr);

			stamp((unsigned long)page,
			      (FILE_ID + w->filled) * 4 + nr);
			if (pwrite(w->fd, page, psize(), where) != psize())
				return "cannot fill a memfd";
		}
	}
	return NULL;
}

static const char *make_world(struct world *w, enum shape shape)
{
	const size_t table = pmd_span();

	*w = (struct world) { .base = SRC, .next_id = 1, .next_offset = 1 };
	switch (shape) {
	case PAGES:
		/* The source, and the destination, lie in two tables each. */
		w->base += table - bytes(10);
		w->unit = psize();
		w->skew = table - bytes(HALF);
		break;
	case UNEVEN:
		w->skew = bytes(3);
		/* fall through */
	case PARTS:
		w->base += table / 4;
		w->unit = table / 4;
		break;
	case HUGE:
		w->huge = true;
		/* fall through */
	case TABLES:
		w->unit = table;
		break;
	case HUGE_PARTS:
		w->huge = true;
		w->unit = table / 4;
		break;
	case DIRECTORIES:
		w->sparse = true;
		w->unit = pud_span() / 2;
		break;
	case LARGE:
		w->unit = 256 * MB;
		break;
	}
	prctl(PR_SET_THP_DISABLE, !w->huge, 0, 0, 0);
	w->fd = memfd_create("mremap_multi", 0);
	if (w->fd < 0 || ftruncate(w->fd, FILE_CELLS * w->unit))
		return "needs memfd_create(2)";
	return NULL;
}

static const char *change_run(const struct world *w, char letter,
			      unsigned long addr, size_t len)
{
	int err = 0;

	switch (tolower(letter)) {
	case 'r':
	case 'q':
		err = mprotect(at(addr), len, PROT_READ);
		break;
	case 'n':
		err = mprotect(at(addr), len, PROT_NONE);
		break;
	case 'd':
		err = madvise(at(addr), len, MADV_DONTDUMP);
		break;
	case 'l':
		err = w->sparse ? 0 : mlock(at(addr), len);
		break;
	}
	if (err)
		return complain("kind %c: errno %d", letter, errno);
	return isupper(letter) && seal(addr, len) ? "needs mseal(2)" : NULL;
}

/* Left untouched: every fourth cell of anonymous memory, every other of files. */
static void fill_cell(struct world *w, int nr, bool anon, bool shared)
{
	struct cell *cell = &w->cells[nr];

	cell->content = anon ? ZERO : FROM_FILE;
	if (shared || nr % (anon ? 4 : 2) == (anon ? 3 : 1))
		return;
	cell->content = OWN;
	cell->id = w->next_id++;
	stamp_cell(w, cell_addr(w, nr), cell->id);
}

/*
 * Maps cells of one kind, as one mapping. Anonymous and private, if not said
 * otherwise:
 *
 *	w  for reading and writing	s  shared, of a file
 *	r  read only			q  the same, read only
 *	n  no access			p  private, of a file
 *	o  MAP_NORESERVE		.  nothing
 *	d  MADV_DONTDUMP
 *	l  locked
 *	g  MAP_GROWSDOWN
 *
 * A capital letter means that it is sealed.
 */
static const char *lay_run(struct world *w, int first, int nr, char letter)
{
	const unsigned long addr = cell_addr(w, first);
	const char kind = tolower(letter);
	const bool shared = strchr("sq", kind);
	const bool anon = !strchr("sqp", kind);
	int flags = shared ? MAP_SHARED : MAP_PRIVATE;
	const char *why = NULL;
	off_t offset = 0;

	if (anon) {
		flags |= MAP_ANONYMOUS;
	} else {
		offset = w->next_offset * w->unit;
		/* Runs of the same kind, side by side, stay two mappings. */
		w->next_offset += nr + 1;
		why = fill_file(w, w->next_offset);
	}
	if (why)
		return why;
	if (kind == 'o' || (!shared && w->sparse))
		flags |= MAP_NORESERVE;
	if (kind == 'g')
		flags |= MAP_GROWSDOWN;

	if (map_at(addr, nr * w->unit, PROT_READ | PROT_WRITE, flags,
		   anon ? -1 : w->fd, offset) != addr)
		return complain("cell %d: cannot map: errno %d", first, errno);
	if (anon && w->huge && madvise(at(addr), nr * w->unit, MADV_HUGEPAGE))
		return "needs transparent huge pages";
	for (int i = first; i < first + nr; i++) {
		w->cells[i] = (struct cell) { .sealed = isupper(letter) };
		fill_cell(w, i, anon, shared);
	}
	return change_run(w, letter, addr, nr * w->unit);
}

static const char *lay(struct world *w, int first, const char *text)
{
	const char *why = NULL;

	while (*text && !why) {
		int nr = 1;

		while (text[nr] == *text)
			nr++;
		if (*text != '.')
			why = lay_run(w, first, nr, *text);
		first += nr;
		text += nr;
	}
	return why;
}

/* ---- looking at it ---- */

/* Numbers for what VmFlags say, but for those that a call changes by itself. */
static char flag_texts[64][128];

static void drop_flag(char *flags, const char *flag)
{
	char *found = strstr(flags, flag);

	if (found)
		memmove(found, found + 3, strlen(found + 3) + 1);
}

static int number_flags(const char *flags)
{
	char text[128];
	int nr = 0;

	snprintf(text, sizeof(text), "%s", flags);
	drop_flag(text, " lo ");
	drop_flag(text, " sd ");
	while (nr < 63 && *flag_texts[nr] && strcmp(flag_texts[nr], text))
		nr++;
	memcpy(flag_texts[nr], text, sizeof(text));
	return nr;
}

static bool has_flag(const struct cell *cell, const char *flag)
{
	return strstr(flag_texts[cell->is.flags], flag);
}

static void read_attributes(const struct smap *map, unsigned long addr,
			    struct attributes *out)
{
	const struct vma *vma = &map->vma;

	*out = (struct attributes) {
		.mapped = true,
		.locked = strstr(map->flags, " lo "),
		.inode = vma->inode,
		.offset = vma->inode ? vma->offset + addr - vma->start : 0,
		.flags = number_flags(map->flags),
	};
	memcpy(out->perms, vma->perms, sizeof(out->perms));
}

/* The cells from addr on, and which of them are one mapping with the last. */
static const char *look(unsigned long addr, size_t unit, int nr,
			struct attributes *is, bool *joined)
{
	static struct smap maps[256];
	const int count = read_smaps(addr, addr + nr * unit, maps, 256);
	int map = 0, last = -1;

	if (count < 0 || count > 256)
		return "cannot read /proc/self/smaps";
	for (int i = 0; i < nr; i++, addr += unit) {
		is[i] = (struct attributes) { 0 };
		joined[i] = false;
		while (map < count && maps[map].vma.end <= addr)
			map++;
		if (map == count || maps[map].vma.start >= addr + unit)
			continue;
		if (maps[map].vma.start > addr ||
		    maps[map].vma.end < addr + unit)
			return complain("%#lx: mapped in part", addr);
		read_attributes(&maps[map], addr, &is[i]);
		joined[i] = map == last;
		last = map;
	}
	return NULL;
}

static const char *look_at_world(struct world *w, struct attributes *is)
{
	const char *why = look(w->base, w->unit, HALF, is, w->joined);

	why = why ?: look(cell_addr(w, HALF), w->unit, CELLS - HALF, is + HALF,
			  w->joined + HALF);
	if (!why && !w->skew && is[HALF].mapped && is[HALF - 1].mapped) {
		struct vma vma;

		find_vma(cell_addr(w, HALF), &vma);
		w->joined[HALF] = vma.start < cell_addr(w, HALF);
	}
	return why;
}

static void add_up(const struct world *w, const struct cell *cell,
		   struct books *sum)
{
	const long kb = w->unit / KB;

	if (!cell->is.mapped)
		return;
	sum->size += kb;
	if (cell->is.perms[1] == 'w' && cell->is.perms[3] == 'p' &&
	    !has_flag(cell, " gd "))
		sum->data += kb;
	if (cell->is.locked)
		sum->locked += kb;
	if (has_flag(cell, " ac "))
		sum->committed += kb;
}

static struct books sum_up(const struct world *w)
{
	struct books sum = { 0 };

	for (int i = 0; i < CELLS; i++)
		add_up(w, &w->cells[i], &sum);
	for (int i = 0; i < w->nr_away; i++)
		add_up(w, &w->away_cells[i], &sum);
	return sum;
}

static struct books read_books(void)
{
	struct counters now;

	read_counters(&now);
	return (struct books) {
		.size = now.size,
		.data = now.data,
		.locked = now.locked,
		.committed = committed_kb(),
	};
}

/* Takes what is there for what should be there. */
static const char *settle(struct world *w)
{
	struct attributes is[CELLS];
	const char *why = look_at_world(w, is);
	struct books sum, now;

	if (why)
		return why;
	for (int i = 0; i < CELLS; i++)
		w->cells[i].is = is[i];
	sum = sum_up(w);
	read_books();
	now = read_books();
	w->rest = (struct books) {
		.size = now.size - sum.size,
		.data = now.data - sum.data,
		.locked = now.locked - sum.locked,
		.committed = now.committed - sum.committed,
	};
	return NULL;
}

static const char *build(struct world *w, enum shape shape, const char *low,
			 const char *high)
{
	const char *why = make_world(w, shape);

	why = why ?: lay(w, 0, low);
	why = why ?: lay(w, HALF, high);
	return why ?: settle(w);
}

/* ---- comparing it with what it should be ---- */

static const char *check_attributes(int nr, const struct attributes *is,
				    const struct attributes *want)
{
	if (is->mapped != want->mapped)
		return complain("cell %d is %smapped", nr,
				is->mapped ? "" : "not ");
	if (strcmp(is->perms, want->perms))
		return complain("cell %d: %s, not %s", nr, is->perms,
				want->perms);
	if (is->locked != want->locked)
		return complain("cell %d is %slocked", nr,
				is->locked ? "" : "not ");
	if (is->inode != want->inode || is->offset != want->offset)
		return complain("cell %d: offset %#lx of inode %lu, not %#lx of %lu",
				nr, is->offset, is->inode, want->offset,
				want->inode);
	if (is->flags != want->flags)
		return complain("cell %d: flags%s, not%s", nr,
				flag_texts[is->flags], flag_texts[want->flags]);
	return NULL;
}

static const char *check_books(const struct world *w)
{
	const struct books sum = sum_up(w), now = read_books();

	if (now.size != w->rest.size + sum.size)
		return complain("VmSize %ld, not %ld", now.size,
				w->rest.size + sum.size);
	if (now.data != w->rest.data + sum.data)
		return complain("VmData %ld, not %ld", now.data,
				w->rest.data + sum.data);
	if (now.locked != w->rest.locked + sum.locked)
		return complain("VmLck %ld, not %ld", now.locked,
				w->rest.locked + sum.locked);
	if (now.committed != w->rest.committed + sum.committed)
		return complain("Committed_AS %ld, not %ld", now.committed,
				w->rest.committed + sum.committed);
	return NULL;
}

static const char *check_away(const struct world *w)
{
	struct attributes is[CELLS];
	bool joined[CELLS];
	const char *why = look(w->away, w->unit, w->nr_away, is, joined);

	for (int i = 0; !why && i < w->nr_away; i++) {
		const struct cell *cell = &w->away_cells[i];

		why = check_attributes(i, &is[i], &cell->is);
		if (!why && is[i].perms[0] == 'r')
			why = check_contents_at(w, w->away + i * w->unit, cell);
	}
	return why;
}

/* All but the contents. */
static const char *check_layout(struct world *w)
{
	struct attributes is[CELLS];
	const char *why = look_at_world(w, is);

	for (int i = 0; !why && i < CELLS; i++)
		why = check_attributes(i, &is[i], &w->cells[i].is);
	return why;
}

static const char *check_contents(const struct world *w)
{
	const char *why = NULL;

	for (int i = 0; !why && i < CELLS; i++)
		if (w->cells[i].is.perms[0] == 'r')
			why = check_contents_at(w, cell_addr(w, i),
						&w->cells[i]);
	return why;
}

static const char *check_world(struct world *w)
{
	const char *why = check_layout(w) ?: check_contents(w);

	if (!why && w->nr_away)
		why = check_away(w);
	return why ?: check_books(w);
}

/* The last check: what could not be read until now, is made readable. */
static const char *reveal(struct world *w)
{
	const char *why = NULL;

	for (int i = 0; !why && i < CELLS; i++) {
		const unsigned long addr = cell_addr(w, i);

		if (!w->cells[i].is.mapped || w->cells[i].is.perms[0] == 'r')
			continue;
		if (mprotect(at(addr), w->unit, PROT_READ))
			return "mprotect() failed";
		why = check_contents_at(w, addr, &w->cells[i]);
	}
	return why;
}

/* ---- the model ---- */

struct call {
	int from;
	int old;
	int new;
	unsigned long flags;
	int to;
};

static bool fixed(const struct call *call)
{
	return call->flags & MREMAP_FIXED;
}

static bool keeps(const struct call *call)
{
	return call->flags & MREMAP_DONTUNMAP;
}

static int kept_cells(const struct call *call)
{
	return call->old < call->new ? call->old : call->new;
}

/* May it move more than one mapping? */
static bool is_multi(const struct call *call)
{
	return fixed(call) && call->old == call->new;
}

static bool overlaps(const struct call *call)
{
	return call->from + call->old > call->to &&
	       call->to + call->new > call->from;
}

static bool any_sealed(const struct world *w, int first, int end)
{
	for (int i = first; i < end; i++)
		if (w->cells[i].sealed)
			return true;
	return false;
}

static bool one_mapping(const struct world *w, int first, int nr)
{
	for (int i = first + 1; i < first + nr; i++)
		if (!w->joined[i])
			return false;
	return true;
}

/* Is there room to grow where it is? */
static bool fits(const struct world *w, const struct call *call)
{
	const int end = call->from + call->old;

	for (int i = end; i < call->from + call->new; i++)
		if (w->cells[i].is.mapped)
			return false;
	return true;
}

#define ERROR(error)	(1U << (error))

static unsigned int errors_of_several(const struct world *w,
				      const struct call *call)
{
	unsigned int errors = 0;

	for (int i = 0; i < call->old; i++) {
		if (!w->cells[call->from + i].is.mapped)
			continue;
		if (w->cells[call->from + i].sealed ||
		    w->cells[call->to + i].sealed)
			errors |= ERROR(EPERM);
	}
	return errors;
}

static unsigned int errors_of_one(const struct world *w,
				  const struct call *call)
{
	const int kept_end = call->from + kept_cells(call);
	const bool forced = fixed(call) || keeps(call);
	unsigned int errors = 0;

	if (w->cells[call->from].sealed)
		errors |= ERROR(EPERM);
	if (any_sealed(w, kept_end, call->from + call->old))
		errors |= ERROR(EPERM);
	if (fixed(call) && any_sealed(w, call->to, call->to + call->new))
		errors |= ERROR(EPERM);
	/* Shrinking in place looks at nothing but what it unmaps. */
	if ((forced || call->new > call->old) &&
	    !one_mapping(w, call->from, kept_cells(call)))
		errors |= ERROR(EFAULT);
	if (!call->old && w->cells[call->from].is.perms[3] == 'p')
		errors |= ERROR(EINVAL);
	if (!call->old && call->to == call->from)
		errors |= ERROR(EFAULT);
	if (!call->flags && call->new > call->old && !fits(w, call))
		errors |= ERROR(ENOMEM);
	return errors;
}

/* All that is wrong with a call: the kernel may tell any of it. */
static unsigned int errors_of(const struct world *w, const struct call *call)
{
	unsigned int errors = 0;

	if (!w->cells[call->from].is.mapped)
		errors |= ERROR(EFAULT);
	if (fixed(call) && overlaps(call))
		errors |= ERROR(EINVAL);
	return errors | (is_multi(call) ? errors_of_several(w, call) :
					  errors_of_one(w, call));
}

/* What is left of a cell whose pages have moved away. */
static struct cell emptied(const struct cell *cell)
{
	struct cell left = *cell;

	left.content = cell->is.inode ? FROM_FILE : ZERO;
	left.is.locked = false;
	return left;
}

/* The cell that many cells behind, where a mapping grows. */
static struct cell grown(const struct world *w, const struct cell *first,
			 int behind)
{
	struct cell cell = *first;

	cell.content = cell.is.inode ? FROM_FILE : ZERO;
	cell.is.offset += cell.is.inode ? behind * w->unit : 0;
	return cell;
}

static void apply_several(struct world *w, const struct call *call)
{
	for (int i = 0; i < call->old; i++) {
		struct cell *src = &w->cells[call->from + i];

		if (!src->is.mapped)
			continue;
		w->cells[call->to + i] = *src;
		*src = keeps(call) ? emptied(src) : (struct cell) { 0 };
	}
}

static void apply_one(struct world *w, const struct call *call,
		      struct cell *dst)
{
	struct cell *src = &w->cells[call->from];
	const struct cell first = *src;
	struct cell result[CELLS];

	for (int i = 0; i < call->new; i++)
		result[i] = i < call->old ? src[i] : grown(w, &first, i);
	for (int i = 0; i < call->old; i++)
		src[i] = keeps(call) ? emptied(&src[i]) : (struct cell) { 0 };
	memcpy(dst, result, call->new * sizeof(*dst));
}

static bool stays_in_place(const struct world *w, const struct call *call)
{
	const int end = call->from + call->old;

	if (call->flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))
		return false;
	if (call->new <= call->old)
		return true;
	return fits(w, call) && (end == CELLS || !w->joined[end]);
}

static void apply(struct world *w, const struct call *call, unsigned long ret)
{
	if (is_multi(call)) {
		apply_several(w, call);
	} else if (fixed(call)) {
		apply_one(w, call, &w->cells[call->to]);
	} else if (stays_in_place(w, call)) {
		apply_one(w, call, &w->cells[call->from]);
	} else {
		w->away = ret;
		w->nr_away = call->new;
		apply_one(w, call, w->away_cells);
	}
}

/* ---- a call, and all that is to be checked of it ---- */

static const char *explain(const struct call *call, const char *why)
{
	static char text[1024];

	if (!why)
		return NULL;
	snprintf(text, sizeof(text),
		 "mremap(cell %d, %d, %d, %#lx, cell %d): %s", call->from,
		 call->old, call->new, call->flags, call->to, why);
	return text;
}

static int fail_fd = -1;
static int fail_nth;
static bool has_failed;

static unsigned long make_call(const struct world *w, const struct call *call)
{
	const unsigned long addr = cell_addr(w, call->from);
	const unsigned long to = fixed(call) ? cell_addr(w, call->to) : 0;
	unsigned long ret;

	if (fail_fd >= 0)
		arm_fail_nth(fail_fd, fail_nth);
	ret = do_mremap(addr, call->old * w->unit, call->new * w->unit,
			call->flags, to);
	if (fail_fd >= 0)
		has_failed = disarm_fail_nth(fail_fd);
	return ret;
}

static const char *check_place(const struct world *w, const struct call *call,
			       unsigned long ret)
{
	unsigned long want = 0;

	if (fixed(call))
		want = cell_addr(w, call->to);
	else if (stays_in_place(w, call))
		want = cell_addr(w, call->from);
	if (want && ret != want)
		return complain("returns %#lx, not %#lx", ret, want);
	if (!want && ret + call->new * w->unit > w->base && ret < world_end(w))
		return complain("returns %#lx, which is not free", ret);
	return NULL;
}

static const char *check_success(struct world *w, const struct call *call,
				 unsigned long ret)
{
	const char *why = check_place(w, call, ret);

	if (why)
		return why;
	apply(w, call, ret);
	why = check_world(w);
	if (w->nr_away)
		munmap(at(w->away), w->nr_away * w->unit);
	w->nr_away = 0;
	return why;
}

static const char *check_refusal(struct world *w)
{
	const char *why = check_state() ?: check_world(w);

	return why ? complain("refused, but %s", why) : NULL;
}

/* Makes a call that may fail for one of these reasons, must if there is any. */
static const char *try_call(struct world *w, const struct call *call,
			    unsigned int errors)
{
	unsigned long ret;
	int err;

	if (errors)
		save_state();
	ret = make_call(w, call);
	err = error_of(ret);
	if (!err && errors)
		return explain(call, "was not refused");
	if (err && !(errors & ERROR(err)))
		return explain(call, complain("errno %d", err));
	return explain(call, err ? check_refusal(w) :
				   check_success(w, call, ret));
}

/* The model says how it comes out. */
static const char *call_as_modelled(struct world *w, const struct call *call)
{
	return try_call(w, call, errors_of(w, call));
}

static const char *call_refused(struct world *w, const struct call *call,
				int error)
{
	return try_call(w, call, ERROR(error));
}

/* ---- rows: one layout, one call ---- */

FIXTURE(row)
{
	struct world w;
};

FIXTURE_VARIANT(row)
{
	const char *low;
	const char *high;
	struct call call;
};

FIXTURE_SETUP(row)
{
	SKIP_STOCK();
}

FIXTURE_TEARDOWN(row)
{
}

#define CALL_ROW(name, low, high, from, old, new, flags, to)		\
	FIXTURE_VARIANT_ADD(row, name) {				\
		low, high, { from, old, new, flags, to },		\
	}

/* A move of nr cells. */
#define ROW(name, low, high, from, nr, to)				\
	CALL_ROW(name, low, high, from, nr, nr, FIXED, to)

/* What moves. */
ROW(two, "wr", "", 0, 2, UP(0));
ROW(every_kind, "wwrrnnooddllggssqqpp", "", 0, 20, UP(0));
ROW(every_kind_over_another, "wrnodlgsqpwrnodlgsqp", "nodlgsqpwrnodlgsqpwr",
    0, 20, UP(0));
ROW(alternating, "wrwrwrwrwrwrwrwr", "", 0, 16, UP(0));
ROW(files_of_other_offsets, "ssqqssppqqpp", "pppppp", 0, 12, UP(0));

/* First and last mapping are split: what is outside of the range stays. */
ROW(part_of_first, "wwwwrr", "", 2, 4, UP(2));
ROW(part_of_last, "wwrrrr", "", 0, 4, UP(0));
ROW(part_of_both, "wwwwrwwww", "", 2, 5, UP(2));
ROW(part_of_both_files, "sssspqqqq", "wwwwwwwww", 2, 5, UP(2));
ROW(part_of_both_locked, "llllrllll", "", 3, 3, UP(3));
ROW(part_of_one, "wwwwww", "", 2, 2, UP(2));
ROW(beside_sealed, "WwrW", "RddR", 1, 2, UP(1));

/* Gaps are kept. */
ROW(inner_gap, "ww..rr", "", 0, 6, UP(0));
ROW(inner_gap_over_mapping, "ww..rr", "pppppp", 0, 6, UP(0));
ROW(inner_gap_over_others, "ww..rr", "ss.qlw", 0, 6, UP(0));
ROW(inner_gap_in_what_fits, "ww..rr", "..dd..", 0, 6, UP(0));
ROW(many_gaps, "w.r.s.p..w", "llllllllll", 0, 10, UP(0));
ROW(trailing_gap, "wwr...", "dddddd", 0, 6, UP(0));
ROW(trailing_gap_of_one, "w...", "dddd", 0, 4, UP(0));
ROW(trailing_gap_over_many, "w", "drdrdr.pps.q", 0, 12, UP(0));
ROW(trailing_gap_of_part, "www...", "dddddd", 1, 5, UP(1));
ROW(sealed_in_inner_gap, "w.r", "dWd", 0, 3, UP(0));
ROW(sealed_in_trailing_gap, "wr.", "ddW", 0, 3, UP(0));
ROW(sealed_behind_one, "w..", "dRS", 0, 3, UP(0));

/* Destinations. */
ROW(middle_of_destination, "wsr", "dddddddd", 0, 3, UP(2));
ROW(two_destinations, "wsr", "ddpp", 0, 3, UP(1));
ROW(hole_in_destination, "wsrw", "d..p", 0, 4, UP(0));
ROW(locked_destination, "wsr", "lllll", 0, 3, UP(1));
ROW(like_its_new_neighbours, "wr", "w..r", 0, 2, UP(1));
ROW(just_below, "....wrs", "", 4, 3, 1);
ROW(just_above, "wrs", "", 0, 3, 3);
ROW(just_below_over, "pppdwrs", "", 4, 3, 1);
ROW(just_above_over, "wrsdppp", "", 0, 3, 3);
ROW(just_above_with_gap, "w.rddd", "", 0, 3, 3);
ROW(just_below_with_gap, "dddw.r", "", 3, 3, 0);
ROW(just_above_trailing_gap, "wr..dddd", "", 0, 4, 4);
ROW(down, "dd", "wwrs", UP(0), 4, 0);
ROW(just_above_in_own_mapping, "wrrrrr", "", 0, 2, 2);
ROW(just_below_in_own_mapping, "wwwwr", "", 3, 2, 1);

/* These work as they do for one mapping. */
CALL_ROW(shrink_to_one, "wwr.s", "ddd", 0, 5, 1, FIXED, UP(1));
CALL_ROW(shrink_here, "wwr.s", "", 0, 5, 1, 0, 0);
CALL_ROW(same_size_here, "wr.s", "", 0, 4, 4, MREMAP_MAYMOVE, 0);

/* Once there and back, then twice with the old place kept, then once more. */
static const char *move_about(struct world *w, const struct call *there)
{
	struct call step = *there;
	const char *why;

	step.from = there->to;
	step.to = there->from;
	why = call_as_modelled(w, &step);
	step = *there;
	step.flags = KEEP;
	for (int i = 0; !why && i < 2; i++)
		why = call_as_modelled(w, &step);
	return why ?: call_as_modelled(w, there);
}

static void run_row(META, FIXTURE_DATA(row) *self,
		    const FIXTURE_VARIANT(row) *row, enum shape shape)
{
	struct world *w = &self->w;

	ASSERT_OK(build(w, shape, row->low, row->high));
	ASSERT_OK(check_world(w));
	ASSERT_EQ(0U, errors_of(w, &row->call));
	ASSERT_OK(call_as_modelled(w, &row->call));
	if (is_multi(&row->call))
		ASSERT_OK(move_about(w, &row->call));
	EXPECT_OK(reveal(w));
}

TEST_F(row, pages_mended)
{
	run_row(_metadata, self, variant, PAGES);
}

TEST_F(row, parts_of_tables_mended)
{
	run_row(_metadata, self, variant, PARTS);
}

TEST_F(row, uneven_mended)
{
	run_row(_metadata, self, variant, UNEVEN);
}

TEST_F(row, tables_mended)
{
	run_row(_metadata, self, variant, TABLES);
}

TEST_F(row, huge_pages_mended)
{
	run_row(_metadata, self, variant, HUGE);
}

TEST_F(row, directories_mended)
{
	run_row(_metadata, self, variant, DIRECTORIES);
}

/* ---- refusals: the same, and nothing changes ---- */

FIXTURE(refusal)
{
	struct world w;
};

FIXTURE_VARIANT(refusal)
{
	const char *low;
	const char *high;
	struct call call;
	int error;
};

FIXTURE_SETUP(refusal)
{
	SKIP_STOCK();
}

FIXTURE_TEARDOWN(refusal)
{
}

#define CALL_REFUSAL(name, low, high, from, old, new, flags, to, error)	\
	FIXTURE_VARIANT_ADD(refusal, name) {				\
		low, high, { from, old, new, flags, to }, error,	\
	}

#define REFUSAL(name, low, high, from, nr, to, error)			\
	CALL_REFUSAL(name, low, high, from, nr, nr, FIXED, to, error)

/* No start. */
REFUSAL(gap_at_start, ".wr", "ddd", 0, 3, UP(0), EFAULT);
REFUSAL(nothing_there, "...w", "ddd", 0, 3, UP(0), EFAULT);

/* Overlap, be it only of gaps. */
REFUSAL(overlap_above, "wrsddd", "", 0, 3, 2, EINVAL);
REFUSAL(overlap_below, "ddwrs", "", 2, 3, 0, EINVAL);
REFUSAL(overlap_itself, "wrs", "", 0, 3, 0, EINVAL);
REFUSAL(overlap_of_gaps, "wr..ddd", "", 0, 4, 3, EINVAL);
REFUSAL(overlap_one_with_gap, "w...ddd", "", 0, 4, 2, EINVAL);

/* A seal anywhere in the source, or in what is to be replaced. */
REFUSAL(sealed_first, "Wrw", "ddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_second, "wRw", "ddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_last, "wrW", "ddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_last_of_many, "wrsplgdorwrwrwrS", "ppppppdddddddddd", 0, 16,
	UP(0), EPERM);
REFUSAL(sealed_part_of_first, "WWWr", "dddd", 2, 2, UP(2), EPERM);
REFUSAL(sealed_part_of_last, "wrWWW", "ddddd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_after_gap, "w..W", "dddd", 0, 4, UP(0), EPERM);
REFUSAL(sealed_before_gap, "W...", "dddd", 0, 4, UP(0), EPERM);
REFUSAL(sealed_after_split, "wwwrSw", "dddddd", 2, 3, UP(1), EPERM);
REFUSAL(sealed_destination_first, "wrs", "Wdd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_second, "wrs", "dWd", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_last, "wrs", "ddW", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_reaching_in, "wrs", "SSSdd", 0, 3, UP(2), EPERM);
REFUSAL(sealed_destination_reaching_out, "wrs", "ddWWW", 0, 3, UP(0), EPERM);
REFUSAL(sealed_destination_from_gap_on, "w.rs", "dWWd", 0, 4, UP(0), EPERM);
REFUSAL(sealed_destination_just_above, "wrsdRd", "", 0, 3, 3, EPERM);

/* Only moves of the same size to a given place. */
CALL_REFUSAL(grow, "wr", "ddd", 0, 2, 3, FIXED, UP(0), EFAULT);
CALL_REFUSAL(grow_into_gap, "w.", "ddd", 0, 2, 3, FIXED, UP(0), EFAULT);
CALL_REFUSAL(grow_anywhere, "wr", "", 0, 2, 3, MREMAP_MAYMOVE, 0, EFAULT);
CALL_REFUSAL(grow_here, "wr", "", 0, 2, 3, 0, 0, EFAULT);
CALL_REFUSAL(shrink_to_two, "wrs", "ddd", 0, 3, 2, FIXED, UP(0), EFAULT);
CALL_REFUSAL(shrink_to_gap, "w.s", "ddd", 0, 3, 2, FIXED, UP(0), EFAULT);
CALL_REFUSAL(dontunmap_anywhere, "wr", "", 0, 2, 2, DONTUNMAP, 0, EFAULT);
CALL_REFUSAL(dontunmap_anywhere_gap, "w.", "", 0, 2, 2, DONTUNMAP, 0, EFAULT);

/* It is refused however often it is asked, and with MREMAP_DONTUNMAP, too. */
static const char *refused_again(struct world *w, const struct call *call,
				 int error)
{
	struct call keep = *call;
	const char *why = call_refused(w, call, error);

	if (why || !is_multi(call))
		return why;
	keep.flags |= MREMAP_DONTUNMAP;
	return call_refused(w, &keep, error);
}

static void run_refusal(META, FIXTURE_DATA(refusal) *self,
			const FIXTURE_VARIANT(refusal) *row, enum shape shape)
{
	struct world *w = &self->w;

	ASSERT_OK(build(w, shape, row->low, row->high));
	ASSERT_OK(check_world(w));
	ASSERT_EQ(ERROR(row->error), errors_of(w, &row->call));
	ASSERT_OK(call_refused(w, &row->call, row->error));
	ASSERT_OK(refused_again(w, &row->call, row->error));
	EXPECT_OK(reveal(w));
}

TEST_F(refusal, pages_mended)
{
	run_refusal(_metadata, self, variant, PAGES);
}

TEST_F(refusal, huge_pages_mended)
{
	run_refusal(_metadata, self, variant, HUGE);
}

/* ---- random layouts and calls, all of them modelled ---- */

#define SEEDS	6
#define CALLS	14

FIXTURE(random)
{
};

FIXTURE_VARIANT(random)
{
	enum shape shape;
	unsigned long seed;
};

FIXTURE_VARIANT_ADD(random, pages_1) { PAGES, 1000 };
FIXTURE_VARIANT_ADD(random, pages_2) { PAGES, 2000 };
FIXTURE_VARIANT_ADD(random, pages_3) { PAGES, 3000 };
FIXTURE_VARIANT_ADD(random, parts_of_tables_1) { PARTS, 4000 };
FIXTURE_VARIANT_ADD(random, parts_of_tables_2) { PARTS, 5000 };
FIXTURE_VARIANT_ADD(random, uneven_1) { UNEVEN, 6000 };
FIXTURE_VARIANT_ADD(random, uneven_2) { UNEVEN, 7000 };
FIXTURE_VARIANT_ADD(random, tables) { TABLES, 8000 };
FIXTURE_VARIANT_ADD(random, huge_pages) { HUGE, 9000 };
FIXTURE_VARIANT_ADD(random, parts_of_huge_pages_1) { HUGE_PARTS, 10000 };
FIXTURE_VARIANT_ADD(random, parts_of_huge_pages_2) { HUGE_PARTS, 11000 };
FIXTURE_VARIANT_ADD(random, directories) { DIRECTORIES, 12000 };

FIXTURE_SETUP(random)
{
	SKIP_STOCK();
}

FIXTURE_TEARDOWN(random)
{
}

static uint64_t random_state;

/* Below the limit. */
static int pick(int limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 20) % limit;
}

static bool one_in(int nr)
{
	return pick(nr) == 0;
}

static void pick_layout(char *text, bool seals, int longest)
{
	static const char kinds[] = "wwwwwwrrrnoodlgsssqpp........";
	int cell = 0;

	while (cell < HALF) {
		char letter = kinds[pick(sizeof(kinds) - 1)];

		if (seals && one_in(8) && strchr("wrs", letter))
			letter = toupper(letter);
		for (int run = 1 + pick(longest); run && cell < HALF; run--)
			text[cell++] = letter;
	}
	text[HALF] = '\0';
}

/* Usually where something is mapped. */
static int pick_start(const struct world *w)
{
	int cell = pick(CELLS);

	while (!w->cells[cell].is.mapped && !one_in(12))
		cell = pick(CELLS);
	return cell;
}

static int pick_length(const struct world *w, int from, int most)
{
	const int room = end_of_half(w, from) - from;

	if (most > room)
		most = room;
	return 1 + pick(most);
}

static void pick_place(const struct world *w, struct call *call)
{
	do {
		call->to = pick(CELLS);
	} while (call->to + call->new > end_of_half(w, call->to) ||
		 (overlaps(call) && !one_in(12)));
}

/* Does the file, and the place, have so many cells from there on? */
static bool has_room(const struct world *w, int from, int cells)
{
	const struct attributes *is = &w->cells[from].is;

	if (from + cells > end_of_half(w, from))
		return false;
	return !is->inode || is->offset / w->unit + cells <= w->filled;
}

static void pick_move(const struct world *w, struct call *call)
{
	call->from = pick_start(w);
	call->old = pick_length(w, call->from, one_in(3) ? HALF / 2 : 7);
	call->new = call->old;
	call->flags = one_in(3) ? KEEP : FIXED;
	pick_place(w, call);
}

static void pick_resize(const struct world *w, struct call *call)
{
	const unsigned long flags[] = { 0, MREMAP_MAYMOVE, FIXED };

	call->from = pick_start(w);
	call->old = pick_length(w, call->from, 4);
	call->new = 1 + pick(6);
	call->flags = flags[pick(3)];
	if (one_in(6) && call->flags == FIXED)
		call->old = 0;
	if (one_in(6)) {
		call->new = call->old;
		call->flags = DONTUNMAP;
	}
	call->to = 0;
	if (fixed(call))
		pick_place(w, call);
}

static void pick_call(const struct world *w, struct call *call)
{
	do {
		*call = (struct call) { 0 };
		if (one_in(3))
			pick_resize(w, call);
		else
			pick_move(w, call);
	} while (!call->new || !has_room(w, call->from, call->new));
}

/* New contents, where there may be some. */
static void write_somewhere(struct world *w)
{
	for (int i = 0; i < CELLS; i++) {
		struct cell *cell = &w->cells[i];

		if (strcmp(cell->is.perms, "rw-p") || !one_in(10))
			continue;
		cell->content = OWN;
		cell->id = w->next_id++;
		stamp_cell(w, cell_addr(w, i), cell->id);
	}
}

/* Many small mappings: the map count may be what refuses the call. */
static bool near_map_count(const struct world *w, const struct call *call)
{
	const int room = read_long("/proc/sys/vm/max_map_count") - count_vmas();
	int mappings = 1;

	for (int i = 1; i < call->old; i++)
		mappings += w->cells[call->from + i].is.mapped &&
			    !w->joined[call->from + i];
	return room < 3 * mappings + 8;
}

static const char *random_calls(struct world *w)
{
	const char *why = NULL;

	for (int nr = 0; !why && nr < CALLS; nr++) {
		struct call call;

		write_somewhere(w);
		pick_call(w, &call);
		if (near_map_count(w, &call))
			continue;
		why = call_as_modelled(w, &call);
		if (why)
			why = complain("call %d: %s", nr, why);
	}
	return why ?: reveal(w);
}

/* Ends when it is told to, with its own copy of all cells as it was. */
static pid_t fork_sharer(META, const struct world *w, int go)
{
	const pid_t child = fork();
	const char *why;
	char byte;

	if (child)
		return child;
	if (read(go, &byte, 1) != 1)
		_exit(0);
	why = check_contents(w);
	if (why)
		TH_LOG("child's copy: %s", why);
	_exit(!!why);
}

static const char *run_seed(META, struct world *w, enum shape shape,
			    unsigned long seed)
{
	const int longest = w->huge ? 8 : 4;
	char low[HALF + 1], high[HALF + 1];
	const char *why;
	int go[2], status;
	pid_t child;

	random_state = seed * 0x9e3779b97f4a7c15ULL + 1;
	pick_layout(low, seed % 3 == 0, longest);
	pick_layout(high, seed % 3 == 0, longest);
	why = build(w, shape, low, high);
	/* Also what the last of them may grow by. */
	why = why ?: fill_file(w, w->next_offset + 16);
	if (why || pipe2(go, O_CLOEXEC))
		return why ?: "no pipe";
	child = fork_sharer(_metadata, w, go[0]);
	why = settle(w) ?: random_calls(w);
	if (why)
		TH_LOG("seed %lu: %s %s", seed, low, high);
	if (write(go[1], "", 1) != 1 || waitpid(child, &status, 0) != child)
		return why ?: "lost a child";
	return why ?: status ? "child's copy has changed" : NULL;
}

/* What is sealed goes away with the process only. */
static bool seed_is_fine(META, struct world *w, enum shape shape,
			 unsigned long seed)
{
	int status;
	pid_t child = fork();

	if (!child) {
		const char *why = run_seed(_metadata, w, shape, seed);

		if (why)
			TH_LOG("seed %lu: %s", seed, why);
		_exit(!!why);
	}
	return waitpid(child, &status, 0) == child && !status;
}

TEST_F_TIMEOUT(random, calls_mended, 300)
{
	static struct world w;
	const char *more = getenv("MREMAP_SEEDS");
	const unsigned long seeds = more ? strtoul(more, NULL, 10) : SEEDS;

	for (unsigned long nr = 0; nr < seeds; nr++)
		ASSERT_TRUE(seed_is_fine(_metadata, &w, variant->shape,
					 variant->seed + nr));
}

/* ---- limits ---- */

FIXTURE(multi)
{
	struct world w;
};

FIXTURE_SETUP(multi)
{
	SKIP_STOCK();
}

FIXTURE_TEARDOWN(multi)
{
}

/* A soft limit, so that it can be raised again. */
static const char *set_limit(int resource, unsigned long value)
{
	struct rlimit limit;

	if (getrlimit(resource, &limit))
		return "no limit";
	limit.rlim_cur = value;
	return setrlimit(resource, &limit) ? "cannot set a limit" : NULL;
}

static const char *limited_call(struct world *w, const struct call *call,
				int resource, long limit, int error)
{
	const char *why = set_limit(resource, limit);

	why = why ?: try_call(w, call, error ? ERROR(error) : 0);
	return why ?: set_limit(resource, RLIM_INFINITY);
}

/*
 * Two cells of the destination are replaced, so are free; the one in the gap is
 * not. Six cells come into being.
 */
#define LIMITED_LOW	"wwr.spw"
#define LIMITED_HIGH	"dd.d..."
#define LIMITED_CALL	{ 0, 7, 7, KEEP, UP(0) }

TEST_F(multi, address_space_limit_mended)
{
	const struct call call = LIMITED_CALL;
	struct world *w = &self->w;
	struct counters now;
	long limit;

	ASSERT_OK(build(w, PAGES, LIMITED_LOW, LIMITED_HIGH));
	read_counters(&now);
	limit = now.size * KB + 4 * w->unit;
	ASSERT_OK(limited_call(w, &call, RLIMIT_AS, limit - psize(), ENOMEM));
	ASSERT_OK(limited_call(w, &call, RLIMIT_AS, limit, 0));
}

TEST_F(multi, data_limit_mended)
{
	const struct call call = LIMITED_CALL;
	struct world *w = &self->w;
	struct counters now;
	long limit;

	ASSERT_OK(build(w, PAGES, LIMITED_LOW, LIMITED_HIGH));
	read_counters(&now);
	limit = now.data * KB + 2 * w->unit;
	ASSERT_OK(limited_call(w, &call, RLIMIT_DATA, limit - psize(), ENOMEM));
	ASSERT_OK(limited_call(w, &call, RLIMIT_DATA, limit, 0));
}

/* What only changes its place adds nothing, be the limit exceeded already. */
TEST_F(multi, limits_do_not_bind_moves_mended)
{
	const struct call call = { 0, 7, 7, FIXED, UP(0) };
	struct world *w = &self->w;
	struct counters now;

	ASSERT_OK(build(w, PAGES, LIMITED_LOW, LIMITED_HIGH));
	read_counters(&now);
	ASSERT_OK(set_limit(RLIMIT_AS, now.size * KB));
	ASSERT_OK(limited_call(w, &call, RLIMIT_DATA, psize(), 0));
}

/* The lock goes with the pages, so there is never more of it. */
TEST_F(multi, locked_memory_limit_mended)
{
	struct call call = { 0, 7, 7, KEEP, UP(0) };
	struct world *w = &self->w;
	struct counters now;

	ASSERT_OK(build(w, PAGES, "lrlw.ll", "ww"));
	read_counters(&now);
	ASSERT_OK(set_limit(RLIMIT_MEMLOCK, now.locked * KB));
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	ASSERT_OK(call_as_modelled(w, &call));
	call = (struct call) { UP(0), 7, 7, FIXED, 0 };
	ASSERT_OK(call_as_modelled(w, &call));
}

/* A mapping of its own for each page; as many as there may be. */
static int fill_map_count(void)
{
	int pages = 0;

	while (map_at(FILL + bytes(pages), psize(),
		      pages % 2 ? PROT_READ : PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
	       FILL + bytes(pages))
		pages++;
	return pages;
}

/*
 * Whatever the number is that a call needs: with fewer left it is refused, each
 * time without a trace, and then goes through.
 */
static void sweep_map_count(META, struct world *w, unsigned long flags)
{
	const struct call call = { 1, 13, 13, flags, UP(1) };
	int filled, refused = 0;
	const char *why;

	ASSERT_OK(build(w, PAGES, "wwrs.p.wrwrs.ll", "ddddddddddddddd"));
	filled = fill_map_count();
	ASSERT_LT(80, filled);
	for (;;) {
		unsigned long ret;

		/* The filling is part of what has to stay as it is. */
		ASSERT_OK(settle(w));
		save_state();
		ret = make_call(w, &call);
		if (!error_of(ret)) {
			why = check_success(w, &call, ret);
			break;
		}
		ASSERT_EQ(ENOMEM, error_of(ret));
		ASSERT_OK(check_refusal(w));
		refused++;
		ASSERT_EQ(0, munmap(at(FILL + bytes(--filled)), psize()));
	}
	EXPECT_OK(why);
	EXPECT_LT(0, refused);
	EXPECT_GE(80, refused)
		TH_LOG("10 mappings move only with room for %d more", refused);
}

TEST_F(multi, map_count_mended)
{
	sweep_map_count(_metadata, &self->w, FIXED);
}

TEST_F(multi, map_count_dontunmap_mended)
{
	sweep_map_count(_metadata, &self->w, KEEP);
}

/* ---- memory that is counted strictly ---- */

#define OVERCOMMIT	"/proc/sys/vm/overcommit_"

FIXTURE(strict)
{
	struct world w;
	char policy[16];
	char ratio[16];
	char kbytes[32];
};

FIXTURE_SETUP(strict)
{
	SKIP_STOCK();
	read_setting(OVERCOMMIT "memory", self->policy, sizeof(self->policy));
	read_setting(OVERCOMMIT "ratio", self->ratio, sizeof(self->ratio));
	read_setting(OVERCOMMIT "kbytes", self->kbytes, sizeof(self->kbytes));
	if (!write_setting(OVERCOMMIT "memory", self->policy))
		SKIP(return, "needs to set vm.overcommit_memory");
}

/* Also when a test fails: nothing else runs well under these limits. */
FIXTURE_TEARDOWN(strict)
{
	/* One of them is always 0, and set by that of the other. */
	if (strtol(self->kbytes, NULL, 10))
		write_setting(OVERCOMMIT "kbytes", self->kbytes);
	else
		write_setting(OVERCOMMIT "ratio", self->ratio);
	write_setting(OVERCOMMIT "memory", self->policy);
}

/* Makes a call while this much more memory may be committed than there is. */
static const char *strict_call(FIXTURE_DATA(strict) *self,
			       const struct call *call, long room_kb, int error)
{
	const long swap = meminfo_kb("SwapTotal");
	char limit[32];
	const char *why;

	snprintf(limit, sizeof(limit), "%ld", committed_kb() + room_kb - swap);
	if (!write_setting(OVERCOMMIT "kbytes", limit) ||
	    !write_setting(OVERCOMMIT "memory", "2"))
		return "cannot set vm.overcommit_memory";
	why = try_call(&self->w, call, error ? ERROR(error) : 0);
	write_setting(OVERCOMMIT "memory", self->policy);
	return why;
}

/*
 * Half a cell more or less is far more than what the kernel keeps in reserve,
 * a 32nd of the process.
 */
#define ROOM(cells, w)	((long)((w)->unit / KB * ((cells) * 2 + 1) / 2))

/* The first one by itself would have found enough. */
TEST_F(strict, dontunmap_mended)
{
	const struct call call = { 0, 2, 2, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "wd", ""));
	ASSERT_OK(strict_call(self, &call, ROOM(1, w), ENOMEM));
	ASSERT_OK(strict_call(self, &call, ROOM(2, w), 0));
}

/* What is not charged does not count, nor what the destination gives back. */
TEST_F(strict, dontunmap_over_charged_mended)
{
	const struct call call = { 0, 4, 4, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "wos.", "d..."));
	ASSERT_OK(strict_call(self, &call, ROOM(0, w), 0));
}

/* A destination that survives in a gap does not give back anything. */
TEST_F(strict, dontunmap_over_gap_mended)
{
	const struct call call = { 0, 3, 3, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "w.d", "dd."));
	ASSERT_OK(strict_call(self, &call, ROOM(0, w), ENOMEM));
	ASSERT_OK(strict_call(self, &call, ROOM(1, w), 0));
}

TEST_F(strict, move_mended)
{
	const struct call call = { 0, 3, 3, FIXED, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, LARGE, "w.d", ""));
	ASSERT_OK(strict_call(self, &call, ROOM(0, w), 0));
}

/* ---- arguments ---- */

TEST_F(multi, peak_is_not_raised_mended)
{
	const struct call call = { 0, 16, 16, FIXED, UP(0) };
	struct world *w = &self->w;
	struct counters before, after;

	/* As much as ever now, and so every page more would show. */
	ASSERT_OK(build(w, TABLES, "wrwrwrspwrwrwrsp", ""));
	read_counters(&before);
	ASSERT_EQ(FILL, map_at(FILL, (before.peak - before.size) * KB + MB,
			       PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ASSERT_OK(settle(w));
	ASSERT_OK(check_world(w));
	read_counters(&before);
	ASSERT_EQ(before.peak, before.size);
	ASSERT_EQ(cell_addr(w, UP(0)), make_call(w, &call));
	read_counters(&after);
	EXPECT_EQ(before.peak, after.peak);
	EXPECT_EQ(before.rss_anon, after.rss_anon);
	apply(w, &call, 0);
	EXPECT_OK(check_world(w));
}

/* A table is freed if all that it was for is gone, even in two pieces. */
TEST_F(multi, table_of_two_old_destinations_is_freed_mended)
{
	const unsigned long dst = SRC + GB;
	struct counters before, after;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	/* The upper tables are those of others, too. */
	guard_page(WINDOW);
	for (size_t page = 0; page < 16; page += 8) {
		ASSERT_EQ(SRC + bytes(page), map_anon(SRC + bytes(page), bytes(4)));
		ASSERT_EQ(dst + bytes(page), map_anon(dst + bytes(page), bytes(4)));
	}
	read_counters(&before);
	read_counters(&before);
	for (size_t page = 0; page < 16; page += 8)
		stamp_range(dst + bytes(page), bytes(4), 1);
	read_counters(&after);
	ASSERT_LT(before.page_tables, after.page_tables);
	ASSERT_EQ(dst, move_to(SRC, bytes(12), bytes(12), dst));
	read_counters(&after);
	EXPECT_EQ(before.page_tables, after.page_tables);
	EXPECT_OK(check_zero(dst, bytes(4)));
	EXPECT_OK(check_zero(dst + bytes(8), bytes(4)));
}

/* A range as long as may be, nearly all of it a gap. */
TEST_F(multi, trailing_gap_of_terabytes_mended)
{
	const size_t len = 8UL << 40;
	const unsigned long dst = WINDOW + 2 * len;
	struct world *w = &self->w;

	ASSERT_OK(build(w, PAGES, "wr.s", ""));
	ASSERT_EQ(dst, move_to(cell_addr(w, 0), len, len, dst));
	for (int i = 0; i < 4; i++)
		if (w->cells[i].is.mapped)
			EXPECT_OK(check_contents_at(w, dst + i * w->unit,
						    &w->cells[i]));
	EXPECT_OK(check_unmapped(cell_addr(w, 0), 4 * w->unit));
	EXPECT_OK(check_unmapped(dst + 2 * w->unit, w->unit));
}

static const char *refused_to(struct world *w, unsigned long len,
			      unsigned long new_addr, int error)
{
	const unsigned long addr = cell_addr(w, 0);
	const unsigned long flags[] = { FIXED, KEEP };
	const char *why = NULL;

	for (int i = 0; !why && i < 2; i++) {
		unsigned long ret;

		save_state();
		ret = do_mremap(addr, len, len, flags[i], new_addr);
		if (error_of(ret) != error)
			return complain("errno %d, not %d", error_of(ret),
					error);
		why = check_refusal(w);
	}
	return why;
}

TEST_F(multi, places_that_are_none_mended)
{
	struct world *w = &self->w;
	const size_t len = bytes(3);

	ASSERT_OK(build(w, PAGES, "wrs", "ddd"));
	EXPECT_OK(refused_to(w, len, cell_addr(w, UP(0)) + 1, EINVAL));
	EXPECT_OK(refused_to(w, len, 1UL << 63, EINVAL));
	EXPECT_OK(refused_to(w, len, -len, EINVAL));
	EXPECT_OK(refused_to(w, -2 * len, cell_addr(w, UP(0)), EINVAL));
	EXPECT_OK(refused_to(w, 1UL << 62, cell_addr(w, UP(0)), EINVAL));
}

/* Where only the privileged may map. */
TEST_F(multi, below_the_lowest_address_mended)
{
	struct world *w = &self->w;

	if (read_long("/proc/sys/vm/mmap_min_addr") <= 0)
		SKIP(return, "needs vm.mmap_min_addr");
	ASSERT_OK(build(w, PAGES, "wrs", ""));
	ASSERT_EQ(0, setresuid(-1, 1, -1));
	EXPECT_OK(refused_to(w, bytes(3), 0, EPERM));
}

/* ---- many mappings ---- */

#define MANY	48

static bool is_many_gap(int nr)
{
	return nr % 7 == 6;
}

/* Three pages each, no two neighbours alike, some of them missing. */
static unsigned long many_addr(unsigned long addr, int nr)
{
	return addr + bytes(3 * nr);
}

static void map_many(META, unsigned long addr)
{
	for (int nr = 0; nr < MANY; nr++) {
		const unsigned long place = many_addr(addr, nr);

		if (is_many_gap(nr))
			continue;
		ASSERT_EQ(place, map_anon(place, bytes(3)));
		stamp_range(place, bytes(3), 10 * nr);
		if (nr % 2)
			ASSERT_EQ(0, mprotect(at(place), bytes(3), PROT_READ));
	}
}

static const char *check_many(unsigned long addr)
{
	const char *why = NULL;

	for (int nr = 0; !why && nr < MANY; nr++) {
		const unsigned long place = many_addr(addr, nr);
		const struct vma want = {
			.start = place,
			.end = place + bytes(3),
			.perms = { 'r', nr % 2 ? '-' : 'w', '-', 'p' },
		};

		why = check_vmas(place, place + bytes(3), &want,
				 !is_many_gap(nr));
		if (!why && !is_many_gap(nr))
			why = check_stamps(place, bytes(3), 10 * nr);
	}
	return why;
}

TEST_F(multi, many_mappings_mended)
{
	const size_t len = bytes(3 * MANY);
	const unsigned long dst = SRC + GB + bytes(7);

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	map_many(_metadata, SRC);
	ASSERT_OK(check_many(SRC));
	for (int round = 0; round < 3; round++) {
		ASSERT_EQ(dst, move_to(SRC, len, len, dst));
		ASSERT_OK(check_many(dst));
		ASSERT_OK(check_unmapped(SRC, len));
		ASSERT_EQ(SRC, move_to(dst, len, len, SRC));
		ASSERT_OK(check_many(SRC));
		ASSERT_OK(check_unmapped(dst, len));
	}
}

TEST_F(multi, last_of_many_is_sealed_mended)
{
	const size_t len = bytes(3 * MANY);
	const unsigned long dst = SRC + GB + bytes(7);
	const long before = committed_kb();

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	map_many(_metadata, SRC);
	if (seal(many_addr(SRC, MANY - 1), bytes(3)))
		SKIP(return, "needs mseal(2)");
	ASSERT_EQ(dst, map_anon(dst, len));
	stamp_range(dst, len, 5000);
	ASSERT_LT(before, committed_kb());
	for (int keep = 0; keep < 2; keep++) {
		const long committed = committed_kb();
		unsigned long ret;

		save_state();
		ret = do_mremap(SRC, len, len, keep ? KEEP : FIXED, dst);
		ASSERT_EQ(EPERM, error_of(ret));
		EXPECT_OK(check_state());
		EXPECT_EQ(committed, committed_kb());
		EXPECT_OK(check_many(SRC));
		EXPECT_OK(check_stamps(dst, len, 5000));
	}
}

/* ---- names and policies ---- */

/* What /proc/self/maps calls the mapping at addr. */
static const char *name_at(unsigned long addr)
{
	static char line[8192];
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end;
	int name = 0;

	while (maps && fgets(line, sizeof(line), maps)) {
		line[strcspn(line, "\n")] = '\0';
		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &start, &end,
			   &name) == 2 && addr >= start && addr < end)
			break;
	}
	if (maps)
		fclose(maps);
	return line + name;
}

static int set_name(unsigned long addr, size_t len, const char *name)
{
	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len, name);
}

TEST_F(multi, names_move_along_mended)
{
	const struct call call = { 0, 4, 4, KEEP, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, PAGES, "wwww", ""));
	if (set_name(cell_addr(w, 0), w->unit, "first") ||
	    set_name(cell_addr(w, 1), w->unit, "second") ||
	    set_name(cell_addr(w, 3), w->unit, "last"))
		SKIP(return, "needs CONFIG_ANON_VMA_NAME");
	ASSERT_OK(settle(w));
	ASSERT_OK(call_as_modelled(w, &call));
	for (int half = 0; half < CELLS; half += HALF) {
		EXPECT_STREQ("[anon:first]", name_at(cell_addr(w, half)));
		EXPECT_STREQ("[anon:second]", name_at(cell_addr(w, half + 1)));
		EXPECT_STREQ("", name_at(cell_addr(w, half + 2)));
		EXPECT_STREQ("[anon:last]", name_at(cell_addr(w, half + 3)));
	}
}

static int policy_at(unsigned long addr)
{
	int mode = -1;

	syscall(__NR_get_mempolicy, &mode, NULL, 0, addr, MPOL_F_ADDR);
	return mode;
}

TEST_F(multi, policies_move_along_mended)
{
	const int modes[] = { MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED };
	const struct call call = { 0, 4, 4, FIXED, UP(0) };
	struct world *w = &self->w;
	unsigned long node = 1;

	ASSERT_OK(build(w, PAGES, "wwww", ""));
	for (int i = 0; i < 3; i++)
		if (syscall(__NR_mbind, cell_addr(w, i), w->unit, modes[i],
			    &node, 8, 0))
			SKIP(return, "needs NUMA policies");
	ASSERT_OK(settle(w));
	ASSERT_OK(call_as_modelled(w, &call));
	for (int i = 0; i < 3; i++)
		EXPECT_EQ(modes[i], policy_at(cell_addr(w, UP(i))));
	EXPECT_EQ(MPOL_DEFAULT, policy_at(cell_addr(w, UP(3))));
}

/* ---- what is attached to pages, for each size of what moves ---- */

FIXTURE(shaped)
{
	struct world w;
};

FIXTURE_VARIANT(shaped)
{
	enum shape shape;
};

FIXTURE_VARIANT_ADD(shaped, pages) { PAGES };
FIXTURE_VARIANT_ADD(shaped, parts_of_tables) { PARTS };
FIXTURE_VARIANT_ADD(shaped, uneven) { UNEVEN };
FIXTURE_VARIANT_ADD(shaped, tables) { TABLES };
FIXTURE_VARIANT_ADD(shaped, huge_pages) { HUGE };
FIXTURE_VARIANT_ADD(shaped, parts_of_huge_pages) { HUGE_PARTS };
FIXTURE_VARIANT_ADD(shaped, directories) { DIRECTORIES };

FIXTURE_SETUP(shaped)
{
	SKIP_STOCK();
}

FIXTURE_TEARDOWN(shaped)
{
}

/* Of the stamped pages in these cells, how many have one of the bits. */
static int count_bits(const struct world *w, int first, int end, uint64_t bits)
{
	int count = 0;

	for (int i = first; i < end; i++)
		for (int nr = 0; w->cells[i].content == OWN &&
		     nr < nr_spots(w); nr++)
			count += !!(pagemap_entry(cell_addr(w, i) +
						  spot(w, nr)) & bits);
	return count;
}

static int count_stamped(const struct world *w, int first, int end)
{
	return count_bits(w, first, end, PM_PRESENT | PM_SWAP);
}

/* Is any mapping marked as changed as a whole? */
static bool marked_soft_dirty(const struct world *w, int first, int end)
{
	for (int i = first; i < end; i++)
		if (w->cells[i].is.mapped && !w->joined[i] &&
		    has_vmflag(cell_addr(w, i), "sd"))
			return true;
	return false;
}

TEST_F(shaped, moved_is_soft_dirty_mended)
{
	const struct call call = { 2, 8, 8, FIXED, UP(2) };
	struct world *w = &self->w;

	if (!softdirty_supported())
		SKIP(return, "needs CONFIG_MEM_SOFT_DIRTY");
	ASSERT_OK(build(w, variant->shape, "wwwwrr..ppwwww", "ddddddddddddww"));
	clear_softdirty();
	ASSERT_EQ(0, count_bits(w, 0, CELLS, PM_SOFT_DIRTY));
	ASSERT_OK(call_as_modelled(w, &call));
	EXPECT_EQ(count_stamped(w, UP(2), UP(6)),
		  count_bits(w, UP(2), UP(6), PM_SOFT_DIRTY));
	EXPECT_EQ(count_stamped(w, UP(8), UP(10)),
		  count_bits(w, UP(8), UP(10), PM_SOFT_DIRTY));
	/* A huge page that is split reads as soft-dirty, all of it. */
	if (variant->shape == HUGE_PARTS)
		return;
	EXPECT_EQ(0, count_bits(w, 0, UP(2), PM_SOFT_DIRTY));
	/* What has survived in the gap has not changed. */
	EXPECT_EQ(0, count_bits(w, UP(6), UP(8), PM_SOFT_DIRTY));
	EXPECT_EQ(0, count_bits(w, UP(10), CELLS, PM_SOFT_DIRTY));
}

/* What merges with its old neighbours again makes these no dirtier. */
TEST_F(shaped, moved_back_is_soft_dirty_mended)
{
	const struct call there = { 2, 6, 6, FIXED, UP(2) };
	const struct call back = { UP(2), 6, 6, FIXED, 2 };
	struct world *w = &self->w;

	if (!softdirty_supported())
		SKIP(return, "needs CONFIG_MEM_SOFT_DIRTY");
	ASSERT_OK(build(w, variant->shape, "wwwwrrwwww", ""));
	ASSERT_OK(call_as_modelled(w, &there));
	clear_softdirty();
	ASSERT_OK(call_as_modelled(w, &back));
	EXPECT_EQ(0, count_bits(w, 0, 2, PM_SOFT_DIRTY));
	EXPECT_EQ(count_stamped(w, 2, 8), count_bits(w, 2, 8, PM_SOFT_DIRTY));
	EXPECT_EQ(0, count_bits(w, 8, 10, PM_SOFT_DIRTY));
}

TEST_F(shaped, refused_is_not_soft_dirty_mended)
{
	const struct call call = { 1, 6, 6, FIXED, UP(1) };
	struct world *w = &self->w;

	if (!softdirty_supported())
		SKIP(return, "needs CONFIG_MEM_SOFT_DIRTY");
	ASSERT_OK(build(w, variant->shape, "wwrrppW", "ddddddd"));
	clear_softdirty();
	ASSERT_OK(refused_again(w, &call, EPERM));
	EXPECT_EQ(0, count_bits(w, 0, CELLS, PM_SOFT_DIRTY));
	EXPECT_FALSE(marked_soft_dirty(w, 0, CELLS));
}

/* Swapped pages are not read in by a move, nor by a refusal. */
TEST_F(shaped, swapped_mended)
{
	const struct call refused = { 0, 8, 8, FIXED, UP(0) };
	const struct call call = { 0, 6, 6, FIXED, UP(0) };
	struct world *w = &self->w;
	int swapped;

	if (meminfo_kb("SwapFree") <= 0)
		SKIP(return, "needs swap space");
	ASSERT_OK(build(w, variant->shape, "wwppoorS", "dddd"));
	for (int i = 0; i < 6; i++)
		madvise(at(cell_addr(w, i)), w->unit, MADV_PAGEOUT);
	swapped = count_bits(w, 0, 6, PM_SWAP);
	if (!swapped)
		SKIP(return, "needs pages that can be swapped out");
	ASSERT_EQ(EPERM, error_of(make_call(w, &refused)));
	EXPECT_EQ(swapped, count_bits(w, 0, 6, PM_SWAP));
	ASSERT_EQ(cell_addr(w, UP(0)), make_call(w, &call));
	apply(w, &call, cell_addr(w, UP(0)));
	EXPECT_EQ(swapped, count_bits(w, UP(0), UP(6), PM_SWAP));
	EXPECT_OK(check_world(w));
}

/* ---- transparent huge pages ---- */

static long huge_kb(const struct world *w, int first, int end)
{
	long kb = 0;

	for (int i = first; i < end; i++)
		if (w->cells[i].is.mapped && (i == first || !w->joined[i]))
			kb += smaps_kb(cell_addr(w, i), "AnonHugePages");
	return kb;
}

TEST_F(multi, huge_pages_stay_huge_mended)
{
	const struct call refused = { 0, 8, 8, FIXED, UP(0) };
	const struct call call = { 0, 6, 6, FIXED, UP(0) };
	struct world *w = &self->w;
	long huge;

	ASSERT_OK(build(w, HUGE, "wwr.ddrW", ""));
	huge = huge_kb(w, 0, 6);
	if (huge <= 0)
		SKIP(return, "needs transparent huge pages");
	ASSERT_OK(call_refused(w, &refused, EPERM));
	EXPECT_EQ(huge, huge_kb(w, 0, 6));
	ASSERT_OK(call_as_modelled(w, &call));
	EXPECT_EQ(huge, huge_kb(w, UP(0), UP(6)));
}

/* Boundaries amid a huge page split that one, but not if it is refused. */
TEST_F(multi, huge_pages_at_the_ends_mended)
{
	const struct call refused = { 2, 16, 16, FIXED, UP(2) };
	const struct call call = { 2, 12, 12, FIXED, UP(2) };
	const long size = pmd_span() / KB;
	struct world *w = &self->w;

	ASSERT_OK(build(w, HUGE_PARTS, "wwwwwwwwddddddddSSSS", ""));
	if (huge_kb(w, 0, 16) != 4 * size)
		SKIP(return, "needs transparent huge pages");
	ASSERT_OK(call_refused(w, &refused, EPERM));
	EXPECT_EQ(4 * size, huge_kb(w, 0, 16));
	ASSERT_OK(call_as_modelled(w, &call));
	EXPECT_EQ(2 * size, huge_kb(w, UP(2), UP(14)));
	EXPECT_EQ(0, huge_kb(w, 0, 2) + huge_kb(w, 14, 16));
}

/* ---- KSM ---- */

#define KSM	"/sys/kernel/mm/ksm/"

/* kB of KSM pages in these cells. */
static long ksm_kb(const struct world *w, int first, int end)
{
	long kb = 0;

	for (int i = first; i < end; i++)
		if (w->cells[i].is.mapped && (i == first || !w->joined[i]))
			kb += smaps_kb(cell_addr(w, i), "KSM");
	return kb;
}

static bool wait_for_ksm(const struct world *w, int first, int end)
{
	bool merged = false;

	write_setting(KSM "pages_to_scan", "1000");
	write_setting(KSM "run", "1");
	for (int try = 0; !merged && try < 300; try++) {
		merged = ksm_kb(w, first, end) >= 6 * (long)(w->unit / KB);
		if (!merged)
			usleep(100 * 1000);
	}
	write_setting(KSM "run", "0");
	return merged;
}

/* Pages that are alike, in three mappings; merged by ksmd. */
TEST_F(multi, ksm_pages_mended)
{
	const struct call refused = { 0, 10, 10, FIXED, UP(0) };
	const struct call call = { 0, 8, 8, FIXED, UP(0) };
	struct world *w = &self->w;
	long merged;

	if (read_long(KSM "run") < 0)
		SKIP(return, "needs KSM");
	ASSERT_OK(build(w, PAGES, "wwwddd.oSS", ""));
	for (int i = 0; i < 6; i++) {
		w->cells[i].id = 1;
		w->cells[i].content = OWN;
		stamp_cell(w, cell_addr(w, i), 1);
	}
	ASSERT_EQ(0, madvise(at(cell_addr(w, 0)), 6 * w->unit, MADV_MERGEABLE));
	ASSERT_OK(settle(w));
	if (ksm_kb(w, 0, 6) < 0 || !wait_for_ksm(w, 0, 6))
		SKIP(return, "ksmd merged nothing");
	merged = ksm_kb(w, 0, 6);
	ASSERT_OK(call_refused(w, &refused, EPERM));
	EXPECT_EQ(merged, ksm_kb(w, 0, 6));
	ASSERT_OK(call_as_modelled(w, &call));
	EXPECT_EQ(0, ksm_kb(w, UP(0), UP(6)));
}

/* ---- hugetlb ---- */

/* A cell is a huge page; the middle two are hugetlb. */
FIXTURE(hugetlb)
{
	struct world w;
	long free;
	long reserved;
};

FIXTURE_VARIANT(hugetlb)
{
	int flags;
};

FIXTURE_VARIANT_ADD(hugetlb, private) { MAP_PRIVATE };
FIXTURE_VARIANT_ADD(hugetlb, shared) { MAP_SHARED };

static const char *lay_hugetlb(struct world *w, int first, int nr, int flags)
{
	const unsigned long addr = cell_addr(w, first);

	if (map_at(addr, nr * w->unit, PROT_READ | PROT_WRITE,
		   flags | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0) != addr)
		return "cannot map huge pages";
	/* The first is touched, the rest only reserved. */
	w->cells[first].content = OWN;
	w->cells[first].id = w->next_id++;
	stamp_cell(w, addr, w->cells[first].id);
	return NULL;
}

FIXTURE_SETUP(hugetlb)
{
	struct world *w = &self->w;

	SKIP_STOCK();
	self->free = meminfo_kb("HugePages_Free");
	self->reserved = meminfo_kb("HugePages_Rsvd");
	if (default_huge_page_size() != pmd_span() ||
	    self->free - self->reserved < 4)
		SKIP(return, "needs 4 free huge pages (vm.nr_hugepages)");
	ASSERT_OK(build(w, TABLES, "w...rS", ""));
	ASSERT_OK(lay_hugetlb(w, 1, 2, variant->flags));
	ASSERT_OK(settle(w));
}

FIXTURE_TEARDOWN(hugetlb)
{
}

static void check_pool(META, FIXTURE_DATA(hugetlb) *self, long used,
		       long reserved)
{
	EXPECT_EQ(self->free - used, meminfo_kb("HugePages_Free"));
	EXPECT_EQ(self->reserved + reserved, meminfo_kb("HugePages_Rsvd"));
}

/* The reserved page is read last of all: only then it is taken. */
static void move_hugetlb(META, FIXTURE_DATA(hugetlb) *self,
			 const struct call *call)
{
	struct world *w = &self->w;

	check_pool(_metadata, self, 1, 1);
	ASSERT_EQ(cell_addr(w, call->to), make_call(w, call));
	check_pool(_metadata, self, 1, 1);
	apply(w, call, 0);
	ASSERT_OK(check_layout(w));
	check_pool(_metadata, self, 1, 1);
	EXPECT_OK(check_world(w));
	check_pool(_metadata, self, 2, 0);
	ASSERT_EQ(0, munmap(at(w->base), 5 * w->unit));
	ASSERT_EQ(0, munmap(at(cell_addr(w, UP(0))), HALF * w->unit));
	check_pool(_metadata, self, 0, 0);
}

TEST_F(hugetlb, moves_mended)
{
	const struct call call = { 0, 5, 5, FIXED, UP(0) };

	move_hugetlb(_metadata, self, &call);
}

/* The first is moved, the second one stays, and has its reservation. */
TEST_F(hugetlb, part_of_last_mended)
{
	const struct call call = { 0, 2, 2, FIXED, UP(0) };

	move_hugetlb(_metadata, self, &call);
}

TEST_F(hugetlb, part_of_first_mended)
{
	const struct call call = { 2, 3, 3, FIXED, UP(0) };

	move_hugetlb(_metadata, self, &call);
}

/* A range that ends amid a huge page moves all of it, as with one mapping. */
TEST_F(hugetlb, end_is_rounded_mended)
{
	const struct call call = { 0, 2, 2, FIXED, UP(0) };
	struct world *w = &self->w;
	const size_t len = w->unit + psize();

	ASSERT_EQ(cell_addr(w, UP(0)), move_to(w->base, len, len,
					       cell_addr(w, UP(0))));
	apply(w, &call, 0);
	check_pool(_metadata, self, 1, 1);
	EXPECT_OK(check_world(w));
	check_pool(_metadata, self, 2, 0);
}

TEST_F(hugetlb, trailing_gap_mended)
{
	const struct call call = { 1, 3, 3, FIXED, UP(0) };

	move_hugetlb(_metadata, self, &call);
}

TEST_F(hugetlb, replaced_mended)
{
	const struct call call = { 0, 5, 5, FIXED, UP(0) };
	struct world *w = &self->w;

	ASSERT_OK(lay_hugetlb(w, UP(0), 2, variant->flags));
	ASSERT_OK(settle(w));
	check_pool(_metadata, self, 2, 2);
	ASSERT_EQ(cell_addr(w, UP(0)), make_call(w, &call));
	apply(w, &call, 0);
	move_hugetlb(_metadata, self, &(struct call) {
		UP(0), 5, 5, FIXED, 0,
	});
}

/* Refused, and nothing is taken from or given to the pool. */
static void refuse_hugetlb(META, FIXTURE_DATA(hugetlb) *self,
			   unsigned long addr, unsigned long len,
			   unsigned long flags, unsigned long to, int error)
{
	save_state();
	ASSERT_EQ(error, error_of(do_mremap(addr, len, len, flags, to)));
	EXPECT_OK(check_state());
	EXPECT_OK(check_layout(&self->w));
	check_pool(_metadata, self, 1, 1);
	EXPECT_OK(check_world(&self->w));
	check_pool(_metadata, self, 2, 0);
}

TEST_F(hugetlb, destination_is_not_aligned_mended)
{
	struct world *w = &self->w;

	refuse_hugetlb(_metadata, self, w->base, 5 * w->unit, FIXED,
		       cell_addr(w, UP(0)) + psize(), EINVAL);
}

TEST_F(hugetlb, source_is_not_aligned_mended)
{
	struct world *w = &self->w;

	refuse_hugetlb(_metadata, self, cell_addr(w, 1) + psize(),
		       4 * w->unit - psize(), FIXED,
		       cell_addr(w, UP(0)) + psize(), EINVAL);
}

TEST_F(hugetlb, dontunmap_mended)
{
	struct world *w = &self->w;

	refuse_hugetlb(_metadata, self, w->base, 5 * w->unit, KEEP,
		       cell_addr(w, UP(0)), EINVAL);
}

TEST_F(hugetlb, before_sealed_mended)
{
	struct world *w = &self->w;

	refuse_hugetlb(_metadata, self, w->base, 6 * w->unit, FIXED,
		       cell_addr(w, UP(0)), EPERM);
}

/* A gap of the source would cut a huge page of the destination in two. */
TEST_F(hugetlb, cut_at_destination_mended)
{
	struct world *w = &self->w;
	const unsigned long src = FILL, dst = cell_addr(w, 1);

	ASSERT_EQ(src, map_anon(src, psize()));
	ASSERT_EQ(src + bytes(2), map_anon(src + bytes(2), bytes(510)));
	stamp(src, 1);
	stamp(src + bytes(2), 2);
	ASSERT_OK(settle(w));
	refuse_hugetlb(_metadata, self, src, w->unit, FIXED, dst, EINVAL);
	EXPECT_OK(check_stamp(src, 1));
	EXPECT_OK(check_stamp(src + bytes(2), 2));
}

/*
 * What is behind follows at the end that the source has, which is not that of a
 * huge page counted from its odd start. No huge page is taken.
 */
TEST(hugetlb_not_aligned_before_neighbour_mended)
{
	const size_t huge = default_huge_page_size();
	const unsigned long dst = FILL + GB;

	SKIP_STOCK();
	if (huge != pmd_span())
		SKIP(return, "needs huge pages of the size of a table");
	ASSERT_EQ(SRC, map_at(SRC, huge, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			      MAP_NORESERVE, -1, 0));
	ASSERT_EQ(SRC + huge, map_anon(SRC + huge, bytes(3)));
	stamp_range(SRC + huge, bytes(3), 1);
	save_state();
	for (size_t page = 1; page < 3; page++) {
		EXPECT_EQ(EINVAL, error_of(move_to(SRC + bytes(page), huge, huge, dst)));
		EXPECT_EQ(EINVAL, error_of(do_mremap(SRC + bytes(page), huge, huge, KEEP,
						     dst)));
	}
	EXPECT_OK(check_state());
	EXPECT_OK(check_stamps(SRC + huge, bytes(3), 1));
}

/* The first page of the address space is a source like any other. */
TEST(from_the_first_page_on)
{
	SKIP_STOCK();
	if (map_anon(0, bytes(1)))
		SKIP(return, "needs a mapping at address 0 (vm.mmap_min_addr)");
	ASSERT_EQ(bytes(2), map_anon(bytes(2), bytes(1)));
	stamp(0, 1);
	stamp(bytes(2), 2);
	ASSERT_EQ(SRC, move_to(0, bytes(3), bytes(3), SRC));
	EXPECT_OK(check_stamp(SRC, 1));
	EXPECT_OK(check_unmapped(SRC + bytes(1), psize()));
	EXPECT_OK(check_stamp(SRC + bytes(2), 2));
	EXPECT_OK(check_unmapped(0, bytes(3)));
}

/* ---- files that choose their addresses themselves ---- */

static bool is_ramfs(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == RAMFS_MAGIC;
}

static int open_ramfs(void)
{
	int fd = open(".", O_TMPFILE | O_RDWR, 0600);

	if (fd < 0) {
		fd = open("mremap_multi.tmp", O_CREAT | O_RDWR, 0600);
		unlink("mremap_multi.tmp");
	}
	if (fd >= 0 && (!is_ramfs(fd) || ftruncate(fd, CELLS * psize()))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Puts a mapping of the file into the second of three cells. */
static const char *lay_file(struct world *w, int fd, int flags)
{
	const char *why = build(w, PAGES, "w.r.", "dddd");
	const unsigned long addr = cell_addr(w, 1);

	if (why)
		return why;
	if (map_at(addr, psize(), PROT_READ | PROT_WRITE, flags, fd, 0) != addr)
		return "cannot map the file";
	w->cells[1].content = OWN;
	w->cells[1].id = w->next_id++;
	stamp_cell(w, addr, w->cells[1].id);
	return settle(w);
}

/* As one of several, or before a gap; by itself it can be moved. */
static void refuse_file(META, struct world *w)
{
	const struct call refused[] = {
		{ 0, 3, 3, FIXED, UP(0) },
		{ 0, 2, 2, FIXED, UP(0) },
		{ 1, 2, 2, FIXED, UP(0) },
	};
	const struct call alone = { 1, 1, 1, FIXED, UP(0) };
	const struct call gap = { 1, 2, 2, FIXED, UP(0) };

	for (size_t i = 0; i < ARRAY_SIZE(refused); i++)
		ASSERT_OK(refused_again(w, &refused[i], EFAULT));
	ASSERT_OK(call_as_modelled(w, &alone));
	ASSERT_OK(call_as_modelled(w, &(struct call) {
		UP(0), 1, 1, FIXED, 1,
	}));
	ASSERT_EQ(0, munmap(at(cell_addr(w, 2)), psize()));
	w->cells[2] = (struct cell) { 0 };
	ASSERT_OK(settle(w));
	ASSERT_OK(refused_again(w, &gap, EFAULT));
}

TEST_F(multi, ramfs_shared_mended)
{
	int fd = open_ramfs();

	if (fd < 0)
		SKIP(return, "needs ramfs as the current directory");
	ASSERT_OK(lay_file(&self->w, fd, MAP_SHARED));
	refuse_file(_metadata, &self->w);
}

TEST_F(multi, ramfs_private_mended)
{
	int fd = open_ramfs();

	if (fd < 0)
		SKIP(return, "needs ramfs as the current directory");
	ASSERT_OK(lay_file(&self->w, fd, MAP_PRIVATE));
	refuse_file(_metadata, &self->w);
}

/* Anonymous memory, and yet with a file. */
TEST_F(multi, dev_zero_private_mended)
{
	int fd = open("/dev/zero", O_RDWR);

	if (fd < 0)
		SKIP(return, "needs /dev/zero");
	ASSERT_OK(lay_file(&self->w, fd, MAP_PRIVATE));
	refuse_file(_metadata, &self->w);
}

/* This one is shared memory. */
TEST_F(multi, dev_zero_shared_mended)
{
	const struct call call = { 0, 3, 3, FIXED, UP(0) };
	int fd = open("/dev/zero", O_RDWR);

	if (fd < 0)
		SKIP(return, "needs /dev/zero");
	ASSERT_OK(lay_file(&self->w, fd, MAP_SHARED));
	ASSERT_OK(call_as_modelled(&self->w, &call));
}

/* A device's memory, here the firmware's. */
TEST_F(multi, device_memory_mended)
{
	const struct call call = { 0, 4, 4, FIXED, UP(0) };
	struct world *w = &self->w;
	unsigned long addr, to;
	char before[64];
	int fd = open("/dev/mem", O_RDONLY);

	ASSERT_OK(build(w, PAGES, "w..r", "dddd"));
	addr = cell_addr(w, 1);
	to = cell_addr(w, UP(1));
	if (fd < 0 || map_at(addr, bytes(2), PROT_READ, MAP_SHARED, fd,
			     0xf0000) != addr)
		SKIP(return, "needs /dev/mem");
	memcpy(before, at(addr + 8192 - 64), 64);
	/* With its place kept it would be there twice. */
	save_state();
	EXPECT_EQ(EINVAL, error_of(do_mremap(w->base, bytes(4), bytes(4), KEEP,
					     cell_addr(w, UP(0)))));
	EXPECT_OK(check_state());
	ASSERT_EQ(cell_addr(w, UP(0)), make_call(w, &call));
	EXPECT_EQ(0, memcmp(before, at(to + 8192 - 64), 64));
	EXPECT_TRUE(has_vmflag(to, "pf"));
	EXPECT_OK(check_unmapped(w->base, bytes(4)));
	EXPECT_EQ(0, munmap(at(to), bytes(2)));
	EXPECT_OK(check_contents_at(w, cell_addr(w, UP(0)), &w->cells[0]));
}

/* ---- System V shared memory ---- */

#define SEGMENTS	2
#define SEGMENT_PAGES	4

/* Cells: one of anonymous memory, the segments around a gap, two more. */
static const int segment_cells[SEGMENTS] = { 1, 6 };

#define SYSV_CELLS	12

FIXTURE(sysv)
{
	struct world w;
	int ids[SEGMENTS];
};

FIXTURE_SETUP(sysv)
{
	struct world *w = &self->w;

	SKIP_STOCK();
	ASSERT_OK(build(w, PAGES, "w.........rr", ""));
	for (int i = 0; i < SEGMENTS; i++) {
		void *const addr = at(cell_addr(w, segment_cells[i]));

		self->ids[i] = shmget(IPC_PRIVATE, bytes(SEGMENT_PAGES),
				      IPC_CREAT | 0600);
		if (self->ids[i] < 0)
			SKIP(return, "needs System V shared memory");
		ASSERT_EQ(addr, shmat(self->ids[i], addr, 0));
		/* It goes away with the last mapping. */
		ASSERT_EQ(0, shmctl(self->ids[i], IPC_RMID, NULL));
		for (int page = 0; page < SEGMENT_PAGES; page++) {
			const int nr = segment_cells[i] + page;
			struct cell *cell = &w->cells[nr];

			cell->content = OWN;
			cell->id = w->next_id++;
			stamp_cell(w, cell_addr(w, nr), cell->id);
		}
	}
	ASSERT_OK(settle(w));
}

FIXTURE_TEARDOWN(sysv)
{
}

/* Each mapping of a segment is an attachment, and there are no others. */
static void check_attached(META, FIXTURE_DATA(sysv) *self, unsigned long first,
			   unsigned long second)
{
	const unsigned long want[SEGMENTS] = { first, second };
	struct shmid_ds ds;

	for (int i = 0; i < SEGMENTS; i++) {
		ASSERT_EQ(0, shmctl(self->ids[i], IPC_STAT, &ds));
		EXPECT_EQ(want[i], ds.shm_nattch)
			TH_LOG("segment %d", i);
	}
}

TEST_F(sysv, moves_with_others_mended)
{
	const struct call there = { 0, SYSV_CELLS, SYSV_CELLS, FIXED, UP(2) };
	const struct call back = { UP(2), SYSV_CELLS, SYSV_CELLS, FIXED, 0 };

	for (int round = 0; round < 2; round++) {
		ASSERT_OK(call_as_modelled(&self->w, &there));
		check_attached(_metadata, self, 1, 1);
		ASSERT_OK(call_as_modelled(&self->w, &back));
		check_attached(_metadata, self, 1, 1);
	}
}

/* Also if all that moves is of that kind, or something is in the way. */
TEST_F(sysv, moves_over_others_mended)
{
	const struct call there = { 1, 9, 9, FIXED, UP(2) };
	struct world *w = &self->w;

	ASSERT_OK(lay(w, UP(0), "wwrrssddppllwwww"));
	ASSERT_OK(settle(w));
	ASSERT_OK(call_as_modelled(w, &there));
	check_attached(_metadata, self, 1, 1);
}

/* The old place still shows the segments, so there are two of each. */
TEST_F(sysv, dontunmap_mended)
{
	const size_t len = SYSV_CELLS * psize();
	struct world *w = &self->w;
	const unsigned long dst = cell_addr(w, UP(0));

	ASSERT_EQ(dst, do_mremap(w->base, len, len, KEEP, dst));
	check_attached(_metadata, self, 2, 2);
	for (int nr = 1; nr < 10; nr++) {
		if (w->cells[nr].content != OWN)
			continue;
		EXPECT_OK(check_contents_at(w, w->base + bytes(nr),
					    &w->cells[nr]));
		EXPECT_OK(check_contents_at(w, dst + bytes(nr), &w->cells[nr]));
	}
	ASSERT_EQ(0, munmap(at(w->base), len));
	check_attached(_metadata, self, 1, 1);
}

/* What stays behind of a segment is a mapping of its own. */
TEST_F(sysv, parts_mended)
{
	const struct call calls[] = {
		/* The end of the first one and the start of the second. */
		{ 3, 5, 5, FIXED, UP(0) },
		/* What has moved, and the gap before what moves now. */
		{ UP(0), 9, 9, FIXED, UP(12) },
		/* One part alone. */
		{ 8, 1, 1, FIXED, UP(8) },
	};
	const unsigned long want[][SEGMENTS] = { { 2, 2 }, { 2, 2 }, { 2, 3 } };

	for (size_t i = 0; i < ARRAY_SIZE(calls); i++) {
		ASSERT_OK(call_as_modelled(&self->w, &calls[i]));
		check_attached(_metadata, self, want[i][0], want[i][1]);
	}
}

/* Refused for a fault of another mapping: nobody has attached for it. */
TEST_F(sysv, refused_mended)
{
	const struct call whole = { 0, SYSV_CELLS, SYSV_CELLS, FIXED, UP(2) };
	const struct call parts = { 3, 9, 9, FIXED, UP(2) };
	struct world *w = &self->w;

	if (seal(cell_addr(w, SYSV_CELLS - 1), psize()))
		SKIP(return, "needs mseal(2)");
	w->cells[SYSV_CELLS - 1].sealed = true;
	ASSERT_OK(settle(w));
	ASSERT_OK(refused_again(w, &whole, EPERM));
	ASSERT_OK(refused_again(w, &parts, EPERM));
	check_attached(_metadata, self, 1, 1);
}

static const char *move_back_without_failing(struct world *w,
					     const struct call *call)
{
	const struct call back = {
		call->to, call->old, call->new, FIXED, call->from,
	};
	const int fd = fail_fd;
	const char *why;

	fail_fd = -1;
	why = call_as_modelled(w, &back);
	fail_fd = fd;
	return why;
}

/* Nor has anybody after a call that had come so far when memory ran out. */
TEST_F_TIMEOUT(sysv, every_allocation_mended, 120)
{
	const struct call call = { 0, SYSV_CELLS, SYSV_CELLS, FIXED, UP(2) };
	const char *why = prepare_fail_nth();
	struct world *w = &self->w;

	if (why)
		SKIP(return, "%s", why);
	fail_fd = open(FAIL_NTH, O_RDWR);
	ASSERT_LE(0, fail_fd);
	has_failed = true;
	for (fail_nth = 1; has_failed; fail_nth++) {
		unsigned long ret;

		save_state();
		ret = make_call(w, &call);
		ASSERT_TRUE(!error_of(ret) || error_of(ret) == ENOMEM)
			TH_LOG("errno %d", error_of(ret));
		ASSERT_OK(error_of(ret) ? check_refusal(w) :
					  check_success(w, &call, ret));
		check_attached(_metadata, self, 1, 1);
		/* Not every allocation is needed. */
		if (!error_of(ret) && has_failed)
			ASSERT_OK(move_back_without_failing(w, &call));
	}
	close(fail_fd);
	fail_fd = -1;
	/* At least the new mappings have to be allocated. */
	EXPECT_LT(4, fail_nth);
}

/* ---- userfaultfd ---- */

struct monitor {
	int fd;
	int stop[2];
	pthread_t thread;
	int nr;
	struct uffd_msg msg[16];
};

/* Events are waited for: somebody has to read them. */
static void *read_events(void *arg)
{
	struct monitor *monitor = arg;
	struct pollfd fds[] = {
		{ .fd = monitor->fd, .events = POLLIN },
		{ .fd = monitor->stop[0], .events = POLLIN },
	};
	struct uffd_msg msg;

	while (poll(fds, 2, -1) > 0) {
		if (fds[0].revents && monitor->nr < 16 &&
		    read(monitor->fd, &msg, sizeof(msg)) == sizeof(msg))
			monitor->msg[monitor->nr++] = msg;
		else if (fds[1].revents)
			break;
	}
	return NULL;
}

FIXTURE(uffd)
{
	struct world w;
	struct monitor monitor;
};

FIXTURE_VARIANT(uffd)
{
	uint64_t features;
};

FIXTURE_VARIANT_ADD(uffd, no_events) { 0 };
FIXTURE_VARIANT_ADD(uffd, events) {
	UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP
};

FIXTURE_SETUP(uffd)
{
	struct monitor *monitor = &self->monitor;

	SKIP_STOCK();
	monitor->fd = open_uffd(variant->features |
				UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	if (monitor->fd < 0)
		SKIP(return, "needs userfaultfd with write protection");
	ASSERT_EQ(0, pipe(monitor->stop));
	ASSERT_EQ(0, pthread_create(&monitor->thread, NULL, read_events,
				    monitor));
}

/* Ends the reader: all events are in. */
static int count_events(FIXTURE_DATA(uffd) *self)
{
	if (self->monitor.thread && write(self->monitor.stop[1], "", 1) == 1)
		pthread_join(self->monitor.thread, NULL);
	self->monitor.thread = 0;
	return self->monitor.nr;
}

FIXTURE_TEARDOWN(uffd)
{
	count_events(self);
}

/* Every page there is filled first, for nobody answers faults. */
static const char *register_cells(FIXTURE_DATA(uffd) *self, int first, int nr)
{
	struct world *w = &self->w;

	for (int i = first; i < first + nr; i++) {
		if (w->cells[i].content != ZERO)
			continue;
		w->cells[i].content = OWN;
		w->cells[i].id = w->next_id++;
		stamp_cell(w, cell_addr(w, i), w->cells[i].id);
	}
	if (uffd_register(self->monitor.fd, at(cell_addr(w, first)),
			  nr * w->unit, true, true, false))
		return "cannot register";
	return settle(w);
}

static void refuse_registered(META, FIXTURE_DATA(uffd) *self,
			      const char *low, int first, int nr, int from,
			      int len)
{
	const struct call call = { from, len, len, FIXED, UP(from) };

	ASSERT_OK(build(&self->w, PAGES, low, "dddddddd"));
	ASSERT_OK(register_cells(self, first, nr));
	ASSERT_OK(refused_again(&self->w, &call, EFAULT));
	EXPECT_TRUE(has_vmflag(cell_addr(&self->w, first), "um"));
	EXPECT_EQ(0, count_events(self));
}

TEST_F(uffd, first_mended)
{
	refuse_registered(_metadata, self, "wwr", 0, 2, 0, 3);
}

TEST_F(uffd, last_mended)
{
	refuse_registered(_metadata, self, "rrw", 2, 1, 0, 3);
}

TEST_F(uffd, last_in_part_mended)
{
	refuse_registered(_metadata, self, "rrwwww", 2, 4, 1, 3);
}

TEST_F(uffd, behind_gap_mended)
{
	refuse_registered(_metadata, self, "w..w", 3, 1, 0, 4);
}

TEST_F(uffd, before_gap_mended)
{
	refuse_registered(_metadata, self, "ww..", 0, 2, 0, 4);
}

TEST_F(uffd, rest_before_gap_mended)
{
	refuse_registered(_metadata, self, "wwww..", 0, 4, 2, 4);
}

/* Registered, but outside of the range; what is beside it can move. */
TEST_F(uffd, beside_mended)
{
	const struct call call = { 1, 3, 3, FIXED, UP(1) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, PAGES, "wwrww", "ddddd"));
	ASSERT_OK(register_cells(self, 0, 1));
	ASSERT_OK(register_cells(self, 4, 1));
	ASSERT_OK(register_cells(self, UP(0), 1));
	ASSERT_OK(register_cells(self, UP(4), 1));
	ASSERT_OK(call_as_modelled(w, &call));
	EXPECT_EQ(0, count_events(self));
}

static void check_unmap_event(META, FIXTURE_DATA(uffd) *self, int nr, int first,
			      int end)
{
	const struct uffd_msg *msg = &self->monitor.msg[nr];

	EXPECT_EQ(UFFD_EVENT_UNMAP, msg->event);
	EXPECT_EQ(cell_addr(&self->w, first), msg->arg.remove.start);
	EXPECT_EQ(cell_addr(&self->w, end), msg->arg.remove.end);
}

/* A registered destination is told of what is replaced, not of the gap. */
TEST_F(uffd, destination_mended)
{
	const struct call call = { 0, 4, 4, FIXED, UP(1) };
	struct world *w = &self->w;
	int nr;

	ASSERT_OK(build(w, PAGES, "w.rr", "dddddd"));
	ASSERT_OK(register_cells(self, UP(0), 6));
	ASSERT_OK(call_as_modelled(w, &call));
	nr = count_events(self);
	EXPECT_TRUE(has_vmflag(cell_addr(w, UP(2)), "um"));
	EXPECT_FALSE(has_vmflag(cell_addr(w, UP(1)), "um"));
	if (!(variant->features & UFFD_FEATURE_EVENT_UNMAP)) {
		EXPECT_EQ(0, nr);
		return;
	}
	ASSERT_EQ(2, nr);
	check_unmap_event(_metadata, self, 0, UP(1), UP(2));
	check_unmap_event(_metadata, self, 1, UP(3), UP(5));
}

/* No event of what did not happen. */
TEST_F(uffd, destination_of_refused_mended)
{
	const struct call call = { 0, 4, 4, FIXED, UP(1) };
	struct world *w = &self->w;

	ASSERT_OK(build(w, PAGES, "w.rS", "dddddd"));
	ASSERT_OK(register_cells(self, UP(0), 6));
	ASSERT_OK(refused_again(w, &call, EPERM));
	EXPECT_TRUE(has_vmflag(cell_addr(w, UP(0)), "um"));
	EXPECT_EQ(0, count_events(self));
}

/* ---- AIO: a driver that hears of moves, and may refuse ---- */

struct ring {
	unsigned long ctx;	/* also where it is mapped */
	size_t len;
};

static long io_setup(struct ring *ring)
{
	struct vma vma;

	ring->ctx = 0;
	if (syscall(__NR_io_setup, 1, &ring->ctx) || !find_vma(ring->ctx, &vma))
		return -1;
	ring->len = vma.end - vma.start;
	return 0;
}

/* Reads a byte through the ring: the kernel has to know where that is. */
static const char *use_ring(const struct ring *ring)
{
	struct io_event event = { 0 };
	int fd = open("/proc/self/exe", O_RDONLY);
	char byte = 0;
	struct iocb cb = {
		.aio_fildes = fd,
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_buf = (unsigned long)&byte,
		.aio_nbytes = 1,
	}, *cbs = &cb;
	const long submitted = syscall(__NR_io_submit, ring->ctx, 1, &cbs);
	const long got = submitted == 1 ?
		syscall(__NR_io_getevents, ring->ctx, 1, 1, &event, NULL) : 0;

	close(fd);
	if (got != 1 || event.res != 1 || byte != '\177')
		return complain("ring %#lx: submitted %ld, got %ld, result %ld",
				ring->ctx, submitted, got, (long)event.res);
	return NULL;
}

/* Takes a ring to another place, as one mapping. */
static const char *place_ring(struct ring *ring, unsigned long addr)
{
	if (move_to(ring->ctx, ring->len, ring->len, addr) != addr)
		return "cannot move an AIO ring";
	ring->ctx = addr;
	return use_ring(ring);
}

/*
 * The driver is asked when everything else has been done, which is too late for
 * what has been in the way: so it is not asked at all.
 */
TEST_F(multi, aio_ring_mended)
{
	const unsigned long flags[] = { FIXED, KEEP };
	struct world *w = &self->w;
	struct ring ring;
	size_t lens[2];

	if (io_setup(&ring))
		SKIP(return, "needs AIO");
	ASSERT_OK(build(w, PAGES, "wwr", "dddddd"));
	/* Behind the low half, so that the range has a gap before it. */
	ASSERT_OK(place_ring(&ring, cell_addr(w, HALF - 1) + psize()));
	ASSERT_OK(settle(w));
	lens[0] = bytes(HALF) + ring.len;
	lens[1] = lens[0] + psize();
	for (int i = 0; i < 4; i++) {
		const size_t len = lens[i / 2];

		save_state();
		ASSERT_EQ(EFAULT, error_of(do_mremap(w->base, len, len,
						     flags[i % 2],
						     cell_addr(w, UP(0)))));
		ASSERT_OK(check_refusal(w));
		ASSERT_OK(use_ring(&ring));
	}
	/* Nor before a gap, but by itself. */
	ASSERT_EQ(EFAULT, error_of(move_to(ring.ctx, 2 * ring.len,
					   2 * ring.len,
					   cell_addr(w, UP(8)))));
	ASSERT_OK(check_refusal(w));
	ASSERT_OK(place_ring(&ring, cell_addr(w, UP(8))));
	EXPECT_EQ(0, syscall(__NR_io_destroy, ring.ctx));
	EXPECT_OK(check_contents(w));
}

/* ---- the vDSO ---- */

typedef int clock_function(clockid_t clock, struct timespec *ts);

/* The vDSO and, right below it, the mappings with its data. */
struct vdso {
	unsigned long start;
	unsigned long code;
	unsigned long end;
	unsigned long clock;	/* address of its clock_gettime() */
};

static bool find_vdso(struct vdso *vdso)
{
	unsigned long addr = 0, start, end;
	char line[8192], name[64];
	FILE *maps = fopen("/proc/self/maps", "r");

	*vdso = (struct vdso) { 0 };
	while (maps && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %63s", &start, &end,
			   name) < 3)
			continue;
		if (!strncmp(name, "[vvar", 5) && start != addr)
			vdso->start = start;
		if (!strncmp(name, "[vvar", 5))
			addr = end;
		if (!strcmp(name, "[vdso]") && start == addr) {
			vdso->code = start;
			vdso->end = end;
		}
	}
	if (maps)
		fclose(maps);
	return vdso->code;
}

/* By its section headers, which are part of the image. */
static unsigned long find_symbol(unsigned long base, const char *name)
{
	const Elf64_Ehdr *elf = at(base);
	const Elf64_Shdr *section = at(base + elf->e_shoff);

	if (memcmp(elf->e_ident, ELFMAG, SELFMAG) ||
	    elf->e_ident[EI_CLASS] != ELFCLASS64)
		return 0;
	for (int i = 0; i < elf->e_shnum; i++) {
		const Elf64_Sym *sym = at(base + section[i].sh_offset);
		const unsigned long nr = section[i].sh_size / sizeof(*sym);
		const char *names;

		if (section[i].sh_type != SHT_DYNSYM)
			continue;
		names = at(base + section[section[i].sh_link].sh_offset);
		for (unsigned long j = 0; j < nr; j++)
			if (!strcmp(names + sym[j].st_name, name))
				return base + sym[j].st_value;
	}
	return 0;
}

static struct vdso vdso;

/* The system call has been right all the time; libc's own pointer is not. */
static const char *check_clock(unsigned long clock)
{
	clock_function *get = (clock_function *)clock;
	struct timespec before, now = { 0 }, after;

	for (int i = 0; i < 3; i++) {
		syscall(__NR_clock_gettime, CLOCK_MONOTONIC, &before);
		if (get(CLOCK_MONOTONIC, &now))
			return "the vDSO's clock fails";
		syscall(__NR_clock_gettime, CLOCK_MONOTONIC, &after);
		if (now.tv_sec < before.tv_sec || now.tv_sec > after.tv_sec ||
		    (now.tv_sec == before.tv_sec &&
		     now.tv_nsec < before.tv_nsec) ||
		    (now.tv_sec == after.tv_sec && now.tv_nsec > after.tv_nsec))
			return "the vDSO's clock is wrong";
	}
	return NULL;
}

static const char *refuse_vdso(unsigned long start, unsigned long end,
			       unsigned long flags)
{
	unsigned long ret;
	const char *why;

	save_state();
	ret = do_mremap(start, end - start, end - start, flags, SRC);
	if (error_of(ret) != EINVAL)
		return complain("errno %d", error_of(ret));
	why = check_state();
	return why ?: check_clock(vdso.clock);
}

/* Neither can be split, nor left behind empty. */
static const char *vdso_stays(void)
{
	const char *why = refuse_vdso(vdso.start, vdso.end, KEEP);

	if (vdso.end - vdso.code > psize())
		why = why ?: refuse_vdso(vdso.start, vdso.code + psize(),
					 FIXED);
	return why;
}

static const char *vdso_moves(void)
{
	const size_t len = vdso.end - vdso.start;
	const char *why = check_clock(vdso.clock);
	unsigned long ret;

	if (why)
		return why;
	ret = move_to(vdso.start, len, len, SRC);
	if (ret != SRC)
		return complain("errno %d", error_of(ret));
	why = check_clock(vdso.clock - vdso.start + SRC);
	why = why ?: check_unmapped(vdso.start, len);
	/* And back. */
	if (!why && move_to(SRC, len, len, vdso.start) != vdso.start)
		why = "it does not move back";
	return why ?: check_clock(vdso.clock);
}

/* In children: nobody else's clock shall fail. */
static bool look_for_vdso(void)
{
	if (!find_vdso(&vdso))
		return false;
	vdso.clock = find_symbol(vdso.code, "__vdso_clock_gettime") ?:
		     find_symbol(vdso.code, "__kernel_clock_gettime");
	return vdso.clock;
}

TEST_F(multi, vdso_moves_mended)
{
	if (!look_for_vdso())
		SKIP(return, "needs a vDSO with a clock");
	EXPECT_OK_IN_CHILD(vdso_moves());
}

TEST_F(multi, vdso_stays_mended)
{
	if (!look_for_vdso())
		SKIP(return, "needs a vDSO with a clock");
	EXPECT_OK_IN_CHILD(vdso_stays());
}

/* ---- beside threads and processes ---- */

#define SCRIBES	HALF

/* Counts in every writable cell, wherever these are at the moment. */
struct scribe {
	const struct world *w;
	const struct cell *cells;
	volatile int first;
	volatile bool stop;
	volatile unsigned long rounds;
	uint64_t count[SCRIBES];
	unsigned long lost;
	pthread_t thread;
};

static __thread sigjmp_buf scribe_env;

static void scribe_fault(int signal)
{
	(void)signal;
	siglongjmp(scribe_env, 1);
}

static void write_cell(struct scribe *scribe, int nr)
{
	/* A word that no stamp reaches. */
	volatile uint64_t *where = at(cell_addr(scribe->w, scribe->first + nr) +
				      psize() / 4);

	/* It may have moved since: then it is found in the next round. */
	if (sigsetjmp(scribe_env, 1))
		return;
	if (*where != scribe->count[nr])
		scribe->lost++;
	*where = scribe->count[nr] + 1;
	scribe->count[nr]++;
}

static void *run_scribe(void *arg)
{
	struct scribe *scribe = arg;

	while (!scribe->stop) {
		for (int nr = 0; nr < SCRIBES; nr++)
			if (!strcmp(scribe->cells[nr].is.perms, "rw-p"))
				write_cell(scribe, nr);
		scribe->rounds++;
	}
	return NULL;
}

/* Until a round that begins from now on is over. */
static void wait_for_scribe(struct scribe *scribe)
{
	const unsigned long rounds = scribe->rounds;

	while (scribe->rounds < rounds + 2)
		sched_yield();
}

static int start_scribe(struct scribe *scribe, struct world *w)
{
	static struct cell cells[HALF];

	memcpy(cells, w->cells, sizeof(cells));
	*scribe = (struct scribe) { .w = w, .cells = cells };
	return pthread_create(&scribe->thread, NULL, run_scribe, scribe);
}

static const char *stop_scribe(struct scribe *scribe)
{
	const char *why = NULL;

	scribe->stop = true;
	pthread_join(scribe->thread, NULL);
	if (scribe->lost)
		why = complain("%lu writes lost", scribe->lost);
	for (int nr = 0; !why && nr < SCRIBES; nr++) {
		const unsigned long addr = cell_addr(scribe->w,
						     scribe->first + nr);

		if (strcmp(scribe->cells[nr].is.perms, "rw-p"))
			continue;
		if (!scribe->count[nr])
			why = complain("cell %d was never written to", nr);
		else if (*(uint64_t *)at(addr + psize() / 4) != scribe->count[nr])
			why = complain("cell %d has another count", nr);
	}
	return why;
}

#define SCRIBE_LOW	"wwrrww.spoowwlrwrwrw"
#define SCRIBE_CELLS	20

/* No write of another thread is lost. */
TEST_F_TIMEOUT(shaped, write_while_moving_mended, 120)
{
	struct world *w = &self->w;
	static struct scribe scribe;
	size_t len;

	ASSERT_OK(build(w, variant->shape, SCRIBE_LOW, ""));
	len = SCRIBE_CELLS * w->unit;
	signal(SIGSEGV, scribe_fault);
	ASSERT_EQ(0, start_scribe(&scribe, w));
	wait_for_scribe(&scribe);
	for (int move = 0; move < 100; move++) {
		const int to = scribe.first ? 0 : UP(0);

		ASSERT_EQ(cell_addr(w, to),
			  move_to(cell_addr(w, scribe.first), len, len,
				  cell_addr(w, to)));
		scribe.first = to;
		if (move % 4 == 0)
			wait_for_scribe(&scribe);
	}
	EXPECT_OK(stop_scribe(&scribe));
	EXPECT_OK(check_layout(w));
	EXPECT_OK(check_contents(w));
}

/* What a child finds that has no arguments. */
static struct world *inherited_world;

/* Both sides of a fork move the pages that they share, then write. */
static const char *move_and_write(struct world *w, int to)
{
	const struct call call = { 0, 10, 10, FIXED, to };
	const char *why = settle(w);

	why = why ?: call_as_modelled(w, &call);
	for (int i = 0; !why && i < CELLS; i++) {
		struct cell *cell = &w->cells[i];

		if (strcmp(cell->is.perms, "rw-p"))
			continue;
		cell->content = OWN;
		cell->id = w->next_id++;
		stamp_cell(w, cell_addr(w, i), cell->id);
	}
	return why ?: check_contents(w);
}

static const char *child_moves(void)
{
	return move_and_write(inherited_world, UP(3));
}

TEST_F(shaped, shared_with_child_mended)
{
	struct world *w = &self->w;

	ASSERT_OK(build(w, variant->shape, "wwrr.ppdso", ""));
	inherited_world = w;
	EXPECT_OK_IN_CHILD(child_moves());
	EXPECT_OK(settle(w) ?: check_world(w));
	EXPECT_OK(move_and_write(w, UP(5)));
}

/* ---- killed on the way ---- */

#define DELAYS	"/sys/kernel/debug/mremap_delay_us/"

/* Moves in a process of its own, in the same address space. */
static int move_to_be_killed(void *w)
{
	const size_t len = bytes(HALF);

	do_mremap(cell_addr(w, 0), len, len, FIXED, cell_addr(w, UP(0)));
	return 0;
}

/* In the kernel, where nothing wakes it but that the time is over. */
static bool is_asleep(pid_t pid)
{
	char path[64], stat[512];
	const char *state;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (!read_setting(path, stat, sizeof(stat)))
		return false;
	state = strrchr(stat, ')');
	return state && state[2] == 'D';
}

FIXTURE(killed)
{
	struct world w;
};

FIXTURE_SETUP(killed)
{
	SKIP_STOCK();
	if (access(DELAYS "planned", W_OK))
		mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (access(DELAYS "planned", W_OK))
		SKIP(return, "needs delays (CONFIG_DEBUG_MREMAP_DELAY)");
}

FIXTURE_TEARDOWN(killed)
{
	write_setting(DELAYS "planned", "0");
}

/*
 * The signal comes while the first of the mappings waits a second to be moved,
 * as all the others are to after it. Whoever shares the memory finds it as it
 * was.
 */
TEST_F(killed, others_find_all_as_before_mended)
{
	static char stack[64 * KB] __attribute__((aligned(16)));
	struct world *w = &self->w;
	int status;
	pid_t pid;

	ASSERT_OK(build(w, PAGES, "wrwrlrwpwrwswrwrorwrpswrwrwrwrwr", ""));
	memset(stack, 0, sizeof(stack));
	save_state();
	ASSERT_TRUE(write_setting(DELAYS "planned", "1000000"));
	pid = clone(move_to_be_killed, stack + sizeof(stack),
		    CLONE_VM | SIGCHLD, w);
	ASSERT_LT(0, pid);
	while (!is_asleep(pid) && !waitpid(pid, &status, WNOHANG))
		sched_yield();
	EXPECT_EQ(0, kill(pid, SIGKILL));
	ASSERT_TRUE(write_setting(DELAYS "planned", "0"));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	ASSERT_OK(check_refusal(w));
}

/* ---- every allocation fails once ---- */

/* More than any of the calls below makes. */
#define MOST_ALLOCATIONS	1000

FIXTURE(sweep)
{
	struct world w;
};

FIXTURE_VARIANT(sweep)
{
	enum shape shape;
	struct call call;
	const char *low;
	const char *high;
};

#define SWEEP_LOW	"wwwwrr.pps.ddd"
#define SWEEP(name, shape, flags, high)					\
	FIXTURE_VARIANT_ADD(sweep, name) {				\
		shape, { 2, 11, 11, flags, UP(2) }, SWEEP_LOW, high	\
	}

SWEEP(pages, PAGES, FIXED, "");
SWEEP(pages_dontunmap, PAGES, KEEP, "");
SWEEP(pages_over_mappings, PAGES, FIXED, "wwwwwwwrrrrrddwd");
SWEEP(parts_of_tables, PARTS, FIXED, "");
SWEEP(uneven, UNEVEN, FIXED, "");
SWEEP(uneven_dontunmap, UNEVEN, KEEP, "");
SWEEP(tables, TABLES, FIXED, "......p...p");
SWEEP(parts_of_huge_pages, HUGE_PARTS, FIXED, "");
SWEEP(directories, DIRECTORIES, FIXED, "");

FIXTURE_SETUP(sweep)
{
	const char *why;

	SKIP_STOCK();
	why = prepare_fail_nth();
	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(sweep)
{
}

/*
 * What was in the way may have been unmapped before memory ran out: then it
 * stays so. What lies in a gap is not in the way.
 */
static const char *accept_unmapped(struct world *w, const struct call *call)
{
	struct attributes is[CELLS];
	const char *why = look_at_world(w, is);

	for (int i = 0; !why && i < call->old; i++) {
		struct cell *dst = &w->cells[call->to + i];

		if (w->cells[call->from + i].is.mapped &&
		    !is[call->to + i].mapped)
			*dst = (struct cell) { 0 };
	}
	return why ?: check_world(w);
}

static const char *fail_once(struct world *w, const struct call *call,
			     bool occupied)
{
	unsigned long ret;

	save_state();
	ret = make_call(w, call);
	if (!error_of(ret))
		return explain(call, check_success(w, call, ret));
	if (error_of(ret) != ENOMEM)
		return explain(call, complain("errno %d", error_of(ret)));
	return explain(call, occupied ? accept_unmapped(w, call) :
					check_refusal(w));
}

static const char *rebuild(struct world *w, const char *low, const char *high)
{
	const char *why;

	if (munmap(at(w->base), world_end(w) - w->base))
		return "munmap() failed";
	memset(w->cells, 0, sizeof(w->cells));
	why = lay(w, 0, low) ?: lay(w, HALF, high);
	return why ?: settle(w);
}

TEST_F_TIMEOUT(sweep, every_allocation_mended, 600)
{
	const bool occupied = *variant->high == 'w';
	struct world *w = &self->w;

	ASSERT_OK(make_world(w, variant->shape));
	fail_fd = open(FAIL_NTH, O_RDWR);
	ASSERT_LE(0, fail_fd);
	has_failed = true;
	for (fail_nth = 1; has_failed; fail_nth++) {
		const char *why;

		ASSERT_GE(MOST_ALLOCATIONS, fail_nth);
		ASSERT_OK(rebuild(w, variant->low, variant->high));
		why = fail_once(w, &variant->call, occupied);
		ASSERT_EQ(NULL, why)
			TH_LOG("allocation %d: %s", fail_nth, why);
	}
	/* At least the new mappings have to be allocated. */
	EXPECT_LT(5, fail_nth);
	close(fail_fd);
	fail_fd = -1;
}

static const char *move_back(struct world *w, const struct call *call)
{
	const size_t len = call->old * w->unit;

	if (move_to(cell_addr(w, call->to), len, len,
		    cell_addr(w, call->from)) != cell_addr(w, call->from))
		return "it does not move back";
	return NULL;
}

/* No write of another thread is lost, whatever the call came to. */
TEST_F_TIMEOUT(sweep, write_while_failing_mended, 600)
{
	const struct call *call = &variant->call;
	struct world *w = &self->w;
	static struct scribe scribe;

	if (keeps(call))
		SKIP(return, "needs all that is written to be at one place");
	ASSERT_OK(build(w, variant->shape, variant->low, ""));
	fail_fd = open(FAIL_NTH, O_RDWR);
	ASSERT_LE(0, fail_fd);
	signal(SIGSEGV, scribe_fault);
	ASSERT_EQ(0, start_scribe(&scribe, w));
	has_failed = true;
	for (fail_nth = 1; has_failed; fail_nth++) {
		int err;

		wait_for_scribe(&scribe);
		err = error_of(make_call(w, call));

		ASSERT_GE(MOST_ALLOCATIONS, fail_nth);
		ASSERT_TRUE(!err || err == ENOMEM);
		if (!err)
			ASSERT_OK(move_back(w, call));
	}
	wait_for_scribe(&scribe);
	/* At least the new mappings have to be allocated. */
	EXPECT_LT(5, fail_nth);
	close(fail_fd);
	fail_fd = -1;
	EXPECT_OK(stop_scribe(&scribe));
	EXPECT_OK(check_layout(w));
	EXPECT_OK(check_contents(w));
}

TEST_HARNESS_MAIN
