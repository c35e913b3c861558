"""
Word to people before money runs out: thresholds and forecasts of budgets, daily spend, requests without a price.

`rules` says what is due, `channels` sends it, `watch` is the task between them and the database. An alert is a row that
is unique for its rule, subject, period and threshold: however many replicas see it, it is said once.
"""
