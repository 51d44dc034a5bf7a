"""Weights packed for decoding on a CPU: bf16, int8 and int4."""
