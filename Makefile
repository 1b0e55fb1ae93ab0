# Everything a newcomer types: `make demo` shows it, `make test` checks it. Both install what they need from Debian.

export CARGO_TERM_COLOR ?= auto
# Build output outlives the clone, so that the next run reuses it.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/rhumb/target

.PHONY: demo test lint bench build packages

demo: packages build ## the shop and a database on a three-node cluster, checked as they come up
	examples/demo.sh "$(CARGO_TARGET_DIR)/release/rhumb"

test: packages ## the whole test suite: real namespaces, containers and clients
	cargo nextest run --workspace --profile ci
	cargo test --workspace --doc --quiet

lint: ## formatting, clippy and documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet

bench: packages ## figures of this machine, as docs/benchmarks.md explains them
	cargo build --release --locked --package rhumb --package client --package node --bins --examples
	bench/run.py --rhumb "$(CARGO_TARGET_DIR)/release/rhumb"

build: ## the binary
	cargo build --release --locked --package rhumb

packages: ## what tests and demo need from Debian; needs root
	tools/install-packages.sh
