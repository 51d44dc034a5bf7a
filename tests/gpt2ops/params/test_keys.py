"""What params.yaml calls an argument of the library."""

import pytest

from gpt2core.data.batches import Batches
from gpt2core.errors import UserError
from gpt2core.runtime import pick_runtime
from gpt2ops.params.keys import params_key
from gpt2ops.process.stage import run_stage
from tests.support.training import ArrayTokens


def test_an_argument_is_the_key_of_the_stage_s_own_section_first() -> None:
    assert params_key("finetune", "batch_size") == "train.batch_size"
    assert params_key("evaluate", "batch_size") == "evaluate.batch_size"
    assert params_key("tokenize", "split_by") == "data.split_by"
    assert params_key("sample", "precision") == "run.precision"
    assert params_key("register", "name") == "register.name"
    assert params_key("plot", "precision") == "run.precision"
    assert params_key("finetune", "no_such_argument") == "no_such_argument"


@pytest.mark.parametrize(
    ("work", "library", "stage"),
    [
        (lambda: pick_runtime("cpu", "fp16"), "precision ('fp16') needs a GPU", "run.precision ('fp16') needs a GPU"),
        (
            lambda: Batches(ArrayTokens(9, 0), batch_size=8, sequence_length=4, sampler="shuffled", seed=1),
            "batch_size (8) is too large: ",
            "one batch needs 30 with train.sequence_length (4); ",
        ),
    ],
)
def test_a_setting_found_wrong_late_is_named_by_each_surface(
    work, library, stage, capsys, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        work()
    assert library in str(caught.value)
    with pytest.raises(SystemExit) as end:
        run_stage("finetune", work)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 1
    assert line.startswith("finetune: error: ")
    assert stage in line
