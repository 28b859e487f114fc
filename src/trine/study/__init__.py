"""Controlled comparisons: studies as YAML enter, arms are trained over seeds, tables and plots of evidence leave.

`config` is a study's file, `plan` turns studies into training runs, `runner` trains them side by side and goes on
where it stopped, `worker` is one of its processes, `measures` and `statistics` read the runs, `evidence` and `svg`
write them up.
"""
