# Two commands for a fresh machine (Python ≥ 3.11, git, make): `make demo` and `make test`. Each sets itself up.
SHELL := /bin/bash
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check format lock test-mutants numbers test-slow test-metaworld test-lerobot test-page test-reference robots bench clean

setup: $(READY)

demo: $(READY)
	bash runs/demo.sh $(if $(TEACH),--teach)

test: check
	$(BIN)/pytest -q -n 2 --dist loadfile --jaxtyping-packages=armlet.training.losses,armlet.layers.graph,armlet.layers.router,beartype.beartype

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The code broken in one place at a time: each must be noticed (minutes; tests/mutants/run.py --help).
test-mutants: $(READY)
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

# Every number in README and docs again, from the reports; WRITE=1 puts numbers and tables right (docs/recount.py says how they are written).
numbers: $(READY)
	$(BIN)/python docs/recount.py $(if $(WRITE),--write)

test-slow: $(READY)
	$(BIN)/pytest -q -m slow

test-metaworld: $(READY)
	$(BIN)/python -m pip install -q -c requirements.lock -e '.[dev,metaworld]'
	$(BIN)/pytest -q -m metaworld

# The real lerobot, in an environment of its own.
test-lerobot: $(READY)
	test -x .venv-lerobot/bin/python || $(PYTHON) -m venv .venv-lerobot
	.venv-lerobot/bin/pip install -q "$$(grep '^torch==' requirements.lock)"
	.venv-lerobot/bin/pip install -q -r tests/interop/lerobot.txt
	.venv-lerobot/bin/pip install -q --no-deps lerobot==0.4.4 torchvision==0.25.0
	$(BIN)/pytest -q -m lerobot

# The report page in a real browser: Debian's chromium, which apt-get installs.
test-page: $(READY)
	test -x /usr/bin/chromium || { echo "the page is tested in Chromium: apt-get install chromium"; exit 1; }
	$(BIN)/pip install -q playwright
	$(BIN)/pytest -q -m page

# Five robots that nobody has heard of, and sets that the real lerobot wrote: teach, probe, distil and evaluate with every recipe for one's own robot.
robots: $(READY)
	$(BIN)/pytest -q -n 2 -m robots

test-reference: $(READY)
	$(BIN)/pip install -q -c requirements.lock torch_geometric
	$(BIN)/pytest -q -m reference

# What the machinery costs: printed, and kept in docs/machinery/. Nothing else should run meanwhile.
bench: $(READY)
	$(BIN)/pip install -q -c requirements.lock torch_geometric
	for part in store pictures graph routing training codebook phases; do $(BIN)/python bench/$$part.py || exit 1; done

# The versions a fresh machine installs. Made in an environment of its own.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q torch==2.13.0
	.venv-lock/bin/pip install -q '.[dev,metaworld]'
	(echo '# Made by `make lock`: Linux, CPython 3.11. Used as constraints: pip install -c requirements.lock -e .[dev]'; \
	 .venv-lock/bin/pip freeze --exclude armlet | sed 's/+cpu//' | grep -v ' @ ') > requirements.lock
	rm -rf .venv-lock

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "armlet needs Python 3.11 or newer; none was found as python3, python3.11, python3.12 or python3.13"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install -q -c requirements.lock -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv .venv-lock .venv-lerobot out
