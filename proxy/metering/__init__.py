"""What an answer cost, and the record of it that survives us: usage, prices, the journal, and its way to Postgres."""
