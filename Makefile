# Every target works alone on a fresh machine with Python 3.10 to 3.13 and a C compiler: it makes .venv first.
#   make demo PYTHON=python3.12      to choose the interpreter of a new .venv

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check --quiet -c constraints.txt
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
LEARNING := $(VENV)/.installed-learn
TORCH_INDEX ?=

.PHONY: demo demo-cls test test-mcu test-fpga lint types docs

demo: $(INSTALLED)
	$(RUN) -m examples.ocr.recognize $(ARGS)

# The quick one.
demo-cls: $(INSTALLED)
	$(RUN) -m examples.ocr.classify $(ARGS)

# Passes that learn need torch. PyPI's wheel for Linux brings CUDA along; this index has one that does not:
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Two processes, each with whole files of tests; WORKERS=0: one, as a debugger wants it.
WORKERS ?= 2
test: $(LEARNING)
	$(RUN) -m pytest tests -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Two networks on emulated boards (BOARDS=all: every board); installs compilers and emulators where it may.
BOARDS ?= m4,rv32
test-mcu: $(INSTALLED)
	tests/mcu/install.sh
	QCOMPILER_BOARDS=$(BOARDS) timeout 900 $(RUN) -m pytest tests/mcu $(ARGS)

# Every module of the RTL library and whole networks in Icarus Verilog and Verilator; installs them where it may.
test-fpga: $(INSTALLED)
	tests/targets/fpga/install.sh
	QCOMPILER_FPGA=1 $(RUN) -m pytest tests/targets/fpga tests/conformance/test_fpga.py $(ARGS)

lint: $(DEVELOPMENT) types
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(INSTALLED)
	$(RUN) docs/build.py

# mypy and editors see the rooms where they import from: as parts of the package.
types:
	@rm -rf build/types && mkdir -p build/types/qcompiler
	@for part in qcompiler/* passes targets runtime; do \
	    case $$part in *__pycache__) ;; *) ln -s "$(CURDIR)/$$part" build/types/qcompiler/ ;; esac; done

$(RUN):
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 14) else "Python 3.10 to 3.13 is needed; say make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(RUN)
	$(PIP) -e '.[test,images,docs]'
	@touch $@

$(LEARNING): $(INSTALLED)
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[test,images,docs,learn]'
	@touch $@

$(DEVELOPMENT): $(INSTALLED)
	$(PIP) -e '.[test,images,docs,dev]'
	@touch $@
