"""Published systems, one frozen value in a file each; the file's name is the system's."""
