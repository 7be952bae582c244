"""Orders in which rows are visited, and splits."""
