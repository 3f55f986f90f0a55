# SPDX-License-Identifier: GPL-2.0
#
# gnuplot -c realloc.gp FOLDER KERNELS: each step of a block that realloc()
# makes longer by half, realloc.csv in, realloc.png and .svg out.

folder = ARG1
kernels = ARG2
data = sprintf("%s/realloc.csv", folder)

set datafile separator ","
set logscale xy
set grid
set key top left
set title "realloc() by half, from 256 KB to 256 MB\n{/*0.8 empty: grew in place}"
set xlabel "size after the call"
set ylabel "instructions"
set xrange [3e5:4e8]
set xtics ("512 KB" 512 * 2**10, "2 MB" 2 * 2**20, "8 MB" 8 * 2**20, \
	   "32 MB" 32 * 2**20, "128 MB" 128 * 2**20)
set ytics format "%.0s%c"

# Columns: step, kernel, size, instructions, flushes, moved
rows(k) = sprintf("< grep ',%s,' '%s'", word(kernels, k), data)

do for [format in "png svg"] {
	set terminal format size 800,560 font "sans,11"
	set output sprintf("%s/realloc.%s", folder, format)
	plot for [k = 1:words(kernels)] rows(k) using 3:4 \
		with lines linewidth 2 linecolor k title word(kernels, k), \
	     for [k = 1:words(kernels)] rows(k) using 3:4:($6 == 1 ? 7 : 6) \
		with points pointtype variable linecolor k notitle
}
