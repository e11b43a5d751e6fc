# The service without the embedded PostgreSQL: give it a database by PQS_DATABASE_URL.
FROM python:3.13-slim AS build
WORKDIR /src
COPY requirements/ requirements/
RUN python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --no-cache-dir --require-hashes --no-deps -r requirements/build.txt \
 && python -m venv /opt/pqs \
 && /opt/pqs/bin/python -m pip install --no-cache-dir --require-hashes --no-deps -r requirements/runtime.txt
COPY . .
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/pqs/bin/python -m pip install --no-cache-dir --no-deps /wheels/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home pqs
COPY --from=build /opt/pqs /opt/pqs
USER pqs
# Whoever calls needs a key, under whatever name: a foreign page in a browser has none.
ENV PATH=/opt/pqs/bin:$PATH PYTHONUNBUFFERED=1 PQS_HOST=0.0.0.0 PQS_PORT=8000 PQS_LOG_FORMAT=json \
    PQS_AUTH=required PQS_ALLOWED_HOSTS="*"
EXPOSE 8000
# /livez and not /readyz: starting the container anew would not mend a database that is down.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PQS_PORT\"]}/livez', timeout=2)"]
CMD ["pqs", "serve"]
