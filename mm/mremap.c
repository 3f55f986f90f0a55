// SPDX-License-Identifier: GPL-2.0
/*
 * mremap(2): resize and move mappings, and the page tables under them.
 *
 * A call goes through these phases, and never back to an earlier one:
 *
 *   check     the request, then the VMAs. Nothing is changed, so that what is
 *             wrong with a call is told before it has done anything. (Only a
 *             driver's own vm_ops->mremap is asked later, when all is ready.)
 *   prepare   what can fail while both mappings are still whole: break KSM
 *             pages, charge, split the source out of its VMA, and the old
 *             destination out of its VMAs. Then unmap the old destination.
 *   move      copy the VMA and move the page tables under it, with the source
 *             still linked; then take the source's VMAs off for unmapping.
 *   commit    cannot fail. It starts at the point of no return that
 *             move_vma() marks.
 *   revert    undoes prepare and move, last step first. Only a destination
 *             that was unmapped for MREMAP_FIXED cannot be brought back.
 *
 * Locks, outermost first:
 *
 *   phase             mmap_lock  VMA lock    i_mmap, anon_vma   page table
 *   check             write      -           -                  -
 *   prepare           write      write       by split and       -
 *                                            unmap helpers
 *   allocate tables   write      write, both -                  as pXd_alloc()
 *   move an entry     write      write, both write, both        both
 *   commit, revert    write      write, both as move            as move
 *   after the call    -          -           -                  -
 *
 * TLB contract: between the moment an entry leaves its old place and the end
 * of the flush of that place, neither the rmap locks nor the page table locks
 * that cover the entry are dropped, on no path. Whoever would clean, free or
 * migrate the page has to take one of them, so nobody can do that while a CPU
 * still writes through the old translation. GUP-fast takes none of them, but
 * it only reads entries, takes a reference and looks again. hugetlb has its own
 * mover, in mm/hugetlb.c, which takes i_mmap_rwsem alone and flushes at its end.
 *
 * Sizes and addresses are in bytes and page aligned unless a comment says
 * pages. "src" and "dst" keep their meaning through the whole call, also while
 * it is being reverted.
 */

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/ksm.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/mman.h>
#include <linux/mmu_notifier.h>
#include <linux/rmap.h>
#include <linux/security.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/syscalls.h>
#include <linux/userfaultfd_k.h>

#include <asm/cacheflush.h>
#include <asm/pgalloc.h>
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
 * @sealed: some of it must not be changed
 */
struct range_survey {
	unsigned long total;
	unsigned long data;
	unsigned long locked;
	unsigned long charged;
	bool sealed;
};

/*
 * Splits that are made before it is sure that the call succeeds: two ends of the
 * source, the end of what a shrinking move drops, two ends of a destination.
 */
#define MAX_SEAMS 3

/**
 * struct seam_list - where VMAs were split for this call
 * @at: addresses
 * @nr: number of these
 */
struct seam_list {
	unsigned long at[MAX_SEAMS];
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
 * @keep_tables: entries must move one by one, tables stay where they are
 * @in_stack: @src and @dst are one VMA that covers both ranges
 * @insist: a move back, which must not fail for want of memory
 * @moved_table: a whole table moved, without its entries being looked at
 * @spare: page table for the destination, allocated before the rmap locks
 * @stats: what has moved
 */
struct pagetable_move {
	struct vm_area_struct *src;
	struct vm_area_struct *dst;
	unsigned long start;
	unsigned long end;
	unsigned long cursor;
	unsigned long shift;
	bool keep_tables;
	bool in_stack;
	bool insist;
	bool moved_table;
	pgtable_t spare;
	struct move_stats stats;
};

/**
 * struct unmap_ticket - VMAs taken off for unmapping, not yet unmapped
 * @vmi: iterator over the address space
 * @detached: the VMAs
 * @mas: state for @detached
 * @vms: the core's record of the unmapping
 */
struct unmap_ticket {
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
 * @old_dst: what was mapped at the new place
 * @seams: where VMAs were split to cut that out
 * @tables: the move of the page tables
 * @told: the new mapping's driver was told of it
 */
struct vma_move {
	unsigned long addr;
	unsigned long len;
	unsigned long dst_addr;
	unsigned long dst_len;
	struct vm_area_struct *src;
	struct vm_area_struct *dst;
	vm_flags_t vm_flags;

	struct unmap_ticket old_dst;
	struct seam_list seams;
	struct pagetable_move tables;
	bool told;
};

/**
 * struct mremap_op - the call as it goes on
 * @req: what is to be done
 * @mm: where
 * @moves: what is to be moved, in the order of the addresses; at least one, the
 *	   first with the VMA at the old address also if nothing has to move
 * @nr_moves: number of these
 * @only: the one, if there is only one
 * @dst_old: what was mapped where something is to go
 * @added: what the call adds to the address space
 * @seams: where the source's VMAs were split
 * @charged: pages charged for this call and not yet owned by a VMA
 * @owed: pages whose charge is taken over from the unmapped destination
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
	unsigned long nr_moves;
	struct vma_move only;

	struct range_survey dst_old;
	struct range_survey added;
	struct seam_list seams;
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
 * Do the two ranges share a byte? The sums may wrap for an absurd old_len; the
 * source is found not to be mapped that far right after.
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

	req->old_len = ALIGN(req->old_len, size);
	req->new_len = ALIGN(req->new_len, size);

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

static void survey_range(struct mm_struct *mm, unsigned long start,
			 unsigned long end, struct range_survey *survey)
{
	VMA_ITERATOR(vmi, mm, start);
	struct vm_area_struct *vma;

	for_each_vma_range(vmi, vma, end) {
		unsigned long pages = (min(vma->vm_end, end) -
				       max(vma->vm_start, start)) >> PAGE_SHIFT;

		survey->total += pages;
		if (is_data_mapping(vma->vm_flags))
			survey->data += pages;
		if (vma->vm_flags & VM_LOCKED)
			survey->locked += pages;
		if (vma->vm_flags & VM_ACCOUNT)
			survey->charged += pages;
		if (!can_modify_vma(vma))
			survey->sealed = true;
	}
}

/* May the VMA be split at @addr, if @addr is inside of one? */
static int check_may_split(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);

	if (!vma || vma->vm_start == addr)
		return 0;
	if (!vma->vm_ops || !vma->vm_ops->may_split)
		return 0;
	return vma->vm_ops->may_split(vma, addr);
}

/* May the VMAs at both ends of a range be split there? */
static int check_cut_out(struct mm_struct *mm, unsigned long start,
			 unsigned long len)
{
	int err = check_may_split(mm, start);

	return err ? err : check_may_split(mm, start + len);
}

/* May what a shrinking call drops be unmapped? It may be more than one VMA. */
static int check_shrinkage(struct mm_struct *mm,
			   const struct mremap_request *req)
{
	unsigned long start = req->addr + req->new_len;
	unsigned long len = shrinkage(req);
	struct range_survey survey = {};

	if (!len)
		return 0;
	if (start < req->addr || start > TASK_SIZE || len > TASK_SIZE - start)
		return -EINVAL;
	survey_range(mm, start, start + len, &survey);
	return survey.sealed ? -EPERM : check_cut_out(mm, start, len);
}

/* What the call adds to the address space. Lengths are whole pages by now. */
static void survey_addition(struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
	unsigned long pages = growth(req) >> PAGE_SHIFT;
	vm_flags_t vm_flags = op->moves->vm_flags;
	struct range_survey *added = &op->added;

	if (keeps_source(req)) {
		survey_range(op->mm, req->addr, req->addr + req->old_len, added);
		/* The lock goes along with the pages. */
		added->locked = 0;
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
	const struct range_survey *freed = &op->dst_old;
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

static pud_t *get_old_pud(struct mm_struct *mm, unsigned long addr)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none_or_clear_bad(pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none_or_clear_bad(p4d))
		return NULL;
	pud = pud_offset(p4d, addr);
	/* A leaf looks bad to pud_bad(), but it maps memory: never clear it. */
	if (pud_leaf(pudp_get(pud)))
		return pud;
	return pud_none_or_clear_bad(pud) ? NULL : pud;
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

/* Splitting VMAs and mending the splits */

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
		    struct seam_list *seams)
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
		seams->at[seams->nr++] = addr;
	return err;
}

/*
 * Join the VMAs below and above @addr again. It needs memory and may fail;
 * then, and for VMAs that never merge, an additional boundary stays behind,
 * which changes nothing but the look of /proc/PID/maps.
 */
static void mend_seam(struct mm_struct *mm, unsigned long addr)
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

static void mend_seams(struct mm_struct *mm, struct seam_list *seams)
{
	while (seams->nr)
		mend_seam(mm, seams->at[--seams->nr]);
}

/* Ledger of committed memory, in pages */

/*
 * Charge what the call adds. The charge of the destination, which is given
 * back when that is unmapped, is not asked for a second time: take_over_charge()
 * takes it then.
 */
static int charge(struct mremap_op *op)
{
	unsigned long pages = op->added.charged;

	op->owed = min(pages, op->dst_old.charged);
	pages -= op->owed;
	if (pages && security_vm_enough_memory_mm(op->mm, pages))
		return -ENOMEM;
	op->charged = pages;
	return 0;
}

static void take_over_charge(struct mremap_op *op)
{
	vm_acct_memory(op->owed);
	op->charged += op->owed;
	op->owed = 0;
}

static void uncharge(struct mremap_op *op)
{
	vm_unacct_memory(op->charged);
	op->charged = 0;
}

/* Page tables: geometry */

static unsigned long new_addr_of(const struct pagetable_move *pm)
{
	return pm->cursor + pm->shift;
}

/*
 * Bytes from the cursor to the next boundary of @size at the old or the new
 * place, or to the end. It is @size if and only if one whole entry of that
 * size can move.
 */
static unsigned long get_extent(const struct pagetable_move *pm,
				unsigned long size)
{
	unsigned long old_room = size - (pm->cursor & (size - 1));
	unsigned long new_room = size - (new_addr_of(pm) & (size - 1));

	return min3(old_room, new_room, pm->end - pm->cursor);
}

/*
 * May the table that holds @addr move although only its upper part, from @addr
 * on, belongs to the range? Only if nothing is mapped in the part below. The
 * stack's VMA covers both ranges by then, so there the part below may be its
 * own.
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

/*
 * Widen the range downwards to a table boundary, so that the first table moves
 * whole. Whatever lies in between is unmapped and has no entries.
 */
static void realign_head(struct pagetable_move *pm)
{
	unsigned long head = pm->cursor & ~PMD_MASK;

	if (!head || pm->keep_tables || (pm->shift & ~PMD_MASK))
		return;
	if (pm->end - pm->cursor < PMD_SIZE - head)
		return;
	if (!can_align_down(pm->src, pm->cursor, pm->in_stack) ||
	    !can_align_down(pm->dst, new_addr_of(pm), pm->in_stack))
		return;
	pm->cursor -= head;
}

/* Page tables: making entries */

static pud_t *alloc_new_pud(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);

	return p4d ? pud_alloc(mm, p4d, addr) : NULL;
}

/* Is this entry something other than a table: a huge page, or one in migration? */
static bool is_huge_pmd_entry(pmd_t pmd)
{
	return is_swap_pmd(pmd) || pmd_trans_huge(pmd) || pmd_devmap(pmd);
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
 * The order of two locks of one class does not matter: whoever takes two holds
 * mmap_lock for write.
 */
static void lock_second(spinlock_t *first, spinlock_t *second)
	__acquires(second)
{
	if (second != first)
		spin_lock_nested(second, SINGLE_DEPTH_NESTING);
	else
		__acquire(second);
}

static void unlock_second(spinlock_t *first, spinlock_t *second)
	__releases(second)
{
	if (second != first)
		spin_unlock(second);
	else
		__release(second);
}

/* Page tables: movers, one for each kind of entry; all under the rmap locks */

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
 * locks are held. Returns whether a translation may be left in a TLB.
 */
static bool move_pte_entries(struct pagetable_move *pm, pte_t *old_pte,
			     pte_t *new_pte, unsigned long nr)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long old_addr = pm->cursor;
	unsigned long new_addr = new_addr_of(pm);
	bool was_present = false;
	pte_t pte;

	for (; nr--; old_pte++, new_pte++,
	     old_addr += PAGE_SIZE, new_addr += PAGE_SIZE) {
		if (pte_none(ptep_get(old_pte)))
			continue;
		pte = ptep_get_and_clear(mm, old_addr, old_pte);
		was_present |= pte_present(pte);
		pte = move_pte(pte, old_addr, new_addr);
		set_pte_at(mm, new_addr, new_pte, move_soft_dirty_pte(pte));
		pm->stats.ptes++;
	}
	return was_present;
}

/*
 * Move the entries of [cursor, cursor + extent) into the table at @new_pmd.
 * Returns -EAGAIN if one of the entries is not, or no longer, a table.
 */
static int move_ptes(struct pagetable_move *pm, pmd_t *old_pmd, pmd_t *new_pmd,
		     unsigned long extent)
{
	struct mm_struct *mm = pm->src->vm_mm;
	spinlock_t *old_ptl, *new_ptl;
	pte_t *old_pte, *new_pte;
	bool was_present;

	old_pte = pte_offset_map_lock(mm, old_pmd, pm->cursor, &old_ptl);
	if (!old_pte)
		return -EAGAIN;
	new_pte = pte_offset_map_nolock(mm, new_pmd, new_addr_of(pm), &new_ptl);
	if (!new_pte) {
		pte_unmap_unlock(old_pte, old_ptl);
		return -EAGAIN;
	}
	lock_second(old_ptl, new_ptl);

	/* Reclaim may owe a flush for entries that are swap entries by now. */
	flush_tlb_batched_pending(mm);
	arch_enter_lazy_mmu_mode();
	was_present = move_pte_entries(pm, old_pte, new_pte,
				       extent >> PAGE_SHIFT);
	arch_leave_lazy_mmu_mode();
	if (was_present) {
		flush_tlb_range(pm->src, pm->cursor, pm->cursor + extent);
		pm->stats.flushes++;
	}

	unlock_second(old_ptl, new_ptl);
	pte_unmap(new_pte);
	pte_unmap_unlock(old_pte, old_ptl);
	return 0;
}

/*
 * Hang the whole PTE table at @old_pmd in at @new_pmd. Fails, with nothing
 * changed, if the old entry is no table or the new one is taken.
 */
static bool move_normal_pmd(struct pagetable_move *pm, pmd_t *old_pmd,
			    pmd_t *new_pmd)
{
	struct mm_struct *mm = pm->src->vm_mm;
	spinlock_t *old_ptl = pmd_lock(mm, old_pmd);
	spinlock_t *new_ptl = pmd_lockptr(mm, new_pmd);
	bool moved = false;
	pmd_t pmd;

	lock_second(old_ptl, new_ptl);
	pmd = pmdp_get(old_pmd);
	if (pmd_present(pmd) && !pmd_leaf(pmd) && pmd_none(pmdp_get(new_pmd))) {
		pmd_clear(old_pmd);
		pmd_populate(mm, new_pmd, pmd_pgtable(pmd));
		flush_tlb_range(pm->src, pm->cursor, pm->cursor + PMD_SIZE);
		pm->stats.flushes++;
		pm->stats.pmds++;
		pm->moved_table = true;
		moved = true;
	}
	unlock_second(old_ptl, new_ptl);
	spin_unlock(old_ptl);
	return moved;
}

/* The same for a PMD table. */
#if CONFIG_PGTABLE_LEVELS > 2
static bool move_normal_pud(struct pagetable_move *pm, pud_t *old_pud,
			    pud_t *new_pud)
{
	struct mm_struct *mm = pm->src->vm_mm;
	spinlock_t *old_ptl = pud_lock(mm, old_pud);
	spinlock_t *new_ptl = pud_lockptr(mm, new_pud);
	bool moved = false;
	pud_t pud;

	assert_rmap_locked(pm->src);
	lock_second(old_ptl, new_ptl);
	pud = pudp_get(old_pud);
	if (pud_present(pud) && !pud_leaf(pud) && pud_none(*new_pud)) {
		pud_clear(old_pud);
		pud_populate(mm, new_pud, pud_pgtable(pud));
		flush_tlb_range(pm->src, pm->cursor, pm->cursor + PUD_SIZE);
		pm->stats.flushes++;
		pm->stats.puds++;
		pm->moved_table = true;
		moved = true;
	}
	unlock_second(old_ptl, new_ptl);
	spin_unlock(old_ptl);
	return moved;
}
#else
static bool move_normal_pud(struct pagetable_move *pm, pud_t *old_pud,
			    pud_t *new_pud)
{
	return false;
}
#endif

/* The same for a PUD that maps memory itself. It has no soft-dirty bit. */
#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && \
	defined(CONFIG_HAVE_ARCH_TRANSPARENT_HUGEPAGE_PUD)
static bool move_huge_pud(struct pagetable_move *pm, pud_t *old_pud,
			  pud_t *new_pud)
{
	struct mm_struct *mm = pm->src->vm_mm;
	spinlock_t *old_ptl = pud_lock(mm, old_pud);
	spinlock_t *new_ptl = pud_lockptr(mm, new_pud);
	bool moved = false;

	assert_rmap_locked(pm->src);
	lock_second(old_ptl, new_ptl);
	if ((pud_trans_huge(*old_pud) || pud_devmap(*old_pud)) &&
	    pud_none(*new_pud)) {
		pud_t pud = pudp_huge_get_and_clear(mm, pm->cursor, old_pud);

		set_pud_at(mm, new_addr_of(pm), new_pud, pud);
		flush_pud_tlb_range(pm->src, pm->cursor, pm->cursor + PUD_SIZE);
		pm->stats.flushes++;
		pm->stats.huge++;
		moved = true;
	}
	unlock_second(old_ptl, new_ptl);
	spin_unlock(old_ptl);
	return moved;
}
#else
static bool move_huge_pud(struct pagetable_move *pm, pud_t *old_pud,
			  pud_t *new_pud)
{
	return false;
}
#endif

/* Page tables: the walk */

/*
 * A request for one page fails only for a dying task or by fault injection. A
 * move back must get through both.
 */
#define INSIST_TRIES 1000

static int preload_table(struct pagetable_move *pm)
{
	unsigned int tries = pm->insist ? INSIST_TRIES : 1;

	while (!pm->spare && tries--) {
		pm->spare = pte_alloc_one(pm->dst->vm_mm);
		cond_resched();
	}
	return pm->spare ? 0 : -ENOMEM;
}

static void drop_spare_table(struct pagetable_move *pm)
{
	if (pm->spare)
		pte_free(pm->dst->vm_mm, pm->spare);
	pm->spare = NULL;
}

/*
 * What a PMD entry's move needs and cannot do under the rmap locks, because
 * reclaim takes them: split a huge page of which only a part moves, and
 * allocate the table that single entries go to. It acts on a look without
 * locks; move_pmd_locked() looks again.
 */
static int prepare_pmd(struct pagetable_move *pm, pmd_t *old_pmd,
		       pmd_t *new_pmd, unsigned long extent)
{
	bool whole = extent == PMD_SIZE && pmd_none(pmdp_get_lockless(new_pmd));
	pmd_t pmd = pmdp_get_lockless(old_pmd);

	if (is_huge_pmd_entry(pmd)) {
		if (whole)
			return 0;
		split_huge_pmd(pm->src, old_pmd, pm->cursor);
	} else if (whole && can_move_tables(pm)) {
		return 0;
	}
	return pmd_none(pmdp_get_lockless(new_pmd)) ? preload_table(pm) : 0;
}

/*
 * With the rmap locks held, mmap_lock and the VMA locks keep everybody else
 * from changing what kind of entry there is, so what is read here stays true.
 */
static int move_pmd_locked(struct pagetable_move *pm, pmd_t *old_pmd,
			   pmd_t *new_pmd, unsigned long extent)
{
	pmd_t pmd = pmdp_get_lockless(old_pmd);

	assert_rmap_locked(pm->src);
	if (pmd_none(pmd))
		return 0;
	if (is_huge_pmd_entry(pmd)) {
		if (extent != PMD_SIZE ||
		    !move_huge_pmd(pm->src, pm->cursor, new_addr_of(pm),
				   old_pmd, new_pmd))
			return -EAGAIN;
		/* It flushes by itself. */
		pm->stats.flushes += pmd_present(pmd);
		pm->stats.huge++;
		return 0;
	}
	if (extent == PMD_SIZE && can_move_tables(pm) &&
	    IS_ENABLED(CONFIG_HAVE_MOVE_PMD) &&
	    move_normal_pmd(pm, old_pmd, new_pmd))
		return 0;

	if (pmd_none(pmdp_get_lockless(new_pmd))) {
		if (!pm->spare)
			return -EAGAIN;
		pmd_install(pm->dst->vm_mm, new_pmd, &pm->spare);
	}
	return move_ptes(pm, old_pmd, new_pmd, extent);
}

/*
 * An entry may change from the look in prepare_pmd() to that in
 * move_pmd_locked(), but only from huge to a table, or to none; and the new
 * table, empty until now, may be retracted once. So this ends long before:
 */
#define PMD_TRIES 8

static int move_pmd(struct pagetable_move *pm, pmd_t *old_pmd, pmd_t *new_pmd,
		    unsigned long extent)
{
	unsigned int tries = PMD_TRIES;
	int err;

	do {
		if (pmd_none(pmdp_get_lockless(old_pmd)))
			return 0;
		err = prepare_pmd(pm, old_pmd, new_pmd, extent);
		if (err)
			return err;
		take_rmap_locks(pm->src);
		err = move_pmd_locked(pm, old_pmd, new_pmd, extent);
		drop_rmap_locks(pm->src);
	} while (err == -EAGAIN && --tries);
	return err;
}

/*
 * Move a PUD that maps memory itself, or, if only a part of it moves, drop it:
 * such mappings are of files or devices, which fault it in again. What can be
 * neither moved nor dropped is refused.
 */
static int move_leaf_pud(struct pagetable_move *pm, pud_t *old_pud,
			 pud_t *new_pud, unsigned long extent)
{
	bool moved = false;

	if (extent == PUD_SIZE) {
		take_rmap_locks(pm->src);
		moved = move_huge_pud(pm, old_pud, new_pud);
		drop_rmap_locks(pm->src);
	}
	if (!moved)
		split_huge_pud(pm->src, old_pud, pm->cursor);
	return pud_leaf(pudp_get(old_pud)) ? -EINVAL : 0;
}

static bool move_pud_table(struct pagetable_move *pm, pud_t *old_pud,
			   pud_t *new_pud)
{
	bool moved;

	take_rmap_locks(pm->src);
	moved = move_normal_pud(pm, old_pud, new_pud);
	drop_rmap_locks(pm->src);
	return moved;
}

/* Move the largest thing that moves at the cursor, and the cursor past it. */
static int move_one_extent(struct pagetable_move *pm)
{
	struct mm_struct *mm = pm->src->vm_mm;
	unsigned long extent = get_extent(pm, PUD_SIZE);
	pud_t *old_pud = get_old_pud(mm, pm->cursor);
	pmd_t *old_pmd, *new_pmd;
	pud_t *new_pud;
	int err = 0;

	if (!old_pud)
		goto advance;
	new_pud = alloc_new_pud(mm, new_addr_of(pm));
	if (!new_pud)
		return -ENOMEM;

	if (pud_leaf(pudp_get(old_pud))) {
		err = move_leaf_pud(pm, old_pud, new_pud, extent);
		goto advance;
	}
	if (IS_ENABLED(CONFIG_HAVE_MOVE_PUD) && extent == PUD_SIZE &&
	    can_move_tables(pm) && move_pud_table(pm, old_pud, new_pud))
		goto advance;

	extent = get_extent(pm, PMD_SIZE);
	old_pmd = pmd_offset(old_pud, pm->cursor);
	if (pmd_none(pmdp_get_lockless(old_pmd)))
		goto advance;
	new_pmd = pmd_alloc(mm, new_pud, new_addr_of(pm));
	if (!new_pmd)
		return -ENOMEM;
	err = move_pmd(pm, old_pmd, new_pmd, extent);
advance:
	if (!err)
		pm->cursor += extent;
	return err;
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
 * Return: 0, or -ENOMEM or -EINVAL with everything below @pm->cursor moved and
 *	   nothing from there on; move_page_tables_back() undoes that.
 */
static int move_page_tables(struct pagetable_move *pm)
{
	struct mmu_notifier_range range;
	int err = 0;

	mmap_assert_write_locked(pm->src->vm_mm);
	pm->cursor = pm->start;
	if (pm->cursor == pm->end)
		return 0;
	if (is_vm_hugetlb_page(pm->src))
		return move_hugetlb(pm);

	realign_head(pm);
	flush_cache_range(pm->src, pm->cursor, pm->end);
	mmu_notifier_range_init(&range, MMU_NOTIFY_UNMAP, 0, pm->src->vm_mm,
				pm->cursor, pm->end);
	mmu_notifier_invalidate_range_start(&range);
	while (!err && pm->cursor < pm->end) {
		cond_resched();
		err = move_one_extent(pm);
	}
	mmu_notifier_invalidate_range_end(&range);
	drop_spare_table(pm);
	/* A table that kept changing under us: as good as no memory for it. */
	return err == -EAGAIN ? -ENOMEM : err;
}

/*
 * Undo a move that failed. The extents are the same ones, so what moved as a
 * whole finds its old slot empty, and what moved by entries finds its old table.
 * Only a file's empty table can have been retracted in between: then a new one
 * is needed, and insisted on.
 */
static int move_page_tables_back(const struct pagetable_move *pm)
{
	struct pagetable_move back = {
		.src = pm->dst,
		.dst = pm->src,
		.start = pm->start + pm->shift,
		.end = pm->cursor + pm->shift,
		.shift = -pm->shift,
		.keep_tables = pm->keep_tables,
		.insist = true,
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

/*
 * Take the VMAs of [start, end) off for unmapping. The range must start and end
 * at VMA boundaries. It can be undone until punch_ticket().
 */
static int take_ticket(struct unmap_ticket *ticket, struct mm_struct *mm,
		       unsigned long start, unsigned long end,
		       struct list_head *uf)
{
	struct vm_area_struct *vma;

	vma_iter_init(&ticket->vmi, mm, start);
	vma = start < end ? vma_find(&ticket->vmi, end) : NULL;
	init_vma_munmap(&ticket->vms, &ticket->vmi, vma, start, end, uf,
			/* unlock = */ false);
	mt_init_flags(&ticket->detached,
		      mm->mm_mt.ma_flags & MT_FLAGS_LOCK_MASK);
	mt_on_stack(ticket->detached);
	mas_init(&ticket->mas, &ticket->detached, 0);
	return vma ? vms_gather_munmap_vmas(&ticket->vms, &ticket->mas) : 0;
}

static void return_ticket(struct unmap_ticket *ticket)
{
	if (ticket->vms.vma)
		reattach_vmas(&ticket->mas);
}

/*
 * Unmap for good. Everything that could fail has been done, but for the store
 * into the tree of VMAs, which may need nodes: it waits for them. Page tables
 * are freed as far as nothing else is mapped by now.
 */
static void punch_ticket(struct unmap_ticket *ticket, struct mm_struct *mm)
{
	struct vma_munmap_struct *vms = &ticket->vms;
	struct vm_area_struct *prev, *next;

	if (!vms->vma)
		return;
	vma_iter_init(&ticket->vmi, mm, vms->start);
	WARN_ON_ONCE(vma_iter_clear_gfp(&ticket->vmi, vms->start, vms->end,
					GFP_KERNEL | __GFP_NOFAIL));
	next = find_vma_prev(mm, vms->start, &prev);
	vms->unmap_start = prev ? prev->vm_end : FIRST_USER_ADDRESS;
	vms->unmap_end = next ? next->vm_start : USER_PGTABLES_CEILING;
	vms_complete_munmap_vmas(vms, &ticket->mas);
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
	return !keeps_source(op->req) || (mv->vm_flags & VM_LOCKED);
}

static int isolate_source(struct mremap_op *op, struct vma_move *mv)
{
	const struct mremap_request *req = op->req;
	int err;

	if (!needs_isolation(op, mv))
		return 0;
	err = split_at(op->mm, mv->addr, &op->seams);
	if (!err)
		err = split_at(op->mm, mv->addr + mv->len, &op->seams);
	if (!err && shrinkage(req))
		err = split_at(op->mm, req->addr + req->old_len, &op->seams);
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

static int take_off_old_destination(struct mremap_op *op, struct vma_move *mv)
{
	unsigned long end = mv->dst_addr + mv->dst_len;
	int err;

	err = split_at(op->mm, mv->dst_addr, &mv->seams);
	if (!err)
		err = split_at(op->mm, end, &mv->seams);
	if (!err)
		err = take_ticket(&mv->old_dst, op->mm, mv->dst_addr, end,
				  &op->uffd_unmap_dst);
	return err;
}

/* All old destinations, or, if one of them refuses, none. */
static int unmap_old_destinations(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	if (!(op->req->flags & MREMAP_FIXED))
		return 0;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = take_off_old_destination(op, mv);
		if (err)
			goto put_back;
	}
	for (mv = op->moves; mv < end_of_moves(op); mv++)
		punch_ticket(&mv->old_dst, op->mm);
	take_over_charge(op);
	return 0;

put_back:
	while (mv-- > op->moves)
		return_ticket(&mv->old_dst);
	userfaultfd_unmap_abort(&op->uffd_unmap_dst);
	return err;
}

static void undo_prepare(struct mremap_op *op)
{
	struct vma_move *mv;

	uncharge(op);
	for (mv = end_of_moves(op); mv-- > op->moves;)
		mend_seams(op->mm, &mv->seams);
	mend_seams(op->mm, &op->seams);
}

/* All that can fail before the old destination is unmapped, and that last. */
static int prepare_move(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = break_ksm(mv);
		if (err)
			return err;
	}
	err = charge(op);
	if (err)
		return err;
	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = isolate_source(op, mv);
		if (err)
			goto undo;
	}
	err = unmap_old_destinations(op);
undo:
	if (err)
		undo_prepare(op);
	return err;
}

/* Move: the VMAs */

static int copy_source(struct mremap_op *op, struct vma_move *mv)
{
	const struct mremap_request *req = op->req;
	struct vm_area_struct *src = vma_lookup(op->mm, mv->addr);

	/* Another one since it was split. */
	mv->src = src;
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
		err = copy_source(op, mv);
		if (err)
			return err;
	}
	return 0;
}

static int tell_driver(struct vm_area_struct *vma)
{
	return vma->vm_ops && vma->vm_ops->mremap ? vma->vm_ops->mremap(vma) : 0;
}

static int tell_drivers(struct mremap_op *op)
{
	struct vma_move *mv;
	int err;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		err = tell_driver(mv->dst);
		if (err)
			return err;
		mv->told = true;
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
	mv->tables = (struct pagetable_move) {
		.src = mv->src,
		.dst = mv->dst,
		.start = mv->addr,
		.end = mv->addr + mv->len,
		.shift = mv->dst_addr - mv->addr,
		.keep_tables = needs_soft_dirty_entries(mv),
	};
	return move_page_tables(&mv->tables);
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

static void book_destination(struct mremap_op *op, const struct vma_move *mv)
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
static void disown(struct vm_area_struct *loser)
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
static void book_copies(struct mremap_op *op)
{
	unsigned long owned = 0;
	struct vma_move *mv;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		if (!mv->dst)
			continue;
		disown(mv->dst);
		book_destination(op, mv);
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
 * Pages that cannot go back stay mapped where they are rather than be unmapped:
 * moved against the caller's expectation, but not lost.
 */
static void move_all_pages_back(struct mremap_op *op)
{
	struct vma_move *mv;

	for (mv = end_of_moves(op); mv-- > op->moves;) {
		if (mv->told)
			WARN_ON_ONCE(tell_driver(mv->src));
		if (WARN_ON_ONCE(move_page_tables_back(&mv->tables)))
			mv->dst = NULL;
	}
}

/* Unmapping one of the copies may split the VMA of another, if they merged. */
static void revert_move(struct mremap_op *op)
{
	unsigned long hiwater_vm = op->mm->hiwater_vm;
	struct vma_move *mv;

	book_copies(op);
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
 * That comes so late because a move that fails has to bring the bits back.
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
 * The source stays mapped, with nothing in it. Its lock went with the pages. As
 * nothing is faulted in, it starts anew like a mapping just made.
 */
static void commit_kept_source(struct mremap_op *op, struct vma_move *mv)
{
	struct vm_area_struct *src = mv->src;
	unsigned long pages = mv->len >> PAGE_SHIFT;

	vm_flags_clear(src, VM_LOCKED_MASK);
	if (src->vm_start == mv->addr && vma_pages(src) == pages) {
		unlink_anon_vmas(src);
		/* An anonymous VMA without pages has the offset of its address. */
		if (vma_is_anonymous(src) && !src->vm_file)
			src->vm_pgoff = src->vm_start >> PAGE_SHIFT;
	}
	vm_stat_account(op->mm, mv->vm_flags, pages);
}

static void commit_unmapped_sources(struct mremap_op *op,
				    struct unmap_ticket *source,
				    struct unmap_ticket *tail)
{
	struct vma_move *mv;

	for (mv = op->moves; mv < end_of_moves(op); mv++)
		disown(mv->src);
	/* The charge for these pages goes on as the destination's. */
	source->vms.nr_accounted = 0;
	punch_ticket(tail, op->mm);
	punch_ticket(source, op->mm);
	/* Only now, or total_vm would show both for a moment, and hiwater_vm. */
	for (mv = op->moves; mv < end_of_moves(op); mv++)
		book_destination(op, mv);
}

/* Take off what goes away: the moved range, and what a shrinking call drops. */
static int take_source_tickets(struct mremap_op *op, struct unmap_ticket *source,
			       struct unmap_ticket *tail)
{
	const struct mremap_request *req = op->req;
	unsigned long kept_end = req->addr + moved_len(req);
	int err;

	if (keeps_source(req))
		return 0;
	err = take_ticket(tail, op->mm, kept_end, req->addr + req->old_len,
			  &op->uffd_unmap_src);
	if (err)
		return err;
	err = take_ticket(source, op->mm, req->addr, kept_end,
			  &op->uffd_unmap_src);
	if (err)
		return_ticket(tail);
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
static int move_pages_over(struct mremap_op *op, struct unmap_ticket *source,
			   struct unmap_ticket *tail)
{
	int err;

	err = copy_sources(op);
	if (err)
		return err;
	err = move_all_pages(op);
	if (err)
		return err;
	err = take_source_tickets(op, source, tail);
	if (err)
		goto forget_events;
	err = tell_drivers(op);
	if (!err)
		return 0;

	return_ticket(source);
	return_ticket(tail);
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

static void commit_move(struct mremap_op *op, struct unmap_ticket *source,
			struct unmap_ticket *tail)
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
	struct unmap_ticket source = {}, tail = {};
	int err;

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

/*
 * Ask for a place for the new mapping. With MAP_FIXED in @map_flags it is
 * @hint, if that is allowed. Sets mv->dst_addr.
 */
static int find_destination(struct vma_move *mv, unsigned long hint,
			    unsigned long map_flags)
{
	struct vm_area_struct *vma = mv->src;
	unsigned long addr;

	addr = get_unmapped_area(vma->vm_file, hint, mv->dst_len,
				 vma_pgoff_offset(vma, mv->addr),
				 map_flags | map_flags_for(vma));
	if (IS_ERR_VALUE(addr))
		return addr;
	mv->dst_addr = map_flags & MAP_FIXED ? hint : addr;
	return 0;
}

/* Dispatch: one function for each thing that a call can come down to */

/* May what is mapped at a new place be unmapped? And what will that free? */
static int check_old_destination(struct mremap_op *op, unsigned long addr,
				 unsigned long len)
{
	survey_range(op->mm, addr, addr + len, &op->dst_old);
	if (op->dst_old.sealed)
		return -EPERM;
	return check_cut_out(op->mm, addr, len);
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
	if (fixed) {
		err = check_old_destination(op, req->new_addr, req->new_len);
		if (err)
			return err;
	}
	err = check_shrinkage(op->mm, req);
	if (err)
		return err;
	/* A second view in the place of the first: that would leave none. */
	if (fixed && !req->old_len && req->new_addr == req->addr)
		return -EFAULT;
	err = check_resize(op);
	if (err)
		return err;
	err = find_destination(op->moves, req->new_addr, fixed ? MAP_FIXED : 0);
	if (err)
		return err;
	err = check_cut_out(op->mm, req->addr, moved_len(req));
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
 * A monitor is told of one move per call. A file that places its mappings
 * itself might not keep the distances between them; known ones do.
 */
static bool can_move_with_others(struct vm_area_struct *vma)
{
	struct file *file = vma->vm_file;

	if (userfaultfd_armed(vma))
		return false;
	if (!file || !file->f_op->get_unmapped_area)
		return true;
	return vma_is_shmem(vma) || is_vm_hugetlb_page(vma) ||
	       file->f_op->get_unmapped_area == thp_get_unmapped_area;
}

/* The part of [start, end) that @vma covers, up to whole pages of its kind. */
static void plan_move(struct vma_move *mv, struct vm_area_struct *vma,
		      const struct mremap_request *req)
{
	unsigned long end = min(vma->vm_end, req->addr + req->old_len);

	mv->src = vma;
	mv->vm_flags = vma->vm_flags;
	mv->addr = max(vma->vm_start, req->addr);
	mv->len = end - mv->addr;
	if (is_vm_hugetlb_page(vma))
		mv->len = ALIGN(mv->len, huge_page_size(hstate_vma(vma)));
	mv->dst_addr = req->new_addr + (mv->addr - req->addr);
	mv->dst_len = mv->len;
}

static int plan_moves(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req->addr);
	unsigned long end = op->req->addr + op->req->old_len;
	struct vm_area_struct *vma;
	unsigned long nr = 0;

	for_each_vma_range(vmi, vma, end)
		nr++;
	if (nr > 1) {
		op->moves = kvcalloc(nr, sizeof(*op->moves), GFP_KERNEL_ACCOUNT);
		if (!op->moves)
			return -ENOMEM;
	}
	op->nr_moves = nr;

	vma_iter_init(&vmi, op->mm, op->req->addr);
	nr = 0;
	for_each_vma_range(vmi, vma, end)
		plan_move(&op->moves[nr++], vma, op->req);
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
	if (is_vm_hugetlb_page(vma) &&
	    !IS_ALIGNED(mv->addr | mv->dst_addr, huge_page_size(hstate_vma(vma))))
		return -EINVAL;
	if (keeps_source(op->req) && (vma->vm_flags & (VM_DONTEXPAND | VM_PFNMAP)))
		return -EINVAL;
	err = check_old_destination(op, mv->dst_addr, mv->dst_len);
	if (err)
		return err;
	err = check_cut_out(op->mm, mv->addr, mv->len);
	if (err)
		return err;
	return find_destination(mv, mv->dst_addr, MAP_FIXED);
}

/* The sources stay linked until all have moved, so that all can go back. */
static int check_map_count_for_all(struct mremap_op *op)
{
	int wanted = op->nr_moves;
	struct vma_move *mv;

	for (mv = op->moves; mv < end_of_moves(op); mv++) {
		wanted += !!vma_around(op->mm, mv->addr);
		wanted += !!vma_around(op->mm, mv->addr + mv->len);
		wanted += !!vma_around(op->mm, mv->dst_addr);
		wanted += !!vma_around(op->mm, mv->dst_addr + mv->dst_len);
	}
	return check_map_count(op->mm, wanted);
}

static int mremap_several(struct mremap_op *op, struct mremap_request *req)
{
	struct vma_move *mv;
	int err;

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
		err = check_planned_move(op, mv);
		if (err)
			return err;
	}
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
static void expect_seam(struct mremap_op *op, unsigned long addr)
{
	if (vma_around(op->mm, addr))
		op->seams.at[op->seams.nr++] = addr;
}

/* Unmap the end. The range may reach over more VMAs than the first. */
static int shrink_in_place(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->req->addr + op->req->new_len);
	unsigned long start = op->req->addr + op->req->new_len;
	unsigned long len = shrinkage(op->req);
	int err;

	op->result = op->req->addr;
	err = check_shrinkage(op->mm, op->req);
	if (err)
		return err;
	expect_seam(op, start);
	expect_seam(op, start + len);

	/* Drops mmap_lock, if and only if it succeeds. */
	err = do_vmi_munmap(&vmi, op->mm, start, len, &op->uffd_unmap_src,
			    /* unlock = */ true);
	op->unlocked = !err;
	if (err) {
		userfaultfd_unmap_abort(&op->uffd_unmap_src);
		mend_seams(op->mm, &op->seams);
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
	err = find_destination(op->moves, 0, 0);
	if (err)
		return err;
	err = check_map_count(op->mm, MAPS_FOR_MOVE);
	if (err)
		return err;
	err = check_cut_out(op->mm, op->req->addr, moved_len(op->req));
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
	op->only = (struct vma_move) {
		.addr = req->addr,
		.len = moved_len(req),
		.dst_len = req->new_len,
		.src = vma,
		.vm_flags = vma->vm_flags,
	};
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
 * What has to wait until mmap_lock is dropped: faulting in what a locked mapping
 * grew by, and telling userfaultfd monitors, in the order in which it happened.
 */
static void finish_unlocked(struct mremap_op *op)
{
	if (op->populate_len)
		mm_populate(op->populate_addr, op->populate_len);
	userfaultfd_unmap_complete(op->mm, &op->uffd_unmap_dst);
	mremap_userfaultfd_complete(&op->uffd_remap, op->req->addr, op->result,
				    moved_len(op->req));
	userfaultfd_unmap_complete(op->mm, &op->uffd_unmap_src);
	if (op->moves != &op->only)
		kvfree(op->moves);
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
	struct mremap_op op = {
		.req = &req,
		.mm = current->mm,
		.moves = &op.only,
		.nr_moves = 1,
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
