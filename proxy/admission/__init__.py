"""
Who is calling, may they, and can they afford it.

A known key within its limits passes without one suspension: every answer on that path comes from memory, which is kept
fresh from Postgres behind it.
"""
