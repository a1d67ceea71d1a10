"""Built-in granularities, one a file."""
