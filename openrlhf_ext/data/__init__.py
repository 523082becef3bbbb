"""Rows from disk or the hub, tokenizers, prompts for RL and examples for SFT. No torch here."""
