"""Built-in datasets, one a file."""
