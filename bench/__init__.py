"""
What the gateway costs on this machine: `python -m bench`, beside nginx where it is installed.

Everything is on (keys, budgets, limits, journal, ledger, metrics, log lines). The upstream and the load share one core,
the gateway and nginx another, so CPU time per request is the figure to look at: latency here is mostly the machine's.
"""
