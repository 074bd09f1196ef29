# make demo        train a small convolutional network on real handwritten digits
# make gallery     run every example, and put what they print and draw on one page
# make test        lint, type-check and run the tests, but slow ones that others resemble
# make test-full   every test, as a user compiles it, with 300 examples for each property
# make test-orbax  the tests of checkpoints in object stores
# make test-onnx   the tests of ONNX files
# make test-aot    the tests through the compilers of TPUs and GPUs, of which neither is needed
# make test-serve  the page of a server in a browser, and a minute of load with bad clients
# make bench       time fnn against its peers
#
# Each makes what it needs in .venv and reuses it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The files with tests of bits, unless ARGS names files: collecting all takes longer than running them.
BITS = $(if $(findstring tests/,$(ARGS)),,$$(grep -rl --include='*.py' mark.bits tests))

.PHONY: demo gallery test test-full test-orbax test-onnx test-aot test-serve bench clean

demo: $(VENV)/.examples
	$(BIN)/python examples/mnist_cnn.py $(ARGS)

gallery: $(VENV)/.examples
	$(BIN)/python examples/gallery.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	FNN_QUICK=1 $(BIN)/pytest -n auto --dist worksteal $(ARGS)
	$(BIN)/pytest -n auto --dist worksteal -m "bits and not full" $(ARGS) $(BITS) || test $$? = 5  # none in ARGS

test-full: $(VENV)/.test
	$(BIN)/pytest -n auto --dist worksteal --hypothesis-profile=full $(ARGS)

test-orbax: $(VENV)/.test-orbax
	$(BIN)/pytest tests/checkpoint/test_stores.py $(ARGS)

# In an environment of its own: the converter to ONNX takes an older orbax.
test-onnx:
	$(MAKE) VENV=.venv-onnx .venv-onnx/.test-onnx
	.venv-onnx/bin/pytest -n auto tests/export/test_onnx.py $(ARGS)

# In an environment of its own: with a TPU's library in it, JAX looks for a TPU in every process.
test-aot:
	$(MAKE) VENV=.venv-aot .venv-aot/.test-aot
	JAX_PLATFORMS=cpu .venv-aot/bin/pytest -m aot tests/sharding/test_compiled.py $(ARGS)

# A browser comes from the system, as Debian's package chromium, or by `playwright install chromium`.
test-serve:
	$(MAKE) VENV=.venv-serve .venv-serve/.test-serve
	.venv-serve/bin/pytest tests/serve $(ARGS)
	.venv-serve/bin/python -m benchmarks.serving --soak 60

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run $(ARGS)

# One environment grows by extras; a stamp per extra, remade when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) .venv-onnx .venv-aot .venv-serve
