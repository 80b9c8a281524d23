# make quickstart | test | test-full | lint | clean
#
# Needs only Python 3.11 or newer and make; every target sets up .venv itself. PYTHON names another
# interpreter. Installed are the exact versions of requirements-lock-3.MINOR.txt; `make CONSTRAINTS=`
# takes the newest that requirements.txt allows.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# Compiling what is never imported would double the time.
PIP := $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check
MINOR := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS ?= $(wildcard requirements-lock-$(MINOR).txt)
# Two test files at a time; each worker takes up to 3 GiB of memory.
JOBS ?= 2
PYTEST := $(RUN) -m pytest --timeout=600 --durations=20 -n $(JOBS) --dist loadfile

.PHONY: quickstart test test-full lint clean

# Pretrains a small decoder on the embedded corpus, evaluates it, samples from it, draws its curves.
quickstart: $(VENV)/installed
	$(RUN) train.py --config=configs/quickstart.py --workdir=runs/quickstart
	$(RUN) eval.py --workdir=runs/quickstart
	$(RUN) -m flaxlm generate --workdir=runs/quickstart --prompt="The object"
	$(RUN) -m flaxlm plot --workdir=runs/quickstart

test: $(VENV)/installed-dev
	$(PYTEST) -m "not full"

test-full: $(VENV)/installed-parity
	$(PYTEST) -m full

lint: $(VENV)/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: flaxlm needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV) (about a minute)"
	$(PIP) -r requirements.txt $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PIP) -r requirements-dev.txt $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@

$(VENV)/installed-parity: requirements-parity.txt $(VENV)/installed-dev
	$(PIP) -r requirements-parity.txt $(addprefix --constraint ,$(CONSTRAINTS))
	@touch $@
