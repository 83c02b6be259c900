# Two commands for a fresh machine (Python ≥ 3.11, git, make): `make demo` and `make test`. Each sets itself up.
SHELL := /bin/bash
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
SITE := .venv/lib/python*/site-packages
# Tests start hundreds of processes; where this is set, each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: release bench-memory bench-exports bench-compiled help setup demo test check format lock test-mutants test-matrix numbers docs hooks test-slow test-distributed test-crash test-metaworld test-libero test-lerobot test-page test-reference test-serve test-peers test-s3 test-ray fuzz test-logs robots bench clean

help: ## this list
	@echo "make TARGET, of:"
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  %-16s %s\n", $$1, $$2 }'

setup: $(READY) ## an environment in .venv, with versions from requirements.lock

demo: $(READY) ## the whole pipeline on the shipped teacher, 9 to 13 minutes (TEACH=1: the teacher too, an hour)
	bash runs/demo.sh $(if $(TEACH),--teach)

test: check ## what a change must pass: make check, then the tests, about 12 minutes on two cores
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --cpu-times --jaxtyping-packages=armlet.training.losses,armlet.layers.graph,armlet.layers.router,beartype.beartype

check: $(READY) ## formatter, linter, import directions, types (.pre-commit-config.yaml runs the same)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY) ## puts right what formatter and linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: $(READY) ## runs make check's commands at every git commit, from now on
	$(BIN)/pip install -q pre-commit
	$(BIN)/pre-commit install

# docs/recount.py says how numbers in documents are written.
numbers: $(READY) ## every number in README and docs against its report (WRITE=1: puts them right)
	$(BIN)/python docs/recount.py $(if $(WRITE),--write)

# In an environment of its own, which needs neither torch nor armlet: docs/conf.py reads the source.
docs: .venv-docs/.ready ## the documentation as a site, build/site/index.html; a broken link is an error
	.venv-docs/bin/sphinx-build -E -q -W --keep-going -d build/doctrees docs build/site
	@echo "build/site/index.html"

.venv-docs/.ready: docs/requirements.lock
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q -r docs/requirements.lock
	touch $@

# The code broken in one place at a time: each must be noticed (tests/mutants/run.py --help).
test-mutants: $(READY) ## twelve hundred small breaks of the code: do the tests notice? an hour or more (MUTANTS="--area frames")
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

# Goes on where it stopped; docs/crash.md says what it does.
test-crash: $(READY) ## kills, power cuts, full disks and damaged files at drawn places of every command, an hour on two cores (CRASH="--area distil")
	$(BIN)/python tests/crash/crashing.py $(CRASH)
	$(BIN)/pytest -q -m crash

test-slow: $(READY) ## the tests that take minutes
	$(BIN)/pytest -q -m slow

test-distributed: $(READY) ## several processes that train together, torchrun among them: minutes
	$(BIN)/pytest -q -m distributed

test-metaworld: $(READY) ## Meta-World, with its extra
	$(BIN)/python -m pip install -q -c requirements.lock -e '.[dev,metaworld]'
	$(BIN)/pytest -q -m metaworld

# In an environment of its own: 2.1 GB, and opencv and numba, which nothing else needs.
test-libero: .venv-libero/.ready ## LIBERO, with its extra (2.1 GB): worlds, pictures and the expert, about 15 minutes
	.venv-libero/bin/pytest -q -m libero

.venv-libero/.ready: pyproject.toml requirements.lock
	test -x .venv-libero/bin/python || $(PYTHON) -m venv .venv-libero
	.venv-libero/bin/python -m pip install -q -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	.venv-libero/bin/python -m pip install -q -c requirements.lock -e '.[dev,libero]'
	touch $@

# In environments of their own: 0.4.4 without its dependencies, which ask for an older torch; 0.6.1 with them, on Python
# 3.12 (LEROBOT06=1: where the machine has no GPU, its torch brings CUDA all the same, 5.5 GB).
test-lerobot: $(READY) .venv-lerobot/.ready $(if $(LEROBOT06),.venv-lerobot06/.ready) ## data sets and students against the real lerobot (LEROBOT06=1: against 0.6.1 as well)
	$(BIN)/pytest -q -m lerobot

.venv-lerobot/.ready: tests/interop/lerobot.txt requirements.lock
	test -x .venv-lerobot/bin/python || $(PYTHON) -m venv .venv-lerobot
	.venv-lerobot/bin/pip install -q "$$(grep '^torch==' requirements.lock)"
	.venv-lerobot/bin/pip install -q -r tests/interop/lerobot.txt
	.venv-lerobot/bin/pip install -q --no-deps -r tests/interop/lerobot-no-deps.txt
	.venv-lerobot/bin/pip install -q --no-deps -e . -e packages/lerobot_policy_armlet
	touch $@

.venv-lerobot06/.ready: packages/lerobot_policy_armlet/pyproject.toml pyproject.toml
	test -x .venv-lerobot06/bin/python || python3.12 -m venv .venv-lerobot06
	.venv-lerobot06/bin/pip install -q 'lerobot[evaluation,training]==0.6.1' -e . -e packages/lerobot_policy_armlet
	touch $@

# Debian's chromium, which apt-get installs.
test-page: $(READY) ## the report page in a real browser
	test -x /usr/bin/chromium || { echo "the page is tested in Chromium: apt-get install chromium"; exit 1; }
	$(BIN)/pip install -q playwright
	$(BIN)/pytest -q -m page

# The same seed sends the same bytes; SEED=… sends others.
test-serve: $(READY) ## a million malformed messages against armlet serve, about 15 minutes
	$(BIN)/python tests/server/hostile.py --messages 1000000 --seed $(or $(SEED),0)

fuzz: $(READY) ## the same for a minute
	$(BIN)/python tests/server/hostile.py --seconds 60 --seed $(or $(SEED),0)

# In environments of their own.
test-peers: $(READY) ## the stock clients of openpi and of vla-eval, unmodified, against armlet serve
	test -x .venv-openpi/bin/python || $(PYTHON) -m venv .venv-openpi
	.venv-openpi/bin/pip install -q -r tests/interop/openpi.txt
	test -x .venv-vla-eval/bin/python || $(PYTHON) -m venv .venv-vla-eval
	.venv-vla-eval/bin/pip install -q -r tests/interop/vla_eval.txt
	$(BIN)/pytest -q -m peers

# In an environment of its own: S3's client takes no python-dateutil as new as requirements.lock has it.
test-s3: .venv-s3/.ready ## processes that meet on S3, against an S3 server of our own on loopback
	.venv-s3/bin/pytest -q -m s3

.venv-s3/.ready: pyproject.toml requirements.lock
	test -x .venv-s3/bin/python || $(PYTHON) -m venv .venv-s3
	grep -v '^python-dateutil==' requirements.lock > .venv-s3/constraints.txt
	.venv-s3/bin/python -m pip install -q -c .venv-s3/constraints.txt "$$(grep '^torch==' requirements.lock)"
	.venv-s3/bin/python -m pip install -q -c .venv-s3/constraints.txt -e '.[dev,s3]'
	.venv-s3/bin/python -m pip install -q -c .venv-s3/constraints.txt 's3fs>=2025.3' 'moto[server]>=5'
	touch $@

# In an environment of its own: another 200 MB, and packages that nothing else needs.
test-ray: .venv-ray/.ready ## the same as tasks of a Ray cluster on this machine
	.venv-ray/bin/pytest -q -m ray

.venv-ray/.ready: pyproject.toml requirements.lock
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install -q -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	.venv-ray/bin/python -m pip install -q -c requirements.lock -e '.[dev,ray]'
	touch $@

robots: $(READY) ## five robots that nobody has heard of, from teach to evaluate, with every recipe for one's own robot
	$(BIN)/pytest -q -n 2 -m robots

# Their own libraries, beside those that armlet needs.
test-logs: $(READY) ## runs in the real TensorBoard, W&B and trackio, films in Rerun
	$(BIN)/python -m pip install -q -c requirements.lock -e '.[dev,tensorboard,wandb,trackio,rerun]'
	$(BIN)/pytest -q -m logs

test-reference: $(READY) ## against libraries that are no dependency
	$(BIN)/pip install -q -c requirements.lock torch_geometric
	$(BIN)/pytest -q -m reference

# Nothing else should run meanwhile.
bench: $(READY) ## what the machinery costs, measured anew and kept in docs/machinery/
	$(BIN)/pip install -q -c requirements.lock torch_geometric
	$(BIN)/pip install -q -c requirements.lock -e '.[export]'
	for part in store pictures graph routing routes training codebook phases memory limit exports coverage; do $(BIN)/python bench/$$part.py || exit 1; done

bench-memory: $(READY) ## what a large student needs of memory, counted anew: a minute, and the only part of bench that may run beside others
	$(BIN)/python bench/memory.py

bench-exports: $(READY) ## every kind of policy in every runtime: what is exported, how far from PyTorch, how fast; goes on where it stopped
	$(BIN)/pip install -q -c requirements.lock -e '.[export]'
	$(BIN)/python bench/exports.py

bench-compiled: .venv-executorch/.ready ## AOTInductor and ExecuTorch beside ONNX Runtime, in an environment of their own; needs g++
	.venv-executorch/bin/python bench/compiled.py

.venv-executorch/.ready: requirements.lock
	test -x .venv-executorch/bin/python || $(PYTHON) -m venv .venv-executorch
	.venv-executorch/bin/pip install -q "$$(grep '^torch==' requirements.lock)"
	.venv-executorch/bin/pip install -q -c requirements.lock -e '.[export]' executorch
	touch $@

# Made in environments of their own.
lock: ## the versions a fresh machine installs: requirements.lock, docs/requirements.lock; locks/ with hashes
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q torch==2.13.0
	.venv-lock/bin/pip install -q '.[dev,metaworld,libero]'
	(echo '# Made by `make lock`: Linux, CPython 3.11. Used as constraints: pip install -c requirements.lock -e .[dev]'; \
	 .venv-lock/bin/pip freeze --exclude armlet | sed 's/+cpu//' | grep -v ' @ ') > requirements.lock
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
	 | .venv-lock/bin/pip install -q -r /dev/stdin
	(echo '# Made by `make lock`: what `make docs` installs (the extra `docs`, nothing of armlet'"'"'s own). CPython 3.11.'; \
	 .venv-lock/bin/pip freeze) > docs/requirements.lock
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q uv
	$(PYTHON) dev/locks.py --uv .venv-lock/bin/uv
	rm -rf .venv-lock

# An environment each in .venv-matrix, kept; goes on where it stopped. dev/matrix.py says what is where.
test-matrix: ## the wheel on Python 3.11 to 3.13, with the lowest, the locked and the newest libraries: 20 GB, and an hour or more at first (MATRIX="--only 3.11-lowest")
	test -x .venv-matrix/tools/bin/python || $(PYTHON) -m venv .venv-matrix/tools
	.venv-matrix/tools/bin/pip install -q uv packaging
	.venv-matrix/tools/bin/python dev/matrix.py --uv .venv-matrix/tools/bin/uv $(MATRIX)

# In an environment of its own, from a commit.
release: ## sdist, wheel, SBOM and their sha256 into dist/; uploads nothing
	test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install -q build cyclonedx-bom
	.venv-release/bin/python dev/release.py

$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "armlet needs Python 3.11 or newer; none was found as python3, python3.11, python3.12 or python3.13"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install -q --no-compile -c requirements.lock -e '.[dev]'
	$(BIN)/python -m compileall -q -j 0 $(SITE) > /dev/null 2>&1 || true # pip compiles on one core; templates are no modules
	touch $(READY)

clean: ## removes environments, build/ and everything in out/
	rm -rf .venv .venv-docs .venv-libero .venv-lock .venv-lerobot .venv-lerobot06 .venv-matrix .venv-openpi .venv-ray .venv-release .venv-s3 .venv-vla-eval build dist out
