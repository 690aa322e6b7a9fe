"""`llmlab tokenizer report`: what a tokenizer does to text, in numbers and in colour."""
