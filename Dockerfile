# The suite's command and nothing else: about 120 MB on Debian, as a user without rights.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --package session-conformance \
    && strip -o /session-conformance target/release/session-conformance

FROM ${RUNTIME_IMAGE}
COPY --from=build /session-conformance /usr/local/bin/
USER 1000:1000
ENTRYPOINT ["session-conformance"]
CMD ["run"]
