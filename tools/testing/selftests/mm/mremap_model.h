/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A model of mremap(2). Its world is a row of cells of equal size, in a low and a
 * high half, usually the source and the destination of a call. Text says what is
 * mapped there, one letter a cell, see lay_run(). The model knows of every cell the
 * contents, protection, flags, lock, file offset, registration, and the pagemap bits
 * of some of its pages; of every call whether it is refused, what becomes of all cells,
 * and which monitor is told what of it. The kernel is asked only what is so before a
 * call.
 *
 * Checks return NULL if all is well, as in mremap_util.h.
 */
#ifndef MREMAP_MODEL_H
#define MREMAP_MODEL_H

#include "mremap_util.h"

#define CELLS	64
#define HALF	32
#define UP(cell)	(HALF + (cell))

#define KEEP	(FIXED | DONTUNMAP)

/* Where a world is, and what else a test maps. */
#define SRC	(WINDOW + GB)
#define FILL	(WINDOW + 40 * GB)

/* More than any call makes. */
#define MOST_ALLOCATIONS	1000

enum shape {
	PAGES,		/* a cell is a page, tables end amid of them */
	PARTS,		/* a quarter of a page table */
	UNEVEN,		/* the same, and the halves are not congruent */
	TABLES,		/* a page table */
	ACROSS,		/* the same, and the high half begins below a directory's end */
	HUGE,		/* a huge page */
	HUGE_PARTS,	/* a quarter of a huge page */
	DIRECTORIES,	/* half a table of page tables */
	LARGE,		/* 256 MB */
};

enum content {
	ZERO,		/* never touched */
	OWN,		/* stamped */
	FROM_FILE,
	BEYOND,		/* the end of its file: may not be touched */
};

/* What /proc/self/smaps says of a cell. */
struct attributes {
	bool mapped;
	bool locked;
	bool marked;	/* VM_SOFTDIRTY; not compared */
	char perms[5];
	unsigned long inode;
	unsigned long offset;
	int flags;	/* all other VmFlags, as an index of flag_texts[] */
};

/* Pages of a cell whose pagemap bits are known. */
#define LOOKED	6

struct cell {
	struct attributes is;
	bool sealed;
	bool chooses;	/* its file chooses its addresses itself, and moves alone */
	int monitor;	/* whose it is, if it is registered */
	bool protected;	/* against writing, when it was laid */
	bool hugetlb;
	bool blank;	/* its file is, wherever one looks */
	enum content content;
	unsigned long id;
	unsigned long object;	/* cells that its object is long, if that is its own */
	uint64_t bits[LOOKED];
};

/* In kB. */
struct books {
	long size;
	long data;
	long locked;
	long committed;
};

/* A world's monitors, by the events that they want. */
enum {
	WANTS_NONE,
	WANTS_ALL,
	WANTS_MOVES,
	WANTS_UNMAPS,
	MONITORS,
};

struct world {
	unsigned long base;
	size_t unit;	/* bytes of a cell */
	size_t skew;	/* what the high half is displaced by */
	bool huge;
	bool sparse;	/* cells too large to be charged or locked */
	bool around;	/* the last call went around what is in its gaps */
	bool tracked;	/* soft-dirty: something may read as clean */
	bool whole;	/* tables or huge pages move whole, nothing else does */
	bool shifts;	/* the last call, by less than its length */
	int fd;
	int own_fd;	/* of a file on the current directory's file system */
	int device_fd;
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
	struct monitor monitors[MONITORS];
	bool at_hint;		/* is what it chose the last time */
	size_t ballast;
	struct counters before;		/* the last call */
	long pool[2];			/* of huge pages, before it */
};

struct call {
	int from;
	int old;
	int new;
	unsigned long flags;
	int to;		/* without MREMAP_FIXED a hint, if it is not 0 */
};

/* ---- building a world ---- */

const char *make_world(struct world *w, enum shape shape);
/* Registers what is there as these kinds would be, in place of a dot nothing. */
const char *watch(struct world *w, int first, const char *text);
/* Takes what is there for what should be there. */
const char *settle(struct world *w);
/* Lays these texts in its halves; and makes a world for that. */
const char *lay_out(struct world *w, const char *low, const char *high);
const char *build(struct world *w, enum shape shape, const char *low, const char *high);
/* Unmaps all of it, so that the next can be built. */
const char *clear(struct world *w);
void drop_world(struct world *w);
/* From now on it shows which pages are changed. */
void track(struct world *w);
/* Gives a cell new contents. */
void restamp(struct world *w, int nr);

/* ---- looking at it ---- */

unsigned long cell_addr(const struct world *w, int cell);
/* No range may cross this on its way up from the cell. */
int end_of_half(const struct world *w, int cell);
bool has_flag(const struct cell *cell, const char *flag);
bool is_plain(const struct cell *cell);

const char *check_contents_at(const struct world *w, unsigned long addr, const struct cell *cell);
const char *check_contents(const struct world *w);
/* All but the contents. */
const char *check_layout(struct world *w);
const char *check_world(struct world *w);
/* The last check: what could not be read until now, is made readable. */
const char *reveal(struct world *w);
/* The last but one: what is written now is found where it belongs. */
const char *rewrite(struct world *w);

/* ---- calls ---- */

#define ERROR(error)	(1U << (error))

bool fixed(const struct call *call);
bool overlaps(const struct call *call);
/* Does it move all of its range, with gaps that stay gaps? */
bool is_multi(const struct call *call);

/* All that is wrong with a call: the kernel may tell any of it. */
unsigned int errors_of(const struct world *w, const struct call *call);

/*
 * Before the call: notes all that it is compared with, and if it may fail, saves what
 * it must not change then. The call itself, with that, failing as armed. And what the
 * model takes for granted after a success.
 */
void begin_call(struct world *w, bool may_fail);
unsigned long make_call(struct world *w, const struct call *call, bool may_fail);
void apply(struct world *w, const struct call *call, unsigned long ret);

/*
 * Makes a call, that has to come out as the model says, or be refused. One that is
 * for several mappings is refused with MREMAP_DONTUNMAP as well.
 */
const char *call_as_modelled(struct world *w, const struct call *call);
const char *call_refused(struct world *w, const struct call *call, int error);
/* A call that may fail for one of these reasons, must if there is any. */
const char *try_call(struct world *w, const struct call *call, unsigned int errors);
/* After one that was, and one that was not refused. */
const char *check_refusal(struct world *w);
const char *check_success(struct world *w, const struct call *call, unsigned long ret);

/* ---- failing allocations ---- */

struct failure {
	int fd;			/* of fail-nth, or -1: nothing fails */
	int make_it_fail;
	int nth;
	bool from_there_on;	/* all that follow it fail, too */
	bool has_failed;	/* in the last call */
};

extern struct failure failure;

/* What is missing for it, or NULL. */
const char *start_failing(bool from_there_on);
void stop_failing(void);
/* The failure.nth allocation from here on, if failing was started. */
void arm_failure(void);
void disarm_failure(void);
/*
 * Makes the call with the nth allocation failing. It comes out as modelled, or it
 * is refused for that reason only and all is as before; an old destination may be
 * gone. Without any memory from there on, no page is lost.
 */
const char *fail_call(struct world *w, const struct call *call);

#endif
