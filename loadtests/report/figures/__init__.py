"""Figures of a report: matplotlib, drawn once, saved as PNG and set into the page as SVG."""
