# Needed: a Rust toolchain, a C compiler and make. What else is needed (RabbitMQ, PostgreSQL, linters) comes by itself
# where it can be installed, and says what to do where it cannot.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## the program, optimised: target/release/paceline
	cargo build --release --locked

.PHONY: demo
demo: ## the whole system at work in under a minute, nothing else installed
	cargo build --release --locked
	@$(TARGET)/release/paceline demo

# TEST narrows it down: make test TEST='--test pacing'. Services that already run are used, and left running.
# Most tests wait more than they compute: for processes, windows, time limits.
.PHONY: test
test: export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
test: ## every test, against real RabbitMQ and PostgreSQL
	@mkdir -p $(TARGET)
	@deploy/services runtimes >/dev/null && deploy/services browser >/dev/null
	@PACELINE_PYTHON=$$(deploy/services python); export PACELINE_PYTHON; code=0; \
	deploy/services run deploy/test $(TEST) 2>&1 | tee $(TARGET)/test.log || code=$$?; \
	deploy/lint summary <$(TARGET)/test.log; exit $$code

# ROUNDS=100 SEED=1 MODE=embedded|scaled|both JOBS=2000. A round that fails prints its seed; SEED=… runs it again.
# PROFILE=release breaks an optimised build.
.PHONY: chaos
chaos: ## kill, freeze, cut and restart everything at random, then ask whether every promise was kept
	CHAOS_ROUNDS=$(ROUNDS) CHAOS_SEED=$(SEED) CHAOS_MODE=$(MODE) CHAOS_JOBS=$(JOBS) \
	deploy/services run cargo test --locked $(if $(filter release,$(PROFILE)),--release) --test chaos -- --ignored --nocapture rounds

.PHONY: lint
lint: ## format, clippy, documentation, dependencies, deployment, scripts, instruction counts
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps
	deploy/lint scripts
	deploy/lint deployment
	deploy/lint dependencies
	deploy/lint instructions

# A part of lint. ACCEPT=1 takes the counts of now for good: commit benches/instructions.txt.
.PHONY: instructions
instructions: ## count what runs for every job, in instructions; more than 10 % over what was accepted fails
	deploy/lint instructions $(if $(ACCEPT),accept)

.PHONY: bench
bench: ## throughput, CPU time, memory, writes and latency of both modes, beside the floor
	deploy/services run cargo run --quiet --release --locked -- bench $(BENCH)

.PHONY: bench-pacing
bench-pacing: ## how much of an allowed rate is used, and that nothing is refused; fails where a target is missed
	deploy/services run cargo run --quiet --release --locked -- bench pacing $(BENCH)

# FILES narrows it down (window.rs signal/fields.rs), MISSED=1 tries only what was missed the last time.
.PHONY: mutants
mutants: ## change the pacing in every way, one at a time: does a test notice? MUTANTS_MINUTES=240 at most
	tests/mutants/run.py $(if $(MISSED),--missed) $(FILES)

# FROM is the first seed. A seed that fails is printed: PACING_SEED=… cargo test --test pacing_crashes runs it again.
.PHONY: soak-pacing
soak-pacing: ## owners that crash and take over, hours of virtual time, new seeds; SOAK_SECONDS=1200
	PACING_SOAK_SECONDS=$(or $(SOAK_SECONDS),1200) PACING_SOAK_FROM=$(or $(FROM),$(shell date +%s)) \
		nice -n 19 cargo test --locked --release --test pacing_crashes soak -- --ignored --nocapture

.PHONY: services-up
services-up: ## start RabbitMQ and PostgreSQL for tests; then: eval "$(deploy/services env)"
	deploy/services up

.PHONY: services-down
services-down: ## stop them; their data stays
	deploy/services down

.PHONY: clean
clean: ## remove what was built, and the services with their data
	deploy/services down --purge
	cargo clean
