# trio-ws-server as an image: mount or copy an app into /app and name it.
#
#   docker build -t trio-ws-server .
#   docker run -p 8000:8000 -v ./app.py:/app/app.py trio-ws-server app:app
#
# An app that needs more packages: FROM trio-ws-server, USER root, RUN pip install ..., USER 10001.
# Settings come from TRIO_WS_SERVER_* variables; an option after the image's name wins over its variable.

ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY trio_ws_server ./trio_ws_server
RUN /opt/venv/bin/pip install --no-cache-dir ".[standard]"

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home app
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TRIO_WS_SERVER_HOST=0.0.0.0 \
    TRIO_WS_SERVER_PORT=8000
WORKDIR /app
# By number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python", "-c", "\
import os, socket; \
socket.create_connection(('localhost', int(os.environ['TRIO_WS_SERVER_PORT'])), timeout=4).close()"]
ENTRYPOINT ["trio-ws-server"]
CMD ["--help"]
