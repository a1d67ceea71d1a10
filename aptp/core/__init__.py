"""The words of the field and the mechanism: sites, gates, slicing, routing, balancing, budgets. Knows no plugin."""
