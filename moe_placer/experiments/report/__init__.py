"""Reports of comparisons: a page and the same as Markdown, made from rows alone."""

from moe_placer.experiments.report.report_files import write_report

__all__ = ["write_report"]
