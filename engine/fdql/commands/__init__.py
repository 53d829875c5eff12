"""The verbs of the command line, one module each: its flags, and `run(words)`, which returns the
exit code. `flags` is what they share: settings from --config and from flags.
"""
