"""A language model that scores: what it is asked, how its answers are read, kept and counted. It runs elsewhere."""
