"""`millrace doctor`: checks of the machine, the settings, the database, the queue and the stack."""
