"""p2pllm: several machines, one language model, no master."""
