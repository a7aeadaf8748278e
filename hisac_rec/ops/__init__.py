"""Operators of our own: one signature each, a backend for each device, a plain reference."""
