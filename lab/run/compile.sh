#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Compile files of the kernel as Kbuild did and compare the objects bit by bit.
# usage: compile.sh BUILD OBJECT...
#   BUILD   the folder of the kernel's build, which has the objects from outside
set -euo pipefail

cd "$1"
for object in "${@:2}"; do
	command=$(sed -n 's/^savedcmd_[^ ]* := //p' "${object%/*}/.${object##*/}.cmd")
	mv "$object" "$object.outside"
	# Not with ccache, which has it already.
	eval "${command//ccache /}"
	cmp "$object" "$object.outside"
	echo "$object: $(stat -c %s "$object") bytes, the same"
done
