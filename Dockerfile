# The image of prefect-forward-auth:  docker build --tag prefect-forward-auth .
#
# It needs no shell, no writable root file system and no capability; a users file of its own is kept under
# /var/lib/forward-auth, and a forward-auth.toml is found under /etc/forward-auth.
#
# Nothing depends on the architecture but wheels, which there are for amd64 and arm64. Two builds on one base hold the
# same files, byte for byte: packages by hash, and bytecode with a fixed hash seed, which otherwise orders its sets.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all:
WORKDIR /build

# All that comes from elsewhere is pinned by hash: what builds our wheel, and what the wheel stands on.
COPY deploy/compose/build.lock requirements.lock ./
RUN python -m venv tools \
 && tools/bin/pip install --quiet --require-hashes --requirement build.lock \
 && python -m venv --without-pip /opt/forward-auth \
 && tools/bin/pip --python /opt/forward-auth/bin/python install --quiet --no-compile --no-deps --require-hashes \
      --requirement requirements.lock

COPY LICENSE README.md pyproject.toml ./
COPY service service
# Bytecode that is never compared with its source: valid whatever happens to time stamps on the way. Pip's own is not.
RUN tools/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir wheel . \
 && tools/bin/pip --python /opt/forward-auth/bin/python install --quiet --no-compile --no-deps --no-index wheel/*.whl \
 && PYTHONHASHSEED=0 python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/forward-auth/lib


FROM python:3.13-slim
# All but the first of the folders are for docker-compose.yml: a volume that is new takes its owner from there.
# The base comes without bytecode of the standard library, and whoever runs it read-only compiles it at each start.
RUN PYTHONHASHSEED=0 python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
      -x '/(ensurepip|idlelib|lib2to3|pydoc_data|site-packages|test|tkinter|turtledemo)/' \
      "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && install -d -m 0700 -o 65532 -g 65532 \
      /var/lib/forward-auth /var/lib/forward-auth-tokens /var/lib/prefect-cli /var/lib/prefect-worker /var/lib/traefik
COPY --from=build /opt/forward-auth /opt/forward-auth

ENV PATH=/opt/forward-auth/bin:$PATH \
    HOME=/var/lib/forward-auth \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FORWARD_AUTH_HOST=0.0.0.0
WORKDIR /etc/forward-auth
USER 65532:65532
EXPOSE 8080

# -I and -S: the check is done before Python's site is set up. A port given in a file is not seen here.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python", "-IS", "-c", \
  "import http.client as h, os, sys; \
c = h.HTTPConnection('127.0.0.1', int(os.environ.get('FORWARD_AUTH_PORT') or 8080), timeout=4); \
c.request('GET', '/readyz'); \
sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["prefect-forward-auth"]
CMD ["serve"]

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="prefect-forward-auth" \
      org.opencontainers.image.description="Forward auth made for Prefect: sign-in, passwords, JWTs and roles in front of a self-hosted server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim"
