# Two commands do everything on a machine with Python >= 3.11: `make quickstart` and `make test`.

VENV ?= .venv
WORKDIR ?= runs/quickstart
# One more than cores, from 3 to 8: tests of several processes and of commands wait for those that they start.
TEST_PROCESSES ?= $(shell n=$$(($$(getconf _NPROCESSORS_ONLN) + 1)); echo $$((n < 3 ? 3 : n > 8 ? 8 : n)))
# Compiled where they are first imported: half of the time of installing was spent on modules that nothing imports. So
# what is compiled has to be kept, also where the environment (as many containers do) tells Python not to.
unexport PYTHONDONTWRITEBYTECODE
# $(call install,ENVIRONMENT) packages. One pip, the newest, serves all environments.
install = $(BIN)/python -m pip --quiet --disable-pip-version-check --python $(1)/bin/python install --no-compile
# The same by uv, in half the time. By pip where that is told of another index, which uv does not know of, or where uv
# finds something missing.
quick_install = { ! $(BIN)/python -m pip config list 2>/dev/null | grep -qE '[.]index-url' && \
	$(BIN)/python -m uv pip install --quiet --python $(1)/bin/python $(2) 2>/dev/null; } || $(call install,$(1)) $(2)
PYTEST = -m pytest -n $(TEST_PROCESSES) --dist=worksteal $(PYTEST_FLAGS)
CHAOS_OUT ?= runs/chaos-$(shell date +%Y%m%d-%H%M%S)
CHAOS_FLAGS ?= --faults=100 --seed=0
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
PARITY := $(VENV)-parity
PODS := $(VENV)-pods
LOWEST := $(VENV)-lowest
AUDIT := $(VENV)-audit
RELEASE := $(VENV)-release
FUZZ ?= 20
CHECKED := .ci docs jaxlm tests configs parity $(wildcard bench)

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint quick-lint format format-check ruff types spelling files pytest test-slow test-lowest parity \
	golden chaos bench pods audit fuzz docs docs-serve tutorials screenshots release-check clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

quickstart: $(VENV)/run.stamp  ## make the environment, train a small model, sample from it
	$(BIN)/jaxlm train --config=quickstart --workdir=$(WORKDIR)
	$(BIN)/jaxlm generate --run=$(WORKDIR) --prompt="The function returns"
	$(BIN)/jaxlm next-token --run=$(WORKDIR) --prompt="The function returns a" \
		--candidates=list,string,new --top=10

# Types beside pytest: pyright takes 45 s of one core.
test: quick-lint  ## make the environment, check style, types and spelling, run the tests
	@$(MAKE) --no-print-directory --jobs=2 types pytest

pytest: $(VENV)/dev.stamp
	$(BIN)/python $(PYTEST) -m 'not slow'

test-slow: $(VENV)/dev.stamp  ## the longest tests, which `make test` leaves out; SHARE=2/3 for the second third of them
	$(BIN)/python $(PYTEST) -m slow $(if $(SHARE),--share=$(SHARE))

test-lowest: $(LOWEST)/stamp  ## all tests, the longest too, with the oldest versions that pyproject.toml allows
	JAXLM_LOWEST=1 $(LOWEST)/bin/python $(PYTEST)

lint: quick-lint types  ## everything `make test` checks besides pytest

quick-lint: format-check ruff spelling files

format: $(VENV)/dev.stamp  ## lay out the code and mend what ruff can mend
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

format-check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check $(CHECKED)

ruff: $(VENV)/dev.stamp
	$(BIN)/ruff check $(CHECKED)

types: $(VENV)/dev.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

spelling: $(VENV)/dev.stamp
	$(BIN)/codespell $(CHECKED) $(wildcard launch *.md) Makefile pyproject.toml

# Tracked files only: no blanks at the end of a line, nothing above 500 kB.
files:
	@if git grep -nIE '[[:blank:]]+$$' -- . ':!LICENSE'; then echo 'blanks at the end of these lines'; exit 1; fi
	@large=$$(git ls-files -z | xargs -0 -I{} find {} -maxdepth 0 -type f -size +500k); \
	if [ -n "$$large" ]; then echo "too large for the repository: $$large"; exit 1; fi

parity: $(PARITY)/stamp  ## compare with torch and transformers themselves, in an environment of their own
	$(PARITY)/bin/python $(PYTEST) parity

golden: $(PARITY)/stamp  ## renew tests/interop/golden by what transformers computes
	$(PARITY)/bin/python parity/make_golden.py

pods: $(PODS)/stamp  ## compile the configs of TPU pods with the real compiler; POD_CONFIGS=... for some of them
	$(PODS)/bin/python bench/pods.py $(POD_CONFIGS)

audit: $(VENV)/dev.stamp $(AUDIT)/stamp  ## secrets in tracked files, known vulnerabilities of what is installed
	$(BIN)/python .ci/audit.py --python=$(BIN)/python --pip-audit=$(AUDIT)/bin/pip-audit

fuzz: $(VENV)/dev.stamp  ## the readers of outside data with FUZZ=20 times as many damaged files as in the tests
	JAXLM_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/fuzz $(PYTEST_FLAGS)

chaos: $(VENV)/dev.stamp  ## kill, stop, starve and damage real runs a hundred times: CHAOS_OUT/report.md
	$(BIN)/python tests/chaos/driver.py $(CHAOS_FLAGS) --out=$(CHAOS_OUT)

bench: $(VENV)/dev.stamp  ## speed of the reference shapes on this machine
	$(BIN)/python bench/planner.py
	$(BIN)/python bench/loader.py
	$(BIN)/python bench/tokenizing.py
	$(BIN)/python bench/crawl.py
	$(BIN)/python bench/filters.py
	$(BIN)/python bench/corpus.py
	$(BIN)/python bench/checkpoint.py
	$(BIN)/python bench/interop.py
	$(BIN)/python bench/generate.py
	$(BIN)/python bench/playground.py
	$(BIN)/python bench/train_speed.py
	$(BIN)/python bench/finetune.py
	$(BIN)/python bench/report.py
	$(BIN)/python bench/evaluate.py

docs: $(VENV)/dev.stamp  ## the documentation as a site: build/site/index.html; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir=build/site

docs-serve: $(VENV)/dev.stamp  ## the documentation on http://127.0.0.1:8000, renewed while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr=127.0.0.1:8000

tutorials: $(VENV)/dev.stamp  ## run every command of docs/tutorials and compare what it prints; TUTORIALS=... for some
	$(BIN)/python .ci/tutorials.py $(TUTORIALS)

screenshots: $(VENV)/dev.stamp  ## renew docs/images from a real run, in a headless Chromium
	$(BIN)/python .ci/screenshots.py

release-check: $(RELEASE)/stamp  ## build wheel and sdist, install and train in an empty environment, check licences
	$(RELEASE)/bin/python .ci/release_check.py $(RELEASE_FLAGS)

clean:  ## remove the environment and caches (runs/ stays)
	rm -rf $(VENV) $(PARITY) $(PODS) $(LOWEST) $(AUDIT) $(RELEASE) .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "Python >= 3.11 not found. Install it, or: make PYTHON=/path/to/python3"; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "PYTHON=$(PYTHON) is not a Python >= 3.11. Try: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make environments. On Debian: apt install python3-venv"; exit 1; }
	@# The pip of Python 3.11 takes twice as long as today's. Where there is no newer one, it will do.
	@$(call install,$(VENV)) --upgrade pip || echo "pip could not be renewed, and is used as it is."
	@$(call install,$(VENV)) uv || echo "uv could not be installed: pip installs the rest."

$(PARITY)/bin/python: | $(VENV)/bin/python
	@$(BIN)/python -m venv --without-pip $(PARITY)

# torch by number: its newest release may bring gigabytes of CUDA along.
$(PARITY)/stamp: pyproject.toml | $(PARITY)/bin/python
	@echo "Installing torch, transformers and jaxlm into $(PARITY) (once; two or three minutes)"
	@$(call install,$(PARITY)) torch==2.13.0 --editable '.[parity]'
	@touch $@

# pip cannot look for the oldest; uv can. Compiled at once: some of the oldest warn where that happens at an import.
$(LOWEST)/stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing jaxlm and the oldest of what it allows into $(LOWEST) (once; a minute or two)"
	@$(BIN)/python -m venv --without-pip $(LOWEST)
	@$(call install,$(LOWEST)) uv
	@$(LOWEST)/bin/python -m uv pip install --quiet --compile-bytecode --python $(LOWEST)/bin/python \
		--resolution=lowest-direct --editable '.[dev]'
	@touch $@

$(PODS)/stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing jaxlm and the compiler of TPUs into $(PODS) (once; a minute or two)"
	@$(BIN)/python -m venv --without-pip $(PODS)
	@$(call install,$(PODS)) --editable '.[tpu]'
	@touch $@

# Where it cannot be installed, the audit says so: no stamp, so that the next one tries again.
$(AUDIT)/stamp: | $(VENV)/bin/python
	@echo "Installing pip-audit into $(AUDIT) (once; half a minute)"
	@$(BIN)/python -m venv $(AUDIT)
	@if $(call install,$(AUDIT)) 'pip-audit>=2.10'; \
		then touch $@; else echo "pip-audit could not be installed"; fi

$(RELEASE)/stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the tools of a release into $(RELEASE) (once; half a minute)"
	@$(BIN)/python -m venv $(RELEASE)
	@$(call install,$(RELEASE)) build twine hatchling hatch-vcs pyyaml
	@touch $@

$(VENV)/run.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing jaxlm and what it needs into $(VENV) (once; a minute or two)"
	@$(call quick_install,$(VENV),--editable .)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	@echo "Installing jaxlm and its development tools into $(VENV) (once; a minute or two)"
	@$(call quick_install,$(VENV),--editable '.[dev]')
	@touch $@ $(VENV)/run.stamp
