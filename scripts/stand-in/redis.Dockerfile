ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
# Servers for others listen everywhere: the network of the containers is the fence.
RUN printf '%s\n' '#!/bin/sh' 'set -e' \
    'if [ "$1" = redis-server ]; then shift; cd /data; exec redis-server "$@" --protected-mode no --bind "*"; fi' \
    'exec "$@"' > /usr/local/bin/docker-entrypoint.sh && chmod +x /usr/local/bin/docker-entrypoint.sh
# An exec form of the health check finds the same programs.
RUN mkdir -p /data
WORKDIR /data
VOLUME /data
EXPOSE 6379
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["redis-server"]
