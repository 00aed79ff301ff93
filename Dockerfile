# One image for the head, the workers, the submitter and MLflow's server. It lies here, not in k8s/,
# because the whole repository is what it is built from:
#
#   docker build -t registry.example.org/pretune:0.1.0-ray2.60.0-gpu .
#   docker build -t registry.example.org/pretune:0.1.0-ray2.60.0-cpu --build-arg TORCH_INDEX=URL .
#
# PYTHON_VERSION  of the base image; the one that the tests run with.
# TORCH_INDEX     a package index with CPU builds of torch (PyTorch's installation page names it);
#                 empty for the build with CUDA, which has all that it needs but the driver.
# EXTRA_PACKAGES  of Debian, for instance `g++ libaio-dev` for offload to nvme.

ARG PYTHON_VERSION=3.11.14
FROM python:${PYTHON_VERSION}-slim-bookworm

# bash, procps: KubeRay's commands and the hook that stops the driver. wget: the probes of older KubeRays.
ARG EXTRA_PACKAGES=""
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bash procps wget ${EXTRA_PACKAGES} \
    && rm -rf /var/lib/apt/lists/*

RUN groupadd --gid 1000 pretune && useradd --uid 1000 --gid 1000 --create-home pretune

WORKDIR /opt/pretune

# The exact versions that are tested. Not in a virtual environment: every shell finds them, whatever
# the PATH that somebody sets.
ARG TORCH_INDEX=""
COPY requirements.lock requirements-image.lock ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
    -r requirements.lock -r requirements-image.lock

COPY pyproject.toml README.md LICENSE ./
COPY cluster cluster
COPY trainers trainers
COPY workflows workflows
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && pip check

ENV PYTHONUNBUFFERED=1 \
    HOME=/home/pretune
# By number, or Kubernetes cannot tell that it is not root.
USER 1000:1000
WORKDIR /home/pretune
CMD ["pretune", "--help"]
