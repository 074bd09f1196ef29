"""Whole networks, each described once and built in every library by the parts it offers."""
