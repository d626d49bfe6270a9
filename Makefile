# A thin door to meson and ninja: everything is built in build/.
BUILD ?= build
PREFIX ?= /usr/local
NINJA = ninja -C $(BUILD)

.PHONY: all setup run test test-kvm bench install clean

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

test-kvm: all
	@meson test -C $(BUILD) --no-rebuild --suite kvm-boot --print-errorlogs

bench: all
	@bench/run

install: all
	@meson install -C $(BUILD) --no-rebuild

clean:
	@rm -rf $(BUILD) build-asan build-clang
