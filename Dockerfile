# One image for every process: api, worker, clerk and migrations differ only in the command. docs/containers.md describes it.
# Other bases need apt and Python 3.11 or later, such as those of CUDA.
ARG BUILD_BASE=debian:trixie-slim
ARG RUN_BASE=debian:trixie-slim

FROM ${BUILD_BASE} AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3 python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY workers workers
COPY engine engine
COPY db db
COPY core core
COPY cli cli
COPY migrations migrations
# Not for the processor of the build: a library for each generation of processors, of which the engine loads the best one.
ARG PORTABLE="-DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DCMAKE_INSTALL_BINDIR=llama_cpp/lib"
# Further options, such as -DGGML_CUDA=on
ARG CMAKE_ARGS=""
RUN python3 -m venv .venv \
 && .venv/bin/pip install --no-cache-dir pip==26.3 \
 && CMAKE_ARGS="$PORTABLE $CMAKE_ARGS" .venv/bin/pip install --no-cache-dir --constraint constraints.txt --build-constraint constraints.txt --editable .

FROM ${RUN_BASE}
# The user owns the places of volumes: a new named volume takes over the owner of the folder that it is mounted on.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 python3 && rm -rf /var/lib/apt/lists/* \
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
# A container is reached from outside only on a public address, which needs a key: the first start makes one and prints it.
CMD ["millrace", "serve", "--host", "0.0.0.0", "--create-key"]
