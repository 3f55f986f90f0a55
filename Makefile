# SPDX-License-Identifier: GPL-2.0
#
# The commands of the laboratory; the work is done in lab/.

# The unpatched kernel: the name of a file in bases/. The port is to the first one.
export BASE ?= 6.12
TREE ?= $(if $(other_base),base,patched)
other_base := $(filter-out 6.12,$(BASE))
# For trying things out: the kernel that is built soonest.
small = $(or $(FLAVOR),lean)

scripts := base tree image run test soak fuzz cover basetest bench series shell guest check upstream matrix docs arm64 \
	fixes deb trial
.PHONY: help clean $(scripts)

$(if $(wildcard bases/$(BASE)),,$(error bases/ has no '$(BASE)'; there are $(notdir $(wildcard bases/*))))

unknown := $(filter-out help clean $(scripts),$(MAKECMDGOALS))
$(if $(unknown),$(error no target '$(firstword $(unknown))', see 'make help'))

# What can be done without the port.
portless := base image shell guest basetest fixes upstream help clean
porting := $(if $(other_base),$(filter-out $(portless),$(MAKECMDGOALS)))
$(if $(porting),$(error 'make $(firstword $(porting))' needs the port to $(BASE), which is not there yet))

help:
	@echo "make run      boot the patched kernel and run real programs on it"
	@echo "              (ALL=1: many more of them, databases and stress-ng among them)"
	@echo "make test     run all tests (FLAVORS='prod debug': on these kernels instead of lean and debug)"
	@echo "make soak     go on with random calls against a model (SOAK=seconds, an hour unless told)"
	@echo "make fuzz     programs of calls, guided by coverage (FUZZ=seconds, ten minutes unless told)"
	@echo "make cover    list the lines of ours that no test reaches"
	@echo "make basetest run them on the unpatched kernel, with what that is expected to do"
	@echo "make shell    an interactive shell on the patched kernel"
	@echo "make guest CMD='COMMAND...'"
	@echo "              run a command of this machine on it (GUEST='...': options of lab/guest.py)"
	@echo "make image    build a kernel and print its path"
	@echo "              (TREE=base|patched FLAVOR=prod|debug|rt|fuzz|lean; TREE=patched FLAVOR=prod"
	@echo "              unless told, for run, shell and guest FLAVOR=lean)"
	@echo "make base     install and unpack the unpatched source to build/base/"
	@echo "make tree     the same with our files and patches on it, build/tree/"
	@echo "make fixes    apply fixes of bugs to the unpatched source, test each before and after"
	@echo "              (DEBUG=1: also those that need fault injection)"
	@echo "make deb      build Debian packages of the patched kernel, in build/deb/"
	@echo "              (FLAVOR=cloud|generic: Debian's configuration for cloud machines, which is"
	@echo "              taken unless told, or for all; both with modules)"
	@echo "make trial    install them in Debian 12 and 13, in QEMU, boot, test and remove them"
	@echo "make bench    compare the patched kernel's costs with the unpatched one's"
	@echo "              (PROGRAMS=1: of whole programs; SURVEY=1: which programs call mremap at all;"
	@echo "              ARCH=arm64: on emulated arm64 kernels)"
	@echo "make matrix   compile in many configurations and for other architectures"
	@echo "make arm64    run tests on an arm64 kernel (PAGES=4k|16k|64k: its size of a page)"
	@echo "make docs     build the documentation and check it"
	@echo "make series   write our changes as a patch series"
	@echo "              (FROM='Name <address>': whom the mails come from)"
	@echo "make check    check the sources themselves"
	@echo "make upstream what changed upstream in the files that we replace or patch"
	@echo "make clean    remove build/, all that was made"
	@echo "BASE=7.3      for base, image, shell, guest, basetest, fixes, upstream: another unpatched kernel"
	@echo "CCACHE_DIR    where compiled objects are kept (as ccache has it unless set)"

base:
	@lab/base.sh

tree: base
	@lab/tree.py

image:
	@lab/image.sh '$(TREE)' '$(or $(FLAVOR),prod)'

run: export ALL := $(ALL)
run:
	@lab/run.sh '$(TREE)' '$(small)'

boot = image=$$(lab/image.sh '$(TREE)' '$(small)' | tail -n 1) && test -n "$$image" && \
	lab/guest.py --image "$$image" --root host

shell:
	@lab/deps.sh build guest
	@$(boot) $(GUEST) --interactive -- bash

# As CMD is written: what looks like a variable in there is the shell's.
guest: export COMMAND = $(value CMD)
guest:
	@test -n "$$COMMAND" || { echo "usage: make guest CMD='COMMAND...'" >&2; exit 1; }
	@lab/deps.sh build guest
	@$(boot) $(GUEST) -- sh -c "$$COMMAND"

matrix:
	@lab/matrix.py

basetest:
	@lab/test.sh --base

bench: export PROGRAMS := $(PROGRAMS)
bench: export SURVEY := $(SURVEY)

bench:
	@$(if $(filter arm64,$(ARCH)),lab/arm64.sh --bench,lab/bench.sh)

arm64: export PAGES := $(PAGES)
test soak fuzz cover series check upstream docs arm64 trial:
	@test -x lab/$@.sh || { echo "make $@ is not there yet" >&2; exit 1; }
	@lab/$@.sh

fixes:
	@lab/fixes.py $(if $(DEBUG),--debug)

deb:
	@lab/deb.sh '$(or $(FLAVOR),cloud)'

clean:
	rm -rf build
