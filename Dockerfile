# An image to run jobs in, on one host or on many: see docs/image.md.
#
#   docker build -t horovod_detox .
#   docker build -t horovod_detox:cuda --build-arg CUDA=13.0.2 --build-arg FRAMEWORKS=torch .

ARG CUDA=
ARG BUILD_BASE=${CUDA:+nvidia/cuda:${CUDA}-devel-ubuntu24.04}
ARG BASE=${CUDA:+nvidia/cuda:${CUDA}-base-ubuntu24.04}


FROM ${BUILD_BASE:-debian:bookworm-slim} AS build
ARG DEBIAN_FRONTEND=noninteractive
ARG MPI=
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        g++ make python3-dev python3-venv ${MPI:+libopenmpi-dev openmpi-bin} \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# For another index or a certificate: --secret id=pip.conf,src=pip.conf leaves no trace in the image.
ENV PIP_CONFIG_FILE=/run/secrets/pip.conf
WORKDIR /src

# The frameworks and what else the package depends on, all that seldom changes.
ARG FRAMEWORKS="torch tensorflow"
ARG TORCH=2.13.0
ARG TENSORFLOW=2.21.0
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml tools/image/requirements.py ./
RUN --mount=type=secret,id=pip.conf \
    python requirements.py > requirements.txt && pip install -r requirements.txt

ARG CUDA=
ARG HOROVOD_BUILD_CUDA_CC_LIST
COPY tools tools
RUN --mount=type=secret,id=pip.conf \
    HOROVOD_DETOX_CACHE=/horovod python tools/build_horovod.py --wheel-only \
        ${MPI:+--mpi} ${CUDA:+--nccl}

COPY LICENSE README.md setup.py ./
COPY horovod_detox horovod_detox
RUN --mount=type=secret,id=pip.conf pip wheel --no-deps --wheel-dir /package .


FROM ${BASE:-debian:bookworm-slim}
LABEL org.opencontainers.image.title="horovod_detox" \
    org.opencontainers.image.description="PyTorch and TensorFlow on Horovod that survive bad ranks" \
    org.opencontainers.image.licenses="Apache-2.0"
ARG DEBIAN_FRONTEND=noninteractive
ARG MPI=
# Host keys are made when the ssh server starts: those of an image would be known to all.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        openssh-client openssh-server python3 ${MPI:+openmpi-bin} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* /etc/ssh/ssh_host_*

# Ubuntu's images have a user of this number already.
ARG USER_ID=1000
RUN name=$(getent passwd "$USER_ID" | cut -d: -f1); [ -z "$name" ] || userdel "$name" \
    && useradd --uid "$USER_ID" --create-home --shell /bin/bash --password '*' horovod \
    && install -d -o horovod -m 700 /home/horovod/.ssh \
    && install -d -o horovod /opt/numba

ENV PATH=/opt/venv/bin:$PATH NUMBA_CACHE_DIR=/opt/numba
ARG PIP_CONFIG_FILE=/run/secrets/pip.conf
COPY --from=build /opt/venv /opt/venv
RUN --mount=type=bind,from=build,source=/horovod,target=/horovod \
    --mount=type=secret,id=pip.conf \
    pip install --no-cache-dir /horovod/*.whl
# Layers keep whole seconds, and Numba compiles again what is not exactly as old as it was.
RUN --mount=type=bind,from=build,source=/package,target=/package \
    pip install --no-cache-dir --no-index /package/*.whl \
    && touch --date="@$(date +%s)" /opt/venv/lib/python3*/site-packages/horovod_detox/arrays/*.py
# ssh refuses files that others may write to, as those of some checkouts.
COPY --chmod=644 tools/image/ssh_config /etc/ssh/ssh_config.d/horovod.conf
COPY --chmod=644 tools/image/sshd_config /etc/ssh/sshd_config_horovod
COPY --chmod=755 tools/image/ssh-server /usr/local/bin/

USER ${USER_ID}
WORKDIR /home/horovod
RUN python -c 'from horovod_detox.arrays import compilation; compilation.prepare()'
COPY examples examples

EXPOSE 2222
HEALTHCHECK --interval=10m --timeout=1m CMD ["python", "-c", "import horovod_detox, horovod"]
CMD ["bash"]
