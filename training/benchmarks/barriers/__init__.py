"""Populations and rates over a high barrier, from releases of MD on a flattened surface, beside a rollout."""
