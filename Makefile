# The variables to set: make demo FRAMEWORKS=torch, make test TORCH=2.14.1,
# make bench BENCH='--parts exchange --ranks 6'
FRAMEWORKS ?= torch tensorflow
TORCH ?= 2.13.0
TENSORFLOW ?= 2.21.0
# MPI=1: Horovod with MPI beside Gloo; "make test-mpi" does so in an environment of its own.
MPI ?=
# The CUDA build of torch that Horovod is built for with NCCL, where $(PYTHON) has none.
NCCL_TORCH ?= 2.14.1
# What a machine without network needs for the tests on a GPU, and its Python.
GATHERED ?= build/gathered
GATHERED_PYTHON ?= 3.12

ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
    echo $$python && break; done)
endif

requirement_torch := torch==$(TORCH)
requirement_tensorflow := tensorflow-cpu==$(TENSORFLOW)
requirements := $(foreach framework,$(FRAMEWORKS),$(or $(requirement_$(framework)),\
    $(error FRAMEWORKS is "$(FRAMEWORKS)": only torch and tensorflow are known)))

SHELL := bash
venv := .venv
installed := $(venv)/installed-$(subst ==,-,$(subst $() ,-,$(requirements)))$(if $(MPI),-mpi)
build_horovod := tools/build_horovod.py $(if $(MPI),--mpi)
pip := $(venv)/bin/python -m pip --disable-pip-version-check
horovodrun := $(venv)/bin/horovodrun --gloo
mpirun := mpirun --oversubscribe --bind-to none $(if $(filter 0,$(shell id -u)),--allow-run-as-root)
# The ranks of a job share the processors: one thread each.
job_environment := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2 \
    TF_ENABLE_ONEDNN_OPTS=0
# Run tests on the ranks that a launcher starts; with Horovod's own, on so many. Where one takes too
# long, each rank shows its stacks before the first of them ends the job.
limit := 1500
ranks = $(job_environment) timeout --foreground --kill-after=30 $(limit) $(1) \
    $(venv)/bin/python -m pytest -p no:cacheprovider --timeout-method=thread \
    -o faulthandler_timeout=100
job = $(call ranks,$(horovodrun) -np $(1))
one_process = $(job_environment) timeout --foreground --kill-after=30 7200 $(venv)/bin/python -m pytest
smoke := tests/test_imports.py tests/test_config.py tests/test_history.py tests/test_path.py \
    tests/test_promises.py tests/test_process.py tests/vote tests/packing/test_layout.py tests/determinism \
    tests/frontend/test_session.py tests/exchange/test_witnesses.py tests/aggregators/test_hierarchy.py

# Run an example on 6 ranks, without the launcher's labels.
show = set -o pipefail; $(job_environment) timeout --foreground --kill-after=30 900 \
    $(horovodrun) -np 6 $(venv)/bin/python $(1) --compare \
    2> >(sed -u 's/\[[0-9]*\]<stderr>://g' >&2) \
    | sed -u 's/^\[[0-9]*\]<stdout>://; s/ *$$//'

# More: make image IMAGE_OPTIONS='--build-arg MPI=1'
image_options := --build-arg FRAMEWORKS="$(FRAMEWORKS)" --build-arg TORCH=$(TORCH) \
    --build-arg TENSORFLOW=$(TENSORFLOW) $(IMAGE_OPTIONS)

.PHONY: help setup demo demo-tf bench check test test-oldest one-process soak mutants test-hosts
.PHONY: test-mpi mpi-job check-nccl gather test-gpu test-nccl bench-gpu gpu gpu-environment
.PHONY: lint docs format
.PHONY: image image-test clean

help:
	@echo "make setup    install everything into $(venv), Horovod included"
	@echo "make demo     train on 6 ranks, two of them faulty, with plain Horovod and with DETOX"
	@echo "make demo-tf  the same with Keras"
	@echo "make bench    measure exchanges, rules and training; write docs/benchmarks.md (45 minutes)"
	@echo "make check    style, types and the tests that matter most (2 minutes)"
	@echo "make test     run all tests, in one process and on 3, 4, 6 and 9 ranks (30 to 60 minutes)"
	@echo "make test-oldest  one process, without Horovod, with the oldest versions that are allowed"
	@echo "make soak     what takes long by its nature: thousands of steps, every pair of all things"
	@echo "make mutants  break the package in many ways, one at a time: does a test see it?"
	@echo "make test-hosts  test jobs on three hosts, made of namespaces (root, 2 minutes)"
	@echo "make test-mpi    build Horovod with MPI in .venv-mpi and run tests of torch with it"
	@echo "make check-nccl  build Horovod with NCCL in .venv-gpu (6 GB) and check what needs no GPU"
	@echo "make test-gpu    run the tests of a device on a GPU, in one process without Horovod"
	@echo "make test-nccl   build Horovod with NCCL and run jobs on 4 and 6 ranks on a GPU (or more)"
	@echo "make bench-gpu   time rules, digests and packing on a GPU against copying its memory"
	@echo "make gather      put what these three need into $(GATHERED), for a machine without network"
	@echo "make lint     check style and types"
	@echo "make docs     build the pages of docs/ as a site in build/docs; warnings are errors (seconds)"
	@echo "make format   rewrite the code in the project's style"
	@echo "make image    build the image for clusters with docker, podman or buildah"
	@echo "make image-test  build it and run jobs in it, on hosts made of it, too (25 minutes)"
	@echo "make clean    remove $(venv) and what tests leave behind"

setup: $(installed)

$(installed): pyproject.toml setup.py $(wildcard tools/*.py tools/cmake/*.cmake)
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is missing." \
	    "On Debian or Ubuntu: apt-get install python3 python3-dev python3-venv"; exit 1; }
	@$(PYTHON) $(build_horovod) --prepare
	@[ -x $(venv)/bin/python ] || $(PYTHON) -m venv $(venv)
	@echo "1 of 3: $(requirements) and the rest into $(venv): minutes, if nothing is in pip's cache"
	@$(pip) install -qq $(requirements) --editable '.[docs,lab,measuring,test]'
	@echo "2 of 3: Horovod"
	@$(venv)/bin/python $(build_horovod)
	@echo "3 of 3: the aggregation rules, compiled by Numba: some 15 seconds, once"
	@$(venv)/bin/python -c 'from horovod_detox.arrays import compilation; compilation.prepare()'
	@rm -f $(venv)/installed-*
	@touch $@

demo: $(installed)
	@$(call show,examples/torch/digits.py)

demo-tf: $(installed)
	@$(call show,examples/tf/digits.py)

bench: $(installed)
	timeout --foreground --kill-after=30 3600 $(venv)/bin/python -m benchmarks $(BENCH)

# What a change is checked by between two thoughts: style, types, the promise in one process and on
# 4 ranks.
check: lint
	$(one_process) -q --numprocesses=2 --dist=worksteal $(smoke)
	$(call job,4) -q tests/distributed/$(firstword $(FRAMEWORKS))/test_trajectory.py

test: $(installed)
	$(one_process) --numprocesses=2 --dist=worksteal
	@set -ex; for framework in $(FRAMEWORKS); do \
	    $(call job,3) tests/distributed/$$framework/test_shapes.py; \
	    for ranks in 4 6; do $(call job,$$ranks) tests/distributed/$$framework; done; done
ifneq ($(filter torch,$(FRAMEWORKS)),)
	$(call job,9) tests/distributed/torch/test_simulation.py
endif

# Without Horovod and TensorFlow, and with everything as old as pyproject.toml allows.
test-oldest: extras := torch lab measuring test
test-oldest:
	@[ -n "$(PYTHON)" ]
	@[ -x .venv-oldest/bin/python ] || $(PYTHON) -m venv .venv-oldest
	@$(PYTHON) tools/oldest.py $(extras) > .venv-oldest/constraints.txt
	@.venv-oldest/bin/python -m pip --disable-pip-version-check install --quiet \
	    --constraint .venv-oldest/constraints.txt --editable '.[torch,lab,measuring,test]'
	@# Two workers that compile at once would write over each other's code on disk.
	@.venv-oldest/bin/python -c 'from horovod_detox.arrays import compilation; compilation.prepare()'
	$(MAKE) one-process venv=.venv-oldest

one-process:
	$(one_process) --numprocesses=2 --dist=worksteal

# Thousands of steps, and every rule in every exchange under every attack.
soak: export SOAK = 5000
soak: limit := 7200
soak: $(installed)
	$(one_process) --numprocesses=2 --dist=worksteal tests/test_trajectory.py
	$(call job,6) --timeout=7200 tests/distributed/torch/test_endurance.py \
	    tests/distributed/torch/test_thread.py
	$(call job,6) --timeout=7200 tests/distributed/tensorflow/test_endurance.py \
	    tests/distributed/tensorflow/test_shapes.py
	$(call job,4) --timeout=7200 tests/distributed/tensorflow
	$(call job,9) --timeout=7200 tests/distributed/torch/test_replicas.py
	$(one_process) --numprocesses=2 --dist=worksteal tests/watch/test_stops.py

mutants: $(installed)
	$(venv)/bin/python tools/mutants.py $(MUTANTS)

test-hosts: $(installed)
	@$(venv)/bin/python tools/prepare_test_hosts.py
	$(job_environment) timeout --foreground --kill-after=30 600 $(venv)/bin/python -m pytest tests/hosts

test-mpi:
	$(MAKE) mpi-job venv=.venv-mpi FRAMEWORKS=torch MPI=1

mpi-job: $(installed)
	$(call ranks,$(venv)/bin/horovodrun --mpi -np 4) tests/distributed/torch
	$(call ranks,$(mpirun) -np 4) tests/distributed/torch/test_trajectory.py \
	    tests/distributed/torch/test_groups_and_data.py

# On a machine with a GPU. Without network it takes what `make gather` has put into a folder.
gpu := .venv-gpu
gathered := $(if $(wildcard $(GATHERED)),PIP_NO_INDEX=1 PIP_FIND_LINKS=$(abspath $(GATHERED)))
on_gpu := LD_LIBRARY_PATH=$(abspath $(gpu)/driver):$$LD_LIBRARY_PATH OMP_NUM_THREADS=1
gpu_tests := tests/arrays tests/exchange/test_on_a_device.py tests/exchange/test_on_a_stream.py
limited := timeout --foreground --kill-after=30 $(limit)
gpu_job = $(on_gpu) $(limited) $(gpu)/bin/horovodrun --gloo -np $(1) \
    $(gpu)/bin/python -m pytest -p no:cacheprovider --timeout-method=thread -W default -v \
    --device cuda tests/distributed/torch/test_device.py

gather:
	$(PYTHON) tools/gather.py $(GATHERED) --python $(GATHERED_PYTHON)

gpu:
	@$(PYTHON) tools/require_gpu.py

gpu-environment:
	@$(PYTHON) tools/gpu_environment.py $(gpu) --torch $(NCCL_TORCH) --gathered $(GATHERED)

# The only one of these that needs no GPU.
check-nccl: gpu-environment
	@$(PYTHON) tools/build_horovod.py --prepare
	$(gathered) $(gpu)/bin/python tools/build_horovod.py --nccl
	$(gpu)/bin/python tools/check_nccl.py

test-gpu: gpu gpu-environment
	$(on_gpu) $(limited) $(gpu)/bin/python -m pytest -W default --device cuda -rs $(gpu_tests)

# NCCL carries the gradients; then Gloo does, through main memory. Each line tells that a step is done.
test-nccl: gpu check-nccl
	$(call gpu_job,4)
	$(call gpu_job,6)
	$(gathered) $(gpu)/bin/python tools/build_horovod.py
	$(call gpu_job,4)

bench-gpu: gpu gpu-environment
	$(on_gpu) $(limited) $(gpu)/bin/python -m benchmarks.gpu

lint: $(installed)
	$(venv)/bin/ruff check
	$(venv)/bin/ruff format --check
	$(venv)/bin/pyright

docs: $(installed)
	$(venv)/bin/python -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet \
	    docs build/docs
	@echo "Open build/docs/index.html"

format: $(installed)
	$(venv)/bin/ruff check --fix
	$(venv)/bin/ruff format

# Only docker's format has health checks.
image:
	@for engine in docker podman buildah; do \
	    $$engine info > /dev/null 2>&1 || continue; \
	    export BUILDAH_FORMAT=docker; set -x; \
	    exec $$engine build $(image_options) --tag horovod_detox .; \
	done; echo "The image needs docker, podman or buildah, ready to run."; exit 1

image-test:
	$(PYTHON) tools/check_image.py $(image_options)

clean:
	rm -rf $(venv) .venv-mpi .venv-gpu .venv-oldest build *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
