"""The report of a day: `collect` gathers the numbers, `write_report` writes report.json and report.html."""
