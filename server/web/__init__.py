"""The operator's page and the same as JSON, server-sent events and Prometheus metrics."""
