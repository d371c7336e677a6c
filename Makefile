# Godwit's toolbox. Everything that a target needs it sets up itself.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# For example: make build VERSION=v1.2.3
VERSION =
LDFLAGS     = -s -w $(if $(VERSION),-X godwit.dev/godwit/internal/cli.linkedVersion=$(VERSION))
QEMU72      = $(CURDIR)/.cache/qemu72/qemu-system-x86_64

# For example: make test TESTFLAGS='-run TestLab -v'
TESTFLAGS =
PACKAGES  = ./...
# For example: make demo DEMOFLAGS='--json'
DEMOFLAGS =
# For example: make bench BENCHFLAGS='client --runs 4'
BENCHFLAGS =
# For example: make sim SIMFLAGS='--first 10001'
SIMFLAGS =
# For example: make faults FAULTSFLAGS='--victim all-servers --state copying'
FAULTSFLAGS =
# For example: make postgres POSTGRESFLAGS='--moves 50'
POSTGRESFLAGS =
# For how long each fuzz target runs, for example: make fuzz FUZZTIME=1m
FUZZTIME = 10s

.DEFAULT_GOAL = help
.PHONY: help setup build demo test bench bench-volume bench-disk bench-tcp bench-forecast explore sim faults soak postgres fuzz lint generate qemu72 clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## make this machine ready for demo and test (Debian, as root)
	@MAKE_GOAL=$(or $(firstword $(MAKECMDGOALS)),setup) scripts/setup

build: ## build bin/godwit, static
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/godwit ./cmd/godwit

demo: setup build ## a fleet on this machine: migrate a VM there and back
	bin/godwit demo $(DEMOFLAGS)

# The limit is for each package: go test has none for all of them together. It is
# there to end a test that hangs, with a trace of where. All of them are meant to
# take less than 25 minutes on two cores; nothing but looking at the time sees to
# that.
test: setup ## vet and run all tests, on real kernels and QEMUs
	@scripts/setup qemu72-if-debian12
	go vet $(PACKAGES)
	GODWIT_QEMU72=$$(ls $(QEMU72) 2>/dev/null) go test -race -timeout 25m $(TESTFLAGS) $(PACKAGES)

bench: setup build ## measure; prints tables and writes out/*.json
	go run ./test/bench $(BENCHFLAGS)

bench-volume: setup build ## the volume server against others; writes out/bench-volume.json
	go run ./test/bench $(BENCHFLAGS) volume

bench-disk: setup build ## what a local disk costs a migration; writes out/bench-disk.json
	go run ./test/bench $(BENCHFLAGS) disk

bench-tcp: setup build ## iperf3 through migrations; writes out/bench-tcp.json and .svg
	@scripts/setup tcp
	go run ./test/bench $(BENCHFLAGS) tcp

bench-forecast: setup build ## what was foretold of migrations and what came; writes out/bench-forecast.json
	go run ./test/bench $(BENCHFLAGS) forecast

explore: ## walk through all states of a migration with two faults; writes out/explore.json
	go run ./test/explore

sim: build ## simulate ten thousand fleets under faults; writes out/sim.json
	bin/godwit sim --check-bugs
	bin/godwit sim --seeds 10000 $(SIMFLAGS)

faults: setup build ## do harm in every state of migrations; prints a table and writes out/faults.json
	go build -o bin/lab-etcd ./internal/lab/etcd
	go run ./test/faults $(FAULTSFLAGS)

soak: setup build ## 200 migrations back to back under random faults; writes out/soak.json
	go build -o bin/lab-etcd ./internal/lab/etcd
	go run ./test/faults --soak 200 $(FAULTSFLAGS)

postgres: setup build ## PostgreSQL in a VM that moves ten times; writes out/postgres.json
	@scripts/setup postgres
	go run ./test/postgres $(POSTGRESFLAGS)

# Their seeds run with the other tests.
fuzz: ## feed every decoder with what nobody would send, one after the other
	@for file in $$(grep -rl '^func Fuzz' --include='*_test.go' internal test); do \
	    for target in $$(sed -n 's/^func \(Fuzz[A-Za-z]*\)(.*/\1/p' $$file); do \
	        echo "$$target in $$(dirname $$file)"; \
	        go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file) || exit 1; \
	    done; done

lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "not gofmt'ed: $$unformatted"; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

generate: ## make generated code anew (needs clang and libbpf-dev)
	go generate ./...

qemu72: ## get QEMU 7.2 beside the installed one, for tests
	@scripts/setup qemu72

clean: ## remove what was built
	rm -rf bin out

distclean: clean ## remove what was downloaded, too
	rm -rf .cache
