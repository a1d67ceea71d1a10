"""Built-in balancers, one a file."""
