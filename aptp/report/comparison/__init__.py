"""The comparison of runs: methods over seeds, within one protocol. Imports no torch.

`sources` reads runs, `methods` and `protocols` name what differs between them, `gathering` puts the rows of all records
in their places, which `trials` holds; `intervals` is the statistics. `verdict` and `claims` conclude in words;
`tables`, `charts`, `maps` and `album` show the figures; `writing` makes the files.
"""
