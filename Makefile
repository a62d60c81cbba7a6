# Every path is relative, so that the path of the checkout may contain spaces.

PYTHON ?= python3
TORCH ?= torch==2.13.0
OUTPUT ?= runs/demo
SEED ?= 0
SEEDS ?= 0 1 2
BENCH ?= runs/bench
RUN = OMP_NUM_THREADS=1 $(VENV_PYTHON) -m tempflow_fast train --recipe shapes
REPORT ?= docs/benchmarks.md
FIGURES ?= docs
CUDA_ENV ?= .venv-cuda
CUDA_TORCH ?= torch>=2.10
KILLS ?= 300
ARGS ?=
MINUTES ?= 60
JOBS ?= $(shell $(PYTHON) -c "import os; print(min(8, len(os.sched_getaffinity(0))))" 2>/dev/null || echo 1)

VENV_PYTHON := .venv/bin/python
STAMP := .venv/.installed
# Sources of the compiled library and of the metadata. The install is editable: Python files are used where they are.
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)

.DEFAULT_GOAL := help
.PHONY: help demo experiment headline time-to-reward test faults check audit audit-refresh bench bench-runs bench-report fuzz gpu build cuda-build compat readme-figures clean FORCE

help:
	@echo "make demo     train the embedded model for a few minutes and write $(OUTPUT)/"
	@echo "make test     run the tests in JOBS=$(JOBS) processes"
	@echo "make faults   kill runs KILLS=$(KILLS) times and fill their disks, an hour; docs/reliability.md has the figures"
	@echo "make check    run the linter and the type checker"
	@echo "make fuzz     call the ops with random arguments, right and wrong; MINUTES=$(MINUTES)"
	@echo "make audit    compare the dependencies with the lock and the known advisories; needs no network"
	@echo "make audit-refresh   write the lock and the advisories in tests/audit/ again; needs a network"
	@echo "make bench    time ops, structure and iterations against PyTorch and the paper's structure; $(BENCH)/"
	@echo "make bench-report   the same and six training runs, half an hour; writes $(REPORT)"
	@echo "make experiment   compare methods at equal network evaluations: tune, run five seeds, write docs/experiment.md; hours, resumes"
	@echo "make headline   a long run of the recipe and one of Flow-GRPO; writes docs/headline.png; an hour on two cores, resumes"
	@echo "make time-to-reward   seconds to a strict accuracy, the paper's structure against this package; after make experiment; hours, resumes"
	@echo "make gpu      check and measure on a GPU, ARGS=\"--stages kernels,ops --output DIR --require --wheels DIR\"; docs/gpu.md"
	@echo "make build    make the wheel and the source archive in dist/"
	@echo "make cuda-build   build the library against a CUDA torch in $(CUDA_ENV) (a download of GBs) and check it; no GPU needed"
	@echo "make compat   run the tests with older and newer torch, Triton, diffusers and others; GBs, an hour; docs/compatibility.md"
	@echo "make readme-figures   copy the pictures of the run in $(OUTPUT)/ to $(FIGURES)/"
	@echo "make clean    remove .venv and what was built"
	@echo "Variables: PYTHON=$(PYTHON) TORCH=$(TORCH) OUTPUT=$(OUTPUT) SEED=$(SEED) ARGS=(more options of tempflow-fast train)"

demo: $(STAMP)
	@echo "== training the embedded model; Ctrl-C ends it early and saves the weights"
	@$(VENV_PYTHON) -m tempflow_fast train --recipe shapes --seed $(SEED) --output "$(OUTPUT)" $(ARGS)

test: .venv/.test
	@echo "== running the tests in $(JOBS) processes"
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n $(JOBS) --dist worksteal $(ARGS)

faults: .venv/.test
	@KILLS=$(KILLS) $(VENV_PYTHON) -m pytest -q tests/faults $(ARGS)

check: .venv/.dev
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m mypy

fuzz: .venv/.test
	@$(VENV_PYTHON) tests/faults/fuzz_ops.py --minutes $(MINUTES) $(ARGS)

audit: .venv/.test
	@PYTHONPATH=tests $(VENV_PYTHON) -m audit.check

audit-refresh: .venv/.test
	@PYTHONPATH=tests $(VENV_PYTHON) -m audit.refresh

bench: .venv/.test
	@mkdir -p "$(BENCH)"
	@echo "== timing on one core; nothing else should run on this machine"
	@$(VENV_PYTHON) -m pytest bench --ignore=bench/gpu -q --benchmark-columns=min,median,rounds \
	  --benchmark-json "$(BENCH)/figures.json" $(ARGS)
	@$(VENV_PYTHON) -m bench.page "$(BENCH)/figures.json" --output "$(BENCH)/benchmarks.md"

# Finished runs are not repeated. Two run at a time, with one thread each.
bench-runs: $(STAMP)
	@for seed in $(SEEDS); do \
	  $(RUN) --seed $$seed --output "$(BENCH)/full-$$seed" & \
	  $(RUN) --seed $$seed --output "$(BENCH)/cheap-$$seed" --rollout-precision bf16 --compile-blocks && wait $$! || exit 1; done

bench-report: bench bench-runs
	@$(VENV_PYTHON) -m bench.page "$(BENCH)/figures.json" --output "$(REPORT)" --runs \
	  $(foreach seed,$(SEEDS),"as it is=$(BENCH)/full-$(seed)" "bf16 and compiled=$(BENCH)/cheap-$(seed)")

# BUDGET=N network evaluations of each reported run; with more, the same runs continue.
experiment: $(STAMP)
	@$(VENV_PYTHON) -m bench.experiment --jobs $(JOBS) $(if $(BUDGET),--budget $(BUDGET)) $(ARGS)

headline: $(STAMP)
	@$(VENV_PYTHON) -m bench.headline $(ARGS)

time-to-reward: $(STAMP)
	@$(VENV_PYTHON) -m bench.time_to_reward $(ARGS)

# Images that contain a CUDA torch have no .venv, and often no network to make one. Status 3: there is no GPU.
gpu:
	@$(if $(wildcard $(VENV_PYTHON)),$(VENV_PYTHON),$(PYTHON)) -m bench.gpu $(ARGS)

build: .venv/.dev
	@# The isolated environments of `build` hide the torch of this one; each would download another.
	@TEMPFLOW_FAST_TORCH="$$($(VENV_PYTHON) -c 'import torch; print(torch.__path__[0])')" $(VENV_PYTHON) -m build

# Environments are kept in .venv-compat, so that a second run only tests. ARGS="--only oldest newest" for some of them.
compat:
	@$(PYTHON) tests/compat.py $(ARGS)

cuda-build:
	@echo "== installing $(CUDA_TORCH) in $(CUDA_ENV)"
	@$(PYTHON) -m venv "$(CUDA_ENV)"
	@"$(CUDA_ENV)/bin/python" -m pip install --quiet --disable-pip-version-check "$(CUDA_TORCH)" numpy \
	  "setuptools>=77" "cmake>=3.24" ninja
	@echo "== building the library with its CUDA kernels"
	@PATH="$$(cd "$(CUDA_ENV)" && pwd)/bin:$$PATH" TEMPFLOW_FAST_CUDA=ON \
	  "$(CUDA_ENV)/bin/python" -W ignore setup.py --quiet build --build-base "$(CUDA_ENV)/build"
	@PYTHONPATH="$$(echo "$(CUDA_ENV)"/build/lib.*):tests" "$(CUDA_ENV)/bin/python" tests/support/check_cuda_build.py

readme-figures:
	@mkdir -p "$(FIGURES)"
	cp "$(OUTPUT)/reward.png" "$(OUTPUT)/samples.png" "$(FIGURES)"

clean:
	rm -rf .venv .venv-cuda build dist *.egg-info tempflow_fast/_C.so tempflow_fast/_build.json

# The environment is made once. The package is installed again when the library's sources, the metadata or TORCH change.
$(STAMP): $(SOURCES) .venv/.torch
	@echo "== installing $(TORCH) and its dependencies"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check $(TORCH)
	@echo "== installing tempflow-fast and building its library"
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check --editable .
	@$(VENV_PYTHON) -m tempflow_fast info | grep '^native'
	@touch $(STAMP)

# The package is installed already, so pip adds only what the extra names.
.venv/.test .venv/.dev: .venv/.%: $(STAMP)
	@echo "== installing tempflow-fast[$*]"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check "tempflow-fast[$*]"
	@touch $@

.venv/.torch: FORCE
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory .venv
	@echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@

.venv: FORCE
	@echo "== making .venv with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not that; name another with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' cannot make environments: install its venv module (Debian: python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv

FORCE:
