"""What people see of a run: the live view, the table at its end, the page with plots, and the files for other tools."""
