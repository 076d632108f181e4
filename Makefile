# What to type. `make` alone lists it.

CARGO ?= cargo
# How the tests are built and which run; for one crate: make test TESTS="-p croft-api"
TESTS ?= --workspace
PROFILE ?= --release
BENCH_ARGS ?=

export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help build demo test bench fmt fmt-check clippy doc-test clean clean-cache

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

build: ## Build everything, optimised
	scripts/install-deps build
	$(CARGO) build --release --workspace

demo: ## Boot a stock Debian kernel to a shell on this terminal
	@scripts/install-deps build
	$(CARGO) build --release -p croft -p croft-monitor -p croft-vmm
	@scripts/demo/run

test: ## Run all tests; fetches the kernels they boot
	scripts/install-deps test
	scripts/fetch-kernels cloud generic
	$(CARGO) build $(PROFILE) $(TESTS)
	$(CARGO) test $(PROFILE) $(TESTS)

bench: ## Measure Croft beside its peers
	scripts/install-deps bench
	scripts/fetch-kernels cloud
	$(CARGO) build --release --workspace
	$(CARGO) run --release -p croft-bench -- $(BENCH_ARGS)

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
