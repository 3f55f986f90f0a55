// SPDX-License-Identifier: GPL-2.0
/* Delays in mremap(2), for tests of races: see enum delay_point. */

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/init.h>

#include "mremap.h"

static u32 delay_usecs[NR_DELAY_POINTS];

void mremap_delay(enum delay_point point)
{
	u32 usecs = READ_ONCE(delay_usecs[point]);

	if (usecs)
		fsleep(usecs);
}

static int __init create_delay_files(void)
{
	struct dentry *dir = debugfs_create_dir("mremap_delay_us", NULL);

	debugfs_create_u32("reserved", 0600, dir, &delay_usecs[DELAY_RESERVED]);
	debugfs_create_u32("planned", 0600, dir, &delay_usecs[DELAY_PLANNED]);
	debugfs_create_u32("detached", 0600, dir, &delay_usecs[DELAY_DETACHED]);
	debugfs_create_u32("detach_flushed", 0600, dir,
			   &delay_usecs[DELAY_DETACH_FLUSHED]);
	debugfs_create_u32("moved", 0600, dir, &delay_usecs[DELAY_MOVED]);
	return 0;
}
late_initcall(create_delay_files);
