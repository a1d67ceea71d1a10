"""Built-in budgets, one a file."""
