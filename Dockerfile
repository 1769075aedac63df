# One image for every process: api, worker, clerk and migrations differ only in the command.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY workers workers
COPY engine engine
COPY db db
COPY core core
COPY cli cli
COPY migrations migrations
# e.g. --build-arg CMAKE_ARGS=-DGGML_CUDA=on on a base image with the CUDA toolkit
ARG CMAKE_ARGS=""
RUN python -m venv .venv \
 && .venv/bin/pip install --no-cache-dir pip==26.3 \
 && CMAKE_ARGS="$CMAKE_ARGS" .venv/bin/pip install --no-cache-dir --constraint constraints.txt --build-constraint constraints.txt --editable .

FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home millrace && install --directory --owner=millrace --mode=700 /data
WORKDIR /app
COPY --from=build /app /app
COPY models models
COPY batch_inputs batch_inputs
ENV PATH=/app/.venv/bin:$PATH MILLRACE_STATE_DIR=/data
USER millrace
VOLUME /data
EXPOSE 8000
CMD ["millrace", "serve", "--host", "0.0.0.0"]
