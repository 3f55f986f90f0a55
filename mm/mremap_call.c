// SPDX-License-Identifier: GPL-2.0
/*
 * The system call mremap(2): mm/mremap.h has its phases, its locks and its types.
 *
 * It has page tables moved by mm/mremap.c: move_page_tables() and
 * move_page_tables_back() between a VMA and its copy, relocate_page_tables() with
 * the VMA itself.
 *
 * mremap_locked() tells what a call comes down to:
 *
 *   mremap_overlapping()  MREMAP_OVERLAP, to a range that overlaps the old one
 *   mremap_several()      more than one mapping, or one before a gap
 *   mremap_to()           one, with MREMAP_FIXED or MREMAP_DONTUNMAP
 *   grow()                in place, or to where the kernel chooses
 *   shrink_in_place()     nothing moves
 *
 * What moves goes from check_*() and plan_*() by prepare_move() and do_move(), or
 * shift_vmas(), to commit_move() or revert_move().
 */

#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/ksm.h>
#include <linux/mman.h>
#include <linux/perf_event.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/secretmem.h>
#include <linux/security.h>
#include <linux/shm.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/syscalls.h>

#include "mremap.h"

#define CREATE_TRACE_POINTS
#include <trace/events/mremap.h>

static struct vma_move *end_of_moves(const struct mremap_op *op)
{
	return op->moves + op->nr_moves;
}

/* The one that grows, if one does. */
static struct vma_move *last_move(const struct mremap_op *op)
{
	return end_of_moves(op) - 1;
}

#define for_each_move(op, mv) \
	for ((mv) = (op)->moves; (mv) < end_of_moves(op); (mv)++)

#define for_each_dst_range(op, range)				\
	for ((range) = (op)->ranges;				\
	     (range) < (op)->ranges + (op)->nr_ranges; (range)++)

/*
 * Before each of several mappings: let others run, and give up if the process was
 * killed, as long as all can be undone.
 */
static int resched_or_killed(const struct mremap_op *op)
{
	if (op->nr_moves == 1)
		return 0;
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* The request: pure functions, no locks, no mm */

static unsigned long moved_len(const struct mremap_request *req)
{
	return min(req->old_len, req->new_len);
}

static unsigned long growth(const struct mremap_request *req)
{
	return req->new_len > req->old_len ? req->new_len - req->old_len : 0;
}

static unsigned long shrinkage(const struct mremap_request *req)
{
	return req->old_len > req->new_len ? req->old_len - req->new_len : 0;
}

/* With these flags the caller says that the mapping is to move, come what may. */
static bool is_forced_move(const struct mremap_request *req)
{
	return req->flags & (MREMAP_FIXED | MREMAP_DONTUNMAP);
}

static bool keeps_source(const struct mremap_request *req)
{
	return req->flags & MREMAP_DONTUNMAP;
}

/* The new place may overlap the old one; without this flag that is refused. */
static bool may_overlap(const struct mremap_request *req)
{
	return req->flags & MREMAP_OVERLAP;
}

/* Checks of the request: they change nothing */

/*
 * What can be told from the arguments alone. Lengths are still as the caller
 * gave them: MREMAP_DONTUNMAP compares them to the byte.
 */
static int check_request(const struct mremap_request *req)
{
	if (req->flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP |
			   MREMAP_OVERLAP))
		return -EINVAL;
	if (is_forced_move(req) && !(req->flags & MREMAP_MAYMOVE))
		return -EINVAL;
	if (may_overlap(req) && (!(req->flags & MREMAP_FIXED) || keeps_source(req)))
		return -EINVAL;
	if (keeps_source(req) && (!req->old_len || req->old_len > req->new_len))
		return -EINVAL;
	if (offset_in_page(req->addr) || !PAGE_ALIGN(req->new_len))
		return -EINVAL;
	return 0;
}

/*
 * Do the two ranges share a byte? The sum may wrap for an absurd old_len; a
 * single source is found not to be mapped that far right after, and a range of
 * several was asked for that before.
 */
static bool ranges_overlap(const struct mremap_request *req)
{
	return req->addr + req->old_len > req->new_addr &&
	       req->new_addr + req->new_len > req->addr;
}

static int check_new_range(const struct mremap_request *req)
{
	if (offset_in_page(req->new_addr))
		return -EINVAL;
	if (req->new_len > TASK_SIZE || req->new_addr > TASK_SIZE - req->new_len)
		return -EINVAL;
	return 0;
}

static int check_destination(const struct mremap_request *req)
{
	return ranges_overlap(req) ? -EINVAL : check_new_range(req);
}

/* Only what keeps its size may have gaps, and moves with them. */
static bool may_have_gaps(const struct mremap_request *req)
{
	return req->old_len == req->new_len;
}

/*
 * Several mappings in one call: it moves them all, and the last one may grow or
 * shrink meanwhile. A range that ends in a gap is of this kind, too. What only
 * shrinks, at its place, is not.
 */
static bool covers_several(const struct vm_area_struct *vma,
			   const struct mremap_request *req)
{
	if (moved_len(req) <= vma->vm_end - req->addr)
		return false;
	return is_forced_move(req) ||
	       ((req->flags & MREMAP_MAYMOVE) && growth(req));
}

/* Checks of the VMAs: they change no mapping; all hold mmap_lock for write */

/* Is all mapped from the VMA on up to @end? It may have wrapped. */
static bool has_no_gaps(struct vm_area_struct *vma, unsigned long end)
{
	VMA_ITERATOR(vmi, vma->vm_mm, vma->vm_end);
	unsigned long mapped = vma->vm_end;

	if (end <= vma->vm_start)
		return false;
	for_each_vma_range(vmi, vma, end) {
		if (vma->vm_start != mapped)
			break;
		mapped = vma->vm_end;
	}
	return mapped >= end;
}

/* Round lengths up to what the source is made of, and refuse what it can't do. */
static int check_hugetlb(struct vm_area_struct *vma, struct mremap_request *req)
{
	unsigned long size = huge_page_size(hstate_vma(vma));
	unsigned long old_len = ALIGN(req->old_len, size);
	unsigned long new_len = ALIGN(req->new_len, size);

	/* A length near the end of the address space is not to become none. */
	if (old_len < req->old_len || new_len < req->new_len)
		return -EINVAL;
	/*
	 * munmap() does not round: who asks for less than whole huge pages, and gets
	 * more, would not get rid of them.
	 */
	if (new_len > old_len && new_len != req->new_len)
		return -EINVAL;
	/* There are no second views of hugetlb. */
	if (new_len > old_len && !old_len)
		return -EINVAL;
	req->old_len = old_len;
	req->new_len = new_len;

	if (!IS_ALIGNED(req->addr, size))
		return -EINVAL;
	if (is_forced_move(req) && !IS_ALIGNED(req->new_addr, size))
		return -EINVAL;
	return 0;
}

static int check_source(struct vm_area_struct *vma, struct mremap_request *req)
{
	if (!vma)
		return -EFAULT;
	if (!can_modify_vma(vma))
		return -EPERM;
	if (is_vm_hugetlb_page(vma))
		return check_hugetlb(vma, req);
	return 0;
}

/*
 * Secret memory that was mapped as locked (MAP_LOCKED, MCL_FUTURE) is so for as
 * long as it is mapped: not even munlock() takes the lock off.
 */
static bool is_always_locked(struct vm_area_struct *vma)
{
	return vma_is_secretmem(vma);
}

/* Add what @vma has in [start, end). */
static void survey_vma(struct range_survey *survey, struct vm_area_struct *vma,
		       unsigned long start, unsigned long end)
{
	unsigned long pages = (min(vma->vm_end, end) -
			       max(vma->vm_start, start)) >> PAGE_SHIFT;

	survey->total += pages;
	if (is_data_mapping(vma->vm_flags))
		survey->data += pages;
	if (vma->vm_flags & VM_LOCKED)
		survey->locked += pages;
	if (vma->vm_flags & VM_ACCOUNT)
		survey->charged += pages;
}

/* May the VMA be split at @addr, if that is inside of it? */
static int check_may_split(struct vm_area_struct *vma, unsigned long addr)
{
	if (addr <= vma->vm_start || addr >= vma->vm_end)
		return 0;
	if (!vma->vm_ops || !vma->vm_ops->may_split)
		return 0;
	return vma->vm_ops->may_split(vma, addr);
}

/* May [start, end) be cut out of the VMA? */
static int check_cut_out(struct vm_area_struct *vma, unsigned long start,
			 unsigned long end)
{
	int err = check_may_split(vma, start);

	return err ? err : check_may_split(vma, end);
}

/*
 * May [start, end) leave the VMA for another place? A driver that is told of
 * moves takes the new address for that of all it has mapped: the context of an
 * AIO ring, for one, unmaps its whole length from there on when it is destroyed.
 * So such a mapping moves whole or not at all.
 */
static int check_move_out(struct vm_area_struct *vma, unsigned long start,
			  unsigned long end)
{
	bool is_part = start < end && (start > vma->vm_start || end < vma->vm_end);

	if (is_part && vma->vm_ops && vma->vm_ops->mremap)
		return -EINVAL;
	return check_cut_out(vma, start, end);
}

/* May all that is mapped in [start, end) be unmapped, and what does that free? */
static int check_unmap(struct mm_struct *mm, unsigned long start,
		       unsigned long end, struct range_survey *survey)
{
	VMA_ITERATOR(vmi, mm, start);
	struct vm_area_struct *vma;
	int err = 0;

	for_each_vma_range(vmi, vma, end) {
		if (!can_modify_vma(vma))
			return -EPERM;
		if (!err)
			err = check_cut_out(vma, start, end);
		survey_vma(survey, vma, start, end);
	}
	return err;
}

/*
 * May what a shrinking call drops be unmapped? It may be more than @vma, the one
 * with the old address.
 */
static int check_shrinkage(struct vm_area_struct *vma,
			   const struct mremap_request *req)
{
	unsigned long start = req->addr + req->new_len;
	unsigned long len = shrinkage(req);
	struct range_survey ignored = {};

	if (!len)
		return 0;
	if (start < req->addr || start > TASK_SIZE || len > TASK_SIZE - start)
		return -EINVAL;
	if (start + len <= vma->vm_end)
		return check_cut_out(vma, start, start + len);
	return check_unmap(vma->vm_mm, start, start + len, &ignored);
}

/* Is nothing mapped in [start, end), nor right below or right above? */
static bool is_amid_gap(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	MA_STATE(mas, &mm->mm_mt, start, start);

	return !mas_walk(&mas) && mas.index < start && mas.last >= end;
}

/* May what is mapped at the new places be unmapped? And what will that free? */
static int check_dst_ranges(struct mremap_op *op)
{
	unsigned long before;
	struct dst_range *range;
	int err;

	for_each_dst_range(op, range) {
		before = op->replaced.total;
		err = resched_or_killed(op);
		if (err)
			return err;
		range->is_alone = is_amid_gap(op->mm, range->start, range->end);
		if (range->is_alone)
			continue;
		err = check_unmap(op->mm, range->start, range->end, &op->replaced);
		if (err)
			return err;
		range->occupied = op->replaced.total != before;
	}
	return 0;
}

/* What stays at the old place although its pages move away. */
static void survey_kept_sources(struct mremap_op *op)
{
	struct range_survey *added = &op->added;
	struct vma_move *mv;

	for_each_move(op, mv) {
		unsigned long locked = added->locked;

		survey_vma(added, mv->src, mv->addr, mv->addr + mv->len);
		/* The lock goes along with the pages, or stays as well. */
		if (!is_always_locked(mv->src))
			added->locked = locked;
	}
}

/* Note what the call adds to the address space. Lengths are whole pages by now. */
static void survey_addition(struct mremap_op *op)
{
	unsigned long pages = growth(&op->req) >> PAGE_SHIFT;
	vm_flags_t vm_flags = last_move(op)->vm_flags;
	struct range_survey *added = &op->added;

	added->total = pages;
	added->data = is_data_mapping(vm_flags) ? pages : 0;
	added->locked = vm_flags & VM_LOCKED ? pages : 0;
	added->charged = vm_flags & VM_ACCOUNT ? pages : 0;
	if (keeps_source(&op->req))
		survey_kept_sources(op);
}

/*
 * Limits on locked and mapped memory. What the destination frees counts as
 * free already: it is unmapped before the new mapping is there.
 */
static int check_limits(const struct mremap_op *op)
{
	const struct range_survey *added = &op->added;
	const struct range_survey *freed = &op->replaced;
	unsigned long locked = op->mm->locked_vm - freed->locked + added->locked;

	if (!added->total)
		return 0;
	if (added->locked && !capable(CAP_IPC_LOCK) &&
	    locked > rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT)
		return -EAGAIN;
	if (!may_replace_vm(op->mm, added->data ? VM_WRITE : VM_NONE,
			    added->total - freed->total,
			    added->data - freed->data))
		return -ENOMEM;
	return 0;
}

/* hugetlb grows only as the only mapping of a call: its inode is locked meanwhile. */
static bool grows_hugetlb(const struct mremap_op *op)
{
	return is_vm_hugetlb_page(op->moves->src) && op->nr_moves == 1 &&
	       growth(&op->req);
}

static bool has_fixed_size(vm_flags_t vm_flags)
{
	return vm_flags & (VM_DONTEXPAND | VM_PFNMAP);
}

/*
 * Can the last source become as long as asked? hugetlb may grow although it is marked
 * as what may not: huge pages can be reserved.
 */
static int check_growth(const struct mremap_op *op)
{
	const struct vma_move *mv = last_move(op);
	pgoff_t pgoff = vma_pgoff_offset(mv->src, mv->addr);

	if (!growth(&op->req))
		return 0;
	if (pgoff + (mv->dst_len >> PAGE_SHIFT) < pgoff)
		return -EINVAL;
	if (grows_hugetlb(op))
		return hugetlb_check_growth(mv->src, mv->addr, mv->addr + mv->len,
					    growth(&op->req));
	return has_fixed_size(mv->vm_flags) ? -EFAULT : 0;
}

/* Can the only source be moved or grown as asked? */
static int check_resize(struct mremap_op *op)
{
	const struct mremap_request *req = &op->req;
	const struct vm_area_struct *vma = op->moves->src;
	int err;

	/* A private mapping has no second view: it would be an unrelated one. */
	if (!req->old_len && !(vma->vm_flags & (VM_SHARED | VM_MAYSHARE)))
		return -EINVAL;
	if (keeps_source(req) && has_fixed_size(vma->vm_flags))
		return -EINVAL;
	if (moved_len(req) > vma->vm_end - req->addr)
		return -EFAULT;
	err = check_growth(op);
	if (err)
		return err;
	survey_addition(op);
	return check_limits(op);
}

/*
 * A monitor is told of one move per call (U1). A driver that is asked, and may refuse,
 * would do so too late. A file that places its mappings itself might not keep
 * the distances between them; known ones do.
 */
static bool can_move_with_others(struct vm_area_struct *vma)
{
	struct file *file = vma->vm_file;

	if (userfaultfd_armed(vma))
		return false;
	if (file && vma->vm_ops && vma->vm_ops->mremap)
		return false;
	if (!file || !file->f_op->get_unmapped_area)
		return true;
	/* By its mapping: that of System V has vm_ops of its own. */
	return shmem_mapping(file->f_mapping) || is_vm_hugetlb_page(vma) ||
	       file->f_op->get_unmapped_area == thp_get_unmapped_area;
}

static int check_planned_move(const struct mremap_op *op,
			      const struct vma_move *mv)
{
	struct vm_area_struct *vma = mv->src;

	if (!can_move_with_others(vma))
		return -EFAULT;
	if (!can_modify_vma(vma))
		return -EPERM;
	if (keeps_source(&op->req) && has_fixed_size(vma->vm_flags))
		return -EINVAL;
	return check_move_out(vma, mv->addr, mv->addr + mv->len);
}

/* Map count */

/* Is @addr inside of a VMA, so that a boundary there takes a split? */
static struct vm_area_struct *vma_around(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	return vma && vma->vm_start != addr ? vma : NULL;
}

/*
 * How many VMAs a call may add, for a moment. A move that the caller did not force
 * splits its source at both ends and adds a copy:
 *
 *	| below +1 source +1 above |                            copy +1        = 3
 *
 * A forced one may shrink, and then splits where the dropped tail ends as well. It
 * splits both ends of the destination range. Its copy comes when what was in that
 * range is gone, and so it takes that one's place:
 *
 *	| below +1 source +1 tail +1 above |  | below +1 replaced +1 above |   = 5
 *
 * -ENOMEM comes at the map count at which it has always come.
 */
#define MAPS_FOR_MOVE		3
#define MAPS_FOR_FORCED_MOVE	(MAPS_FOR_MOVE + 2)

static int check_map_count(struct mm_struct *mm, int wanted)
{
	return mm->map_count + wanted >= sysctl_max_map_count ? -ENOMEM : 0;
}

/* The sources stay linked until all have moved, so that all can go back. */
static int check_map_count_for_all(struct mremap_op *op)
{
	const struct mremap_request *req = &op->req;
	int wanted = op->nr_moves;
	struct dst_range *range;

	wanted += !!vma_around(op->mm, req->addr);
	wanted += !!vma_around(op->mm, req->addr + moved_len(req));
	if (shrinkage(req))
		wanted += !!vma_around(op->mm, req->addr + req->old_len);
	for_each_dst_range(op, range) {
		wanted += !!vma_around(op->mm, range->start);
		wanted += !!vma_around(op->mm, range->end);
	}
	return check_map_count(op->mm, wanted);
}

/* Splitting VMAs, and undoing the splits */

/*
 * Make @addr a boundary between VMAs, and remember it if it was none. Needs
 * mmap_lock for write and room in the map count.
 */
static int split_at(struct mm_struct *mm, unsigned long addr,
		    struct split_list *splits)
{
	struct vm_area_struct *vma = vma_around(mm, addr);
	int err;

	if (!vma)
		return 0;

	VMA_ITERATOR(vmi, mm, vma->vm_start);

	vma_start_write(vma);
	split_leaf_pud_at(vma, addr);
	err = split_vma(&vmi, vma, addr, /* new_below = */ 1);
	if (!err)
		splits->at[splits->nr++] = addr;
	return err;
}

/*
 * Join the VMAs below and above @addr again. It needs memory and may fail;
 * then, and for VMAs that never merge, an additional boundary stays behind,
 * which changes nothing but the look of /proc/PID/maps.
 */
static void undo_split(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *below = vma_lookup(mm, addr - 1);
	struct vm_area_struct *above = vma_lookup(mm, addr);

	if (!below || !above || below == above)
		return;

	VMA_ITERATOR(vmi, mm, addr);

	vma_modify_flags_uffd(&vmi, below, above, above->vm_start, above->vm_end,
			      above->vm_flags, above->vm_userfaultfd_ctx,
			      /* give_up_on_oom = */ true);
}

static void undo_splits(struct mm_struct *mm, struct split_list *splits)
{
	while (splits->nr)
		undo_split(mm, splits->at[--splits->nr]);
}

/*
 * Remember that a helper may split a VMA at @addr. Here the split is left to
 * munmap(), which may still split when the map count is at its limit.
 */
static void expect_split(struct mremap_op *op, unsigned long addr)
{
	struct vm_area_struct *vma = op->moves->src;
	bool is_inside = addr > vma->vm_start && addr < vma->vm_end;

	if (is_inside || (addr > vma->vm_end && vma_around(op->mm, addr)))
		op->splits.at[op->splits.nr++] = addr;
}

/* Ledger of committed memory, in pages */

/*
 * Charge what the call adds. What the old destination is charged with is not
 * asked for a second time: take_over_charge() keeps it when that is unmapped.
 */
static int charge(struct mremap_op *op)
{
	unsigned long pages = op->added.charged;

	op->owed = min(pages, op->replaced.charged);
	pages -= op->owed;
	if (pages && security_vm_enough_memory_mm(op->mm, pages))
		return -ENOMEM;
	op->charged = pages;
	return 0;
}

/*
 * Keep the charge of an old destination that is about to be unmapped, as far as
 * the call owes it. It is never given back, so that nobody else can have taken
 * it meanwhile.
 */
static void take_over_charge(struct mremap_op *op, struct vma_munmap_struct *vms)
{
	unsigned long pages = min(op->owed, vms->nr_accounted);

	vms->nr_accounted -= pages;
	op->owed -= pages;
	op->charged += pages;
}

static void uncharge(struct mremap_op *op)
{
	vm_unacct_memory(op->charged);
	op->charged = 0;
}

/* Huge pages for what the call adds */

/*
 * Who holds the lock of a VMA may wait for somebody who wants that of the inode: a
 * fault for the daemon of FUSE. So lock first all VMAs that are to be changed.
 */
static void lock_all_vmas(struct mremap_op *op)
{
	struct vm_area_struct *vma;
	struct dst_range *range;

	vma_start_write(op->moves->src);
	for_each_dst_range(op, range) {
		VMA_ITERATOR(vmi, op->mm, range->start);

		for_each_vma_range(vmi, vma, range->end)
			vma_start_write(vma);
	}
}

/* For the growth of what starts at @start, which is, or will be, a VMA of its own. */
static int reserve_hugetlb(struct mremap_op *op, unsigned long start)
{
	struct vma_move *mv = op->moves;
	unsigned long end = mv->addr + mv->len;
	int err;

	lock_all_vmas(op);
	err = hugetlb_reserve_growth(mv->src, start, end, end + growth(&op->req),
				     &op->hugetlb);
	if (err)
		return err;
	mremap_delay(DELAY_RESERVED);
	/* That may have taken long: huge pages may have been made for it. */
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* Placement */

static unsigned long map_flags_for(const struct vm_area_struct *vma)
{
	return vma->vm_flags & VM_MAYSHARE ? MAP_SHARED : 0;
}

/* Ask for @len bytes as the mapping's own kind is placed. */
static unsigned long ask_for_area(const struct vma_move *mv, unsigned long hint,
				  unsigned long len, unsigned long map_flags)
{
	struct vm_area_struct *vma = mv->src;

	return __get_unmapped_area(vma->vm_file, hint, len,
				   vma_pgoff_offset(vma, mv->addr),
				   map_flags | map_flags_for(vma),
				   vma->vm_flags);
}

/* Take exactly @addr for the new mapping, if that is allowed. */
static int fix_destination(struct vma_move *mv, unsigned long addr)
{
	unsigned long got = ask_for_area(mv, addr, mv->dst_len, MAP_FIXED);

	if (IS_ERR_VALUE(got))
		return got;
	mv->dst_addr = addr;
	return 0;
}

/*
 * A mapping of this size that moves is given page tables that it shares with no
 * other. It may grow and move again, and then they move whole.
 */
#define SIZE_OF_OWN_TABLES	(PMD_SIZE / 8)

/* Would a quarter of the address space do, if all mappings had a table each? */
static bool is_space_ample(const struct mm_struct *mm)
{
	return TASK_SIZE / PMD_SIZE / 4 >= mm->map_count;
}

static bool holds_whole(const struct vma_move *mv, unsigned long size)
{
	unsigned long first = ALIGN(mv->addr, size);

	return first >= mv->addr && first - mv->addr < mv->len &&
	       mv->addr + mv->len - first >= size;
}

/*
 * At the old offset modulo this size, whole tables can move. It is that of the
 * largest entry that the range fills, or of a page table if the range is to have its
 * own. 0 if it does not matter: the mapping is too small, is placed by rules of its
 * own, or address space is scarce.
 */
static unsigned long congruence_for(const struct vma_move *mv)
{
	const struct file *file = mv->src->vm_file;
	unsigned long offset = mv->src->vm_start -
			       (mv->src->vm_pgoff << PAGE_SHIFT);

	if (!IS_ENABLED(CONFIG_64BIT) || in_compat_syscall())
		return 0;
	if (file && file->f_op->get_unmapped_area &&
	    file->f_op->get_unmapped_area != thp_get_unmapped_area)
		return 0;
	/* A file's huge pages may fit better elsewhere. */
	if (file && !IS_ALIGNED(offset, PMD_SIZE))
		return 0;
	if (holds_whole(mv, PUD_SIZE))
		return PUD_SIZE;
	if (holds_whole(mv, PMD_SIZE))
		return PMD_SIZE;
	/* What will be whole huge pages is placed for these, by its own kind. */
	if (mv->dst_len < SIZE_OF_OWN_TABLES || IS_ALIGNED(mv->dst_len, PMD_SIZE))
		return 0;
	return is_space_ample(mv->src->vm_mm) ? PMD_SIZE : 0;
}

/*
 * Which address is congruent with @old_addr, modulo @size, if [start, end) is
 * free for @len bytes? The one at the end that address space is filled from.
 * There must be room for @len + @size bytes.
 */
static unsigned long congruent_in_hole(unsigned long start, unsigned long end,
				       unsigned long len, unsigned long size,
				       unsigned long old_addr, bool topdown)
{
	if (topdown)
		return end - len - ((end - len - old_addr) & (size - 1));
	return start + ((old_addr - start) & (size - 1));
}

/*
 * Look for a place that is congruent with @old_addr modulo @size, in a hole with
 * room for that. The hole is cut to whole tables, so that the mapping shares none
 * with others and can be moved on as cheaply. It must not be one that the kernel
 * would have used only because its usual area was full.
 */
static bool find_congruent(struct vma_move *mv, unsigned long size,
			   unsigned long old_addr)
{
	struct mm_struct *mm = mv->src->vm_mm;
	bool topdown = test_bit(MMF_TOPDOWN, &mm->flags);
	unsigned long len = mv->dst_len + size + 2 * PMD_SIZE;
	unsigned long hole, addr;

	if (is_vm_hugetlb_page(mv->src))
		len = ALIGN(len, size);
	hole = ask_for_area(mv, 0, len, 0);
	if (IS_ERR_VALUE(hole))
		return false;
	addr = congruent_in_hole(ALIGN(hole, PMD_SIZE),
				 ALIGN_DOWN(hole + len, PMD_SIZE), mv->dst_len,
				 size, old_addr, topdown);
	if (topdown && addr + mv->dst_len > mm->mmap_base)
		return false;
	mv->dst_addr = addr;
	return true;
}

/*
 * Should the new place start with a page table, whatever the old offset is? The block
 * is smaller than a huge page and grows. Its entries move one by one then, only once:
 * all that is added behind its first table, now and later, can be in huge pages, and
 * where its length becomes a multiple of theirs, none is left for small ones. If smaller
 * huge pages are allowed the offset is kept, as theirs have to stay aligned.
 */
static bool starts_with_table(const struct vma_move *mv)
{
	struct vm_area_struct *vma = mv->src;

	return vma_is_anonymous(vma) && mv->len < PMD_SIZE &&
	       mv->dst_len > mv->len && mv->addr + mv->len <= vma->vm_end &&
	       thp_vma_allowable_orders(vma, vma->vm_flags,
					TVA_IN_PF | TVA_ENFORCE_SYSFS,
					THP_ORDERS_ALL_ANON) == BIT(PMD_ORDER);
}

/* Let the kernel choose where the mapping would go if it were a new one. */
static int find_any(struct vma_move *mv, unsigned long hint)
{
	unsigned long addr = ask_for_area(mv, hint, mv->dst_len, 0);

	if (IS_ERR_VALUE(addr))
		return addr;
	mv->dst_addr = addr;
	return 0;
}

/*
 * Was the hint followed, if only into the area above the usual one? Where mappings are
 * laid out bottom-up, all are above mmap_base, and any place will do.
 */
static bool is_at_hint(const struct vma_move *mv, unsigned long hint)
{
	return mv->dst_addr == hint || mv->dst_addr > mv->src->vm_mm->mmap_base;
}

/*
 * Let the kernel choose, with a preference for @hint, unless that is 0. A place
 * from which tables can move whole comes before any other.
 */
static int find_destination(struct vma_move *mv, unsigned long hint)
{
	unsigned long old_addr = starts_with_table(mv) ? 0 : mv->addr;
	unsigned long size = congruence_for(mv);
	int err;

	if (mv->dst_len > TASK_SIZE)
		return -ENOMEM;
	if (hint) {
		err = find_any(mv, hint);
		if (err || is_at_hint(mv, hint))
			return err;
	}
	for (; size >= PMD_SIZE; size = size > PMD_SIZE ? PMD_SIZE : 0) {
		if (find_congruent(mv, size, old_addr))
			return 0;
	}
	return hint ? 0 : find_any(mv, 0);
}

/* Unmapping in two steps, of which the first can fail and the second cannot */

/* Nothing is to be unmapped, until gather_unmapping() finds something. */
static void init_unmapping(struct unmapping *unmapping)
{
	unmapping->vms.vma = NULL;
}

/*
 * Take the VMAs of [start, end) off for unmapping. The range must start and end
 * at VMA boundaries. It can be undone until complete_unmapping().
 */
static int gather_unmapping(struct unmapping *unmapping, struct mm_struct *mm,
			    unsigned long start, unsigned long end,
			    struct list_head *uf)
{
	struct vm_area_struct *vma;

	init_unmapping(unmapping);
	if (start == end)
		return 0;
	vma_iter_init(&unmapping->vmi, mm, start);
	vma = vma_find(&unmapping->vmi, end);
	init_vma_munmap(&unmapping->vms, &unmapping->vmi, vma, start, end, uf,
			/* unlock = */ false);
	mt_init_flags(&unmapping->detached,
		      mm->mm_mt.ma_flags & MT_FLAGS_LOCK_MASK);
	mt_on_stack(unmapping->detached);
	mas_init(&unmapping->mas, &unmapping->detached, 0);
	if (!vma)
		return 0;
	return vms_gather_munmap_vmas(&unmapping->vms, &unmapping->mas);
}

static void abort_unmapping(struct unmapping *unmapping)
{
	if (unmapping->vms.vma)
		reattach_vmas(&unmapping->mas);
}

/*
 * Unmap for good. Everything that could fail has been done, but for the store
 * into the tree of VMAs, which may need nodes: it waits for them.
 */
static void complete_unmapping(struct unmapping *unmapping,
			       struct mm_struct *mm)
{
	struct vma_munmap_struct *vms = &unmapping->vms;

	if (!vms->vma)
		return;
	vma_iter_init(&unmapping->vmi, mm, vms->start);
	WARN_ON_ONCE(vma_iter_clear_gfp(&unmapping->vmi, vms->start, vms->end,
					GFP_KERNEL | __GFP_NOFAIL));
	vms_complete_munmap_vmas(vms, &unmapping->mas);
}

/*
 * Page tables are freed as far as there were no neighbours when the range was
 * taken. If one of them is gone since, by another unmapping, there may be more.
 */
static void refresh_unmapping(struct unmapping *unmapping, struct mm_struct *mm)
{
	struct vma_munmap_struct *vms = &unmapping->vms;
	struct vm_area_struct *prev, *next;

	if (!vms->vma)
		return;
	find_vma_prev(mm, vms->start, &prev);
	next = find_vma(mm, vms->end);
	vms->unmap_start = prev ? prev->vm_end : FIRST_USER_ADDRESS;
	vms->unmap_end = next ? next->vm_start : USER_PGTABLES_CEILING;
}

/* Planning: what moves, and what has to go */

/*
 * What is mapped in [start, end) has to go. The whole range is asked for at once
 * if it continues that of the last call.
 */
static void add_dst_range(struct mremap_op *op, unsigned long start,
			  unsigned long end)
{
	struct dst_range *last = op->ranges + op->nr_ranges - 1;

	if (op->nr_ranges && last->end == start) {
		last->end = end;
		return;
	}
	if (WARN_ON_ONCE(op->nr_ranges == op->max_ranges))
		return;
	last++;
	last->start = start;
	last->end = end;
	last->occupied = false;
	last->splits.nr = 0;
	init_unmapping(&last->unmapping);
	op->nr_ranges++;
}

/* Note what moves, if anything has to. Placement sets mv->dst_addr. */
static void plan_only_move(struct vma_move *mv, struct vm_area_struct *vma,
			   const struct mremap_request *req)
{
	mv->addr = req->addr;
	mv->len = moved_len(req);
	mv->dst_len = req->new_len;
	mv->src = vma;
	mv->vm_flags = vma->vm_flags;
}

/* The part of the range that @vma covers moves, up to whole pages of its kind. */
static void plan_move(struct vma_move *mv, struct vm_area_struct *vma,
		      const struct mremap_request *req)
{
	unsigned long end = min(vma->vm_end, req->addr + moved_len(req));
	unsigned long size;

	mv->src = vma;
	mv->vm_flags = vma->vm_flags;
	mv->addr = max(vma->vm_start, req->addr);
	mv->len = end - mv->addr;
	if (is_vm_hugetlb_page(vma)) {
		size = huge_page_size(hstate_vma(vma));
		/* What starts within a huge page will be refused as it is. */
		if (IS_ALIGNED(mv->addr, size))
			mv->len = ALIGN(mv->len, size);
	}
	mv->dst_len = mv->len;
}

/* Each VMA has a move, and those without gaps between them a range to clear. */
static int make_room_for_moves(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req.addr);
	unsigned long end = op->req.addr + moved_len(&op->req);
	unsigned long nr = 0, nr_ranges = 0, last_end = 0;
	struct vm_area_struct *vma;

	for_each_vma_range(vmi, vma, end) {
		nr_ranges += !nr || vma->vm_start != last_end;
		last_end = vma->vm_end;
		nr++;
	}
	op->nr_moves = nr;
	op->max_ranges = nr_ranges;
	if (nr > 1)
		op->moves = kvmalloc_array(nr, sizeof(*op->moves),
					   GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (nr_ranges > 1 && (op->req.flags & MREMAP_FIXED))
		op->ranges = kvmalloc_array(nr_ranges, sizeof(*op->ranges),
					    GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	return op->moves && op->ranges ? 0 : -ENOMEM;
}

static int plan_moves(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req.addr);
	unsigned long end = op->req.addr + moved_len(&op->req);
	struct vm_area_struct *vma;
	struct vma_move *mv;
	int err;

	err = make_room_for_moves(op);
	if (err)
		return err;
	mv = op->moves;
	for_each_vma_range(vmi, vma, end)
		plan_move(mv++, vma, &op->req);
	return 0;
}

/*
 * What moves may be longer than asked for by now, up to a whole huge page, and what is
 * cut off a mapping of huge pages is whole ones as well.
 */
static void plan_lengths(struct mremap_op *op)
{
	struct mremap_request *req = &op->req;
	struct vma_move *last = last_move(op);
	unsigned long len = last->addr + last->len - req->addr;
	unsigned long rest = req->old_len - min(req->old_len, len);

	if (is_vm_hugetlb_page(last->src) && req->addr + req->old_len < last->src->vm_end)
		rest = ALIGN(rest, huge_page_size(hstate_vma(last->src)));
	req->old_len = len + rest;
	req->new_len = max(req->new_len, len);
	last->dst_len += growth(req);
}

/* All keep their distances. What they are to replace is noted. */
static void place_moves(struct mremap_op *op, unsigned long new_addr)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		mv->dst_addr = new_addr + (mv->addr - op->req.addr);
		if (op->req.flags & MREMAP_FIXED)
			add_dst_range(op, mv->dst_addr, mv->dst_addr + mv->dst_len);
	}
}

/*
 * The size modulo which the offset must not change for one of them: that of huge pages
 * of hugetlb, or SHMLBA where caches tell addresses apart. 0 if there is none.
 */
static unsigned long congruence_for_all(const struct mremap_op *op)
{
	unsigned long size = 0;
	struct vma_move *mv;

	for_each_move(op, mv) {
		if (is_vm_hugetlb_page(mv->src))
			size = max(size, huge_page_size(hstate_vma(mv->src)));
		else if ((mv->vm_flags & VM_MAYSHARE) && SHMLBA > PAGE_SIZE)
			size = max(size, (unsigned long)SHMLBA);
	}
	return size;
}

/* Let the kernel choose one place for all of them, as it would for the first. */
static int choose_place(struct mremap_op *op)
{
	const struct mremap_request *req = &op->req;
	unsigned long hint = keeps_source(req) ? req->new_addr : 0;
	unsigned long size = congruence_for_all(op);
	struct vma_move all = {
		.src = op->moves->src,
		.addr = req->addr,
		.len = moved_len(req),
		.dst_len = req->new_len,
	};
	int err = 0;

	if (req->new_len > TASK_SIZE)
		return -ENOMEM;
	if (!size)
		err = find_destination(&all, hint);
	else if (!find_congruent(&all, size, all.addr))
		err = -ENOMEM;
	if (!err)
		place_moves(op, all.dst_addr);
	return err;
}

/* No memory is held while a monitor is waited for, as that can take for ever. */
static void free_plans(struct mremap_op *op)
{
	if (op->moves != op->only)
		kvfree(op->moves);
	if (op->ranges != op->only_range)
		kvfree(op->ranges);
}

/* Prepare */

/*
 * Must the moved range be a VMA of its own? Where it goes away, yes: so that
 * all splits are made while nothing has changed, and that what hangs on the VMA
 * (hugetlb reservations, PAT tracking, charges) is told for this range only.
 * Where it stays, only if it differs from its surroundings afterwards.
 */
static bool needs_isolation(const struct mremap_op *op,
			    const struct vma_move *mv)
{
	if (!mv->len)
		return false;
	if (!keeps_source(&op->req))
		return true;
	return (mv->vm_flags & VM_LOCKED) && !is_always_locked(mv->src);
}

static int isolate_source(struct mremap_op *op, struct vma_move *mv)
{
	const struct mremap_request *req = &op->req;
	unsigned long end = mv->addr + mv->len;
	int err = 0;

	if (!needs_isolation(op, mv))
		return 0;
	if (mv->src->vm_start != mv->addr)
		err = split_at(op->mm, mv->addr, &op->splits);
	if (!err && mv->src->vm_end != end)
		err = split_at(op->mm, end, &op->splits);
	/* That may be in the last one, which is then no longer whole. */
	if (!err && shrinkage(req) && mv == last_move(op))
		err = split_at(op->mm, req->addr + req->old_len, &op->splits);
	return err;
}

/*
 * KSM pages are broken up before they move: rmap finds them by the address that
 * they had when they were scanned. The VMA stays mergeable.
 */
static int break_ksm(struct vma_move *mv)
{
	unsigned long ignored_flags = mv->vm_flags;

	return ksm_madvise(mv->src, mv->addr, mv->addr + mv->len,
			   MADV_UNMERGEABLE, &ignored_flags);
}

/*
 * Each range has a list of events of its own until it is complete, because the
 * core searches it for each registered mapping.
 */
static int gather_dst_range(struct mremap_op *op, struct dst_range *range)
{
	LIST_HEAD(events);
	int err;

	err = split_at(op->mm, range->start, &range->splits);
	if (!err)
		err = split_at(op->mm, range->end, &range->splits);
	if (!err)
		err = gather_unmapping(&range->unmapping, op->mm, range->start,
				       range->end, &events);
	list_splice_tail(&events, &op->uffd_unmap_dst);
	return err;
}

/* Unmap what is in the destination ranges, or none of it, if one VMA refuses. */
static int unmap_dst_ranges(struct mremap_op *op)
{
	struct dst_range *range;
	int err;

	for_each_dst_range(op, range) {
		err = resched_or_killed(op);
		if (!err && range->occupied)
			err = gather_dst_range(op, range);
		if (err)
			goto put_back;
	}
	for_each_dst_range(op, range) {
		if (!range->unmapping.vms.vma)
			continue;
		if (op->nr_ranges > 1)
			refresh_unmapping(&range->unmapping, op->mm);
		take_over_charge(op, &range->unmapping.vms);
		complete_unmapping(&range->unmapping, op->mm);
	}
	return 0;

put_back:
	while (range-- > op->ranges)
		abort_unmapping(&range->unmapping);
	userfaultfd_unmap_abort(&op->uffd_unmap_dst);
	return err;
}

static void undo_prepare(struct mremap_op *op)
{
	struct dst_range *range;

	hugetlb_unreserve_growth(&op->hugetlb);
	uncharge(op);
	for (range = op->ranges + op->nr_ranges; range-- > op->ranges;)
		undo_splits(op->mm, &range->splits);
	undo_splits(op->mm, &op->splits);
}

/* What can fail comes first. Unmapping the destination ranges comes last. */
static int prepare_move(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	err = charge(op);
	if (err)
		return err;
	if (grows_hugetlb(op))
		err = reserve_hugetlb(op, op->moves->addr);
	if (err)
		goto undo;
	for_each_move(op, mv) {
		err = resched_or_killed(op);
		if (!err)
			err = break_ksm(mv);
		if (!err)
			err = isolate_source(op, mv);
		if (err)
			goto undo;
	}
	err = unmap_dst_ranges(op);
undo:
	if (err)
		undo_prepare(op);
	return err;
}

/* Move */

/*
 * The source is another VMA now if it was split, or if a destination range was cut
 * out of the same one.
 */
static void find_source(struct mremap_op *op, struct vma_move *mv)
{
	if (op->splits.nr || op->replaced.total)
		mv->src = vma_lookup(op->mm, mv->addr);
	vma_start_write(mv->src);
}

/* Let neighbours cover the new range, if they are of the same kind. */
static int merge_copy(struct mremap_op *op, struct vma_move *mv)
{
	const struct mremap_request *req = &op->req;
	struct vm_area_struct *merged;

	merged = vma_merge_copy(mv->src, mv->dst_addr, mv->dst_len,
				vma_pgoff_offset(mv->src, mv->addr),
				req->addr, req->addr + req->old_len);
	if (IS_ERR(merged))
		return PTR_ERR(merged);
	mv->dst = merged;
	return 0;
}

static int copy_source(struct mremap_op *op, struct vma_move *mv)
{
	int err;

	find_source(op, mv);
	err = merge_copy(op, mv);
	if (err)
		return err;
	if (!mv->dst)
		mv->dst = copy_vma(mv->src, mv->dst_addr, mv->dst_len,
				   vma_pgoff_offset(mv->src, mv->addr));
	return mv->dst ? 0 : -ENOMEM;
}

static int copy_sources(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		err = resched_or_killed(op);
		if (!err)
			err = copy_source(op, mv);
		if (err)
			return err;
	}
	return 0;
}

/*
 * Tables that move whole keep the soft-dirty bits of their entries, but their
 * pages have to read as changed. So the VMA is marked as changed, which would
 * tell a lie about neighbours that it was merged with; for these, single entries
 * move. A VMA that is marked already, needs nothing.
 */
static bool needs_soft_dirty_entries(const struct vma_move *mv)
{
	return vma_soft_dirty_enabled(mv->dst) &&
	       vma_pages(mv->dst) != mv->dst_len >> PAGE_SHIFT;
}

static void init_pagetable_move(struct pagetable_move *pm,
				const struct vma_move *mv)
{
	pm->src = mv->src;
	pm->dst = mv->dst;
	pm->start = mv->addr;
	pm->end = mv->addr + mv->len;
	pm->shift = mv->dst_addr - mv->addr;
	pm->count_ptes = trace_mremap_enabled();
}

static int move_all_pages(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		int err;

		init_pagetable_move(&mv->tables, mv);
		mv->tables.ptes_only = needs_soft_dirty_entries(mv);
		err = move_page_tables(&mv->tables);
		if (err)
			return err;
	}
	return 0;
}

/* What a shrinking call drops */
static int gather_tail(struct mremap_op *op, struct unmapping *tail)
{
	const struct mremap_request *req = &op->req;

	return gather_unmapping(tail, op->mm, req->addr + moved_len(req),
				req->addr + req->old_len, &op->uffd_unmap_src);
}

/* The moved range goes away, and the tail that a shrinking call drops. */
static int gather_sources(struct mremap_op *op, struct unmapping *source,
			  struct unmapping *tail)
{
	const struct mremap_request *req = &op->req;
	int err;

	if (keeps_source(req))
		return 0;
	err = gather_tail(op, tail);
	if (err)
		return err;
	err = gather_unmapping(source, op->mm, req->addr,
			       req->addr + moved_len(req), &op->uffd_unmap_src);
	if (err)
		abort_unmapping(tail);
	return err;
}

static int notify_driver(struct vm_area_struct *vma)
{
	return vma->vm_ops && vma->vm_ops->mremap ? vma->vm_ops->mremap(vma) : 0;
}

static int notify_drivers(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		err = notify_driver(mv->dst);
		if (err)
			return err;
		mv->notified = true;
	}
	return 0;
}

/* Relocate: the VMAs themselves change their places, instead of copies (R1) */

static bool may_relocate(const struct mremap_op *op)
{
	return op->moves->len && !keeps_source(&op->req);
}

static bool is_relocated(const struct mremap_op *op)
{
	return op->moves->dst == op->moves->src;
}

/*
 * Nobody else may have to hear that a VMA has another address: drivers, monitors,
 * nor uprobes, which look after their breakpoints when something is unmapped.
 */
static bool can_relocate_vma(struct vm_area_struct *vma)
{
	const struct vm_operations_struct *ops = vma->vm_ops;

	if (vma->vm_flags & (VM_SPECIAL | VM_HUGETLB))
		return false;
	if (userfaultfd_armed(vma) || test_bit(MMF_HAS_UPROBES, &vma->vm_mm->flags))
		return false;
	return !ops || (!ops->open && !ops->close && !ops->mremap);
}

/* Can all be relocated, as far as one can tell before it is tried? */
static bool can_relocate(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		if (resched_or_killed(op))
			return false;
		find_source(op, mv);
		init_pagetable_move(&mv->tables, mv);
		mv->tables.dst = mv->src;
		if (!can_relocate_vma(mv->src) || !can_relocate_page_tables(&mv->tables))
			return false;
	}
	return true;
}

/* The offset that a copy would have, in pages, and that of what is behind it. */
static pgoff_t dst_pgoff(const struct vma_move *mv)
{
	return copied_pgoff(mv->src, mv->dst_addr,
			    vma_pgoff_offset(mv->src, mv->addr));
}

static pgoff_t dst_end_pgoff(const struct vma_move *mv)
{
	return dst_pgoff(mv) + (mv->dst_len >> PAGE_SHIFT);
}

/*
 * Might the core merge these two, if their offsets fit? It may still refuse, and
 * then what moves is copied without need.
 */
static bool are_alike(const struct vm_area_struct *vma,
		      const struct vm_area_struct *other)
{
	return vma->vm_file == other->vm_file &&
	       !((vma->vm_flags ^ other->vm_flags) & ~VM_SOFTDIRTY);
}

/* Is there no neighbour that a copy could be merged with? */
static bool is_dst_alone(const struct mremap_op *op, const struct vma_move *mv,
			 const struct dst_range *range)
{
	unsigned long end = mv->dst_addr + mv->dst_len;

	if (!op->nr_ranges)
		return is_amid_gap(op->mm, mv->dst_addr, end);
	return range->is_alone || (mv->dst_addr > range->start && end < range->end);
}

static bool may_merge_beside(struct mremap_op *op, const struct vma_move *mv)
{
	struct vm_area_struct *below = vma_lookup(op->mm, mv->dst_addr - 1);
	struct vm_area_struct *above = vma_lookup(op->mm, mv->dst_addr + mv->dst_len);

	if (below && are_alike(mv->src, below) &&
	    below->vm_pgoff + vma_pages(below) == dst_pgoff(mv))
		return true;
	return above && are_alike(mv->src, above) &&
	       above->vm_pgoff == dst_end_pgoff(mv);
}

static bool may_merge_with_each_other(const struct vma_move *mv,
				      const struct vma_move *next)
{
	return mv->addr + mv->len == next->addr && are_alike(mv->src, next->src) &&
	       dst_end_pgoff(mv) == dst_pgoff(next);
}

/* Merging wins, so that moving back and forth leaves one mapping. */
static bool may_merge(struct mremap_op *op)
{
	struct dst_range *range = op->ranges;
	struct vma_move *mv;

	for_each_move(op, mv) {
		if (op->nr_ranges && mv->dst_addr >= range->end)
			range++;
		if (!is_dst_alone(op, mv, range) && may_merge_beside(op, mv))
			return true;
		if (mv > op->moves && may_merge_with_each_other(mv - 1, mv))
			return true;
	}
	return false;
}

/* Not by mas_store_gfp(): with only some of the nodes that it needs it never gives up. */
static int link_at_new_place(struct mremap_op *op, const struct vma_move *mv)
{
	VMA_ITERATOR(vmi, op->mm, mv->dst_addr);

	vma_iter_config(&vmi, mv->dst_addr, mv->dst_addr + mv->dst_len);
	if (vma_iter_prealloc(&vmi, mv->src))
		return -ENOMEM;
	mas_store_prealloc(&vmi.mas, mv->src);
	return 0;
}

/* The tree may need nodes even for that: it waits for them. */
static void unlink_range(struct mm_struct *mm, unsigned long start,
			 unsigned long len)
{
	VMA_ITERATOR(vmi, mm, start);

	WARN_ON_ONCE(vma_iter_clear_gfp(&vmi, start, start + len,
					GFP_KERNEL | __GFP_NOFAIL));
}

/* Nothing is mapped there any more, so no table of its own is to stay. */
static void free_tables_of_gap(struct mremap_op *op, unsigned long start,
			       unsigned long len, bool page_tables)
{
	MA_STATE(gap, &op->mm->mm_mt, start, start);
	unsigned long ceiling = USER_PGTABLES_CEILING;

	WARN_ON_ONCE(mas_walk(&gap));
	if (gap.last != ULONG_MAX)
		ceiling = gap.last + 1;
	free_left_tables(op->mm, start, len, max(gap.index, FIRST_USER_ADDRESS),
			 ceiling, page_tables);
}

/* Where nothing is mapped in [start, end) now, no table is to stay. */
static void free_tables_of_gaps(struct mremap_op *op, unsigned long start,
				unsigned long end)
{
	while (start < end) {
		MA_STATE(mas, &op->mm->mm_mt, start, start);
		bool is_gap = !mas_walk(&mas);
		unsigned long next = min(mas.last, end - 1) + 1;

		cond_resched();
		if (is_gap)
			free_tables_of_gap(op, start, next - start,
					   /* page_tables = */ true);
		start = next;
	}
}

static unsigned long end_of_sources(const struct mremap_op *op)
{
	const struct vma_move *last = end_of_moves(op) - 1;

	return last->addr + last->len;
}

/*
 * VMAs were to be relocated by @shift, and are not, or cannot all go back. Tables are
 * left where they would have gone, and where one was that cannot go back. All of a gap
 * at once: a table above is freed with the first below it.
 */
static void free_tables_of_both_places(struct mremap_op *op, unsigned long shift)
{
	unsigned long start = op->moves->addr, end = end_of_sources(op);

	free_tables_of_gaps(op, min(start, start + shift), max(end, end + shift));
}

/* Unlink each VMA before @end from that of its two places where it is not. */
static void unlink_from_new_places(struct mremap_op *op, const struct vma_move *end)
{
	unsigned long shift = op->moves->dst_addr - op->moves->addr;
	const struct vma_move *mv;
	bool all_back = true;

	for (mv = op->moves; mv < end; mv++) {
		cond_resched();
		if (mv->src->vm_start == mv->dst_addr) {
			unlink_range(op->mm, mv->addr, mv->len);
			all_back = false;
		} else {
			unlink_range(op->mm, mv->dst_addr, mv->dst_len);
		}
	}
	if (all_back)
		free_tables_of_gaps(op, op->moves->dst_addr, end_of_sources(op) + shift);
	else
		free_tables_of_both_places(op, shift);
}

static int link_at_new_places(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		err = resched_or_killed(op);
		if (!err)
			err = link_at_new_place(op, mv);
		if (err) {
			unlink_from_new_places(op, mv);
			return err;
		}
	}
	return 0;
}

/*
 * Those before @end go back. As with a copy, pages that cannot go back stay where
 * they are rather than be lost, and their VMA with them.
 */
static int relocate_back(struct mremap_op *op, struct vma_move *end)
{
	struct vma_move *mv;
	int err = 0;

	for (mv = end; mv-- > op->moves;) {
		cond_resched();
		if (relocate_page_tables_back(&mv->tables))
			err = -ENOMEM;
	}
	return err;
}

/* -EAGAIN: they are where they were, and have to be copied. */
static int relocate_all_pages(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		mv->tables.new_len = mv->dst_len;
		err = resched_or_killed(op);
		if (!err)
			err = relocate_page_tables(&mv->tables);
		if (err)
			return relocate_back(op, mv) ?: -EAGAIN;
	}
	return 0;
}

/*
 * Relocate the sources. The tree of VMAs has them at both places for a while, so
 * that who walks it under RCU finds no hole where something is mapped. There a
 * VMA cannot be locked before the end of the call, and whoever does so then looks
 * whether it still is where it was found. Once all are at their new places there is
 * no way back, and none is needed. If they do not get there, they are where they
 * were, and -EAGAIN says that they are to be copied, which may succeed.
 */
static int relocate(struct mremap_op *op, struct unmapping *tail)
{
	struct vma_move *mv;
	int err = -EAGAIN;

	if (!can_relocate(op) || may_merge(op))
		return -EAGAIN;
	if (gather_tail(op, tail))
		goto forget_events;
	if (link_at_new_places(op))
		goto put_back;
	err = relocate_all_pages(op);
	if (err)
		goto unlink;
	for_each_move(op, mv)
		mv->dst = mv->src;
	return 0;

unlink:
	unlink_from_new_places(op, end_of_moves(op));
	for_each_move(op, mv)
		mv->tables = (struct pagetable_move) {};
put_back:
	abort_unmapping(tail);
forget_events:
	userfaultfd_unmap_abort(&op->uffd_unmap_src);
	return err;
}

/* All that can still fail once all is prepared. The sources stay linked. */
static int do_move(struct mremap_op *op, struct unmapping *source,
		   struct unmapping *tail)
{
	int err;

	if (may_relocate(op)) {
		err = relocate(op, tail);
		if (err != -EAGAIN)
			return err;
	}
	err = copy_sources(op);
	if (err)
		return err;
	err = move_all_pages(op);
	if (err)
		return err;
	err = gather_sources(op, source, tail);
	if (err)
		goto forget_events;
	err = notify_drivers(op);
	if (!err)
		return 0;

	abort_unmapping(source);
	abort_unmapping(tail);
forget_events:
	userfaultfd_unmap_abort(&op->uffd_unmap_src);
	return err;
}

/* The new mappings' place in the books */

static void account_destination(struct mremap_op *op, const struct vma_move *mv)
{
	unsigned long pages = mv->dst_len >> PAGE_SHIFT;

	vm_stat_account(op->mm, mv->vm_flags, pages);
	if (mv->vm_flags & VM_LOCKED)
		op->mm->locked_vm += pages;
}

/* What a VMA has grown by, at its old place or at a new one. */
static void account_growth(struct mremap_op *op, const struct vma_move *mv)
{
	unsigned long pages = growth(&op->req) >> PAGE_SHIFT;

	vm_stat_account(op->mm, mv->vm_flags, pages);
	if (mv->vm_flags & VM_LOCKED)
		op->mm->locked_vm += pages;
}

/*
 * What hangs on a VMA outside of its page tables has gone to its copy, or has
 * never left the original. Let go of it in the one that is to be unmapped, so
 * that it is not given back then.
 */
static void give_up_ownership(struct vm_area_struct *loser)
{
	if (is_vm_hugetlb_page(loser))
		clear_vma_resv_huge_pages(loser);
	if (loser->vm_flags & VM_PFNMAP)
		untrack_pfn_clear(loser);
}

/* Commit */

static void mark_soft_dirty(struct vm_area_struct *vma)
{
	if (!vma_soft_dirty_enabled(vma))
		return;
	vm_flags_set(vma, VM_SOFTDIRTY);
	vma_set_page_prot(vma);
}

/*
 * A monitor that wants to hear of moves keeps the new mapping registered. For
 * any other it is unregistered, and then no entry may stay write-protected.
 * That comes so late because a move that fails has to bring the bits back. Only
 * a mapping that moves alone is registered: there is room for one event.
 */
static void commit_userfaultfd(struct mremap_op *op, struct vma_move *mv)
{
	struct vm_area_struct *src = mv->src;

	if (mv->len && userfaultfd_wp(src) && vma_has_uffd_without_event_remap(src))
		uffd_wp_range(mv->dst, mv->dst_addr, mv->len,
			      /* enable_wp = */ false);
	mremap_userfaultfd_prep(mv->dst, &op->uffd_remap);
}

/* Where code is now. Of data they are not told, which would cost more than it helps. */
static void tell_profilers(struct vm_area_struct *vma)
{
	if (vma->vm_flags & VM_EXEC)
		perf_event_mmap(vma);
}

/*
 * The source stays mapped, with nothing in it. Its lock went with the pages,
 * unless it has to have one. As nothing is faulted in, it starts anew like a
 * mapping just made.
 */
static void commit_kept_source(struct mremap_op *op, struct vma_move *mv)
{
	struct vm_area_struct *src = mv->src;
	unsigned long pages = mv->len >> PAGE_SHIFT;

	if (!is_always_locked(src))
		vm_flags_clear(src, VM_LOCKED_MASK);
	else if (mv->vm_flags & VM_LOCKED)
		op->mm->locked_vm += pages;
	if (src->vm_start == mv->addr && vma_pages(src) == pages) {
		unlink_anon_vmas(src);
		/* An anonymous VMA without pages has the offset of its address. */
		if (vma_is_anonymous(src) && !src->vm_file)
			src->vm_pgoff = src->vm_start >> PAGE_SHIFT;
	}
	vm_stat_account(op->mm, mv->vm_flags, pages);
}

/*
 * Unmapping has nothing to look for where all entries have moved away, but that of
 * hugetlb and of uprobes looks after more than entries.
 */
static bool needs_no_unmapping(const struct vm_area_struct *vma)
{
	return !(vma->vm_flags & VM_HUGETLB) &&
	       !test_bit(MMF_HAS_UPROBES, &vma->vm_mm->flags);
}

static void commit_unmapped_sources(struct mremap_op *op,
				    struct unmapping *source,
				    struct unmapping *tail)
{
	bool emptied = true;
	struct vma_move *mv;

	for_each_move(op, mv) {
		give_up_ownership(mv->src);
		emptied &= needs_no_unmapping(mv->src);
	}
	/* The charge for these pages goes on as the destination's. */
	source->vms.nr_accounted = 0;
	source->vms.emptied = emptied;
	if (tail->vms.vma) {
		complete_unmapping(tail, op->mm);
		refresh_unmapping(source, op->mm);
	}
	complete_unmapping(source, op->mm);
	/* Only now, or total_vm would show both for a moment, and hiwater_vm. */
	for_each_move(op, mv)
		account_destination(op, mv);
}

/* A locked mapping's growth is faulted in, but only after mmap_lock is dropped. */
static void populate_growth(struct mremap_op *op)
{
	if (!(last_move(op)->vm_flags & VM_LOCKED))
		return;
	op->populate_addr = op->result + op->req.old_len;
	op->populate_len = growth(&op->req);
}

/* Where the VMAs have been there is nothing now, and no table of theirs stays. */
static void commit_relocation(struct mremap_op *op, struct unmapping *tail)
{
	const struct vma_move *last = last_move(op);
	unsigned long start = op->moves->addr;
	unsigned long len = last->addr + last->len - start;
	bool left_tables = false;
	struct vma_move *mv;

	for_each_move(op, mv)
		left_tables |= mv->tables.left_tables;
	unlink_range(op->mm, start, len);
	/*
	 * Before the tail is unmapped, which frees the tables above those of the gap
	 * as well, but not those in the gap.
	 */
	free_tables_of_gap(op, start, len, left_tables);
	/* When the tail was gathered, the new place was not yet its neighbour. */
	refresh_unmapping(tail, op->mm);
	complete_unmapping(tail, op->mm);
	account_growth(op, last);
	validate_mm(op->mm);
}

static void commit_move(struct mremap_op *op, struct unmapping *source,
			struct unmapping *tail)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		if (mv->tables.moved_table)
			mark_soft_dirty(mv->dst);
		commit_userfaultfd(op, mv);
		tell_profilers(mv->dst);
		if (keeps_source(&op->req))
			commit_kept_source(op, mv);
	}
	if (keeps_source(&op->req))
		account_growth(op, last_move(op));
	else if (is_relocated(op))
		commit_relocation(op, tail);
	else
		commit_unmapped_sources(op, source, tail);
	hugetlb_commit_growth(&op->hugetlb);
	op->charged = 0;
	op->result = op->moves->dst_addr;
	populate_growth(op);
}

/* Revert */

/*
 * Enter the copies into the books as the mappings of their own that they are
 * until they are unmapped, and for good if even that fails.
 */
static void account_copies(struct mremap_op *op)
{
	unsigned long owned = 0;
	struct vma_move *mv;

	for_each_move(op, mv) {
		if (!mv->dst)
			continue;
		account_destination(op, mv);
		if (mv->vm_flags & VM_ACCOUNT)
			owned += mv->dst_len >> PAGE_SHIFT;
	}
	vm_acct_memory(owned - op->charged);
	op->charged = 0;
}

static void remove_copy(struct mremap_op *op, const struct vma_move *mv)
{
	VMA_ITERATOR(vmi, op->mm, mv->dst_addr);

	do_vmi_munmap(&vmi, op->mm, mv->dst_addr, mv->dst_len, NULL,
		      /* unlock = */ false);
}

/*
 * What hangs on a copy stays with the source, but only once the pages are back:
 * who takes hugetlb pages away gives them back to the reservations of the VMA in
 * which they are. Pages that cannot go back stay mapped where they are rather
 * than be unmapped: moved against the caller's expectation, but not lost.
 */
static void move_all_pages_back(struct mremap_op *op)
{
	struct vma_move *mv;

	for (mv = end_of_moves(op); mv-- > op->moves;) {
		struct vm_area_struct *dst = mv->dst;

		if (!dst)
			continue;
		/* Only a vDSO or the like: these do not refuse. */
		if (mv->notified)
			notify_driver(mv->src);
		if (move_page_tables_back(&mv->tables))
			mv->dst = NULL;
		give_up_ownership(dst);
	}
}

/* Unmapping one of the copies may split the VMA of another, if they merged. */
static void revert_move(struct mremap_op *op)
{
	unsigned long hiwater_vm = op->mm->hiwater_vm;
	struct vma_move *mv;

	account_copies(op);
	move_all_pages_back(op);
	for_each_move(op, mv) {
		if (mv->dst)
			remove_copy(op, mv);
	}
	op->mm->hiwater_vm = hiwater_vm;
	undo_prepare(op);
}

/* All of a move, from prepare to commit or revert */

static void add_stats(struct mremap_op *op, const struct move_stats *stats)
{
	struct move_stats *sum = &op->stats;

	sum->relocated += stats->relocated;
	sum->puds += stats->puds;
	sum->pmds += stats->pmds;
	sum->huge += stats->huge;
	sum->ptes += stats->ptes;
	sum->flushes += stats->flushes;
}

static void sum_up_stats(struct mremap_op *op)
{
	const struct vma_move *mv;

	if (!trace_mremap_enabled())
		return;
	for_each_move(op, mv) {
		op->stats.vmas += !!mv->dst;
		add_stats(op, &mv->tables.stats);
	}
}

/* No page has moved yet: reverting relies on that for moves that never began. */
static void init_moves(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		mv->dst = NULL;
		mv->notified = false;
		mv->tables = (struct pagetable_move) {};
	}
}

/*
 * Move all that op->moves names. All checks have been made. mmap_lock is held
 * for write on entry and exit.
 */
static int move_vmas(struct mremap_op *op)
{
	/* Large; init_unmapping() is all that they need. */
	struct unmapping source __uninitialized, tail __uninitialized;
	int err;

	init_unmapping(&source);
	init_unmapping(&tail);
	init_moves(op);
	err = prepare_move(op);
	if (err)
		return err;
	err = do_move(op, &source, &tail);
	sum_up_stats(op);
	if (err) {
		revert_move(op);
		return err;
	}

	/* Point of no return */
	commit_move(op, &source, &tail);
	return 0;
}

/* Dispatch: one function for each thing that a call can come down to */

/* With MREMAP_FIXED or MREMAP_DONTUNMAP it moves in any case, even over others. */
static int mremap_to(struct mremap_op *op)
{
	const struct mremap_request *req = &op->req;
	bool fixed = req->flags & MREMAP_FIXED;
	int err;

	err = check_destination(req);
	if (err)
		return err;
	err = check_map_count(op->mm, MAPS_FOR_FORCED_MOVE);
	if (err)
		return err;
	if (fixed)
		add_dst_range(op, req->new_addr, req->new_addr + req->new_len);
	err = check_dst_ranges(op);
	if (err)
		return err;
	err = check_shrinkage(op->moves->src, req);
	if (err)
		return err;
	/* A second view in the place of the first: that would leave none. */
	if (fixed && !req->old_len && req->new_addr == req->addr)
		return -EFAULT;
	err = check_resize(op);
	if (err)
		return err;
	err = fixed ? fix_destination(op->moves, req->new_addr) :
		      find_destination(op->moves, req->new_addr);
	if (err)
		return err;
	err = check_move_out(op->moves->src, req->addr,
			     req->addr + moved_len(req));
	if (err)
		return err;
	return move_vmas(op);
}

/* As do_vmi_munmap(), which would look the VMA up that @vmi is at. */
static int unmap_end(struct mremap_op *op, struct vma_iterator *vmi,
		     unsigned long start, unsigned long len)
{
	struct vm_area_struct *vma = op->moves->src;

	if (start < vma->vm_end)
		return do_vmi_align_munmap(vmi, vma, op->mm, start, start + len,
					   &op->uffd_unmap_src, /* unlock = */ true);
	vma_iter_set(vmi, start);
	return do_vmi_munmap(vmi, op->mm, start, len, &op->uffd_unmap_src,
			     /* unlock = */ true);
}

/* Unmap the end. The range may reach over more VMAs than the first, which @vmi is at. */
static int shrink_in_place(struct mremap_op *op, struct vma_iterator *vmi)
{
	struct vm_area_struct *vma = op->moves->src;
	unsigned long start = op->req.addr + op->req.new_len;
	unsigned long len = shrinkage(&op->req);
	int err;

	op->result = op->req.addr;
	err = check_shrinkage(vma, &op->req);
	if (err)
		return err;
	expect_split(op, start);
	expect_split(op, start + len);

	/* Drops mmap_lock, if and only if it succeeds. */
	err = unmap_end(op, vmi, start, len);
	op->unlocked = !err;
	if (err) {
		userfaultfd_unmap_abort(&op->uffd_unmap_src);
		undo_splits(op->mm, &op->splits);
	}
	return err;
}

/*
 * Is the range at the end of its VMA, with room for the growth behind it? @vmi is at
 * the VMA, and goes to the gap behind it.
 */
static bool can_grow_in_place(const struct mremap_op *op, struct vma_iterator *vmi)
{
	const struct mremap_request *req = &op->req;
	const struct vm_area_struct *vma = last_move(op)->src;
	unsigned long end = vma->vm_end + growth(req);
	unsigned long addr;

	if (req->addr + req->old_len != vma->vm_end || end < vma->vm_end)
		return false;
	if (vma_iter_next_range(vmi) || vmi->mas.last < end - 1)
		return false;
	/* Only a file of huge pages knows where these can be. */
	addr = get_unmapped_area(is_vm_hugetlb_page(vma) ? vma->vm_file : NULL,
				 vma->vm_start, end - vma->vm_start, 0, MAP_FIXED);
	return !offset_in_page(addr);
}

/*
 * Grow the VMA, and join it with the next one if they meet; hugetlb is never joined.
 * @vmi is at the gap behind it.
 */
static struct vm_area_struct *extend_vma(struct vma_iterator *vmi,
					 struct vm_area_struct *vma,
					 unsigned long delta)
{
	if (is_vm_hugetlb_page(vma)) {
		VMG_VMA_STATE(vmg, vmi, NULL, vma, vma->vm_start,
			      vma->vm_end + delta);

		vma_iter_set(vmi, vma->vm_start);
		return vma_expand(&vmg) ? NULL : vma;
	}
	return vma_merge_extend(vmi, vma, delta);
}

/* @vmi is at the gap behind the VMA. */
static int grow_in_place(struct mremap_op *op, struct vma_iterator *vmi)
{
	struct vma_move *mv = last_move(op);
	const struct mremap_request *req = &op->req;
	struct vm_area_struct *grown = NULL;
	int err;

	err = charge(op);
	if (!err && grows_hugetlb(op))
		err = reserve_hugetlb(op, mv->src->vm_start);
	if (!err)
		grown = extend_vma(vmi, mv->src, growth(req));
	if (!grown) {
		undo_prepare(op);
		return err ?: -ENOMEM;
	}

	hugetlb_commit_growth(&op->hugetlb);
	tell_profilers(grown);
	op->charged = 0;
	op->result = req->addr;
	account_growth(op, mv);
	populate_growth(op);
	return 0;
}

static int grow_by_move(struct mremap_op *op)
{
	int err;

	if (!(op->req.flags & MREMAP_MAYMOVE))
		return -ENOMEM;
	err = find_destination(op->moves, 0);
	if (err)
		return err;
	err = check_map_count(op->mm, MAPS_FOR_MOVE);
	if (err)
		return err;
	err = check_move_out(op->moves->src, op->req.addr,
			     op->req.addr + moved_len(&op->req));
	if (err)
		return err;
	return move_vmas(op);
}

static int grow(struct mremap_op *op, struct vma_iterator *vmi)
{
	int err = check_resize(op);

	if (err)
		return err;
	if (can_grow_in_place(op, vmi))
		return grow_in_place(op, vmi);
	return grow_by_move(op);
}

/* Every check of several that needs no place. */
static int check_planned_moves(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		err = resched_or_killed(op);
		if (!err)
			err = check_planned_move(op, mv);
		if (err)
			return err;
	}
	err = check_growth(op);
	if (err)
		return err;
	err = check_shrinkage(last_move(op)->src, &op->req);
	if (err)
		return err;
	survey_addition(op);
	return 0;
}

/* hugetlb refuses what does not start, or end, with a huge page. */
static int fix_destinations(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		err = resched_or_killed(op);
		if (!err)
			err = fix_destination(mv, mv->dst_addr);
		if (err)
			return err;
	}
	return 0;
}

static int move_several(struct mremap_op *op)
{
	int err = 0;

	if (op->req.flags & MREMAP_FIXED)
		place_moves(op, op->req.new_addr);
	else
		err = choose_place(op);
	if (!err)
		err = fix_destinations(op);
	if (!err)
		err = check_dst_ranges(op);
	if (!err)
		err = check_limits(op);
	if (!err)
		err = check_map_count_for_all(op);
	return err ? err : move_vmas(op);
}

static int grow_several(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, last_move(op)->addr);
	int err;

	vma_iter_load(&vmi);
	if (!can_grow_in_place(op, &vmi))
		return move_several(op);
	err = check_limits(op);
	return err ? err : grow_in_place(op, &vmi);
}

static int mremap_several(struct mremap_op *op)
{
	struct mremap_request *req = &op->req;
	int err = 0;

	if (req->addr + req->old_len < req->addr)
		return -EINVAL;
	if (is_forced_move(req))
		err = check_destination(req);
	if (err)
		return err;
	err = plan_moves(op);
	if (err)
		return err;
	plan_lengths(op);
	if (is_forced_move(req))
		err = check_destination(req);
	if (!err)
		err = check_planned_moves(op);
	if (err)
		return err;
	if (is_forced_move(req))
		return move_several(op);
	/* It may have been rounded away. */
	op->result = req->addr;
	if (!growth(req))
		return 0;
	return grow_several(op);
}

/*
 * Overlap: a move by less than its length (MREMAP_OVERLAP)
 *
 * In place, where each VMA can be relocated. The one in front goes first, so that the
 * next one finds room. Else the pages go to a staging place and from there to the new
 * one. In between, when no page is at the old place and none at the new one, the VMAs
 * change their addresses:
 *
 *	               old place               staging place
 *	1 copies       |  VMA  |               | copy  |
 *	2 pages go     |  VMA  |               | pages |
 *	3 VMAs go         |  VMA  |            | pages |
 *	4 pages go on     | pages |            | copy  |
 *	5 copies off      | pages |
 *
 * Each of these can be undone, as with any other move: moves of pages back need no
 * memory, and what the tree of VMAs needs it waits for. So all goes back if something
 * fails. Of a struct vma_move, the destination is the staging place from 1 on.
 */

/* What is added to an old address, modulo the word. */
static unsigned long shift_of(const struct mremap_op *op)
{
	return op->req.new_addr - op->req.addr;
}

static bool goes_up(const struct mremap_op *op)
{
	return op->req.new_addr > op->req.addr;
}

static unsigned long distance(const struct mremap_op *op)
{
	return goes_up(op) ? shift_of(op) : -shift_of(op);
}

/* The VMA changes its address, so whoever must hear of that is in the way. */
static int check_overlapping_move(const struct mremap_op *op, struct vma_move *mv)
{
	int err;

	if (!can_modify_vma(mv->src))
		return -EPERM;
	if (!can_relocate_vma(mv->src) || !can_move_with_others(mv->src))
		return -EINVAL;
	err = check_move_out(mv->src, mv->addr, mv->addr + mv->len);
	return err ? err : fix_destination(mv, mv->addr + shift_of(op));
}

static int check_overlapping_moves(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		int err = resched_or_killed(op);

		if (!err)
			err = check_overlapping_move(op, mv);
		if (err)
			return err;
	}
	return 0;
}

/* What is in the old range leaves it by itself. */
static void add_ranges_beside_sources(struct mremap_op *op)
{
	unsigned long start, end;
	struct vma_move *mv;

	for_each_move(op, mv) {
		start = mv->addr + shift_of(op);
		end = start + mv->len;
		if (goes_up(op))
			start = max(start, end_of_sources(op));
		else
			end = min(end, op->req.addr);
		if (start < end)
			add_dst_range(op, start, end);
	}
}

/* In place */

/* A single one does, and of several those that are longer than the way they go. */
static bool overlaps_itself(const struct mremap_op *op, const struct vma_move *mv)
{
	return distance(op) < mv->len;
}

/* As far as the addresses tell; what is found there may say no still. */
static bool can_shift_in_place(const struct mremap_op *op)
{
	const struct vma_move *mv;

	for_each_move(op, mv) {
		struct pagetable_move pm = {
			.start = mv->addr,
			.end = mv->addr + mv->len,
			.shift = shift_of(op),
			.among_others = true,
		};

		if (overlaps_itself(op, mv) && mv->len > MAX_ASIDE * PAGE_SIZE)
			return false;
		if (!can_relocate_page_tables(&pm))
			return false;
	}
	return true;
}

/* Each moves to where those before it have been: from the end if they go up. */
static struct vma_move *nth_to_shift(const struct mremap_op *op, unsigned long nr)
{
	return goes_up(op) ? last_move(op) - nr : op->moves + nr;
}

/* Also where it is linked already, or in part. The tree waits for what it needs. */
static void link_range(struct vm_area_struct *vma, unsigned long start,
		       unsigned long len)
{
	MA_STATE(mas, &vma->vm_mm->mm_mt, start, start + len - 1);

	WARN_ON_ONCE(mas_store_gfp(&mas, vma, GFP_KERNEL | __GFP_NOFAIL));
}

/* A VMA is linked at both places: leave it at @kept alone. */
static void unlink_beside(struct vm_area_struct *vma, unsigned long left,
			  unsigned long kept, unsigned long len)
{
	unsigned long part = min(len, kept > left ? kept - left : left - kept);

	unlink_range(vma->vm_mm, kept > left ? left : left + len - part, part);
}

static int shift_vma(struct mremap_op *op, struct vma_move *mv,
		     struct entry_aside *aside)
{
	int err;

	init_pagetable_move(&mv->tables, mv);
	mv->tables.dst = mv->src;
	mv->tables.new_len = mv->len;
	mv->tables.among_others = true;
	if (overlaps_itself(op, mv))
		mv->tables.aside = aside;
	err = link_at_new_place(op, mv);
	if (err)
		return err;
	err = relocate_page_tables(&mv->tables);
	if (!err) {
		unlink_beside(mv->src, mv->addr, mv->dst_addr, mv->len);
		return 0;
	}
	link_range(mv->src, mv->addr, mv->len);
	unlink_beside(mv->src, mv->dst_addr, mv->addr, mv->len);
	return err;
}

/*
 * The first @nr of them go back. What cannot go back stays with its VMA, and then so do
 * those that went before it.
 */
static int shift_back(struct mremap_op *op, unsigned long nr)
{
	while (nr--) {
		struct vma_move *mv = nth_to_shift(op, nr);

		cond_resched();
		link_range(mv->src, mv->addr, mv->len);
		if (relocate_page_tables_back(&mv->tables)) {
			link_range(mv->src, mv->dst_addr, mv->len);
			unlink_beside(mv->src, mv->addr, mv->dst_addr, mv->len);
			return -ENOMEM;
		}
		unlink_beside(mv->src, mv->dst_addr, mv->addr, mv->len);
	}
	return 0;
}

/* -EAGAIN: they are where they were. By way of a staging place it may still do. */
static int shift_in_place(struct mremap_op *op)
{
	unsigned long pages = (end_of_sources(op) - op->req.addr) >> PAGE_SHIFT;
	struct entry_aside *aside;
	struct vma_move *mv;
	unsigned long nr;
	int err = 0;

	aside = kmalloc_array(min(pages, MAX_ASIDE), sizeof(*aside),
			      GFP_KERNEL | __GFP_NOWARN);
	if (!aside)
		return -EAGAIN;
	for (nr = 0; nr < op->nr_moves; nr++) {
		err = resched_or_killed(op);
		if (!err)
			err = shift_vma(op, nth_to_shift(op, nr), aside);
		if (err)
			break;
	}
	if (err)
		err = shift_back(op, nr) ?: -EAGAIN;
	kfree(aside);
	for_each_move(op, mv) {
		if (!err)
			mv->dst = mv->src;
		else
			mv->tables = (struct pagetable_move) {};
	}
	if (err)
		free_tables_of_both_places(op, shift_of(op));
	return err;
}

/* By way of a staging place */

/*
 * Choose the staging place: in a hole, without a neighbour in the same page tables, and
 * congruent with the new place. So what the distance makes necessary, as to split huge
 * pages, is done at the old place, and the way back from the staging place finds it so. A
 * part of the hole may be of the new place; as no more than a gap is between that and
 * the sources, all that is left of the hole is on the other side of it.
 */
static int choose_staging(struct mremap_op *op)
{
	bool topdown = test_bit(MMF_TOPDOWN, &op->mm->flags);
	unsigned long start = op->req.addr, len = end_of_sources(op) - start;
	unsigned long size = len + distance(op) + 3 * PMD_SIZE;
	unsigned long new_start = start + shift_of(op), new_end = new_start + len;
	unsigned long hole, hole_end, addr;
	struct vma_move *mv;

	if (size < len)
		return -ENOMEM;
	hole = __get_unmapped_area(NULL, 0, size, 0, 0, 0);
	if (IS_ERR_VALUE(hole))
		return hole;
	hole_end = hole + size;
	if (hole < new_end && hole_end > new_start) {
		if (goes_up(op))
			hole = new_end;
		else
			hole_end = new_start;
	}
	addr = congruent_in_hole(ALIGN(hole, PMD_SIZE),
				 ALIGN_DOWN(hole_end, PMD_SIZE), len, PMD_SIZE,
				 new_start, topdown);
	for_each_move(op, mv)
		mv->dst_addr = addr + (mv->addr - start);
	return 0;
}

/* They are not merged, not even with each other: they will not stay. */
static int copy_to_staging(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		int err = resched_or_killed(op);

		if (err)
			return err;
		mv->dst = copy_vma(mv->src, mv->dst_addr, mv->dst_len,
				   vma_pgoff_offset(mv->src, mv->addr));
		if (!mv->dst)
			return -ENOMEM;
	}
	return 0;
}

/*
 * Where soft-dirty is tracked, entries move one by one and are marked, rather than
 * the VMA: it is to become one with its neighbours again.
 */
static int move_to_staging(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		init_pagetable_move(&mv->tables, mv);
		mv->tables.ptes_only = vma_soft_dirty_enabled(mv->src);
		err = move_page_tables(&mv->tables);
		if (err)
			return err;
	}
	return 0;
}

/*
 * Move the VMAs themselves, by @shift. None has a page now, so there may be a
 * hole meanwhile for who walks the tree under RCU: it will wait for mmap_lock. All
 * leave before the first one arrives, which may be where another one was.
 */
static void shift_sources(struct mremap_op *op, unsigned long shift)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		cond_resched();
		unlink_range(op->mm, mv->src->vm_start, mv->len);
	}
	for_each_move(op, mv) {
		VMA_ITERATOR(vmi, op->mm, mv->src->vm_start + shift);

		cond_resched();
		relocate_empty_vma(mv->src, mv->src->vm_start + shift);
		WARN_ON_ONCE(vma_iter_store_gfp(&vmi, mv->src,
						GFP_KERNEL | __GFP_NOFAIL));
	}
}

static int move_on(struct mremap_op *op, struct pagetable_move *onward)
{
	struct vma_move *mv;
	int err;

	for_each_move(op, mv) {
		struct pagetable_move *pm = &onward[mv - op->moves];

		pm->src = mv->dst;
		pm->dst = mv->src;
		pm->start = mv->dst_addr;
		pm->end = mv->dst_addr + mv->len;
		pm->shift = mv->src->vm_start - mv->dst_addr;
		pm->ptes_only = mv->tables.ptes_only;
		pm->leave_empty = true;
		pm->count_ptes = mv->tables.count_ptes;
		err = move_page_tables(pm);
		if (err)
			return err;
	}
	return 0;
}

/*
 * Pages that cannot go back stay where they are, which is a rare exception as with
 * any other move. Then no VMA can go back, as it may be in the way of another: all of
 * them stay, at both places, and are counted as what they are.
 */
static int move_back_to_staging(struct mremap_op *op, struct pagetable_move *onward)
{
	unsigned long nr;
	struct vma_move *mv;
	int err = 0;

	for (nr = op->nr_moves; nr--;) {
		cond_resched();
		if (move_page_tables_back(&onward[nr]))
			err = -ENOMEM;
	}
	if (!err)
		return 0;
	account_copies(op);
	for_each_move(op, mv)
		mv->dst = NULL;
	return err;
}

/* All that can still fail once all is prepared, see above. */
static int do_staged_move(struct mremap_op *op, struct pagetable_move *onward,
			  struct unmapping *copies)
{
	unsigned long start = op->moves->dst_addr;
	unsigned long len = end_of_sources(op) - op->req.addr;
	int err;

	err = copy_to_staging(op);
	if (!err)
		err = move_to_staging(op);
	if (err)
		return err;
	shift_sources(op, shift_of(op));
	err = move_on(op, onward);
	if (!err)
		err = gather_unmapping(copies, op->mm, start, start + len,
				       &op->uffd_unmap_src);
	if (!err)
		return 0;
	if (!move_back_to_staging(op, onward))
		shift_sources(op, -shift_of(op));
	free_tables_of_both_places(op, shift_of(op));
	return err;
}

static void sum_up_staged_stats(struct mremap_op *op,
				const struct pagetable_move *onward)
{
	unsigned long nr;

	for (nr = 0; trace_mremap_enabled() && nr < op->nr_moves; nr++)
		add_stats(op, &onward[nr].stats);
}

static int shift_through_staging(struct mremap_op *op, struct unmapping *copies)
{
	struct pagetable_move *onward;
	int err;

	/* Empty: no page has gone on yet, should all have to go back. */
	onward = kvcalloc(op->nr_moves, sizeof(*onward),
			  GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!onward)
		return -ENOMEM;
	err = do_staged_move(op, onward, copies);
	sum_up_staged_stats(op, onward);
	kvfree(onward);
	return err;
}

/* Both ways */

/* In the order of the addresses: a VMA that merges may be another one then. */
static void merge_at_new_place(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		cond_resched();
		undo_split(op->mm, mv->addr + shift_of(op));
		undo_split(op->mm, mv->addr + shift_of(op) + mv->len);
	}
}

/* The charge stays with the VMAs, and nothing is left in their copies. */
static void remove_staging(struct mremap_op *op, struct unmapping *copies)
{
	struct vma_move *mv;

	copies->vms.nr_accounted = 0;
	copies->vms.emptied = true;
	complete_unmapping(copies, op->mm);
	for_each_move(op, mv)
		account_destination(op, mv);
}

static void commit_shift(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		tell_profilers(mv->src);
		/* Where it is now, others have been, or it itself. */
		free_empty_tables(mv->src, op->req.addr, end_of_sources(op));
	}
	free_tables_of_gaps(op, op->req.addr, end_of_sources(op));
	merge_at_new_place(op);
	validate_mm(op->mm);
	op->result = op->req.new_addr;
}

static void find_sources(struct mremap_op *op)
{
	struct vma_move *mv;

	for_each_move(op, mv) {
		cond_resched();
		find_source(op, mv);
	}
}

/* If it does not work out in place after all, the staging place is chosen late. */
static int shift_vmas(struct mremap_op *op, bool in_place)
{
	struct unmapping copies __uninitialized;
	int err;

	init_moves(op);
	err = prepare_move(op);
	if (err)
		return err;
	find_sources(op);
	if (in_place)
		err = shift_in_place(op);
	if (err == -EAGAIN) {
		err = choose_staging(op);
		in_place = false;
	}
	if (!err && !in_place)
		err = shift_through_staging(op, &copies);
	sum_up_stats(op);
	if (err) {
		revert_move(op);
		return err;
	}

	/* Point of no return */
	if (!in_place)
		remove_staging(op, &copies);
	commit_shift(op);
	return 0;
}

/*
 * One mapping or several, with gaps or without; @vma is at the old address. Not to cost
 * others the stack that it takes.
 */
static noinline int mremap_overlapping(struct mremap_op *op, struct vm_area_struct *vma)
{
	const struct mremap_request *req = &op->req;
	int err = check_new_range(req);
	bool in_place;

	if (err)
		return err;
	if (req->old_len != req->new_len || req->addr + req->old_len < req->addr)
		return -EINVAL;
	if (!vma)
		return -EFAULT;
	err = plan_moves(op);
	if (!err)
		err = check_overlapping_moves(op);
	if (err)
		return err;
	if (!shift_of(op)) {
		op->result = req->addr;
		return 0;
	}
	add_ranges_beside_sources(op);
	err = check_dst_ranges(op);
	if (!err)
		err = check_map_count_for_all(op);
	if (err)
		return err;
	in_place = can_shift_in_place(op);
	if (!in_place)
		err = choose_staging(op);
	return err ? err : shift_vmas(op, in_place);
}

/*
 * mmap_lock is held for write. If op->unlocked is set on return, it is not held
 * any more.
 */
static int mremap_locked(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req.addr);
	struct vm_area_struct *vma = vma_iter_load(&vmi);
	struct mremap_request *req = &op->req;
	int err;

	if (may_overlap(req) && ranges_overlap(req))
		return mremap_overlapping(op, vma);
	if (vma && covers_several(vma, req) &&
	    (may_have_gaps(req) || has_no_gaps(vma, req->addr + moved_len(req))))
		return mremap_several(op);

	err = check_source(vma, req);
	if (err)
		return err;
	plan_only_move(op->only, vma, req);
	if (is_forced_move(req))
		return mremap_to(op);
	if (growth(req))
		return grow(op, &vmi);
	if (shrinkage(req))
		return shrink_in_place(op, &vmi);
	op->result = req->addr;
	return 0;
}

/* The system call */

/* In the order in which it happened. Few calls have anything to tell. */
static void notify_monitors(struct mremap_op *op)
{
	if (!list_empty(&op->uffd_unmap_dst))
		userfaultfd_unmap_complete(op->mm, &op->uffd_unmap_dst);
	mremap_userfaultfd_complete(&op->uffd_remap, op->req.addr, op->result,
				    moved_len(&op->req));
	if (!list_empty(&op->uffd_unmap_src))
		userfaultfd_unmap_complete(op->mm, &op->uffd_unmap_src);
}

/*
 * What has to wait until mmap_lock is dropped: telling userfaultfd monitors, and
 * faulting in what a locked mapping grew by. The latter may wait for a monitor,
 * which can do nothing before it was told.
 */
static void finish_unlocked(struct mremap_op *op)
{
	notify_monitors(op);
	if (op->populate_len)
		mm_populate(op->populate_addr, op->populate_len);
}

/**
 * do_mremap - resize or move mappings of the current process
 * @asked: the request as the caller made it
 *
 * Documentation/mm/mremap.rst has what each combination of flags and lengths
 * means, and all errors.
 *
 * Context: process context; takes mmap_lock for write.
 * Return: the address of the mapping, or a negative errno.
 */
static unsigned long do_mremap(const struct mremap_request *asked)
{
	/* Large, and of no use to most calls: filled where they are used. */
	struct dst_range only_range __uninitialized;
	struct vma_move only __uninitialized;
	struct mremap_op op = {
		.req = *asked,
		.mm = current->mm,
		.moves = &only,
		.only = &only,
		.nr_moves = 1,
		.ranges = &only_range,
		.only_range = &only_range,
		.max_ranges = 1,
		.uffd_remap = NULL_VM_UFFD_CTX,
		.uffd_unmap_dst = LIST_HEAD_INIT(op.uffd_unmap_dst),
		.uffd_unmap_src = LIST_HEAD_INIT(op.uffd_unmap_src),
	};
	struct mremap_request *req = &op.req;
	int err;

	err = check_request(req);
	if (err)
		goto out;
	req->old_len = PAGE_ALIGN(req->old_len);
	req->new_len = PAGE_ALIGN(req->new_len);

	if (mmap_write_lock_killable(op.mm)) {
		err = -EINTR;
		goto out;
	}
	err = mremap_locked(&op);
	if (!op.unlocked)
		mmap_write_unlock(op.mm);
	free_plans(&op);
	finish_unlocked(&op);
out:
	trace_mremap(asked, err ? 0 : op.result, err, &op.stats);
	return err ? err : op.result;
}

/*
 * The tag is taken off the old address and left on the new one, as mmap() does
 * with its hint: Documentation/arch/arm64/tagged-address-abi.rst. A tagged new
 * address is refused for being out of range.
 */
SYSCALL_DEFINE5(mremap, unsigned long, addr, unsigned long, old_len,
		unsigned long, new_len, unsigned long, flags,
		unsigned long, new_addr)
{
	struct mremap_request req = {
		.addr = untagged_addr(addr),
		.old_len = old_len,
		.new_len = new_len,
		.flags = flags,
		.new_addr = new_addr,
	};

	return do_mremap(&req);
}

#ifdef CONFIG_MREMAP_KUNIT_TEST
#include "tests/mremap_call_kunit.c"
#endif
