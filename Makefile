# What to type. `make` alone lists it.

CARGO ?= cargo
# How the tests are built and which run; for one crate: make test TESTS="-p croft-api"
TESTS ?= --workspace
PROFILE ?= --release
BENCH_ARGS ?=
# For scripts/guests/run, for example: --times 1 --seconds 30
GUESTS_ARGS ?= --times 10
FUZZ_TARGETS ?= execute loader devices protocol virtqueue virtio vsock console nic qcow2 saved bootdisk share image layer
# Seconds for each target.
FUZZ_TIME ?= 60

export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help build demo test test-kvm test-guests test-server bench fuzz fmt fmt-check clippy doc-test clean clean-cache

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## Build everything, optimised
	scripts/install-deps build
	$(CARGO) build --release --workspace
	CARGO="$(CARGO)" scripts/build-static

demo: ## Build a Debian 12 server, start it, and give a shell in it
	@scripts/install-deps build image
	$(CARGO) build --release -p croft -p croft-vmm
	CARGO="$(CARGO)" scripts/build-static
	@scripts/demo/run

test: ## Run all tests; fetches the kernels they boot
	scripts/install-deps test $(if $(filter --workspace,$(TESTS)),kvm)
	scripts/fetch-kernels cloud generic
	scripts/fetch-busybox
	CARGO="$(CARGO)" PROFILE="$(PROFILE)" scripts/build-static
	$(CARGO) build $(PROFILE) $(TESTS)
	$(CARGO) test --no-fail-fast $(PROFILE) $(TESTS)
	$(if $(filter --workspace,$(TESTS)),PROFILE="$(PROFILE)" SELECT="$(TESTS)" scripts/nested/test)

test-kvm: ## Run the tests that need KVM, in a nested machine if there is none
	scripts/install-deps kvm
	CARGO="$(CARGO)" PROFILE="$(PROFILE)" scripts/build-static
	PROFILE="$(PROFILE)" scripts/nested/test

test-guests: ## Run the hard guests, ten times; takes hours
	scripts/install-deps guests
	scripts/fetch-kernels cloud
	scripts/guests/image
	$(CARGO) build --release -p croft -p croft-vmm
	CARGO="$(CARGO)" scripts/build-static
	scripts/guests/run $(GUESTS_ARGS)

test-server: ## Check whole servers: networks, ssh and apt by them, a kernel by apt, disks after kills; takes an hour
	scripts/install-deps build image server
	$(CARGO) build --release -p croft -p croft-vmm
	CARGO="$(CARGO)" scripts/build-static
	scripts/server/network
	scripts/server/upgrade
	scripts/server/verify
	[ "$$(id -u)" != 0 ] || scripts/server/networks
	[ "$$(id -u)" != 0 ] || scripts/server/containers
	[ "$$(id -u)" != 0 ] || scripts/server/managed

bench: ## Measure Croft beside its peers
	scripts/install-deps bench image
	scripts/fetch-kernels cloud generic
	scripts/fetch-busybox
	-scripts/bench/debian-image
	CARGO="$(CARGO)" scripts/bench/build-guest
	CARGO="$(CARGO)" scripts/build-static
	$(CARGO) build --release -p croft -p croft-vmm -p croft-bench
	-scripts/server/image
	$(CARGO) run --release -p croft-bench -- $(BENCH_ARGS)

fuzz: ## Fuzz every target for FUZZ_TIME seconds
	scripts/install-deps fuzz
	$(CARGO) run --release -p croft-fuzz-targets --example seeds -- fuzz/corpus
	set -e; cd fuzz; for target in $(FUZZ_TARGETS); do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target -- \
			-max_total_time=$(FUZZ_TIME) -max_len=4096 -timeout=60; \
	done

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check: ## Check the format
	$(CARGO) fmt --all -- --check

clippy: ## Lint
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings

doc-test: ## Build the documentation and run its examples
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --workspace --no-deps
	$(CARGO) test $(PROFILE) --workspace --doc

clean: ## Remove what was built
	$(CARGO) clean

clean-cache: ## Remove what was downloaded
	rm -rf .cache
