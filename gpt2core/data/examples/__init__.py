"""Examples with answers: records, the template that makes text of them, token sets and batches."""
