"""Names of the pipeline's inputs and outputs, relative to the project; `dvc.yaml` lists the same (a test compares)."""

import os
from pathlib import Path

from gpt2core.errors import UserError
from gpt2core.storage.files import with_home

PARAMS = Path("params.yaml")
DVC_LOCK = Path("dvc.lock")
BUNDLED_CORPUS = Path("data/corpus/shakespeare-plays.txt")
RAW = Path("data/raw")
PROVENANCE = RAW / "provenance.json"
TOKENS = Path("data/tokens")
CHECKPOINTS = Path("models/checkpoints")
BEST_MODEL = Path("models/best")
RUN = Path("models/run.json")
LOGS = Path("logs")
HISTORY = Path("reports/training_history.json")
TRAIN_METRICS = Path("reports/metrics/train.json")
EVALUATE_METRICS = Path("reports/metrics/evaluate.json")
BLOCK_LOSSES = Path("reports/block_losses.safetensors")
SAMPLES = Path("reports/samples.json")
SAMPLES_PAGE = Path("reports/samples.md")
PLOTS = Path("reports/plots")
REGISTERED = Path("reports/registered.json")
REPORT_PAGE = Path("reports/report.html")
REPORT_PDF = Path("reports/report.pdf")
MLRUNS = Path("mlruns")
FINETUNED = Path("project")  # in the output folder of `gpt2 finetune`: the project that made what lies there
WORKSPACES = Path("workspaces")  # a folder for each flow run


def project_root() -> Path:
    """The folder that holds `mlruns/`: GPT2_PROJECT_ROOT (a flow run's workspace has it set), else the working one."""
    return Path(os.environ.get("GPT2_PROJECT_ROOT") or Path.cwd()).resolve()


def user_cache() -> Path:
    """This user's own folder for what several projects share. Raises UserError for an account without a home."""
    base = with_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not base.is_absolute():
        raise UserError("this account has no home folder; set XDG_CACHE_HOME to a folder of your own.")
    return base / "gpt2-workflow"


def mlruns() -> Path:
    return project_root() / MLRUNS
