# SPDX-License-Identifier: GPL-2.0
#
# gnuplot -c sizes.gp FOLDER: the cost of each kind of move against its size,
# size-KIND.csv in, size-KIND.png and .svg out. What is not there is left out.

folder = ARG1

array kinds[16] = [ \
	"grow", "growth, blocked above, 4 KB pages", \
	"grow-odd", "growth, blocked above, 4 KB pages, not 2 MB-aligned", \
	"grow-huge", "growth, blocked above, huge pages", \
	"move", "move to a given place, both aligned, 4 KB pages", \
	"move-odd", "move to a given place, both at the same odd offset", \
	"move-huge", "move to a given place, both aligned, huge pages", \
	"move-pages", "move to a given place, off by one page", \
	"move-keep", "move to a given place, off by one page, DONTUNMAP" ]

touched = "up to 256 MB every page is touched, above it one in each 2 MB"
touched_huge = "up to 1 GB of memory, above it more of the huge page of zeroes"

set datafile separator ","
set logscale xy
set grid
set key top left autotitle columnhead
set style data linespoints
set xlabel "size of what moves"
set ylabel "instructions"
set xrange [3e3:6e9]
set xtics ("4 KB" 4 * 2**10, "64 KB" 64 * 2**10, "1 MB" 2**20, "16 MB" 16 * 2**20, \
	   "256 MB" 256 * 2**20, "4 GB" 4 * 2**30)
set ytics format "%.0s%c"

do for [i = 1:|kinds|:2] {
	data = sprintf("%s/size-%s.csv", folder, kinds[i])
	if (system(sprintf("test -e '%s' && echo yes", data)) ne "yes") { continue }
	kernels = system(sprintf("head -n 1 '%s' | tr ',' '\\n' | wc -l", data)) - 1
	note = strstrt(kinds[i], "huge") ? touched_huge : touched
	set title sprintf("%s\n{/*0.8 %s}", kinds[i + 1], note)
	do for [format in "png svg"] {
		set terminal format size 800,560 font "sans,11"
		set output sprintf("%s/size-%s.%s", folder, kinds[i], format)
		plot for [k = 1:kernels] data using 1:k + 1 linewidth 2 pointtype 7
	}
}
