"""Arguments in, exit code out. The only place that imports typer or ends the process."""
