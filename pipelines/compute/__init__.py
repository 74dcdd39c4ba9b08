"""Processes, Ray, devices and ranks: where the work of a stage runs."""
