"""Where work runs: processes, Ray, devices and ranks."""
