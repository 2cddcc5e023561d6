# Builds two images: `pipeline` (Dagster, the package, the served model) and `mlflow` (only the tracking server).
# Each is built as a virtual environment in a separate stage and then copied, so that the images contain no build tools.
# Both run as an unprivileged user. All state is in volumes.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /build
COPY constraints.txt ./

FROM build AS build-mlflow
RUN pip install -c constraints.txt mlflow boto3 psycopg2-binary

FROM build AS build-pipeline
# Package index for torch, such as the one with builds for CPUs only that PyTorch's installation guide names. If it is
# empty, torch comes from PyPI with CUDA, which makes the image several GB larger.
ARG TORCH_INDEX_URL=
# Without their dependencies, which the next step installs from PyPI: an index for torch has few other packages.
RUN pip install -c constraints.txt --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch torchvision
# The dependencies are large and rarely change, so they get a layer of their own.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir macrec_pipeline && touch macrec_pipeline/__init__.py \
 && pip install -c constraints.txt '.[demo]' dagster-postgres psycopg2-binary \
 && pip uninstall --yes macrec_pipeline
COPY macrec_pipeline ./macrec_pipeline
RUN pip install -c constraints.txt --no-deps .

FROM python:3.11.14-slim-bookworm AS run
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The volumes get the same owner as these folders.
RUN groupadd --gid 10001 macrec \
 && useradd --uid 10001 --gid macrec --create-home macrec \
 && install -d -o macrec -g macrec /state /data /opt/dagster /opt/dagster/storage
WORKDIR /app
COPY deployment/probe.py ./
USER macrec

FROM run AS mlflow
COPY --from=build-mlflow /venv /venv

FROM run AS pipeline
COPY --from=build-pipeline /venv /venv
COPY datasets /datasets
# The same value as in macrec_pipeline.runtime.openmp. The served model needs it here, because it loads torch without
# importing the pipeline first.
ENV MACREC_DATASETS=/datasets GOMP_SPINCOUNT=5000
