# Two images from one file: `pipeline` (Dagster, the package, the served model) and `mlflow` (the tracking server alone).
# Each is built in a stage of its own and copied as a virtual environment, so that no build tool is in what runs.
# Both run as an ordinary user; state lives in volumes.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PATH=/venv/bin:$PATH
RUN python -m venv /venv
WORKDIR /build
COPY constraints.txt ./

FROM build AS build-mlflow
RUN pip install -c constraints.txt mlflow boto3 psycopg2-binary

FROM build AS build-pipeline
# cpu, or the CUDA that the driver of the machine knows: cu130.
ARG TORCH=cpu
# Without their requirements, which come with the next line's: this index has little else.
RUN pip install -c constraints.txt --no-deps --index-url https://download.pytorch.org/whl/${TORCH} torch torchvision
# The requirements change seldom and are large, so they are a layer of their own.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir macrec_pipeline && touch macrec_pipeline/__init__.py \
 && pip install -c constraints.txt '.[demo]' dagster-postgres psycopg2-binary \
 && pip uninstall --yes macrec_pipeline
COPY macrec_pipeline ./macrec_pipeline
RUN pip install -c constraints.txt --no-deps .

FROM python:3.11.14-slim-bookworm AS run
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The volumes take over the owner of these folders.
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
# as macrec_pipeline.runtime.openmp has it, for the served model too, which does not import the pipeline first
ENV MACREC_DATASETS=/datasets GOMP_SPINCOUNT=5000
