"""What PACS Node does in a second, beside what others do on the same machine in the same run."""
