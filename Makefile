# `make demo` shows what redbouncer is for, `make test` checks it. Both install what they need (deploy/install.sh).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help demo check check-otlp test guard lint image deb differential fuzz simulate bench bench-hubs prove-hygiene outages soak

TARGET := $(or $(CARGO_TARGET_DIR),target)
export PATH := $(CURDIR)/target/tools/bin:$(PATH):/usr/sbin:/sbin

help:
	@echo "make demo   a BullMQ backend killed and restarted ten times, directly and through redbouncer. KEEP=1 keeps redbouncer"
	@echo "            running afterwards, with its dashboard"
	@echo "make check  formatting, clippy and unit tests: what to run after every change"
	@echo "make check-otlp  the export of spans, with a collector (feature otlp)"
	@echo "make test   unit and integration tests, real client libraries through redbouncer, and the guard. Run again, it goes on"
	@echo "            where it failed or was interrupted, if no file has changed; FRESH=1 runs all; PARTS=\"clients soak\""
	@echo "make guard  instructions of a request and bytes of an idle client, beside benches/guard.toml; UPDATE=1 writes it"
	@echo "make lint   formatting, clippy, licences and sources of dependencies, spelling, workflows"
	@echo "make image  a static binary and its container image, built, run and saved as target/image/redbouncer.tar"
	@echo "make deb    the Debian package, built and checked, as target/debian/*.deb"
	@echo "make differential  100,000 sequences of commands on each server, directly and through redbouncer"
	@echo "make fuzz   random input for the scanners, the configuration, the state machines and the whole proxy; FUZZ_SECONDS=600"
	@echo "make simulate  the worker, a network and a server in memory, 100,000 seeds of faults; COUNT, SEED, LOG=1"
	@echo "make bench  redbouncer against twemproxy, Envoy (TLS) and a direct connection; curves from 10 to 10,000 clients"
	@echo "make bench-hubs  thousands of blocked clients and subscribers; kills; BullMQ with 220 connections"
	@echo "make outages  BullMQ, Celery, Sidekiq and others through outages of the server, directly and through redbouncer"
	@echo "make soak   BullMQ, ioredis, redis-py and a raw client while clients, hosts, servers and disks fail; SOAK_SECONDS=600"
	@echo "make prove-hygiene  hosts cut off and replaced: what is left on the server, and for how long"

demo:
	@deploy/install.sh build redis network node
	cargo build --release --quiet
	cd deploy/demo
	if [ package-lock.json -nt node_modules/.package-lock.json ]; then
	  npm install --no-save --silent --no-audit --no-fund
	  touch node_modules/.package-lock.json
	fi
	exec node demo.mjs --proxy "$(abspath $(TARGET))/release/redbouncer" $(if $(KEEP),--keep)

# In parts, several at a time: tests/suite says which and when.
test:
	@deploy/install.sh build redis network node python servers guard image manifests prometheus browser terminal
	tests/suite $(if $(FRESH),--fresh) $(PARTS)

# What needs no server. Properties that are tried for long, with thousands of schedules, are left to `make test`.
check:
	@cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo test --quiet --lib -- --skip schedules --skip simulation

# In a directory of its own: the binary of the other tests is without the feature.
check-otlp:
	@deploy/install.sh build redis
	CARGO_TARGET_DIR="$(TARGET)/otlp" cargo test --quiet --features otlp --test otlp
	CARGO_TARGET_DIR="$(TARGET)/otlp" cargo test --quiet --features otlp --lib -- trace endpoint

# Of a release build, as it is shipped. REPEAT measures so often and tells the spread; ONLY="get wake" is some of the cases.
guard:
	@deploy/install.sh build redis guard
	cargo build --release --quiet --bin redbouncer
	benches/guard --proxy "$(abspath $(TARGET))/release/redbouncer" --keep "$(abspath $(TARGET))/guard" \
	  $(if $(UPDATE),--update) $(if $(REPEAT),--repeat "$(REPEAT)") $(if $(ONLY),--only "$(ONLY)")

lint:
	@deploy/install.sh build lint
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings
	if command -v cargo-deny >/dev/null; then cargo deny --all-features --config .config/deny.toml check licenses bans sources; fi
	if command -v typos >/dev/null; then typos; fi
	if command -v actionlint >/dev/null; then actionlint; fi

# As .github/workflows/release.yml builds it. `make test` runs the same test with the debug build.
image:
	@deploy/install.sh build redis image musl
	target="$$(uname -m)-unknown-linux-musl"
	CARGO_PROFILE_RELEASE_STRIP=debuginfo cargo build --release --locked --bin redbouncer --target "$$target"
	tests/deploy/image --binary "$(abspath $(TARGET))/$$target/release/redbouncer" --most-bytes 20000000 \
	  --save "$(abspath $(TARGET))/image/redbouncer.tar"

# cargo-deb builds it from [package.metadata.deb] of Cargo.toml.
deb:
	@deploy/install.sh build deb
	cargo build --release --locked --bin redbouncer
	tests/deploy/deb --binary "$(abspath $(TARGET))/release/redbouncer"

# The long form of tests/it/differential; REDBOUNCER_COUNT, REDBOUNCER_SEED, REDBOUNCER_ONLY (a server) and
# REDBOUNCER_TROUBLE (kills, half-closes …) choose a part of it.
differential:
	@deploy/install.sh build redis servers
	REDBOUNCER_LONG=1 cargo test --release --quiet --test it differential::sequences -- --nocapture

# The long form of what `cargo test fuzzing` does for a moment: FUZZ_SECONDS over all targets, or over FUZZ_TARGETS.
# SANITIZER=none instead of address is faster. The sanitizer and the fuzzer's instrumentation need a nightly toolchain.
fuzz:
	@deploy/install.sh build fuzz
	fuzz/run "$(or $(FUZZ_SECONDS),600)" $(FUZZ_TARGETS)

bench:
	@deploy/install.sh build redis twemproxy envoy
	./benches/run
	./benches/scaling

# The long forms, with a release build: what the short forms in `make test` check is measured here.
bench-hubs:
	@deploy/install.sh build redis node python servers
	cargo build --release --quiet
	for part in hub_load pubsub_hub::thousands hub_model neighbours; do
	  REDBOUNCER_LONG=1 cargo test --release --quiet --test it "$$part" -- --nocapture --test-threads 1
	done
	tests/clients/install
	cd tests/clients
	node bench/workers.mjs --proxy "$(abspath $(TARGET))/release/redbouncer"

# The long forms of the tests about hosts and networks that are cut off: 20 backends, 10 proxies, every state of a peer.
prove-hygiene:
	@deploy/install.sh build redis network servers
	cargo build
	for part in network_partition:: network::; do
	  REDBOUNCER_LONG=1 cargo test --test it "$$part" -- --nocapture --test-threads 2
	done

# The long form of what `make test` does with --quick.
outages:
	@deploy/install.sh build redis node python sidekiq
	cargo build
	tests/clients/install
	tests/clients/outage/run --proxy "$(TARGET)/debug/redbouncer"

# The long form of what `make test` does with --quick: SOAK_SECONDS of faults, and as many more as SOAK_REPLIES tagged replies
# take. SOAK_SEED chooses the order of the faults; SOAK_KEEP is a folder for samples and logs.
soak:
	@deploy/install.sh build redis network node python
	cargo build --release --quiet --bin redbouncer --example tagged
	tests/clients/install
	tests/clients/soak/run --proxy "$(TARGET)/release/redbouncer" --tagged "$(TARGET)/release/examples/tagged" \
	  --seconds "$(or $(SOAK_SECONDS),600)" --replies "$(or $(SOAK_REPLIES),0)" \
	  $(if $(SOAK_SEED),--seed "$(SOAK_SEED)") $(if $(SOAK_KEEP),--keep "$(SOAK_KEEP)")

# The long form of tests in src/fuzzing/simulation: COUNT seeds from SEED on. LOG=1 tells what happens in each.
simulate:
	@REDBOUNCER_COUNT="$(or $(COUNT),100000)" REDBOUNCER_SEED="$(or $(SEED),1)" $(if $(LOG),REDBOUNCER_LOG=1) \
	  cargo test --release --quiet --lib fuzzing::simulation::tests::whatever -- --nocapture
