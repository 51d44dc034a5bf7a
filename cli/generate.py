"""`gpt2 generate`: prompt in, texts out."""

import argparse

import torch

from gpt2core.decoding import generate
from gpt2core.runtime import pick_device
from gpt2core.tokenizer import Tokenizer
from tasks.initial_model import load_model


def print_texts(arguments: argparse.Namespace) -> None:
    """Write the texts to standard output. Raises UserError for a model or option that does not work."""
    device = pick_device("auto")
    model = load_model(arguments.model, "--model").to(device)
    tokenizer = Tokenizer()
    ids = tokenizer.encode(arguments.prompt) or [tokenizer.eot_id]
    options = {}
    if arguments.decoding == "sample":
        options = {"temperature": arguments.temperature, "top_k": arguments.top_k, "top_p": arguments.top_p}
    output = generate(
        model,
        torch.tensor([ids], device=device),
        seed=arguments.seed,
        do_sample=arguments.decoding == "sample",
        max_new_tokens=arguments.max_new_tokens,
        num_return_sequences=arguments.num_sequences,
        eos_token_id=tokenizer.eot_id,
        **options,
    )
    for number, row in enumerate(output.tolist(), start=1):
        if arguments.num_sequences > 1:
            print(f"--- {number} ---")
        new = row[len(ids) :]
        end = new.index(tokenizer.eot_id) if tokenizer.eot_id in new else len(new)
        print(arguments.prompt + tokenizer.decode(new[:end]))
