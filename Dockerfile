# Two images from one file: `pipeline` (Dagster and the package) and `mlflow` (the tracking server alone).
# Both run as an ordinary user; state lives in volumes.

FROM python:3.11-slim AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The volumes take over the owner of these folders.
RUN groupadd --gid 10001 macrec \
 && useradd --uid 10001 --gid macrec --create-home macrec \
 && install -d -o macrec -g macrec /app /state /data /opt/dagster /opt/dagster/storage
WORKDIR /app
COPY constraints.txt ./

FROM base AS mlflow
RUN pip install -c constraints.txt mlflow boto3 psycopg2-binary
USER macrec

FROM base AS pipeline
# The requirements change seldom and are large, so they are a layer of their own.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir macrec_pipeline && touch macrec_pipeline/__init__.py \
 && pip install -c constraints.txt '.[demo]' dagster-postgres psycopg2-binary \
 && pip uninstall --yes macrec_pipeline
COPY macrec_pipeline ./macrec_pipeline
COPY datasets ./datasets
RUN pip install -c constraints.txt --no-deps .
ENV MACREC_DATASETS=/app/datasets
USER macrec
