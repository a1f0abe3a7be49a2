# Every target makes .venv on first use. EXTRA=gpu picks the GPU build of onnxruntime.
PYTHON ?= python3
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PROTOS := $(wildcard protos/interpret_api/*/*.proto)
MESSAGES := interpret_server/engine/workers/protocol.proto

.PHONY: demo test serve bench onnx-coverage docs-pictures gallery protos lint types clean

demo: $(VENV)/.demo
	$(BIN)/interpret-server demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

serve: $(VENV)/.demo
	$(BIN)/interpret-server serve $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

onnx-coverage: $(VENV)/.test
	$(BIN)/python tests/models/onnx_coverage.py docs/onnx-coverage.md

# NETWORK: SqueezeNet 1.1 for ImageNet as TorchScript, RGB in [0, 1].
docs-pictures: $(VENV)/.test
	$(BIN)/python examples/docs_pictures.py $(NETWORK) docs/pictures

# The same NETWORK; writes gallery-output/index.html.
gallery: $(VENV)/.test
	$(BIN)/python examples/synthesis_gallery.py $(NETWORK) gallery-output $(ARGS)

protos: $(VENV)/.test
	$(BIN)/python -m interpret_api.generate
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. $(MESSAGES)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch goes in first: an open-ended requirement could bring gigabytes of CUDA packages.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	$(PIP) install -c constraints.txt torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[$(EXTRA),demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e '.[$(EXTRA),test]'
# It asks for opencv-python, which overwrites the headless build and needs a display's libraries.
	$(PIP) install -c constraints.txt --no-deps quantus
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) demo-output gallery-output
