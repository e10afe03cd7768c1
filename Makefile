# The front door. `make help` lists what there is.
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The first of these that is new enough makes the environment; PYTHON=… chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
OUT    ?= demo
REAL   ?= ../shared/data

.DEFAULT_GOAL := help
.PHONY: audit help hashes install install-hashed test test-fast test-slow test-system test-faults coverage bench check docs demo ensembles dist release clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	  || sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1: \2/p' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the pinned dependencies (quick when nothing changed)

# Bytecode is compiled even where PYTHONDONTWRITEBYTECODE is set: each Ray worker imports everything anew.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "cryoray needs Python 3.11 or newer: apt install python3 (Debian 12, Ubuntu 24.04 or newer), or make PYTHON=/path/to/python3.11." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: give a newer one, make PYTHON=/path/to/python3.11." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment with pip: apt install python3-venv, and try again." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null \
	  || { echo "$(VENV) has no pip: apt install python3-venv python3-pip, make clean, and try again." >&2; exit 2; }
	@echo "Installing the pinned dependencies into $(VENV): once, some minutes."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev,docs]'
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m compileall -q $(VENV)/lib cryoray flows >/dev/null || true
	@touch $@

# Whatever is downloaded is compared with its hash. Not the default: torch for CPUs comes from where whoever runs
# this has it, and for another Python its hash has to be written down first.
install-hashed: ## as install, where each file has to have the hash that is written down; CUDA=1 for torch with CUDA
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --require-hashes --requirement constraints-hashes.txt \
	  --requirement constraints-hashes-$(if $(CUDA),cuda,cpu).txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

UV := build/hashes/bin/uv pip compile --quiet --no-header --no-annotate --generate-hashes
hashes: install ## write the hashes of what constraints.txt pins into constraints-hashes.txt
	@test -x build/hashes/bin/uv || { $(BIN)/python -m venv build/hashes && build/hashes/bin/pip install --quiet uv; }
	$(UV) --no-deps --python-version 3.11 constraints.txt --output-file build/hashes/all.txt
	grep '^torch==' constraints.txt | $(UV) --python-version 3.12 --python-platform x86_64-manylinux_2_28 --constraint constraints.txt - --output-file build/hashes/cuda.txt
	$(BIN)/python -m pip download --quiet --no-deps --dest build/hashes/torch "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m tests.packaging.hashes build/hashes

# Tests, too, are compiled once: pytest rewrites each of their files whenever it finds no bytecode of it.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest

# Those that need no Ray run on all cores; the others share one Ray, one after the other.
HERE   := not slow and not system and not faults

test: install ## run all tests
	$(PYTEST) -n auto -m "not ray and $(HERE)"
	$(PYTEST) -m "ray and $(HERE)"

test-fast: install ## run the tests that take milliseconds: no Ray, no other processes, no training
	$(PYTEST) -n auto -m "not ray and not long and $(HERE)"

test-slow: install ## run the tests that take minutes: ten thousand damaged files for each reader
	NEW_EXAMPLES=1 $(PYTEST) -m slow --timeout 1800

test-system: install ## drive RELION, Chromium, PostgreSQL, Redis and promtool themselves; installs them with apt-get where missing
	@sh tests/system/install.sh
	$(PYTEST) -m "system or (faults and not exhaustive)"

test-faults: install ## take nodes, cables, disks and drivers away from whatever runs, several Ray nodes on this machine
	$(PYTEST) -m faults --timeout 900

bench: install ## measure speed and memory beside peers; BENCH="star mrc" for some
	$(BIN)/python -m benchmarks.run $(BENCH)

check: install ## ruff, mypy (strict; tests too) and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install ## build the site, strictly and without network, into build/site
	env -u PYTHONDONTWRITEBYTECODE PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

coverage: install ## which lines and branches the tests reach, without those that need Ray; fails below the floor
	$(BIN)/python -m coverage erase
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m coverage run -m pytest -n auto -m "not ray and $(HERE)"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

audit: install ## look for known holes in the pinned dependencies (where an index of advisories can be reached)
	@test -x build/audit/bin/pip-audit || { $(BIN)/python -m venv build/audit && build/audit/bin/pip install --quiet pip-audit; }
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

demo: install ## run the main job: simulated, or on SOURCE=particles with human labels; into OUT=demo
	$(BIN)/python -m flows.facility_day --out $(OUT) $(if $(SOURCE),--source $(SOURCE))

ensembles: install ## make the ensembles that ship, into build/ensembles; KIND="class2d" for one (hours)
	$(BIN)/python -m cryoray.recipes $(KIND) --real $(REAL) --out build/ensembles

# setuptools packs whatever an earlier build left behind.
dist: install ## build a wheel that holds the ensembles that ship, and the sdist, into dist/
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" >/dev/null

EXTRA ?= report notebook session select train serve flows postgres all
release: dist ## check what others install: contents, twine, each extra in a bare environment (minutes, and disk); EXTRA="report" for some
	@test -x build/twine/bin/twine || { $(BIN)/python -m venv build/twine && build/twine/bin/pip install --quiet twine; }
	$(BIN)/python -m release.check dist --twine build/twine/bin/twine --extra '' $(foreach one,$(EXTRA),--extra $(one))
	$(BIN)/python -m release.recipe dist/cryoray-*.tar.gz > dist/recipe.yaml
	$(PYTEST) tests/cluster/test_files.py

clean: ## remove what the other targets made
	rm -rf $(VENV) demo build dist benchmarks/results .coverage* *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find cryoray flows tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
