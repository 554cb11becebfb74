# docker build --build-arg EXTRA=tpu --tag REGISTRY/unimodal:1 .      EXTRA: tpu, cuda, or interop for a CPU
FROM python:3.11-slim
ARG EXTRA=tpu
WORKDIR /unimodal
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY unimodal unimodal
RUN pip install --no-cache-dir -e ".[${EXTRA}]" -c constraints.txt
COPY launch.py ./
COPY tasks tasks
COPY configs configs
CMD ["python", "launch.py", "doctor"]
