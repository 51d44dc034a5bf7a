"""Inputs of reports, as stages leave them, and what stands in a page or a PDF."""

import io
import math
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

from gpt2ops.params.schema import Params
from gpt2ops.reporting.inputs import Inputs
from gpt2ops.reporting.report import build_report
from gpt2ops.reporting.runs import Comparison, OtherRun

SHA = "0123456789abcdef" * 4


def score(loss: float) -> dict[str, Any]:
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 3, "token_accuracy": 0.2, "tokens": 999}


def history(steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(10, steps + 1, 10):
        scored = {
            "train_eval_loss": 5.0 - step / 100,
            "val_loss": 6.0,
            "val_perplexity": 403.4,
            "val_token_accuracy": 0.2,
        }
        rows.append(
            {
                "step": step, "tokens_seen": 512 * step, "epoch": step / 50, "train_loss": 5.0 - step / 100,
                "learning_rate": 1e-3, "grad_norm": 1.5, "tokens_per_second": 5000.0,
                **(scored if step % 50 == 0 else dict.fromkeys(scored)),
            }
        )  # fmt: skip
    return rows


def sample(text: str = " wherefore", setting: str = "nucleus", prompt: str = "ROMEO.") -> dict[str, Any]:
    return {
        "prompt": prompt, "setting": setting, "seed": 42, "text": text, "tokens": 5, "mean_log_prob": -1.0,
        "overlap_tokens": 3, "overlap_text": "x", "memorised": False,
    }  # fmt: skip


def some_inputs(**changes: Any) -> Inputs:
    """A memorising run, as its stages leave it."""
    split = {"tokens": 3000, "documents": 2, "sha256": SHA}
    everything: dict[str, Any] = {
        "params": Params(),
        "provenance": {
            "source": "bundled", "licence": "public domain", "urls": [], "size_bytes": 1_036_253,
            "files": [{"file": "plays.txt", "size_bytes": 1_036_253, "sha256": SHA}],
        },
        "manifest": {
            "tokenizer": "gpt2", "vocab_size": 50257, "split_by": "documents", "split_reason": "enough of them",
            "max_tokens": None, "splits": {"train": split, "val": split, "test": split},
        },
        "config": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128, "vocab_size": 50257},
        "record": {"run_id": "0" * 32, "run_name": "small-plays", "experiment": "gpt2", "tracking_uri": "sqlite:///x"},
        "history": history(200),
        "train": {
            "steps": 200, "tokens_seen": 102_400, "stop_reason": "target_loss", "n_params": 7_242_624,
            "target_loss": 4.4, "target_reached": True, "best_val_loss": 6.0, "best_step": 150, "best_by": "val_loss",
            "wall_seconds": 90.0, "tokens_per_second": 3898.0, "device": "cpu", "precision": "bf16",
        },
        "evaluation": {
            "train": score(0.1), "val": score(6.1), "test": score(6.2), "before": {"test": score(10.8)},
            "held_out": "test", "generalisation_gap": 6.1, "verbatim_recall": 0.83, "unigram_loss": 6.25,
            "verdict": "memorising", "protocol": {"block_size": 128, "stride": 64, "max_tokens": 25_000},
            "data_sha256": SHA,
        },
        "samples": {
            "settings": {}, "memorised_tokens": 32, "samples": [sample(), sample(" text", "greedy")],
            "before": [sample(" unfit noise")],
        },
        "registered": {
            "name": "gpt2", "version": "3", "text_name": "gpt2-text", "text_version": "3", "alias": "challenger",
            "gate": {"passed": False, "reasons": ["Held-out perplexity is worse."]}, "model_uri": "models:/gpt2/3",
            "text_model_uri": "models:/gpt2-text/3", "weights_sha256": SHA,
        },
    }  # fmt: skip
    for name, change in changes.items():
        everything[name] = {**everything[name], **change} if isinstance(change, dict) else change
    return Inputs(**everything)


def other_run(name: str, **facts: Any) -> OtherRun:
    values: dict[str, Any] = {
        "run_id": "1" * 32, "name": name, "started_at": datetime(2026, 1, 2, tzinfo=UTC), "link": "", "loss": 5.0,
        "perplexity": 148.4, "train_loss": 4.0, "recall": 0.0, "steps": 500, "same_data": True, "differing": [],
    }  # fmt: skip
    return OtherRun(**{**values, **facts})


COMPARED = Comparison(
    this=other_run("small-plays"),
    others=[other_run("older", champion="2", differing=[("train.learning_rate", "0.001", "0.003")])],
    tags={"git_commit": "abc123", "git_dirty": "true"},
    champion="2",
)


def report_of(inputs: Inputs, comparison: Comparison = COMPARED) -> dict[str, Any]:
    return build_report(inputs, comparison).as_dict()


class Text(HTMLParser):
    """Words of a page, its headings, and the rows of its tables by caption."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.headings: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[str] = []
        self.caption = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag == "caption":
            self.caption = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in self.tags:
            while self.tags.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" in self.tags:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.tags):
            self.tables[self.caption][-1][-1] += data
        elif "caption" in self.tags:
            self.caption += data
        elif {"h1", "h2", "h3"} & set(self.tags):
            self.headings[-1] += data

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def pdf_text(data: bytes) -> str:
    from pypdf import PdfReader

    text = " ".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages)
    return " ".join(text.split())
