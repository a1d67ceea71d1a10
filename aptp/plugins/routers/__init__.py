"""Built-in routers, one a file."""
