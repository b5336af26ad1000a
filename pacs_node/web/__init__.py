"""The reading list: pages for people who look at results. It never loads torch."""
