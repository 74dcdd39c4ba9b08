"""Stages and storage: one stage is one file, from ingest to export."""
