# Two images with the versions of constraints.txt:
#   docker build --target embed -t m2d-embed .    embedding, tagging and export on a CPU
#   docker build --target train -t m2d-train .    all of it, training included, on CUDA
FROM python:3.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /m2d
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY m2d ./m2d
COPY examples/portable_m2d.py ./examples/portable_m2d.py

FROM base AS embed
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-compile -c constraints.txt --index-url ${TORCH_INDEX} torch torchaudio torchvision
RUN pip install --no-compile -c constraints.txt ".[hf]"
WORKDIR /data
ENTRYPOINT ["m2d"]

FROM base AS train
# Triton and torch.compile compile at run time.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-compile -c constraints.txt ".[train,av,hf]"
WORKDIR /data
ENTRYPOINT ["m2d"]
