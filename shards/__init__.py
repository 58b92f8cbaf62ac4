"""How pairs, pictures, scores and selections lie on disk, and how a task is committed."""
