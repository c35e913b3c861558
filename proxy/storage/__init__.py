"""Where things are kept: Postgres (ours or the operator's), its SQL by area, and what is sealed in it."""
