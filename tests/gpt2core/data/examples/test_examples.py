"""Token sets of examples, their batches and their scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2core.config import GPTConfig
from gpt2core.data.batches import Batches
from gpt2core.data.examples.batches import NOT_TRAINED, ExampleBatches
from gpt2core.data.examples.reading import Example
from gpt2core.data.examples.template import TEMPLATES, Turn
from gpt2core.data.examples.writer import write_examples
from gpt2core.data.tokens import EXAMPLES_VERSION, TokenSplit, open_split, open_tokens
from gpt2core.errors import UserError
from gpt2core.evaluation.scores import evaluate, unigram_loss
from gpt2core.model import GPT
from gpt2core.storage.files import read_json
from gpt2core.tokenizer import Tokenizer

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
ALL = {"train": 1.0, "val": 0.0, "test": 0.0}
TEMPLATE = TEMPLATES["completion"]


def pair(prompt: str, answer: str, number: int = 1) -> Example:
    return Example((Turn("user", prompt), Turn("assistant", answer)), "faq.jsonl", f"line {number}")


def pairs(count: int) -> list[Example]:
    return [pair(f"What is {i}?" + " really" * (i % 7), f"It is {i}" + " so" * (i % 5), i) for i in range(1, count + 1)]


def written(directory: Path, examples: list[Example], shares=ALL, **options) -> TokenSplit:
    write_examples(directory, examples, TEMPLATE, source="test", shares=shares, **options)
    return open_split(directory, "train")


def test_each_example_stays_whole_in_one_split_with_its_answer_marked(tmp_path: Path) -> None:
    examples = pairs(40)
    written(tmp_path / "t", examples, SHARES, shard_tokens=50)
    opened = open_tokens(tmp_path / "t")
    opened.verify()
    assert opened.manifest["format_version"] == EXAMPLES_VERSION
    found = []
    for name in SHARES:
        split = opened.split(name)
        assert split.num_documents > 0
        for start, stop in zip(split.document_starts, [*split.document_starts[1:], len(split)], strict=True):
            ids, answers = split.read(int(start), int(stop)), split.answers(int(start), int(stop))
            found.append((ids.tolist(), answers.tolist()))
    expected = [tuple(part.tolist() for part in TEMPLATE.encode(example.turns)) for example in examples]
    assert sorted(found) == sorted((ids, [bool(one) for one in answers]) for ids, answers in expected)


def test_the_longest_examples_are_named_by_file_and_place(tmp_path: Path) -> None:
    examples = [*pairs(30), pair("x " * 200, "y", 31)]
    written(tmp_path / "t", examples)
    longest = read_json(tmp_path / "t" / "manifest.json")["longest"]
    assert longest[0]["record"] == "faq.jsonl, line 31"
    lengths = sorted((len(TEMPLATE.encode(example.turns)[0]) for example in examples), reverse=True)
    assert [one["tokens"] for one in longest] == lengths[: len(longest)]


def test_what_is_an_answer_is_part_of_the_set_s_hash_and_of_its_check(tmp_path: Path) -> None:
    """The same tokens, divided otherwise into prompt and answer, train another model."""
    written(tmp_path / "a", [pair("one", "two\nthree")] * 3)
    written(tmp_path / "b", [pair("one\ntwo", "three")] * 3)
    a, b = (read_json(tmp_path / name / "manifest.json") for name in "ab")
    assert a["splits"]["train"]["sha256"] == b["splits"]["train"]["sha256"]
    assert a["sha256"] != b["sha256"]
    mask = tmp_path / "a" / "train-answers.bin"
    content = bytearray(mask.read_bytes())
    content[0] ^= 1
    mask.write_bytes(content)
    with pytest.raises(UserError, match="train-answers"):
        open_tokens(tmp_path / "a").verify()
    mask.write_bytes(content[:-1])
    with pytest.raises(UserError, match="train-answers"):
        open_split(tmp_path / "a", "train")


def test_max_tokens_keeps_whole_examples_and_too_few_examples_are_refused(tmp_path: Path) -> None:
    examples = pairs(20)
    lengths = [len(TEMPLATE.encode(example.turns)[0]) for example in examples]
    split = written(tmp_path / "t", examples, max_tokens=sum(lengths[:5]) + 1)
    assert len(split) == sum(lengths[:5])
    with pytest.raises(UserError):
        written(tmp_path / "few", pairs(2), SHARES)
    with pytest.raises(UserError, match="no example"):
        written(tmp_path / "none", [])


def test_a_batch_trains_the_answers_and_nothing_else(tmp_path: Path) -> None:
    examples = pairs(10)
    batches = ExampleBatches(written(tmp_path / "t", examples), batch_size=4, sequence_length=40, shuffled=False)
    for index in range(5):
        token_ids, targets = batches.batch(index)
        for row in range(4):
            example = examples[(index * 4 + row) % 10]
            ids, answers = (part.astype(np.int64) for part in TEMPLATE.encode(example.turns))
            count = len(ids) - 1
            assert token_ids[row, :count].tolist() == ids[:-1].tolist()
            assert targets[row, :count].tolist() == np.where(answers[1:] == 1, ids[1:], NOT_TRAINED).tolist()
            assert (targets[row, count:] == NOT_TRAINED).all()
            assert Tokenizer.eot_id in targets[row]
    _, all_trained = ExampleBatches(batches.split, batch_size=1, sequence_length=40, mask_prompt=False).batch(0)
    assert (all_trained >= 0).sum() > (targets[:1] >= 0).sum()


def test_an_epoch_has_each_example_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    batches = ExampleBatches(written(tmp_path / "t", pairs(12)), batch_size=3, sequence_length=40, seed=5)
    epochs = [
        [tuple(row) for index in range(4 * epoch, 4 * epoch + 4) for row in batches.batch(index)[0][:, :6].tolist()]
        for epoch in range(3)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len(set(epochs[0])) == 12
    assert epochs[0] != epochs[1]
    again = ExampleBatches(batches.split, batch_size=3, sequence_length=40, seed=5)
    assert (again.batch(9)[0] == batches.batch(9)[0]).all()


def test_a_long_example_is_left_out_or_cut_and_one_without_its_answer_is_left_out(tmp_path: Path) -> None:
    late = pair("word " * 30, "lost", 9)  # its answer begins after the cut
    cut = pair("short", "a " * 30, 10)
    split = written(tmp_path / "t", [*pairs(8), late, cut])
    kept = ExampleBatches(split, batch_size=1, sequence_length=20, shuffled=False)
    assert (kept.too_long, kept.left_out, kept.windows_per_epoch) == (2, 2, 8)
    short = ExampleBatches(split, batch_size=1, sequence_length=20, shuffled=False, truncate=True)
    assert (short.too_long, short.left_out, short.windows_per_epoch) == (2, 1, 9)
    token_ids, _ = short.batch(8)
    assert token_ids.shape == (1, 20)
    assert token_ids[0].tolist() == TEMPLATE.encode(cut.turns)[0][:20].tolist()
    assert all((short.batch(index)[1] >= 0).any() for index in range(9))
    with pytest.raises(UserError, match="batch_size") as caught:
        ExampleBatches(split, batch_size=9, sequence_length=20)
    assert "8 examples" in str(caught.value)


def test_packed_rows_hold_each_example_once_and_few_rows_are_needed(tmp_path: Path) -> None:
    split = written(tmp_path / "t", pairs(60))
    packed = ExampleBatches(split, batch_size=1, sequence_length=64, packing=True, seed=3)
    alone = ExampleBatches(split, batch_size=1, sequence_length=64)
    assert packed.num_examples == alone.num_examples == 60
    found = []
    for index in range(packed.windows_per_epoch):
        token_ids, targets, segments = (array[0] for array in packed.batch(index))
        assert token_ids.shape == targets.shape == segments.shape
        assert (targets[segments == -1] == NOT_TRAINED).all()
        for segment in range(segments.max() + 1):
            found.append((token_ids[segments == segment].tolist(), targets[segments == segment].tolist()))
    expected = []
    for example in pairs(60):
        ids, answers = (part.astype(np.int64) for part in TEMPLATE.encode(example.turns))
        expected.append((ids[:-1].tolist(), np.where(answers[1:] == 1, ids[1:], NOT_TRAINED).tolist()))
    assert sorted(found) == sorted(expected)
    used = sum(len(ids) for ids, _ in expected)
    assert used / (64 * packed.windows_per_epoch) > 0.9  # of the room
    assert packed.tokens_per_step > 2 * alone.tokens_per_step


@pytest.mark.parametrize("own_kernels", [True, False])
def test_packed_examples_do_not_see_each_other(own_kernels: bool, tmp_path: Path) -> None:
    """Logits and gradients are those of each example by itself."""
    split = written(tmp_path / "t", pairs(30))
    packed = ExampleBatches(split, batch_size=4, sequence_length=64, packing=True)
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 64, n_layer=2, n_head=2, n_embd=16, drop_rate=0.0)).train()
    model.use_own_kernels(own_kernels)
    token_ids, targets, segments = map(torch.from_numpy, packed.batch(0))
    logits = model(token_ids, segments=segments)
    loss, count = torch.zeros(()), 0
    for row in range(4):
        for segment in range(int(segments[row].max()) + 1):
            here = segments[row] == segment
            single = model(token_ids[row][here][None])[0]
            torch.testing.assert_close(logits[row][here], single, rtol=1e-5, atol=1e-5)
            wanted = targets[row][here]
            loss = loss + F.cross_entropy(single, wanted, ignore_index=NOT_TRAINED, reduction="sum")
            count += int((wanted >= 0).sum())
    parameters = list(model.parameters())
    ours = torch.autograd.grad(model(token_ids, targets, masked=True, segments=segments), parameters)
    for a, b in zip(ours, torch.autograd.grad(loss / count, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_score_of_examples_is_the_mean_over_their_answers_each_after_its_own_prompt(tmp_path: Path) -> None:
    torch.manual_seed(0)
    examples = pairs(9)
    split = written(tmp_path / "t", examples)
    model = GPT(GPTConfig(50257, 48, n_layer=1, n_head=2, n_embd=16)).eval()
    loss, count, text = 0.0, 0, 0
    with torch.no_grad():
        for example in examples:
            ids, answers = (torch.from_numpy(part.astype(np.int64)) for part in TEMPLATE.encode(example.turns))
            losses = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
            loss, count = loss + losses[answers[1:] == 1].sum().item(), count + int(answers[1:].sum())
            text += len(example.turns[1].content.encode())
    lengths = Tokenizer().token_lengths()
    for batch_size in (1, 4):
        score = evaluate(model, split, block_size=48, stride=24, batch_size=batch_size, token_lengths=lengths)
        assert score is not None
        assert (score.tokens, score.loss) == (count, pytest.approx(loss / count, rel=1e-5))
        assert score.bits_per_byte == pytest.approx(loss / np.log(2) / text, rel=1e-5)
    assert evaluate(model, split, block_size=2, stride=1) is None  # no answer begins within two tokens


def test_the_loss_without_context_is_that_of_the_answers_tokens(tmp_path: Path) -> None:
    split = written(tmp_path / "t", pairs(20))
    answers = np.concatenate([part[kind == 1] for part, kind in (TEMPLATE.encode(one.turns) for one in pairs(20))])
    shares = np.unique(answers, return_counts=True)[1] / len(answers)
    assert unigram_loss(split) == pytest.approx(-(shares * np.log(shares)).sum())


def test_text_has_no_answers(tmp_path: Path) -> None:
    from gpt2core.data.writer import write_tokens

    write_tokens(tmp_path / "t", ["some text that is long enough"], source="test", shares=ALL)
    split = open_split(tmp_path / "t", "train")
    assert not split.has_answers
    with pytest.raises(UserError, match="plain text"):
        ExampleBatches(split, batch_size=1, sequence_length=4)
    assert not Batches(split, batch_size=1, sequence_length=2, sampler="sequential").masked
