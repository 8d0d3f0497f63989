"""The command line: one module a command (see ..cli)."""
