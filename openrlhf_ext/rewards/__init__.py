"""Where rewards come from: users' Python files, each in a process of its own, and HTTP servers.

`load.load_reward` opens them. Nothing is imported here: the process of a reward file imports this
package too, and starts in 0.1 s because of it.
"""
