# Strata in a container: no compiler, no root, nothing to write but /data.
#
#   docker build -t strata-gateway:0.1.0 .
#
# EXTRAS="" leaves out the Postgres that comes along, for whoever has one. The base is pinned by its exact tag; to pin
# the bytes too, put what `docker buildx imagetools inspect` says after it: PYTHON=python:3.12.14-slim-trixie@sha256:…
ARG PYTHON=python:3.12.14-slim-trixie

FROM ${PYTHON} AS build
ARG EXTRAS=[embedded]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY migrations migrations
COPY proxy proxy
COPY .ci/sbom.py .ci/sbom.py
RUN pip install --no-cache-dir -c constraints.txt hatchling \
    && pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/strata \
    && pip --python /opt/strata/bin/python install --no-cache-dir --only-binary :all: -c constraints.txt \
        "$(ls /wheels/*.whl)${EXTRAS}" \
    && /opt/strata/bin/python -I .ci/sbom.py >/opt/strata/sbom.cdx.json \
    && find /opt/strata -type d -path '*/pginstall/include' -prune -exec rm -r {} +

FROM ${PYTHON}
ARG PYTHON
ARG REVISION=""
LABEL org.opencontainers.image.title="Strata" \
    org.opencontainers.image.description="A lean, OpenAI-compatible gateway to any model provider." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="docker.io/library/${PYTHON}" \
    strata.sbom="/opt/strata/sbom.cdx.json"

# The user has a name because Postgres asks for one. What installs software is no use here.
RUN groupadd --gid 10001 strata \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin strata \
    && install -d -o 10001 -g 10001 -m 0700 /data \
    && install -d /etc/strata \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.12/site-packages/pip* /usr/local/lib/python3.12/ensurepip
COPY --from=build /opt/strata /opt/strata

# A config.yaml in /etc/strata is found by itself, and none is needed.
ENV PATH=/opt/strata/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    STRATA_HOME=/data \
    STRATA_SERVER__HOST=0.0.0.0
WORKDIR /etc/strata
USER 10001:10001
VOLUME ["/data"]
EXPOSE 4000
# http.client, because it never asks a proxy of the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-Ic", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('STRATA_SERVER__PORT') or 4000), timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["strata"]
