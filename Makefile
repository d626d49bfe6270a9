# A thin door to meson and ninja: everything is built in build/.
BUILD ?= build
PREFIX ?= /usr/local
NINJA = ninja -C $(BUILD)

.PHONY: all setup run test test-storage test-platform test-limits test-kvm test-boot20 test-kernel test-lockstep test-diff bench install deb test-deb bundle test-bundle clean

all: $(BUILD)/build.ninja
	@$(NINJA)

# Installs what Debian packages are missing; does nothing when all are there.
setup:
	@scripts/setup

$(BUILD)/build.ninja: | setup
	@meson setup $(BUILD) --prefix $(PREFIX)

run: all
	@scripts/run

test: all
	@scripts/test $(BUILD)

# Ten million random instructions, from a fresh seed that is printed.
test-diff: all
	@seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); \
	for engine in reference soft; do \
		$(BUILD)/tests/diff/insn_fuzz --engine $$engine --seed $$seed --count 5000000 \
			--progress && \
		$(BUILD)/tests/diff/insn_fuzz --engine $$engine --seed $$seed --count 5000000 --mode 32 \
			--progress || exit 1; \
	done

# A million random requests, ten thousand power cuts, a failure at each call, a thousand killed
# processes, from fresh seeds that are printed; disk locks over NFS, in a guest. The first is about what
# images hold and not about the host's disk, whose flushes would take nearly all of its time: it runs
# in memory where there is room.
test-storage: all
	@seed=$$(od -An -N4 -tu4 /dev/urandom | tr -d ' '); echo "seed $$seed"; \
	room=$$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1); \
	memory=$${TMPDIR:-/tmp}; [ "$${room:-0}" -lt 1048576 ] || memory=/dev/shm; \
	TMPDIR=$$memory $(BUILD)/tests/block/oracle --ops 100000 --stops 40 --seed $$seed && \
	$(BUILD)/tests/block/crash --cuts 10000 --seed $$seed && \
	$(BUILD)/tests/block/failure --seed $$seed && \
	$(BUILD)/tests/block/kill --kills 200 --seed $$seed && \
	CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=10000 PYTHONDONTWRITEBYTECODE=1 \
		tests/e2e/test_shared_storage.py

# The daemon killed before and after each of its steps, each time that one comes, a thousand random
# operations with kills among them, 500 machines created and deleted, 50 at a time, 10,000 connections
# that mean harm: about half an hour.
test-platform: all
	@CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=10000 PYTHONDONTWRITEBYTECODE=1 \
		tests/e2e/test_platform.py --full
	@CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=10000 PYTHONDONTWRITEBYTECODE=1 \
		tests/e2e/test_api.py --flood

# What machines get of a CPU by their weights and caps, by the clock: a minute. What is measured comes
# before all else that the host does, so others may work meanwhile.
test-limits: all
	@export CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=10000 PYTHONDONTWRITEBYTECODE=1; \
	tests/e2e/test_limits.py --full; here=$$?; tests/e2e/test_cgroup2.py && exit $$here

# A Debian kernel on KVM: minutes where KVM emulates each instruction.
test-kvm: all
	@CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=10000 PYTHONDONTWRITEBYTECODE=1 \
		tests/e2e/test_kvm_boot.py

# 20 boots of Debian in a row with 1 and with 2 vCPUs: about an hour on a small host.
test-boot20: all
	@meson test -C $(BUILD) --no-rebuild --print-errorlogs boot20

# What Linux has that changes its own code, then stress that checks itself, with 1 and with 2 vCPUs;
# CORBEL_KERNEL_SECONDS is how long the stress lasts with each (an hour).
test-kernel: all
	@export CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=20000 PYTHONDONTWRITEBYTECODE=1; \
	tests/e2e/test_kernel.py; features=$$?; tests/e2e/test_kernel_soak.py && exit $$features

# Busybox and Debian, from the first instruction to the login prompt, each instruction on the
# reference too: an hour or less.
test-lockstep: all
	@export CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=20000 PYTHONDONTWRITEBYTECODE=1; \
	tests/e2e/test_lockstep.py busybox Debian

bench: all
	@bench/run --document docs/benchmarks.md
	@bench/block --document docs/benchmarks.md

install: all
	@meson install -C $(BUILD) --no-rebuild

# build/corbel_VERSION_amd64.deb.
deb: | setup
	@scripts/deb $(BUILD)

# The package in roots of its own, with systemd and without: as root, with Debian's archive.
test-deb: all
	@first=$$(scripts/deb $(BUILD)) && second=$$(VERSION_SUFFIX=+1 scripts/deb $(BUILD)) && \
	CORBEL_DEBS="$$first $$second" CORBEL_BUILD=$(abspath $(BUILD)) CORBEL_E2E_LIMIT=10000 \
		PYTHONDONTWRITEBYTECODE=1 tests/e2e/test_deb.py

# build/corbel-VERSION-x86_64: one static file for any x86-64 Linux.
bundle: | setup
	@scripts/bundle $(BUILD)

# That file, alone in an empty root: a guest from it, and what it does when there is no room for one.
test-bundle: all
	@file=$$(scripts/bundle $(BUILD)) && CORBEL_BUNDLE=$$file CORBEL_BUILD=$(abspath $(BUILD)) \
		CORBEL_E2E_LIMIT=10000 PYTHONDONTWRITEBYTECODE=1 tests/e2e/test_bundle.py

clean:
	@rm -rf $(BUILD) build-asan build-clang
