"""Built-in encoders, one a file."""
