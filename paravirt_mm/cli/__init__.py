"""The command line, one module a subcommand; each is imported only when it is used."""

COMPLETE = "_PARAVIRT_MM_COMPLETE"
"""Set by a shell's function while it asks for completions (`completion`)."""
