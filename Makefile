# What a newcomer needs: `make demo` and `make test`. Both install what they need (as root, Debian 12 or 13).
SHELL := /bin/bash
comma := ,
CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help deps demo test vm vm-all soak lint bless bench bench-quick build static image clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps:
	@.ci/deps

demo: deps ## a node in a network namespace, the real agent, real connections through its rules
	$(CARGO) build --quiet --bin sluice
	$(SUDO) env "PATH=$$PATH" $(CARGO) run --quiet --example demo

test: deps ## every test, then those of `make vm`; needs root for network namespaces
	$(SUDO) env "PATH=$$PATH" $(CARGO) test --no-fail-fast --lib --bins --tests
	$(SUDO) env "PATH=$$PATH" tests/vm/tests $(SUITES)

SUITES ?= bookworm trixie
vm: deps ## the tests of packets and the kernel under Debian's kernels 6.1 and 6.12, in emulated machines (SUITES=bookworm: one)
	$(SUDO) env "PATH=$$PATH" tests/vm/tests $(SUITES)

vm-all: deps ## the same with what takes minutes under emulation
	$(SUDO) env "PATH=$$PATH" tests/vm/tests --all $(SUITES)

EVENTS ?= 1000000
soak: deps ## a million random events (EVENTS=n): incremental equals from-scratch, read back from the kernel
	$(SUDO) env "PATH=$$PATH" SLUICE_EVENTS=$(EVENTS) $(CARGO) test --test kernel -- --nocapture incremental::ten_thousand

lint: ## fmt, clippy, licences and sources of dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --test ipvs --locked -- -D warnings
	.ci/deny

bless: ## write the golden renderings, the pages of the configuration and of metrics, man pages, completions and manifests anew; then look at the difference
	BLESS=1 $(CARGO) test --test golden --test configuration --test deploy
	BLESS=1 $(CARGO) test --lib the_page_of_metrics

bench: deps ## the figures of README.md, with the machine they were taken on (as root, half an hour)
	$(SUDO) env "PATH=$$PATH" CARGO=$(CARGO) .ci/bench

bench-quick: deps ## a little of each, to see that the benches work
	$(SUDO) env "PATH=$$PATH" CARGO=$(CARGO) .ci/bench --quick

build: ## the release binary
	$(CARGO) build --release --bin sluice

# Packed relative relocations (glibc 2.36, so Debian 12) and equal functions once: 0.9 MB less. Rust's own linker, the default
# for x86-64 alone, knows both.
SMALL := $(if $(filter x86_64,$(shell uname -m)),-C link-arg=-Wl$(comma)-z$(comma)pack-relative-relocs -C link-arg=-Wl$(comma)--icf=all)
static: ## the release binary, linked statically: target/x86_64-unknown-linux-gnu/release/sluice
	RUSTFLAGS="-C target-feature=+crt-static $(SMALL)" $(CARGO) build --release --bin sluice --target $$(rustc -vV | awk '/^host/{print $$2}')

image: static ## the image, FROM scratch, and a look into it and at it running: target/image/sluice-VERSION-ARCH.tar
	@.ci/deps image
	$(SUDO) env "PATH=$$PATH" deploy/image/check "$$($(SUDO) env "PATH=$$PATH" deploy/image/build)"

clean: ## what was built
	$(CARGO) clean
