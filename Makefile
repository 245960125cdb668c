# Every command of the project. Variables are given as `make pretrain CONFIG=paper RUN=runs/paper`.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := bash

VENV ?= .venv
PYTHON ?=
# Images for `beton`: a folder of any layout or a list; for `lineval` a folder of containers.
DATA =
# What DATA is, where the guess is wrong: folders, classes, images, list, tar, parquet or archive.
SOURCE =
# Share of each class to hold out where DATA has no val/: 5% or 0.05.
VAL =
# cifar10, cifar100, stl10, svhn, food101, dtd, cars, sun397, gtsrb, eurosat, pcam, imagenette, pets, flowers102,
# aircraft or caltech101, instead of DATA.
DATASET =
# Where the files of DATASET already are, as torchvision lays them out.
DATASET_ROOT =
# Of lineval: cached or logreg. Numbers of neighbours; training samples: a file of names, 1% or 5-per-class.
PROTOCOL =
KNN =
SUBSET =
# A tree of mask files, such as `make masks` makes.
MASKS =
MAX_RESOLUTION =
QUALITY =
# Greys of over 8 bits: auto, full, minmax, LOW:HIGH or percentile:LOW:HIGH.
RANGE =
# Of TIFFs with several pages: first or all.
PAGES =
# 3, 1 (grey pictures, for model.in_channels=1) or auto (1 if a sample of the images is grey).
CHANNELS =
# jpg, passthrough, raw, yuv420, mix:P or mix:P:yuv420 with a share P of uncompressed samples.
STORE =
MASK_SIZE =
# More images for the containers in OUT, instead of DATA.
ADD =
# Images per container: a split of more becomes a set of containers.
SHARD_SIZE =
# Address of a Ray cluster that converts the shards; auto: this machine's.
RAY =
# heuristic, {selftrained: FILE}, {features: RUN}, {onnx: FILE}, {png: DIR}, center, full, shuffled or
# {noise: P}; with parameters as {name: {key: value, ...}}.
MASK_METHOD =
# I/N: part I of N, for `masks` on several machines.
SHARD =
MASKS_OUT = masks.safetensors
# Where containers are written to and read from: named after the data set or the image folder.
OUT = data/$(or $(DATASET),$(notdir $(patsubst %/,%,$(subst $(space),_,$(DATA)))),demo)
# A folder on each machine's own disk, to which `pretrain` and `finetune` copy the containers first.
STAGE_TO =
RUN = runs/$(notdir $(subst $(space),_,$(OUT)))
CONFIG = demo
DS_CONFIG = ds_configs/cpu.json
EPOCHS =
RANKS = $(if $(filter %/cpu.json,$(DS_CONFIG)),1)
SET =
RESUME =
CKPT = $(RUN)
# The form that `export` writes: folder (timm, torch.hub), torchvision, onnx or detectron2.
TO = folder
# A result.json whose classifier `export` adds.
HEAD =
RANDOM =
# Of `demo` and `evidence`: a small set and few steps, to try every part of it.
QUICK =
# Of `evidence`: suites and arms of experiments/, such as "photos composites/exact".
ONLY =
# Of `cifar10`: how many images in both splits together.
IMAGES =
# Of `lineval`, whose CKPT is then a run: draw the result, too.
PICTURES =
# Of `pictures` and `compare`: folders RUN/eval/<data>-<protocol>, or for `compare` runs, or folders that SEEDS= made.
RESULT =
RESULTS =
# Of `finetune`: a preset of harl_fast/configs/finetune or a YAML file.
PRESET =
# Of `finetune` and `evidence`: how many times, each with another seed.
SEEDS =
COUNT = 8
TESTS = tests
# Processes among which `test` divides the files of tests.
JOBS = 2
# Of `plan`: a machine (8xA100-80GB, 128, 1000GB), how many of them, and their network (100Gb);
# price of a GPU and hour; changes to compare with ("gpus=8xH100-80GB cores=64"); containers to measure on.
GPUS =
CORES =
RAM =
NODES =
NETWORK =
PRICE =
COMPARE =
MEASURE =
# For bench-masks: images/ and masks/; photos; RGBA cut-outs; a trained and an ONNX network.
HORSES =
PHOTOS =
STAMPS =
NETWORK =
ONNX =
# Shorthands of `pretrain` for train_batch_size, optim.lr and data.workers.
BATCH =
LR =
WORKERS =
# Anything else that a program's --help names.
ARGS =

# What may stand on the command line besides VENV, by target.
TAKES_setup = PYTHON
TAKES_doctor = PYTHON DATA ARGS
TAKES_test = PYTHON TESTS JOBS ARGS
TAKES_test-slow = PYTHON TESTS ARGS
TAKES_lint = PYTHON
TAKES_docs = PYTHON
TAKES_beton = DATA ADD SOURCE VAL DATASET_ROOT DATASET OUT MASKS MASK_METHOD MASK_SIZE STORE QUALITY MAX_RESOLUTION RANGE \
	PAGES CHANNELS SHARD_SIZE RAY WORKERS ARGS
TAKES_masks = DATA SOURCE VAL OUT MASKS MASK_METHOD SHARD MAX_RESOLUTION RANGE PAGES CHANNELS WORKERS ARGS
TAKES_masks-train = DATA SOURCE VAL MASKS_OUT ARGS
TAKES_pretrain = DATA DATASET OUT RUN CONFIG DS_CONFIG RANKS EPOCHS BATCH LR WORKERS SET STAGE_TO RESUME ARGS
TAKES_demo = QUICK EPOCHS ARGS
TAKES_evidence = DATA QUICK ONLY SEEDS EPOCHS ARGS
TAKES_lineval = CKPT RUN DATA DATASET DATASET_ROOT OUT RANDOM EPOCHS WORKERS PROTOCOL KNN SUBSET PICTURES ARGS
TAKES_finetune = CKPT DATA DATASET OUT RUN PRESET SUBSET SEEDS RANDOM DS_CONFIG RANKS EPOCHS BATCH LR WORKERS SET \
	STAGE_TO RESUME ARGS
TAKES_cifar10 = DATA OUT RUN DS_CONFIG EPOCHS IMAGES ARGS
TAKES_pictures = RESULT DATA OUT ARGS
TAKES_compare = RESULTS OUT ARGS
TAKES_export = CKPT RUN OUT TO HEAD ARGS
TAKES_plan = GPUS CORES RAM NODES NETWORK PRICE COMPARE MEASURE IMAGES EPOCHS BATCH STORE CONFIG SET OUT ARGS
TAKES_preview = DATA DATASET OUT RUN CONFIG COUNT SET ARGS
TAKES_bench-loader = DATA ARGS
TAKES_bench-step = DATA ARGS
TAKES_bench-eval = DATA ARGS
TAKES_bench-learning = DATA SEEDS EPOCHS ARGS
TAKES_bench-plan = DATA ARGS
TAKES_bench-convert = DATA ARGS
TAKES_gpu-check = DATA OUT ARGS
TAKES_gpu-wheels = OUT ARGS
TAKES_bench-masks = HORSES PHOTOS STAMPS NETWORK ONNX ARGS
TAKES_bench = DATA $(TAKES_bench-masks)
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
TAKEN := VENV $(foreach goal,$(MAKECMDGOALS),$(TAKES_$(goal)))
UNKNOWN := $(filter-out $(TAKEN) MAKE%,$(GIVEN))
ifneq ($(UNKNOWN),)
$(error $(firstword $(UNKNOWN))= is no variable of `make $(MAKECMDGOALS)`, which takes $(TAKEN). \
What else its program can do goes into ARGS="--option value")
endif
# What is to be read: nothing would mean another set, such as the generated one.
$(foreach name,DATA ADD DATASET DATASET_ROOT MASKS,$(if $(filter $(name),$(GIVEN)),$(if $($(name)),,\
	$(error $(name)= is empty: set the variable of the shell that it is from, or leave it out))))
# Of a switch any text would be a yes, 0 and no, too.
$(foreach name,QUICK RANDOM RESUME PICTURES,$(if $(filter-out 1,$($(name))),\
	$(error $(name)=$($(name)): give $(name)=1, or leave it out)))

space := $(subst ,, )
# The last part of a path, spaces and all, of which make itself would see several words.
last = $(subst |,$(space),$(notdir $(patsubst %/,%,$(subst $(space),|,$(1)))))
# The run of a checkpoint, which may be named by its folder, with a slash behind it or not.
step_in = $(if $(filter step-%,$(notdir $(1))),$(patsubst %/,%,$(dir $(1))),$(1))
run_of = $(subst |,$(space),$(patsubst %/checkpoints,%,$(call step_in,$(patsubst %/,%,$(subst $(space),|,$(1))))))
BIN := $(if $(filter /%,$(VENV)),$(VENV),$(CURDIR)/$(VENV))/bin
# DeepSpeed's launcher and torch look for ninja and python there: nothing needs to be activated.
export PATH := $(BIN):$(PATH)
# An option whose variable is set: $(call option,--max-resolution,$(MAX_RESOLUTION))
option = $(if $(2),$(1) "$(2)")

.PHONY: help setup doctor lint docs test test-slow beton masks masks-train pretrain demo evidence lineval finetune \
	cifar10 pictures compare export plan preview bench bench-convert bench-eval bench-learning bench-loader bench-masks \
	bench-plan bench-step gpu-check gpu-wheels clean

help: ## Show this list
	@echo "make demo runs everything at small size; make test checks it. Targets:"
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/  \1\t\2/p' Makefile | expand -t 14
	@echo "Variables: $(foreach v,VENV OUT RUN CONFIG DS_CONFIG CKPT,$(v)=$($(v)))"

setup: ## Install what is missing: system packages, VENV, Python packages [PYTHON=<interpreter>]
	@VENV="$(VENV)" PYTHON="$(PYTHON)" bash launch/setup.sh

doctor: ## Say what this machine has, what is missing and what to do [DATA=<containers>]
	@py="$(BIN)/python"; [ -x "$$py" ] || py="$(or $(PYTHON),python3)"; \
	"$$py" -m harl_fast.doctor $(call option,--data,$(DATA)) $(ARGS)

lint: setup ## Check style, types, spelling and the documentation's links (ruff, mypy, codespell, mkdocs)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy" harl_fast preprocess launch
	"$(BIN)/codespell"
	"$(BIN)/python" docs/configuration.py --check
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict --quiet
	@echo "lint: clean"

docs: setup ## Build the documentation as a site
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict
	@echo "documentation: build/docs/index.html"

test: setup ## Run the tests but the slow ones [TESTS=<path>] [JOBS=]
	"$(BIN)/python" -m pytest -n "$(JOBS)" --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
		"$(TESTS)" $(ARGS)

test-slow: setup ## Run the slow tests: the real launcher, whole runs [TESTS=<path>]
	"$(BIN)/python" -m pytest "$(TESTS)" -m "slow and not gpu" $(ARGS)

masks-train: setup ## Train a mask network on your own images, no labels: DATA=<folder> [MASKS_OUT=]
	"$(BIN)/python" -m preprocess.masks.selftrained.train $(call option,--data,$(DATA)) \
		$(call option,--source,$(SOURCE)) $(call option,--val,$(VAL)) \
		--out "$(MASKS_OUT)" $(ARGS)

beton: setup ## Turn images into containers [DATA=<folder or list> | ADD=<folder> OUT= | DATASET=<name>] [VAL=] [SOURCE=] [MASKS=] [MASK_METHOD=] [STORE=] [RANGE=] [PAGES=] [CHANNELS=] [SHARD_SIZE=] [RAY=] [OUT=]
	"$(BIN)/python" -m preprocess.beton $(call option,--data,$(DATA)) $(call option,--add,$(ADD)) \
		$(call option,--source,$(SOURCE)) $(call option,--val,$(VAL)) \
		$(call option,--dataset,$(DATASET)) $(call option,--dataset-root,$(DATASET_ROOT)) $(call option,--masks,$(MASKS)) --out "$(OUT)" \
		$(call option,--max-resolution,$(MAX_RESOLUTION)) $(call option,--quality,$(QUALITY)) \
		$(call option,--mask-size,$(MASK_SIZE)) $(call option,--mask-method,$(MASK_METHOD)) \
		$(call option,--store,$(STORE)) $(call option,--range,$(RANGE)) \
		$(call option,--pages,$(PAGES)) $(call option,--channels,$(CHANNELS)) \
		$(call option,--shard-size,$(SHARD_SIZE)) $(call option,--ray,$(RAY)) \
		$(call option,--workers,$(WORKERS)) $(ARGS)
	@echo "containers: $(OUT)"

masks: setup ## Make the masks of DATA apart from beton, resumable [MASKS=<folder>] [MASK_METHOD=] [SHARD=]
	"$(BIN)/python" -m preprocess.masks --data "$(DATA)" --out "$(or $(MASKS),$(OUT)/masks)" \
		$(call option,--source,$(SOURCE)) $(call option,--val,$(VAL)) \
		$(call option,--mask-method,$(MASK_METHOD)) $(call option,--shard,$(SHARD)) \
		$(call option,--max-resolution,$(MAX_RESOLUTION)) $(call option,--range,$(RANGE)) \
		$(call option,--pages,$(PAGES)) $(call option,--channels,$(CHANNELS)) \
		$(call option,--workers,$(WORKERS)) $(ARGS)
	@echo "masks: $(or $(MASKS),$(OUT)/masks) (give it to make beton as MASKS=)"

pretrain: setup ## Pretrain on OUT [CONFIG=] [DS_CONFIG=] [RUN=] [EPOCHS=] [BATCH=] [LR=] [WORKERS=] [SET="a=1 b.c=2"] [STAGE_TO=] [RANKS=] [RESUME=1]
	@case "$(RANKS)" in *[!0-9]*|0*) echo "RANKS=$(RANKS) is no number from 1 up" >&2; exit 2;; esac
	"$(BIN)/python" launch/guard.py \
		"$(BIN)/python" "$(BIN)/deepspeed" --log_level=error $(call option,--num_gpus,$(RANKS)) launch/pretrain.py \
		--deepspeed_config "$(DS_CONFIG)" $(if $(and $(RESUME),$(filter file,$(origin CONFIG))),,\
		--config "$(CONFIG)") --data "$(OUT)" --run "$(RUN)" $(call option,--epochs,$(EPOCHS)) \
		$(if $(BATCH),--engine-set "train_batch_size=$(BATCH)") $(if $(LR),--set "optim.lr=$(LR)") \
		$(if $(WORKERS),--set "data.workers=$(WORKERS)") \
		$(foreach pair,$(SET),--set "$(pair)") $(call option,--stage-to,$(STAGE_TO)) \
		$(if $(RESUME),--resume) $(ARGS)
	@echo "run: $(RUN)"

demo: setup ## Draw a set, pretrain without and with masks, judge what both see [QUICK=1] [EPOCHS=]
	"$(BIN)/python" launch/demo.py $(if $(QUICK),--quick) $(call option,--epochs,$(EPOCHS)) $(ARGS)

evidence: setup ## Do masks pay? All arms of experiments/ and what they found [DATA=<photos>] [QUICK=1] [ONLY=] [SEEDS=] [EPOCHS=]
	"$(BIN)/python" launch/evidence.py $(call option,--data,$(DATA)) $(if $(QUICK),--quick) \
		$(if $(ONLY),--only $(ONLY)) $(call option,--seeds,$(SEEDS)) $(call option,--epochs,$(EPOCHS)) $(ARGS)

JUDGED = $(or $(DATA),$(OUT))
lineval: setup ## Judge CKPT's features on DATA or DATASET [RANDOM=1] [PROTOCOL=] [KNN=] [SUBSET=] [EPOCHS=] [DATASET_ROOT=] [PICTURES=1]
	@$(if $(and $(DATA),$(DATASET)),echo "DATA= and DATASET= name two sets: give one of them" >&2; exit 2)
	@$(if $(DATASET),[ -e "$(OUT)/val.json" ] || "$(BIN)/python" -m preprocess.beton --dataset "$(DATASET)" \
		$(call option,--dataset-root,$(DATASET_ROOT)) --out "$(OUT)" --mask-method center)
	@$(if $(DATASET),grep -q '"source": "$(DATASET)"' "$(OUT)/val.json" || { \
		echo "OUT=$(OUT) holds another set than DATASET=$(DATASET): give another folder" >&2; exit 2; })
	"$(BIN)/python" launch/lineval.py --ckpt "$(CKPT)" --data "$(JUDGED)" \
		$(if $(RANDOM),--random) $(call option,--epochs,$(EPOCHS)) $(call option,--protocol,$(PROTOCOL)) \
		$(call option,--knn,$(KNN)) $(call option,--subset,$(SUBSET)) $(call option,--workers,$(WORKERS)) $(if $(PICTURES),--pictures) $(ARGS)

# Where a fine-tuning goes: beside the checkpoint's run, named after the preset.
TUNED = $(if $(filter file,$(origin RUN)),$(call run_of,$(CKPT))-$(basename $(call last,$(or $(PRESET),full))),$(RUN))
finetune: setup ## Fine-tune CKPT with the labels of DATA or OUT [PRESET=] [SUBSET=10%] [RUN=] [DS_CONFIG=] [EPOCHS=] [BATCH=] [LR=] [SEEDS=] [RANKS=] [RANDOM=1] [RESUME=1]
	@case "$(RANKS)" in *[!0-9]*|0*) echo "RANKS=$(RANKS) is no number from 1 up" >&2; exit 2;; esac
	"$(BIN)/python" launch/guard.py \
		"$(BIN)/python" "$(BIN)/deepspeed" --log_level=error $(call option,--num_gpus,$(RANKS)) launch/finetune.py \
		--deepspeed_config "$(DS_CONFIG)" $(if $(and $(RESUME),$(filter file,$(origin CKPT))),,\
		--ckpt "$(CKPT)") --data "$(or $(DATA),$(OUT))" --run "$(TUNED)" \
		$(if $(or $(PRESET),$(RESUME)),$(call option,--preset,$(PRESET)),--preset full) \
		$(call option,--subset,$(SUBSET)) $(call option,--train-epochs,$(EPOCHS)) \
		$(call option,--train-batch-size,$(BATCH)) $(call option,--learning-rate,$(LR)) \
		$(call option,--seeds,$(SEEDS)) $(if $(RANDOM),--random) \
		$(if $(WORKERS),--set "data.workers=$(WORKERS)") \
		$(foreach pair,$(SET),--set "$(pair)") $(call option,--stage-to,$(STAGE_TO)) \
		$(if $(RESUME),--resume) $(ARGS)
	@echo "run: $(TUNED)"

cifar10: setup ## CIFAR-10 from images to linear accuracy: DATA=<folder with train/ and test/> [EPOCHS=] [IMAGES=] [DS_CONFIG=]
	"$(BIN)/python" launch/cifar10.py $(call option,--data,$(DATA)) $(call option,--epochs,$(EPOCHS)) \
		$(call option,--images,$(IMAGES)) $(if $(filter file,$(origin OUT)),,--out "$(OUT)") \
		$(if $(filter file,$(origin RUN)),,--run "$(RUN)") --engine "$(DS_CONFIG)" $(ARGS)

pictures: setup ## Draw a result: RESULT=RUN/eval/<data>-<protocol> [DATA=<its containers>: a map, TensorBoard's projector] [OUT=]
	"$(BIN)/python" -m harl_fast.tools.pictures "$(RESULT)" $(call option,--data,$(DATA)) \
		$(if $(filter file,$(origin OUT)),,--out "$(OUT)") $(ARGS)

compare: setup ## Put results or runs side by side: RESULTS="runs/a runs/b" [OUT=<folder for the report>]
	"$(BIN)/python" -m harl_fast.tools.compare $(RESULTS) \
		--out "$(if $(filter file,$(origin OUT)),runs/comparison,$(OUT))" $(ARGS)

# Where OUT names no folder, it is one of the run's own name.
EXPORTED = $(if $(filter file,$(origin OUT)),exports/$(call last,$(call run_of,$(CKPT)))-$(TO),$(OUT))
export: setup ## Write CKPT's encoder for other programs, and load it back there: CKPT= [TO=] [OUT=] [HEAD=]
	"$(BIN)/python" -m harl_fast.tools.export --ckpt "$(CKPT)" --to "$(TO)" --out "$(EXPORTED)" \
		$(call option,--head,$(HEAD)) $(ARGS)

plan: setup ## Hours, bottleneck and memory of a run on a machine [GPUS=] [CORES=] [RAM=] [NODES=] [NETWORK=] [IMAGES=] [BATCH=] [CONFIG=] [STORE=] [PRICE=] [COMPARE=] [MEASURE=] [OUT=<picture.png>]
	"$(BIN)/python" -m harl_fast.plan $(call option,--gpus,$(GPUS)) $(call option,--cores,$(CORES)) \
		$(call option,--ram,$(RAM)) $(call option,--nodes,$(NODES)) $(call option,--network,$(NETWORK)) \
		$(call option,--images,$(IMAGES)) $(call option,--epochs,$(EPOCHS)) $(call option,--batch,$(BATCH)) \
		$(call option,--store,$(STORE)) $(if $(filter file,$(origin CONFIG)),,--config "$(CONFIG)") \
		$(foreach pair,$(SET),--set "$(pair)") $(call option,--price,$(PRICE)) \
		$(if $(COMPARE),--compare $(foreach pair,$(COMPARE),"$(pair)")) $(call option,--measure,$(MEASURE)) \
		$(if $(filter file,$(origin OUT)),,--picture "$(OUT)") $(ARGS)

# CONFIG= or RUN= as given, else the configuration of the set's run if there is one.
PREVIEWED = $(if $(filter file,$(origin CONFIG)),$(if $(filter file,$(origin RUN)),$(wildcard \
	$(RUN)/config.yaml),$(RUN)/config.yaml),$(CONFIG))
preview: setup ## Draw views and masks as the network receives them, in its run [OUT=] [RUN=] [CONFIG=] [COUNT=]
	"$(BIN)/python" -m preprocess.preview "$(OUT)/train.beton" \
		$(if $(filter --masks,$(ARGS)),,$(call option,--config,$(PREVIEWED))) \
		--out "$(OUT)/preview.png" --count "$(COUNT)" $(foreach pair,$(SET),--set "$(pair)") $(ARGS)

bench: bench-loader bench-convert bench-masks bench-step bench-eval bench-plan ## Run all benchmarks (on a machine with nothing else to do)

bench-loader: setup ## Compare the loader with its peers, in turns [DATA=<photos>] [ARGS="--only L3,L4"]
	"$(BIN)/python" -m benchmarks.loader $(call option,--data,$(DATA)) $(ARGS)

bench-convert: setup ## Compare the conversion with ffcv's writer, in turns [DATA=<photos>] [ARGS="--only C1"]
	"$(BIN)/python" -m benchmarks.convert $(call option,--data,$(DATA)) $(ARGS)

bench-step: setup ## Compare the training step with bare PyTorch and lightly [DATA=<photos>] [ARGS=--check]
	"$(BIN)/python" -m benchmarks.step $(call option,--data,$(DATA)) $(ARGS)

bench-eval: setup ## Compare evaluation with scikit-learn and bare PyTorch, in turns [DATA=<containers>] [ARGS="--only V1"]
	"$(BIN)/python" -m benchmarks.evaluate $(call option,--data,$(DATA)) $(ARGS)

bench-learning: setup ## Compare what is learnt with lightly's BYOL at equal settings (an hour): DATA=<photos> [SEEDS=] [EPOCHS=]
	"$(BIN)/python" -m benchmarks.learning $(call option,--data,$(DATA)) $(call option,--seeds,$(SEEDS)) \
		$(call option,--epochs,$(EPOCHS)) $(ARGS)

bench-plan: setup ## Compare what plan predicts with what is measured here [DATA=<photos>]
	"$(BIN)/python" -m benchmarks.plan $(call option,--data,$(DATA)) $(ARGS)

gpu-check: setup ## Prove on a GPU, in 8 minutes, what a CPU cannot [OUT=runs/gpu-check] [DATA=<containers>] [ARGS="--only 0,1"]
	"$(BIN)/python" -m benchmarks.gpu_check $(call option,--data,$(DATA)) \
		$(if $(filter file,$(origin OUT)),,--out "$(OUT)") $(ARGS)

gpu-wheels: setup ## Gather what a machine without network needs for gpu-check [OUT=build/gpu-wheels] [ARGS="--there FILE"]
	"$(BIN)/python" -m benchmarks.gpu_wheels $(if $(filter file,$(origin OUT)),,--out "$(OUT)") $(ARGS)

bench-masks: setup ## Score mask methods [HORSES=] [PHOTOS=] [STAMPS=] [NETWORK=] [ONNX=] [ARGS=--check]
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 "$(BIN)/python" -m benchmarks.masks --storage \
		$(call option,--horses,$(HORSES)) $(call option,--photos,$(PHOTOS)) \
		$(call option,--stamps,$(STAMPS)) $(call option,--network,$(NETWORK)) \
		$(call option,--onnx,$(ONNX)) $(ARGS)

clean: ## Remove caches and build files; data, runs and VENV stay
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find harl_fast preprocess launch tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "cleaned: caches and build files; data/, runs/ and $(VENV) stay"
