# Penstock as a container: the gateway, its llama.cpp pod and the small model; no compiler, no root, no writable code.
#
# Written on a machine without a container engine and NOT YET BUILT: read it as a proposal until somebody has built it.
#
#   docker build -t penstock .
#   docker run --rm -p 8080:8080 -v "$PWD/penstock.yaml:/etc/penstock/penstock.yaml:ro" penstock
#
# In the file set `server: {host: 0.0.0.0}`, or the port that docker publishes leads nowhere.

FROM python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/penstock
# The lock first: this layer stays until the lock changes.
COPY requirements.lock requirements-dev.lock ./
RUN /opt/penstock/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
# The build backend, from the lock too, in an environment that is left behind.
RUN python -m venv /build/tools && /build/tools/bin/pip install --no-cache-dir --require-hashes -r requirements-dev.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY backends backends
COPY tenancy tenancy
COPY loadtest loadtest
RUN /build/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheels . \
 && /opt/penstock/bin/pip install --no-cache-dir --no-deps --no-index /build/wheels/penstock-*.whl \
 && /opt/penstock/bin/pip uninstall --yes pip

FROM python:3.11-slim-bookworm
# libgomp: llama.cpp's threads
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin penstock
COPY --from=build /opt/penstock /opt/penstock
ENV PATH=/opt/penstock/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8080 8081
# Ready means: a pod can take a call. Orchestrators that restart what is unhealthy should ask /healthz instead.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["penstock"]
CMD ["serve", "-f", "/etc/penstock/penstock.yaml"]
