# The command, its server included, in one image:
#
#     docker build --build-arg COMMIT=$(git rev-parse --short HEAD) -t navicache .
#     docker run --rm -u $(id -u) -v "$PWD:/out" navicache generate "a red circle bouncing on a navy background" -o /out/out.mp4
#
# The server, with keys: docker compose -f deploy/compose.yaml up
#
# What lasts, models among it, is in /data: add `-v navicache:/data`.

FROM rust:1.89-slim-bookworm AS build
# The H.264 encoder is C++.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG COMMIT=unknown
RUN NAVICACHE_COMMIT=$COMMIT cargo build --release --locked -p navicache

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /data navicache && install -d -o navicache -m 0700 /data
COPY --from=build /src/target/release/navicache /usr/local/bin/navicache
USER navicache
ENV HOME=/data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["navicache"]
CMD ["--help"]
