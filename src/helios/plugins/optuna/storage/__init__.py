"""Storages: databases of studies, their locks, owners and transient failures."""
