"""Import and export of users, teams, devices and notifications."""
