"""The `onerec` command: thin, one file a command group."""
