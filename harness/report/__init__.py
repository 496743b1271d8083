"""Reports: result files in, report.json out, every other format rendered from it."""

from harness.report.build import SCHEMA_VERSION, build_report
from harness.report.terminal import terminal_table
from harness.report.write import write_report

__all__ = ["SCHEMA_VERSION", "build_report", "terminal_table", "write_report"]
