# Builds three images: `pipeline` (Dagster and the package), `serve` (only the service for the champion) and `mlflow`
# (only the tracking server). Each is built as a virtual environment in a separate stage and then copied, so that the
# images contain no build tools. All run as an unprivileged user, and all state is in volumes.
#
# pip installs only files whose hashes are in deployment/locked/, with one exception: torch from another package index.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /build
COPY constraints.txt ./
COPY deployment/locked ./locked

FROM build AS build-mlflow
RUN pip install --no-deps --require-hashes -r locked/mlflow.txt

FROM build AS build-pipeline
# Package index for torch, such as the one with builds for CPUs only that PyTorch's installation guide names. Its builds
# have other hashes, so they are pinned by version only. If it is empty, torch comes from PyPI with CUDA, which makes
# the image several GB larger.
ARG TORCH_INDEX_URL=
RUN if [ -n "$TORCH_INDEX_URL" ]; \
    then pip install --no-deps -c constraints.txt --index-url "$TORCH_INDEX_URL" torch torchvision; \
    else pip install --no-deps --require-hashes -r locked/pipeline-torch.txt; fi
# The dependencies are large and rarely change, so they get a layer of their own.
RUN pip install --no-deps --require-hashes -r locked/pipeline.txt
COPY pyproject.toml README.md LICENSE ./
COPY macrec_pipeline ./macrec_pipeline
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-serve
ARG TORCH_INDEX_URL=
RUN if [ -n "$TORCH_INDEX_URL" ]; \
    then pip install --no-deps -c constraints.txt --index-url "$TORCH_INDEX_URL" torch; \
    else pip install --no-deps --require-hashes -r locked/serve-torch.txt; fi
RUN pip install --no-deps --require-hashes -r locked/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY macrec_pipeline ./macrec_pipeline
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm AS run
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The volumes get the same owner as these folders.
RUN groupadd --gid 10001 macrec \
 && useradd --uid 10001 --gid macrec --create-home macrec \
 && install -d -o macrec -g macrec /state /data /opt/dagster /opt/dagster/storage /home/macrec/.cache
WORKDIR /app
COPY deployment/probe.py ./
USER macrec

FROM run AS mlflow
COPY --from=build-mlflow /venv /venv

# The same value as in macrec_pipeline.runtime.openmp. The served model needs it here, because it loads torch without
# importing the pipeline first.
FROM run AS serve
COPY --from=build-serve /venv /venv
ENV GOMP_SPINCOUNT=5000

FROM run AS pipeline
COPY --from=build-pipeline /venv /venv
COPY datasets /datasets
ENV MACREC_DATASETS=/datasets GOMP_SPINCOUNT=5000
