ARG BASE
FROM ${BASE}
COPY registry /usr/local/cargo/registry
# What is tested is the way, not the speed: a build that takes a fraction of the time.
ENV CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=false
