# syntax=docker/dockerfile:1
# The image in which jobs run, for machines without and with NVIDIA GPUs:
#
#   docker build --build-arg DEVICE=cpu  --build-arg TORCH_INDEX=URL -t hisac-rec:0.1.0-cpu .
#   docker build --build-arg DEVICE=cuda -t hisac-rec:0.1.0-cuda .
#
# CUDA comes with the wheels of torch, the driver from the host (NVIDIA Container Toolkit).
FROM python:3.11.13-slim-bookworm

# Triton and torch.compile build small things at run time, and need a compiler for it. Debian
# replaces versions in place: pinning one would break the build at the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 hisac

WORKDIR /opt/hisac_rec
ENV PATH=/opt/hisac_rec/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Packages first: a changed source leaves this layer, gigabytes of it, as it is. hisac_rec
# itself is installed as a path to this folder, and comes after.
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
ARG DEVICE=cpu
ARG TORCH_INDEX=""
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv .venv \
    && .venv/bin/python requirements/install.py runtime --device "$DEVICE" --torch-index "$TORCH_INDEX"

COPY launch launch
COPY datasets datasets
COPY models models
COPY hisac_rec hisac_rec

USER 1000
CMD ["hisac-rec", "--help"]
