"""What the command line can do besides serving. Each command returns its text; `proxy.cli` prints it."""
