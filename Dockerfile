# pgstash with pg_dump. Debian's own major is 17; others come from apt.postgresql.org:
#   docker build --build-arg POSTGRESQL=18 -t pgstash .
#   docker build --build-arg POSTGRESQL="14 18" -t pgstash .    # for servers of several majors
FROM python:3.13-slim-trixie@sha256:ffb752e139c0a19692a43af8d8523b274222dd68eebad5d583b45c2201c6e30a AS build
WORKDIR /src
RUN python -m venv /opt/pgstash
# With the extras, so that every store works: the clients of Azure and
# Google take 20 MB.
COPY requirements/run.txt requirements/
RUN /opt/pgstash/bin/pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: \
    --requirement requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY docs/reference/man docs/reference/man
COPY src src
RUN /opt/pgstash/bin/pip install --no-cache-dir --no-deps .

FROM python:3.13-slim-trixie@sha256:ffb752e139c0a19692a43af8d8523b274222dd68eebad5d583b45c2201c6e30a
LABEL org.opencontainers.image.title="pgstash" \
    org.opencontainers.image.description="PostgreSQL backups that prove they restore" \
    org.opencontainers.image.licenses="MIT"
ARG POSTGRESQL=17
# The digest above keeps the packages of its day; the upgrade adds the fixes since. Their versions
# are not pinned, because Debian removes old ones.
# hadolint ignore=DL3008,SC2046,SC2086
RUN apt-get update \
    && apt-get upgrade --yes --no-install-recommends \
    && apt-get install --yes --no-install-recommends ca-certificates postgresql-common \
    && if [ "$POSTGRESQL" != 17 ]; then /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y; fi \
    && apt-get install --yes --no-install-recommends $(printf 'postgresql-client-%s ' $POSTGRESQL) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent pgstash
COPY --from=build /opt/pgstash /opt/pgstash
ENV PATH=/opt/pgstash/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /
# The first backup may take longer. docs/how-to/monitor.md: what to change for a large one.
HEALTHCHECK --interval=5m --timeout=30s --start-period=10m --retries=3 \
    CMD ["pgstash", "healthcheck"]
# No shell around it: the process must get the signals itself.
ENTRYPOINT ["pgstash"]
CMD ["backup"]
