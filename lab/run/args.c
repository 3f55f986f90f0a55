// SPDX-License-Identifier: GPL-2.0
/*
 * execve() with 5.5 MB of arguments, again and again. exec builds the stack at
 * the top of the address space and then shifts it down to its randomised
 * place, moving its page tables; each round gets another distance.
 * The new image checks every argument against what it must be.
 *
 * With a number, it does so that many times.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS	40
#define NARGS	440
#define ARG_LEN	12800UL		/* 440 * 12,800 = 5.6 MB; the kernel's limit is 6 MB */

static void fill(char *arg, size_t index)
{
	for (size_t i = 0; i < ARG_LEN - 1; i++)
		arg[i] = 'A' + (index * 31 + i * 7 + i / 4096) % 58;
	arg[ARG_LEN - 1] = '\0';
}

static int check(int argc, char **argv)
{
	static char want[ARG_LEN];

	if (argc != NARGS + 1) {
		printf("%d arguments arrived, not %d\n", argc - 1, NARGS);
		return 1;
	}
	for (int i = 1; i <= NARGS; i++) {
		fill(want, i);
		if (strcmp(argv[i], want)) {
			printf("argument %d (at %p) is not what was passed\n",
			       i, (void *)argv[i]);
			return 1;
		}
	}
	return 0;
}

static void exec_self(const char *self)
{
	static char *args[NARGS + 2], *env[] = { NULL };

	args[0] = "args";
	for (size_t i = 1; i <= NARGS; i++) {
		args[i] = malloc(ARG_LEN);
		if (!args[i])
			return;
		fill(args[i], i);
	}
	execve(self, args, env);
	perror("execve");
}

int main(int argc, char **argv)
{
	/* Arguments may take a quarter of the stack's limit. */
	const struct rlimit stack = { 64 << 20, 64 << 20 };
	int rounds = ROUNDS;

	if (argc == 2)
		rounds = atoi(argv[1]);
	else if (argc > 2)
		return check(argc, argv);

	if (setrlimit(RLIMIT_STACK, &stack)) {
		perror("setrlimit");
		return 1;
	}
	for (int round = 0; round < rounds; round++) {
		int status;
		pid_t pid = fork();

		if (!pid) {
			exec_self("/proc/self/exe");
			_exit(1);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid) {
			perror("fork");
			return 1;
		}
		if (status) {
			printf("round %d: wait status %#x\n", round, status);
			return 1;
		}
	}
	printf("%d times %lu bytes of arguments\n", rounds, NARGS * ARG_LEN);
	return 0;
}
