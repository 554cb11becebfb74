# docker build --build-arg EXTRA=tpu,gs --tag REGISTRY/unimodal:1 .      EXTRA: tpu or cuda, and gs for buckets; gs alone for a CPU
FROM python:3.11-slim
ARG EXTRA=tpu,gs
WORKDIR /unimodal
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY unimodal unimodal
RUN pip install --no-cache-dir -e ".[${EXTRA}]" -c constraints.txt
COPY launch.py ./
COPY tasks tasks
COPY configs configs
CMD ["python", "launch.py", "doctor"]
