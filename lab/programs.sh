#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# Compiles programs of the laboratory, each from one source, to a folder. A line
# "built with: FLAGS" in the source's head has what it needs beyond the usual flags.
# With -shared among them it becomes NAME.so. CROSS_COMPILE is what it is for Kbuild.

# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

(($# >= 2)) || die "usage: lab/programs.sh OUT SOURCE..."
out=$1
mkdir -p "$out"
for source in "${@:2}"; do
	name=${source##*/} name=${name%.*} compiler=gcc
	[[ $source != *.cpp ]] || compiler=g++
	read -ra flags < <(sed -n '1,20s/^.*built with: //p' "$source") || true
	case " ${flags[*]-} " in
	*" -shared "*) name+=.so ;;
	*) flags+=(-static) ;;
	esac
	"${CROSS_COMPILE-}$compiler" -O2 -Wall -Wextra "${flags[@]}" -o "$out/$name" "$source"
done
