"""The command line, one module a subcommand; each is imported only when it is used."""
