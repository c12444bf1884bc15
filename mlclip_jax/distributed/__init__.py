"""Devices and processes: how one per-device function runs on all of them."""
