"""
What operators see: every metric (`families`, `metrics`), log line (`logs`) and span (`spans`, `traces`).

Metric names, labels and log fields are an API for dashboards; they are declared once each, at the top of their files.
Nothing here may cost a request more than a few microseconds, wait, or show a secret.
"""
