"""What is erased and what is preserved: names, prompts, tokens."""
