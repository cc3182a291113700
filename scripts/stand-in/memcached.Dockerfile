ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends memcached && rm -rf /var/lib/apt/lists/*
USER nobody
EXPOSE 11211
CMD ["memcached"]
