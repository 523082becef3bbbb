"""What `openrlhf-ext check` looks at: a module for each area, which yields findings.

A check calls the very functions that the command calls before it starts, so that what passes here passes there.
"""
