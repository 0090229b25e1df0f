# Sconce: build, run and check. `make` alone lists what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

RUST_VERSION := 1.88
PYTHON_VERSION := 3.9
BINARY = $${CARGO_TARGET_DIR:-target}/release/sconce

# Extra arguments: make run ARGS="--grpc-address 0.0.0.0:8001", make test ARGS=reload
ARGS ?=

# crates/torch/libtorch.py decides which libtorch, from LIBTORCH alone, and checks its version itself.
export LIBTORCH_BYPASS_VERSION_CHECK := 1
with_libtorch = LIBTORCH=$$(python3 crates/torch/libtorch.py); export LIBTORCH; \
  unset LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB
# What tests/clients/setup.sh says: SCONCE_TEST_... for each client, or SCONCE_SKIP_...
with_clients = CLIENTS=$$(tests/clients/setup.sh); set -a; eval "$$CLIENTS"; set +a

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

## Use

.PHONY: run
run: build ## Serve model_repository/ (ARGS="..." adds options; Ctrl-C stops)
	@exec "$(BINARY)" serve --model-repository model_repository $(ARGS)

.PHONY: build
build: needs-rust needs-cxx needs-python ## Build the binary, target/release/sconce
	@$(with_libtorch); cargo build --release --bin sconce

.PHONY: demo
demo: build ## Classify a held-out digit with the binary, and with a Python client against the running server
	@$(with_clients); tests/demo.sh $(ARGS)

.PHONY: libtorch
libtorch: needs-python ## Obtain libtorch and print its path
	@python3 crates/torch/libtorch.py

## Check

.PHONY: test
test: needs-rust needs-cxx needs-python ## Run every test, without and with libtorch, and the clients
	@$(with_libtorch); $(with_clients)
	echo "tests without libtorch (on the fake backend)"
	cargo test --workspace --exclude sconce-torch --no-default-features $(ARGS)
	echo "tests with libtorch"
	cargo test --package sconce --package sconce-server --package sconce-torch --features sconce/reference $(ARGS)

.PHONY: soak
soak: needs-rust needs-cxx needs-python ## Change models on disk for SECONDS=600, while clients check every answer
	@$(with_libtorch)
	SCONCE_SOAK_SECONDS=$(or $(SECONDS),600) cargo test --package sconce --test it -- --nocapture changes::soak

.PHONY: lint
lint: needs-rust needs-rust-tools needs-cxx needs-python edges ## Check format, lints and crate edges
	@cargo fmt --all --check
	$(with_libtorch)
	cargo clippy --workspace --exclude sconce-torch --no-default-features --all-targets -- -D warnings
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: bench
bench: needs-rust needs-cxx needs-python ## Measure: every number is a ratio within one run
	@$(with_libtorch); cargo bench --package sconce --bench '*' $(ARGS)

.PHONY: bench-memory
bench-memory: needs-rust needs-cxx needs-python ## Measure memory over 2,000 reloads; make bench does 300
	@$(with_libtorch); SCONCE_BENCH_RELOADS=2000 cargo bench --package sconce --bench reload -- memory

.PHONY: fmt
fmt: needs-rust needs-rust-tools ## Format the code
	@cargo fmt --all

.PHONY: clean
clean: needs-rust ## Remove what was built (libtorch stays in its cache)
	@cargo clean

# What a crate must not depend on directly; ARCHITECTURE.md says why. A name also stands for its family:
# `tokio` forbids tokio-stream. An unknown name on either side fails, because then nothing would be checked.
.PHONY: edges
edges: needs-rust
	@forbid() {
	  package=$$1; shift
	  tree=$$(cargo tree --quiet --package "$$package" --edges normal --depth 1 --prefix none \
	    $${features---all-features} --target all) || { echo "make: $$package: cannot list its dependencies." >&2; exit 1; }
	  direct=$$(tail -n +2 <<<"$$tree" | cut -d ' ' -f 1)
	  for name in "$$@"; do
	    grep -qx "name = \"$$name\"" Cargo.lock || { echo "make: edges: no crate is named $$name." >&2; exit 1; }
	    if found=$$(grep -xE "$$name(-.*)?" <<<"$$direct"); then
	      echo "make: $$package must not depend on" $$found "(see \"edges\" in the Makefile)." >&2; exit 1
	    fi
	  done
	}
	forbid sconce-proto       sconce
	forbid sconce-repository  tokio tonic tch torch-sys sconce
	forbid sconce-engine      tonic prost tch torch-sys sconce-proto sconce-torch sconce-server
	forbid sconce-torch       tokio tonic prost sconce-repository sconce-proto sconce-server
	forbid sconce-server      tch torch-sys
	# Its optional tch is the tests' reference, and is not in what is built to serve.
	features= forbid sconce   tch torch-sys tonic prost

# Prerequisites: one sentence each, before anything starts.
.PHONY: needs-rust needs-rust-tools needs-cxx needs-python
needs-rust:
	@version=$$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || version=
	if [ -z "$$version" ] || ! rustc --version >/dev/null 2>&1; then
	  echo "make: cargo is missing: install Rust $(RUST_VERSION) or newer from your distribution or rustup" \
	    "and run make again." >&2; exit 1
	elif ! printf '%s\n' $(RUST_VERSION) "$$version" | sort -CV; then
	  echo "make: Rust $(RUST_VERSION) or newer is needed and this is $$version: install one with rustup" \
	    "and run make again." >&2; exit 1
	fi

needs-rust-tools: needs-rust
	@for tool in fmt clippy; do
	  cargo "$$tool" --version >/dev/null 2>&1 || {
	    echo "make: cargo $$tool is missing: install rustfmt and clippy (rustup component add rustfmt clippy," \
	      "or from your distribution) and run make again." >&2; exit 1; }
	done

needs-cxx:
	@for compiler in "$${CC:-cc}" "$${CXX:-c++}"; do
	  command -v $${compiler%% *} >/dev/null || {
	    echo "make: the compiler $$compiler is missing: install a C++ compiler (Debian: apt-get install g++)" \
	      "and run make again." >&2; exit 1; }
	done

needs-python:
	@if ! python3 -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(PYTHON_VERSION)".split("."))))' \
	    2>/dev/null; then
	  echo "make: python3 is missing or older than $(PYTHON_VERSION): install a newer one (Debian: apt-get" \
	    "install python3) and run make again." >&2; exit 1
	elif ! python3 -c 'from importlib.util import find_spec as f; f("pip") or f("ensurepip") or exit(1)'; then
	  echo "make: this python3 has neither pip nor venv: install them (Debian: apt-get install python3-venv)" \
	    "and run make again." >&2; exit 1
	fi

.ONESHELL:
