// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU that counts every instruction between the two marks of
 * "bench --mark", by its address and by the calls that led to it. usage:
 * -plugin profile.so,out=FILE
 * built with: -shared -fPIC
 *
 * The file gets, for each marked stretch:
 *   stretch
 *   node NUMBER PARENT ADDRESS	    a call: who called what; 0 is the start
 *   count NODE ADDRESS TIMES LOCKED	    how often the instruction there ran, and
 *					    whether it locks the bus
 *   memory LOADS STORES		    accesses
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of QEMU's plugin interface that is used here; Debian has no header. */
typedef uint64_t plugin_id;
struct plugin_block;
struct plugin_instruction;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
		void (*call)(plugin_id id, struct plugin_block *block));
void qemu_plugin_register_vcpu_insn_exec_cb(struct plugin_instruction *instruction,
		void (*call)(unsigned int cpu, void *data), int flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct plugin_block *block);
struct plugin_instruction *qemu_plugin_tb_get_insn(const struct plugin_block *block, size_t i);
const void *qemu_plugin_insn_data(const struct plugin_instruction *instruction);
size_t qemu_plugin_insn_size(const struct plugin_instruction *instruction);
uint64_t qemu_plugin_insn_vaddr(const struct plugin_instruction *instruction);
void qemu_plugin_register_vcpu_mem_cb(struct plugin_instruction *instruction,
		void (*call)(unsigned int cpu, uint32_t access, uint64_t address, void *data),
		int flags, int kinds, void *data);
_Bool qemu_plugin_mem_is_store(uint32_t access);

#define LOADS_AND_STORES 3

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;

enum kind { PLAIN, CALL, RETURN, BEGIN, END };

struct site {
	uint64_t address;
	enum kind kind;
	int locked;
};

struct node {
	unsigned int parent;
	uint64_t address;
};

struct counter {
	unsigned int node;
	uint64_t address;
	uint64_t times;
	int locked;
};

#define MAX_NODES	(1 << 16)
#define MAX_COUNTERS	(1 << 20)

static struct node nodes[MAX_NODES];
static struct counter counters[MAX_COUNTERS];	/* a hash table */
static unsigned int nr_nodes, nr_counters, at;
static unsigned long long loads, stores;
static int active, called;
static FILE *out;

static void give_up(const char *why)
{
	fprintf(stderr, "profile: %s\n", why);
	exit(1);
}

static unsigned int child(unsigned int parent, uint64_t address)
{
	for (unsigned int i = 1; i < nr_nodes; i++)
		if (nodes[i].parent == parent && nodes[i].address == address)
			return i;
	if (nr_nodes == MAX_NODES)
		give_up("too many calls");
	nodes[nr_nodes] = (struct node){ parent, address };
	return nr_nodes++;
}

static void count(unsigned int node, const struct site *site)
{
	uint64_t address = site->address;
	uint64_t hash = (address ^ (uint64_t)node << 40) * 0x9e3779b97f4a7c15ULL;
	struct counter *counter;

	for (size_t i = hash >> 44;; i++) {
		counter = &counters[i % MAX_COUNTERS];
		if (!counter->times || (counter->node == node && counter->address == address))
			break;
	}
	if (!counter->times && ++nr_counters > MAX_COUNTERS / 2)
		give_up("too many addresses");
	counter->node = node;
	counter->address = address;
	counter->locked = site->locked;
	counter->times++;
}

static void begin(void)
{
	memset(counters, 0, sizeof(counters));
	nr_nodes = 1;
	nr_counters = at = called = 0;
	loads = stores = 0;
	active = 1;
}

static void end(void)
{
	active = 0;
	fprintf(out, "stretch\n");
	for (unsigned int i = 1; i < nr_nodes; i++)
		fprintf(out, "node %u %u %llx\n", i, nodes[i].parent,
			(unsigned long long)nodes[i].address);
	for (unsigned int i = 0; i < MAX_COUNTERS; i++)
		if (counters[i].times)
			fprintf(out, "count %u %llx %llu %d\n", counters[i].node,
				(unsigned long long)counters[i].address,
				(unsigned long long)counters[i].times, counters[i].locked);
	fprintf(out, "memory %llu %llu\n", loads, stores);
	fflush(out);
}

static void executed(unsigned int cpu, void *data)
{
	const struct site *site = data;

	(void)cpu;
	if (!active)
		return;
	if (called)
		at = child(at, site->address);
	called = site->kind == CALL;
	count(at, site);
	if (site->kind == RETURN)
		at = nodes[at].parent;
}

static void accessed(unsigned int cpu, uint32_t access, uint64_t address, void *data)
{
	(void)cpu;
	(void)address;
	(void)data;
	if (active)
		++*(qemu_plugin_mem_is_store(access) ? &stores : &loads);
}

static void marked(unsigned int cpu, void *data)
{
	const struct site *site = data;

	(void)cpu;
	if (site->kind == BEGIN)
		begin();
	else
		end();
}

static enum kind kind_of(const uint8_t *code, size_t size)
{
	/* prefetchnta 0x4d42(%rax) and 0x4d45(%rax) */
	if (size == 7 && !memcmp(code, "\x0f\x18\x80", 3) && code[4] == 0x4d)
		return code[3] == 0x42 ? BEGIN : END;
	while (size > 1 && (code[0] == 0x2e || code[0] == 0x3e || code[0] == 0xf3 ||
			    (code[0] & 0xf0) == 0x40)) {
		code++;
		size--;
	}
	if (code[0] == 0xe8 || (code[0] == 0xff && size > 1 && (code[1] >> 3 & 7) == 2))
		return CALL;
	if (code[0] == 0xc3 || code[0] == 0xc2)
		return RETURN;
	return PLAIN;
}

/* With a lock prefix, or an exchange with memory, which needs none. */
static int is_locked(const uint8_t *code, size_t size)
{
	for (; size > 2; code++, size--) {
		if (*code == 0xf0)
			return 1;
		if (*code == 0x86 || *code == 0x87)
			return code[1] < 0xc0;
		if ((*code & 0xf0) != 0x40 && *code != 0x66 && *code != 0x65 && *code != 0x2e)
			return 0;
	}
	return size == 2 && (*code == 0x86 || *code == 0x87) && code[1] < 0xc0;
}

static void translated(plugin_id id, struct plugin_block *block)
{
	(void)id;
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
		struct plugin_instruction *instruction = qemu_plugin_tb_get_insn(block, i);
		struct site *site = malloc(sizeof(*site));

		if (!site)
			give_up("no memory");
		site->address = qemu_plugin_insn_vaddr(instruction);
		site->kind = kind_of(qemu_plugin_insn_data(instruction),
				     qemu_plugin_insn_size(instruction));
		site->locked = is_locked(qemu_plugin_insn_data(instruction),
					 qemu_plugin_insn_size(instruction));
		qemu_plugin_register_vcpu_mem_cb(instruction, accessed, 0, LOADS_AND_STORES,
						 NULL);
		qemu_plugin_register_vcpu_insn_exec_cb(instruction,
				site->kind >= BEGIN ? marked : executed, 0, site);
	}
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	(void)info;
	if (argc == 1 && !strncmp(argv[0], "out=", 4))
		out = fopen(argv[0] + 4, "w");
	if (!out)
		return -1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
