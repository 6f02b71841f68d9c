# The doors to the project. `make` alone says what there is.
.DEFAULT_GOAL := help

.PHONY: help
help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## swap the FUSE stack under a running load, then roll a slow candidate back, with a table of what it cost (a build, then half a minute)
	@scripts/setup.sh
	cargo run --release --locked -- demo

.PHONY: test
test: ## install what is missing; format, lints, every test (30 minutes at most)
	@scripts/test.py

.PHONY: test-full
test-full: ## all that `make test` runs, and the long tests
	@scripts/test.py --tier full

.PHONY: soak
soak: ## 10,000 switches and more under load
	@scripts/test.py --tier soak

.PHONY: build
build: ## the program, optimised: target/release/lighthouse-fs
	cargo build --release --locked

.PHONY: fmt
fmt: ## format the code
	cargo fmt

.PHONY: lint
lint: ## format check, clippy, shellcheck, dependencies
	@scripts/test.py --tier lint

.PHONY: doc
doc: ## the code's documentation: target/doc/lighthouse_fs/index.html
	cargo doc --locked --no-deps

.PHONY: clean-mounts
clean-mounts: ## abort and unmount what tests left under /tmp
	@scripts/traces.py --clean
