# The pipeline and its servers in a container. What it makes is in the volume `gpt2`:
#   docker build -t gpt2-workflow .
#   docker run --rm -v gpt2:/project gpt2-workflow                                              # dvc repro
#   docker run --rm -v gpt2:/project -p 127.0.0.1:5001:5001 gpt2-workflow \
#     mlflow models serve -m models:/gpt2-text@champion --env-manager local -h 0.0.0.0 -p 5001  # prompts over HTTP
#   docker run --rm -v gpt2:/project -p 127.0.0.1:7860:7860 -e GPT2_APP_AUTH=me:secret gpt2-workflow \
#     gpt2 app --host 0.0.0.0                                                                   # the web page
# For a GPU: `--build-arg TORCH_INDEX=https://pypi.org/simple` (the CUDA build), and `docker run --gpus all`.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /project
COPY requirements.txt .
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -r requirements.txt

COPY . .
RUN pip install --no-cache-dir --no-deps -e . \
    && dvc config --local core.no_scm true \
    && useradd --create-home --uid 1000 gpt2 \
    && chown -R gpt2 /project

USER 1000
ENV MLFLOW_TRACKING_URI=sqlite:////project/mlruns/mlflow.db \
    DVC_NO_ANALYTICS=true
CMD ["dvc", "repro"]
