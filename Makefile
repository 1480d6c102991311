# What a developer does. The Go tool alone is enough for build and dev; test brings PostgreSQL 18 and
# Kafka by itself and says which Debian packages it misses (.ci/run installs them).

GO       ?= go
BENCH    ?=
FUZZTIME ?= 30s
TIMEOUT  ?= 30m

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TOOL    := $(GO) tool -modfile=internal/tools/go.mod

.DEFAULT_GOAL := help
.PHONY: help build dev test faults lint fmt tidy tidy-check bench bench-compare fuzz

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build bin/auditsink, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/auditsink ./cmd/auditsink

dev: build ## Run everything on this machine, with an embedded broker and database
	@bin/auditsink dev

# The packages that take longest come first, so that none of them is left to run alone at the end.
LONGEST := ./partitions ./internal/faults ./cmd/auditsink ./internal/query ./internal/bench ./consumer ./internal/convert ./sink ./internal/server

test: ## Run every test with the race detector, on real servers
	$(GO) test -race -shuffle=on -p 2 -timeout $(TIMEOUT) $(LONGEST) ./...

# FAULTS=long makes all of it, within an hour or so; FAULTS_SEED=N repeats a run, and FAULTS_RUN=REGEXP chooses scenarios.
faults: ## Run the fault suite; FAULTS=long for all of it, FAULTS_SEED=N for a run again, FAULTS_RUN=REGEXP for a part
	$(GO) test ./internal/faults -v -count=1 -timeout $(if $(filter long,$(FAULTS)),120m,20m)

lint: ## Run the linters (the first time builds them, which takes minutes)
	$(TOOL) golangci-lint run

fmt: ## Format the code
	$(TOOL) golangci-lint fmt

tidy: ## Bring go.mod and go.sum up to date
	$(GO) mod tidy

tidy-check: ## Fail when go.mod or go.sum is not up to date
	$(GO) mod tidy -diff
	$(GO) mod verify

bench: ## Run the benchmark; BENCH='…' are its arguments
	$(GO) run ./internal/bench $(BENCH)

bench-compare: ## Run the benchmark beside Debezium's JDBC sink; BENCH as for bench
	$(GO) run ./internal/bench -scenarios compare $(BENCH)

fuzz: ## Run each fuzz test for FUZZTIME (30s)
	@set -e; grep -rEoH --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | \
	while IFS=: read -r file function; do \
		echo "$${function#func } in $$(dirname "$$file")"; \
		$(GO) test -run '^$$' -fuzz "^$${function#func }\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null; \
	done
