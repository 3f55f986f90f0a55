// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2): resize and move mappings, and the page tables under them.
 *
 * A call goes through these phases, and never back to an earlier one:
 *
 *   check     the request, then the VMAs. Nothing is changed, so that what is
 *             wrong with a call is told before it has done anything. (Only a
 *             driver's own vm_ops->mremap is asked later, when all is ready.)
 *   prepare   what can fail while all mappings are still whole: break KSM
 *             pages, charge, split the sources out of their VMAs, and take the
 *             old destinations off. Then unmap these, which cannot fail.
 *   move      copy the VMAs and move the page tables under them, with the
 *             sources still linked; then take these off for unmapping.
 *   commit    cannot fail. It starts at the point of no return that
 *             move_vmas() marks.
 *   revert    undoes prepare and move, last step first. Only a destination
 *             that was unmapped for MREMAP_FIXED cannot be brought back.
 *
 * Locks, outermost first:
 *
 *   phase             mmap_lock  VMA lock    i_mmap, anon_vma   page table
 *   check             write      -           -                  -
 *   prepare           write      write       by split and       -
 *                                            unmap helpers
 *   plan a window     write      write, both -                  as pXd_alloc()
 *   move a window     write      write, both write, both        both
 *   commit, revert    write      write, both as move            as move
 *   after the call    -          -           -                  -
 *
 * TLB contract: between the moment an entry leaves its old place and the end
 * of the flush of that place, the rmap locks are not dropped, on no path. Who
 * would clean, free or migrate the page while a CPU can still write through the
 * old translation has to take them (reclaim, migration, truncation, collapse),
 * or mmap_lock (khugepaged, KSM, madvise, the OOM reaper), or the VMA lock
 * (faults): all of these are held. GUP-fast takes none of them, but it only
 * reads entries, takes a reference and looks again. So one flush does for a
 * whole window of entries. Device mappings and the stack of an execve() are
 * flushed table by table, under the page table locks. hugetlb has its own
 * mover, in mm/hugetlb.c, which takes the same locks and flushes at its end.
 *
 * Sizes and addresses are in bytes and page aligned unless a comment says
 * pages. "src" and "dst" keep their meaning through the whole call, also while
 * it is being reverted.
 */

#include <linux/cacheflush.h>
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/ksm.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/pgalloc.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/secretmem.h>
#include <linux/security.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/syscalls.h>
#include <linux/userfaultfd_k.h>

#include <asm/tlb.h>

#include "internal.h"

/* Types */

/**
 * struct mremap_request - what the caller asked for
 * @addr: start of the old range, tag removed
 * @old_len: its length; 0 asks for a second view of a shared mapping
 * @new_len: length that the mapping is to have
 * @flags: MREMAP_*
 * @new_addr: where to, if MREMAP_FIXED; a hint, if only MREMAP_DONTUNMAP
 *
 * Written by the system call and by the checks, which round the lengths up to
 * whole pages; nobody writes it after that.
 */
struct mremap_request {
	unsigned long addr;
	unsigned long old_len;
	unsigned long new_len;
	unsigned long flags;
	unsigned long new_addr;
};

/**
 * struct range_survey - what is mapped in a range, or added by a call, in pages
 * @total: all of it
 * @data: what counts for RLIMIT_DATA
 * @locked: what counts for RLIMIT_MEMLOCK
 * @charged: what is charged as committed memory
 */
struct range_survey {
	unsigned long total;
	unsigned long data;
	unsigned long locked;
	unsigned long charged;
};

/*
 * Splits that are made before it is sure that the call succeeds: two ends of the
 * source, the end of what a shrinking move drops, two ends of a destination.
 */
#define MAX_SPLITS 3

/**
 * struct split_list - where VMAs were split for this call
 * @at: addresses
 * @nr: number of these
 */
struct split_list {
	unsigned long at[MAX_SPLITS];
	unsigned int nr;
};

/**
 * struct move_stats - what a move of page tables came to
 * @vmas: VMAs whose entries were moved
 * @puds: tables of PMDs that moved whole
 * @pmds: page tables that moved whole
 * @huge: PMDs and PUDs that map memory themselves
 * @ptes: single entries, empty ones not counted
 * @flushes: TLB flushes
 */
struct move_stats {
	unsigned long vmas;
	unsigned long puds;
	unsigned long pmds;
	unsigned long huge;
	unsigned long ptes;
	unsigned long flushes;
};

/**
 * struct pagetable_move - a move of page table entries, and how far it got
 * @src: VMA that the entries leave
 * @dst: VMA that they go to; the same VMA for the stack of an execve()
 * @start: old address of the first byte to move
 * @end: old address behind the last byte
 * @cursor: old address up to which everything has moved; below @start while
 *          a widened first table is still to come
 * @shift: what added to an old address makes the new one, modulo the word
 * @wide_start: start of the first table that moves whole, if @start is in it
 * @wide_end: end of the last one, if @end is in it
 * @own_start: start of the first table that holds entries of the range alone
 * @own_end: end of the last one
 * @new_own_start: as @own_start, at the new place
 * @keep_tables: entries must move one by one, tables stay where they are
 * @in_stack: @src and @dst are one VMA that covers both ranges
 * @per_table: flush for each table, before its lock is dropped
 * @back: undoes an earlier move; needs no memory, and does not give up
 * @moved_table: a whole table moved, without its entries being looked at
 * @moved_end: end of the last table or huge entry that moved whole; above @end
 *	       if and only if the widened last table did
 * @stats: what has moved
 */
struct pagetable_move {
	struct vm_area_struct *src;
	struct vm_area_struct *dst;
	unsigned long start;
	unsigned long end;
	unsigned long cursor;
	unsigned long shift;
	unsigned long wide_start;
	unsigned long wide_end;
	unsigned long own_start;
	unsigned long own_end;
	unsigned long new_own_start;
	bool keep_tables;
	bool in_stack;
	bool per_table;
	bool back;
	bool moved_table;
	unsigned long moved_end;
	struct move_stats stats;
};

/**
 * struct unmapping - VMAs that are taken off for unmapping
 * @vmi: iterator over the address space
 * @detached: the VMAs
 * @mas: state for @detached
 * @vms: the core's record of the unmapping
 */
struct unmapping {
	struct vma_iterator vmi;
	struct maple_tree detached;
	struct ma_state mas;
	struct vma_munmap_struct vms;
};

/**
 * struct vma_move - the move of one VMA, or of a part of it
 * @addr: where it is
 * @len: length of the part that moves
 * @dst_addr: where it goes
 * @dst_len: length of the new mapping
 * @src: VMA with the pages to move; from prepare on it starts and ends with
 *       the moved range, unless needs_isolation() says that it need not
 * @dst: VMA that covers the new range; NULL until copied
 * @vm_flags: flags of the source when the call came
 * @tables: the move of the page tables
 * @notified: the new mapping's driver was notified of it
 */
struct vma_move {
	unsigned long addr;
	unsigned long len;
	unsigned long dst_addr;
	unsigned long dst_len;
	struct vm_area_struct *src;
	struct vm_area_struct *dst;
	vm_flags_t vm_flags;

	struct pagetable_move tables;
	bool notified;
};

/**
 * struct dst_range - a range that what was mapped before has to leave
 * @start: its first byte
 * @end: the byte behind its last
 * @occupied: something is mapped there
 * @unmapping: the VMAs there
 * @splits: where VMAs were split to cut it out
 *
 * Neighbouring moves share one.
 */
struct dst_range {
	unsigned long start;
	unsigned long end;
	bool occupied;
	struct unmapping unmapping;
	struct split_list splits;
};

/**
 * struct mremap_op - the call as it goes on
 * @req: what is to be done
 * @mm: where
 * @moves: what is to be moved, in the order of the addresses; at least one, the
 *	   first with the VMA at the old address also if nothing has to move
 * @nr_moves: number of these
 * @only: the one, if there is only one
 * @ranges: ranges to clear for MREMAP_FIXED, in the order of the addresses
 * @nr_ranges: number of these; 0 without MREMAP_FIXED
 * @max_ranges: room for so many
 * @only_range: the one, if there is only one
 * @replaced: what was mapped where something is to go
 * @added: what the call adds to the address space
 * @splits: where the source's VMAs were split
 * @charged: pages charged for this call and not yet owned by a VMA
 * @owed: pages whose charge is still to be taken over from old destinations
 * @populate_addr: start of what to fault in after the call
 * @populate_len: length of that
 * @result: what the system call returns if it succeeds
 * @unlocked: mmap_lock was already dropped
 * @uffd_remap: context to be told of the move
 * @uffd_unmap_dst: contexts to be told of the unmapped destination
 * @uffd_unmap_src: contexts to be told of unmapped parts of the source
 * @stats: for the tracepoint
 */
struct mremap_op {
	const struct mremap_request *req;
	struct mm_struct *mm;

	struct vma_move *moves;
	struct vma_move *only;
	unsigned long nr_moves;
	struct dst_range *ranges;
	struct dst_range *only_range;
	unsigned long nr_ranges;
	unsigned long max_ranges;

	struct range_survey replaced;
	struct range_survey added;
	struct split_list splits;
	unsigned long charged;
	unsigned long owed;

	unsigned long populate_addr;
	unsigned long populate_len;
	unsigned long result;
	bool unlocked;

	struct vm_userfaultfd_ctx uffd_remap;
	struct list_head uffd_unmap_dst;
	struct list_head uffd_unmap_src;
	struct move_stats stats;
};

static struct vma_move *end_of_moves(const struct mremap_op *op)
{
	return op->moves + op->nr_moves;
}

/* It looks into the types above. */
#define CREATE_TRACE_POINTS
#include <trace/events/mremap.h>

/* Request: pure functions, no locks, no mm */

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

/*
 * What can be told from the arguments alone. Lengths are still as the caller
 * gave them: MREMAP_DONTUNMAP compares them to the byte.
 */
static int check_request(const struct mremap_request *req)
{
	if (req->flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP))
		return -EINVAL;
	if (is_forced_move(req) && !(req->flags & MREMAP_MAYMOVE))
		return -EINVAL;
	if (keeps_source(req) && req->old_len != req->new_len)
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

static int check_destination(const struct mremap_request *req)
{
	if (offset_in_page(req->new_addr))
		return -EINVAL;
	if (req->new_len > TASK_SIZE || req->new_addr > TASK_SIZE - req->new_len)
		return -EINVAL;
	if (ranges_overlap(req))
		return -EINVAL;
	return 0;
}

/* Checks of the VMAs: they change nothing; all hold mmap_lock for write */

/* Round lengths up to what the source is made of, and refuse what it can't do. */
static int check_hugetlb(struct vm_area_struct *vma, struct mremap_request *req)
{
	unsigned long size = huge_page_size(hstate_vma(vma));
	unsigned long old_len = ALIGN(req->old_len, size);
	unsigned long new_len = ALIGN(req->new_len, size);

	/* A length near the end of the address space is not to become none. */
	if (old_len < req->old_len || new_len < req->new_len)
		return -EINVAL;
	req->old_len = old_len;
	req->new_len = new_len;

	if (!IS_ALIGNED(req->addr, size))
		return -EINVAL;
	if (is_forced_move(req) && !IS_ALIGNED(req->new_addr, size))
		return -EINVAL;
	/* Reservations were made for the old length only. */
	if (growth(req))
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

/*
 * Between two mappings of a long call: let others run, and give up if the process
 * was killed, as long as all can be undone.
 */
static int resched_or_killed(void)
{
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
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

/* What the call adds to the address space. Lengths are whole pages by now. */
static void survey_addition(struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
	unsigned long pages = growth(req) >> PAGE_SHIFT;
	vm_flags_t vm_flags = op->moves->vm_flags;
	struct range_survey *added = &op->added;
	struct vma_move *mv;

	if (keeps_source(req)) {
		for (mv = op->moves; mv < end_of_moves(op); mv++) {
			unsigned long locked = added->locked;

			survey_vma(added, mv->src, mv->addr, mv->addr + mv->len);
			/* The lock goes along with the pages, or stays as well. */
			if (!is_always_locked(mv->src))
				added->locked = locked;
		}
		return;
	}
	added->total = pages;
	added->data = is_data_mapping(vm_flags) ? pages : 0;
	added->locked = vm_flags & VM_LOCKED ? pages : 0;
	added->charged = vm_flags & VM_ACCOUNT ? pages : 0;
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

/* Can the only source be moved or grown as asked? */
static int check_resize(struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
	const struct vm_area_struct *vma = op->moves->src;
	pgoff_t pgoff = vma_pgoff_offset(op->moves->src, req->addr);

	/* A private mapping has no second view: it would be an unrelated one. */
	if (!req->old_len && !(vma->vm_flags & (VM_SHARED | VM_MAYSHARE)))
		return -EINVAL;
	if (keeps_source(req) && (vma->vm_flags & (VM_DONTEXPAND | VM_PFNMAP)))
		return -EINVAL;
	if (moved_len(req) > vma->vm_end - req->addr)
		return -EFAULT;
	if (growth(req) && pgoff + (req->new_len >> PAGE_SHIFT) < pgoff)
		return -EINVAL;
	if (growth(req) && (vma->vm_flags & (VM_DONTEXPAND | VM_PFNMAP)))
		return -EFAULT;
	survey_addition(op);
	return check_limits(op);
}

/*
 * Map count. A move that the caller did not force splits its source at two ends
 * and adds a VMA. A forced one splits the source at three places at most (also
 * where a shrinking move's tail ends) and the destination at two; it adds its
 * own VMA when the old destination is gone. -ENOMEM comes at the map count at
 * which it has always come.
 */
#define MAPS_FOR_MOVE		3
#define MAPS_FOR_FORCED_MOVE	(MAPS_FOR_MOVE + 2)

static int check_map_count(struct mm_struct *mm, int wanted)
{
	return mm->map_count + wanted >= sysctl_max_map_count ? -ENOMEM : 0;
}

/* Page tables: finding entries */

/* The entry for the table of PMDs at @addr; NULL if there is no table for it. */
static pud_t *find_pud(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;

	if (pgd_none_or_clear_bad(pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none_or_clear_bad(p4d))
		return NULL;
	return pud_offset(p4d, addr);
}

static pud_t *get_old_pud(struct mm_struct *mm, unsigned long addr)
{
	pud_t *pud = find_pud(mm, addr);

	/* A leaf looks bad to pud_bad(), but it maps memory: never clear it. */
	if (!pud || pud_leaf(pudp_get(pud)))
		return pud;
	return pud_none_or_clear_bad(pud) ? NULL : pud;
}

/* The size of the empty entry at @addr, where get_old_pud() found nothing. */
static unsigned long get_hole_size(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);

	if (pgd_none(*pgd))
		return PGDIR_SIZE;
	return p4d_none(*p4d_offset(pgd, addr)) ? P4D_SIZE : PUD_SIZE;
}

/*
 * split_vma() sees to huge PMDs at the new boundary, but to nothing above. The
 * entry is dropped, for the file or device to fault it in again.
 */
static void split_leaf_pud_at(struct vm_area_struct *vma, unsigned long addr)
{
	pud_t *pud;

	/* hugetlb keeps swap-like entries in PUDs, which are not bad ones. */
	if (is_vm_hugetlb_page(vma) || IS_ALIGNED(addr, PUD_SIZE))
		return;
	pud = get_old_pud(vma->vm_mm, addr);
	if (pud && pud_leaf(pudp_get(pud)))
		split_huge_pud(vma, pud, addr);
}

/* Splitting VMAs, and undoing the splits */

/* Is @addr inside of a VMA, so that a boundary there takes a split? */
static struct vm_area_struct *vma_around(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	return vma && vma->vm_start != addr ? vma : NULL;
}

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

/* Testing */

/*
 * Where a move can be made to wait, without page table locks. The gaps in which
 * others could do harm, if a lock or a flush was missing, are else too short for
 * a test to hit.
 */
enum delay_point {
	DELAY_PLANNED,		/* a window is planned, the rmap locks not taken */
	DELAY_DETACHED,		/* tables are detached, the TLBs not flushed */
	DELAY_DETACH_FLUSHED,	/* that is flushed, the entries are where they were */
	DELAY_MOVED,		/* entries have moved, the TLBs are not flushed */
	NR_DELAY_POINTS,
};

#ifdef CONFIG_DEBUG_MREMAP_DELAY
static u32 delay_usecs[NR_DELAY_POINTS];

static void delay_at(enum delay_point point)
{
	u32 usecs = READ_ONCE(delay_usecs[point]);

	if (usecs)
		fsleep(usecs);
}

static int __init create_delay_files(void)
{
	struct dentry *dir = debugfs_create_dir("mremap_delay_us", NULL);

	debugfs_create_u32("planned", 0600, dir, &delay_usecs[DELAY_PLANNED]);
	debugfs_create_u32("detached", 0600, dir, &delay_usecs[DELAY_DETACHED]);
	debugfs_create_u32("detach_flushed", 0600, dir,
			   &delay_usecs[DELAY_DETACH_FLUSHED]);
	debugfs_create_u32("moved", 0600, dir, &delay_usecs[DELAY_MOVED]);
	return 0;
}
late_initcall(create_delay_files);
#else
static inline void delay_at(enum delay_point point)
{
}
#endif

/* Page tables: geometry */

static unsigned long new_addr_of(const struct pagetable_move *pm)
{
	return pm->cursor + pm->shift;
}

/* Are the old and the new place at the same offset in their tables? */
static bool is_congruent(const struct pagetable_move *pm)
{
	return !(pm->shift & ~PMD_MASK);
}

/*
 * Bytes from @addr to the next boundary of @size at the old or the new place, or
 * to the end of what is walked. It is @size if and only if one whole entry of
 * that size can move.
 */
static unsigned long get_extent_at(const struct pagetable_move *pm,
				   unsigned long addr, unsigned long size)
{
	unsigned long old_room = size - (addr & (size - 1));
	unsigned long new_room = size - ((addr + pm->shift) & (size - 1));

	return min3(old_room, new_room, max(pm->end, pm->wide_end) - addr);
}

static unsigned long get_extent(const struct pagetable_move *pm,
				unsigned long size)
{
	return get_extent_at(pm, pm->cursor, size);
}

/*
 * Does the table that holds @addr, where the range starts, hold nothing else
 * below? Only if nothing is mapped there. The stack's VMA covers both ranges, so
 * there the part below may be its own.
 */
static bool can_align_down(struct vm_area_struct *vma, unsigned long addr,
			   bool in_stack)
{
	unsigned long aligned = addr & PMD_MASK;

	if (in_stack && aligned >= vma->vm_start)
		return true;
	if (!in_stack && vma->vm_start != addr)
		return false;
	return !find_vma_intersection(vma->vm_mm, aligned, vma->vm_start);
}

/* The same above @end, where the range ends. */
static bool can_align_up(struct vm_area_struct *vma, unsigned long end)
{
	unsigned long aligned = ALIGN(end, PMD_SIZE);

	return vma->vm_end == end &&
	       !find_vma_intersection(vma->vm_mm, end, aligned);
}

/*
 * The new mapping may go on above @end, with what it grew by. That is as good as
 * unmapped: nothing is there, and nobody can fault it in. If it was merged with
 * a neighbour there may be entries, but then there is a table for them already,
 * and a table moves only to where there is none. A move back does not ask this:
 * it is widened only if the table at the end did move.
 */
static bool can_align_up_new(struct vm_area_struct *vma, unsigned long end)
{
	unsigned long aligned = ALIGN(end, PMD_SIZE);

	return aligned <= vma->vm_end ||
	       !find_vma_intersection(vma->vm_mm, vma->vm_end, aligned);
}

#ifndef arch_supports_page_table_move
#define arch_supports_page_table_move arch_supports_page_table_move
static inline bool arch_supports_page_table_move(void)
{
	return IS_ENABLED(CONFIG_HAVE_MOVE_PMD) ||
	       IS_ENABLED(CONFIG_HAVE_MOVE_PUD);
}
#endif

static bool can_move_tables(const struct pagetable_move *pm)
{
	return !pm->keep_tables && arch_supports_page_table_move();
}

static bool can_move_pte_tables(const struct pagetable_move *pm)
{
	return IS_ENABLED(CONFIG_HAVE_MOVE_PMD) && can_move_tables(pm) &&
	       is_congruent(pm);
}

/* See "taking tables out of the tree" below. */
#ifndef arch_can_detach_page_tables
static inline bool arch_can_detach_page_tables(void)
{
	return false;
}
#endif

static bool can_detach_tables(const struct pagetable_move *pm)
{
	return arch_can_detach_page_tables() && !pm->per_table &&
	       !can_move_pte_tables(pm);
}

/*
 * For fewer entries it does not pay to look who else is in their table, nor to
 * take it out of the tree, which takes a flush of more than a few pages.
 */
#define SMALL_MOVE	(64 * PAGE_SIZE)

static bool has_own_table(const struct pagetable_move *pm)
{
	return ALIGN(pm->own_start, PMD_SIZE) + PMD_SIZE <= pm->own_end;
}

/*
 * Find the tables at both ends that hold entries of the range and no others,
 * although the range does not fill them. Where that is so at the new place as
 * well, the walk is widened to them, so that they move whole. A move back has
 * the width that it had forwards.
 */
static void widen_to_tables(struct pagetable_move *pm)
{
	unsigned long head = pm->start & ~PMD_MASK;
	unsigned long tail = -pm->end & ~PMD_MASK;
	bool is_one_table = pm->end - pm->start < PMD_SIZE - head;
	bool may_widen = can_move_pte_tables(pm) && !pm->back && !is_one_table;

	if (!pm->back) {
		pm->wide_start = pm->start;
		pm->wide_end = pm->end;
	}
	pm->own_start = pm->start;
	pm->own_end = pm->end;
	pm->new_own_start = pm->start + pm->shift;
	if (pm->end - pm->start < SMALL_MOVE)
		return;

	/* The last table of the address space: its end would be 0. */
	if (pm->end + tail < pm->end || pm->end + pm->shift + tail < tail)
		tail = 0;
	if (tail && !pm->in_stack && can_align_up(pm->src, pm->end)) {
		pm->own_end += tail;
		if (may_widen && can_align_up_new(pm->dst, pm->end + pm->shift))
			pm->wide_end += tail;
	} else if (is_one_table) {
		return;
	}
	if (head && can_align_down(pm->src, pm->start, pm->in_stack)) {
		pm->own_start -= head;
		if (may_widen && can_align_down(pm->dst, pm->start + pm->shift,
						pm->in_stack))
			pm->wide_start -= head;
	}
	if (can_detach_tables(pm) && has_own_table(pm) &&
	    can_align_down(pm->dst, pm->new_own_start, false))
		pm->new_own_start &= PMD_MASK;
}

/* Page tables: making entries */

static pud_t *alloc_new_pud(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);

	return p4d ? pud_alloc(mm, p4d, addr) : NULL;
}

/* Is this entry something other than a table: a huge page, or one in migration? */
static __always_inline bool is_huge_pmd_entry(pmd_t pmd)
{
	return pmd_trans_huge(pmd) || pmd_devmap(pmd) || is_swap_pmd(pmd);
}

/* Page tables: locks */

static struct address_space *mapping_of(const struct vm_area_struct *vma)
{
	return vma->vm_file ? vma->vm_file->f_mapping : NULL;
}

/*
 * Both locks, always: with them held, no rmap walk can come between the old and
 * the new place of a page and miss both. All anon_vmas that either VMA can have
 * share one root, and both VMAs map the same file, so the source's locks do for
 * the destination as well, in either direction.
 */
static void take_rmap_locks(struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	if (mapping)
		i_mmap_lock_write(mapping);
	if (vma->anon_vma)
		anon_vma_lock_write(vma->anon_vma);
}

static void drop_rmap_locks(struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	if (vma->anon_vma)
		anon_vma_unlock_write(vma->anon_vma);
	if (mapping)
		i_mmap_unlock_write(mapping);
}

static void assert_rmap_locked(const struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	if (mapping)
		i_mmap_assert_write_locked(mapping);
	if (vma->anon_vma)
		lockdep_assert_held_write(&vma->anon_vma->root->rwsem);
}

/*
 * Does somebody wait for a lock that we hold for write? On PREEMPT_RT
 * rwsem_is_contended() tells only whether there are readers or a writer, and the
 * writer is us. The bound on a window's work has to do there.
 */
static bool is_waited_for(struct rw_semaphore *sem)
{
	return !IS_ENABLED(CONFIG_PREEMPT_RT) && rwsem_is_contended(sem);
}

/* Is somebody waiting, for a processor or for the rmap locks? */
static bool should_yield(const struct vm_area_struct *vma)
{
	struct address_space *mapping = mapping_of(vma);

	return need_resched() ||
	       (mapping && is_waited_for(&mapping->i_mmap_rwsem)) ||
	       (vma->anon_vma && is_waited_for(&vma->anon_vma->root->rwsem));
}

/*
 * Two locks of one class, in the order of their addresses: UFFDIO_MOVE takes two
 * in that order, and needs no more than the locks of its own VMAs, which may
 * share tables with the ones that move.
 */
static void lock_both(spinlock_t *one, spinlock_t *other)
	__acquires(one) __acquires(other)
{
	spin_lock(min(one, other));
	if (one != other)
		spin_lock_nested(max(one, other), SINGLE_DEPTH_NESTING);
	else
		__acquire(other);
}

static void unlock_both(spinlock_t *one, spinlock_t *other)
	__releases(one) __releases(other)
{
	if (one != other)
		spin_unlock(max(one, other));
	else
		__release(other);
	spin_unlock(min(one, other));
}

/* Page tables: windows */

/*
 * What is done under one round of the rmap locks, with one TLB flush: up to so
 * many page tables whose entries move one by one. Together with the end of a
 * table of PMDs, where every window ends, and with should_yield() that bounds
 * how long others wait for the locks.
 */
#define WINDOW_TABLES	32

/**
 * struct move_window - a stretch of a move, done under one round of locks
 * @old_pud: entry for the table of PMDs that holds it at the old place
 * @new_pud: the same at the new place
 * @old_pmds: the table of PMDs at the old place
 * @new_pmds: the one at the new place
 * @start: old address of the first byte
 * @end: old address behind the last byte
 * @tables: page tables whose entries were moved one by one
 * @flush_start: where the TLB may hold what has moved
 * @flush_end: where that ends; not above @flush_start if there is nothing
 * @flush_small: it may hold more than translations of huge pages
 * @spares: page tables for the new place, allocated before the locks are taken;
 *	    those that are left go on to the next window
 * @nr_spares: number of these
 * @detached: entries of the page tables that are out of the tree for the moment,
 *	      the first for the table that holds @start
 * @nr_detached: number of these that are not empty
 */
struct move_window {
	pud_t *old_pud;
	pud_t *new_pud;
	pmd_t *old_pmds;
	pmd_t *new_pmds;
	unsigned long start;
	unsigned long end;
	unsigned int tables;

	unsigned long flush_start;
	unsigned long flush_end;
	bool flush_small;

	pgtable_t spares[WINDOW_TABLES + 1];
	unsigned int nr_spares;

	pmd_t detached[WINDOW_TABLES];
	unsigned int nr_detached;
};

/* The arrays have nothing in them as long as the numbers say so. */
static void init_window(struct move_window *win)
{
	win->flush_start = 0;
	win->flush_end = 0;
	win->flush_small = false;
	win->nr_spares = 0;
	win->nr_detached = 0;
}

static pmd_t *table_of_pmds(pud_t *pud, unsigned long addr)
{
	return pmd_offset(pud, addr) - pmd_index(addr);
}

static pmd_t *old_pmd_at(const struct move_window *win, unsigned long addr)
{
	return win->old_pmds + pmd_index(addr);
}

static pmd_t *new_pmd_at(const struct pagetable_move *pm,
			 const struct move_window *win, unsigned long addr)
{
	return win->new_pmds + pmd_index(addr + pm->shift);
}

static void note_flush(struct move_window *win, unsigned long start,
		       unsigned long size, bool small)
{
	if (win->flush_start >= win->flush_end)
		win->flush_start = start;
	win->flush_start = min(win->flush_start, start);
	win->flush_end = max(win->flush_end, start + size);
	win->flush_small |= small;
}

/*
 * Where a table moved, or left the tree, only flush_tlb_range() will do: it also
 * drops what a CPU remembers of tables that were taken away. Where nothing but
 * huge pages moved, an architecture can have something cheaper. That of arc
 * flushes a single huge page, whatever the range.
 */
static bool can_flush_as_huge(const struct move_window *win)
{
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && !win->flush_small &&
	       (!IS_ENABLED(CONFIG_ARC) ||
		win->flush_end - win->flush_start == PMD_SIZE);
}

static void flush_window(struct pagetable_move *pm, struct move_window *win)
{
	if (win->flush_start >= win->flush_end)
		return;
	if (can_flush_as_huge(win))
		flush_pmd_tlb_range(pm->src, win->flush_start, win->flush_end);
	else
		flush_tlb_range(pm->src, win->flush_start, win->flush_end);
	win->flush_start = 0;
	win->flush_end = 0;
	win->flush_small = false;
	pm->stats.flushes++;
}

/*
 * For a page table lock that is about to be dropped. What maps no ordinary
 * memory may be unmapped by drivers under locks of their own, and the stack's
 * two ranges may overlap: there each table has its own flush, under its lock.
 */
static void flush_if_special(struct pagetable_move *pm, struct move_window *win)
{
	if (pm->per_table)
		flush_window(pm, win);
}

/* Make sure of a page table at @new_pmd. It takes a spare one, if any is left. */
static bool install_table(struct mm_struct *mm, struct move_window *win,
			  pmd_t *new_pmd)
{
	pgtable_t *spare;

	if (!pmd_none(pmdp_get_lockless(new_pmd)))
		return true;
	if (!win->nr_spares)
		return false;
	spare = &win->spares[win->nr_spares - 1];
	pmd_install(mm, new_pmd, spare);
	/* Somebody else's fault may have been quicker; then it is still there. */
	if (!*spare)
		win->nr_spares--;
	return true;
}

/* Page tables: movers, one for each kind of entry; all under the rmap locks */

/* A moved page counts as changed: its address is new to whoever tracks it. */
static pte_t move_soft_dirty_pte(pte_t pte)
{
	if (!IS_ENABLED(CONFIG_MEM_SOFT_DIRTY))
		return pte;
	return pte_present(pte) ? pte_mksoft_dirty(pte) :
				  pte_swp_mksoft_dirty(pte);
}

/*
 * Move @nr entries, none or not, from @old_pte to @new_pte. Both page table
 * locks are held. Returns whether a translation may be left in a TLB. Where the
 * architecture maps several pages as one, they move together.
 */
static bool move_pte_entries(struct pagetable_move *pm, pte_t *old_pte,
			     pte_t *new_pte, unsigned long nr)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long old_addr = pm->cursor;
	unsigned long new_addr = new_addr_of(pm);
	unsigned long i, batch, moved = 0;
	bool was_present = false;
	pte_t pte;

	for (i = 0; i < nr; i += batch) {
		batch = 1;
		pte = ptep_get(old_pte + i);
		if (pte_none(pte))
			continue;
		if (pte_present(pte)) {
			batch = min(pte_batch_hint(old_pte + i, pte), nr - i);
			was_present = true;
		}
		pte = get_and_clear_full_ptes(mm, old_addr + i * PAGE_SIZE,
					      old_pte + i, batch, 0);
		pte = move_pte(pte, old_addr + i * PAGE_SIZE,
			       new_addr + i * PAGE_SIZE);
		set_ptes(mm, new_addr + i * PAGE_SIZE, new_pte + i,
			 move_soft_dirty_pte(pte), batch);
		moved += batch;
	}
	pm->stats.ptes += moved;
	return was_present;
}

/* Is the table of which @pmd was read still there? */
static bool is_same_table(pmd_t *pmdp, pmd_t pmd)
{
	return pmd_same(pmd, pmdp_get_lockless(pmdp));
}

/*
 * Move the entries of [cursor, cursor + extent) into the table at @new_pmd.
 * Returns -EAGAIN if one of the entries is not, or no longer, a table.
 */
static int move_ptes(struct pagetable_move *pm, struct move_window *win,
		     pmd_t *old_pmd, pmd_t *new_pmd, unsigned long extent)
{
	struct mm_struct *mm = pm->src->vm_mm;
	pmd_t old_table, new_table;
	spinlock_t *old_ptl, *new_ptl;
	pte_t *old_pte, *new_pte;
	int err = -EAGAIN;

	if (!install_table(mm, win, new_pmd))
		return -EAGAIN;
	win->tables += pm->cursor == win->start || IS_ALIGNED(pm->cursor, PMD_SIZE);
	old_table = pmdp_get_lockless(old_pmd);
	new_table = pmdp_get_lockless(new_pmd);
	old_pte = pte_offset_map_nolock(mm, old_pmd, pm->cursor, &old_ptl);
	if (!old_pte)
		return -EAGAIN;
	new_pte = pte_offset_map_nolock(mm, new_pmd, new_addr_of(pm), &new_ptl);
	if (!new_pte)
		goto unmap_old;

	lock_both(old_ptl, new_ptl);
	if (is_same_table(old_pmd, old_table) && is_same_table(new_pmd, new_table)) {
		arch_enter_lazy_mmu_mode();
		if (move_pte_entries(pm, old_pte, new_pte, extent >> PAGE_SHIFT))
			note_flush(win, pm->cursor, extent, true);
		arch_leave_lazy_mmu_mode();
		flush_if_special(pm, win);
		err = 0;
	}
	unlock_both(old_ptl, new_ptl);
	pte_unmap(new_pte);
unmap_old:
	pte_unmap(old_pte);
	return err;
}

static __always_inline bool is_pte_table(pmd_t pmd)
{
	return pmd_present(pmd) && !pmd_leaf(pmd);
}

/*
 * The page tables of up to @nr entries become those of the new ones. Both PMD
 * locks are held. Returns how many moved before the first one that could not.
 */
static unsigned long move_normal_pmds(struct mm_struct *mm, pmd_t *old_pmd,
				      pmd_t *new_pmd, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		pmd_t pmd = pmdp_get(old_pmd + i);

		if (!is_pte_table(pmd) || !pmd_none(pmdp_get(new_pmd + i)))
			break;
		pmd_clear(old_pmd + i);
		pmd_populate(mm, new_pmd + i, pmd_pgtable(pmd));
	}
	return i;
}

/*
 * Move PMD entries as long as they can move whole, under one round of the locks
 * of the two tables, and the cursor with them. Returns whether there was one.
 */
static bool move_pmds(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long old_addr = pm->cursor;
	unsigned long new_addr = new_addr_of(pm);
	pmd_t *old_pmd = old_pmd_at(win, old_addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, old_addr);
	unsigned long nr = win->nr_detached ? 1 : (win->end - old_addr) >> PMD_SHIFT;
	unsigned long i = 0, run, tables = 0, huge = 0;
	bool tables_move = can_move_pte_tables(pm);
	spinlock_t *old_ptl = pmd_lockptr(mm, old_pmd);
	spinlock_t *new_ptl = pmd_lockptr(mm, new_pmd);

	lock_both(old_ptl, new_ptl);
	for (; i < nr; i += run) {
		run = pmd_none(pmdp_get(old_pmd + i));
		if (run)
			continue;
		if (tables_move) {
			run = move_normal_pmds(mm, old_pmd + i, new_pmd + i, nr - i);
			tables += run;
		}
		if (!run && IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE)) {
			run = move_huge_pmds(pm->src, old_addr + i * PMD_SIZE,
					     new_addr + i * PMD_SIZE,
					     old_pmd + i, new_pmd + i, nr - i,
					     old_ptl, new_ptl);
			huge += run;
		}
		if (!run)
			break;
		pm->moved_end = old_addr + (i + run) * PMD_SIZE;
	}
	if (tables || huge)
		note_flush(win, old_addr, i * PMD_SIZE, tables);
	flush_if_special(pm, win);
	unlock_both(old_ptl, new_ptl);

	pm->cursor += i * PMD_SIZE;
	pm->moved_table |= tables;
	pm->stats.pmds += tables;
	pm->stats.huge += huge;
	return i;
}

/*
 * The same for a table of PMDs, one level up. Fails, with nothing changed, if
 * the old entry is no table or the new one is taken.
 */
#if CONFIG_PGTABLE_LEVELS > 2 && defined(CONFIG_HAVE_MOVE_PUD)
static bool move_normal_pud(struct pagetable_move *pm, struct move_window *win,
			    pud_t *old_pud, pud_t *new_pud)
{
	struct mm_struct *mm = pm->src->vm_mm;
	spinlock_t *old_ptl = pud_lockptr(mm, old_pud);
	spinlock_t *new_ptl = pud_lockptr(mm, new_pud);
	bool moved = false;
	pud_t pud;

	assert_rmap_locked(pm->src);
	lock_both(old_ptl, new_ptl);
	pud = pudp_get(old_pud);
	if (pud_present(pud) && !pud_leaf(pud) && pud_none(*new_pud)) {
		pud_clear(old_pud);
		pud_populate(mm, new_pud, pud_pgtable(pud));
		note_flush(win, pm->cursor, PUD_SIZE, true);
		flush_if_special(pm, win);
		pm->moved_table = true;
		pm->moved_end = pm->cursor + PUD_SIZE;
		pm->stats.puds++;
		moved = true;
	}
	unlock_both(old_ptl, new_ptl);
	return moved;
}
#else
static bool move_normal_pud(struct pagetable_move *pm, struct move_window *win,
			    pud_t *old_pud, pud_t *new_pud)
{
	return false;
}
#endif

/*
 * The same for a PUD that maps memory itself. Nobody sees whether it is soft-dirty:
 * /proc/PID/pagemap splits such entries before it looks.
 */
#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && \
	defined(CONFIG_HAVE_ARCH_TRANSPARENT_HUGEPAGE_PUD)
static bool move_huge_pud(struct pagetable_move *pm, struct move_window *win,
			  pud_t *old_pud, pud_t *new_pud)
{
	struct mm_struct *mm = pm->src->vm_mm;
	spinlock_t *old_ptl = pud_lockptr(mm, old_pud);
	spinlock_t *new_ptl = pud_lockptr(mm, new_pud);
	bool moved = false;

	assert_rmap_locked(pm->src);
	lock_both(old_ptl, new_ptl);
	if ((pud_trans_huge(*old_pud) || pud_devmap(*old_pud)) &&
	    pud_none(*new_pud)) {
		pud_t pud = pudp_huge_get_and_clear(mm, pm->cursor, old_pud);

		set_pud_at(mm, new_addr_of(pm), new_pud, pud);
		flush_pud_tlb_range(pm->src, pm->cursor, pm->cursor + PUD_SIZE);
		pm->stats.flushes++;
		pm->stats.huge++;
		moved = true;
	}
	unlock_both(old_ptl, new_ptl);
	return moved;
}
#else
static bool move_huge_pud(struct pagetable_move *pm, struct move_window *win,
			  pud_t *old_pud, pud_t *new_pud)
{
	return false;
}
#endif

/* Page tables: taking tables out of the tree while their entries move */

/*
 * With a page table out of the tree and the TLBs flushed, no CPU finds its
 * entries any more, nor sets their accessed and dirty bits. So they can be read
 * and cleared by plain loads and stores, several times faster than by atomic
 * exchange. Nobody else looks into the table either: rmap walks wait for the
 * rmap locks, everything else that would walk to it for mmap_lock or the VMA
 * lock. GUP-fast may still be in it, with the old address or, later, the new
 * one. Before it keeps a page it looks again whether the PMD and the PTE are as
 * it had found them, and at the old address there is no table by then.
 *
 * At an offset that is not congruent the entries of one table go to two: those of
 * its lower part to one at the new place, those of its upper part to the next
 * one. For the latter the table itself is used, if there is none yet: the upper
 * part moves down to where it belongs, and the table to the new place. So few
 * tables are allocated, and few are left behind to be freed.
 *
 *	old place	| T  low | high |
 *	new place	    | N   low | high |  N + 1      |
 *
 * The low part of T has gone to the table at N, the high part goes to N + 1, and
 * T with it. A move back gives the table at N to T in the same way, as the high
 * part of N belongs there. So T may leave only if there is a table at N that a
 * move back can take, and that nobody takes away meanwhile. Otherwise T stays at
 * the old place, empty. Either way a move back finds a table wherever it brings
 * an entry to, and needs no memory.
 */

/*
 * Write an entry that nobody else writes; look at one. Architectures that do not
 * opt in only have to compile this.
 */
#ifndef arch_set_moved_pte
#define arch_set_moved_pte(ptep, pte)	WRITE_ONCE(*(ptep), pte)
#define arch_moved_pte_present(pte)	pte_present(pte)
#endif

static pmd_t *detached_at(struct move_window *win, unsigned long addr)
{
	return &win->detached[(addr >> PMD_SHIFT) - (win->start >> PMD_SHIFT)];
}

static bool is_detached(struct move_window *win, unsigned long addr)
{
	return win->nr_detached && !pmd_none(*detached_at(win, addr));
}

/* Is the page table at @addr one with entries of the range and no others? */
static bool is_own_table(const struct pagetable_move *pm, unsigned long addr)
{
	addr &= PMD_MASK;
	return addr >= pm->own_start && addr + PMD_SIZE <= pm->own_end;
}

static bool can_detach_table(const struct pagetable_move *pm, unsigned long addr)
{
	return can_detach_tables(pm) && is_own_table(pm, addr);
}

static void detach_table(struct pagetable_move *pm, struct move_window *win,
			 unsigned long addr, spinlock_t *pmd_ptl)
{
	pmd_t *old_pmd = old_pmd_at(win, addr);
	spinlock_t *ptl = pte_lockptr(pm->src->vm_mm, old_pmd);

	if (ptl != pmd_ptl)
		spin_lock_nested(ptl, SINGLE_DEPTH_NESTING);
	else
		__acquire(ptl);
	*detached_at(win, addr) = pmdp_get(old_pmd);
	pmd_clear(old_pmd);
	if (ptl != pmd_ptl)
		spin_unlock(ptl);
	else
		__release(ptl);
	win->nr_detached++;
	note_flush(win, addr, PMD_SIZE, true);
}

static void detach_tables(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long addr;
	spinlock_t *ptl = NULL;

	if (!can_detach_tables(pm))
		return;

	memset(win->detached, 0, sizeof(win->detached));
	ptl = pmd_lock(mm, old_pmd_at(win, win->start));
	for (addr = win->start & PMD_MASK; addr < win->end; addr += PMD_SIZE) {
		if (is_own_table(pm, addr) &&
		    is_pte_table(pmdp_get(old_pmd_at(win, addr))))
			detach_table(pm, win, addr, ptl);
	}
	spin_unlock(ptl);
	if (win->nr_detached)
		delay_at(DELAY_DETACHED);
	flush_window(pm, win);
	if (win->nr_detached)
		delay_at(DELAY_DETACH_FLUSHED);
}

/* Put the detached table of @addr to @pmd, whose lock is held. */
static void attach_table(struct mm_struct *mm, struct move_window *win,
			 unsigned long addr, pmd_t *pmd)
{
	pmd_t *table = detached_at(win, addr);

	VM_WARN_ON_ONCE(!pmd_none(pmdp_get(pmd)));
	/* Who finds the table must see what was written into it. */
	smp_wmb();
	pmd_populate(mm, pmd, pmd_pgtable(*table));
	*table = __pmd(0);
	win->nr_detached--;
}

/* What no table at the new place was made of. */
static void reattach_tables(struct pagetable_move *pm, struct move_window *win)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long addr = win->start;
	spinlock_t *ptl = NULL;

	if (!win->nr_detached)
		return;
	ptl = pmd_lock(mm, old_pmd_at(win, addr));
	for (; win->nr_detached; addr += PMD_SIZE) {
		if (is_detached(win, addr))
			attach_table(mm, win, addr, old_pmd_at(win, addr));
	}
	spin_unlock(ptl);
}

/* Counts in @empty if there was nothing. Most are of pages that are there. */
static __always_inline void move_detached_entry(pte_t *old_pte, pte_t *new_pte,
						pte_t none, bool mark,
						unsigned long *empty)
{
	pte_t pte = ptep_get(old_pte);

	if (likely(arch_moved_pte_present(pte))) {
		arch_set_moved_pte(old_pte, none);
		arch_set_moved_pte(new_pte, mark ? pte_mksoft_dirty(pte) : pte);
	} else if (pte_none(pte)) {
		++*empty;
	} else {
		arch_set_moved_pte(old_pte, none);
		arch_set_moved_pte(new_pte, pte_swp_mksoft_dirty(pte));
	}
}

static __always_inline unsigned long move_entries_upwards(pte_t *old_pte,
							  pte_t *new_pte,
							  unsigned long nr,
							  bool mark)
{
	const pte_t none = __pte(0);	/* a call, under a hypervisor */
	unsigned long empty = 0, left;

	for (left = nr; left >= 8; left -= 8, old_pte += 8, new_pte += 8) {
		move_detached_entry(old_pte, new_pte, none, mark, &empty);
		move_detached_entry(old_pte + 1, new_pte + 1, none, mark, &empty);
		move_detached_entry(old_pte + 2, new_pte + 2, none, mark, &empty);
		move_detached_entry(old_pte + 3, new_pte + 3, none, mark, &empty);
		move_detached_entry(old_pte + 4, new_pte + 4, none, mark, &empty);
		move_detached_entry(old_pte + 5, new_pte + 5, none, mark, &empty);
		move_detached_entry(old_pte + 6, new_pte + 6, none, mark, &empty);
		move_detached_entry(old_pte + 7, new_pte + 7, none, mark, &empty);
	}
	for (; left; left--)
		move_detached_entry(old_pte++, new_pte++, none, mark, &empty);
	return nr - empty;
}

/*
 * Move @nr entries out of a detached table, upwards from the first one: @new_pte
 * may be below @old_pte in the same table. The checks of CONFIG_PAGE_TABLE_CHECK
 * count how often a page is mapped, not where, so nothing changes for them.
 * Returns how many entries were not empty.
 */
static unsigned long move_detached_entries(const struct pagetable_move *pm,
					   pte_t *old_pte, pte_t *new_pte,
					   unsigned long nr)
{
	/* In a VMA that is marked as changed, all pages read so. */
	if (vma_soft_dirty_enabled(pm->dst))
		return move_entries_upwards(old_pte, new_pte, nr, true);
	return move_entries_upwards(old_pte, new_pte, nr, false);
}

/* [addr, addr + len) of the detached table into the one that is at its new place. */
static int move_detached_ptes(struct pagetable_move *pm, struct move_window *win,
			      unsigned long addr, unsigned long len)
{
	struct mm_struct *mm = pm->src->vm_mm;
	pte_t *old_pte = pte_offset_kernel(detached_at(win, addr), addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, addr);
	spinlock_t *new_ptl = NULL;
	pte_t *new_pte;

	if (!install_table(mm, win, new_pmd))
		return -EAGAIN;
	new_pte = pte_offset_map_lock(mm, new_pmd, addr + pm->shift, &new_ptl);
	if (!new_pte)
		return -EAGAIN;
	pm->stats.ptes += move_detached_entries(pm, old_pte, new_pte,
						len >> PAGE_SHIFT);
	pte_unmap_unlock(new_pte, new_ptl);
	return 0;
}

/* Can the page tables of @vma be taken away by who makes its file's pages huge? */
static bool is_retractable(const struct vm_area_struct *vma)
{
	return vma->vm_file && !vma->anon_vma;
}

/*
 * Would a move back find a table for the old place of the one at @addr? The table
 * that its lower part went to takes that place then. That one must be there, or
 * be planned, and hold entries of the range and no others. It is looked for only
 * in the same table of PMDs.
 */
static bool can_do_without_table(const struct pagetable_move *pm,
				 unsigned long addr, pmd_t *new_pmd,
				 const pmd_t *planned)
{
	unsigned long old_start = addr & PMD_MASK;
	unsigned long new_start = (old_start + pm->shift) & PMD_MASK;

	if (old_start < pm->start || new_start < pm->new_own_start ||
	    new_start + PMD_SIZE > pm->end + pm->shift)
		return false;
	if (is_congruent(pm))
		return true;
	return pmd_index(addr + pm->shift) &&
	       (new_pmd - 1 == planned ||
		!pmd_none(pmdp_get_lockless(new_pmd - 1)));
}

/*
 * May the table at @addr, which can be detached, become the one at the new place
 * of [addr, addr + len), which is @new_pmd? Then these must be its last entries,
 * and must not move up in it. @planned is the last entry of which is known that
 * it will be a table.
 */
static bool may_reuse_table(const struct pagetable_move *pm, unsigned long addr,
			    unsigned long len, pmd_t *new_pmd,
			    const pmd_t *planned)
{
	unsigned long end = addr + len;

	return pte_index(addr + pm->shift) <= pte_index(addr) &&
	       (IS_ALIGNED(end, PMD_SIZE) || end == pm->end) &&
	       !is_retractable(pm->src) &&
	       (pm->back || can_do_without_table(pm, addr, new_pmd, planned));
}

/* Fails, with nothing changed, if there is a table at the new place. */
static bool reuse_detached_table(struct pagetable_move *pm,
				 struct move_window *win, unsigned long addr,
				 unsigned long len)
{
	struct mm_struct *mm = pm->src->vm_mm;
	pmd_t *table = detached_at(win, addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, addr);
	spinlock_t *ptl = pmd_lock(mm, new_pmd);
	bool is_free = pmd_none(pmdp_get(new_pmd));

	if (is_free) {
		pte_t *old_pte = pte_offset_kernel(table, addr);
		pte_t *new_pte = pte_offset_kernel(table, addr + pm->shift);

		pm->stats.ptes += move_detached_entries(pm, old_pte, new_pte,
							len >> PAGE_SHIFT);
		attach_table(mm, win, addr, new_pmd);
	}
	spin_unlock(ptl);
	return is_free;
}

/* Page tables: the walk */

/*
 * A move back finds its tables; see "taking tables out of the tree" above. Two
 * cases are left in which it needs one after all: a huge page that was split at
 * the new place, on an architecture where no table moves whole; and a file's
 * table that was retracted although it had entries of poisoned pages in it.
 */
static int preload_table(struct pagetable_move *pm, struct move_window *win)
{
	pgtable_t table = pte_alloc_one(pm->dst->vm_mm);

	if (!table)
		return -ENOMEM;
	win->spares[win->nr_spares++] = table;
	return 0;
}

static void drop_spare_tables(struct pagetable_move *pm, struct move_window *win)
{
	while (win->nr_spares)
		pte_free(pm->dst->vm_mm, win->spares[--win->nr_spares]);
}

/**
 * struct window_plan - what has been planned of a window
 * @tables: page tables of it whose entries move one by one
 * @last_old: the last of these
 * @needed: page tables that have to be made at the new place
 * @last_new: the last entry that a table will be put to
 */
struct window_plan {
	unsigned int tables;
	pmd_t *last_old;
	unsigned int needed;
	pmd_t *last_new;
};

/* As far as can be seen without locks: does this move as one entry? */
static bool moves_whole(const struct pagetable_move *pm,
			const struct move_window *win, unsigned long addr,
			unsigned long extent)
{
	pmd_t pmd = pmdp_get_lockless(old_pmd_at(win, addr));

	if (extent != PMD_SIZE ||
	    !pmd_none(pmdp_get_lockless(new_pmd_at(pm, win, addr))))
		return false;
	return is_pte_table(pmd) ? can_move_pte_tables(pm) :
				   is_huge_pmd_entry(pmd);
}

static bool are_all_none(pte_t *pte, unsigned long nr)
{
	while (nr && pte_none(ptep_get_lockless(pte++)))
		nr--;
	return !nr;
}

/*
 * Are there no entries of the range in the page table of the extent at @addr?
 * mmap_lock and the VMA locks keep empty entries empty.
 */
static bool is_empty_extent(const struct pagetable_move *pm,
			    struct move_window *win, unsigned long addr,
			    unsigned long extent)
{
	unsigned long start = max(addr, pm->start);
	unsigned long nr = (min(addr + extent, pm->end) - start) >> PAGE_SHIFT;
	pmd_t *old_pmd = old_pmd_at(win, addr);
	bool is_empty;
	pte_t *pte;

	if (is_detached(win, addr))
		return are_all_none(pte_offset_kernel(detached_at(win, addr), start),
				    nr);
	pte = pte_offset_map(old_pmd, start);
	/* Retracted meanwhile, and then it held no pages; or a huge page. */
	if (!pte)
		return pmd_none(pmdp_get_lockless(old_pmd));
	is_empty = are_all_none(pte, nr);
	pte_unmap(pte);
	return is_empty;
}

/*
 * What a PMD entry's move needs and cannot do under the rmap locks, because
 * reclaim takes them: split a huge page of which only a part moves, and
 * allocate the table that single entries go to. None may be installed yet: it
 * would be in the way of a table that moves whole. What is seen here without
 * locks is looked at again under them.
 */
static int plan_extent(struct pagetable_move *pm, struct move_window *win,
		       struct window_plan *plan, unsigned long addr,
		       unsigned long extent)
{
	pmd_t *old_pmd = old_pmd_at(win, addr);
	pmd_t *new_pmd = new_pmd_at(pm, win, addr);
	bool reuse;

	if (moves_whole(pm, win, addr, extent))
		return 0;
	if (is_huge_pmd_entry(pmdp_get_lockless(old_pmd)))
		split_huge_pmd(pm->src, old_pmd, addr);
	if (pmd_none(pmdp_get_lockless(old_pmd)))
		return 0;

	plan->tables += old_pmd != plan->last_old;
	plan->last_old = old_pmd;
	if (new_pmd == plan->last_new || !pmd_none(pmdp_get_lockless(new_pmd)))
		return 0;
	reuse = can_detach_table(pm, addr) &&
		may_reuse_table(pm, addr, extent, new_pmd, plan->last_new);
	if (!reuse && is_empty_extent(pm, win, addr, extent))
		return 0;
	plan->last_new = new_pmd;
	if (reuse)
		return 0;
	plan->needed++;
	return plan->needed > win->nr_spares ? preload_table(pm, win) : 0;
}

/*
 * How far may a window reach that starts at the cursor? Where single entries
 * move, it has so many tables at most; win->detached has room for these.
 */
static unsigned long window_limit(const struct pagetable_move *pm,
				  unsigned long room_end)
{
	unsigned long first = pm->cursor >> PMD_SHIFT;
	unsigned long last = (room_end - 1) >> PMD_SHIFT;

	if (pm->per_table)
		return pm->cursor + get_extent(pm, PMD_SIZE);
	if (can_move_pte_tables(pm) || last - first < WINDOW_TABLES)
		return room_end;
	return (first + WINDOW_TABLES) << PMD_SHIFT;
}

/* Would what comes next be of another page table than the last one allowed? */
static bool is_window_full(const struct move_window *win,
			   const struct window_plan *plan)
{
	return plan->tables >= WINDOW_TABLES &&
	       old_pmd_at(win, win->end) != plan->last_old;
}

/*
 * Where tables move whole there is nothing to plan, as far as that goes. It ends
 * at the first entry that needs something, and the next window begins there.
 * If memory runs out, the window ends before that, unless it has no beginning.
 */
static int plan_window(struct pagetable_move *pm, struct move_window *win,
		       unsigned long room_end)
{
	unsigned long limit = window_limit(pm, room_end);
	struct window_plan plan = {};
	unsigned long extent;
	int err;

	win->start = pm->cursor;
	win->end = pm->cursor;
	win->tables = 0;
	while (win->end < limit && !is_window_full(win, &plan)) {
		extent = get_extent_at(pm, win->end, PMD_SIZE);
		if (can_move_pte_tables(pm) &&
		    moves_whole(pm, win, win->end, extent)) {
			if (win->end == win->start)
				win->end = limit;
			return 0;
		}
		err = plan_extent(pm, win, &plan, win->end, extent);
		if (err)
			return win->end > win->start ? 0 : err;
		win->end += extent;
	}
	return 0;
}

/* Move the single entries of [cursor, cursor + extent). */
static int move_extent(struct pagetable_move *pm, struct move_window *win,
		       unsigned long extent)
{
	pmd_t *old_pmd = old_pmd_at(win, pm->cursor);
	pmd_t *new_pmd = new_pmd_at(pm, win, pm->cursor);
	bool detached = is_detached(win, pm->cursor);

	if (!detached && pmd_none(pmdp_get_lockless(old_pmd)))
		return 0;
	if (detached && may_reuse_table(pm, pm->cursor, extent, new_pmd, NULL) &&
	    reuse_detached_table(pm, win, pm->cursor, extent))
		return 0;
	if (pmd_none(pmdp_get_lockless(new_pmd)) &&
	    is_empty_extent(pm, win, pm->cursor, extent))
		return 0;
	return detached ? move_detached_ptes(pm, win, pm->cursor, extent) :
			  move_ptes(pm, win, old_pmd, new_pmd, extent);
}

/*
 * Move what is at the cursor, and the cursor past it. With the rmap locks held,
 * mmap_lock and the VMA locks keep everybody else from changing what kind of
 * entry the old one is. A neighbour's fault may still fill the new slot, which is
 * looked at under its lock. -EAGAIN: not as planned.
 */
static int move_at_cursor(struct pagetable_move *pm, struct move_window *win)
{
	unsigned long extent = get_extent(pm, PMD_SIZE);
	unsigned long next = pm->cursor + extent;
	int err;

	assert_rmap_locked(pm->src);
	if (extent == PMD_SIZE && !is_detached(win, pm->cursor) &&
	    move_pmds(pm, win))
		return 0;

	/* Single entries: no others than those of the range. */
	pm->cursor = max(pm->cursor, pm->start);
	extent = min(next, pm->end) - pm->cursor;
	err = move_extent(pm, win, extent);
	if (!err)
		pm->cursor = next;
	return err;
}

/* What was detached is moved first: that takes less than detaching it again. */
static bool is_window_done(const struct pagetable_move *pm,
			   const struct move_window *win)
{
	return pm->cursor >= win->end || win->tables > WINDOW_TABLES ||
	       (!win->nr_detached && should_yield(pm->src));
}

/*
 * One round of the rmap locks. However it ends, what has moved is flushed, and
 * what was detached is back, before they are dropped.
 */
static int move_under_locks(struct pagetable_move *pm, struct move_window *win)
{
	int err;

	delay_at(DELAY_PLANNED);
	take_rmap_locks(pm->src);
	/* Reclaim may owe a flush for entries that are swap entries by now. */
	flush_tlb_batched_pending(pm->src->vm_mm);
	detach_tables(pm, win);
	do {
		err = move_at_cursor(pm, win);
	} while (!err && !is_window_done(pm, win));
	reattach_tables(pm, win);
	delay_at(DELAY_MOVED);
	flush_window(pm, win);
	drop_rmap_locks(pm->src);
	return err;
}

/*
 * Between plan_window() and move_under_locks() an entry of the range may change,
 * but only from huge to a table, or to none. In a table that is shared, faults and
 * retractions of neighbours may come in between. All of that is rare, so this
 * ends long before:
 */
#define WINDOW_TRIES 8

/* Move the cursor to the first entry that is not empty, or to @end. */
static void skip_empty_pmds(struct pagetable_move *pm,
			    const struct move_window *win, unsigned long end)
{
	unsigned long addr = pm->cursor;

	/* The end of the last table may be that of the address space. */
	while (addr < end && pmd_none(pmdp_get_lockless(old_pmd_at(win, addr))))
		addr += min(PMD_SIZE - (addr & ~PMD_MASK), end - addr);
	pm->cursor = addr;
}

/* Move on in the two tables of PMDs, by up to @extent bytes. */
static int move_next_window(struct pagetable_move *pm, struct move_window *win,
			    unsigned long extent)
{
	unsigned long room_end = pm->cursor + extent;
	unsigned int tries = WINDOW_TRIES;
	unsigned long start;
	int err;

	win->old_pmds = table_of_pmds(win->old_pud, pm->cursor);
	skip_empty_pmds(pm, win, room_end);
	if (pm->cursor == room_end)
		return 0;
	if (!pmd_alloc(pm->dst->vm_mm, win->new_pud, new_addr_of(pm)))
		return -ENOMEM;
	win->new_pmds = table_of_pmds(win->new_pud, new_addr_of(pm));

	start = pm->cursor;
	do {
		err = plan_window(pm, win, room_end);
		if (err)
			return err;
		err = move_under_locks(pm, win);
	} while (err == -EAGAIN && pm->cursor == start && --tries);
	/* What got on will be tried again from there. */
	return err == -EAGAIN && tries ? 0 : err;
}

/* Move the cursor past the empty entry that it is at: 256 TB are one in a PGD. */
static void skip_hole(struct pagetable_move *pm)
{
	unsigned long size = get_hole_size(pm->src->vm_mm, pm->cursor);
	unsigned long room = size - (pm->cursor & (size - 1));

	pm->cursor += min(room, max(pm->end, pm->wide_end) - pm->cursor);
}

/*
 * Move a PUD that maps memory itself, or, if only a part of it moves, drop it:
 * such mappings are of files or devices, which fault it in again. What can be
 * neither moved nor dropped is refused.
 */
static int move_leaf_pud(struct pagetable_move *pm, struct move_window *win,
			 unsigned long extent)
{
	bool moved = false;

	if (extent == PUD_SIZE) {
		take_rmap_locks(pm->src);
		moved = move_huge_pud(pm, win, win->old_pud, win->new_pud);
		drop_rmap_locks(pm->src);
	}
	if (!moved)
		split_huge_pud(pm->src, win->old_pud, pm->cursor);
	return pud_leaf(pudp_get(win->old_pud)) ? -EINVAL : 0;
}

/* Is the next PUD in the same table as the last one, at both places, and whole? */
static bool step_to_next_pud(const struct pagetable_move *pm,
			     struct move_window *win)
{
	if (IS_ALIGNED(pm->cursor, P4D_SIZE) ||
	    IS_ALIGNED(new_addr_of(pm), P4D_SIZE) ||
	    get_extent(pm, PUD_SIZE) != PUD_SIZE)
		return false;
	win->old_pud++;
	win->new_pud++;
	return true;
}

/*
 * Move tables of PMDs as long as they can move whole, in one window, and the
 * cursor with them. Returns whether there was one.
 */
static bool move_pud_tables(struct pagetable_move *pm, struct move_window *win)
{
	bool moved = false;

	take_rmap_locks(pm->src);
	flush_tlb_batched_pending(pm->src->vm_mm);
	while (move_normal_pud(pm, win, win->old_pud, win->new_pud)) {
		moved = true;
		pm->cursor += PUD_SIZE;
		if (!step_to_next_pud(pm, win) || should_yield(pm->src))
			break;
	}
	delay_at(DELAY_MOVED);
	flush_window(pm, win);
	drop_rmap_locks(pm->src);
	return moved;
}

/*
 * The entry for a table of PMDs at the new place. A move back makes none: what
 * it brings back has left tables of these levels behind, or takes its own along.
 */
static pud_t *get_new_pud(struct pagetable_move *pm)
{
	struct mm_struct *mm = pm->dst->vm_mm;

	return pm->back ? find_pud(mm, new_addr_of(pm)) :
			  alloc_new_pud(mm, new_addr_of(pm));
}

/* Move what there is under the PUD at the cursor, or the first part of it. */
static int move_next(struct pagetable_move *pm, struct move_window *win)
{
	unsigned long extent = get_extent(pm, PUD_SIZE);
	int err = 0;
	pud_t pud;

	win->old_pud = get_old_pud(pm->src->vm_mm, pm->cursor);
	if (!win->old_pud) {
		skip_hole(pm);
		return 0;
	}
	win->new_pud = get_new_pud(pm);
	if (!win->new_pud && !pm->back)
		return -ENOMEM;

	/* A leaf may be gone by now, with the device; a table stays one. */
	pud = pudp_get(win->old_pud);
	if (pud_none(pud) || !win->new_pud)
		goto advance;
	if (pud_leaf(pud)) {
		err = move_leaf_pud(pm, win, extent);
		goto advance;
	}
	if (IS_ENABLED(CONFIG_HAVE_MOVE_PUD) && extent == PUD_SIZE &&
	    can_move_tables(pm) && move_pud_tables(pm, win))
		return 0;
	if (!pm->back || !pud_none(pudp_get(win->new_pud)))
		return move_next_window(pm, win, extent);
advance:
	if (!err)
		pm->cursor += extent;
	return err;
}

/* A move back ends when all is back. The stack of an execve() is small. */
static bool is_killed(const struct pagetable_move *pm)
{
	return !pm->back && !pm->in_stack && fatal_signal_pending(current);
}

static int move_hugetlb(struct pagetable_move *pm)
{
	unsigned long len = pm->end - pm->cursor;
	unsigned long moved = move_hugetlb_page_tables(pm->src, pm->dst,
						       pm->cursor,
						       new_addr_of(pm), len);

	/* It may report more than was asked for, for tables that were empty. */
	pm->cursor += min(moved, len);
	return pm->cursor == pm->end ? 0 : -ENOMEM;
}

/**
 * move_page_tables - move the page table entries of a range
 * @pm: from where to where; tells in @pm->cursor how far it got
 *
 * Everything that is mapped in [@pm->start, @pm->end) goes to the same place
 * shifted by @pm->shift: pages, swap and migration entries, markers. Tables
 * that are used up stay where they are, empty.
 *
 * Context: mmap_lock held for write on entry and exit, both VMAs write-locked.
 *	    May sleep; takes i_mmap_rwsem and the anon_vma lock by itself.
 * Return: 0, or -ENOMEM, -EINVAL, or -EINTR for a process that was killed, with
 *	   everything below @pm->cursor moved and nothing from there on;
 *	   move_page_tables_back() undoes that.
 */
static int move_page_tables(struct pagetable_move *pm)
{
	struct mmu_notifier_range range;
	struct move_window win __uninitialized;
	int err = 0;

	mmap_assert_write_locked(pm->src->vm_mm);
	pm->cursor = pm->start;
	if (pm->cursor == pm->end)
		return 0;
	if (is_vm_hugetlb_page(pm->src))
		return move_hugetlb(pm);

	pm->per_table = pm->in_stack || (pm->src->vm_flags & VM_SPECIAL);
	init_window(&win);
	widen_to_tables(pm);
	pm->cursor = pm->wide_start;
	flush_cache_range(pm->src, pm->wide_start, pm->wide_end);
	mmu_notifier_range_init(&range, MMU_NOTIFY_UNMAP, 0, pm->src->vm_mm,
				pm->wide_start, pm->wide_end);
	mmu_notifier_invalidate_range_start(&range);
	while (!err && pm->cursor < pm->wide_end) {
		cond_resched();
		err = is_killed(pm) ? -EINTR : move_next(pm, &win);
	}
	mmu_notifier_invalidate_range_end(&range);
	drop_spare_tables(pm, &win);
	pm->cursor = min(pm->cursor, pm->end);
	/* A table that kept changing under us: as good as no memory for it. */
	return err == -EAGAIN ? -ENOMEM : err;
}

/*
 * Undo a move that failed. The extents are the same ones, so what moved as a
 * whole finds its old slot empty, and what moved by entries finds its old table,
 * or brings one along. The last table is taken for one of the range alone only
 * if it did move as a whole: else what is there now may be a neighbour's. Tables
 * may go back whole also where they had to stay: entries that moved are marked.
 */
static int move_page_tables_back(const struct pagetable_move *pm)
{
	struct pagetable_move back = {
		.src = pm->dst,
		.dst = pm->src,
		.start = pm->start + pm->shift,
		.end = pm->cursor + pm->shift,
		.shift = -pm->shift,
		.wide_start = pm->wide_start + pm->shift,
		.wide_end = max(pm->cursor, pm->moved_end) + pm->shift,
		.back = true,
	};

	/* It failed in the widened first table: nothing of the range moved. */
	if (pm->cursor <= pm->start)
		return 0;
	return move_page_tables(&back);
}

/**
 * move_stack_page_tables - move the stack's pages down within its VMA
 * @vma: temporary stack of an execve(), covers the old and the new range
 * @old_start: where the pages are
 * @new_start: where they go, below @old_start; the ranges may overlap
 * @len: length of both ranges in bytes
 *
 * Context: mmap_lock held for write on entry and exit.
 * Return: 0 or -ENOMEM; then some pages have moved, and the caller gives up
 *	   the whole address space.
 */
int move_stack_page_tables(struct vm_area_struct *vma, unsigned long old_start,
			   unsigned long new_start, unsigned long len)
{
	struct pagetable_move pm = {
		.src = vma,
		.dst = vma,
		.start = old_start,
		.end = old_start + len,
		.shift = new_start - old_start,
		.in_stack = true,
	};

	return move_page_tables(&pm);
}

/* Move: what unmaps the source */

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

/* Move: prepare */

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
	if (!keeps_source(op->req))
		return true;
	return (mv->vm_flags & VM_LOCKED) && !is_always_locked(mv->src);
}

static int isolate_source(struct mremap_op *op, struct vma_move *mv)
{
	const struct mremap_request *req = op->req;
	unsigned long end = mv->addr + mv->len;
	int err = 0;

	if (!needs_isolation(op, mv))
		return 0;
	if (mv->src->vm_start != mv->addr)
		err = split_at(op->mm, mv->addr, &op->splits);
	if (!err && mv->src->vm_end != end)
		err = split_at(op->mm, end, &op->splits);
	if (!err && shrinkage(req))
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

/* All old destinations, or, if one of them refuses, none. */
static int unmap_dst_ranges(struct mremap_op *op)
{
	struct dst_range *end = op->ranges + op->nr_ranges;
	struct dst_range *range;
	int err;

	for (range = op->ranges; range < end; range++) {
		err = resched_or_killed();
		if (!err && range->occupied)
			err = gather_dst_range(op, range);
		if (err)
			goto put_back;
	}
	for (range = op->ranges; range < end; range++) {
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

	uncharge(op);
	for (range = op->ranges + op->nr_ranges; range-- > op->ranges;)
		undo_splits(op->mm, &range->splits);
	undo_splits(op->mm, &op->splits);
}

/* All that can fail before the old destination is unmapped, and that last. */
static int prepare_move(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	err = charge(op);
	if (err)
		return err;
	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = resched_or_killed();
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

/* Move: the VMAs */

static int copy_source(struct mremap_op *op, struct vma_move *mv)
{
	const struct mremap_request *req = op->req;
	struct vm_area_struct *src = mv->src;

	/* Another one, if it was split, or cut by an old destination. */
	if (op->splits.nr || op->replaced.total) {
		src = vma_lookup(op->mm, mv->addr);
		mv->src = src;
	}
	vma_start_write(src);
	mv->dst = copy_vma(src, mv->dst_addr, mv->dst_len,
			   vma_pgoff_offset(src, mv->addr),
			   req->addr, req->addr + req->old_len);
	return mv->dst ? 0 : -ENOMEM;
}

static int copy_sources(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = resched_or_killed();
		if (!err)
			err = copy_source(op, mv);
		if (err)
			return err;
	}
	return 0;
}

static int notify_driver(struct vm_area_struct *vma)
{
	return vma->vm_ops && vma->vm_ops->mremap ? vma->vm_ops->mremap(vma) : 0;
}

static int notify_drivers(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = notify_driver(mv->dst);
		if (err)
			return err;
		mv->notified = true;
	}
	return 0;
}

/* Move: the pages */

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

static void mark_soft_dirty(struct vm_area_struct *vma)
{
	if (!vma_soft_dirty_enabled(vma))
		return;
	vm_flags_set(vma, VM_SOFTDIRTY);
	vma_set_page_prot(vma);
}

static int move_pages_of(struct vma_move *mv)
{
	struct pagetable_move *pm = &mv->tables;

	pm->src = mv->src;
	pm->dst = mv->dst;
	pm->start = mv->addr;
	pm->end = mv->addr + mv->len;
	pm->shift = mv->dst_addr - mv->addr;
	pm->keep_tables = needs_soft_dirty_entries(mv);
	return move_page_tables(pm);
}

static int move_all_pages(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = move_pages_of(mv);
		if (err)
			return err;
	}
	return 0;
}

/* Move: the new mappings' place in the books */

static void account_destination(struct mremap_op *op, const struct vma_move *mv)
{
	unsigned long pages = mv->dst_len >> PAGE_SHIFT;

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

/* Move: revert */

/*
 * Enter the copies into the books as the mappings of their own that they are
 * until they are unmapped, and for good if even that fails.
 */
static void account_copies(struct mremap_op *op)
{
	unsigned long owned = 0;
	struct vma_move *mv;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
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
	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		if (mv->dst)
			remove_copy(op, mv);
	}
	op->mm->hiwater_vm = hiwater_vm;
	undo_prepare(op);
}

/* Move: commit */

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

static void commit_unmapped_sources(struct mremap_op *op,
				    struct unmapping *source,
				    struct unmapping *tail)
{
	struct vma_move *mv;

	for (mv = op->moves; mv < end_of_moves(op); mv++)
		give_up_ownership(mv->src);
	/* The charge for these pages goes on as the destination's. */
	source->vms.nr_accounted = 0;
	source->vms.emptied = true;
	if (tail->vms.vma) {
		complete_unmapping(tail, op->mm);
		refresh_unmapping(source, op->mm);
	}
	complete_unmapping(source, op->mm);
	/* Only now, or total_vm would show both for a moment, and hiwater_vm. */
	for (mv = op->moves; mv < end_of_moves(op); mv++)
		account_destination(op, mv);
}

/* Take off what goes away: the moved range, and what a shrinking call drops. */
static int gather_sources(struct mremap_op *op, struct unmapping *source,
			  struct unmapping *tail)
{
	const struct mremap_request *req = op->req;
	unsigned long kept_end = req->addr + moved_len(req);
	int err;

	if (keeps_source(req))
		return 0;
	err = gather_unmapping(tail, op->mm, kept_end, req->addr + req->old_len,
			       &op->uffd_unmap_src);
	if (err)
		return err;
	err = gather_unmapping(source, op->mm, req->addr, kept_end,
			       &op->uffd_unmap_src);
	if (err)
		abort_unmapping(tail);
	return err;
}

static void sum_up_stats(struct mremap_op *op)
{
	struct move_stats *sum = &op->stats;
	const struct vma_move *mv;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		const struct move_stats *stats = &mv->tables.stats;

		sum->vmas += !!mv->dst;
		sum->puds += stats->puds;
		sum->pmds += stats->pmds;
		sum->huge += stats->huge;
		sum->ptes += stats->ptes;
		sum->flushes += stats->flushes;
	}
}

/* Everything that can still fail, with the sources still linked. */
static int move_pages_over(struct mremap_op *op, struct unmapping *source,
			   struct unmapping *tail)
{
	int err;

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

/* A locked mapping's growth is faulted in, but only after mmap_lock is dropped. */
static void populate_growth(struct mremap_op *op)
{
	if (!(op->moves->vm_flags & VM_LOCKED))
		return;
	op->populate_addr = op->result + op->req->old_len;
	op->populate_len = growth(op->req);
}

static void commit_move(struct mremap_op *op, struct unmapping *source,
			struct unmapping *tail)
{
	struct vma_move *mv;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		if (mv->tables.moved_table)
			mark_soft_dirty(mv->dst);
		commit_userfaultfd(op, mv);
		if (keeps_source(op->req))
			commit_kept_source(op, mv);
	}
	if (!keeps_source(op->req))
		commit_unmapped_sources(op, source, tail);
	op->charged = 0;
	op->result = op->moves->dst_addr;
	populate_growth(op);
}

/*
 * Move all that op->moves names. All checks have been made. mmap_lock is held
 * for write on entry and exit.
 */
static int move_vmas(struct mremap_op *op)
{
	struct unmapping source __uninitialized, tail __uninitialized;
	struct vma_move *mv;
	int err;

	init_unmapping(&source);
	init_unmapping(&tail);
	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		mv->dst = NULL;
		mv->notified = false;
		memset(&mv->tables, 0, sizeof(mv->tables));
	}
	err = prepare_move(op);
	if (err)
		return err;
	err = move_pages_over(op, &source, &tail);
	sum_up_stats(op);
	if (err) {
		revert_move(op);
		return err;
	}

	/* Point of no return */
	commit_move(op, &source, &tail);
	return 0;
}

/* Where to */

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

static bool holds_whole(const struct vma_move *mv, unsigned long size)
{
	unsigned long first = ALIGN(mv->addr, size);

	return first >= mv->addr && first - mv->addr < mv->len &&
	       mv->addr + mv->len - first >= size;
}

/*
 * At the old offset modulo this size, whole tables can move. It is that of the
 * largest entry that the range fills, or 0 if it does not matter: the mapping is
 * too small, is placed by rules of its own, or address space is scarce.
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
	return holds_whole(mv, PMD_SIZE) ? PMD_SIZE : 0;
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
 * Look for a place at the old offset modulo @size, in a hole with room for that.
 * The hole is cut to whole tables, so that the mapping shares none with others
 * and can be moved on as cheaply. It must not be one that the kernel would have
 * used only because its usual area was full.
 */
static int find_congruent(struct vma_move *mv, unsigned long size)
{
	struct mm_struct *mm = mv->src->vm_mm;
	bool topdown = test_bit(MMF_TOPDOWN, &mm->flags);
	unsigned long len = mv->dst_len + size + 2 * PMD_SIZE;
	unsigned long hole = ask_for_area(mv, 0, len, 0);
	unsigned long addr;

	if (IS_ERR_VALUE(hole))
		return hole;
	addr = congruent_in_hole(ALIGN(hole, PMD_SIZE),
				 ALIGN_DOWN(hole + len, PMD_SIZE), mv->dst_len,
				 size, mv->addr, topdown);
	if (topdown && addr + mv->dst_len > mm->mmap_base)
		return -ENOMEM;
	if (find_vma_intersection(mm, addr, addr + mv->dst_len))
		return -ENOMEM;
	return fix_destination(mv, addr);
}

/*
 * Let the kernel choose, with a preference for @hint, unless that is 0. A place
 * from which tables can move whole is worth a second and a third question; if
 * there is none, the answer to the first one holds.
 */
static int find_destination(struct vma_move *mv, unsigned long hint)
{
	unsigned long addr = ask_for_area(mv, hint, mv->dst_len, 0);
	unsigned long size = congruence_for(mv);

	if (IS_ERR_VALUE(addr))
		return addr;
	mv->dst_addr = addr;
	/* A hint that was followed, if only into the area above the usual one. */
	if (hint && (addr == hint || addr > mv->src->vm_mm->mmap_base))
		return 0;
	for (; size >= PMD_SIZE; size = size > PMD_SIZE ? PMD_SIZE : 0) {
		if (!((mv->dst_addr - mv->addr) & (size - 1)) ||
		    !find_congruent(mv, size))
			break;
	}
	return 0;
}

/* Dispatch: one function for each thing that a call can come down to */

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

/* May what is mapped at the new places be unmapped? And what will that free? */
static int check_dst_ranges(struct mremap_op *op)
{
	unsigned long before;
	struct dst_range *range;
	int err;

	for (range = op->ranges; range < op->ranges + op->nr_ranges; range++) {
		before = op->replaced.total;
		err = resched_or_killed();
		if (!err)
			err = check_unmap(op->mm, range->start, range->end,
					  &op->replaced);
		if (err)
			return err;
		range->occupied = op->replaced.total != before;
	}
	return 0;
}

/* MREMAP_FIXED or MREMAP_DONTUNMAP: move in any case, perhaps over something. */
static int mremap_to(struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
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

/*
 * Several mappings in one call: it moves them all, and the gaps between them,
 * if they keep their size and are told where to go. A range that ends in a gap
 * is of this kind, too.
 */
static bool is_for_several(const struct vm_area_struct *vma,
			   const struct mremap_request *req)
{
	return (req->flags & MREMAP_FIXED) && req->old_len == req->new_len &&
	       req->old_len > vma->vm_end - req->addr;
}

/*
 * A monitor is told of one move per call. A driver that is asked, and may refuse,
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

/* The part of [start, end) that @vma covers, up to whole pages of its kind. */
static void plan_move(struct vma_move *mv, struct vm_area_struct *vma,
		      const struct mremap_request *req)
{
	unsigned long end = min(vma->vm_end, req->addr + req->old_len);
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
	mv->dst_addr = req->new_addr + (mv->addr - req->addr);
	mv->dst_len = mv->len;
}

/* The moves, and the ranges to clear: as many as there are gaps between them. */
static int make_room_for_moves(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req->addr);
	unsigned long end = op->req->addr + op->req->old_len;
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
	if (nr_ranges > 1)
		op->ranges = kvmalloc_array(nr_ranges, sizeof(*op->ranges),
					    GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	return op->moves && op->ranges ? 0 : -ENOMEM;
}

static int plan_moves(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req->addr);
	unsigned long end = op->req->addr + op->req->old_len;
	struct vm_area_struct *vma;
	struct vma_move *mv;
	int err;

	err = make_room_for_moves(op);
	if (err)
		return err;
	mv = op->moves;
	for_each_vma_range(vmi, vma, end) {
		plan_move(mv, vma, op->req);
		add_dst_range(op, mv->dst_addr, mv->dst_addr + mv->dst_len);
		mv++;
	}
	return 0;
}

static int check_planned_move(struct mremap_op *op, struct vma_move *mv)
{
	struct vm_area_struct *vma = mv->src;
	int err;

	if (!can_move_with_others(vma))
		return -EFAULT;
	if (!can_modify_vma(vma))
		return -EPERM;
	if (keeps_source(op->req) && (vma->vm_flags & (VM_DONTEXPAND | VM_PFNMAP)))
		return -EINVAL;
	err = check_move_out(vma, mv->addr, mv->addr + mv->len);
	if (err)
		return err;
	/* hugetlb refuses what does not start, or end, with a huge page. */
	return fix_destination(mv, mv->dst_addr);
}

/* The sources stay linked until all have moved, so that all can go back. */
static int check_map_count_for_all(struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
	int wanted = op->nr_moves;
	struct dst_range *range;

	wanted += !!vma_around(op->mm, req->addr);
	wanted += !!vma_around(op->mm, req->addr + req->old_len);
	for (range = op->ranges; range < op->ranges + op->nr_ranges; range++) {
		wanted += !!vma_around(op->mm, range->start);
		wanted += !!vma_around(op->mm, range->end);
	}
	return check_map_count(op->mm, wanted);
}

static int mremap_several(struct mremap_op *op, struct mremap_request *req)
{
	struct vma_move *mv;
	int err;

	if (req->addr + req->old_len < req->addr)
		return -EINVAL;
	err = check_destination(req);
	if (err)
		return err;
	err = plan_moves(op);
	if (err)
		return err;
	/* Rounding to huge pages can have made it longer. */
	mv = op->moves + op->nr_moves - 1;
	req->old_len = max(req->old_len, mv->addr + mv->len - req->addr);
	req->new_len = req->old_len;
	err = check_destination(req);
	if (err)
		return err;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = resched_or_killed();
		if (!err)
			err = check_planned_move(op, mv);
		if (err)
			return err;
	}
	err = check_dst_ranges(op);
	if (err)
		return err;
	survey_addition(op);
	err = check_limits(op);
	if (err)
		return err;
	err = check_map_count_for_all(op);
	if (err)
		return err;
	return move_vmas(op);
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

/* Unmap the end. The range may reach over more VMAs than the first. */
static int shrink_in_place(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req->addr + op->req->new_len);
	struct vm_area_struct *vma = op->moves->src;
	unsigned long start = op->req->addr + op->req->new_len;
	unsigned long len = shrinkage(op->req);
	int err;

	op->result = op->req->addr;
	err = check_shrinkage(vma, op->req);
	if (err)
		return err;
	expect_split(op, start);
	expect_split(op, start + len);

	/* Drops mmap_lock, if and only if it succeeds. */
	err = do_vmi_munmap(&vmi, op->mm, start, len, &op->uffd_unmap_src,
			    /* unlock = */ true);
	op->unlocked = !err;
	if (err) {
		userfaultfd_unmap_abort(&op->uffd_unmap_src);
		undo_splits(op->mm, &op->splits);
	}
	return err;
}

/* Is the range at the end of its VMA, with room for the growth behind it? */
static bool can_grow_in_place(const struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
	const struct vm_area_struct *vma = op->moves->src;
	unsigned long end = vma->vm_end + growth(req);
	unsigned long addr;

	if (req->addr + req->old_len != vma->vm_end || end < vma->vm_end)
		return false;
	if (find_vma_intersection(op->mm, vma->vm_end, end))
		return false;
	addr = get_unmapped_area(NULL, vma->vm_start, end - vma->vm_start, 0,
				 MAP_FIXED);
	return !offset_in_page(addr);
}

static int grow_in_place(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->moves->src->vm_end);
	struct vma_move *mv = op->moves;
	const struct mremap_request *req = op->req;
	unsigned long pages = growth(req) >> PAGE_SHIFT;
	int err;

	err = charge(op);
	if (err)
		return err;
	/* Grows the VMA, and joins it with the next one if they meet. */
	if (!vma_merge_extend(&vmi, mv->src, growth(req))) {
		uncharge(op);
		return -ENOMEM;
	}

	op->charged = 0;
	op->result = req->addr;
	vm_stat_account(op->mm, mv->vm_flags, pages);
	op->mm->locked_vm += op->added.locked;
	populate_growth(op);
	return 0;
}

static int grow_by_move(struct mremap_op *op)
{
	int err;

	if (!(op->req->flags & MREMAP_MAYMOVE))
		return -ENOMEM;
	err = find_destination(op->moves, 0);
	if (err)
		return err;
	err = check_map_count(op->mm, MAPS_FOR_MOVE);
	if (err)
		return err;
	err = check_move_out(op->moves->src, op->req->addr,
			     op->req->addr + moved_len(op->req));
	if (err)
		return err;
	return move_vmas(op);
}

static int grow(struct mremap_op *op)
{
	int err = check_resize(op);

	if (err)
		return err;
	return can_grow_in_place(op) ? grow_in_place(op) : grow_by_move(op);
}

/* What moves if anything does; move_vmas() sees to the rest of it. */
static void plan_only_move(struct vma_move *mv, struct vm_area_struct *vma,
			   const struct mremap_request *req)
{
	mv->addr = req->addr;
	mv->len = moved_len(req);
	mv->dst_len = req->new_len;
	mv->src = vma;
	mv->vm_flags = vma->vm_flags;
}

/* mmap_lock is held for write; op->unlocked tells whether it still is after. */
static int mremap_locked(struct mremap_op *op, struct mremap_request *req)
{
	struct vm_area_struct *vma = vma_lookup(op->mm, req->addr);
	int err;

	if (vma && is_for_several(vma, req))
		return mremap_several(op, req);

	err = check_source(vma, req);
	if (err)
		return err;
	plan_only_move(op->only, vma, req);
	if (is_forced_move(req))
		return mremap_to(op);
	if (growth(req))
		return grow(op);
	if (shrinkage(req))
		return shrink_in_place(op);
	op->result = req->addr;
	return 0;
}

/*
 * What has to wait until mmap_lock is dropped: telling userfaultfd monitors, in
 * the order in which it happened, and faulting in what a locked mapping grew by.
 * The latter may wait for a monitor, which can do nothing before it was told.
 */
static void finish_unlocked(struct mremap_op *op)
{
	userfaultfd_unmap_complete(op->mm, &op->uffd_unmap_dst);
	mremap_userfaultfd_complete(&op->uffd_remap, op->req->addr, op->result,
				    moved_len(op->req));
	userfaultfd_unmap_complete(op->mm, &op->uffd_unmap_src);
	if (op->populate_len)
		mm_populate(op->populate_addr, op->populate_len);
}

/* Nothing is held while a monitor is waited for, as that can take for ever. */
static void free_plans(struct mremap_op *op)
{
	if (op->moves != op->only)
		kvfree(op->moves);
	if (op->ranges != op->only_range)
		kvfree(op->ranges);
}

static int run_op(struct mremap_op *op, struct mremap_request *req)
{
	int err;

	err = check_request(req);
	if (err)
		return err;
	req->old_len = PAGE_ALIGN(req->old_len);
	req->new_len = PAGE_ALIGN(req->new_len);

	if (mmap_write_lock_killable(op->mm))
		return -EINTR;
	err = mremap_locked(op, req);
	if (!op->unlocked)
		mmap_write_unlock(op->mm);
	free_plans(op);
	finish_unlocked(op);
	return err;
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
	struct mremap_request req = *asked;
	struct dst_range only_range __uninitialized;
	struct vma_move only __uninitialized;
	struct mremap_op op = {
		.req = &req,
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
	int err = run_op(&op, &req);

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
#include "tests/mremap_kunit.c"
#endif
