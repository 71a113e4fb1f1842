# make             this list
# make demo        the tiny world on the real stack, on this machine's CPU
# make test        the checks and every test but long ones; make test-fast: those that start no engine
# make test-long   long real runs: pages' commands, a pretrained model, freezes, lost machines
# make gpu-check   the first quarter of an hour on a GPU: does it work there, and how fast (docs/gpu.md)
# make test-faults a run to which one fault after another is done: half an hour
# make soak        the same for an hour, adding up in benchmarks/faults (docs/reliability.md)
# make lint        ruff and mypy
# make learn-check the whole tiny_cpu run with three seeds: does it learn?
# make lab-quick   two arms, two seeds, the laboratory's report: under 10 minutes
# make tiny-models train tiny models again (over an hour of two cores)
# Every target sets up .venv first, once (3 minutes, 4.4 GB); gpu-check does so with the stack for GPUs (make setup-gpu).
# ARGS="..." goes to the program, e.g. make demo ARGS="seed=1".

SHELL := /bin/bash
PY := .venv/bin/python
export CAPO_TEST_DATA ?= $(abspath ../shared/data)

# Two processes, a file in one of them, in the order of tests/conftest.py; one OpenMP thread each, since more threads
# than cores starve one another.
BY_FILE := --dist loadfile --no-loadscope-reorder
PARALLEL := -n 2 $(BY_FILE)
# Of whole runs too, since each leaves a part of the cores idle; a machine of less than 20 GB has one at a time.
RUNS := -n $(shell awk '/^MemTotal/ {print ($$2 > 20e6) ? 2 : 1}' /proc/meminfo) $(BY_FILE)
test test-fast test-long: export OMP_NUM_THREADS ?= 1
# Ray gives its workers the lowest priorities: of two runs at a time one would starve beside the other's plain processes.
test test-long: export RAY_worker_niceness ?= 0

.PHONY: help demo test test-fast test-long test-faults soak gpu-check lint setup setup-gpu learn-check lab-quick tiny-models

help:
	@sed -n 's/^# //p; /^$$/q' Makefile

demo: setup
	$(PY) -m capo_ray.launch +experiment=tiny_cpu $(ARGS)

test: lint
	$(PY) -m pytest -q $(PARALLEL) -m "not ray and not e2e and not long" --strict-skips --durations 10 $(ARGS)
	$(PY) -m pytest -q $(RUNS) -m "(ray or e2e) and not long" --strict-skips --durations 15 $(ARGS)

test-fast: setup
	$(PY) -m pytest -q $(PARALLEL) -m "not engine and not ray and not e2e and not slow and not long" $(ARGS)

test-long: setup
	$(PY) -m pytest -q $(RUNS) -m "long and not alone and not faults" --strict-skips --durations 0 $(ARGS) || [ $$? = 5 ]
	$(PY) -m pytest -q -m "long and alone and not faults" --strict-skips --durations 0 $(ARGS) || [ $$? = 5 ]

test-faults: setup
	$(PY) -m pytest -q -m faults --strict-skips $(ARGS)

soak: setup
	$(PY) -m capo_ray.faults out=benchmarks/faults into=docs/reliability.md $(ARGS)

# A trial with device=cpu is for machines that hold the stack for CPU.
gpu-check: $(if $(findstring device=cpu,$(ARGS)),setup,setup-gpu)
	$(PY) -m capo_ray.gpu_check $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

learn-check: setup
	$(PY) benchmarks/learn_check.py $(ARGS)

lab-quick: setup
	$(PY) -m capo_ray.lab run=quick $(ARGS)

tiny-models: setup
	$(PY) -m capo_ray.tasks.arithmetic.models $(ARGS)

setup:
	@requirements/setup.sh cpu

setup-gpu:
	@requirements/setup.sh gpu
