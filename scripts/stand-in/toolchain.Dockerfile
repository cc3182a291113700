ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY toolchain /usr/local/rustup
ENV PATH=/usr/local/rustup/bin:$PATH CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true
