# One image for every process: api, worker, clerk and migrations differ only in the command. docs/containers.md describes it.
# The build of llama.cpp: cpu, cuda, vulkan or hip.
ARG GPU=cpu
# Other bases need apt and Python 3.11 or later. A build for CUDA or HIP needs a base with its toolkit; RUN_BASE may then be smaller.
ARG BASE=debian:trixie-slim
ARG RUN_BASE=${BASE}

FROM ${BASE} AS build
ARG GPU
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ python3 python3-venv \
    $(if [ "$GPU" = vulkan ]; then echo glslc libvulkan-dev spirv-headers; fi) \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir pip==26.3
# Not for the processor of the build: a library for each generation of processors, of which the engine loads the best one.
ARG PORTABLE="-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DCMAKE_INSTALL_BINDIR=llama_cpp/lib"
# Further options, such as -DCMAKE_CUDA_ARCHITECTURES=90
ARG CMAKE_ARGS=""
# Before the code, so that a change of the code compiles nothing again.
COPY constraints.txt ./
COPY tools/__init__.py tools/__init__.py
COPY tools/install tools/install
RUN CMAKE_ARGS="$PORTABLE $CMAKE_ARGS" .venv/bin/python -m tools.install.llama --gpu "$GPU" --no-card \
 && rm -rf tools /root/.cache .venv/llama.log
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY workers workers
COPY engine engine
COPY db db
COPY core core
COPY mapping mapping
COPY web web
COPY cli cli
COPY migrations migrations
# Compiled here, since a container may run with a read-only root: else each start, and each health check, compiles everything again.
RUN .venv/bin/pip install --no-cache-dir --constraint constraints.txt --build-constraint constraints.txt --editable '.[tables,objects,telemetry]' \
 && .venv/bin/python -m compileall -q --invalidation-mode unchecked-hash api workers engine db core mapping cli migrations

FROM ${RUN_BASE}
ARG GPU
# The user owns the places of volumes: a new named volume takes over the owner of the folder that it is mounted on.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 python3 \
    $(if [ "$GPU" = vulkan ]; then echo libvulkan1 mesa-vulkan-drivers; fi) \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home millrace \
 && install --directory --owner=millrace --group=millrace --mode=700 /data /files
WORKDIR /app
COPY --from=build /app /app
COPY models models
COPY batch_inputs batch_inputs
ENV PATH=/app/.venv/bin:$PATH MILLRACE_STATE_DIR=/data
USER millrace
VOLUME /data
EXPOSE 8000
# Asks whichever of our processes the container runs; they write to /data and /tmp only.
HEALTHCHECK --interval=30s --timeout=10s --start-period=600s CMD ["millrace", "health"]
# A container is reached from outside only on a public address, which needs a key: the first start makes one and prints it.
CMD ["millrace", "serve", "--host", "0.0.0.0", "--create-key"]
