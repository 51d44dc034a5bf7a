"""After `make run`: the target was reached, DVC is content, and a process that knows nothing of us loads the model."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FRESH = """
import sys, torch, mlflow
logits = mlflow.pytorch.load_model("models:/gpt2@champion")(torch.randint(50257, (3, 17)))
assert logits.shape == (3, 17, 50257) and bool(logits.isfinite().all()), logits.shape
assert "gpt2core" not in sys.modules
print("models:/gpt2@champion loads in a fresh process:", tuple(logits.shape))
"""


def main() -> None:
    root = Path.cwd()
    train = json.loads(Path("reports/metrics/train.json").read_text())
    evaluation = json.loads(Path("reports/metrics/evaluate.json").read_text())
    registered = json.loads(Path("reports/registered.json").read_text())
    assert train["target_reached"], train
    assert train["stop_reason"] == "target_loss", train
    assert evaluation["test"]["perplexity"] < evaluation["before"]["test"]["perplexity"] / 20, evaluation
    assert registered["champion"], registered
    assert any(Path("logs").glob("training_log_*.txt"))
    for name in ("loss", "learning_rate", "val_perplexity"):
        assert Path(f"reports/plots/{name}.png").stat().st_size > 5000, name
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout, status.stdout
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlruns/mlflow.db",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    with tempfile.TemporaryDirectory() as elsewhere:
        subprocess.run([sys.executable, "-I", "-c", FRESH], cwd=elsewhere, env=environment, check=True)
    print(
        f"steps {train['steps']}, {train['wall_seconds']:.0f} s of training, {train['tokens_per_second']:.0f} tokens/s"
    )


if __name__ == "__main__":
    main()
