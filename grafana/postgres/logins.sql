-- Run once by the Postgres of compose.yaml, when its volume is new: the gateway's login, which owns its database and is no
-- superuser, and that of dashboards, which reads five views (migration 0013 says which).
\getenv strata_password STRATA_DATABASE_PASSWORD
\getenv grafana_password GRAFANA_DATABASE_PASSWORD

CREATE ROLE strata LOGIN CREATEROLE PASSWORD :'strata_password';
CREATE DATABASE strata OWNER strata;
REVOKE CONNECT, TEMPORARY ON DATABASE strata FROM PUBLIC;

CREATE ROLE strata_grafana LOGIN CONNECTION LIMIT 10 PASSWORD :'grafana_password';
GRANT CONNECT ON DATABASE strata TO strata_grafana;
ALTER ROLE strata_grafana SET default_transaction_read_only = on;
ALTER ROLE strata_grafana SET statement_timeout = '30s';
