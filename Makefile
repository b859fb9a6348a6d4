# The developer's front door. `make demo` and `make test` set everything up themselves.
#   PYTHON=python3.12   the interpreter for the virtual environment (3.10 to 3.12)
#   VENV=.venv          where it goes; reused afterwards

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

OPERATOR_SOURCES := $(shell find ops_dcnv3 -name tests -prune -o -name build -prune -o -type f \
	\( -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \
	-o -name 'pyproject.toml' \) -print)

.PHONY: help setup setup-openmmlab demo test check sync format bench clean

help:
	@echo "make setup    virtual environment with the tested versions, operator compiled, models"
	@echo "make setup-openmmlab   the same, with OpenMMLab for the other tasks (compiles mmcv: minutes)"
	@echo "make demo     train, evaluate and predict on real images (handwritten digits)"
	@echo "make test     all tests"
	@echo "make check    formatting, lint, vendored copies and generated files"
	@echo "make sync     refresh the vendored copies and generated files"
	@echo "make format   format the code"
	@echo "make bench    time the operator and the models on the CPU (half an hour)"
	@echo "make clean    remove the virtual environment and build leftovers"

setup: $(STAMPS)/operator $(STAMPS)/models

setup-openmmlab: $(STAMPS)/openmmlab

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(None if (3, 10) <= v <= (3, 12) else \
	"InternImage needs Python 3.10 to 3.12, $(PYTHON) is %d.%d; try make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

REQUIREMENTS := $(addprefix requirements/,classification.txt dev.txt huggingface.txt tools.txt large.txt)

$(STAMPS)/requirements: $(STAMPS)/python $(REQUIREMENTS) requirements/constraints.txt
	$(BIN)/python -m pip install $(addprefix -r ,$(filter-out %/large.txt,$(REQUIREMENTS))) \
		-c requirements/constraints.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --no-build-isolation -r requirements/large.txt \
		-c requirements/constraints.txt
	@touch $@

$(STAMPS)/operator: $(STAMPS)/requirements $(OPERATOR_SOURCES)
	$(BIN)/python -m pip install --no-build-isolation --no-deps --force-reinstall ./ops_dcnv3
	cd / && $(abspath $(BIN))/python -m ops_dcnv3
	@touch $@

$(STAMPS)/models: $(STAMPS)/operator classification/pyproject.toml
	$(BIN)/python -m pip install --no-build-isolation --no-deps --editable ./classification
	@touch $@

OPENMMLAB := $(addprefix requirements/,openmmlab.txt openmmlab-nodeps.txt driving.txt deploy.txt)

# -g0: debug information would double the time that compiling mmcv-full takes
$(STAMPS)/openmmlab: $(STAMPS)/models $(OPENMMLAB)
	$(BIN)/python -m pip install -r requirements/openmmlab.txt -r requirements/driving.txt \
		-c requirements/constraints.txt
	CFLAGS="-g0 $$CFLAGS" $(BIN)/python -m pip install --no-build-isolation --no-deps \
		-r requirements/openmmlab-nodeps.txt -c requirements/constraints.txt
	$(BIN)/python -m pip install -r requirements/deploy.txt -c requirements/constraints.txt
	@touch $@

demo: setup
	bash tools/demo.sh $(BIN)/python

test: setup-openmmlab
	$(BIN)/python tools/test.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tools/sync.py --check

sync: setup
	$(BIN)/python tools/sync.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python ops_dcnv3/benchmarks/bench_op.py
	$(BIN)/python ops_dcnv3/benchmarks/bench_op.py --dtype bfloat16
	$(BIN)/python classification/benchmarks/bench_model.py
	$(BIN)/python classification/benchmarks/bench_model.py --train --batch 2
	$(BIN)/python classification/benchmarks/bench_model.py --sizes small base large --batch 1

clean:
	rm -rf $(VENV) ops_dcnv3/build ops_dcnv3/*.egg-info
