/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM mremap

#if !defined(_TRACE_MREMAP_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_MREMAP_H

#include <linux/mman.h>
#include <linux/tracepoint.h>

struct mremap_request;
struct move_stats;

/*
 * Every call of mremap(2) when it is done, also one that is refused. What the
 * fields mean: Documentation/mm/mremap.rst.
 */
TRACE_EVENT(mremap,

	TP_PROTO(const struct mremap_request *req, unsigned long result,
		 int error, const struct move_stats *stats),

	TP_ARGS(req, result, error, stats),

	TP_STRUCT__entry(
		__field(unsigned long, addr)
		__field(unsigned long, old_len)
		__field(unsigned long, new_len)
		__field(unsigned long, flags)
		__field(unsigned long, new_addr)
		__field(unsigned long, result)
		__field(int, error)
		__field(unsigned long, vmas)
		__field(unsigned long, puds)
		__field(unsigned long, pmds)
		__field(unsigned long, huge)
		__field(unsigned long, ptes)
		__field(unsigned long, flushes)
		__field(unsigned long, relocated)
	),

	TP_fast_assign(
		__entry->addr = req->addr;
		__entry->old_len = req->old_len;
		__entry->new_len = req->new_len;
		__entry->flags = req->flags;
		__entry->new_addr = req->new_addr;
		__entry->result = result;
		__entry->error = error;
		__entry->vmas = stats->vmas;
		__entry->puds = stats->puds;
		__entry->pmds = stats->pmds;
		__entry->huge = stats->huge;
		__entry->ptes = stats->ptes;
		__entry->flushes = stats->flushes;
		__entry->relocated = stats->relocated;
	),

	TP_printk("addr=0x%lx old_len=0x%lx new_len=0x%lx flags=%s new_addr=0x%lx result=0x%lx error=%d vmas=%lu puds=%lu pmds=%lu huge=%lu ptes=%lu flushes=%lu relocated=%lu",
		  __entry->addr, __entry->old_len, __entry->new_len,
		  __entry->flags ? __print_flags(__entry->flags, "|",
			{ MREMAP_MAYMOVE,	"MREMAP_MAYMOVE" },
			{ MREMAP_FIXED,		"MREMAP_FIXED" },
			{ MREMAP_DONTUNMAP,	"MREMAP_DONTUNMAP" },
			{ MREMAP_OVERLAP,	"MREMAP_OVERLAP" }) : "none",
		  __entry->new_addr, __entry->result, __entry->error,
		  __entry->vmas, __entry->puds, __entry->pmds, __entry->huge,
		  __entry->ptes, __entry->flushes, __entry->relocated)
);

#endif /* _TRACE_MREMAP_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
