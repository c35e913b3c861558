"""Model -> deployments in order; who is resting; what may be retried. Pure: clock and dice are arguments."""
