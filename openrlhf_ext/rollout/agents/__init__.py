"""Agents: episodes of several turns in an environment that users write. Nothing heavy is imported here: their
process imports this package."""
