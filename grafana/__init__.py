"""The dashboards of the gateway, as data; `build.py` writes them for Grafana."""
