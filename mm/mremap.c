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
 * struct range_survey - what is mapped in a range, in pages
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
 * Splits that a move makes before it is sure to succeed: two ends of the
 * source, the end of what a shrinking move keeps, two ends of the destination.
 */
#define MAX_SEAMS 5

/**
 * struct mremap_op - the call as it goes on
 * @req: what is to be done
 * @mm: where
 * @src: VMA with the pages to move; from prepare on it starts and ends with
 *       the moved range, unless needs_isolation() says that it need not
 * @dst: VMA that covers the new range; NULL until copied
 * @dst_addr: start of the new range
 * @vm_flags: flags of the source when the call came
 * @dst_old: what was mapped where the mapping is to go
 * @seams: addresses where a VMA was split for this call
 * @nr_seams: number of these
 * @charged: pages charged for this call and not yet owned by a VMA
 * @owed: pages whose charge is taken over from the unmapped destination
 * @populate_addr: start of what to fault in after the call
 * @populate_len: length of that
 * @result: what the system call returns if it succeeds
 * @unlocked: mmap_lock was already dropped
 * @uffd_remap: context to be told of the move
 * @uffd_unmap_dst: contexts to be told of the unmapped destination
 * @uffd_unmap_src: contexts to be told of unmapped parts of the source
 */
struct mremap_op {
	const struct mremap_request *req;
	struct mm_struct *mm;
	struct vm_area_struct *src;
	struct vm_area_struct *dst;
	unsigned long dst_addr;
	vm_flags_t vm_flags;
	struct range_survey dst_old;

	unsigned long seams[MAX_SEAMS];
	unsigned int nr_seams;
	unsigned long charged;
	unsigned long owed;

	unsigned long populate_addr;
	unsigned long populate_len;
	unsigned long result;
	bool unlocked;

	struct vm_userfaultfd_ctx uffd_remap;
	struct list_head uffd_unmap_dst;
	struct list_head uffd_unmap_src;
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

/*
 * Limits on locked and mapped memory. What the destination frees counts as
 * free already: it is unmapped before the new mapping is there.
 */
static bool within_limits(struct mm_struct *mm, vm_flags_t vm_flags,
			  unsigned long bytes, const struct range_survey *freed)
{
	unsigned long pages = bytes >> PAGE_SHIFT;

	return may_replace_vm(mm, vm_flags, pages - freed->total,
			      pages - freed->data);
}

static bool within_memlock(struct mm_struct *mm, vm_flags_t vm_flags,
			   unsigned long bytes, const struct range_survey *freed)
{
	unsigned long pages = mm->locked_vm - freed->locked;

	if (!(vm_flags & VM_LOCKED) || capable(CAP_IPC_LOCK))
		return true;
	return pages + (bytes >> PAGE_SHIFT) <=
	       rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
}

/* Can the source be moved or grown as asked? @freed goes away before that. */
static int check_resize(struct vm_area_struct *vma,
			const struct mremap_request *req,
			const struct range_survey *freed)
{
	unsigned long bytes = growth(req);
	pgoff_t pgoff = vma_pgoff_offset(vma, req->addr);

	/* A private mapping has no second view: it would be an unrelated one. */
	if (!req->old_len && !(vma->vm_flags & (VM_SHARED | VM_MAYSHARE)))
		return -EINVAL;
	if (keeps_source(req) && (vma->vm_flags & (VM_DONTEXPAND | VM_PFNMAP)))
		return -EINVAL;
	if (moved_len(req) > vma->vm_end - req->addr)
		return -EFAULT;
	if (!bytes)
		return 0;

	if (pgoff + (req->new_len >> PAGE_SHIFT) < pgoff)
		return -EINVAL;
	if (vma->vm_flags & (VM_DONTEXPAND | VM_PFNMAP))
		return -EFAULT;
	if (!within_memlock(vma->vm_mm, vma->vm_flags, bytes, freed))
		return -EAGAIN;
	if (!within_limits(vma->vm_mm, vma->vm_flags, bytes, freed))
		return -ENOMEM;
	return 0;
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

/*
 * Make @addr a boundary between VMAs, and remember it if it was none. Needs
 * mmap_lock for write and room in the map count.
 */
static int split_at(struct mremap_op *op, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(op->mm, addr);
	int err;

	if (!vma || vma->vm_start == addr)
		return 0;

	VMA_ITERATOR(vmi, op->mm, vma->vm_start);

	vma_start_write(vma);
	split_leaf_pud_at(vma, addr);
	err = split_vma(&vmi, vma, addr, /* new_below = */ 1);
	if (!err)
		op->seams[op->nr_seams++] = addr;
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

static void mend_seams(struct mremap_op *op)
{
	while (op->nr_seams)
		mend_seam(op->mm, op->seams[--op->nr_seams]);
}

/* Ledger of committed memory, in pages */

/* The pages that the call adds: all of them where the source stays as it is. */
static unsigned long pages_added(const struct mremap_request *req)
{
	unsigned long bytes = keeps_source(req) ? req->new_len : growth(req);

	return bytes >> PAGE_SHIFT;
}

/*
 * Charge what the call adds. The charge of the destination, which is given
 * back when that is unmapped, is not asked for a second time: take_over_charge()
 * takes it then.
 */
static int charge(struct mremap_op *op)
{
	unsigned long pages = pages_added(op->req);

	if (!(op->vm_flags & VM_ACCOUNT) || !pages)
		return 0;

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
	if (was_present)
		flush_tlb_range(pm->src, pm->cursor, pm->cursor + extent);

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
		if (extent == PMD_SIZE &&
		    move_huge_pmd(pm->src, pm->cursor, new_addr_of(pm),
				  old_pmd, new_pmd))
			return 0;
		return -EAGAIN;
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
 * into the tree of VMAs, which may need nodes: it waits for them.
 */
static void punch_ticket(struct unmap_ticket *ticket, struct mm_struct *mm)
{
	struct vma_munmap_struct *vms = &ticket->vms;

	if (!vms->vma)
		return;
	vma_iter_init(&ticket->vmi, mm, vms->start);
	WARN_ON_ONCE(vma_iter_clear_gfp(&ticket->vmi, vms->start, vms->end,
					GFP_KERNEL | __GFP_NOFAIL));
	vms_complete_munmap_vmas(vms, &ticket->mas);
}

/* Move: prepare */

/*
 * Must the moved range be a VMA of its own? Where it goes away, yes: so that
 * all splits are made while nothing has changed, and that what hangs on the VMA
 * (hugetlb reservations, PAT tracking, charges) is told for this range only.
 * Where it stays, only if it differs from its surroundings afterwards.
 */
static bool needs_isolation(const struct mremap_op *op)
{
	if (!op->req->old_len)
		return false;
	return !keeps_source(op->req) || (op->vm_flags & VM_LOCKED);
}

static int isolate_source(struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
	int err;

	if (!needs_isolation(op))
		return 0;
	err = split_at(op, req->addr);
	if (!err)
		err = split_at(op, req->addr + moved_len(req));
	if (!err && shrinkage(req))
		err = split_at(op, req->addr + req->old_len);
	return err;
}

static int unmap_old_destination(struct mremap_op *op)
{
	unsigned long end = op->dst_addr + op->req->new_len;
	int err;

	if (!(op->req->flags & MREMAP_FIXED))
		return 0;

	err = split_at(op, op->dst_addr);
	if (!err)
		err = split_at(op, end);
	if (err)
		return err;

	VMA_ITERATOR(vmi, op->mm, op->dst_addr);

	err = do_vmi_munmap(&vmi, op->mm, op->dst_addr, op->req->new_len,
			    &op->uffd_unmap_dst, /* unlock = */ false);
	if (err)
		userfaultfd_unmap_abort(&op->uffd_unmap_dst);
	else
		take_over_charge(op);
	return err;
}

/*
 * KSM pages are broken up before they move: rmap finds them by the address that
 * they had when they were scanned. The VMA stays mergeable.
 */
static int break_ksm(struct mremap_op *op)
{
	unsigned long ignored_flags = op->vm_flags;

	return ksm_madvise(op->src, op->req->addr,
			   op->req->addr + moved_len(op->req),
			   MADV_UNMERGEABLE, &ignored_flags);
}

static void undo_prepare(struct mremap_op *op)
{
	uncharge(op);
	mend_seams(op);
}

/* All that can fail before the old destination is unmapped, and that last. */
static int prepare_move(struct mremap_op *op)
{
	int err;

	err = break_ksm(op);
	if (err)
		return err;
	err = charge(op);
	if (err)
		return err;
	err = isolate_source(op);
	if (!err)
		err = unmap_old_destination(op);
	if (err)
		undo_prepare(op);
	return err;
}

/* Move: the pages */

/*
 * Tables that move whole keep the soft-dirty bits of their entries, but their
 * pages have to read as changed. So the VMA is marked as changed, which would
 * tell a lie about neighbours that it was merged with; for these, single entries
 * move. A VMA that is marked already, needs nothing.
 */
static bool needs_soft_dirty_entries(const struct mremap_op *op)
{
	struct vm_area_struct *dst = op->dst;

	return vma_soft_dirty_enabled(dst) &&
	       vma_pages(dst) != op->req->new_len >> PAGE_SHIFT;
}

static void mark_soft_dirty(struct vm_area_struct *vma)
{
	if (!vma_soft_dirty_enabled(vma))
		return;
	vm_flags_set(vma, VM_SOFTDIRTY);
	vma_set_page_prot(vma);
}

static int copy_source(struct mremap_op *op)
{
	struct vm_area_struct *src = vma_lookup(op->mm, op->req->addr);
	pgoff_t pgoff = vma_pgoff_offset(src, op->req->addr);
	bool ignored;

	vma_start_write(src);
	/*
	 * The source must not be merged with its copy, as it is unmapped, or
	 * left behind, on its own. So ask as if it were to be kept.
	 */
	op->dst = copy_vma(&src, op->dst_addr, op->req->new_len, pgoff,
			   &ignored, /* keep_source = */ true);
	op->src = src;
	return op->dst ? 0 : -ENOMEM;
}

static int call_vm_ops_mremap(struct mremap_op *op)
{
	const struct vm_operations_struct *ops = op->dst->vm_ops;

	return ops && ops->mremap ? ops->mremap(op->dst) : 0;
}

/* Move: the new mapping's place in the books */

static void book_destination(struct mremap_op *op)
{
	unsigned long pages = op->req->new_len >> PAGE_SHIFT;

	vm_stat_account(op->mm, op->vm_flags, pages);
	if (op->vm_flags & VM_LOCKED)
		op->mm->locked_vm += pages;
}

/* A locked mapping's growth is faulted in, but only after mmap_lock is dropped. */
static void populate_growth(struct mremap_op *op)
{
	op->populate_addr = op->result + op->req->old_len;
	op->populate_len = growth(op->req);
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
 * Enter the copy into the books as the mapping of its own that it is until it
 * is unmapped, and for good if even that fails.
 */
static void book_copy(struct mremap_op *op)
{
	unsigned long pages = op->req->new_len >> PAGE_SHIFT;

	disown(op->dst);
	book_destination(op);
	if (op->vm_flags & VM_ACCOUNT)
		vm_acct_memory(pages - op->charged);
	op->charged = 0;
}

static void remove_copy(struct mremap_op *op)
{
	VMA_ITERATOR(vmi, op->mm, op->dst_addr);

	do_vmi_munmap(&vmi, op->mm, op->dst_addr, op->req->new_len, NULL,
		      /* unlock = */ false);
}

static void revert_move(struct mremap_op *op, const struct pagetable_move *pm)
{
	unsigned long hiwater_vm = op->mm->hiwater_vm;
	int err = move_page_tables_back(pm);

	book_copy(op);
	/*
	 * Pages that cannot go back stay mapped where they are rather than be
	 * unmapped: moved against the caller's expectation, but not lost.
	 */
	if (!WARN_ON_ONCE(err))
		remove_copy(op);
	op->mm->hiwater_vm = hiwater_vm;
	undo_prepare(op);
}

/* Move: commit */

/*
 * A monitor that wants to hear of moves keeps the new mapping registered. For
 * any other it is unregistered, and then no entry may stay write-protected.
 * That comes so late because a move that fails has to bring the bits back.
 */
static void commit_userfaultfd(struct mremap_op *op)
{
	struct vm_area_struct *src = op->src;
	unsigned long len = moved_len(op->req);

	if (len && userfaultfd_wp(src) && vma_has_uffd_without_event_remap(src))
		uffd_wp_range(op->dst, op->dst_addr, len, /* enable_wp = */ false);
	mremap_userfaultfd_prep(op->dst, &op->uffd_remap);
}

/*
 * The source stays mapped, with nothing in it. Its lock went with the pages. As
 * nothing is faulted in, it starts anew like a mapping just made.
 */
static void commit_kept_source(struct mremap_op *op)
{
	struct vm_area_struct *src = op->src;
	unsigned long pages = op->req->new_len >> PAGE_SHIFT;

	vm_flags_clear(src, VM_LOCKED_MASK);
	if (src->vm_start == op->req->addr && vma_pages(src) == pages) {
		unlink_anon_vmas(src);
		/* An anonymous VMA without pages has the offset of its address. */
		if (vma_is_anonymous(src) && !src->vm_file)
			src->vm_pgoff = src->vm_start >> PAGE_SHIFT;
	}
	vm_stat_account(op->mm, op->vm_flags, pages);
}

static void commit_unmapped_source(struct mremap_op *op,
				   struct unmap_ticket *source,
				   struct unmap_ticket *tail)
{
	disown(op->src);
	/* The charge for these pages goes on as the destination's. */
	source->vms.nr_accounted = 0;
	punch_ticket(tail, op->mm);
	/* The tail is gone, so tables below both may go as well. */
	if (tail->vms.vma)
		source->vms.unmap_end = tail->vms.unmap_end;
	punch_ticket(source, op->mm);
	/* Only now, or total_vm would show both for a moment, and hiwater_vm. */
	book_destination(op);
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
	/* If the copy was merged with the tail, that has split them again. */
	op->dst = vma_lookup(op->mm, op->dst_addr);
	return err;
}

/*
 * Everything that can still fail, with the source still linked. Undoes the
 * move of the pages if it fails.
 */
static int move_pages_over(struct mremap_op *op, struct unmap_ticket *source,
			   struct unmap_ticket *tail, bool *moved_table)
{
	const struct mremap_request *req = op->req;
	struct pagetable_move pm = {
		.src = op->src,
		.dst = op->dst,
		.start = req->addr,
		.end = req->addr + moved_len(req),
		.shift = op->dst_addr - req->addr,
		.keep_tables = needs_soft_dirty_entries(op),
	};
	int err;

	err = move_page_tables(&pm);
	if (err)
		goto revert;
	err = take_source_tickets(op, source, tail);
	if (err)
		goto revert;
	err = call_vm_ops_mremap(op);
	if (err)
		goto return_tickets;
	*moved_table = pm.moved_table;
	return 0;

return_tickets:
	return_ticket(source);
	return_ticket(tail);
revert:
	userfaultfd_unmap_abort(&op->uffd_unmap_src);
	revert_move(op, &pm);
	return err;
}

static void commit_move(struct mremap_op *op, struct unmap_ticket *source,
			struct unmap_ticket *tail)
{
	const struct mremap_request *req = op->req;

	commit_userfaultfd(op);
	if (keeps_source(req))
		commit_kept_source(op);
	else
		commit_unmapped_source(op, source, tail);
	op->charged = 0;
	op->result = op->dst_addr;
	if (op->vm_flags & VM_LOCKED)
		populate_growth(op);
}

/*
 * Move the mapping to op->dst_addr. All checks have been made. mmap_lock is held
 * for write on entry and exit.
 */
static int move_vma(struct mremap_op *op)
{
	struct unmap_ticket source = {}, tail = {};
	bool moved_table;
	int err;

	err = prepare_move(op);
	if (err)
		return err;
	err = copy_source(op);
	if (err) {
		undo_prepare(op);
		return err;
	}
	err = move_pages_over(op, &source, &tail, &moved_table);
	if (err)
		return err;

	/* Point of no return */
	if (moved_table)
		mark_soft_dirty(op->dst);
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
 * @hint, if that is allowed. Sets op->dst_addr.
 */
static int find_destination(struct mremap_op *op, unsigned long hint,
			    unsigned long map_flags)
{
	struct vm_area_struct *vma = op->src;
	unsigned long addr;

	addr = get_unmapped_area(vma->vm_file, hint, op->req->new_len,
				 vma_pgoff_offset(vma, op->req->addr),
				 map_flags | map_flags_for(vma));
	if (IS_ERR_VALUE(addr))
		return addr;
	op->dst_addr = map_flags & MAP_FIXED ? hint : addr;
	return 0;
}

/* Dispatch: one function for each thing that a call can come down to */

/* May what is mapped at the new place be unmapped? And what will that free? */
static int check_old_destination(struct mremap_op *op)
{
	const struct mremap_request *req = op->req;

	survey_range(op->mm, req->new_addr, req->new_addr + req->new_len,
		     &op->dst_old);
	if (op->dst_old.sealed)
		return -EPERM;
	return check_cut_out(op->mm, req->new_addr, req->new_len);
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
		err = check_old_destination(op);
		if (err)
			return err;
	}
	err = check_shrinkage(op->mm, req);
	if (err)
		return err;
	/* A second view in the place of the first: that would leave none. */
	if (fixed && !req->old_len && req->new_addr == req->addr)
		return -EFAULT;
	err = check_resize(op->src, req, &op->dst_old);
	if (err)
		return err;
	if (keeps_source(req) &&
	    !within_limits(op->mm, op->vm_flags, req->new_len, &op->dst_old))
		return -ENOMEM;
	err = find_destination(op, req->new_addr, fixed ? MAP_FIXED : 0);
	if (err)
		return err;
	err = check_cut_out(op->mm, req->addr, moved_len(req));
	if (err)
		return err;
	return move_vma(op);
}

/*
 * Remember that a helper may split a VMA at @addr. Here the split is left to
 * munmap(), which may still split when the map count is at its limit.
 */
static void expect_seam(struct mremap_op *op, unsigned long addr)
{
	struct vm_area_struct *vma = vma_lookup(op->mm, addr);

	if (vma && vma->vm_start != addr)
		op->seams[op->nr_seams++] = addr;
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
		mend_seams(op);
	}
	return err;
}

/* Is the range at the end of its VMA, with room for the growth behind it? */
static bool can_grow_in_place(const struct mremap_op *op)
{
	const struct mremap_request *req = op->req;
	const struct vm_area_struct *vma = op->src;
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
	VMA_ITERATOR(vmi, op->mm, op->src->vm_end);
	const struct mremap_request *req = op->req;
	unsigned long pages = growth(req) >> PAGE_SHIFT;
	int err;

	err = charge(op);
	if (err)
		return err;
	/* Grows the VMA, and joins it with the next one if they meet. */
	op->dst = vma_merge_extend(&vmi, op->src, growth(req));
	if (!op->dst) {
		uncharge(op);
		return -ENOMEM;
	}

	op->charged = 0;
	op->result = req->addr;
	vm_stat_account(op->mm, op->vm_flags, pages);
	if (op->vm_flags & VM_LOCKED) {
		op->mm->locked_vm += pages;
		populate_growth(op);
	}
	return 0;
}

static int grow_by_move(struct mremap_op *op)
{
	int err;

	if (!(op->req->flags & MREMAP_MAYMOVE))
		return -ENOMEM;
	err = find_destination(op, 0, 0);
	if (err)
		return err;
	err = check_map_count(op->mm, MAPS_FOR_MOVE);
	if (err)
		return err;
	err = check_cut_out(op->mm, op->req->addr, moved_len(op->req));
	if (err)
		return err;
	return move_vma(op);
}

static int grow(struct mremap_op *op)
{
	int err = check_resize(op->src, op->req, &op->dst_old);

	if (err)
		return err;
	return can_grow_in_place(op) ? grow_in_place(op) : grow_by_move(op);
}

/* mmap_lock is held for write; op->unlocked tells whether it still is after. */
static int mremap_locked(struct mremap_op *op, struct mremap_request *req)
{
	int err;

	op->src = vma_lookup(op->mm, req->addr);
	err = check_source(op->src, req);
	if (err)
		return err;
	op->vm_flags = op->src->vm_flags;

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
}

/**
 * do_mremap - resize or move a mapping of the current process
 * @req: the request as the caller made it; lengths are rounded up here
 *
 * Documentation/mm/mremap.rst has what each combination of flags and lengths
 * means, and all errors.
 *
 * Context: process context; takes mmap_lock for write.
 * Return: the address of the mapping, or a negative errno.
 */
static unsigned long do_mremap(struct mremap_request *req)
{
	struct mremap_op op = {
		.req = req,
		.mm = current->mm,
		.uffd_remap = NULL_VM_UFFD_CTX,
		.uffd_unmap_dst = LIST_HEAD_INIT(op.uffd_unmap_dst),
		.uffd_unmap_src = LIST_HEAD_INIT(op.uffd_unmap_src),
	};
	int err;

	err = check_request(req);
	if (err)
		return err;
	req->old_len = PAGE_ALIGN(req->old_len);
	req->new_len = PAGE_ALIGN(req->new_len);

	if (mmap_write_lock_killable(op.mm))
		return -EINTR;
	err = mremap_locked(&op, req);
	if (!op.unlocked)
		mmap_write_unlock(op.mm);
	finish_unlocked(&op);
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
