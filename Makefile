# Every task a person runs. `make help` lists them; continuous integration calls the same targets.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

CARGO ?= cargo
# Where the key of the development enclave lives: `software` or `softhsm`.
TOKEN ?= software
# cargo-nextest runs tests side by side with a time limit each; plain cargo does where it is not installed.
NEXTEST := $(shell command -v cargo-nextest >/dev/null && echo yes)
NEXTEST_PROFILE := $(if $(CI),ci,default)

# Always the whole workspace: with fewer packages, cargo chooses other features for shared dependencies and compiles them again.
# The programs under test are up to date when this is set; see tests/src/repository.rs.
BUILT := SALLYPORT_BUILT=1

# The builder of images: Python of this machine, everything that decides a byte in a tree of locked tools.
IMAGE := PYTHONPATH=image PYTHONDONTWRITEBYTECODE=1 python3 -m build
MACHINES := PYTHONPATH=image PYTHONDONTWRITEBYTECODE=1 python3 -m boot
IMAGE_OPTIONS := $(if $(KEYS),--keys $(KEYS)) $(if $(PACKAGES),--packages $(PACKAGES)) $(if $(KEEP),--keep $(KEEP)) $(if $(SIGNATURES),--signatures $(SIGNATURES)) $(if $(BINARIES),--binaries $(BINARIES)) $(if $(TOKENS),--tokens $(TOKENS)) $(if $(filter any,$(RUST)),--any-rust)

.PHONY: help
help: ## Show this list
	@printf 'Sallyport: make TARGET\n\n'
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'
	@printf '\nStart with "make run" (a box of your own) or "make test" (prove it).\n'



.PHONY: run
run: ## Start a development enclave with Matrix over HTTPS on this machine (TOKEN=softhsm for SoftHSM2)
	@.ci/need build $(if $(filter softhsm,$(TOKEN)),token)
	$(CARGO) build --locked --workspace --bins
	@$(BUILT) TOKEN=$(TOKEN) exec target/debug/dev-enclave

.PHONY: demo
demo: ## Two enclaves without a common network hold an encrypted conversation; prints the transcript
	@.ci/need build token clients demo stick
	$(CARGO) build --locked --workspace --bins
	@$(BUILT) target/debug/demo

.PHONY: bench
bench: ## Measure speed and size with an optimised build
	@.ci/need build
	$(CARGO) build --locked --release --workspace --bins
	@$(BUILT) target/release/bench



.PHONY: test
test: setup ## Install what the tests need, then run all tests and the demo
	@.ci/timed compile 20 $(MAKE) --no-print-directory build
	@.ci/timed tests 15 $(MAKE) --no-print-directory unit
	@.ci/timed "real clients" 5 $(MAKE) --no-print-directory e2e
	@.ci/timed demo 5 $(MAKE) --no-print-directory demo

.PHONY: setup
setup: ## Install what the tests and the demo need
	@.ci/need build token clients demo stick

.PHONY: build
build: ## Compile everything, tests included
	$(CARGO) build --locked --workspace --all-targets

.PHONY: unit
unit: ## Run the tests of the packages, fuzz seeds included
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --locked --profile $(NEXTEST_PROFILE) --workspace -E 'not package(sallyport-e2e)'
else
	$(CARGO) test --locked --workspace --lib --test it --test smoke
endif
	$(CARGO) test --locked --workspace --doc
	PYTHONDONTWRITEBYTECODE=1 python3 -m unittest discover -q -s image -t image

.PHONY: e2e
e2e: ## Run the whole-system tests with real clients and a real token
	@.ci/need build token clients demo stick
	$(CARGO) build --locked --workspace --bins
ifeq ($(NEXTEST),yes)
	$(BUILT) $(CARGO) nextest run --locked --profile $(NEXTEST_PROFILE) --workspace -E 'package(sallyport-e2e)'
else
	$(BUILT) $(CARGO) test --locked --workspace --test e2e
endif

.PHONY: kryoptic
kryoptic: ## Run the tests of the tokens over kryoptic, a second software token, in a Debian 13 chroot (root, 600 MB)
	@.ci/need build
	@.ci/kryoptic

.PHONY: fault-table
fault-table: ## Rewrite the tables of faults and devices in hsm/README.md from the tests that play them
	SALLYPORT_REWRITE_TABLES=1 $(CARGO) test --locked --workspace --test it the_readme_shows_the

.PHONY: fuzz-smoke
fuzz-smoke: ## Run every fuzz target over its seeds and their mutations, without a fuzzer
	$(CARGO) test --locked --workspace --test smoke

.PHONY: image
image: ## Build the disk image of a box (KEYS=, PACKAGES=, KEEP=, BINARIES= folders; TOKENS=opensc,tpm2,softhsm,vendor:FOLDER; RUST=any)
	@.ci/need image
	@$(IMAGE) image $(IMAGE_OPTIONS)

.PHONY: image-lock
image-lock: ## Renew the locks of packages and toolchain that images are made of and with
	@.ci/need image
	@$(IMAGE) lock

.PHONY: update-powercut
update-powercut: ## Cut the power at POINTS=200 random points of an update, and see what starts (DISK=, UPDATE=, KEYS=, OUT= for a real image)
	POINTS=$(or $(POINTS),200) DISK=$(abspath $(DISK)) UPDATE=$(abspath $(UPDATE)) KEYS=$(abspath $(KEYS)) OUT=$(abspath $(OUT)) $(CARGO) test --locked --workspace --bin sallyctl power_cut -- --nocapture

.PHONY: image-revoke
image-revoke: ## Make dbx.auth, which revokes the boot programs UKI= (paths) in the firmware of machines (KEYS= folder)
	@.ci/need image
	@$(IMAGE) revoke $(if $(KEYS),--keys $(KEYS)) $(UKI)

.PHONY: image-verify
image-verify: ## Build the image twice, as differently as this machine allows, and compare every artefact bit for bit
	@.ci/need image compare
	@$(IMAGE) verify $(if $(BINARIES),--binaries $(BINARIES))

.PHONY: image-boot
image-boot: ## Boot the image in virtual machines with Secure Boot and a TPM (SCENARIO=names; KEYS=, BINARIES= folders)
	@.ci/need image nio
	@$(MACHINES) $(if $(KEYS),--keys $(KEYS)) $(if $(BINARIES),--sallyctl $(BINARIES)/sallyctl) $(SCENARIO)

.PHONY: image-smoke
image-smoke: ## Build the image with the development programs, start it once, and make it a box (its short test)
	@.ci/need build image
	$(CARGO) build --locked --workspace --bins
	@$(IMAGE) image --binaries target/debug --out target/image-smoke
	@$(MACHINES) --image target/image-smoke --sallyctl target/debug/sallyctl --folder target/image-smoke/vm smoke

.PHONY: check
check: fmt-check lint tidy deny doc ## Formatting, lints, tidiness, dependencies and documentation

.PHONY: fmt
fmt: ## Format the sources
	$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check:
	$(CARGO) fmt --all --check

.PHONY: lint
lint:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

.PHONY: tidy
tidy:
	$(CARGO) test --locked --quiet --workspace --test e2e -- tidy:: dependencies::

.PHONY: deny
deny: ## Check licences, bans, sources and advisories of the dependencies
	@.ci/need build deny
	@.ci/deny

.PHONY: doc
doc: ## Build the documentation of the sources
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --locked --workspace --no-deps --document-private-items

.PHONY: clean
clean: ## Remove the development enclave; compiled files stay
	rm -rf .dev
