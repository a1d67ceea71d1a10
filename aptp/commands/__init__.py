"""The commands of the command line, one file a purpose. They import nothing heavy before the request is checked."""
