PYTHON ?= python
SANITIZE_DIR = build/sanitize

.DEFAULT_GOAL := help
.PHONY: help build test bench lint format sanitize clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/\1:\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS=: read -r target text; do printf '  make %-10s%s\n' "$$target" "$$text"; done

build:  ## compile the C extension in place; `pip install -e '.[test,dev]'` once before it
	$(PYTHON) setup.py build_ext --inplace

test:  ## the tests
	$(PYTHON) -m pytest

bench:  ## time per step and of predict, with pytest-benchmark
	$(PYTHON) -m pytest benchmarks --benchmark-only

lint:  ## ruff (lint and format) and mypy
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

format:  ## let ruff format the Python files
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

# A copy, so that the extension in the work tree stays as it is. libasan has to come before Python's own libraries, and
# libstdc++ with it for the exceptions of other extensions. CPython itself leaks on purpose, and an absurd size is to be
# a MemoryError as ever. --capture=sys: a report goes past pytest before the process ends. The growth test is left out:
# the sanitizer's quarantine of freed memory grows on purpose.
sanitize: export CC = gcc
sanitize:  ## run the tests against a build with the address and undefined-behaviour sanitizers (gcc)
	rm -rf $(SANITIZE_DIR)
	mkdir -p $(SANITIZE_DIR)
	cp -r csrc fastbatch tests setup.py pyproject.toml README.md LICENSE $(SANITIZE_DIR)
	rm -f $(SANITIZE_DIR)/fastbatch/_native*.so
	cd $(SANITIZE_DIR) && DEBUG=1 SANITIZE=address,undefined $(PYTHON) setup.py build_ext --inplace
	cd $(SANITIZE_DIR) && \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=. \
		$(PYTHON) -m pytest -p no:cacheprovider --capture=sys -m "not torch" \
		--deselect tests/test_memory.py::test_repeated_runs_do_not_grow $(ARGS)

clean:  ## remove what was built
	rm -rf build dist *.egg-info fastbatch/_native.c fastbatch/_native*.so
