# Images of Holdfast, built together so that they never skew:
#   docker build --target operator -t holdfast-operator .
#   docker build --target sidecar  -t holdfast-sidecar .
# Neither holds torch. The sidecar's image also carries what is injected into the trainer's container.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
ENV PATH=/opt/holdfast/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The copy-and-checksum loop, built for the image's own architecture; it needs nothing but libc.
FROM base AS native
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null
COPY core/native/copycrc.c /src/
RUN mkdir /native && gcc -O3 -std=gnu11 -shared -fPIC -o /native/copycrc-$(uname -m).so /src/copycrc.c

FROM base AS build
RUN python3 -m venv /opt/holdfast
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

FROM build AS build-operator
COPY requirements/operator.lock /tmp/
RUN pip install -q --only-binary :all: --require-hashes -r /tmp/operator.lock
COPY core/holdfast_core /opt/holdfast/src/holdfast_core
COPY operator/holdfast_operator /opt/holdfast/src/holdfast_operator
RUN chmod -R a+rX /opt/holdfast && python3 -m compileall -q /opt/holdfast/src

FROM build AS build-sidecar
COPY requirements/sidecar.lock /tmp/
RUN pip install -q --only-binary :all: --require-hashes -r /tmp/sidecar.lock
COPY core/holdfast_core /opt/holdfast/src/holdfast_core
COPY --from=native /native /opt/holdfast/src/holdfast_core/_native
COPY trainer/holdfast /opt/holdfast/src/holdfast
COPY sidecar/holdfast_sidecar /opt/holdfast/src/holdfast_sidecar
RUN chmod -R a+rX /opt/holdfast && python3 -m compileall -q /opt/holdfast/src

FROM base AS runtime
ENV PYTHONPATH=/opt/holdfast/src PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532

FROM runtime AS operator
COPY --from=build-operator /opt/holdfast /opt/holdfast
ENTRYPOINT ["python3", "-m", "holdfast_operator"]

FROM runtime AS sidecar
COPY --from=build-sidecar /opt/holdfast /opt/holdfast
ENTRYPOINT ["python3", "-m", "holdfast_sidecar"]
