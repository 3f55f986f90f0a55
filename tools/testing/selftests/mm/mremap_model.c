// SPDX-License-Identifier: GPL-2.0
/* See mremap_model.h. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "mremap_model.h"

/* Cells that the file is long, and what its cells are stamped with. */
#define FILE_CELLS	192
#define FILE_ID		0x1000000UL

/* What fills up to the peak. */
#define BALLAST	(WINDOW + (4UL << 40))

/* ---- places ---- */

unsigned long cell_addr(const struct world *w, int cell)
{
	return w->base + cell * w->unit + (cell >= HALF ? w->skew : 0);
}

static unsigned long world_end(const struct world *w)
{
	return cell_addr(w, CELLS - 1) + w->unit;
}

int end_of_half(const struct world *w, int cell)
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

/* The pages whose bits are known: these, and others beside them. */
static int nr_looked(const struct world *w)
{
	return w->unit == psize() ? 1 : LOOKED;
}

static size_t looked(const struct world *w, int nr)
{
	const size_t pages = w->unit / psize();
	const size_t where[LOOKED] = {
		0, 1, pages / 2, pages / 2 + 1, pages - 2, pages - 1,
	};

	return bytes(where[nr]);
}

static void stamp_cell(const struct world *w, unsigned long addr, unsigned long id)
{
	for (int nr = 0; nr < nr_spots(w); nr++)
		stamp(addr + spot(w, nr), id * 4 + nr);
}

/* ---- userfaultfd ---- */

static const char *write_protect(int fd, unsigned long addr, size_t len, bool protect)
{
	struct uffdio_writeprotect wp = {
		.range = { addr, len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	/* EAGAIN: a change of the mappings has been begun and not ended. */
	if (ioctl(fd, UFFDIO_WRITEPROTECT, &wp))
		return complain("write protection: errno %d", errno);
	return NULL;
}

static const uint64_t events_wanted[MONITORS] = {
	[WANTS_ALL] = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP,
	[WANTS_MOVES] = UFFD_FEATURE_EVENT_REMAP,
	[WANTS_UNMAPS] = UFFD_FEATURE_EVENT_UNMAP,
};

/*
 * Only for write protection, so that what is not there yet can be read. If cells are
 * not too large, this protects also pages that are not there.
 */
static const char *register_run(struct world *w, unsigned long addr, size_t len,
				int nr, bool protect)
{
	const uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
		UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		(w->sparse ? 0 : UFFD_FEATURE_WP_UNPOPULATED);
	struct monitor *monitor = &w->monitors[nr];
	const char *why = NULL;

	if (!monitor->thread && !start_monitor(monitor, events_wanted[nr] | features))
		return "needs userfaultfd with write protection";
	if (uffd_register(monitor->fd, at(addr), len, false, true, false))
		why = "needs userfaultfd that can write-protect such memory";
	if (!why && protect)
		why = write_protect(monitor->fd, addr, len, true);
	return why;
}

/* ---- KSM ---- */

#define KSM	"/sys/kernel/mm/ksm/"

/* All pages of it are the same. */
static const char *merge_run(unsigned long addr, size_t len)
{
	long merged = 0;

	if (read_long(KSM "run") < 0)
		return "needs KSM";
	if (madvise(at(addr), len, MADV_MERGEABLE))
		return "cannot have pages merged";
	write_setting(KSM "pages_to_scan", "1000");
	write_setting(KSM "sleep_millisecs", "1");
	write_setting(KSM "run", "1");
	for (int try = 0; merged < (long)(len / KB) && try < 20000; try++) {
		usleep(1000);
		merged = smaps_kb(addr, "KSM");
	}
	write_setting(KSM "run", "0");
	return merged < (long)(len / KB) ? "ksmd does not merge" : NULL;
}

/* ---- building it ---- */

static void place_world(struct world *w, enum shape shape)
{
	const size_t table = pmd_span();

	w->base = SRC;
	w->unit = table;
	switch (shape) {
	case PAGES:
		/* The source, and the destination, lie in two tables each. */
		w->base += table - bytes(10);
		w->unit = psize();
		w->skew = table - bytes(HALF);
		break;
	case UNEVEN:
	case PARTS:
		w->skew = shape == UNEVEN ? bytes(3) : 0;
		w->base += table / 4;
		w->unit = table / 4;
		break;
	case ACROSS:
		w->skew = 4 * pud_span() - UP(2) * table;
		break;
	case HUGE_PARTS:
		w->unit = table / 4;
		break;
	case DIRECTORIES:
		w->unit = pud_span() / 2;
		break;
	case LARGE:
		w->unit = 256 * MB;
		break;
	default:
		break;
	}
}

const char *make_world(struct world *w, enum shape shape)
{
	*w = (struct world) {
		.next_id = 1,
		.next_offset = 1,
		.own_fd = -1,
		.device_fd = -1,
		.huge = shape == HUGE || shape == HUGE_PARTS,
		.sparse = shape == DIRECTORIES,
		.whole = shape == TABLES || shape == ACROSS || shape == HUGE ||
			 shape == DIRECTORIES,
	};
	place_world(w, shape);
	prctl(PR_SET_THP_DISABLE, !w->huge, 0, 0, 0);
	w->fd = memfd_create("mremap_model", 0);
	if (w->fd < 0 || ftruncate(w->fd, FILE_CELLS * w->unit))
		return "needs memfd_create(2)";
	return NULL;
}

void drop_world(struct world *w)
{
	clear(w);
	close(w->fd);
	if (w->own_fd >= 0)
		close(w->own_fd);
	if (w->device_fd >= 0)
		close(w->device_fd);
	for (int i = 0; i < MONITORS; i++)
		if (w->monitors[i].thread)
			stop_monitor(&w->monitors[i]);
}

static const char *stamp_in_file(struct world *w, int fd, unsigned long cell)
{
	static char page[1 << 16] __attribute__((aligned(1 << 16)));

	for (int nr = 0; nr < nr_spots(w); nr++) {
		const off_t where = cell * w->unit + spot(w, nr);

		stamp((unsigned long)page, (FILE_ID + cell) * 4 + nr);
		if (pwrite(fd, page, psize(), where) != psize())
			return "cannot fill a file";
	}
	return NULL;
}

static const char *fill_file(struct world *w, unsigned long end)
{
	const char *why = NULL;

	for (; !why && w->filled < end; w->filled++)
		why = stamp_in_file(w, w->fd, w->filled);
	return why;
}

/* A file of a file system that is not the kernel's own, all of it stamped. */
static const char *open_own_file(struct world *w)
{
	char path[] = "mremap_model.XXXXXX";
	const char *why = NULL;

	if (w->own_fd >= 0)
		return NULL;
	w->own_fd = mkstemp(path);
	if (w->own_fd < 0)
		return "needs a directory to write to";
	unlink(path);
	for (int cell = 0; !why && cell < FILE_CELLS; cell++)
		why = stamp_in_file(w, w->own_fd, cell);
	return why;
}

static bool is_ramfs(int fd)
{
	struct statfs fs;

	return !fstatfs(fd, &fs) && fs.f_type == RAMFS_MAGIC;
}

/* What a letter stands for. Those of one kind side by side are one mapping. */
struct kind {
	char letter;
	int flags;	/* of mmap(); 0: MAP_PRIVATE */
	int prot;	/* in the end; 0: for reading and writing */
	int advice;
	const char *path;	/* of a file, "" in the current directory */
	bool has_file;		/* the world's memfd */
	bool is_object;		/* stamped all over, and as long as it is mapped */
	bool stays_blank;
	bool same_pages;
	bool registered;
	int monitor;
	bool protected;
};

#define BLIND	(-1)	/* PROT_NONE is 0 */

/*
 * Anonymous and private, if not said otherwise. A capital letter means that it is
 * sealed; a dot that nothing is mapped there; a dash that it was mapped with what is
 * before and unmapped again.
 */
static const struct kind kinds[] = {
	{ .letter = 'w' },				/* for reading and writing */
	{ .letter = 'e', .stays_blank = true },		/* never touched */
	{ .letter = 'r', .prot = PROT_READ },
	{ .letter = 'n', .prot = BLIND },
	{ .letter = 'o', .flags = MAP_PRIVATE | MAP_NORESERVE },
	{ .letter = 'd', .advice = MADV_DONTDUMP },
	{ .letter = 'l' },				/* locked */
	{ .letter = 'g', .flags = MAP_PRIVATE | MAP_GROWSDOWN },
	{ .letter = 's', .flags = MAP_SHARED, .has_file = true },
	{ .letter = 'q', .flags = MAP_SHARED, .has_file = true, .prot = PROT_READ },
	{ .letter = 'p', .has_file = true },
	{ .letter = 'f', .flags = MAP_SHARED, .path = "" },	/* of another file */
	{ .letter = 'b', .path = "" },				/* the same, private */
	{ .letter = 'z', .path = "/dev/zero" },
	{ .letter = 't', .path = "/dev/zero", .stays_blank = true },
	{ .letter = 'a', .flags = MAP_SHARED | MAP_ANONYMOUS, .is_object = true },
	{ .letter = 'h', .flags = MAP_PRIVATE | MAP_HUGETLB },
	{ .letter = 'k', .flags = MAP_SHARED | MAP_HUGETLB, .is_object = true },
	{ .letter = 'i', .flags = MAP_PRIVATE | MAP_HUGETLB, .registered = true,
	  .protected = true },
	{ .letter = 'c', .same_pages = true },		/* merged by KSM, if a cell is a page */
	/* Registered with userfaultfd: with no, all, or some events; read only. */
	{ .letter = 'u', .registered = true },
	{ .letter = 'x', .registered = true, .monitor = WANTS_ALL },
	{ .letter = '1', .registered = true, .monitor = WANTS_MOVES },
	{ .letter = '2', .registered = true, .monitor = WANTS_UNMAPS },
	{ .letter = 'j', .registered = true, .monitor = WANTS_ALL, .prot = PROT_READ },
	/* The same, never touched: this is left to itself, or followed. */
	{ .letter = '4', .registered = true, .monitor = WANTS_UNMAPS, .stays_blank = true },
	{ .letter = '5', .registered = true, .monitor = WANTS_ALL, .stays_blank = true },
	/* Protected as well, without and with events; the same of the memfd. */
	{ .letter = 'v', .registered = true, .protected = true },
	{ .letter = 'y', .registered = true, .monitor = WANTS_ALL, .protected = true },
	{ .letter = '3', .flags = MAP_SHARED, .has_file = true, .registered = true,
	  .protected = true },
	{ .letter = 'm', .flags = MAP_SHARED, .has_file = true, .registered = true,
	  .monitor = WANTS_ALL, .protected = true },
};

static const struct kind *find_kind(char letter)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (kinds[i].letter == tolower(letter))
			return &kinds[i];
	return NULL;
}

static const char *change_run(struct world *w, const struct kind *kind,
			      unsigned long addr, size_t len)
{
	const char *why = NULL;
	int err = 0;

	if (kind->prot)
		err = mprotect(at(addr), len, kind->prot == BLIND ? PROT_NONE : kind->prot);
	if (kind->advice)
		err = madvise(at(addr), len, kind->advice);
	if (kind->letter == 'l' && !w->sparse)
		err = mlock(at(addr), len);
	if (err)
		return complain("kind %c: errno %d", kind->letter, errno);
	if (kind->registered)
		why = register_run(w, addr, len, kind->monitor, kind->protected);
	if (!why && kind->same_pages)
		why = merge_run(addr, len);
	return why;
}

/* Left untouched: every fourth cell, and every other of files and of hugetlb. */
static void fill_cell(struct world *w, const struct kind *kind, int nr)
{
	const bool shared = kind->flags & MAP_SHARED;
	struct cell *cell = &w->cells[nr];
	const bool often = kind->has_file || kind->path || kind->flags & MAP_HUGETLB;
	const bool blank = nr % (often ? 2 : 4) == (often ? 1 : 3);

	cell->content = kind->has_file || kind->is_object ||
			(kind->path && !cell->blank) ? FROM_FILE : ZERO;
	if (kind->is_object) {
		stamp_cell(w, cell_addr(w, nr), cell->id);
	} else if (kind->same_pages) {
		cell->content = OWN;
		cell->id = 1;
		for (size_t at = 0; at < w->unit; at += psize())
			stamp(cell_addr(w, nr) + at, 4);
	} else if (!kind->stays_blank && !((kind->has_file || kind->path) && shared) &&
		   (!blank || kind->registered)) {
		restamp(w, nr);
	}
}

void restamp(struct world *w, int nr)
{
	struct cell *cell = &w->cells[nr];

	cell->content = OWN;
	cell->id = w->next_id++;
	stamp_cell(w, cell_addr(w, nr), cell->id);
}

static int open_path(struct world *w, const char *path)
{
	if (!*path)
		return open_own_file(w) ? -1 : w->own_fd;
	if (w->device_fd < 0)
		w->device_fd = open(path, O_RDWR);
	return w->device_fd;
}

static const char *map_run(struct world *w, const struct kind *kind,
			   unsigned long addr, size_t len, off_t offset)
{
	int flags = kind->flags ?: MAP_PRIVATE;
	int fd = kind->has_file ? w->fd : -1;

	if (kind->path) {
		fd = open_path(w, kind->path);
		if (fd < 0)
			return "needs a file to map";
	}
	if (fd < 0)
		flags |= MAP_ANONYMOUS;
	if (w->sparse && !(flags & MAP_SHARED))
		flags |= MAP_NORESERVE;
	if (map_at(addr, len, PROT_READ | PROT_WRITE, flags, fd, offset) != addr)
		return flags & MAP_HUGETLB ? "needs free huge pages (vm.nr_hugepages)" :
			complain("cannot map kind %c: errno %d", kind->letter, errno);
	if (w->huge && (flags & MAP_ANONYMOUS) && !(flags & MAP_SHARED) &&
	    madvise(at(addr), len, MADV_HUGEPAGE))
		return "needs transparent huge pages";
	return NULL;
}

/* Maps cells of one kind, as one mapping. */
static const char *lay_run(struct world *w, int first, int nr, char letter)
{
	const unsigned long addr = cell_addr(w, first);
	const struct kind *kind = find_kind(letter);
	unsigned long offset = 0;
	const char *why = NULL;

	if (!kind)
		return complain("there is no kind %c", letter);
	if (kind->has_file) {
		offset = w->next_offset;
		/* Runs of the same kind, side by side, stay two mappings. */
		w->next_offset += nr + 1;
		why = fill_file(w, w->next_offset);
	}
	why = why ?: map_run(w, kind, addr, nr * w->unit, offset * w->unit);
	for (int i = 0; !why && i < nr; i++) {
		w->cells[first + i] = (struct cell) {
			.sealed = isupper(letter),
			.chooses = kind->path && (*kind->path || is_ramfs(w->own_fd)),
			.blank = kind->path && *kind->path,
			.hugetlb = kind->flags & MAP_HUGETLB,
			.monitor = kind->monitor,
			.protected = kind->protected,
			.object = kind->is_object ? nr : 0,
			.id = FILE_ID + i,
		};
		fill_cell(w, kind, first + i);
	}
	why = why ?: change_run(w, kind, addr, nr * w->unit);
	if (!why && isupper(letter) && seal(addr, nr * w->unit))
		why = "needs mseal(2)";
	return why;
}

/* Cells of the run that a dash stands for are taken out again. */
static const char *cut_out(struct world *w, int first, const char *text, int nr)
{
	for (int i = 0; i < nr; i++) {
		if (text[i] != '-')
			continue;
		if (munmap(at(cell_addr(w, first + i)), w->unit))
			return "munmap() failed";
		w->cells[first + i] = (struct cell) { 0 };
	}
	return NULL;
}

static const char *lay(struct world *w, int first, const char *text)
{
	const char *why = NULL;

	while (*text && !why) {
		int nr = 1;

		while (text[nr] == *text || (*text != '.' && text[nr] == '-'))
			nr++;
		if (*text != '.')
			why = lay_run(w, first, nr, *text);
		why = why ?: cut_out(w, first, text, nr);
		first += nr;
		text += nr;
	}
	return why;
}

const char *watch(struct world *w, int first, const char *text)
{
	const char *why = NULL;

	for (int i = first; !why && *text; i++, text++) {
		const struct kind *kind = find_kind(*text);

		if (!kind)
			continue;
		w->cells[i].monitor = kind->monitor;
		w->cells[i].protected = kind->protected;
		why = register_run(w, cell_addr(w, i), w->unit, kind->monitor, kind->protected);
	}
	return why;
}

/* Whatever the monitors were told. Its number. */
static int forget_all_events(struct world *w)
{
	int nr = 0;

	for (int i = 0; i < MONITORS; i++)
		if (w->monitors[i].thread)
			nr += forget_messages(&w->monitors[i]);
	return nr;
}

const char *clear(struct world *w)
{
	if (munmap(at(w->base), world_end(w) - w->base))
		return "munmap() failed";
	memset(w->cells, 0, sizeof(w->cells));
	w->next_offset = 1;
	forget_all_events(w);
	return NULL;
}

void track(struct world *w)
{
	w->tracked = softdirty_supported();
	if (w->tracked)
		clear_softdirty();
}

/* ---- looking at it ---- */

/* Numbers for what VmFlags say, but for those that a call changes by itself. */
static char flag_texts[128][128];

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
	while (nr < 127 && *flag_texts[nr] && strcmp(flag_texts[nr], text))
		nr++;
	memcpy(flag_texts[nr], text, sizeof(text));
	return nr;
}

static int flags_without_registration(int flags)
{
	char text[128];

	memcpy(text, flag_texts[flags], sizeof(text));
	drop_flag(text, " um ");
	drop_flag(text, " uw ");
	return number_flags(text);
}

bool has_flag(const struct cell *cell, const char *flag)
{
	return strstr(flag_texts[cell->is.flags], flag);
}

static bool is_registered(const struct cell *cell)
{
	return has_flag(cell, " um ") || has_flag(cell, " uw ");
}

/* May it be written to, by whoever wants? */
bool is_plain(const struct cell *cell)
{
	return !strcmp(cell->is.perms, "rw-p") && !is_registered(cell);
}

static void read_attributes(const struct smap *map, unsigned long addr, struct attributes *out)
{
	const struct vma *vma = &map->vma;

	*out = (struct attributes) {
		.mapped = true,
		.locked = strstr(map->flags, " lo "),
		.marked = strstr(map->flags, " sd "),
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

	if (count > 256)
		return "too many mappings";
	for (int i = 0; i < nr; i++, addr += unit) {
		is[i] = (struct attributes) { 0 };
		joined[i] = false;
		while (map < count && maps[map].vma.end <= addr)
			map++;
		if (map == count || maps[map].vma.start >= addr + unit)
			continue;
		if (maps[map].vma.start > addr || maps[map].vma.end < addr + unit)
			return complain("%#lx: mapped in part", addr);
		read_attributes(&maps[map], addr, &is[i]);
		joined[i] = map == last;
		last = map;
	}
	return NULL;
}

static const char *look_at_world(struct world *w, struct attributes *is)
{
	const char *why;

	if (!w->skew)
		return look(w->base, w->unit, CELLS, is, w->joined);
	why = look(w->base, w->unit, HALF, is, w->joined);
	return why ?: look(cell_addr(w, HALF), w->unit, CELLS - HALF, is + HALF,
			   w->joined + HALF);
}

/* Where a lack of memory may have kept pages from being faulted in. */
#define ANY_BITS	(~0ULL)

#define PM_KEPT	(PM_MOVES | PM_UFFD_WP | PM_SOFT_DIRTY)

static void read_bits(const struct world *w, int pagemap, unsigned long addr, uint64_t *bits)
{
	for (int nr = 0; nr < nr_looked(w); nr++) {
		const unsigned long page = addr + looked(w, nr);

		/* Who has given up privileges may not look there. */
		bits[nr] = ANY_BITS;
		if (pagemap >= 0)
			bits[nr] = pagemap_get_entry(pagemap, at(page)) & PM_KEPT;
	}
}

/* Takes the bits that pages have for those that they should have. */
static void note_bits(struct world *w)
{
	const int pagemap = open("/proc/self/pagemap", O_RDONLY);

	for (int i = 0; i < CELLS; i++)
		if (w->cells[i].is.mapped)
			read_bits(w, pagemap, cell_addr(w, i), w->cells[i].bits);
	close(pagemap);
}

static void add_up(const struct world *w, const struct cell *cell, struct books *sum)
{
	const long kb = w->unit / KB;

	if (!cell->is.mapped)
		return;
	sum->size += kb;
	if (cell->is.perms[1] == 'w' && cell->is.perms[3] == 'p' && !has_flag(cell, " gd "))
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

const char *settle(struct world *w)
{
	struct attributes is[CELLS];
	const char *why = look_at_world(w, is);
	struct books sum, now;

	if (why)
		return why;
	for (int i = 0; i < CELLS; i++)
		w->cells[i].is = is[i];
	forget_all_events(w);
	sum = sum_up(w);
	if (!w->rest.size)
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

const char *lay_out(struct world *w, const char *low, const char *high)
{
	const char *why = lay(w, 0, low) ?: lay(w, HALF, high);

	/* What a file's last mapping may grow by is stamped, too. */
	return why ?: fill_file(w, w->next_offset + HALF / 2) ?: settle(w);
}

const char *build(struct world *w, enum shape shape, const char *low, const char *high)
{
	const char *why = make_world(w, shape);

	return why ?: lay_out(w, low, high);
}

/* ---- comparing it with what it should be ---- */

static const char *check_attributes(int nr, const struct attributes *is,
				    const struct attributes *want)
{
	if (is->mapped != want->mapped)
		return complain("cell %d is %smapped", nr, is->mapped ? "" : "not ");
	if (strcmp(is->perms, want->perms))
		return complain("cell %d: %s, not %s", nr, is->perms, want->perms);
	if (is->locked != want->locked)
		return complain("cell %d is %slocked", nr, is->locked ? "" : "not ");
	if (is->inode != want->inode || is->offset != want->offset)
		return complain("cell %d: offset %#lx of inode %lu, not %#lx of %lu",
				nr, is->offset, is->inode, want->offset, want->inode);
	if (is->flags != want->flags)
		return complain("cell %d: flags%s, not%s", nr,
				flag_texts[is->flags], flag_texts[want->flags]);
	return NULL;
}

static const char *check_sum(const char *what, long is, long want)
{
	return is == want ? NULL : complain("%s %ld, not %ld", what, is, want);
}

static const char *check_books(const struct world *w)
{
	const struct books sum = sum_up(w);
	struct books now = read_books();

	/*
	 * The sum is exact, but that of all processes: those that are about to end
	 * give back theirs. What this one has lost or doubled stays so.
	 */
	for (int i = 0; i < 200 && now.committed != w->rest.committed + sum.committed; i++) {
		usleep(1000);
		now.committed = committed_kb();
	}
	return check_sum("VmSize", now.size, w->rest.size + sum.size) ?:
	       check_sum("VmData", now.data, w->rest.data + sum.data) ?:
	       check_sum("VmLck", now.locked, w->rest.locked + sum.locked) ?:
	       check_sum("Committed_AS", now.committed, w->rest.committed + sum.committed);
}

static const char *check_away(const struct world *w)
{
	struct attributes is[CELLS];
	bool joined[CELLS];
	const char *why = look(w->away, w->unit, w->nr_away, is, joined);

	for (int i = 0; !why && i < w->nr_away; i++)
		why = check_attributes(i, &is[i], &w->away_cells[i].is);
	return why;
}

const char *check_layout(struct world *w)
{
	struct attributes is[CELLS];
	const char *why = look_at_world(w, is);

	for (int i = 0; !why && i < CELLS; i++) {
		why = check_attributes(i, &is[i], &w->cells[i].is);
		w->cells[i].is.marked = is[i].marked;
	}
	if (!why && w->nr_away)
		why = check_away(w);
	return why;
}

/* How exactly the soft-dirty bits of pages that are there have to be as told. */
enum strictness {
	ANYTHING,	/* not at all */
	NONE_IS_LOST,	/* what has changed reads so, and maybe more */
	AS_TOLD,
};

static const char *check_bits_of(const struct world *w, int pagemap,
				 unsigned long addr, const struct cell *cell,
				 enum strictness dirty)
{
	uint64_t is[LOOKED];

	read_bits(w, pagemap, addr, is);
	for (int nr = 0; nr < nr_looked(w); nr++) {
		const uint64_t want = cell->bits[nr];
		uint64_t differs = (is[nr] ^ want) & ~PM_SOFT_DIRTY;

		if (want & (PM_PRESENT | PM_SWAP)) {
			if (dirty != ANYTHING)
				differs |= want & ~is[nr] & PM_SOFT_DIRTY;
			if (dirty == AS_TOLD)
				differs |= is[nr] & ~want & PM_SOFT_DIRTY;
		}
		/* The huge zero page reads as one of a file, its parts do not. */
		if (w->huge && cell->content == ZERO && want & PM_PRESENT)
			differs &= ~PM_FILE;
		if (differs && want != ANY_BITS)
			return complain("page %#lx: pagemap bits %#llx, not %#llx",
					addr + looked(w, nr), (unsigned long long)is[nr],
					(unsigned long long)want);
	}
	return NULL;
}

static const char *check_bits(const struct world *w, enum strictness dirty)
{
	const int pagemap = open("/proc/self/pagemap", O_RDONLY);
	const char *why = NULL;

	if (pagemap < 0)
		return NULL;
	for (int i = 0; !why && i < CELLS; i++)
		if (w->cells[i].is.mapped)
			why = check_bits_of(w, pagemap, cell_addr(w, i), &w->cells[i], dirty);
	for (int i = 0; !why && i < w->nr_away; i++)
		why = check_bits_of(w, pagemap, w->away + i * w->unit, &w->away_cells[i], dirty);
	close(pagemap);
	return why;
}

const char *check_contents_at(const struct world *w, unsigned long addr, const struct cell *cell)
{
	const unsigned long id = cell->content == OWN ? cell->id :
		FILE_ID + cell->is.offset / w->unit;
	const char *why = NULL;

	if (cell->content == BEYOND)
		return NULL;
	for (int nr = 0; !why && nr < nr_spots(w); nr++) {
		if (cell->content == ZERO)
			why = check_zero(addr + spot(w, nr), psize());
		else
			why = check_stamp(addr + spot(w, nr), id * 4 + nr);
	}
	return why;
}

const char *check_contents(const struct world *w)
{
	const char *why = NULL;

	for (int i = 0; !why && i < CELLS; i++)
		if (w->cells[i].is.perms[0] == 'r')
			why = check_contents_at(w, cell_addr(w, i), &w->cells[i]);
	for (int i = 0; !why && i < w->nr_away; i++)
		if (w->away_cells[i].is.perms[0] == 'r')
			why = check_contents_at(w, w->away + i * w->unit, &w->away_cells[i]);
	return why;
}

const char *check_world(struct world *w)
{
	return check_layout(w) ?: check_contents(w) ?: check_books(w);
}

const char *reveal(struct world *w)
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

/* Ids that nothing has been stamped with yet: of a cell, and of one of a file. */
#define LATER_ID	0x2000000UL

static unsigned long later_id(const struct world *w, int nr)
{
	const struct cell *cell = &w->cells[nr];

	return cell->is.perms[3] == 's' ?
		2 * LATER_ID + cell->is.inode % 4096 * FILE_CELLS +
		cell->is.offset / w->unit : LATER_ID + nr;
}

static bool may_write(const struct cell *cell)
{
	return cell->is.perms[1] == 'w' && cell->content != BEYOND && !is_registered(cell);
}

const char *rewrite(struct world *w)
{
	const char *why = NULL;

	for (int i = 0; i < CELLS; i++)
		if (may_write(&w->cells[i]))
			stamp_cell(w, cell_addr(w, i), later_id(w, i));
	for (int i = 0; !why && i < CELLS; i++) {
		if (!may_write(&w->cells[i]))
			continue;
		w->cells[i].content = OWN;
		w->cells[i].id = later_id(w, i);
		why = check_contents_at(w, cell_addr(w, i), &w->cells[i]);
	}
	return why;
}

/* ---- what is wrong with a call ---- */

bool fixed(const struct call *call)
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

bool is_multi(const struct call *call)
{
	return fixed(call) && call->old == call->new;
}

bool overlaps(const struct call *call)
{
	return call->from + call->old > call->to && call->to + call->new > call->from;
}

/* Does it overlap, and may do so? */
static bool shifts(const struct call *call)
{
	return call->flags & MREMAP_OVERLAP && overlaps(call);
}

/* Is this cell of what moves? Then it is not in the way, if it may be overlapped. */
static bool is_shifted(const struct call *call, int cell)
{
	return shifts(call) && cell >= call->from && cell < call->from + call->old;
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

/* Does it move, or let grow, more than one mapping, or one and a gap? */
static bool moves_several(const struct world *w, const struct call *call)
{
	const bool grows = call->flags & MREMAP_MAYMOVE && call->new > call->old;
	const int kept = kept_cells(call);

	/* Only what keeps its size may have gaps. */
	for (int i = 0; i < kept && call->old != call->new; i++)
		if (!w->cells[call->from + i].is.mapped)
			return false;
	return (fixed(call) || keeps(call) || grows) && !one_mapping(w, call->from, kept);
}

static bool is_free(const struct world *w, int first, int end)
{
	for (int i = first; i < end; i++)
		if (w->cells[i].is.mapped)
			return false;
	return true;
}

/* Is there room to grow where it is? */
static bool fits(const struct world *w, const struct call *call)
{
	return is_free(w, call->from + call->old, call->from + call->new);
}

/* Whether it is one that moves only by itself, not with others nor with a gap. */
static bool moves_alone(const struct cell *cell)
{
	return cell->chooses || is_registered(cell);
}

static unsigned int errors_of_several(const struct world *w, const struct call *call)
{
	const bool several = moves_several(w, call);
	const int kept = kept_cells(call);
	unsigned int errors = 0;

	for (int i = 0; i < kept; i++) {
		const struct cell *cell = &w->cells[call->from + i];

		if (!cell->is.mapped)
			continue;
		if (cell->sealed || (fixed(call) && w->cells[call->to + i].sealed))
			errors |= ERROR(EPERM);
		if (several && (moves_alone(cell) || expect_base()))
			errors |= ERROR(EFAULT);
		if (keeps(call) && cell->hugetlb)
			errors |= ERROR(EINVAL);
	}
	return errors;
}

/* What the last of several grows by, or what is dropped of it, and of others. */
static unsigned int errors_of_change(const struct world *w, const struct call *call)
{
	const int kept = kept_cells(call);
	unsigned int errors = 0;

	if (any_sealed(w, call->from + kept, call->from + call->old))
		errors |= ERROR(EPERM);
	if (fixed(call) && any_sealed(w, call->to + kept, call->to + call->new))
		errors |= ERROR(EPERM);
	if (call->new > call->old && w->cells[call->from + kept - 1].hugetlb)
		errors |= ERROR(EFAULT);
	if (keeps(call) && (call->old > call->new || (call->old < call->new && expect_base())))
		errors |= ERROR(EINVAL);
	return errors;
}

static bool is_outside(const struct call *call, int nr)
{
	return nr < call->from || nr >= call->from + call->old;
}

/* Private hugetlb grows only as a whole. Each mapping has a file of its own. */
static bool is_part_of_file(const struct world *w, const struct call *call)
{
	const unsigned long inode = w->cells[call->from].is.inode;

	for (int i = 0; i < CELLS; i++) {
		if (is_outside(call, i) && w->cells[i].is.inode == inode)
			return true;
		if (w->away_cells[i].is.inode == inode)
			return true;
	}
	return false;
}

static unsigned int errors_of_hugetlb(const struct world *w, const struct call *call)
{
	const bool private = w->cells[call->from].is.perms[3] == 'p';

	if (keeps(call))
		return ERROR(EINVAL);
	if (call->new <= call->old)
		return 0;
	if (!call->old || expect_base() || (private && is_part_of_file(w, call)))
		return ERROR(EINVAL);
	return 0;
}

static unsigned int errors_of_one(const struct world *w, const struct call *call)
{
	const int kept_end = call->from + kept_cells(call);
	const struct cell *first = &w->cells[call->from];
	const bool forced = fixed(call) || keeps(call);
	unsigned int errors = 0;

	if (first->sealed)
		errors |= ERROR(EPERM);
	if (any_sealed(w, kept_end, call->from + call->old))
		errors |= ERROR(EPERM);
	if (fixed(call) && any_sealed(w, call->to, call->to + call->new))
		errors |= ERROR(EPERM);
	/* Shrinking in place looks at nothing but what it unmaps. */
	if ((forced || call->new > call->old) && !one_mapping(w, call->from, kept_cells(call)))
		errors |= ERROR(EFAULT);
	if (!call->old && first->is.perms[3] == 'p')
		errors |= ERROR(EINVAL);
	if (!call->old && fixed(call) && call->to == call->from)
		errors |= ERROR(EFAULT);
	if (first->hugetlb)
		errors |= errors_of_hugetlb(w, call);
	if (keeps(call) && (!call->old || call->old > call->new ||
			    (call->old < call->new && expect_base())))
		errors |= ERROR(EINVAL);
	if (!call->flags && call->new > call->old && !fits(w, call))
		errors |= ERROR(ENOMEM);
	return errors;
}

/* To where a part of it is now: whoever would have to be told of it does not go. */
static unsigned int errors_of_shift(const struct world *w, const struct call *call)
{
	unsigned int errors = call->old == call->new ? 0 : ERROR(EINVAL);

	for (int i = 0; i < kept_cells(call); i++) {
		const struct cell *cell = &w->cells[call->from + i];
		const int to = call->to + i;

		if (!cell->is.mapped)
			continue;
		if (cell->sealed || w->cells[to].sealed)
			errors |= ERROR(EPERM);
		if (moves_alone(cell) || cell->hugetlb)
			errors |= ERROR(EINVAL);
	}
	return errors;
}

unsigned int errors_of(const struct world *w, const struct call *call)
{
	unsigned int errors = 0;

	if (!w->cells[call->from].is.mapped)
		errors |= ERROR(EFAULT);
	if (call->flags & MREMAP_OVERLAP && (expect_base() || keeps(call) || !fixed(call)))
		errors |= ERROR(EINVAL);
	else if (shifts(call))
		return errors | errors_of_shift(w, call);
	if (fixed(call) && overlaps(call))
		errors |= ERROR(EINVAL);
	if (is_multi(call))
		return errors | errors_of_several(w, call);
	if (moves_several(w, call))
		return errors | errors_of_several(w, call) | errors_of_change(w, call);
	return errors | errors_of_one(w, call);
}

/* ---- what becomes of the cells ---- */

static void set_bits(struct cell *cell, uint64_t bits)
{
	for (int nr = 0; nr < LOOKED; nr++)
		cell->bits[nr] = bits;
}

/* What nobody has of a file: an anonymous private mapping has one only by name. */
static enum content content_below(const struct cell *cell)
{
	if (cell->hugetlb && cell->is.perms[3] == 'p')
		return ZERO;
	return cell->is.inode && !cell->blank ? FROM_FILE : ZERO;
}

/* What is left of a cell whose pages have moved away. */
static struct cell emptied(const struct cell *cell)
{
	struct cell left = *cell;

	if (!cell->is.mapped)
		return left;
	if (left.content != BEYOND)
		left.content = content_below(cell);
	left.is.locked = false;
	set_bits(&left, 0);
	return left;
}

/* Does its monitor want to know where it went? */
static bool follows(const struct cell *cell)
{
	return events_wanted[cell->monitor] & UFFD_FEATURE_EVENT_REMAP;
}

/* No page, but write protection for one. Nothing registered is ever swapped. */
static bool is_marker(uint64_t bits)
{
	return bits != ANY_BITS && bits & PM_SWAP && bits & PM_UFFD_WP;
}

/* What it is at its new place, where userfaultfd may not know of it. */
static struct cell moved(const struct cell *cell)
{
	const bool forgotten = is_registered(cell) && !follows(cell);
	struct cell dst = *cell;

	if (!cell->is.mapped)
		return (struct cell) { 0 };
	if (forgotten)
		dst.is.flags = flags_without_registration(dst.is.flags);
	for (int nr = 0; nr < LOOKED; nr++) {
		if (forgotten && is_marker(dst.bits[nr]))
			dst.bits[nr] = 0;
		if (forgotten)
			dst.bits[nr] &= ~PM_UFFD_WP;
		/* hugetlb does not know of soft-dirty. */
		if (!dst.hugetlb && dst.bits[nr] & (PM_PRESENT | PM_SWAP))
			dst.bits[nr] |= PM_SOFT_DIRTY;
	}
	return dst;
}

struct failure failure = { .fd = -1, .make_it_fail = -1 };

/* The cell that many cells behind, where a mapping grows. */
static struct cell grown(const struct world *w, const struct cell *first, int behind)
{
	struct cell cell = *first;

	cell.content = content_below(&cell);
	cell.is.offset += cell.is.inode ? behind * w->unit : 0;
	/* An object of small pages does not grow, and hugetlb is blank there. */
	if (cell.object && cell.is.offset / w->unit >= cell.object)
		cell.content = cell.hugetlb ? ZERO : BEYOND;
	set_bits(&cell, !cell.is.locked ? 0 : failure.fd < 0 ? PM_PRESENT : ANY_BITS);
	return cell;
}

static void apply_several(struct world *w, const struct call *call)
{
	struct cell was[CELLS];

	if (call->to == call->from)
		return;
	for (int i = 0; i < call->old; i++) {
		struct cell *src = &w->cells[call->from + i];

		was[i] = *src;
		*src = keeps(call) ? emptied(src) : (struct cell) { 0 };
	}
	for (int i = 0; i < call->old; i++)
		if (was[i].is.mapped)
			w->cells[call->to + i] = moved(&was[i]);
}

/* To where nothing is, or no gap. */
static void apply_all(struct world *w, const struct call *call, struct cell *dst)
{
	struct cell *src = &w->cells[call->from];
	const int last = call->old ? call->old - 1 : 0;
	const struct cell grows = dst == src ? src[last] : moved(&src[last]);
	struct cell result[CELLS];

	for (int i = 0; i < call->new; i++) {
		if (i >= call->old)
			result[i] = grown(w, &grows, i - last);
		else
			result[i] = dst == src ? src[i] : moved(&src[i]);
	}
	for (int i = 0; i < call->old; i++)
		src[i] = keeps(call) ? emptied(&src[i]) : (struct cell) { 0 };
	memcpy(dst, result, call->new * sizeof(*dst));
}

/* The cell where it is afterwards, or -1: that is up to the kernel. */
static int target(const struct world *w, const struct call *call)
{
	const int end = call->from + call->old;
	const bool may_choose = w->cells[call->from].chooses && !w->at_hint;
	const bool hint = call->to && !may_choose && is_free(w, call->to, call->to + call->new);

	if (fixed(call))
		return call->to;
	if (keeps(call))
		return hint ? call->to : -1;
	if (call->old && call->new <= call->old)
		return call->from;
	return fits(w, call) && (end == CELLS || !w->joined[end]) ? call->from : -1;
}

void apply(struct world *w, const struct call *call, unsigned long ret)
{
	const int to = target(w, call);

	if (is_multi(call)) {
		apply_several(w, call);
	} else if (to >= 0) {
		apply_all(w, call, &w->cells[to]);
	} else {
		w->away = ret;
		w->nr_away = call->new;
		apply_all(w, call, w->away_cells);
	}
}

/* ---- what the monitors are told ---- */

static bool any_watched(const struct world *w, int monitor, int first, int nr)
{
	for (int i = first; i < first + nr; i++)
		if (is_registered(&w->cells[i]) && w->cells[i].monitor == monitor)
			return true;
	return false;
}

/* Who has registered any of it is told of all of it. */
static void want_cells_unmapped(struct world *w, int first, int nr)
{
	for (int i = 0; i < MONITORS; i++)
		if (any_watched(w, i, first, nr))
			want_unmap(&w->monitors[i], cell_addr(w, first), nr * w->unit);
}

/* Of several mappings, each run without a gap takes its own place. */
static void want_destination_unmapped(struct world *w, const struct call *call)
{
	const int range = is_multi(call) ? 0 : call->new;
	int first = 0;

	if (range)
		want_cells_unmapped(w, call->to, range);
	for (int i = 0; !range && i <= call->old; i++) {
		if (i < call->old && w->cells[call->from + i].is.mapped &&
		    !is_shifted(call, call->to + i))
			continue;
		if (i > first)
			want_cells_unmapped(w, call->to + first, i - first);
		first = i + 1;
	}
}

/* In the order in which it happens. Stock tells the length before it was cut. */
static void want_events(struct world *w, const struct call *call, unsigned long ret)
{
	const struct cell *first = &w->cells[call->from];
	const bool moves = target(w, call) != call->from;
	const int kept = kept_cells(call);

	if (fixed(call))
		want_destination_unmapped(w, call);
	if (moves && is_registered(first))
		want_remap(&w->monitors[first->monitor], cell_addr(w, call->from), ret,
			   (expect_base_6() ? call->old : kept) * w->unit);
	want_cells_unmapped(w, call->from + kept, call->old - kept);
	if (moves && !keeps(call))
		want_cells_unmapped(w, call->from, kept);
}

/* ---- the call ---- */

/* Of huge pages those that are free, and those of them that are reserved. */
static void read_pool(const struct world *w, long *pool)
{
	pool[0] = 0;
	pool[1] = 0;
	for (int i = 0; i < CELLS; i++) {
		if (!w->cells[i].hugetlb)
			continue;
		pool[0] = meminfo_kb("HugePages_Free");
		pool[1] = meminfo_kb("HugePages_Rsvd");
		return;
	}
}

/* Maps more, so that the size is the peak, and a call that goes beyond shows. */
static void climb_to_peak(struct world *w)
{
	struct counters *now = &w->before;
	size_t more;

	read_counters(now);
	read_pool(w, w->pool);
	more = (now->peak - now->size) * KB;
	if (!more)
		return;
	if (map_at(BALLAST + w->ballast, more, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != BALLAST + w->ballast)
		return;
	w->ballast += more;
	w->rest.size += more / KB;
	now->size = now->peak;
}

/* A task that is made to fail does so as soon as fail-nth has counted down. */
static void set_make_it_fail(const char *fail)
{
	if (failure.from_there_on && pwrite(failure.make_it_fail, fail, 1, 0) != 1)
		abort();
}

void arm_failure(void)
{
	if (failure.fd < 0)
		return;
	set_make_it_fail("1");
	arm_fail_nth(failure.fd, failure.nth);
}

void disarm_failure(void)
{
	if (failure.fd < 0)
		return;
	failure.has_failed = disarm_fail_nth(failure.fd);
	set_make_it_fail("0");
}

#define LAST_ADDR	(1UL << 56)

/* What was mapped before the call, outside of the world. */
static struct vma elsewhere_before[256];
static int nr_elsewhere;

static bool was_elsewhere(unsigned long start)
{
	for (int i = 0; i < nr_elsewhere && i < 256; i++)
		if (elsewhere_before[i].start == start)
			return true;
	return false;
}

void begin_call(struct world *w, bool may_fail)
{
	if (failure.fd >= 0)
		nr_elsewhere = read_vmas(2 * WINDOW, LAST_ADDR, elsewhere_before, 256);
	climb_to_peak(w);
	note_bits(w);
	if (may_fail)
		save_state();
}

/* Is a gap of what moves to be where something is mapped? */
static bool goes_around(const struct world *w, const struct call *call)
{
	for (int i = 0; fixed(call) && i < call->old; i++)
		if (!w->cells[call->from + i].is.mapped && w->cells[call->to + i].is.mapped)
			return true;
	return false;
}

unsigned long make_call(struct world *w, const struct call *call, bool may_fail)
{
	const unsigned long addr = cell_addr(w, call->from);
	const unsigned long to = call->to ? cell_addr(w, call->to) : fixed(call) ? w->base : 0;
	unsigned long ret;

	w->shifts = shifts(call);
	begin_call(w, may_fail);
	arm_failure();
	ret = do_mremap(addr, call->old * w->unit, call->new * w->unit, call->flags, to);
	disarm_failure();
	w->at_hint = ret == to;
	w->around = goes_around(w, call);
	return ret;
}

/* Is something in the way that goes, and stays away if the call fails later? */
static bool is_over(const struct world *w, const struct call *call)
{
	for (int i = call->to; fixed(call) && i < call->to + call->new; i++)
		if (w->cells[i].is.mapped && !is_shifted(call, i))
			return true;
	return false;
}

static const char *check_place(const struct world *w, const struct call *call, unsigned long ret)
{
	const int to = target(w, call);

	if (to >= 0 && ret != cell_addr(w, to))
		return complain("returns %#lx, not %#lx", ret, cell_addr(w, to));
	if (to < 0 && ret + call->new * w->unit > w->base && ret < world_end(w))
		return complain("returns %#lx, which is not free", ret);
	return NULL;
}

static const char *check_pool(const struct world *w)
{
	long pool[2];

	read_pool(w, pool);
	if (!memcmp(pool, w->pool, sizeof(pool)))
		return NULL;
	return complain("huge pages free %ld, was %ld; reserved %ld, was %ld", pool[0],
			w->pool[0], pool[1], w->pool[1]);
}

/* Moves of the same size need no memory for pages, nor for a moment more room. */
static const char *check_counters_after(const struct world *w, const struct call *call, bool over)
{
	const struct counters *was = &w->before;
	struct counters is;
	long peak;

	read_counters(&is);
	peak = was->peak > is.size ? was->peak : is.size;
	if (is.peak != peak && !expect_base())
		return complain("VmPeak %ld, not %ld", is.peak, peak);
	if (call->old != call->new || over)
		return NULL;
	if (is.rss_anon != was->rss_anon || is.rss_shmem != was->rss_shmem)
		return complain("RssAnon %ld, was %ld; RssShmem %ld, was %ld",
				is.rss_anon, was->rss_anon, is.rss_shmem, was->rss_shmem);
	return check_pool(w);
}

/*
 * Neighbours of what moves keep their bits, but for those that merge with what is
 * marked as changed as a whole, and for the rest of a huge page that is split.
 */
static enum strictness how_dirty(const struct world *w, const struct call *call)
{
	if (!w->tracked || expect_base())
		return ANYTHING;
	if (call->old != call->new || (w->huge && !w->whole))
		return NONE_IS_LOST;
	for (int i = 0; i < CELLS; i++)
		if (w->cells[i].is.marked)
			return NONE_IS_LOST;
	return AS_TOLD;
}

/* Nothing is told twice, either. */
static const char *check_all_events(struct world *w)
{
	const char *why = NULL;

	for (int i = 0; !why && i < MONITORS; i++)
		if (w->monitors[i].thread)
			why = check_events(&w->monitors[i]);
	return why;
}

const char *check_success(struct world *w, const struct call *call, unsigned long ret)
{
	const bool over = is_over(w, call);
	const enum strictness dirty = how_dirty(w, call);
	const char *why = check_place(w, call, ret);

	want_events(w, call, ret);
	why = why ?: check_counters_after(w, call, over);
	why = why ?: check_all_events(w);
	if (why)
		return why;
	apply(w, call, ret);
	why = check_layout(w) ?: check_bits(w, dirty) ?: check_contents(w) ?: check_books(w);
	if (w->nr_away)
		munmap(at(w->away), w->nr_away * w->unit);
	w->nr_away = 0;
	return why;
}

/*
 * Tables that move whole take their pages' bits along, there and back. Where ranges
 * overlap and bits are looked at, none do.
 */
static enum strictness dirty_after_refusal(const struct world *w)
{
	/* Nor do they where a copy has merged with a neighbour that has not changed. */
	if (failure.fd >= 0 && w->around)
		return w->tracked ? NONE_IS_LOST : ANYTHING;
	if (!w->tracked)
		return ANYTHING;
	return failure.fd < 0 || (w->whole && !w->shifts) ? AS_TOLD : NONE_IS_LOST;
}

/* All monitors can go on as before, and have been told nothing. */
static const char *check_monitors(struct world *w)
{
	const int told = forget_all_events(w);
	const char *why = NULL;

	if (told)
		return complain("%d events of what has not happened", told);
	for (int i = 0; !why && i < CELLS; i++) {
		const struct cell *cell = &w->cells[i];

		/* As it is already: only whether the monitor is kept from it. */
		if (cell->is.mapped && is_registered(cell) && cell->bits[0] != ANY_BITS)
			why = write_protect(w->monitors[cell->monitor].fd,
					    cell_addr(w, i), w->unit, cell->bits[0] & PM_UFFD_WP);
	}
	return why;
}

static const char *check_nothing_taken(const struct world *w)
{
	struct counters is;

	read_counters(&is);
	return check_pool(w) ?: check_sum("VmPeak", is.peak, w->before.peak);
}

/* hugetlb never merges: what was split for a moment stays split. */
static bool may_stay_split(const struct world *w)
{
	for (int i = 0; i < CELLS; i++)
		if (w->cells[i].hugetlb)
			return failure.fd >= 0;
	return false;
}

const char *check_refusal(struct world *w)
{
	const char *why = may_stay_split(w) ? NULL : check_state();

	why = why ?: check_nothing_taken(w);
	why = why ?: check_bits(w, dirty_after_refusal(w));
	why = why ?: check_monitors(w);
	why = why ?: check_world(w);
	return why ? complain("refused, but %s", why) : NULL;
}

static const char *explain(const struct call *call, const char *why)
{
	static char text[1024];

	if (!why)
		return NULL;
	snprintf(text, sizeof(text), "mremap(cell %d, %d, %d, %#lx, cell %d): %s", call->from,
		 call->old, call->new, call->flags, call->to, why);
	return text;
}

const char *try_call(struct world *w, const struct call *call, unsigned int errors)
{
	const unsigned long ret = make_call(w, call, errors);
	const int err = error_of(ret);

	if (!err && errors)
		return explain(call, "was not refused");
	if (err && !(errors & ERROR(err)))
		return explain(call, complain("errno %d", err));
	return explain(call, err ? check_refusal(w) : check_success(w, call, ret));
}

const char *call_as_modelled(struct world *w, const struct call *call)
{
	return try_call(w, call, errors_of(w, call));
}

const char *call_refused(struct world *w, const struct call *call, int error)
{
	struct call keep = *call;

	keep.flags |= MREMAP_DONTUNMAP;
	return try_call(w, call, ERROR(error)) ?:
	       (is_multi(call) ? try_call(w, &keep, ERROR(error)) : NULL);
}

/* ---- failing allocations ---- */

static bool set_probability(const char *percent)
{
	const char *const files[][2] = {
		{ DEBUGFS "failslab/task-filter", "Y" },
		{ DEBUGFS "failslab/times", "-1" },
		{ DEBUGFS "failslab/probability", percent },
		{ DEBUGFS "fail_page_alloc/task-filter", "Y" },
		{ DEBUGFS "fail_page_alloc/times", "-1" },
		{ DEBUGFS "fail_page_alloc/probability", percent },
	};

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		if (!write_setting(files[i][0], files[i][1]))
			return false;
	return true;
}

/*
 * What runs while nothing can be allocated must not take a page fault, which would
 * be tried again for ever. So all that is mapped is made present, with copies of its
 * own where it is private, and it runs once before.
 */
static void rehearse_failure(void)
{
	make_all_present();
	failure.nth = MOST_ALLOCATIONS;
	arm_failure();
	do_mremap(0, 0, 0, 0, 0);
	disarm_failure();
}

const char *start_failing(bool from_there_on)
{
	const char *why = prepare_fail_nth();

	if (why)
		return why;
	if (!set_probability(from_there_on ? "100" : "0"))
		return "cannot set up fault injection";
	failure = (struct failure) {
		.fd = open(FAIL_NTH, O_RDWR),
		.make_it_fail = open("/proc/self/make-it-fail", O_RDWR),
		.from_there_on = from_there_on,
	};
	if (failure.fd < 0 || failure.make_it_fail < 0)
		return "cannot arm fault injection";
	rehearse_failure();
	return NULL;
}

void stop_failing(void)
{
	if (failure.fd < 0)
		return;
	set_probability("0");
	close(failure.fd);
	close(failure.make_it_fail);
	failure.fd = -1;
}

/*
 * What was in the way may have been unmapped before memory ran out: then it
 * stays so. What lies in a gap is not in the way.
 */
static const char *accept_unmapped(struct world *w, const struct call *call, bool *gone)
{
	struct attributes is[CELLS];
	const char *why = look_at_world(w, is);

	for (int i = 0; !why && i < call->new; i++) {
		struct cell *dst = &w->cells[call->to + i];

		if (is_multi(call) && !w->cells[call->from + i].is.mapped)
			continue;
		if (is_shifted(call, call->to + i))
			continue;
		if (!dst->is.mapped || is[call->to + i].mapped)
			continue;
		*dst = (struct cell) { 0 };
		*gone = true;
	}
	return why;
}

static const char *check_failed(struct world *w, const struct call *call)
{
	const bool over = is_over(w, call);
	bool gone = false;
	const char *why;

	if (!over)
		return check_refusal(w);
	want_destination_unmapped(w, call);
	why = accept_unmapped(w, call, &gone);
	if (!why && !gone)
		return check_refusal(w);
	why = why ?: check_all_events(w);
	why = why ?: check_bits(w, dirty_after_refusal(w));
	why = why ?: check_monitors(w);
	return why ?: check_world(w);
}

/* Where a mapping grows that is new since the call, if it is one of its length. */
static size_t left_over(const struct world *w, const struct call *call, int first)
{
	int end = first + 1;

	while (end < call->old && w->joined[call->from + end])
		end++;
	return ((end == call->old ? call->new : end) - first) * w->unit;
}

/*
 * There may not be the memory to unmap the new mappings again. Where the kernel has
 * put them, only their lengths tell.
 */
static void unmap_left_over(const struct world *w, const struct call *call)
{
	const bool elsewhere = target(w, call) < 0 || shifts(call);
	struct vma vmas[256];
	const int nr = read_vmas(2 * WINDOW, LAST_ADDR, vmas, ARRAY_SIZE(vmas));

	for (int first = 0; elsewhere && first < call->old; first++) {
		const size_t len = left_over(w, call, first);

		if (first && w->joined[call->from + first])
			continue;
		for (int i = 0; i < nr && i < 256; i++)
			if (vmas[i].end - vmas[i].start == len && !was_elsewhere(vmas[i].start))
				munmap(at(vmas[i].start), len);
	}
}

/* Then there is no memory to mend anything, either. But nothing is lost. */
static const char *check_failed_for_good(struct world *w, const struct call *call)
{
	const bool over = is_over(w, call);
	const enum strictness dirty = w->tracked ? NONE_IS_LOST : ANYTHING;
	const int told = forget_all_events(w);
	const char *why = NULL;

	if (told && !over)
		return complain("%d events of what has not happened", told);
	for (int i = call->to; fixed(call) && i < call->to + call->new; i++)
		if (!is_shifted(call, i))
			w->cells[i] = (struct cell) { 0 };
	why = check_bits(w, dirty) ?: check_contents(w);
	unmap_left_over(w, call);
	return why;
}

const char *fail_call(struct world *w, const struct call *call)
{
	const unsigned long ret = make_call(w, call, true);
	const char *why;

	if (!error_of(ret))
		why = check_success(w, call, ret);
	else if (error_of(ret) != ENOMEM)
		why = complain("errno %d", error_of(ret));
	else if (failure.from_there_on)
		why = check_failed_for_good(w, call);
	else
		why = check_failed(w, call);
	return explain(call, why);
}
