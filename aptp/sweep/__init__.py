"""Many runs from one request: a grid of differences from a default. Imports no torch; each run is a process.

`grid` says which runs, `table` what became of them, `conduct` carries them out.
"""
