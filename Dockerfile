# noneq's service: what serving needs and no more, run by a user without rights.
#
#   docker build -t noneq .
#   docker run --rm -p 8000:8000 -v ./models:/models:ro noneq
#
# Build arguments:
#   PYTHON       the Python version (3.11; 3.12 and 3.13 do too)
#   TORCH        another PyTorch than the one in constraints.txt, say 'torch==2.11.*'
#   TORCH_INDEX  one more package index, to take PyTorch from: its install page names one for CPU builds,
#                which are far smaller, and one for each CUDA version. Empty: the usual index alone.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ARG TORCH=""
ARG TORCH_INDEX=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_PYTHON=/opt/noneq/bin/python
WORKDIR /src
RUN python -m venv --without-pip /opt/noneq

# First what noneq depends on: this layer is built anew only when pyproject.toml or the pins change.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; print(*(r for r in [*p['dependencies'], *e['model'], *e['serve'], *e['otel']] if not r.startswith('noneq[')), sep='\n')" >requirements.txt \
    && sed -e "${TORCH:+/^torch==/d}" constraints.txt >pins.txt \
    && echo "${TORCH}" >>pins.txt \
    && pip install -c pins.txt ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} -r requirements.txt

COPY LICENSE README.md ./
COPY noneq noneq
COPY diffusion diffusion
COPY service service
RUN pip install --no-deps --no-build-isolation .


FROM python:${PYTHON}-slim-bookworm
# A volume for jobs (NONEQ_JOBS) that is mounted on /jobs gets its owner from here.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin noneq \
    && mkdir /jobs && chown noneq /jobs
COPY --from=build /opt/noneq /opt/noneq
ENV PATH=/opt/noneq/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    NONEQ_HOST=0.0.0.0 \
    NONEQ_PORT=8000 \
    NONEQ_MODELS=/models
USER noneq
EXPOSE 8000

# Healthy once every model is loaded and warm. A proxy that the environment names is not asked.
HEALTHCHECK --interval=5s --timeout=4s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['NONEQ_PORT'] + '/health/ready', timeout=3)"]

# Exec form: the service is process 1 and gets SIGTERM itself, on which it finishes what it accepted.
CMD ["python", "-m", "service"]
