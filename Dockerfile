# An image for NVIDIA GPUs, built in the project's folder (about 10 GB):
#   docker build -t harl_fast .
#   docker run --gpus all --shm-size 16g --ulimit memlock=-1 -v /data:/data -v "$PWD/runs:/harl_fast/runs" harl_fast \
#       make gpu-check
# --shm-size: NCCL's ranks talk over /dev/shm, of which Docker gives 64 MB. --ulimit memlock: the
# loader's buffers are page-locked. torch brings its own CUDA libraries; the base is there for the
# driver's settings (NVIDIA_VISIBLE_DEVICES and the like).
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# `make setup` installs what FFCV compiles against by itself; Triton needs a C compiler, too.
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    make gcc numactl python3 python3-dev python3-venv && rm -rf /var/lib/apt/lists/*

WORKDIR /harl_fast
# The environment depends on these alone: other changes leave its layer as it is.
COPY Makefile pyproject.toml README.md LICENSE ./
COPY launch/setup.sh launch/
COPY harl_fast/__init__.py harl_fast/
COPY preprocess/__init__.py preprocess/
RUN make setup

COPY . .
CMD ["make", "help"]
