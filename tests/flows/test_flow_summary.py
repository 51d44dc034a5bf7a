"""The page that a flow run shows at its end."""

from pathlib import Path

from flows.engine.summary import collect, markdown, picture
from gpt2core.storage.files import write_json

REPORTS = {
    "train": {"train_loss": 3.98765, "target_loss": None, "target_reached": True, "stop_reason": "target | reached"},
    "evaluate": {"test": {"perplexity": 61.5}, "val": None, "before": {"test": {"perplexity": 50301.2}}},
    "registered": {
        "name": "gpt2",
        "version": 3,
        "alias": "challenger",
        "gate": {"passed": False, "reasons": ["the champion is better"]},
    },
}


def test_the_page_has_numbers_model_and_the_gates_reasons() -> None:
    page = markdown(REPORTS, run_id="abc", trained_now=True, picture=None)
    for line in (
        "| train_loss | 3.988 |",
        "| target_reached | yes |",
        "| stop_reason | target \\| reached |",
        "| test perplexity | 61.5 |",
        "| test perplexity before training | 50,301 |",
        "| registered model | gpt2 version 3, challenger |",
        "| gate | refused |",
        "- the champion is better",
    ):
        assert line in page.splitlines()
    assert "target_loss" not in page
    assert "val perplexity" not in page


def test_a_restored_model_is_said_to_be_one() -> None:
    assert "restored by DVC" in markdown(collect(Path("nowhere")), run_id="abc", trained_now=False, picture=None)


def test_the_plot_of_the_losses_is_the_picture(tmp_path: Path) -> None:
    assert picture(tmp_path) is None
    for name in ("accuracy", "loss"):
        (tmp_path / "reports/plots").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"reports/plots/{name}.png").write_bytes(b"png")
    chosen = picture(tmp_path)
    assert chosen == tmp_path / "reports/plots/loss.png"
    assert "](data:image/png;base64,cG5n)" in markdown(REPORTS, run_id="abc", trained_now=True, picture=chosen)


def test_reports_are_read_where_the_stages_write_them(tmp_path: Path) -> None:
    write_json(tmp_path / "reports/metrics/train.json", {"train_loss": 1.0})
    assert collect(tmp_path) == {"train": {"train_loss": 1.0}, "evaluate": {}, "registered": {}}
