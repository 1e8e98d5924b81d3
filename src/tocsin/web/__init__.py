"""The files of the web inbox, which pages can embed, and of the console."""
