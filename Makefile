# Every target sets up by itself what it needs; none needs a step before it.
#
#   make demo             the whole product at work on this machine (IMAGES=DIR: images of your own; WEB=1: keeps its pages open)
#   make test             lint, types, import rules, tests; installs the peers that tests talk to where it can
#   make faults           kills, full disks, dead databases and peers, and what became of the studies, in one table
#   make bench            speed beside others, on this machine, in one table
#   make fuzz             200,000 peers and 50,000 images that nobody would make on purpose; takes hours
#   make sbom             sbom.json: what is installed, as CycloneDX; and the licences
#   make run              the node with config.toml, until Ctrl-C

SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c '$(SUITABLE)' 2>/dev/null && command -v $$p && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := dcmtk orthanc dicom3tools postgresql faketime prometheus chromium
TESTS ?= tests
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))  # one waits for a network or a disk

.PHONY: demo test faults fuzz bench sbom run lint peers clean

demo: $(VENV)/.installed
	@$(BIN)/pacs-node demo $(if $(IMAGES),--images "$(IMAGES)") $(if $(WEB),--web)

run: $(VENV)/.installed
	@$(BIN)/pacs-node serve

test: $(VENV)/.installed-dev peers lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(TESTS)

faults: $(VENV)/.installed-dev peers
	$(BIN)/python -m tests.faults

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz peers --count $(or $(PEERS),200000) --seed $(or $(SEED),1)
	$(BIN)/python -m tests.fuzz images --count $(or $(IMAGES),50000) --seed $(or $(SEED),1)

bench: $(VENV)/.installed-dev peers
	$(BIN)/python -m tests.benchmarks

sbom: $(VENV)/.installed-dev
	@$(BIN)/python -m venv $(VENV)/sbom
	@$(VENV)/sbom/bin/pip install --quiet --disable-pip-version-check "cyclonedx-bom>=7,<8"
	@$(VENV)/sbom/bin/cyclonedx-py environment --output-format JSON --output-file sbom.json $(BIN)/python
	@$(BIN)/python -m tests.helpers.licences
	@echo "sbom.json lists what is installed in $(VENV), tools for development included; above, what the product needs."

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(VENV)/.created:
	@"$(PYTHON)" -c '$(SUITABLE)' || \
	  { echo "PACS Node needs Python 3.11 to 3.13; set PYTHON to one."; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { $(ROOT_APT) python3-venv && "$(PYTHON)" -m venv --clear $(VENV); }
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV); torch is large, this takes some minutes the first time."
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[openvino]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# Peers for tests: DCMTK, Orthanc, dciodvfy, PostgreSQL, faketime, promtool, Chromium. Without root, what misses one is skipped.
ROOT_APT = apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends

peers:
	@missing=; for peer in storescu Orthanc dciodvfy faketime promtool chromium; do \
	  PATH="$$PATH:/usr/sbin" command -v $$peer >/dev/null || missing="$$missing $$peer"; done; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing $(PACKAGES)"; $(ROOT_APT) $(PACKAGES) >/dev/null; \
	else \
	  echo "Tests are skipped for lack of:$$missing. Install $(PACKAGES) to run them."; \
	fi

clean:
	rm -rf $(VENV) demo bench faults build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
