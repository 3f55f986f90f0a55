// SPDX-License-Identifier: GPL-2.0
/* A module out of the kernel's tree, for its package of headers. */
#include <linux/module.h>
#include <linux/utsname.h>

static int __init trial_init(void)
{
	pr_info("trial: loaded on %s\n", utsname()->release);
	return 0;
}

static void __exit trial_exit(void)
{
}

module_init(trial_init);
module_exit(trial_exit);
MODULE_DESCRIPTION("A module out of the kernel's tree");
MODULE_LICENSE("GPL");
