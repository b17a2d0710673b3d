"""The verbs of the command line, one module each: an argument class and `run`."""
