"""Stage `sample`: models/best -> reports/samples.json and reports/samples.md."""

from typing import Any

import torch

from gpt2core.decoding import generate
from gpt2core.errors import UserError
from gpt2core.files import write_json, write_text
from gpt2core.runtime import pick_device, set_threads
from gpt2core.tokenizer import Tokenizer
from tasks import paths
from tasks.initial_model import best_model
from tasks.params import Params, Sample, load_params
from tasks.stage import run_stage, say
from tasks.tracking import tracked_run


def main() -> None:
    params = load_params()
    set_threads(params.run.threads)
    with tracked_run() as tracked:
        say(f"writing {len(params.sample.prompts) * params.sample.num_sequences} sample texts ...")
        samples = write_samples(params)
        write_json(paths.SAMPLES, samples)
        write_text(paths.SAMPLES_PAGE, samples_page(samples))
        tracked.log_artifact(paths.SAMPLES, "samples")
        tracked.log_artifact(paths.SAMPLES_PAGE, "samples")


def write_samples(params: Params) -> dict[str, Any]:
    """The settings and, for each prompt, its texts. Raises UserError naming a prompt that leaves no room."""
    device = pick_device(params.run.device)
    model = best_model().to(device)
    tokenizer = Tokenizer()
    texts = []
    for prompt in params.sample.prompts:
        ids = tokenizer.encode(prompt) or [tokenizer.eot_id]
        room = model.config.block_size + 1 - len(ids)
        if room < 1:
            raise UserError(
                f"sample.prompts: {prompt[:40]!r}... has {len(ids)} tokens, more than the model's block_size "
                f"({model.config.block_size}); shorten it."
            )
        output = generate(
            model,
            torch.tensor([ids], device=device),
            seed=params.sample.seed,
            max_new_tokens=min(params.sample.max_new_tokens, room),
            num_return_sequences=params.sample.num_sequences if params.sample.decoding == "sample" else 1,
            eos_token_id=tokenizer.eot_id,
            **decoding_options(params.sample),
        )
        rows = [strip_padding(row, len(ids), tokenizer.eot_id) for row in output.tolist()]
        texts.append({"prompt": prompt, "texts": [prompt + tokenizer.decode(row) for row in rows]})
    return {"settings": params.sample.model_dump(exclude={"prompts"}), "samples": texts}


def decoding_options(sample: Sample) -> dict[str, Any]:
    if sample.decoding == "greedy":
        return {"do_sample": False}
    return {"do_sample": True, "temperature": sample.temperature, "top_k": sample.top_k, "top_p": sample.top_p}


def strip_padding(row: list[int], prompt_length: int, eos: int) -> list[int]:
    """The new tokens of a row, up to its end of text."""
    new = row[prompt_length:]
    return new[: new.index(eos)] if eos in new else new


def samples_page(samples: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in samples["settings"].items())
    lines = ["# Samples", "", f"{settings}.", ""]
    for entry in samples["samples"]:
        lines += [f"## {entry['prompt'] or '(start of a text)'}", ""]
        for text in entry["texts"]:
            # Longer fences than any in the text: a sample must not end its own block.
            fence = "`" * max(3, 1 + longest_run(text, "`"))
            lines += [f"{fence}text", text.strip("\n"), fence, ""]
    return "\n".join(lines)


def longest_run(text: str, character: str) -> int:
    longest = current = 0
    for other in text:
        current = current + 1 if other == character else 0
        longest = max(longest, current)
    return longest


if __name__ == "__main__":
    run_stage("sample", main)
