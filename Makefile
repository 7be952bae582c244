PYTHON ?= python
SANITIZE_DIR = build/sanitize
.DEFAULT_GOAL := help
ARM_CC ?= aarch64-linux-gnu-gcc
ARM_EMULATOR ?= qemu-aarch64-static -L /usr/aarch64-linux-gnu
# those of setup.py
DRIVER_FLAGS = -O3 -std=gnu11 -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wno-unknown-pragmas -Wno-psabi
DRIVER_SOURCES = tests/driver/driver.c $(wildcard csrc/*.c csrc/targets/*.c)
DRIVER_DEPENDS = $(DRIVER_SOURCES) $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.inc csrc/*/*.def)

# One object per source, so that -j compiles the targets side by side.
define driver_of
build/$(1)/%.o: %.c $$(DRIVER_DEPENDS)
	@mkdir -p $$(@D)
	$(2) $$(DRIVER_FLAGS) -Icsrc -c $$< -o $$@
build/$(1)/driver: $$(DRIVER_SOURCES:%.c=build/$(1)/%.o)
	$(2) $$^ -pthread -o $$@
endef
$(eval $(call driver_of,driver,$$(CC)))
$(eval $(call driver_of,driver-arm,$$(ARM_CC)))

# The targets' own files, with another table beside them: the elementary functions instead of the kernels.
ACCURACY = tests/accuracy
define ulp_of
build/$(1)/ulp: $$(DRIVER_DEPENDS) $$(wildcard $$(ACCURACY)/*)
	rm -rf $$(@D)
	mkdir -p $$(@D)/kernels
	cp -r csrc/targets csrc/simd csrc/fastbatch.h $$(@D)
	cp $$(ACCURACY)/table.inc $$(ACCURACY)/functions.def $$(@D)/kernels
	$(2) $$(DRIVER_FLAGS) -I$$(@D) -I$$(@D)/kernels $$(ACCURACY)/ulp_f64.c $$(@D)/targets/*_f64.c -lm -pthread -o $$@_f64
	$(2) $$(DRIVER_FLAGS) -I$$(@D) -I$$(@D)/kernels $$(ACCURACY)/ulp.c $$(@D)/targets/*_f32.c -lm -pthread -o $$@
endef
$(eval $(call ulp_of,ulp,$$(CC)))
$(eval $(call ulp_of,ulp-arm,$$(ARM_CC)))

.PHONY: help build test test-all test-simulated test-compiled test-gpu test-driver test-arm ulp ulp-arm
.PHONY: bench peers growth grid memory readme lint format sanitize clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1:\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS=: read -r target text; do printf '  make %-16s%s\n' "$$target" "$$text"; done

build:  ## compile the C extension in place; `pip install -e '.[test,dev]'` once before it
	$(PYTHON) setup.py build_ext --inplace

test:  ## the default tier of the tests
	$(PYTHON) -m pytest

test-all:  ## all tests, the exhaustive ones with them
	$(PYTHON) -m pytest -m ""

CUDA_TESTS = $(wildcard tests/test_cuda_*.py)
# the longest first
SIMULATED = $(patsubst tests/test_%.py,simulated-%,tests/test_cuda_tensor.py $(filter-out %_gpu.py %_tensor.py,$(CUDA_TESTS)))
test-simulated: $(SIMULATED)  ## kernels of the cuda backend in numba-cuda's simulator, -j2 halves it; needs fastbatch[cuda], no GPU
$(SIMULATED): simulated-%:
	NUMBA_ENABLE_CUDASIM=1 $(PYTHON) -m pytest tests/test_$*.py $(ARGS)

test-compiled:  ## every kernel of the cuda backend through NVIDIA's compilers; needs fastbatch[cuda], no GPU (12 minutes)
	$(PYTHON) -m pytest -m gpu tests/test_cuda.py $(ARGS)

# The sanitizer watches few tests, being some 50 times slower.
test-gpu:  ## the cuda backend on this machine's GPU; under compute-sanitizer, too, where that is installed
	FASTBATCH_EXPECT=cuda $(PYTHON) -m pytest -m "" tests/test_cuda.py $(CUDA_TESTS) $(ARGS)
	@if command -v compute-sanitizer >/dev/null; then \
		for tool in memcheck racecheck; do \
			compute-sanitizer --tool $$tool --error-exitcode 1 $(PYTHON) -m pytest -x -q -p no:cacheprovider \
				$(CUDA_TESTS) -k "everything or narrow or gradient_of_batch" || exit 1; \
		done; \
	else echo "NOT RUN: compute-sanitizer is not installed"; fi

test-driver: build/driver/driver  ## the kernels without Python: a C program judges the same cases
	$(PYTHON) tests/drive.py $<

test-arm: build/driver-arm/driver  ## the same on AArch64: aarch64-linux-gnu-gcc and qemu-aarch64-static
	$(PYTHON) tests/drive.py $< $(ARM_EMULATOR)

ulp: build/ulp/ulp  ## every float32, and samples of float64, through csrc/simd/math.h, into docs/accuracy.md (20 minutes)
	$< 1 $$(nproc) >build/ulp/found.txt
	$(PYTHON) $(ACCURACY)/document.py $$(uname -m) float32 <build/ulp/found.txt
	$<_f64 4000000 $$(nproc) >build/ulp/found_f64.txt
	$(PYTHON) $(ACCURACY)/document.py $$(uname -m) float64 <build/ulp/found_f64.txt

ulp-arm: build/ulp-arm/ulp  ## every 97th float32, fewer samples of float64, on the emulated AArch64 targets, into the same page
	$(ARM_EMULATOR) $< 97 $$(nproc) >build/ulp-arm/found.txt
	$(PYTHON) $(ACCURACY)/document.py aarch64 float32 <build/ulp-arm/found.txt
	$(ARM_EMULATOR) $<_f64 100000 $$(nproc) >build/ulp-arm/found_f64.txt
	$(PYTHON) $(ACCURACY)/document.py aarch64 float64 <build/ulp-arm/found_f64.txt

bench:  ## kernels, steps, epochs, predict, calls, import, with pytest-benchmark
	$(PYTHON) -m pytest benchmarks --benchmark-only $(ARGS)

peers:  ## fastbatch beside every installed peer: `fastbatch bench`; ARGS=--quick for four workloads
	$(PYTHON) -m fastbatch bench $(ARGS)

growth:  ## time per step against batch, width, depth, threads -> docs/growth.svg
	$(PYTHON) benchmarks/growth.py $(ARGS)

grid:  ## look for the networks where fastbatch does worst; ARGS='--seconds 3600'
	$(PYTHON) benchmarks/grid.py $(ARGS)

memory:  ## peak memory beside the peers
	$(PYTHON) benchmarks/memory.py $(ARGS)

readme:  ## measure again what README.md and docs/speed.md show; on a quiet machine
	$(PYTHON) benchmarks/readme.py $(ARGS)

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
	cp -r csrc docs examples fastbatch tests Makefile setup.py pyproject.toml *.md LICENSE $(SANITIZE_DIR)
	rm -f $(SANITIZE_DIR)/fastbatch/_native*.so
	cd $(SANITIZE_DIR) && DEBUG=1 SANITIZE=address,undefined $(PYTHON) setup.py build_ext --inplace
	cd $(SANITIZE_DIR) && \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=. \
		$(PYTHON) -m pytest -p no:cacheprovider --capture=sys -m "not torch and not exhaustive" \
		--deselect tests/test_memory.py::test_repeated_runs_do_not_grow $(ARGS)

clean:  ## remove what was built
	rm -rf build dist *.egg-info fastbatch/_native.c fastbatch/_native*.so
