# The only commands a person needs. `make run` and `make test` install what they need into .venv.

PYTHON ?= python3
UV_VERSION := 0.13.8
# uv, with the user's configuration of pip; pip itself if uv cannot install.
UV := $(PYTHON) checks/uv.py
PORT ?= 8000

.PHONY: setup setup-dev setup-browser setup-pgbouncer setup-tool-chains setup-verifiers setup-deployment-tools setup-clock setup-ha run test test-ha faults soak check check-fast public-surface \
  reference-pages docs demo bench bench-docs picture profile dist lock clean

# `venv` without ensurepip exists on some Debian machines; pip then installs into it from outside.
.venv/.uv: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed. Name one: make run PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear .venv 2>/dev/null || $(PYTHON) -m venv --clear --without-pip .venv
	@{ if [ -x .venv/bin/pip ]; then .venv/bin/pip install -q --disable-pip-version-check uv==$(UV_VERSION); \
	else $(PYTHON) -m pip --python .venv/bin/python install -q uv==$(UV_VERSION); fi; } || \
	  echo "uv could not be installed. pip is used instead, which takes longer."
	@touch $@

.venv/.run: .venv/.uv checks/uv.py requirements/run.lock pyproject.toml
	@$(UV) pip install -q --compile-bytecode --require-hashes -r requirements/run.lock
	@$(UV) pip install -q --no-deps -e .
	@touch $@

.venv/.dev: .venv/.run requirements/dev.lock
	@$(UV) pip install -q --compile-bytecode --require-hashes -r requirements/dev.lock
	@touch $@

setup: .venv/.run ## install what `run` needs into .venv

setup-dev: .venv/.dev ## and what `test` and `check` need

# Debian's, as root, where there is no Chromium yet, or else Playwright's. Or name one to the tests.
setup-browser: setup-dev ## a Chromium for the tests of the dashboard
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ -n "$$SMA_TEST_CHROMIUM" ] || \
	  { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1 || \
	  .venv/bin/playwright install --with-deps chromium >/dev/null 2>&1 || \
	  { echo "No Chromium could be installed. Name yours: SMA_TEST_CHROMIUM=/path/to/chrome"; exit 1; }

# Debian's, unpacked and not installed, so that no service starts. Elsewhere install your system's package.
POOLER := .cache/pgbouncer
POOLER_PACKAGES := pgbouncer libc-ares2 libevent-2.1-7
setup-pgbouncer: ## a PgBouncer for the tests of connection poolers
	@PATH="$$PATH:/usr/sbin:$(POOLER)/usr/sbin"; command -v pgbouncer >/dev/null || \
	  { rm -rf $(POOLER) && mkdir -p $(POOLER) && cd $(POOLER) && \
	    { apt-get download $(POOLER_PACKAGES) || { apt-get update && apt-get download $(POOLER_PACKAGES); }; } && \
	    for package in *.deb; do dpkg -x "$$package" . || exit 1; done && rm -f *.deb; } >/dev/null 2>&1 || \
	  { echo "No PgBouncer could be had: install your system's package."; exit 1; }

# Debian's, as root, where one is missing. Elsewhere install a JDK of 17 or later, Node of 18 or later, and a C
# compiler with OpenSSL 3's headers. Go and Kotlin come as packages of Python's and npm's, for these tests alone.
setup-tool-chains: setup-dev ## what the checkers of the vectors are compiled and run with
	@command -v javac >/dev/null && command -v node >/dev/null && command -v cc >/dev/null && \
	  echo '#include <openssl/evp.h>' | cc -E - >/dev/null 2>&1 || \
	  { apt-get update -qq && apt-get install -y -qq default-jdk-headless nodejs gcc libc6-dev libssl-dev; } >/dev/null || \
	  { echo "Install a JDK, Node, a C compiler and OpenSSL's headers."; exit 1; }
	@$(UV) pip install -q --require-hashes -r requirements/tool-chains.lock || \
	  echo "No Go compiler could be installed: its checker is left out, unless a go is on the PATH."
	@cmp -s requirements/npm/package-lock.json .cache/tool-chains/package-lock.json || \
	  { mkdir -p .cache/tool-chains && cp requirements/npm/*.json .cache/tool-chains && \
	    npm ci --silent --ignore-scripts --no-audit --fetch-retries=1 --prefix .cache/tool-chains; } || \
	  { rm -f .cache/tool-chains/package-lock.json; \
	    echo "No Kotlin compiler could be installed: its checker is left out, unless a kotlinc is on the PATH."; }

# Debian's, as root, where it is missing. Elsewhere install your system's package.
setup-verifiers: ## GnuTLS's certtool and ocsptool, which the tests verify certificates and OCSP responses with
	@command -v certtool >/dev/null && command -v ocsptool >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq gnutls-bin; } >/dev/null 2>&1 || \
	  { echo "Install GnuTLS's programs: gnutls-bin, or gnutls-utils."; exit 1; }

# Debian's, unpacked and not installed, so that no service starts. Elsewhere install the three programs.
TOOLS := .cache/deployment-tools
TOOL_PACKAGES := nginx nginx-core prometheus systemd libsystemd-shared
setup-deployment-tools: ## what the tests read the files of deployments with: nginx, promtool, systemd-analyze
	@PATH="$$PATH:/usr/sbin:$(TOOLS)/usr/sbin:$(TOOLS)/usr/bin"; \
	  command -v nginx >/dev/null && command -v promtool >/dev/null && command -v systemd-analyze >/dev/null || \
	  { rm -rf $(TOOLS) && mkdir -p $(TOOLS) && cd $(TOOLS) && \
	    { apt-get download $(TOOL_PACKAGES) || { apt-get update && apt-get download $(TOOL_PACKAGES); }; } && \
	    for package in *.deb; do dpkg -x "$$package" . || exit 1; done && rm -f *.deb; } >/dev/null 2>&1 || \
	  { echo "Install nginx, promtool (Prometheus) and systemd-analyze (systemd)."; exit 1; }

# Debian's, unpacked and not installed. Elsewhere install your system's libfaketime.
CLOCK := .cache/clock
setup-clock: ## libfaketime, with which a test moves the clock of whole programs through years
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 $(CLOCK)/usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | grep -q . || \
	  { rm -rf $(CLOCK) && mkdir -p $(CLOCK) && cd $(CLOCK) && \
	    { apt-get download libfaketime || { apt-get update && apt-get download libfaketime; }; } && \
	    dpkg -x libfaketime_*.deb . && rm -f *.deb; } >/dev/null 2>&1 || \
	  { echo "Install libfaketime, your system's package."; exit 1; }

# Patroni in a folder of its own, and Debian's etcd and HAProxy, unpacked and not installed, so that no service starts.
HA := .cache/high-availability
HA_PACKAGES := etcd-server haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
$(HA)/.patroni: .venv/.dev requirements/high-availability.lock
	@rm -rf $(HA)/patroni
	@$(UV) pip install -q --require-hashes --target $(HA)/patroni -r requirements/high-availability.lock
	@touch $@

setup-ha: $(HA)/.patroni ## what `test-ha` needs: Patroni, etcd, HAProxy
	@PATH="$$PATH:/usr/sbin:$(HA)/usr/sbin:$(HA)/usr/bin"; command -v etcd >/dev/null && command -v haproxy >/dev/null || \
	  { cd $(HA) && { apt-get download $(HA_PACKAGES) || { apt-get update && apt-get download $(HA_PACKAGES); }; } && \
	    for package in *.deb; do dpkg -x "$$package" . || exit 1; done && rm -f *.deb; } >/dev/null 2>&1 || \
	  { echo "Install etcd and HAProxy: your system's packages."; exit 1; }

run: setup ## start the authority on http://127.0.0.1:8000, with SQLite in ./sma-data
	@PORT=$(PORT) .venv/bin/sma serve

demo: setup ## the whole story: a camera, a picture, an aggregation server, five forgeries
	@.venv/bin/sma demo

# What could not be installed is missed by its own tests, and by no other. Without bytecode, hundreds of processes
# would compile the same modules.
test: setup-dev ## everything, on real parts; or T=tests/protocol K=replay for a part
	$(if $(T),,-@$(MAKE) --no-print-directory -k setup-browser setup-pgbouncer setup-tool-chains setup-verifiers setup-deployment-tools setup-clock)
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -q $(if $(T),$(T),-n auto --dist worksteal) \
	  $(if $(K),-k "$(K)")

# Seven minutes for a round. `make test-ha ROUNDS=10 K=frozen` plays one scenario ten times. The logs of the servers
# stay in .cache/high-availability/last-run until the next run.
ROUNDS ?= 1
test-ha: setup-ha ## fail-overs of a cluster of PostgreSQL under load; prints what was lost, and how long it took
	@BIRTHMARK_ROUNDS=$(ROUNDS) .venv/bin/python -m pytest -q -m high_availability \
	  --basetemp $(HA)/last-run $(if $(K),-k "$(K)") tests/high_availability

# `make faults ONLY=redis` plays the faults with a word in their names, and renews their rows alone. The logs of the
# servers stay in .cache/faults/last-run until the next run.
faults: setup-dev ## sixty faults of databases, servers and clients under load, as a table: docs/operate/faults.md
	-@$(MAKE) --no-print-directory setup-pgbouncer
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m tests.faults --only "$(ONLY)"

soak: setup-dev ## what chance decides, many times: kills, doors, rotations, a large fleet; half an hour
	-@$(MAKE) --no-print-directory setup-clock
	@BIRTHMARK_SOAK=1 .venv/bin/python -m pytest -q -n auto -m soak --timeout 1800
	@BIRTHMARK_SOAK=1 .venv/bin/python -m pytest -q -s -m measured --timeout 1800 tests/end_to_end
	@BIRTHMARK_SOAK=1 .venv/bin/python -m pytest -q -s --timeout 1800 tests/integration/simulation/test_fleet.py -k none_is_lost

check-fast: setup-dev ## format, lint, types: seconds
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

check: check-fast ## and structure, insecure calls, secrets, known vulnerabilities
	@.venv/bin/lint-imports
	@.venv/bin/bandit --quiet --configfile pyproject.toml --recursive src bench checks examples vectors
	@.venv/bin/kingfisher scan . --git-history full --exclude .venv --exclude .cache \
	  --exclude __pycache__ --exclude .pytest_cache --exclude .mypy_cache --exclude .ruff_cache --exclude .hypothesis --no-validate \
	  --no-update-check --redact --quiet --rule-cache-dir .cache/kingfisher
	@.venv/bin/python -m checks.vulnerabilities

public-surface: setup-dev ## record the public surface in tests/public_surface, and print what is new
	@.venv/bin/python -m checks.public_surface

reference-pages: setup-dev ## write the generated parts of docs/: API, commands, settings, metrics, database
	@.venv/bin/python -m checks.reference_pages

docs: setup-dev ## the documentation, as pages in build/docs; a warning is an error
	@.venv/bin/sphinx-build -W --keep-going -q -j auto -d .cache/docs docs build/docs
	@echo "Open build/docs/index.html"

bench: setup-dev ## measure, beside the conventional way; ARGS="--quick" or "--only validate,batch"
	@.venv/bin/python -m bench $(ARGS)

bench-docs: setup-dev ## put the last measurement into docs/performance.md
	@.venv/bin/python -m bench --document

picture: setup-dev setup-browser ## the dashboard as the README shows it, docs/overview.png
	@.venv/bin/python -m bench.picture

profile: setup-dev ## where the time goes while the server validates
	@.venv/bin/python -m bench --profile $(ARGS)

dist: setup-dev ## a wheel, an sdist, their bill of materials and checksums, in dist/
	@rm -rf dist
	@$(UV) build -q --python .venv/bin/python --out-dir dist
	@.venv/bin/python -m checks.bill_of_materials dist
	@cat dist/SHA256SUMS

lock: .venv/.uv ## renew the locks; no registry's address goes into them
	@$(UV) pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  pyproject.toml --extra server -o requirements/run.lock
	@$(UV) pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  pyproject.toml --extra server --extra traces --group dev -c requirements/run.lock -o requirements/dev.lock
	@$(UV) pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  --group tool-chains -o requirements/tool-chains.lock
	@$(UV) pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  --group high-availability -c requirements/dev.lock -o requirements/high-availability.lock
	@$(UV) pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-emit-find-links \
	  --group build -c requirements/dev.lock -o requirements/build.lock
	@cd requirements/npm && npm install --silent --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

clean: ## remove what the other targets made, except your data
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache build dist
