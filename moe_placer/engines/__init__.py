"""Files that inference engines write and read: recordings in, plans out."""
