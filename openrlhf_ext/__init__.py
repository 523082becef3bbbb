"""RLHF on Ray, DeepSpeed and vLLM that tells the truth before it starts and then keeps its word."""

__version__ = "0.1.0"
