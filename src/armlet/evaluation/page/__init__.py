"""What the web page of `armlet report` shows of a report: which rows belong together, and where each
mark of a picture stands. Knows reports; the HTML is in the templates beside these files."""
