"""The command line: one file per command.

Modules here import torch and the node lazily, inside their commands, so `--help` is quick.
"""
