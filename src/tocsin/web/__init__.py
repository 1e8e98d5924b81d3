"""Our own pages, as files: the inbox that any page can embed, and the console."""
