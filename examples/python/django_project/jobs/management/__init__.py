"""Its management."""
