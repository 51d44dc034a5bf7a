"""`gpt2core.generate` against the installed `transformers` on random cases, token for token.

    python -m tests.harness.decoding_parity --cases 1000 --seed 0

makes random small GPT-2s with transformers, loads them with `GPT.from_pretrained` and gives both the same random
prompts, left-padded batches, strategies, penalties, limits and seeds. It prints a table and exits with 1 when any
case differs. Where fp32 outputs differ both are run again in fp64: if they then agree, two candidates were equal
within fp32 rounding, and the case counts as a tie. `--only N` prints case N in full.
"""

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2core.decoding import generate
from gpt2core.model import GPT

STRATEGIES = {"greedy": 4, "sample": 6, "beam": 5, "beam sample": 2, "lookup greedy": 1, "lookup sample": 1}
OUTCOMES = ("identical", "tie", "different")
ENDED = "ended by eos"
SCORE_TOLERANCE = 1e-4
MAX_PROMPT, MAX_NEW, MAX_GUESS = 12, 24, 6
BLOCK_SIZES = (48, 64, 100)  # transformers reads guesses past max_length too


@dataclass(frozen=True)
class Case:
    """One call of both libraries."""

    number: int
    strategy: str
    model: int
    seed: int
    ids: Tensor  # (B, T)
    mask: Tensor | None  # (B, T)
    options: dict[str, Any]
    with_scores: bool


@dataclass(frozen=True)
class Pair:
    """The same weights in both libraries."""

    ours: GPT
    theirs: GPT2LMHeadModel

    def to(self, dtype: torch.dtype) -> "Pair":
        return Pair(self.ours.to(dtype), self.theirs.to(dtype))


@dataclass(frozen=True)
class Result:
    outcome: str
    difference: str  # the first that was found
    ended: bool  # whether any row came to an end of text


def prefer_even(ids: Tensor, logits: Tensor) -> Tensor:
    """A user's logits processor: even tokens are likelier."""
    return logits + 0.5 * (torch.arange(logits.shape[-1]) % 2 == 0)


def damp_last(ids: Tensor, logits: Tensor) -> Tensor:
    """A user's logits processor that looks at the tokens: the last one is less likely to come again."""
    return logits.scatter_add(1, ids[:, -1:], torch.full_like(ids[:, -1:], -1.5, dtype=logits.dtype))


def make_pairs(count: int, rng: random.Random) -> list[Pair]:
    """Random models made by transformers, saved and loaded through our from_pretrained."""
    pairs = []
    for _ in range(count):
        n_head = rng.choice([1, 2, 4])
        config = GPT2Config(
            vocab_size=rng.choice([50, 97, 211, 500]),
            n_positions=rng.choice(BLOCK_SIZES),
            n_layer=rng.randint(1, 4),
            n_head=n_head,
            n_embd=n_head * rng.choice([8, 12, 16]),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        torch.manual_seed(rng.randrange(2**31))
        theirs = GPT2LMHeadModel(config).eval()
        std = rng.uniform(0.2, 0.6)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=std)
        with tempfile.TemporaryDirectory() as directory:
            theirs.save_pretrained(directory)
            pairs.append(Pair(GPT.from_pretrained(directory), theirs))
    return pairs


def draw_cases(pairs: list[Pair], count: int, rng: random.Random, strategies: Sequence[str]) -> Iterator[Case]:
    weights = [STRATEGIES[strategy] for strategy in strategies]
    for number in range(count):
        strategy = rng.choices(strategies, weights)[0]
        model = rng.randrange(len(pairs))
        vocab_size = pairs[model].ours.config.vocab_size
        lookup = strategy.startswith("lookup")
        prompts = _prompts(vocab_size, 1 if lookup else rng.randint(1, 4), repeated=lookup, rng=rng)
        options = _ends(vocab_size, _likely_tokens(pairs[model], prompts[0]), rng)
        ids, mask = _left_pad(prompts, options.get("pad_token_id") or 0)
        options |= _limits(ids.shape[1], rng) | _penalties(vocab_size, rng) | _strategy(strategy, rng)
        # Without a mask transformers takes each pad_token_id in a prompt for padding.
        maskless = bool(mask.all()) and options.get("pad_token_id", -1) not in ids and rng.random() < 0.5
        mask = None if maskless else mask
        yield Case(number, strategy, model, rng.randrange(2**31), ids, mask, options, rng.random() < 0.4)


def _prompts(vocab_size: int, batch: int, *, repeated: bool, rng: random.Random) -> list[list[int]]:
    """`repeated` prompts are of few tokens, so that n-grams come again."""
    alphabet = rng.sample(range(vocab_size), 4) if repeated else range(vocab_size)
    lengths = [rng.randint(1, MAX_PROMPT) for _ in range(batch)]
    if rng.random() < 0.4:
        lengths = [max(lengths)] * batch
    return [rng.choices(alphabet, k=length) for length in lengths]


def _likely_tokens(pair: Pair, prompt: list[int]) -> list[int]:
    """Tokens that the model says after a prompt: as ends of text, they end texts."""
    ids = torch.tensor([prompt])
    said = pair.theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return said[0, len(prompt) :].tolist()


def _ends(vocab_size: int, likely: list[int], rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["none", "one", "one", "several", "several"])
    if kind == "none":
        return {"eos_token_id": None}
    first = rng.choice(likely) if rng.random() < 0.7 else rng.randrange(vocab_size)
    eos = first if kind == "one" else list({first, *rng.sample(range(vocab_size), rng.randint(1, 6))})
    return {"eos_token_id": eos} | rng.choice([{}, {"pad_token_id": rng.choice([0, rng.randrange(vocab_size)])}])


def _left_pad(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) and their mask."""
    T = max(map(len, prompts))
    rows = [[pad] * (T - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (T - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


def _limits(prompt_length: int, rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["new", "new", "total", "default"])
    new = 20 if kind == "default" else rng.randint(1, MAX_NEW)
    longest = {"new": {"max_new_tokens": new}, "total": {"max_length": prompt_length + new}, "default": {}}
    least = rng.randint(1, new)
    return longest[kind] | rng.choice([{}, {}, {}, {"min_new_tokens": least}, {"min_length": prompt_length + least}])


def _penalties(vocab_size: int, rng: random.Random) -> dict[str, Any]:
    """Each with a chance of its own, so that combinations come up too."""

    def words(count: int) -> list[list[int]]:
        return [[rng.randrange(1, vocab_size) for _ in range(rng.randint(1, 3))] for _ in range(count)]

    every = {
        "repetition_penalty": rng.choice([0.7, 1.1, 1.5, 3.0]),
        "no_repeat_ngram_size": rng.randint(1, 4),
        # The last makes sure that not all are ends of text, which both refuse.
        "bad_words_ids": [*words(rng.randint(0, 4)), [rng.randrange(vocab_size), rng.randrange(vocab_size)]],
        "sequence_bias": [[word, rng.uniform(-8.0, 8.0)] for word in words(rng.randint(1, 4))],
        "suppress_tokens": rng.sample(range(vocab_size), rng.randint(1, 10)),
        "logits_processor": rng.choice([[prefer_even], [damp_last], [prefer_even, damp_last]]),
    }
    return {name: value for name, value in every.items() if rng.random() < 0.2}


def _strategy(strategy: str, rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "sample" in strategy:
        options |= {"do_sample": True} | _warpers(rng)
        if strategy == "sample":
            options["num_return_sequences"] = rng.choice([1, 1, 2, 3])
    if strategy.startswith("beam"):
        options["num_beams"] = rng.randint(2, 6)
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
        options["length_penalty"] = rng.choice([1.0, 1.0, 0.0, 0.5, 2.0, -1.0])
        options["early_stopping"] = rng.choice([False, False, True, "never"])
    if strategy.startswith("lookup"):
        options["prompt_lookup_num_tokens"] = rng.randint(1, MAX_GUESS)
        options |= rng.choice([{}, {"max_matching_ngram_size": rng.randint(1, 4)}])
    return options


def _warpers(rng: random.Random) -> dict[str, Any]:
    every = {
        "temperature": rng.choice([0.3, 0.7, 1.5, 3.0]),
        "top_k": rng.choice([None, 1, 3, 10, 1000]),
        "top_p": rng.choice([0.2, 0.8, 0.95]),
        "min_p": rng.choice([0.02, 0.2]),
        "typical_p": rng.choice([0.3, 0.9]),
        "epsilon_cutoff": rng.choice([3e-4, 0.02]),
        "eta_cutoff": rng.choice([3e-4, 0.02]),
    }
    chances = {"temperature": 0.6, "top_k": 0.6, "top_p": 0.5}
    return {name: value for name, value in every.items() if rng.random() < chances.get(name, 0.15)}


def run_ours(case: Case, pair: Pair, **more: Any) -> Any:
    return generate(pair.ours, case.ids, case.mask, seed=case.seed, **case.options, **more)


def run_theirs(case: Case, pair: Pair, **more: Any) -> Any:
    options = dict(case.options)
    if "logits_processor" in options:
        options["logits_processor"] = transformers.LogitsProcessorList(options["logits_processor"])
    torch.manual_seed(case.seed)
    return pair.theirs.generate(case.ids, attention_mask=case.mask, **options, **more)


def compare(case: Case, pair: Pair) -> Result:
    """Run a case in both libraries, and again in fp64 if anything differs."""
    result = _run_both(case, pair)
    if not result.difference:
        return result
    try:
        exact = _run_both(case, pair.to(torch.float64))
    finally:
        pair.to(torch.float32)
    return replace(result, outcome="different" if exact.difference else "tie")


def _run_both(case: Case, pair: Pair) -> Result:
    more = {"return_dict_in_generate": True, "output_scores": True} if case.with_scores else {}
    ours, theirs = run_ours(case, pair, **more), run_theirs(case, pair, **more)
    if case.with_scores:
        tokens = _with_tokens_only(theirs.sequences)
        difference = _compare_tokens(ours.sequences, tokens) or _compare_scores(ours, theirs)
    else:
        tokens = _with_tokens_only(theirs)
        difference = _compare_tokens(ours, tokens)
    eos = case.options["eos_token_id"]
    ends = torch.tensor([eos] if isinstance(eos, int) else eos or [])
    ended = bool(torch.isin(tokens[:, case.ids.shape[1] :], ends).any())
    return Result("different" if difference else "identical", difference, ended)


def _with_tokens_only(theirs: Tensor) -> Tensor:
    """Without an end of text transformers' beam search pads with -1, which no tokenizer knows; we pad with token 0."""
    return theirs.masked_fill(theirs == -1, 0)


def _compare_scores(ours: Any, theirs: Any) -> str:
    """What differs in the scores of the same tokens; nothing where all agree."""
    found = []
    if len(ours.scores) != len(theirs.scores):
        found.append(f"{len(ours.scores)} steps of scores, not {len(theirs.scores)}")
    named = [(f"scores[{step}]", *pair) for step, pair in enumerate(zip(ours.scores, theirs.scores, strict=False))]
    if getattr(theirs, "sequences_scores", None) is not None:
        named.append(("sequences_scores", ours.sequences_scores, theirs.sequences_scores))
        named.append(("beam_indices", ours.beam_indices, theirs.beam_indices.long()))
    for name, mine, reference in named:
        if not torch.allclose(mine, reference, atol=SCORE_TOLERANCE, rtol=SCORE_TOLERANCE):
            found.append(name)
    return ", ".join(found[:3])


def _compare_tokens(ours: Tensor, theirs: Tensor) -> str:
    """The earliest token that differs."""
    if torch.equal(ours, theirs):
        return ""
    if ours.shape != theirs.shape:
        width = min(ours.shape[1], theirs.shape[1])
        lengths = f"{ours.shape[1]} columns, not {theirs.shape[1]}; "
    else:
        width, lengths = ours.shape[1], ""
    places = (ours[:, :width] != theirs[:, :width]).nonzero()
    if not len(places):
        return lengths + "equal up to there"
    row, column = places[places[:, 1].argmin()].tolist()
    return f"{lengths}row {row} column {column}: {int(ours[row, column])}, not {int(theirs[row, column])}"


def describe(case: Case) -> str:
    return f"case {case.number}: {case.strategy}, model {case.model}, prompts {tuple(case.ids.shape)}, {case.options}"


def run_cases(
    count: int, seed: int, models: int = 8, only: int | None = None, strategies: Sequence[str] = tuple(STRATEGIES)
) -> Counter[tuple[str, str]]:
    """How many cases there were of each (strategy, outcome)."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Using the model-agnostic default")
    rng = random.Random(seed)
    pairs = make_pairs(models, rng)
    outcomes: Counter[tuple[str, str]] = Counter()
    for case in draw_cases(pairs, count, rng, strategies):
        if only is not None and case.number != only:
            continue
        result = compare(case, pairs[case.model])
        outcomes[case.strategy, result.outcome] += 1
        outcomes[case.strategy, ENDED] += result.ended
        if result.difference or only is not None:
            print(f"{result.outcome}: {describe(case)}: {result.difference}")
        if only is not None:
            print(run_ours(case, pairs[case.model]), run_theirs(case, pairs[case.model]), case, sep="\n")
    return outcomes


def print_table(outcomes: Counter[tuple[str, str]]) -> None:
    columns = (*OUTCOMES, ENDED)
    print(f"{'strategy':14}{'cases':>7}" + "".join(f"{name:>14}" for name in columns))
    for strategy in [*STRATEGIES, "all"]:
        counts = {
            name: sum(n for (of, outcome), n in outcomes.items() if outcome == name and strategy in (of, "all"))
            for name in columns
        }
        cases = sum(counts[name] for name in OUTCOMES)
        print(f"{strategy:14}{cases:7}" + "".join(f"{count:14}" for count in counts.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--only", type=int, metavar="N", help="run case N alone and print its outputs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    outcomes = run_cases(args.cases, args.seed, only=args.only, strategies=args.strategies)
    print_table(outcomes)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {time.monotonic() - start:.0f} s")
    sys.exit(1 if any(outcome == "different" for _, outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
