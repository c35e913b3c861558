"""A look at the boards without Grafana, for whoever changes them: close to what it draws, and no more than that."""
