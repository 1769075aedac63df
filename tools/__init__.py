"""Makes the demo model and its data. Nothing of the product imports this."""
