"""Built-in denoisers, one a file."""
